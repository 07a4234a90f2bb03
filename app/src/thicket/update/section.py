# SPDX-License-Identifier: Apache-2.0
"""``[update]``: whose bundles are taken, and how a slot that was just written is judged."""

from __future__ import annotations

from thicket.base.fields import Integer, Key, Pasted, Section, Text, listed


class Certificates(Pasted):
    """Certificates in PEM, or nothing."""

    allowed = (
        'certificates in PEM, each from "-----BEGIN CERTIFICATE-----" to its end (in TOML, a text '
        "of several lines stands between three quotes), or empty for none"
    )
    #: Most certificates.
    MOST = 16

    def check(self, raw: object) -> str:
        if not isinstance(raw, str):
            raise self.refuse()
        if "PRIVATE KEY" in raw:
            raise ValueError(
                "holds a private key, which must never be on a device: only certificates do"
            )
        blocks: list[str] = []
        rest = raw.strip()
        while rest:
            block, end, rest = rest.partition("-----END CERTIFICATE-----")
            body = block.strip().removeprefix("-----BEGIN CERTIFICATE-----")
            if not end or body == block.strip() or not self._is_certificate(body):
                raise ValueError(f"certificate {len(blocks) + 1} is damaged: copy all of its lines")
            lines = "\n".join(line.strip() for line in body.strip().split("\n"))
            blocks.append(f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n")
            rest = rest.strip()
        if len(blocks) > self.MOST:
            raise ValueError(f"holds {len(blocks)} certificates; at most {self.MOST}")
        return "".join(blocks)

    def _is_certificate(self, body: str) -> bool:
        """Whether this is the DER of one sequence, as far as that can be seen from outside.

        OpenSSL judges the rest: these certificates may have keys of any kind.
        """
        import base64  # few nodes have any

        try:
            data = base64.b64decode("".join(body.split()), validate=True)
        except ValueError:
            return False
        if len(data) < 4 or data[:2] != b"\x30\x82":
            return False
        return len(data) == 4 + int.from_bytes(data[2:4], "big")


class Hosts(Key[tuple[str, ...]]):
    """Host names of nodes, each once, sorted."""

    allowed = (
        'a list of host names of nodes such as ["n-6f44e3c6b802"]: n- and 12 hexadecimal digits, '
        "at most 16 of them"
    )
    #: Most names.
    MOST = 16

    def from_text(self, text: str) -> object:
        return listed(text)

    def plain(self, value: tuple[str, ...]) -> object:
        return list(value)

    def check(self, raw: object) -> tuple[str, ...]:
        if not isinstance(raw, list | tuple) or len(raw) > self.MOST:
            raise self.refuse()
        if not all(isinstance(name, str) and self._is_host(name) for name in raw):
            raise self.refuse()
        return tuple(sorted(set(raw)))

    @staticmethod
    def _is_host(name: str) -> bool:
        digits = name.removeprefix("n-")
        return len(name) == 14 and len(digits) == 12 and not set(digits) - set("0123456789abcdef")


class Folder(Text):
    """The address of a folder on a web server, or nothing."""

    @property
    def allowed(self) -> str:
        return (
            "the address of a folder, which begins with https:// or http://, up to "
            f"{self.most} characters without blanks; or empty"
        )

    def check(self, raw: object) -> str:
        value = super().check(raw)
        scheme, _, rest = value.partition("://")
        if value and (scheme not in ("https", "http") or not rest.strip("/") or "@" in rest):
            raise self.refuse()
        return value.rstrip("/")


class UpdateSection(Section, name="update"):
    """Updates of the whole system, which are tried once before they are kept."""

    __slots__ = ()
    keyring = Certificates(
        "",
        "Whose bundles a node without a fleet takes: the certificates of those authorities. A node "
        "of a fleet takes the bundles of its own fleet's signers, and no others.",
    )
    health_time = Integer(
        60,
        "How long a slot must be well, without a break, before it is kept: the daemon runs, the "
        "node is in the mesh, has a peer, sees another node, and its applications run, each of "
        "them if it was so before. What is not well a quarter of an hour after its start is left.",
        least=10,
        most=600,
        unit="s",
    )
    control = Hosts(
        (),
        "Which nodes may hold up a rollout, let it go on, end it or turn it back, besides the "
        "fleet's update signers. They must be members of the fleet; the order holds for the nodes "
        "whose configuration names the one that gives it.",
    )
    air_share = Integer(
        20,
        "How much of the time a node may send updates to others, by the airtime of what it sends. "
        "Nodes within reach of each other that send at the same time add up. More is faster; less "
        "leaves more to calls and beacons.",
        least=1,
        most=90,
        unit="%",
    )
    source = Folder(
        "",
        "A folder on a web server that a node with a way out looks into for updates "
        "([updating.md](updating.md#through-the-mesh)). One such node is enough for a fleet. What "
        "is in the folder is signed, so that http:// is as safe as https:// against changes.",
        least=0,
        most=200,
        printable=True,
        optional=True,
    )

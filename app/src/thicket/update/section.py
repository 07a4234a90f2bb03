# SPDX-License-Identifier: Apache-2.0
"""``[update]``: whose bundles are taken, and how a slot that was just written is judged."""

from __future__ import annotations

from thicket.base.fields import Integer, Pasted, Section


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

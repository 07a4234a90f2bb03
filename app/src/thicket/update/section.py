# SPDX-License-Identifier: Apache-2.0
"""``[update]``: whose bundles are taken, and how a slot that was just written is judged."""

from __future__ import annotations

from thicket.base.fields import Certificates, Integer, Listed, Section, Text


class Hosts(Listed):
    """Host names of nodes, each once, sorted."""

    allowed = (
        'a list of host names of nodes such as ["n-6f44e3c6b802"]: n- and 12 hexadecimal digits, '
        "at most 16 of them"
    )
    MOST = 16

    def check(self, raw: object) -> tuple[str, ...]:
        names = self.entries(raw)
        if not all(map(self._is_host, names)):
            raise self.refuse()
        return tuple(sorted(set(names)))

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

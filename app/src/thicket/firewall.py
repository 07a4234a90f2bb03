# SPDX-License-Identifier: Apache-2.0
"""The firewall: what may reach the node over the network, as one nftables table, ``inet thicket``.

:func:`ruleset` makes the rules of the configuration; :class:`Firewall` puts them in force through
the program ``nft``, all of them at once or none, before the radio is started. A packet that no rule
names is dropped and counted. What leaves the node is not looked at.

Floods are cut off where they cost least: beacons before the kernel's connection tracking sees them,
connections at their first packet. Each sender has a rate of its own, so that one of them cannot
use up what the others need; the rate of all together bounds what invented senders can do.

A node whose firewall cannot be set up stays off the mesh (and says so), because it would serve
strangers what it serves only itself; what is in force already stays so. A daemon in a directory of
its own, as on a developer's machine, leaves that machine's network alone.
"""

import asyncio
import contextlib
import subprocess
from logging import getLogger
from typing import Any, Final

from thicket.config import Paths, Settings, write_atomically
from thicket.discovery import PORT as BEACON_PORT
from thicket.status import Problems

log = getLogger("thicket.firewall")

TABLE: Final = "thicket"
EPMD_PORT: Final = 4369
SSH_PORT: Final = 22
MDNS_PORT: Final = 5353

#: Why a packet was dropped: the counters' names.
REASONS: Final = (
    "beacon_router",  # a beacon that passed a router (its hop limit is not 255)
    "beacon_sender",  # more beacons than one node sends
    "beacon_flood",  # more beacons than all nodes together send
    "mdns_sender",  # more multicast DNS than one node sends
    "mdns_flood",  # more multicast DNS than all nodes together send
    "invalid",  # belongs to no connection that the kernel knows
    "echo_flood",  # more pings than anybody needs
    "neighbour_sender",  # more neighbour discovery than one node sends
    "connection_sender",  # more new connections than one node makes
    "connection_flood",  # more new connections than all nodes together make
    "forward",  # meant for somebody else
    "closed",  # what the node does not serve
)

#: Packets per second on average, and at once, that pass. A node sends a beacon a second at most,
#: and answers; 256 nodes that come up at the same time send some 200 a second.
_BEACON_SENDER: Final = (10, 20)
_BEACON_ALL: Final = (300, 600)
#: A node sends some ten packets when it starts, and hardly any later.
_MDNS_SENDER: Final = (10, 40)
_MDNS_ALL: Final = (50, 300)
_ECHO: Final = (100, 200)
_NEIGHBOUR_SENDER: Final = (100, 200)
#: A node that joins makes two connections (port mapper, node) to each of the others, one by one.
_CONNECTION_SENDER: Final = (20, 60)
_CONNECTION_ALL: Final = (200, 400)
#: Senders whose rates are known at the same time, and for how long after their last packet. What a
#: full table lets pass is bounded by the rate of all.
_SENDERS: Final = 1024
_SENDER_SECONDS: Final = 20

#: Seconds that ``nft`` has; emulated nodes on a busy host are slow.
_NFT_SECONDS: Final = 30.0
#: Pauses between attempts in seconds; the last one repeats.
_PAUSES: Final = (1.0, 5.0, 15.0, 60.0)

NETLINK_NETFILTER: Final = 12


def ruleset(settings: Settings, interface: str) -> str:
    """The commands for ``nft -f`` that put the rules for ``settings`` in the place of the old ones.

    ``interface`` is the mesh's. Without a firewall the commands only remove the table.
    """
    # "table" makes it when there is none, so that removing it never fails
    head = f"table inet {TABLE}\ndelete table inet {TABLE}\n"
    if not settings.firewall.enabled:
        return head
    counters = "".join(f"\tcounter {reason} {{ }}\n" for reason in REASONS)
    senders = "".join(
        f"\tset {name} {{ type ipv6_addr; size {_SENDERS}; flags dynamic; "
        f"timeout {_SENDER_SECONDS}s; }}\n"
        for name in ("beacon_senders", "mdns_senders", "neighbours", "callers")
    )
    return (
        f"{head}table inet {TABLE} {{\n{counters}\n{senders}\n{_early(interface)}\n"
        f"{_input(interface)}\n{_mesh(settings)}\n{_forward(settings)}}}\n"
    )


def _over(rate: tuple[int, int]) -> str:
    return f"limit rate over {rate[0]}/second burst {rate[1]} packets"


def _chain(name: str, *lines: str) -> str:
    return f"\tchain {name} {{\n" + "".join(f"\t\t{line}\n" for line in lines) + "\t}\n"


def _early(interface: str) -> str:
    """Before connection tracking (priority raw): beacons and multicast DNS have no use for it."""
    return (
        _chain(
            "early",
            "type filter hook prerouting priority raw; policy accept;",
            f'iifname "{interface}" meta nfproto ipv6 udp dport {BEACON_PORT} goto beacons',
            f'iifname "{interface}" meta nfproto ipv6 udp dport {MDNS_PORT} goto mdns',
        )
        + _chain(
            "mdns",
            f"update @mdns_senders {{ ip6 saddr {_over(_MDNS_SENDER)} }} counter name mdns_sender "
            "drop",
            f"{_over(_MDNS_ALL)} counter name mdns_flood drop",
            "notrack accept",
        )
        + _chain(
            "beacons",
            "ip6 hoplimit != 255 counter name beacon_router drop",
            f"update @beacon_senders {{ ip6 saddr {_over(_BEACON_SENDER)} }} "
            "counter name beacon_sender drop",
            f"{_over(_BEACON_ALL)} counter name beacon_flood drop",
            "notrack accept",
        )
    )


def _input(interface: str) -> str:
    return _chain(
        "input",
        "type filter hook input priority filter; policy drop;",
        'iifname "lo" accept',
        "ct state established,related accept",
        "ct state invalid counter name invalid drop",
        # RFC 4890 4.4: what a host needs of ICMPv6. Errors are "related" to what they are about.
        "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 goto neighbours",
        "icmpv6 type mld-listener-query ip6 saddr fe80::/10 accept",
        f"icmpv6 type echo-request {_over(_ECHO)} counter name echo_flood drop",
        "icmpv6 type echo-request accept",
        # Meant for routers, and heard by everybody: no reason to count them as attempts.
        "icmpv6 type { nd-router-solicit, nd-router-advert, mld-listener-report, "
        "mld-listener-done, mld2-listener-report } drop",
        f'iifname "{interface}" goto mesh',
        "counter name closed drop",
    ) + _chain(
        "neighbours",
        # No rate for all: invented senders could then take the others' addresses away.
        f"update @neighbours {{ ip6 saddr {_over(_NEIGHBOUR_SENDER)} }} "
        "counter name neighbour_sender drop",
        "accept",
    )


def _mesh(settings: Settings) -> str:
    """What the node serves on the mesh.

    The port mapper belongs to it in a cluster with certificates, too: stock Erlang nodes, and ours,
    ask it for the port, and all that it tells is that.
    """
    served = {EPMD_PORT, settings.cluster.port}
    if settings.access.ssh_keys:
        served.add(SSH_PORT)
    lines = [
        f"udp dport {BEACON_PORT} accept",
        f"tcp dport {{ {', '.join(map(str, sorted(served)))} }} goto connections",
    ]
    if settings.discovery.dns_sd:
        lines.append(f"udp dport {MDNS_PORT} accept")
    for protocol in ("tcp", "udp"):
        allowed = [
            ports for kind, _, ports in (p.partition("/") for p in settings.firewall.allow)
            if kind == protocol
        ]  # fmt: skip
        if allowed:
            lines.append(f"{protocol} dport {{ {', '.join(allowed)} }} accept")
    if settings.firewall.log:
        lines.append('limit rate 10/minute burst 5 packets log prefix "firewall: " level info')
    return _chain("mesh", *lines, "counter name closed drop") + _chain(
        "connections",
        f"update @callers {{ ip6 saddr {_over(_CONNECTION_SENDER)} }} "
        "counter name connection_sender drop",
        f"{_over(_CONNECTION_ALL)} counter name connection_flood drop",
        "accept",
    )


def _forward(settings: Settings) -> str:
    """A node passes nothing on between networks; a gate does, by rules of a table of its own.

    (A packet that one table drops is gone, whatever another one says.)
    """
    if settings.mesh.gate:
        return ""
    return _chain(
        "forward",
        "type filter hook forward priority filter; policy drop;",
        "counter name forward drop",
    )


class Firewall:
    """Keeps the rules of the configuration in force while :meth:`run` runs."""

    program = "nft"

    def __init__(
        self, paths: Paths, interface: str, problems: Problems, settings: Settings
    ) -> None:
        self.path = paths.run + "/firewall.nft"
        #: Whether this daemon is the machine's own and may touch its network.
        self.ours = not paths.root
        self.interface = interface
        self.problems = problems
        self.settings = settings
        #: Set once the network may be used: the rules are in force, or none are wanted.
        self.in_force = asyncio.Event()
        self.state = "starting"
        self.dropped: dict[str, int] = {}
        self._text = ""
        self._changed = asyncio.Event()
        self._requests: Any = None

    def follow(self, settings: Settings) -> None:
        """Put the rules for these settings in force soon."""
        self.settings = settings
        self._changed.set()

    async def run(self) -> None:
        """Set up the rules, and again when the settings change, until cancelled."""
        failures = 0
        while self.ours:
            self._changed.clear()
            pause = None
            try:
                await self._apply()
                failures = 0
            except OSError as e:
                self._failed(e.strerror or str(e))
                pause = _PAUSES[min(failures, len(_PAUSES) - 1)]
                failures += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._changed.wait()
        self.state = "none"
        self.in_force.set()
        await asyncio.Event().wait()

    async def _apply(self) -> None:
        """Make the kernel's rules those of the settings; raises OSError, with words in strerror."""
        enabled = self.settings.firewall.enabled
        text = ruleset(self.settings, self.interface)
        # Rules that are in force keep their counters and the senders' rates.
        if text != self._text and (enabled or self._counters()):
            write_atomically(self.path, text.encode(), durable=False)
            await asyncio.get_running_loop().run_in_executor(None, self._load)
            log.info("the firewall's rules are %s", "in force" if enabled else "removed")
        self._text = text
        self.state = "on" if enabled else "off"
        self.problems.clear("firewall", "not-set-up")
        if enabled:
            self.problems.clear("firewall", "off")
        else:
            message = "is off (firewall.enabled): every port can be reached by the whole mesh"
            self.problems.report("firewall", "off", message, "warning")
        self.in_force.set()

    def _load(self) -> None:
        try:
            done = subprocess.run(
                [self.program, "-f", self.path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_NFT_SECONDS,
                check=False,
            )
        except FileNotFoundError:
            raise OSError(0, f"the program {self.program} (nftables) is not installed") from None
        except subprocess.TimeoutExpired:
            raise OSError(0, f"{self.program} did not end within {_NFT_SECONDS:.0f} s") from None
        if done.returncode != 0:
            said = done.stdout.decode("utf-8", "replace").strip().split("\n")[0][:200]
            raise OSError(0, f"{self.program} ended with status {done.returncode}: {said}")

    def _failed(self, why: str) -> None:
        """Report, and go on with rules of before where there are some."""
        message = f"cannot be set up: {why}"
        if self._counters():
            self.state = "on"
            self.in_force.set()
            message += "; the rules from before stay in force"
        else:
            self.state = "failed"
            self.in_force.clear()
            message += (
                ". The node stays off the mesh until it can be, or until "
                "`thicket config set firewall.enabled=false`"
            )
        self.problems.report("firewall", "not-set-up", message)

    # -- what was dropped

    def refresh(self) -> None:
        """Read the counters again; rules that somebody took away are put back."""
        if self.state != "on":
            return
        found = self._counters()
        if found == {}:
            log.warning("the firewall's rules have gone and are set up again")
            self._text = ""
            self._changed.set()
        elif found is not None:
            self.dropped = found

    def snapshot(self) -> dict[str, Any]:
        """The ``firewall`` part of the status document."""
        return {"state": self.state, "dropped": {k: n for k, n in self.dropped.items() if n}}

    def _counters(self) -> dict[str, int] | None:
        """Packets dropped, by reason; empty without such a table, None when it is not known."""
        from thicket import nftables  # noqa: PLC0415  # imports netlink

        try:
            if self._requests is None:
                self._requests = nftables.Requests(NETLINK_NETFILTER)
            return nftables.counters(self._requests, TABLE)
        except OSError as e:
            log.debug("the firewall's counters cannot be read: %s", e)
            return None

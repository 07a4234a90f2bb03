# SPDX-License-Identifier: Apache-2.0
"""The firewall: what may reach the node over the network, as one nftables table, ``inet thicket``.

:func:`ruleset` makes the rules of the configuration. :class:`Firewall` puts them in force through
the program ``nft``, all or none, before the radio is started. A packet that no rule names is
dropped and counted. Packets that the node sends are not filtered.

A node whose firewall cannot be set up stays off the mesh and says so; rules that are in force stay.
docs/node.md has the rules and their reasons. A daemon in another directory, as on a developer's
machine, leaves that machine's network alone.
"""

from __future__ import annotations

import asyncio
from ipaddress import IPv6Network
from logging import getLogger
from typing import Any

from thicket.base.files import read, write_atomically
from thicket.base.pace import Backoff, wait
from thicket.base.paths import Paths
from thicket.base.patience import run
from thicket.base.problems import Problems
from thicket.base.threads import finish
from thicket.config.schema import Settings
from thicket.firewall.ruleset import TABLE, ruleset

log = getLogger(__name__)

#: Seconds that ``nft`` gets; emulated nodes on a busy host are slow.
_NFT_SECONDS = 30.0
#: Pauses between attempts in seconds; the last one repeats.
_PAUSES = (1.0, 5.0, 15.0, 60.0)

NETLINK_NETFILTER = 12


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
        #: Interfaces where people are let in. A start begins with those of the last one: a daemon
        #: that ends again and again must not close them.
        self.cables = frozenset((read(paths.run + "/cables") or "").split())
        #: Set once the network may be used: the rules are in force, or none are wanted.
        self.in_force = asyncio.Event()
        self.state = "starting"
        self.dropped: dict[str, int] = {}
        self._out: tuple[IPv6Network, ...] = ()
        self._text = ""
        self._changed = asyncio.Event()
        self._requests: Any = None

    def follow(self, settings: Settings) -> None:
        """Follow these settings soon."""
        self.settings = settings
        self._changed.set()

    def use_cables(self, names: frozenset[str]) -> None:
        """Let people in at these interfaces soon, if the settings let them."""
        if names != self.cables:
            self.cables = names
            self._changed.set()

    def let_out(self, prefixes: tuple[IPv6Network, ...]) -> None:
        """Let nodes out of the mesh that have addresses in these prefixes, soon: a gateway has them
        from its uplink."""
        if prefixes != self._out:
            self._out = prefixes
            self._changed.set()

    async def run(self) -> None:
        """Set up the rules, and again when the settings change, until cancelled."""
        backoff = Backoff(*_PAUSES)
        while self.ours:
            self._changed.clear()
            pause = None
            try:
                await self._apply()
                backoff.reset()
            except OSError as e:
                self._failed(e.strerror or str(e))
                pause = backoff.failed()
            await wait(self._changed, pause)
        self.state = "none"
        self.in_force.set()
        await asyncio.Event().wait()

    async def _apply(self) -> None:
        """Put the rules of the settings in force.

        :raises OSError: it failed; ``strerror`` says why.
        """
        enabled = self.settings.firewall.enabled
        text = ruleset(self.settings, self.interface, self.cables, self._out)
        # Unchanged rules are not loaded again: they keep their counters and the senders' rates.
        if text != self._text and (enabled or self._counters()):
            write_atomically(self.path, text.encode(), durable=False)
            await finish(self._load)
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
            status, said = run([self.program, "-f", self.path], _NFT_SECONDS)
        except FileNotFoundError:
            raise OSError(0, f"the program {self.program} (nftables) is not installed") from None
        except TimeoutError as e:
            raise OSError(0, str(e)) from None
        if status != 0:
            words = said.split("\n")[0][:200]
            raise OSError(0, f"{self.program} ended with status {status}: {words}")

    def _failed(self, why: str) -> None:
        """Report the failure; go on with earlier rules if there are any."""
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

    # -- dropped packets

    def refresh(self) -> None:
        """Read the counters again; put back rules that somebody has removed."""
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
        """Return the ``firewall`` part of the status document."""
        return {"state": self.state, "dropped": {k: n for k, n in self.dropped.items() if n}}

    def _counters(self) -> dict[str, int] | None:
        """Return dropped packets by reason; empty without the table, None when it is unknown."""
        from thicket.firewall import counters  # imports netlink

        try:
            if self._requests is None:
                self._requests = counters.Requests(NETLINK_NETFILTER)
            return counters.counters(self._requests, TABLE)
        except OSError as e:
            log.debug("the firewall's counters cannot be read: %s", e)
            return None

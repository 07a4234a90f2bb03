# SPDX-License-Identifier: Apache-2.0
"""The daemon's part ``time``: starts what keeps the time when the node has joined, and wires it."""

from __future__ import annotations

import asyncio
from logging import getLogger
from typing import TYPE_CHECKING, Any

from thicket.base.errors import RequestError
from thicket.base.pace import wait

log = getLogger(__name__)

if TYPE_CHECKING:
    from thicket.daemon.core import Core, OwnIdentity
    from thicket.distribution.node import Node
    from thicket.timekeeping.chrony import Chrony
    from thicket.timekeeping.service import Timekeeper
    from thicket.trust.service import Trust
    from thicket.trust.verify import Clock

#: Seconds after joining, or after the start of a node that does not join.
LATER, LATER_AT_MOST = 3.0, 60.0
#: Seconds until a part that failed begins anew.
AGAIN = 60.0


class TimePart:
    """Keeps the time of the node, over all sessions of the cluster.

    :ivar keeper: None before it runs, and where the configuration says so.
    """

    def __init__(self, core: Core, me: OwnIdentity, trust: Trust) -> None:
        self.keeper: Timekeeper | None = None
        self._core = core
        self._me = me
        self._trust = trust
        self._node: Node | None = None
        self._off = False

    async def run(self) -> None:
        """Keep the time until cancelled."""
        core = self._core
        if core.settings.time.enabled:
            chrony = core.make.chrony(core.paths, self._look_again)
            self._off = chrony is None
        else:
            from thicket.timekeeping.kept import Kept

            chrony, self._off = None, True
            Kept(core.paths).forget()
        if chrony is None:
            core.changed()
            await asyncio.Event().wait()
            return
        await wait(core.joined, LATER_AT_MOST)
        await asyncio.sleep(LATER)
        while True:
            try:
                await self._keep(chrony)
            except Exception as error:
                # The node is of use without a clock that is right.
                log.exception("the time is not kept")
                message = f"the time is not kept: {type(error).__name__}: {error}"
                core.problems.report("time", "part-failed", message, "warning")
            await asyncio.sleep(AGAIN)

    async def _keep(self, chrony: Chrony) -> None:
        keeper = self.keeper = self._make(chrony)
        if self._node is not None:
            keeper.attach(self._node)
        try:
            await keeper.run()
        finally:
            keeper.detach()
            self.keeper = None

    def _make(self, chrony: Chrony) -> Timekeeper:
        from thicket.timekeeping.facts import Host
        from thicket.timekeeping.kept import Kept
        from thicket.timekeeping.service import Timekeeper
        from thicket.timekeeping.signed_time import SignedTime
        from thicket.upkeep.service import save_clock

        core, me, paths = self._core, self._me, self._core.paths
        host = Host(
            settings=lambda: core.settings.time,
            me=lambda: (me.ip, me.network),
            mesh=core.make.interface,
            trusted=self._clock,
            end=self._end,
            changed=core.changed,
            save=lambda: save_clock(paths),
        )
        signed = SignedTime(lambda: self._trust.standing, Kept(paths))
        return Timekeeper(paths, core.problems, host, signed, chrony)

    def _look_again(self) -> None:
        if self.keeper is not None:
            self.keeper.look_again()

    def _clock(self) -> Clock:
        """Return what is known about the time: in a fleet by its certificates as well."""
        if self._trust.standing is not None:
            return self._trust.standing.clock()
        from thicket.trust.clock import SystemClock

        return SystemClock(self._core.paths.root).read()

    def _end(self) -> float | None:
        """Return when the device's certificates end, in seconds since 1970."""
        standing = self._trust.standing
        if standing is None or standing.credentials is None:
            return None
        from thicket.timekeeping.signed_time import end_of

        return end_of(standing.credentials.chain).timestamp()

    def status(self) -> dict[str, Any]:
        """Return the part ``time`` of the status document; docs/node.md has its members."""
        if self.keeper is not None:
            return self.keeper.status()
        return {"state": "off" if self._off else "starting", "known": False}

    # -- the cluster, see daemon.cluster_part

    def attach(self, node: Node) -> None:
        """Talk to others over the connections of ``node``."""
        self._node = node
        if self.keeper is not None:
            self.keeper.attach(node)

    def detach(self) -> None:
        """The node object has ended."""
        self._node = None
        if self.keeper is not None:
            self.keeper.detach()

    def node_up(self, name: str) -> None:
        """The node ``name`` is connected."""
        if self.keeper is not None:
            self.keeper.node_up(name)

    # -- requests of people

    def running(self) -> Timekeeper:
        """Return what keeps the time.

        :raises RequestError: nothing does.
        """
        if self.keeper is None:
            if not self._off:
                raise RequestError("starting", "the node has not joined yet; try again")
            raise RequestError(
                "off", "this node leaves its clock alone (time.enabled); `date -s` sets it"
            )
        return self.keeper

    async def request(self, params: dict[str, Any]) -> Any:
        """Do what a person asks: ``set`` (seconds since 1970), ``signed`` (base64) or ``ask``."""
        keeper = self.running()
        if params.get("ask") is True:
            return {"question": keeper.question()}
        if isinstance(text := params.get("signed"), str):
            import base64  # rare

            try:
                packed = base64.b64decode(text, validate=True)
            except ValueError:
                raise RequestError("bad-params", "the signed time is not in base64") from None
            return {**await keeper.take(packed), **keeper.status()}
        clock = params.get("set")
        if isinstance(clock, bool) or not isinstance(clock, int | float) or not clock > 0:
            raise RequestError("bad-params", "set is the time in seconds since 1970")
        await keeper.set(float(clock))
        return keeper.status()

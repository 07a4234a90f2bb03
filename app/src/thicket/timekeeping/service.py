# SPDX-License-Identifier: Apache-2.0
"""The part ``time`` of the daemon: what the clock is set by, and what it is worth.

It looks at what chronyd does, decides (:mod:`.claims`: whom to follow, :mod:`.judge`: whether the
clock may be set) and has it done. docs/time.md explains how the nodes of a fleet agree.
"""

from __future__ import annotations

import asyncio
import time
from ipaddress import IPv6Address, IPv6Network
from logging import getLogger
from typing import TYPE_CHECKING, Any

from thicket.base.errors import RequestError, ThicketError
from thicket.base.pace import Backoff, wait
from thicket.base.process import boottime
from thicket.base.threads import BusyError, OneAtATime
from thicket.timekeeping import judge as judges
from thicket.timekeeping.chrony import Chrony, Client, Setup
from thicket.timekeeping.claims import SAME, TELL, Choice, Claim, Grade, Heard, elect, passed_on
from thicket.timekeeping.facts import Host, Moment, Times, names_of
from thicket.timekeeping.judge import Bounds, Knowledge, Offered, confirmed, learned
from thicket.timekeeping.kept import Kept
from thicket.timekeeping.neighbours import Neighbours, Says
from thicket.timekeeping.section import NTS
from thicket.timekeeping.signed_time import SignedTime
from thicket.timekeeping.uplink import has_uplink

if TYPE_CHECKING:
    from thicket.base.paths import Paths
    from thicket.base.problems import Problems
    from thicket.distribution.node import Node
    from thicket.timekeeping.report import Report, Source

log = getLogger(__name__)

#: Servers of three organisations that serve everybody, for nodes with a way out that name none.
#: None of them smears leap seconds, so they can be compared.
PUBLIC = ("time.cloudflare.com", "ntp.se", "ptbtime1.ptb.de")
#: Seconds between two looks at chronyd, at least and at most. Each runs a program, so they become
#: rarer with the time since something has changed: about so many for each doubling of it.
SOON, SETTLED = 2.0, 64.0
LOOKS = 4
#: Pauses before chronyd is started again, in seconds; the last one repeats.
PAUSES = (1.0, 5.0, 15.0, 60.0)
#: Seconds for which sources are left alone whose time was refused, and nodes whose time differs
#: from that of this node and of others.
REFUSED, SHUNNED = 300.0, 3600.0
#: Seconds without an answer of servers that the configuration names, until that is a problem.
UNANSWERED = 600.0
#: Seconds between two settings of a battery's clock, and those that one may take.
RTC_AGAIN, RTC_SECONDS = 3600.0, 10.0
#: A clock that is further off than this many seconds follows no source yet.
_FOLLOWS = judges.STEP_KNOWN

_WORDS = {
    judges.BEFORE_FLOOR: "it is before what the fleet's authority has signed, or the image",
    judges.BEHIND_END: "this device's certificate would have ended",
    judges.BACKWARDS: "what nobody knows is not set back",
    judges.DISPUTED: "this node knows another time, and takes this one after 15 minutes in "
    "which no more nodes agree with it",
    judges.OUTVOTED: "this node and others know another time",
}


class Timekeeper:
    """Keeps the time of this node while :meth:`run` runs.

    :param signed: the dates that the authority has signed.
    :ivar chrony: the program.
    """

    def __init__(
        self, paths: Paths, problems: Problems, host: Host, signed: SignedTime, chrony: Chrony
    ) -> None:
        self.chrony = chrony
        self._host = host
        self._problems = problems
        self._kept = Kept(paths)
        self._root = paths.root
        self._signed = signed
        self._neighbours: Neighbours | None = None
        self._knowledge = self._kept.known(boottime())
        self._moment: Moment | None = None
        self._again = asyncio.Event()
        self._times = Times()
        self._shunned: dict[IPv6Address, float] = {}
        self._state = "starting"
        self._threads = OneAtATime("time")
        self._turn = asyncio.Lock()

    # -- what others ask

    @property
    def known(self) -> bool:
        """Whether the clock is known to be right."""
        return self._knowledge.grade != Grade.GUESS

    def look_again(self) -> None:
        """Look again at once: the settings have changed, or others have said something."""
        self._times.changed()
        self._again.set()

    def status(self) -> dict[str, Any]:
        """Return the part ``time`` of the status document; docs/node.md has its members."""
        told: dict[str, Any] = {"state": self._state, "known": self.known}
        moment, report = self._moment, self._moment.report if self._moment else None
        followed = moment.followed if moment is not None else None
        best = moment.choice.best if moment is not None else None
        told["by"] = self._knowledge.by or None
        told["source"] = followed.address if followed is not None else None
        told["origin"] = str(best.origin) if best is not None else None
        told["stratum"] = report.tracking.stratum if report is not None and followed else None
        told["offset"] = round(report.tracking.offset, 6) if report is not None else None
        told["error"] = round(report.tracking.error, 6) if report is not None and followed else None
        told["frequency"] = round(report.tracking.frequency, 3) if report is not None else None
        told["told"] = int(boottime() - self._knowledge.at) if self.known else None
        told["floor"] = int(self._bounds().floor)
        told["signed"] = self._signed.number or None
        told["rtc"] = self._kept.has_rtc()
        told["clients"] = len(self._neighbours.clients) if self._neighbours is not None else 0
        told["sources"] = [
            {
                "address": one.address,
                "state": _STATES.get(one.state, "unused" if one.reach else "silent"),
                "stratum": one.stratum,
                "reach": one.reach,
                "offset": round(one.offset, 6),
            }
            for one in (report.sources if report is not None else ())
        ]
        return told

    # -- the cluster

    def attach(self, node: Node) -> None:
        """Talk to others over the connections of ``node``."""
        says = Says(
            self._claim_now, self.look_again, self._serve, lambda: self._signed.packed, self._taken
        )
        self._neighbours = Neighbours(node, says)

    def detach(self) -> None:
        """The node object has ended."""
        if self._neighbours is not None:
            self._neighbours.close()
            self._neighbours = None
            self.look_again()

    def node_up(self, name: str) -> None:
        """The node ``name`` is connected."""
        if self._neighbours is not None and self._host.settings().neighbours:
            self._neighbours.tell(name)

    # -- running

    async def run(self) -> None:
        """Keep the time until cancelled."""
        backoff = Backoff(*PAUSES)
        telling = asyncio.create_task(self._keep_telling())
        try:
            while True:
                self._again.clear()
                try:
                    async with self._turn:
                        await self._look()
                    backoff.reset()
                    pause = min(SETTLED, max(SOON, self._times.age / LOOKS))
                    self._problems.clear("time", "chronyd")
                except ThicketError as error:
                    self._failed(error)
                    pause = backoff.failed()
                    await asyncio.sleep(PAUSES[0])  # others may wake it all the time
                await wait(self._again, pause)
        finally:
            telling.cancel()
            await self.chrony.stop()
            self._problems.clear("time")

    def _failed(self, error: ThicketError) -> None:
        self._state = "failed"
        self._moment = None
        self._problems.report("time", "chronyd", f"the clock is set by nobody: {error}", "warning")
        self._say()

    async def _keep_telling(self) -> None:
        while True:
            await asyncio.sleep(TELL)
            self._tell_all()

    def _tell_all(self) -> None:
        if self._neighbours is not None and self._host.settings().neighbours:
            self._neighbours.tell_all()

    async def _look(self) -> None:
        """Look at everything once, and do what follows.

        :raises ThicketError: chronyd cannot be run or asked.
        """
        await self._signed.load()
        now = time.monotonic()
        self._knowledge = self._knowledge.now(boottime())
        for origin in self._times.over(2 * SHUNNED):
            self._problems.clear_one("time", "refused", str(origin))
        await self._keep_above_floor()
        servers = await self._known_servers(self._servers(now))
        heard = self._heard(now)
        choice = elect(self._own(), heard, now)
        setup = await self._setup(choice, servers)
        if self.chrony.running:
            await self.chrony.follow(setup)
        else:
            await self.chrony.start(self._network(), setup)
        if self._neighbours is not None and self._neighbours.moved:
            moved = not self._neighbours.moved.isdisjoint(choice.sources)
            self._neighbours.moved.clear()
            if moved:
                await self.chrony.measure_anew()
        report = await self.chrony.report()
        followed = next((one for one in report.sources if one.state == "*"), None)
        if not report.tracking.source:
            followed = None
        moment = self._moment = Moment(choice, report, followed, servers)
        self._shun(report)
        if followed is not None:
            await self._follow(moment, report, followed, heard)
        self._tell_of_servers(moment)
        self._state = self._state_of(moment)
        self._say()

    def _servers(self, now: float) -> tuple[str, ...]:
        """Return the servers to ask."""
        if now < self._times.refused_until:
            return ()
        settings = self._host.settings()
        if settings.servers:
            return settings.servers
        return PUBLIC if has_uplink(self._root, self._host.mesh) else ()

    async def _known_servers(self, servers: tuple[str, ...]) -> tuple[str, ...]:
        """Return the servers that this chronyd can ask. It never asks without NTS instead."""
        plain = tuple(server for server in servers if not server.startswith(NTS))
        if len(plain) == len(servers) or await self.chrony.has_nts():
            self._problems.clear("time", "no-nts")
            return servers
        self._problems.report(
            "time",
            "no-nts",
            "this image's chronyd has no NTS, so servers with nts: in front are not asked; "
            "docs/time.md says how to build it in",
            "warning",
        )
        return plain

    def _heard(self, now: float) -> dict[IPv6Address, Heard]:
        """Return the claims to judge by."""
        self._shunned = {one: until for one, until in self._shunned.items() if until > now}
        if self._neighbours is None or not self._host.settings().neighbours:
            return {}
        return {a: one for a, one in self._neighbours.heard.items() if a not in self._shunned}

    def _own(self) -> Claim:
        """Return what the clock is worth without other nodes."""
        me, clock = self._host.me()[0], time.time()
        moment = self._moment
        if moment is not None and moment.network and self.known:
            return Claim(Grade.NETWORK, int(clock), me, 0, 0.0, clock)
        return Claim(self._knowledge.grade, self._knowledge.stamp, me, 0, 0.0, clock)

    def _claim_now(self) -> tuple[Claim, int]:
        """Return what others hear."""
        claim, now = self._own(), time.monotonic()
        moment = self._moment
        if moment is not None and moment.followed is not None and not moment.network:
            choice = moment.choice
            first = self._heard(now).get(choice.sources[0]) if choice.sources else None
            if first is not None and (choice.best.grade == Grade.GUESS or self.known):
                claim = passed_on(choice, first, time.time(), now)
        return claim, self._signed.number

    async def _setup(self, choice: Choice, servers: tuple[str, ...]) -> Setup:
        nodes: list[Client] = []
        neighbours = self._neighbours
        for address in choice.sources:
            # While servers are asked nodes are as well: what they say is compared.
            key = await neighbours.key(address) if neighbours is not None else None
            if key is not None:
                nodes.append(Client(address, key))
        clients = tuple(neighbours.clients.values()) if neighbours is not None else ()
        return Setup(servers, tuple(nodes), clients, leads=not nodes)

    def _network(self) -> IPv6Network | None:
        """Return whose nodes may take the time from here."""
        return self._host.me()[1] if self._host.settings().neighbours else None

    async def _serve(self) -> None:
        """Make chronyd know the keys of those who take the time from here.

        :raises ThicketError: it does not run.
        """
        neighbours = self._neighbours
        if neighbours is None or not self.chrony.running:
            raise ThicketError("it is not ready to give the time")
        if not self._host.settings().neighbours:
            raise ThicketError("it gives the time to nobody (time.neighbours)")
        await self.chrony.know(tuple(neighbours.clients.values()))
        self._again.set()  # a look that is under way may have begun without them

    # -- what chronyd has found

    async def _follow(
        self, moment: Moment, report: Report, followed: Source, heard: dict[IPv6Address, Heard]
    ) -> None:
        """Set the clock, if that is allowed and due, and note what is known now."""
        clock, boot = time.time(), boottime()
        claim = self._own_servers() if moment.network else _claim_of(followed, heard)
        if claim is None:
            return
        whose = self._host.me()[0] if moment.network else IPv6Address(followed.address)
        offered = self._offered(moment, report, claim, whose)
        what = judges.judge(offered, clock, self._bounds(), known=self.known)
        if what == judges.SET:
            log.warning("the clock is set by %+.3f s, as %s says", offered.offset, followed.address)
            await self.chrony.step()
            self._times.changed()
        elif what != judges.KEEP:
            await self._refuse(what, report, whose)
            return
        elif abs(offered.offset) > _FOLLOWS:
            return
        self._times.agreed(whose)
        self._problems.clear_one("time", "refused", str(whose))
        clock += offered.offset
        if moment.network:
            self._know(confirmed("network", clock, boot))
        elif claim.grade != Grade.GUESS:
            self._know(learned(claim, clock, boot))

    def _own_servers(self) -> Claim:
        clock = time.time()
        return Claim(Grade.NETWORK, int(clock), self._host.me()[0], 0, 0.0, clock)

    def _offered(self, moment: Moment, report: Report, claim: Claim, whose: IPv6Address) -> Offered:
        """Return what is known about the time that chronyd has found.

        :param whose: the node that it is from; this one, where it is from servers.
        """
        now, clock, offset = time.monotonic(), time.time(), report.tracking.offset
        heard = self._neighbours.heard.values() if self._neighbours is not None else ()
        ahead = [one.ahead(clock, now) for one in heard if one.claim.grade != Grade.GUESS]
        servers = names_of(moment.servers)
        agreeing = sum(one.agrees and one.address in servers for one in report.sources)
        return Offered(
            offset,
            claim.grade,
            servers=agreeing,
            theirs=sum(abs(one - offset) <= judges.JUMP for one in ahead) + moment.network,
            ours=1 + sum(abs(one) <= judges.JUMP for one in ahead),
            # Any node can name an origin: it is its word only where it says so itself.
            same=whose == claim.origin == self._knowledge.origin,
            since=self._times.disputed(whose),
        )

    async def _refuse(self, what: str, report: Report, whose: IPv6Address) -> None:
        """Leave those alone for a while who say so, and forget what chronyd was about to turn."""
        now, offset = time.monotonic(), report.tracking.offset
        agreeing = [one.address for one in report.sources if one.agrees]
        pause = REFUSED if what == judges.DISPUTED else SHUNNED
        self._times.refused(whose)
        if whose == self._host.me()[0]:
            self._times.refused_until = now + REFUSED
        for address in filter(None, map(_address, agreeing)):
            self._shunned[address] = now + pause
        text = f"the time of {', '.join(agreeing)} ({offset:+.0f} s) is not taken: {_WORDS[what]}"
        self._problems.report("time", "refused", text, "warning", str(whose))
        self._moment = None
        await self.chrony.stop()
        self._again.set()

    def _shun(self, report: Report) -> None:
        """Leave a node alone whose time differs from ours, where another source agrees with us."""
        if not self.known or self._neighbours is None:
            return
        answered = [one for one in report.sources if one.reach]
        if not any(abs(one.offset) <= judges.STEP_KNOWN for one in answered):
            return
        for one in answered:
            if abs(one.offset) <= judges.JUMP:
                continue
            address = _address(one.address)
            if address is not None and address in self._neighbours.heard:
                now = time.monotonic()
                self._shunned[address] = now + SHUNNED
                self._times.refused(address)
                text = f"{address} says a time that is {one.offset:+.0f} s from that of others"
                self._problems.report("time", "refused", text, "warning", str(address))
                self._again.set()

    def _know(self, knowledge: Knowledge) -> None:
        new = self._knowledge.grade != knowledge.grade
        self._knowledge = knowledge
        if new:
            log.info("the time is known (%s)", knowledge.by)
        if new or time.monotonic() >= self._times.rtc_at:
            self._times.rtc_at = time.monotonic() + RTC_AGAIN
            self._keep_for_next_start()

    def _keep_for_next_start(self) -> None:
        def work() -> None:
            self._host.save()
            if self._kept.has_rtc():
                try:
                    self._kept.write_rtc(time.time())
                except OSError as error:
                    log.warning("the battery's clock cannot be set: %s", error.strerror)

        async def keep() -> None:
            try:
                await self._threads.do(work, RTC_SECONDS)
            except (BusyError, TimeoutError, OSError) as error:
                log.warning("the time is not kept for the next start: %s", error)

        self._times.keep(asyncio.create_task(keep()))

    def _bounds(self) -> Bounds:
        floor = self._host.trusted().floor.timestamp()
        end = self._host.end()
        return Bounds(max(floor, float(self._signed.number)), float("inf") if end is None else end)

    async def _keep_above_floor(self) -> None:
        """Set the clock to what certainly has passed, if it is behind that."""
        floor = self._bounds().floor
        if time.time() >= floor:
            return
        log.warning("the clock is set to what the fleet's authority has signed as passed")
        self._knowledge = Knowledge()
        await self._set(floor)

    async def _set(self, clock: float) -> None:
        """Set the clock, with chronyd away.

        :raises RequestError: the kernel does not let it be set.
        """
        self._moment = None
        try:
            await self.chrony.set_clock(clock)
        except OSError as error:
            raise RequestError("not-set", f"the clock cannot be set: {error.strerror}") from None

    # -- a person's word

    async def set(self, clock: float) -> None:
        """Set the clock as a person says.

        :raises RequestError: it is impossible, or servers say it better.
        """
        bounds = self._bounds()
        if clock < bounds.floor:
            raise RequestError(
                "before-floor",
                f"it is later than {_shown(bounds.floor)}, by what the fleet's authority has "
                "signed or the day of the image",
            )
        if clock > bounds.end:
            raise RequestError(
                "behind-end", f"this device's certificate ends at {_shown(bounds.end)}"
            )
        if self._moment is not None and self._moment.network:
            raise RequestError(
                "from-network",
                "this node has the time from servers ([time] servers), which would set it back",
            )
        async with self._turn:
            await self._set(clock)
            self._know(confirmed("operator", clock, boottime()))
            self._state = "held"
        log.warning("the clock is set to %s, as a person says", _shown(clock))
        self._say()
        self.look_again()

    def question(self) -> str:
        """Return a question that a signed time may answer."""
        return self._signed.ask(boottime())

    async def take(self, packed: bytes) -> dict[str, Any]:
        """Take a signed time that a person has brought; return what came of it.

        :raises RequestError: it is not taken.
        """
        found, answers = self._signed.take(packed, boottime())
        if answers:
            await self.set(max(float(found.number), self._bounds().floor))
        self._after_statement("a person")
        return {"issued": found.number, "answers": answers}

    def _taken(self, packed: bytes, name: str) -> None:
        """Take a signed date that another node has sent."""
        try:
            self._signed.take(packed, boottime())
        except RequestError as error:
            log.warning("a signed time from %s is not taken: %s", name, error)
        else:
            self._after_statement(name)

    def _after_statement(self, origin: str) -> None:
        log.info("a signed time from %s: it is later than %s", origin, _shown(self._signed.number))
        self._tell_all()
        self.look_again()

    # -- telling

    def _state_of(self, moment: Moment) -> str:
        if moment.network and self.known:
            return "network"
        if self.known:
            return "nodes" if moment.followed is not None else "held"
        return "guess"

    def _tell_of_servers(self, moment: Moment) -> None:
        names = names_of(moment.servers) if self._host.settings().servers else set()
        report = moment.report
        answered = report is not None and any(
            one.address in names and one.reach for one in report.sources
        )
        if not names or answered:
            self._times.unanswered = None
            self._problems.clear("time", "no-server")
            return
        now = time.monotonic()
        since = self._times.unanswered = self._times.unanswered or now
        if now - since > UNANSWERED:
            self._problems.report(
                "time", "no-server", f"no server answers: {', '.join(sorted(names))}", "warning"
            )

    def _say(self) -> None:
        """Tell the dates of certificates, the status, and others if it is news for them."""
        try:
            if self._kept.tell(self._knowledge):
                self._times.changed()
        except OSError as error:
            log.warning("what the clock is worth cannot be said: %s", error)
        self._host.changed()
        claim = self._claim_now()[0]
        said = (claim.grade, claim.stamp, claim.origin, claim.depth)
        if claim.grade == Grade.NETWORK:
            said = (claim.grade, 0, claim.origin, claim.depth)
        moved = self._times.moved(SAME / 2)  # by this part, or by a person with `date`
        if said != self._times.said or moved:
            self._times.said = said
            self._tell_all()


_STATES = {"*": "followed", "+": "agrees", "-": "agrees", "x": "differs", "~": "unsteady"}


def _address(text: str) -> IPv6Address | None:
    try:
        return IPv6Address(text)
    except ValueError:
        return None


def _claim_of(source: Source, heard: dict[IPv6Address, Heard]) -> Claim | None:
    address = _address(source.address)
    found = heard.get(address) if address is not None else None
    return found.claim if found is not None else None


def _shown(clock: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(clock))

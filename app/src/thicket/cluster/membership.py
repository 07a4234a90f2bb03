# SPDX-License-Identifier: Apache-2.0
"""Who is, and who should be, a member of the cluster: connects the nodes that discovery hears.

Both sides of a link hear each other, and one connection is enough. The node with the higher name
connects at once. The other one waits :data:`PATIENCE` seconds and then connects itself, which also
covers a beacon that came through in one direction only. (If both connect at once, the handshake
settles it; the only cost is work done twice.)

Missing ticks tell of a lost node, but late. When the radio no longer hears a station, or another
node fears for one, the node is *probed*: it has :data:`PROBE` seconds for a sign of life, counted
from the first fear of any node. Without one it is given up, unless the radio has heard it in the
meantime: beacons come through where other frames do not yet, because their rate is the lowest one.
A probe of a node that is well costs one round trip, so a false alarm of a lossy link does no harm.
When a node has not answered for :data:`DOUBT` seconds, the others are told, who may have no radio
contact with it themselves.

A node that does not answer is tried again with growing pauses while it is heard; a beacon after a
silence makes it due at once. A connection that closed is tried again in the same way.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import IPv6Address
from logging import getLogger
from time import monotonic
from typing import Protocol

from thicket.base.pace import Backoff, uniform, wait

log = getLogger(__name__)

#: How long the node with the lower name waits for the other one to connect, in seconds.
PATIENCE = (1.5, 3.0)
#: Pause before the second, third ... attempt in seconds; the last one repeats. Each is drawn from
#: three quarters to five quarters of it.
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
#: Most attempts at the same time: handshakes must not flood a mesh that comes up all at once.
PARALLEL = 4
#: Seconds between two attempts to connect nodes of a large fleet that are no neighbours, and until
#: the first one: by then the radio tells who is one.
PACE = (1.5, 3.0)
PACE_FIRST = 20.0
#: A silence after which a beacon means that the node may have come back, in seconds.
SILENCE = 40.0
#: A node that found us, but whose beacons were never or not lately heard, is given up when an
#: attempt fails more than this many seconds after its last sign of life. (Discovery tells when to
#: give up those that it heard.)
FORGET = 600.0
#: Seconds that a node under suspicion has for a sign of life. After DOUBT of them the others are
#: told, who give it the rest. After a probe it is left in peace for PEACE seconds.
PROBE = 2.0
DOUBT = 0.75
PEACE = 2.0
#: Most nodes that are remembered.
LIMIT = 4096


class Link(Protocol):
    """What membership needs of the node's distribution."""

    name: str

    async def connect(self, peer: str, timeout: float = ...) -> object:
        """Connect to the node named ``peer``.

        :raises Exception: that fails.
        """

    async def probe(self, peer: str, seconds: float) -> bool:
        """Ask for a sign of life.

        :returns: whether there was one within ``seconds``.
        """

    def give_up(self, peer: str) -> None:
        """End the connection to ``peer``."""

    def share_suspicion(self, peer: str) -> None:
        """Tell the other nodes that we fear for ``peer``."""


class Candidate:
    """A node that was heard, or that found us. Times in seconds of the monotonic clock.

    :ivar name: as the node itself spells it, where that is known.
    :ivar canonical: its name with the address in canonical form.
    :ivar heard: its last sign of life.
    :ivar due: when it is tried next.
    :ivar up: it is connected.
    :ivar error: code and words of the last failure.
    """

    __slots__ = ("address", "backoff", "canonical", "due", "error", "heard", "name", "task", "up")

    def __init__(self, address: IPv6Address, name: str, now: float) -> None:
        self.address = address
        self.name = name
        self.canonical = f"{name.partition('@')[0]}@{address}"
        self.heard = now
        self.due = now
        self.backoff = Backoff(*PAUSES)
        self.up = False
        self.error: tuple[str, str] | None = None
        self.task: asyncio.Task[None] | None = None


class Membership:
    """Keeps the node connected to every node that is heard, while :meth:`run` runs.

    :param cluster: the part of the names before ``@``.
    :param link: what connects.
    :param on_failure: is told of each failed attempt.
    :param radio_silence: returns for how many seconds the radio has not heard the station at an
        address, None when it knows none.
    :ivar neighbours: whom to connect, None for everybody who is heard.
    :ivar first: who of them comes first.
    :ivar at_once: a fleet of more nodes is connected at a pace of :data:`PACE`, but for the first.
    :ivar attempts: how many connections were tried.
    """

    def __init__(
        self,
        cluster: str,
        link: Link,
        on_failure: Callable[[Candidate], None],
        radio_silence: Callable[[IPv6Address], Awaitable[float | None]] | None = None,
    ) -> None:
        self.cluster = cluster
        self.link = link
        self.on_failure = on_failure
        self.radio_silence = radio_silence
        self.candidates: dict[IPv6Address, Candidate] = {}
        self.neighbours: set[IPv6Address] | None = None
        self.first: set[IPv6Address] = set()
        self.at_once = LIMIT
        self.attempts = 0
        self._next_paced = monotonic() + PACE_FIRST
        self._wake = asyncio.Event()
        self._running = 0
        self._probes: dict[IPv6Address, asyncio.Task[None]] = {}
        self._probed: dict[IPv6Address, float] = {}

    def name_of(self, address: IPv6Address, spelling: str = "") -> str:
        """The name of the node at ``address``.

        :param spelling: how the node writes its address; by default in canonical form, as all
            nodes of ours do.
        """
        return f"{self.cluster}@{spelling or address}"

    def heard(self, address: IPv6Address, new: bool, spelling: str = "") -> None:
        """A beacon of ``address`` came in.

        :param new: discovery did not know it.
        :param spelling: as for :meth:`name_of`.
        """
        now = monotonic()
        name = self.name_of(address, spelling)
        candidate = self.candidates.get(address)
        if candidate is None:
            if len(self.candidates) >= LIMIT:
                return  # discovery's table is smaller; only a change of its size leads here
            candidate = Candidate(address, name, now)
            self.candidates[address] = candidate
            if self.link.name < candidate.name:
                candidate.due = now + uniform(*PATIENCE)
            self._wake.set()
        elif not candidate.up and (new or now - candidate.heard > SILENCE):
            candidate.backoff.reset()
            candidate.due = min(candidate.due, now + uniform(0.0, 0.5))
            self._wake.set()
        candidate.heard = now
        if not candidate.up:
            candidate.name = name  # a connected one has told its name

    def set_neighbours(
        self, addresses: set[IPv6Address] | None, first: Iterable[IPv6Address] = ()
    ) -> None:
        """Connect only these from now on, or everybody. Present connections stay.

        :param first: who comes before all others.
        """
        first = set(first)
        if (addresses, first) != (self.neighbours, self.first):
            self.neighbours, self.first = addresses, first
            self._wake.set()

    def wants(self, address: IPv6Address) -> bool:
        """Return whether the node at ``address`` is to be connected."""
        return self.neighbours is None or address in self.neighbours

    def gone(self, address: IPv6Address) -> None:
        """Discovery has forgotten ``address``: stop trying it. A present connection stays."""
        candidate = self.candidates.get(address)
        if candidate is not None and not candidate.up:
            del self.candidates[address]
            if candidate.task is not None:
                candidate.task.cancel()

    def node_up(self, name: str) -> None:
        """A connection stands, whoever made it."""
        address = self._address_of(name)
        if address is None:
            return
        candidate = self.candidates.get(address)
        if candidate is None:
            if len(self.candidates) >= LIMIT:
                return
            # it found us before we heard it
            candidate = self.candidates[address] = Candidate(address, name, monotonic())
        candidate.name = name
        candidate.up = True
        candidate.backoff.reset()
        candidate.error = None

    def node_down(self, name: str) -> None:
        """A connection ended: try again soon."""
        candidate = self._candidate(name)
        if candidate is not None and candidate.up:
            candidate.up = False
            candidate.heard = max(candidate.heard, monotonic() - FORGET / 2)
            patience = PATIENCE if self.link.name < name else (0.1, 0.5)
            candidate.due = monotonic() + uniform(*patience)
            self._wake.set()

    def is_up(self, address: IPv6Address) -> bool:
        """Whether the node at ``address`` is connected."""
        candidate = self.candidates.get(address)
        return candidate is not None and candidate.up

    def suspect(self, address: IPv6Address | None = None, name: str | None = None) -> None:
        """Find out whether connected nodes are still there: all of them, if neither is given.

        :param address: the node at this address.
        :param name: the node with this name, for which another node fears.
        """
        now = monotonic()
        if name is not None:
            known = self._candidate(name)
            feared = [] if known is None else [known]
        else:
            feared = [c for c in self.candidates.values() if address in (None, c.address)]
        for candidate in feared:
            if not candidate.up or candidate.address in self._probes:
                continue
            if now - self._probed.get(candidate.address, -PEACE) < PEACE:
                continue
            task = asyncio.create_task(self._probe(candidate, share=name is None))
            self._probes[candidate.address] = task
            task.add_done_callback(lambda _task, c=candidate: self._probe_ended(c.address))  # type: ignore[misc]

    def _probe_ended(self, address: IPv6Address) -> None:
        self._probes.pop(address, None)
        if len(self._probed) >= LIMIT:
            self._probed.clear()
        self._probed[address] = monotonic()

    async def _probe(self, candidate: Candidate, share: bool) -> None:
        loop = asyncio.get_running_loop()
        doubt = loop.create_task(self._doubt(candidate)) if share else None
        seconds = PROBE if share else PROBE - DOUBT
        try:
            alive = await self.link.probe(candidate.name, seconds)
            if not alive and candidate.up and not await self._on_air(candidate, seconds):
                log.info("%s gave no sign of life", candidate.name)
                self.link.give_up(candidate.name)
        finally:
            if doubt is not None:
                doubt.cancel()

    async def _doubt(self, candidate: Candidate) -> None:
        await asyncio.sleep(DOUBT)
        if not await self._on_air(candidate, DOUBT):
            self.link.share_suspicion(candidate.name)

    async def _on_air(self, candidate: Candidate, seconds: float) -> bool:
        """Whether the radio has heard the node in the last seconds."""
        if self.radio_silence is None:
            return False
        silence = await self.radio_silence(candidate.address)
        return silence is not None and silence < seconds

    def _candidate(self, name: str) -> Candidate | None:
        """The candidate with this name, in any spelling."""
        address = self._address_of(name)
        return None if address is None else self.candidates.get(address)

    def _address_of(self, name: str) -> IPv6Address | None:
        cluster, _, host = name.partition("@")
        if cluster != self.cluster:
            return None
        try:
            return IPv6Address(host)
        except ValueError:
            return None

    async def run(self) -> None:
        """Connect what is due until cancelled."""
        try:
            while True:
                self._wake.clear()
                delay = self._start_due()
                await wait(self._wake, delay)
        finally:
            for candidate in self.candidates.values():
                if candidate.task is not None:
                    candidate.task.cancel()
            for probe in self._probes.values():
                probe.cancel()

    def _start_due(self) -> float | None:
        """Start the attempts that are due.

        :returns: the seconds until the next one, None when there is none.
        """
        now = monotonic()
        waiting = [
            candidate
            for candidate in self.candidates.values()
            if not candidate.up and candidate.task is None and self.wants(candidate.address)
        ]
        paced = self.neighbours is None and len(self.candidates) >= self.at_once
        soonest = float("inf")
        for candidate in sorted(waiting, key=lambda c: (c.address not in self.first, c.due)):
            in_turn = paced and candidate.address not in self.first
            due = max(candidate.due, self._next_paced) if in_turn else candidate.due
            if due > now:
                soonest = min(soonest, due)
                continue
            if self._running >= PARALLEL:
                break  # the end of an attempt wakes us
            if in_turn:
                self._next_paced = now + uniform(*PACE)
            self._start(candidate)
        return None if soonest == float("inf") else max(0.01, soonest - now)

    def _start(self, candidate: Candidate) -> None:
        self._running += 1
        candidate.task = asyncio.create_task(self._attempt(candidate))
        # not in the attempt itself: a task cancelled before its first step never runs
        candidate.task.add_done_callback(lambda _task: self._ended(candidate))

    def _ended(self, candidate: Candidate) -> None:
        candidate.task = None
        self._running -= 1
        self._wake.set()

    async def _attempt(self, candidate: Candidate) -> None:
        # Only node_up and node_down tell whether the connection stands: it may have ended again by
        # the time this task continues.
        began = monotonic()
        candidate.due = began + PAUSES[0]
        self.attempts += 1
        try:
            await self.link.connect(candidate.name)
        except Exception as e:
            # There are many errors of the distribution; each means "not connected" and says why.
            # A peer that is merely slow has no time for the same work again at once.
            pause = max(candidate.backoff.failed(), (monotonic() - began) / 2)
            candidate.due = monotonic() + uniform(0.75 * pause, 1.25 * pause)
            candidate.error = (str(getattr(e, "code", type(e).__name__)), str(e))
            if candidate.backoff.failures == 1:
                log.info("cannot connect to %s: %s", candidate.name, e)
            if monotonic() - candidate.heard > FORGET:
                self.candidates.pop(candidate.address, None)
            self.on_failure(candidate)

# SPDX-License-Identifier: Apache-2.0
"""The machines of a lab besides its own, from the first connection to the last."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from meshlab.hosts import images
from meshlab.hosts.errors import HostsError
from meshlab.hosts.link import PATIENCE, Handlers, Json, Link, LinkError, Stream
from meshlab.hosts.placement import Capacity, HostSpec, room_for
from meshlab.hosts.ssh import Connection
from meshlab.lab.parts import Doubts

AGENT_PATIENCE = PATIENCE
"""Seconds without a word of the lab after which an agent ends its nodes, and itself."""
LATE_BOUND_MS = 50.0
"""One way to a machine may take so long once in a hundred, as the medium itself may be late."""
CLOSE_PATIENCE = 20.0


class Facts(NamedTuple):
    """What a machine has."""

    cores: int
    memory_mib: int
    disk_mib: int


class RemoteNode(Protocol):
    """What a host tells its nodes."""

    def note(self, note: Json) -> None:
        """Take what the agent tells of the node."""

    def lost(self, why: str) -> None:
        """The machine is out of reach."""

    def chip_request(self, params: Json) -> Json:
        """Answer for the chip."""

    def chip_reset(self) -> None:
        """The node's power went or came."""


class Host(Handlers):
    """Another machine.

    :param spec: Its name and weight.
    :param lab: What the agent calls the lab: unique among those of all users of that machine's
        account.
    :param folder: Where the log of the connection goes.
    :ivar nodes: Its nodes by their names.
    :ivar facts: What it had at the first connection.
    """

    def __init__(self, spec: HostSpec, lab: str, folder: Path, *, keep: bool) -> None:
        self.spec = spec
        self.nodes: dict[str, RemoteNode] = {}
        self.facts = Facts(1, 0, 0)
        self.deadline = AGENT_PATIENCE
        self._lab = lab
        self._log = folder / f"host-{slug(spec.name)}.log"
        self._keep = keep
        self._connection: Connection | None = None
        self._link: Link | None = None
        self._opening = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """Return its name, as the person wrote it."""
        return self.spec.name

    @property
    def connected(self) -> bool:
        """Tell whether the agent can be reached."""
        return self._link is not None and not self._link.ended.done()

    def late_ms(self) -> float:
        """Return how long one way took at most in 99 of 100 pulses, in milliseconds.

        Those since the latest ``forget_trips``, over one link.
        """
        trips = sorted(self._link.round_trips) if self._link is not None else []
        return trips[(len(trips) - 1) * 99 // 100] * 500 if trips else 0.0

    def forget_trips(self) -> None:
        """Begin a new measurement."""
        if self._link is not None:
            self._link.round_trips.clear()

    async def open(self) -> Link:
        """Return the link, made again if it was lost.

        :raises HostsError: when the machine cannot be used; the text says why.
        """
        async with self._opening:
            if self._link is not None and self.connected:
                return self._link
            if self._watching is not None:
                await self._watching
            link = await self._connect()
            self._link = link
            self._keep = True  # what this lab has made there stays until its end
            self._watching = asyncio.create_task(self._watch(link))
            return link

    async def _connect(self) -> Link:
        self._connection = await Connection.start(self.name, self._log)
        link: Link | None = None
        try:
            link = await self._connection.link(self.name, self, self.deadline)
            facts = await link.call("facts")
            if facts["missing"]:
                packages = " ".join(facts["missing"])
                raise HostsError(
                    f"{self.name}: programs are missing: "
                    f"`apt-get install --no-install-recommends {packages}` there"
                )
            self.facts = Facts(facts["cores"], facts["memory_mib"], facts["disk_mib"])
            nodes = list(self.nodes)
            begin = {
                "lab": self._lab,
                "deadline": self.deadline,
                "keep": self._keep,
                "nodes": nodes,
            }
            await link.call("begin", begin)
        except LinkError as error:
            ended = link is not None and link.ended.done()
            text = await self._connection.failure(self.name) if ended else f"{self.name}: {error}"
            await self._drop(link)
            raise HostsError(text) from error
        except BaseException:
            await self._drop(link)
            raise
        return link

    async def call(self, method: str, params: Json, timeout: float | None = 300.0) -> Json:
        """Make a request.

        :raises HostsError: when it is refused or the machine cannot be reached.
        """
        try:
            return await (await self.open()).call(method, params, timeout)
        except LinkError as error:
            raise HostsError(f"{self.name}: {error}") from error

    def note(self, note: Json) -> None:
        """Take what the agent tells."""
        node = self.nodes.get(note.get("node", ""))
        if node is None:
            return
        if note.get("chip") == "reset":
            node.chip_reset()
        else:
            node.note(note)

    def kill(self, node: str) -> None:
        """Have a machine killed, as far as the agent can be reached; else its deadline does it."""
        if self._link is not None:
            self._link.note({"kill": node})

    def connect(self, node: str, name: str) -> Stream:
        """Open a connection to a socket of a node.

        :raises ConnectionError: when the machine is out of reach.
        """
        if self._link is None or self._link.ended.done():
            raise ConnectionRefusedError(f"{self.name} is out of reach")
        return self._link.open({"node": node, "socket": name})

    async def request(self, method: str, params: Json) -> Json:
        """Answer the agent: it asks for chips."""
        if method != "chip":
            raise LinkError(f"there is no request {method!r}")
        return self.nodes[params["node"]].chip_request(params)

    async def store(self, files: Sequence[tuple[str, Path]], tell: Callable[[str], None]) -> None:
        """Send the files that are not there yet.

        :param files: Each with its hash.
        :param tell: Gets a line for each that is sent.
        :raises HostsError: when one cannot be stored.
        """
        missing = await self.call("missing", [digest for digest, _ in files])
        for digest, path in files:
            if digest not in missing:
                continue
            tell(f"{self.name}: {path.name} is sent, {path.stat().st_size >> 20} MiB")
            try:
                await images.send(await self.open(), digest, path)
            except LinkError as error:
                raise HostsError(f"{self.name}: {error}") from error

    async def close(self) -> None:
        """End all that runs there, and the connection."""
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        if self._link is not None:
            with contextlib.suppress(LinkError):
                await self._link.call("end", timeout=CLOSE_PATIENCE)
        await self._drop(self._link)

    async def _watch(self, link: Link) -> None:
        """Tell the nodes when the machine is lost."""
        why = await asyncio.shield(link.ended)
        said = "" if self._connection is None else self._connection.said
        own = [line for line in said.splitlines() if line.startswith("thicket: ")]
        text = f"{self.name} is out of reach: " + (own[-1] if own else why).removeprefix(
            "thicket: "
        )
        for node in self.nodes.values():
            node.lost(text)
        await self._drop(link)

    async def _drop(self, link: Link | None) -> None:
        if link is not None:
            await link.close()
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.end()


class Hosts(Doubts):
    """All of them. Use it as ``async with``: with the end of the block nothing runs there.

    :param specs: The machines besides the lab's own.
    :param lab: The name of the lab.
    :param folder: The lab's directory.
    """

    def __init__(self, specs: Sequence[HostSpec], lab: str, folder: Path, *, keep: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("host-*.log"):
            old.replace(old.with_suffix(".log.1"))
        name = f"{slug(lab)}-{_origin(folder)}"
        self.all = [Host(spec, name, folder, keep=keep) for spec in specs]

    async def __aenter__(self) -> Hosts:
        try:
            opened = await asyncio.gather(
                *(host.open() for host in self.all), return_exceptions=True
            )
            failures = [result for result in opened if isinstance(result, BaseException)]
            for failure in failures:
                if not isinstance(failure, HostsError):
                    raise failure
            if failures:
                raise HostsError("\n".join(str(failure) for failure in failures))
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End everything on all of them."""
        await asyncio.gather(*(host.close() for host in self.all))

    def capacities(self, guest_mib: int) -> list[Capacity]:
        """Return what each can take.

        :param guest_mib: The memory of a node.
        """
        return [
            Capacity(
                host.name,
                host.spec.weight or float(host.facts.cores),
                room_for(host.facts.memory_mib, guest_mib),
            )
            for host in self.all
        ]

    def reasons(self) -> list[str]:
        """See ``Doubts``: machines that are too far away."""
        return [
            f"the way to {host.name} takes {late:.0f} ms once in a hundred "
            f"(bound {LATE_BOUND_MS:g}): frames come late there, or from there"
            for host in self.all
            if (late := host.late_ms()) > LATE_BOUND_MS
        ]

    def reset(self) -> None:
        """See ``Doubts``."""
        for host in self.all:
            host.forget_trips()


def slug(name: str) -> str:
    """Return a name as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)


def _origin(folder: Path) -> str:
    """Return a word that tells this lab from those of the same name of other people."""
    text = f"{socket.gethostname()}:{folder.absolute()}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]

# SPDX-License-Identifier: Apache-2.0
"""The socket that a node listens on, and its entry at the port mapper."""

from __future__ import annotations

import asyncio
import errno
import logging
from typing import TYPE_CHECKING, Any

from thicket.base.process import boottime
from thicket.distribution.epmd import PortMapper, listen
from thicket.distribution.events import ProblemBegan, ProblemEnded

if TYPE_CHECKING:
    from collections.abc import Callable

    from thicket.distribution.handshake import LocalNode

log = logging.getLogger(__name__)

_BIND_INTERVAL = 0.1
_MAX_BIND_INTERVAL = 2.0
_PATIENCE = 10.0  # seconds after which a missing address is a problem


class Listening:
    """The listening socket of a node.

    It keeps its problems itself, because a node also runs without a daemon; the daemon's list asks
    for them.

    :param host: the address to listen on; it may appear later.
    :param port: the port, 0 for any free one.
    :param epmd_port: the port mapper's port; None not to register.
    :param hidden: register as one of Erlang's hidden nodes.
    :param tell: called with the events of problems.
    :ivar port: the port listened on once :attr:`ready`, until then the requested one.
    :ivar ready: whether the socket listens.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        epmd_port: int | None,
        hidden: bool,
        tell: Callable[[ProblemBegan | ProblemEnded], None],
    ) -> None:
        self.host = host
        self.port = port
        self.ready = False
        self._epmd_port = epmd_port
        self._hidden = hidden
        self._tell = tell
        self._problems: dict[str, ProblemBegan] = {}
        self._task: asyncio.Task[None] | None = None
        self._server: asyncio.Server | None = None
        self._mapper: PortMapper | None = None

    def start(self, local: LocalNode, accept: Callable[[], asyncio.BaseProtocol]) -> None:
        """Begin to listen, see :meth:`.Node.start`; returns at once.

        :param accept: returns the protocol of a connection that somebody makes.
        :raises RuntimeError: it was started already.
        """
        if self._task is not None:
            raise RuntimeError("the node was started already")
        self._task = asyncio.create_task(self._listen(local, accept), name="distribution listener")

    async def stop(self) -> None:
        """Close the socket and unregister; connections stay."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._mapper is not None:
            await self._mapper.stop()
        if self._server is not None:
            self._server.close()
            self.ready = False

    def problems(self) -> list[dict[str, Any]]:
        """Return why the node cannot listen: part, code, message, since."""
        return [{"part": "cluster", **problem._asdict()} for problem in self._problems.values()]

    def statistics(self) -> dict[str, Any]:
        """Return the state and the counters of the port mapper."""
        mapper = self._mapper
        if mapper is None:
            return {"served": [], "registered_at": None}
        return {
            "served": list(mapper.served),
            "registered_at": mapper.registered_at,
            **mapper.registry.counters,
        }

    async def _listen(self, local: LocalNode, accept: Callable[[], asyncio.BaseProtocol]) -> None:
        loop = asyncio.get_running_loop()
        interval = _BIND_INTERVAL
        patience = loop.time() + _PATIENCE
        while True:
            try:
                listener = listen(self.host, self.port)
                break
            except OSError as error:
                self._failed(error, patient=loop.time() <= patience)
            await asyncio.sleep(interval)
            interval = min(interval * 1.5, _MAX_BIND_INTERVAL)
        # The socket stays usable when the address goes and comes back.
        self.port = listener.getsockname()[1]
        self._server = await loop.create_server(accept, sock=listener)
        self.ready = True
        log.info("%s listens on port %d", local.name, self.port)
        for code in list(self._problems):
            self._tell(ProblemEnded(*self._problems.pop(code)))
        if self._epmd_port is not None:
            self._mapper = PortMapper(
                local.name.partition("@")[0],
                self.port,
                [self.host, "::1", "127.0.0.1"],
                creation=local.creation,
                port=self._epmd_port,
                hidden=self._hidden,
            )
            self._mapper.start()

    def _failed(self, error: OSError, *, patient: bool) -> None:
        """Note why the socket cannot be opened.

        :param patient: a missing address is not a problem yet.
        """
        what = f"cannot listen on [{self.host}]:{self.port}"
        if error.errno == errno.EADDRINUSE:
            code = "port-taken"
            why = "another program has that port; stop it or set another [cluster] port"
        elif error.errno != errno.EADDRNOTAVAIL:
            code, why = "listen", str(error.strerror)
        elif patient:
            return
        else:
            code, why = "address-missing", "no interface has this address; waiting for it"
        if code not in self._problems:
            problem = ProblemBegan(code, f"{what}: {why}", boottime())
            self._problems[code] = problem
            log.error("%s", problem.message)
            self._tell(problem)

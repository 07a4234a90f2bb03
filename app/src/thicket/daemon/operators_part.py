# SPDX-License-Identifier: Apache-2.0
"""The daemon's part ``operators``: lets people in who have a certificate of the fleet for that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from logging import getLogger
from typing import TYPE_CHECKING, Any

from thicket.base.pace import Backoff
from thicket.base.sockets import bound, readable

if TYPE_CHECKING:
    from thicket.control.server import Handler
    from thicket.daemon.core import Core
    from thicket.daemon.live import Live
    from thicket.operators.service import Service
    from thicket.trust.operator import Operator

log = getLogger(__name__)

#: Connections that the kernel keeps until they are taken.
BACKLOG = 8
#: Pauses between attempts to listen, in seconds; the last one repeats.
_PAUSES = (1.0, 5.0, 15.0)


class OperatorsPart:
    """Listens for operators while the node can prove itself.

    :param methods: returns what an operator can ask for.
    """

    def __init__(
        self, core: Core, live: Live, methods: Callable[[Operator], Mapping[str, Handler]]
    ) -> None:
        self._core = core
        self._live = live
        self._methods = methods
        self._listens = False
        self._service: Service | None = None

    def snapshot(self) -> dict[str, Any] | None:
        """Return the part ``operators`` of the status document; None while nobody can come in."""
        if not self._listens:
            return None
        service = self._service
        return {
            "connected": service.operators if service is not None else [],
            "served": service.served if service is not None else 0,
            "refused": dict(service.refused) if service is not None else {},
        }

    async def run(self) -> None:
        """Listen until cancelled."""
        core, live = self._core, self._live
        core.problems.clear("operators")
        if not core.settings.access.operators or not core.settings.trust.root:
            await asyncio.Event().wait()
        await live.trust.ready.wait()
        port, backoff = core.settings.access.operator_port, Backoff(*_PAUSES)
        try:
            while True:
                try:
                    with bound(live.me.text, port) as listener:
                        listener.listen(BACKLOG)
                        self._listens = True
                        core.problems.clear("operators")
                        await readable(listener.fileno())
                        await self._made().run(listener)
                except OSError as e:
                    pause = backoff.failed()
                    message = f"nobody is let in at port {port}: {e.strerror or e}"
                    core.problems.report("operators", "not-served", message, "warning")
                    await asyncio.sleep(pause)
        finally:
            self._listens = False
            self._service = None
            live.trust.on_lists = lambda: None

    def _made(self) -> Service:
        """Return what serves: most nodes see no operator, and need not import it."""
        if self._service is None:
            from thicket.daemon.start import provide_ssl
            from thicket.operators.service import Door, Service

            provide_ssl()
            trust, discovery = self._live.trust, self._live.discovery
            tls = trust.tls
            assert tls is not None, "a node that can prove itself has it"
            self._service = Service(
                Door(tls.server, tls.check_operator, discovery.knows, self._methods)
            )
            trust.on_lists = self._service.recheck
        return self._service

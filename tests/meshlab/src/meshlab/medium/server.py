# SPDX-License-Identifier: Apache-2.0
"""The medium's process: connects the engine to the relays of the nodes and to a control socket."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import time
from pathlib import Path

from meshlab.medium.capture import Captures
from meshlab.medium.config import (
    CONFIG_NAME,
    RELAY_NAME,
    SOCKET_NAME,
    STATE_NAME,
    ConfigError,
    MediumConfig,
    NodeConfig,
    State,
    load_config,
    load_state,
    write_json,
)
from meshlab.medium.drive import Drive
from meshlab.medium.engine import Engine
from meshlab.medium.links import Links
from meshlab.medium.node_port import NodePort
from meshlab.medium.requests import Requests
from meshlab.medium.soft import error_model
from meshlab.medium.stats import Recent
from meshlab.wire.rpc import Server

log = logging.getLogger(__name__)

BEAT = 0.1
"""Seconds between looks at deadlines."""

COUNTERS_EVERY = 5
"""Seconds between requests for the relays' counters."""


class Medium:
    """The medium of one lab.

    :param lab: The lab's directory.
    :param config: What the nodes and their links are.
    :param state: What was changed while the lab ran; None: nothing.
    :ivar ports: The nodes by their names.
    :ivar drive: Runs the engine.
    :ivar recent: Figures of the last seconds.
    :ivar started: When the medium started, in seconds of the epoch.
    :ivar since: When its counters began to count.
    """

    def __init__(self, lab: Path, config: MediumConfig, state: State | None = None) -> None:
        self.lab = lab
        self.config = config
        self.state = state if state is not None else State()
        self.links = Links(config, self.state)
        self.engine = Engine(
            self.links,
            config.seed,
            error=error_model(config.decoding),
            aggregation=config.aggregation,
        )
        self.drive = Drive(self.engine)
        self.ports: dict[str, NodePort] = {}
        self.captures = Captures(self.engine)
        self.recent = Recent()
        self.started = self.since = time.time()
        self._control: Server | None = None
        self._beat: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        for node in config.nodes:
            if node.name not in self.state.removed and node.name not in self.state.added:
                self.add(node)
        for node in self.state.added.values():
            self.add(node)
        for (name, index), plugged in self.state.plugged.items():
            port = self.ports.get(name)
            if port is not None and 0 <= index < len(port.node.radios):
                port.node.radios[index].plugged = plugged

    async def start(self) -> None:
        """Connect to the nodes and listen for requests.

        :raises OSError: when the control socket cannot be made.
        """
        self._control = Server(self.lab / SOCKET_NAME, Requests(self).methods())
        await self._control.start()
        for port in self.ports.values():
            port.port.start()
        self._beat = asyncio.create_task(self._heartbeat())

    async def stop(self) -> None:
        """Close every connection and every file."""
        if self._beat is not None:
            self._beat.cancel()
            await asyncio.gather(self._beat, return_exceptions=True)
        if self._control is not None:
            await self._control.stop()
        await asyncio.gather(*(port.port.stop() for port in self.ports.values()), *self._closing)
        self.drive.stop()
        for capture in self.captures.running:
            capture.close()

    async def _heartbeat(self) -> None:
        drive = self.drive
        due = drive.clock()
        beats = 0
        while True:
            now = drive.clock()
            drive.lag(now - due)
            self.engine.sweep(now)
            for port in self.ports.values():
                port.port.check(now)
                port.session.check()
            if drive.dirty or self.engine.next_event() is not None:
                drive.kick()
            beats += 1
            if beats % 10 == 0:
                self._second(now, beats // 10)
            # What was missed is not made up for.
            due = max(due + BEAT, now)
            await asyncio.sleep(due - drive.clock())

    def _second(self, now: float, seconds: int) -> None:
        self.recent.second(now, self.engine.stats, self.drive.late)
        self.drive.late = 0.0
        self.captures.flush()
        if seconds % COUNTERS_EVERY == 0:
            for port in self.ports.values():
                port.port.request_counters()

    def add(self, config: NodeConfig) -> NodePort:
        """Add a node.

        :param config: The node.
        :returns: Its port, which is not connected yet.
        :raises ValueError: when there is a node of this name.
        """
        node = self.engine.add_node(config)
        port = NodePort(self.drive, node, self.lab / config.directory / RELAY_NAME)
        self.ports[config.name] = port
        return port

    async def remove(self, name: str) -> None:
        """Remove a node and everything that was changed of it.

        :param name: The node's name.
        """
        task = asyncio.create_task(self.ports.pop(name).port.stop())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        await task
        self.engine.remove_node(name)
        self.state.forget(name)
        self.links.fadings.change(self.state.fadings)
        self.state.removed.add(name)

    def save(self) -> None:
        """Keep what was changed for the next start.

        :raises OSError: when it cannot be written.
        """
        write_json(self.lab / STATE_NAME, self.state.to_json(self.config.run))

    def reset_stats(self) -> None:
        """Begin to count from 0."""
        self.engine.reset_stats()
        self.recent.clear()
        self.since = time.time()
        for port in self.ports.values():
            port.dropped = 0


async def serve(lab: Path, parent: int | None) -> int:
    """Run the medium of the lab in ``lab`` until SIGTERM, or until process ``parent`` is gone.

    :returns: The exit status.
    """
    try:
        config = load_config(lab / CONFIG_NAME)
    except ConfigError as error:
        log.error("%s", error)
        return 2
    try:
        state = load_state(lab / STATE_NAME, config.run)
    except ConfigError as error:
        log.error("%s; continuing without the changes made while it ran", error)
        state = State()
    medium = Medium(lab, config, state)
    try:
        await medium.start()
    except OSError as error:
        log.error("cannot listen on %s: %s", lab / SOCKET_NAME, error.strerror)
        return 1
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        medium.drive.loop.add_signal_handler(number, ended.set)
    log.info("medium of %d nodes, seed %s", len(medium.ports), config.seed)
    # What is here now stays: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    try:
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await ended.wait()
            if parent is not None and os.getppid() != parent:
                log.info("the process that started the medium is gone")
                break
    finally:
        await medium.stop()
    return 0

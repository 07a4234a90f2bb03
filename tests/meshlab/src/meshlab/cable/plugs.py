# SPDX-License-Identifier: Apache-2.0
"""Carries frames between an interface of this machine and the cables of nodes, as a switch does."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from meshlab.cable.frames import LONGEST, FrameError, Frames, Switch, packed
from meshlab.wire.sockets import socket_address

AGAIN = 0.5
"""Seconds between attempts to reach a node whose machine was started anew."""
MOST_WAITING = 1 << 20
"""Bytes that may wait for a node that does not take them; frames beyond are lost, as on a wire."""
_PIECE = 1 << 16
_HERE = ""
"""The port of this machine."""


class Plugs:
    """The ends of some cables.

    :param tap: Descriptor of this machine's interface: a frame a read.
    :param sockets: Where QEMU listens, by node.
    """

    def __init__(self, tap: int, sockets: Mapping[str, Path]) -> None:
        self._tap = tap
        self._sockets = dict(sockets)
        self._switch = Switch()
        self._writers: dict[str, asyncio.StreamWriter] = {}

    async def carry(self) -> None:
        """Carry frames until this is cancelled."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._tap, self._from_here)
        try:
            async with asyncio.TaskGroup() as group:
                for name in self._sockets:
                    group.create_task(self._plug(name))
        finally:
            loop.remove_reader(self._tap)

    async def _plug(self, name: str) -> None:
        """Be connected with a node, again and again."""
        while True:
            with contextlib.suppress(OSError, FrameError):
                await self._from_node(name)
            await asyncio.sleep(AGAIN)

    async def _from_node(self, name: str) -> None:
        reader, writer = await asyncio.open_unix_connection(socket_address(self._sockets[name]))
        self._writers[name] = writer
        frames = Frames()
        try:
            while data := await reader.read(_PIECE):
                for frame in frames.feed(data):
                    self._pass(frame, name)
        finally:
            del self._writers[name]
            writer.close()

    def _from_here(self) -> None:
        with contextlib.suppress(OSError):  # nothing there, after all
            self._pass(os.read(self._tap, LONGEST), _HERE)

    def _pass(self, frame: bytes, port: str) -> None:
        for goal in self._switch.goes_to(frame, port, [_HERE, *self._writers]):
            if goal == _HERE:
                with contextlib.suppress(OSError):  # the interface is full, or off
                    os.write(self._tap, frame)
            else:
                writer = self._writers[str(goal)]
                if writer.transport.get_write_buffer_size() < MOST_WAITING:
                    writer.write(packed(frame))

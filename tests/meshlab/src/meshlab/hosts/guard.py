# SPDX-License-Identifier: Apache-2.0
"""What ends an agent that has heard nothing for too long, whatever state it is in.

A process of its own, as an agent may hang or be stopped. It holds one end of a pipe, into which the
agent writes after it has heard something. When the agent ends, so does its guard.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import struct

from meshlab.hosts.link import Link

FIRST_DEADLINE = 300.0
"""Seconds until the lab has said how long it may be silent."""
PAUSE = 0.5
_SECONDS = struct.Struct("!d")


class Guard:
    """The agent's end. Make it before there are threads: it forks."""

    def __init__(self) -> None:
        reading, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        agent = os.getpid()
        if os.fork() == 0:
            os.close(self._pipe)
            _watch(reading, agent)
        os.close(reading)
        self.deadline = FIRST_DEADLINE

    async def tell(self, link: Link) -> None:
        """Tell it whenever something was heard, for as long as this runs."""
        told = 0.0
        while True:
            if link.heard != told:
                told = link.heard
                os.write(self._pipe, _SECONDS.pack(self.deadline))
            await asyncio.sleep(PAUSE)


def _watch(pipe: int, agent: int) -> None:
    """Be the guard; never returns."""
    os.setsid()  # what the agent's terminal or shell sends is not for it
    os.close(0)
    os.close(1)
    deadline = FIRST_DEADLINE
    while select.select([pipe], [], [], deadline)[0]:
        said = os.read(pipe, _SECONDS.size)
        if not said:  # the agent has ended
            os._exit(0)
        deadline = _SECONDS.unpack(said)[0]
    os.write(2, b"thicket: the lab was silent for too long, its nodes are ended\n")
    os.kill(agent, signal.SIGKILL)  # and its machines with it: they are tied to it
    os._exit(0)

# SPDX-License-Identifier: Apache-2.0
"""The wires of an I2C bus over a link: the controller is there, the chip is here.

The guest's controller (virtio) needs a back end that shares its memory, so that one runs beside
QEMU. The chip stays with the lab, which enrols it, gives it faults and keeps its memory.
"""

from __future__ import annotations

import asyncio
import base64

from meshlab.chip.i2c import F_ZERO_LENGTH_REQUEST
from meshlab.chip.vhost_user import Device, GuestError, Reply
from meshlab.hosts.link import Json, Link, LinkError

PATIENCE = 20.0
"""Seconds that the lab has to answer for the chip."""


class ChipLine:
    """The end beside QEMU: a ``vhost_user.Device`` that asks the lab.

    :param link: To the lab.
    :param node: The node's name.
    """

    features = 1 << F_ZERO_LENGTH_REQUEST
    queues = 1

    def __init__(self, link: Link, node: str) -> None:
        self._link = link
        self._node = node
        self._asking: set[asyncio.Task[Reply]] = set()

    def process(self, queue: int, readable: bytes, writable: int) -> asyncio.Future[Reply]:
        """See ``vhost_user.Device.process``."""
        task = asyncio.ensure_future(self._ask(queue, readable, writable))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        return task

    def reset(self) -> None:
        """The virtual machine has gone or is coming."""
        self._link.note({"node": self._node, "chip": "reset"})

    async def _ask(self, queue: int, readable: bytes, writable: int) -> Reply:
        params = {
            "node": self._node,
            "queue": queue,
            "data": base64.b64encode(readable).decode(),
            "room": writable,
        }
        data, seconds = await self._link.call("chip", params, PATIENCE)
        return Reply(base64.b64decode(data), seconds)


def answer(device: Device, params: Json) -> Json:
    """Answer for the chip: the lab's end.

    :param device: The controller in front of it.
    :param params: What ``ChipLine`` asks.
    :raises LinkError: when the request makes no sense.
    """
    try:
        reply = device.process(params["queue"], base64.b64decode(params["data"]), params["room"])
    except GuestError as error:
        raise LinkError(str(error)) from error
    assert isinstance(reply, Reply)
    return [base64.b64encode(reply.data).decode(), reply.seconds]

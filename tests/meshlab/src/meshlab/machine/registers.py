# SPDX-License-Identifier: Apache-2.0
"""The guest's physical addresses, read and written from outside by QEMU's protocol qtest.

A device that is addressed so does what it would do for the guest's processor. QEMU's
docs/devel/testing/qtest.rst has the protocol: a command is a line of ASCII, and so is its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from meshlab.machine.qemu import QMP_PATIENCE, MachineError
from meshlab.machine.spec import REGISTERS_SOCKET
from meshlab.wire.sockets import socket_address

if TYPE_CHECKING:
    from meshlab.machine.machine import Machine

_CHARDEV, _OBJECT = "registers", "registers-server"
_LETTERS = {1: "b", 2: "w", 4: "l"}


class Registers:
    """What is at the guest's physical addresses.

    :param machine: The machine.
    :param reader: Gets QEMU's answers.
    :param writer: Takes commands.
    """

    def __init__(
        self, machine: Machine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._machine = machine
        self._reader = reader
        self._writer = writer

    async def read(self, address: int, size: int) -> int:
        """Return the number in 1, 2 or 4 bytes at an address.

        :raises MachineError: when QEMU refuses it, or does not answer.
        """
        answer = await self._ask(f"read{_LETTERS[size]} {address:#x}")
        try:
            return int(answer, 16)
        except ValueError:
            raise MachineError(f"QEMU's answer to a read is {answer!r}") from None

    async def write(self, address: int, size: int, value: int) -> None:
        """Write a number of 1, 2 or 4 bytes to an address.

        :raises MachineError: when QEMU refuses it, or does not answer.
        """
        await self._ask(f"write{_LETTERS[size]} {address:#x} {value:#x}")

    async def _ask(self, line: str) -> str:
        self._writer.write(f"{line}\n".encode())
        try:
            async with self._machine.within(QMP_PATIENCE):
                answer = await self._reader.readline()
        except (OSError, TimeoutError, ValueError) as error:
            raise MachineError(f"{line}: QEMU does not answer ({type(error).__name__})") from error
        word, _, rest = answer.decode("ascii", "replace").strip().partition(" ")
        if word != "OK":
            raise MachineError(f"{line}: QEMU says {word!r} {rest}")
        return rest


@contextlib.asynccontextmanager
async def registers_of(machine: Machine) -> AsyncIterator[Registers]:
    """Open the registers of a machine that runs or is paused.

    :raises MachineError: when QEMU does not open them.
    """
    if all(each["label"] != _CHARDEV for each in await machine.qmp("query-chardev")):
        # It stays: QEMU 7.2 does not let go of the socket of a server that is removed.
        where = {"type": "unix", "data": {"path": REGISTERS_SOCKET}}
        backend = {"type": "socket", "data": {"addr": where, "server": True, "wait": False}}
        await machine.qmp("chardev-add", {"id": _CHARDEV, "backend": backend})
        server = {"qom-type": "qtest", "id": _OBJECT, "chardev": _CHARDEV, "log": "/dev/null"}
        await machine.qmp("object-add", server)
    reader, writer = await _connect(machine)
    try:
        yield Registers(machine, reader, writer)
    finally:
        writer.close()


async def _connect(machine: Machine) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    path = machine.spec.directory / REGISTERS_SOCKET
    try:
        async with machine.within(QMP_PATIENCE):
            return await asyncio.open_unix_connection(socket_address(path))
    except (OSError, TimeoutError) as error:
        raise MachineError(f"{path}: QEMU does not answer: {error}") from error

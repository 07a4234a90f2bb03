# SPDX-License-Identifier: Apache-2.0
"""The ways to a first node: over ssh, by TLS, or those that somebody else knows."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from functools import partial
from ipaddress import IPv6Address
from pathlib import Path
from typing import NamedTuple, Protocol

from authority import ssh
from cable import find, reach
from remote.errors import RemoteError
from thicket.control.server import MAX_ANSWER
from thicket.operators.door import watch
from thicket.trust.operator import PORT

#: What a node's ``sshd`` runs: it leads to the control socket there.
REMOTE = ("thicket", "door")
#: Seconds to connect; ssh has its own, and may ask the person for something.
CONNECT = 15.0
#: Seconds that ssh gets to end after its connection has.
_END = 2.0


class Ends(NamedTuple):
    """Both directions of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class Way(Protocol):
    """A way to the first node.

    :ivar address: the node's address, where TLS has to prove who is there; None where what leads
        there is trusted with it, as ssh is.
    """

    address: IPv6Address | None

    def __str__(self) -> str:
        """What it is called in messages."""

    async def open(self) -> Ends:
        """Connect.

        :raises RemoteError: that cannot be done.
        """

    async def close(self) -> None:
        """End what was begun."""

    async def failure(self) -> str | None:
        """Return why the connection ended, where the way knows it."""


class Entrance(NamedTuple):
    """Where commands begin: ways to a first node, and who comes.

    :ivar way: returns a new way to the first node.
    :ivar folder: where the certificate of an operator is.
    """

    way: Callable[[], Way]
    folder: Path


class Ssh:
    """By ssh, which decides who the node is, and the node's ``authorized_keys`` who may come.

    :param host: as ssh takes it.
    :param options: what ssh is told besides.
    :param name: what it is called in messages, if not by ``host``.
    :param advice: returns what a person can do where ssh fails.
    """

    address: IPv6Address | None = None

    def __init__(
        self,
        host: str,
        options: tuple[str, ...] = (),
        *,
        name: str = "",
        advice: Callable[[], str] = str,
    ) -> None:
        self._host = host if "@" in host else f"root@{host}"
        self._options = options
        self._name = name or self._host
        self._advice = advice
        self._child: asyncio.subprocess.Process | None = None

    def __str__(self) -> str:
        return self._name

    async def open(self) -> Ends:
        """See ``Way``."""
        ours, theirs = socket.socketpair()
        try:
            self._child = await asyncio.create_subprocess_exec(
                ssh.program(),
                "-T",
                *self._options,
                self._host,
                *REMOTE,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
            )
        except OSError as error:
            ours.close()
            raise RemoteError("no-ssh", f"ssh: {error.strerror}") from None
        finally:
            theirs.close()
        return Ends(*await asyncio.open_unix_connection(sock=ours, limit=MAX_ANSWER))

    async def close(self) -> None:
        """See ``Way``."""
        if self._child is None or self._child.returncode is not None:
            return
        try:
            async with asyncio.timeout(_END):
                await self._child.wait()
        except TimeoutError:
            self._child.kill()
            await self._child.wait()

    async def failure(self) -> str | None:
        """See ``Way``."""
        if self._child is None:
            return None
        try:
            async with asyncio.timeout(_END):
                status = await self._child.wait()
        except TimeoutError:
            return None
        if status == 0:
            return None  # somebody behind it has gone
        said = f"ssh to {self._name} ended with status {status}; it has said why"
        return ". ".join(filter(None, (said, self._advice())))


class Direct:
    """By TLS to a node that can be reached from here."""

    def __init__(self, address: IPv6Address, port: int = PORT, zone: str = "") -> None:
        self.address: IPv6Address | None = address
        self._host = f"{address}{zone}"
        self._port = port

    def __str__(self) -> str:
        return f"[{self._host}]:{self._port}"

    async def open(self) -> Ends:
        """See ``Way``."""
        try:
            async with asyncio.timeout(CONNECT):
                reader, writer = await asyncio.open_connection(
                    self._host, self._port, limit=MAX_ANSWER
                )
        except TimeoutError:
            message = f"{self} does not answer within {CONNECT:g} s"
            raise RemoteError("unreachable", message) from None
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            raise RemoteError("unreachable", f"{self}: {why}") from None
        watch(writer.get_extra_info("socket"))
        return Ends(reader, writer)

    async def close(self) -> None:
        """See ``Way``."""

    async def failure(self) -> str | None:
        """See ``Way``."""
        return None


def chosen(text: str) -> Way:
    """Return the way that a person names: a host for ssh, or ``tls:ADDRESS[:PORT]``.

    :raises RemoteError: there is no such way.
    """
    scheme, colon, rest = text.partition(":")
    if not colon or scheme != "tls":
        return Ssh(text)
    host, port = rest, PORT
    if rest.startswith("["):
        host, _, behind = rest[1:].partition("]")
        if behind:
            if not behind[1:].isascii() or not behind[1:].isdigit() or behind[0] != ":":
                raise RemoteError(
                    "bad-way", f"{text!r}: a port is a number, as in tls:[ADDRESS]:9102"
                )
            port = int(behind[1:])
    host, percent, zone = host.partition("%")
    try:
        address = IPv6Address(host)
    except ValueError:
        raise RemoteError(
            "bad-way", f"{text!r}: tls: needs the IPv6 address of a node, which proves it"
        ) from None
    return Direct(address, port, percent + zone)


def by_cable(node: str | None, folder: Path) -> Way:
    """Return the way to a device at a cable of this machine.

    :param node: which one; None for the only one.
    :param folder: the authority's, where host keys of devices are kept.
    :raises CableError: there is none, or it is not clear which.
    """
    device = reach.chosen(find.search(), node)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Ssh(
        f"root@{device.host}",
        reach.options(device, folder),
        name=device.name,
        advice=partial(reach.advice, device, folder),
    )

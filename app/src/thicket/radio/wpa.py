# SPDX-License-Identifier: Apache-2.0
"""wpa_supplicant's two languages: its configuration file and its control socket.

The file is described in ``wpa_supplicant.conf`` of its source, the socket in ``ctrl_iface.doxygen``
there: one datagram answers a command, and a client that has sent ``ATTACH`` gets events, which
begin with their level as in ``<3>``.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import TypeVar

from thicket.base.errors import ThicketError
from thicket.base.patience import STEP
from thicket.radio import hang
from thicket.radio.section import OPEN, SAE, MeshSection

_T = TypeVar("_T")

_MESH_ID_BYTES = 32  # IEEE 802.11-2020, 9.4.2.98
#: What the field takes for an SAE password; the standard sets no limit (12.4.3).
_PASSPHRASE_BYTES = 128
_MODE_MESH = 5
#: NIST P-256, the group that every SAE implementation has (IEEE 802.11-2020, 12.4.4.1).
_SAE_GROUP = 19
_PMF_REQUIRED = 2

#: Seconds of our event loop for an answer where nothing is known of the process.
_COMMAND_SECONDS = 20.0
_DATAGRAM_BYTES = 16 * 1024
_POLL_SECONDS = 0.03


class ControlError(ThicketError):
    """wpa_supplicant did not answer, or answered FAIL."""


def quote(value: bytes) -> str:
    """A string value of the configuration file.

    Plain text is in quotes, as people write it. Anything that could end the quotes or the line, or
    be taken for an escape, is written as hexadecimal digits.
    """
    if value and all(0x20 <= byte < 0x7F and byte not in b'"\\#' for byte in value):
        return '"' + value.decode("ascii") + '"'
    return value.hex()


def _country(code: str) -> str:
    if len(code) == 2 and code.isascii() and code.isalnum() and code == code.upper():
        return code
    raise ValueError(f"country {code!r} is not a code of two letters such as DE, or 00")


def _within(name: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise ValueError(f"{name} {value} is not within {least} to {most}")
    return value


def sae_password(settings: MeshSection) -> str:
    """The passphrase as the configuration file and ``SET_NETWORK`` take it.

    :raises ValueError: there is none, or none that can be used; the message is for a person.
    """
    passphrase = (settings.passphrase or "").encode("utf-8", "surrogateescape")
    if not passphrase:
        raise ValueError(
            'the mesh has no passphrase, which security "sae" needs, so the radio stays off: write '
            "mesh.passphrase into thicket.toml on the card's first partition, or use `thicket "
            'config set mesh.passphrase` (or mesh.security = "open" for a mesh that anybody may '
            "enter)"
        )
    if len(passphrase) > _PASSPHRASE_BYTES or 0 in passphrase:
        raise ValueError(
            f"security {SAE!r} needs a passphrase of 1 to {_PASSPHRASE_BYTES} bytes without NUL"
        )
    return quote(passphrase)


def configuration(settings: MeshSection, control_directory: str, peers: int = 255) -> str:
    """The text of the configuration file for one mesh.

    :param peers: how many the driver can hold.
    :raises ValueError: the settings cannot be written down; the message is for a person.
    """
    mesh_id = settings.id.encode("utf-8", "surrogateescape")
    if not 1 <= len(mesh_id) <= _MESH_ID_BYTES:
        raise ValueError(f"the mesh id must have 1 to {_MESH_ID_BYTES} bytes, not {len(mesh_id)}")
    lines = [
        f"ctrl_interface={control_directory}",
        f"country={_country(settings.country)}",
        "ap_scan=2",  # join at once: a mesh is named by id and channel, a scan would find nothing
        "user_mpm=1",
        f"max_peer_links={min(_within('max_peers', settings.max_peers, 1, 255), peers)}",
        f"mesh_max_inactivity={_within('max_inactivity', settings.max_inactivity, 5, 3600)}",
    ]
    timeout = _within("peering_timeout", settings.peering_timeout, 1, 65535)
    network = [f"ssid={quote(mesh_id)}"]
    if settings.security == SAE:
        lines.append(f"sae_groups={_SAE_GROUP}")
        password = sae_password(settings)
        network += [
            "key_mgmt=SAE",
            f"mode={_MODE_MESH}",
            f"frequency={settings.mhz}",
            f"sae_password={password}",
            f"ieee80211w={_PMF_REQUIRED}",
        ]
    elif settings.security == OPEN:
        network += ["key_mgmt=NONE", f"mode={_MODE_MESH}", f"frequency={settings.mhz}"]
    else:
        raise ValueError(f"security {settings.security!r} is neither {OPEN!r} nor {SAE!r}")
    network += [
        f"beacon_int={_within('beacon_interval', settings.beacon_interval, 15, 10000)}",
        f"mesh_fwding={int(settings.forwarding)}",
        f"dot11MeshMaxRetries={_within('peering_retries', settings.peering_retries, 0, 255)}",
        f"dot11MeshRetryTimeout={timeout}",
        f"dot11MeshConfirmTimeout={timeout}",
        f"dot11MeshHoldingTimeout={timeout}",
    ]
    if settings.rssi_threshold:
        network.append(
            f"mesh_rssi_threshold={_within('rssi_threshold', settings.rssi_threshold, -255, -1)}"
        )
    if not settings.ht:
        network.append("disable_ht=1")
    elif settings.mhz > 5000:
        # both for 20: with only the first, wpa_supplicant 2.10 asks for 80 MHz around the channel
        if settings.width == 20:
            network.append("disable_ht40=1")
        network.append(f"max_oper_chwidth={int(settings.width == 80)}")
    return "\n".join([*lines, "network={", *(f"\t{line}" for line in network), "}", ""])


class Event:
    """An event.

    :ivar name: its first word, such as MESH-PEER-CONNECTED.
    :ivar rest: what follows.
    """

    __slots__ = ("level", "name", "rest")

    def __init__(self, level: int, name: str, rest: str) -> None:
        self.level = level
        self.name = name
        self.rest = rest

    def field(self, name: str) -> str | None:
        """The value of ``name=value`` in the event, without quotes around it."""
        mark = f" {name}="
        text = f" {self.rest}"
        at = text.find(mark)
        if at < 0:
            return None
        value = text[at + len(mark) :]
        if value.startswith('"'):
            end = value.find('"', 1)
            while end > 0 and _escaped(value, end):
                end = value.find('"', end + 1)
            return value[1:end] if end > 0 else value[1:]
        return value.split(" ", 1)[0]

    @property
    def address(self) -> str | None:
        """The MAC address that the event is about, in lower case."""
        candidate = self.field("addr") or self.rest.split(" ", 1)[0]
        return candidate.lower() if is_mac(candidate) else None

    def __repr__(self) -> str:
        return f"Event({self.level}, {self.name!r}, {self.rest!r})"


def _escaped(text: str, at: int) -> bool:
    """Whether the character at ``at`` follows an odd number of backslashes."""
    before = text[:at]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1


def is_mac(text: str) -> bool:
    """Whether ``text`` is six octets in hexadecimal between colons."""
    octets = text.split(":")
    return len(octets) == 6 and all(
        len(octet) == 2 and all(digit in "0123456789abcdefABCDEF" for digit in octet)
        for octet in octets
    )


def parse_event(data: bytes) -> Event | None:
    """The event in a datagram, None when it is none."""
    text = data.decode("utf-8", "replace").rstrip("\n\0")
    if text.startswith("IFNAME="):  # from the socket of several interfaces
        text = text.partition(" ")[2]
    if not text.startswith("<"):
        return None
    level, closing, body = text[1:].partition(">")
    if not closing or not level.isascii() or not level.isdecimal() or len(level) > 3:
        return None
    name, _, rest = body.partition(" ")
    return Event(int(level), name, rest)


def parse_status(text: str) -> dict[str, str]:
    """The answer to STATUS: lines of ``name=value``."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {name: value for name, mark, value in pairs if mark}


class Control:
    """A client of wpa_supplicant's control socket at ``path``.

    Commands and events have a socket each, so an answer cannot be mistaken for an event. Both
    sockets have abstract addresses: nothing is left behind in the file system.

    :param on_event: is called with each event.
    :param doing: what wpa_supplicant does, by which :mod:`thicket.radio.hang` judges how long an
        answer is waited for; None when nothing is known of it.
    """

    def __init__(
        self,
        path: str,
        on_event: Callable[[Event], None],
        doing: Callable[[], hang.Doing | None] = lambda: None,
    ) -> None:
        self._path = path
        self._on_event = on_event
        self._doing = doing
        self._commands: socket.socket | None = None
        self._monitor: socket.socket | None = None
        self._answer: asyncio.Future[str] | None = None
        self._attached: asyncio.Future[None] | None = None
        self._lock = asyncio.Lock()

    async def open(self, timeout: float, gone: Callable[[], bool] = lambda: False) -> None:
        """Connect and subscribe to events, waiting for the socket to appear.

        :param timeout: patience with it, see :class:`thicket.radio.hang.Judge`; also for the answer
            of a process of which nothing is known.
        :param gone: whether waiting is useless because wpa_supplicant has ended.
        :raises ControlError: there is no socket, or nobody answers.
        """
        loop = asyncio.get_running_loop()
        judge = hang.Judge(self._doing(), timeout)
        then = loop.time()
        while True:
            try:
                self._connect()
                break
            except OSError as error:
                why = "" if gone() else judge.look(self._doing(), loop.time() - then)
                if why is not None:
                    raise ControlError(
                        f"no control socket at {self._path}: {error.strerror}"
                    ) from None
            then = loop.time()
            await asyncio.sleep(_POLL_SECONDS)
        await self.attach(max(1.0, timeout))

    def close(self) -> None:
        for one in (self._commands, self._monitor):
            if one is not None:
                asyncio.get_running_loop().remove_reader(one.fileno())
                one.close()
        self._commands = self._monitor = None

    def _socket(self, readable: Callable[[], None]) -> socket.socket:
        one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            one.bind("")  # the kernel chooses an abstract address, see unix(7) "autobind"
            one.connect(self._path)
        except OSError:
            one.close()
            raise
        asyncio.get_running_loop().add_reader(one.fileno(), readable)
        return one

    def _connect(self) -> None:
        self.close()
        self._commands = self._socket(self._answer_readable)
        try:
            self._monitor = self._socket(self._event_readable)
        except OSError:
            self.close()
            raise

    def _receive(self, one: socket.socket | None) -> bytes | None:
        if one is None:
            return None
        try:
            return one.recv(_DATAGRAM_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:  # the other end is gone; the waiting side or the pidfd notices
            asyncio.get_running_loop().remove_reader(one.fileno())
            for waiting in (self._answer, self._attached):
                if waiting is not None and not waiting.done():
                    waiting.set_exception(ControlError(f"{self._path}: {error.strerror}"))
            return None

    def _answer_readable(self) -> None:
        data = self._receive(self._commands)
        if data is not None and self._answer is not None and not self._answer.done():
            self._answer.set_result(data.decode("utf-8", "replace"))

    def _event_readable(self) -> None:
        data = self._receive(self._monitor)
        if data is None:
            return
        event = parse_event(data)
        if event is not None:
            self._on_event(event)
        elif self._attached is not None and not self._attached.done():
            if data.startswith(b"OK"):
                self._attached.set_result(None)
            else:
                self._attached.set_exception(ControlError(f"ATTACH: {data[:80]!r}"))

    async def attach(self, timeout: float = _COMMAND_SECONDS) -> None:
        """Subscribe to events, or renew the subscription.

        wpa_supplicant silently drops a listener that was too slow.

        :raises ControlError: it does not answer.
        """
        async with self._lock:
            if self._monitor is None:
                raise ControlError("not connected to wpa_supplicant")
            self._attached = asyncio.get_running_loop().create_future()
            try:
                self._monitor.send(b"ATTACH")
                await self._wait(self._attached, "ATTACH", timeout)
            except OSError as error:
                raise ControlError(f"ATTACH: {error.strerror}") from None
            finally:
                self._attached = None

    async def command(self, text: str, timeout: float = _COMMAND_SECONDS) -> str:
        """Send a command.

        :returns: the answer without its line end.
        :raises ControlError: wpa_supplicant does not answer, or refuses.
        :raises ValueError: the command is not one line.
        """
        if "\n" in text or "\0" in text:
            raise ValueError("a command is one line")
        async with self._lock:
            if self._commands is None:
                raise ControlError("not connected to wpa_supplicant")
            verb = text.partition(" ")[0]
            self._answer = asyncio.get_running_loop().create_future()
            try:
                self._commands.send(text.encode())
                answer = await self._wait(self._answer, verb, timeout)
            except (ControlError, asyncio.CancelledError):
                self._renew()
                raise
            except OSError as error:
                raise ControlError(f"{verb}: {error.strerror}") from None
            finally:
                self._answer = None
        answer = answer.rstrip("\n")
        if answer.startswith(("FAIL", "UNKNOWN COMMAND")):
            raise ControlError(f"wpa_supplicant answered {answer!r} to {verb}")
        return answer

    async def _wait(self, answer: asyncio.Future[_T], verb: str, timeout: float) -> _T:
        """The answer.

        :raises ControlError: there is none in time.
        """
        loop = asyncio.get_running_loop()
        begun = then = loop.time()
        present = self._doing()
        patience = timeout if present is None else hang.HANG_SECONDS
        judge = hang.Judge(present, patience)
        while not answer.done():
            await asyncio.wait([answer], timeout=min(STEP, patience))
            if answer.done():
                break
            before, then = then, loop.time()
            why = judge.look(self._doing(), then - before)
            if why is not None:
                raise ControlError(
                    f"wpa_supplicant did not answer {verb} within {then - begun:.0f} s{why}"
                )
        return answer.result()

    def _renew(self) -> None:
        """Take a new address for commands, so that a late answer reaches nobody."""
        if self._commands is None:
            return
        asyncio.get_running_loop().remove_reader(self._commands.fileno())
        self._commands.close()
        self._commands = None
        with contextlib.suppress(OSError):
            self._commands = self._socket(self._answer_readable)

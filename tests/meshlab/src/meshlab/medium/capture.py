# SPDX-License-Identifier: Apache-2.0
"""pcapng files of what is on the air, with radiotap headers, for Wireshark and its relatives.

A capture of everything has one packet for each transmission, retries and acknowledgements included,
on an interface named after the sending radio; its comment says what became of it at every radio in
range. A capture of links has of that what one end sent in range of the other. A capture of nodes
has what their radios sent and what was there for them to receive, with the signal they saw; the
comment of a lost frame says why it was lost.

With a keyring, frames are written in clear: without the Protected bit, the CCMP header and the MIC,
and with "in clear" in their comments. A frame whose key is not known waits ``PATIENCE`` seconds for
it, and all after it, so that a file is in the order of time; then it is written as it is.

Formats: draft-ietf-opsawg-pcapng (sections 4.1, 4.2, 4.3) and the radiotap fields Flags, Rate,
Channel, Antenna signal, Antenna noise, TX flags, MCS and VHT (radiotap.org).
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from meshlab.medium.engine import Engine
from meshlab.medium.keys import Keyring
from meshlab.medium.objects import Radio, Transmission
from meshlab.medium.stats import LOSS_TEXT, Loss
from meshlab.wire.ieee80211 import RETRY, Phy, Rate

LINKTYPE_RADIOTAP = 127

_FLAGS, _RATE, _CHANNEL, _SIGNAL, _NOISE = 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 6
_TX_FLAGS, _MCS, _VHT = 1 << 15, 1 << 19, 1 << 21

_CHANNEL_CCK, _CHANNEL_OFDM = 0x0020, 0x0040
_CHANNEL_2GHZ, _CHANNEL_5GHZ = 0x0080, 0x0100

_TX_FAIL, _TX_NO_ACK = 0x0001, 0x0008

_OPT_COMMENT, _IF_NAME, _IF_TSRESOL, _SHB_USERAPPL, _EPB_FLAGS = 1, 2, 9, 4, 2
_EPB_INBOUND, _EPB_OUTBOUND = 1, 2


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) & 3)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _pad(value)


def _block(kind: int, body: bytes, options: bytes = b"") -> bytes:
    if options:
        options += b"\0\0\0\0"
    size = 12 + len(body) + len(options)
    return struct.pack("<II", kind, size) + body + options + struct.pack("<I", size)


def section_header() -> bytes:
    """Return the block that begins a file."""
    body = struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)
    return _block(0x0A0D0D0A, body, _option(_SHB_USERAPPL, b"Thicket meshlab medium"))


def interface(name: str) -> bytes:
    """Return the block that describes a radio; times in nanoseconds."""
    body = struct.pack("<HHI", LINKTYPE_RADIOTAP, 0, 0)
    return _block(1, body, _option(_IF_NAME, name.encode()) + _option(_IF_TSRESOL, b"\x09"))


def packet(number: int, at: float, data: bytes, comment: str, outbound: bool) -> bytes:
    """Return a packet of interface ``number`` at ``at`` (seconds of the epoch)."""
    stamp = int(at * 1e9)
    head = struct.pack("<IIIII", number, stamp >> 32, stamp & 0xFFFFFFFF, len(data), len(data))
    options = _option(_EPB_FLAGS, struct.pack("<I", _EPB_OUTBOUND if outbound else _EPB_INBOUND))
    if comment:
        options = _option(_OPT_COMMENT, comment.encode()[:1024]) + options
    return _block(6, head + _pad(data), options)


def radiotap(
    rate: Rate,
    frequency: int,
    *,
    signal: int | None = None,
    noise: int | None = None,
    tx_flags: int | None = None,
) -> bytes:
    """Return a radiotap header. ``signal`` and ``noise`` in dBm, ``frequency`` in MHz."""
    present = _FLAGS | _CHANNEL
    fields = bytearray(struct.pack("<B", 0x02 if rate.short_preamble else 0))
    legacy = rate.phy not in (Phy.HT, Phy.VHT)
    if legacy:
        present |= _RATE
        fields += struct.pack("<B", rate.kbps // 500)
    modulation = _CHANNEL_CCK if rate.phy in (Phy.DSSS, Phy.CCK) else _CHANNEL_OFDM
    spectrum = _CHANNEL_2GHZ if frequency < 3000 else _CHANNEL_5GHZ
    _align(fields, 2)
    fields += struct.pack("<HH", frequency, modulation | spectrum)
    if signal is not None:
        present |= _SIGNAL
        fields += struct.pack("<b", max(-128, min(127, signal)))
    if noise is not None:
        present |= _NOISE
        fields += struct.pack("<b", max(-128, min(127, noise)))
    if tx_flags is not None:
        present |= _TX_FLAGS
        _align(fields, 2)
        fields += struct.pack("<H", tx_flags)
    if rate.phy is Phy.HT:
        present |= _MCS
        # Known: bandwidth, MCS index, guard interval.
        fields += struct.pack(
            "<BBB", 0x07, (1 if rate.width == 40 else 0) | (4 if rate.short_gi else 0), rate.index
        )
    elif rate.phy is Phy.VHT:
        present |= _VHT
        _align(fields, 2)
        width = {20: 0, 40: 1, 80: 4, 160: 11}[rate.width]
        user = rate.index << 4 | rate.streams
        # Known: guard interval (0x0004), bandwidth (0x0040).
        fields += struct.pack(
            "<HBB4sBBH", 0x44, 4 if rate.short_gi else 0, width, bytes((user, 0, 0, 0)), 0, 0, 0
        )
    return struct.pack("<BxHI", 0, 8 + len(fields), present) + fields


def _align(fields: bytearray, size: int) -> None:
    fields += bytes(-len(fields) % size)


PATIENCE = 5.0
"""Seconds that a frame waits for its key: the lab asks nodes when they have new peers."""


@dataclass(frozen=True, slots=True)
class View:
    """What of the air a capture has.

    :ivar nodes: Nodes whose view it is; none of them and no links: everything on the air.
    :ivar links: Pairs of nodes.
    """

    nodes: frozenset[str] = frozenset()
    links: frozenset[frozenset[str]] = frozenset()

    @property
    def everything(self) -> bool:
        """Tell whether it has all."""
        return not self.nodes and not self.links

    def between(self, a: str, b: str) -> bool:
        """Tell whether it has what one of them sends in range of the other."""
        return self.everything or frozenset((a, b)) in self.links

    def of(self, node: str) -> bool:
        """Tell whether it has the view of a node."""
        return node in self.nodes


class _Packet(NamedTuple):
    """What is to be written of a frame."""

    radio: Radio
    at: float
    header: bytes
    frame: bytes
    comment: str
    outbound: bool


class Capture:
    """Writes what the engine shows it. A file that cannot be written ends the capture.

    :param view: What of it.
    :param clock: The engine's.
    :param keys: Makes it write in clear what it can.
    :raises OSError: when the file cannot be made.
    """

    def __init__(
        self,
        path: Path,
        view: View,
        clock: Callable[[], float],
        noise_dbm: float,
        keys: Keyring | None = None,
    ) -> None:
        self.path = path
        self.view = view
        self.packets = 0
        self.problem: str | None = None
        self.keys = keys
        self._clock = clock
        self._offset = time.time() - clock()
        self._noise = round(noise_dbm)
        self._interfaces: dict[str, int] = {}
        self._waiting: deque[_Packet] = deque()
        self._file: BinaryIO | None = path.open("wb")
        self._write(section_header())

    def close(self) -> None:
        """End the file."""
        self._settle(0.0)
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError as error:
                self.problem = self.problem or str(error)

    def flush(self) -> None:
        """Let readers see everything so far."""
        self._settle(PATIENCE)
        if self._file is not None:
            try:
                self._file.flush()
            except OSError as error:
                self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.problem = str(error)
        self._waiting.clear()
        self.close()

    def _write(self, data: bytes) -> None:
        if self._file is not None:
            try:
                self._file.write(data)
            except OSError as error:
                self._fail(error)

    def _packet(self, packet: _Packet) -> None:
        if self.keys is None:
            self._put(packet, packet.frame, packet.comment)
        else:
            self._waiting.append(packet)
            self._settle(PATIENCE)

    def _settle(self, patience: float) -> None:
        """Write what can be written in clear, and what has waited for long enough."""
        waiting, keys = self._waiting, self.keys
        while waiting and keys is not None:
            first = waiting[0]
            clear = keys.clear(first.frame)
            if clear is None and first.at + patience > self._clock():
                return
            waiting.popleft()
            if clear is None or clear == first.frame:
                self._put(first, first.frame, first.comment)
            else:
                comment = f"{first.comment}; in clear" if first.comment else "in clear"
                self._put(first, clear, comment)

    def _put(self, it: _Packet, frame: bytes, comment: str) -> None:
        number = self._interfaces.get(it.radio.name)
        if number is None:
            number = self._interfaces[it.radio.name] = len(self._interfaces)
            self._write(interface(it.radio.name))
        self._write(packet(number, it.at + self._offset, it.header + frame, comment, it.outbound))
        self.packets += 1

    # Observer of the engine.

    def transmission(self, sent: Transmission, outcomes: list[tuple[Radio, int]]) -> None:
        """Write one try."""
        if self._file is None:
            return
        view, node = self.view, sent.radio.node.name
        if view.of(node) or view.everything:
            self._sent(sent, outcomes)
        elif view.links:
            told = [outcome for outcome in outcomes if view.between(node, outcome[0].node.name)]
            if told:
                self._sent(sent, told)
        for radio, reason in outcomes:
            if view.of(radio.node.name):
                link = sent.reach.by_radio[radio]
                header = radiotap(
                    sent.vector.rate, sent.frequency, signal=link.signal, noise=self._noise
                )
                comment = "" if reason < 0 else f"lost: {LOSS_TEXT[Loss(reason)]}"
                self._packet(_Packet(radio, sent.end, header, _tried(sent), comment, False))

    def _sent(self, sent: Transmission, outcomes: Iterable[tuple[Radio, int]]) -> None:
        """Write a try as its sender sees it."""
        sender = sent.radio
        failed = sent.need_ack and not any(reason < 0 for _, reason in outcomes)
        flags = (_TX_FAIL if failed else 0) | (0 if sent.need_ack else _TX_NO_ACK)
        header = radiotap(sent.vector.rate, sent.frequency, tx_flags=flags)
        told = [
            f"{radio.name}: {'received' if reason < 0 else LOSS_TEXT[Loss(reason)]}"
            for radio, reason in outcomes
        ]
        again = f", try {sent.attempts}" if sent.attempts > 1 else ""
        comment = f"{sender.name}{again} > {'; '.join(told) or 'nobody in range'}"
        self._packet(_Packet(sender, sent.end, header, _tried(sent), comment, True))

    def acknowledgement(self, sent: Transmission, receiver: Radio, at: float, lost: bool) -> None:
        """Write an acknowledgement; the kernel knows none, so that it is made up here."""
        if self._file is None:
            return
        view, sender = self.view, sent.radio
        frame = b"\xd4\0\0\0" + sent.frame[10:16]
        rate = sent.vector.control_rate
        comment = f"lost on the way back to {sender.name}" if lost else ""
        if view.of(receiver.node.name) or view.between(receiver.node.name, sender.node.name):
            header = radiotap(rate, sent.frequency, tx_flags=_TX_NO_ACK)
            self._packet(_Packet(receiver, at, header, frame, comment, True))
        if view.of(sender.node.name):
            link = receiver.reach[sent.frequency].by_radio.get(sender)
            signal = link.signal if link is not None else None
            header = radiotap(rate, sent.frequency, signal=signal, noise=self._noise)
            self._packet(_Packet(sender, at, header, frame, comment, False))


def _tried(sent: Transmission) -> bytes:
    """Return a frame as it was on the air."""
    frame = sent.frame
    if sent.attempts > 1:
        frame = frame[:1] + bytes((frame[1] | RETRY,)) + frame[2:]
    return frame


class Captures:
    """Every capture that is being written.

    :param engine: The engine, which shows them what is on the air.
    :ivar running: The captures, in the order in which they were begun.
    """

    def __init__(self, engine: Engine) -> None:
        self.running: list[Capture] = []
        self._engine = engine

    def begin(self, capture: Capture) -> None:
        """Write to one more capture.

        :param capture: The capture.
        """
        self.running.append(capture)
        self._observe()

    def end(self, ended: list[Capture]) -> None:
        """End some of the captures.

        :param ended: Those to be ended.
        """
        for capture in ended:
            self.running.remove(capture)
            capture.close()
        self._observe()

    def _observe(self) -> None:
        if len(self.running) == 1:
            self._engine.observer = self.running[0]
        else:
            self._engine.observer = _Fanout(list(self.running)) if self.running else None

    def flush(self) -> None:
        """Let readers see everything so far."""
        for capture in self.running:
            capture.flush()

    def status(self) -> list[dict[str, Any]]:
        """Return what a person would ask of them."""
        return [
            {
                "path": str(capture.path),
                "nodes": sorted(capture.view.nodes),
                "links": sorted(sorted(link) for link in capture.view.links),
                "decrypt": capture.keys is not None,
                "packets": capture.packets,
                "problem": capture.problem,
            }
            for capture in self.running
        ]


class _Fanout:
    """Several captures at once."""

    def __init__(self, captures: list[Capture]) -> None:
        self._captures = captures

    def transmission(self, sent: Transmission, outcomes: list[tuple[Radio, int]]) -> None:
        for capture in self._captures:
            capture.transmission(sent, outcomes)

    def acknowledgement(self, sent: Transmission, receiver: Radio, at: float, lost: bool) -> None:
        for capture in self._captures:
            capture.acknowledgement(sent, receiver, at, lost)

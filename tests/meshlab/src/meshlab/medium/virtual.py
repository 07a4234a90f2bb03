# SPDX-License-Identifier: Apache-2.0
"""The engine on a clock of its own, with kernels that are a few lines: for tests of the model.

Seconds of traffic pass in as long as their events take to compute, and the same calls give the same
result every time.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from meshlab.medium.config import LinkConfig, MediumConfig, NodeConfig, RadioConfig, State
from meshlab.medium.engine import Engine
from meshlab.medium.links import Links
from meshlab.medium.objects import Node
from meshlab.medium.soft import error_model
from meshlab.wire import hwsim
from meshlab.wire.hwsim import NLM_F_ACK, Attribute, Command, Rate, TxFlag, TxFrame

FAMILY = 29
FREQUENCY = 5180
BROADCAST = b"\xff" * 6


def mac(index: int, radio: int = 0) -> bytes:
    """Return the address of a radio of node ``index``."""
    return b"\x02\x74\x68" + bytes((radio,)) + index.to_bytes(2, "big")


def data_frame(sender: bytes, receiver: bytes, size: int = 100, number: int = 0) -> bytes:
    """Return a data frame of ``size`` bytes in all."""
    control = ((number & 0xFFF) << 4).to_bytes(2, "little")
    head = b"\x08\0\0\0" + receiver + sender + sender + control
    return head + bytes(max(0, size - len(head)))


@dataclass(frozen=True, slots=True)
class Injected:
    """A frame that a kernel got."""

    at: float
    node: str
    radio: bytes
    frame: bytes
    signal: int
    frequency: int
    rx_rate: int


@dataclass(frozen=True, slots=True)
class Report:
    """What a kernel was told about a frame it had sent."""

    at: float
    acked: bool
    flags: int
    signal: int
    rates: tuple[Rate, ...]


class VirtualAir:
    """Nodes n1, n2, ... with one radio each, and the engine between them.

    :param links: (a, b, snr) by index, both ways.
    :param latency: What a kernel takes to answer, in seconds; None: it never answers.
    """

    def __init__(
        self,
        nodes: int,
        links: Iterable[tuple[int, int, float]] = (),
        *,
        seed: str = "1",
        config: MediumConfig | None = None,
        radios: int = 1,
        latency: float | None = 0.0,
    ) -> None:
        made = tuple(
            NodeConfig(f"n{i}", f"n{i}", tuple(RadioConfig(mac(i, r)) for r in range(radios)), None)
            for i in range(1, nodes + 1)
        )
        pairs = tuple(LinkConfig(f"n{a}", f"n{b}", snr) for a, b, snr in links)
        base = config if config is not None else MediumConfig()
        self.config = replace(base, nodes=base.nodes or made, links=base.links or pairs, seed=seed)
        self.links = Links(self.config, State())
        self.engine = Engine(
            self.links,
            seed,
            error=error_model(self.config.decoding),
            aggregation=self.config.aggregation,
        )
        self.now = 0.0
        self.latency = latency
        self.injected: list[Injected] = []
        self.reports: dict[tuple[str, int], Report] = {}
        self.trace: list[bytes] = []
        """Everything the kernels were sent, for comparison."""
        self.refuses: Callable[[Injected], bool] = lambda _injected: False
        self.refuses_report: Callable[[Report], bool] = lambda _report: False
        self.on_injected: Callable[[Injected], None] | None = None
        self.on_report: Callable[[str, int, Report], None] | None = None
        self._dirty: list[Node] = []
        self._answers: list[tuple[float, Node, bytes]] = []
        self._cookie = 0
        for node_config in self.config.nodes:
            node = self.engine.add_node(node_config)
            node.wake = self._waker(node)
            self.engine.node_up(node, FAMILY)
            for radio in node.radios:
                self.engine.radio_up(radio)

    def _waker(self, node: Node) -> Callable[[], None]:
        return lambda: self._dirty.append(node)

    def node(self, index: int) -> Node:
        """Return a node of the engine."""
        return self.engine.nodes[f"n{index}"]

    def send(
        self,
        sender: int,
        receiver: int | bytes,
        *,
        size: int = 100,
        rates: Iterable[Rate] = (Rate(0, 4, 0),),
        frequency: int = FREQUENCY,
        frame: bytes | None = None,
        flags: int | None = None,
        radio: int = 0,
    ) -> int:
        """Let a node send a frame now; return its cookie.

        :param rates: The rates to try; without, 6 Mbit/s, four tries.
        """
        self._cookie += 1
        destination = mac(receiver) if isinstance(receiver, int) else receiver
        if frame is None:
            frame = data_frame(mac(sender, radio), destination, size, self._cookie)
        if flags is None:
            flags = TxFlag.REQ_TX_STATUS | (TxFlag.NO_ACK if destination[0] & 1 else 0)
        tx_info, tx_info_flags = hwsim.encode_series(rates)
        message = hwsim.encode_frame(
            FAMILY,
            TxFrame(
                mac(sender, radio), frame, flags, frequency, tx_info, tx_info_flags, self._cookie
            ),
        )
        self.receive(sender, message)
        return self._cookie

    def receive(self, index: int, message: bytes) -> None:
        """Let a node's kernel say anything."""
        self.engine.receive(self.node(index), message, 0, len(message), self.now)

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while True:
            self._drain()
            due = self.engine.next_event()
            answer = self._answers[0][0] if self._answers else None
            at = min((t for t in (due, answer) if t is not None), default=None)
            if at is None or at > end:
                break
            self.now = max(self.now, at)
            if answer is not None and answer <= self.now:
                _, node, message = self._answers.pop(0)
                if node.family:
                    self.engine.receive(node, message, 0, len(message), self.now)
            else:
                self.engine.advance(self.now)
        self.now = end
        self.engine.sweep(self.now)
        self._drain()

    def _drain(self) -> None:
        while self._dirty:
            node = self._dirty.pop(0)
            stream, node.out = b"".join(node.out), []
            at = 0
            while at < len(stream):
                length, kind = struct.unpack_from("<IB", stream, at)
                assert kind == 0
                self._take(node, stream[at + 5 : at + 4 + length])
                at += 4 + length
            assert at == len(stream)

    def _take(self, node: Node, message: bytes) -> None:
        self.trace.append(node.name.encode() + message)
        got = hwsim.parse(message)
        values = got.attributes
        if got.command == Command.FRAME:
            injected = Injected(
                self.now,
                node.name,
                values[Attribute.ADDR_RECEIVER],
                values[Attribute.FRAME],
                int.from_bytes(values[Attribute.SIGNAL], "little", signed=True),
                int.from_bytes(values[Attribute.FREQ], "little"),
                int.from_bytes(values[Attribute.RX_RATE], "little"),
            )
            refused = self.refuses(injected)
            if self.latency is not None and (refused or got.flags & NLM_F_ACK):
                answer = hwsim.encode_answer(-hwsim.EINVAL if refused else 0, message)
                self._answers.append((self.now + self.latency, node, answer))
            if not refused:
                self.injected.append(injected)
                if self.on_injected is not None:
                    self.on_injected(injected)
        elif got.command == Command.TX_INFO_FRAME:
            cookie = int.from_bytes(values[Attribute.COOKIE], "little")
            flags = int.from_bytes(values[Attribute.FLAGS], "little")
            report = Report(
                self.now,
                bool(flags & TxFlag.STAT_ACK),
                flags,
                int.from_bytes(values[Attribute.SIGNAL], "little", signed=True),
                hwsim.decode_series(values[Attribute.TX_INFO], bytes(12)),
            )
            if self.refuses_report(report):
                answer = hwsim.encode_answer(-hwsim.EINVAL, message)
                self._answers.append((self.now + (self.latency or 0.0), node, answer))
                return
            self.reports[node.name, cookie] = report
            if self.on_report is not None:
                self.on_report(node.name, cookie, report)

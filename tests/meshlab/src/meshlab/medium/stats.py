# SPDX-License-Identifier: Apache-2.0
"""What the medium did, how it kept up, and whether a run's figures mean anything."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

RATE_WINDOW = 5
"""Seconds over which rates and recent lag are reported."""


class Loss(IntEnum):
    """Why a radio in range did not get a frame."""

    ERROR = 0
    COLLISION = 1
    HALF_DUPLEX = 2
    OFF_CHANNEL = 3
    DOWN = 4
    TOO_LONG = 5
    BACK_PRESSURE = 6
    HOST_TOO_SLOW = 7
    LOCKED = 8


LOSS_TEXT: dict[Loss, str] = {
    Loss.ERROR: "frame error",
    Loss.COLLISION: "collision",
    Loss.HALF_DUPLEX: "the receiver was sending",
    Loss.OFF_CHANNEL: "the receiver is down or on another channel",
    Loss.DOWN: "the receiver's node went away",
    Loss.TOO_LONG: "longer than the kernel takes",
    Loss.BACK_PRESSURE: "the receiver's node does not keep up",
    Loss.HOST_TOO_SLOW: "no answer from the receiver's kernel in time",
    Loss.LOCKED: "the receiver followed another frame",
}


@dataclass(frozen=True, slots=True)
class Bounds:
    """Beyond these a run measures the host and not the mesh. Times in milliseconds."""

    lag_p99_ms: float = 50.0
    """Events of the medium are late by more than this once in a hundred. A frame needs a few
    milliseconds through a node; at ten times of that, round trips are the medium's."""
    lag_max_ms: float = 500.0
    """Longest stall: a mesh peering gives up after timeouts of this length."""
    answer_p99_ms: float = 1000.0
    """A kernel's answer to an injected frame, which the sender's acknowledgement waits for."""


class Histogram:
    """Counts of durations in buckets an eighth of an octave wide (in microseconds)."""

    __slots__ = ("counts", "maximum", "total")

    BUCKETS = 36 * 8

    def __init__(self) -> None:
        self.counts = [0] * self.BUCKETS
        self.total = 0
        self.maximum = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration; negative ones are 0."""
        n = int(seconds * 1e6)
        self.counts[_INDEX[n] if 0 <= n < _INDEXED else self._index(n)] += 1
        self.total += 1
        if seconds > self.maximum:  # noqa: PLR1730 - for every frame; max() costs more
            self.maximum = seconds

    def percentile(self, percent: float) -> float:
        """Return the duration in seconds that ``percent`` of the samples do not exceed (0: none).

        At most one eighth above the true value, never above the longest sample.
        """
        wanted = self.total * percent / 100
        seen = 0
        for index, count in enumerate(self.counts):
            seen += count
            if count and seen >= wanted:
                return min(self._upper(index) * 1e-6, self.maximum)
        return 0.0

    @classmethod
    def _index(cls, n: int) -> int:
        if n < 8:
            return max(n, 0)
        octave = n.bit_length() - 4
        return min((octave << 3) + (n >> octave), cls.BUCKETS - 1)

    @staticmethod
    def _upper(index: int) -> int:
        if index < 16:
            return index + 1
        octave = (index >> 3) - 1
        return ((index & 7) + 9) << octave

    def summary_ms(self) -> dict[str, float]:
        """Return the median, the 90th and 99th percentile and the longest, in milliseconds."""
        return {
            "p50": round(self.percentile(50) * 1e3, 3),
            "p90": round(self.percentile(90) * 1e3, 3),
            "p99": round(self.percentile(99) * 1e3, 3),
            "max": round(self.maximum * 1e3, 3),
        }


_INDEXED = 8192
_INDEX = bytes(Histogram._index(n) for n in range(_INDEXED))
"""The buckets of the first microseconds, where most durations are."""


class Traffic:
    """What one node sent in range of another, and how much of that the air lost on the way.

    Tries count, not frames: one to a single receiver that needed three is three. What a receiver
    did not listen to, or its host did not take, is not lost on the air.
    """

    __slots__ = ("acks", "acks_lost", "group", "group_lost", "unicast", "unicast_lost")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin to count from 0."""
        self.unicast = self.unicast_lost = 0
        """To that receiver."""
        self.group = self.group_lost = 0
        """To a group: beacons among them."""
        self.acks = self.acks_lost = 0
        """Acknowledgements."""

    def to_json(self) -> dict[str, int]:
        """Return the counters by name."""
        return {name: getattr(self, name) for name in sorted(self.__slots__)}


class Stats:
    """Counters of a medium since its start or its last ``reset``."""

    __slots__ = (
        "ack_lost",
        "acked",
        "answer_time",
        "attempts",
        "bad_rates",
        "deliveries",
        "frames",
        "kernel_overflow",
        "lag",
        "late_answers",
        "losses",
        "malformed",
        "no_receiver",
        "not_acked",
        "queue_delay",
        "short_frames",
        "sync_losses",
        "tx_info_refused",
        "tx_info_withdrawn",
        "unknown_radio",
    )

    def __init__(self) -> None:
        self.frames = 0
        """Frames that kernels sent."""
        self.attempts = 0
        """Transmissions on the air, retries included, acknowledgements not."""
        self.deliveries = 0
        """Frames handed to receivers, one for each receiver; less those that a kernel refused."""
        self.losses = [0] * len(Loss)
        """Frames not received by radios in range, by ``Loss``."""
        self.no_receiver = 0
        """Transmissions to an address that no radio in range has."""
        self.ack_lost = 0
        """Acknowledgements lost on the way back."""
        self.acked = 0
        self.not_acked = 0
        """Frames to one receiver by their end."""
        self.queue_delay = Histogram()
        """From a frame's arrival to its first transmission: other frames and carrier sense."""
        self.answer_time = Histogram()
        """From the injection of a frame to the receiving kernel's answer."""
        self.lag = Histogram()
        """How late events are."""
        self.malformed = 0
        """Messages that make no sense; each costs the node its session."""
        self.sync_losses = 0
        """Sessions lost for any reason."""
        self.tx_info_refused = 0
        """Reports that a kernel did not take: it does not know what became of its frame."""
        self.tx_info_withdrawn = 0
        """Reports on frames that a kernel had given up because their interface went down."""
        self.late_answers = 0
        """Answers to injections that were forgotten meanwhile."""
        self.kernel_overflow = 0
        """Frames given up because a radio had more than the kernel keeps (200)."""
        self.unknown_radio = 0
        """Frames of radios that the medium did not make, or too short to say whose they are."""
        self.bad_rates = 0
        """Rates that the standard does not have; sent at the lowest instead."""
        self.short_frames = 0
        """Control frames that the kernel does not take from the medium (under 24 bytes)."""

    def lost(self) -> int:
        """Return the losses of radios that listened: what the air and the host did."""
        return sum(self.losses) - self.losses[Loss.OFF_CHANNEL] - self.losses[Loss.DOWN]

    def loss_percent(self) -> float:
        """Return the part of receptions in range that failed, in percent.

        Radios that did not listen, because they were down or on another channel, do not count.
        """
        lost = self.lost()
        total = self.deliveries + lost
        return 100 * lost / total if total else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "frames": self.frames,
            "attempts": self.attempts,
            "deliveries": self.deliveries,
            "losses": {reason.name.lower(): self.losses[reason] for reason in Loss},
            "loss_percent": round(self.loss_percent(), 3),
            "acked": self.acked,
            "not_acked": self.not_acked,
            "ack_lost": self.ack_lost,
            "no_receiver": self.no_receiver,
            "queue_delay_ms": self.queue_delay.summary_ms(),
            "answer_ms": self.answer_time.summary_ms(),
            "lag_percentiles_ms": self.lag.summary_ms(),
            "malformed": self.malformed,
            "sync_losses": self.sync_losses,
            "tx_info_refused": self.tx_info_refused,
            "tx_info_withdrawn": self.tx_info_withdrawn,
            "late_answers": self.late_answers,
            "kernel_overflow": self.kernel_overflow,
            "unknown_radio": self.unknown_radio,
            "bad_rates": self.bad_rates,
            "short_frames": self.short_frames,
        }


class Recent:
    """Rates and delays of the last ``RATE_WINDOW`` seconds."""

    def __init__(self) -> None:
        self._window: list[tuple[float, int, int, int, float]] = []

    def second(self, now: float, stats: Stats, late: float) -> None:
        """Take the figures of one more second.

        :param now: The time.
        :param stats: The counters.
        :param late: The longest delay of an event in this second.
        """
        self._window.append((now, stats.frames, stats.deliveries, stats.lost(), late))
        del self._window[: -RATE_WINDOW - 1]

    def clear(self) -> None:
        """Begin anew, as the counters do."""
        self._window.clear()

    def to_json(self) -> dict[str, float]:
        """Return everything as plain values; zeros for the first second."""
        rate = loss = lag = 0.0
        if len(self._window) > 1:
            first, last = self._window[0], self._window[-1]
            rate = (last[1] - first[1]) / max(last[0] - first[0], 1e-3)
            lost = last[3] - first[3]
            total = lost + last[2] - first[2]
            loss = 100 * lost / total if total > 0 else 0.0
            lag = max(entry[4] for entry in self._window[1:])
        return {
            "frames_per_second": round(rate, 1),
            "recent_loss_percent": round(loss, 2),
            "lag_ms": round(lag * 1e3, 2),
        }


def verdict(stats: Stats, bounds: Bounds, relay_drops: dict[str, int]) -> list[str]:
    """Return why the figures of a run are the host's and not the mesh's; empty when they are good.

    :param relay_drops: By node, the frames that its relay had to drop.
    """
    reasons = []
    p99, longest = stats.lag.percentile(99) * 1e3, stats.lag.maximum * 1e3
    if p99 > bounds.lag_p99_ms:
        reasons.append(
            f"the medium runs late: by more than {p99:.0f} ms once in a hundred events "
            f"(bound {bounds.lag_p99_ms:g} ms)"
        )
    if longest > bounds.lag_max_ms:
        reasons.append(f"the medium stood still for {longest:.0f} ms (bound {bounds.lag_max_ms:g})")
    answer = stats.answer_time.percentile(99) * 1e3
    if answer > bounds.answer_p99_ms:
        reasons.append(
            f"nodes answer late: {answer:.0f} ms once in a hundred (bound {bounds.answer_p99_ms:g})"
        )
    for count, text in (
        (
            stats.losses[Loss.HOST_TOO_SLOW],
            "frames found no answer from the receiving kernel in time",
        ),
        (
            stats.losses[Loss.BACK_PRESSURE],
            "frames were dropped because a node did not read them",
        ),
        (stats.losses[Loss.TOO_LONG], "frames were longer than a kernel takes from the medium"),
        (stats.kernel_overflow, "frames overflowed a radio's queue in the kernel"),
        (stats.tx_info_refused, "reports on frames were refused by the kernel that had sent them"),
        (stats.late_answers, "answers came when the medium had forgotten the frame"),
        (stats.malformed, "messages from nodes made no sense"),
        (stats.unknown_radio, "frames came from radios that the medium did not make"),
        (stats.bad_rates, "rates that the standard does not have were asked for"),
    ):
        if count:
            reasons.append(f"{count} {text}")
    for node, count in sorted(relay_drops.items()):
        if count:
            reasons.append(f"the relay of {node} dropped {count} messages")
    return reasons

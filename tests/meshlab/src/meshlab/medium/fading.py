# SPDX-License-Identifier: Apache-2.0
"""Links whose signal changes by itself: fast fading and shadowing, as functions of time.

Fast fading, by the models of Xiao, Zheng and Beaulieu (Novel Sum-of-Sinusoids Simulation Models for
Rayleigh and Rician Fading Channels, IEEE Trans. Wireless Commun. 5 (2006) 3667). Rayleigh: many
paths of equal strength from all around. Their sum has an envelope with Rayleigh's distribution and
the autocorrelation J0(2 pi f t) of Clarke, where f is the Doppler frequency: speed over wavelength.
Rician: one more path, K times as strong as all others together.

Shadowing: in dB a Gaussian process around 0 whose correlation falls as exp(-t / T) (Gudmundson,
Correlation Model for Shadow Fading in Mobile Radio Systems, Electronics Letters 27 (1991) 2145). It
is a sum of sinusoids as well (Cai and Giannakis, A Two-Dimensional Channel Simulation Model for
Shadowing Processes, IEEE Trans. Veh. Technol. 52 (2003) 1558). The spectrum that belongs to the
exponential is Cauchy's distribution, so their frequencies are drawn from it.

Sums of sinusoids have no memory: the gain at a time depends on the seed and the time only, not on
who asked before. It is the same in both directions, as channels are reciprocal.

Within a block of a twentieth of the Doppler period, or a fiftieth of the decorrelation time, the
gain stays what it was at the block's begin (block fading). A frame has the gain of its begin. Every
link has blocks of its own, so how one link fades changes nothing of another.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from meshlab.medium.propagation import draw

PATHS = 32
"""Paths that fast fading is the sum of. Their finite number makes correlations of powers 1/32 less
than Clarke's, and deep fades 2 % less frequent than Rayleigh's."""
WAVES = 32
"""Sinusoids that shadowing is the sum of."""
BLOCKS_OF_DOPPLER = 20
BLOCKS_OF_DECORRELATION = 50
SHORTEST_BLOCK = 0.001
"""Seconds: the medium's own resolution."""
DEEPEST_DB = -100.0

MODELS = ("none", "rayleigh", "rician")


@dataclass(frozen=True, slots=True)
class Fading:
    """How the signal of a link changes. Written as ``rician k=6 doppler=2 shadowing=4``."""

    model: str = "none"
    k: float = 6.0
    """Of Rician fading: the direct path over all others, in dB."""
    doppler: float = 2.0
    """Of fast fading, in Hz: at 2.4 GHz people who walk by cause 5 to 10, leaves 1 to 2."""
    shadowing: float = 0.0
    """Standard deviation in dB."""
    decorrelation: float = 10.0
    """Of shadowing: the seconds after which it has 37 % in common with before."""

    @property
    def changes(self) -> bool:
        """Tell whether it changes anything."""
        return self.model != "none" or self.shadowing > 0

    @property
    def block(self) -> float:
        """The seconds for which a gain is kept."""
        blocks = [math.inf]
        if self.model != "none":
            blocks.append(1 / self.doppler / BLOCKS_OF_DOPPLER)
        if self.shadowing:
            blocks.append(self.decorrelation / BLOCKS_OF_DECORRELATION)
        return max(min(blocks), SHORTEST_BLOCK)

    def __str__(self) -> str:
        words = [] if self.model == "none" else [self.model]
        if self.model == "rician":
            words.append(f"k={self.k:g}")
        if self.model != "none":
            words.append(f"doppler={self.doppler:g}")
        if self.shadowing:
            words += [f"shadowing={self.shadowing:g}", f"decorrelation={self.decorrelation:g}"]
        return " ".join(words) or "none"


STEADY = Fading()

_RANGES = {
    "k": (-20.0, 40.0),
    "doppler": (0.01, 1000.0),
    "shadowing": (0.0, 30.0),
    "decorrelation": (0.05, 1e6),
}


def parse(text: object) -> Fading:
    """Return what a text such as ``rician k=6 doppler=2 shadowing=4 decorrelation=10`` says.

    :raises ValueError: when it is not understood; the text says what is allowed.
    """
    words = text.split() if isinstance(text, str) else []
    if not words:
        raise ValueError(f"{text!r} is no fading, such as 'rayleigh doppler=2' or 'none'")
    model = words.pop(0) if words[0] in MODELS else "none"
    values: dict[str, float] = {}
    for word in words:
        name, _, number = word.partition("=")
        if name not in _RANGES:
            known = ", ".join(f"{each.name}=" for each in fields(Fading)[1:])
            raise ValueError(f"{word!r}: fading is one of {', '.join(MODELS)}, then any of {known}")
        low, high = _RANGES[name]
        try:
            values[name] = float(number)
        except ValueError:
            values[name] = math.nan
        if not low <= values[name] <= high:
            raise ValueError(f"{word!r}: {name} is a number from {low:g} to {high:g}")
    return Fading(model, **values)


Gain = Callable[[float], float]
"""Gives a gain in dB at a time in seconds."""


def fast(fading: Fading, seed: str, *what: str) -> Gain:
    """Return the fast fading of ``what``."""
    random = draw(seed, "fading", *what).random
    omega = 2 * math.pi * fading.doppler
    paths = []
    for n in range(PATHS):
        angle = 2 * math.pi * (n + random()) / PATHS
        paths.append((omega * math.cos(angle), 2 * math.pi * random()))
    k = 10 ** (fading.k / 10) if fading.model == "rician" else 0.0
    direct = omega * math.cos(2 * math.pi * random()), 2 * math.pi * random()
    scattered = 1 / math.sqrt(PATHS * (1 + k))
    strength = math.sqrt(k / (1 + k))

    def gain(time: float) -> float:
        total = scattered * sum(cmath.exp(1j * (w * time + phase)) for w, phase in paths)
        if strength:
            total += strength * cmath.exp(1j * (direct[0] * time + direct[1]))
        power = abs(total) ** 2
        return 10 * math.log10(power) if power > 1e-10 else DEEPEST_DB

    return gain


def slow(fading: Fading, seed: str, *what: str) -> Gain:
    """Return the shadowing of ``what``."""
    random = draw(seed, "slow", *what).random
    waves = []
    for n in range(WAVES):
        # One of each part of the distribution, so that every link has all of the spectrum.
        rank = (n + random()) / WAVES
        rank = min(max(rank, 1e-6), 1 - 1e-6)
        omega = math.tan(math.pi * (rank - 0.5)) / fading.decorrelation
        waves.append((omega, 2 * math.pi * random()))
    scale = fading.shadowing * math.sqrt(2 / WAVES)
    return lambda time: scale * sum(math.cos(w * time + phase) for w, phase in waves)


class Fadings:
    """How every link changes. Times begin when it is first asked.

    :ivar active: Any link changes.
    """

    def __init__(
        self, seed: str, general: Fading, own: Mapping[tuple[str, str], Fading] | None = None
    ) -> None:
        """Let links change.

        :param general: How links do that have nothing of their own.
        :param own: Links that have, by the names of the two nodes in either order.
        """
        self._seed = seed
        self._general = general
        self._configured = {_pair(*ends): fading for ends, fading in (own or {}).items()}
        self._changed: Mapping[tuple[str, str], Fading] = {}
        self._gains: dict[tuple[str, str, int], Gain] = {}
        self._began: float | None = None
        self.active = False
        self.change({})

    def change(self, changed: Mapping[tuple[str, str], Fading]) -> None:
        """Take what was changed while running, by the sorted names of two nodes."""
        self._changed = dict(changed)
        self._gains.clear()
        every = (self._general, *self._configured.values(), *self._changed.values())
        self.active = any(each.changes for each in every)

    def of(self, a: str, b: str) -> Fading:
        """Return how the link between two nodes changes."""
        pair = _pair(a, b)
        return self._changed.get(pair) or self._configured.get(pair) or self._general

    def own(self) -> dict[tuple[str, str], Fading]:
        """Return the links that change otherwise than all, by the sorted names of two nodes."""
        return {**self._configured, **self._changed}

    def gain(self, a: str, b: str, frequency: int, now: float) -> tuple[float, float]:
        """Return the gain in dB between two nodes at a frequency (MHz), and until when it is kept.

        :param now: The time in seconds.
        """
        if self._began is None:
            self._began = now
        if a == b:
            return 0.0, math.inf
        first, second = _pair(a, b)
        length = self.of(first, second).block
        if length == math.inf:
            return 0.0, math.inf
        begin, block = self._began, int((now - self._began) / length)
        # A quotient that is rounded may be of the block beside it.
        while now < begin + block * length:
            block -= 1
        while now >= begin + (block + 1) * length:
            block += 1
        key = first, second, frequency
        found = self._gains.get(key)
        if found is None:
            if len(self._gains) >= 100_000:  # a guest that makes up frequencies
                self._gains.clear()
            found = self._gains[key] = self._make(first, second, frequency)
        return found(block * length), begin + (block + 1) * length

    def _make(self, a: str, b: str, frequency: int) -> Gain:
        fading = self.of(a, b)
        parts: list[Gain] = []
        if fading.model != "none":
            parts.append(fast(fading, self._seed, a, b, str(frequency)))
        if fading.shadowing:
            parts.append(slow(fading, self._seed, a, b))
        if len(parts) == 1:
            return parts[0]
        return lambda time: sum((part(time) for part in parts), 0.0)


def _pair(a: str, b: str) -> tuple[str, str]:
    return (a, b) if a < b else (b, a)

# SPDX-License-Identifier: Apache-2.0
"""What the nodes of the cluster tell, asked for by one of them: their numbers, or a summary.

A member may be slow, away, or lie. Numbers are taken by our own table of families: names that
it lacks are dropped, types, help and names of labels are ours, and values that would spoil the text
for everybody make the whole answer worthless.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from logging import getLogger
from math import isfinite
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from thicket.base.visible import visible
from thicket.distribution.handshake import DistributionError
from thicket.metrics import packed as packed_form
from thicket.metrics.families import BY_NAME
from thicket.metrics.numbers import MOST
from thicket.metrics.teller import NAME, NUMBERS
from thicket.metrics.text import Family, Numbers, Samples, label_value

if TYPE_CHECKING:
    from thicket.distribution.etf import Atom

log = getLogger(__name__)

T = TypeVar("T")

UP = Family("thicket_up", "gauge", "Whether a node of the cluster has told its numbers.")
#: Most nodes that are told of, and that are asked at the same time.
MOST_NODES = 1024
AT_ONCE = 8
#: Seconds that one node may take.
EACH = 4.0
#: Longest answer of a node in bytes, packed and not; and of all together, not packed. A node with
#: 99 peers and all paths tells some 130,000.
MOST_PACKED = 64 * 1024
MOST_BYTES = 192 * 1024
MOST_OF_ALL = 8 * 1024 * 1024
#: Largest value of a whole number: larger ones are no numbers of a node.
_LARGEST = 2**64


#: Characters of the words with which a node may refuse.
_MOST_WORDS = 160


class Told(NamedTuple, Generic[T]):
    """What a node has told.

    :ivar took: seconds from the question to the answer.
    :ivar at: when the answer came, in seconds since 1970 by our clock, and ``monotonic``: by the
        clock that nobody sets.
    """

    value: T
    took: float
    at: float
    monotonic: float


class Failure(NamedTuple):
    """Why a node has told nothing.

    :ivar code: ``timeout``; ``refused`` (by the node, in its own words); ``nonsense``; or that of
        an error of the distribution: ``noproc`` of a node that is no Thicket node.
    """

    code: str
    words: str


class Asks(Protocol):
    """What gathering needs of :class:`thicket.distribution.node.Node`."""

    async def request(self, target: Any, request: Any, timeout: float | None = None) -> Any:
        """Ask a process."""


def pack(numbers: Numbers) -> bytes:
    """Return numbers as they travel: JSON, compressed."""
    plain = {
        name: [[list(labels), value] for labels, value in samples.items()]
        for name, samples in numbers.items()
    }
    return packed_form.pack(plain)


def unpack(packed: bytes) -> tuple[Numbers, int]:
    """Return numbers that another node has packed, and their size in bytes.

    :raises ValueError: they are none, or too many.
    """
    plain, size = packed_form.unpack(packed, MOST_PACKED, MOST_BYTES)
    return {
        name: _samples(BY_NAME[name], samples) for name, samples in plain.items() if name in BY_NAME
    }, size


def _samples(family: Family, plain: Any) -> Samples:
    """Return the samples of a family.

    :raises ValueError: they are none.
    """
    if not isinstance(plain, list) or len(plain) > MOST:
        raise ValueError(f"{family.name} is no list of samples, or has too many")
    found: Samples = {}
    for one in plain:
        match one:
            case [list() as labels, int() | float() as value] if not isinstance(value, bool):
                pass
            case _:
                raise ValueError(f"{family.name} has what is no sample")
        if len(labels) != len(family.labels) or not all(isinstance(text, str) for text in labels):
            raise ValueError(f"{family.name} has other labels")
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise ValueError(f"{family.name} has a value that is too large")
        if family.kind == "counter" and not (isfinite(value) and value >= 0):
            raise ValueError(f"the counter {family.name} is {value}")
        found[tuple(map(label_value, labels))] = 1 if family.kind == "info" else value
    return found


async def ask_all(
    node: Asks,
    names: Iterable[str],
    seconds: float,
    question: Atom,
    read: Callable[[bytes], tuple[T, int]],
) -> dict[str, Told[T] | Failure]:
    """Ask nodes a question that :mod:`.teller` answers, few at once and none for too long.

    :param seconds: for all of it.
    :param read: returns what an answer tells, and its size in bytes; raises ValueError.
    """
    found: dict[str, Told[T] | Failure] = dict.fromkeys(
        names, Failure("timeout", "no answer in time")
    )
    room = asyncio.Semaphore(AT_ONCE)
    left = MOST_OF_ALL

    async def ask(name: str) -> None:
        nonlocal left
        async with room:
            asked = time.monotonic()
            try:
                told = _told(await node.request((NAME, name), question, EACH), read)
            except (DistributionError, OSError) as error:
                code = str(getattr(error, "code", "")) or "unreachable"
                found[name] = Failure(code, str(error) or type(error).__name__)
                return
            except ValueError as error:
                found[name] = Failure("nonsense", "its answer makes no sense")
                log.debug("nonsense of %s: %s", name, error)
                return
            now = time.monotonic()
        if isinstance(told, Failure):
            found[name] = told
        elif told[1] <= left:
            left -= told[1]
            found[name] = Told(told[0], now - asked, time.time(), now)

    tasks = [asyncio.create_task(ask(name)) for name in found]
    try:
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return found


def _told(answer: Any, read: Callable[[bytes], tuple[T, int]]) -> tuple[T, int] | Failure:
    """:raises ValueError: it is no answer."""
    match answer:
        case ("ok", bytes() as packed):
            return read(packed)
        case ("error", bytes() as words):
            text = words[: 4 * _MOST_WORDS].decode(errors="replace")
            return Failure("refused", visible(text, keep="")[:_MOST_WORDS])
        case _:
            raise ValueError(f"it answered {answer!r:.100}")


async def gather(node: Asks, names: Iterable[str], seconds: float) -> dict[str, Numbers | None]:
    """Ask nodes for their numbers; None for those that do not answer in time, or with nonsense.

    :param seconds: for all of it.
    """
    told = await ask_all(node, names, seconds, NUMBERS, unpack)
    return {name: one.value if isinstance(one, Told) else None for name, one in told.items()}


def merged(views: Mapping[str, Numbers | None]) -> Numbers:
    """Return the samples of all nodes, with the node's name in front of the labels, and UP."""
    found: Numbers = {UP.name: {}}
    for name, numbers in views.items():
        label = label_value(name)
        found[UP.name][label,] = int(numbers is not None)
        for family, samples in (numbers or {}).items():
            kept = found.setdefault(family, {})
            for labels, value in samples.items():
                kept[label, *labels] = value
    return found

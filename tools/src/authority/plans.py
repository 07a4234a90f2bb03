# SPDX-License-Identifier: Apache-2.0
"""The words of a command in which order a fleet takes an update: durations, counts, percentages."""

from __future__ import annotations

import argparse
import re
from typing import Final

from thicket.update import offer as offers
from thicket.update.offer import MAX_CANARIES, MAX_FAILURES, MAX_WAVES, MAX_WELL

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
_DAYS: Final = MAX_WELL // _UNITS["d"]
_DURATION: Final = re.compile(r"([0-9]{1,9})([smhd])")
_NODE: Final = re.compile(r"n-[0-9a-f]{12}")

NOBODY: Final = "none"
"""In place of canaries: the first wave begins at once."""


def canaries(text: str) -> int | tuple[str, ...]:
    """Read how many nodes, or which, take it first."""
    if text == NOBODY:
        return 0
    if text.isascii() and text.isdecimal():
        if 1 <= int(text) <= MAX_CANARIES:
            return int(text)
        if int(text) == 0:
            raise argparse.ArgumentTypeError(
                f"with 0 nobody tries it first; say `--canaries {NOBODY}` if the first wave is to "
                "begin at once"
            )
        raise argparse.ArgumentTypeError(f"{text} is too many: at most {MAX_CANARIES} nodes")
    names = tuple(text.split(","))
    for name in names:
        if not _NODE.fullmatch(name):
            raise argparse.ArgumentTypeError(
                f"{name[:40]!r} is neither a number of nodes nor the host name of one, as in "
                "n-0123456789ab,n-6f44e3c6b802 (`thicket status` on the node shows it)"
            )
        if names.count(name) > 1:
            raise argparse.ArgumentTypeError(f"{name} is named twice")
    if len(names) > MAX_CANARIES:
        raise argparse.ArgumentTypeError(f"at most {MAX_CANARIES} nodes are named")
    return names


def waves(text: str) -> tuple[int, ...]:
    """Read the percent of the fleet that have it after each wave."""
    parts = [part.strip().removesuffix("%") for part in text.split(",")]
    numbers = tuple(int(part) for part in parts if re.fullmatch("[0-9]{1,3}", part))
    grow = list(numbers) == sorted(set(numbers)) and len(numbers) == len(parts) <= MAX_WAVES
    if not grow or numbers[0] < 1 or numbers[-1] != 100:
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r} are no waves: percent of the fleet, from 1 on, each more than the one "
            f"before, the last one 100, at most {MAX_WAVES} of them, as in 10,50,100"
        )
    return numbers


def seconds(text: str) -> int:
    """Read a duration, whose unit is never guessed."""
    found = _DURATION.fullmatch(text)
    if found is None:
        number = text if text.isascii() and text.isdecimal() else "10"
        forms = ", ".join(f"{number}{unit}" for unit in _UNITS)
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r} is no duration: a whole number and its unit, one of {forms} (seconds, "
            "minutes, hours, days)"
        )
    count = int(found[1]) * _UNITS[found[2]]
    if count > MAX_WELL:
        raise argparse.ArgumentTypeError(f"{text} is too long: at most {_DAYS}d")
    return count


def failures(text: str) -> int:
    """Read how many nodes may fail."""
    if re.fullmatch("[0-9]{1,9}", text) and int(text) <= MAX_FAILURES:
        return int(text)
    raise argparse.ArgumentTypeError(
        f"{text[:40]!r} is no number of nodes, from 0 to {MAX_FAILURES}"
    )


def window(text: str) -> tuple[int, int]:
    """Read two times of the day."""
    first, _, last = text.partition("-")
    try:
        found = offers.minute(first), offers.minute(last)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, as in 23:00-04:30 (UTC)") from None
    if found[0] == found[1]:
        raise argparse.ArgumentTypeError(
            f"{text} is no time: it begins when it ends. Without --window nodes start at any time"
        )
    return found

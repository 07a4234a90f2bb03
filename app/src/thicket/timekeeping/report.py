# SPDX-License-Identifier: Apache-2.0
"""What chronyd says of itself, as chronyc(1) prints it for programs (``-c``): fields and commas."""

from __future__ import annotations

from typing import NamedTuple

from thicket.base.errors import ThicketError

#: What is read of an answer, in characters; a node has at most a dozen sources.
MOST = 16_384


class ReportError(ThicketError):
    """chronyc prints something else than it should."""

    code = "no-report"


class Tracking(NamedTuple):
    """How chronyd corrects the clock.

    :ivar source: the address of the source that it follows; empty without one.
    :ivar stratum: 0 while chronyd follows none.
    :ivar offset: seconds that the clock is still to be set forward.
    :ivar error: seconds by which the corrected clock is off at most, by chronyd's reckoning.
    :ivar skew: how well the clock's own rate is known, in parts in a million.
    :ivar frequency: by how many parts in a million the clock is slow (or fast, if negative).
    """

    source: str
    stratum: int
    offset: float
    error: float
    skew: float
    frequency: float


class Source(NamedTuple):
    """A source of the time.

    :ivar address: or the name that it was configured by.
    :ivar state: ``*`` is followed, ``+`` and ``-`` agree with it, ``x`` and ``~`` do not, ``?`` has
        not answered.
    :ivar reach: its last eight answers, as bits.
    :ivar offset: seconds that it is ahead of the clock.
    """

    address: str
    state: str
    stratum: int
    reach: int
    offset: float
    error: float

    @property
    def agrees(self) -> bool:
        return self.state in "*+-"


class Report(NamedTuple):
    """What ``tracking`` and ``sources`` say together."""

    tracking: Tracking
    sources: tuple[Source, ...]


#: The reference that chronyd names while it follows itself (``local``): 127.127.1.1.
_LOCAL = "7F7F0101"
_NO_SOURCE = "503 "
_NOT_SYNCHRONISED = "Not synchronised"


def parse(text: str) -> Report:
    """Read the lines of ``chronyc -c -m tracking sources``.

    :raises ReportError: they are not such lines.
    """
    # Between them it says what it cannot find: the name of a source that it has just lost.
    plain = (line for line in text[:MOST].splitlines() if not line.startswith(_NO_SOURCE))
    lines = [line.split(",") for line in plain if line]
    try:
        if not lines or len(lines[0]) < 14:
            raise ValueError(text[:80].strip() or "nothing")
        tracking = _tracking(lines[0])
        return Report(tracking, tuple(_source(line, tracking.offset) for line in lines[1:]))
    except (ValueError, IndexError) as error:
        raise ReportError(f"chronyc prints {error}") from None


def _tracking(fields: list[str]) -> Tracking:
    follows = fields[13] != _NOT_SYNCHRONISED and fields[0] not in ("00000000", _LOCAL)
    return Tracking(
        source=fields[1] if follows else "",
        stratum=int(fields[2]),
        offset=_number(fields[4]),
        error=_number(fields[10]) / 2 + _number(fields[11]),
        frequency=_number(fields[7]),
        skew=_number(fields[9]),
    )


def _source(fields: list[str], turning: float) -> Source:
    """Read one source.

    :param turning: what chronyd still has to turn the clock by, which it counts as done here.
    """
    return Source(
        address=fields[2],
        state=fields[1],
        stratum=int(fields[3]),
        reach=int(fields[5], 8),
        # chronyc prints by how much the clock is ahead of the source
        offset=turning - _number(fields[7]),
        error=_number(fields[9]),
    )


def _number(text: str) -> float:
    value = float(text)
    if not -1e12 < value < 1e12:  # neither a nan
        raise ValueError(text)
    return value

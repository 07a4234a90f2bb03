# SPDX-License-Identifier: Apache-2.0
"""A floor plan, or a map, below the nodes whose places are known."""

from __future__ import annotations

from math import cos, radians
from pathlib import Path
from typing import Final, NamedTuple

from web.errors import WebError

_KINDS: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"RIFF", "image/webp"),
)
_MOST_BYTES: Final = 32 << 20
#: Metres of a degree of latitude.
DEGREE: Final = 111_320.0

Metres = tuple[float, float]


class Origin(NamedTuple):
    """The point that metres count from, in degrees."""

    latitude: float
    longitude: float

    def metres(self, latitude: float, longitude: float) -> Metres:
        """Return where a point is: metres to the east and to the south.

        The earth is taken for flat, which is right to some parts in a thousand for 50 km.
        """
        east = (longitude - self.longitude) * DEGREE * cos(radians(self.latitude))
        return round(east, 2), round((self.latitude - latitude) * DEGREE, 2)


class Corners(NamedTuple):
    """Where the image is: metres of its upper left and lower right corner."""

    left: float
    top: float
    right: float
    bottom: float


class Plan(NamedTuple):
    """An image and its place."""

    contents: bytes
    kind: str
    corners: Corners


def read(path: Path, first: Metres, second: Metres) -> Plan:
    """Return the plan in a file.

    :param first: where its upper left corner is, in metres, and ``second``: its lower right one.
    :raises WebError: it is no image, or its corners are no corners.
    """
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise WebError("no-plan", f"{path}: {error.strerror}") from None
    kind = next((kind for start, kind in _KINDS if contents.startswith(start)), None)
    if kind is None:
        raise WebError("no-plan", f"{path} is no image: PNG, JPEG, GIF and WebP are")
    if len(contents) > _MOST_BYTES:
        raise WebError("no-plan", f"{path} has more than {_MOST_BYTES >> 20} MiB")
    corners = Corners(*first, *second)
    if corners.left >= corners.right or corners.top >= corners.bottom:
        raise WebError(
            "no-plan", "--corners takes the upper left (north-west) corner first, then the other"
        )
    return Plan(contents, kind, corners)


def corner(words: str) -> Metres:
    """Return two numbers, ``A,B``.

    :raises WebError: they are none.
    """
    try:
        one, other = (float(word) for word in words.split(","))
    except ValueError:
        raise WebError("no-plan", f"{words!r} is no corner: it is two numbers, A,B") from None
    return one, other

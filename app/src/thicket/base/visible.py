# SPDX-License-Identifier: Apache-2.0
"""Text of others, made harmless for a terminal.

What a node, a file, a card or a remote error says may hold control characters, which move the
cursor, rename the window or type for the person who reads (C0 and C1, ECMA-48), and characters that
change the direction of the text around them (Unicode TR9). They are shown as JSON escapes, so that
a JSON document means the same afterwards.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, TextIO

#: What lays out text and does nothing else.
LAYOUT: Final = "\n\t"


def visible(text: str, keep: str = LAYOUT) -> str:
    """Return the text with all characters escaped that are neither printable nor in *keep*."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escape(c) for c in text)


def visible_values(value: Any) -> Any:
    """Return a JSON value with all its texts visible, keys included."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, list):
        return [visible_values(one) for one in value]
    if isinstance(value, dict):
        return {visible(key): visible_values(one) for key, one in value.items()}
    return value


def _escape(character: str) -> str:
    # As in JSON (RFC 8259, 7): beyond the 16-bit plane two surrogates.
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))


class VisibleStream:
    """A text stream to which nothing is written but what is visible."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(visible(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def visible_output() -> Iterator[None]:
    """Let everything that is printed within be visible, on both streams."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(VisibleStream, before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before

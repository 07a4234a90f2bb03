# SPDX-License-Identifier: Apache-2.0
"""Text from outside, made harmless for a terminal.

Text from a node, a file, a card or a remote error may hold control characters, which move the
cursor, rename the window or type for the person who reads (C0 and C1, ECMA-48), and characters that
change the direction of the text around them (Unicode TR9). They are shown as JSON escapes, so that
a JSON document keeps its meaning.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

#: Control characters that only lay out text.
LAYOUT = "\n\t"


def visible(text: str, keep: str = LAYOUT) -> str:
    """Return the text with every character escaped that is neither printable nor in ``keep``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escape(c) for c in text)


def _escape(character: str) -> str:
    # As in JSON (RFC 8259, 7): two surrogates for a character beyond 16 bits.
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))


class VisibleStream:
    """A text stream that makes everything visible before writing it.

    :ivar terminal: where it is written.
    """

    def __init__(self, stream: TextIO) -> None:
        self.terminal = stream

    def write(self, text: str) -> int:
        text = visible(text)
        try:
            return self.terminal.write(text)
        except UnicodeEncodeError:  # the terminal is of another kind than UTF-8
            return self.terminal.write("".join(c if c.isascii() else _escape(c) for c in text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.terminal, name)


def redraw(stream: TextIO, text: str = "") -> None:
    """Draw a line of a terminal anew; without text, clear it.

    The two codes for that are written as they are, and the text is made visible.
    """
    terminal = stream.terminal if isinstance(stream, VisibleStream) else stream
    terminal.write(f"\r\x1b[K{visible(text, '')}")
    terminal.flush()


@contextmanager
def visible_output() -> Iterator[None]:
    """Make everything visible that is printed meanwhile, on both streams."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(VisibleStream, before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before

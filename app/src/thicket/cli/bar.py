# SPDX-License-Identifier: Apache-2.0
"""How an installation goes, of a bundle or of an application, for a person who waits for it."""

from __future__ import annotations

import shutil
import sys
from typing import Any

from thicket.base.headway import measure_text
from thicket.base.visible import redraw, visible

_BAR = 20
"""Characters of a bar."""
_UNDER_WAY = ("checking", "writing")


class Bar:
    """Draws its line anew on a terminal; elsewhere each line that is another than before."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._shown = ""

    def show(self, headway: dict[str, Any]) -> None:
        """Show how it goes.

        :param headway: see :class:`thicket.base.headway.Headway`.
        """
        line = text(headway)
        if line == self._shown or headway["state"] not in _UNDER_WAY:
            return
        self._shown = line
        if self._live:
            redraw(sys.stdout, visible(line, "")[: shutil.get_terminal_size().columns - 1])
        else:
            print(line, flush=True)

    def clear(self) -> None:
        """It has ended: make place for the end."""
        if self._live and self._shown:
            redraw(sys.stdout)


def text(headway: dict[str, Any]) -> str:
    """Return how an installation goes, or went, in one line."""
    percent, words = headway["percent"], headway["words"] or headway["state"]
    if headway["state"] == "checking":
        words = f"checking {words}"
        if not percent:
            return words
    if headway["state"] in _UNDER_WAY:
        words += measure_text(*(headway[key] for key in ("done", "size", "rate", "left")))
    done = percent * _BAR // 100
    return f"[{'#' * done}{'.' * (_BAR - done)}] {percent:3} %  {words}"

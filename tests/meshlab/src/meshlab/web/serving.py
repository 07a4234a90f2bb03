# SPDX-License-Identifier: Apache-2.0
"""Serves the page of a lab, beside its supervisor or within it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from meshlab.lab.paths import lab_directory
from meshlab.web.source import LabSource
from web.plan import Plan, corner, read
from web.serve import serve


def chosen_plan(image: Path | None, corners: list[str] | None) -> Plan | None:
    """Return the plan that a command line names.

    :param corners: its upper left and lower right corner, in the lab's metres.
    :raises WebError: it is none.
    """
    if image is None or corners is None:
        return None
    first, second = (corner(one) for one in corners)
    return read(image, first, second)


async def serve_lab(
    lab: str, *, port: int = 0, plan: Plan | None = None, tell: Callable[[str], None]
) -> None:
    """Serve the page of a lab that runs, until cancelled.

    :param lab: its name.
    :param tell: gets the page's address.
    :raises WebError: it cannot be served.
    """
    source = LabSource(lab, lab_directory(lab) / "control.sock")
    await serve(source, port=port, plan=plan, tell=tell)

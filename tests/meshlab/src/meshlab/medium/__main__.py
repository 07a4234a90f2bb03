# SPDX-License-Identifier: Apache-2.0
"""``python -m meshlab.medium --lab DIR``: the medium of the lab in DIR, in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from meshlab.medium.server import serve


def main() -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m meshlab.medium",
        description="The simulated air of a lab: reads DIR/medium.json, connects to the relays of "
        "the nodes, answers on DIR/medium.sock, and ends with SIGTERM or with the process that "
        "started it.",
    )
    parser.add_argument(
        "--lab", type=Path, required=True, metavar="DIR", help="the lab's directory"
    )
    parser.add_argument("--verbose", action="store_true", help="say more on standard error")
    arguments = parser.parse_args()
    logging.basicConfig(
        level=logging.DEBUG if arguments.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        stream=sys.stderr,
    )
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(serve(arguments.lab.absolute(), os.getppid()))
    except KeyboardInterrupt:
        return 130


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the event loop: uvloop's where it is installed, else asyncio's (None).

    Most of the medium's work is small reads and writes; uvloop does them for two thirds of the CPU.
    The tests run the medium on asyncio's.
    """
    if os.environ.get("MESHLAB_LOOP") == "asyncio":
        return None
    try:
        made: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module(
            "uvloop"
        ).new_event_loop
    except ImportError:
        return None
    return made


if __name__ == "__main__":
    sys.exit(main())

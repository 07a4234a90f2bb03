# SPDX-License-Identifier: Apache-2.0
"""``thicket update send``: brings an offer to a node of the fleet, over ssh."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final, cast

from authority.authority import Authority
from authority.errors import AuthorityError
from authority.offers import OFFER
from authority.words import Parser, a_path, a_word
from thicket.cli.common import OK
from thicket.update import stream

REMOTE: Final = "thicket update offer -"
_INTERVAL = 0.5


def send(_authority: Authority, rest: list[str]) -> int:
    """``send FOLDER HOST``."""
    parser = Parser("send needs the FOLDER that offer has made, and the HOST of a node")
    parser.add_argument("folder", type=a_path)
    parser.add_argument("host", type=_host)
    args = parser.parse_args(rest)
    files = listed(args.folder)
    host = args.host if "@" in args.host else f"root@{args.host}"
    size = sum(path.stat().st_size for path in files)
    tell = Bar(size)
    with subprocess.Popen(["ssh", "-T", host, REMOTE], stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        # Where the pipe breaks, ssh and the node have said why.
        with suppress(BrokenPipeError), child.stdin as pipe:
            stream.send([str(path) for path in files], cast("BinaryIO", pipe), tell)
            tell.end()
    status = child.returncode
    if status:
        raise AuthorityError(f"{host} has not taken the offer (status {status}), see above")
    return OK


def listed(folder: Path) -> list[Path]:
    """Return the offer in a folder, and its patches.

    :raises AuthorityError: there is none.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    offer = folder / OFFER
    if offer not in files:
        raise AuthorityError(f"{folder} has no offer: `thicket update offer` makes one")
    files.remove(offer)
    if len(files) >= stream.MAX_FILES:
        raise AuthorityError(f"{folder} has other files than an offer: make the offer anew")
    return [offer, *files]


class Bar:
    """Tells how far it is: on a terminal in one line, elsewhere not at all."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._live = sys.stderr.isatty()
        self._said = 0.0

    def __call__(self, done: int) -> None:
        """So many bytes were sent."""
        now = time.monotonic()
        if self._live and (now - self._said > _INTERVAL or done == self._size):
            self._said = now
            full = 20 * done // self._size
            bar = "#" * full + "." * (20 - full)
            sys.stderr.write(f"\r\x1b[K[{bar}] {done / 2**20:.1f} of {self._size / 2**20:.1f} MiB")
            sys.stderr.flush()

    def end(self) -> None:
        """Make room for what comes next."""
        if self._live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _host(text: str) -> str:
    word = a_word(text)
    if word.startswith("-"):
        raise argparse.ArgumentTypeError(f"{word} is no host")
    return word

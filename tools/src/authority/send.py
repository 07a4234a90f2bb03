# SPDX-License-Identifier: Apache-2.0
"""``thicket update send``: brings an offer to a node of the fleet, over ssh."""

from __future__ import annotations

import argparse
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final, cast

from authority import files, ssh
from authority.authority import Authority
from authority.errors import AuthorityError
from authority.offers import OFFER, filename, packed_in
from authority.telling import Bar, Telling
from authority.words import Parser, a_path, a_word
from thicket.cli.common import OK
from thicket.update import stream
from thicket.update.offer import describe, read_offer

REMOTE: Final = "thicket update offer -"
_ANEW: Final = "make the offer anew (`thicket update offer`)"


def send(_authority: Authority, rest: list[str]) -> int:
    """``send FOLDER HOST``."""
    parser = Parser("send needs the FOLDER that offer has made, and the HOST of a node")
    parser.add_argument("folder", type=a_path)
    parser.add_argument("host", type=_host)
    args = parser.parse_args(rest)
    listing = listed(args.folder)
    host = args.host if "@" in args.host else f"root@{args.host}"
    size = sum(path.stat().st_size for path in listing)
    program = ssh.program()
    with subprocess.Popen([program, "-T", host, REMOTE], stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        # Where the pipe breaks, ssh and the node have said why.
        with suppress(BrokenPipeError), child.stdin as pipe, Telling() as tell:
            bar = Bar(size, tell)
            stream.send([str(path) for path in listing], cast("BinaryIO", pipe), bar)
    status = child.returncode
    if status:
        raise AuthorityError(f"{host} has not taken the offer (status {status}), see above")
    return OK


def listed(folder: Path) -> list[Path]:
    """Return the offer in a folder, and the patches that it names; nothing else is sent.

    :raises AuthorityError: there is none, or it is not complete.
    """
    if not folder.is_dir():
        what = "is no folder of an offer" if folder.exists() else "is not there"
        raise AuthorityError(f"{folder} {what}: `thicket update offer` makes a folder with one")
    packed = packed_in(folder)
    with files.named(folder / OFFER):
        offer, _ = read_offer(packed)
    found = [folder / OFFER]
    for patch in offer.patches:
        path = folder / filename(patch)
        if not path.is_file():
            raise AuthorityError(f"{folder} lacks {path.name}, which its offer names: {_ANEW}")
        with files.opened(path) as file:
            if describe(file, patch.base)[0] != patch:
                raise AuthorityError(f"{path} is not what its offer names: {_ANEW}")
        found.append(path)
    return found


def _host(text: str) -> str:
    word = a_word(text)
    if word.startswith("-"):
        raise argparse.ArgumentTypeError(f"{word} is no host")
    return word

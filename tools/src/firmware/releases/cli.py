# SPDX-License-Identifier: Apache-2.0
"""``make release``: makes the folder that is published."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from authority.deltas import make as make_delta
from authority.errors import AuthorityError
from authority.token import TokenError
from authority.words import authority_in, chosen_folder
from firmware import boards
from firmware.blockdev import human
from firmware.boards import ROOT
from firmware.build import changed
from firmware.releases import built, deltas, signature
from firmware.releases.errors import ReleaseError
from firmware.releases.make import Order, Parts, Signing, make
from firmware.report import Report
from host import stop
from host.errors import HostError

BOARDS = "rpi64 x86_64"

_LATEST = 253_402_300_799  # the last second of the year 9999

Provider = Callable[[], Parts]
"""Builds a board that Buildroot does not build, and returns what a release takes of it."""


def main(words: Sequence[str], others: Mapping[str, Provider]) -> int:
    """Run the program; the exit status is 0, 1 (refused or failed), 2 (usage), or 128 and
    the number of the signal that stopped it: 130 for Ctrl-C.

    :param others: boards that Buildroot does not build, by name.
    """
    options = _parser([*boards.names(), *others]).parse_args(words)
    console = Console(highlight=False, markup=False, soft_wrap=True, stderr=True)
    with stop.stopping():
        return _run(options, others, console)


def _run(options: argparse.Namespace, others: Mapping[str, Provider], console: Console) -> int:
    try:
        _release(options, others, console)
    except stop.Stopped as stopped:
        console.print(f"thicket: {stopped}; there is no half release")
        return stopped.status
    except (AuthorityError, HostError, ReleaseError, TokenError) as error:
        console.print(f"thicket: {error}", style="bold red")
        return 1
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        console.print(f"thicket: {error.strerror or error}{where}", style="bold red")
        return 1
    return 0


def _parser(known: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make release", description=__doc__)
    add = parser.add_argument
    add("--boards", default=BOARDS, help=f"blanks between ({BOARDS}): {', '.join(sorted(known))}")
    add("--out", type=Path, metavar="DIR", help="the folder (output/thicket-VERSION)")
    add("--from", dest="older", default="", metavar="NAMES", help="releases, or older bundles")
    add("--signer", metavar="NAME", help="signs the bundles and the release; else nobody does")
    add("--force", action="store_true", help="make a release anew that is there already")
    add("--toolchain", default=boards.TOOLCHAIN, help="as for `make rpi64`")
    add("--extra", default="", help="likewise")
    return parser


def _release(options: argparse.Namespace, others: Mapping[str, Provider], console: Console) -> None:
    names = list(dict.fromkeys((options.boards or BOARDS).split()))
    for name in names:
        if name not in others and name not in boards.names():
            known = ", ".join(sorted([*boards.names(), *others]))
            raise ReleaseError(f"BOARDS: there is no board {name!r}; there are {known}")
    # What can be wrong, and a passphrase, before anything takes long.
    older = tuple(deltas.older(options.older.split()))
    date = os.environ.get("SOURCE_DATE_EPOCH") or str(changed(ROOT))
    if not (date.isdecimal() and len(date) < 13 and int(date) <= _LATEST):
        raise ReleaseError(
            f"SOURCE_DATE_EPOCH={date[:40]!r}: not a number of seconds since 1970, before 10000"
        )
    signing = _signing(options.signer)
    extra = [Path(name).absolute() for name in options.extra.split()]
    started = time.monotonic()
    parts = [
        others[name]() if name in others else built.parts(name, options.toolchain, extra)
        for name in names
    ]
    out = (options.out or ROOT / "output" / f"thicket-{parts[0].version}").absolute()
    order = Order(out, int(date), signing, older, make_delta, options.force)
    said = make(order, parts, Report(console), console.print)
    for file in said.files:
        console.print(f"  {human(file.size):>10}  {file.name}")
    by = f"signed by {signing.signer.name!r}" if signing else "not signed (SIGNER=NAME signs it)"
    console.print(
        f"Thicket {said.version} of {said.date[:10]}, {by}, made in "
        f"{time.monotonic() - started:.0f} s. Put this folder on any web server:"
    )
    print(out)
    if signing is not None:
        console.print(
            f"Publish the fleet's root certificate by another way (`thicket ca root`): who has it "
            f"can check {signature.FILE}"
        )


def _signing(name: str | None) -> Signing | None:
    if not name:
        return None
    own = authority_in(chosen_folder())
    return Signing(own.fleet, own.update_signers.open(name))

# SPDX-License-Identifier: Apache-2.0
"""``thicket update delta``, ``offer`` and ``order``: what an update needs to travel."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import file_digest
from pathlib import Path
from typing import Final, NamedTuple

from authority import deltas
from authority.authority import Authority
from authority.deltas import Made
from authority.errors import AuthorityError
from authority.update_signers import UpdateSigner
from authority.words import Parser, a_path, a_word
from thicket.applications import app_file
from thicket.cli.common import OK
from thicket.trust import cms
from thicket.trust.fleet import Fleet
from thicket.update import bundle as bundles
from thicket.update import offer as offers
from thicket.update import patch as patches
from thicket.update.offer import Offer, Order, Patch, Plan, Target
from thicket.update.patch import Header

OFFER: Final = "offer"
"""Name of the signed offer in its folder."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
_INTERVAL = 15.0


def filename(patch: Patch) -> str:
    """Return the name of a patch in the folder of an offer, which the offer itself tells."""
    return patch.sha256 + deltas.ENDING


# -- commands


def delta(_authority: Authority, rest: list[str]) -> int:
    """``delta OLD NEW``."""
    parser = Parser("delta needs the OLD and the NEW bundle")
    parser.add_argument("old", type=a_path)
    parser.add_argument("new", type=a_path)
    parser.add_argument("--out", type=a_path)
    args = parser.parse_args(rest)
    if target_of(args.old).sha256 == target_of(args.new).sha256:
        raise AuthorityError(f"{args.old} and {args.new} are the same bundle: no patch is needed")
    begun = time.monotonic()
    with Telling() as tell:
        made = deltas.make(args.new, args.out or args.new.parent, args.old, tell=tell)
    took = time.monotonic() - begun
    print(f"{made.path}: {made.size:,} bytes in place of {made.header.size:,} ({took:.0f} s)")
    return OK


def offer(authority: Authority, rest: list[str]) -> int:
    """``offer NEW``."""
    parser = Parser("offer needs the NEW bundle, or the file of an application")
    parser.add_argument("new", type=a_path)
    parser.add_argument("--delta", type=a_path, action="append", default=[])
    parser.add_argument("--canaries", type=_canaries, default=1)
    parser.add_argument("--waves", type=_waves, default=(10, 50, 100))
    parser.add_argument("--well", type=_seconds, default=600)
    parser.add_argument("--window", type=_window)
    parser.add_argument("--failures", type=int, default=0)
    parser.add_argument("--signer", type=a_word)
    parser.add_argument("--out", type=a_path)
    args = parser.parse_args(rest)
    plan = Plan(args.canaries, args.well, args.waves, args.failures, args.window)
    target = judge(args.new, authority)
    name = f"{target.application}-{target.version}" if target.application else target.version
    out = args.out or args.new.with_name(f"offer-{name}")
    signer = authority.update_signers.open(args.signer)
    by = (authority.fleet, signer)
    with Telling() as tell:
        when = datetime.now(UTC)
        lines = make(args.new, args.delta, out, plan, target=target, by=by, when=when, tell=tell)
    print(f"{'patch for':<28} {'bytes':>12} {'of the file':>14}")
    for line in lines:
        print(f"{line.what:<28} {line.size:>12,} {100 * line.size / line.of:>12.2f} %")
    print(f"Signed by {signer.name!r}: {out}/{OFFER}")
    return OK


def order(authority: Authority, rest: list[str]) -> int:
    """``order pause|resume|abort|back [OFFER]``."""
    parser = Parser(f"order needs one of {', '.join(offers.ORDERS)}")
    parser.add_argument("order", choices=offers.ORDERS)
    parser.add_argument("offer", type=a_path, nargs="?")
    parser.add_argument("--signer", type=a_word)
    parser.add_argument("--out", type=a_path)
    args = parser.parse_args(rest)
    identifier = b""
    if args.offer is not None:
        path = args.offer / OFFER if args.offer.is_dir() else args.offer
        with path.open("rb") as file:
            packed = file.read(cms.MAX_SIZE + 1)
        identifier = offers.check_offer(packed, authority.fleet).identifier
    signer = authority.update_signers.open(args.signer)
    when = datetime.now(UTC)
    made = Order(authority.fleet.identifier, int(when.timestamp()), identifier, args.order)
    out = args.out or Path(f"{args.order}.order")
    out.write_bytes(_signed(made.text(), signer, when))
    whose = f"offer {identifier.hex()[:12]}" if identifier else "whichever offer is in force"
    print(f"{args.order} for {whose}, signed by {signer.name!r}: {out}")
    return OK


# -- making


class Line(NamedTuple):
    """A line of the table of an offer.

    :ivar what: who the patch is for.
    :ivar size: its bytes.
    :ivar of: bytes of the bundle.
    """

    what: str
    size: int
    of: int


def judge(new: Path, authority: Authority) -> Target:
    """Return what an offer says of a signed bundle, or of the signed file of an application.

    :raises ThicketError: it is neither, or its signature does not count in the fleet.
    """
    revoked = authority.revocations.names
    with new.open("rb") as file:
        if new.suffix == app_file.ENDING:
            app = app_file.read(file)
            app_file.check_signer(app, authority.fleet, revoked=revoked)
            app_file.check_contents(file, app.about)
        else:
            bundles.check_signer(bundles.read(file), authority.fleet, revoked=revoked)
    return target_of(new)


def target_of(new: Path) -> Target:
    """Return what an offer says of such a file, which is not verified.

    :raises ThicketError: it is neither.
    """
    with new.open("rb") as file:
        digest, size = file_digest(file, "sha256").hexdigest(), file.tell()
        if new.suffix == app_file.ENDING:
            about = app_file.read(file).about
            return Target("", about.version, 0, size, digest, about.name)
        said = bundles.read(file).manifest
    return Target(said.compatible, said.version, said.epoch, size, digest)


def make(
    new: Path,
    given: list[Path],
    out: Path,
    plan: Plan,
    *,
    target: Target,
    by: tuple[Fleet, UpdateSigner],
    when: datetime,
    tell: Callable[[str], object] = lambda _: None,
) -> list[Line]:
    """Make the folder of an offer: the patches and, last of all, the signed offer.

    :param given: patches that were made for the bundle; the whole one is made if it is not there.
    :param target: what the offer says of it, see :func:`target_of`.
    :param by: the fleet and the signer.
    :raises AuthorityError: a patch is for another bundle, or two are for the same base.
    :raises OfferError: what was asked for is out of bounds.
    """
    fleet, signer = by
    ready = [_read(path) for path in given]
    for one in ready:
        if (one.header.size, one.header.sha256) != (target.size, target.sha256):
            raise AuthorityError(f"{one.path} makes another bundle than {new}: make it anew")
    number = int(when.timestamp())
    some = Patch("", target.size, target.sha256, target.sha256)
    # What was asked for is judged before a minute goes by.
    offers.parse_offer(Offer(fleet.identifier, number, target, (some,), plan).text())
    out.mkdir(parents=True, exist_ok=True)
    if all(one.header.base for one in ready):
        whole = deltas.pack if target.application else deltas.make
        ready.append(whole(new, out / "whole.new", tell=tell))
    described = [(one, _describe(one)) for one in ready]
    offered = Offer(
        fleet.identifier,
        number,
        target,
        tuple(sorted((patch for _, patch in described), key=lambda patch: patch.size)),
        plan,
    )
    content = offers.parse_offer(offered.text()).text()  # within bounds, or nobody would take it
    for one, patch in described:
        _put(one.path, out / filename(patch), move=one.path.parent == out)
    new_file = out / f"{OFFER}.new"
    new_file.write_bytes(_signed(content, signer, when))
    offers.check_offer(new_file.read_bytes(), fleet)
    new_file.replace(out / OFFER)
    return [Line("the signed file itself", target.size, target.size)] + [
        Line(f"root {p.base[:16]}…" if p.base else "any (the whole)", p.size, target.size)
        for p in reversed(offered.patches)
    ]


def _read(path: Path) -> Made:
    with path.open("rb") as file:
        header: Header = patches.read(file)
    return Made(path, path.stat().st_size, header)


def _describe(made: Made) -> Patch:
    with made.path.open("rb") as file:
        return offers.describe(file, made.header.base_hash)[0]


def _put(source: Path, target: Path, *, move: bool) -> None:
    if move:
        source.replace(target)
    else:
        shutil.copyfile(source, target)


def _signed(content: bytes, signer: UpdateSigner, when: datetime) -> bytes:
    return cms.sign(content, signer.certificate, when, signer.key.sign)


# -- words


class Telling:
    """Tells what is being done: on a terminal in one line, elsewhere now and then."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._said = time.monotonic()

    def __enter__(self) -> Telling:
        return self

    def __exit__(self, *_: object) -> None:
        """Make room for what comes next."""
        if self._live:
            sys.stderr.write("\r\x1b[K")

    def __call__(self, text: str) -> None:
        """Say ``text``, unless something was said a moment ago."""
        now = time.monotonic()
        if self._live:
            sys.stderr.write(f"\r\x1b[K{text[:78]}")
            sys.stderr.flush()
        elif now - self._said >= _INTERVAL:
            self._said = now
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()


def _canaries(text: str) -> int | tuple[str, ...]:
    return int(text) if text.isdecimal() else tuple(text.split(","))


def _waves(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _seconds(text: str) -> int:
    number, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS else (text, "s")
    return int(number) * _UNITS[unit]


def _window(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    try:
        return offers.minute(first), offers.minute(last)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, as in 23:00-04:30 (UTC)") from None

# SPDX-License-Identifier: Apache-2.0
"""``thicket update delta``, ``offer`` and ``order``: what an update needs to travel."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from hashlib import sha256
from ipaddress import IPv6Address
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from authority import deltas, files, plans
from authority.authority import Authority
from authority.deltas import Made
from authority.errors import AuthorityError
from authority.holders import Holder
from authority.telling import Telling
from authority.words import Parser, a_path, a_word
from host.stop import held
from thicket.applications import app_file, app_tree
from thicket.cli.common import OK
from thicket.trust import cms, kinds
from thicket.trust.fleet import Fleet
from thicket.update import bundle as bundles
from thicket.update import offer as offers
from thicket.update import patch as patches
from thicket.update.offer import MAX_PATCHES, Offer, Order, Patch, Plan, Target
from thicket.update.patch import Header, PatchError

OFFER: Final = "offer"
"""Name of the signed offer in its folder."""

_WHOLE: Final = "whole"
_PIECE: Final = 1 << 20
_NEW: Final = ".new"
_OURS: Final = re.compile(r"[0-9a-f]{64}\.(patch|list)")
"""Patches of offers, and their chunk lists for a web server."""


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
    parser.add_argument("--force", action="store_true")
    args = parser.parse_args(rest)
    if target_of(args.old).sha256 == target_of(args.new).sha256:
        raise AuthorityError(f"{args.old} and {args.new} are the same bundle: no patch is needed")
    out = deltas.place(args.new, args.out or args.new.parent, args.old)
    files.check_place(out)  # before a minute goes by
    if out.exists() and not args.force and not _is_patch_of(out, args.new):
        raise files.is_there(out, f"and no patch that makes {args.new}")
    begun = time.monotonic()
    with Telling() as tell:
        made = deltas.make(args.new, out, args.old, tell=tell)
    took = time.monotonic() - begun
    print(f"{made.path}: {made.size:,} bytes in place of {made.header.size:,} ({took:.0f} s)")
    print(f"`thicket update offer {args.new} --delta {made.path}` puts it into an offer")
    return OK


def offer(authority: Authority, rest: list[str]) -> int:
    """``offer NEW``."""
    parser = Parser("offer needs the NEW bundle, or the file of an application")
    parser.add_argument("new", type=a_path)
    parser.add_argument("--delta", type=a_path, action="append", default=[])
    parser.add_argument("--canaries", type=plans.canaries, default=1)
    parser.add_argument("--waves", type=plans.waves, default=(10, 50, 100))
    parser.add_argument("--well", type=plans.seconds, default=600)
    parser.add_argument("--window", type=plans.window)
    parser.add_argument("--failures", type=plans.failures, default=0)
    parser.add_argument("--signer", type=a_word)
    parser.add_argument("--out", type=a_path)
    args = parser.parse_args(rest)
    plan = Plan(args.canaries, args.well, args.waves, args.failures, args.window)
    target = judge(args.new, authority)
    name = f"{target.application}-{target.version}" if target.application else target.version
    out = args.out or args.new.with_name(f"offer-{name}")
    _check_folder(out, args.delta)
    for words in _doubts(plan, authority):
        sys.stderr.write(f"thicket update: {words}\n")
    signer = authority.update_signers.open(args.signer)
    by = (authority.fleet, signer)
    with Telling() as tell:
        when = datetime.now(UTC)
        lines = make(args.new, args.delta, out, plan, target=target, by=by, when=when, tell=tell)
    print(f"{'patch for':<28} {'bytes':>12} {'of the file':>14}")
    for line in lines:
        print(f"{line.what:<28} {line.size:>12,} {100 * line.size / line.of:>12.2f} %")
    print(f"Signed by {signer.name!r}: {out}/{OFFER}")
    print(f"`thicket update send {out} NODE` brings it to a node, which offers it to the fleet")
    return OK


def order(authority: Authority, rest: list[str]) -> int:
    """``order pause|resume|abort|back [OFFER]``."""
    parser = Parser(f"order needs one of {', '.join(offers.ORDERS)}")
    parser.add_argument("order", choices=offers.ORDERS)
    parser.add_argument("offer", type=a_path, nargs="?")
    parser.add_argument("--signer", type=a_word)
    parser.add_argument("--out", type=a_path)
    parser.add_argument("--force", action="store_true")
    args = parser.parse_args(rest)
    identifier = b""
    if args.offer is not None:
        packed = packed_in(args.offer)
        with files.named(args.offer):
            identifier = offers.check_offer(packed, authority.fleet).identifier
    out = args.out or Path(f"{args.order}.order")
    files.check_place(out)
    if out.exists() and not args.force:
        raise files.is_there(out, "and may be an order that is still to be given")
    signer = authority.update_signers.open(args.signer)
    when = datetime.now(UTC)
    made = Order(authority.fleet.identifier, int(when.timestamp()), identifier, args.order)
    packed = _signed(made.text(), signer, when)
    offers.check_order(packed, authority.fleet)  # or nobody would follow it
    with files.replacing(out) as file:
        file.write(packed)
    whose = f"offer {identifier.hex()[:12]}" if identifier else "whichever offer is in force"
    print(f"{args.order} for {whose}, signed by {signer.name!r}: {out}")
    print(f"`ssh root@NODE thicket update order - < {out}` gives it, at any node of the fleet")
    return OK


def _doubts(plan: Plan, authority: Authority) -> list[str]:
    """Return what is doubtful about the canaries that are named: a fleet waits for them."""
    if isinstance(plan.canaries, int):
        return []
    known = {
        f"n-{IPv6Address(device['address']).packed[-6:].hex()}": device
        for device in authority.list()["devices"].values()
    }
    doubts = []
    for name in plan.canaries:
        if name not in known:
            doubts.append(
                f"{name} is no device that this folder knows (`thicket ca list`): if it is in no "
                "mesh of the fleet, all others wait for it"
            )
        elif known[name].get("revoked"):
            doubts.append(f"{name} is revoked, so that all others would wait for it")
    return doubts


def packed_in(place: Path) -> bytes:
    """Return the signed offer in a folder, or in a file; nothing is verified.

    :raises AuthorityError: there is none.
    """
    path = place / OFFER if place.is_dir() else place
    if not path.is_file():
        what = "has no offer" if place.is_dir() else "is not there"
        raise AuthorityError(f"{place} {what}: `thicket update offer` makes a folder with one")
    with files.opened(path) as file:
        if file.seek(0, os.SEEK_END) > cms.MAX_SIZE:
            raise AuthorityError(
                f"{path}: this is {kinds.kind(file)}, and the folder of an offer is needed"
            )
        file.seek(0)
        return file.read()


def _check_folder(out: Path, given: list[Path]) -> None:
    """Make sure that a folder may become that of an offer: it has nothing else in it.

    :param given: patches, which may lie there.
    :raises AuthorityError: it has, or it is none.
    """
    if not out.exists():
        return
    files.check_folder(out)
    other = [path.name for path in sorted(out.iterdir()) if not _is_ours(path)]
    moved = {path.name for path in given if _same_folder(path.parent, out)}
    if foreign := [name for name in other if name not in moved]:
        raise AuthorityError(
            f"{out} has other files than those of an offer ({foreign[0]}): choose another folder "
            "(--out), as this one is to hold the offer alone"
        )


def _is_ours(path: Path) -> bool:
    name = path.name.removesuffix(_NEW).lstrip(".").removesuffix(_NEW)
    return path.is_file() and (name in (OFFER, _WHOLE) or _OURS.fullmatch(name) is not None)


def _is_patch_of(path: Path, new: Path) -> bool:
    """Return whether a file is a patch that makes a bundle: as the new one does, it may go."""
    target = target_of(new)
    with files.opened(path) as file:
        try:
            header = patches.read(file)
        except PatchError:
            return False
    return (header.size, header.sha256) == (target.size, target.sha256)


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
    with files.reading(new) as file:
        if _is_app(file, new):
            app = app_file.read(file)
            app_file.check_signer(app, authority.fleet, revoked=revoked)
            app_file.check_contents(file, app.about)
            app_tree.check_form(file, app.about.size)
        else:
            bundles.check_signer(bundles.read(file), authority.fleet, revoked=revoked)
    return target_of(new)


def target_of(new: Path) -> Target:
    """Return what an offer says of such a file, which is not verified.

    :raises ThicketError: it is neither.
    """
    with files.reading(new) as file:
        if _is_app(file, new):
            about = app_file.read(file).about
            target = Target("", about.version, 0, 0, "", about.name)
        else:
            said = bundles.read(file).manifest
            target = Target(said.compatible, said.version, said.epoch, 0, "")
        file.seek(0)
        whole = sha256()
        while data := file.read(_PIECE):
            whole.update(data)
        return target._replace(size=file.tell(), sha256=whole.hexdigest())


def _is_app(file: BinaryIO, path: Path) -> bool:
    """Return whether this is the file of an application, whatever it is called."""
    found = kinds.kind(file)
    return found == kinds.AN_APPLICATION or (
        found == kinds.CUT_OFF and path.suffix == app_file.ENDING
    )


def make(
    new: Path,
    given: list[Path],
    out: Path,
    plan: Plan,
    *,
    target: Target,
    by: tuple[Fleet, Holder],
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
    _check_folder(out, given)
    ready = [_read(path) for path in given]
    for one in ready:
        if (one.header.size, one.header.sha256) != (target.size, target.sha256):
            raise AuthorityError(f"{one.path} makes another bundle than {new}: make it anew")
    bases: dict[str, Path] = {}
    for one in ready:
        other = bases.setdefault(one.header.base_hash, one.path)
        if other is not one.path:
            raise AuthorityError(
                f"{other} and {one.path} are for the same version: give one of them"
            )
    if len(ready) >= MAX_PATCHES:
        raise AuthorityError(f"an offer takes at most {MAX_PATCHES - 1} --delta, not {len(ready)}")
    number = int(when.timestamp())
    some = Patch("", target.size, target.sha256, target.sha256)
    # What was asked for is judged before a minute goes by.
    offers.parse_offer(Offer(fleet.identifier, number, target, (some,), plan).text())
    with _appearing(out):
        if all(one.header.base for one in ready):
            whole = deltas.pack if target.application else deltas.make
            ready.append(whole(new, out / f"{_WHOLE}{_NEW}", tell=tell))
        described = [(one, _describe(one)) for one in ready]
        offered = Offer(
            fleet.identifier,
            number,
            target,
            tuple(sorted((patch for _, patch in described), key=lambda patch: patch.size)),
            plan,
        )
        # within bounds, or nobody would take it
        content = offers.parse_offer(offered.text()).text()
        for one, patch in described:
            _put(one.path, out / filename(patch), move=_same_folder(one.path.parent, out))
        packed = _signed(content, signer, when)
        offers.check_offer(packed, fleet)
        with files.replacing(out / OFFER) as file:
            file.write(packed)
        _remove_others(out, offered)
    return [Line("the signed file itself", target.size, target.size)] + [
        Line(f"root {p.base[:16]}…" if p.base else "any (the whole)", p.size, target.size)
        for p in reversed(offered.patches)
    ]


@contextmanager
def _appearing(out: Path) -> Iterator[None]:
    """Have a folder while it is filled; a new one, or what is in use meanwhile, goes if that
    fails."""
    new = not out.exists()
    ready = False
    try:
        files.make_folder(out)
        yield
        ready = True
    finally:
        if not ready:
            with held():
                if new:
                    shutil.rmtree(out, ignore_errors=True)
                with suppress(OSError):
                    (out / f"{_WHOLE}{_NEW}").unlink()


def _remove_others(out: Path, offered: Offer) -> None:
    """Remove what is left of an offer that was made in this folder before."""
    names = {patch.sha256 for patch in offered.patches}
    for path in out.iterdir():
        if path.name != OFFER and path.name.partition(".")[0] not in names and _is_ours(path):
            path.unlink()


def _read(path: Path) -> Made:
    with files.reading(path) as file:
        header: Header = patches.read(file)
    return Made(path, path.stat().st_size, header)


def _describe(made: Made) -> Patch:
    with files.opened(made.path) as file:
        return offers.describe(file, made.header.base_hash)[0]


def _same_folder(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _put(source: Path, target: Path, *, move: bool) -> None:
    if move:
        source.replace(target)
        return
    with files.opened(source) as found, files.replacing(target) as file:
        shutil.copyfileobj(found, file)


def _signed(content: bytes, signer: Holder, when: datetime) -> bytes:
    return cms.sign(content, signer.certificate, when, signer.key.sign)

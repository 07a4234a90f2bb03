# SPDX-License-Identifier: Apache-2.0
"""Makes a release: the folder that is published. It appears as a whole or not at all.

The same builds, signed by nobody, make the same bytes, whenever and wherever.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from hashlib import file_digest, sha256
from pathlib import Path
from typing import NamedTuple

from authority.holders import Holder
from authority.update import ENDING as SIGNED
from authority.update import sign as sign_bundle
from firmware import bmap
from firmware.bundle import ENDING as UNSIGNED
from firmware.ranges import length
from firmware.releases import deltas, index, licences, pack, page, signature, sums
from firmware.releases.deltas import Older
from firmware.releases.errors import ReleaseError
from firmware.releases.find import Phases
from firmware.releases.index import File, Index
from firmware.releases.licences import Licence
from thicket.base.errors import ThicketError
from thicket.trust.fleet import Fleet

_PATIENCE = 600.0


class Parts(NamedTuple):
    """What a release takes of one board.

    :ivar commit: what was built.
    :ivar card: its card image.
    :ivar bundle: its unsigned update.
    :ivar sbom: makes its bill of materials (CycloneDX), given the date of the release.
    :ivar licences: those of what is in it.
    """

    board: str
    version: str
    epoch: int
    commit: str
    card: Path
    bundle: Path
    sbom: Callable[[str], bytes]
    licences: tuple[Licence, ...]


class Signing(NamedTuple):
    """Who signs, and for whom."""

    fleet: Fleet
    signer: Holder


class Order(NamedTuple):
    """What a person wants.

    :ivar out: the folder that is made.
    :ivar date: the release's, in seconds since 1970.
    :ivar older: bundles from which there are to be deltas.
    :ivar delta: makes one; None: nobody can.
    :ivar replace: whether a release that is in ``out`` already is thrown away.
    """

    out: Path
    date: int
    signing: Signing | None = None
    older: tuple[Older, ...] = ()
    delta: deltas.Make | None = None
    replace: bool = False


Tell = Callable[[str], object]


def make(order: Order, boards: Sequence[Parts], phases: Phases, tell: Tell) -> Index:
    """Make a release of what was built for each board; return what it says of itself.

    :param tell: called with sentences for a person.
    :raises ReleaseError: it cannot be made; then there is no half of it.
    """
    first = _agreed(boards)
    date = datetime.fromtimestamp(order.date, UTC)
    with _appearing(order, boards) as folder:
        maker = _Maker(folder, order, phases, tell)
        files = [file for parts in boards for file in maker.board(parts)]
        said = Index(
            first.version,
            first.epoch,
            first.commit,
            f"{date:%Y-%m-%dT%H:%M:%SZ}",
            tuple(sorted(files)),
        )
        maker.finish(said)
    return said


def _agreed(boards: Sequence[Parts]) -> Parts:
    if not boards:
        raise ReleaseError("a release of no board: BOARDS= names them")
    first = boards[0]
    for other in boards[1:]:
        if (other.version, other.epoch, other.commit) != (first.version, first.epoch, first.commit):
            raise ReleaseError(
                f"{first.board} was built as {first.version} (epoch {first.epoch}, commit "
                f"{first.commit}), {other.board} as {other.version} (epoch {other.epoch}, commit "
                f"{other.commit}): build both of the same commit"
            )
    return first


@contextlib.contextmanager
def _appearing(order: Order, boards: Sequence[Parts]) -> Iterator[Path]:
    """Give a folder to fill, which becomes ``order.out`` when the block ends well."""
    out = order.out
    old = _what_is_there(order)
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_name(f".{out.name}.new")
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(out.with_name(f".{out.name}.lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ReleaseError(f"another program makes {out} at this moment: wait for it") from None
        stack.callback(Path(lock.name).unlink, missing_ok=True)
        shutil.rmtree(new, ignore_errors=True)  # of a run that was killed
        _room(out.parent, boards)
        new.mkdir()
        stack.callback(shutil.rmtree, new, ignore_errors=True)
        yield new
        # The rename must not reach the disk before what it names.
        subprocess.run(["sync", "-f", new], check=False, capture_output=True, timeout=_PATIENCE)
        if old:
            aside = out.with_name(f".{out.name}.old")
            shutil.rmtree(aside, ignore_errors=True)
            out.rename(aside)
            stack.callback(shutil.rmtree, aside, ignore_errors=True)
        new.rename(out)


def _what_is_there(order: Order) -> bool:
    out = order.out
    if not out.exists() and not out.is_symlink():
        return False
    if out.is_dir() and not any(out.iterdir()):
        return True
    if not (out / index.FILE).is_file() or not (out / sums.FILE).is_file():
        raise ReleaseError(f"OUT={out} is there, and is no release: name another folder")
    if not order.replace:
        raise ReleaseError(f"the release {out} is there already: FORCE=1 makes it anew")
    return True


def _room(folder: Path, boards: Sequence[Parts]) -> None:
    # A packed image has not more bytes than the file that it is made of takes on the disk.
    need = sum(
        file.stat().st_blocks * 512 for parts in boards for file in (parts.card, parts.bundle)
    )
    free = shutil.disk_usage(folder).free
    if free < need:
        raise ReleaseError(
            f"{folder} has room for {free >> 20} MiB, and the release may take {need >> 20} MiB: "
            "make room, or name another folder with OUT="
        )


class _Maker:
    """Fills the folder of a release."""

    def __init__(self, folder: Path, order: Order, phases: Phases, tell: Tell) -> None:
        self._folder = folder
        self._order = order
        self._phases = phases
        self._tell = tell

    def board(self, parts: Parts) -> Iterator[File]:
        """Put in what there is of one board."""
        stem = f"thicket-{parts.board}-{parts.version}"
        yield self._image(parts, f"{stem}.img")
        yield self._map(parts, f"{stem}.img{bmap.SUFFIX}")
        bundle = self._bundle(parts, stem)
        yield self._file(bundle, index.BUNDLE, parts.board)
        yield from self._deltas(parts, bundle)
        date = datetime.fromtimestamp(self._order.date, UTC)
        yield self._written(
            f"{stem}.cdx.json", parts.sbom(f"{date:%Y-%m-%dT%H:%M:%SZ}"), index.SBOM, parts.board
        )
        text = licences.text(f"Thicket {parts.version} for {parts.board}", parts.licences)
        yield self._written(f"{stem}.licences.txt", text, index.LICENCES, parts.board)

    def finish(self, said: Index) -> None:
        """Put in what all boards have in common, the checksums and the signature last."""
        signing = self._order.signing
        self._write(index.FILE, said.text())
        self._write(page.FILE, page.text(said, signing.signer.name if signing else None))
        checksums = {file.name: file.sha256 for file in said.files}
        for name in (index.FILE, page.FILE):
            checksums[name] = sha256((self._folder / name).read_bytes()).hexdigest()
        listed = sums.text(checksums)
        self._write(sums.FILE, listed)
        if signing is not None:
            signer = signing.signer
            signed = signature.sign(listed, signer.certificate, datetime.now(UTC), signer.key.sign)
            signature.check(signed, listed, signing.fleet)
            self._write(signature.FILE, signed)
        for path in self._folder.iterdir():
            os.utime(path, (self._order.date, self._order.date))

    def _image(self, parts: Parts, name: str) -> File:
        target = self._folder / f"{name}{pack.ENDING}"
        with self._phases.phase(f"{parts.board}: packing", parts.card.stat().st_size):
            unpacked = pack.xz(parts.card, target, self._phases.advance)
        return self._file(target, index.IMAGE, parts.board)._replace(unpacked=unpacked)

    def _map(self, parts: Parts, name: str) -> File:
        target = self._folder / name
        made = bmap.write(parts.card, target)
        self._tell(
            f"{parts.board}: {length(made.mapped) / 2**20:.1f} of {made.image_size / 2**20:.1f} "
            "MiB of the card have to be written"
        )
        return self._file(target, index.MAP, parts.board)

    def _bundle(self, parts: Parts, stem: str) -> Path:
        signing = self._order.signing
        if signing is None:
            target = self._folder / f"{stem}{UNSIGNED}"
            with self._phases.phase(f"{parts.board}: bundle", parts.bundle.stat().st_size):
                shutil.copyfile(parts.bundle, target)
                self._phases.advance(target.stat().st_size)
            return target
        target = self._folder / f"{stem}{SIGNED}"
        with self._phases.phase(f"{parts.board}: signing", parts.bundle.stat().st_size):
            try:
                sign_bundle(parts.bundle, target, signing.fleet, signing.signer, datetime.now(UTC))
            except ThicketError as error:
                raise ReleaseError(f"{parts.bundle} is not signed: {error}") from None
            self._phases.advance(target.stat().st_size)
        return target

    def _deltas(self, parts: Parts, bundle: Path) -> Iterator[File]:
        """Make the deltas, and one without a base: the whole bundle, packed, for any version."""
        order = self._order
        compatible = f"thicket-{parts.board}"
        usable = {one.version: one for one in reversed(order.older) if one.compatible == compatible}
        if not usable:
            self._tell(f"{parts.board}: no deltas, as FROM= names no older bundle for {compatible}")
        if order.signing is None:
            if usable:
                self._tell(f"{parts.board}: no deltas, as they make a signed bundle: give SIGNER=")
            return
        if order.delta is None:
            if usable:
                self._tell(f"{parts.board}: no deltas, as this checkout cannot make any")
            return
        for old in (None, *usable.values()):
            since = f"-from-{old.version}" if old else ""
            path = self._folder / f"{bundle.stem}{since}{deltas.ENDING}"
            with self._phases.phase(f"{parts.board}: delta", bundle.stat().st_size):
                try:
                    order.delta(bundle, path, old.path if old else None)
                except ThicketError as error:
                    raise ReleaseError(f"{path.name} is not made: {error}") from None
                self._phases.advance(bundle.stat().st_size)
            yield self._file(path, index.DELTA, parts.board)._replace(
                since=old.version if old else ""
            )

    def _file(self, path: Path, kind: str, board: str) -> File:
        with path.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
        return File(path.name, kind, board, path.stat().st_size, digest)

    def _written(self, name: str, data: bytes, kind: str, board: str) -> File:
        self._write(name, data)
        return File(name, kind, board, len(data), sha256(data).hexdigest())

    def _write(self, name: str, data: bytes) -> None:
        (self._folder / name).write_bytes(data)

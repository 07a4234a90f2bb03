# SPDX-License-Identifier: Apache-2.0
"""Takes a card image from a release, in a folder or on a web server, and checks it.

From the signature to the image: ``SHA256SUMS.cms`` signs ``SHA256SUMS``, which has the checksum of
``index.json``, which says which file is the image for a board and how large it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol
from urllib.parse import urlsplit

from firmware import bmap
from firmware.releases import download, index, signature, sums
from firmware.releases.download import Download, NotThereError
from firmware.releases.errors import ReleaseError
from firmware.releases.index import File, Index
from firmware.unpacked import ENDINGS, MOST

PREFERRED = "rpi64"
"""The board that is meant where nobody says which one."""

STANDIN = "standin"
"""What the names of boards begin with that no device starts from."""

KEPT = 3
"""Images that stay in the cache, those that were used last."""

MOST_PACKED = 4 << 30
"""Bytes of the largest image that is downloaded without anything that says its size."""

if TYPE_CHECKING:
    from firmware.releases.trust import Trust

_IMAGES = (".img", *(f".img{ending}" for ending in ENDINGS))
_PIECE = 1 << 20

Advance = Callable[[int], object]


class Phases(Protocol):
    """Shows how far something is."""

    def phase(self, text: str, total: int) -> contextlib.AbstractContextManager[None]:
        """Show a phase with so many bytes while the block runs."""

    def advance(self, count: int) -> None:
        """Add to what is done."""


class Place(Protocol):
    """Where the files of a release are."""

    def text(self, name: str, most: int) -> bytes | None:
        """Return a small file, at most so many bytes; None when there is none."""

    def take(self, file: File, phases: Phases) -> Path:
        """Return the path of a file that has the size and the checksum that it should have."""

    def __str__(self) -> str:
        """Return where it is."""


class Chosen(NamedTuple):
    """A card image that can be taken.

    :ivar file: what the release says of it.
    :ivar map: its block map, if the release has one.
    :ivar told: what was checked, for a person.
    """

    place: Place
    file: File
    map: bmap.Bmap | None
    told: tuple[str, ...]

    @property
    def most(self) -> int:
        """How many bytes may be in it."""
        return self.file.unpacked or MOST

    def take(self, phases: Phases) -> Path:
        """Return the path of the image, downloaded if it is not here.

        :raises ReleaseError: it cannot be had, or is not what it should be.
        """
        return self.place.take(self.file, phases)


def is_meant(name: str) -> bool:
    """Return whether a person means a release, or an image of one, by ``name``."""
    if "://" in name:
        return True
    path = Path(name)
    if path.is_dir():  # a board may have the name of a folder that is just here
        return "/" in name or (path / sums.FILE).is_file()
    return path.is_file() and _is_in_release(path)


def _is_in_release(path: Path) -> bool:
    try:
        with (path.parent / sums.FILE).open("rb") as file:
            listed = file.read(sums.MAX_BYTES + 1)
    except OSError:
        return False
    return listed.startswith(sums.FIRST) and f"  {path.name}\n".encode() in listed


def choose(name: str, board: str | None, trust: Trust, cache: Path) -> Chosen:
    """Find the image that a person means, and check what the release says of it.

    :param name: a folder, the path of an image in one, or the URL of either.
    :param board: which one; None: the only one, or ``PREFERRED``.
    :param trust: whose signature it must have.
    :param cache: the product's cache folder, for what is downloaded.
    :raises ReleaseError: there is none, or it is not what it should be.
    """
    if "://" in name:
        download.check_url(name)
        parts = urlsplit(name)
        if parts.path.endswith(_IMAGES):
            folder, _, wanted = parts.path.rpartition("/")
            base = parts._replace(path=folder + "/", fragment="").geturl()
        else:
            path = parts.path.removesuffix(index.FILE).removesuffix("index.html").rstrip("/")
            base, wanted = parts._replace(path=path + "/", query="", fragment="").geturl(), ""
        place: Place = Web(base, parts.query, cache / "releases")
    else:
        found = Path(name)
        place = Folder(found if found.is_dir() else found.parent)
        wanted = "" if found.is_dir() else found.name
    listed = place.text(sums.FILE, sums.MAX_BYTES)
    if listed is None:
        return _without_release(place, wanted, trust)
    return _from_release(place, listed, wanted, board, trust)


def _without_release(place: Place, wanted: str, trust: Trust) -> Chosen:
    if not wanted:
        raise ReleaseError(
            f"{place} is no release: it has no {sums.FILE}. Is it the right folder? A card image "
            "(.img, .img.xz, .img.gz, .img.zst) can be given by its own name"
        )
    if trust.fleet is not None:
        raise ReleaseError(
            f"{place} has no {sums.FILE} beside {wanted}, so nothing says who made the image. "
            "ROOT=none takes it all the same"
        )
    told = (
        f"Nobody vouches for it: {place} has no {sums.FILE}, so neither a signature nor a "
        "checksum was compared",
    )
    return Chosen(place, File(wanted, index.IMAGE, "", 0, ""), None, told)


def _from_release(
    place: Place, listed: bytes, wanted: str, board: str | None, trust: Trust
) -> Chosen:
    checksums = sums.read(listed)
    told = [_judge_signature(place, listed, trust)]
    said = index.read(_checked(place, index.FILE, index.MAX_BYTES, checksums))
    file = _image(said, wanted, board)
    if checksums.get(file.name) != file.sha256:
        raise ReleaseError(f"{index.FILE} and {sums.FILE} of {place} differ in {file.name}")
    told.insert(
        0,
        f"Thicket {said.version} for {file.board} (epoch {said.epoch}, commit {said.commit}, "
        f"{said.date[:10]}), from {place}",
    )
    if file.board.startswith(STANDIN):
        told.append("It is for the simulator: no device starts from it")
    return Chosen(place, file, _map(place, said, file, checksums), tuple(told))


def _map(place: Place, said: Index, file: File, checksums: dict[str, str]) -> bmap.Bmap | None:
    names = {f"{file.name}{bmap.SUFFIX}", f"{Path(file.name).stem}{bmap.SUFFIX}"}
    for one in said.of(index.MAP, file.board):
        if one.name in names:
            try:
                return bmap.parse(_checked(place, one.name, bmap.MAX_FILE, checksums))
            except bmap.BmapError as error:
                raise ReleaseError(f"the block map {one.name} cannot be used: {error}") from None
    return None


def _checked(place: Place, name: str, most: int, checksums: dict[str, str]) -> bytes:
    data = place.text(name, most)
    if data is None:
        raise ReleaseError(f"{place} is not complete: it has no {name}")
    if hashlib.sha256(data).hexdigest() != checksums.get(name):
        raise ReleaseError(
            f"{name} does not have the checksum that {sums.FILE} says: {place} was changed, or "
            "another release was put over it. Get it anew; if it stays so, tell who publishes it"
        )
    return data


def _judge_signature(place: Place, listed: bytes, trust: Trust) -> str:
    """Return what can be said of the signature.

    :raises ReleaseError: there must be one that is good, and is none.
    """
    packed = place.text(signature.FILE, sums.MAX_BYTES * 2)
    if trust.fleet is None:
        return _unchecked(packed, listed, trust)
    if packed is None:
        raise ReleaseError(
            f"{place} is not signed, and must be by a signer of the fleet {trust.fleet.name!r}. "
            "ROOT=none compares checksums alone"
        )
    try:
        by = signature.check(packed, listed, trust.fleet, trust.revoked)
    except ReleaseError as error:
        raise ReleaseError(
            f"{error}\n  A release of somebody else is checked with his root certificate, "
            "ROOT=root.pem; ROOT=none compares checksums alone."
        ) from None
    return (
        f"Signed on {by.when:%Y-%m-%d %H:%M} UTC by {by.signer!r} of the fleet "
        f"{trust.fleet.name!r}; {trust.how}"
    )


def _unchecked(packed: bytes | None, listed: bytes, trust: Trust) -> str:
    digest = hashlib.sha256(listed).hexdigest()
    only = f"Only checksums are compared ({trust.how}), which somebody on the way could change"
    if packed is None:
        return f"{only}. It is not signed. SHA-256 of {sums.FILE}: {digest}"
    by = signature.claimed(packed, listed)
    return (
        f"{only}. It says that {by.signer!r} signed it on {by.when:%Y-%m-%d}; ROOT=root.pem of its "
        f"publisher would check that. Compare with what the publisher says: the certificate has "
        f"the SHA-256 fingerprint\n        {by.fingerprint}"
    )


def _image(said: Index, wanted: str, board: str | None) -> File:
    if wanted:
        for file in said.files:
            if (file.name, file.kind) == (wanted, index.IMAGE):
                if board not in (None, file.board):
                    raise ReleaseError(f"{wanted} is for {file.board}, not for {board}")
                return file
        raise ReleaseError(f"{wanted} is no card image of the release ({_names(said)})")
    if board is None:
        boards = said.boards
        board = boards[0] if len(boards) == 1 else PREFERRED
    images = said.of(index.IMAGE, board)
    if not images:
        raise ReleaseError(
            f"the release has no image for {board} ({_names(said)}): choose with BOARD="
        )
    return images[0]


def _names(said: Index) -> str:
    return f"it has {', '.join(said.boards)}" if said.boards else "it has no images at all"


def _digest(path: Path, advance: Advance) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_PIECE):
            digest.update(data)
            advance(len(data))
    return digest.hexdigest()


def _compare(found: str, file: File, where: str) -> None:
    if found != file.sha256:
        raise ReleaseError(
            f"{where} is not the file of the release: its SHA-256 is {found}, and {sums.FILE} says "
            f"{file.sha256}. Get it anew; if it stays so, tell who publishes it"
        )


class Folder:
    """A release in a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def text(self, name: str, most: int) -> bytes | None:
        """Return a small file; None when there is none.

        :raises ReleaseError: it is larger than ``most``.
        """
        try:
            with (self._path / name).open("rb") as file:
                data = file.read(most + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ReleaseError(f"{self._path / name} cannot be read: {error.strerror}") from None
        if len(data) > most:
            raise ReleaseError(f"{self._path / name} is larger than the {most} bytes that are read")
        return data

    def take(self, file: File, phases: Phases) -> Path:
        """Return the path of a file, whose checksum was compared.

        :raises ReleaseError: it is missing, or another one.
        """
        path = self._path / file.name
        if not path.is_file():
            raise ReleaseError(f"{self._path} is not complete: it has no {file.name}")
        with phases.phase("Checksum", path.stat().st_size):
            _compare(_digest(path, phases.advance), file, str(path))
        return path


class Web:
    """A release on a web server. What is taken of it stays in the cache under its checksum."""

    def __init__(self, base: str, query: str, cache: Path) -> None:
        """Take files of a folder.

        :param base: its URL, with a slash at the end.
        :param query: what is asked with it behind a ``?``; empty for nothing.
        :param cache: the folder of downloads.
        """
        self._base = base.partition("?")[0]
        self._query = query
        self._cache = cache

    def __str__(self) -> str:
        return self._base

    def text(self, name: str, most: int) -> bytes | None:
        """Return a small file; None when there is none.

        :raises ReleaseError: it cannot be had, or is larger than ``most``.
        """
        return download.text(self._url(name), most)

    def _url(self, name: str) -> str:
        return f"{self._base}{name}{'?' if self._query else ''}{self._query}"

    def take(self, file: File, phases: Phases) -> Path:
        """Return the path of a file in the cache, downloaded as far as it is not there.

        :raises ReleaseError: it cannot be had, or is another one.
        """
        url = self._url(file.name)
        self._cache.mkdir(parents=True, exist_ok=True)
        key = file.sha256 or hashlib.sha256(url.encode()).hexdigest()
        part = self._cache / f"{key}.part"
        with _held(part):
            if file.sha256:
                path = self._cache / f"{file.sha256}-{file.name}"
                if path.is_file() and path.stat().st_size == file.size:
                    with phases.phase("Checksum", file.size):
                        if _digest(path, phases.advance) == file.sha256:
                            path.touch()
                            return path
            self._room(file, part)
            found = self._download(url, file, part, phases)
            path = self._cache / f"{found}-{_safe(file.name)}"
            part.replace(path)
        self._prune(path)
        return path

    def _download(self, url: str, file: File, part: Path, phases: Phases) -> str:
        """Return the checksum of what came; what is wrong is thrown away."""
        resumed = part.is_file() and part.stat().st_size > 0
        while True:
            with part.open("ab+") as target, phases.phase("Download", file.size):
                try:
                    Download(url, file.size or None, file.size or MOST_PACKED).into(
                        target, phases.advance
                    )
                except NotThereError:
                    part.unlink()
                    raise
            with phases.phase("Checksum", part.stat().st_size):
                found = _digest(part, phases.advance)
            try:
                if file.sha256:
                    _compare(found, file, url)
                return found
            except ReleaseError:
                part.unlink()
                if not resumed:
                    raise
            resumed = False  # the part of before may have been of another file

    def _room(self, file: File, part: Path) -> None:
        have = part.stat().st_size if part.is_file() else 0
        free = shutil.disk_usage(self._cache).free
        if file.size - have > free:
            raise ReleaseError(
                f"{file.name} has {file.size >> 20} MiB, and {self._cache} has room for "
                f"{free >> 20} MiB: make room, or set THICKET_CACHE to a folder elsewhere"
            )

    def _prune(self, current: Path) -> None:
        """Throw away images that were not used for long, and what is left of downloads."""
        others = sorted(
            (path for path in self._cache.iterdir() if path != current),
            key=lambda path: path.stat().st_mtime,
            reverse=True,
        )
        for path in others[KEPT - 1 :]:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _held(part: Path) -> Iterator[None]:
    """Keep another process from the same download."""
    with part.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ReleaseError(
                "another program downloads the same image at this moment: wait for it"
            ) from None
        try:
            yield
        finally:
            part.with_suffix(".lock").unlink(missing_ok=True)


def _safe(name: str) -> str:
    return name if sums.NAME.fullmatch(name) else re.sub(r"[^A-Za-z0-9._-]", "_", name)[-64:]

# SPDX-License-Identifier: Apache-2.0
"""Keeps what was built, by the hash of what it was built from.

Layout of ``<cache>/images``::

    STAGE/KEY/      a finished result; it appears by a rename and is never changed
    tmp/            results in the making and on their way out
    lock/STAGE      held (flock) while a result of STAGE is made, cleaned up or thrown away
    log/STAGE.log   what the tools said last time

A build that is killed leaves a directory in ``tmp`` and nothing else; the next one removes it. Two
builds at once wait for each other per stage, and the second finds the first one's result.

What was found or made is held (flock on its directory) until the process ends, so that nothing is
thrown away under a running lab. The rest goes, what was used longest ago first, where the results
take more than ``BUDGET`` or the disk is full.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from host.errors import CancelledError
from meshlab.image.errors import ImageError

BUDGET = 8 << 30
"""Bytes on the disk that all results may take. A run of all tests makes 4 GiB."""
ROOM = 1 << 30
"""Bytes that making a result takes on the disk for a while, unless the stage says otherwise."""
KEEP = 3
"""Results of a stage that are kept whatever they take, as long as the disk has room."""

IGNORED = ("__pycache__", "*.pyc", "*.egg-info", ".*.swp", "*~", "*.o")
"""Patterns of file names that are no input of anything."""


class Digest:
    """Collects the inputs of a result; ``key()`` names the result."""

    def __init__(self, *words: str) -> None:
        self._hash = hashlib.sha256()
        self.words(*words)

    def words(self, *words: str) -> Digest:
        """Add texts. Each has its length in front, so that no two lists of words are alike."""
        for word in words:
            self._bytes(word.encode())
        return self

    def _bytes(self, data: bytes) -> None:
        self._hash.update(len(data).to_bytes(8, "big"))
        self._hash.update(data)

    def files(self, root: Path, paths: Iterable[Path] | None = None) -> Digest:
        """Add files below ``root`` (all of them by default): names, contents, executable or not."""
        for path in sorted(paths if paths is not None else walk(root)):
            mode = path.lstat().st_mode
            self._bytes(os.fsencode(path.relative_to(root)))
            if stat.S_ISLNK(mode):
                self._bytes(b"link")
                self._bytes(os.fsencode(path.readlink()))
            else:
                self._bytes(b"program" if mode & stat.S_IXUSR else b"file")
                self._bytes(path.read_bytes())
        return self

    def key(self) -> str:
        """Return the name of what is made from these inputs."""
        return self._hash.hexdigest()[:20]


def ignored(path: Path) -> bool:
    """Tell whether a file's name says that it is a by-product."""
    return any(path.match(pattern) for pattern in IGNORED)


def walk(root: Path) -> Iterator[Path]:
    """Yield the files and links below ``root``, by-products left out."""
    for path in sorted(root.iterdir()):
        if ignored(path):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from walk(path)
        else:
            yield path


class Cache:
    """The results under one directory."""

    def __init__(self, root: Path, budget: int = BUDGET) -> None:
        self.root = root
        self._budget = budget
        for name in ("tmp", "lock", "log"):
            (root / name).mkdir(parents=True, exist_ok=True)

    def log(self, stage: str) -> Path:
        """Return the log file of ``stage``."""
        return self.root / "log" / f"{stage}.log"

    def find(self, stage: str, key: str) -> Path | None:
        """Return the finished result, or ``None``; one that is found counts as just used."""
        path = self.root / stage / key
        if not _hold(path):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return path

    def obtain(
        self,
        stage: str,
        key: str,
        make: Callable[[Path], object],
        *,
        room: int = ROOM,
        waiting: Callable[[str], None] = lambda text: None,
        cancelled: threading.Event | None = None,
    ) -> Path:
        """Return a result of a stage, made when there is none. Raises what ``make`` raises.

        Results that nobody uses are thrown away where the disk has too little room for it.

        :param stage: The stage.
        :param key: The result's key.
        :param make: Fills an empty directory; the result appears only after it has returned.
        :param room: How many bytes ``make`` takes on the disk for a while.
        :param waiting: Hears about another build that is at work.
        :raises ImageError: when the disk has not so much room.
        """
        found = self.find(stage, key)
        if found:
            return found
        self._make_room(room, stage)
        with self._locked(stage, waiting, cancelled):
            found = self.find(stage, key)
            if found:
                return found
            self._clean(stage)
            self.log(stage).unlink(missing_ok=True)
            # The key is part of the name for people who look; the lock makes it unique.
            work = self.root / "tmp" / f"{stage}.{key}"
            work.mkdir()
            try:
                make(work)
                # The rename must not reach the disk before what it names.
                subprocess.run(["sync", "-f", work], check=False, capture_output=True)
                target = self.root / stage / key
                target.parent.mkdir(exist_ok=True)
                work.rename(target)
                _hold(target)
            except BaseException:
                _remove(work)
                raise
        self._trim()
        return target

    def results(self) -> list[tuple[str, Path]]:
        """Return all finished results as (stage, directory)."""
        return [
            (stage.name, path)
            for stage in sorted(self.root.iterdir())
            if stage.is_dir() and stage.name not in ("tmp", "lock", "log")
            for path in sorted(stage.iterdir())
        ]

    def sweep(self, found: Callable[[str], None] = lambda stage: None) -> None:
        """Remove what killed builds left, where nobody is at work.

        A stage that is made anew does this by itself; this is for those that need not be made.

        :param found: Hears of which stages.
        """
        for stage in sorted(
            {path.name.partition(".")[0] for path in (self.root / "tmp").iterdir()}
        ):
            with (self.root / "lock" / stage).open("a+") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                found(stage)
                self._clean(stage)

    def forget(self, stage: str) -> None:
        """Throw away all results of ``stage``, so that it is made anew."""
        with self._locked(stage, lambda text: None, None):
            directory = self.root / stage
            for path in list(directory.iterdir()) if directory.is_dir() else []:
                self._discard(stage, path)

    @contextlib.contextmanager
    def _locked(
        self, stage: str, waiting: Callable[[str], None], cancelled: threading.Event | None
    ) -> Iterator[None]:
        """Hold the lock of ``stage``. The kernel drops it with the process, however that ends."""
        with (self.root / "lock" / stage).open("a+") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    lock.seek(0)
                    holder = lock.read().strip() or "?"
                    waiting(f"waiting for another build (process {holder})")
                    if cancelled is not None and cancelled.is_set():
                        raise CancelledError(f"{stage}: stopped") from None
                    time.sleep(0.1)
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield
            lock.truncate(0)

    def _clean(self, stage: str) -> None:
        """Remove what killed builds of ``stage`` left behind. Called with its lock held."""
        for path in (self.root / "tmp").glob(f"{stage}.*"):
            _remove(path)
            if path.exists():
                raise ImageError(
                    f"{path}, left by an interrupted build, cannot be removed: remove it by hand"
                )

    def _make_room(self, room: int, stage: str) -> None:
        """Have so many bytes free for a stage: throw away results, down to one of each stage."""

        def free() -> int:
            return shutil.disk_usage(self.root).free

        if free() < room:
            self._give_up(lambda _: free() >= room, keep=1)
        if free() < room:
            raise ImageError(
                f"making the stage '{stage}' of an image needs {room / (1 << 30):.0f} GiB for a "
                f"while, and {self.root} has {free() / (1 << 30):.1f} GiB left, without what was "
                "made before and is not in use. Make room, or set THICKET_CACHE to another place"
            )

    def _trim(self) -> None:
        """Throw away results until the rest is within the budget."""
        self._give_up(lambda taken: taken <= self._budget, keep=KEEP)

    def _give_up(self, enough: Callable[[int], bool], *, keep: int) -> None:
        """Throw away what was used longest ago of the stage that takes most, and so on.

        So a kernel, which takes minutes to make, outlives the images with it, which take seconds.

        :param enough: Tells whether that will do, by how many bytes all results take.
        :param keep: How many results of each stage stay in any case.
        """
        sizes: dict[str, dict[Path, int]] = {}
        for stage, path in self.results():
            sizes.setdefault(stage, {})[path] = _size(path)
        spare = {stage: sorted(paths, key=_used)[:-keep] for stage, paths in sizes.items()}
        while not enough(sum(sum(paths.values()) for paths in sizes.values())):
            stages = [stage for stage, paths in spare.items() if paths]
            if not stages:
                break
            stage = max(stages, key=lambda stage: sum(sizes[stage].values()))
            path = spare[stage].pop(0)
            if self._throw_away(stage, path):
                del sizes[stage][path]

    def _throw_away(self, stage: str, path: Path) -> bool:
        """Remove a finished result that nobody uses, and tell whether that was so."""
        with contextlib.ExitStack() as stack:
            try:
                lock = stack.enter_context((self.root / "lock" / stage).open("a+"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
                stack.callback(os.close, fd)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, FileNotFoundError):
                return False
            self._discard(stage, path)
            return True

    def _discard(self, stage: str, path: Path) -> None:
        """Remove a finished result, whole or not at all. Called with the stage's lock held."""
        trash = self.root / "tmp" / f"{stage}.old.{path.name}"
        path.rename(trash)
        _remove(trash)


_HELD: dict[Path, int] = {}
"""Descriptors of the results that this process holds."""


def _hold(path: Path) -> bool:
    """Hold a result until the process ends, and tell whether it is there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    fcntl.flock(fd, fcntl.LOCK_SH)
    held = _HELD.get(path)
    if held is not None and os.path.samestat(os.fstat(held), os.fstat(fd)):
        os.close(fd)
        return True
    # It may have been thrown away between the two calls.
    if not path.is_dir() or not os.path.samestat(path.stat(), os.fstat(fd)):
        os.close(fd)
        return False
    _HELD[path] = fd
    return True


def _used(path: Path) -> float:
    """Return when a result was used last; 0 for one that has gone meanwhile."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0


def _size(path: Path) -> int:
    """Return what a directory tree takes on the disk, in bytes; what has gone counts nothing."""
    total = 0
    for directory, names, files in os.walk(path):
        for name in (*names, *files):
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(Path(directory, name)).st_blocks * 512
    return total


def _remove(path: Path) -> None:
    """Remove a directory tree, read-only directories included."""
    for _ in range(3):
        # A child of a killed build may still be writing: what it makes meanwhile goes next time.
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        for directory, _names, _files in os.walk(path):
            with contextlib.suppress(OSError):
                Path(directory).chmod(0o700)
        time.sleep(0.1)
    shutil.rmtree(path, ignore_errors=True)

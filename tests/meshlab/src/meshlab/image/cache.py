# SPDX-License-Identifier: Apache-2.0
"""Keeps what was built, by the hash of what it was built from.

Layout of ``<cache>/images``::

    STAGE/KEY/      a finished result; it appears by a rename and is never changed
    tmp/            results in the making and on their way out
    lock/STAGE      held (flock) while a result of STAGE is made, cleaned up or thrown away
    log/STAGE.log   what the tools said last time

A build that is killed leaves a directory in ``tmp`` and nothing else; the next one removes it. Two
builds at once wait for each other per stage, and the second finds the first one's result.
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

KEEP = 3
"""Results of a stage that are kept however old they are."""
KEEP_SECONDS = 2 * 24 * 3600
"""Results used within this time are kept as well: another checkout or a lab may want them."""

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

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("tmp", "lock", "log"):
            (root / name).mkdir(parents=True, exist_ok=True)

    def log(self, stage: str) -> Path:
        """Return the log file of ``stage``."""
        return self.root / "log" / f"{stage}.log"

    def find(self, stage: str, key: str) -> Path | None:
        """Return the finished result, or ``None``; one that is found counts as just used."""
        path = self.root / stage / key
        if not path.is_dir():
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return path

    def obtain(
        self,
        stage: str,
        key: str,
        make: Callable[[Path], None],
        *,
        waiting: Callable[[str], None] = lambda text: None,
        cancelled: threading.Event | None = None,
    ) -> Path:
        """Return a result of a stage, made when there is none. Raises what ``make`` raises.

        :param stage: The stage.
        :param key: The result's key.
        :param make: Fills an empty directory; the result appears only after it has returned.
        :param waiting: Hears about another build that is at work.
        """
        found = self.find(stage, key)
        if found:
            return found
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
            except BaseException:
                _remove(work)
                raise
            self._prune(stage, target)
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

    def _discard(self, stage: str, path: Path) -> None:
        """Remove a finished result, whole or not at all."""
        trash = self.root / "tmp" / f"{stage}.old.{path.name}"
        path.rename(trash)
        _remove(trash)

    def _prune(self, stage: str, current: Path) -> None:
        """Remove results that nobody has used for a while. Called with the stage's lock held."""
        others = [path for path in current.parent.iterdir() if path != current]
        others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for path in others[KEEP - 1 :]:
            if time.time() - path.stat().st_mtime > KEEP_SECONDS:
                self._discard(stage, path)


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

# SPDX-License-Identifier: Apache-2.0
"""Puts a node's root filesystem together and packs it as EROFS."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from host.run import Runner
from meshlab.image.cache import ignored
from meshlab.image.errors import ImageError

UUID = "74686963-6b65-4074-8000-6c6162696d67"
"""The filesystem's UUID, fixed so that the same inputs make the same image."""

DIRECTORIES = ("boot", "data", "dev", "etc/thicket", "proc", "root", "run", "sys", "tmp")
"""Mount points, and where the configuration is put at boot; ``/etc`` and ``/usr`` have contents of
their own."""

LINKS = {
    # merged /usr, as the programs of the userland expect it
    "bin": "usr/bin",
    "sbin": "usr/sbin",
    "lib": "usr/lib",
    "lib64": "usr/lib64",
    # what programs look for below a read-only root lives in RAM
    "var/run": "../run",
    "var/lock": "../run/lock",
    "var/tmp": "../tmp",
    "etc/mtab": "/proc/mounts",
    "etc/resolv.conf": "../run/resolv.conf",
    "etc/os-release": "../usr/lib/os-release",
}


def overlay(source: Path, target: Path) -> None:
    """Copy a directory tree over another one.

    Of a file's mode only "executable" counts: a checkout says nothing else. A file replaces what
    was there; a link that is there for a directory is followed inside ``target``.
    """
    for path in sorted(source.iterdir()):
        if ignored(path):
            continue
        place = target / path.name
        if path.is_symlink():
            place.unlink(missing_ok=True)
            place.symlink_to(path.readlink())
        elif path.is_dir():
            place.mkdir(exist_ok=True)
            overlay(path, place)
        else:
            if place.is_symlink() or place.exists():
                place.unlink()
            shutil.copyfile(path, place)
            place.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)


def clone(source: Path, target: Path) -> None:
    """Copy a tree of the cache, by links to the same files where that works.

    The files are never written to afterwards: ``overlay`` replaces, it does not change.
    """

    def link(a: str, b: str) -> None:
        try:
            os.link(a, b, follow_symlinks=False)
        except OSError:
            shutil.copy2(a, b, follow_symlinks=False)

    shutil.copytree(source, target, symlinks=True, copy_function=link, dirs_exist_ok=True)


def skeleton(root: Path) -> None:
    """Make the directories and links that every root has."""
    for name in DIRECTORIES:
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    (root / "root").chmod(0o700)
    for name, target in LINKS.items():
        if name == "lib64" and not (root / target).exists():
            continue  # only amd64's loader is there
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_symlink():
            path.symlink_to(target)


def normalise(root: Path) -> None:
    """Give everything the mode that it has whatever umask the build ran with."""
    for directory, _names, files in os.walk(root):
        path = Path(directory)
        if path.relative_to(root).as_posix() not in ("tmp", "root"):
            path.chmod(0o755)
        for name in files:
            mode = (path / name).lstat().st_mode
            if stat.S_ISREG(mode):
                normal = 0o755 if mode & stat.S_IXUSR else 0o644
                if stat.S_IMODE(mode) != normal:
                    (path / name).chmod(normal)


ESSENTIAL = ("usr/sbin/init", "usr/bin/sh", "usr/bin/python3", "etc/inittab")


def check(root: Path, more: Iterable[str] = ()) -> None:
    """Raise ``ImageError`` unless the root has what a boot cannot do without, and ``more``."""
    for name in (*ESSENTIAL, *more):
        path = root / name
        if not (path.is_symlink() or path.exists()):
            raise ImageError(f"the root filesystem has no /{name}: the recipe or overlay is wrong")
    for path in root.rglob("*"):
        if path.is_symlink():
            target = path.readlink()
            end = root / target.relative_to("/") if target.is_absolute() else path.parent / target
            if not target.as_posix().startswith(("/proc", "../run")) and not end.resolve().exists():
                raise ImageError(f"/{path.relative_to(root)} is a link to nothing: {target}")


def pack(runner: Runner, log: Path, root: Path, image: Path, time: int) -> None:
    """Write ``root`` to the EROFS file ``image``: all files root's, all of this time.

    Uncompressed: an emulated processor would unpack pages at a twentieth of the host's speed.
    """
    runner.run(
        ["mkfs.erofs", "--quiet", "--all-root", "-x-1", f"-T{time}", f"-U{UUID}", image, root],
        log,
        what="packing the root filesystem",
        env={"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"},
    )

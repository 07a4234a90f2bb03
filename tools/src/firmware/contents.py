# SPDX-License-Identifier: Apache-2.0
"""What is in a root filesystem and why: each file is on the list of wanted ones, or a file that is
wanted needs it.

The list is ``board/common/wanted.txt``: patterns from the root, as a shell reads them. A pattern
that names a folder means everything in it. Shared libraries need no line: a library is wanted when
a wanted program or library names it (``DT_NEEDED``). A link is wanted when what it leads to is.
"""

from __future__ import annotations

import glob
import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_DYNAMIC = re.compile(r"\((NEEDED|RPATH|RUNPATH)\)[^\[]*\[(.*)\]")
_INTERPRETER = re.compile(r"\[Requesting program interpreter: (.*)\]")


_REMARK = "THIS_IS_NOT_YOUR_ROOT_FILESYSTEM"
"""Buildroot's own remark in the directory that it makes images of; in no image."""


class ContentsError(Exception):
    """A root filesystem cannot be looked into; the text says why."""


class Binary(NamedTuple):
    """What the dynamic section of one ELF file asks for."""

    needed: tuple[str, ...]
    """Names of shared libraries, and the path of the program's interpreter."""
    rpath: str
    """Folders in which it looks for libraries before the system's; empty without any."""


class Contents(NamedTuple):
    """What somebody has to look at, as paths from the root."""

    unwanted: list[str]
    """Files and links that no line of the list names and nothing wanted needs."""
    unused: list[str]
    """Lines of the list that name nothing in this root."""
    lacking: dict[str, list[str]]
    """Wanted binaries, each with the libraries that it needs and that are not there."""
    rpaths: dict[str, str]
    """Binaries with folders of libraries of their own, and these."""


def patterns(path: Path) -> list[str]:
    """Return the lines of a list of patterns, without remarks."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def look(root: Path, wanted: Iterable[str]) -> Contents:
    """Judge every file of ``root``.

    :param root: a root filesystem's directory
    :param wanted: patterns, see :func:`patterns`
    :raises ContentsError: if ``readelf`` is not there or cannot read a file
    """
    present = set(_entries(root)) - {_REMARK}
    binaries = _binaries(root, sorted(present))
    named: set[str] = set()
    unused = []
    for pattern in wanted:
        # Path.glob passes by links that lead nowhere, as /etc/mtab does on the desk.
        found = glob.iglob(pattern, root_dir=root, include_hidden=True)  # noqa: PTH207
        matches = {name for place in found for name in _below(root, root / place)}
        named |= matches
        if not matches:
            unused.append(pattern)
    kept, lacking = _closure(root, present, binaries, named)
    kept |= {name for name in present - kept if _target(root, name) in kept}
    rpaths = {name: found.rpath for name, found in binaries.items() if found.rpath}
    return Contents(sorted(present - kept), unused, lacking, rpaths)


def sentences(found: Contents, most: int = 40) -> list[str]:
    """Return what somebody has to look at in words, at most ``most`` files by name."""
    told = []
    if found.unwanted:
        shown = [f"\n  {name}" for name in found.unwanted[:most]]
        if rest := len(found.unwanted) - len(shown):
            shown.append(f"\n  and {rest} more")
        told.append(
            "files of the root that are on no list and that nothing there needs "
            f"({len(found.unwanted)}); name them in board/common/wanted.txt or unwanted.txt, "
            f"unless a package of your own brings them:{''.join(shown)}"
        )
    told += [
        f"{name} needs {', '.join(libraries)}, which the root does not have"
        for name, libraries in sorted(found.lacking.items())
    ]
    told += [
        f"{name} looks for libraries in {rpath} (RPATH)"
        for name, rpath in sorted(found.rpaths.items())
    ]
    return told


def _closure(
    root: Path, present: set[str], binaries: dict[str, Binary], named: set[str]
) -> tuple[set[str], dict[str, list[str]]]:
    """Return the named files with all that they need, and what they need that is not there."""
    libraries: dict[str, str] = {}
    for name in sorted(present, reverse=True):
        folder, _, file = name.rpartition("/")
        if folder in ("lib", "lib64", "usr/lib", "usr/lib64"):
            libraries[file] = name
    kept: set[str] = set()
    lacking: dict[str, list[str]] = {}
    ahead = sorted(named)
    while ahead:
        name = ahead.pop()
        if name in kept:
            continue
        kept.add(name)
        if (root / name).is_symlink() and (target := _target(root, name)) in present:
            ahead.append(target)
        for library in binaries[name].needed if name in binaries else ():
            found = libraries.get(library.rpartition("/")[2])
            if found is None:
                lacking.setdefault(name, []).append(library)
            else:
                ahead.append(found)
    return kept, lacking


def _entries(root: Path) -> Iterator[str]:
    """Yield all files and links, also links to folders."""
    for directory, folders, files in os.walk(root):
        for name in (*files, *folders):
            path = Path(directory, name)
            if name in files or path.is_symlink():
                yield str(path.relative_to(root))


def _below(root: Path, path: Path) -> Iterator[str]:
    if path.is_symlink() or not path.is_dir():
        yield str(path.relative_to(root))
    else:
        yield from (str((path / name).relative_to(root)) for name in _entries(path))


def _target(root: Path, name: str) -> str:
    """Return where a link leads, as a path from the root, with links of folders followed."""
    path = root / name
    for _step in range(40):
        if not path.is_symlink():
            break
        to = path.readlink()
        place = root / to.relative_to("/") if to.is_absolute() else path.parent / to
        folder = Path(os.path.normpath(place)).parent
        if folder.is_symlink():  # lib is a link to usr/lib
            folder = Path(os.path.normpath(folder.parent / folder.readlink()))
        path = folder / place.name
    return os.path.relpath(path, root)


def _binaries(root: Path, names: list[str]) -> dict[str, Binary]:
    """Return what every ELF file of ``names`` asks for, kernel modules left out."""
    found = {}
    for name in names:
        path = root / name
        if path.is_symlink() or not path.is_file() or path.suffix == ".ko":
            continue
        with path.open("rb") as file:
            if file.read(4) == b"\x7fELF":
                found[name] = binary(path)
    return found


def binary(path: Path) -> Binary:
    """Return what an ELF file asks for.

    :raises ContentsError: if ``readelf`` is not there or cannot read the file
    """
    try:
        done = subprocess.run(
            ["readelf", "--wide", "--dynamic", "--program-headers", path],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise ContentsError("readelf is not there: install binutils") from error
    if done.returncode != 0:
        raise ContentsError(f"{path}: readelf failed: {done.stderr.strip()[:300]}")
    entries = _DYNAMIC.findall(done.stdout)
    needed = [value for kind, value in entries if kind == "NEEDED"]
    rpath = ":".join(value for kind, value in entries if kind != "NEEDED")
    return Binary((*needed, *_INTERPRETER.findall(done.stdout)), rpath)

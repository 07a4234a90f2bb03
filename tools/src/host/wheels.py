# SPDX-License-Identifier: Apache-2.0
"""Python projects and wheels: what images and applications are made of."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sys
import tomllib
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePath

from packaging.requirements import Requirement

from host import stop
from host.errors import HostError
from host.run import Runner

MOST_UNPACKED = 1 << 30
"""Bytes that a project may have, or a wheel may unpack to."""
MOST_FILES = 100_000
"""Files and folders of a project, or files of a wheel."""
MOST_DEEP = 64
"""Folders in each other, in a project or a wheel."""

_ENVIRONMENT = "pyvenv.cfg"
"""What a virtual environment has at its top: no part of the project that it lies in."""


class WheelError(HostError):
    """A project or a wheel is not as it should be; the text says what to do."""


def build(runner: Runner, log: Path, project: Path, directory: Path) -> Path:
    """Make the wheel of a project, put it into ``directory``, and return its path.

    It is built by what is installed here, which came by its hash. pip's isolation is off: it would
    fetch and run whatever the index has under the name of the project's build backend.

    :raises HostError: pip cannot build it.
    """
    with stop.temporary("thicket-wheel-") as temporary:
        # A copy, because building leaves files in the project.
        source = temporary / "source"
        _copy(project, source)
        runner.run(
            [
                sys.executable,
                "-m",
                "pip",
                "wheel",
                "--disable-pip-version-check",
                "--no-input",
                "--no-deps",
                # nothing may be fetched: neither a backend nor what setup.py asks for
                "--no-build-isolation",
                "--no-index",
                f"--wheel-dir={directory}",
                source,
            ],
            log,
            what=f"building {project.name}",
        )
    (wheel,) = directory.glob("*.whl")
    return wheel


def _copy(project: Path, target: Path) -> None:
    """Copy a project: its files and folders, links to its own files, and nothing else.

    :raises WheelError: it holds something else, or too much.
    """
    own, count, total = project.resolve(), 0, 0
    waiting = [(project, target, 0)]
    while waiting:
        folder, copy, depth = waiting.pop()
        if depth > MOST_DEEP:
            raise WheelError(f"{project}: more than {MOST_DEEP} folders are in each other")
        copy.mkdir()
        for one in sorted(folder.iterdir()):
            where, count = f"{project}: {_plain(one.relative_to(project))}", count + 1
            if count > MOST_FILES:
                raise WheelError(
                    f"{project} has more than {MOST_FILES} files: is it the project's folder?"
                )
            if not one.name.isprintable():
                raise WheelError(f"{where} is a name that cannot be shown: give it another one")
            if one.is_dir() and not one.is_symlink():
                if not (one / _ENVIRONMENT).is_file():
                    waiting.append((one, copy / one.name, depth + 1))
                continue
            if one.is_symlink() and not (one.is_file() and one.resolve().is_relative_to(own)):
                raise WheelError(
                    f"{where} is a link, and not to a file of the project: put there what it leads "
                    "to, or remove it"
                )
            if not one.is_file():
                raise WheelError(f"{where} is neither file nor folder: remove it")
            total += one.stat().st_size
            if total > MOST_UNPACKED:
                raise WheelError(
                    f"{project} has more than {MOST_UNPACKED >> 20} MiB: is it the project's "
                    "folder? What is not needed to build it belongs elsewhere"
                )
            shutil.copy2(one, copy / one.name)


def _plain(name: object) -> str:
    """Return a name in printable characters."""
    text = str(name)
    return text if text.isprintable() else ascii(text)


def check_backend(project: Path) -> None:
    """Make sure that what builds a project is installed here.

    :raises WheelError: when it is not; the text says what to do.
    """
    path = project / "pyproject.toml"
    try:
        system = tomllib.loads(path.read_text(encoding="utf-8")).get("build-system", {})
        # what pip takes where there is none (PEP 517 and 518)
        backend = str(system.get("build-backend", "setuptools.build_meta:__legacy__"))
        required = [Requirement(one) for one in system.get("requires", ["setuptools"])]
        own = "backend-path" in system
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise WheelError(f"{path}: {error}") from None
    missing = [str(one) for one in required if not _installed(one)]
    module = backend.partition(":")[0].partition(".")[0]
    if not missing and not own and importlib.util.find_spec(module) is None:
        missing = [module]
    if missing:
        raise WheelError(
            f"{path}: building it needs {', '.join(missing)}, which is not in constraints.txt. "
            "Add it to constraints.in and run `make lock`, so that it comes by its hash, or build "
            "with setuptools"
        )


def _installed(required: Requirement) -> bool:
    """Tell whether a package is here in a version that will do, or is not needed here."""
    if required.marker is not None and not required.marker.evaluate():
        return True
    if required.name == "wheel":  # setuptools makes wheels by itself from 70.1 on
        return True
    try:
        version = importlib.metadata.version(required.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return required.specifier.contains(version, prereleases=True)


def unpack(
    wheel: Path, directory: Path, keep: Callable[[PurePath], bool], *, beside: bool = False
) -> None:
    """Unpack what is wanted of a wheel.

    :param beside: others were unpacked there, of which nothing may be replaced.
    :raises WheelError: it holds a path that leaves it or cannot be shown, unpacks to too much,
        replaces something, or is damaged.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            _unpack(archive, wheel.name, directory, keep, beside=beside)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise WheelError(
            f"{wheel.name} is damaged, or no wheel ({error}): get it anew, or do without it"
        ) from None
    except OSError as error:
        raise WheelError(
            f"{wheel.name} cannot be unpacked: {_plain(error.filename)[-60:]}: {error.strerror}"
        ) from None


def _unpack(
    archive: zipfile.ZipFile,
    wheel: str,
    directory: Path,
    keep: Callable[[PurePath], bool],
    *,
    beside: bool,
) -> None:
    total = count = 0
    for entry in archive.infolist():
        name = PurePath(entry.filename)
        if entry.is_dir() or not name.parts:
            continue
        if name.is_absolute() or ".." in name.parts:
            raise WheelError(f"{wheel} holds a path that leaves it: {_plain(name)}")
        if not entry.filename.isprintable():
            raise WheelError(f"{wheel} holds a name that cannot be shown: {_plain(name)}")
        if len(name.parts) > MOST_DEEP:
            raise WheelError(f"{wheel} has more than {MOST_DEEP} folders in each other")
        if not keep(name):
            continue
        total += entry.file_size  # no more than that is unpacked
        count += 1
        if total > MOST_UNPACKED or count > MOST_FILES:
            raise WheelError(
                f"{wheel} unpacks to more than {MOST_UNPACKED >> 20} MiB or {MOST_FILES} files: do "
                "without it"
            )
        target, data = directory / name, archive.read(entry)
        if beside and target.exists() and target.read_bytes() != data:
            raise WheelError(
                f"{wheel} brings {entry.filename}, which another one brings as well, with "
                "other contents: do without one of them"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        target.chmod(0o644)

# SPDX-License-Identifier: Apache-2.0
"""Python projects and wheels: what images and applications are made of."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePath

from packaging.requirements import Requirement

from host.errors import HostError
from host.run import Runner

MOST_UNPACKED = 1 << 30
"""Bytes that a wheel may unpack to."""


class WheelError(HostError):
    """A project or a wheel is not as it should be; the text says what to do."""


def build(runner: Runner, log: Path, project: Path, directory: Path) -> Path:
    """Make the wheel of a project, put it into ``directory``, and return its path.

    It is built by what is installed here, which came by its hash. pip's isolation is off: it would
    fetch and run whatever the index has under the name of the project's build backend.

    :raises HostError: pip cannot build it.
    """
    with tempfile.TemporaryDirectory(prefix="thicket-wheel-") as temporary:
        # A copy, because building leaves files in the project.
        source = Path(temporary, "source")
        shutil.copytree(project, source)
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
    :raises WheelError: it holds a path that leaves it, unpacks to too much, or replaces something.
    """
    total = 0
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            name = PurePath(entry.filename)
            if entry.is_dir() or not name.parts:
                continue
            if name.is_absolute() or ".." in name.parts:
                raise WheelError(f"{wheel.name} holds a path that leaves it: {entry.filename}")
            if not keep(name):
                continue
            total += entry.file_size  # no more than that is unpacked
            if total > MOST_UNPACKED:
                raise WheelError(
                    f"{wheel.name} unpacks to more than {MOST_UNPACKED >> 20} MiB: do without it"
                )
            target, data = directory / name, archive.read(entry)
            if beside and target.exists() and target.read_bytes() != data:
                raise WheelError(
                    f"{wheel.name} brings {entry.filename}, which another one brings as well, with "
                    "other contents: do without one of them"
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            target.chmod(0o644)

# SPDX-License-Identifier: Apache-2.0
"""Debian's packages by mmdebstrap, without root, without a name space, without a chroot.

The mode ``chrootless`` together with a variant that runs nothing (``extract``, ``custom``) only
downloads, verifies signatures and unpacks, whoever runs it and in whatever container.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from host.errors import HostError
from host.run import Runner
from meshlab.image.errors import ImageError

MIRROR = "THICKET_DEBIAN_MIRROR"
"""Environment variable: a mirror, or a line of sources.list, instead of mmdebstrap's default."""


def _command(suite: str, architecture: str, variant: str, directory: Path) -> list[str]:
    command = [
        "mmdebstrap",
        "--mode=chrootless",
        f"--variant={variant}",
        f"--architectures={architecture}",
        "--components=main",
        "--format=directory",
        # A mirror that fails for a moment must not end a build of minutes.
        "--aptopt=Acquire::Retries 5",
        "--aptopt=Acquire::Languages none",
        suite,
        str(directory),
    ]
    mirror = os.environ.get(MIRROR)
    return [*command, mirror] if mirror else command


def _explain(error: HostError) -> ImageError:
    return ImageError(
        f"{error}\nIf a mirror could not be reached: check the network, or name another one in "
        f"{MIRROR}"
    )


def _download(directory: Path, packages: Iterable[str]) -> str:
    """Return a hook of mmdebstrap that downloads packages to ``directory``, and stays there."""
    return (
        f"cd {shlex.quote(str(directory))} && "
        f'APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get download {shlex.join(packages)}'
    )


def _note(directory: Path) -> str:
    """Return a hook of mmdebstrap that notes what each package is and which files it has."""
    # The first line of each note: name, version, architecture; then paths, as dpkg-deb lists them.
    return (
        'for deb in "$1"/var/cache/apt/archives/*.deb; do '
        "name=$(dpkg-deb -W --showformat='${Package}' \"$deb\") || exit 1; "
        "{ dpkg-deb -W --showformat='${Package} ${Version} ${Architecture}\\n' \"$deb\" && "
        'dpkg-deb --fsys-tarfile "$deb" | tar -t; '
        f'}} >{shlex.quote(str(directory))}/"$name" || exit 1; done'
    )


def extract(
    runner: Runner,
    log: Path,
    *,
    suite: str,
    architecture: str,
    packages: Iterable[str],
    directory: Path,
    aside: Iterable[str] = (),
    aside_directory: Path | None = None,
    notes: Path | None = None,
) -> None:
    """Unpack ``packages`` and all that they depend on into ``directory``, running none of it.

    The packages ``aside`` are unpacked alone, each to ``aside_directory/NAME``. What each
    of the others is, and which files it has, is noted in ``notes/NAME`` (see ``userland.note``).
    """
    command = _command(suite, architecture, "extract", directory)
    options = [f"--include={','.join(packages)}"]
    if notes is not None:
        notes.mkdir()
        options.append(f"--extract-hook={_note(notes)}")
    if aside_directory is not None:
        aside_directory.mkdir()
        options += [
            f"--extract-hook={_download(aside_directory, [name])}"
            f" && dpkg-deb -x {shlex.quote(name)}_*.deb {shlex.quote(name)}"
            for name in aside
        ]
    try:
        runner.run(
            [*command[:1], *options, *command[1:]],
            log,
            what="unpacking Debian's packages",
        )
    except HostError as error:
        raise _explain(error) from error


def download(
    runner: Runner,
    log: Path,
    *,
    suite: str,
    architecture: str,
    packages: Iterable[str],
    directory: Path,
) -> dict[str, Path]:
    """Download ``packages``, without what they depend on, to ``directory``: name -> .deb file."""
    wanted = list(packages)
    command = _command(suite, architecture, "custom", directory / "root")
    hook = _download(directory, wanted)
    try:
        runner.run(
            [*command[:1], f"--extract-hook={hook}", *command[1:]],
            log,
            what="downloading from Debian",
        )
    except HostError as error:
        raise _explain(error) from error
    found = {}
    for name in wanted:
        files = sorted(directory.glob(f"{name}_*.deb"))
        if len(files) != 1:
            raise ImageError(f"apt-get download left {len(files)} files of {name}: see {log}")
        found[name] = files[0]
    return found

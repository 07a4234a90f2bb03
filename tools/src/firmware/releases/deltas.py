# SPDX-License-Identifier: Apache-2.0
"""What makes a new bundle of an older one: which older bundles there are, and their deltas."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from firmware.releases import index
from firmware.releases.errors import ReleaseError
from thicket.update import bundle as bundles
from thicket.update.errors import BundleError

ENDING = ".patch"


Make = Callable[[Path, Path, Path | None], object]
"""Makes a delta: of which signed bundle, into which file, from which older bundle.

None for the last: from nothing, so that it is the whole bundle, packed.
"""


class Older(NamedTuple):
    """A bundle of an older version."""

    path: Path
    compatible: str
    version: str


def older(names: Iterable[str]) -> list[Older]:
    """Return the bundles that a person names: folders of releases, or files.

    :raises ReleaseError: there is none where one is named.
    """
    found = []
    for name in names:
        path = Path(name)
        files = _in_release(path) if path.is_dir() else [path]
        found += [_read(file) for file in files]
    return found


def _in_release(folder: Path) -> list[Path]:
    try:
        with (folder / index.FILE).open("rb") as file:
            said = index.read(file.read(index.MAX_BYTES + 1))
    except OSError as error:
        raise ReleaseError(
            f"FROM: {folder} is no release: {index.FILE}: {error.strerror}"
        ) from None
    return [folder / file.name for file in said.files if file.kind == index.BUNDLE]


def _read(path: Path) -> Older:
    try:
        with path.open("rb") as file:
            manifest = bundles.read(file).manifest
    except OSError as error:
        raise ReleaseError(f"FROM: {path}: {error.strerror}") from None
    except BundleError as error:
        raise ReleaseError(f"FROM: {path}: {error}") from None
    return Older(path, manifest.compatible, manifest.version)

# SPDX-License-Identifier: Apache-2.0
"""What a release takes of a board that Buildroot builds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from firmware import boards, bundle
from firmware.build import Build, BuildError, locked
from firmware.releases import licences, sbom
from firmware.releases.errors import ReleaseError
from firmware.releases.make import Parts
from host.kconfig import FragmentError

_TARGETS = ("bundle", "sbom", "legal-info")


def parts(board: str, toolchain: str = boards.TOOLCHAIN, extra: Sequence[Path] = ()) -> Parts:
    """Build a board as far as that is not done, with its update, and collect its licences.

    :param toolchain: as ``Build`` has it.
    :param extra: likewise.
    :raises ReleaseError: it cannot be built.
    """
    try:
        build = Build(boards.load(board), toolchain=toolchain, extra=extra)
        with locked(build.output):
            build.configure()
            for target in _TARGETS:
                build.target(target)
    except (boards.BoardError, BuildError, FragmentError) as error:
        raise ReleaseError(f"{board}: {error}") from None
    return read(build.output)


def read(output: Path) -> Parts:
    """Return what a build has left.

    :param output: Buildroot's output directory.
    :raises ReleaseError: it is not complete.
    """
    images = output / "images"
    try:
        said = bundle.release(images)
    except bundle.BundleMakingError as error:
        raise ReleaseError(str(error)) from None
    bill = images / "sbom.cyclonedx.json"
    found = Parts(
        said.board,
        said.version,
        said.epoch,
        said.build,
        images / "card.img",
        images / said.filename,
        partial(_bill, bill),
        (licences.own(said.version), *licences.of_buildroot(output / "legal-info")),
    )
    for path in (found.card, found.bundle, bill):
        if not path.is_file():
            raise ReleaseError(f"{path} is missing: build {said.board} again")
    return found


def _bill(path: Path, date: str) -> bytes:
    return sbom.normalised(path.read_bytes(), date)

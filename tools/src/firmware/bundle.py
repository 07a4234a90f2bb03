# SPDX-License-Identifier: Apache-2.0
"""Makes unsigned update bundles of what a build leaves: ``make rpi64-bundle`` and its like.

A bundle is a squashfs with the manifest, the boot image, the root with its hash tree, and the hook
that RAUC calls (``board/common/bundle/hook``); ``thicket.update.bundle`` tells of its file. The
images lie in it uncompressed, so that a change of a file is a change of a few bytes of the bundle:
deltas are small. The same inputs make the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from hashlib import file_digest
from io import BufferedRandom
from pathlib import Path
from typing import NamedTuple

from firmware.boards import ROOT
from host import stop
from host.errors import HostError
from thicket.update import bundle, verity
from thicket.update.manifest import Image, Manifest, Verity
from thicket.update.verity import BLOCK

BOOT, ROOT_IMAGE = "boot.vfat", "root.verity"
"""What ``board/common/post-image.sh`` leaves for bundles."""

ENDING = ".unsigned"

_HOOK = "hook"
_HOOK_FILE = ROOT / "board/common/bundle" / _HOOK
_IN_BUNDLE = "root.img"
"""The name of the root in the bundle: RAUC knows by the ending how to write it."""

_SQUASHFS = (
    "-noappend", "-no-progress", "-quiet", "-reproducible",
    "-comp", "gzip", "-noI", "-noD", "-noF", "-noX", "-no-fragments",
    "-all-root", "-root-mode", "0755", "-no-xattrs", "-no-exports",
    "-mkfs-time", "0", "-all-time", "0",
)  # fmt: skip
_PATIENCE = 600.0


class BundleMakingError(HostError):
    """A bundle cannot be made; the text says why and what to do."""


class Release(NamedTuple):
    """What a bundle says of itself.

    :ivar board: which device it is for.
    :ivar build: the commit that it was built from.
    :ivar root: dm-verity root hash of the root.
    """

    board: str
    version: str
    epoch: int
    build: str
    root: str

    @property
    def filename(self) -> str:
        """The name of the bundle's file while it is unsigned."""
        return f"thicket-{self.board}-{self.version}{ENDING}"


def check_tools() -> None:
    """Make sure that bundles can be made, before an image is built for one.

    :raises BundleMakingError: squashfs-tools are missing.
    """
    if not shutil.which("mksquashfs", path=_path()):
        raise BundleMakingError(
            "mksquashfs is missing. Install it with:\n"
            "    sudo apt-get install --no-install-recommends squashfs-tools"
        )


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def release(images: Path) -> Release:
    """Return what a build says of itself in ``manifest.json``.

    :param images: the folder that the build has left its images in.
    :raises BundleMakingError: it has none, or one of before there were bundles.
    """
    path = images / "manifest.json"
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return Release(
            str(said["board"]),
            str(said["version"]),
            int(said["epoch"]),
            str(said["commit"]),
            str(said["root_hash"]),
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise BundleMakingError(f"{path} does not say what was built: {error!r}") from None


def make(images: Path, out: Path, said: Release) -> Path:
    """Make an unsigned bundle of the images in a folder; return its path.

    :param out: the folder that it is put into.
    :raises BundleMakingError: an image is missing, or squashfs-tools.
    """
    check_tools()
    path = out / said.filename
    with stop.temporary(".bundle-", out) as work:
        manifest = _collect(images, work / "contents", said)
        new = work / "bundle"
        _squashfs(work / "contents", new)
        with new.open("r+b") as file:
            _finish(file, manifest)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    return path


def _collect(images: Path, folder: Path, said: Release) -> Manifest:
    """Put everything that is in a bundle into a folder."""
    folder.mkdir()
    parts = []
    for slot, source, name, hooks in (
        ("boot", BOOT, BOOT, ("post-install",)),
        ("rootfs", ROOT_IMAGE, _IN_BUNDLE, ()),
    ):
        try:
            digest, size = _copy(images / source, folder / name)
        except OSError as error:
            raise BundleMakingError(
                f"{images / source} is needed: {error.strerror}. Build the image again"
            ) from None
        parts.append(Image(slot, name, digest, size, hooks))
    shutil.copyfile(_HOOK_FILE, folder / _HOOK)
    manifest = Manifest(
        f"thicket-{said.board}",
        said.version,
        said.build,
        tuple(parts),
        _HOOK,
        {"thicket": {"epoch": str(said.epoch), "root": said.root}},
    )
    (folder / "manifest.raucm").write_bytes(manifest.text())
    return manifest


def _copy(source: Path, target: Path) -> tuple[str, int]:
    """Link or copy a file; return its SHA-256 and its size."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    with target.open("rb") as file:
        return file_digest(file, "sha256").hexdigest(), target.stat().st_size


def _squashfs(folder: Path, path: Path) -> None:
    modes = [
        word
        for one in folder.iterdir()
        for word in ("-p", f"{one.name} m {'555' if one.name == _HOOK else '444'} 0 0")
    ]
    environment = {k: v for k, v in os.environ.items() if k != "SOURCE_DATE_EPOCH"}
    environment["PATH"] = _path()
    try:
        done = stop.run(
            ["mksquashfs", folder, path, *_SQUASHFS, *modes], env=environment, timeout=_PATIENCE
        )
    except subprocess.TimeoutExpired:
        raise BundleMakingError(f"mksquashfs did not end within {_PATIENCE:g} s") from None
    if done.returncode != 0:
        raise BundleMakingError(f"mksquashfs failed: {done.stderr.strip()[-1000:]}")


def _finish(file: BufferedRandom, manifest: Manifest) -> None:
    """Put hash tree and manifest behind the squashfs."""
    size = file.seek(0, os.SEEK_END)
    file.write(bytes(-size % BLOCK))
    size = file.tell()
    file.seek(0)
    # Made of the contents, so that these make the same bundle each time.
    salt = file_digest(file, "sha256").digest()
    tree = verity.tree(file, size, salt)
    file.seek(size)
    file.write(tree.blocks)
    named = Verity(tree.root.hex(), salt.hex(), len(tree.blocks))
    file.write(bundle.end(manifest._replace(verity=named).text()))

# SPDX-License-Identifier: Apache-2.0
"""Small files of applications with real squashfs and signature, and a mounter without root."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from bundles_for_tests import update_key
from fleet_for_tests import one_fleet

from authority.holders import Holder
from thicket.applications.app_file import SITE, About
from thicket.trust import cms, signed_file

ABOUT = About(
    name="lamp",
    version="1.0",
    number=1_000,
    fleet=one_fleet().fleet.identifier,
    least="0.1",
    below="",
    python="3.13",
    architecture="any",
    applications=("lamp",),
    modules=("lamp_app",),
    size=4096,
    sha256=sha256(b"hsqs" + bytes(4092)).digest(),
)

LAMP = """
from thicket.applications import Application

VERSION = {version!r}

class Lamp(Application):
    async def start(self):
        self.node.export("lamp.version")(self.version)
        {start}

    async def version(self):
        return VERSION

    def health(self):
        {health}
"""


def lamp(version: str, start: str = "pass", health: str = "return None") -> dict[str, str]:
    """Return the files of a small application, as below ``site``."""
    return {
        "lamp_app.py": LAMP.format(version=version, start=start, health=health),
        f"lamp-{version}.dist-info/entry_points.txt": (
            "[thicket.applications]\nlamp = lamp_app:Lamp\n"
        ),
    }


class Key(Protocol):
    """A key of an update signer."""

    def message(self, content: bytes, /) -> bytes:
        """Return a signed message."""


class SignerKey:
    """The key of a signer that an authority has made."""

    def __init__(self, signer: Holder) -> None:
        self._signer = signer

    def message(self, content: bytes, /) -> bytes:
        signer = self._signer
        return cms.sign(content, signer.certificate, datetime.now(UTC), signer.key.sign)


def packed(
    folder: Path,
    files: Mapping[str, str],
    about: About = ABOUT,
    key: Key | None = None,
    squashfs: Sequence[str] = ("-comp", "gzip", "-no-xattrs"),
) -> Path:
    """Write a signed file with these files below ``site``; return its path.

    :param squashfs: arguments of mksquashfs.
    """
    tree = folder / f"tree-{about.name}-{about.version}-{about.number}"
    for name, text in files.items():
        path = tree / SITE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    out = folder / f"{about.name}-{about.version}-{about.number}.app"
    out.unlink(missing_ok=True)
    subprocess.run(
        ["mksquashfs", tree, out, "-noappend", "-quiet", "-no-progress", "-all-root",
         "-all-time", "0", "-mkfs-time", "0", *squashfs],
        check=True, capture_output=True,
    )  # fmt: skip
    contents = out.read_bytes()
    about = about._replace(size=len(contents), sha256=sha256(contents).digest())
    out.write_bytes(contents + signed_file.pack((key or update_key()).message(about.text())))
    return out


class Unpacking:
    """A mounter that unpacks.

    :ivar mounted: the folders.
    """

    def __init__(self) -> None:
        self.mounted: set[str] = set()

    def mount(self, file: str, folder: str, *, executable: bool) -> None:
        subprocess.run(
            ["unsquashfs", "-f", "-n", "-d", folder, file], check=True, capture_output=True
        )
        self.mounted.add(folder)

    def unmount(self, folder: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.mounted.discard(folder)

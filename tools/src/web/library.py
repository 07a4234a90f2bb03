# SPDX-License-Identifier: Apache-2.0
"""The graph library of the page, from npm's registry by hash, kept in the cache.

d3-force computes where the nodes of the map go; it is made of four small packages without anything
to build. They are fetched when the page is served for the first time. The registry is npm's own
setting; what comes from it is taken only if its SHA-512 is the one below.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

from host.cache import cache_root
from web.errors import WebError

_SECONDS: Final = 180.0
_MOST_BYTES: Final = 1 << 20


class Package(NamedTuple):
    """A package of npm.

    :ivar integrity: SHA-512 of its tarball, in base64.
    """

    name: str
    version: str
    integrity: str

    @property
    def file(self) -> str:
        """What the page loads of it."""
        return f"{self.name}.min.js"


#: In the order in which the page loads them. Licence: ISC.
PACKAGES: Final = (
    Package(
        "d3-dispatch",
        "3.0.2",
        "sAzH4Y4nsLo8eSqw5jKiZt+LU2wZmL/qS+OkxQGjhwazB/D7TY34R/QK1eshfGr7cZEKymKZ/Haem7m+lu98Sg==",
    ),
    Package(
        "d3-quadtree",
        "3.0.2",
        "9Lu9mqJKRbIk0d6mKDjpvPURaPdwHVK5CYbcdd0/4vBgz4ldz/7TIOse3kNERsByGNfld58KEco507AztJWyTQ==",
    ),
    Package(
        "d3-timer",
        "3.0.2",
        "1Il1aliroVSErrv5aulRBxAY+7+DnaoLIWGd1C6SsBTWDeobWiP/V69vwb8vT6abR1kKwaNe1196pmaQ1fK90A==",
    ),
    Package(
        "d3-force",
        "3.0.1",
        "kAaaHLFebBYwgi5cYBXAI8vKrQFMCD2MEswj2QuPKKbdU1wYLc8WXtS7O8F/b6POCIe3gJjY6hkDstHi1yMETQ==",
    ),
)


def scripts(cache: Path | None = None) -> dict[str, bytes]:
    """Return the library's files by their names; fetch them where the cache lacks them.

    :raises WebError: they cannot be had; the text says what to do.
    """
    folder = (cache or cache_root()) / "web"
    found = {}
    for package in PACKAGES:
        kept = folder / f"{package.name}-{package.version}.tgz"
        tarball = kept.read_bytes() if kept.is_file() else b""
        if not _right(package, tarball):
            tarball = _fetched(package)
            folder.mkdir(parents=True, exist_ok=True)
            part = folder / f"{kept.name}.{os.getpid()}.part"
            part.write_bytes(tarball)
            part.replace(kept)
        found[package.file] = _script(package, tarball)
    return found


def _right(package: Package, tarball: bytes) -> bool:
    digest = hashlib.sha512(tarball).digest()
    return base64.b64encode(digest).decode() == package.integrity


def _fetched(package: Package) -> bytes:
    npm = shutil.which("npm")
    what = f"{package.name} {package.version}"
    if npm is None:
        raise WebError(
            "no-npm",
            f"the page needs {what}, which npm fetches once, and npm is missing. Install it with:\n"
            "    sudo apt-get install --no-install-recommends npm",
        )
    with tempfile.TemporaryDirectory(prefix="thicket-") as folder:
        try:
            done = subprocess.run(
                [npm, "pack", "--silent", "--ignore-scripts", f"{package.name}@{package.version}"],
                cwd=folder, capture_output=True, check=False, timeout=_SECONDS,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise WebError(
                "not-fetched", f"npm has not fetched {what} within {_SECONDS:g} s; try again"
            ) from None
        made = Path(folder) / f"{package.name}-{package.version}.tgz"
        if done.returncode or not made.is_file() or made.stat().st_size > _MOST_BYTES:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            why = said[0][:200] if said else f"it ended with status {done.returncode}"
            raise WebError(
                "not-fetched",
                f"npm cannot fetch {what} ({why}). This is needed once, with the internet; "
                "afterwards it is in the cache",
            )
        tarball = made.read_bytes()
    if not _right(package, tarball):
        raise WebError(
            "other-contents",
            f"what npm has fetched as {what} is not what this version of Thicket was made with: "
            "it is not used. Look whose registry `npm config get registry` names",
        )
    return tarball


def _script(package: Package, tarball: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(tarball), mode="r:gz") as archive:
        member = archive.extractfile(f"package/dist/{package.file}")
        assert member is not None  # its hash was right
        return member.read()

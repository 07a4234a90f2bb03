# SPDX-License-Identifier: Apache-2.0
"""What the engineer's machine must have for an image to be built on it.

``host-packages.txt`` at the tree's root is the one list of packages. Here a program or header is
probed for each package that image building uses, because it may also have come another way.
"""

from __future__ import annotations

import platform
import re
import shutil
from pathlib import Path

from meshlab.image.errors import ImageError

PROGRAMS = {
    "apt-get": "apt",
    "bc": "bc",
    "bison": "bison",
    "depmod": "kmod",
    "dpkg-deb": "dpkg",
    "flex": "flex",
    "gcc": "gcc",
    "ld": "binutils",
    "make": "make",
    "mkfs.erofs": "erofs-utils",
    "mmdebstrap": "mmdebstrap",
    "perl": "perl",
    "setpriv": "util-linux",
    "tar": "tar",
    "xz": "xz-utils",
}
"""Programs that a build runs, and the package that brings each."""

FILES = {
    "/usr/include/gelf.h": "libelf-dev",
    "/usr/include/linux/netlink.h": "linux-libc-dev",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
}
"""Files that a build reads (headers, Debian's keys), and the package that brings each."""

PRESENT_EVERYWHERE = {"apt", "dpkg", "perl", "tar", "util-linux"}
"""Packages that every Debian and Ubuntu has; they are probed but not listed."""


def listed(path: Path) -> dict[str, set[str]]:
    """Return the packages of ``host-packages.txt`` by group.

    Each line is ``GROUP PACKAGE``; ``#`` starts a comment.
    """
    groups: dict[str, set[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.partition("#")[0].split()
        if words:
            group, package = words
            groups.setdefault(group, set()).add(package)
    return groups


def missing(programs: dict[str, str], files: dict[str, str]) -> list[str]:
    """Return the packages that have to be installed for these programs and files to be there."""
    # Administrators' programs are not always on an ordinary user's path.
    places = f"{_path()}:/usr/local/sbin:/usr/sbin:/sbin"
    packages = {
        package for name, package in programs.items() if not shutil.which(name, path=places)
    }
    packages |= {package for name, package in files.items() if not Path(name).exists()}
    return sorted(packages)


def _path() -> str:
    import os

    return os.environ.get("PATH", os.defpath)


def check(cache: Path, what: str) -> None:
    """Raise ``ImageError`` unless this machine can build an image into ``cache``.

    :param what: The image, for people.
    """
    if platform.machine() not in ("x86_64", "amd64"):
        raise ImageError(
            f"the {what} is made with Debian's amd64 programs and this machine's gcc; this machine "
            f"is {platform.machine()}. Build it on x86-64"
        )
    packages = missing(PROGRAMS, FILES)
    if packages:
        raise ImageError(
            f"programs that build the {what} are missing. Install them with:\n"
            f"    apt-get install --no-install-recommends {' '.join(packages)}"
        )
    if re.search(r"[\s:]", str(cache)):
        raise ImageError(
            f"a kernel cannot be built below {cache}: its makefiles take no spaces or colons in "
            "names of directories. Set THICKET_CACHE to another place"
        )

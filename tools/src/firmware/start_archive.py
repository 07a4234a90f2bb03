# SPDX-License-Identifier: Apache-2.0
"""Puts the byte code of the daemon's start into one file: ``start_archive.py ROOT``.

``thicket.base.archive`` tells why, and reads it. Everything of ``thicket`` goes in, and of the
other packages and Python's library what ``start_modules.txt`` names; a name that this Python does
not have is passed over. Run by the firmware's ``post-build.sh`` with nothing but Python, and for
the lab image.
"""

from __future__ import annotations

import marshal
import sys
from pathlib import Path

NAMES = Path(__file__).with_name("start_modules.txt")
PLACE = "usr/lib/thicket/start.archive"
_HEAD = 16
"""Bytes before the code in a ``.pyc`` (PEP 552): the magic number, flags, and what they tell of."""


def names() -> list[str]:
    """Return the modules of others that a start imports."""
    lines = NAMES.read_text(encoding="ascii").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def find(root: Path) -> dict[str, Path]:
    """Return the byte code of a start in a root file system, by the modules' names."""
    (library,) = (root / "usr" / "lib").glob("python3.*")
    packages = library / "site-packages"
    found = {}
    for path in sorted((packages / "thicket").rglob("*.pyc")):
        parts = path.relative_to(packages).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    for name in names():
        place = name.replace(".", "/")
        for path in (
            library / f"{place}.pyc",
            library / place / "__init__.pyc",
            packages / f"{place}.pyc",
            packages / place / "__init__.pyc",
        ):
            if path.is_file():
                found[name] = path
                break
    return found


def make(root: Path) -> bytes:
    """Return the archive of a root file system.

    :raises ValueError: its modules are of different interpreters.
    """
    codes: list[bytes] = []
    rows = []
    magics = set()
    for name, path in sorted(find(root).items()):
        data = path.read_bytes()
        magics.add(data[:4])
        codes.append(data[_HEAD:])
        rows.append((name, f"/{path.relative_to(root)}", path.name == "__init__.pyc"))
    if len(magics) != 1:
        raise ValueError(f"byte code of {len(magics)} kinds: {magics}")
    # Where codes begin depends on the table's length, which does not depend on the numbers in it.
    table: dict[str, tuple[int, int, str, bool]] = {}
    length = 0
    while True:
        offset = 8 + length
        for (name, origin, package), code in zip(rows, codes, strict=True):
            table[name] = (offset, len(code), origin, package)
            offset += len(code)
        written = marshal.dumps(table, 2)
        if len(written) == length:
            break
        length = len(written)
    return magics.pop() + length.to_bytes(4, "little") + written + b"".join(codes)


def write(root: Path) -> None:
    """Put the archive into a root file system."""
    place = root / PLACE
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(make(root))


if __name__ == "__main__":
    write(Path(sys.argv[1]))

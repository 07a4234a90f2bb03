# SPDX-License-Identifier: Apache-2.0
"""Boards as data: ``board/NAME/board.conf`` and the fragments that it names.

The file is plain ``NAME="value"`` lines, because board/common/post-image.sh reads it as well.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
"""The checkout that this package belongs to."""

TOOLCHAIN = "bootlin"
"""The toolchain of the checked-in configurations."""

_LINE = re.compile(r'([A-Z_]+)="([^"$`\\]*)"')


class BoardError(Exception):
    """A board, fragment or toolchain that there is not, or a file of one that is not as it must be.

    The text says what was found and what there is.
    """


@dataclass(frozen=True)
class Board:
    """A board: what one configuration is made for.

    :ivar arch: ``aarch64`` or ``x86_64``.
    :ivar fragments: names in ``configs/fragments``, without suffix, in the order in which they
        apply.
    :ivar linux: folders ``board/X/linux`` whose files make the kernel's configuration, in order.
    """

    name: str
    arch: str
    fragments: tuple[str, ...]
    linux: tuple[str, ...]
    root: Path = ROOT

    def linux_fragments(self) -> list[Path]:
        """Return the kernel fragments in the order in which they apply; later lines win."""
        return [
            path
            for folder in self.linux
            for path in sorted((self.root / "board" / folder / "linux").glob("*.config"))
        ]

    def buildroot_fragments(self, toolchain: str = TOOLCHAIN) -> list[Path]:
        """Return the Buildroot fragments in the order in which they apply.

        :param toolchain: the end of a name in ``configs/fragments``, with or without the board's
            architecture behind it, or the path of a file.
        :raises BoardError: when there is no such toolchain.
        """
        folder = self.root / "configs" / "fragments"
        files = [folder / f"{name}.config" for name in self.fragments]
        for path in files:
            if not path.is_file():
                raise BoardError(f"{self.name}: there is no fragment {path}")
        return [*files, self._toolchain(folder, toolchain)]

    def _toolchain(self, folder: Path, name: str) -> Path:
        places = [
            folder / f"toolchain-{name}-{self.arch}.config",
            folder / f"toolchain-{name}.config",
            Path(name),
        ]
        for path in places:
            if path.is_file():
                return path.absolute()
        known = sorted(
            path.stem.removeprefix("toolchain-").removesuffix(f"-{self.arch}")
            for path in folder.glob("toolchain-*.config")
            if path.stem.endswith(self.arch) or "-" not in path.stem.removeprefix("toolchain-")
        )
        raise BoardError(
            f"there is no toolchain {name!r}: TOOLCHAIN is {', '.join(known)}, or the path of a "
            "file with Buildroot's lines for one"
        )


def names(root: Path = ROOT) -> list[str]:
    """Return the names of all boards."""
    return sorted(path.parent.name for path in (root / "board").glob("*/board.conf"))


def load(name: str, root: Path = ROOT) -> Board:
    """Read a board.

    :raises BoardError: when there is none of that name, or its file is not as it must be.
    """
    path = root / "board" / name / "board.conf"
    if name not in names(root):
        raise BoardError(f"there is no board {name!r}; there are {', '.join(names(root))}")
    values = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise BoardError(f'{path}:{number}: not a line NAME="value": {line}')
        values[match[1]] = match[2]
    try:
        return Board(
            name=name,
            arch=values["ARCH"],
            fragments=tuple(values["FRAGMENTS"].split()),
            linux=tuple(values["LINUX"].split()),
            root=root,
        )
    except KeyError as error:
        raise BoardError(f"{path}: {error.args[0]} is missing") from None

# SPDX-License-Identifier: Apache-2.0
"""Kconfig fragments: put together into a configuration, and looked up in what Kconfig made of it.

Kconfig drops a line without a word when what it depends on is off, or when it does not know the
option. ``lost`` is the answer to that: every line of every fragment, of Buildroot (``BR2_``) and of
the kernel and BusyBox (``CONFIG_``), is looked for in the finished configuration.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from firmware.boards import TOOLCHAIN, Board

_SET = re.compile(r"((?:CONFIG|BR2)_[A-Za-z0-9_]+)=(.+)")
_UNSET = re.compile(r"# ((?:CONFIG|BR2)_[A-Za-z0-9_]+) is not set")


class FragmentError(Exception):
    """A fragment with a line that Kconfig would skip without a word."""


@dataclass(frozen=True)
class Wanted:
    """One line of a fragment."""

    name: str
    value: str
    """As in ``.config``; ``n`` for "is not set"."""
    origin: str
    """``FILE:LINE``"""


def parse(text: str, file: str) -> list[Wanted]:
    """Return the lines of a configuration, in order.

    Raises ``FragmentError`` for a line that is neither an option nor a comment nor empty.
    """
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        origin = f"{file}:{number}"
        if match := _SET.fullmatch(line.strip()):
            found.append(Wanted(match[1], match[2], origin))
        elif match := _UNSET.fullmatch(line.strip()):
            found.append(Wanted(match[1], "n", origin))
        elif line.strip() and not line.lstrip().startswith("#"):
            raise FragmentError(f"{origin}: not a line of a configuration: {line.strip()!r}")
    return found


def lost(wanted: Iterable[Wanted], config: str) -> list[str]:
    """Return a sentence for each fragment line that is not in the finished configuration.

    Where two lines name one option the later one counts: fragments are read in order.
    """
    have = {line.name: line.value for line in parse(config, ".config")}
    last = {line.name: line for line in wanted}
    return [
        f"{line.origin}: {line.name} should be {_say(line.value)} and is "
        f"{_say(have.get(line.name, 'n'))}"
        for line in last.values()
        if have.get(line.name, "n") != line.value
    ]


def _say(value: str) -> str:
    return "off" if value == "n" else value


def merge(fragments: Iterable[Path], root: Path) -> tuple[str, list[Wanted]]:
    """Return the fragments as one text, and their lines, named relative to ``root``."""
    texts = []
    lines: list[Wanted] = []
    for path in fragments:
        text = path.read_text(encoding="utf-8")
        name = str(path.relative_to(root) if path.is_relative_to(root) else path)
        texts.append(f"# {name}\n{text}\n")
        lines += parse(text, name)
    return "".join(texts), lines


def defconfig(board: Board, toolchain: str = TOOLCHAIN, extra: Iterable[Path] = ()) -> str:
    """Return a board's configuration for Buildroot: its fragments' lines and nothing else.

    ``extra`` are files of the person who builds, read last, so that their lines win. Raises
    ``BoardError`` or ``FragmentError``.
    """
    files = [*board.buildroot_fragments(toolchain), *extra]
    names = ", ".join(path.stem for path in files)
    lines = [f"# Made of configs/fragments by `make defconfigs`; do not edit. {names}."]
    # A fragment that comes later decides; what it overrides is left out, because Kconfig would
    # warn of it at every configuration.
    _text, wanted = merge(files, board.root)
    last = {line.name: line for line in wanted}
    kernel = (
        "$(BR2_EXTERNAL_THICKET_PATH)/" + str(path.relative_to(board.root))
        for path in board.linux_fragments()
    )
    last.setdefault(
        _LINUX, Wanted(_LINUX, f'"{" ".join(kernel)}"', f"board/{board.name}/board.conf")
    )
    for line in last.values():
        lines.append(
            f"# {line.name} is not set" if line.value == "n" else f"{line.name}={line.value}"
        )
    return "\n".join(lines) + "\n"


_LINUX = "BR2_LINUX_KERNEL_CONFIG_FRAGMENT_FILES"


def defconfig_path(board: Board) -> Path:
    """Return the place of a board's checked-in configuration."""
    return board.root / "configs" / f"thicket_{board.name}_defconfig"

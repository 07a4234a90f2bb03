# SPDX-License-Identifier: Apache-2.0
"""The configuration of a board for Buildroot: its fragments, put together."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from firmware.boards import TOOLCHAIN, Board
from host.kconfig import NO_KCONFIG, Kconfig, Wanted, merge, settle


def buildroot_lines(
    board: Board,
    toolchain: str = TOOLCHAIN,
    extra: Iterable[Path] = (),
    known: Kconfig = NO_KCONFIG,
) -> list[Wanted]:
    """Return the lines of a board's configuration for Buildroot, one for each option.

    :param extra: files of the person who builds, read last, so that their lines win.
    :raises BoardError: when a fragment or the toolchain is missing.
    :raises FragmentError: when a fragment has a line that Kconfig would skip.
    """
    _text, ours = merge(board.buildroot_fragments(toolchain), board.root)
    _text, theirs = merge(extra, board.root)
    kernel = (
        "$(BR2_EXTERNAL_THICKET_PATH)/" + str(path.relative_to(board.root))
        for path in board.linux_fragments()
    )
    linux = Wanted(_LINUX, f'"{" ".join(kernel)}"', f"board/{board.name}/board.conf")
    return settle([*ours, linux, *theirs], known)


def defconfig(
    board: Board,
    toolchain: str = TOOLCHAIN,
    extra: Iterable[Path] = (),
    known: Kconfig = NO_KCONFIG,
) -> str:
    """Return these lines as a text, with which Kconfig has nothing to warn of."""
    files = [*board.buildroot_fragments(toolchain), *extra]
    names = ", ".join(path.stem for path in files)
    lines = [f"# Made of configs/fragments by `make defconfigs`; do not edit. {names}."]
    for line in buildroot_lines(board, toolchain, extra, known):
        lines.append(
            f"# {line.name} is not set" if line.value == "n" else f"{line.name}={line.value}"
        )
    return "\n".join(lines) + "\n"


_LINUX = "BR2_LINUX_KERNEL_CONFIG_FRAGMENT_FILES"


def defconfig_path(board: Board) -> Path:
    """Return the place of a board's checked-in configuration."""
    return board.root / "configs" / f"thicket_{board.name}_defconfig"

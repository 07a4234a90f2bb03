# SPDX-License-Identifier: Apache-2.0
"""The few things done with small files, without :mod:`pathlib`, whose import costs as much as
the rest of this package."""

import contextlib
import os


def read(path: str) -> str | None:
    """The text of a small file without the blanks around it, None when it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            return file.read(65536).strip()
    except OSError:
        return None


def write(path: str, text: str, mode: int = 0o644) -> None:
    """Replace a file in one step; nobody sees it half written, or with wider rights than ``mode``.

    Raises OSError.
    """
    temporary = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)  # noqa: PTH108
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write(text)
    os.replace(temporary, path)  # noqa: PTH105


def remove(path: str) -> None:
    """Remove a file if it is there."""
    with contextlib.suppress(OSError):
        os.unlink(path)  # noqa: PTH108


def entries(path: str) -> list[str]:
    """The sorted names in a directory, none when it cannot be read."""
    try:
        return sorted(os.listdir(path))  # noqa: PTH208
    except OSError:
        return []


def link_name(path: str) -> str:
    """Last part of what a symbolic link points to, empty when it is none."""
    try:
        return os.readlink(path).rpartition("/")[2]  # noqa: PTH115
    except OSError:
        return ""

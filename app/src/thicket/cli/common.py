# SPDX-License-Identifier: Apache-2.0
"""What the subcommands of ``thicket`` share: exit statuses and the daemon's address."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from thicket.base.errors import ThicketError

if TYPE_CHECKING:
    from thicket.base.paths import Paths

OK, BAD, USAGE, UNREACHABLE = 0, 1, 2, 3


class UsageError(ThicketError):
    """The command line is wrong."""


@contextmanager
def speaking_of(path: str) -> Iterator[None]:
    """Name a file that the daemon was given, where its answer speaks of "it" or "this"."""
    from thicket.control.client import ClientError

    try:
        yield
    except ClientError as error:
        words = str(error)
        if not words.startswith(("it ", "this is ")):
            raise
        raise ClientError(error.code, f"{path}: {words}") from None


def control_socket() -> str:
    # as in thicket.base.paths.Paths, without importing that module for the common commands
    return os.environ.get("THICKET_ROOT", "").rstrip("/") + "/run/thicket/control.sock"


def node_paths() -> Paths:
    from thicket.base.paths import Paths

    return Paths()

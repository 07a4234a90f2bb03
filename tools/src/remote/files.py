# SPDX-License-Identifier: Apache-2.0
"""Files that come from a node: whole, or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write, which becomes ``path`` at the end, and goes where there is none.

    Only its owner can read it.

    :raises OSError: it cannot be written.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield cast("BinaryIO", file)
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise

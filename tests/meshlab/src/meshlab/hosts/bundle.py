# SPDX-License-Identifier: Apache-2.0
"""The agent as one file: the parts of this tree, and of what it needs, that run on another machine.

Everything in it is Python, so any machine with Python 3.11 can run it, with nothing installed for
it. The same sources give the same bytes: its hash is its version.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import firmware
import host
import meshlab

OLDEST_PYTHON = (3, 11)
QMP = "qemu.qmp"
"""The library that talks to QEMU's monitor."""
_LEFT_OUT = ("bench", "cli", "scenario", "view", "medium")
_DATE = (1980, 1, 1, 0, 0, 0)


class Bundle(NamedTuple):
    """The agent."""

    data: bytes
    """A ZIP file."""
    digest: str


@functools.cache
def bundle() -> Bundle:
    """Return the agent of this tree."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        # Packages in a ZIP file are found by their __init__.py, which a namespace package has not.
        contents = {f"{QMP.partition('.')[0]}/__init__.py": b""}
        contents |= {name: path.read_bytes() for name, path in _files()}
        for name, data in sorted(contents.items()):
            info = zipfile.ZipInfo(name, _DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    whole = packed.getvalue()
    return Bundle(whole, hashlib.sha256(whole).hexdigest())


def _files() -> Iterator[tuple[str, Path]]:
    found = importlib.util.find_spec(QMP)
    assert found is not None
    assert found.origin is not None
    places = [("qemu/qmp", Path(found.origin).parent)]
    places += [
        (package.__name__, Path(str(package.__file__)).parent)
        for package in (meshlab, host, firmware)
    ]
    for name, directory in places:
        for path in directory.rglob("*.py"):
            below = path.relative_to(directory)
            if name == "meshlab" and below.parts[0] in _LEFT_OUT:
                continue
            yield f"{name}/{below.as_posix()}", path

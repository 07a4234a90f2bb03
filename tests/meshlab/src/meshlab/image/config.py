# SPDX-License-Identifier: Apache-2.0
"""The two disks that belong to one node: its configuration and its data."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from host import mtools
from host.errors import HostError
from meshlab.image.errors import ImageError

LABEL = "THICKET"
CONFIG_KIB = 1024
"""Size of the configuration disk; the smallest that leaves room for some files is enough."""
FILE = "thicket.toml"


def make_config_disk(path: Path, toml_text: str) -> None:
    """Write a FAT file system that holds ``toml_text`` as ``thicket.toml``.

    It is to a node what the first partition of its card is to a device. An existing file is
    replaced at once or not at all.

    :raises ImageError: when the tools (dosfstools, mtools) are missing or fail.
    """
    with _replacing(path) as temporary:
        # One volume id for all: nobody tells these disks apart, and the file is the same each time.
        form = ["-C", "-F", "12", "-n", LABEL, "-i", "74686963", "--invariant"]
        _run(["mkfs.fat", *form, str(temporary), str(CONFIG_KIB)])
        _run(["mcopy", "-i", str(temporary), "-", f"::{FILE}"], toml_text.encode())


def make_data_disk(path: Path, mib: int) -> None:
    """Make a blank disk of ``mib`` MiB that takes no room until it is written to."""
    if mib < 8:
        raise ValueError(f"a data disk of {mib} MiB has no room for a journal: 8 is the least")
    with _replacing(path) as temporary, temporary.open("wb") as file:
        file.truncate(mib << 20)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a name in the same directory; it becomes ``path`` when the block ends well."""
    directory = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        temporary = directory / path.name
        yield temporary
        temporary.replace(path)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _run(command: list[str], data: bytes = b"") -> None:
    try:
        done = mtools.run(command, data)
    except HostError as error:
        raise ImageError(str(error)) from None
    if done.failed:
        said = (done.said + done.output.decode(errors="replace")).strip()
        raise ImageError(f"{' '.join(command)} failed ({done.status}): {said}")

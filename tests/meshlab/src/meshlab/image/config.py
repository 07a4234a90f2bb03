# SPDX-License-Identifier: Apache-2.0
"""The two disks that belong to one node: its configuration and its data."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meshlab.image.errors import ImageError

LABEL = "THICKET"
CONFIG_KIB = 1024
"""Size of the configuration disk; the smallest that leaves room for some files is enough."""
FILE = "thicket.toml"

_PLACES = "/usr/local/sbin:/usr/sbin:/sbin"


def make_config_disk(path: Path, toml_text: str) -> None:
    """Write a FAT file system that holds ``toml_text`` as ``thicket.toml``.

    It is to a node what the first partition of its card is to a device. An existing file is
    replaced at once or not at all. Raises ``ImageError`` when the tools (dosfstools, mtools) are
    missing or fail.
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
    search = f"{os.environ.get('PATH', os.defpath)}:{_PLACES}"
    environment = dict(os.environ, PATH=search, MTOOLS_SKIP_CHECK="1", MTOOLSRC="/dev/null")
    try:
        done = subprocess.run(
            command, input=data, capture_output=True, check=False, env=environment, timeout=60
        )
    except FileNotFoundError:
        raise ImageError(
            f"{command[0]} is missing. Install it with:\n"
            "    apt-get install --no-install-recommends dosfstools mtools"
        ) from None
    except subprocess.TimeoutExpired:
        raise ImageError(f"{command[0]} did not end within 60 s") from None
    # mcopy tells of a full disk on standard error only, and ends with 0.
    if done.returncode != 0 or done.stderr:
        said = (done.stderr + done.stdout).decode(errors="replace").strip()
        raise ImageError(f"{' '.join(command)} failed ({done.returncode}): {said}")

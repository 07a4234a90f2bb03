# SPDX-License-Identifier: Apache-2.0
"""What board/common/post-build.sh takes out of a root."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from firmware import boards, start_archive
from thicket.base.paths import Paths
from thicket.update import image

SCRIPT = boards.ROOT / "board/common/post-build.sh"


def library(path: Path, *words: str | Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soname = f"-Wl,-soname,{path.name},--no-as-needed"
    command = ["gcc", "-shared", "-nostdlib", "-x", "c", "/dev/null", "-x", "none", soname]
    subprocess.run([*command, "-o", path, *words], check=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with libraries that unwanted.txt marks, two of which something needs."""
    root = tmp_path / "target"
    lib = root / "usr/lib"
    library(lib / "libnl-3.so.200")
    library(lib / "libnl-genl-3.so.200", lib / "libnl-3.so.200")
    library(lib / "libnl-nf-3.so.200", lib / "libnl-3.so.200")
    library(root / "usr/bin/program", lib / "libnl-genl-3.so.200")
    library(lib / "libstdc++.so.6.0.30")
    (lib / "libstdc++.so.6").symlink_to("libstdc++.so.6.0.30")
    (root / "usr/bin/sqlite3").write_text("")
    for folder in ("etc/init.d", "etc/rauc", "usr/lib/python3.13/site-packages/thicket"):
        (root / folder).mkdir(parents=True)
    (root / "usr/lib/python3.13/site-packages/thicket/__init__.pyc").write_bytes(bytes(20))
    (tmp_path / "thicket_defconfig").write_text("")
    return root


def post_build(root: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "O": str(root.parent), **more}
    return subprocess.run(
        ["/bin/sh", SCRIPT, root, "x86_64"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_marked_libraries_stay_only_where_they_are_needed(root: Path) -> None:
    done = post_build(root)
    assert done.returncode == 0, done.stderr
    left = sorted(path.name for path in (root / "usr/lib").glob("lib*"))
    assert left == ["libnl-3.so.200", "libnl-genl-3.so.200"]
    assert not (root / "usr/bin/sqlite3").exists()
    assert (root / start_archive.PLACE).read_bytes().endswith(bytes(4)), "what a start imports"


def test_the_image_says_when_it_was_made(root: Path) -> None:
    assert post_build(root, SOURCE_DATE_EPOCH="1790000000").returncode == 0
    assert image.made(Paths(str(root))) == 1790000000


def test_what_only_an_unneeded_library_needs_goes_too(root: Path) -> None:
    (root / "usr/bin/program").unlink()
    assert post_build(root).returncode == 0
    assert not list((root / "usr/lib").glob("lib*"))


def test_nothing_marked_goes_where_readelf_cannot_tell(root: Path, tmp_path: Path) -> None:
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "readelf").write_text("#!/bin/sh\nexit 127\n")
    (fake / "readelf").chmod(0o755)
    done = post_build(root, PATH=f"{fake}:{os.environ['PATH']}")
    assert done.returncode != 0
    assert (root / "usr/lib/libnl-3.so.200").exists()

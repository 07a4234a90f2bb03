# SPDX-License-Identifier: Apache-2.0
"""What is in a root filesystem and why, with real programs and libraries."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from firmware import contents


def compiled(path: Path, *words: str | Path, source: str = "int f(void) { return 1; }") -> None:
    """Make a program or library of ``source`` at ``path``, its folder with it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = ["gcc", "-x", "c", "-", "-x", "none", "-o", path, *words]
    subprocess.run(command, input=source.encode(), check=True)


def library(path: Path, *words: str | Path) -> None:
    compiled(path, "-shared", "-fPIC", "-nostdlib", f"-Wl,-soname,{path.name[:-2]}", *words)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root in which ``/usr/bin/main`` needs ``libone.so.1``, and that needs ``libtwo.so.1``."""
    root = tmp_path / "root"
    lib = root / "usr/lib"
    library(lib / "libtwo.so.1.0")
    (lib / "libtwo.so.1").symlink_to("libtwo.so.1.0")
    library(lib / "libone.so.1.0", "-Wl,--no-as-needed", lib / "libtwo.so.1")
    (lib / "libone.so.1").symlink_to("libone.so.1.0")
    (root / "lib").symlink_to("usr/lib")
    program = ("-nostartfiles", "-nodefaultlibs", "-Wl,--no-as-needed")
    found = "-Wl,--allow-shlib-undefined"
    start = "void _start(void) {}"
    compiled(root / "usr/bin/main", *program, found, lib / "libone.so.1", source=start)
    interpreter = contents.binary(root / "usr/bin/main").needed[-1]
    (root / interpreter.lstrip("/")).parent.mkdir(exist_ok=True)
    (root / interpreter.lstrip("/")).write_text("the loader")
    return root


def test_what_a_wanted_program_needs_is_wanted(root: Path) -> None:
    found = contents.look(root, ["usr/bin/main", "lib"])
    assert found == contents.Contents([], [], {}, {})


def test_a_program_on_no_list_is_unwanted_and_so_is_what_only_it_needs(root: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc/hosts").write_text("")
    found = contents.look(root, ["etc/*"])
    names = {"usr/bin/main", "lib", "usr/lib/libone.so.1", "usr/lib/libtwo.so.1.0"}
    assert names <= set(found.unwanted)
    assert "etc/hosts" not in found.unwanted


def test_a_library_that_nothing_needs_is_unwanted(root: Path) -> None:
    library(root / "usr/lib/libthree.so.1.0")
    (root / "usr/lib/libthree.so.1").symlink_to("libthree.so.1.0")
    found = contents.look(root, ["usr/bin/main", "lib"])
    assert found.unwanted == ["usr/lib/libthree.so.1", "usr/lib/libthree.so.1.0"]


def test_a_library_that_is_not_there_is_named(root: Path) -> None:
    (root / "usr/lib/libtwo.so.1").unlink()
    found = contents.look(root, ["usr/bin/main", "lib"])
    assert found.lacking == {"usr/lib/libone.so.1.0": ["libtwo.so.1"]}
    assert found.unwanted == ["usr/lib/libtwo.so.1.0"]


def test_folders_of_libraries_of_its_own_are_named(root: Path) -> None:
    library(root / "usr/lib/plugin.so.1", "-Wl,-rpath,/home/someone/build")
    found = contents.look(root, ["usr/bin/main", "lib", "usr/lib/plugin.so.1"])
    assert found.rpaths == {"usr/lib/plugin.so.1": "/home/someone/build"}


def test_links_are_wanted_by_what_they_lead_to(root: Path) -> None:
    (root / "usr/sbin").mkdir()
    (root / "usr/sbin/applet").symlink_to("../bin/main")
    (root / "usr/sbin/chain").symlink_to("/usr/sbin/applet")
    (root / "usr/sbin/by-lib").symlink_to("/lib/libone.so.1")
    (root / "usr/sbin/nowhere").symlink_to("../bin/absent")
    (root / "usr/sbin/round").symlink_to("round")
    found = contents.look(root, ["usr/bin/main", "lib"])
    assert found.unwanted == ["usr/sbin/nowhere", "usr/sbin/round"]


def test_a_line_that_names_a_folder_names_all_in_it_and_one_that_names_nothing_is_told(
    root: Path,
) -> None:
    place = root / "usr/share/data/deep"
    place.mkdir(parents=True)
    (place / "file").write_text("")
    wanted = ["usr/bin/main", "lib", "usr/share/data", "usr/share/gone*"]
    found = contents.look(root, wanted)
    assert found == contents.Contents([], ["usr/share/gone*"], {}, {})


def test_a_file_that_only_looks_like_a_program_is_an_error_with_its_name(root: Path) -> None:
    (root / "usr/bin/cut").write_bytes(b"\x7fELF and no more")
    with pytest.raises(contents.ContentsError, match="usr/bin/cut"):
        contents.look(root, ["usr/bin/main", "lib"])


def test_lists_have_remarks(tmp_path: Path) -> None:
    path = tmp_path / "wanted.txt"
    path.write_text("# programs\nusr/bin/main\n\n  etc \n")
    assert contents.patterns(path) == ["usr/bin/main", "etc"]


def test_what_was_found_is_told_in_words(root: Path) -> None:
    library(root / "usr/lib/plugin.so.1", "-Wl,-rpath,/home/someone/build")
    (root / "usr/lib/libtwo.so.1").unlink()
    for number in range(3):
        (root / f"usr/bin/other{number}").write_text("")
    wanted = ["usr/bin/main", "lib", "usr/lib/plugin.so.1"]
    unwanted, lacking, rpath = contents.sentences(contents.look(root, wanted), most=2)
    assert unwanted.startswith("files of the root that are on no list")
    assert "needs (4);" in unwanted
    assert unwanted.endswith("\n  usr/bin/other0\n  usr/bin/other1\n  and 2 more")
    assert lacking == "usr/lib/libone.so.1.0 needs libtwo.so.1, which the root does not have"
    assert rpath == "usr/lib/plugin.so.1 looks for libraries in /home/someone/build (RPATH)"
    fine = contents.look(root, ["usr", "lib*"])
    assert contents.sentences(fine._replace(lacking={}, rpaths={})) == []

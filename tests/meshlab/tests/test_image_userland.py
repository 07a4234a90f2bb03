# SPDX-License-Identifier: Apache-2.0
"""What of Debian reaches the image, and how the root filesystem is put together."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path, PurePath
from typing import Any

import pytest

from host.run import Runner
from meshlab.image import elf, host, rootfs, tree, userland
from meshlab.image.architecture import ARM64, NATIVE
from meshlab.image.errors import ImageError


def recipe(files: tuple[str, ...], unwanted: tuple[str, ...] = ()) -> tree.Recipe:
    return tree.Recipe(
        suite="s",
        architecture=NATIVE,
        kernel_source="k",
        kernel_firmware={},
        firmware_package="f",
        packages=(),
        files=files,
        unwanted=unwanted,
        applets_unwanted=(),
        aside={},
        fragments=(),
    )


# --- shared libraries ---------------------------------------------------------------------------


def test_needed_says_the_same_as_binutils() -> None:
    """An independent reader of ELF files, on whatever this machine has."""
    readelf = shutil.which("readelf")
    assert readelf, "readelf (package binutils) is missing"
    programs = [
        Path(p) for p in (sys.executable, "/bin/sh", "/usr/bin/env", "/usr/bin/git", readelf)
    ]
    seen = 0
    for program in programs:
        if not program.exists():
            continue
        text = subprocess.run(
            [readelf, "-d", program], capture_output=True, text=True, check=True
        ).stdout
        expected = re.findall(r"\(NEEDED\).*\[(.+)\]", text)
        assert elf.needed(program) == expected, program
        seen += len(expected)
    assert seen


def test_a_script_needs_no_library(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/bin/sh\n")
    (tmp_path / "empty").touch()
    assert elf.needed(tmp_path / "script") == []
    assert elf.needed(tmp_path / "empty") == []


def test_a_damaged_program_is_told(tmp_path: Path) -> None:
    whole = Path("/bin/sh").read_bytes()
    (tmp_path / "short").write_bytes(whole[:100])
    with pytest.raises(ValueError, match="short is a damaged ELF file"):
        elf.needed(tmp_path / "short")


# --- choosing files ------------------------------------------------------------------------------


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    root = tmp_path / "unpacked"
    for name in ("usr/bin/tool", "usr/lib/py/a.py", "usr/lib/py/test/b.py", "usr/lib/py/deep/c.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "usr/bin/tool").chmod(0o700)
    (root / "usr/bin/alias").symlink_to("tool")
    (root / "usr/bin/far").symlink_to("/usr/bin/alias")
    return root


def names(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if not p.is_dir())


def test_select_follows_links_and_leaves_out_the_unwanted(unpacked: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    wanted = recipe(("usr/bin/far", "usr/lib/py"), ("usr/lib/py/test", "usr/lib/py/*/c.py"))
    done = userland.select(unpacked, root, wanted)
    assert done == ["usr/bin/alias", "usr/bin/far", "usr/bin/tool", "usr/lib/py/a.py"]
    assert names(root) == done
    assert (root / "usr/bin/tool").stat().st_mode & 0o777 == 0o755
    assert (root / "usr/lib/py/a.py").stat().st_mode & 0o777 == 0o644


def test_select_takes_the_libraries(tmp_path: Path) -> None:
    unpacked, root = tmp_path / "unpacked", tmp_path / "root"
    (unpacked / "usr/bin").mkdir(parents=True)
    (unpacked / NATIVE.libraries).mkdir(parents=True)
    shutil.copy("/bin/sh", unpacked / "usr/bin/sh")
    libraries = elf.needed(unpacked / "usr/bin/sh")
    assert libraries
    wanted = recipe(("usr/bin/sh",))
    with pytest.raises(ImageError, match=f"usr/bin/sh needs {re.escape(libraries[0])}"):
        userland.select(unpacked, root, wanted)
    for library in libraries:
        (unpacked / NATIVE.libraries / f"{library}.0").write_text("not a program")
        (unpacked / NATIVE.libraries / library).symlink_to(f"{library}.0")
    done = userland.select(unpacked, root, wanted)
    for library in libraries:
        assert f"{NATIVE.libraries}/{library}" in done
        assert (root / NATIVE.libraries / library).read_text() == "not a program"


def test_libraries_and_loader_are_of_the_architecture(tmp_path: Path) -> None:
    """A program of this machine stands in for one of the other: ELF files name libraries alike."""
    unpacked = tmp_path / "unpacked"
    (unpacked / "usr/bin").mkdir(parents=True)
    (unpacked / ARM64.libraries).mkdir(parents=True)
    shutil.copy("/bin/sh", unpacked / "usr/bin/sh")
    for library in elf.needed(unpacked / "usr/bin/sh"):
        (unpacked / ARM64.libraries / library).write_text("not a program")
    wanted = replace(recipe(("usr/bin/sh",)), architecture=ARM64)
    done = userland.select(unpacked, tmp_path / "root", wanted)
    assert f"{ARM64.libraries}/libc.so.6" in done
    found = tree.find().recipe("rpi64")
    assert ARM64.loader in found.files
    assert f"{ARM64.libraries}/libgcc_s.so.1" in found.files
    assert not any("x86" in pattern for pattern in found.files)


def test_a_board_has_its_own_kernel() -> None:
    found = tree.find()
    board = found.recipe("rpi64")
    names = [path.relative_to(found.root / "board").as_posix() for path in board.fragments]
    assert "rpi64/linux/arm64.config" in names
    assert "firmware/linux/system.config" in names
    assert "rpi64/linux/downstream.config" not in names
    assert "broadcom/bcm2837-rpi-3-b" in board.device_trees
    assert found.recipe().device_trees == ()
    with pytest.raises(ImageError, match="'x86_64' is missing"):
        found.recipe("x86_64")


def test_applets_are_asked_of_a_program_that_can_be_run(tmp_path: Path) -> None:
    root, asked = tmp_path / "root", tmp_path / "asked"
    for place, text in ((root, "\x7fELF of another machine"), (asked, "#!/bin/sh\necho bin/sh")):
        (place / "usr/bin").mkdir(parents=True)
        (place / "usr/bin/busybox").write_text(text)
        (place / "usr/bin/busybox").chmod(0o755)
    log = tmp_path / "log"
    userland.link_applets(Runner(), log, root, asked=asked, busyboxes=["busybox"], unwanted=())
    assert (root / "usr/bin/sh").readlink() == Path("busybox")
    assert not (asked / "usr/bin/sh").exists()


def test_select_refuses_a_pattern_of_nothing(unpacked: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"'usr/bin/tol' is in none of the packages"):
        userland.select(unpacked, tmp_path / "root", recipe(("usr/bin/tol",)))


def test_a_wheel_without_what_a_node_does_not_need(tmp_path: Path) -> None:
    wheel = tmp_path / "x-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in (
            "x/__init__.py",
            "x/__init__.pyi",
            "x/py.typed",
            "x/data.json",
            "x-1.dist-info/METADATA",
            "x-1.dist-info/RECORD",
            "x-1.data/scripts/x",
        ):
            archive.writestr(name, name)
    target = tmp_path / "packages"
    userland.unpack_wheel(wheel, target, userland.wanted_of_wheel)
    assert names(target) == ["x-1.dist-info/METADATA", "x/__init__.py", "x/data.json"]


def test_a_wheel_must_stay_inside(tmp_path: Path) -> None:
    wheel = tmp_path / "x-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("x/../../y.py", "")
    with pytest.raises(ImageError, match="leaves it"):
        userland.unpack_wheel(wheel, tmp_path / "packages", lambda name: True)


# --- the root ------------------------------------------------------------------------------------


def test_overlay_replaces_and_never_writes_through(tmp_path: Path) -> None:
    """The userland in the cache shares its files with the root: they must stay as they are."""
    cached, root, over = tmp_path / "cached", tmp_path / "root", tmp_path / "over"
    (cached / "etc").mkdir(parents=True)
    (cached / "etc/file").write_text("cached")
    (cached / "etc/busybox").write_text("busybox")
    (cached / "etc/link").symlink_to("busybox")
    rootfs.clone(cached, root)
    assert (root / "etc/file").stat().st_ino == (cached / "etc/file").stat().st_ino
    (over / "etc/init.d").mkdir(parents=True)
    (over / "etc/file").write_text("ours")
    (over / "etc/link").write_text("ours")
    (over / "etc/init.d/rcS").write_text("#!/bin/sh\n")
    (over / "etc/init.d/rcS").chmod(0o711)
    (over / "etc/__pycache__").mkdir()
    rootfs.overlay(over, root)
    assert (root / "etc/file").read_text() == "ours"
    assert (root / "etc/link").read_text() == "ours"
    assert (root / "etc/init.d/rcS").stat().st_mode & 0o777 == 0o755
    assert not (root / "etc/__pycache__").exists()
    assert (cached / "etc/file").read_text() == "cached"
    assert (cached / "etc/busybox").read_text() == "busybox"
    assert (cached / "etc/link").is_symlink()


def test_the_root_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        root = tmp_path / "root"
        (root / "usr/bin").mkdir(parents=True)
        (root / "usr/bin/file").touch()
        (root / "usr/bin/program").touch(0o777)
        rootfs.skeleton(root)
        rootfs.normalise(root)
    finally:
        os.umask(old)
    modes = {name: (root / name).stat().st_mode & 0o7777 for name in ("usr", "tmp", "root", "dev")}
    assert modes == {"usr": 0o755, "tmp": 0o1777, "root": 0o700, "dev": 0o755}
    assert (root / "usr/bin/file").stat().st_mode & 0o7777 == 0o644
    assert (root / "usr/bin/program").stat().st_mode & 0o7777 == 0o755
    assert (root / "bin").readlink() == Path("usr/bin")
    assert not (root / "lib64").is_symlink(), "there is no usr/lib64"


def test_a_root_that_cannot_boot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="has no /usr/sbin/init"):
        rootfs.check(tmp_path)
    for name in ("usr/sbin/init", "usr/bin/sh", "usr/bin/python3", "etc/inittab"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    rootfs.check(tmp_path)
    (tmp_path / "etc/mtab").symlink_to("/proc/mounts")
    rootfs.check(tmp_path)
    with pytest.raises(ImageError, match=r"has no /etc/more"):
        rootfs.check(tmp_path, ["etc/more"])
    (tmp_path / "etc/gone").symlink_to("../usr/bin/nothing")
    with pytest.raises(ImageError, match="/etc/gone is a link to nothing"):
        rootfs.check(tmp_path)


# --- this tree -----------------------------------------------------------------------------------


def test_the_recipe_and_the_requirements_can_be_read() -> None:
    found = tree.find()
    assert "python3" in found.recipe().packages
    names = {line.partition("==")[0] for line in found.requirements()}
    assert names == {"pyroute2", "smbus2", "zeroconf"}


def test_an_unpinned_requirement_is_refused(tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app/pyproject.toml").write_text('[project]\ndependencies = ["Py_Thing>=1"]\n')
    (tmp_path / "constraints.txt").write_text("other==1\n")
    found = tree.Tree(tmp_path)
    with pytest.raises(ImageError, match=r"constraints\.txt pins no version"):
        found.requirements()
    (tmp_path / "constraints.txt").write_text("py.thing==1.5  # why\n")
    assert found.requirements() == ["py-thing==1.5"]


def test_an_image_whose_daemon_would_say_another_version_is_not_made(tmp_path: Path) -> None:
    (tmp_path / "app/src/thicket").mkdir(parents=True)
    (tmp_path / "app/pyproject.toml").write_text('[project]\nversion = "0.2.0"\n')
    said = tmp_path / "app/src/thicket/__init__.py"
    said.write_text('__version__ = "0.1.0"\n')
    with pytest.raises(ImageError, match=r"version 0\.2\.0.*they must be the same"):
        tree.Tree(tmp_path).version()
    said.write_text('__version__ = "0.2.0"\n')
    assert tree.Tree(tmp_path).version() == "0.2.0"
    assert tree.find().version()


def test_every_package_is_fixed_by_hashes_and_those_are_of_the_versions_asked_for() -> None:
    root = tree.find().root
    for name in ("constraints", "tests/fuzz/requirements"):
        pattern = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;#]+)", re.MULTILINE)
        wanted = dict(pattern.findall((root / f"{name}.in").read_text()))
        fixed = dict(pattern.findall((root / f"{name}.txt").read_text()))
        normal = {re.sub(r"[-_.]+", "-", key).lower(): value for key, value in wanted.items()}
        assert fixed == normal, "run `make lock`"
    assert all(tree.find().hashes().values())


def test_a_wheel_that_is_not_one_of_the_known_files_is_refused(tmp_path: Path) -> None:
    class Index(Runner):
        """Gives what it likes."""

        def run(self, command: Any, log: Path, **_: Any) -> None:
            (target,) = [w.partition("=")[2] for w in map(str, command) if w.startswith("--dest=")]
            Path(target, "py_thing-1.5-py3-none-any.whl").write_bytes(b"a wheel")

    good = {"py-thing": {sha256(b"a wheel").hexdigest()}}
    bad = {"py-thing": {sha256(b"another wheel").hexdigest()}}
    arguments = (Index(), tmp_path / "log", ["py-thing==1.5"])
    (found,) = userland.download_wheels(*arguments, hashes=good, version="3.13", directory=tmp_path)
    assert found.name.startswith("py_thing")
    for hashes in (bad, {}):
        with pytest.raises(ImageError, match=r"constraints\.txt"):
            userland.download_wheels(*arguments, hashes=hashes, version="3.13", directory=tmp_path)


def test_every_tool_of_a_build_is_in_the_list_of_host_packages() -> None:
    groups = host.listed(tree.find().host_packages)
    used = set(host.PROGRAMS.values()) | set(host.FILES.values()) | {"dosfstools", "mtools"}
    assert used - host.PRESENT_EVERYWHERE <= groups["run"]
    assert not groups["run"] & groups["test"], "test comes on top of run"


def test_missing_tools_are_named_by_package() -> None:
    assert host.missing({"sh": "dash", "no-such-tool": "b"}, {"/no/such/header.h": "a"}) == [
        "a",
        "b",
    ]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("x/__init__.py", True),
        ("x/y/z.json", True),
        ("x/y.pyi", False),
        ("x-1.dist-info/entry_points.txt", True),
        ("x-1.dist-info/LICENSE", False),
        ("x-1.data/purelib/y.py", False),
    ],
)
def test_wanted_of_wheel(name: str, wanted: bool) -> None:
    assert userland.wanted_of_wheel(PurePath(name)) is wanted


def test_shell_scripts_of_the_overlay_start_as_shell_scripts() -> None:
    """shellcheck (part of `make lint`) finds them by their first line."""
    scripts = sorted((tree.find().overlay / "etc/init.d").iterdir())
    assert len(scripts) >= 6
    for script in scripts:
        lines = script.read_text().splitlines()
        assert lines[0] == "#!/bin/sh", script
        assert lines[1] == "# SPDX-License-Identifier: Apache-2.0", script
        # those named *.sh are read by rcS, the others run
        assert os.access(script, os.X_OK) is (script.suffix != ".sh"), script

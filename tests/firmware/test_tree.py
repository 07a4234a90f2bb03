# SPDX-License-Identifier: Apache-2.0
"""The Buildroot external tree, judged by Buildroot itself.

Needs a Buildroot tree of the pinned version in the cache (or BUILDROOT=); skipped in words where
there is none, because a gigabyte of sources is not fetched for a test.
"""

import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from firmware import boards, build
from firmware.build import Build, BuildError
from firmware.fragments import defconfig_path
from host.cache import cache_root

TOP = boards.ROOT


@pytest.fixture(scope="module")
def buildroot() -> Path:
    place = Path(os.environ.get("BUILDROOT") or cache_root() / f"buildroot-{build.VERSION}")
    if not (place / "utils/check-package").exists():
        pytest.skip(f"no Buildroot {build.VERSION} in {place}: its checks of our tree were not run")
    return place


def test_check_package_finds_nothing(buildroot: Path) -> None:
    folders = ("package", "br2-external", "board/common/patches")
    files = [
        str(path)
        for folder in folders
        for path in sorted((TOP / folder).rglob("*"))
        if path.is_file() and "src" not in path.relative_to(TOP).parts and path.suffix != ".md"
    ] + [str(defconfig_path(boards.load(name))) for name in boards.names()]
    assert any(file.endswith("hwsim-relay.mk") for file in files)
    assert any(file.endswith("linux.hash") for file in files)
    result = subprocess.run(
        [sys.executable, str(buildroot / "utils/check-package"), "-b", *files],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("makefile", sorted((TOP / "package").glob("*/*.mk")), ids=lambda p: p.stem)
def test_legal_info_has_the_hash_of_every_licence(makefile: Path) -> None:
    """Without one, ``make BOARD-legal-info`` warns, and takes whatever file is there."""
    (names,) = re.findall(r"_LICENSE_FILES = (.*)", makefile.read_text())
    site = re.search(r"_SITE = \$\(BR2_EXTERNAL_THICKET_PATH\)/(.*)", makefile.read_text())
    lines = makefile.with_suffix(".hash").read_text().splitlines()
    known = {line.split()[2]: line.split()[1] for line in lines if line.startswith("sha256")}
    for name in names.split():
        assert len(known[name]) == 64
        if site is not None:  # otherwise it is in what is downloaded
            text = (TOP / "br2-external" / site[1] / name).read_bytes()
            assert hashlib.sha256(text).hexdigest() == known[name]


@pytest.mark.parametrize("toolchain", ["bootlin", "internal"])
@pytest.mark.parametrize("name", boards.names())
def test_no_line_of_a_fragment_is_lost(
    buildroot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, toolchain: str
) -> None:
    """``configure`` gives the fragments to Buildroot's Kconfig and looks every line up."""
    monkeypatch.setenv("BUILDROOT", str(buildroot))
    made = Build(boards.load(name), toolchain=toolchain, cache=tmp_path)
    made.configure()
    config = (made.output / ".config").read_text().splitlines()
    for symbol in (
        "HWSIM_RELAY",
        "PYTHON_PYROUTE2",
        "PYTHON_SMBUS2",
        "THICKET",
        "WPA_SUPPLICANT_MESH_NETWORKING",
        "WPA_SUPPLICANT_WPA3",
    ):
        assert f"BR2_PACKAGE_{symbol}=y" in config


def test_a_checkout_that_has_moved_is_configured_anew(
    buildroot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buildroot's configuration names the place of our tree, and fails when that is gone."""
    monkeypatch.setenv("BUILDROOT", str(buildroot))
    board = boards.load("x86_64")
    moved = tmp_path / "moved"
    for folder in ("package", "br2-external", "board", "configs"):
        shutil.copytree(TOP / folder, moved / folder, symlinks=True)
    shutil.copy(TOP / "Makefile", moved)
    Build(dataclasses.replace(board, root=moved), cache=tmp_path).configure()
    shutil.rmtree(moved)
    made = Build(board, cache=tmp_path)
    made.configure()
    config = (made.output / ".config").read_text()
    assert f'BR2_EXTERNAL_THICKET_PATH="{TOP}/br2-external"' in config


def test_a_lost_line_is_named(
    buildroot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUILDROOT", str(buildroot))
    extra = tmp_path / "extra.config"
    extra.write_text("BR2_PACKAGE_NO_SUCH_THING=y\nBR2_PACKAGE_STRACE=y\n")
    made = Build(boards.load("x86_64"), extra=[extra], cache=tmp_path)
    with pytest.raises(BuildError, match=r"extra\.config:1: BR2_PACKAGE_NO_SUCH_THING") as caught:
        made.configure()
    assert "STRACE" not in str(caught.value)
    # Nothing is taken for configured that is not.
    with pytest.raises(BuildError):
        made.configure()


def test_what_was_chosen_beyond_the_fragments_is_shown_as_lines_for_one(
    buildroot: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("BUILDROOT", str(buildroot))
    made = Build(boards.load("x86_64"), cache=tmp_path)
    made.configure()
    made.target("savedefconfig")
    assert capsys.readouterr().out == ""
    config = made.output / ".config"
    text = config.read_text().replace("# BR2_PACKAGE_STRACE is not set", "BR2_PACKAGE_STRACE=y")
    config.write_text(text)
    made.target("savedefconfig")
    assert capsys.readouterr().out == "BR2_PACKAGE_STRACE=y\n"

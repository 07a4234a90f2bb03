# SPDX-License-Identifier: Apache-2.0
"""The Buildroot external tree, judged by Buildroot itself.

Needs a Buildroot tree of the pinned version in the cache (or BUILDROOT=); skipped in words where
there is none, because a gigabyte of sources is not fetched for a test.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
VERSION = "2026.02.3"


def cache() -> Path:
    """The cache folder as the Makefile has it."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "thicket"
    return Path(os.environ.get("THICKET_CACHE") or default)


@pytest.fixture(scope="module")
def buildroot() -> Path:
    tree = Path(os.environ.get("BUILDROOT") or cache() / f"buildroot-{VERSION}")
    if not (tree / "utils/check-package").exists():
        pytest.skip(f"no Buildroot {VERSION} in {tree}: its checks of our tree were not run")
    return tree


def test_check_package_finds_nothing(buildroot: Path) -> None:
    files = [
        str(path)
        for folder in ("package", "br2-external")
        for path in sorted((TOP / folder).rglob("*"))
        if path.is_file() and "src" not in path.relative_to(TOP).parts and path.suffix != ".md"
    ]
    assert any(file.endswith("hwsim-relay.mk") for file in files)
    result = subprocess.run(
        [sys.executable, str(buildroot / "utils/check-package"), "-b", *files],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_packages_can_be_chosen(buildroot: Path, tmp_path: Path) -> None:
    """Selecting the daemon brings what it needs, and Kconfig drops none of it."""
    defconfig = tmp_path / "thicket_defconfig"
    defconfig.write_text(
        "BR2_x86_64=y\nBR2_TOOLCHAIN_EXTERNAL=y\nBR2_PACKAGE_PYTHON3=y\nBR2_PACKAGE_THICKET=y\n"
    )
    subprocess.run(
        [
            "make",
            "-s",
            f"O={tmp_path / 'output'}",
            f"BR2_EXTERNAL={TOP / 'br2-external'}",
            f"BR2_DEFCONFIG={defconfig}",
            "defconfig",
        ],
        cwd=buildroot,
        env={name: value for name, value in os.environ.items() if name != "MAKEFLAGS"},
        check=True,
        capture_output=True,
        text=True,
    )
    config = (tmp_path / "output/.config").read_text().splitlines()
    for symbol in (
        "HWSIM_RELAY",
        "PYTHON_PYROUTE2",
        "PYTHON_SMBUS2",
        "THICKET",
        "WPA_SUPPLICANT_MESH_NETWORKING",
        "WPA_SUPPLICANT_WPA3",
    ):
        assert f"BR2_PACKAGE_{symbol}=y" in config

# SPDX-License-Identifier: Apache-2.0
"""What a release says is in a stand-in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from firmware.releases import sbom
from meshlab.image import bill, userland
from meshlab.image import tree as trees
from meshlab.image.errors import ImageError


@pytest.fixture
def noted(tmp_path: Path) -> Path:
    """What is noted when two of three packages, and one that was unpacked alone, are of use."""
    notes, unpacked, aside = (tmp_path / name for name in ("notes", "unpacked", "aside"))
    notes.mkdir()
    for name, facts, files in (
        ("busybox", "busybox 1:1.37.0-6+b9 amd64", ["./", "./bin/busybox"]),
        ("zlib1g", "zlib1g 1:1.3-1 amd64", ["./usr/lib/x/libz.so.1"]),
        ("tar", "tar 1.35 amd64", ["./usr/bin/tar"]),
    ):
        (notes / name).write_text("\n".join([facts, *files]) + "\n")
        (unpacked / "usr/share/doc" / name).mkdir(parents=True)
    (unpacked / "usr/share/doc/busybox/copyright").write_text("GPL-2")
    (unpacked / "usr/share/doc/zlib1g/copyright").symlink_to("/etc/passwd")
    (aside / "busybox-static/usr/share/doc/busybox-static").mkdir(parents=True)
    (aside / "busybox-static_1%3a1.37.0-6_amd64.deb").write_bytes(b"")
    (aside / "busybox-static/usr/share/doc/busybox-static/copyright").write_text("GPL-2 as well")
    userland.note(
        notes, unpacked, ["usr/bin/busybox", "usr/lib/x/libz.so.1"], tmp_path / "noted", aside
    )
    return tmp_path / "noted"


def test_only_packages_whose_files_are_kept_are_noted(noted: Path) -> None:
    assert json.loads((noted / "packages.json").read_text()) == [
        ["busybox", "1:1.37.0-6+b9", "amd64"],
        ["zlib1g", "1:1.3-1", "amd64"],
        ["busybox-static", "1:1.37.0-6", "amd64"],
    ]
    # A link that leads out of the package is not followed.
    assert {path.name for path in (noted / "copyright").iterdir()} == {"busybox", "busybox-static"}


def test_components_of_debian(noted: Path, tmp_path: Path) -> None:
    recipe = trees.find().recipe()
    found = {one.name: one for one in bill.debian_components(recipe, noted)}
    assert found["busybox"].url == (
        f"pkg:deb/debian/busybox@1%3A1.37.0-6%2Bb9?arch=amd64&distro={recipe.suite}"
    )
    older = bill.debian_components(recipe, tmp_path / "none")
    assert {one.name for one in older} == set(recipe.packages)
    assert {one.version for one in older} == {""}
    assert [one.component for one in bill.debian_licences(noted)] == [
        "busybox (Debian)",
        "busybox-static (Debian)",
    ]
    assert bill.debian_licences(tmp_path / "none") == []
    assert sbom.components(sbom.made("x", "1", "Apache-2.0", list(found.values()), "now")) == 3
    (noted / "packages.json").write_text("{")
    with pytest.raises(ImageError, match="cannot be used"):
        bill.debian_components(recipe, noted)


def test_python_packages_are_those_that_an_image_has() -> None:
    """All of them have a hash, with which they are downloaded."""
    tree = trees.find()
    names = bill.python_packages(tree)
    assert names == ["ifaddr", "pyroute2", "smbus2", "zeroconf"]
    assert all(tree.hashes()[name] for name in names)

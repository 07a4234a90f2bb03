# SPDX-License-Identifier: Apache-2.0
"""``thicket app``: from a project to a signed file that a node takes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fleet_for_tests import NOW, PREFIX

from authority import app_build
from authority.app import main
from authority.app_build import AppBuildError, Images, Wanted
from authority.authority import Authority
from firmware.boards import ROOT
from host import wheels
from host.wheels import WheelError
from thicket.applications import app_file, app_tree
from thicket.trust.certificates import pem

pytestmark = pytest.mark.skipif(not shutil.which("mksquashfs"), reason="no squashfs-tools")

PROJECT = """
[project]
name = "Lamp_App"
version = "1.5"
requires-python = ">=3.11"
dependencies = [{dependencies}]
[project.entry-points."thicket.applications"]
lamp = "lamp_app:Lamp"
[tool.setuptools]
py-modules = ["lamp_app"]
"""
WANTED = Wanted("any", Images("0.1", "1"), bytes(20), 1000)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "lamp_app.py").write_text("class Lamp: pass\n", encoding="utf-8")
    return needing(folder)


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels in place of the index."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def needing(folder: Path, *dependencies: str) -> Path:
    listed = ", ".join(json.dumps(one) for one in dependencies)
    (folder / "pyproject.toml").write_text(PROJECT.format(dependencies=listed), encoding="utf-8")
    return folder


def wheel(folder: Path, name: str, tag: str = "py3-none-any", file: str = "", **more: str) -> None:
    """Put a wheel into the index."""
    module = file or f"{name}.py"
    with zipfile.ZipFile(folder / f"{name}-1.0-{tag}.whl", "w") as archive:
        info = f"{name}-1.0.dist-info"
        archive.writestr(module, "X = 1\n")
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
            + "".join(f"Requires-Dist: {one}\n" for one in more.values()),
        )
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
        archive.writestr(f"{info}/LICENSE", "mine\n")
        archive.writestr(f"{info}/RECORD", "")


def contents(path: Path) -> set[str]:
    done = subprocess.run(
        ["unsquashfs", "-l", "-d", "", path], check=True, capture_output=True, text=True
    )
    return {line.removeprefix("/site/") for line in done.stdout.split() if "/site/" in line}


def work(tmp_path: Path, number: int = 1) -> Path:
    folder = tmp_path / f"work{number}"
    folder.mkdir()
    return folder


def test_a_project_and_what_it_needs(project: Path, index: Path, tmp_path: Path) -> None:
    wheel(index, "needed", more="deeper")
    wheel(index, "deeper", more="zeroconf")
    wheel(index, "zeroconf")
    needing(
        project,
        "needed>=1",
        "zeroconf",
        "absent; python_version < '3.13'",
        "elsewhere; sys_platform == 'win32'",
    )
    made, about = app_build.build(project, work(tmp_path), WANTED)
    assert (about.name, about.version, about.applications) == ("lamp-app", "1.5", ("lamp",))
    assert about.modules == ("deeper", "lamp_app", "needed")
    found = contents(made)
    assert {"lamp_app.py", "needed.py", "needed-1.0.dist-info/LICENSE"} <= found
    assert not any(name.endswith(("RECORD", "WHEEL")) or "zeroconf" in name for name in found)
    # again, elsewhere, with another umask: the same bytes
    moved = tmp_path / "moved"
    shutil.copytree(project, moved)
    (moved / "lamp_app.py").chmod(0o755)
    again, _ = app_build.build(moved, work(tmp_path, 2), WANTED._replace(number=2000))
    assert again.read_bytes() == made.read_bytes()


def test_a_dependency_that_is_compiled(project: Path, index: Path, tmp_path: Path) -> None:
    needing(project, "fast")
    wheel(index, "fast", "cp313-cp313-manylinux2014_aarch64", "fast.cpython-313.so")
    with pytest.raises(AppBuildError, match=r"fast has no wheel for pure Python.*--for"):
        app_build.build(project, work(tmp_path), WANTED)
    with pytest.raises(AppBuildError, match=r"fast has no wheel for Python 3\.13 on x86_64"):
        app_build.build(project, work(tmp_path, 2), WANTED._replace(architecture="x86_64"))
    _, about = app_build.build(project, work(tmp_path, 3), WANTED._replace(architecture="aarch64"))
    assert about.modules == ("fast", "lamp_app")
    assert about.architecture == "aarch64"


@pytest.mark.parametrize(
    ("dependency", "words"),
    [
        ("thicket", "the package of that name on the public index is not ours"),
        ("x @ https://example.org/x.whl", "only wheels"),
        ("nowhere", "nowhere has no wheel"),
        ("shadow", "a module json, which the image has"),
        ("sneaky", "sneaky.so is compiled"),
    ],
)
def test_what_is_not_built(
    project: Path, index: Path, tmp_path: Path, dependency: str, words: str
) -> None:
    wheel(index, "shadow", file="json.py")
    wheel(index, "sneaky", file="sneaky.so")
    needing(project, dependency)
    with pytest.raises(AppBuildError, match=words):
        app_build.build(project, work(tmp_path), WANTED)


def test_a_project_that_is_no_application(project: Path, tmp_path: Path) -> None:
    path = project / "pyproject.toml"
    good = path.read_text(encoding="utf-8")
    for number, (old, new, words) in enumerate(
        [
            (">=3.11", "<3.13", r"'<3\.13', and nodes have Python 3\.13"),
            ("thicket.applications", "other.group", "it has no entry point"),
            ("lamp_app:Lamp", "lamp:Lamp", "lamp names lamp:Lamp, which is not there"),
        ]
    ):
        path.write_text(good.replace(old, new), encoding="utf-8")
        with pytest.raises(AppBuildError, match=words):
            app_build.build(project, work(tmp_path, number), WANTED)
    path.unlink()
    with pytest.raises(AppBuildError, match="no Python project"):
        app_build.build(project, work(tmp_path, 9), WANTED)


def test_a_dependency_replaces_nothing_of_the_project(
    project: Path, index: Path, tmp_path: Path
) -> None:
    wheel(index, "needed", file="lamp_app.py")
    needing(project, "needed")
    with pytest.raises(WheelError, match=r"needed-1\.0.* brings lamp_app\.py, which another"):
        app_build.build(project, work(tmp_path), WANTED)


def test_strange_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "MOST_UNPACKED", 1000)
    wheel(tmp_path, "odd")
    path = tmp_path / "odd-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("a.dist-info", "b.data", ".", "same.py"):
            archive.writestr(name, "")
    for _ in range(2):
        wheels.unpack(path, tmp_path / "out", app_build._keep, beside=True)
    assert not (tmp_path / "out/a.dist-info").exists()
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("huge.py", bytes(1001))
    with pytest.raises(WheelError, match="unpacks to more"):
        wheels.unpack(path, tmp_path / "out", app_build._keep)


def huge(folder: Path) -> None:
    with (folder / "zeros").open("wb") as file:
        file.truncate(wheels.MOST_UNPACKED + 1)


def deep(folder: Path) -> None:
    """Make as many folders in each other as no path has room for."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(5000):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: os.mkfifo(folder / "pipe"), "pipe is neither file nor folder"),
        (lambda folder: (folder / "a").symlink_to("/etc/passwd"), "a is a link, and not to a file"),
        (lambda folder: (folder / "a").symlink_to("../wheels"), "a is a link, and not to a file"),
        (lambda folder: (folder / "a").symlink_to("."), "a is a link, and not to a file"),
        (lambda folder: (folder / "a").symlink_to("nowhere"), "a is a link, and not to a file"),
        (lambda folder: (folder / "a").symlink_to("/dev/zero"), "a is a link, and not to a file"),
        (
            lambda folder: (folder / "a\nb.py").touch(),
            r"'a\\nb\.py' is a name that cannot be shown",
        ),
        (
            lambda folder: Path(os.fsdecode(os.fsencode(folder) + b"/\xff.py")).touch(),
            r"'\\udcff\.py' is a name that cannot be shown",
        ),
        (deep, "more than 64 folders are in each other"),
        (huge, "has more than 1024 MiB: is it the project's folder"),
        (lambda _: None, ""),
    ],
)
def test_a_project_with_what_belongs_to_no_application(
    project: Path, tmp_path: Path, spoil: Callable[[Path], object], words: str
) -> None:
    """Nothing of it is followed, waited for, or copied without end."""
    (project / "other.py").symlink_to("lamp_app.py")
    (project / "lamp_app.py").chmod(0o6755)
    environment = project / ".venv"
    environment.mkdir()
    (environment / "pyvenv.cfg").touch()
    (environment / "python").symlink_to("/usr/bin/python3")
    spoil(project)
    if words:
        with pytest.raises(WheelError, match=words):
            app_build.build(project, work(tmp_path), WANTED)
    else:
        made, _ = app_build.build(project, work(tmp_path), WANTED)
        listed = subprocess.run(["unsquashfs", "-lln", made], check=True, capture_output=True)
        lines = [line.split()[:2] for line in listed.stdout.decode().splitlines() if "/" in line]
        assert {tuple(line) for line in lines} == {("drwxr-xr-x", "0/0"), ("-rw-r--r--", "0/0")}
    if spoil is deep:
        subprocess.run(["rm", "-rf", project / "d"], check=True)


def test_too_many_files(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_tree, "MAX_ENTRIES", 3)
    with pytest.raises(AppBuildError, match=r"nodes would not take it: .* more than 3 files"):
        app_build.build(project, work(tmp_path), WANTED)
    monkeypatch.setattr(wheels, "MOST_FILES", 1)
    with pytest.raises(WheelError, match="more than 1 files: is it the project's folder"):
        app_build.build(project, work(tmp_path, 2), WANTED)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["../up.py"], r"a path that leaves it: \.\./up\.py"),
        (["/etc/passwd"], "a path that leaves it: /etc/passwd"),
        (["a\nb.py"], r"a name that cannot be shown: 'a\\nb\.py'"),
        (["/".join("d" * 5000)], "more than 64 folders in each other"),
        (["d" * 256 + ".py"], "cannot be unpacked: .*: File name too long"),
        (["a", "a/b.py"], "cannot be unpacked: .*/a.*: (File exists|Not a directory)"),
        (["a/b.py", "a"], "cannot be unpacked: .*/a: Is a directory"),
    ],
)
def test_wheels_that_lie(tmp_path: Path, names: list[str], words: str) -> None:
    path = tmp_path / "odd-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "X = 1\n")
    with pytest.raises(WheelError, match=words):
        wheels.unpack(path, tmp_path / "out", app_build._keep)
    assert not (tmp_path / "up.py").exists()


def test_damaged_wheels(tmp_path: Path) -> None:
    """Each byte of a small wheel is spoilt: it is unpacked, or refused in our words."""
    wheel(tmp_path, "odd")
    path = tmp_path / "odd-1.0-py3-none-any.whl"
    good = path.read_bytes()
    refused = 0
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :])
        try:
            wheels.unpack(path, tmp_path / "out", lambda name: name.suffix == ".py")
        except WheelError as error:
            refused += 1
            assert str(error).isprintable()
    assert refused > 50


def test_versions_of_images() -> None:
    assert app_build.images_of(">=0.1,<1") == ("0.1", "1")
    assert app_build.images_of(" >= 0.1 ") == ("0.1", "")
    with pytest.raises(AppBuildError, match="are written as"):
        app_build.images_of("0.1")
    least, below = app_build.own_images()
    assert app_file.version_key(least) < app_file.version_key(below)


def test_the_python_of_the_images() -> None:
    recipe = (ROOT / "board/qemu/lab-image.toml").read_text(encoding="utf-8")
    assert f"python{app_build.PYTHON}" in recipe


def test_the_commands(
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "fleet"
    ca = Authority(
        folder, lambda _: "correct horse", clock=lambda: datetime.now(UTC) - timedelta(days=2)
    )
    ca.init("acme", PREFIX, lab=True)
    ca.update_signers.make("release")
    monkeypatch.setenv("THICKET_CA", str(folder))
    out = tmp_path / "out"
    assert main(["build", str(project), "--image", ">=0.1,<0.9", "--out", str(out)]) == 0
    path = out / "lamp-app-1.5.app"
    assert str(path) in capsys.readouterr().out
    assert main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    assert "from 0.1 and below 0.9, Python 3.13" in said
    assert main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["modules"] == ["lamp_app"]
    assert main(["verify", str(path)]) == 0
    assert "every byte is as it was signed" in capsys.readouterr().out
    root = tmp_path / "root.pem"
    other = Authority(tmp_path / "other", lambda _: "correct horse", clock=lambda: NOW)
    other.init("other", PREFIX, lab=True)
    root.write_text(pem(other.fleet.root.der), encoding="ascii")
    assert main(["verify", str(path), "--root", str(root)]) == 1
    assert "signed for another fleet" in capsys.readouterr().err
    data = bytearray(path.read_bytes())
    data[99] ^= 1
    path.write_bytes(data)
    assert main(["verify", str(path)]) == 1
    assert "not those that were signed" in capsys.readouterr().err
    assert main(["build", str(project / "nowhere")]) == 1
    assert main(["build"]) == 2
    assert main(["help"]) == 0

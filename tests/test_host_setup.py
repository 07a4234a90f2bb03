# SPDX-License-Identifier: Apache-2.0
"""Cleaning up deletes what Thicket made in its cache, and nothing else anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from patience import PATIENCE

from host.cache import cache_root

TOP = Path(__file__).resolve().parents[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a checkout with what cleaning needs; nothing of ours is in danger."""
    made = tmp_path / "checkout"
    (made / "bin").mkdir(parents=True)
    for name in ("Makefile", "bin/host-setup"):
        shutil.copy(TOP / name, made / name)
    return made


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "file").write_text("x")
    return folder


def make(checkout: Path, target: str, **variables: str) -> subprocess.CompletedProcess[str]:
    home = checkout.parent / "home"
    home.mkdir(exist_ok=True)
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), **variables}
    return subprocess.run(
        ["make", target],
        cwd=checkout,
        env=environment,
        text=True,
        capture_output=True,
        check=False,
        timeout=PATIENCE,
    )


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_clean_deletes_runs_and_logs_and_keeps_what_was_built(checkout: Path) -> None:
    cache = fill(checkout.parent / "cache", "labs", "log", "test", "images", "python")
    assert make(checkout, "clean", THICKET_CACHE=str(cache)).returncode == 0
    assert names(cache) == {"images", "python"}


def test_distclean_deletes_the_cache(checkout: Path) -> None:
    cache = fill(checkout.parent / "cache", "labs", "images", "buildroot-2026.02.3", "build")
    (cache / "accel-x86_64.json").write_text("{}")
    assert make(checkout, "distclean", THICKET_CACHE=str(cache)).returncode == 0
    assert not cache.exists()


def test_what_somebody_else_put_into_it_stays_and_is_named(checkout: Path) -> None:
    cache = fill(checkout.parent / "cache", "labs", "images", "holidays")
    done = make(checkout, "distclean", THICKET_CACHE=str(cache))
    assert done.returncode == 0
    assert names(cache) == {"holidays"}
    assert "holidays" in done.stderr


@pytest.mark.parametrize("target", ["clean", "distclean"])
def test_an_empty_variable_means_the_default_cache(checkout: Path, target: str) -> None:
    default = fill(checkout.parent / "home" / ".cache" / "thicket", "labs", "images")
    done = make(checkout, target, THICKET_CACHE="")
    assert done.returncode == 0
    assert not (default / "labs").exists()
    assert "rm " not in done.stdout


@pytest.mark.parametrize("target", ["clean", "distclean"])
def test_a_folder_that_is_no_cache_is_refused(checkout: Path, target: str) -> None:
    home = fill(checkout.parent / "home", "labs", "images", "log")
    link = checkout.parent / "link"
    link.symlink_to(home)
    for cache in (str(home), str(link), f"{home}/labs/..", "labs", "."):
        done = make(checkout, target, THICKET_CACHE=cache)
        assert done.returncode != 0, cache
        assert "nothing was deleted" in done.stderr
        assert names(home) == {"labs", "images", "log"}
    fill(checkout, "labs")
    assert make(checkout, target, THICKET_CACHE=str(checkout)).returncode != 0
    assert (checkout / "labs" / "file").exists()


def test_without_a_cache_there_is_nothing_to_do(checkout: Path) -> None:
    done = make(checkout, "distclean", THICKET_CACHE=str(checkout.parent / "none"))
    assert done.returncode == 0


@pytest.mark.parametrize("image", ["rpi64", "x86_64", "/nonexistent"])
def test_an_image_that_is_not_there_is_told_of_before_anything_is_installed(
    checkout: Path, image: str
) -> None:
    (checkout / "host-packages.txt").write_text("run no-such-package\nrpi64 neither-this\n")
    done = make(checkout, "qemu-mesh", IMAGE=image, THICKET_CACHE=str(checkout.parent / "cache"))
    assert done.returncode != 0
    assert f"`make {image}`" in done.stderr or f"there is no image '{image}'" in done.stderr
    assert "package" not in done.stderr
    assert not (checkout.parent / "cache").exists()


def test_an_image_that_is_there_gets_the_packages_that_it_needs(checkout: Path) -> None:
    listed = "run this\nrpi64 that\nstandin those\nstandin-rpi64 them\n"
    (checkout / "host-packages.txt").write_text(listed)
    card = fill(checkout.parent / "cache", "build/rpi64/images") / "build/rpi64/images/card.img"
    card.write_bytes(b"")
    tools = checkout.parent / "tools"
    tools.mkdir()
    for name, text in {"id": "echo 1000", "sudo": "exit 1", "dpkg-query": "exit 1"}.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    for image, needed in {
        "rpi64": "this that",
        "standin": "this those",
        "standin-rpi64": "this them",
        "lab": "this",
    }.items():
        cache = str(checkout.parent / "cache")
        done = make(checkout, "qemu-mesh", IMAGE=image, THICKET_CACHE=cache, PATH=path)
        assert f"--no-install-recommends {needed} \n" in done.stderr


@pytest.mark.parametrize("systemd", [True, False])
def test_servers_that_tests_need_do_not_run_on_the_machine(checkout: Path, systemd: bool) -> None:
    (checkout / "host-packages.txt").write_text("test unbound\ntest tayga\ntest chrony\nrun kmod\n")
    tools, called = checkout.parent / "tools", checkout.parent / "called"
    tools.mkdir()
    files = (
        "case $2 in unbound) echo /lib/systemd/system/unbound.service; echo /etc/init.d/unbound;; "
        "tayga) echo /etc/init.d; echo /etc/init.d/tayga; "
        "echo /usr/lib/systemd/system/tayga@.service;; "
        "chrony|kmod) echo /usr/lib/systemd/system/$2.service;; esac"
    )
    for name, text in {
        "id": "echo 0",
        "apt-get": ":",
        "dpkg-query": "exit 1",
        "dpkg": files,
        "systemctl": f'[ "$1" = show ] && exit {0 if systemd else 1}; echo "$@" >>{called}',
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    subprocess.run(
        ["sh", checkout / "bin/host-setup", "packages", "run", "test"],
        env={
            "PATH": f"{tools}:{os.environ['PATH']}",
            "HOME": str(checkout.parent),
            "THICKET_CACHE": str(checkout.parent / "cache"),
        },
        check=True,
        capture_output=True,
        timeout=PATIENCE,
    )
    ended = called.read_text().splitlines() if called.exists() else []
    expected = ["disable --now unbound.service", "disable --now tayga.service"]
    assert ended == (expected if systemd else [])


PYTHON = """#!/bin/sh
# Stands in for Python, venv and pip.
case "$*" in
    "-m venv --clear "*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
esac
"""


def test_environments_that_nobody_asks_for_go_after_a_month(checkout: Path) -> None:
    python = checkout / "python3"
    python.write_text(PYTHON)
    python.chmod(0o755)
    cache = checkout.parent / "cache"

    def environment(constraints: str) -> Path:
        (checkout / "constraints.txt").write_text(constraints)
        said = subprocess.run(
            [checkout / "bin/host-setup", "python"],
            env={**os.environ, "THICKET_CACHE": str(cache), "PYTHON": str(python)},
            capture_output=True,
            text=True,
            check=True,
        )
        return Path(said.stdout.strip()).parents[1]

    first, second = environment("1"), environment("2")
    long_ago = time.time() - 32 * 24 * 3600
    for path in (first, second):
        os.utime(path / ".complete", (long_ago, long_ago))
    assert environment("1") == first, "which is asking for it"
    third = environment("3")
    assert names(cache / "python") == {".lock", first.name, third.name}


def test_whatever_pip_takes_comes_by_its_hash() -> None:
    """Also what fixes the hashes: each command names its packages in a file with hashes."""
    top = Path(__file__).parents[1]
    script = (top / "bin/host-setup").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [line for line in script.splitlines() if "-m pip install" in line]
    assert len(commands) == 2
    for command in commands:
        assert "--require-hashes" in command
        assert "--only-binary :all:" in command
    for name in ("constraints.txt", "bin/requirements.txt", "tests/fuzz/requirements.txt"):
        text = (top / name).read_text(encoding="utf-8").replace("\\\n", " ")
        packages = [line for line in text.splitlines() if line and not line.startswith("#")]
        assert packages
        for package in packages:
            assert "==" in package, name
            assert "--hash=sha256:" in package, name


@pytest.mark.parametrize(
    ("own", "base", "expected"),
    [
        ("/a place", "/x", "/a place"),
        ("", "/x", "/x/thicket"),
        ("", "", "/home/me/.cache/thicket"),
        ("", "no/absolute/path", "/home/me/.cache/thicket"),
        ("~/cache", "", "/home/me/cache"),
        ("~", "", "/home/me"),
    ],
)
def test_shell_scripts_make_and_python_agree_on_where_the_cache_is(
    own: str, base: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"HOME": "/home/me", "XDG_CACHE_HOME": base, "THICKET_CACHE": own}.items():
        monkeypatch.setenv(name, value)
    assert str(cache_root()) == expected
    said = subprocess.run(
        [TOP / "bin/host-setup", "cache"], capture_output=True, text=True, check=True
    )
    assert said.stdout == f"{expected}\n"
    if not own:
        said = subprocess.run(
            ["make", "--no-print-directory", "help"],
            cwd=TOP,
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"The cache is {expected} (THICKET_CACHE)." in said.stdout

# SPDX-License-Identifier: Apache-2.0
"""What is in a built root filesystem, and what is not.

Needs an image that ``make rpi64`` or ``make x86_64`` left in the cache; skipped in words where
there is none, because building one takes longer than all other tests together.
"""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from firmware import boards, build, contents
from meshlab.lab import shared

MACHINES = {"aarch64": "AArch64", "x86_64": "Advanced Micro Devices X86-64"}
COMPILERS = ("ar", "as", "c++", "cc", "cpp", "g++", "gcc", "ld", "make", "strip")


@pytest.fixture(params=boards.names())
def board(request: pytest.FixtureRequest) -> boards.Board:
    found = boards.load(str(request.param))
    images = build.images(found.name)
    if not (images / "rootfs.erofs").exists():
        pytest.skip(f"no image in {images}: `make {found.name}` builds one; it was not looked into")
    return found


@pytest.fixture
def root(board: boards.Board, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root filesystem, taken apart by erofs-utils, once per run."""
    erofs = build.images(board.name) / "rootfs.erofs"

    def extract(place: Path) -> None:
        run("fsck.erofs", f"--extract={place}", erofs)

    return shared.once(shared.run_directory(tmp_path_factory), f"root-{board.name}", extract)


def run(*command: str | Path) -> str:
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path, "LC_ALL": "C"},
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def files(root: Path) -> Iterator[Path]:
    for directory, _names, names in os.walk(root):
        for name in names:
            path = Path(directory, name)
            if path.is_file() and not path.is_symlink():
                yield path


def test_the_budgets_are_kept(board: boards.Board) -> None:
    images = build.images(board.name)
    assert (images / "rootfs.erofs").stat().st_size <= 64 << 20
    assert (images / "card.img").stat().st_size <= 512 << 20


def test_no_line_of_a_kernel_or_busybox_fragment_is_lost(board: boards.Board) -> None:
    made = build.Build(board)
    if not (made.output / "build").is_dir():
        pytest.skip("the build directory is gone, only its images are there")
    made.check()


def test_python_is_byte_code_only(root: Path) -> None:
    left = [str(p.relative_to(root)) for p in files(root) if p.suffix == ".py"]
    assert left == []
    assert not list(root.rglob("__pycache__"))
    for module in ("thicket/daemon/daemon", "pyroute2/__init__", "smbus2/__init__"):
        assert list(root.glob(f"usr/lib/python3*/site-packages/{module}.pyc")), module


def test_our_byte_code_has_no_docstrings(root: Path) -> None:
    module = next(root.glob("usr/lib/python3*/site-packages/thicket/daemon/daemon.pyc"))
    assert b"run until SIGTERM".lower() not in module.read_bytes().lower()
    assert b"thicketd %s starts" in module.read_bytes()


def test_no_compiler_no_tests_no_headers(root: Path) -> None:
    names = {path.name for path in (root / "usr/bin").iterdir()}
    assert not names & set(COMPILERS)
    assert not any(name.endswith(("-gcc", "-ld")) for name in names)
    assert not (root / "usr/include").exists()
    assert not [p for p in root.rglob("*") if p.name in ("test", "tests") and p.is_dir()]
    assert not [p for p in files(root) if p.suffix in (".a", ".la", ".h", ".pc")]


def test_nothing_of_the_engineers_desk_is_there(root: Path) -> None:
    (site,) = root.glob("usr/lib/python3*/site-packages")
    names = {
        path.name.partition(".")[0] for path in (*site.iterdir(), *(site / "thicket").rglob("*"))
    }
    assert "thicket" in names
    assert not names & {"authority", "firmware", "host", "meshlab"}


def test_every_file_is_wanted_or_needed(root: Path, board: boards.Board) -> None:
    found = contents.look(root, contents.patterns(board.root / "board/common/wanted.txt"))
    assert contents.sentences(found, most=1000) == []


def test_nobody_has_a_password(root: Path) -> None:
    for name in ("passwd", "shadow"):
        path = root / "etc" / name
        if not path.exists():
            continue
        for line in path.read_text().splitlines():
            fields = line.split(":")
            allowed = ("*", "!", "x") if name == "passwd" else ("*", "!", "!!", "!*")
            assert fields[1] in allowed, line
    inittab = (root / "etc/inittab").read_text()
    assert "getty" not in inittab
    assert "login" not in inittab


def test_no_program_runs_as_somebody_else_than_who_starts_it(
    root: Path, board: boards.Board
) -> None:
    # fsck.erofs keeps modes; a set-user-id program is a door that nothing here needs.
    special = [
        str(path.relative_to(root))
        for path in files(root)
        if path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID)
    ]
    assert special == []


def test_every_program_is_for_this_machine_and_finds_its_libraries(
    root: Path, board: boards.Board
) -> None:
    wanted: dict[str, set[str]] = {}
    count = 0
    for path in files(root):
        with path.open("rb") as file:
            if file.read(4) != b"\x7fELF":
                continue
        place = str(path.relative_to(root))
        if "/firmware/" in place:
            continue  # for the processors of adapters
        header = run("readelf", "-hd", path)
        count += 1
        assert MACHINES[board.arch] in header, place
        for library in re.findall(r"\(NEEDED\).*\[(.+)\]", header):
            wanted.setdefault(library, set()).add(place)
    assert count > 40
    have = {path.name for path in (root / "usr/lib").iterdir()}
    missing = {library: users for library, users in wanted.items() if library not in have}
    assert missing == {}


def test_only_our_scripts_run_at_the_start(root: Path) -> None:
    ours = {path.name for path in (boards.ROOT / "overlay/etc/init.d").iterdir()}
    assert {path.name for path in (root / "etc/init.d").iterdir()} == ours


def test_links_lead_somewhere(root: Path) -> None:
    allowed = re.compile(r"/(proc|run|tmp|dev|sys)(/|$)")
    broken = []
    for path in root.rglob("*"):
        if not path.is_symlink():
            continue
        target = path.readlink()
        # Joining with an absolute target is that target.
        place = os.path.normpath(Path("/") / path.relative_to(root).parent / target)
        if not allowed.match(place) and not (root / place.lstrip("/")).exists():
            broken.append(f"{path.relative_to(root)} -> {target}")
    assert broken == []


def test_drivers_of_radios_are_there_with_their_firmware(root: Path, board: boards.Board) -> None:
    (modules,) = (root / "lib/modules").resolve().iterdir()
    names = {path.name.removesuffix(".ko") for path in modules.rglob("*.ko")}
    for driver in ("mt76x0u", "mt76x2u", "ath9k_htc", "rt2800usb", "rtl8192cu", "mac80211_hwsim"):
        assert driver in names
    text = (boards.ROOT / "board/firmware/linux/radios.config").read_text()
    firmware = root / "lib/firmware"
    # Every file that the fragment's comments name, in the words of each driver's source.
    named = set(re.findall(r"[\w/.-]+\.(?:bin|fw)\b", text))
    assert len(named) >= 6
    for name in named:
        places = [firmware / name, *firmware.glob(f"*/{name}")]
        assert any(p.exists() for p in places), name
    for name in ("regulatory.db", "regulatory.db.p7s"):
        assert (firmware / name).is_file()


def test_the_image_says_what_it_is(root: Path, board: boards.Board) -> None:
    words = dict(
        line.partition("=")[::2] for line in (root / "etc/os-release").read_text().splitlines()
    )
    project = tomllib.loads((boards.ROOT / "app/pyproject.toml").read_text())
    manifest = json.loads((build.images(board.name) / "manifest.json").read_text())
    assert words["ID"] == "thicket"
    assert words["VARIANT_ID"] == board.name == manifest["board"]
    assert words["VERSION_ID"] == manifest["version"] == project["project"]["version"]
    epochs = words["THICKET_EPOCH"], str(manifest["epoch"])
    assert epochs == (str(project["tool"]["thicket"]["epoch"]),) * 2
    assert f"compatible=thicket-{board.name}\n" in (root / "etc/rauc/system.conf").read_text()


def test_the_clock_can_start_at_the_day_of_the_build(root: Path) -> None:
    # S08clock.sh takes this file's time; that of Buildroot's own release would be no floor.
    built = (root / "usr/lib/os-release").stat().st_mtime
    assert built > 1_790_000_000, "older than the first image that had a clock"

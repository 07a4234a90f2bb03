# SPDX-License-Identifier: Apache-2.0
"""Contents that a careless or lying signer has signed: refused by a node, or without harm to it.

The files are made by mksquashfs. Where this machine lets us, they are mounted by its kernel.
"""

from __future__ import annotations

import os
import shutil
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from apps_for_tests import ABOUT, Unpacking, lamp, packed
from test_installed import TWO, Device, device, short_times

from thicket.applications import app_tree, entrypoints
from thicket.applications.app_file import AppError
from thicket.applications.mounts import LoopMounter

__all__ = ("device", "short_times")  # fixtures

pytestmark = pytest.mark.skipif(
    not shutil.which("mksquashfs") or not shutil.which("unsquashfs"), reason="no squashfs-tools"
)

MODULE = "site/lamp_app.py"
GZIP = ("-comp", "gzip", "-no-xattrs")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> LoopMounter:
    """Mounts as a node does; the test is skipped where only an administrator may."""
    folder = tmp_path_factory.mktemp("mount")
    mounter = LoopMounter()
    try:
        mounter.mount(str(packed(folder, lamp("1.0"))), str(folder), executable=False)
    except AppError as error:
        pytest.skip(f"this machine mounts nothing: {error}")
    mounter.unmount(str(folder))
    return mounter


def pseudo(*definitions: str) -> tuple[str, ...]:
    """Return arguments of mksquashfs for what an ordinary user cannot make on a disk."""
    return GZIP + tuple(word for one in definitions for word in ("-p", one))


@pytest.mark.parametrize(
    ("squashfs", "words"),
    [
        (pseudo("site/pipe i 666 0 0 f"), r"'site/pipe' is a pipe"),
        (pseudo("site/socket i 666 0 0 s"), r"'site/socket' is a socket"),
        (pseudo("site/memory c 666 0 0 1 1"), r"'site/memory' is a device"),
        (pseudo("site/disk b 666 0 0 8 0"), r"'site/disk' is a device"),
        (pseudo("site/away s 777 0 0 /etc/shadow"), r"'site/away' is a symbolic link"),
        (pseudo("site/up.py s 777 0 0 ../../../etc/shadow"), r"'site/up.py' is a symbolic link"),
        (pseudo(f"{MODULE} m 4755 0 0"), r"'site/lamp_app.py' is to run with the rights"),
        (pseudo("site m 2755 0 0"), r"'site' is to run with the rights"),
        (pseudo("beside s 777 0 0 site"), r"'beside' is a symbolic link"),
        (("-comp", "xz", "-no-xattrs"), "compressed by xz, and nodes read gzip alone"),
        (("-comp", "zstd", "-no-xattrs"), "compressed by zstd, and nodes read gzip alone"),
    ],
)
async def test_a_node_refuses_contents_that_nobody_builds(
    device: Device, squashfs: tuple[str, ...], words: str
) -> None:
    """What runs goes on meanwhile, and nothing of the file is kept."""
    async with device.on():
        await device.apps.install(str(packed(device.folder, lamp("1.0"))))
        await device.judged()
        before = device.files()
        bad = packed(device.folder, lamp("2.0"), TWO, squashfs=squashfs)
        for _ in range(2):
            with pytest.raises(AppError, match=words):
                await device.apps.install(str(bad))
        with pytest.raises(AppError, match=words):
            await device.apps.judge(str(bad), "lamp")
        assert (device.files(), device.entry()["left"]) == (before, None)
        assert len(device.mounter.mounted) == 1
        assert await device.version() == "1.0"


def bomb(folder: Path) -> None:
    with (folder / "site/zeros").open("wb") as file:
        file.truncate(app_tree.MAX_UNPACKED)


def deep(folder: Path) -> None:
    Path(folder, "site", *("d" * 50 for _ in range(app_tree.MAX_DEPTH))).mkdir(parents=True)


def lines(folder: Path) -> None:
    (folder / "site/new\nline.py").touch()


def colours(folder: Path) -> None:
    (folder / "site/\33[31m.py").touch()


def bytes_that_are_no_text(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/site/\xff.py")).touch()


def many(folder: Path) -> None:
    for number in range(120):
        (folder / f"site/{number:0255}").touch()


def attributes(folder: Path) -> None:
    try:
        os.setxattr(folder / MODULE, "user.thicket", b"1")
    except OSError as error:
        pytest.skip(f"this file system keeps no attributes: {error}")


def only_a_link(folder: Path) -> None:
    (folder / "site").rename(folder / "other")
    (folder / "site").symlink_to("other")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (bomb, "unpack to more than 512 MiB"),
        (deep, "more than 32 folders are in each other"),
        (lines, r"'site/new\\nline\.py' is a name that cannot be shown"),
        (colours, "is a name that cannot be shown"),
        (bytes_that_are_no_text, r"\\udcff.py' is a name that cannot be shown"),
        (many, "have more than 100 files and folders"),
        (attributes, "a table of extended attributes"),
        (only_a_link, "site is no folder"),
    ],
)
async def test_a_node_refuses_bombs(
    device: Device, spoil: object, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(spoil)
    packed(device.folder, lamp("1.0"))
    spoil(device.folder / f"tree-lamp-1.0-{ABOUT.number}")
    bad = packed(device.folder, {}, squashfs=("-comp", "gzip"))
    assert bad.stat().st_size < 4 << 20
    if spoil is many:
        monkeypatch.setattr(app_tree, "MAX_ENTRIES", 100)
        with pytest.raises(AppError, match="125 files and folders, and 100 are the most"):
            app_tree.check_form(bad.open("rb"), bad.stat().st_size)
        # as if the superblock told another number
        monkeypatch.setattr(app_tree, "check_form", lambda *_: None)
    async with device.on():
        with pytest.raises(AppError, match=words):
            await device.apps.install(str(bad))
        assert device.apps.status() == []
        assert not device.mounter.mounted


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (28, b"\3\0", r"no squashfs 4\.0"),
        (20, b"\x09\0", "compressed by method 9"),
        (40, (1 << 40).to_bytes(8, "little"), "cut off"),
        (40, bytes(8), "cut off"),
        (4, b"\xff\xff\xff\xff", "have 4294967295 files and folders"),
    ],
)
def test_the_beginning_is_judged_before_the_kernel_reads_it(
    tmp_path: Path, at: int, value: bytes, words: str
) -> None:
    path = packed(tmp_path, lamp("1.0"))
    with path.open("r+b") as file:
        size = path.stat().st_size
        app_tree.check_form(file, size)
        file.seek(at)
        file.write(value)
        with pytest.raises(AppError, match=words):
            app_tree.check_form(file, size)
        file.truncate(95)
        with pytest.raises(AppError, match=r"no squashfs 4\.0"):
            app_tree.check_form(file, 95)


@pytest.fixture
def mounted(kernel: LoopMounter, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "mounted"
    folder.mkdir()
    yield folder
    kernel.unmount(str(folder))


def options_of(folder: Path) -> set[str]:
    table = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    (line,) = (one.split() for one in table if f" {folder} " in one)
    return set(line[3].split(","))


def test_what_the_kernel_mounts_gives_no_rights(
    kernel: LoopMounter, mounted: Path, tmp_path: Path
) -> None:
    """Other owners, several names of one file and names that differ in case only do no harm."""
    files = lamp("1.0") | {"Lamp.py": "1", "lamp.py": "2", "LAMP.PY": "3"}
    tree = tmp_path / f"tree-lamp-1.0-{ABOUT.number}"
    packed(tmp_path, files)
    os.link(tree / MODULE, tree / "site/again.py")
    path = packed(tmp_path, {}, squashfs=pseudo(f"{MODULE} m 666 1000 1000"))
    kernel.mount(str(path), str(mounted), executable=False)
    app_tree.check(str(mounted))
    site = mounted / "site"
    assert [(site / name).read_text() for name in ("Lamp.py", "lamp.py", "LAMP.PY")] == [*"123"]
    assert (site / "again.py").read_bytes() == (mounted / MODULE).read_bytes()
    for change in (lambda: (mounted / MODULE).write_text(""), (site / "new").touch):
        with pytest.raises(OSError, match="Read-only file system"):
            change()
    assert {"ro", "nosuid", "nodev", "noexec"} <= options_of(mounted)


def test_compiled_modules_may_run(kernel: LoopMounter, mounted: Path, tmp_path: Path) -> None:
    kernel.mount(str(packed(tmp_path, lamp("1.0"))), str(mounted), executable=True)
    options = options_of(mounted)
    assert {"ro", "nosuid", "nodev"} <= options
    assert "noexec" not in options


def test_the_kernel_itself_gives_nothing_of_what_is_refused(
    kernel: LoopMounter, mounted: Path, tmp_path: Path
) -> None:
    """The bounds hold for what is mounted as they do for what is unpacked."""
    bad = packed(
        tmp_path, lamp("1.0"),
        squashfs=pseudo("site/memory c 666 0 0 1 1", "site/su f 4755 0 0 echo", "a s 777 0 0 /"),
    )  # fmt: skip
    kernel.mount(str(bad), str(mounted), executable=False)
    with pytest.raises(PermissionError):
        os.open(mounted / "site/memory", os.O_RDONLY)
    assert stat.S_ISCHR(os.lstat(mounted / "site/memory").st_mode)
    with pytest.raises(AppError, match=r"only files and folders are taken|rights of its owner"):
        app_tree.check(str(mounted))


def test_contents_that_do_not_read(kernel: LoopMounter, mounted: Path, tmp_path: Path) -> None:
    """A signer can sign damaged contents, which the kernel finds out where it reads them."""
    path = packed(tmp_path, lamp("1.0"))
    data = bytearray(path.read_bytes())
    inodes, folders = struct.unpack_from("<QQ", data, 64)
    data[inodes + 4 : folders] = bytes(folders - inodes - 4)
    path.write_bytes(data)
    with pytest.raises(AppError, match=r"cannot be read|cannot be mounted"):
        kernel.mount(str(path), str(mounted), executable=False)
        app_tree.check(str(mounted))


def test_entry_points_are_read_from_small_files_alone(tmp_path: Path) -> None:
    """A pipe would be waited for, for ever, and a large file costs memory."""
    info = tmp_path / "lamp-1.0.dist-info"
    info.mkdir()
    points = info / "entry_points.txt"
    text = "[thicket.applications]\nlamp = lamp_app:Lamp\n"
    points.write_text(text, encoding="utf-8")
    assert entrypoints.targets("thicket.applications", [str(tmp_path)]) == {"lamp": "lamp_app:Lamp"}
    points.write_text(text + "#" * (64 << 10), encoding="utf-8")
    assert entrypoints.targets("thicket.applications", [str(tmp_path)]) == {}
    points.unlink()
    os.mkfifo(points)
    assert entrypoints.targets("thicket.applications", [str(tmp_path)]) == {}


async def test_what_cannot_be_mounted_costs_nothing(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(Unpacking):
        def mount(self, file: str, folder: str, *, executable: bool) -> None:
            raise AppError("not-mounted", "its contents cannot be mounted: no loop device is free")

    async with device.on():
        await device.apps.install(str(packed(device.folder, lamp("1.0"))))
        await device.judged()
        device.apps._mounter = Full()
        with pytest.raises(AppError, match="no loop device is free"):
            await device.apps.install(str(packed(device.folder, lamp("2.0"), TWO)))
        assert await device.version() == "1.0"
        assert device.entry()["left"] is None
        assert len(list(Path(device.paths.run, "apps").iterdir())) == 1
        device.apps._mounter = device.mounter

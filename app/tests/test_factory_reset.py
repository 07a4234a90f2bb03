# SPDX-License-Identifier: Apache-2.0
"""The factory reset: what goes, what stays, and that a power cut never leaves half of it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from thicket.base.files import write_atomically
from thicket.base.paths import Paths
from thicket.cluster import passphrase_file
from thicket.device import boot_partition, data_format, led, reset_button
from thicket.device import factory_reset as reset
from thicket.device.factory_reset import ResetError, Survey
from thicket.device.reset_button import Button
from thicket.identity.source import Host
from thicket.trust.credentials import CHAIN_FILE, KEY_FILE
from thicket.trust.service import LIST_FILE, START_FILE
from thicket.update import fleet, journal, kept, lane, store
from thicket.upkeep.access import Places

#: What a node needs to be the same node afterwards, from the documents of the parts that keep it.
STAYS = (
    "thicket/identity.json", "thicket/device.key", "thicket/device.pem", "thicket/revocations.bin",
    "thicket/start", "thicket/passphrase.json", "thicket/last-good.toml",
    "thicket/last-good.sha256", "thicket/thicket.toml", "thicket/console", "thicket/clock",
    "thicket/size", "thicket/run", "thicket/format", "thicket.2/device.key", "thicket.2/format",
    "ssh/host-ed25519", "ssh/authorized_keys", "update/starts", "update/bundles.json",
    "update/journal.json", "update/reports", "update/offered/offer",
    "update/others/app-readings/offered/offer", "update/others/app-readings/reports",
    "rauc/central.raucs", "led",
)  # fmt: skip
GOES = (
    "apps/readings/1.0-0123456789ab.app", "apps/readings/state.json", "apps/other/state.json",
    "log/crash-3.txt", "rescue/head.img.gz", "thicket/restarts.jsonl", "thicket/device.key.new",
    "thicket/unknown/deep/er", "thicket.2.new/device.key", "thicket.old/device.key",
    "update/able.json", "update/trial.json", "update/members", "update/incoming/part",
    "update/offered/0123.patch", "update/others/app-readings/journal.json",
    "update/others/app-readings/offered/4567.patch", "ssh/known_hosts", "kept", ".hidden",
    "measured/2026/11/30/values.csv", "lost+found/#12", "device.key", "identity.json/identity.json",
    "reset/else",
)  # fmt: skip


#: The same of a node that has less: a cut is tried at each change that its reset makes.
FEW_STAY = (
    "thicket/device.key", "thicket/clock", "thicket.2/device.key", "ssh/host-ed25519",
    "update/offered/offer",
)  # fmt: skip
FEW_GO = (
    "apps/readings/state.json", "thicket/restarts.jsonl", "thicket/unknown/deep/er/still",
    "thicket.2.new/device.key", "update/offered/0123.patch", "kept",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for no disk of this machine: who else writes to it decides how long that takes."""
    monkeypatch.setattr(os, "sync", lambda: None)
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def fill(data: Path, names: Sequence[str] = (*STAYS, *GOES)) -> None:
    for name in names:
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"this is {name}\n")
    (data / "link").symlink_to("thicket")
    if (data / "measured").exists():
        (data / "measured/link").symlink_to(data / "ssh")


def tree(data: Path) -> list[str]:
    """Return all files, from the top."""
    found = [path for path in data.rglob("*") if path.is_symlink() or not path.is_dir()]
    return sorted(str(path.relative_to(data)) for path in found)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    fill(tmp_path / "data")
    for folder in ("boot", "run/thicket", "proc"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "proc/cmdline").write_text("quiet\n")
    return Paths(str(tmp_path))


def data_of(paths: Paths) -> Path:
    return Path(paths.data)


def is_whole(paths: Paths, stays: Sequence[str] = STAYS) -> bool:
    """Tell whether a reset is complete: what has to stay is there as it was, and nothing else."""
    data = data_of(paths)
    for name in stays:
        assert (data / name).read_text() == f"this is {name}\n", f"{name} is lost"
    own = [name for name in tree(data) if not name.startswith("reset/")]
    return own == sorted(stays)


def test_the_command_s_request_is_done_by_the_next_start(paths: Paths) -> None:
    assert reset.run(paths) is None
    assert not is_whole(paths)
    reset.ask(paths, "command")
    said = reset.run(paths)
    assert said is not None
    assert said.startswith("factory reset by a command: ")
    assert is_whole(paths)
    assert tree(data_of(paths) / "reset") == ["last.json"]
    assert (data_of(paths) / "lost+found").is_dir()
    assert reset.run(paths) is None


def test_what_the_parts_keep_of_who_the_node_is_stays(paths: Paths) -> None:
    """By the names that the parts have for their files: a renamed one is not lost."""
    own = [LIST_FILE, START_FILE, KEY_FILE, CHAIN_FILE, passphrase_file.FILE, data_format.FILE]
    update = [kept.NAME, fleet.START]
    for folder in (fleet.FOLDER, f"{fleet.OTHERS}/app-lamp"):
        update += [folder + lane.REPORTS, f"{folder}{store.FOLDER}/offer"]
    files = {
        *(f"{paths.data}/thicket/{name}" for name in own),
        *(paths.data + name for name in (*update, fleet.FOLDER + journal.NAME, led.FILE)),
        Host(data=f"{paths.data}/thicket").memory,
        *(paths.local, paths.last_good, paths.last_good_sum),
        *(Places(paths).kept, Places(paths).console),
    }
    for file in files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(file)
    reset.ask(paths, "command")
    reset.run(paths)
    assert [file for file in files if Path(file).read_text() != file] == []


def test_what_was_erased_is_told_by_name_and_size(paths: Paths) -> None:
    (data_of(paths) / "measured/large").write_bytes(bytes(1 << 20))
    reset.ask(paths, "command")
    reset.run(paths)
    last = reset.last(paths)
    assert last is not None
    names = [one["name"] for one in last["erased"]]
    assert names[0] == "measured/large"
    assert {"apps/readings", "apps/other", "log/crash-3.txt", "kept", "link"} <= set(names)
    assert not any(
        name.rpartition("/")[2] == "identity.json" and "thicket/" in name for name in names
    )
    assert last["files"] == len(GOES) + 3  # two links, and the large one
    assert last["bytes"] >= 1 << 20
    assert last["left"] == []
    assert "measured/large 1.0 MiB" in last["words"]
    assert last["words"].startswith("by a command: ")


@pytest.mark.parametrize("name", reset.FILES)
def test_a_file_on_the_first_partition_asks_for_one_reset(paths: Paths, name: str) -> None:
    (Path(paths.boot) / name).touch()
    (Path(paths.boot) / "thicket.toml").write_text("# mine\n")
    said = reset.run(paths)
    assert said is not None
    assert "by a file on the card" in said
    assert is_whole(paths)
    assert [path.name for path in Path(paths.boot).iterdir()] == ["thicket.toml"]
    assert reset.run(paths) is None


def test_a_file_that_cannot_be_removed_erases_nothing(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each start would be a reset."""
    file = Path(paths.boot) / "factory-reset"
    file.touch()

    def refuse(paths: Paths, device: str | None, target: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), target)

    monkeypatch.setattr(boot_partition, "remove_from_boot", refuse)
    before = tree(data_of(paths))
    with pytest.raises(ResetError, match="cannot be removed, so nothing was erased: Read-only"):
        reset.run(paths)
    assert tree(data_of(paths)) == before
    # the button or the command do not need the file
    reset.ask(paths, "command")
    assert reset.run(paths) is not None
    assert is_whole(paths)
    (data_of(paths) / "new").touch()
    with pytest.raises(ResetError):
        reset.run(paths)
    assert (data_of(paths) / "new").exists()


@pytest.mark.parametrize(
    ("state", "words"),
    [("readonly the device is write-protected", "can only be read"), ("ram x", "in memory only")],
)
def test_data_that_cannot_be_erased_is_said(paths: Paths, state: str, words: str) -> None:
    Path(paths.run, "data").write_text(f"{state}\n")
    file = Path(paths.boot) / "factory-reset"
    file.touch()
    with pytest.raises(ResetError, match=words):
        reset.run(paths)
    assert file.exists()


def test_a_damaged_request_is_one(paths: Paths) -> None:
    """It was whole when it was written: part of the reset may be done."""
    (data_of(paths) / "reset/request").write_text("{")
    said = reset.run(paths)
    assert said is not None
    assert is_whole(paths)


def test_folders_deeper_than_a_path_can_say_go_as_well(paths: Paths) -> None:
    top = os.open(paths.data, os.O_RDONLY)
    at = top
    for _ in range(1200):  # more than Python's stack, and 6 KiB of path
        os.mkdir("deep", dir_fd=at)
        os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=at))
        below = os.open("deep", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    reset.ask(paths, "command")
    assert reset.run(paths) is not None
    assert is_whole(paths)


def test_what_cannot_be_erased_is_told_and_tried_again(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = os.unlink

    def fail(path: str, *args: object, **more: object) -> None:
        if str(path).endswith("values.csv"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        unlink(path)

    monkeypatch.setattr(os, "unlink", fail)
    reset.ask(paths, "command")
    said = reset.run(paths)
    assert said is not None
    assert "NOT ERASED: measured" in said
    last = reset.last(paths)
    assert last is not None
    assert any("values.csv: Input/output error" in words for words in last["left"])
    monkeypatch.undo()
    reset.run(paths)
    assert is_whole(paths)
    last = reset.last(paths)
    assert last is not None
    assert last["left"] == []


def test_a_full_disk_has_room_for_a_request(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    reset.keep_room(paths)
    room = data_of(paths) / "reset/room"
    assert room.stat().st_blocks > 0
    write = write_atomically

    def full(path: str, *args: object, **more: object) -> None:
        if room.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        write(path, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(reset, "write_atomically", full)
    reset.ask(paths, "command")
    reset.run(paths)
    assert is_whole(paths)


# -- power cuts


class Cut(BaseException):
    """The power is gone."""


CHANGES = ("unlink", "rmdir", "rename", "replace", "mkdir", "write", "fsync", "open")


def cut_at(monkeypatch: pytest.MonkeyPatch, number: int) -> Callable[[], int]:
    """Cut the power before a change of the file system, which is behind the one before it.

    :returns: what tells how many changes there were.
    """
    count = 0

    def wrap(change: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **more: object) -> object:
            nonlocal count
            count += 1
            if count == number:
                raise Cut
            return change(*args, **more)

        return wrapped

    for name in CHANGES:
        monkeypatch.setattr(os, name, wrap(getattr(os, name)))
    return lambda: count


def way_file(paths: Paths) -> None:
    (Path(paths.boot) / "factory-reset").touch()


def way_command(paths: Paths) -> None:
    reset.ask(paths, "command")


def way_button(paths: Paths) -> None:
    reset_button.keep(paths, Button(17, low=True, armed=True))


WAYS = {"file": way_file, "command": way_command, "button": way_button}


def cuts(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Paths]:
    """A node after a start with a reset, the power cut at each change of it; at last not cut."""
    number, was_cut = 0, True
    while was_cut:
        number += 1
        root = tmp_path / str(number)
        fill(root / "data", (*FEW_STAY, *FEW_GO))
        for folder in ("boot", "run/thicket", "proc"):
            (root / folder).mkdir(parents=True)
        paths = Paths(str(root))
        WAYS[way](paths)
        with monkeypatch.context() as patch:
            told = cut_at(patch, number)
            try:
                reset.run(paths, pressed=way == "button")
                was_cut = False
            except Cut:
                pass
        yield paths
    assert told() > len(FEW_GO), "too few changes were cut"


@pytest.mark.parametrize("way", ["file", "command"])
def test_a_cut_at_any_change_ends_in_a_whole_reset_after_the_next_start(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = None
    for paths in cuts(tmp_path, way, monkeypatch):
        reset.run(paths)
        assert is_whole(paths, FEW_STAY)
        last = reset.last(paths)
        assert last is not None
        assert last["by"] == way
        # with the names of all, also of what was gone before the cut
        names = sorted(one["name"] for one in last["erased"])
        told = told or names
        assert names == told
        # the file itself is gone, and the node does it once
        (data_of(paths) / "new").touch()
        assert reset.run(paths) is None
        assert (data_of(paths) / "new").exists()


def test_a_cut_with_the_button_leaves_all_or_ends_in_a_whole_reset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the press is on the disk it is forgotten with the power; then it is done, once."""
    begun = 0
    for paths in cuts(tmp_path, "button", monkeypatch):
        asked = reset.load_request(paths) is not None or reset.last(paths) is not None
        if not asked:
            names = tree(data_of(paths))
            assert set(names) >= {*FEW_STAY, *FEW_GO}
            continue
        begun += 1
        reset.run(paths)
        assert is_whole(paths, FEW_STAY)
        # still held: it was this press
        assert reset_button.load(paths) == Button(17, low=True, armed=False)
        (data_of(paths) / "new").touch()
        assert reset.run(paths) is None
    assert begun > len(FEW_GO)


def test_a_survey_counts_what_it_does_not_name(paths: Paths) -> None:
    for number in range(100):
        (data_of(paths) / f"file{number}").write_text("x")
    found = reset.survey(paths)
    assert isinstance(found, Survey)
    assert len(found.names) == reset.MOST_NAMES
    assert found.more > 60
    assert found.text(1).endswith(f"{found.more + reset.MOST_NAMES - 1} more")


def test_names_that_somebody_chose_do_no_harm(paths: Paths) -> None:
    (data_of(paths) / "a\nb\x1b[2J").write_text("x")
    for number in range(reset.MOST_NAMES):
        (data_of(paths) / os.fsdecode(b"\xff\xfe%d" % number * 50)).write_text("x")
    reset.ask(paths, "command")
    said = reset.run(paths)
    assert said is not None
    last = reset.last(paths)
    assert last is not None
    assert json.dumps(last)
    assert last["words"].isprintable()
    assert is_whole(paths)

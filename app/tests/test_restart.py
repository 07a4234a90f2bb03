# SPDX-License-Identifier: Apache-2.0
"""thicket.upkeep.last_run: why the run before ended, told from what it left behind."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thicket.base.paths import Paths
from thicket.upkeep import last_run

# As ramoops keeps it: the oops first, the panic that follows from it in a record of its own.
OOPS = """Oops#1 Part1
<6>[   10.000000] sysrq: Trigger a crash
<1>[   10.000100] BUG: kernel NULL pointer dereference, address: 0000000000000000
<4>[   10.000200] CPU: 0 PID: 91 Comm: sh
"""
PANIC = """Panic#2 Part1
<4>[   10.000300] ---[ end trace 0000000000000000 ]---
<0>[   10.000400] Kernel panic - not syncing: Fatal exception
<0>[   10.000500] Kernel Offset: disabled
"""


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(str(tmp_path))
    for folder in ("data/thicket", "run/thicket", "sys/fs/pstore", "sys/class/watchdog/watchdog0"):
        (tmp_path / folder).mkdir(parents=True)
    return made


def boot(paths: Paths, mark: str = "running") -> dict[str, object]:
    """What a boot finds out that finds ``mark``."""
    Path(paths.run + "/last-restart.json").unlink(missing_ok=True)
    Path(paths.run + "/last-run").write_text(mark + "\n")
    record, trouble = last_run.find_out(paths, "1.2", "B")
    assert trouble is None
    return record


def pstore(paths: Paths, **records: str) -> Path:
    folder = Path(paths.sys + "/fs/pstore")
    for name, text in records.items():
        (folder / name.replace("_", "-")).write_text(text)
    return folder


class TestReasons:
    def test_the_first_start(self, paths: Paths) -> None:
        record = boot(paths, "none")
        assert (record["reason"], record["run"]) == ("first", 1)
        assert (record["version"], record["slot"]) == ("1.2", "B")
        assert record["words"] == "first start with this data partition"

    @pytest.mark.parametrize(
        ("mark", "reason"),
        [
            ("stopped", "shutdown"),
            ("overdue", "overdue"),
            ("running", "power"),
            ("damaged", "unknown"),
            ("", "unknown"),
        ],
    )
    def test_the_mark(self, mark: str, reason: str, paths: Paths) -> None:
        boot(paths, "none")
        assert boot(paths, mark)["reason"] == reason

    @pytest.mark.parametrize(("state", "word"), [("ram", "RAM"), ("rebuilt", "made anew")])
    def test_without_a_past_nothing_is_claimed(self, state: str, word: str, paths: Paths) -> None:
        Path(paths.run + "/data").write_text(f"{state} {word}\n")
        record = boot(paths, "none")
        assert record["reason"] == "unknown"
        assert "nothing was kept" in str(record["words"])

    def test_the_watchdog_s_own_record(self, paths: Paths) -> None:
        status = Path(paths.sys + "/class/watchdog/watchdog0/bootstatus")
        for value, reason in (("0", "power"), ("32", "watchdog"), ("8", "power"), ("x", "power")):
            status.write_text(value + "\n")
            assert boot(paths)["reason"] == reason, value
        status.write_text("32\n")
        assert boot(paths, "stopped")["reason"] == "shutdown"

    def test_the_reset_register_of_a_raspberry_pi(self, paths: Paths) -> None:
        file = Path(paths.root + "/proc/device-tree/chosen/bootloader/rsts")
        file.parent.mkdir(parents=True)
        for value, reason in ((0x1000, "power"), (0x1020, "watchdog"), (0x40, "watchdog")):
            file.write_bytes(value.to_bytes(4, "big"))
            assert boot(paths)["reason"] == reason, hex(value)
        file.write_bytes(b"\x20")
        assert boot(paths)["reason"] == "power"

    def test_a_panic_is_believed_before_everything_else(self, paths: Paths) -> None:
        folder = pstore(paths, dmesg_ramoops_0=OOPS, dmesg_ramoops_1=PANIC, console_ramoops_0="x")
        Path(paths.sys + "/class/watchdog/watchdog0/bootstatus").write_text("32\n")
        record = boot(paths, "stopped")
        assert (record["reason"], record["message"]) == ("panic", "Fatal exception")
        assert record["crash"] == "/data/log/crash-1.txt"
        kept = Path(paths.data + "/log/crash-1.txt").read_text()
        assert OOPS in kept
        assert PANIC in kept
        # freed, so that it is not told again; other records are not ours
        assert [p.name for p in folder.iterdir()] == ["console-ramoops-0"]
        assert boot(paths, "stopped")["reason"] == "shutdown"

    def test_an_oops_alone(self, paths: Paths) -> None:
        pstore(paths, dmesg_ramoops_0=OOPS)
        assert "NULL pointer" in str(boot(paths)["message"])

    def test_words_without_a_reason(self, paths: Paths) -> None:
        pstore(paths, dmesg_ramoops_0="\0\xff garbage")
        record = boot(paths)
        assert record["reason"] == "panic"
        assert "no reason found" in str(record["message"])


class TestKept:
    def test_once_per_boot(self, paths: Paths) -> None:
        first = boot(paths, "none")
        again, _ = last_run.find_out(paths, "9.9", None)
        assert again == first
        assert last_run.known(paths) == first
        assert len(last_run.read(paths)) == 1

    def test_the_last_ones_are_kept_and_private(self, paths: Paths) -> None:
        for _ in range(last_run.KEPT + 3):
            boot(paths)
        history = last_run.read(paths)
        assert [record["run"] for record in history] == list(range(4, last_run.KEPT + 4))
        file = Path(paths.data + "/thicket/restarts.jsonl")
        assert len(file.read_text().splitlines()) == last_run.KEPT
        assert file.stat().st_mode & 0o777 == 0o600

    def test_few_crashes_of_bounded_size(self, paths: Paths) -> None:
        for number in range(last_run.CRASHES + 4):
            pstore(
                paths, dmesg_ramoops_0="x" * 100_000 + f" {number}\n", dmesg_ramoops_1="y" * 99_000
            )
            boot(paths)
        kept = sorted(Path(paths.data + "/log").iterdir(), key=lambda p: len(p.name))
        assert len(kept) == last_run.CRASHES
        assert all(p.stat().st_size <= last_run.CRASH_BYTES + 100 for p in kept)
        assert f" {last_run.CRASHES + 3}\n" not in kept[0].read_text()

    @settings(deadline=None)
    @given(garbage=st.binary(max_size=300))
    def test_garbage_in_the_history(
        self, garbage: bytes, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        paths = Paths(str(tmp_path_factory.mktemp("node")))
        file = Path(paths.data + "/thicket/restarts.jsonl")
        file.parent.mkdir(parents=True)
        Path(paths.run).mkdir(parents=True)
        good = {"run": 7, "reason": "power"}
        file.write_bytes(garbage + b"\n" + json.dumps(good).encode() + b"\n")
        assert last_run.read(paths)[-1] == good
        assert boot(paths)["run"] == 8

    @pytest.mark.parametrize(
        "line",
        [
            '{"run": "x", "reason": "power"}',
            '{"reason": "power"}',
            '{"run": true, "reason": "power"}',
        ],
    )
    def test_records_without_a_number(self, line: str, paths: Paths) -> None:
        Path(paths.data + "/thicket/restarts.jsonl").write_text(line + "\n")
        assert boot(paths)["run"] == 1

    def test_a_disk_that_takes_nothing(self, paths: Paths) -> None:
        """A crash is still told, and not once more at the next start; its text stays in RAM."""
        Path(paths.data + "/thicket").rmdir()
        Path(paths.data + "/thicket").write_text("a file where the folder should be")
        Path(paths.data + "/log").write_text("and here")
        folder = pstore(paths, dmesg_ramoops_0=PANIC)
        Path(paths.run + "/last-run").write_text("running\n")
        record, trouble = last_run.find_out(paths, "1", None)
        assert record["reason"] == "panic"
        assert trouble is not None
        assert "thicket" in trouble
        assert record["crash"] == "/run/thicket/crash-1.txt"
        assert PANIC in Path(paths.run + "/crash-1.txt").read_text()
        assert list(folder.iterdir()) == []
        assert last_run.known(paths) == record

# SPDX-License-Identifier: Apache-2.0
"""The choice of KVM or TCG, with the QEMU of this machine and with stand-ins for others."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from patience import PATIENCE

from meshlab.machine import accel

QEMU = "qemu-system-x86_64"
needs_qemu = pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is not installed")


def stand_in(directory: Path, body: str, name: str = QEMU) -> str:
    """Make a program that answers --version like QEMU and otherwise runs ``body`` in sh."""
    path = directory / name
    path.write_text(
        "#!/bin/sh\n"
        'case "$*" in *--version*) echo "QEMU emulator version 9.9.9"; exit 0;; esac\n' + body
    )
    path.chmod(0o755)
    return str(path)


def timed(directory: Path, monkeypatch: pytest.MonkeyPatch, slow: str, body: str = "") -> str:
    """Make a stand-in whose trials take a second each with ``slow``, and otherwise no time."""
    clock = directory / "clock"
    clock.touch()
    passed = SimpleNamespace(monotonic=lambda: len(clock.read_text()))
    monkeypatch.setattr(accel, "time", passed)
    tick = f'case "$*" in *"-accel {slow}"*) printf . >> {clock};; esac\n'
    return stand_in(directory, tick + body + "exit 65\n")


@pytest.fixture
def kvm_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in for /dev/kvm: a file that opens."""
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(accel, "_KVM", device)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    return device


def test_firmware_is_a_pc_firmware_image() -> None:
    image = accel.firmware()
    assert len(image) == 65536
    # The reset vector: a far jump (0xEA) to the image's first byte, F000:0000.
    assert image[0xFFF0] == 0xEA
    assert struct.unpack("<HH", image[0xFFF1:0xFFF5]) == (0, 0xF000)


@needs_qemu
@pytest.mark.parametrize(("count", "writes"), [(1, 1), (1000, 10), ((1 << 16) + 1, 3)])
def test_firmware_computes_under_tcg(tmp_path: Path, count: int, writes: int) -> None:
    image = tmp_path / "firmware.bin"
    image.write_bytes(accel.firmware(count, writes))
    trial = accel.boot(QEMU, "tcg", "qemu64", image, 120)
    assert trial.seconds is not None, trial.words


@needs_qemu
def test_firmware_notices_a_wrong_sum(tmp_path: Path) -> None:
    image = tmp_path / "firmware.bin"
    broken = accel.firmware(1000, 1).replace(struct.pack("<I", 500500), struct.pack("<I", 500501))
    image.write_bytes(broken)
    trial = accel.boot(QEMU, "tcg", "qemu64", image, 120)
    assert trial.seconds is None
    assert trial.words == "computed a wrong result"


def sample(ticks: int, width: int, hpet: int) -> bytes:
    return struct.pack("<QQI", ticks, ticks + width, hpet)


def test_clock_frequency_follows_from_the_narrowest_samples() -> None:
    # 2.5 GHz against the 100 MHz of QEMU's HPET, which wraps on the way. Every tenth sample was
    # not interrupted; in the others the HPET was read at some time within a millisecond.
    output = b""
    for n in range(400):
        ticks = 10**12 + n * 2_500_000
        hpet = (n * 100_000 + 0xFFFF0000) & 0xFFFFFFFF
        late = 0 if n % 10 == 5 else 40_000
        output += sample(ticks, 300 + late * 50, (hpet + late) & 0xFFFFFFFF)
    assert accel.clock_frequency(output) == 2_500_000


def test_clock_frequency_of_useless_samples_is_unknown() -> None:
    assert accel.clock_frequency(b"") is None
    assert accel.clock_frequency(sample(1, 1, 1) * 399) is None
    steady = b"".join(sample(n * 1000, 10, 7) for n in range(400))
    assert accel.clock_frequency(steady) is None, "the HPET stands still"
    rough = b"".join(sample(n * 1000, 900, n * 100) for n in range(400))
    assert accel.clock_frequency(rough) is None, "no narrow sample"


@needs_qemu
def test_clock_of_this_machine(tmp_path: Path) -> None:
    first = accel.measure_clock(QEMU, "qemu64", tmp_path, 60)
    second = accel.measure_clock(QEMU, "max", tmp_path, 60)
    if first is None or second is None:
        pytest.skip("this machine is too busy to measure its clock: the guest is told none")
    assert abs(first - second) / first < 200e-6


@needs_qemu
def test_choice_on_this_machine_runs_a_guest(tmp_path: Path) -> None:
    chosen = accel.choose(tmp_path, QEMU, environment={})
    assert chosen.name in {"kvm", "tcg"}
    assert len(chosen.reason) > 10
    image = tmp_path / "firmware.bin"
    image.write_bytes(accel.firmware(1000, 10))
    trial = accel.boot(QEMU, chosen.name, chosen.cpu, image, 600)
    assert trial.seconds is not None, trial.words


def test_kvm_is_chosen_when_it_is_faster(
    tmp_path: Path, kvm_device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qemu = timed(tmp_path, monkeypatch, "tcg")
    chosen = accel.choose(tmp_path, qemu, environment={})
    assert (chosen.name, chosen.cpu) == ("kvm", "host")
    assert "finished" in chosen.reason


def test_kvm_slower_than_tcg_is_not_chosen(
    tmp_path: Path, kvm_device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qemu = timed(tmp_path, monkeypatch, "kvm")
    chosen = accel.choose(tmp_path, qemu, environment={})
    assert chosen.name == "tcg"
    assert "slower than TCG" in chosen.reason


def test_a_guest_that_hangs_under_kvm_is_ended(
    tmp_path: Path, kvm_device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hung: list[int] = []

    class Popen(subprocess.Popen[bytes]):
        """Tells which processes were to hang; this machine may end them before they do anything."""

        def __init__(self, args: list[str], **options: Any) -> None:
            super().__init__(args, **options)
            if "kvm" in args:
                hung.append(self.pid)

    trial = accel.boot

    def hasty(qemu: str, name: str, cpu: str, image: Path, _deadline: float, *more: str) -> object:
        return trial(qemu, name, cpu, image, 0.3 if name == "kvm" else 60, *more)

    qemu = stand_in(tmp_path, 'case "$*" in *"-accel kvm"*) exec sleep 600;; esac; exit 65\n')
    monkeypatch.setattr(subprocess, "Popen", Popen)
    monkeypatch.setattr(accel, "boot", hasty)
    chosen = accel.choose(tmp_path, qemu, environment={})
    assert chosen.name == "tcg"
    assert "did not finish in 0.3 s" in chosen.reason
    (pid,) = hung  # tried once: another CPU model would hang as well
    assert not Path("/proc", str(pid)).exists()


def test_a_host_that_is_too_busy_for_a_trial_still_runs_guests(
    tmp_path: Path, kvm_device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = accel.boot

    def hasty(qemu: str, name: str, cpu: str, image: Path, _deadline: float, *more: str) -> object:
        return trial(qemu, name, cpu, image, 0.3 if name == "tcg" else 300, *more)

    monkeypatch.setattr(accel, "boot", hasty)
    qemu = stand_in(tmp_path, 'case "$*" in *"-accel tcg"*) exec sleep 600;; esac; exit 65\n')
    chosen = accel.choose(tmp_path / "a", qemu, environment={})
    assert chosen.name == "kvm"
    assert chosen.reason.endswith("under TCG it did not finish in 0.3 s")
    chosen = accel.choose(tmp_path / "b", qemu, environment={"THICKET_ACCEL": "tcg"})
    assert (chosen.name, chosen.tsc_khz) == ("tcg", None)


def test_cpu_host_that_dies_of_an_msr_is_replaced(
    tmp_path: Path, kvm_device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qemu = timed(
        tmp_path,
        monkeypatch,
        "tcg",
        'case "$*" in *"-accel tcg"*) ;;\n'
        '*"-cpu host"*) echo "error: failed to set MSR 0x10a to 0x0" >&2; exit 134;; esac\n',
    )
    chosen = accel.choose(tmp_path, qemu, environment={})
    assert (chosen.name, chosen.cpu) == ("kvm", "qemu64")


def test_reason_quotes_qemu(tmp_path: Path, kvm_device: Path) -> None:
    qemu = stand_in(
        tmp_path,
        'case "$*" in *"-accel kvm"*) echo "failed to set MSR 0x10a" >&2; exit 1;; esac\nexit 65\n',
    )
    chosen = accel.choose(tmp_path, qemu, environment={})
    assert chosen.name == "tcg"
    assert "failed to set MSR 0x10a" in chosen.reason


def test_no_device_and_closed_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(accel, "_KVM", tmp_path / "nothing")
    qemu = stand_in(tmp_path, "exit 65\n")
    chosen = accel.choose(tmp_path / "a", qemu, environment={})
    assert chosen.name == "tcg"
    assert "there is no" in chosen.reason

    (tmp_path / "nothing").touch()
    access = os.access
    monkeypatch.setattr("os.access", lambda path, mode: path != accel._KVM and access(path, mode))
    chosen = accel.choose(tmp_path / "b", qemu, environment={})
    assert chosen.name == "tcg"
    assert "may not be opened" in chosen.reason


def test_answer_is_kept_until_the_machine_restarts_or_qemu_changes(
    tmp_path: Path, kvm_device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    qemu = stand_in(tmp_path, f"echo run >> {runs}; exit 65\n")

    def count() -> int:
        return len(runs.read_text().split())

    first = accel.choose(tmp_path / "cache", qemu, environment={})
    tried = count()
    assert accel.choose(tmp_path / "cache", qemu, environment={}) == first
    assert count() == tried

    (tmp_path / "cache" / "accel-x86_64.json").write_text('{"key": 1')
    accel.choose(tmp_path / "cache", qemu, environment={})
    assert count() > tried
    tried = count()

    boot = tmp_path / "boot_id"
    boot.write_text("another boot\n")
    monkeypatch.setattr(accel, "_BOOT_ID", boot)
    accel.choose(tmp_path / "cache", qemu, environment={})
    assert count() > tried
    stored = json.loads((tmp_path / "cache" / "accel-x86_64.json").read_text())
    assert stored["key"]["boot"] == "another boot"


def test_unwritable_cache_is_survived(tmp_path: Path, kvm_device: Path) -> None:
    (tmp_path / "file").touch()
    chosen = accel.choose(tmp_path / "file" / "x", stand_in(tmp_path, "exit 65\n"), environment={})
    assert chosen.name in {"kvm", "tcg"}


def test_override(tmp_path: Path, kvm_device: Path) -> None:
    qemu = stand_in(tmp_path, 'case "$*" in *"-accel kvm"*) echo no >&2; exit 1;; esac; exit 65\n')
    chosen = accel.choose(tmp_path, qemu, environment={"THICKET_ACCEL": "tcg"})
    assert chosen == accel.Accel("tcg", "THICKET_ACCEL=tcg", accel.TCG_CPU["x86_64"], None)
    with pytest.raises(accel.AccelError, match=r"THICKET_ACCEL=kvm, but .* status 1 \(no\)"):
        accel.choose(tmp_path, qemu, environment={"THICKET_ACCEL": "kvm"})
    with pytest.raises(accel.AccelError, match="use kvm or tcg"):
        accel.choose(tmp_path, qemu, environment={"THICKET_ACCEL": "xen"})


def test_foreign_guests_are_emulated(tmp_path: Path, kvm_device: Path) -> None:
    qemu = stand_in(tmp_path, "exit 65\n", "qemu-system-aarch64")
    chosen = accel.choose(tmp_path, qemu, environment={})
    assert (chosen.name, chosen.cpu) == ("tcg", "cortex-a72")
    assert "aarch64" in chosen.reason
    with pytest.raises(accel.AccelError, match="guests are aarch64"):
        accel.choose(tmp_path, qemu, environment={"THICKET_ACCEL": "kvm"})


def test_broken_or_missing_qemu_says_what_to_do(tmp_path: Path, kvm_device: Path) -> None:
    with pytest.raises(accel.AccelError, match="apt-get install"):
        accel.choose(tmp_path, str(tmp_path / "qemu-system-none"), environment={})
    broken = stand_in(tmp_path, "echo no TCG here >&2; exit 1\n")
    with pytest.raises(accel.AccelError, match="no TCG here"):
        accel.choose(tmp_path, broken, environment={})


@needs_qemu
def test_trial_leaves_no_process_when_its_parent_is_killed(tmp_path: Path) -> None:
    # A guest that never ends, in a child that is killed as the out-of-memory killer would.
    script = (
        "import sys; from pathlib import Path; from meshlab.machine import accel\n"
        "accel.boot(sys.argv[1], 'tcg', 'qemu64', Path(sys.argv[2]), 600)\n"
    )
    pids = tmp_path / "pid"
    qemu = stand_in(tmp_path, f"echo $$ > {pids}.new; mv {pids}.new {pids}; exec sleep 600\n")
    child = subprocess.Popen([sys.executable, "-c", script, qemu, "x"])
    deadline = time.monotonic() + PATIENCE
    while not pids.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    pid = pids.read_text().strip()
    child.kill()
    child.wait()
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _alive(pid)


def _alive(pid: str) -> bool:
    try:
        # Field 3 of proc_pid_stat(5); a zombie waits for a parent that is not ours.
        return Path("/proc", pid, "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False

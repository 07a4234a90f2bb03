# SPDX-License-Identifier: Apache-2.0
"""Choose how QEMU runs a guest: KVM where a guest really finishes under it, else TCG.

``/dev/kvm`` can exist and open on a machine where no guest ever gets anywhere (nested virtual
machines), or where ``-cpu host`` dies of a model-specific register. The only honest test is a
guest: a 64 KiB firmware image whose few instructions switch to 64-bit paged mode, count in memory,
touch an I/O port some thousand times and leave through QEMU's ``isa-debug-exit``. It runs under
TCG and under KVM, and KVM is chosen when it comes to the right result in less time.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import struct
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from host import child

OVERRIDE = "THICKET_ACCEL"
"""Environment variable that decides instead of the trial: ``kvm`` or ``tcg``."""

DEADLINE = 2.0
"""Seconds that one trial may take. Under TCG it takes half a second on a machine of 2020."""

TCG_CPU = {"x86_64": "max", "aarch64": "cortex-a72"}
"""CPU models for TCG by guest architecture; docs/simulator.md, "Machine", has the figures."""

PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-system-aarch64": "qemu-system-arm",
}
"""Packages of Debian and Ubuntu that bring the programs."""

KVM_CPUS = ("host", "qemu64")
"""CPU models tried under KVM, best first. ``host`` fails where the host refuses an MSR to QEMU."""

_KVM = Path("/dev/kvm")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_FORMAT = 2

_ROM = 0xF0000
_DEBUG_EXIT_PORT = 0x501
_RESULT_RIGHT = 0x20
_RESULT_WRONG = 0x21
_COUNT = 1 << 28
_PORT_WRITES = 4000

_HPET = 0xFED00000
_HPET_PERIOD_NS = 10  # QEMU's HPET, hw/timer/hpet.c
_DEBUG_CONSOLE_PORT = 0xE9
_CLOCK_SAMPLES = 400
_CLOCK_PAUSE = 800_000
_CLOCK_SAMPLE = struct.Struct("<QQI")
_CLOCK_SPREAD = 100e-6


class AccelError(Exception):
    """QEMU cannot run even the smallest guest, or the override asks for what does not exist."""


@dataclass(frozen=True)
class Accel:
    """How to run a guest."""

    name: str
    """``kvm`` or ``tcg``, as in QEMU's ``-accel``."""
    reason: str
    """Why, in words for a person."""
    cpu: str
    """A value for ``-cpu`` that is known to work."""
    tsc_khz: int | None = None
    """Frequency of the guest's time stamp counter, when it was measured.

    Under TCG the counter is the host's, and a guest that has to find out its frequency while the
    host is busy gets it wrong, sometimes by a factor. ``None``: not known, or (KVM) not needed."""


@dataclass(frozen=True)
class Trial:
    seconds: float | None
    """Time from the start of QEMU to its end; ``None``: the guest did not finish."""
    words: str
    output: bytes = b""
    late: bool = False
    """Whether it was given up, which on a busy host says nothing of the guest."""


def firmware(count: int = _COUNT, port_writes: int = _PORT_WRITES) -> bytes:
    """Return a 64 KiB PC firmware image that counts and ends QEMU.

    ``count`` turns of a loop add to a word in memory, then ``port_writes`` bytes go to the
    diagnostic port 0x80. QEMU ends with status ``0x20 << 1 | 1`` when the sum is right.
    """
    total = (count * (count + 1) // 2) & 0xFFFFFFFF
    return _image(
        b"\xb9" + struct.pack("<I", count),  # mov $count, %ecx
        bytes.fromhex("010c2500700000 ffc9 75f5"),  # add %ecx, 0x7000; dec %ecx; jnz
        bytes.fromhex("8b042500700000"),  # mov 0x7000, %eax
        b"\x3d" + struct.pack("<I", total),  # cmp $total, %eax
        bytes.fromhex("0f95c0 04") + bytes([_RESULT_RIGHT]),  # setne %al; add $0x20, %al
        b"\xb9" + struct.pack("<I", port_writes),  # mov $port_writes, %ecx
        bytes.fromhex("e680 ffc9 75fa"),  # out %al, $0x80; dec %ecx; jnz
        b"\x66\xba" + struct.pack("<H", _DEBUG_EXIT_PORT),  # mov $port, %dx
        bytes.fromhex("ee f4 ebfd"),  # out %al, %dx; hlt for ever
    )


def clock_firmware(samples: int = _CLOCK_SAMPLES, pause: int = _CLOCK_PAUSE) -> bytes:
    """Return a firmware image that reports its time stamp counter against the HPET.

    ``samples`` times, ``pause`` turns of a loop apart, it writes to ``isa-debugcon`` what
    ``_CLOCK_SAMPLE`` unpacks: the counter before, the counter after, and the HPET's in between.
    """
    return _image(
        b"\xbb" + struct.pack("<I", _HPET),  # mov $hpet, %ebx
        bytes.fromhex("834b1001"),  # orl $1, 0x10(%rbx): run the main counter
        b"\xbd" + struct.pack("<I", samples),  # mov $samples, %ebp
        bytes.fromhex("0f31 4189c0 4189d1"),  # rdtsc; %r8d, %r9d = %eax, %edx
        bytes.fromhex("448b93f0000000"),  # mov 0xf0(%rbx), %r10d: the main counter
        bytes.fromhex("0f31 bf00700000 89fe"),  # rdtsc; mov $0x7000, %edi; mov %edi, %esi
        bytes.fromhex("4189c3 4189d4"),  # %r11d, %r12d = %eax, %edx
        bytes.fromhex("4489c0 ab 4489c8 ab 4489d8 ab 4489e0 ab 4489d0 ab"),  # store %r8d ... %r10d
        b"\xba" + struct.pack("<I", _DEBUG_CONSOLE_PORT),  # mov $port, %edx
        b"\xb9" + struct.pack("<I", _CLOCK_SAMPLE.size),  # mov $size, %ecx
        bytes.fromhex("f36e"),  # rep outsb
        b"\xb9" + struct.pack("<I", pause),  # mov $pause, %ecx
        bytes.fromhex("ffc9 75fc"),  # dec %ecx; jnz
        bytes.fromhex("ffcd 75b5"),  # dec %ebp; jnz to the first rdtsc
        b"\xba" + struct.pack("<I", _DEBUG_EXIT_PORT),  # mov $port, %edx
        b"\xb0" + bytes([_RESULT_RIGHT]),  # mov $0x20, %al
        bytes.fromhex("ee f4 ebfd"),  # out %al, %dx; hlt for ever
    )


def _image(*program: bytes) -> bytes:
    """Return a firmware image that runs ``program`` in 64-bit mode.

    QEMU maps the image to 0xF0000 and starts it in real mode at its last 16 bytes. Two pages of
    2 MiB are mapped to themselves: the first of memory, and the one of the HPET's registers.
    """
    start = bytes.fromhex(
        "fafc"  # cli; cld
        "31c0 8ed8 8ec0 8ed0"  # ds = es = ss = 0
        "bf0010 b90038 f3ab"  # clear 28 KiB at 0x1000
        "c70600100320"  # 0x1000: page map level 4 -> 0x2000, present and writable
        "c70600200330 c70618200350"  # 0x2000: directory pointers -> 0x3000, at 3 GiB -> 0x5000
        "c70600308300"  # 0x3000: one page of 2 MiB at 0
        "c706b05f8300 c706b25fc0fe"  # 0x5fb0: one page of 2 MiB at 0xFEC00000
        "0f20e0 0c20 0f22e0"  # CR4.PAE
        "66b800100000 0f22d8"  # CR3 = 0x1000
        "66b9800000c0 0f32 80cc01 0f30"  # EFER.LME
    )
    load_gdt = 7  # size of "lgdtl %cs:address"
    paging = bytes.fromhex("0f20c0 660d01000080 0f22c0")  # CR0.PE and CR0.PG
    far_jump = 8  # size of "ljmpl $8, $address"
    long_mode = b"".join(program)
    long_at = len(start) + load_gdt + len(paging) + far_jump
    gdt_at = (long_at + len(long_mode) + 7) & ~7
    gdt = struct.pack("<QQ", 0, 0x0020_9B00_0000_0000)  # null, 64-bit code
    code = b"".join(
        (
            start,
            b"\x2e\x66\x0f\x01\x16" + struct.pack("<H", gdt_at + len(gdt)),  # lgdtl %cs:gdtr
            paging,
            b"\x66\xea" + struct.pack("<IH", _ROM + long_at, 8),  # ljmpl $8, $long_mode
            long_mode,
        )
    )
    image = bytearray(b"\xf4" * 0x10000)  # hlt
    image[: len(code)] = code
    tables = gdt + struct.pack("<HI", len(gdt) - 1, _ROM + gdt_at)
    image[gdt_at : gdt_at + len(tables)] = tables
    image[0xFFF0:0xFFF5] = b"\xea\x00\x00\x00\xf0"  # reset vector: ljmp $0xf000, $0
    return bytes(image)


def choose(
    cache_dir: Path,
    qemu: str = "qemu-system-x86_64",
    *,
    environment: Mapping[str, str] = os.environ,
    deadline: float = DEADLINE,
) -> Accel:
    """Return how to run guests of ``qemu`` on this machine, decided by trying.

    The answer is kept in ``cache_dir`` until the machine restarts, QEMU changes, or the right to
    open ``/dev/kvm`` changes. Blocks for at most a few times ``deadline`` seconds.

    :raises AccelError: when ``qemu`` is missing or cannot run a guest at all, or the variable
        ``THICKET_ACCEL`` holds something else than ``kvm`` or ``tcg``.
    """
    wanted = environment.get(OVERRIDE, "").strip().lower()
    if wanted not in {"", "kvm", "tcg"}:
        raise AccelError(f"{OVERRIDE}={wanted}: use kvm or tcg, or unset it to decide by trying")
    version = _version(qemu)
    arch = Path(qemu).name.removeprefix("qemu-system-")
    tcg_cpu = TCG_CPU.get(arch, "max")
    if wanted == "tcg" and arch != "x86_64":
        return Accel("tcg", f"{OVERRIDE}=tcg", tcg_cpu)
    foreign = ""
    if arch != platform.machine():
        foreign = f"the guests are {arch}, this machine is {platform.machine()}"
        if wanted == "kvm":
            raise AccelError(f"{OVERRIDE}=kvm, but {foreign}")
    if arch != "x86_64":
        # The trial's firmware is x86 code. Elsewhere: believe the person, or be safe.
        if wanted == "kvm":
            return Accel("kvm", f"{OVERRIDE}=kvm, not tried", "host")
        why = foreign or f"there is no trial guest for {arch}; {OVERRIDE}=kvm forces"
        return Accel("tcg", why, tcg_cpu)

    key = {
        "format": _FORMAT,
        "boot": _boot_id(),
        "qemu": version,
        "kvm": os.access(_KVM, os.R_OK | os.W_OK),
        "wanted": wanted,
        "deadline": deadline,
    }
    path = cache_dir / f"accel-{arch}.json"
    cached = _load(path, key)
    if cached is not None:
        return cached
    with tempfile.TemporaryDirectory(prefix="meshlab-accel-") as scratch:
        chosen = _decide(qemu, wanted, foreign, tcg_cpu, scratch=Path(scratch), deadline=deadline)
    _store(path, key, chosen)
    return chosen


def _decide(
    qemu: str, wanted: str, foreign: str, tcg_cpu: str, *, scratch: Path, deadline: float
) -> Accel:
    image = scratch / "firmware.bin"
    image.write_bytes(firmware())
    failed = foreign
    if wanted == "tcg":
        failed = f"{OVERRIDE}=tcg"
    elif not _KVM.exists():
        failed = failed or f"there is no {_KVM}"
    elif not os.access(_KVM, os.R_OK | os.W_OK):
        failed = failed or f"{_KVM} may not be opened by this user (is the user in the group kvm?)"
    if not failed:
        # Slower than native by 20 or so, and on a busy host by more: ten times the deadline.
        tcg = boot(qemu, "tcg", tcg_cpu, image, 10 * deadline)
        if tcg.seconds is None and not tcg.late:
            raise AccelError(f"{qemu} cannot run a guest under TCG: {tcg.words}")
        failures = []
        for cpu in KVM_CPUS:
            kvm = boot(qemu, "kvm", cpu, image, deadline)
            if kvm.seconds is None:
                failures.append(f"-cpu {cpu}: {kvm.words}")
                if kvm.late:
                    break  # another CPU model will not help a guest that gets nowhere
            elif tcg.seconds is not None and kvm.seconds >= tcg.seconds and not wanted:
                failures.append(
                    f"-cpu {cpu}: slower than TCG ({kvm.seconds:.2f} s, TCG {tcg.seconds:.2f} s)"
                )
                break
            else:
                why = f"{OVERRIDE}=kvm, and" if wanted else "tried:"
                slow = tcg.words if tcg.seconds is None else f"finished in {tcg.seconds:.2f} s"
                took = f"{kvm.seconds:.2f} s, under TCG it {slow}"
                return Accel("kvm", f"{why} a guest finished in {took}", cpu)
        failed = f"{_KVM} opens, but a guest under it " + "; ".join(failures)
    if wanted == "kvm":
        raise AccelError(f"{OVERRIDE}=kvm, but {failed}")
    return Accel("tcg", failed, tcg_cpu, measure_clock(qemu, tcg_cpu, scratch, 10 * deadline))


def measure_clock(qemu: str, cpu: str, scratch: Path, deadline: float) -> int | None:
    """Return the frequency of a TCG guest's time stamp counter in kHz.

    ``None``: not to be had, also where the host is too busy for the guest to finish in time.

    Each sample brackets a reading of the HPET, which follows the host's clock, by two of the
    counter. The narrowest of the first and of the second half were not interrupted, however busy
    the host is, and their distance in both clocks is the answer, to a few parts in a million.

    :raises AccelError: when this guest does not run at all.
    """
    image = scratch / "clock.bin"
    image.write_bytes(clock_firmware())
    console = _DEBUG_CONSOLE_PORT
    trial = boot(
        qemu, "tcg", cpu, image, deadline,
        "-chardev", "stdio,id=samples,signal=off",
        "-device", f"isa-debugcon,iobase={console:#x},chardev=samples",
    )  # fmt: skip
    if trial.late:
        return None
    if trial.seconds is None:
        raise AccelError(f"{qemu} cannot run a guest under TCG: {trial.words}")
    return clock_frequency(trial.output)


def clock_frequency(output: bytes) -> int | None:
    """Return the frequency in kHz that follows from what ``clock_firmware`` wrote."""
    usable = len(output) // _CLOCK_SAMPLE.size * _CLOCK_SAMPLE.size
    samples: list[tuple[int, int, int]] = list(_CLOCK_SAMPLE.iter_unpack(output[:usable]))
    half = len(samples) // 2
    if half < _CLOCK_SAMPLES // 4:
        return None

    def width(sample: tuple[int, int, int]) -> int:
        return sample[1] - sample[0]

    first, second = min(samples[:half], key=width), min(samples[half:], key=width)
    ticks = (second[0] + second[1] - first[0] - first[1]) / 2
    nanoseconds = ((second[2] - first[2]) & 0xFFFFFFFF) * _HPET_PERIOD_NS
    if ticks <= 0 or nanoseconds <= 0:
        return None
    if (width(first) + width(second)) / ticks > _CLOCK_SPREAD:
        return None
    return round(ticks * 1e6 / nanoseconds)


def boot(qemu: str, accel: str, cpu: str, image: Path, deadline: float, *devices: str) -> Trial:
    """Run the trial guest once; its QEMU is gone when this returns."""
    command = child.tied([
        qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-machine", "pc,hpet=on", "-accel", accel, "-cpu", cpu, "-m", "16",
        "-bios", str(image),
        "-device", f"isa-debug-exit,iobase={_DEBUG_EXIT_PORT:#x},iosize=1",
        *devices,
    ])  # fmt: skip
    started = time.monotonic()
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=deadline,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Trial(None, f"did not finish in {deadline:g} s", late=True)
    except OSError as error:
        return Trial(None, f"{qemu} did not start: {error.strerror}")
    seconds = time.monotonic() - started
    if done.returncode == _RESULT_RIGHT << 1 | 1:
        return Trial(seconds, "finished", done.stdout)
    if done.returncode == _RESULT_WRONG << 1 | 1:
        return Trial(None, "computed a wrong result")
    said = done.stderr.decode(errors="replace").strip().splitlines()
    ending = f"status {done.returncode}"
    if done.returncode < 0:
        ending = f"signal {-done.returncode}"
    return Trial(None, f"ended QEMU with {ending}" + (f" ({said[-1].strip()})" if said else ""))


def _version(qemu: str) -> str:
    try:
        done = subprocess.run(
            [qemu, "--version"], capture_output=True, text=True, timeout=120, check=False
        )
    except FileNotFoundError:
        package = PACKAGES.get(Path(qemu).name, "qemu-system")
        raise AccelError(
            f"{qemu} is not installed. Install it with:\n"
            f"    apt-get install --no-install-recommends {package}"
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AccelError(f"{qemu} --version: {error}") from error
    if done.returncode:
        raise AccelError(f"{qemu} --version failed: {done.stderr.strip()}")
    return done.stdout.splitlines()[0] if done.stdout else ""


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _load(path: Path, key: dict[str, object]) -> Accel | None:
    try:
        stored = json.loads(path.read_text())
        if stored["key"] != key:
            return None
        words = {name: str(stored["accel"][name]) for name in ("name", "reason", "cpu")}
        khz = stored["accel"]["tsc_khz"]
        return Accel(**words, tsc_khz=None if khz is None else int(khz))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no answer yet, or not one of ours: try again


def _store(path: Path, key: dict[str, object], accel: Accel) -> None:
    # A cache that cannot be written costs the next start a second and nothing else.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.write_text(json.dumps({"key": key, "accel": asdict(accel)}, indent=1) + "\n")
        fresh.replace(path)

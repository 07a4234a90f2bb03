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

from . import child

OVERRIDE = "THICKET_ACCEL"
"""Environment variable that decides instead of the trial: ``kvm`` or ``tcg``."""

DEADLINE = 2.0
"""Seconds that one trial may take. Under TCG it takes half a second on a machine of 2020."""

TCG_CPU = {"x86_64": "max", "aarch64": "cortex-a72"}
"""CPU models for TCG by guest architecture; docs/simulator.md, "Machine", has the figures."""

KVM_CPUS = ("host", "qemu64")
"""CPU models tried under KVM, best first. ``host`` fails where the host refuses an MSR to QEMU."""

_KVM = Path("/dev/kvm")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_FORMAT = 1

_ROM = 0xF0000
_DEBUG_EXIT_PORT = 0x501
_RESULT_RIGHT = 0x20
_RESULT_WRONG = 0x21
_COUNT = 1 << 28
_PORT_WRITES = 4000


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


@dataclass(frozen=True)
class _Trial:
    seconds: float | None
    """Time from the start of QEMU to its end; ``None``: the guest did not finish."""
    words: str


def firmware(count: int = _COUNT, port_writes: int = _PORT_WRITES) -> bytes:
    """Return a 64 KiB PC firmware image that counts and ends QEMU.

    ``count`` turns of a loop add to a word in memory, then ``port_writes`` bytes go to the
    diagnostic port 0x80. QEMU ends with status ``0x20 << 1 | 1`` when the sum is right. QEMU maps
    the image to 0xF0000 and starts it in real mode at its last 16 bytes.
    """
    start = bytes.fromhex(
        "fafc"  # cli; cld
        "31c0 8ed8 8ec0 8ed0"  # ds = es = ss = 0
        "bf0010 b90018 f3ab"  # clear 12 KiB at 0x1000
        "c70600100320"  # 0x1000: page map level 4 -> 0x2000, present and writable
        "c70600200330"  # 0x2000: directory pointers -> 0x3000
        "c70600308300"  # 0x3000: one page of 2 MiB at 0
        "0f20e0 0c20 0f22e0"  # CR4.PAE
        "66b800100000 0f22d8"  # CR3 = 0x1000
        "66b9800000c0 0f32 80cc01 0f30"  # EFER.LME
    )
    load_gdt = 7  # size of "lgdtl %cs:address"
    paging = bytes.fromhex("0f20c0 660d01000080 0f22c0")  # CR0.PE and CR0.PG
    far_jump = 8  # size of "ljmpl $8, $address"
    long_at = len(start) + load_gdt + len(paging) + far_jump
    total = (count * (count + 1) // 2) & 0xFFFFFFFF
    long_mode = b"".join(
        (
            b"\xb9" + struct.pack("<I", count),  # mov $count, %ecx
            bytes.fromhex("010c2500400000 ffc9 75f5"),  # add %ecx, 0x4000; dec %ecx; jnz
            bytes.fromhex("8b042500400000"),  # mov 0x4000, %eax
            b"\x3d" + struct.pack("<I", total),  # cmp $total, %eax
            bytes.fromhex("0f95c0 04") + bytes([_RESULT_RIGHT]),  # setne %al; add $0x20, %al
            b"\xb9" + struct.pack("<I", port_writes),  # mov $port_writes, %ecx
            bytes.fromhex("e680 ffc9 75fa"),  # out %al, $0x80; dec %ecx; jnz
            b"\x66\xba" + struct.pack("<H", _DEBUG_EXIT_PORT),  # mov $port, %dx
            bytes.fromhex("ee f4 ebfd"),  # out %al, %dx; hlt for ever
        )
    )
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
    image[gdt_at : gdt_at + len(gdt)] = gdt
    image[gdt_at + len(gdt) : gdt_at + len(gdt) + 6] = struct.pack(
        "<HI", len(gdt) - 1, _ROM + gdt_at
    )
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

    Raises ``AccelError`` when ``qemu`` is missing or cannot run a guest at all, or the variable
    ``THICKET_ACCEL`` holds something else than ``kvm`` or ``tcg``.
    """
    wanted = environment.get(OVERRIDE, "").strip().lower()
    if wanted not in {"", "kvm", "tcg"}:
        raise AccelError(f"{OVERRIDE}={wanted}: use kvm or tcg, or unset it to decide by trying")
    version = _version(qemu)
    arch = Path(qemu).name.removeprefix("qemu-system-")
    tcg_cpu = TCG_CPU.get(arch, "max")
    if wanted == "tcg":
        return Accel("tcg", f"{OVERRIDE}=tcg", tcg_cpu)
    if arch != platform.machine():
        if wanted == "kvm":
            raise AccelError(
                f"{OVERRIDE}=kvm, but this is {platform.machine()} and the guests are {arch}"
            )
        return Accel("tcg", f"the guests are {arch}, this machine is {platform.machine()}", tcg_cpu)
    if arch != "x86_64":
        # The trial's firmware is x86 code. Other hosts: believe the person, or be safe.
        if wanted == "kvm":
            return Accel("kvm", f"{OVERRIDE}=kvm, not tried", "host")
        return Accel("tcg", f"there is no trial guest for {arch}; {OVERRIDE}=kvm forces", tcg_cpu)

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
    chosen = _decide(qemu, wanted, tcg_cpu, deadline)
    _store(path, key, chosen)
    return chosen


def _decide(qemu: str, wanted: str, tcg_cpu: str, deadline: float) -> Accel:
    with tempfile.TemporaryDirectory(prefix="meshlab-accel-") as scratch:
        image = Path(scratch) / "firmware.bin"
        image.write_bytes(firmware())
        tcg = _try(qemu, "tcg", tcg_cpu, image, 10 * deadline)
        if tcg.seconds is None:
            raise AccelError(f"{qemu} cannot run a guest under TCG: {tcg.words}")
        if not _KVM.exists():
            failed = f"there is no {_KVM}"
        elif not os.access(_KVM, os.R_OK | os.W_OK):
            failed = f"{_KVM} may not be opened by this user (is the user in the group kvm?)"
        else:
            failures = []
            for cpu in KVM_CPUS:
                kvm = _try(qemu, "kvm", cpu, image, deadline)
                if kvm.seconds is None:
                    failures.append(f"-cpu {cpu}: {kvm.words}")
                    if kvm.words.startswith("did not finish"):
                        break  # another CPU model will not help a guest that gets nowhere
                elif kvm.seconds >= tcg.seconds and wanted != "kvm":
                    failures.append(
                        f"-cpu {cpu}: slower than TCG ({kvm.seconds:.2f} s, "
                        f"TCG {tcg.seconds:.2f} s)"
                    )
                    break
                else:
                    why = f"{OVERRIDE}=kvm, and" if wanted else "tried:"
                    return Accel(
                        "kvm",
                        f"{why} a guest finished in {kvm.seconds:.2f} s, "
                        f"under TCG in {tcg.seconds:.2f} s",
                        cpu,
                    )
            failed = f"{_KVM} opens, but a guest under it " + "; ".join(failures)
    if wanted == "kvm":
        raise AccelError(f"{OVERRIDE}=kvm, but {failed}")
    return Accel("tcg", failed, tcg_cpu)


def _try(qemu: str, accel: str, cpu: str, image: Path, deadline: float) -> _Trial:
    """Run the trial guest once; its QEMU is gone when this returns."""
    command = child.tied([
        qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-machine", "pc", "-accel", accel, "-cpu", cpu, "-m", "16",
        "-bios", str(image),
        "-device", f"isa-debug-exit,iobase={_DEBUG_EXIT_PORT:#x},iosize=1",
    ])  # fmt: skip
    started = time.monotonic()
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=deadline,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _Trial(None, f"did not finish in {deadline:g} s")
    except OSError as error:
        return _Trial(None, f"{qemu} did not start: {error.strerror}")
    seconds = time.monotonic() - started
    if done.returncode == _RESULT_RIGHT << 1 | 1:
        return _Trial(seconds, "finished")
    if done.returncode == _RESULT_WRONG << 1 | 1:
        return _Trial(None, "computed a wrong result")
    said = done.stderr.decode(errors="replace").strip().splitlines()
    ending = f"status {done.returncode}"
    if done.returncode < 0:
        ending = f"signal {-done.returncode}"
    return _Trial(None, f"ended QEMU with {ending}" + (f" ({said[-1].strip()})" if said else ""))


def _version(qemu: str) -> str:
    try:
        done = subprocess.run(
            [qemu, "--version"], capture_output=True, text=True, timeout=30, check=False
        )
    except FileNotFoundError:
        raise AccelError(
            f"{qemu} is not installed: on Debian and Ubuntu, apt install qemu-system-x86 "
            "(qemu-system-arm for the 64-bit Pi image)"
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
        return Accel(**{name: str(stored["accel"][name]) for name in ("name", "reason", "cpu")})
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no answer yet, or not one of ours: try again


def _store(path: Path, key: dict[str, object], accel: Accel) -> None:
    # A cache that cannot be written costs the next start a second and nothing else.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.write_text(json.dumps({"key": key, "accel": asdict(accel)}, indent=1) + "\n")
        fresh.replace(path)

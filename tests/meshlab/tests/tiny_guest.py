# SPDX-License-Identifier: Apache-2.0
"""A kernel of a few bytes for tests of machines: it starts at once and does as it is told."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable

from patience import PATIENCE

from meshlab.machine.events import MachineEvent
from meshlab.machine.machine import Machine

COUNTER = 0x2000000
"""Address of a byte that every start counts up."""


def guest(
    ready: bytes = b"ready", told: bytes = b"[    1.0] Kernel panic - not syncing: told to"
) -> bytes:
    """Return a kernel that says ``ready`` on ttyS0, how often it has started since the power came
    on (a digit), and does what it is told there, by letters.

    ``r`` restarts, ``p`` prints ``told`` (by default the line that Linux prints when it panics) and
    restarts, ``o`` switches off. The format is ELF with the PVH entry point that QEMU's ``-kernel``
    looks for (xen/elfnote.h, XEN_ELFNOTE_PHYS32_ENTRY = 18): 32-bit protected mode, flat.
    """
    base = 0x100000
    first, second = ready + b"\0", told + b"\r\n\0"
    code = bytearray()

    def say(text_at: int) -> bytes:
        # mov $text, %esi; 1: lodsb; test %al, %al; jz 2f; mov $0x3f8, %dx; out %al, %dx; jmp 1b; 2:
        return b"\xbe" + struct.pack("<I", text_at) + bytes.fromhex("ac 84c0 7407 66baf803 ee ebf4")

    counter = struct.pack("<I", COUNTER)
    # incb counter; mov counter, %al; add $'0', %al; mov $0x3f8, %dx; out; the same of CR and LF
    count = b"\xfe\x05" + counter + b"\xa0" + counter
    count += bytes.fromhex("0430 66baf803 ee b00d ee b00a ee")
    size = len(say(0))
    begin = size + len(count)
    restart = bytes.fromhex("b0fe e664 ebfe")  # out 0xfe to the keyboard controller; wait
    off = bytes.fromhex("66ba0406 66b80020 66ef ebfe")  # 0x2000 to PM1a control at 0x604; wait
    # 1: mov $0x3fd, %dx; in; test $1, %al; pause; jz 1b; mov $0x3f8, %dx; in
    poll = bytes.fromhex("66bafd03 ec a801 f390 74f5 66baf803 ec")
    # cmp 'r' je restart; cmp 'p' je told; cmp 'o' je off; jmp poll
    branches = 4 * 3 + 2
    at_restart = begin + len(poll) + branches
    at_told = at_restart + len(restart)
    at_off = at_told + size + len(restart)
    texts = base + at_off + len(off)
    code += say(texts) + count + poll
    for letter, target in ((b"r", at_restart), (b"p", at_told), (b"o", at_off)):
        code += b"\x3c" + letter + b"\x74" + struct.pack("<b", target - (len(code) + 4))
    code += b"\xeb" + struct.pack("<b", begin - (len(code) + 2))
    code += restart + say(texts + len(first)) + restart + off + first + second

    note = struct.pack("<III4sQ", 4, 8, 18, b"Xen\0", base)
    headers = 64 + 2 * 56
    load = struct.pack(
        "<IIQQQQQQ", 1, 7, headers + len(note), base, base, len(code), len(code), 4096
    )
    notes = struct.pack("<IIQQQQQQ", 4, 4, headers, 0, 0, len(note), len(note), 4)
    elf = b"\x7fELF\x02\x01\x01" + bytes(9)
    elf += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    return elf + load + notes + note + bytes(code)


_ARM_CODE = """
d2a12001 52800e05 b9002c25 52806025 b9003025
d2a86002 39400043 11000463 39000043
100003e4 94000019 1100c065 b9000025 528001a5 b9000025 52800145 b9000025
b9401825 3727ffe5 b9400025 12001ca5
52b08000 72800120 7101c8bf 540000c0 7101c0bf 540000c0 72800100 7101bcbf 54fffe81
d4000002 17fffff2
10000284 94000002 17fffffc
38401485 34000065 b9000025 17fffffd d65f03c0
"""
# x1: the serial port (PL011 of -M virt); line control, on
# x2: a byte in memory, counted up
# say(first text), digit, CR, LF
# wait for a letter: flag register, data register
# PSCI (Arm DEN 0022): 0x84000009 is SYSTEM_RESET for r and p, 0x84000008 SYSTEM_OFF for o
# hvc #0, and back to waiting
# p: say(second text) before the call
# say: bytes up to a NUL


def arm_guest(
    ready: bytes = b"ready", told: bytes = b"[    1.0] Kernel panic - not syncing: told to"
) -> bytes:
    """Return the same for arm64 and QEMU's ``-M virt``, as an ``Image`` of Linux's format."""
    first, second = ready + b"\0", told + b"\r\n\0"
    assert len(first) <= 48
    code = b"".join(struct.pack("<I", int(word, 16)) for word in _ARM_CODE.split())
    # Documentation/arch/arm64/booting.rst: a branch over the header; where to, how much, flags.
    head = struct.pack("<IIQQQQQQ4sI", 0x14000010, 0, 0, 0x10000, 0, 0, 0, 0, b"ARM\x64", 0)
    return head + code + first.ljust(48, b"\0") + second


async def until(
    machine: Machine, events: list[MachineEvent], what: Callable[[], bool], words: str
) -> None:
    """Wait for something of a machine that has told these events."""
    try:
        async with machine.within(PATIENCE):
            while not what():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(
            f"waited {PATIENCE} s for {words}; events {events}; console "
            f"{machine.console_since_start()!r}; {machine.errors_since_start()}"
        ) from None

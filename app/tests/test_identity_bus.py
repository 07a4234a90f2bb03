# SPDX-License-Identifier: Apache-2.0
"""``/dev/i2c-N``: what the kernel's answers mean, and the lock. The ioctl is a stand-in."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import time
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE
from smbus2 import smbus2

from thicket.identity.bus import (
    BusFaultError,
    BusLockedError,
    LinuxBus,
    NotAcknowledgedError,
)


class Kernel:
    """Answers the two ioctls of i2c-dev that matter."""

    def __init__(self) -> None:
        self.result: int | OSError = 1
        self.reply = b""
        self.seen: list[tuple[int, int, bytes]] = []
        self.seconds = 0.0

    def functions(self, fd: int, request: int, data: Any) -> int:
        assert request == smbus2.I2C_FUNCS
        return 0

    def transfer(self, fd: int, request: int, data: Any) -> int:
        assert request == smbus2.I2C_RDWR
        assert data.nmsgs == 1
        message = data.msgs[0]
        content = ctypes.string_at(message.buf, message.len)
        self.seen.append((message.addr, message.flags, content))
        if isinstance(self.result, OSError):
            raise self.result
        if message.flags & 1 and self.result:
            ctypes.memmove(message.buf, self.reply, message.len)
        return self.result


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(smbus2, "ioctl", kernel.functions)
    monkeypatch.setattr(fcntl, "ioctl", kernel.transfer)
    return kernel


@pytest.fixture
def device(tmp_path: Path) -> str:
    path = tmp_path / "i2c-1"
    path.touch()
    return str(path)


def test_write_and_read(kernel: Kernel, device: str) -> None:
    bus = LinuxBus(device)
    assert bus.name == device
    bus.write(0x60, b"\x03\x07")
    kernel.reply = bytes.fromhex("04113343")
    assert bus.read(0x60, 4) == kernel.reply
    assert kernel.seen == [(0x60, 0, b"\x03\x07"), (0x60, 1, bytes(4))]
    bus.close()


def test_nothing_transferred_is_no_acknowledge(kernel: Kernel, device: str) -> None:
    # how Linux's i2c-virtio says it; smbus2's own i2c_rdwr() would return zeros
    kernel.result = 0
    bus = LinuxBus(device)
    with pytest.raises(NotAcknowledgedError):
        bus.read(0x60, 4)
    with pytest.raises(NotAcknowledgedError):
        bus.write(0x60, b"\x01")


@pytest.mark.parametrize("number", [errno.ENXIO, errno.EREMOTEIO, errno.EIO])
def test_errors_that_mean_no_acknowledge(kernel: Kernel, device: str, number: int) -> None:
    kernel.result = OSError(number, "x")
    with pytest.raises(NotAcknowledgedError):
        LinuxBus(device).write(0, b"\0")


@pytest.mark.parametrize("number", [errno.ETIMEDOUT, errno.EAGAIN, errno.ENODEV, errno.EOPNOTSUPP])
def test_errors_of_the_bus(kernel: Kernel, device: str, number: int) -> None:
    kernel.result = OSError(number, "x")
    with pytest.raises(BusFaultError, match="i2c-1"):
        LinuxBus(device).read(0x60, 4)


def test_slow_failures_are_a_stuck_bus_and_one_of_them_is_our_own_lateness(
    kernel: Kernel, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = LinuxBus(device)
    times: list[float] = []
    monkeypatch.setattr("thicket.identity.bus.time.monotonic", times.pop)
    for kernel.result, took in ((0, 1.2), (0, 0.1), (0, 1.2), (1, 1.2), (0, 1.2)):
        times[:] = [10.0 + took, 10.0]
        with contextlib.nullcontext() if kernel.result else pytest.raises(NotAcknowledgedError):
            bus.read(0x60, 4)
    times[:] = [11.2, 10.0]
    with pytest.raises(BusFaultError, match="timed out"):
        bus.read(0x60, 4)


def test_device_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BusFaultError, match="No such file"):
        LinuxBus(str(tmp_path / "i2c-9"))


def test_device_that_is_no_bus(device: str) -> None:
    with pytest.raises(BusFaultError, match="ioctl"):
        LinuxBus(device)


def test_lock_keeps_other_programs_off(kernel: Kernel, device: str) -> None:
    one, other = LinuxBus(device), LinuxBus(device)
    one.lock(time.monotonic() + PATIENCE)
    with pytest.raises(BusLockedError, match="another program"):
        other.lock(time.monotonic() + 0.03)
    one.unlock()
    other.lock(time.monotonic() + PATIENCE)
    other.close()
    one.lock(time.monotonic() + PATIENCE)

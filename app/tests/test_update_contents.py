# SPDX-License-Identifier: Apache-2.0
"""Every byte of a bundle is compared with what was signed, in a process of its own."""

from __future__ import annotations

import asyncio
import errno
import io
import os
from pathlib import Path

import pytest
from bundles_for_tests import signed

from thicket.update import bundle as bundles
from thicket.update import contents, install, workers
from thicket.update.bundle import Bundle, DamagedError
from thicket.update.contents import UnreadableError
from thicket.update.judge import InstallError
from thicket.update.verity import BLOCK

BLOCKS = 8192
"""32 MiB: more than a process may hold of it."""


def read(file: Path) -> Bundle:
    return bundles.read(io.BytesIO(file.read_bytes()))


@pytest.fixture(scope="module")
def large() -> bytes:
    return signed(blocks=BLOCKS)


@pytest.fixture
def file(tmp_path: Path, large: bytes) -> Path:
    path = tmp_path / "new.raucb"
    path.write_bytes(large)
    return path


async def test_every_percent_is_told_and_the_event_loop_goes_on(file: Path) -> None:
    told: list[tuple[int, int]] = []
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0)

    beating = asyncio.create_task(beat())
    await install.check_contents(str(file), read(file), lambda *now: told.append(now))
    beating.cancel()
    assert [total for _, total in told] == [BLOCKS * BLOCK] * len(told)
    assert told[-1][0] == BLOCKS * BLOCK
    assert sorted(told) == told
    assert len(told) == BLOCKS * BLOCK >> 20
    assert beats > len(told)


async def test_what_is_damaged_is_told_with_the_files_name(file: Path) -> None:
    found = read(file)
    data = bytearray(file.read_bytes())
    data[found.contents - 1] ^= 1
    file.write_bytes(data)
    with pytest.raises(InstallError, match=r"^new\.raucb: the images are damaged: 1 of") as caught:
        await install.check_contents(str(file), found)
    assert caught.value.code == DamagedError.code


async def test_a_file_that_has_become_shorter(file: Path) -> None:
    found = read(file)
    os.truncate(file, found.contents // 2)
    with pytest.raises(InstallError, match=r"the file ends after .* within its contents"):
        await install.check_contents(str(file), found)


async def test_what_was_signed_counts_not_what_the_file_says_by_now(file: Path) -> None:
    found = read(file)
    file.write_bytes(signed(blocks=BLOCKS // 2))
    with pytest.raises(InstallError, match=r"within its contents|not those that were signed"):
        await install.check_contents(str(file), found)


async def test_a_file_that_is_gone(file: Path) -> None:
    found = read(file)
    file.unlink()
    with pytest.raises(InstallError, match=r"behind byte 0 \(No such file .* was taken out") as e:
        await install.check_contents(str(file), found)
    assert e.value.code == UnreadableError.code


def test_a_stick_that_fails_halfway(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = read(file)

    class Failing(io.BytesIO):
        def fileno(self) -> int:
            return 0

        def read(self, size: int | None = -1) -> bytes:
            if self.tell() >= 3 << 20:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(size)

    monkeypatch.setattr(contents, "opened", lambda _: Failing(file.read_bytes()))
    monkeypatch.setattr(contents, "from_disk", lambda _: None)
    words = r"cannot be read behind byte 3145728 \(Input/output error\): what it is on fails"
    with pytest.raises(UnreadableError, match=words):
        contents.check(str(file), found.contents, found.verity)


def test_a_disk_that_does_not_take_what_was_copied_to_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in memory only would be lost when the memory is needed."""
    found = read(file)
    contents.check(str(file), found.contents, found.verity)
    for number in (errno.EIO, errno.ENOSPC, errno.EROFS, errno.EINVAL):

        def fsync(_fd: int, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fsync)
        if number in (errno.EROFS, errno.EINVAL):  # nothing can be written there
            contents.check(str(file), found.contents, found.verity)
            continue
        with pytest.raises(UnreadableError, match=os.strerror(number)):
            contents.check(str(file), found.contents, found.verity)


async def test_its_memory_does_not_grow_with_the_bundle(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "MEMORY", 24 << 20)
    await install.check_contents(str(file), read(file))
    monkeypatch.setattr(workers, "MEMORY", 1 << 20)
    with pytest.raises(InstallError, match="not enough memory for checking the bundle") as caught:
        await install.check_contents(str(file), read(file))
    assert caught.value.code == "no-memory"


async def test_whoever_gives_up_ends_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spawn, children = asyncio.create_subprocess_exec, []

    async def noted(*words: str, **how: object) -> asyncio.subprocess.Process:
        children.append(await spawn(*words, **how))  # type: ignore[arg-type]
        return children[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", noted)
    begun = asyncio.Event()
    task = asyncio.create_task(
        install.check_contents(str(file), read(file), lambda *_: begun.set())
    )
    await begun.wait()
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert [child.returncode is None for child in children] == [False]


def test_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert contents.main(["too", "few"]) == 2
    assert "usage: contents MEMORY FILE CONTENTS" in capsys.readouterr().err

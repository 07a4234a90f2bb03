# SPDX-License-Identifier: Apache-2.0
"""Flashing: onto plain files, onto doubles of cards that fail or lie, onto real loop devices."""

from __future__ import annotations

import errno
import gzip
import io
import lzma
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from bundles_for_tests import signed
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from rich.console import Console

from firmware import blockdev, bmap, card, flash, plan, ranges, settings, source
from firmware.errors import FlashError
from firmware.flash import State, Writer
from firmware.report import Report
from firmware.target import Target
from meshlab.lab import shared

sys.path.insert(0, str(Path(__file__).parent))
import small_card

TOP = Path(__file__).resolve().parents[2]
MIB = 1 << 20
BIG = small_card.SIZE + 4 * MIB
"""The size of a card with room to spare."""

TOML = b"""\
[mesh]
id = "field"
security = "sae"
passphrase = "four words and more"
country = "DE"

[cluster]
cookie = "not-the-default"
"""


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A card image whose zeros all are holes, with its map."""

    def make(directory: Path) -> None:
        directory.mkdir()
        path = small_card.make(directory / "card.img")
        bmap.write(path, path.with_name("card.img.bmap"))

    return shared.once(shared.run_directory(tmp_path_factory), "small-card", make) / "card.img"


@pytest.fixture
def bare(image: Path, tmp_path: Path) -> Path:
    """The same image without a map."""
    path = tmp_path / "bare" / "card.img"
    path.parent.mkdir()
    subprocess.run(["cp", "--sparse=always", image, path], check=True)
    return path


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "my.toml"
    path.write_bytes(TOML)
    return path


def quiet() -> Report:
    return Report(Console(file=io.StringIO()))


class Memory(Target):
    """A card in memory that keeps a journal, and can fail, lie or be pulled out."""

    def __init__(self, size: int = BIG, old: bytes | None = None) -> None:
        super().__init__(Path("/dev/card"), -1, size, is_device=True, direct=True)
        self.data = bytearray(old if old is not None else b"\xd5" * size)
        self.unsynced = 0
        self.journal: list[str] = []
        self.fail_at: int | None = None
        self.error: BaseException = OSError(errno.EIO, "Input/output error")
        self.flips: set[int] = set()
        self.really = size

    def _step(self, what: str) -> None:
        if len(self.journal) == self.fail_at:
            raise self.error
        self.journal.append(what)

    def write(self, offset: int, data: memoryview) -> None:
        assert offset % 512 == len(data) % 512 == 0
        if offset < 512:
            assert self.unsynced == 0, "what was written before the MBR may come after it"
        if self.fail_at == len(self.journal):
            # Half of it arrives, as when a card is pulled out.
            half = len(data) // 2
            self.data[offset : offset + half] = data[:half]
        self._step(f"write {offset}")
        assert offset + len(data) <= self.size
        at = offset % self.really
        self.data[at : at + len(data)] = data
        self.unsynced += len(data)

    def read(self, offset: int, into: memoryview) -> None:
        self._step(f"read {offset}")
        assert self.unsynced == 0, "read back before it is on the card"
        start = offset % self.really
        into[:] = self.data[start : start + len(into)]
        for at in self.flips:
            if offset <= at < offset + len(into):
                into[at - offset] ^= 0x40

    def sync(self) -> None:
        self._step("sync")
        self.unsynced = 0

    def forget(self) -> None:
        self._step("forget")
        self.unsynced = 0


def written(path: Path, target: Target, config: bytes | None = None) -> Writer:
    """Flash an image; returns what did it."""
    with source.opened(path) as opened:
        content = source.Content(opened)
        if config is None:
            writer = Writer(content, target, quiet())
            writer.run()
            return writer
        part = opened.layout[card.CONFIG]
        with source.partition_file(content.read_into, part) as file:
            settings.put(file, config)
            content.replace_config(file)
            writer = Writer(content, target, quiet())
            writer.run(config)
            return writer


def read_toml(data: bytes) -> bytes | None:
    start = small_card.START[card.CONFIG] * MIB
    length = small_card.LENGTH[card.CONFIG] * MIB
    part = card.Partition(card.CONFIG, 0x0C, start, length)

    def read(offset: int, view: memoryview) -> None:
        view[:] = data[offset : offset + len(view)]

    with source.partition_file(read, part) as file:
        return settings.get(file)


def check_card(wanted: bytes, found: bytes, mapped: list[ranges.Range]) -> None:
    """What holds after flashing, whatever was on the card."""
    for start, end in mapped:
        assert found[start:end] == wanted[start:end], f"{start} to {end} differs"
    zero = [(512, small_card.START[card.CONFIG] * MIB), (len(found) - MIB, len(found))]
    zero += [(small_card.START[n] * MIB - MIB + 512, small_card.START[n] * MIB) for n in (5, 6, 7)]
    zero += [(small_card.START[n] * MIB, small_card.START[n] * MIB + MIB) for n in (6, 7)]
    root = small_card.START[card.ROOT_A] * MIB
    zero.append((root + small_card.ROOT_HOLE[0], root + small_card.ROOT_HOLE[1]))
    for start, end in zero:
        assert not any(found[start:end]), f"{start} to {end} is not all zero"


def test_whatever_was_on_the_card(image: Path) -> None:
    wanted = image.read_bytes()
    with image.open("rb") as file:
        mapped = bmap.data_ranges(file)
        bare_layout = card.read(file)

    # A failing card is not made smaller: each takes a second, and its message says where it is.
    @hypothesis_settings(
        max_examples=15,
        deadline=None,
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(
        old=st.one_of(st.binary(min_size=1, max_size=3), st.just(b"\x53\xef"), st.just(wanted)),
        extra=st.integers(0, 9000).map(lambda n: n * 512),
        with_map=st.booleans(),
        config=st.one_of(st.none(), st.text("abc\n", max_size=99), st.just("# long\n" * 6000)),
    )
    def whatever(old: bytes, extra: int, with_map: bool, config: str | None) -> None:
        size = small_card.SIZE + MIB + extra
        target = Memory(size, (old * (size // len(old) + 1))[:size])
        before = bytes(target.data)
        data = None if config is None else config.encode()
        map_ = bmap.parse(image.with_name("card.img.bmap").read_bytes()) if with_map else None
        with image.open("rb") as file:
            opened = source.Image(
                image, file, len(wanted), bare_layout, map_.mapped if map_ else mapped, mapped, map_
            )
            content = source.Content(opened)
            part = opened.layout[card.CONFIG]
            with source.partition_file(content.read_into, part) as replacement:
                if data is not None:
                    settings.put(replacement, data)
                    content.replace_config(replacement)
                writer = Writer(content, target, quiet())
                writer.run(data)
        assert writer.state is State.COMPLETE
        elsewhere = ranges.subtract(mapped, [(part.offset, part.end)])
        check_card(wanted, bytes(target.data), elsewhere if data is not None else mapped)
        assert read_toml(bytes(target.data)) == (small_card.TOML if data is None else data)
        # And no more than that is written: the free space of the roots and FATs is left alone.
        assert writer.total < size * 3 // 4
        kept = slice((small_card.START[card.ROOT_B] + 2) * MIB, (small_card.START[7] - 1) * MIB)
        assert target.data[kept] == before[kept]

    whatever()


@pytest.mark.parametrize("damage", ["map", "no map"])
def test_every_partition_of_the_card_is_sound(image: Path, damage: str, bare: Path) -> None:
    """The boot partition's kernel has runs of zeros, which are holes of the image."""
    target = Memory(old=os.urandom(BIG))
    written(image if damage == "map" else bare, target)
    for number in (card.CONFIG, card.BOOT_A, card.BOOT_B):
        start = small_card.START[number] * MIB
        file = bare.with_name(f"part{number}")
        file.write_bytes(target.data[start : start + small_card.LENGTH[number] * MIB])
        path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        subprocess.run(["fsck.fat", "-n", file], check=True, env=dict(os.environ, PATH=path))
        if number == card.BOOT_A:
            kernel = file.read_bytes()
            whole = image.read_bytes()[start : start + len(kernel)]
            used = plan.fat_used(lambda o, c, w=whole: w[o : o + c], len(whole))  # type: ignore[misc]
            assert used is not None
            assert used > 380_003
            assert kernel[:used] == whole[:used]


def test_copies_of_the_superblock_of_an_old_data_partition_are_wiped(image: Path) -> None:
    """mke2fs itself says where they are."""
    start = small_card.START[card.DATA] * MIB
    size = start + 1200 * MIB
    old = image.with_name("old-data")
    with old.open("wb") as file:
        file.truncate(size - start)
    mke2fs = shutil.which("mke2fs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert mke2fs, "e2fsprogs is missing"
    made = subprocess.run(
        [mke2fs, "-F", "-t", "ext4", "-b", "4096", old], check=True, capture_output=True, text=True
    )
    _, _, listed = made.stdout.partition("Superblock backups stored on blocks:")
    blocks = [int(n) for n in listed.replace(",", " ").split("\n\n")[0].split()]
    assert len(blocks) >= 4
    with image.open("rb") as file:
        wanted = plan.for_card(
            lambda offset, count: bytes(count),
            card.read(file),
            bmap.data_ranges(file),
            bmap.data_ranges(file),
            image_size=small_card.SIZE,
            size=size,
        )
    old.unlink()
    for block in [0, *blocks]:
        assert (
            ranges.length(ranges.clip(wanted, start + block * 4096, start + block * 4096 + 4096))
            == 4096
        )
    assert ranges.clip(wanted, size - MIB, size) == [(size - MIB, size)]


def test_a_map_that_names_zeros_makes_no_partition_used(image: Path) -> None:
    """Our own map names the zeros at the start of ``/data``; the rest of it stays unwritten."""
    with source.opened(image) as opened:
        content = source.Content(opened)
        writer = Writer(content, Memory(), quiet())
        assert opened.map is not None
        outside = MIB  # the end of the card is in no map
        assert writer.total == ranges.length(opened.map.mapped) + outside


def test_everything_that_a_map_names_is_written(bare: Path) -> None:
    """Somebody else's map may name the whole image, zeros and all."""
    with bare.open("rb") as file:
        whole = bmap.make(file, [(0, small_card.SIZE)])
    bare.with_name("card.img.bmap").write_bytes(bmap.render(whole))
    target = Memory()
    written(bare, target)
    assert target.data[: small_card.SIZE] == bare.read_bytes()


def test_a_configuration_that_is_not_the_wanted_one_on_the_card_is_found(image: Path) -> None:
    target = Memory()
    with source.opened(image) as opened:
        writer = Writer(source.Content(opened), target, quiet())
        with pytest.raises(FlashError, match="on /dev/card is not what was written"):
            writer.run(TOML)
    assert writer.state is State.WRITTEN
    assert not has_mbr(target.data)


def test_an_mcopy_that_writes_something_else_is_found(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.which("mcopy")
    assert real, "mtools is missing"
    wrong = tmp_path / "mcopy"
    wrong.write_text(f'#!/bin/sh\necho wrong | {real} "$@"\n')
    wrong.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with source.opened(image) as opened:
        part = opened.layout[card.CONFIG]
        with (
            source.partition_file(source.Content(opened).read_into, part) as file,
            pytest.raises(FlashError, match="mcopy wrote another"),
        ):
            settings.put(file, TOML)


def has_mbr(data: bytes | bytearray) -> bool:
    return bytes(data[510:512]) == b"\x55\xaa" or any(data[446:512])


def test_the_order_of_writes(image: Path) -> None:
    """Between two syncs a card may write in any order: the MBR is alone, at both ends."""
    target = Memory(old=image.read_bytes() + b"x" * (BIG - small_card.SIZE))
    written(image, target, TOML)
    writes = [(i, step) for i, step in enumerate(target.journal) if step.startswith("write")]
    assert [i for i, step in writes if step == "write 0"] == [writes[0][0], writes[-1][0]]
    assert target.journal[1] == "sync"
    last_body = writes[-2][0]
    between = target.journal[last_body + 1 : writes[-1][0]]
    assert between[0] == "sync"
    checked = {step.split()[1] for step in between if step.startswith("read")}
    assert checked >= {step.split()[1] for _, step in writes[1:-1]}, "the MBR before the check"
    assert target.journal[-2:] == ["forget", "read 0"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O error"), KeyboardInterrupt()])
def test_interrupted_at_any_step_nothing_starts_from_the_card(
    image: Path, error: BaseException
) -> None:
    whole = Memory()
    written(image, whole)
    last = max(i for i, step in enumerate(whole.journal) if step == "write 0")
    assert last > 12
    old = image.read_bytes() + b"x" * (BIG - small_card.SIZE)
    with source.opened(image) as opened:
        for step in range(len(whole.journal)):
            target = Memory(old=old)
            target.fail_at = step
            target.error = error
            writer = Writer(source.Content(opened), target, quiet())
            with pytest.raises(type(error)):
                writer.run()
            assert target.journal == whole.journal[:step]
            if step < last:
                reading = "forget" in whole.journal[:step] or whole.journal[step] == "forget"
                assert writer.state is (State.WRITTEN if reading else State.ERASED)
                assert not has_mbr(target.data), f"after step {step}"
            else:
                assert writer.state is State.UNSURE


@pytest.mark.parametrize(
    "at",
    [
        8 * 1024,  # the boot state records
        small_card.START[card.CONFIG] * MIB,
        small_card.START[card.ROOT_A] * MIB + 777_777,
        small_card.START[card.DATA] * MIB + MIB - 1,
        BIG - 1,
    ],
)
def test_a_flipped_bit_on_the_card_is_found(image: Path, at: int) -> None:
    target = Memory()
    target.flips = {at}
    with source.opened(image) as opened:
        writer = Writer(source.Content(opened), target, quiet())
        with pytest.raises(FlashError, match=f"byte {at} is"):
            writer.run()
    assert writer.state is State.WRITTEN
    assert not has_mbr(target.data)


def test_a_card_that_lies_about_its_size_is_found(image: Path) -> None:
    """Counterfeit cards write what is behind their end over their start."""

    target = Memory()
    target.really = 7 * MIB
    with source.opened(image) as opened:
        writer = Writer(source.Content(opened), target, quiet())
        with pytest.raises(FlashError, match="pretends to be larger"):
            writer.run()


def test_a_flipped_bit_in_the_mbr_is_found(image: Path) -> None:
    class Once(Memory):
        def read(self, offset: int, into: memoryview) -> None:
            super().read(offset, into)
            if offset == 0:
                into[440] ^= 1

    with source.opened(image) as opened:
        writer = Writer(source.Content(opened), Once(), quiet())
        with pytest.raises(FlashError, match="byte 440 is"):
            writer.run()
    assert writer.state is State.UNSURE


def test_an_image_that_changes_meanwhile_is_noticed(bare: Path) -> None:
    class Slow(Memory):
        def write(self, offset: int, data: memoryview) -> None:
            super().write(offset, data)
            os.utime(bare, ns=(1, 1))

    with source.opened(bare) as opened:
        writer = Writer(source.Content(opened), Slow(), quiet())
        with pytest.raises(FlashError, match="was changed while it was written"):
            writer.run()
    assert writer.state is State.WRITTEN


# The program as people run it.


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The program takes over signals of its process, which here is pytest's."""
    old = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in old.items():
        signal.signal(number, handler)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    status = flash.main([str(word) for word in words])
    return status, capsys.readouterr().out


def test_a_plain_file_becomes_a_card(
    image: Path, toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.img"
    status, said = run(capsys, "--image", image, "--config", toml, "--file", out)
    assert status == 0, said
    assert "a new plain file, not a card" in said
    assert 'mesh "field", sae, channel 1' in said
    assert "note" not in said
    assert "The file is complete and was checked" in said
    data = out.read_bytes()
    assert read_toml(data) == TOML
    with out.open("rb") as file:
        assert card.read(file).signature == card.DISK_SIGNATURE
    wanted = image.read_bytes()
    start = small_card.START[card.BOOT_A] * MIB
    assert data[start:] == wanted[start:]


def test_a_file_that_exists_is_confirmed_and_keeps_its_size(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.img"
    out.write_bytes(b"\xd5" * BIG)
    status, said = run(capsys, "--image", image, out)
    assert status == 1
    assert "there is no terminal to ask at" in said
    assert "Nothing was written: the file is as it was." in said
    assert out.read_bytes() == b"\xd5" * BIG
    status, said = run(capsys, "--image", image, out, "--yes")
    assert status == 0, said
    with image.open("rb") as file:
        check_card(image.read_bytes(), out.read_bytes(), bmap.data_ranges(file))
    assert out.stat().st_size == BIG


@pytest.mark.parametrize(("answer", "status"), [("out.img", 0), ("y", 1), ("", 1), ("\x04", 1)])
def test_a_person_types_the_name(image: Path, tmp_path: Path, answer: str, status: int) -> None:
    out = tmp_path / "out.img"
    out.write_bytes(b"old")
    ours, theirs = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, "-m", "firmware.flash", "--image", image, "--file", out],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(),
    )
    os.close(theirs)
    screen = until(ours, b"anything else to leave it:")
    os.write(ours, answer.encode() + (b"" if answer == "\x04" else b"\n"))
    screen += until(ours, None)
    assert program.wait(60) == status, screen.decode(errors="replace")
    assert b"Traceback" not in screen
    if status:
        assert b"not confirmed" in screen
        assert out.read_bytes() == b"old"
    else:
        assert out.stat().st_size == small_card.SIZE


def environment() -> dict[str, str]:
    path = os.pathsep.join(str(TOP / p) for p in ("tools/src", "app/src"))
    return dict(os.environ, PYTHONPATH=path, TERM="xterm", COLUMNS="200")


def until(fd: int, text: bytes | None) -> bytes:
    """Read a terminal until it shows ``text`` (None: until its program ends)."""
    got = b""
    while text is None or text not in got:
        try:
            data = os.read(fd, 65536)
        except OSError:
            data = b""
        if not data:
            assert text is None, got.decode(errors="replace")
            break
        got += data
    return got


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_tells_the_state(
    image: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """In the middle of writing, not at a point that the program chose."""
    out = tmp_path / "out.img"
    code = (
        "import sys, time; from firmware import flash, target\n"
        "write = target.Target.write\n"
        "def slow(self, offset, data):\n"
        "    write(self, offset, data)\n"
        "    if offset <= 5_000_000: return\n"
        "    print('NOW', flush=True)\n"
        # Again and again: Python notices a signal between two sleeps, not one just before a sleep.
        "    while True: time.sleep(0.05)\n"
        "target.Target.write = slow\n"
        "sys.exit(flash.main(sys.argv[1:]))"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", code, "--image", image, "--file", out],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(),
        text=True,
    )
    assert program.stdout is not None
    for line in program.stdout:
        if line == "NOW\n":
            break
    program.send_signal(number)
    said = program.stdout.read()
    assert program.wait(60) == 128 + number, said
    assert "thicket: stopped" in said
    assert "The file is half written and has no partition table" in said
    assert "Traceback" not in said
    assert not has_mbr(out.read_bytes())


@pytest.mark.parametrize("error", [errno.EIO, errno.ENXIO, errno.ENODEV, errno.ENOSPC])
def test_a_card_that_is_pulled_out(
    image: Path,
    tmp_path: Path,
    error: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def gone(self: Target, offset: int, data: memoryview) -> None:
        if offset:
            raise OSError(error, os.strerror(error))

    monkeypatch.setattr(Target, "write", gone)
    status, said = run(capsys, "--image", image, "--file", tmp_path / "out.img")
    assert status == 1
    assert "no space left" in said if error == errno.ENOSPC else "Was it pulled out?" in said
    assert "half written" in said


def test_a_wrong_configuration_stops_before_anything_else(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text('[mesh]\nchannel = 99\nsecurity = "wpa"\n[clutser]\n')
    out = tmp_path / "out.img"
    status, said = run(capsys, "--image", image, "--config", wrong, "--file", out)
    assert status == 1
    assert "mesh.channel = 99: must be a Wi-Fi channel" in said
    assert "mesh.security" in said
    assert "[clutser]: unknown section" in said
    assert not out.exists()
    status, said = run(capsys, "--image", image, "--config", tmp_path / "no", "--file", out)
    assert (status, out.exists()) == (1, False)
    assert "cannot be read: No such file" in said


@pytest.mark.parametrize(
    ("text", "notes"),
    [
        ('[mesh]\nid = "x"\n', ["the radio stays off", "cluster.cookie", "mesh.country"]),
        ('[mesh]\nsecurity = "open"\n', ["the mesh is open", "cluster.cookie", "mesh.country"]),
        ('[mesh]\nsecurity = "sae"\npassphrase = "12345678"\n', ["fewer than 12", "cookie"]),
        (TOML.decode(), []),
    ],
)
def test_what_may_not_be_wanted_is_noted(text: str, notes: list[str]) -> None:
    found = settings.warnings(text.encode())
    assert [n for n in notes if not any(n in f for f in found)] == []
    assert bool(found) == bool(notes)


def test_secrets_are_not_shown(
    image: Path, toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, said = run(capsys, "--image", image, "--config", toml, "--file", tmp_path / "out.img")
    assert "four words" not in said
    assert "not-the-default" not in said


def test_a_configuration_too_large_for_the_card(image: Path, tmp_path: Path) -> None:
    with source.opened(image) as opened:
        part = opened.layout[card.CONFIG]
        with (
            source.partition_file(source.Content(opened).read_into, part) as file,
            pytest.raises(FlashError, match=r"mcopy said: .*[Nn]o "),
        ):
            settings.put(file, bytes(4 * MIB))


@pytest.mark.parametrize("pack", [".xz", ".gz", ".zst"])
@pytest.mark.parametrize("with_map", [True, False])
def test_packed_images(
    image: Path, tmp_path: Path, pack: str, with_map: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = tmp_path / f"card.img{pack}"
    if pack == ".zst":
        if shutil.which("zstd") is None:
            pytest.skip("no zstd here: .zst images were not tried")
        subprocess.run(["zstd", "-q", image, "-o", packed], check=True)
    else:
        data = image.read_bytes()
        packed.write_bytes(
            lzma.compress(data, preset=0) if pack == ".xz" else gzip.compress(data, 1)
        )
    if with_map:
        shutil.copy(image.with_name("card.img.bmap"), tmp_path)
    out = tmp_path / "out.img"
    out.write_bytes(b"\xd5" * BIG)
    status, said = run(capsys, "--image", packed, "--yes", out)
    assert status == 0, said
    assert ("without a block map" in said) != with_map
    with image.open("rb") as file:
        check_card(image.read_bytes(), out.read_bytes(), bmap.data_ranges(file))
    packed.write_bytes(packed.read_bytes()[:-5000])
    status, said = run(capsys, "--image", packed, "--yes", out)
    assert status == 1
    assert "could not be read" in said or "damaged" in said


def test_a_damaged_image_stops_before_the_card_is_touched(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "card.img"
    shutil.copy(image, copy)
    shutil.copy(image.with_name("card.img.bmap"), tmp_path)
    with copy.open("r+b") as file:
        file.seek(small_card.START[card.ROOT_A] * MIB + 99)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 2]))
    out = tmp_path / "out.img"
    out.write_bytes(b"old")
    status, said = run(capsys, "--image", copy, "--yes", out)
    assert status == 1
    assert "is damaged, or its .bmap belongs to another build" in said
    assert "Nothing was written" in said
    assert out.read_bytes() == b"old"
    copy.with_name("card.img.bmap").write_bytes(b"<bmap/>")
    status, said = run(capsys, "--image", copy, "--yes", out)
    assert (status, out.read_bytes()) == (1, b"old")
    assert "its block map (.bmap) cannot be used: not a block map of version 2" in said


def test_what_is_no_card_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content, reason in (
        (b"", "shorter than one sector"),
        (bytes(MIB), "no partition table"),
        (bytes(510) + b"\x55\xaa" + bytes(MIB), "is missing"),
        (small_card.mbr() + bytes(MIB), "cut off"),
    ):
        wrong = tmp_path / "wrong.img"
        wrong.write_bytes(content)
        status, said = run(capsys, "--image", wrong, "--file", tmp_path / "out.img")
        assert status == 1
        assert "is not a card image" in said
        assert reason in said
        assert not (tmp_path / "out.img").exists()


def test_images_are_found_by_their_board(
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("THICKET_CACHE", str(tmp_path))
    out = tmp_path / "out.img"
    status, said = run(capsys, "--file", out)
    assert status == 1
    assert "there is no image of rpi64" in said
    assert "`make rpi64` builds it" in said
    images = tmp_path / "build/x86_64/images"
    images.mkdir(parents=True)
    shutil.copy(image, images)
    status, said = run(capsys, "--file", out)
    assert "Built are: x86_64." in said
    status, said = run(capsys, "--file", out, "--image", "rpi46")
    assert status == 1
    assert "rpi46 is neither a file nor a board (rpi64, x86_64). Built are: x86_64." in said
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    status, said = run(capsys, "--file", out, "--image", "mine")
    assert status == 1
    assert "mine is a folder: a release is named by its path (./mine), a card image by" in said
    (tmp_path / "new.raucb").write_bytes(signed())
    status, said = run(capsys, "--file", out, "--image", tmp_path / "new.raucb")
    assert status == 1
    assert "is not a card image: this is a signed bundle, which a node that runs" in " ".join(
        said.split()
    )
    assert run(capsys, "--image", "x86_64", "--file", out)[0] == 0


def test_what_cannot_be_a_card(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, reason in (
        (["/dev/null"], "neither a disk nor a plain file"),
        (["/dev/no-such-disk"], "there is no /dev/no-such-disk"),
        (["null"], "there is no null. Is it /dev/null?"),
        (["--file", "/dev/sdq"], "no file is made in /dev"),
        (["--file", tmp_path], "that is not a plain file"),
        (["/dev/null", "--file", tmp_path / "x"], "only one of them"),
    ):
        status, said = run(capsys, "--image", image, "--yes", *words)
        assert status == 1
        assert reason in said


def test_without_arguments_the_disks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    status, said = run(capsys)
    assert status == 2
    assert "Say which" in said
    assert run(capsys, "--list")[0] == 0


def test_a_file_cannot_be_written_by_two(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.img"
    with Target.file(out, MIB), pytest.raises(BlockingIOError):
        Target.file(out, MIB)


# Real block devices, where this is root and has loop devices.


class Loop:
    """A loop device with partitions, on a file full of old data."""

    def __init__(self, backing: Path) -> None:
        self.backing = backing
        done = subprocess.run(
            ["losetup", "--find", "--show", backing], check=False, capture_output=True, text=True
        )
        if done.returncode != 0:
            pytest.skip(f"no loop device here: {done.stderr.strip()}")
        self.path = done.stdout.strip()

    def partitions(self) -> None:
        subprocess.run(["partx", "--add", self.path], check=True, capture_output=True)

    def close(self) -> None:
        subprocess.run(["partx", "--delete", self.path], check=False, capture_output=True)
        subprocess.run(["losetup", "--detach", self.path], check=True)


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    if os.geteuid() != 0:
        pytest.skip("loop devices need root: nothing was flashed to a real block device")
    backing = tmp_path / "backing"
    backing.write_bytes(b"\xd5" * BIG)
    device = Loop(backing)
    yield device
    device.close()


def test_a_loop_device_becomes_a_card(
    image: Path, toml: Path, loop: Loop, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--image", image, "--config", toml, loop.path)
    status, said = run(capsys, *words)
    assert status == 1
    assert "--force-fixed" in said
    status, said = run(capsys, *words, "--force-fixed")
    assert status == 1
    assert "there is no terminal to ask at" in said
    assert loop.backing.read_bytes() == b"\xd5" * BIG
    status, said = run(capsys, *words, "--force-fixed", "--yes")
    assert status == 0, said
    assert "The card is complete and was checked" in said
    data = Path(loop.path).read_bytes()
    part = small_card.START[card.CONFIG] * MIB
    with image.open("rb") as file:
        mapped = ranges.subtract(
            bmap.data_ranges(file), [(part, part + small_card.LENGTH[card.CONFIG] * MIB)]
        )
    check_card(image.read_bytes(), data, mapped)
    assert read_toml(data) == TOML


def test_a_loop_device_that_is_too_small(
    image: Path, tmp_path: Path, loop: Loop, capsys: pytest.CaptureFixture[str]
) -> None:
    os.truncate(loop.backing, small_card.SIZE - 512)
    subprocess.run(["losetup", "--set-capacity", loop.path], check=True)
    status, said = run(capsys, "--image", image, "--force-fixed", "--yes", loop.path)
    assert status == 1
    assert f"({small_card.SIZE - 512} bytes), the image needs 24.0 MiB" in said


def test_partitions_mounts_and_holders_of_a_loop_device(
    image: Path, tmp_path: Path, loop: Loop, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--image", image, "--force-fixed", "--yes")
    assert run(capsys, *words, loop.path)[0] == 0
    loop.partitions()
    status, said = run(capsys, *words, f"{loop.path}p7")
    assert status == 1
    assert f"written to a whole disk.\n  The disk that it is on is {loop.path}." in said
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    subprocess.run(["mke2fs", "-q", f"{loop.path}p7"], check=True, env=dict(os.environ, PATH=path))
    place = tmp_path / "place"
    place.mkdir()
    mounted = subprocess.run(["mount", f"{loop.path}p7", place], check=False, capture_output=True)
    if mounted.returncode == 0:
        try:
            status, said = run(capsys, *words, loop.path)
            with pytest.raises(OSError, match="busy"):
                Target.device(Path(loop.path))
        finally:
            subprocess.run(["umount", place], check=True)
        assert status == 1
        assert f"p7 is mounted at {place}" in said
        assert f"sudo umount {place}" in said
    second = Loop(Path(f"{loop.path}p5"))
    try:
        status, said = run(capsys, *words, loop.path)
    finally:
        second.close()
    assert status == 1
    assert f"p5 is used by {Path(second.path).name}" in said
    # Nothing of that was written.
    with image.open("rb") as file, Path(loop.path).open("rb") as card_file:
        assert card.read(card_file) == card.read(file)


def test_a_device_that_somebody_has_for_himself(
    image: Path, loop: Loop, capsys: pytest.CaptureFixture[str]
) -> None:
    with Target.device(Path(loop.path)):
        status, said = run(capsys, "--image", image, "--force-fixed", "--yes", loop.path)
    assert status == 1
    assert "in use by something that is not visible here" in said
    assert loop.backing.read_bytes() == b"\xd5" * BIG


def test_without_the_right_to_write_the_line_to_type_is_printed(
    image: Path,
    loop: Loop,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setenv("THICKET_CACHE", "/a cache")
    monkeypatch.setattr(sys, "_base_executable", "/opt/python/bin/python3", raising=False)
    monkeypatch.chdir(TOP)
    status, said = run(capsys, "--image", image, "--force-fixed", loop.path)
    assert status == 1
    words = f"--image {image} --force-fixed {loop.path}"
    line = f"sudo env 'THICKET_CACHE=/a cache' PYTHON=/opt/python/bin/python3 bin/flash {words}"
    assert f"may be written by root only. Run:\n    {line}\n" in said


def test_a_card_that_is_swapped_while_the_person_thinks(
    image: Path,
    loop: Loop,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    described = blockdev.described
    monkeypatch.setattr(flash, "described", lambda disk: replace(described(disk), sequence="0"))
    status, said = run(capsys, "--image", image, "--force-fixed", "--yes", loop.path)
    assert status == 1
    assert "is no longer the card that was shown" in said
    assert loop.backing.read_bytes() == b"\xd5" * BIG


def test_the_disk_of_this_system(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Looked up independently: the device number of / and its disk."""
    number = Path("/").stat().st_dev
    folder = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not folder.exists():
        pytest.skip("/ is on no disk that is visible here")
    folder = folder.resolve()
    if (folder / "partition").exists():
        folder = folder.parent
    if "/virtual/" in str(folder) or not Path("/dev", folder.name).exists():
        pytest.skip(f"/ is on {folder.name}, which is no plain disk here")
    status, said = run(capsys, "--image", image, "--yes", "--force-fixed", f"/dev/{folder.name}")
    assert status == 1
    assert "is a disk that this system runs from" in said
    assert "Nothing was written" in said


def test_bin_flash_starts(tmp_path: Path) -> None:
    done = subprocess.run(
        [TOP / "bin/flash", "--help"], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert "--force-fixed" in done.stdout


LOCKED = "NOBODY WILL BE ABLE TO GET INTO THIS DEVICE"


def test_a_card_that_nobody_can_get_into_is_told_of_loudly(
    image: Path, toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (("--config", toml), ()):
        status, said = run(
            capsys, "--image", image, *words, "--file", tmp_path / "out.img", "--yes"
        )
        assert status == 0
        assert said.count(LOCKED) == 2, "before it is written and at the end"


@pytest.mark.parametrize(
    "text",
    [
        "[access]\nconsole = true\n",
        '[access]\nssh_keys = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI' + "A" * 43 + '"\n',
    ],
)
def test_a_card_with_a_way_in_is_not_cried_over(text: str) -> None:
    assert settings.lockout(text.encode()) is None


def test_a_card_of_a_fleet_without_a_key_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.lockout(b"# defaults\n") is not None
    monkeypatch.setattr("firmware.settings.locked_out", lambda _: None)
    assert any("no way in by SSH" in note for note in settings.warnings(TOML))

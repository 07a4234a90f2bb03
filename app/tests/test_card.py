# SPDX-License-Identifier: Apache-2.0
"""thicket.device.data_partition: a card in any state, and a power cut after any write.

What comes out is read by rules of the Linux kernel (block/partitions/msdos.c), written down here a
second time.
"""

import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thicket.device import data_partition
from thicket.device.data_partition import ALIGN, LEAST, fit
from thicket.device.disk import SECTOR, CardError, Disk

# start and length in sectors
CONFIG, BOOT_A, BOOT_B = (2048, 2048), (4096, 2048), (6144, 2048)
EXTENDED = 8192
ROOT_A, ROOT_B, DATA = (10240, 4096), (16384, 4096), (22528, 40960)
ROOTS_END = ROOT_B[0] + ROOT_B[1]
IMAGE_END = DATA[0] + DATA[1]


def entry(kind: int, first: int, count: int) -> bytes:
    return struct.pack("<B3sB3sII", 0, b"\xfe\xff\xff", kind, b"\xfe\xff\xff", first, count)


def record(*entries: bytes) -> bytes:
    return bytes(446) + b"".join(entries).ljust(64, b"\0") + b"\x55\xaa"


def make(path: Path, sectors: int, signature: int = data_partition.SIGNATURE) -> Path:
    """A card of so many sectors that the image was written to, as far as it fits."""
    mbr = bytearray(
        record(
            entry(0x0C, *CONFIG), entry(0x0C, *BOOT_A), entry(0x0C, *BOOT_B),
            entry(0x0F, EXTENDED, IMAGE_END - EXTENDED),
        )
    )  # fmt: skip
    mbr[:440] = random.Random(1).randbytes(440)  # boot code
    mbr[440:444] = signature.to_bytes(4, "little")
    places = [(0, bytes(mbr))]
    partitions = [ROOT_A, ROOT_B, DATA]
    for number, (start, count) in enumerate(partitions):
        at = start - ALIGN
        entries = [entry(0x83, ALIGN, count)]
        if number < 2:
            following = partitions[number + 1]
            entries.append(entry(0x05, following[0] - ALIGN - EXTENDED, following[1] + ALIGN))
        places.append((at, record(*entries)))
    with path.open("wb") as file:
        file.truncate(sectors * SECTOR)
        for at, data in places:
            if at < sectors:
                file.seek(at * SECTOR)
                file.write(data)
    return path


def kernel_view(path: Path) -> dict[int, tuple[int, int]]:
    """Start and length of the partitions that Linux finds."""
    data = path.read_bytes()
    total = len(data) // SECTOR

    def sector(number: int) -> bytes:
        return data[number * SECTOR : (number + 1) * SECTOR]

    def entries(at: bytes) -> list[tuple[int, int, int]]:
        unpacked = (struct.unpack_from("<4xB3xII", at, 446 + 16 * n) for n in range(4))
        return [(kind, first, count) for kind, first, count in unpacked]

    found = {}
    extended = None
    for number, (kind, first, count) in enumerate(entries(sector(0)), 1):
        if count == 0:
            continue
        if kind in (0x05, 0x0F, 0x85):
            extended = first
            found[number] = (first, 2)
        else:
            found[number] = (first, count)
    number = 5
    this = extended
    for _ in range(100):  # as many as the kernel follows
        if this is None or this >= total:
            break
        at = sector(this)
        if at[510:] != b"\x55\xaa":
            break
        parts = entries(at)
        for kind, first, count in parts[:1]:
            if count and kind not in (0x05, 0x0F, 0x85):
                found[number] = (this + first, count)
                number += 1
        links = [first for kind, first, count in parts if count and kind in (0x05, 0x0F, 0x85)]
        assert extended is not None
        this = extended + links[0] if links else None
    return {n: (s, min(c, total - s)) for n, (s, c) in found.items() if s < total}


def untouched(path: Path) -> bytes:
    """Everything before the end of slot B but what may change: two sectors' entries."""
    data = bytearray(path.read_bytes()[: ROOTS_END * SECTOR])
    data[446 + 48 + 12 : 446 + 64] = bytes(4)  # the length of partition 4
    at = (ROOT_B[0] - ALIGN) * SECTOR + 446 + 16
    data[at : at + 16] = bytes(16)  # the link to partition 7
    return bytes(data)


def run(path: Path) -> str:
    disk = Disk(str(path))
    try:
        return fit(disk)[0]
    finally:
        disk.close()


def check(path: Path, start: int = DATA[0]) -> None:
    """The card is as it should be, for the kernel and for programs that are stricter."""
    total = path.stat().st_size // SECTOR
    view = kernel_view(path)
    assert {n: view[n] for n in (1, 2, 3, 5, 6)} == {
        1: CONFIG, 2: BOOT_A, 3: BOOT_B, 5: ROOT_A, 6: ROOT_B,
    }  # fmt: skip
    assert view[7] == (start, total // ALIGN * ALIGN - start)
    assert 8 not in view
    (extended,) = struct.unpack_from("<I", path.read_bytes(), 446 + 48 + 12)
    assert EXTENDED + extended == sum(view[7])


class CutError(Exception):
    pass


def cuts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do it with a power cut before every write, and then again without."""
    before = path.read_bytes()
    run(path)
    after = path.read_bytes()
    write = Disk.write
    for number in range(5):
        path.write_bytes(before)
        left = number

        def cut(self: Disk, sector: int, data: bytes) -> None:
            nonlocal left
            if left == 0:
                raise CutError
            left -= 1
            write(self, sector, data)

        monkeypatch.setattr(Disk, "write", cut)
        try:
            run(path)
        except CutError:
            pass
        else:
            break
        finally:
            monkeypatch.setattr(Disk, "write", write)
        # the next boot has its roots, and a reason to look again: sysfs shows it, see S20data.sh
        view = kernel_view(path)
        assert (view[5], view[6]) == (ROOT_A, ROOT_B)
        end = sum(view[7]) if 7 in view and view[7][0] >= ROOTS_END else 0
        assert len(after) // SECTOR - end >= 8192
        run(path)
        assert path.read_bytes() == after
    assert 1 <= number <= 3, "three writes at most"
    assert path.read_bytes() == after


class TestGrow:
    def test_to_the_end_of_the_card(self, tmp_path: Path) -> None:
        path = make(tmp_path / "card", IMAGE_END + 100_001)
        before = untouched(path)
        assert "was 20 MiB, 68 MiB now" in run(path)
        check(path)
        assert untouched(path) == before
        content = path.read_bytes()
        assert "was right" in run(path)
        assert path.read_bytes() == content

    def test_cut_anywhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cuts(make(tmp_path / "card", IMAGE_END + 100_000), monkeypatch)

    def test_a_card_of_three_terabytes_ends_where_an_mbr_ends(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = make(tmp_path / "card", IMAGE_END)
        disk = Disk(str(path))
        disk.sectors = 6_000_000_000
        _, (start, length) = fit(disk)
        disk.close()
        assert start + length == 0xFFFFFFFF // ALIGN * ALIGN

    def test_a_card_that_is_a_little_smaller_than_the_image(self, tmp_path: Path) -> None:
        path = make(tmp_path / "card", IMAGE_END - 5000)
        run(path)
        check(path)


class TestMakeAgain:
    @pytest.mark.parametrize("rest", ["nothing", "random", "marked", "zeros", "loop", "before"])
    def test_whatever_lies_behind_slot_b(
        self, rest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = make(tmp_path / "card", IMAGE_END + 50_000)
        at = DATA[0] - ALIGN
        noise = random.Random(2).randbytes(20_000)
        garbage = {
            "nothing": bytes(SECTOR),
            "random": noise,
            "marked": noise[:510] + b"\x55\xaa" + noise,
            "zeros": record(),
            # a record that leads to itself, and one whose partition is in slot B
            "loop": record(entry(0x05, at - EXTENDED, 5)),
            "before": record(entry(0x83, 2**32 - 4000, 8000), entry(0x05, 0, 100)),
        }[rest]
        with path.open("r+b") as file:
            file.seek(at * SECTOR)
            file.write(garbage)
        before = untouched(path)
        cuts(path, monkeypatch)
        check(path)
        assert untouched(path) == before

    def test_a_link_that_leads_nowhere(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = make(tmp_path / "card", IMAGE_END)
        with path.open("r+b") as file:
            file.seek((ROOT_B[0] - ALIGN) * SECTOR + 446 + 16)
            file.write(entry(0x05, 500_000, 100))
        cuts(path, monkeypatch)
        check(path, ROOTS_END + ALIGN)

    def test_a_link_into_the_roots(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = make(tmp_path / "card", IMAGE_END)
        with path.open("r+b") as file:
            file.seek((ROOT_B[0] - ALIGN) * SECTOR + 446 + 16)
            file.write(entry(0x05, ROOT_A[0] - ALIGN - EXTENDED, 100))
        cuts(path, monkeypatch)
        check(path, ROOTS_END + ALIGN)

    @settings(max_examples=100, deadline=None)
    @given(
        garbage=st.binary(min_size=1, max_size=600),
        offset=st.integers(min_value=0, max_value=600),
        link=st.binary(max_size=16),
        sectors=st.integers(min_value=ROOTS_END, max_value=IMAGE_END + 70_000),
    )
    def test_any_bytes(
        self,
        garbage: bytes,
        offset: int,
        link: bytes,
        sectors: int,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> None:
        path = make(tmp_path_factory.mktemp("card") / "card", sectors)
        with path.open("r+b") as file:
            file.seek((DATA[0] - ALIGN) * SECTOR + offset)
            if offset + len(garbage) + (DATA[0] - ALIGN) * SECTOR <= sectors * SECTOR:
                file.write(garbage)
            file.seek((ROOT_B[0] - ALIGN) * SECTOR + 446 + 16)
            file.write(link)
        before = untouched(path)
        try:
            run(path)
        except CardError as e:
            assert "room" in str(e)
            assert sectors // ALIGN * ALIGN - ROOTS_END < ALIGN * 2 + LEAST or "0 MiB" not in str(e)
        else:
            view = kernel_view(path)
            assert view[7][0] >= ROOTS_END
            assert sum(view[7]) <= sectors
            assert (view[5], view[6]) == (ROOT_A, ROOT_B)
        assert untouched(path) == before
        path.unlink()


class TestLeftAlone:
    def test_without_room(self, tmp_path: Path) -> None:
        path = make(tmp_path / "card", ROOTS_END + ALIGN + LEAST - 1)
        content = path.read_bytes()
        with pytest.raises(CardError, match="no room: 16 MiB behind slot B"):
            run(path)
        assert path.read_bytes() == content

    @pytest.mark.parametrize(
        ("damage", "words"),
        [
            ("mark", "no partition table"),
            ("signature", "this is no Thicket card"),
            ("extended", "partition 4 is not"),
            ("root-a", "partition 5 is not"),
            ("chain", "partition 6 is missing"),
            ("short", "partition 6 is not"),
        ],
    )
    def test_disks_that_are_no_cards(self, damage: str, words: str, tmp_path: Path) -> None:
        path = make(tmp_path / "card", IMAGE_END)
        at, data = {
            "mark": (510, b"\0"),
            "signature": (440, b"\0"),
            "extended": (446 + 48 + 4, b"\x83"),
            "root-a": ((ROOT_A[0] - ALIGN) * SECTOR + 510, b"\0"),
            "chain": ((ROOT_A[0] - ALIGN) * SECTOR + 446 + 16, bytes(16)),
            "short": ((ROOT_B[0] - ALIGN) * SECTOR + 446 + 12, b"\xff\xff\xff\x0f"),
        }[damage]
        with path.open("r+b") as file:
            file.seek(at)
            file.write(data)
        content = path.read_bytes()
        with pytest.raises(CardError, match=words):
            run(path)
        assert path.read_bytes() == content

    def test_a_worn_card_is_noticed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = make(tmp_path / "card", IMAGE_END + 100_000)
        monkeypatch.setattr(os, "pwritev", lambda *_: SECTOR)
        with pytest.raises(CardError, match="sector 0 was written and reads differently"):
            run(path)


class TestCommand:
    def command(self, path: Path) -> subprocess.CompletedProcess[str]:
        code = "import sys; from thicket.device.data_partition import main; sys.exit(main())"
        return subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
        )

    def test_says_what_it_did(self, tmp_path: Path) -> None:
        done = self.command(make(tmp_path / "card", IMAGE_END + 100_000))
        assert (done.returncode, done.stdout) == (0, "was 20 MiB, 68 MiB now\n")

    def test_says_what_is_wrong(self, tmp_path: Path) -> None:
        done = self.command(tmp_path / "absent")
        assert done.returncode == 1
        assert "cannot be opened" in done.stdout
        assert done.stderr == ""

    def test_growing_says_what_is_wrong(self, tmp_path: Path) -> None:
        """On a real ext4 this is a test of a running node, tests/mesh/test_card.py."""
        code = "import sys; from thicket.device.data_partition import main; sys.exit(main())"
        for place, words in ((tmp_path / "absent", "No such file"), ("/proc", "cannot be made")):
            command = [sys.executable, "-c", code, "--grow", str(place), "1"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 1
            assert words in done.stdout
            assert done.stderr == ""


FIRST_BEHIND = (DATA[0] + DATA[1] + 4 * ALIGN, 10 * ALIGN)
SECOND_BEHIND = (FIRST_BEHIND[0] + FIRST_BEHIND[1] + 2 * ALIGN, 5 * ALIGN)


def add_behind(path: Path, *partitions: tuple[int, int], kind: int = 0x83) -> None:
    """Make logical partitions behind the data partition, as a partitioning program does."""
    record_at = DATA[0] - ALIGN
    with path.open("r+b") as file:
        for start, count in partitions:
            file.seek(record_at * SECTOR + 446 + 16)
            file.write(entry(0x05, start - ALIGN - EXTENDED, count + ALIGN))
            record_at = start - ALIGN
            file.seek(record_at * SECTOR)
            file.write(record(entry(kind, ALIGN, count)))
        file.seek(446 + 48 + 12)
        end = max(start + count for start, count in partitions)
        file.write(struct.pack("<I", end + 7 - EXTENDED))


class TestSomebodysPartition:
    @pytest.mark.parametrize("kind", [0x83, 0x07, 0x0C])
    @pytest.mark.parametrize("behind", [(FIRST_BEHIND,), (FIRST_BEHIND, SECOND_BEHIND)])
    def test_it_stays_and_the_data_partition_grows_up_to_it(
        self, behind: tuple[tuple[int, int], ...], kind: int, tmp_path: Path
    ) -> None:
        path = make(tmp_path / "card", IMAGE_END + 100_000)
        add_behind(path, *behind, kind=kind)
        before, length = untouched(path), path.read_bytes()[446 + 60 : 446 + 64]
        assert "which stays" in run(path)
        view = kernel_view(path)
        assert view[7] == (DATA[0], FIRST_BEHIND[0] - ALIGN - DATA[0])
        assert [view[8 + n] for n in range(len(behind))] == list(behind)
        assert len(view) == 7 + len(behind)
        assert path.read_bytes()[446 + 60 : 446 + 64] == length, "the extended one holds it all"
        assert untouched(path) == before
        content = path.read_bytes()
        assert "was right" in run(path)
        assert path.read_bytes() == content

    def test_a_power_cut_between_any_two_writes_loses_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = make(tmp_path / "card", IMAGE_END + 100_000)
        add_behind(path, FIRST_BEHIND)
        cuts(path, monkeypatch)
        assert kernel_view(path)[8] == FIRST_BEHIND

    def test_a_data_partition_that_reaches_over_it_already_is_not_made_smaller(
        self, tmp_path: Path
    ) -> None:
        path = make(tmp_path / "card", IMAGE_END + 100_000)
        add_behind(path, (DATA[0] + 10 * ALIGN, 2 * ALIGN))
        run(path)
        assert kernel_view(path)[7] == DATA

    @pytest.mark.parametrize("damage", ["no record", "in a circle", "before it"])
    def test_a_link_to_no_partition_is_damage(self, damage: str, tmp_path: Path) -> None:
        path = make(tmp_path / "card", IMAGE_END + 100_000)
        target = {
            "no record": FIRST_BEHIND[0],
            "in a circle": DATA[0] - ALIGN,
            "before it": ROOT_A[0] - ALIGN,
        }[damage]
        with path.open("r+b") as file:
            file.seek((DATA[0] - ALIGN) * SECTOR + 446 + 16)
            file.write(entry(0x05, target - EXTENDED, 4096))
        assert "which stays" not in run(path)
        check(path)

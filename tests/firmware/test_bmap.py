# SPDX-License-Identifier: Apache-2.0
"""Block maps and what of a card has to be written; bmap-tools is the independent judge."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware import bmap, card, plan, ranges
from firmware.bmap import Bmap, BmapError, Run

sys.path.insert(0, str(Path(__file__).parent))
import small_card

MIB = 1 << 20

some_ranges = st.lists(
    st.tuples(st.integers(0, 200), st.integers(0, 40)).map(lambda p: (p[0], p[0] + p[1])),
    max_size=12,
)


def numbers(of: list[ranges.Range]) -> set[int]:
    return {n for start, end in of for n in range(start, end)}


@given(some_ranges, some_ranges, st.integers(1, 17))
def test_ranges_are_sets_of_numbers(
    one: list[ranges.Range], two: list[ranges.Range], unit: int
) -> None:
    united = ranges.union([*one, *two])
    assert numbers(united) == numbers(one) | numbers(two)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(united))
    assert numbers(ranges.subtract(one, two)) == numbers(one) - numbers(two)
    assert numbers(ranges.intersect(one, two)) == numbers(one) & numbers(two)
    assert ranges.length(united) == len(numbers(united))
    assert numbers(ranges.clip(one, 20, 90)) == numbers(one) & set(range(20, 90))
    aligned = ranges.align(one, unit)
    assert numbers(aligned) == {
        m for n in numbers(one) for m in range(n // unit * unit, n // unit * unit + unit)
    }
    cut = list(ranges.pieces(united, unit))
    assert numbers(cut) == numbers(united)
    assert all(a // unit == (b - 1) // unit for a, b in cut)


@st.composite
def maps(draw: st.DrawFn) -> Bmap:
    size = draw(st.integers(1, 40 * 4096))
    blocks = -(-size // 4096)
    wanted = draw(st.lists(st.booleans(), min_size=blocks, max_size=blocks))
    runs = [
        Run(start, min(end, size), hashlib.sha256(bytes([start % 251])).hexdigest())
        for start, end in ranges.union(
            (i * 4096, i * 4096 + 4096) for i in range(blocks) if wanted[i]
        )
    ]
    return Bmap(size, 4096, "sha256", tuple(runs))


@given(maps())
def test_what_is_rendered_is_parsed(made: Bmap) -> None:
    assert bmap.parse(bmap.render(made)) == made


@given(maps(), st.data())
def test_a_changed_byte_is_noticed(made: Bmap, data: st.DataObject) -> None:
    text = bytearray(bmap.render(made))
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(BmapError):
        bmap.parse(bytes(text))


def signed(text: bytes) -> bytes:
    """A map with the checksum that it should have."""
    start = text.index(b"<BmapFileChecksum> ") + 19
    text = text[:start] + b"0" * 64 + text[start + 64 :]
    return text[:start] + hashlib.sha256(text).hexdigest().encode() + text[start + 64 :]


GOOD = bmap.render(
    Bmap(10 * 4096 - 5, 4096, "sha256", (Run(0, 8192, "a" * 64), Run(36864, 40955, "b" * 64)))
)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b'version="2.0"', b'version="1.4"', "not a block map of version 2"),
        (b"sha256 </Ch", b"md5 </Ch", "checksums of type 'md5'"),
        (b"<BlocksCount> 10", b"<BlocksCount> 11", "are not that many blocks"),
        (b"<BlockSize> 4096", b"<BlockSize> 0", "are not that many blocks"),
        (b"<MappedBlocksCount> 3", b"<MappedBlocksCount> 4", "it lists 3 blocks"),
        (b"> 9 </Range", b"> 1 </Range", "out of order"),
        (b"> 9 </Range", b"> 9-10 </Range", "behind the end"),
        (b"> 9 </Range", b"> 9-8 </Range", "out of order"),
        (b"> 9 </Range", b"> x </Range", "not a range"),
        (b"b" * 64, b"b" * 63, "has no sha256 checksum"),
        (b"<ImageSize> 40955", b"<ImageSize> -1", "not a number"),
        (b"<BlockSize> 4096 </BlockSize>", b"", "<BlockSize> is missing"),
        (b"</bmap>", b"", "not XML"),
    ],
)
def test_wrong_maps_are_refused_in_words(old: bytes, new: bytes, said: str) -> None:
    bmap.parse(signed(GOOD))
    assert GOOD.count(old) == 1
    with pytest.raises(BmapError, match=said):
        bmap.parse(signed(GOOD.replace(old, new)))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_card.make(tmp_path_factory.mktemp("card") / "card.img")


def test_bmaptool_makes_what_is_parsed(tmp_path: Path) -> None:
    file = tmp_path / "holes.img"
    with file.open("wb") as out:
        out.truncate(3_000_001)
        for at in (0, 65536, 69632, 2_999_900):
            out.seek(at)
            out.write(os.urandom(101))
    made = subprocess.run(["bmaptool", "create", file], check=True, capture_output=True).stdout
    parsed = bmap.parse(made)
    with file.open("rb") as opened:
        parsed.verify(opened)
        assert bmap.make(opened, bmap.data_ranges(opened)) == parsed


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 4095), st.booleans())
def test_zeros_are_no_data_whether_they_are_holes_or_not(
    blocks: list[bool], more: int, sparse: bool
) -> None:
    with tempfile.TemporaryFile() as file:
        for index, data in enumerate(blocks):
            if data or not sparse:
                file.seek(index * 4096)
                file.write(bytes(4095) + bytes([data]))
        file.truncate(len(blocks) * 4096 + more)
        file.flush()
        assert bmap.data_ranges(file) == ranges.union(
            (i * 4096, i * 4096 + 4096) for i, data in enumerate(blocks) if data
        )


def test_bmaptool_writes_a_card_that_is_as_good_as_ours(image: Path, tmp_path: Path) -> None:
    """It trusts the map alone: what matters and is a hole of the image has to be in it."""
    output = tmp_path / "card.img.bmap"
    assert bmap.main([str(image), "-o", str(output)]) == 0
    target = tmp_path / "target"
    subprocess.run(
        ["bmaptool", "copy", "--bmap", output, image, target], check=True, capture_output=True
    )
    wanted, found = image.read_bytes(), bytearray(target.read_bytes())
    written = bmap.parse(output.read_bytes()).mapped
    assert ranges.length(written) < small_card.SIZE * 3 // 4, "nothing is gained by the map"
    for start, end in written:
        assert found[start:end] == wanted[start:end]
    for start, end in ranges.subtract([(0, small_card.SIZE)], written):
        assert not any(found[start:end]), "bmaptool wrote what is not in the map"
        found[start:end] = os.urandom(end - start)  # what a used card has there
    target.write_bytes(found)
    for number in (card.CONFIG, card.BOOT_A, card.BOOT_B):
        part = tmp_path / f"part{number}"
        start = small_card.START[number] * MIB
        part.write_bytes(found[start : start + small_card.LENGTH[number] * MIB])
        subprocess.run(["fsck.fat", "-n", part], check=True, capture_output=True, env=sbin())
    kernels = [
        subprocess.run(
            ["mtype", "-i", f"{file}@@{small_card.START[card.BOOT_A]}M", "::kernel.img"],
            check=True,
            capture_output=True,
            env=dict(os.environ, MTOOLS_SKIP_CHECK="1"),
        ).stdout
        for file in (image, target)
    ]
    assert kernels[0] == kernels[1]
    assert len(kernels[0]) == 380_003


def sbin() -> dict[str, str]:
    return dict(os.environ, PATH=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def test_the_map_is_written_at_once_or_not_at_all(tmp_path: Path) -> None:
    wrong = tmp_path / "no-card.img"
    wrong.write_bytes(bytes(8192))
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert bmap.main([str(wrong)]) == 1
        assert bmap.main([str(tmp_path / "absent.img")]) == 1
    assert "no partition table" in said.getvalue()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["no-card.img"]


def test_a_damaged_or_cut_image_does_not_fit_its_map(image: Path, tmp_path: Path) -> None:
    with image.open("rb") as file:
        made = bmap.make(file, bmap.data_ranges(file))
    data = bytearray(image.read_bytes())
    start = made.runs[-1].end - 1
    data[start] ^= 0x10
    with pytest.raises(BmapError, match=f"bytes {made.runs[-1].start} to"):
        made.verify(io.BytesIO(data))
    with pytest.raises(BmapError, match="is for an image of"):
        made.verify(io.BytesIO(data[:-1]))


@pytest.mark.parametrize(("bits", "mib"), [(12, 2), (16, 20), (32, 40)])
def test_the_used_part_of_a_fat_ends_behind_its_last_file(
    bits: int, mib: int, tmp_path: Path
) -> None:
    """Everything behind it can be lost without a loss, and not one cluster more."""
    path = tmp_path / "fat"
    subprocess.run(
        ["mkfs.fat", "-C", "-F", str(bits), path, str(mib * 1024)],
        check=True,
        capture_output=True,
        env=sbin(),
    )
    environment = dict(os.environ, MTOOLS_SKIP_CHECK="1")
    content = os.urandom(400_000)
    for name in ("::a", "::b"):
        subprocess.run(["mcopy", "-i", path, "-", name], input=content, check=True, env=environment)
    # The file system's end is now far behind the first free cluster, with a hole in the middle.
    subprocess.run(["mdel", "-i", path, "::a"], check=True, env=environment)
    data = path.read_bytes()
    end = plan.fat_used(lambda offset, count: data[offset : offset + count], len(data))
    assert end is not None
    last = data.rindex(content[-64:]) + 64
    assert last <= end < last + 32768
    path.write_bytes(data[:end] + b"\xdb" * (len(data) - end))
    assert content == (
        subprocess.run(
            ["mtype", "-i", path, "::b"], check=True, capture_output=True, env=environment
        ).stdout
    )


def test_what_is_no_fat_is_not_taken_for_one() -> None:
    for data in (bytes(4096), small_card.mbr() + bytes(4096), os.urandom(510) + b"\x55\xaa"):
        size = len(data)
        used = plan.fat_used(lambda offset, count, d=data: d[offset : offset + count], size)  # type: ignore[misc]
        assert used is None

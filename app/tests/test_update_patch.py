# SPDX-License-Identifier: Apache-2.0
"""Patches: the bundle is made byte for byte from what runs, or nothing is left of it."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import struct
from collections.abc import Callable
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thicket.base.paths import Paths
from thicket.update import apply as applying
from thicket.update import patch as patches
from thicket.update import rebuild as rebuilding
from thicket.update import verity, zstd
from thicket.update.apply import NEW, SPARE, Running, Wanted, apply
from thicket.update.mapped import Mapped
from thicket.update.offer import Target
from thicket.update.patch import ALIGNED, Base, Boot, HashTree, Header, PatchError, Root
from thicket.update.verity import BLOCK

HASH = "ab" * 32
LINE = (5000, 5600)
"""Where the boot image has its command line."""
SALT = "cd" * 32


class Case(NamedTuple):
    """A patch on the table, in a folder, with what it is made of."""

    folder: Path
    header: Header
    bundle: bytes

    @property
    def path(self) -> Path:
        return self.folder / "patch"

    @property
    def wanted(self) -> Wanted:
        return Wanted(str(self.folder / "bundle"), self.header.size, self.header.sha256)

    @property
    def running(self) -> Running | None:
        if self.header.base is None:
            return None
        return Running(HASH, str(self.folder / "root"), str(self.folder / "boot"))

    @property
    def target(self) -> Target:
        return Target("thicket-x86_64", "0.2.0", 1, self.header.size, self.header.sha256)

    def apply(self) -> None:
        apply(str(self.path), self.wanted, self.running, lambda *_: None)

    def made(self) -> bytes:
        return (self.folder / "bundle").read_bytes()

    def nothing_left(self) -> bool:
        return not {"bundle", "bundle" + NEW} & {path.name for path in self.folder.iterdir()}


def tree_of(data: bytes, start: int, size: int) -> bytes:
    return verity.tree(io.BytesIO(data), size, bytes.fromhex(SALT), start).blocks


def bundle_of(root: bytes, boot: bytes, tail: bytes) -> tuple[bytes, tuple[HashTree, ...]]:
    """Return what has the structure of a bundle: two hash trees, the one over the other."""
    front = b"hsqs" + boot
    data = front + root
    inner = HashTree(len(data), len(front), len(root), SALT)
    data += tree_of(data, inner.start, inner.size) + tail
    data += bytes(-len(data) % BLOCK)
    outer = HashTree(len(data), 0, len(data), SALT)
    return data + tree_of(data, 0, len(data)) + b"the signature", (inner, outer)


def packed(header: Header, body: bytes, prefix: bytes = b"") -> bytes:
    """Return a patch."""
    out = bytearray(header.packed())
    with_body, with_prefix = Mapped(len(body)), Mapped(len(prefix))
    for mapped, data in ((with_body, body), (with_prefix, prefix)):
        write(mapped, data)
    zstd.pack(with_body.memory, out.extend, with_prefix.memory, level=3)
    with_body.close()
    with_prefix.close()
    return bytes(out)


def write(mapped: Mapped, data: bytes) -> None:
    """Put bytes into memory by way of a file."""
    fd = os.memfd_create("data")
    try:
        os.write(fd, data)
        if data:
            mapped.place(0, fd, len(data))
    finally:
        os.close(fd)


def body_of(header: Header, bundle: bytes) -> bytes:
    body, at = b"", 0
    for tree in header.trees:
        body += bundle[at : tree.at]
        at = tree.at + tree.bytes
    return body + bundle[at:]


def case(
    folder: Path, seed: int = 1, blocks: int = 40, *, whole: bool = False, slot: bytes = b"A"
) -> Case:
    """Return a patch of a root and boot image with small changes; ``slot`` is which one runs."""
    random = Random(seed)
    root, boot = random.randbytes(blocks * BLOCK), bytearray(random.randbytes(4 * BLOCK))
    boot[LINE[0] : LINE[1]] = slot * (LINE[1] - LINE[0])
    masked = bytearray(boot)
    masked[LINE[0] : LINE[1]] = bytes(LINE[1] - LINE[0])
    changed = bytearray(root)
    at = len(changed) // 2
    changed[at : at + 50] = random.randbytes(50)
    bundle, trees = bundle_of(bytes(changed), bytes(masked), random.randbytes(500))
    base = None
    prefix = b""
    if not whole:
        base = Base(Root(HASH, len(root)), Boot(len(boot), sha256(masked).hexdigest(), (LINE,)))
        prefix = root + bytes(-len(root) % ALIGNED) + masked
    header = Header(len(bundle), sha256(bundle).hexdigest(), base, trees)
    made = Case(folder, header, bundle)
    made.path.write_bytes(packed(header, body_of(header, bundle), prefix))
    (folder / "root").write_bytes(root + random.randbytes(9000))  # a slot is larger than its image
    (folder / "boot").write_bytes(bytes(boot) + random.randbytes(9000))
    return made


@pytest.fixture
def one(tmp_path: Path) -> Case:
    return case(tmp_path)


def refused(one: Case, code: str, words: str, work: Callable[[], object] | None = None) -> None:
    """The bundle is not made, with these words, and nothing of it is left."""
    with pytest.raises(PatchError, match=words) as caught:
        (work or one.apply)()
    assert caught.value.code == code
    assert one.nothing_left()


# -- what is made


def test_a_bundle_from_what_runs_and_a_patch(one: Case) -> None:
    one.apply()
    assert one.made() == one.bundle
    assert not (one.folder / ("bundle" + NEW)).exists()
    assert (one.folder / "bundle").stat().st_mode & 0o777 == 0o600
    assert one.path.stat().st_size < 2000 < len(one.bundle) // 50


def test_either_slot_is_the_same_base(tmp_path: Path) -> None:
    patches_made = set()
    for slot in (b"A", b"B"):
        folder = tmp_path / slot.decode()
        folder.mkdir()
        one = case(folder, slot=slot)
        one.apply()
        assert one.made() == one.bundle
        patches_made.add(one.path.read_bytes())
    assert len(patches_made) == 1


def test_a_whole_bundle_needs_no_base(tmp_path: Path) -> None:
    one = case(tmp_path, whole=True)
    one.apply()
    assert one.made() == one.bundle
    assert one.header.base_hash == ""


def test_what_an_attempt_has_left_makes_no_difference(one: Case) -> None:
    (one.folder / ("bundle" + NEW)).write_bytes(b"x" * 5_000_000)
    one.apply()
    assert one.made() == one.bundle


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 140), st.booleans())
def test_any_images(
    tmp_path_factory: pytest.TempPathFactory, seed: int, blocks: int, whole: bool
) -> None:
    one = case(tmp_path_factory.mktemp("any"), seed, blocks, whole=whole)
    one.apply()
    assert one.made() == one.bundle


def test_the_progress(one: Case) -> None:
    told: list[tuple[int, int]] = []
    apply(str(one.path), one.wanted, one.running, lambda *now: told.append(now))
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]
    assert 3 < len(told) <= 101


def test_hash_trees_are_told_piece_by_piece(one: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verity, "_READ", 4 * BLOCK)
    told: list[int] = []
    apply(str(one.path), one.wanted, one.running, lambda done, _total: told.append(done))
    steps = [then - now for now, then in pairwise(told)]
    assert sum(step <= 8 * BLOCK for step in steps) > 10
    assert told == sorted(told)


# -- what is refused


def test_a_node_without_slots(one: Case) -> None:
    def work() -> None:
        apply(str(one.path), one.wanted, None, lambda *_: None)

    refused(one, "no-base", "this node runs from no slot: take the whole", work)


def test_a_patch_for_another_base(one: Case) -> None:
    running = Running("ef" * 32, str(one.folder / "root"), str(one.folder / "boot"))

    def work() -> None:
        apply(str(one.path), one.wanted, running, lambda *_: None)

    refused(one, "other-base", "a change of root abababababab, and efefefefefef runs", work)


def test_a_base_that_is_too_short(one: Case) -> None:
    os.truncate(one.folder / "root", 5 * BLOCK)
    refused(one, "other-base", "root is shorter than what the patch is a change of")


def test_a_boot_slot_that_was_changed(one: Case) -> None:
    data = bytearray((one.folder / "boot").read_bytes())
    data[LINE[1]] ^= 1
    (one.folder / "boot").write_bytes(data)
    refused(one, "base-differs", "a file of the boot slot that runs was changed")


def test_a_root_that_was_changed(one: Case) -> None:
    """Nothing says so before, as dm-verity vouches for it; the bundle's hash does."""
    data = bytearray((one.folder / "root").read_bytes())
    data[10 * BLOCK] ^= 1
    (one.folder / "root").write_bytes(data)
    refused(one, "differs", "is not the bundle that is signed: take another patch")


def test_a_patch_to_another_bundle(one: Case) -> None:
    for wanted in (one.wanted._replace(size=5), one.wanted._replace(sha256="00" * 32)):

        def work(wanted: Wanted = wanted) -> None:
            apply(str(one.path), wanted, one.running, lambda *_: None)

        refused(one, "other-target", "the patch makes another bundle", work)


@pytest.mark.parametrize("kept", [0, 10, 18, 30, 400, -1])
def test_a_patch_that_is_cut_off(one: Case, kept: int) -> None:
    data = one.path.read_bytes()[:kept]
    one.path.write_bytes(data)
    refused(one, "bad-patch", "patch")


def test_a_patch_that_makes_more_or_less_than_it_says(one: Case) -> None:
    assert one.header.base is not None
    prefix = (one.folder / "root").read_bytes()[: one.header.base.root.size]
    prefix += bytes(one.header.base.size - len(prefix))
    body = body_of(one.header, one.bundle)
    one.path.write_bytes(packed(one.header, body + bytes(500_000_000 // 10), prefix))
    refused(one, "bad-patch", "it makes more than it says")
    one.path.write_bytes(packed(one.header, body[:-1], prefix))
    refused(one, "bad-patch", f"it makes {len(body) - 1} bytes in place of {len(body)}")


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_patch_that_is_garbled(one: Case, choice: st.DataObject) -> None:
    """It makes the bundle all the same, where what was changed does not matter, or nothing."""
    original = one.path.read_bytes()
    data = bytearray(original)
    at = choice.draw(st.integers(0, len(data) - 1))
    data[at] ^= choice.draw(st.integers(1, 255))
    one.path.write_bytes(data)
    try:
        one.apply()
    except PatchError:
        assert one.nothing_left()
    else:
        assert one.made() == one.bundle
        (one.folder / "bundle").unlink()
    finally:
        one.path.write_bytes(original)


def test_a_full_disk(one: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The room is taken before anything is made, so nothing is half written."""

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    refused(one, "no-space", r"the bundle takes 188\.0 KiB and .* free, of which 1\.0 MiB")


def test_some_room_stays_free(one: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a node writes while it installs has to go somewhere."""
    size = len(one.bundle)

    def disk(free: int) -> None:
        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=free, f_frsize=1))

    disk(size + SPARE - 1)
    refused(one, "no-space", r"of which 1\.0 MiB are kept")
    disk(size + SPARE)
    one.apply()
    assert one.made() == one.bundle


def test_the_whole_file_of_a_patch_is_read_from_disk(one: Case) -> None:
    one.path.unlink()
    refused(one, "failed", "patch: No such file")


# -- the header


def test_a_header_is_read_as_it_was_written(one: Case, tmp_path: Path) -> None:
    for header in (one.header, one.header._replace(base=None, trees=())):
        file = io.BytesIO(header.packed() + b"frame")
        assert patches.read(file) == header
        assert file.read() == b"frame"


def swapped(one: Case, old: str, new: str) -> bytes:
    start = len(patches.LINE) + 4
    text = one.header.packed()[start:].decode()
    assert old in text
    changed = text.replace(old, new, 1).encode()
    return patches.LINE + struct.pack(">I", len(changed)) + changed


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"base":', '"base": ', "in the one form"),
        ('"trees":', '"more":1,"trees":', "the header does not have these members alone"),
        ('"masks":[[5000,5600]]', '"masks":[[5600,5000]]', "end of a mask is no number"),
        ('"masks":[[5000,5600]]', '"masks":[[5000,5600],[5600,5601]]', "start of a mask"),
        ('"masks":[[5000,5600]]', '"masks":[[5000,99999999]]', "end of a mask"),
        ('"masks":[[5000,5600]]', '"masks":[[5000]]', "a mask is no list of 2 to 2"),
        (f'"hash":"{HASH}"', '"hash":"ab"', "hash of the base is not 64 hexadecimal digits"),
        ('"size":16384', '"size":16385', "no number of whole blocks"),
        ('"size":16384', '"size":1638400000', "boot image of the base is no number"),
        ('"start":0', '"start":4096', "start of a hash tree's data is no number"),
        (f'"salt":"{SALT}"', '"salt":""', "salt of a hash tree is not 64"),
        ('"at":', '"at":9', "place of a hash tree|does not fit|is no number"),
    ],
)  # fmt: skip
def test_a_header_out_of_bounds(one: Case, old: str, new: str, words: str) -> None:
    with pytest.raises(PatchError, match=words) as caught:
        patches.read(io.BytesIO(swapped(one, old, new)))
    assert caught.value.code == "bad-patch"


@given(st.binary(max_size=300))
def test_a_header_is_its_text_or_nothing(data: bytes) -> None:
    for start in (b"", patches.LINE, patches.LINE + struct.pack(">I", len(data))):
        try:
            found = patches.read(io.BytesIO(start + data))
        except PatchError:
            continue
        assert (start + data).startswith(found.packed())


# -- mapped files


@given(
    st.lists(st.tuples(st.integers(0, 59_999), st.integers(1, 20_000)), max_size=6),
    st.integers(1, 60_000),
)
def test_masks_are_zeros_and_nothing_else_is(masks: list[tuple[int, int]], size: int) -> None:
    data = Random(size).randbytes(size)
    expected = bytearray(data)
    mapped = Mapped(size)
    write(mapped, data)
    for at, length in masks:
        start, end = at, min(at + length, size)
        if start < end:
            mapped.mask(start, end)
            expected[start:end] = bytes(end - start)
    with mapped.view() as view:
        assert view.tobytes() == expected
    mapped.close()


# -- the process


async def test_a_process_of_its_own(one: Case) -> None:
    told: list[tuple[int, int]] = []
    await rebuilding.rebuild(
        str(one.path), one.wanted.path, one.target, one.running, lambda *now: told.append(now)
    )
    assert one.made() == one.bundle
    assert told[-1][0] == told[-1][1]


async def test_its_words(one: Case) -> None:
    with pytest.raises(PatchError, match="this node runs from no slot") as caught:
        await rebuilding.rebuild(str(one.path), one.wanted.path, one.target, None)
    assert caught.value.code == "no-base"
    assert one.nothing_left()


async def test_too_little_memory(one: Case) -> None:
    with pytest.raises(PatchError, match="not enough memory") as caught:
        await rebuilding.rebuild(
            str(one.path), one.wanted.path, one.target, one.running, memory=1 << 20
        )
    assert caught.value.code == "no-memory"
    assert one.nothing_left()


async def test_a_process_that_does_not_end(one: Case) -> None:
    one.path.unlink()
    os.mkfifo(one.path)  # whoever opens it waits
    with pytest.raises(PatchError, match=r"has not ended within 0\.2 s") as caught:
        await rebuilding.rebuild(
            str(one.path), one.wanted.path, one.target, one.running, longest=0.2
        )
    assert caught.value.code == "failed"


async def test_interrupted_it_leaves_nothing(one: Case) -> None:
    """Wherever it is by then."""
    begun = asyncio.Event()
    task = asyncio.create_task(
        rebuilding.rebuild(
            str(one.path), one.wanted.path, one.target, one.running, lambda *_: begun.set()
        )
    )
    await begun.wait()
    task.cancel()
    await asyncio.wait({task})
    assert one.nothing_left() or one.made() == one.bundle


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        (signal.SIGBUS, "card", "the card cannot be read or written"),
        (signal.SIGKILL, "no-memory", "there was not enough memory"),
        (signal.SIGSEGV, "failed", "ended with signal 11"),
    ],
)
async def test_a_process_that_dies(
    one: Case, how: signal.Signals, code: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real process, ended by a real signal while it waits for its patch."""
    one.path.unlink()
    os.mkfifo(one.path)
    spawn = asyncio.create_subprocess_exec
    started: asyncio.Future[asyncio.subprocess.Process] = asyncio.Future()

    async def noted(*words: str, **how: object) -> asyncio.subprocess.Process:
        child = await spawn(*words, **how)  # type: ignore[arg-type]
        started.set_result(child)
        return child

    monkeypatch.setattr(asyncio, "create_subprocess_exec", noted)
    task = asyncio.create_task(
        rebuilding.rebuild(str(one.path), one.wanted.path, one.target, one.running)
    )
    (await started).send_signal(how)
    with pytest.raises(PatchError, match=words) as caught:
        await task
    assert caught.value.code == code
    assert one.nothing_left()


def test_what_a_node_runs_from(tmp_path: Path) -> None:
    paths = Paths(str(tmp_path))
    assert rebuilding.running(paths) is None
    (tmp_path / "proc").mkdir()
    line = (
        "console=serial0,115200 quiet panic=10 root=/dev/dm-0 rootfstype=erofs ro rootwait "
        'dm-mod.waitfor=PARTUUID=5448434b-06 dm-mod.create="root,,,ro,0 80000 verity 1 '
        "PARTUUID=5448434b-06 PARTUUID=5448434b-06 4096 4096 10000 10000 sha256 "
        f'{HASH} {SALT} 1 panic_on_corruption" thicket.slot=B'
    )
    Path(paths.cmdline).write_text(line)
    folder = f"{tmp_path}/dev/slots"
    assert rebuilding.running(paths) == Running(HASH, f"{folder}/root-b", f"{folder}/boot-b")
    Path(paths.cmdline).write_text(line.replace("thicket.slot=B", ""))
    assert rebuilding.running(paths) is None


def test_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert applying.main(["too", "few"]) == 2
    assert "usage: apply MEMORY PATCH OUT" in capsys.readouterr().err

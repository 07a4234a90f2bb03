# SPDX-License-Identifier: Apache-2.0
"""What is kept of an update on the card: power cuts, damage and full cards cost little."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thicket.distribution.etf import decode, encode
from thicket.update import messages, store
from thicket.update.messages import Data, Get, Has, Have, No, Offered, Piece, Records
from thicket.update.offer import CHUNK, Patch, describe
from thicket.update.store import Held, Store, StoreError, everything


def patch_of(size: int, base: str = "") -> tuple[Patch, bytes, bytes]:
    """A patch, its chunk list, and its bytes."""
    data = random.Random(size).randbytes(size)
    patch, listed = describe(io.BytesIO(data), base)
    return patch, listed, data


PATCH, LISTED, DATA = patch_of(3 * CHUNK + 100)


def chunk(number: int) -> bytes:
    return DATA[number * CHUNK : (number + 1) * CHUNK]


def test_a_patch_grows_and_is_there_after_a_restart(tmp_path: Path) -> None:
    kept = Store(str(tmp_path / "update"))
    assert kept.open(PATCH) is None
    held = kept.begin(PATCH, LISTED)
    assert held.have == held.size == 0
    for number in (3, 1):
        assert held.is_right(number, chunk(number))
        held.write(number, chunk(number))
    assert held.size == CHUNK + 100
    again = kept.open(PATCH)
    assert again is not None
    assert again.have == 0b1010
    for number in (0, 2):
        again.write(number, chunk(number))
    assert again.complete
    again.finish()
    assert Path(again.path).read_bytes() == DATA
    assert [again.read(number) for number in range(5)] == [*map(chunk, range(4)), None]
    assert again.part_of_list(0) == LISTED
    assert again.part_of_list(1) == again.part_of_list(-1) == b""


def test_nothing_waits_for_the_card_before_the_patch_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def counted(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").readlink().name)

    monkeypatch.setattr(os, "fsync", counted)
    kept = Store(str(tmp_path / "update"))
    with pytest.raises(StoreError, match="does not take it"):
        kept.settle()
    kept.keep(b"an offer", [PATCH])
    held = kept.begin(PATCH, LISTED)
    for number in range(4):
        held.write(number, chunk(number))
    assert synced == []
    kept.settle()
    assert synced == ["offer", "update"]
    held.finish()
    assert synced[2:] == [f"{PATCH.sha256}.patch", f"{PATCH.sha256}.list", "update"]


def test_the_list_of_one_chunk_follows_from_the_offer() -> None:
    one, listed, _data = patch_of(100)
    assert store.list_of(one) == listed
    assert store.list_of(PATCH) is None
    assert store.list_of(one._replace(chunks="0" * 64)) is None


def test_damage_costs_the_chunks_that_are_damaged(tmp_path: Path) -> None:
    kept = Store(str(tmp_path))
    (tmp_path / "from").write_bytes(DATA)
    held = kept.adopt(str(tmp_path / "from"), PATCH, LISTED)
    assert held.complete
    with Path(held.path).open("r+b") as file:
        file.seek(2 * CHUNK + 7)
        file.write(b"x" if DATA[2 * CHUNK + 7 : 2 * CHUNK + 8] != b"x" else b"y")
    assert held.read(1) == chunk(1)
    assert held.read(2) is None
    assert held.have == 0b1011
    again = kept.open(PATCH)
    assert again is not None
    assert again.have == 0b1011
    Path(held.path).write_bytes(DATA[:CHUNK])
    again.look()
    assert again.have == 1
    Path(held.path).unlink()
    again.look()
    assert again.have == 0
    with pytest.raises(StoreError, match="does not take it"):
        again.write(0, chunk(0))
    assert held.read(0) is None


def test_what_is_lost_while_it_is_finished_is_fetched_again(tmp_path: Path) -> None:
    kept = Store(str(tmp_path))
    held = kept.begin(PATCH, LISTED)
    held.have = everything(PATCH)
    with pytest.raises(StoreError, match="lost parts") as caught:
        held.finish()
    assert caught.value.code == store.NOT_KEPT
    assert held.have == 0


def test_an_offer_that_names_two_different_files_is_of_no_use(tmp_path: Path) -> None:
    kept = Store(str(tmp_path))
    wrong = PATCH._replace(sha256="0" * 64)
    held = kept.begin(wrong, LISTED)
    for number in range(4):
        held.write(number, chunk(number))
    with pytest.raises(StoreError, match="make the offer anew") as caught:
        held.finish()
    assert caught.value.code == store.WRONG


def test_a_wrong_list_or_file_is_refused(tmp_path: Path) -> None:
    kept = Store(str(tmp_path))
    for wrong in (LISTED[:-1], LISTED + b"x", bytes(len(LISTED))):
        with pytest.raises(StoreError, match="not the one that was signed"):
            kept.begin(PATCH, wrong)
    (tmp_path / "other").write_bytes(DATA[::-1])
    with pytest.raises(StoreError, match="changed meanwhile"):
        kept.adopt(str(tmp_path / "other"), PATCH, LISTED)
    (tmp_path / f"{PATCH.sha256}.list").write_bytes(LISTED[::-1])
    assert kept.open(PATCH) is None


def test_a_full_card_gives_words_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Store(str(tmp_path))
    real = os.statvfs(tmp_path)

    class Full:
        f_bavail = (store.RESERVE + 1000) // real.f_frsize
        f_frsize = real.f_frsize

    monkeypatch.setattr(os, "statvfs", lambda _path: Full)
    with pytest.raises(StoreError, match="remove something from /data") as caught:
        kept.begin(PATCH, LISTED)
    assert caught.value.code == store.NO_ROOM
    assert list(tmp_path.iterdir()) == []


def test_patches_take_so_much_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Store(str(tmp_path))
    kept.begin(PATCH, LISTED)
    monkeypatch.setattr(store, "MOST_BYTES", PATCH.size + 5 * CHUNK)
    other, listed, _ = patch_of(8 * CHUNK)
    with pytest.raises(StoreError, match="fewer or smaller"):
        kept.begin(other, listed)
    kept.begin(PATCH, LISTED)  # it is there already
    kept.drop(PATCH)
    kept.begin(other, listed)


def test_a_newer_offer_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    kept = Store(str(tmp_path / "update"))
    assert kept.offer() == b""
    kept.keep(b"one", [PATCH])
    kept.begin(PATCH, LISTED)
    kept.keep(b"two", [PATCH])
    assert kept.open(PATCH) is not None
    other, listed, _ = patch_of(5)
    kept.keep(b"three", [other])
    assert kept.offer() == b"three"
    assert kept.open(PATCH) is None
    assert [path.name for path in (tmp_path / "update").iterdir()] == ["offer"]
    kept.begin(other, listed)
    (tmp_path / "update/offer").write_bytes(bytes(70_000))
    assert kept.offer() == b""


@given(st.integers(1, 5 * CHUNK), st.integers(0, 5))
def test_chunks_make_the_patch(size: int, number: int) -> None:
    patch = Patch("", size, "", "")
    lengths = [store.length(patch, at) for at in range(patch.chunk_count)]
    assert sum(lengths) == size
    assert all(0 < one <= CHUNK for one in lengths)
    assert store.length(patch, patch.chunk_count + number) == store.length(patch, -1) == 0
    held = Held("", patch, b"")
    held.have = everything(patch)
    assert held.size == size


# -- messages

ID = st.binary(min_size=32, max_size=32)
PIECE = st.builds(
    Piece, st.integers(0, 15), st.sampled_from(["chunk", "list"]), st.integers(0, 16383)
)
BITS = st.integers(0, (1 << 300) - 1)
MESSAGE = st.one_of(
    st.just(Have(0, b"")),
    st.builds(Have, st.integers(1, (1 << 32) - 1), ID),
    st.builds(Offered, st.binary(max_size=300)),
    st.builds(Has, ID, st.dictionaries(st.integers(0, 15), BITS).map(lambda d: tuple(d.items()))),
    st.builds(Get, ID, PIECE),
    st.builds(Data, ID, PIECE, st.binary(max_size=300)),
    st.builds(No, ID, PIECE, st.integers(0, messages.MAX_WAIT)),
    st.builds(Records, st.lists(st.binary(max_size=600), min_size=1, max_size=32).map(tuple)),
)


SUBJECT = st.from_regex(r"(image|app)/[a-z0-9_-]{1,64}", fullmatch=True)


@given(SUBJECT, MESSAGE)
def test_messages_there_and_back(subject: str, message: messages.Message) -> None:
    assert messages.read(decode(encode(messages.term(message)))) == message
    wrapped = decode(encode(messages.wrap(subject, message)))
    assert messages.unwrap(wrapped) == (subject, message)


@pytest.mark.parametrize(
    "subject",
    [b"", b"app/", b"app", b"image/A", b"image/a/b", b"app/" + b"a" * 65, b"other/a", b"app/a\n"],
)
def test_what_is_no_subject(subject: bytes) -> None:
    assert messages.unwrap((subject, ("have", 0, b""))) is None
    assert messages.unwrap(("app/a", ("have", 0, b""))) is None
    assert messages.unwrap(("have", 0, b"")) is None


@given(
    st.recursive(st.one_of(st.integers(), st.binary(max_size=40), st.text(max_size=5)), st.lists)
)
def test_what_is_no_message_is_none(term: object) -> None:
    for words in ((), ("have",), ("has", bytes(32)), ("get", bytes(32), 0, "chunk"), ("records",)):
        found = messages.read((*words, term))
        assert found is None or messages.read(messages.term(found)) == found


def test_bounds_of_messages() -> None:
    one = bytes(32)
    for wrong in (
        ("have", 1, b""),
        ("have", 0, one),
        ("have", 1 << 32, one),
        ("have", True, one),
        ("offer", bytes(65537)),
        ("has", one, [(0, b"a"), (0, b"b")]),
        ("has", one, [(16, b"a")]),
        ("has", one, [(0, bytes(2049))]),
        ("has", one, [(0, b"")] * 17),
        ("get", one, 0, "other", 0),
        ("get", one, 0, "chunk", 16384),
        ("get", one[1:], 0, "chunk", 0),
        ("data", one, 0, "chunk", 0, bytes(CHUNK + 1)),
        ("no", one, 0, "chunk", 0, -1),
        ("records", []),
        ("records", [b"a"] * (messages.MAX_RECORDS + 1)),
        ("records", [bytes(messages.MAX_RECORD + 1)]),
    ):
        assert messages.read(wrong) is None, wrong

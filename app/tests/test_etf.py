# SPDX-License-Identifier: Apache-2.0
"""Terms: against bytes that Erlang made, against a running Erlang, and against nonsense."""

from __future__ import annotations

import random
import subprocess
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from erlang import program
from hypothesis import given, settings
from hypothesis import strategies as st

from thicket.distribution import etf
from thicket.distribution.etf import (
    Atom,
    BitString,
    DecodeError,
    EncodeError,
    Export,
    FrozenList,
    FrozenMap,
    Fun,
    ImproperList,
    PairMap,
    Pid,
    Port,
    Reference,
    decode,
    encode,
)

NOBODY = Atom("nonode@nohost")
REFERENCE = Reference(NOBODY, 0, (3, 2, 1))

# Made by term_to_binary/1 of OTP 25.2.3.
FROM_ERLANG: list[tuple[str, Any]] = [
    ("836100", 0),
    ("8361FF", 255),
    ("836200000100", 256),
    ("8362FFFFFFFF", -1),
    ("83627FFFFFFF", 2147483647),
    ("836E040101000080", -2147483649),
    ("836E0900000000000000000001", 1 << 64),
    ("836E08010000000000000080", -(1 << 63)),
    ("836F0000010100" + "00" * 256 + "01", 1 << 2048),
    ("83463FF8000000000000", 1.5),
    ("83468000000000000000", -0.0),
    ("834601A56E1FC2F8F359", 1.0e-300),
    ("8364000474727565", True),
    ("836400036E696C", None),
    ("83640009756E646566696E6564", Atom("undefined")),
    ("83640001E5", Atom("å")),
    ("837704C3A5CEBB", Atom("åλ")),
    ("837601FE" + "CEBB" * 255, Atom("λ" * 255)),
    ("836D00000000", b""),
    ("836D00000003010203", b"\x01\x02\x03"),
    ("834D0000000103A0", BitString(b"\xa0", 3)),
    ("834D00000002020180", BitString(b"\x01\x80", 2)),
    ("836A", []),
    ("836B0003616263", [97, 98, 99]),
    ("836C000000036101610262000001006A", [1, 2, 256]),
    ("836C000000016400016164000162", ImproperList((Atom("a"),), Atom("b"))),
    ("836C00000002610161026103", ImproperList((1, 2), 3)),
    ("836800", ()),
    ("8368026400026F6B6A", (Atom("ok"), [])),
    ("836900000100" + "6101" * 256, (1,) * 256),
    ("837400000000", {}),
    ("837400000001640001616101", {Atom("a"): 1}),
    (
        "837400000002610164000161463FF000000000000064000162",
        PairMap([(1, Atom("a")), (1.0, Atom("b"))]),
    ),
    ("8374000000016B00010164000178", {FrozenList([1]): Atom("x")}),
    (
        "8374000000017400000001640001616C00000001640001626A64000179",
        {FrozenMap([(Atom("a"), FrozenList([Atom("b")]))]): Atom("y")},
    ),
    ("83716400056C69737473640004736F72746101", Export(Atom("lists"), Atom("sort"), 1)),
    ("835864000D6E6F6E6F6465406E6F686F73740000004D0000000300000000", Pid(NOBODY, 77, 3, 0)),
    ("835864000161000000010000000200000003", Pid(Atom("a"), 1, 2, 3)),
    ("835964000D6E6F6E6F6465406E6F686F73740000000500000000", Port(NOBODY, 5, 0)),
    ("837864000161000001000000000000000005", Port(Atom("a"), 1 << 40, 5)),
    (
        "835A000364000D6E6F6E6F6465406E6F686F737400000000000000030000000200000001",
        REFERENCE,
    ),
    (
        "836C00000001640005616C6961735A000364000D6E6F6E6F6465406E6F686F7374"
        "00000000000000030000000200000001",
        ImproperList((Atom("alias"),), REFERENCE),
    ),
    # term_to_binary(1.5, [{minor_version, 0}])
    ("8363312E3530303030303030303030303030303030303030652B30300000000000", 1.5),
]


def same(a: Any, b: Any) -> bool:
    """Tell whether two terms are the same for Erlang: 1 is neither 1.0 nor True."""
    if type(a) is not type(b):
        return False
    if type(a) in (tuple, list, FrozenList):
        return len(a) == len(b) and all(map(same, a, b))
    if type(a) is dict or isinstance(a, PairMap):
        pairs = [sorted(((encode(k), v) for k, v in items(m)), key=lambda p: p[0]) for m in (a, b)]
        return len(a) == len(b) and all(
            k == m and same(v, w) for (k, v), (m, w) in zip(*pairs, strict=True)
        )
    if type(a) is ImproperList:
        return same(a.items, b.items) and same(a.tail, b.tail)
    return bool(a == b)


def items(term: Any) -> Any:
    return term.items() if type(term) is dict else term.pairs


# --- random terms -----------------------------------------------------------------------------

atoms = st.text(st.characters(exclude_categories=["Cs"]), max_size=255).map(Atom)
u32 = st.integers(0, 0xFFFFFFFF)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(1 << 2100), 1 << 2100),
    st.floats(allow_nan=False, allow_infinity=False),
    st.binary(),
    st.text(st.characters(exclude_categories=["Cs"])),
    atoms.filter(lambda atom: atom not in ("true", "false", "nil")),
    st.builds(Pid, atoms, u32, u32, u32),
    st.builds(Port, atoms, st.integers(0, (1 << 64) - 1), u32),
    st.builds(Reference, atoms, u32, st.lists(u32, min_size=1, max_size=5).map(tuple)),
    st.builds(Export, atoms, atoms, st.integers(0, 255)),
    st.builds(Fun, st.binary(min_size=1)),
    st.builds(BitString, st.binary(min_size=1), st.integers(1, 7)),
)
keys = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(tuple), st.lists(inner, max_size=4).map(FrozenList)
    ),
    max_leaves=5,
)
terms = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.dictionaries(keys, inner),
        st.lists(inner, min_size=1).flatmap(
            lambda items: leaves.map(lambda tail: ImproperList(tuple(items), tail))
        ),
    ),
    max_leaves=30,
)


def reread(term: Any) -> bool:
    return same(decode(encode(term, text=True)), term)


@given(terms)
def test_round_trip(term: Any) -> None:
    assert reread(term)


@pytest.mark.parametrize(("data", "term"), FROM_ERLANG, ids=lambda value: repr(value)[:40])
def test_what_erlang_made(data: str, term: Any) -> None:
    raw = bytes.fromhex(data)
    assert same(decode(raw), term)
    assert same(decode(encode(term)), term)
    # Byte for byte what Erlang makes, but for atoms: OTP 25 prefers Latin-1 (tag 100) for
    # itself, OTP 26 and every connection UTF-8.
    if b"d\0" not in raw and raw[1] != etf.FLOAT_TEXT:
        assert encode(term) == raw


def test_a_list_without_items_is_its_tail() -> None:
    # as binary_to_term/1 of OTP 25.2.3 has it; nobody makes one
    for data, term in (
        ("836C000000006101", 1),
        ("836C000000006A", []),
        ("836C000000006C0000000161016102", ImproperList((1,), 2)),
    ):
        assert same(decode(bytes.fromhex(data)), term)


def test_an_opaque_fun_is_kept_as_it_came() -> None:
    # term_to_binary(fun(X) -> X end) of OTP 25.2.3
    raw = bytes.fromhex(
        "8370000000A001065361AA461590D1BDF1EB62D1A6EB080000002A0000000164000865726C5F6576616C612A"
        "6200329B0D5864000D6E6F6E6F6465406E6F686F7374000000090000000000000000680661066A6400046E6F"
        "6E656400046E6F6E6574000000006C000000016805640006636C6175736561066C0000000168036400037661"
        "726106640001586A6A6C0000000168036400037661726106640001586A6A"
    )
    assert type(decode(raw)) is Fun
    assert encode(decode(raw)) == raw


# term_to_binary(lists:duplicate(100, a), [compressed]) of OTP 25.2.3
COMPRESSED = bytes.fromhex("835000000196789CCB616060484961604C1CC5830767010030464E93")


def test_compressed_terms_are_bounded() -> None:
    assert decode(COMPRESSED) == [Atom("a")] * 100
    refused(COMPRESSED[:1] + b"P\xff\xff\xff\xff" + COMPRESSED[6:], "limit")
    refused(COMPRESSED[:5] + b"\x95" + COMPRESSED[6:], "405 bytes it says")
    refused(COMPRESSED[:5] + b"\x97" + COMPRESSED[6:], "407 bytes it says")
    refused(COMPRESSED[:-1] + b"\0", "damaged")
    refused(COMPRESSED[:-9], "406 bytes it says")
    refused(COMPRESSED + b"x", "1 bytes follow")
    refused(COMPRESSED[:5], "early")
    refused(b"\x83l\0\0\0\x01" + COMPRESSED[1:] + b"j", "inside")
    with pytest.raises(DecodeError, match="limit 405"):
        decode(COMPRESSED, max_uncompressed=405)
    # A bomb: a gigabyte of zeros that says it is small is looked at up to what it says.
    bomb = zlib.compressobj(9)
    packed = b"".join(bomb.compress(bytes(1 << 20)) for _ in range(1024)) + bomb.flush()
    tracemalloc.start()
    try:
        refused(b"\x83P\0\0\xff\xff" + packed, "65535 bytes it says")
        assert tracemalloc.get_traced_memory()[1] < 4 * len(packed)  # not 1000 times as much
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=100))
def test_arbitrary_compressed_bytes(data: bytes) -> None:
    for raw in (data, zlib.compress(data)):
        try:
            decode(b"\x83P" + len(data).to_bytes(4, "big") + raw)
        except DecodeError:
            continue


@given(terms, st.integers(1, 9))
def test_compressed_round_trip(term: Any, level: int) -> None:
    packed = encode(term, text=True, compress=level)
    assert same(decode(packed), term)
    assert len(packed) <= len(encode(term, text=True))


def test_identifiers_of_nodes_of_long_ago() -> None:
    """Tags 101, 102, 103 and 114, which binary_to_term still reads; the creation has 8 bits."""
    name = b"w\x01a"
    for raw, term in (
        (b"g" + name + b"\0\0\0\x01\0\0\0\x02\x03", Pid(Atom("a"), 1, 2, 3)),
        (b"f" + name + b"\0\0\0\x01\x02", Port(Atom("a"), 1, 2)),
        (b"e" + name + b"\0\0\0\x01\x02", Reference(Atom("a"), 2, (1,))),
        (
            b"r\0\x03" + name + b"\x02\0\0\0\x01\0\0\0\x05\0\0\0\x06",
            Reference(Atom("a"), 2, (1, 5, 6)),
        ),
    ):
        assert same(decode(b"\x83" + raw), term)
        for size in range(len(raw)):
            refused(b"\x83" + raw[:size])


def test_text_is_told_from_bytes_between_our_nodes_and_is_a_binary_for_all_others() -> None:
    texts = ["", "grün", "a" * 70, "漢" * 30000]
    raw = [encode(text, text=True) for text in texts]
    assert [decode(data) for data in raw] == texts
    assert all(type(decode(data)) is str for data in raw)
    assert [encode(text) for text in texts] == [encode(text.encode()) for text in texts]
    # A stranger may claim that anything is text.
    assert decode(b"\x83M\0\0\0\x01\x08\xff") == b"\xff"


# --- a running Erlang -------------------------------------------------------------------------


def read(path: Path) -> list[bytes]:
    data = path.read_bytes()
    found = []
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        found.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return found


def write(path: Path, encoded: list[bytes]) -> None:
    path.write_bytes(b"".join(len(data).to_bytes(4, "big") + data for data in encoded))


def erlang(*arguments: str | Path) -> str:
    script = Path(__file__).with_name("erlang_terms.escript")
    done = subprocess.run(
        [program("escript"), script, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_erlangs_random_terms_come_back_equal(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    erlang("generate", "10000", "1", theirs)
    decoded = [decode(data) for data in read(theirs)]
    assert len(decoded) == 10000
    kinds = {type(term) for term in decoded}
    assert {tuple, list, dict, PairMap, ImproperList, Pid, Port, Reference, Fun, Export} <= kinds
    write(ours, [encode(term) for term in decoded])
    assert erlang("compare", theirs, ours) == "10000\n"


def a_term(chance: random.Random, depth: int) -> Any:
    """Make a random term."""

    def some() -> list[Any]:
        return [a_term(chance, depth - 1) for _ in range(chance.randrange(5))]

    def number() -> int:
        return chance.getrandbits(32)

    def atom() -> Atom:
        letters = chance.choices("abcxyz_@ åλ漢😀", k=chance.randrange(1, 60))
        return Atom("".join(letters))

    makers: list[Callable[[], Any]] = [
        lambda: chance.randrange(-300, 300),
        lambda: chance.getrandbits(chance.randrange(1, 2100)) * chance.choice((1, -1)),
        lambda: chance.uniform(-1e9, 1e9),
        lambda: chance.choice((True, False, None, [], (), {}, b"")),
        atom,
        lambda: chance.randbytes(chance.randrange(50)),
        lambda: BitString(chance.randbytes(3), chance.randrange(1, 8)),
        # OTP 25 knows 28 bits of a pid's number, and its first reference word has 18.
        lambda: Pid(Atom("n@fd12::1"), number() >> 4, number(), number()),
        lambda: Port(Atom("n@fd12::1"), chance.getrandbits(64), number()),
        lambda: Reference(Atom("n@fd12::1"), number(), (number() >> 14, number(), number())),
        lambda: Export(Atom("m"), atom(), chance.randrange(256)),
        lambda: list(chance.randbytes(chance.randrange(300))),
    ]
    if depth > 0:
        makers += 2 * [
            some,
            lambda: tuple(some()),
            lambda: tuple([a_term(chance, 0)] * chance.randrange(300)),
            lambda: {
                (i, chance.choice((1, b"x", Atom("k")))): a_term(chance, depth - 1)
                for i in range(chance.randrange(5))
            },
            lambda: ImproperList((a_term(chance, depth - 1),), chance.choice((1, b"t"))),
            lambda: {FrozenList((1, FrozenMap([(1, b"")]))): 1, 2: 3},
        ]
    return chance.choice(makers)()


def test_our_random_terms_come_back_equal(tmp_path: Path) -> None:
    chance = random.Random(2)
    made = [a_term(chance, 5) for _ in range(10000)]
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    write(ours, [encode(term) for term in made])
    erlang("echo", ours, theirs)
    for term, data in zip(made, read(theirs), strict=True):
        assert same(decode(data), term), term


# --- values without a form --------------------------------------------------------------------


class Text(str):
    """A str that is no Atom."""

    __slots__ = ()


class Nothing:
    """An object that no form is known for."""

    def __repr__(self) -> str:
        return "Nothing()"  # a test's name, which has to be the same in every process


@pytest.mark.parametrize(
    "term",
    [
        float("nan"),
        float("inf"),
        {1, 2},
        Nothing(),
        1j,
        Text("x"),
        "\ud800",
        Atom("\ud800"),
        Atom("x" * 256),
        Pid(Atom("a"), 1 << 32, 0, 0),
        Pid(Atom("a"), -1, 0, 0),
        Port(Atom("a"), 1 << 64, 0),
        Reference(Atom("a"), 0, ()),
        Reference(Atom("a"), 0, (1,) * 6),
        Export(Atom("m"), Atom("f"), 256),
    ],
    ids=repr,
)
def test_what_has_no_form_is_refused(term: Any) -> None:
    for whole in (term, [term], {1: (term,)}):
        with pytest.raises(EncodeError, match=r".") as caught:
            encode(whole)
        assert len(str(caught.value)) < 200


def test_other_values_that_are_sent() -> None:
    assert decode(encode(bytearray(b"abc"))) == b"abc"
    assert decode(encode(memoryview(b"abc"))) == b"abc"
    assert type(decode(encode(Atom("true")))) is bool
    assert encode([True, 1]) != encode([1, 1])  # not the string form


def test_impossible_values_cannot_be_made() -> None:
    for bits in (0, 8):
        with pytest.raises(ValueError, match="bits"):
            BitString(b"a", bits)
    with pytest.raises(ValueError, match="bits"):
        BitString(b"", 1)
    with pytest.raises(ValueError, match="one item"):
        ImproperList((), 1)


def test_what_contains_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(EncodeError, match="holds itself"):
        encode(endless)
    wide: list[Any] = []
    wide.extend([wide, wide])
    with pytest.raises(EncodeError, match="deeper"):
        encode(wide)
    shared: list[Any] = [1]
    for _ in range(100):  # 2^100 elements in 100 lists
        shared = [shared, shared]
    with pytest.raises(EncodeError, match="elements"):
        encode(shared)


def test_identifiers_compare_by_value() -> None:
    values: list[Any] = [
        Pid(NOBODY, 1, 2, 3),
        Port(NOBODY, 1, 2),
        REFERENCE,
        Export(NOBODY, NOBODY, 1),
        Fun(b"x"),
        BitString(b"x", 3),
        ImproperList((1,), 2),
        FrozenList([1]),
        FrozenMap([(1, 2)]),
        PairMap([(1, 2), (1.0, 3)]),
    ]
    for value in values:
        copy = decode(encode(value))
        if type(value) not in (FrozenList, FrozenMap):
            assert copy == value
        if type(value) not in (FrozenList, FrozenMap, PairMap):
            assert hash(copy) == hash(value)
        assert value != "something else"
        assert [other for other in values if other == value] == [value]
        assert type(value).__name__ in repr(value)
    assert FrozenList([1]) != (1,)
    assert PairMap([(1, 2), (1.0, 3)]) == PairMap([(1.0, 3), (1, 2)])


# --- nonsense ---------------------------------------------------------------------------------


def refused(data: bytes, match: str = r".") -> None:
    with pytest.raises(DecodeError, match=match):
        decode(data)


@given(st.binary(max_size=300))
@settings(max_examples=1000)
def test_arbitrary_bytes(data: bytes) -> None:
    for attempt in (data, b"\x83" + data):
        try:
            term = decode(attempt)
        except DecodeError:
            continue
        assert reread(term)


@given(terms, st.data())
@settings(max_examples=300)
def test_damaged_terms(term: Any, data: st.DataObject) -> None:
    raw = bytearray(encode(term))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    try:
        found = decode(bytes(raw))
    except DecodeError:
        return
    assert reread(found)


@given(terms)
def test_every_shortened_term_is_refused(term: Any) -> None:
    raw = encode(term)
    for size in {0, 1, len(raw) // 2, len(raw) - 1}:
        refused(raw[:size])
    refused(raw + b"\0", "follow")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "begins"),
        (b"\x82a\0", "begins"),
        (b"\x83", "too early"),
        (b"\x83R\0", "cache"),
        (b"\x83y", "local"),
        (b"\x83u", "OTP 23"),
        (b"\x83\0", "unknown tag"),
        (b"\x83F\x7f\xf0" + bytes(6), "inf"),
        (b"\x83F\x7f\xf8" + bytes(6), "nan"),
        (b"\x83c" + b"nan".ljust(31, b"\0"), "number"),
        (b"\x83c" + b"1_0".ljust(31, b"\0"), "number"),
        (b"\x83c" + b"1e999".ljust(31, b"\0"), "range"),
        (b"\x83c" + b"1-1".ljust(31, b"\0"), "number"),
        (b"\x83w\x01\xff", "UTF-8"),
        (b"\x83v\x01\x00" + b"a" * 256, "256 characters"),
        (b"\x83M\0\0\0\x01\x09a", "bit string"),
        (b"\x83M\0\0\0\x00\x01", "bit string"),
        (b"\x83M\0\0\0\x01\x00a", "bit string"),
        (b"\x83Z\0\0w\x01a\0\0\0\0", "reference of 0"),
        (b"\x83Z\0\x06w\x01a" + bytes(28), "reference of 6"),
        (b"\x83Xa\x01" + bytes(12), "node name"),
        (b"\x83qw\x01ma\x01a\x01", "name"),
        (b"\x83qw\x01mw\x01fw\x01a", "arity"),
        (b"\x83qw\x01mw\x01fb\0\0\x01\0", "arity"),
        (b"\x83p\0\0\0\x04", "without a body"),
        (b"\x83p\0\0\0\x00", "without a body"),
        (b"\x83t\0\0\0\x02a\x01a\x02a\x01a\x03", "same key"),
        (b"\x83t\0\0\0\x02k\0\x01aa\x02k\0\x01aa\x03", "same key"),
    ],
    ids=repr,
)
def test_what_is_refused_and_why(data: bytes, words: str) -> None:
    refused(data, words)


def test_names_that_are_words() -> None:
    """A node, a module or a function may be called true, false or nil, and that stays without
    effect on the words themselves."""
    for word in ("true", "false", "nil"):
        for term in (Pid(Atom(word), 1, 2, 3), Export(Atom(word), Atom(word), 1)):
            assert same(decode(encode(term)), term)
            found = decode(encode(term))
            assert type(getattr(found, "node", None) or found.module) is Atom
    assert decode(encode([True, False, None])) == [True, False, None]


def test_an_improper_list_in_pieces_is_put_together() -> None:
    # [1 | [2 | [3 | 4]]] and [1 | [2 | "ab"]], each list of one element
    assert decode(
        b"\x83" + b"l\0\0\0\x01a\x01" + b"l\0\0\0\x01a\x02" + b"l\0\0\0\x01a\x03a\x04"
    ) == (ImproperList((1, 2, 3), 4))
    one, two = b"l\0\0\0\x01a\x01", b"l\0\0\0\x01a\x02"
    three = b"l\0\0\0\x01a\x03"
    assert decode(b"\x83" + one + two + three + b"a\x04") == ImproperList((1, 2, 3), 4)
    assert decode(b"\x83" + one + two + b"k\0\x02ab") == [1, 2, 97, 98]
    assert decode(b"\x83l\0\0\0\0j") == []


def test_depth_is_bounded_without_python_s_stack() -> None:
    refused(b"\x83" + b"h\x01" * 1_000_000 + b"a\0", "deeper")
    refused(b"\x83" + b"l\0\0\0\x01" * 100_000, "deeper|early")
    deep = b"\x83" + b"h\x01" * 100_000 + b"a\0"
    term = decode(deep, max_depth=1_000_000)
    assert encode(term, max_depth=1_000_000) == deep
    while term != 0:  # taken apart here, as Python's own recursion has limits
        (term,) = term
    key = b"t\0\0\0\x01" + b"l\0\0\0\x01" * 80 + b"a\0" + b"j" * 80 + b"a\0"
    refused(b"\x83" + key, "key is nested")


@pytest.mark.parametrize("levels", [20, 60, 500])
@pytest.mark.parametrize("pairs", ["t\0\0\0\1", "t\0\0\0\3a\1a\1F?ð\0\0\0\0\0\0a\1"])
def test_maps_as_keys_of_maps_as_keys_cost_no_more_than_their_size(levels: int, pairs: str) -> None:
    """Each level would be encoded again: 200 kB took five seconds."""
    count = 50_000
    inner = b"l" + count.to_bytes(4, "big") + b"a\1" * count + b"j"
    begin = pairs.encode("latin-1")
    refused(b"\x83" + begin * levels + inner + b"a\1" * levels, "too deeply for their size")
    few = b"\x83" + begin * 20 + b"j" + b"a\1" * 20
    assert encode(decode(encode(decode(few)))) == encode(decode(few))


def test_counts_that_the_bytes_cannot_hold() -> None:
    for head in (b"l", b"i", b"t", b"m", b"o", b"M"):
        refused(b"\x83" + head + b"\xff\xff\xff\xff" + b"\0" * 50)
        refused(b"\x83" + head + b"\x00\x0f\xff\xff" + b"\0" * 50)


def test_memory_is_bounded_by_the_number_of_elements() -> None:
    limit = 100_000
    flood = b"\x83i" + (300_000).to_bytes(4, "big") + b"j" * 300_000
    nested = b"\x83i\0\0\x10\0" + (b"i\0\0\x10\0" + b"j" * 4096) * 4096
    texts = b"\x83i\0\0\1\0" + (b"k\xff\xff" + bytes(65535)) * 256
    tracemalloc.start()
    try:
        for data in (flood, nested, texts):
            with pytest.raises(DecodeError, match="more than 100000"):
                decode(data, max_terms=limit)
        assert tracemalloc.get_traced_memory()[1] < 250 * limit
    finally:
        tracemalloc.stop()


def test_keys_that_were_chosen_to_collide() -> None:
    """Python's hash of an integer is its rest modulo 2^61 - 1 (sys.hash_info.modulus)."""
    modulus = (1 << 61) - 1
    pairs = b"".join(etf.encode_bare(i * modulus) + b"j" for i in range(20_000))
    begin = time.process_time()
    refused(b"\x83t" + (20_000).to_bytes(4, "big") + pairs, "collide")
    # Not a measure of speed: the quadratic way takes minutes.
    assert time.process_time() - begin < 20


def test_no_memory_is_kept_of_atoms() -> None:
    for i in range(5000):
        decode(encode(Atom(f"atom{i}")))
    assert len(etf._decoded_atoms) <= 513
    assert len(etf._encoded_atoms) <= 513
    assert decode(encode([True, False, None])) == [True, False, None]


# --- what the other side takes for corrupt ----------------------------------------------------


@pytest.mark.parametrize(
    "term",
    [
        {"a": 1, b"a": 2},
        {("x", "a"): 1, ("x", b"a"): 2},
        {FrozenList(("",)): 1, FrozenList((b"",)): 2},
        {True: 1, Atom("true"): 2},
        {None: 1, Atom("nil"): 2},
        PairMap([(1, 1), (1, 2)]),
        [{"deep": {"a": 1, b"a": 2}}],
    ],
    ids=repr,
)
def test_a_map_with_two_keys_that_are_one_in_erlang_is_refused(term: Any) -> None:
    with pytest.raises(EncodeError, match="two keys of a map"):
        encode(term)


def test_keys_that_differ_in_erlang_are_sent() -> None:
    for term in (
        {"a": 1, b"b": 2, 1: 3, Atom("c"): 4, None: 5, ("a",): 6, FrozenList(("a",)): 7},
        PairMap([(1, 1), (1.0, 2)]),
    ):
        assert reread(term)
    both = {"a": 1, b"a": 2}
    assert same(decode(encode(both, text=True)), both)


def test_a_message_is_encoded_as_it_was_for_each_form() -> None:
    term = {"name": ["", b""]}
    message = etf.Message(term)
    term["name"].append("later")
    assert etf.decode_bare(message.form(True))[0] == {"name": ["", b""]}
    assert etf.decode_bare(message.form(False))[0] == {b"name": [b"", b""]}
    assert message.form(False) == etf.Message({"name": ["", b""]}, text=False).form(False)

# SPDX-License-Identifier: Apache-2.0
"""Erlang's External Term Format: Python values to bytes and back.

The format and its tag numbers are those of the ERTS User's Guide, "External Term Format".
Everything is read that ``binary_to_term/1`` of a current OTP reads, except for terms with a meaning
only between particular nodes (atom cache references without a negotiated cache, terms for the local
node) and funs of before OTP 23; these are refused by name.

docs/cluster.md, "Values", shows the usual values. Others have a type of their own:
:class:`BitString`; :class:`ImproperList`, whose tail is no list; :class:`PairMap`, for keys that a
``dict`` would merge; :class:`Export`, ``fun m:f/1``; :class:`Fun`, any other fun, which is carried
but not understood.

Keys of a ``dict`` must be hashable, so lists and maps inside a key arrive as :class:`FrozenList`
and :class:`FrozenMap`; both are sent as lists and maps. ``1``, ``1.0`` and ``True`` are one key in
Python but not in Erlang: a map with several of them arrives as a :class:`PairMap`.

A ``str`` is encoded as the binary of its UTF-8 text, and decoded as ``bytes``. With ``text=True``,
for Thicket nodes only, it is encoded as a bit string that uses all 8 bits of its last byte (an
empty one uses 0), and decoded as ``str``. Other nodes must not get this form: OTP since 27 takes
the empty one for a corrupt term and closes the connection, and nodes in C and Java cannot read it.

A map whose keys differ in Python but not on the wire (``"a"`` and ``b"a"``, ``True`` and
``Atom("true")``) is an :class:`EncodeError`; Erlang also takes it for a corrupt term.

Neither direction recurses, so a number limits the depth, not Python's stack. The decoder is safe on
bytes from strangers: time and memory grow linearly with the input up to the given limits, and
nothing of the input is kept (the cache of atoms is small and bounded).
"""

from __future__ import annotations

from collections import Counter
from itertools import chain
from math import isfinite
from struct import Struct, error
from typing import TYPE_CHECKING, Any

from thicket.base.errors import ThicketError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

VERSION = 131
"""First byte of a term that stands alone ("version number")."""

MAX_DEPTH = 512
"""Default bound of nesting, in containers."""

MAX_TERMS = 1_000_000
"""Default limit of the elements of one term, which also limits its memory: an element takes its
bytes on the wire and at most about 100 bytes of Python."""

MAX_UNCOMPRESSED = 64 * 1024 * 1024
"""Default bound of a compressed term's real size, in bytes."""

MAX_ATOM_CHARACTERS = 255
"""Erlang's limit of an atom's length."""

_MAX_KEY_DEPTH = 64
# How many times the size of the input may be encoded for maps in keys, to keep the time linear.
_KEY_WORK = 8
_KEY_ROOM = 64 * 1024
_COLLISION_CHECK = 128
_MAX_SAME_HASH = 32
_MAX_SHOWN = 1024
_MAX_SHOWN_DEPTH = 64

# Tags, in the order of the format's description.
ATOM_CACHE_REF = 82
SMALL_INTEGER = 97
INTEGER = 98
FLOAT_TEXT = 99
NEW_PORT = 89
V4_PORT = 120
NEW_PID = 88
SMALL_TUPLE = 104
LARGE_TUPLE = 105
MAP = 116
NIL = 106
STRING = 107
LIST = 108
BINARY = 109
SMALL_BIG = 110
LARGE_BIG = 111
NEWER_REFERENCE = 90
REFERENCE = 101
PORT = 102
PID = 103
NEW_REFERENCE = 114
NEW_FUN = 112
EXPORT = 113
BIT_BINARY = 77
NEW_FLOAT = 70
ATOM_UTF8 = 118
SMALL_ATOM_UTF8 = 119
ATOM_LATIN1 = 100
SMALL_ATOM_LATIN1 = 115
COMPRESSED = 80
LOCAL = 121

_REFUSED = {
    ATOM_CACHE_REF: "an atom cache reference, but no atom cache is in use",
    COMPRESSED: "a compressed term inside another one",
    LOCAL: "a term for the local node only",
    117: "a fun of a node before OTP 23",
}


class TermError(ThicketError, ValueError):
    """A term that cannot be encoded or decoded."""


class EncodeError(TermError):
    """The value has no form in the External Term Format, or exceeds a limit."""


class DecodeError(TermError):
    """The bytes are not a term, or exceed a limit."""


class LimitError(DecodeError):
    """The bytes may be a term, but exceed a limit."""


class Atom(str):
    """An Erlang atom.

    It equals a ``str`` of the same text, so that ``match`` statements and comparisons can use plain
    strings for atoms.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Atom({str.__repr__(self)})"


class Pid:
    """A process identifier: node name, number (32 bits), serial (32 bits), creation of the node."""

    __slots__ = ("_wire", "creation", "id", "node", "serial")

    def __init__(self, node: Atom, id: int, serial: int, creation: int) -> None:
        self._wire: bytes | None = None  # its encoding, made when it is needed
        self.node = node
        self.id = id
        self.serial = serial
        self.creation = creation

    def __eq__(self, other: object) -> bool:
        return (
            type(other) is Pid
            and self.id == other.id
            and self.serial == other.serial
            and self.creation == other.creation
            and self.node == other.node
        )

    def __hash__(self) -> int:
        return hash((self.node, self.id, self.serial, self.creation))

    def __repr__(self) -> str:
        return f"Pid({str(self.node)!r}, {self.id}, {self.serial}, {self.creation})"


class _Record:
    """A rare value: equal to another one of its type when the fields are equal."""

    __slots__ = ()
    _fields: tuple[str, ...]

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self._fields)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), *self._values()))

    def __repr__(self) -> str:
        shown = (str.__repr__(v) if type(v) is Atom else repr(v) for v in self._values())
        return f"{type(self).__name__}({', '.join(shown)})"


class Port(_Record):
    """A port identifier: node name, number (64 bits), creation of the node."""

    __slots__ = ("creation", "id", "node")
    _fields = ("node", "id", "creation")

    def __init__(self, node: Atom, id: int, creation: int) -> None:
        self.node = node
        self.id = id
        self.creation = creation


class Reference:
    """A reference: node name, creation of the node, one to five 32-bit words."""

    __slots__ = ("creation", "node", "words")

    def __init__(self, node: Atom, creation: int, words: tuple[int, ...]) -> None:
        self.node = node
        self.creation = creation
        self.words = words

    def __eq__(self, other: object) -> bool:
        return (
            type(other) is Reference
            and self.words == other.words
            and self.creation == other.creation
            and self.node == other.node
        )

    def __hash__(self) -> int:
        return hash((self.words, self.node, self.creation))

    def __repr__(self) -> str:
        return f"Reference({str(self.node)!r}, {self.creation}, {self.words})"


class Export(_Record):
    """A fun that names an exported function, ``fun module:function/arity``."""

    __slots__ = ("arity", "function", "module")
    _fields = ("module", "function", "arity")

    def __init__(self, module: Atom, function: Atom, arity: int) -> None:
        self.module = module
        self.function = function
        self.arity = arity


class Fun(_Record):
    """A fun that only Erlang can call, as the bytes after its size field."""

    __slots__ = ("body",)
    _fields = ("body",)

    def __init__(self, body: bytes) -> None:
        self.body = body

    def __repr__(self) -> str:
        return f"<Fun of {len(self.body)} bytes>"


class BitString(_Record):
    """A string of bits that fills only part of its last byte.

    :param bits: 1 to 7, the bits of the last byte in use, from the most significant one; the others
        become zero.
    """

    __slots__ = ("bits", "data")
    _fields = ("data", "bits")

    def __init__(self, data: bytes, bits: int) -> None:
        if not data or not 1 <= bits <= 7:
            raise ValueError(f"a bit string uses 1 to 7 bits of its last byte, not {bits}")
        self.data = data[:-1] + bytes((data[-1] & (0xFF00 >> bits) & 0xFF,))
        self.bits = bits

    def __len__(self) -> int:
        return len(self.data) * 8 - 8 + self.bits


class ImproperList(_Record):
    """A list whose tail is not a list, such as ``[alias | Ref]``; at least one item."""

    __slots__ = ("items", "tail")
    _fields = ("items", "tail")

    def __init__(self, items: tuple[Any, ...], tail: Any) -> None:
        if not items:
            raise ValueError("an improper list has at least one item")
        self.items = items
        self.tail = tail

    def __repr__(self) -> str:
        return f"ImproperList({self.items!r}, {self.tail!r})"


class FrozenList(tuple[Any, ...]):
    """A list inside a map's key: hashable, and not equal to the tuple of the same items."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return type(other) is FrozenList and tuple.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((FrozenList, tuple(self)))

    def __repr__(self) -> str:
        return f"FrozenList({tuple.__repr__(self)})"


class PairMap:
    """A map as pairs, for keys that a ``dict`` takes for one (``1`` and ``1.0``)."""

    __slots__ = ("pairs",)

    def __init__(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        self.pairs = tuple(pairs)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, PairMap)
            and type(other) is type(self)
            and self._canonical() == other._canonical()
        )

    __hash__ = None  # type: ignore[assignment]  # as a dict; hashing would need an encoding

    def _canonical(self) -> list[bytes]:
        """Return the encoded pairs in an order that does not depend on theirs."""
        return sorted(_encode_freely(pair) for pair in self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.pairs!r})"


class FrozenMap(PairMap):
    """A map inside a map's key: hashable. Its pairs are in the order of their encodings, so that
    equal maps have equal encodings.

    :ivar size: bytes of its encoding, which is the cost of making it.
    """

    __slots__ = ("_hash", "size")

    def __init__(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        encoded = [(_encode_freely(pair), pair) for pair in pairs]
        encoded.sort(key=lambda one: one[0])
        super().__init__(pair for _, pair in encoded)
        self._hash = hash(tuple(form for form, _ in encoded))
        self.size = sum(len(form) for form, _ in encoded)

    def __hash__(self) -> int:  # type: ignore[override]
        return self._hash


# --- encoding ---------------------------------------------------------------------------------

_u8_u8 = Struct(">BB").pack
_u8_u16 = Struct(">BH").pack
_u8_i32 = Struct(">Bi").pack
_u8_u32 = Struct(">BI").pack
_u8_f64 = Struct(">Bd").pack
_u32_u32 = Struct(">II").pack
_u32_u32_u32 = Struct(">III").pack
_u64_u32 = Struct(">QI").pack
_words = tuple(Struct(f">{count}I").pack for count in range(7))

_SMALL_INTEGERS = tuple(_u8_u8(SMALL_INTEGER, i) for i in range(256))
_NO_TAIL: tuple[list[Any]] = ([],)
_EMPTY_LIST = b"j"
_TRUE = b"w\x04true"
_FALSE = b"w\x05false"
_NONE = b"w\x03nil"

_CACHE_SIZE = 512
_encoded_atoms: dict[str, bytes] = {}


def _encode_atom(text: str) -> bytes:
    known = _encoded_atoms.get(text)
    if known is not None:
        return known
    if len(text) > MAX_ATOM_CHARACTERS:
        raise EncodeError(
            f"an atom has at most {MAX_ATOM_CHARACTERS} characters, this one {len(text)}"
        )
    try:
        data = text.encode()
    except UnicodeEncodeError as found:
        raise EncodeError(f"an atom must be Unicode text: {found}") from None
    size = len(data)
    data = (_u8_u8(SMALL_ATOM_UTF8, size) if size < 256 else _u8_u16(ATOM_UTF8, size)) + data
    if len(_encoded_atoms) >= _CACHE_SIZE:
        _encoded_atoms.clear()
    _encoded_atoms[text] = data
    return data


def _encode_integer(value: int) -> bytes:
    if -0x80000000 <= value <= 0x7FFFFFFF:
        return _u8_i32(INTEGER, value)
    sign = 1 if value < 0 else 0
    magnitude = -value if sign else value
    size = (magnitude.bit_length() + 7) // 8
    head = _u8_u8(SMALL_BIG, size) if size < 256 else _u8_u32(LARGE_BIG, size)
    return b"%b%c%b" % (head, sign, magnitude.to_bytes(size, "little"))


def _encode_pid(pid: Pid) -> bytes:
    pid._wire = b"X%b%b" % (_encode_atom(pid.node), _u32_u32_u32(pid.id, pid.serial, pid.creation))
    return pid._wire


def _encode_other(term: Any, text: bool) -> bytes:
    """Encode the rarer values that hold no others."""
    data: bytes
    kind = type(term)
    if kind is str:
        try:
            data = term.encode()
        except UnicodeEncodeError as found:
            raise EncodeError(f"text must be Unicode: {found}") from None
        if text:  # a bit string of whole bytes
            return b"%b%c%b" % (_u8_u32(BIT_BINARY, len(data)), 8 if data else 0, data)
        return _u8_u32(BINARY, len(data)) + data
    if kind is bytearray or kind is memoryview:
        data = bytes(term)
        return _u8_u32(BINARY, len(data)) + data
    if kind is BitString:
        return b"%b%c%b" % (_u8_u32(BIT_BINARY, len(term.data)), term.bits, term.data)
    if kind is Port:
        if term.id < 1 << 28:  # peers without 64-bit ports understand this form as well
            return b"Y" + _encode_atom(term.node) + _u32_u32(term.id, term.creation)
        return b"x" + _encode_atom(term.node) + _u64_u32(term.id, term.creation)
    if kind is Export:
        if not 0 <= term.arity <= 255:
            raise EncodeError(f"an arity is 0 to 255, not {term.arity}")
        return b"q%b%b%b" % (
            _encode_atom(term.module),
            _encode_atom(term.function),
            _SMALL_INTEGERS[term.arity],
        )
    if kind is Fun:
        data = term.body
        return _u8_u32(NEW_FUN, len(data) + 4) + data
    raise EncodeError(
        f"a value of type {kind.__name__} has no form in Erlang: send a number, str, bytes, "
        f"bool, None, list, tuple, dict, Atom, Pid, Port or Reference"
    )


# Different keys of one of these types are also different on the wire.
_SAFE_KEYS = frozenset((str, bytes, int, float, bool, Atom, Pid, type(None)))


def _told_apart(pairs: Iterable[tuple[Any, Any]], parts: list[bytes]) -> Iterator[Any]:
    """Yield keys and values in turn; refuse a map that has two keys with one encoding.

    A key's encoding is at the end of ``parts`` when its value is taken. No key is encoded twice, as
    a key that holds maps would double its cost with each level.
    """
    forms: set[bytes] = set()
    for key, value in pairs:
        start = len(parts)
        yield key
        form = b"".join(parts[start:])
        parts[start:] = [form]
        if form in forms:
            raise EncodeError("two keys of a map are the same in Erlang, such as 'a' and b'a'")
        forms.add(form)
        yield value


def encode_bare(
    term: Any,
    *,
    text: bool = False,
    max_depth: int = MAX_DEPTH,
    max_terms: int = MAX_TERMS,
    prefix: bytes = b"",
) -> bytes:
    """Encode ``term`` without the leading version byte.

    :param text: distinguish ``str`` from ``bytes``; only for Thicket nodes.
    :param prefix: bytes to put in front.
    :raises EncodeError: the value has no form, is nested deeper than ``max_depth`` (as a container
        that holds itself is), has more than ``max_terms`` elements, or holds a map with two keys
        that are the same on the wire.
    """
    parts: list[bytes] = [prefix]
    append = parts.append
    stack: list[Iterator[Any]] = []
    budget = max_terms
    source: Iterator[Any] = iter((term,))
    try:
        while True:
            for item in source:
                kind = type(item)
                if kind is Atom:
                    append(_encoded_atoms.get(item) or _encode_atom(item))
                    continue
                if kind is int:
                    append(_SMALL_INTEGERS[item] if 0 <= item < 256 else _encode_integer(item))
                    continue
                if kind is bytes:
                    append(_u8_u32(BINARY, len(item)))
                    append(item)
                    continue
                if kind is tuple:
                    size = len(item)
                    append(_u8_u8(SMALL_TUPLE, size) if size < 256 else _u8_u32(LARGE_TUPLE, size))
                    if not size:
                        continue
                    inner = iter(item)
                elif kind is list or kind is FrozenList:
                    size = len(item)
                    if not size:
                        append(_EMPTY_LIST)
                        continue
                    if size < 65536 and type(item[0]) is int:
                        string = _as_string(item)
                        if string is not None:
                            append(string)
                            continue
                    append(_u8_u32(LIST, size))
                    inner = chain(item, _NO_TAIL)
                elif kind is dict:
                    size = len(item)
                    append(_u8_u32(MAP, size))
                    if not size:
                        continue
                    kinds = set(map(type, item))
                    if size > 1 and (len(kinds) > 1 or not kinds <= _SAFE_KEYS):
                        inner = _told_apart(item.items(), parts)
                    else:
                        inner = chain.from_iterable(item.items())
                elif kind is bool:
                    append(_TRUE if item else _FALSE)
                    continue
                elif item is None:
                    append(_NONE)
                    continue
                elif kind is float:
                    if not isfinite(item):
                        raise EncodeError(f"Erlang has no {item}")
                    append(_u8_f64(NEW_FLOAT, item))
                    continue
                elif kind is Pid:
                    append(item._wire or _encode_pid(item))
                    continue
                elif kind is Reference:
                    words = item.words
                    if not 1 <= len(words) <= 5:
                        raise EncodeError(f"a reference has 1 to 5 words, not {len(words)}")
                    append(_u8_u16(NEWER_REFERENCE, len(words)))
                    append(_encode_atom(item.node))
                    append(_words[len(words) + 1](item.creation, *words))
                    continue
                elif kind is ImproperList:
                    size = len(item.items)
                    append(_u8_u32(LIST, size))
                    inner = chain(item.items, (item.tail,))
                elif kind is PairMap or kind is FrozenMap:
                    size = len(item.pairs)
                    append(_u8_u32(MAP, size))
                    inner = _told_apart(item.pairs, parts)
                else:
                    append(_encode_other(item, text))
                    continue
                budget -= size
                if budget < 0:
                    raise EncodeError(f"the term has more than {max_terms} elements")
                stack.append(source)
                if len(stack) > max_depth:
                    raise EncodeError(
                        f"the term is nested deeper than {max_depth} levels (or holds itself)"
                    )
                source = inner
                break
            else:
                if not stack:
                    return b"".join(parts)
                source = stack.pop()
    except error as found:
        raise EncodeError(f"a number of an identifier does not fit its field: {found}") from None


def _as_string(items: list[Any] | FrozenList) -> bytes | None:
    """Return the STRING form of a list of small integers, as Erlang sends it, or None."""
    try:
        data = bytes(items)
    except (TypeError, ValueError, OverflowError):
        return None
    # bytes() accepts True as 1 and calls __index__; only real integers belong here.
    if set(map(type, items)) != {int}:
        return None
    return _u8_u16(STRING, len(data)) + data


def encode(
    term: Any,
    *,
    text: bool = False,
    max_depth: int = MAX_DEPTH,
    max_terms: int = MAX_TERMS,
    compress: int = 0,
) -> bytes:
    """Encode ``term`` as ``term_to_binary/1`` does (version byte first).

    :param compress: 1 (fast) to 9 (small) to compress as ``term_to_binary(T, [{compressed, N}])``
        does, if that makes it smaller.
    :raises EncodeError: see :func:`encode_bare`.
    """
    data = encode_bare(term, text=text, max_depth=max_depth, max_terms=max_terms, prefix=b"\x83")
    if compress:
        import zlib

        small = b"\x83P%b%b" % (
            (len(data) - 1).to_bytes(4, "big"),
            zlib.compress(memoryview(data)[1:], compress),
        )
        return min(data, small, key=len)
    return data


def _encode_freely(term: Any) -> bytes:
    """Encode a term that is known to be within the limits."""
    return encode_bare(term, text=True, max_depth=1 << 31, max_terms=1 << 62)


# --- decoding ---------------------------------------------------------------------------------

_get_i32 = Struct(">i").unpack_from
_get_u32 = Struct(">I").unpack_from
_get_u16 = Struct(">H").unpack_from
_get_f64 = Struct(">d").unpack_from
_get_u32_u32 = Struct(">II").unpack_from
_get_u32_u32_u32 = Struct(">III").unpack_from
_get_u64_u32 = Struct(">QI").unpack_from
_get_words = tuple(Struct(f">{count}I").unpack_from for count in range(7))

_WORDS = {b"true": True, b"false": False, b"nil": None}
_decoded_atoms: dict[bytes, Any] = dict(_WORDS)

# What a list of elements becomes when it is complete.
_ROOT = 0
_IS_TUPLE = 1
_IS_LIST = 2
_IS_MAP = 3
_IS_EXPORT = 4


def _new_atom(raw: bytes) -> Any:
    """Return the atom of the UTF-8 text ``raw``, and cache it."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as found:
        raise DecodeError(f"an atom is not UTF-8: {found.reason}") from None
    if len(text) > MAX_ATOM_CHARACTERS:
        raise DecodeError(f"an atom of {len(text)} characters (limit {MAX_ATOM_CHARACTERS})")
    atom = Atom(text)
    if len(_decoded_atoms) >= _CACHE_SIZE:
        _decoded_atoms.clear()
        _decoded_atoms.update(_WORDS)
    _decoded_atoms[raw] = atom
    return atom


def _node_name(data: bytes, at: int) -> tuple[Atom, int]:
    """Decode the atom at ``at`` that names the node of an identifier."""
    tag = data[at]
    if tag == SMALL_ATOM_UTF8:
        end = at + 2 + data[at + 1]
        known = _decoded_atoms.get(data[at + 2 : end])
        if type(known) is Atom:
            return known, end
    if tag in (SMALL_ATOM_UTF8, SMALL_ATOM_LATIN1):
        start = at + 2
        end = start + data[at + 1]
    elif tag in (ATOM_UTF8, ATOM_LATIN1):
        start = at + 3
        end = start + _get_u16(data, at + 1)[0]
    else:
        raise DecodeError(f"tag {tag} where an identifier's node name should be")
    if end > len(data):
        raise IndexError
    raw = data[start:end]
    if tag in (SMALL_ATOM_LATIN1, ATOM_LATIN1):
        raw = raw.decode("latin-1").encode()
    if raw in _WORDS:  # a node's name may be true
        return Atom(raw.decode()), end
    atom = _decoded_atoms.get(raw)
    return (_new_atom(raw) if atom is None else atom), end


def _freeze(term: Any, room: list[int], depth: int = 0) -> Any:
    """Return ``term`` in a form that a dict accepts as key.

    :param room: holds the bytes that may still be encoded: a map is encoded once for each map of
        which it is (part of) a key.
    """
    kind = type(term)
    if kind not in (list, tuple, dict, ImproperList, PairMap):
        return term
    if depth >= _MAX_KEY_DEPTH:
        raise LimitError(f"a map's key is nested deeper than {_MAX_KEY_DEPTH} levels")
    depth += 1
    if kind is list:
        return FrozenList(_freeze(item, room, depth) for item in term)
    if kind is tuple:
        return tuple(_freeze(item, room, depth) for item in term)
    if kind is ImproperList:
        return ImproperList(
            tuple(_freeze(item, room, depth) for item in term.items),
            _freeze(term.tail, room, depth),
        )
    pairs = term.items() if kind is dict else term.pairs
    made = FrozenMap(
        (_freeze(key, room, depth), _freeze(value, room, depth)) for key, value in pairs
    )
    room[0] -= made.size
    if room[0] < 0:
        raise DecodeError("maps are keys of maps that are keys, too deeply for their size")
    return made


def _make_map(items: list[Any], room: list[int]) -> Any:
    """Return the map of alternating keys and values; ``room`` as for `_freeze`."""
    keys = items[0::2]
    values = items[1::2]
    try:
        if len(keys) >= _COLLISION_CHECK:
            _spread(keys)
        result = dict(zip(keys, values))  # noqa: B905  # always as many
    except (TypeError, RecursionError):
        keys = [_freeze(key, room) for key in keys]
        result = dict(zip(_spread(keys), values, strict=True))
    if len(result) == len(keys):
        return result
    if len({_encode_freely(key) for key in keys}) != len(keys):
        raise DecodeError("a map has the same key twice")
    return PairMap(zip(keys, values, strict=True))


def _spread(keys: list[Any]) -> list[Any]:
    """Return ``keys``, unless many of them have one hash, which would make a dict quadratic."""
    if len(keys) < _COLLISION_CHECK:
        return keys
    hashes = [hash(key) for key in keys]
    if len(keys) - len(set(hashes)) >= _MAX_SAME_HASH:
        [(_, most)] = Counter(hashes).most_common(1)
        if most > _MAX_SAME_HASH:
            raise DecodeError("the keys of a map were chosen to collide")
    return keys


def shown(term: Any) -> str:
    """Return ``term`` as text for people: a :func:`repr` that is cut off, at a bounded cost."""
    text = repr(_shortened(term, [_MAX_SHOWN], 0))
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


class _Words:
    """Text in place of a part of a term."""

    __slots__ = ("_words",)

    def __init__(self, words: str) -> None:
        self._words = words

    def __repr__(self) -> str:
        return self._words


def _shortened(term: Any, room: list[int], depth: int) -> Any:
    """Return as much of ``term`` as fits into ``room`` characters."""
    kind = type(term)
    room[0] -= 2
    if depth > _MAX_SHOWN_DEPTH:
        return _Words("...")
    if kind is int:
        # Python refuses to print more than 4300 digits, and is slow for fewer.
        return (
            term
            if term.bit_length() <= _MAX_SHOWN
            else _Words(f"<a huge integer, {term.bit_length()} bits>")
        )
    if kind in (str, bytes, Atom):
        cut = term[: max(room[0], 0) + 1]
        room[0] -= len(cut)
        return kind(cut)
    if kind in (list, tuple):
        return kind(_some(term, room, depth))
    if kind is dict:
        return _Words("{" + ", ".join(_shown_pairs(term.items(), room, depth)) + "}")
    if kind is FrozenList:
        return FrozenList(_some(term, room, depth))
    if kind is ImproperList:
        items = tuple(_some(term.items, room, depth))
        return _Words(f"ImproperList({items!r}, {_shortened(term.tail, room, depth + 1)!r})")
    if isinstance(term, PairMap):
        pairs = tuple(tuple(_some(pair, room, depth + 1)) for pair in _while_room(term.pairs, room))
        return _Words(f"{kind.__name__}({pairs!r})")
    if kind is BitString:
        return BitString(term.data[: max(room[0], 0) + 1], term.bits)
    return term


def _some(items: Iterable[Any], room: list[int], depth: int) -> Iterator[Any]:
    return (_shortened(item, room, depth + 1) for item in _while_room(items, room))


def _while_room(items: Iterable[Any], room: list[int]) -> Iterator[Any]:
    for item in items:
        if room[0] < 0:
            return
        yield item


def _shown_pairs(pairs: Iterable[tuple[Any, Any]], room: list[int], depth: int) -> Iterator[str]:
    for key, value in _while_room(pairs, room):
        parts = (_shortened(part, room, depth + 1) for part in (key, value))
        yield ": ".join(map(repr, parts))


def _make_list(items: list[Any]) -> Any:
    """Return the list whose tail is the last of ``items``."""
    tail = items.pop()
    if not items:
        return tail  # as binary_to_term/1 reads this unusual form
    kind = type(tail)
    if kind is list:
        if tail:
            items.extend(tail)
        return items
    if kind is ImproperList:
        return ImproperList((*items, *tail.items), tail.tail)
    return ImproperList(tuple(items), tail)


def _make_export(items: list[Any]) -> Export:
    module, function, arity = items
    if type(arity) is not int or not 0 <= arity <= 255:
        raise DecodeError("an exported function without a proper arity")
    names = []
    for name in (module, function):
        if type(name) is Atom:
            names.append(name)
        elif name is None or type(name) is bool:
            names.append(Atom("nil" if name is None else str(name).lower()))
        else:
            raise DecodeError("an exported function without a proper name")
    return Export(names[0], names[1], arity)


def decode_bare(
    data: bytes, at: int = 0, *, max_depth: int = MAX_DEPTH, max_terms: int = MAX_TERMS
) -> tuple[Any, int]:
    """Decode the term without version byte that begins at ``at``.

    :returns: the term and the position after it.
    :raises DecodeError: the bytes are no term, or one beyond ``max_depth`` levels or ``max_terms``
        elements.
    """
    try:
        return _decode(data, at, max_depth, max_terms)
    except (IndexError, error):
        raise DecodeError("the term ends too early") from None


def _decode(data: bytes, at: int, max_depth: int, max_terms: int) -> tuple[Any, int]:
    size = len(data)
    atoms = _decoded_atoms
    budget = max_terms
    room = [_KEY_ROOM + _KEY_WORK * size]
    stack: list[tuple[list[Any], int, int]] = []
    items: list[Any] = []
    append = items.append
    left = 1
    kind = _ROOT
    while True:
        tag = data[at]
        at += 1
        opened = 0
        becomes = _IS_TUPLE
        if tag == SMALL_INTEGER:
            append(data[at])
            at += 1
        elif tag == SMALL_ATOM_UTF8:
            start = at + 1
            at = start + data[at]
            raw = data[start:at]
            if at > size:
                raise IndexError
            try:
                append(atoms[raw])
            except KeyError:
                append(_new_atom(raw))
        elif tag == SMALL_TUPLE:
            opened = data[at]
            at += 1
            if not opened:
                append(())
        elif tag == BINARY:
            start = at + 4
            at = start + _get_u32(data, at)[0]
            if at > size:
                raise IndexError
            append(data[start:at])
        elif tag == LIST:
            opened = _get_u32(data, at)[0] + 1
            at += 4
            becomes = _IS_LIST
        elif tag == NIL:
            append([])
        elif tag == INTEGER:
            append(_get_i32(data, at)[0])
            at += 4
        elif tag == NEW_PID:
            node, at = _node_name(data, at)
            append(Pid(node, *_get_u32_u32_u32(data, at)))
            at += 12
        elif tag == NEWER_REFERENCE:
            count = _get_u16(data, at)[0]
            if not 1 <= count <= 5:
                raise DecodeError(f"a reference of {count} words")
            node, at = _node_name(data, at + 2)
            words = _get_words[count + 1](data, at)
            append(Reference(node, words[0], words[1:]))
            at += 4 * count + 4
        elif tag == MAP:
            opened = 2 * _get_u32(data, at)[0]
            at += 4
            becomes = _IS_MAP
            if not opened:
                append({})
        elif tag == STRING:
            start = at + 2
            at = start + _get_u16(data, at)[0]
            if at > size:
                raise IndexError
            budget -= at - start
            if budget < 0:
                raise LimitError(f"the term has more than {max_terms} elements")
            append(list(data[start:at]))
        elif tag == NEW_FLOAT:
            value = _get_f64(data, at)[0]
            if not isfinite(value):
                raise DecodeError(f"a float that is {value}")
            append(value)
            at += 8
        elif tag in (SMALL_BIG, LARGE_BIG):
            if tag == SMALL_BIG:
                length = data[at]
                at += 1
            else:
                length = _get_u32(data, at)[0]
                at += 4
            negative = data[at]
            start = at + 1
            at = start + length
            if at > size:
                raise IndexError
            number = int.from_bytes(data[start:at], "little")
            append(-number if negative else number)
        elif tag == ATOM_UTF8:
            start = at + 2
            at = start + _get_u16(data, at)[0]
            if at > size:
                raise IndexError
            raw = data[start:at]
            append(atoms[raw] if raw in atoms else _new_atom(raw))
        elif tag == LARGE_TUPLE:
            opened = _get_u32(data, at)[0]
            at += 4
            if not opened:
                append(())
        elif tag in (ATOM_LATIN1, SMALL_ATOM_LATIN1):
            if tag == ATOM_LATIN1:
                start = at + 2
                at = start + _get_u16(data, at)[0]
            else:
                start = at + 1
                at = start + data[at]
            if at > size:
                raise IndexError
            raw = data[start:at].decode("latin-1").encode()
            append(atoms[raw] if raw in atoms else _new_atom(raw))
        elif tag == BIT_BINARY:
            length = _get_u32(data, at)[0]
            bits = data[at + 4]
            start = at + 5
            at = start + length
            if at > size:
                raise IndexError
            if bits > 8 or (bits == 0) != (length == 0):
                raise DecodeError(f"a bit string of {length} bytes that uses {bits} of the last")
            append(BitString(data[start:at], bits) if bits & 7 else _text_of(data[start:at]))
        elif tag == V4_PORT:
            node, at = _node_name(data, at)
            append(Port(node, *_get_u64_u32(data, at)))
            at += 12
        elif tag == NEW_PORT:
            node, at = _node_name(data, at)
            append(Port(node, *_get_u32_u32(data, at)))
            at += 8
        elif tag == EXPORT:
            opened = 3
            becomes = _IS_EXPORT
        elif tag == NEW_FUN:
            length = _get_u32(data, at)[0]
            start = at + 4
            at += length
            if at > size:
                raise IndexError
            if at <= start:
                raise DecodeError("a fun without a body")
            append(Fun(data[start:at]))
        elif tag == PID:
            node, at = _node_name(data, at)
            number, serial = _get_u32_u32(data, at)
            append(Pid(node, number, serial, data[at + 8]))
            at += 9
        elif tag in (PORT, REFERENCE):
            node, at = _node_name(data, at)
            number, creation = _get_u32(data, at)[0], data[at + 4]
            at += 5
            append(
                Port(node, number, creation)
                if tag == PORT
                else Reference(node, creation, (number,))
            )
        elif tag == NEW_REFERENCE:
            count = _get_u16(data, at)[0]
            if not 1 <= count <= 5:
                raise DecodeError(f"a reference of {count} words")
            node, at = _node_name(data, at + 2)
            append(Reference(node, data[at], _get_words[count](data, at + 1)))
            at += 4 * count + 1
        elif tag == FLOAT_TEXT:
            start = at
            at += 31
            if at > size:
                raise IndexError
            append(_float_of(data[start:at]))
        else:
            raise DecodeError(_REFUSED.get(tag, f"an unknown tag, {tag}"))

        if opened:
            budget -= opened
            if budget < 0:
                raise LimitError(f"the term has more than {max_terms} elements")
            if opened > size - at:  # every element takes a byte at least
                raise IndexError
            stack.append((items, left, kind))
            if len(stack) > max_depth:
                raise LimitError(f"the term is nested deeper than {max_depth} levels")
            items = []
            append = items.append
            left = opened
            kind = becomes
            continue

        left -= 1
        while not left:
            made: Any
            if kind == _IS_TUPLE:
                made = tuple(items)
            elif kind == _IS_LIST:
                made = _make_list(items)
            elif kind == _IS_MAP:
                made = _make_map(items, room)
            elif kind == _IS_EXPORT:
                made = _make_export(items)
            else:
                return items[0], at
            items, left, kind = stack.pop()
            append = items.append
            append(made)
            left -= 1


def _text_of(raw: bytes) -> str | bytes:
    """Return a text; bytes that are not UTF-8 stay bytes."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _float_of(text: bytes) -> float:
    """Decode the 31-byte decimal form of very old nodes."""
    digits = text.rstrip(b"\0")
    if not digits or digits.strip(b"0123456789+-.e"):
        raise DecodeError("a float that is not a number")
    try:
        value = float(digits)
    except ValueError:
        raise DecodeError("a float that is not a number") from None
    if not isfinite(value):
        raise DecodeError("a float beyond its range")
    return value


def decode(
    data: bytes,
    *,
    max_depth: int = MAX_DEPTH,
    max_terms: int = MAX_TERMS,
    max_uncompressed: int = MAX_UNCOMPRESSED,
) -> Any:
    """Decode a result of ``term_to_binary/1``; nothing may follow the term.

    :param max_uncompressed: the largest real size of a compressed term, in bytes.
    :raises DecodeError: see :func:`decode_bare`; also when a compressed term is larger, or has not
        the size that it announces.
    """
    if not data or data[0] != VERSION:
        raise DecodeError(f"a term begins with the byte {VERSION}")
    at = 1
    if data[1:2] == b"P":
        data, at = _inflate(data, max_uncompressed), 0
    term, end = decode_bare(data, at, max_depth=max_depth, max_terms=max_terms)
    if end != len(data):
        raise DecodeError(f"{len(data) - end} bytes follow the term")
    return term


def _inflate(data: bytes, limit: int) -> bytes:
    """Return the term without version byte that ``data`` holds compressed."""
    import zlib  # rare, as nodes do not send compressed terms

    if len(data) < 6:
        raise DecodeError("the term ends too early")
    size = _get_u32(data, 2)[0]
    if size > limit:
        raise DecodeError(f"a compressed term of {size} bytes (limit {limit})")
    machine = zlib.decompressobj()
    try:
        # One byte more than announced, to detect a longer term.
        found = machine.decompress(memoryview(data)[6:], size + 1)
    except zlib.error as error:
        raise DecodeError(f"a compressed term that is damaged: {error}") from None
    if len(found) != size or not machine.eof:
        raise DecodeError(f"a compressed term that is not of the {size} bytes it says")
    if machine.unused_data:
        raise DecodeError(f"{len(machine.unused_data)} bytes follow the term")
    return found


class Message:
    """An encoded term that can be sent several times; each form is encoded once.

    :param text: the form to encode first, see :func:`encode_bare`.
    :raises EncodeError: see :func:`encode_bare`; :meth:`form` raises it as well.
    """

    __slots__ = ("_forms",)

    def __init__(self, term: Any, *, text: bool = True) -> None:
        self._forms = {text: encode_bare(term, text=text)}

    def form(self, text: bool) -> bytes:
        """Return the term without version byte, in the form of :func:`encode_bare`."""
        found = self._forms.get(text)
        if found is None:
            term = decode_bare(next(iter(self._forms.values())))[0]
            found = self._forms[text] = encode_bare(term, text=text)
        return found

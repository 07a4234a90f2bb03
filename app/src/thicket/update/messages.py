# SPDX-License-Identifier: Apache-2.0
"""What nodes say to each other about updates: terms of Erlang, between the processes
``thicket_update``. Each is about one subject (``offer.Target.subject``) and travels as
``{Subject, Message}``, with the subject as a binary:

    {have, Number, Offer}                     the newest offer here; 0 and an empty binary for none
    {offer, Packed}                           a signed offer
    {has, Offer, [{Patch, Bits}]}             which chunks are here
    {get, Offer, Patch, Part, Number}         send me a chunk
    {data, Offer, Patch, Part, Number, Data}  a chunk
    {no, Offer, Patch, Part, Number, Wait}    not now, or not at all
    {records, [Record]}                       what nodes tell of their own progress

``Offer`` is an offer's identifier, ``Patch`` a patch's place in it, counted from 0. ``Part`` is
``chunk``, or ``list`` for a chunk of the chunk list. In ``Bits``, bit N mod 8 of byte N div 8
stands for chunk N; with none, the chunk list alone is here. ``Wait`` is in milliseconds; 0 says
that the chunk is not here.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from thicket.distribution.etf import Atom
from thicket.trust.cms import MAX_SIZE
from thicket.update import reports
from thicket.update.bundle import MAX_BYTES
from thicket.update.offer import CHUNK, MAX_NUMBER, MAX_PATCHES

MAX_CHUNKS = (MAX_BYTES + CHUNK - 1) // CHUNK
MAX_RECORD = reports.MAX_ITEM
"""Bytes of the longest record."""
MAX_RECORDS = reports.MAX_ITEMS
"""Records in one message."""
MAX_WAIT = 600_000

CHUNKS, LIST = "chunk", "list"
"""The parts of a patch that are fetched."""

_IDENTIFIER = 32
_SUBJECT = re.compile(rb"(?:image|app)/[a-z0-9_-]{1,64}")
_HAVE, _OFFER, _HAS, _GET, _DATA, _NO, _RECORDS = map(
    Atom, ("have", "offer", "has", "get", "data", "no", "records")
)


class Have(NamedTuple):
    """The newest offer of the sender about the subject."""

    number: int
    offer: bytes


class Offered(NamedTuple):
    """A signed offer."""

    packed: bytes


class Has(NamedTuple):
    """Which chunks the sender has.

    :ivar held: patches and their bits, as in ``store.Held``.
    """

    offer: bytes
    held: tuple[tuple[int, int], ...]


class Piece(NamedTuple):
    """A chunk of a patch or of its chunk list.

    :ivar part: ``CHUNKS`` or ``LIST``.
    """

    patch: int
    part: str
    number: int


class Get(NamedTuple):
    """The sender wants a chunk."""

    offer: bytes
    piece: Piece


class Data(NamedTuple):
    """A chunk."""

    offer: bytes
    piece: Piece
    data: bytes


class No(NamedTuple):
    """The sender does not send a chunk.

    :ivar wait: milliseconds after which it may be asked again; 0 if it does not have the chunk.
    """

    offer: bytes
    piece: Piece
    wait: int


class Records(NamedTuple):
    """What nodes tell of their own progress; ``thicket.update.reports`` understands it."""

    records: tuple[bytes, ...]


Message = Have | Offered | Has | Get | Data | No | Records


def wrap(subject: str, message: Message) -> tuple[bytes, tuple[Any, ...]]:
    """Return a message about a subject as it is sent."""
    return subject.encode("ascii"), term(message)


def unwrap(received: Any) -> tuple[str, Message] | None:
    """Return a subject and what a peer says of it; None where that is no message, or too large."""
    match received:
        case (bytes() as subject, inner):
            message = read(inner)
            if message is not None and _SUBJECT.fullmatch(subject):
                return subject.decode("ascii"), message
    return None


def term(message: Message) -> tuple[Any, ...]:
    """Return a message as it is sent, without its subject."""
    match message:
        case Have(number, offer):
            return _HAVE, number, offer
        case Offered(packed):
            return _OFFER, packed
        case Has(offer, held):
            return _HAS, offer, [(patch, bytes_of(bits)) for patch, bits in held]
        case Get(offer, piece):
            return _GET, offer, *_piece(piece)
        case Data(offer, piece, data):
            return _DATA, offer, *_piece(piece), data
        case No(offer, piece, wait):
            return _NO, offer, *_piece(piece), wait
        case Records(records):
            return _RECORDS, list(records)


def read(received: Any) -> Message | None:
    """Return a message; None where it is none, or out of bounds."""
    match received:
        case ("have", number, bytes() as offer):
            if _is_number(number, MAX_NUMBER) and len(offer) == (_IDENTIFIER if number else 0):
                return Have(number, offer)
        case ("offer", bytes() as packed):
            if len(packed) <= MAX_SIZE:
                return Offered(packed)
        case ("has", bytes() as offer, list() as held):
            if len(offer) == _IDENTIFIER and len(held) <= MAX_PATCHES:
                return _has(offer, held)
        case ("get", bytes() as offer, patch, part, number):
            wanted = _read_piece(patch, part, number)
            if wanted is not None and len(offer) == _IDENTIFIER:
                return Get(offer, wanted)
        case ("data", bytes() as offer, patch, part, number, bytes() as data):
            sent = _read_piece(patch, part, number)
            if sent is not None and len(offer) == _IDENTIFIER and len(data) <= CHUNK:
                return Data(offer, sent, data)
        case ("no", bytes() as offer, patch, part, number, wait):
            refused = _read_piece(patch, part, number)
            if refused is not None and len(offer) == _IDENTIFIER and _is_number(wait, MAX_WAIT):
                return No(offer, refused, wait)
        case ("records", list() as records):
            if 0 < len(records) <= MAX_RECORDS and all(map(_is_record, records)):
                return Records(tuple(records))
    return None


def bytes_of(bits: int) -> bytes:
    """Return bits as they are sent."""
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


def _piece(piece: Piece) -> tuple[int, Atom, int]:
    return piece.patch, Atom(piece.part), piece.number


def _read_piece(patch: Any, part: Any, number: Any) -> Piece | None:
    if not _is_number(patch, MAX_PATCHES - 1) or not _is_number(number, MAX_CHUNKS - 1):
        return None
    return Piece(patch, str(part), number) if part in (CHUNKS, LIST) else None


def _has(offer: bytes, held: list[Any]) -> Has | None:
    found: dict[int, int] = {}
    for one in held:
        match one:
            case (patch, bytes() as bits):
                if (
                    not _is_number(patch, MAX_PATCHES - 1)
                    or len(bits) > (MAX_CHUNKS + 7) // 8
                    or patch in found
                ):
                    return None
                found[patch] = int.from_bytes(bits, "little")
            case _:
                return None
    return Has(offer, tuple(found.items()))


def _is_number(value: Any, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _is_record(record: Any) -> bool:
    return isinstance(record, bytes) and len(record) <= MAX_RECORD

# SPDX-License-Identifier: Apache-2.0
"""Questions of multicast DNS as packets have them (RFC 1035 4.1, RFC 6762 18).

python-zeroconf writes the answers. Its own questions are those of a network of some dozen hosts.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from ipaddress import IPv6Address

#: Longest packet: what fits into one frame (RFC 6762 17).
MOST_BYTES = 1452
#: Identifier, flags, and the numbers of questions, answers, authorities and additional records.
HEADER = struct.Struct("!HHHHHH")
#: Type and class behind the name of a question; a record has a lifetime and a length besides.
_QUESTION = struct.Struct("!HH")
_RECORD = struct.Struct("!HHIH")

PTR = 12
AAAA = 28
SRV = 33
_ANY = 255
_IN = 1
#: The answer may come to the questioner alone.
_UNICAST = 0x8000
#: Seconds that a name or an address lives, and that anything else does (RFC 6762 10).
_HOST_LIFETIME = 120
_LIFETIME = 4500
#: A name from here on is at another place of the packet, which the other 14 bits tell.
_POINTER = 0xC0
#: Questions of one packet that are looked at.
_QUESTIONS = 16


def label(text: str) -> bytes:
    """Return one label of a name, in small letters.

    :raises ValueError: it is too long for one.
    """
    part = text.lower().encode("utf-8", "replace")
    if len(part) > 63:
        raise ValueError(f"a label of {len(part)} bytes")
    return bytes((len(part),)) + part


def name(text: str) -> bytes:
    """Return a name of labels with dots between them."""
    return b"".join(label(part) for part in text.strip(".").split(".")) + b"\0"


def _record(owner: bytes, kind: int, lifetime: int, data: bytes) -> bytes:
    return owner + _RECORD.pack(kind, _IN, lifetime, len(data)) + data


def probe(instance: str, host: str, port: int, address: IPv6Address) -> bytes:
    """Return the question whether anybody has the names of a service and of its host, with what
    the questioner is going to publish under them (RFC 6762 8.1)."""
    names = [name(instance), name(host)]
    service = struct.pack("!HHH", 0, 0, port) + names[1]  # priority and weight (RFC 2782)
    return b"".join(
        (
            HEADER.pack(0, 0, len(names), 0, 2, 0),
            *(one + _QUESTION.pack(_ANY, _IN | _UNICAST) for one in names),
            _record(names[0], SRV, _HOST_LIFETIME, service),
            _record(names[1], AAAA, _HOST_LIFETIME, address.packed),
        )
    )


def browse(service: str, known: Iterable[str]) -> bytes:
    """Return the question who offers a service.

    :param known: names of services that need not answer (RFC 6762 7.1), as many as there is room
        for.
    """
    question = name(service) + _QUESTION.pack(PTR, _IN)
    there = struct.pack("!H", _POINTER << 8 | HEADER.size)
    answers = []
    room = MOST_BYTES - HEADER.size - len(question)
    for one in known:
        try:
            answer = _record(there, PTR, _LIFETIME, label(one.removesuffix(f".{service}")) + there)
        except ValueError:
            continue
        room -= len(answer)
        if room < 0:
            break
        answers.append(answer)
    return HEADER.pack(0, 0, 1, len(answers), 0, 0) + question + b"".join(answers)


def first_labels(packet: bytes) -> list[bytes] | None:
    """Return the first label of each question's name, with its length in front.

    A name in a packet may go on elsewhere, at a pointer (RFC 1035 4.1.4).

    :returns: None where they cannot be told: a whole name that is elsewhere, too many questions, or
        a packet that is cut off.
    """
    count = int.from_bytes(packet[4:6], "big")
    if count > _QUESTIONS:
        return None
    found = []
    at = HEADER.size
    for _ in range(count):
        length = packet[at] if at < len(packet) else _POINTER
        if length >= _POINTER:
            return None
        found.append(packet[at : at + 1 + length])
        while 0 < length < _POINTER:
            at += 1 + length
            if at >= len(packet):
                return None
            length = packet[at]
        at += (1 if length == 0 else 2) + _QUESTION.size  # the end, or the pointer
    return found

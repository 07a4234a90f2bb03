# SPDX-License-Identifier: Apache-2.0
"""What nodes tell each other of themselves, as it travels: JSON, compressed by zlib."""

from __future__ import annotations

import json
import zlib
from typing import Any


def pack(plain: dict[str, Any]) -> bytes:
    """Return an object as it travels."""
    return zlib.compress(json.dumps(plain, separators=(",", ":"), ensure_ascii=False).encode(), 9)


def unpack(packed: bytes, most_packed: int, most: int) -> tuple[dict[str, Any], int]:
    """Return an object that another node has packed, and its size in bytes.

    :param most_packed: bytes that it may have, and ``most`` unpacked.
    :raises ValueError: it is none, or too large.
    """
    if len(packed) > most_packed:
        raise ValueError(f"{len(packed)} bytes, packed")
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(packed, most)
        if not unpacker.eof:
            raise ValueError(f"more than {most} bytes, or not whole")
        plain = json.loads(data)
    except (zlib.error, RecursionError) as error:
        raise ValueError(str(error)) from None
    if not isinstance(plain, dict):
        raise ValueError("no object")
    return plain, len(data)

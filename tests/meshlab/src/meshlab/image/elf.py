# SPDX-License-Identifier: Apache-2.0
"""Which shared libraries a program needs, from its ELF dynamic section.

Structures and constants: System V ABI, "Object Files" and "Dynamic Linking"; ``<elf.h>``.
"""

from __future__ import annotations

import struct
from pathlib import Path

_MAGIC = b"\x7fELF"
_CLASS64, _LITTLE = 2, 1
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_DYNAMIC = struct.Struct("<qQ")


def needed(path: Path) -> list[str]:
    """Return the names of the libraries that the 64-bit little-endian ELF file asks for.

    A file that is not ELF, or is linked statically, needs none.

    :raises ValueError: when the file is damaged.
    """
    with path.open("rb") as file:
        if file.read(4) != _MAGIC:
            return []
        file.seek(0)
        data = file.read()
    try:
        return _needed(data)
    except (struct.error, IndexError) as error:
        raise ValueError(f"{path} is a damaged ELF file: {error}") from error


def _needed(data: bytes) -> list[str]:
    header = _HEADER.unpack_from(data)
    ident, segments_at, segment_size, segments = header[0], header[5], header[9], header[10]
    if ident[4] != _CLASS64 or ident[5] != _LITTLE:
        return []
    loads: list[tuple[int, int, int]] = []
    dynamic = b""
    for index in range(segments):
        kind, _flags, offset, address, _physical, size, _memory, _align = _SEGMENT.unpack_from(
            data, segments_at + index * segment_size
        )
        if kind == _PT_LOAD:
            loads.append((address, offset, size))
        elif kind == _PT_DYNAMIC:
            dynamic = data[offset : offset + size]
    names: list[int] = []
    strings = None
    for tag, value in _DYNAMIC.iter_unpack(dynamic[: len(dynamic) // 16 * 16]):
        if tag == _DT_NULL:
            break
        if tag == _DT_NEEDED:
            names.append(value)
        elif tag == _DT_STRTAB:
            # An address in memory: find the place in the file that is loaded there.
            for address, offset, size in loads:
                if address <= value < address + size:
                    strings = value - address + offset
    if not names:
        return []
    if strings is None:
        raise IndexError("its string table is not in the file")
    found = []
    for name in names:
        start = strings + name
        end = data.index(b"\0", start) if start < len(data) else -1
        if end < 0:
            raise IndexError("a library's name is outside the file")
        found.append(data[start:end].decode())
    return found

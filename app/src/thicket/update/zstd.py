# SPDX-License-Identifier: Apache-2.0
"""libzstd: what patches are compressed with (RFC 8878), by the same library on desk and node.

A *prefix* is memory that a frame refers to as if it were in front of its contents. Memory is given
by address: it is that of files that are mapped, which no copy is made of. The functions are those
of the library's stable interface (zstd.h).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from thicket.base.errors import CodedError

NO_ZSTD = "no-zstd"
NO_MEMORY = "no-memory"
BAD_FRAME = "bad-frame"

_LIBRARY = "libzstd.so.1"
_LEVEL, _WINDOW_LOG, _LONG_DISTANCES = 100, 101, 160
_CONTENT_SIZE, _CHECKSUM = 200, 201
_CONTINUE, _END = 0, 2
_LARGEST_WINDOW, _SMALLEST_WINDOW = 31, 10
_PIECE = 1 << 20
# zstd_errors.h: codes that never change
_WORDS = {64: "there is not enough memory", 70: "it makes more than it says", 72: "it is cut off"}
_MEMORY = 64


class ZstdError(CodedError):
    """It cannot be compressed or unpacked.

    The code is ``no-zstd``, ``no-memory`` or ``bad-frame``.
    """


class Memory(NamedTuple):
    """So many bytes of memory from an address on."""

    address: int
    size: int


EMPTY = Memory(0, 0)


class _Buffer(ctypes.Structure):
    """ZSTD_inBuffer and ZSTD_outBuffer."""

    _fields_ = (
        ("start", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("position", ctypes.c_size_t),
    )


@cache
def _library() -> ctypes.CDLL:
    """Return the library.

    :raises ZstdError: there is none.
    """
    try:
        found = ctypes.CDLL(_LIBRARY)
    except OSError:
        raise ZstdError(NO_ZSTD, f"{_LIBRARY} is missing: it makes and applies patches") from None
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    buffer = ctypes.POINTER(_Buffer)
    functions: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "ZSTD_isError": (ctypes.c_uint, (size,)),
        "ZSTD_getErrorName": (ctypes.c_char_p, (size,)),
        "ZSTD_createDCtx": (pointer, ()),
        "ZSTD_freeDCtx": (size, (pointer,)),
        "ZSTD_DCtx_refPrefix": (size, (pointer, pointer, size)),
        "ZSTD_decompressDCtx": (size, (pointer, pointer, size, pointer, size)),
        "ZSTD_createCCtx": (pointer, ()),
        "ZSTD_freeCCtx": (size, (pointer,)),
        "ZSTD_CCtx_setParameter": (size, (pointer, number, number)),
        "ZSTD_CCtx_setPledgedSrcSize": (size, (pointer, ctypes.c_ulonglong)),
        "ZSTD_CCtx_refPrefix": (size, (pointer, pointer, size)),
        "ZSTD_compressStream2": (size, (pointer, buffer, buffer, number)),
    }
    for name, (result, arguments) in functions.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


def unpack(frame: Memory, out: Memory, prefix: Memory = EMPTY) -> int:
    """Unpack a frame at once, straight into its place; return how many bytes it made.

    No window is held in memory, however large the frame's is: what it refers to is read from
    ``prefix`` and ``out`` themselves. The library takes some 200 KB.

    :raises ZstdError: it is damaged, has another prefix, or makes more than fits.
    """
    library = _library()
    context = library.ZSTD_createDCtx()
    if not context:
        raise ZstdError(NO_MEMORY, _WORDS[_MEMORY])
    try:
        if prefix.size:
            _check(library.ZSTD_DCtx_refPrefix(context, *prefix))
        return _check(library.ZSTD_decompressDCtx(context, *out, *frame))
    finally:
        library.ZSTD_freeDCtx(context)


def pack(
    data: Memory,
    write: Callable[[bytes], object],
    prefix: Memory = EMPTY,
    *,
    level: int,
    progress: Callable[[int], object] = lambda _: None,
) -> None:
    """Compress data into one frame, whose window is as large as prefix and data together.

    The same library makes the same bytes of the same data.

    :param write: takes the frame, piece by piece.
    :param progress: called with how many bytes of the data are done.
    :raises ZstdError: there is not enough memory.
    """
    library = _library()
    context = library.ZSTD_createCCtx()
    if not context:
        raise ZstdError(NO_MEMORY, _WORDS[_MEMORY])
    try:
        window = (data.size + prefix.size).bit_length()
        for parameter, value in (
            (_LEVEL, level),
            (_WINDOW_LOG, min(max(window, _SMALLEST_WINDOW), _LARGEST_WINDOW)),
            (_LONG_DISTANCES, 1),
            (_CONTENT_SIZE, 1),
            (_CHECKSUM, 0),  # a SHA-256 of all is known
        ):
            _check(library.ZSTD_CCtx_setParameter(context, parameter, value))
        _check(library.ZSTD_CCtx_setPledgedSrcSize(context, data.size))
        if prefix.size:
            _check(library.ZSTD_CCtx_refPrefix(context, *prefix))
        _stream(library, context, data, write, progress)
    finally:
        library.ZSTD_freeCCtx(context)


def _stream(
    library: ctypes.CDLL,
    context: int,
    data: Memory,
    write: Callable[[bytes], object],
    progress: Callable[[int], object],
) -> None:
    room = ctypes.create_string_buffer(_PIECE)
    out = _Buffer(ctypes.addressof(room), _PIECE, 0)
    source = _Buffer(data.address, 0, 0)
    while True:
        source.size = min(source.position + _PIECE, data.size)
        last = source.size == data.size
        out.position = 0
        left = _check(
            library.ZSTD_compressStream2(
                context, ctypes.byref(out), ctypes.byref(source), _END if last else _CONTINUE
            )
        )
        write(room.raw[: out.position])
        progress(source.position)
        if last and not left:
            return


def _check(result: int) -> int:
    """Return a result of the library.

    :raises ZstdError: it stands for an error.
    """
    library = _library()
    if not library.ZSTD_isError(result):
        return result
    number = (1 << 8 * ctypes.sizeof(ctypes.c_size_t)) - result
    words = _WORDS.get(number) or library.ZSTD_getErrorName(result).decode("ascii", "replace")
    raise ZstdError(NO_MEMORY if number == _MEMORY else BAD_FRAME, words)

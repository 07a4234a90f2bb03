# SPDX-License-Identifier: Apache-2.0
"""ECDSA on P-256 by the OpenSSL that Python's ``ssl`` is linked with, called through ctypes.

A node has no other library that can verify a signature, and needs none. Keys are in DER (private)
or X and Y (public, 64 bytes), digests are SHA-256, signatures R and S (64 bytes). Only functions
of OpenSSL 3.0 with a fixed number of arguments are called.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char_p, c_int, c_long, c_size_t, c_void_p
from functools import cache, lru_cache
from typing import Any

from thicket.base.errors import ThicketError
from thicket.trust.certificates import (
    CertificateError,
    decode_signature,
    encode_signature,
    key_info,
)


class OpenSslError(ThicketError):
    """OpenSSL cannot do what was asked of it, or is not there. The text says which."""


_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "EVP_PKEY_CTX_new_from_name": (c_void_p, (c_void_p, c_char_p, c_char_p)),
    "EVP_PKEY_CTX_new_from_pkey": (c_void_p, (c_void_p, c_void_p, c_char_p)),
    "EVP_PKEY_CTX_free": (None, (c_void_p,)),
    "EVP_PKEY_CTX_set_group_name": (c_int, (c_void_p, c_char_p)),
    "EVP_PKEY_keygen_init": (c_int, (c_void_p,)),
    "EVP_PKEY_paramgen_init": (c_int, (c_void_p,)),
    "EVP_PKEY_generate": (c_int, (c_void_p, POINTER(c_void_p))),
    "EVP_PKEY_new": (c_void_p, ()),
    "EVP_PKEY_copy_parameters": (c_int, (c_void_p, c_void_p)),
    "EVP_PKEY_set1_encoded_public_key": (c_int, (c_void_p, c_char_p, c_size_t)),
    "EVP_PKEY_free": (None, (c_void_p,)),
    "EVP_PKEY_sign_init": (c_int, (c_void_p,)),
    "EVP_PKEY_sign": (c_int, (c_void_p, c_char_p, POINTER(c_size_t), c_char_p, c_size_t)),
    "EVP_PKEY_verify_init": (c_int, (c_void_p,)),
    "EVP_PKEY_verify": (c_int, (c_void_p, c_char_p, c_size_t, c_char_p, c_size_t)),
    "i2d_PrivateKey": (c_int, (c_void_p, POINTER(c_void_p))),
    "i2d_PUBKEY": (c_int, (c_void_p, POINTER(c_void_p))),
    "d2i_AutoPrivateKey": (c_void_p, (c_void_p, POINTER(c_char_p), c_long)),
    "ERR_clear_error": (None, ()),
}


@cache
def _library() -> ctypes.CDLL:
    import _ssl  # its file is what has the right OpenSSL behind it

    tried: list[str] = []
    for candidate in (getattr(_ssl, "__file__", None), "libcrypto.so.3"):
        if candidate is None:
            continue
        try:
            library = ctypes.CDLL(candidate)
            for function, (result, arguments) in _FUNCTIONS.items():
                getattr(library, function).restype = result
                getattr(library, function).argtypes = arguments
        except (OSError, AttributeError) as error:
            tried.append(str(error))
        else:
            return library
    raise OpenSslError(f"no OpenSSL 3 behind Python's ssl module, tried: {'; '.join(tried)}")


def _check(result: int | None, what: str) -> int:
    if not result or result < 0:
        _library().ERR_clear_error()
        raise OpenSslError(f"OpenSSL could not {what}")
    return result


def _encoded(function: Any, key: c_void_p) -> bytes:
    size = _check(function(key, None), "measure a key")
    buffer = ctypes.create_string_buffer(size)
    place = c_void_p(ctypes.addressof(buffer))
    _check(function(key, byref(place)), "write a key")
    return buffer.raw


class _Handle:
    """Something of OpenSSL's that is freed at the end of a block, or with the last reference."""

    def __init__(self, pointer: int | None, free: Any, what: str) -> None:
        self.pointer: c_void_p | None = c_void_p(_check(pointer, what))
        self._free = free

    def __enter__(self) -> c_void_p:
        assert self.pointer is not None
        return self.pointer

    def __exit__(self, *_: object) -> None:
        self._free(self.pointer)
        self.pointer = None

    def __del__(self) -> None:
        if getattr(self, "pointer", None) is not None:
            self._free(self.pointer)


def _context(key: c_void_p | None) -> _Handle:
    lib = _library()
    return _Handle(
        lib.EVP_PKEY_CTX_new_from_pkey(None, key, None), lib.EVP_PKEY_CTX_free, "use a key"
    )


@lru_cache(maxsize=2)
def _private(key: bytes) -> _Handle:
    """Return a private key that was read: the node's own, mostly, whose reading takes OpenSSL much
    longer than a signature."""
    lib = _library()
    return _Handle(
        lib.d2i_AutoPrivateKey(None, byref(c_char_p(key)), len(key)),
        lib.EVP_PKEY_free,
        "read a private key",
    )


def _generated(begin: str, what: str) -> _Handle:
    """Return something on the curve P-256 that OpenSSL makes.

    :param begin: the function that says what it is.
    """
    lib = _library()
    with _Handle(
        lib.EVP_PKEY_CTX_new_from_name(None, b"EC", None), lib.EVP_PKEY_CTX_free, what
    ) as context:
        _check(getattr(lib, begin)(context), what)
        _check(lib.EVP_PKEY_CTX_set_group_name(context, b"P-256"), "use the curve P-256")
        pointer = c_void_p()
        _check(lib.EVP_PKEY_generate(context, byref(pointer)), what)
    return _Handle(pointer.value, lib.EVP_PKEY_free, what)


@cache
def _curve() -> _Handle:
    """Return the curve P-256 as a key without a point."""
    return _generated("EVP_PKEY_paramgen_init", "name the curve P-256")


def _public(key: bytes) -> _Handle | None:
    """Return a public key; None when it is no point of the curve.

    The point is put on a known curve: to read the same key from DER takes longer than a check of a
    signature.
    """
    lib = _library()
    found = _Handle(lib.EVP_PKEY_new(), lib.EVP_PKEY_free, "make room for a public key")
    curve = _curve()  # held: two threads may have made one each, of which one is kept
    _check(lib.EVP_PKEY_copy_parameters(found.pointer, curve.pointer), "use the curve P-256")
    if lib.EVP_PKEY_set1_encoded_public_key(found.pointer, b"\4" + key, 1 + len(key)) != 1:
        lib.ERR_clear_error()
        return None
    return found


def generate_key() -> bytes:
    """Return a new private key (DER, as in RFC 5915)."""
    with _generated("EVP_PKEY_keygen_init", "make a key") as key:
        return _encoded(_library().i2d_PrivateKey, key)


def public_key(private_key: bytes) -> bytes:
    """Return the public key, X and Y.

    :raises OpenSslError: it is no key of P-256.
    """
    key = _private(private_key)  # held, or another thread's key may push it out of the cache
    assert key.pointer is not None
    info = _encoded(_library().i2d_PUBKEY, key.pointer)
    if len(info) < 64 or info != key_info(info[-64:]):
        raise OpenSslError("the private key is not one of the curve P-256")
    return info[-64:]


def sign(private_key: bytes, digest: bytes) -> bytes:
    """Return a signature (R and S) of a SHA-256 digest."""
    lib = _library()
    key = _private(private_key)  # held, as in public_key
    with _context(key.pointer) as context:
        _check(lib.EVP_PKEY_sign_init(context), "begin to sign")
        buffer, size = ctypes.create_string_buffer(128), c_size_t(128)
        _check(lib.EVP_PKEY_sign(context, buffer, byref(size), digest, len(digest)), "sign")
        return decode_signature(buffer.raw[: size.value])


def verify(public_key: bytes, digest: bytes, signature: bytes) -> bool:
    """Return whether ``signature`` (R and S) of a SHA-256 ``digest`` is by ``public_key``.

    A key that is no point of the curve has signed nothing.
    """
    lib = _library()
    try:
        encoded = encode_signature(signature)
    except (ValueError, CertificateError):
        return False
    key = _public(public_key) if len(public_key) == 64 else None
    if key is None:
        return False
    with _context(key.pointer) as context:
        _check(lib.EVP_PKEY_verify_init(context), "begin to verify")
        good = lib.EVP_PKEY_verify(context, encoded, len(encoded), digest, len(digest)) == 1
        lib.ERR_clear_error()
        return bool(good)

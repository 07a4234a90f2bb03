# SPDX-License-Identifier: Apache-2.0
"""P-256 as the chip speaks it: keys are 32-byte numbers, points X and Y, signatures R and S."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    Prehashed,
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.hashes import SHA256

ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Order of the curve's group (SEC 2, secp256r1)."""

_DIGEST = ec.ECDSA(Prehashed(SHA256()))


def private_key(entropy: bytes) -> bytes:
    """Return a private key (32 bytes) made of 40 random bytes (FIPS 186-5, A.2.1)."""
    if len(entropy) < 40:
        raise ValueError("40 random bytes are needed for an unbiased key")
    return (int.from_bytes(entropy, "big") % (ORDER - 1) + 1).to_bytes(32, "big")


def is_private_key(key: bytes) -> bool:
    """Tell whether ``key`` is a usable private key."""
    return len(key) == 32 and 0 < int.from_bytes(key, "big") < ORDER


def _private(key: bytes) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(key, "big"), ec.SECP256R1())


def _public(point: bytes) -> ec.EllipticCurvePublicKey:
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + point)


def public_key(key: bytes) -> bytes:
    """Return the public key, X and Y, of a private key."""
    numbers = _private(key).public_key().public_numbers()
    return numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")


def sign(key: bytes, digest: bytes) -> bytes:
    """Sign a 32-byte digest: R and S."""
    r, s = decode_dss_signature(_private(key).sign(digest, _DIGEST))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def verify(point: bytes, signature: bytes, digest: bytes) -> bool:
    """Check a signature.

    :raises ValueError: when ``point`` is not on the curve.
    """
    key = _public(point)
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    try:
        key.verify(encode_dss_signature(r, s), digest, _DIGEST)
    except InvalidSignature:
        return False
    return True


def shared_secret(key: bytes, point: bytes) -> bytes:
    """Return the ECDH secret, 32 bytes.

    :raises ValueError: when the point is off the curve.
    """
    return _private(key).exchange(ec.ECDH(), _public(point))

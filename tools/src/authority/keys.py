# SPDX-License-Identifier: Apache-2.0
"""The authority's private keys: encrypted in its folder, or on a PKCS#11 token.

A key's file is PKCS#8, encrypted with AES-256; the encryption's key is derived from a passphrase by
scrypt. That needs the package cryptography, which nodes do not have.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from hashlib import scrypt
from typing import Any, Final, Protocol

from authority.errors import AuthorityError
from authority.folder import Folder
from thicket.trust import der, openssl
from thicket.trust.der import Reader

ROOT: Final = "root"
"""The name of the root's files without their endings."""

_ITERATIONS, _BLOCK, _PARALLEL = 1 << 14, 8, 5
"""Cost of scrypt (RFC 7914): 16 MiB five times over for every guess at a passphrase; OpenSSL's own
commands open keys that need up to 32 MiB."""

_MOST_MEMORY: Final = 1 << 28
"""Bytes of memory that scrypt may ask for at most when a key is opened."""


def encrypt_key(private_key: bytes, passphrase: str) -> bytes:
    """Return a private key as EncryptedPrivateKeyInfo (RFC 5958; scrypt of RFC 7914, section 7)."""
    salt, iv = os.urandom(16), os.urandom(16)
    info = der.sequence(
        der.integer(0),
        der.sequence(der.oid("1.2.840.10045.2.1"), der.oid("1.2.840.10045.3.1.7")),
        der.octet_string(private_key),
    )
    kdf = der.sequence(
        der.oid("1.3.6.1.4.1.11591.4.11"),
        der.sequence(
            der.octet_string(salt),
            der.integer(_ITERATIONS),
            der.integer(_BLOCK),
            der.integer(_PARALLEL),
        ),
    )
    cipher = der.sequence(der.oid("2.16.840.1.101.3.4.1.42"), der.octet_string(iv))
    padding = 16 - len(info) % 16
    return der.sequence(
        der.sequence(der.oid("1.2.840.113549.1.5.13"), der.sequence(kdf, cipher)),
        der.octet_string(
            _aes(_stretch(passphrase, salt, _ITERATIONS, _BLOCK, _PARALLEL), iv)
            .encryptor()
            .update(info + bytes((padding,)) * padding)
        ),
    )


def decrypt_key(encrypted: bytes, passphrase: str) -> bytes:
    """Return the private key (DER).

    :raises AuthorityError: when the passphrase is wrong, or ``encrypted`` is damaged.
    """
    try:
        outer = Reader(encrypted).inside(der.SEQUENCE)
        algorithm = outer.inside(der.SEQUENCE)
        algorithm.take()
        parameters = algorithm.inside(der.SEQUENCE)
        kdf = parameters.inside(der.SEQUENCE)
        kdf.take()
        cost = kdf.inside(der.SEQUENCE)
        salt = cost.next(der.OCTET_STRING)
        n, r, p = (der.decode_integer(cost.next(der.INTEGER)) for _ in range(3))
        cipher = parameters.inside(der.SEQUENCE)
        cipher.take()
        iv = cipher.next(der.OCTET_STRING)
        data = outer.next(der.OCTET_STRING)
        plain = _aes(_stretch(passphrase, salt, n, r, p), iv).decryptor().update(data)
        info = Reader(plain[: -plain[-1]]).inside(der.SEQUENCE)
        info.take()
        info.take()
        key = info.next(der.OCTET_STRING)
        openssl.public_key(key)
    except (ValueError, LookupError, openssl.OpenSslError):
        raise AuthorityError("the passphrase is wrong, or the file is damaged") from None
    return key


def _stretch(passphrase: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    if 128 * n * r > _MOST_MEMORY:
        raise AuthorityError("the key's file asks for more memory than any that Thicket writes")
    return scrypt(
        passphrase.encode(), salt=salt, n=n, r=r, p=p, maxmem=(128 * n * r) + (1 << 20), dklen=32
    )


def _aes(key: bytes, iv: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers import (  # not on a node
            Cipher,
            algorithms,
            modes,
        )
    except ImportError:
        raise AuthorityError(
            "the authority needs the Python package cryptography on this machine: "
            "pip install cryptography"
        ) from None
    return Cipher(algorithms.AES(key), modes.CBC(iv))


class SigningKey(Protocol):
    """A private key, wherever it is."""

    @property
    def public_key(self) -> bytes:
        """X and Y (64 bytes)."""

    def sign(self, digest: bytes) -> bytes:
        """Return R and S (64 bytes) for a SHA-256 digest."""


class HeldKey:
    """A private key in memory. It is secret: never print this.

    :ivar public_key: X and Y (64 bytes).
    """

    def __init__(self, private_key: bytes) -> None:
        """Hold a key.

        :param private_key: the key (DER).
        """
        self._key = private_key
        self.public_key = openssl.public_key(private_key)

    def sign(self, digest: bytes) -> bytes:
        """See ``SigningKey``."""
        return openssl.sign(self._key, digest)

    def exported(self) -> bytes:
        """Return the private key (DER), for TLS."""
        return self._key


class Keys:
    """The keys of one fleet's authority. Each is opened when it is first needed, and stays open."""

    def __init__(
        self,
        folder: Folder,
        passphrase: Callable[[str], str],
        unneeded: Callable[[], object] = lambda: None,
    ) -> None:
        """Open no key yet.

        :param folder: where the keys, or the URIs of those on a token, are.
        :param passphrase: called with a question for a passphrase or a PIN; returns the answer.
        :param unneeded: called once when a key is needed that has no passphrase.
        """
        self._folder = folder
        self._unneeded = unneeded
        self._told = False
        self._passphrase = passphrase
        self._opened: dict[str, SigningKey] = {}
        self._pins: dict[str, str] = {}

    def make(self, stem: str, *, fleet: str, lab: bool, token: str | None) -> SigningKey:
        """Make a key.

        :param stem: ``ROOT``, or that of a signer of devices or updates, or an operator.
        :param fleet: name of the fleet; it is part of the key's label on a token.
        :param lab: encrypt the key with an empty passphrase: a fleet of the simulator has nothing
            to protect, and nobody to type a passphrase.
        :param token: URI of the PKCS#11 token that makes and holds the key, if it is not in a file.
        """
        if token is not None:
            from authority.token import Token, TokenKey, Uri

            given = Uri.parse(token)
            uri = Token(given, self._pin).generate(f"thicket {fleet} {stem}")
            self._folder.write(f"{stem}.p11", f"{uri}\n".encode())
            # The PIN may stand in the URI that was given; it is never kept in the folder.
            self._opened[stem] = TokenKey(Uri(uri.path, uri.query | given.query), self._pin)
            return self._opened[stem]
        private = openssl.generate_key()
        passphrase = self._ask(f"New passphrase for {_named(stem)}", lab=lab)
        self._folder.write(f"{stem}.key", encrypt_key(private, passphrase))
        self._opened[stem] = HeldKey(private)
        return self._opened[stem]

    def open(self, stem: str) -> SigningKey:
        """Open a key.

        :raises AuthorityError: when it is not here, or does not open.
        """
        if stem not in self._opened:
            if (self._folder.path / f"{stem}.p11").exists():
                from authority.token import TokenKey, Uri

                kept = self._folder.read(f"{stem}.p11", _named(stem))
                uri = Uri.parse(kept.decode("utf-8", "replace").strip())
                self._opened[stem] = TokenKey(uri, self._pin)
            else:
                data = self._folder.read(f"{stem}.key", _named(stem))
                lab = self._folder.document()["lab"]
                passphrase = self._ask(f"Passphrase of {_named(stem)}", lab=lab)
                try:
                    self._opened[stem] = HeldKey(decrypt_key(data, passphrase))
                except AuthorityError as error:
                    raise AuthorityError(
                        f"{_named(stem)} ({self._folder.path / stem}.key) does not open: {error}"
                    ) from None
        return self._opened[stem]

    def has(self, stem: str) -> bool:
        """Tell whether this copy of the authority has a key."""
        return any((self._folder.path / f"{stem}.{end}").exists() for end in ("key", "p11"))

    def _ask(self, question: str, *, lab: bool) -> str:
        """Return a passphrase; that of a fleet of the simulator is empty."""
        if not lab:
            return self._passphrase(question)
        if not self._told:
            self._told = True
            self._unneeded()
        return ""

    def _pin(self, question: str) -> str:
        if question not in self._pins:
            self._pins[question] = self._passphrase(question)
        return self._pins[question]


def signer_stem(number: int) -> str:
    """Return the name of a signer's files without their endings."""
    return f"signer-{number:04X}"


def update_signer_stem(name: str) -> str:
    """Return the name of an update signer's files without their endings."""
    return f"update-{name}"


def operator_stem(name: str) -> str:
    """Return the name of an operator's files without their endings."""
    return f"operator-{name}"


def _named(stem: str) -> str:
    """Return what a key is called in questions and errors."""
    if stem == ROOT:
        return "the root's key"
    if stem.startswith("update-"):
        return f"the key of update signer {stem.removeprefix('update-')!r}"
    if stem.startswith("operator-"):
        return f"the key of operator {stem.removeprefix('operator-')!r}"
    return f"the key of signer {int(stem.removeprefix('signer-'), 16)}"

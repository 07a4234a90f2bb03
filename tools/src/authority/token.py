# SPDX-License-Identifier: Apache-2.0
"""Keys of the authority on a PKCS#11 token: a smart card, a hardware security module, SoftHSM.

A token is named by a URI (RFC 7512), ``pkcs11:token=NAME?module-path=/usr/lib/.../module.so``. The
keys are made on it, P-256, and cannot be read out of it; the authority's folder keeps the URI of
each. The PIN is asked for, or the URI says where it is (``pin-source=file:...``). Needs the package
python-pkcs11 (MIT) on the engineer's machine; PyKCS11, the other one that is kept up, is GPL.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from thicket.base.errors import ThicketError

PATH: Final = ("token", "manufacturer", "serial", "model", "slot-id", "object", "id", "type")
QUERY: Final = ("module-path", "pin-source", "pin-value")

MODULE_VARIABLE: Final = "THICKET_PKCS11_MODULE"
"""Names the module where the URI does not."""


class TokenError(ThicketError):
    """The token cannot do this. The text says what was found and what to do."""


class Uri(NamedTuple):
    """The attributes of a URI of RFC 7512 that Thicket knows."""

    path: dict[str, str]
    query: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> Uri:
        """Read a URI.

        :raises TokenError: when it is not one of a PKCS#11 token, or has attributes that are not
            known.
        """
        parts = urlsplit(text)
        if parts.scheme != "pkcs11" or parts.netloc or parts.fragment:
            raise TokenError(f"{text!r} is no PKCS#11 URI, such as pkcs11:token=NAME")
        found: list[dict[str, str]] = []
        for piece, mark, known in ((parts.path, ";", PATH), (parts.query, "&", QUERY)):
            attributes: dict[str, str] = {}
            for item in filter(None, piece.split(mark)):
                name, equals, value = item.partition("=")
                if not equals or name not in known or name in attributes:
                    raise TokenError(
                        f"{name!r} in the PKCS#11 URI is "
                        + ("there twice" if name in attributes else "not known")
                    )
                attributes[name] = value if name == "id" else unquote(value)
            found.append(attributes)
        return cls(*found)

    def __str__(self) -> str:
        path = ";".join(
            f"{n}={v if n == 'id' else quote(v, safe='')}" for n, v in self.path.items()
        )
        query = "&".join(f"{n}={quote(v, safe='/:')}" for n, v in self.query.items())
        return f"pkcs11:{path}" + (f"?{query}" if query else "")

    def describe(self) -> str:
        """Return which token it is, for people."""
        names = (self.path.get(name) for name in ("token", "serial", "slot-id"))
        return next(filter(None, names), "the token")


class Token:
    """A token. Every use logs in, and out again."""

    def __init__(self, uri: Uri, pin: Callable[[str], str]) -> None:
        """Name a token; nobody logs in yet.

        :param pin: called with a question; returns the PIN.
        :raises TokenError: when ``uri`` names no token.
        """
        if not uri.path.keys() & {"token", "serial", "slot-id"}:
            raise TokenError("the PKCS#11 URI must name a token: token=, serial= or slot-id=")
        self.uri = uri
        self._pin = pin

    def _module(self) -> tuple[Any, Any]:
        path = self.uri.query.get("module-path") or os.environ.get(MODULE_VARIABLE)
        if not path:
            raise TokenError(
                "which PKCS#11 module is to be used? Say it in the URI (module-path=/usr/lib/...so)"
                f" or in {MODULE_VARIABLE}"
            )
        try:
            import pkcs11  # not on a node, and on few engineers' machines
        except ImportError:
            raise TokenError(
                "keys on a token need the Python package python-pkcs11 on this machine: "
                "pip install python-pkcs11"
            ) from None
        try:
            return pkcs11, pkcs11.lib(path)
        except (pkcs11.PKCS11Error, OSError, RuntimeError) as error:
            raise TokenError(f"the PKCS#11 module {path} cannot be loaded: {error}") from None

    def _find(self, pkcs11: Any, library: Any) -> Any:
        wanted = self.uri.path
        found = []
        for slot in library.get_slots(token_present=True):
            if "slot-id" in wanted and str(slot.slot_id) != wanted["slot-id"]:
                continue
            try:
                token = slot.get_token()
            except pkcs11.PKCS11Error:
                continue
            serial = token.serial
            serial = serial.decode(errors="replace") if isinstance(serial, bytes) else str(serial)
            values = {
                "token": token.label,
                "serial": serial,
                "manufacturer": token.manufacturer_id,
                "model": token.model,
            }
            if all(str(v).strip() == wanted[n] for n, v in values.items() if n in wanted):
                found.append(token)
        if len(found) != 1:
            raise TokenError(
                f"{len(found) or 'no'} tokens are {self.uri.describe()!r}"
                + ("; name one by its serial=" if found else "; is it plugged in?")
            )
        return found[0]

    def _pin_text(self) -> str:
        if "pin-value" in self.uri.query:
            return self.uri.query["pin-value"]
        source = self.uri.query.get("pin-source")
        if source is None:
            return self._pin(f"PIN of the token {self.uri.describe()!r}")
        path = Path(source.removeprefix("file:"))
        try:
            return path.read_text(encoding="utf-8").rstrip("\r\n")
        except OSError as error:
            raise TokenError(f"the token's PIN in {path}: {error.strerror}") from None

    @contextlib.contextmanager
    def session(self, *, write: bool = False) -> Iterator[tuple[Any, Any]]:
        pkcs11, library = self._module()
        try:
            token = self._find(pkcs11, library)
            with token.open(rw=write, user_pin=self._pin_text()) as session:
                yield pkcs11, session
        except (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange):
            raise TokenError(
                f"the PIN of the token {self.uri.describe()!r} is wrong; after a few of them it is "
                "locked"
            ) from None
        except pkcs11.PinLocked:
            raise TokenError(
                f"the token {self.uri.describe()!r} is locked: too many wrong PINs"
            ) from None
        except pkcs11.PKCS11Error as error:
            raise TokenError(
                f"the token {self.uri.describe()!r}: {type(error).__name__} {error}".rstrip()
            ) from None

    def generate(self, label: str) -> Uri:
        """Make a key on the token.

        :param label: what the key is called there.
        :returns: the URI that names the key.
        :raises TokenError: when the token has such a key already, or refuses.
        """
        with self.session(write=True) as (pkcs11, session):
            attribute, kind = pkcs11.Attribute, pkcs11.KeyType.EC
            if list(session.get_objects({attribute.LABEL: label})):
                raise TokenError(
                    f"the token {self.uri.describe()!r} has a key {label!r} already; it is not "
                    "replaced"
                )
            from pkcs11.util.ec import encode_named_curve_parameters

            curve = {attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
            identity = os.urandom(16)
            session.create_domain_parameters(kind, curve, local=True).generate_keypair(
                mechanism=pkcs11.Mechanism.EC_KEY_PAIR_GEN,
                store=True,
                label=label,
                id=identity,
                capabilities=pkcs11.MechanismFlag.SIGN | pkcs11.MechanismFlag.VERIFY,
                private_template={attribute.SENSITIVE: True, attribute.EXTRACTABLE: False},
            )
        path = {n: v for n, v in self.uri.path.items() if n not in ("object", "id", "type")}
        path |= {"object": label, "id": "".join(f"%{byte:02X}" for byte in identity)}
        # a PIN is never kept in the authority's folder
        query = {n: v for n, v in self.uri.query.items() if n != "pin-value"}
        return Uri(path, query)


class TokenKey:
    """A private key on a token; see ``keys.SigningKey``.

    :ivar public_key: X and Y (64 bytes).
    """

    def __init__(self, uri: Uri, pin: Callable[[str], str]) -> None:
        """Read the public key.

        :param uri: names the key, as ``Token.generate`` returns it.
        :param pin: called with a question; returns the PIN.
        :raises TokenError: when there is not exactly one such key, or it is not one of the curve
            P-256.
        """
        self._token = Token(uri, pin)
        self._uri = uri
        with self._token.session() as (pkcs11, session):
            key = self._object(pkcs11, session, pkcs11.ObjectClass.PUBLIC_KEY)
            point = bytes(key[pkcs11.Attribute.EC_POINT])
        # an OCTET STRING around an uncompressed point; some modules leave the former out
        if point[:2] == b"\x04\x41" and len(point) == 67:
            point = point[2:]
        if len(point) != 65 or point[0] != 4:
            raise TokenError(f"the key {uri} is not one of the curve P-256")
        self.public_key = point[1:]

    def _object(self, pkcs11: Any, session: Any, kind: Any) -> Any:
        attribute = pkcs11.Attribute
        wanted: dict[Any, Any] = {attribute.CLASS: kind, attribute.KEY_TYPE: pkcs11.KeyType.EC}
        if "object" in self._uri.path:
            wanted[attribute.LABEL] = self._uri.path["object"]
        if "id" in self._uri.path:
            from urllib.parse import unquote_to_bytes

            wanted[attribute.ID] = unquote_to_bytes(self._uri.path["id"])
        found = list(session.get_objects(wanted))
        if len(found) != 1:
            raise TokenError(f"{len(found) or 'no'} keys are {self._uri}")
        return found[0]

    def sign(self, digest: bytes) -> bytes:
        """Return R and S (64 bytes) for a SHA-256 digest."""
        with self._token.session() as (pkcs11, session):
            key = self._object(pkcs11, session, pkcs11.ObjectClass.PRIVATE_KEY)
            signature = bytes(key.sign(digest, mechanism=pkcs11.Mechanism.ECDSA))
        if len(signature) != 64:
            raise TokenError(f"the token's signature has {len(signature)} bytes instead of 64")
        return signature

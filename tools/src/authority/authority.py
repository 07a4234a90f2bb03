# SPDX-License-Identifier: Apache-2.0
"""The fleet's certificate authority: a folder on the engineer's machine.

    fleet.json         name, signers, devices: everything that is not secret, for people to read
    root.pem           the root certificate: what every node of the fleet trusts
    root.key           its key, encrypted (PKCS#8, scrypt and AES-256)
    signer-0001.pem, signer-0001.key
    root.p11, signer-0001.p11
                       instead of .key where the key is on a PKCS#11 token: its URI
    network.json       the mesh's passphrase and the cluster's cookie, as on every card, and the
                       newest change of the passphrase
    revocations.bin    the list as it is given to nodes, signed by the root

The root's key is needed for new signers, revocations and another passphrase, a signer's key for new
devices: give whoever enrols devices a folder without ``root.key``. Files are replaced as a whole,
readable by their owner only. Needs the package cryptography for the encryption; nodes do not have
this module's keys, and never import it.
"""

from __future__ import annotations

import fcntl
import json
import os
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import scrypt, sha256
from ipaddress import IPv6Network
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final, Protocol

from authority import nerveskey, provisioning
from thicket.base.errors import ThicketError
from thicket.identity.address import SOURCES, identity_of_serial
from thicket.identity.chip.memory import CONFIG_LOCK, DATA_LOCK, SLOT_LOCKS, serial_in
from thicket.trust import certificates as x509
from thicket.trust import der, openssl
from thicket.trust import fleet as fleets
from thicket.trust.certificates import Certificate, CertificateError
from thicket.trust.change import MAX_FORMER, Change, SignedChange, tag
from thicket.trust.chip_slots import PRIMARY, PRIVATE_KEY, CertificateSet, read_set
from thicket.trust.compressed import NO_END, encode_dates
from thicket.trust.der import Reader
from thicket.trust.fleet import Fleet
from thicket.trust.revocations import MAX_LIST, Revocations, SignedList, all_names
from thicket.trust.verify import RefusedError

if TYPE_CHECKING:
    from thicket.identity.chip.atecc import Atecc

FORMAT: Final = 1

SIGNER_YEARS, DEVICE_YEARS = 10, 31
"""Validity of signers and devices in years; a device without RTC in the field has to last."""

_ITERATIONS, _BLOCK, _PARALLEL = 1 << 14, 8, 5
"""Cost of scrypt (RFC 7914): 16 MiB five times over for every guess at a passphrase; OpenSSL's own
commands open keys that need up to 32 MiB."""


class AuthorityError(ThicketError):
    """The authority cannot do this. The text says what was found and what to do."""


# -- keys at rest


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
    """Return the private key. Raises ``AuthorityError`` when the passphrase is wrong."""
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
        raise AuthorityError("the passphrase is wrong, or the key's file is damaged") from None
    return key


def _stretch(passphrase: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    if 128 * n * r > 1 << 28:
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
    """A private key in memory. It is secret: never print this."""

    def __init__(self, private_key: bytes) -> None:
        """Hold ``private_key`` (DER)."""
        self._key = private_key
        self.public_key = openssl.public_key(private_key)

    def sign(self, digest: bytes) -> bytes:
        """See ``SigningKey``."""
        return openssl.sign(self._key, digest)


def years_from(now: datetime, years: int) -> tuple[datetime, datetime]:
    """Return a validity of whole ``years`` that begins with the hour of ``now``."""
    begin = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    if (begin.month, begin.day) == (2, 29):  # which most years do not have
        begin = begin.replace(day=28)
    return begin, begin.replace(year=begin.year + years)


def _validity_of(now: datetime, years: int) -> tuple[datetime, datetime]:
    """Return :func:`years_from` as far as a chip can keep it; raises ``AuthorityError``.

    Asked for before anything is written: a chip's configuration is locked for ever.
    """
    validity = years_from(now, years)
    try:
        encode_dates(*validity)
    except ValueError as error:
        raise AuthorityError(f"nothing was written: {error}. Is the clock right?") from None
    return validity


class Authority:
    """One fleet's authority. Every method reads the folder anew; one process at a time changes it.

    ``passphrase`` is asked when a key is needed, with the words for the question. ``clock`` gives
    the time in UTC.
    """

    def __init__(
        self,
        folder: Path,
        passphrase: Callable[[str], str],
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Use ``folder``; it need not exist yet."""
        self.folder = folder
        self._passphrase = passphrase
        self._clock = clock
        self._opened: dict[str, SigningKey] = {}
        self._pins: dict[str, str] = {}

    # -- the folder

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        document = self._document()
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            document = self._document()
            yield document
            self._save(document)

    def _document(self) -> dict[str, Any]:
        path = self.folder / "fleet.json"
        try:
            document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise AuthorityError(
                f"there is no fleet in {self.folder}; `thicket ca init NAME` makes one"
            ) from None
        except (OSError, ValueError) as error:
            raise AuthorityError(f"{path} cannot be read: {error}") from error
        if document.get("format") != FORMAT:
            raise AuthorityError(f"{path} is of format {document.get('format')}, not {FORMAT}")
        return document

    def _save(self, document: dict[str, Any]) -> None:
        self._write("fleet.json", (json.dumps(document, indent=1) + "\n").encode())

    def _write(self, name: str, data: bytes) -> None:
        new = self.folder / (name + ".new")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.folder / name)

    def _read(self, name: str, what: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise AuthorityError(
                f"{what} is needed and not in {self.folder}: {error.strerror}"
            ) from error

    def _new_key(
        self, stem: str, what: str, document: dict[str, Any], token: str | None
    ) -> SigningKey:
        if token is not None:
            from authority.token import Token, TokenKey, Uri

            label = f"thicket {document['name']} {stem}"
            uri = Token(Uri.parse(token), self._pin).generate(label)
            self._write(f"{stem}.p11", f"{uri}\n".encode())
            # of the two ways to the PIN the URI that was given may have had the shorter one
            given = Uri.parse(token).query
            self._opened[stem] = TokenKey(Uri(uri.path, uri.query | given), self._pin)
            return self._opened[stem]
        private = openssl.generate_key()
        # A fleet of the simulator has nothing to protect, and nobody to type a passphrase.
        passphrase = "" if document["lab"] else self._passphrase(f"New passphrase for {what}")
        self._write(f"{stem}.key", encrypt_key(private, passphrase))
        self._opened[stem] = HeldKey(private)
        return self._opened[stem]

    def _pin(self, question: str) -> str:
        if question not in self._pins:
            self._pins[question] = self._passphrase(question)
        return self._pins[question]

    def _key(self, stem: str, what: str) -> SigningKey:
        """Open a key; the passphrase is asked for once."""
        if stem not in self._opened:
            if (self.folder / f"{stem}.p11").exists():
                from authority.token import TokenKey, Uri

                text = self._read(f"{stem}.p11", what).decode("utf-8", "replace").strip()
                self._opened[stem] = TokenKey(Uri.parse(text), self._pin)
            else:
                data = self._read(f"{stem}.key", what)
                lab = self._document()["lab"]
                passphrase = "" if lab else self._passphrase(f"Passphrase of {what}")
                self._opened[stem] = HeldKey(decrypt_key(data, passphrase))
        return self._opened[stem]

    @property
    def fleet(self) -> Fleet:
        """The fleet. Raises ``AuthorityError`` when there is none."""
        self._document()
        try:
            return Fleet(x509.from_pem(self._read("root.pem", "the root").decode("ascii"))[0])
        except (CertificateError, LookupError, UnicodeDecodeError) as error:
            raise AuthorityError(f"{self.folder / 'root.pem'}: {error}") from error

    # -- what it does

    def init(
        self, name: str, network: IPv6Network, *, lab: bool = False, token: str | None = None
    ) -> Fleet:
        """Make a fleet with its first signer. A ``lab`` fleet's keys have an empty passphrase.

        ``token`` is the URI of a PKCS#11 token for both keys. Raises ``AuthorityError`` when there
        is a fleet already, and ``TokenError``.
        """
        if (self.folder / "fleet.json").exists():
            raise AuthorityError(
                f"{self.folder} has a fleet already; it is not replaced, because its devices would "
                "be lost"
            )
        begin, _ = _validity_of(self._clock(), SIGNER_YEARS)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        document = {
            "format": FORMAT,
            "name": name,
            "prefix": str(network),
            "lab": lab,
            "signers": {},
            "devices": {},
            "revocations": 0,
        }
        key = self._new_key("root", "the root's key", document, token)
        profile = fleets.root_profile(name, network, key.public_key, (begin, NO_END))
        self._write("root.pem", x509.pem(profile.signed(key.sign(profile.digest()))).encode())
        self._save(document)
        self.signer(token=token)
        with self._changing() as document:
            self._publish(document)
        # now, so that copies of the folder do not make up different ones
        self.network()
        return self.fleet

    def signer(self, *, token: str | None = None) -> int:
        """Make another signer, used for devices from now on, and return its number.

        ``token`` is the URI of a PKCS#11 token for its key.
        """
        fleet = self.fleet
        validity = _validity_of(self._clock(), SIGNER_YEARS)
        root_key = self._key("root", "the root's key")
        with self._changing() as document:
            number = max(map(int, document["signers"]), default=0) + 1
            if number > 0xFFFF:
                raise AuthorityError("a fleet has at most 65535 signers")
            key = self._new_key(
                f"signer-{number:04X}", f"the key of signer {number}", document, token
            )
            profile = fleets.signer_profile(fleet, number, key.public_key, validity)
            certificate = profile.signed(root_key.sign(profile.digest()))
            self._write(f"signer-{number:04X}.pem", x509.pem(certificate).encode())
            document["signers"][str(number)] = {
                "name": fleets.signer_name(number),
                "until": f"{validity[1]:%Y-%m-%d}",
            }
        return number

    def issuer(self, number: int | None = None) -> FleetIssuer:
        """Return what signs devices: signer ``number``, by default the newest that is not revoked.

        Raises ``AuthorityError``.
        """
        document = self._document()
        usable = [int(n) for n, signer in document["signers"].items() if not signer.get("revoked")]
        if number is None and usable:
            number = max(usable)
        if number not in usable:
            raise AuthorityError(f"there is no usable signer {number or ''}: `thicket ca signer`")
        assert number is not None
        stem = f"signer-{number:04X}"
        pem = self._read(stem + ".pem", f"the certificate of signer {number}").decode("ascii")
        return FleetIssuer(
            self.fleet,
            number,
            x509.from_pem(pem)[0],
            self._key(stem, f"the key of signer {number}"),
            _validity_of(self._clock(), DEVICE_YEARS),
        )

    def check_key(self, device: str, key: bytes | None, *, replace: bool = False) -> None:
        """Check that ``device`` may be enrolled with the public ``key``; None for a new one.

        The first enrolment decides whose the name is: nothing that a node says proves its serial
        number. ``replace`` allows another key, as after a repair. Raises ``AuthorityError``.
        """
        document = self._document()
        known = document["devices"].get(device, {})
        revoked = known.get("revoked") or document.get("revoked", {}).get(device)
        if revoked:
            raise AuthorityError(f"device {device} was revoked on {revoked}")
        kept = known.get("key")
        if kept is not None and not replace and (key is None or key.hex() != kept):
            raise AuthorityError(
                f"device {device} was enrolled on {known['enrolled']} with another key. Somebody "
                "claims its name, unless you know why the key is new (a new card of a node "
                "without chip): --replace enrols it all the same. The certificate of the old key "
                "stays good, as a name cannot be revoked for one key alone"
            )

    def record(
        self, device: str, key: bytes, details: dict[str, Any], *, replace: bool = False
    ) -> None:
        """Keep what is known about an enrolled ``device``. Raises ``AuthorityError``."""
        with self._changing() as document:
            self.check_key(device, key, replace=replace)
            known = document["devices"].get(device, {})
            document["devices"][device] = {
                **known,
                **details,
                "key": key.hex(),
                "enrolled": f"{self._clock():%Y-%m-%dT%H:%M:%SZ}",
            }

    def enroll_chip(
        self,
        chip: Atecc,
        *,
        write: bool,
        show: Callable[[str], None] = print,
        otp: Any = None,
        auxiliary: bool | None = None,
        keep: Callable[[str], object] | None = None,
        replace: bool = False,
    ) -> str:
        """Enrol the device with ``chip``; return its serial number.

        A blank chip is provisioned as a NervesKey with our certificates in its primary slots; one
        that is provisioned already gets them in its auxiliary slots, which takes nothing away.
        Without ``write``, what would be done is shown and nothing is written. With ``keep`` nothing
        is written to the chip in any case: ``keep`` gets the certificates (PEM) for a file on the
        device, which is for chips that are locked otherwise (a Trust&GO part). ``replace`` as for
        ``check_key``.

        Raises ``AuthorityError``, ``ProvisioningError`` and ``ChipError``.
        """
        config = chip.read_config()
        serial = serial_in(config)
        try:
            identity = identity_of_serial(serial)
        except ValueError as error:
            raise AuthorityError(str(error)) from None
        locked = config[DATA_LOCK] == 0 and config[CONFIG_LOCK] == 0
        held = chip.public_key(PRIVATE_KEY) if locked and _signs(chip) else None
        self.check_key(serial.hex(), held, replace=replace)
        issuer = self.issuer()
        if auxiliary is None:
            provisioned = locked and not config[SLOT_LOCKS] & 1
            auxiliary = keep is None and provisioned and not _is_ours(chip, issuer.fleet)
        if keep is not None:
            if not locked or not _signs(chip):
                raise AuthorityError(
                    f"chip {serial.hex()} is not locked with a key in slot 0 that signs; enrol it "
                    "without --certificate-on-device"
                )
            show(
                f"Chip {serial.hex()} ({nerveskey.kind_of(config)}) stays as it is: a certificate "
                f"of {issuer.describe()} for the key in its slot 0 goes to a file on the device"
            )
            if write:
                key = chip.public_key(PRIVATE_KEY)
                device = issuer.device("chip", identity, serial, key)
                keep(x509.pem(device) + x509.pem(issuer.certificate))
        elif auxiliary:
            if nerveskey.kind_of(config) != nerveskey.NERVES_KEY:
                raise AuthorityError(
                    f"chip {serial.hex()} has no auxiliary slots: it is not a NervesKey "
                    f"({nerveskey.kind_of(config)}). With --certificate-on-device its certificate "
                    "goes to a file on the device"
                )
            show(
                f"Chip {serial.hex()} is a NervesKey already: certificates of {issuer.describe()} "
                "go to its auxiliary slots 9, 14 and 15, which can be replaced later"
            )
            if write:
                certificates = issuer.certificates(serial, chip.public_key(0))
                nerveskey.write_auxiliary(chip, certificates)
        else:
            plan = provisioning.Provisioning(chip, otp, issuer, show=show)
            show(plan.describe())
            if held is None:
                show(
                    f"Serial number {serial.hex()} is what the chip says; a blank chip cannot "
                    "prove it. Enrol only a device that you hold in your hands"
                )
            if write:
                plan.run()
        if write:
            self.record(
                serial.hex(),
                chip.public_key(PRIVATE_KEY),
                {
                    "source": "chip",
                    "address": str(issuer.fleet.address("chip", identity)),
                    "signer": issuer.number,
                },
                replace=replace,
            )
        return serial.hex()

    def enroll_software(
        self, source: str, identity: bytes, public_key: bytes, *, replace: bool = False
    ) -> tuple[bytes, bytes]:
        """Enrol a node without chip: return its device certificate and its signer's (DER).

        ``source`` is ``board``, ``mac`` or ``random``; the private key stays on the device. Every
        peer sees that it is a software identity. ``replace`` as for ``check_key``.
        """
        if source not in SOURCES or source == "chip":
            raise AuthorityError(f"{source!r} is not a source of software identities")
        device = fleets.device_name(source, identity, None)
        self.check_key(device, public_key, replace=replace)
        issuer = self.issuer()
        certificate = issuer.device(source, identity, None, public_key)
        self.record(
            device,
            public_key,
            {
                "source": source,
                "address": str(issuer.fleet.address(source, identity)),
                "signer": issuer.number,
            },
            replace=replace,
        )
        return certificate, issuer.certificate

    def revoke(self, names: list[str]) -> bytes:
        """Revoke devices (by serial number or software name) and signers; return the list.

        For ever: a device that was revoked by mistake needs a new certificate under a new name, so
        a new chip. Names that are revoked already make no new list. Raises ``AuthorityError`` for a
        name that nobody has.
        """
        self._key("root", "the root's key")
        with self._changing() as document:
            known = {s["name"] for s in document["signers"].values()}
            known |= {*document["devices"], *document.get("revoked", {})}
            for name in names:
                if name not in known:
                    raise AuthorityError(
                        f"{name!r} is no device or signer of this fleet; `thicket ca list` names "
                        "them"
                    )
            self._take_up(document, names)
            return self._publish(document)

    def revoked(self) -> frozenset[str]:
        """Return the names of devices and signers that are revoked."""
        return _revoked(self._document())

    def merge(self, theirs: Iterable[bytes]) -> tuple[frozenset[str], bytes]:
        """Take up what other copies of this authority have revoked.

        Return the names that are new here, and a list that has all names, for the nodes. ``theirs``
        are the lists of a node. The root's key is needed, and a list signed, only where there is
        none with all names whose number is above those of all that lack some. Raises
        ``AuthorityError``.
        """
        fleet = self.fleet
        try:
            lists = [SignedList.read(packed, fleet) for packed in theirs]
        except RefusedError as error:
            raise AuthorityError(f"the lists of the node are not of this fleet: {error}") from None
        with self._changing() as document:
            new = all_names(lists) - _revoked(document)
            if new and not any((self.folder / f"root.{end}").exists() for end in ("key", "p11")):
                raise AuthorityError(
                    f"another copy of this authority has revoked {', '.join(sorted(new))}. One "
                    "list is made of both where the root's key is; it is not in "
                    f"{self.folder}"
                )
            self._take_up(document, new)
            names = _revoked(document)
            lacking = (one.listed.number for one in lists if one.listed.names != names)
            return new, self._publish(document, above=max(lacking, default=0))

    def _take_up(self, document: dict[str, Any], names: Iterable[str]) -> None:
        """Mark ``names`` as revoked, also those that only other copies of the authority know."""
        signers = {s["name"]: s for s in document["signers"].values()}
        for name in sorted(names):
            entry = document["devices"].get(name) or signers.get(name)
            today = f"{self._clock():%Y-%m-%d}"
            if entry is not None:
                entry.setdefault("revoked", today)
            else:
                document.setdefault("revoked", {}).setdefault(name, today)

    def _publish(self, document: dict[str, Any], *, above: int = 0) -> bytes:
        """Sign a list with all names, with a number of more than ``above``; the present one will
        do if it is such a list.

        It is written before ``document`` is, and its names count if that was interrupted: what the
        root has signed may be on its way.
        """
        fleet, number = self.fleet, document["revocations"]
        if number:
            packed = self.revocations()
            try:
                present = SignedList.read(packed, fleet).listed
            except RefusedError as error:
                raise AuthorityError(f"{self.folder / 'revocations.bin'}: {error}") from None
            self._take_up(document, present.names)
            document["revocations"] = number = max(number, present.number)
            if present.names == _revoked(document) and present.number > above:
                return packed
        root_key = self._key("root", "the root's key")
        document["revocations"] = max(number, above) + 1
        packed = Revocations(
            document["revocations"],
            self._clock().astimezone(UTC).replace(microsecond=0),
            _revoked(document),
        ).pack(fleet.identifier, root_key.sign)
        if len(packed) > MAX_LIST:
            raise AuthorityError(
                f"a list of {len(packed)} bytes is longer than any that a node takes ({MAX_LIST})"
            )
        self._write("revocations.bin", packed)
        return packed

    def revocations(self) -> bytes:
        """Return the list as it is given to nodes."""
        return self._read("revocations.bin", "the list of revocations")

    def network(self) -> tuple[str, str]:
        """Return the mesh's passphrase and the cluster's cookie; made when first asked for.

        They are no more secret here than on the card of every node, so a file that only its owner
        can read has to do.
        """
        with self._changing():
            kept = self._network()
        return kept["passphrase"], kept["cookie"]

    def next_passphrase(self) -> str:
        """Return the passphrase that was offered to the nodes and is not used yet, or nothing."""
        with self._changing():
            return str(self._network().get("next", ""))

    def _network(self) -> dict[str, Any]:
        """Return ``network.json``. To be called while the folder is being changed."""
        path = self.folder / "network.json"
        if not path.exists():
            made = {"passphrase": token_hex(16), "cookie": token_hex(16)}
            self._write(path.name, (json.dumps(made) + "\n").encode())
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            kept["passphrase"], kept["cookie"] = str(kept["passphrase"]), str(kept["cookie"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise AuthorityError(f"{path} cannot be read: {error}") from None
        return dict(kept)

    # -- another passphrase

    def change(self) -> bytes:
        """Return the newest signed change of the passphrase; nothing where there is none."""
        with self._changing():
            return b64decode(self._network().get("change", ""))

    def offer_passphrase(self, passphrase: str, *, replaces: Iterable[str] = ()) -> bytes:
        """Sign an offer of another ``passphrase`` to all nodes, and return it.

        ``replaces`` are tags of passphrases that nodes have besides those that are known here, as
        where a person has chosen another one for the cards. Raises ``AuthorityError``.
        """
        from thicket.radio.section import MeshSection

        try:
            if not MeshSection.next_passphrase.check(passphrase):
                raise ValueError(f"must be {MeshSection.next_passphrase.allowed}")
        except ValueError as error:
            raise AuthorityError(f"a passphrase {error}") from None
        if passphrase == self.network()[0]:
            raise AuthorityError("the mesh has this passphrase already")
        return self._sign_change(passphrase, used=False, replaces=replaces)

    def use_passphrase(self, *, replaces: Iterable[str] = ()) -> bytes:
        """Sign that the passphrase that was offered is used. Raises ``AuthorityError``."""
        offered = self.next_passphrase()
        if not offered:
            raise AuthorityError("there is no change to finish: begin with roll")
        return self._sign_change(offered, used=True, replaces=replaces)

    def cancel_passphrase(self, *, replaces: Iterable[str] = ()) -> bytes:
        """Sign that the passphrase that was offered is dropped. Raises ``AuthorityError``."""
        if not self.next_passphrase():
            raise AuthorityError("there is no change to cancel")
        return self._sign_change("", used=False, replaces=replaces)

    def _sign_change(self, passphrase: str, *, used: bool, replaces: Iterable[str]) -> bytes:
        fleet = self.fleet
        root_key = self._key("root", "the root's key")
        with self._changing():
            kept = self._network()
            own = (kept["passphrase"], kept.get("next", ""), passphrase)
            tags = [tag(text, fleet.identifier) for text in own if text]
            # the last ones, each once, in the order in which they came
            former = list(dict.fromkeys([*kept.get("former", ()), *replaces, *tags]))[-MAX_FORMER:]
            change = Change(
                int(kept.get("number", 0)) + 1,
                self._clock().astimezone(UTC).replace(microsecond=0),
                passphrase,
                used,
                frozenset(former),
            )
            packed = change.pack(fleet.identifier, root_key.sign)
            self._keep_change(kept, SignedChange(change, packed), former)
        return packed

    def take_change(self, packed: bytes) -> int | None:
        """Take up a change that another copy of this authority signed; its number if it is newer.

        Raises ``AuthorityError``.
        """
        fleet = self.fleet
        try:
            theirs = SignedChange.read(packed, fleet)
            with self._changing():
                kept = self._network()
                mine = b64decode(kept.get("change", ""))
                if mine and theirs.order <= SignedChange.read(mine, fleet).order:
                    return None
                own = tag(kept["passphrase"], fleet.identifier)
                former = dict.fromkeys((*kept.get("former", ()), own, *theirs.change.former))
                self._keep_change(kept, theirs, list(former)[-MAX_FORMER:])
        except RefusedError as error:
            raise AuthorityError(f"the node's change of the passphrase: {error}") from None
        return theirs.change.number

    def keep_change_file(self, name: str, packed: bytes) -> Path:
        """Write a change into a file of its own, which is brought to a node by hand; its path."""
        self._write(name, packed)
        return self.folder / name

    def _keep_change(self, kept: dict[str, Any], signed: SignedChange, former: list[str]) -> None:
        """Write ``network.json`` with a change: all of it or nothing."""
        change = signed.change
        kept.pop("next", None)
        if change.used:
            kept["passphrase"] = change.passphrase
        elif change.passphrase:
            kept["next"] = change.passphrase
        kept |= {
            "number": change.number,
            "former": former,
            "change": b64encode(signed.packed).decode("ascii"),
        }
        self._write("network.json", (json.dumps(kept) + "\n").encode())

    def list(self) -> dict[str, Any]:
        """Return what is known, as in ``fleet.json``."""
        return self._document()


def _revoked(document: dict[str, Any]) -> frozenset[str]:
    """Return the names that a list of revocations has to have."""
    names = {n for n, device in document["devices"].items() if device.get("revoked")}
    names |= {s["name"] for s in document["signers"].values() if s.get("revoked")}
    return frozenset(names | set(document.get("revoked", {})))


class FleetIssuer:
    """Signs the devices of a fleet (a ``provisioning.Issuer``)."""

    def __init__(
        self,
        fleet: Fleet,
        number: int,
        certificate: bytes,
        key: SigningKey,
        validity: tuple[datetime, datetime],
    ) -> None:
        """Sign with signer ``number``'s key for ``validity``."""
        self.fleet = fleet
        self.number = number
        self.certificate = certificate
        self._key = key
        self._public = key.public_key
        self._validity = validity
        read = Certificate(certificate)
        if read.public_key != self._public or read.authority_key != fleet.identifier:
            raise AuthorityError(
                f"signer {number}: key, certificate and root do not belong together"
            )
        if read.not_after <= validity[0]:
            raise AuthorityError(
                f"signer {number} ended on {read.not_after:%Y-%m-%d}; `thicket ca signer` makes "
                "a new one"
            )

    def device(
        self, source: str, identity: bytes, serial: bytes | None, public_key: bytes
    ) -> bytes:
        """Return a device certificate (DER)."""
        profile = fleets.device_profile(
            self.fleet,
            source=source,
            identity=identity,
            serial=serial,
            public_key=public_key,
            signer_id=self.number,
            signer_key=self._public,
            validity=self._validity,
        )
        return profile.signed(self._key.sign(profile.digest()))

    def certificates(self, serial: bytes, public_key: bytes) -> CertificateSet:
        """See ``provisioning.Issuer``."""
        device = self.device("chip", identity_of_serial(serial), serial, public_key)
        return CertificateSet(
            fleets.compress_device(device, self.number),
            self._public,
            fleets.compress_signer(self.certificate, self.number),
        )

    def check(self, serial: bytes, public_key: bytes, found: CertificateSet) -> None:
        """See ``provisioning.Issuer``: any signer of the fleet will do."""
        signer = Certificate(fleets.rebuild_signer(self.fleet, found.signer, found.signer_key))
        device = Certificate(
            fleets.rebuild_device(self.fleet, found.device, serial, public_key, found.signer_key)
        )
        for below, key in ((signer, self.fleet.root.public_key), (device, found.signer_key)):
            if not openssl.verify(key, sha256(below.tbs).digest(), below.signature):
                raise CertificateError(
                    f"the certificate of {below.common_name!r} in the chip is not of fleet "
                    f"{self.fleet.name!r}"
                )

    def describe(self) -> str:
        """See ``provisioning.Issuer``."""
        return f"signer {self.number} of fleet {self.fleet.name!r}"


def _signs(chip: Atecc) -> bool:
    """Tell whether slot 0 has a key that signs what it is given."""
    from thicket.identity.chip.errors import ChipRefusedError

    digest = os.urandom(32)
    try:
        return openssl.verify(chip.public_key(0), digest, chip.sign(0, digest))
    except ChipRefusedError:
        return False


def _is_ours(chip: Atecc, fleet: Fleet) -> bool:
    """Tell whether the primary slots hold an enrolment in ``fleet``."""
    from thicket.identity.chip.errors import ChipRefusedError

    try:
        found = read_set(chip, PRIMARY)
    except ChipRefusedError:  # another kind of chip, with a secret there
        return False
    if found is None:
        return False
    try:
        signer = Certificate(fleets.rebuild_signer(fleet, found.signer, found.signer_key))
    except CertificateError:
        return False
    return openssl.verify(fleet.root.public_key, sha256(signer.tbs).digest(), signer.signature)

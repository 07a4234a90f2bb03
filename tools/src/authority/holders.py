# SPDX-License-Identifier: Apache-2.0
"""People to whom the root gives a certificate for one purpose: signers of updates, and operators.

Each has a name that people choose, and a certificate and a key in the authority's folder.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

from authority import files
from authority.errors import AuthorityError
from authority.folder import Folder
from authority.issuer import SIGNER_YEARS, years_from
from authority.keys import ROOT, Keys, SigningKey, operator_stem, update_signer_stem
from thicket.trust import certificates as x509
from thicket.trust.certificates import Certificate, Profile
from thicket.trust.fleet import Fleet
from thicket.trust.operator import operator_name, operator_profile
from thicket.trust.update_signer import signer_name, signer_profile

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


class Holder(NamedTuple):
    """Somebody with a certificate, and the key to it.

    :ivar name: the common name of the certificate.
    :ivar certificate: the certificate (DER).
    :ivar key: the private key to it.
    """

    name: str
    certificate: bytes
    key: SigningKey


class Kind(NamedTuple):
    """What the certificates of some holders are for.

    :ivar what: what a holder is called in errors.
    :ivar command: makes one.
    :ivar option: names one, where several are possible.
    :ivar member: where they stand in ``fleet.json``.
    :ivar stem: the beginning of a holder's files by its name.
    :ivar full: the common name of a certificate by its holder's name.
    :ivar profile: what a certificate says.
    """

    what: str
    command: str
    option: str
    member: str
    stem: Callable[[str], str]
    full: Callable[[str], str]
    profile: Callable[[Fleet, str, bytes, tuple[datetime, datetime]], Profile]


UPDATE_SIGNERS: Final = Kind(
    "update signer",
    "update-signer",
    "--signer",
    "update_signers",
    update_signer_stem,
    signer_name,
    signer_profile,
)
OPERATORS: Final = Kind(
    "operator",
    "operator",
    "--operator",
    "operators",
    operator_stem,
    operator_name,
    operator_profile,
)


HOLDERS: Final = (UPDATE_SIGNERS, OPERATORS)


def entries(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what ``fleet.json`` says of all holders, by the names of their certificates."""
    return {
        entry["name"]: entry for kind in HOLDERS for entry in document.get(kind.member, {}).values()
    }


class Holders:
    """A fleet's holders of one kind.

    :ivar member: where they stand in ``fleet.json``.
    """

    def __init__(
        self, kind: Kind, folder: Folder, keys: Keys, clock: Callable[[], datetime]
    ) -> None:
        """Keep them in ``folder``; ``clock`` gives the time in UTC."""
        self.member = kind.member
        self._kind = kind
        self._folder = folder
        self._keys = keys
        self._clock = clock

    def make(self, name: str, *, token: str | None = None, days: int | None = None) -> str:
        """Make one; return the name that its certificate has.

        The root's key is needed for that, but not afterwards: who is to use it gets a copy of the
        folder without ``root.key`` and without the keys of others.

        :param name: small letters, digits and hyphens.
        :param token: URI of the PKCS#11 token that makes and holds its key, if not in a file.
        :param days: how long the certificate lasts; ``SIGNER_YEARS`` without it.
        :raises AuthorityError: when there is one of that name, or was.
        """
        kind = self._kind
        if not _NAME.fullmatch(name):
            raise AuthorityError(
                f"{name!r}: the name of an {kind.what} has 1 to 32 small letters, digits and "
                "hyphens"
            )
        fleet, full = self._folder.fleet, kind.full(name)
        validity = years_from(self._clock(), SIGNER_YEARS)
        if days is not None:
            validity = validity[0], validity[0] + timedelta(days=days)
        made = fleet.root.not_before
        if validity[0] < made:
            # Its name would be gone for a certificate that has ended when the clock is right.
            raise AuthorityError(
                f"nothing was written: it is {validity[0]:%Y-%m-%d} by the clock of this machine, "
                f"and the fleet was made on {made:%Y-%m-%d}. Set the clock"
            )
        root_key = self._keys.open(ROOT)
        with self._folder.changing() as document:
            holders = document.setdefault(kind.member, {})
            if name in holders or full in document.get("revoked", {}):
                # A revoked name is revoked for ever, whatever key it has.
                raise AuthorityError(f"there is, or was, an {kind.what} {name!r}: choose another")
            stem = kind.stem(name)
            self._folder.begin(stem)
            key = self._keys.make(stem, fleet=document["name"], lab=document["lab"], token=token)
            profile = kind.profile(fleet, name, key.public_key, validity)
            certificate = profile.signed(root_key.sign(profile.digest()))
            self._folder.write(f"{stem}.pem", x509.pem(certificate).encode())
            holders[name] = {"name": full, "until": f"{validity[1]:%Y-%m-%d}"}
        return full

    def renew(self, name: str, *, days: int) -> str:
        """Give a holder a certificate that begins now, for the key that he has.

        :raises AuthorityError: there is no such holder, or he is revoked.
        """
        kind = self._kind
        name, read = self._usable(name, ended=True)
        begin = years_from(self._clock(), SIGNER_YEARS)[0]
        validity = begin, begin + timedelta(days=days)
        root_key = self._keys.open(ROOT)
        profile = kind.profile(self._folder.fleet, name, read.public_key, validity)
        certificate = profile.signed(root_key.sign(profile.digest()))
        with self._folder.changing() as document:
            self._folder.write(f"{kind.stem(name)}.pem", x509.pem(certificate).encode())
            document[kind.member][name]["until"] = f"{validity[1]:%Y-%m-%d}"
        return read.common_name

    def hand_over(self, name: str, target: Path) -> None:
        """Make a folder for one holder: what he needs, and nothing of others.

        :param target: it must not exist, or be empty.
        :raises AuthorityError: it cannot be made; nothing is left of it.
        """
        document = self._folder.document()
        kind, stem = self._kind, self._kind.stem(self._usable(name)[0])
        own = {
            **{key: document[key] for key in ("format", "name", "prefix", "lab", "revocations")},
            "signers": {},
            "devices": {},
            kind.member: {name: document[kind.member][name]},
        }
        ends = [
            end for end in ("pem", "key", "p11") if (self._folder.path / f"{stem}.{end}").exists()
        ]
        copied = ["root.pem", "revocations.bin", *(f"{stem}.{end}" for end in ends)]
        if target.exists() and any(target.iterdir()):
            raise AuthorityError(f"{target} is not empty; give the name of a new folder")
        contents = {one: self._folder.read(one, one) for one in copied}
        files.make_folder(target, 0o700)
        copy = Folder(target)
        try:
            for one, data in contents.items():
                copy.write(one, data)
            copy.save(own)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)  # it was empty before
            raise

    def open(self, name: str | None = None) -> Holder:
        """Return a signer with its key.

        :param name: which one; without it the only one that is not revoked and has its key here.
        :raises AuthorityError: when there is no such signer, or it cannot be used.
        """
        name, read = self._usable(name)
        key = self._keys.open(self._kind.stem(name))
        if key.public_key != read.public_key:
            raise AuthorityError(
                f"{self._kind.what} {name!r}: key and certificate do not go together"
            )
        return Holder(read.common_name, read.der, key)

    def certificate(self, name: str | None = None) -> Certificate:
        """Return the certificate of a signer, whose key stays closed.

        :param name: as in :meth:`open`.
        :raises AuthorityError: when there is no such signer, or it cannot be used.
        """
        return self._usable(name)[1]

    def _usable(self, name: str | None, *, ended: bool = False) -> tuple[str, Certificate]:
        kind = self._kind
        signers: dict[str, dict[str, Any]] = self._folder.document().get(kind.member, {})
        if name is None:
            name = self._only(signers)
        if name not in signers:
            raise AuthorityError(
                f"there is no {kind.what} {name!r}; `thicket ca {kind.command} {name}` makes it"
            )
        if date := signers[name].get("revoked"):
            raise AuthorityError(f"{kind.what} {name!r} was revoked on {date}: take another")
        stem = self._kind.stem(name)
        pem = self._folder.read(f"{stem}.pem", f"the certificate of {kind.what} {name!r}")
        read = Certificate(x509.from_pem(pem.decode("ascii", "replace"))[0])
        if read.not_after <= self._clock() and not ended:
            raise AuthorityError(
                f"{kind.what} {name!r} ended on {read.not_after:%Y-%m-%d}; `thicket ca "
                f"{kind.command}` makes a new one"
            )
        return name, read

    def _only(self, signers: dict[str, dict[str, Any]]) -> str:
        usable = [
            name
            for name, signer in signers.items()
            if not signer.get("revoked") and self._keys.has(self._kind.stem(name))
        ]
        if not usable:
            raise AuthorityError(
                f"there is no {self._kind.what} whose key is here; `thicket ca "
                f"{self._kind.command} NAME` makes one"
            )
        if len(usable) > 1:
            raise AuthorityError(
                f"which {self._kind.what}? {self._kind.option} takes {', '.join(sorted(usable))}"
            )
        return usable[0]

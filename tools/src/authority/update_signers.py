# SPDX-License-Identifier: Apache-2.0
"""The fleet's signers of updates: their certificates and keys in the authority's folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, NamedTuple

from authority.errors import AuthorityError
from authority.folder import Folder
from authority.issuer import SIGNER_YEARS, years_from
from authority.keys import ROOT, Keys, SigningKey, update_signer_stem
from thicket.trust import certificates as x509
from thicket.trust.certificates import Certificate
from thicket.trust.update_signer import signer_name, signer_profile

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


class UpdateSigner(NamedTuple):
    """Who signs an update.

    :ivar name: the common name of the certificate.
    :ivar certificate: the certificate (DER).
    :ivar key: the private key to it.
    """

    name: str
    certificate: bytes
    key: SigningKey


class UpdateSigners:
    """A fleet's signers of updates, of which each has a name that people choose."""

    def __init__(self, folder: Folder, keys: Keys, clock: Callable[[], datetime]) -> None:
        """Keep them in ``folder``; ``clock`` gives the time in UTC."""
        self._folder = folder
        self._keys = keys
        self._clock = clock

    def make(self, name: str, *, token: str | None = None) -> str:
        """Make a signer; return the name that its certificate has.

        The root's key is needed for that, but not for signing: whoever builds releases gets a copy
        of the folder without ``root.key`` and without other signers' keys.

        :param name: small letters, digits and hyphens.
        :param token: URI of the PKCS#11 token that makes and holds its key, if not in a file.
        :raises AuthorityError: when there is one of that name, or was.
        """
        if not _NAME.fullmatch(name):
            raise AuthorityError(
                f"{name!r}: the name of an update signer has 1 to 32 small letters, digits and "
                "hyphens"
            )
        fleet, full = self._folder.fleet, signer_name(name)
        validity = years_from(self._clock(), SIGNER_YEARS)
        made = fleet.root.not_before
        if validity[0] < made:
            # Its name would be gone for a certificate that has ended when the clock is right.
            raise AuthorityError(
                f"nothing was written: it is {validity[0]:%Y-%m-%d} by the clock of this machine, "
                f"and the fleet was made on {made:%Y-%m-%d}. Set the clock"
            )
        root_key = self._keys.open(ROOT)
        with self._folder.changing() as document:
            signers = document.setdefault("update_signers", {})
            if name in signers or full in document.get("revoked", {}):
                # A revoked name is revoked for ever, whatever key it has.
                raise AuthorityError(f"there is, or was, an update signer {name!r}: choose another")
            stem = update_signer_stem(name)
            self._folder.begin(stem)
            key = self._keys.make(stem, fleet=document["name"], lab=document["lab"], token=token)
            profile = signer_profile(fleet, name, key.public_key, validity)
            certificate = profile.signed(root_key.sign(profile.digest()))
            self._folder.write(f"{stem}.pem", x509.pem(certificate).encode())
            signers[name] = {"name": full, "until": f"{validity[1]:%Y-%m-%d}"}
        return full

    def open(self, name: str | None = None) -> UpdateSigner:
        """Return a signer with its key.

        :param name: which one; without it the only one that is not revoked and has its key here.
        :raises AuthorityError: when there is no such signer, or it cannot be used.
        """
        name, read = self._usable(name)
        key = self._keys.open(update_signer_stem(name))
        if key.public_key != read.public_key:
            raise AuthorityError(f"update signer {name!r}: key and certificate do not go together")
        return UpdateSigner(read.common_name, read.der, key)

    def certificate(self, name: str | None = None) -> Certificate:
        """Return the certificate of a signer, whose key stays closed.

        :param name: as in :meth:`open`.
        :raises AuthorityError: when there is no such signer, or it cannot be used.
        """
        return self._usable(name)[1]

    def _usable(self, name: str | None) -> tuple[str, Certificate]:
        signers: dict[str, dict[str, Any]] = self._folder.document().get("update_signers", {})
        if name is None:
            name = self._only(signers)
        if name not in signers:
            raise AuthorityError(
                f"there is no update signer {name!r}; `thicket ca update-signer {name}` makes it"
            )
        if date := signers[name].get("revoked"):
            raise AuthorityError(f"update signer {name!r} was revoked on {date}: take another")
        stem = update_signer_stem(name)
        pem = self._folder.read(f"{stem}.pem", f"the certificate of update signer {name!r}")
        read = Certificate(x509.from_pem(pem.decode("ascii", "replace"))[0])
        if read.not_after <= self._clock():
            raise AuthorityError(
                f"update signer {name!r} ended on {read.not_after:%Y-%m-%d}; `thicket ca "
                "update-signer` makes a new one"
            )
        return name, read

    def _only(self, signers: dict[str, dict[str, Any]]) -> str:
        usable = [
            name
            for name, signer in signers.items()
            if not signer.get("revoked") and self._keys.has(update_signer_stem(name))
        ]
        if not usable:
            raise AuthorityError(
                "there is no update signer whose key is here; `thicket ca update-signer NAME` "
                "makes one"
            )
        if len(usable) > 1:
            raise AuthorityError(f"which signer? --signer takes {', '.join(sorted(usable))}")
        return usable[0]

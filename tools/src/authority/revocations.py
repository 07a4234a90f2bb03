# SPDX-License-Identifier: Apache-2.0
"""Revoking devices, signers and operators: the list that the root signs for the nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from authority.errors import AuthorityError
from authority.folder import Folder
from authority.holders import HOLDERS, entries
from authority.keys import ROOT, Keys
from authority.signing import sign_revocations
from thicket.trust.revocations import MAX_LIST, Revocations, SignedList, all_names
from thicket.trust.verify import RefusedError


class FleetRevocations:
    """What a fleet's authority has revoked: entries of ``fleet.json``, and ``revocations.bin``."""

    def __init__(self, folder: Folder, keys: Keys, clock: Callable[[], datetime]) -> None:
        """Keep the list in ``folder``; ``clock`` gives the time in UTC."""
        self._folder = folder
        self._keys = keys
        self._clock = clock

    @property
    def names(self) -> frozenset[str]:
        """The names of devices and signers that are revoked."""
        return _revoked(self._folder.document())

    @property
    def packed(self) -> bytes:
        """The list as it is given to nodes."""
        return self._folder.read("revocations.bin", "the list of revocations")

    def revoke(self, names: list[str]) -> bytes:
        """Revoke devices and signers for ever, and return the list.

        A device that was revoked by mistake needs a new certificate under a new name, so a new
        chip. Names that are revoked already make no new list.

        :param names: serial numbers or software names of devices, and names of signers.
        :raises AuthorityError: for a name that nobody has.
        """
        self._keys.open(ROOT)
        with self._folder.changing() as document:
            known = {*_signers(document), *document["devices"], *document.get("revoked", {})}
            for name in names:
                if name not in known:
                    raise AuthorityError(
                        f"{name!r} is no device, signer or operator of this fleet; `thicket ca "
                        "list` names them"
                    )
            self._take_up(document, names)
            return self._publish(document)

    def full_names(self, names: list[str]) -> list[str]:
        """Return names as certificates have them: holders may be called by their own.

        :raises AuthorityError: one may mean several.
        """
        document = self._folder.document()
        found: dict[str, set[str]] = {}
        for kind in HOLDERS:
            for short, entry in document.get(kind.member, {}).items():
                found.setdefault(short, set()).add(entry["name"])
        full: list[str] = []
        for name in names:
            meant = {name} if name in document["devices"] else found.get(name, {name})
            if len(meant) > 1:
                raise AuthorityError(f"{name} may be {' or '.join(map(repr, sorted(meant)))}")
            full += meant
        return full

    def publish(self) -> None:
        """Sign a first list, which has no names."""
        with self._folder.changing() as document:
            self._publish(document)

    def merge(self, theirs: Iterable[bytes]) -> tuple[frozenset[str], bytes]:
        """Take up what other copies of this authority have revoked.

        The root's key is needed, and a list signed, only when no list has all names together with
        a number above those of all lists that lack some.

        :param theirs: the lists of a node.
        :returns: the names that are new here, and a list with all names for the nodes.
        :raises AuthorityError: when a list is not of this fleet, or the root's key is not here.
        """
        fleet = self._folder.fleet
        try:
            lists = [SignedList.read(packed, fleet) for packed in theirs]
        except RefusedError as error:
            raise AuthorityError(f"the lists of the node are not of this fleet: {error}") from None
        with self._folder.changing() as document:
            new = all_names(lists) - _revoked(document)
            if new and not self._keys.has(ROOT):
                raise AuthorityError(
                    f"another copy of this authority has revoked {', '.join(sorted(new))}. One "
                    "list is made of both where the root's key is; it is not in "
                    f"{self._folder.path}"
                )
            self._take_up(document, new)
            names = _revoked(document)
            lacking = (one.listed.number for one in lists if one.listed.names != names)
            return new, self._publish(document, above=max(lacking, default=0))

    def _take_up(self, document: dict[str, Any], names: Iterable[str]) -> None:
        """Mark ``names`` as revoked, also those that only other copies of the authority know."""
        signers = _signers(document)
        for name in sorted(names):
            entry = document["devices"].get(name) or signers.get(name)
            today = f"{self._clock():%Y-%m-%d}"
            if entry is not None:
                entry.setdefault("revoked", today)
            else:
                document.setdefault("revoked", {}).setdefault(name, today)

    def _publish(self, document: dict[str, Any], *, above: int = 0) -> bytes:
        """Sign a list with all names, unless the present list has them and a high enough number.

        The list is written before ``document`` is. If that was interrupted, the names of the list
        count: what the root has signed may be on its way to nodes.

        :param above: the list's number must be higher.
        """
        fleet, number = self._folder.fleet, document["revocations"]
        if number:
            packed = self.packed
            try:
                present = SignedList.read(packed, fleet).listed
            except RefusedError as error:
                raise AuthorityError(f"{self._folder.path / 'revocations.bin'}: {error}") from None
            self._take_up(document, present.names)
            document["revocations"] = number = max(number, present.number)
            if present.names == _revoked(document) and present.number > above:
                return packed
        root_key = self._keys.open(ROOT)
        document["revocations"] = max(number, above) + 1
        packed = sign_revocations(
            Revocations(
                document["revocations"],
                self._clock().astimezone(UTC).replace(microsecond=0),
                _revoked(document),
            ),
            fleet.identifier,
            root_key.sign,
        )
        if len(packed) > MAX_LIST:
            raise AuthorityError(
                f"a list of {len(packed)} bytes is longer than any that a node takes ({MAX_LIST})"
            )
        self._folder.write("revocations.bin", packed)
        return packed


def _revoked(document: dict[str, Any]) -> frozenset[str]:
    """Return the names that a list of revocations has to have."""
    names = {n for n, device in document["devices"].items() if device.get("revoked")}
    names |= {name for name, signer in _signers(document).items() if signer.get("revoked")}
    return frozenset(names | set(document.get("revoked", {})))


def _signers(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the entries of signers and holders by their certificates' names."""
    signers = {signer["name"]: signer for signer in document["signers"].values()}
    return signers | entries(document)

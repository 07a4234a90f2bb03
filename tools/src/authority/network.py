# SPDX-License-Identifier: Apache-2.0
"""The mesh's passphrase and the cluster's cookie, and signed changes of the passphrase."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any

from authority.errors import AuthorityError
from authority.folder import Folder
from authority.keys import ROOT, Keys
from authority.signing import sign_change
from thicket.trust.change import MAX_FORMER, Change, SignedChange, tag
from thicket.trust.verify import RefusedError


class Network:
    """``network.json`` of a fleet's authority."""

    def __init__(self, folder: Folder, keys: Keys, clock: Callable[[], datetime]) -> None:
        """Keep the file in ``folder``; ``clock`` gives the time in UTC."""
        self._folder = folder
        self._keys = keys
        self._clock = clock

    def secrets(self) -> tuple[str, str]:
        """Return the mesh's passphrase and the cluster's cookie; the first call makes them.

        A file that only its owner can read has to do: they are no more secret here than on the card
        of every node.
        """
        with self._folder.changing():
            kept = self._read()
        return kept["passphrase"], kept["cookie"]

    def next_passphrase(self) -> str:
        """Return the passphrase that was offered to the nodes and is not used yet, or nothing."""
        with self._folder.changing():
            return str(self._read().get("next", ""))

    def change(self) -> bytes:
        """Return the newest signed change of the passphrase; nothing when there is none."""
        with self._folder.changing():
            return b64decode(self._read().get("change", ""))

    def offer_passphrase(self, passphrase: str, *, replaces: Iterable[str] = ()) -> bytes:
        """Sign an offer of another ``passphrase`` to all nodes, and return it.

        :param replaces: tags of passphrases that nodes have besides those that are known here, for
            example because a person chose another one for the cards.
        :raises AuthorityError: when the mesh cannot have this passphrase, or has it already.
        """
        from thicket.radio.section import MeshSection

        try:
            if not MeshSection.next_passphrase.check(passphrase):
                raise ValueError(f"must be {MeshSection.next_passphrase.allowed}")
        except ValueError as error:
            raise AuthorityError(f"a passphrase {error}") from None
        if passphrase == self.secrets()[0]:
            raise AuthorityError("the mesh has this passphrase already")
        return self._sign(passphrase, used=False, replaces=replaces)

    def use_passphrase(self, *, replaces: Iterable[str] = ()) -> bytes:
        """Sign that the passphrase that was offered is used, and return that.

        :raises AuthorityError: when none was offered.
        """
        offered = self.next_passphrase()
        if not offered:
            raise AuthorityError("there is no change to finish: begin with roll")
        return self._sign(offered, used=True, replaces=replaces)

    def cancel_passphrase(self, *, replaces: Iterable[str] = ()) -> bytes:
        """Sign that the passphrase that was offered is dropped, and return that.

        :raises AuthorityError: when none was offered.
        """
        if not self.next_passphrase():
            raise AuthorityError("there is no change to cancel")
        return self._sign("", used=False, replaces=replaces)

    def take_change(self, packed: bytes) -> int | None:
        """Take up a change that another copy of this authority signed.

        :returns: its number if it is newer than the one here, else None.
        :raises AuthorityError: when it is not a change that this fleet's root signed.
        """
        fleet = self._folder.fleet
        try:
            theirs = SignedChange.read(packed, fleet)
            with self._folder.changing():
                kept = self._read()
                mine = b64decode(kept.get("change", ""))
                if mine and theirs.order <= SignedChange.read(mine, fleet).order:
                    return None
                own = tag(kept["passphrase"], fleet.identifier)
                former = dict.fromkeys((*kept.get("former", ()), own, *theirs.change.former))
                self._keep(kept, theirs, list(former)[-MAX_FORMER:])
        except RefusedError as error:
            raise AuthorityError(f"the node's change of the passphrase: {error}") from None
        return theirs.change.number

    def write_change(self, name: str, packed: bytes) -> Path:
        """Write a change to a file of the folder, for a person to bring to a node.

        :returns: the file's path.
        """
        self._folder.write(name, packed)
        return self._folder.path / name

    def _sign(self, passphrase: str, *, used: bool, replaces: Iterable[str]) -> bytes:
        fleet = self._folder.fleet
        root_key = self._keys.open(ROOT)
        with self._folder.changing():
            kept = self._read()
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
            packed = sign_change(change, fleet.identifier, root_key.sign)
            self._keep(kept, SignedChange(change, packed), former)
        return packed

    def _keep(self, kept: dict[str, Any], signed: SignedChange, former: list[str]) -> None:
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
        self._folder.write("network.json", (json.dumps(kept) + "\n").encode())

    def _read(self) -> dict[str, Any]:
        """Return the file's contents. To be called only while the folder is being changed."""
        path = self._folder.path / "network.json"
        if not path.exists():
            made = {"passphrase": token_hex(16), "cookie": token_hex(16)}
            self._folder.write(path.name, (json.dumps(made) + "\n").encode())
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            kept["passphrase"], kept["cookie"] = str(kept["passphrase"]), str(kept["cookie"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise AuthorityError(f"{path} cannot be read: {error}") from None
        return dict(kept)

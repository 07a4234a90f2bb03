# SPDX-License-Identifier: Apache-2.0
"""What a node keeps about the mesh's passphrase, and what that says about its two passphrases.

The file ``passphrase.json`` is beside the certificates. It holds the newest signed change, which
change was carried out, and whether the other passphrase is a former one. It is written before the
configuration changes and again after that, so a power cut at any moment repeats a step at most.
"""

from __future__ import annotations

import base64
import json
from logging import getLogger
from typing import TYPE_CHECKING

from thicket.base.errors import CodedError
from thicket.base.files import read_kept, write_atomically
from thicket.base.threads import finish

if TYPE_CHECKING:
    from thicket.cluster.passphrase import Host
    from thicket.trust.change import SignedChange
    from thicket.trust.fleet import Fleet

log = getLogger(__name__)

FILE = "passphrase.json"


class PassphraseError(CodedError):
    """A request that cannot be done: a code for programs, words for people."""


class Kept:
    """The contents of the file.

    :ivar change: the newest signed change.
    :ivar done: the digest (hexadecimal) of the change that was carried out.
    :ivar former: the tag of the former passphrase, while the other one is that.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._fleet_of: tuple[str, Fleet] | None = None
        self.change: SignedChange | None = None
        self.done = ""
        self.former = ""
        self._read()

    @property
    def path(self) -> str:
        """Where the file is."""
        return f"{self._host.paths.data}/thicket/{FILE}"

    def fleet(self) -> Fleet | None:
        """The fleet that this node belongs to, whose root signs changes.

        :raises PassphraseError: the fleet's root cannot be read.
        """
        from thicket.trust.certificates import CertificateError, from_pem
        from thicket.trust.fleet import Fleet

        text = self._host.settings.trust.root
        if self._fleet_of is not None and self._fleet_of[0] != text:
            # what the former fleet has signed means nothing to this one
            self._fleet_of, self.change, self.done = None, None, ""
        if not text:
            return None
        if self._fleet_of is None:
            try:
                self._fleet_of = text, Fleet(from_pem(text)[0])
            except CertificateError as error:  # the configuration's check lets none of these in
                raise PassphraseError("no-fleet", f"trust.root: {error}") from None
        return self._fleet_of[1]

    def tag(self, passphrase: str) -> str:
        """What stands for a passphrase in this node's fleet."""
        from thicket.trust.change import tag

        fleet = self.fleet()
        return tag(passphrase, b"" if fleet is None else fleet.identifier)

    def newest(self) -> tuple[int, bytes]:
        """Number and digest of the newest change; 0 and nothing where there is none."""
        return self.change.order if self.change is not None else (0, b"")

    def is_former(self) -> bool:
        """Whether the other passphrase is the one from before the change."""
        mesh = self._host.settings.mesh
        if not mesh.next_passphrase:
            return False
        other = self.tag(mesh.next_passphrase)
        if self.change is not None and (change := self.change.change).used:
            if mesh.passphrase == change.passphrase and other in change.former:
                return True
            if mesh.next_passphrase == change.passphrase:
                return False
        return other == self.former

    def _read(self) -> None:
        from thicket.trust.verify import RefusedError

        try:
            kept = json.loads(read_kept(self.path, 1 << 16))
            self.done, self.former = str(kept["done"]), str(kept["former"])
            packed, fleet = base64.b64decode(kept["change"]), self.fleet()
            if packed and fleet is not None:
                from thicket.trust.change import SignedChange

                self.change = SignedChange.read(packed, fleet)
        except FileNotFoundError:
            return
        except RefusedError:
            log.info("the kept change of the passphrase is of another fleet")
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            # nothing of it is told: there is a passphrase in it; the others have the change
            log.warning("%s is damaged and not used", self.path)

    async def write(self) -> None:
        """Write the file.

        :raises PassphraseError: it could not be written.
        """
        packed = b"" if self.change is None else self.change.packed
        state = {
            "change": base64.b64encode(packed).decode("ascii"),
            "done": self.done,
            "former": self.former,
        }
        data = json.dumps(state).encode()

        def write() -> None:
            write_atomically(self.path, data, mode=0o600)

        try:
            await finish(write)
        except OSError as error:
            raise PassphraseError("not-written", f"{self.path}: {error.strerror}") from error

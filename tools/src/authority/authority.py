# SPDX-License-Identifier: Apache-2.0
"""The fleet's certificate authority: a folder on the engineer's machine.

    fleet.json         name, signers, devices: everything that is not secret, for people to read
    root.pem           the root certificate: what every node of the fleet trusts
    root.key           its key, encrypted (PKCS#8, scrypt and AES-256)
    signer-0001.pem, signer-0001.key
    update-NAME.pem, update-NAME.key
                       a signer of updates (``authority.holders``)
    operator-NAME.pem, operator-NAME.key
                       somebody who may run commands on the nodes (``authority.holders``)
    root.p11, signer-0001.p11
                       instead of .key where the key is on a PKCS#11 token: its URI
    network.json       the mesh's passphrase and the cluster's cookie, as on every card, and the
                       newest change of the passphrase
    revocations.bin    the list as it is given to nodes, signed by the root
    labels.bin         what devices are called, as it is given to nodes, signed by a signer

New signers of either kind, operators, revocations and another passphrase need the root's key; new
devices need a signer's key, and so do labels for the nodes. Give whoever enrols devices a folder
without ``root.key``.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING, Any

from authority import chips, files
from authority.chips import FoundChip
from authority.errors import AuthorityError
from authority.folder import FORMAT, Folder
from authority.holders import OPERATORS, UPDATE_SIGNERS, Holders
from authority.issuer import DEVICE_YEARS, SIGNER_YEARS, FleetIssuer, validity_of
from authority.keys import ROOT, Keys, signer_stem
from authority.labels import FleetLabels
from authority.network import Network
from authority.revocations import FleetRevocations
from authority.signing import root_profile, sign_time
from thicket.identity.address import SOURCES
from thicket.trust import certificates as x509
from thicket.trust import fleet as fleets
from thicket.trust.chip_slots import PRIVATE_KEY
from thicket.trust.compressed import NO_END
from thicket.trust.fleet import Fleet

if TYPE_CHECKING:
    from authority.chip import DeskChip
    from authority.nerveskey import Otp


class Authority:
    """One fleet's authority. Every method reads the folder anew; one process at a time changes it.

    :ivar folder: where its files are.
    :ivar revocations: what is revoked.
    :ivar network: the mesh's passphrase and the cluster's cookie.
    :ivar update_signers: who signs updates.
    :ivar operators: who may run commands on the nodes.
    :ivar labels: what devices are called.
    """

    def __init__(
        self,
        folder: Path,
        passphrase: Callable[[str], str],
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        unneeded: Callable[[], object] = lambda: None,
    ) -> None:
        """Use a folder.

        :param folder: it need not exist yet.
        :param passphrase: called with a question when a key is needed; returns the passphrase.
        :param clock: gives the time in UTC.
        :param unneeded: called once when a key is needed that has no passphrase.
        """
        self.folder = folder
        self._clock = clock
        self._files = Folder(folder)
        self._keys = Keys(self._files, passphrase, unneeded)
        self.revocations = FleetRevocations(self._files, self._keys, clock)
        self.network = Network(self._files, self._keys, clock)
        self.update_signers = Holders(UPDATE_SIGNERS, self._files, self._keys, clock)
        self.operators = Holders(OPERATORS, self._files, self._keys, clock)
        self.labels = FleetLabels(self._files, self.issuer, clock)

    @property
    def fleet(self) -> Fleet:
        """The fleet.

        :raises AuthorityError: when there is none.
        """
        return self._files.fleet

    def list(self) -> dict[str, Any]:
        """Return what is known, as in ``fleet.json``.

        :raises AuthorityError: when there is no fleet.
        """
        return self._files.document()

    # -- the fleet and its signers

    def init(
        self, name: str, network: IPv6Network, *, lab: bool = False, token: str | None = None
    ) -> Fleet:
        """Make a fleet with its first signer.

        :param lab: encrypt the keys with an empty passphrase: the fleet is for the simulator.
        :param token: URI of a PKCS#11 token for both keys.
        :raises AuthorityError: when there is a fleet already.
        :raises TokenError: when the token does not make the keys.
        """
        if (self.folder / "fleet.json").exists():
            raise AuthorityError(
                f"{self.folder} has a fleet already; it is not replaced, because its devices would "
                "be lost"
            )
        begin, _ = validity_of(self._clock(), SIGNER_YEARS)
        files.make_folder(self.folder, 0o700)
        key = self._keys.make(ROOT, fleet=name, lab=lab, token=token)
        profile = root_profile(name, network, key.public_key, (begin, NO_END))
        root = profile.signed(key.sign(profile.digest()))
        self._files.write("root.pem", x509.pem(root).encode())
        self._files.save(
            {
                "format": FORMAT,
                "name": name,
                "prefix": str(network),
                "lab": lab,
                "signers": {},
                "devices": {},
                "revocations": 0,
            }
        )
        self.signer(token=token)
        self.revocations.publish()
        self.network.secrets()  # made now, so that copies of the folder do not make different ones
        return self.fleet

    def signer(self, *, token: str | None = None) -> int:
        """Make another signer, used for devices from now on, and return its number.

        :param token: URI of a PKCS#11 token for its key.
        """
        fleet = self.fleet
        validity = validity_of(self._clock(), SIGNER_YEARS)
        root_key = self._keys.open(ROOT)
        with self._files.changing() as document:
            number = max(map(int, document["signers"]), default=0) + 1
            if number > 0xFFFF:
                raise AuthorityError("a fleet has at most 65535 signers")
            stem = signer_stem(number)
            self._files.begin(stem)
            key = self._keys.make(stem, fleet=document["name"], lab=document["lab"], token=token)
            profile = fleets.signer_profile(fleet, number, key.public_key, validity)
            certificate = profile.signed(root_key.sign(profile.digest()))
            self._files.write(f"{stem}.pem", x509.pem(certificate).encode())
            document["signers"][str(number)] = {
                "name": fleets.signer_name(number),
                "until": f"{validity[1]:%Y-%m-%d}",
            }
        return number

    def time_signer(self) -> Callable[[str], bytes]:
        """Return what signs the time of now, as the answer to a node's question or to none."""
        identifier, key = self.fleet.identifier, self._keys.open(ROOT)

        def sign(question: str) -> bytes:
            now = self._clock().astimezone(UTC).replace(microsecond=0)
            return sign_time(now, question, identifier, key.sign)

        return sign

    def issuer(self, number: int | None = None) -> FleetIssuer:
        """Return what signs devices.

        :param number: the signer's; without it the newest signer that is not revoked.
        :raises AuthorityError: when there is no such signer, or it cannot be used.
        """
        signers = self._files.document()["signers"]
        usable = [int(n) for n, signer in signers.items() if not signer.get("revoked")]
        if number is None and usable:
            number = max(usable)
        if number not in usable:
            raise AuthorityError(f"there is no usable signer {number or ''}: `thicket ca signer`")
        assert number is not None
        stem = signer_stem(number)
        pem = self._files.read(f"{stem}.pem", f"the certificate of signer {number}").decode("ascii")
        return FleetIssuer(
            self.fleet,
            number,
            x509.from_pem(pem)[0],
            self._keys.open(stem),
            validity_of(self._clock(), DEVICE_YEARS),
        )

    # -- devices

    def enroll_chip(
        self,
        chip: DeskChip,
        *,
        write: bool,
        show: Callable[[str], None] = print,
        otp: Otp | None = None,
        auxiliary: bool | None = None,
        keep: Callable[[str], object] | None = None,
        replace: bool = False,
    ) -> str:
        """Enrol the device with ``chip``; return its serial number.

        A blank chip is provisioned as a NervesKey with our certificates in its primary slots. One
        that is provisioned already gets them in its auxiliary slots, which takes nothing away.

        :param write: without it, what would be done is shown and nothing is written.
        :param show: called with every step, in words.
        :param otp: what a blank chip's OTP zone gets, if not NervesKey's default.
        :param auxiliary: decides between primary and auxiliary slots, if the chip should not.
        :param keep: if given, nothing is written to the chip in any case. It is called with the
            certificates (PEM) for a file on the device, for chips that are locked otherwise (a
            Trust&GO part).
        :param replace: allow another key than before, as after a repair.
        :raises AuthorityError: when the device or its chip cannot be enrolled.
        :raises ProvisioningError: when provisioning was not begun, or stopped.
        :raises ChipError: when the chip fails.
        """
        found = FoundChip.look(chip)
        device = found.serial.hex()
        self._check_key(device, found.key, replace=replace)
        issuer = self.issuer()
        if keep is not None:
            chips.give_file(found, issuer, write=write, show=show, keep=keep)
        elif found.needs_auxiliary(issuer.fleet) if auxiliary is None else auxiliary:
            chips.write_auxiliary(found, issuer, write=write, show=show)
        else:
            chips.provision(found, issuer, write=write, show=show, otp=otp)
        if write:
            key = chip.public_key(PRIVATE_KEY)
            self._record(device, key, issuer, "chip", found.identity, replace=replace)
        return device

    def enroll_software(
        self, source: str, identity: bytes, public_key: bytes, *, replace: bool = False
    ) -> tuple[bytes, bytes]:
        """Enrol a node without chip.

        Its private key stays on the device. Every peer sees that it is a software identity.

        :param source: ``board``, ``mac`` or ``random``.
        :param replace: allow another key than before, as for a new card.
        :returns: its device certificate and its signer's (DER).
        :raises AuthorityError: when it cannot be enrolled.
        """
        if source not in SOURCES or source == "chip":
            raise AuthorityError(
                f"{source!r} is not a source of software identities: board, mac or random"
            )
        device = fleets.device_name(source, identity, None)
        self._check_key(device, public_key, replace=replace)
        issuer = self.issuer()
        certificate = issuer.device(source, identity, None, public_key)
        self._record(device, public_key, issuer, source, identity, replace=replace)
        return certificate, issuer.certificate

    def _check_key(self, device: str, key: bytes | None, *, replace: bool) -> None:
        """Check that ``device`` may be enrolled with the public ``key``; None for a new one.

        The first enrolment decides whose the name is: nothing that a node says proves its serial
        number.

        :param replace: allow another key than before.
        :raises AuthorityError: when it may not.
        """
        document = self._files.document()
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

    def _record(
        self,
        device: str,
        key: bytes,
        issuer: FleetIssuer,
        source: str,
        identity: bytes,
        *,
        replace: bool,
    ) -> None:
        """Keep what is known about an enrolled ``device``.

        :raises AuthorityError: when another key was enrolled meanwhile.
        """
        with self._files.changing() as document:
            self._check_key(device, key, replace=replace)
            document["devices"][device] = {
                **document["devices"].get(device, {}),
                "source": source,
                "address": str(issuer.fleet.address(source, identity)),
                "signer": issuer.number,
                "key": key.hex(),
                "enrolled": f"{self._clock():%Y-%m-%dT%H:%M:%SZ}",
            }

# SPDX-License-Identifier: Apache-2.0
"""The fleet of a lab: an authority of its own that enrols every virtual chip before its node boots,
and a node without chip over its console.

What is in it protects nothing: the authority's keys have an empty passphrase, and the chips' lie in
files beside it.
"""

from __future__ import annotations

import shutil
import threading
from ipaddress import IPv6Network
from pathlib import Path

from authority import remote_node
from authority.authority import Authority
from authority.errors import AuthorityError
from authority.provisioning import ProvisioningError
from authority.remote_node import RemoteNode
from meshlab.chip.atecc608 import Atecc608
from meshlab.chip.driver import open_chip
from meshlab.chip.state import ChipStateError
from meshlab.lab.errors import LabError
from thicket.identity.bus import BusError
from thicket.identity.chip.errors import ChipError
from thicket.trust.certificates import pem
from thicket.trust.fleet import device_name
from thicket.trust.openssl import OpenSslError

FOLDER = "authority"
OPERATOR = "lab"
"""Who uses `thicket --lab`."""
OPERATOR_DAYS = 3650
BAUD = 115200
"""Of a console, which a socket does not have."""


class LabFleet:
    """The authority of a lab.

    :param directory: The lab's directory.
    :param keep: Take that of the previous run; without, it is made anew.
    """

    def __init__(self, directory: Path, name: str, prefix: str, *, keep: bool) -> None:
        folder = directory / FOLDER
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        self.authority = Authority(folder, lambda _question: "")
        self._one_by_one = threading.Lock()
        try:
            if not (folder / "fleet.json").exists():
                self.authority.init(name, IPv6Network(prefix), lab=True)
            people = self.authority.operators
            if OPERATOR not in self.authority.list().get(people.member, {}):
                people.make(OPERATOR, days=OPERATOR_DAYS)
            self.root = (folder / "root.pem").read_text(encoding="ascii")
        except (AuthorityError, OpenSslError, OSError, ValueError) as error:
            raise LabError(f"the lab's fleet cannot be made: {error}") from error

    def enroll(self, chip: Path, serial: bytes, seed: int) -> None:
        """Enrol a chip.

        Nothing is done for a chip that was enrolled already, or cannot be (one that is no
        NervesKey).

        :param chip: The file of its memory, made if there is none.
        :raises LabError: when it cannot be enrolled.
        """
        try:
            Atecc608(serial, chip, seed=seed)
            if serial.hex() not in self.authority.list()["devices"]:
                self.authority.enroll_chip(open_chip(chip), write=True, show=lambda _text: None)
        except (
            AuthorityError,
            ProvisioningError,
            ChipError,
            ChipStateError,
            OpenSslError,
        ) as error:
            raise LabError(f"{chip} cannot be enrolled: {error}") from error

    def enroll_software(self, console: Path) -> str:
        """Enrol the running node at a console, as `thicket ca enroll --console --software` does.

        It may be called in several threads at once.

        :param console: The socket of its serial console, with a root shell behind it.
        :returns: The name of its device.
        :raises LabError: when it cannot be enrolled.
        """
        try:
            node = RemoteNode(remote_node.console(str(console), None, BAUD))
            try:
                claim = node.claim()
                if claim.public_key is None:
                    raise LabError(f"{console}: the node has a chip")
                with self._one_by_one:
                    device, signer = self.authority.enroll_software(
                        claim.source, claim.identity, claim.public_key
                    )
                node.put_certificates(pem(device) + pem(signer))
                node.reload()
            finally:
                node.close()
        except (AuthorityError, BusError, OpenSslError, OSError) as error:
            raise LabError(f"{console}: the node cannot be enrolled: {error}") from error
        return device_name(claim.source, claim.identity, None)

# SPDX-License-Identifier: Apache-2.0
"""Whether this node may install a bundle: everything but what RAUC checks itself.

RAUC verifies the signature by its keyring and every block by the hash tree as it reads. It knows
no list of revocations and no epoch, and says little about what a bundle lacks. So a bundle is
judged here, and read to its end (``update.contents``), before RAUC begins, by ``thicket update
install`` and by RAUC's own handler (``update.check``): ``rauc install`` takes no other bundles.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from thicket.base.errors import CodedError
from thicket.trust.fleet import Fleet
from thicket.trust.verify import Verify, verify_signature
from thicket.update import bundle as bundles
from thicket.update.bundle import Bundle
from thicket.update.kept import name_of


class InstallError(CodedError):
    """A bundle is not installed, or was not. The text says why, and what to do."""


class Terms(NamedTuple):
    """What this node takes.

    :ivar compatible: the kind of device that this is, as RAUC's configuration says.
    :ivar fleet: whose signers count; None without a fleet.
    :ivar keyring: whether the configuration names other authorities; used without a fleet only.
    :ivar revoked: names of devices and signers that are out.
    :ivar epoch: the epoch in force.
    :ivar rejected: why a bundle was left before, by its name.
    :ivar room: bytes of the slot that is to be written, by its class; empty where unknown.
    """

    compatible: str
    fleet: Fleet | None
    keyring: bool
    revoked: Collection[str]
    epoch: int
    rejected: Mapping[str, str]
    room: Mapping[str, int]


def judge(
    found: Bundle, terms: Terms, *, again: bool = False, verify: Verify = verify_signature
) -> str:
    """Return who has signed a bundle that this node may install.

    :param again: try a bundle that was left before.
    :returns: the signer's name; empty where only RAUC's keyring knows.
    :raises InstallError: the bundle is not for this node.
    :raises SignerRefusedError: its signature does not count here.
    :raises BundleError: it is not signed, or names no epoch.
    """
    signer = _signer(found, terms, verify)
    manifest = found.manifest
    if manifest.compatible != terms.compatible:
        raise InstallError(
            "compatible",
            f"the bundle is for {manifest.compatible}, and this device is {terms.compatible}: "
            "take the bundle that was built for it",
        )
    if manifest.epoch < terms.epoch:
        raise InstallError(
            "epoch",
            f"the bundle's epoch is {manifest.epoch}, and {terms.epoch} is in force here: it would "
            "open holes again that are closed. Install a newer version",
        )
    for image in manifest.images:
        room = terms.room.get(image.slot)
        if room is not None and image.size > room:
            raise InstallError(
                "too-large",
                f"{image.filename} has {image.size} bytes, and the {image.slot} slot {room}: the "
                "card was laid out for smaller images and must be flashed anew",
            )
    name = name_of(manifest)
    if not again and name in terms.rejected:
        raise InstallError(
            "rejected",
            f"version {manifest.version} was tried here and left: {terms.rejected[name]}. "
            "`thicket update install --again FILE` tries it once more",
        )
    return signer


def _signer(found: Bundle, terms: Terms, verify: Verify) -> str:
    if terms.fleet is not None:
        return bundles.check_signer(found, terms.fleet, revoked=terms.revoked, verify=verify)
    if not terms.keyring:
        raise InstallError(
            "nobody",
            "this node takes bundles from nobody: it belongs to no fleet ([trust] root), and "
            "[update] keyring names no authority. `thicket ca config` makes a configuration with "
            "the fleet's root",
        )
    if found.message is None:
        raise bundles.UnsignedError(
            "it is not signed: RAUC's `rauc bundle` or `rauc resign` signs it"
        )
    if (name := found.message.certificate.common_name) in terms.revoked:
        raise InstallError(
            "revoked", f"its signer {name!r} is revoked: take one that another has signed"
        )
    return ""

# SPDX-License-Identifier: Apache-2.0
"""Small update bundles, without images in them."""

from __future__ import annotations

import io
import random
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256

from fleet_for_tests import NOW, TestFleet, one_fleet

from authority.issuer import years_from
from thicket.trust import cms, openssl
from thicket.trust.update_signer import signer_profile
from thicket.update import bundle, verity
from thicket.update.manifest import Image, Manifest, Verity

VALIDITY = years_from(datetime(2026, 1, 1, tzinfo=UTC), 10)

MANIFEST = Manifest(
    "thicket-x86_64",
    "0.1.0",
    "0123456789ab",
    (
        Image("boot", "boot.vfat", sha256(b"boot").hexdigest(), 64 << 20, ("post-install",)),
        Image("rootfs", "root.img", sha256(b"root").hexdigest(), 40 << 20),
    ),
    "hook",
    {"thicket": {"epoch": "3", "root": "5a" * 32}},
)


class UpdateKey:
    """An update signer of a fleet on the table.

    :ivar certificate: the signer's (DER).
    """

    def __init__(
        self,
        fleet: TestFleet,
        name: str = "release",
        validity: tuple[datetime, datetime] = VALIDITY,
    ) -> None:
        self._key = openssl.generate_key()
        public = openssl.public_key(self._key)
        profile = signer_profile(fleet.fleet, name, public, validity)
        self.certificate = profile.signed(openssl.sign(fleet.root_key, profile.digest()))

    def sign(self, digest: bytes) -> bytes:
        return openssl.sign(self._key, digest)

    def message(self, content: bytes, when: datetime = NOW) -> bytes:
        return cms.sign(content, self.certificate, when, self.sign)


@cache
def update_key(fleet: TestFleet | None = None) -> UpdateKey:
    """Return the same signer of a fleet every time."""
    return UpdateKey(fleet or one_fleet())


def payload(blocks: int = 3, seed: int = 1) -> tuple[bytes, Verity]:
    """Return contents with their hash tree, and what the manifest says of it."""
    contents = b"hsqs" + random.Random(seed).randbytes(blocks * verity.BLOCK - 4)
    salt = sha256(contents).digest()
    tree = verity.tree(io.BytesIO(contents), len(contents), salt)
    return contents + tree.blocks, Verity(tree.root.hex(), salt.hex(), len(tree.blocks))


def unsigned(manifest: Manifest = MANIFEST, blocks: int = 3) -> bytes:
    """Return an unsigned bundle."""
    data, named = payload(blocks)
    return data + bundle.end(manifest._replace(verity=named).text())


def signed(
    key: UpdateKey | None = None,
    manifest: Manifest = MANIFEST,
    when: datetime = NOW,
    blocks: int = 3,
) -> bytes:
    """Return a signed bundle."""
    data, named = payload(blocks)
    text = manifest._replace(verity=named).text()
    return data + bundle.end((key or update_key()).message(text, when))

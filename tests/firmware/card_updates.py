# SPDX-License-Identifier: Apache-2.0
"""Updates for cards that boot as a device boots them: signed bundles, and a disk that brings them.

Version 2 is the same image with another version in ``/usr/lib/os-release``; worse versions differ
in one file.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bundles_for_tests import UpdateKey
from fleet_for_tests import PREFIX, TestFleet

from host.cache import cache_root
from meshlab.image import standin
from meshlab.image.lab import Text
from thicket.trust import cms
from thicket.trust.certificates import pem
from thicket.update import bundle as bundles

SLOTS = "/usr/lib/thicket/boot-slots"
WELL = "while [ ! -e /run/thicket/well ]; do sleep 0.2; done"
BUNDLE = "/data/new.raucb"
INSTALL = f"thicket update install {BUNDLE}"
SECTOR = 512

PANICS = Text("etc/init.d/S97bad.sh", "echo c >/proc/sysrq-trigger\n")
"""What makes a version one whose kernel fails when it is started."""


class Publisher:
    """A fleet, and the one who signs its updates."""

    def __init__(self) -> None:
        self.fleet = TestFleet("garden")
        self.signer = UpdateKey(self.fleet)

    def configuration(self, health: int = 10) -> str:
        """Return a node's ``thicket.toml``.

        :param health: ``[update] health_time``.
        """
        root = pem(self.fleet.fleet.root.der)
        return (
            f'[mesh]\nid = "boot-test"\n[address]\nprefix = "{PREFIX}"\n[update]\n'
            f'health_time = {health}\n[trust]\nroot = """\n{root}"""\n'
        )

    def sign(self, path: Path, out: Path) -> Path:
        """Sign a bundle."""
        with path.open("rb") as file:
            found = bundles.read(file)
            file.seek(0)
            payload = file.read(found.payload)
        key = self.signer
        signed = cms.sign(found.manifest.text(), key.certificate, datetime.now(UTC), key.sign)
        out.write_bytes(payload + bundles.end(signed))
        return out


def version(number: str, *texts: Text) -> Path:
    """Return an unsigned bundle of the stand-in with this version, made if need be."""
    release = f"VERSION_ID={number}\nTHICKET_EPOCH=1\n"
    return standin.bundle(
        cache_root(),
        name="standin",
        version=number,
        texts=(Text("usr/lib/os-release", release), *texts),
    )


@dataclass(frozen=True)
class Stick:
    """A disk with bundles on it, one behind the other."""

    path: Path
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, path: Path, *found: Path) -> Stick:
        """Make it."""
        with path.open("wb") as file:
            for bundle in found:
                data = bundle.read_bytes()
                file.write(data.ljust(-(-len(data) // SECTOR) * SECTOR, b"\0"))
        return cls(path, tuple(bundle.stat().st_size for bundle in found))

    def copy(self, number: int = 0) -> str:
        """Return the command that makes a bundle a file on /data."""
        skipped = sum(-(-size // SECTOR) for size in self.sizes[:number])
        return (
            f"tail -c +{skipped * SECTOR + 1} /dev/vdb | head -c {self.sizes[number]} >{BUNDLE} "
            "&& sync"
        )

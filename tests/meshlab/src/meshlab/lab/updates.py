# SPDX-License-Identifier: Apache-2.0
"""Updates for a lab whose nodes run from cards: bundles, patches and offers of its own fleet."""

from __future__ import annotations

import asyncio
import base64
from datetime import UTC, datetime
from pathlib import Path

from authority import deltas
from authority.authority import Authority
from authority.holders import Holder
from authority.update import sign
from firmware import bundle as making
from firmware import card as cards
from host.cache import cache_root
from meshlab.image import standin
from meshlab.image.lab import Text
from meshlab.lab.errors import LabError
from meshlab.lab.fleet import FOLDER
from meshlab.lab.lab import Lab
from meshlab.lab.real_parts import STANDIN, STANDINS
from meshlab.machine.spec import CARD
from thicket.trust import cms
from thicket.update import bundle as bundles
from thicket.update.offer import Offer, Patch, Plan, Target, describe

SIGNER = "release"
LEVEL = 3
"""Of zstd: a lab's patches travel a short way."""
PIECE = 2000
"""Characters of a line that a shell takes."""
PATIENCE = 300.0


class Desk:
    """The engineer's machine of the lab's fleet.

    What takes long is made in threads: the loop of a lab serves the chips of its nodes.

    :param folder: Where what it makes is put.
    :param image: What the nodes run: a stand-in, or a firmware that was built.
    """

    def __init__(self, lab: Lab, folder: Path, image: str = STANDIN) -> None:
        self.authority = Authority(lab.directory / FOLDER, lambda _question: "")
        self.folder = folder
        self.image = image
        self.runs: Path | None = None
        """The bundle that the nodes run by offers of ``offer_version``."""

    def signer(self, name: str = SIGNER) -> Holder:
        """Return a signer of updates, made if there is none of that name."""
        if name not in self.authority.list().get("update_signers", {}):
            self.authority.update_signers.make(name)
        return self.authority.update_signers.open(name)

    async def bundle(self, version: str | None = None, *texts: Text) -> Path:
        """Return a signed bundle of what the nodes run.

        :param version: Without one it is that of what is on the cards.
        :param texts: Files that differ; of a firmware that was built, only the version can.
        """
        return await asyncio.to_thread(self._bundle, version, texts)

    def _bundle(self, version: str | None, texts: tuple[Text, ...]) -> Path:
        if self.image in STANDINS:
            own = (Text("usr/lib/os-release", f"VERSION_ID={version}\nTHICKET_EPOCH=1\n"),)
            made = standin.bundle(
                cache_root(),
                name=self.image,
                version=version,
                texts=(*own, *texts) if version else (),
            )
        else:
            made = self._built(version, texts)
        out = self.folder / f"{version or 'old'}.raucb"
        sign(made, out, self.authority.fleet, self.signer(), datetime.now(UTC))
        return out

    def _built(self, version: str | None, texts: tuple[Text, ...]) -> Path:
        if texts:
            raise LabError(f"the files of {self.image} are as they were built: only stand-ins vary")
        images = cache_root() / "build" / self.image / "images"
        said = making.release(images)
        return making.make(images, self.folder, said._replace(version=version or said.version))

    async def patch(self, new: Path, old: Path | None = None) -> tuple[str, Path]:
        """Return the base of a patch and its file."""
        out = self.folder / f"{new.stem}-{'change' if old else 'whole'}.patch"
        made = await asyncio.to_thread(deltas.make, new, out, old, level=LEVEL)
        return made.header.base_hash, made.path

    def offer(
        self, bundle: Path, patches: dict[str, Path], plan: Plan, signer: str = SIGNER
    ) -> bytes:
        """Return a signed offer.

        :param patches: Their files, by their bases.
        :param signer: Who signs it.
        """
        with bundle.open("rb") as file:
            manifest = bundles.read(file).manifest
            file.seek(0)
            whole, _ = describe(file, "")
        target = Target(
            manifest.compatible, manifest.version, manifest.epoch, whole.size, whole.sha256
        )
        found: list[Patch] = []
        for base, path in patches.items():
            with path.open("rb") as file:
                found.append(describe(file, base)[0])
        now = datetime.now(UTC)
        fleet = self.authority.fleet.identifier
        made = Offer(fleet, int(now.timestamp()), target, tuple(found), plan)
        by = self.signer(signer)
        return cms.sign(made.text(), by.certificate, now, by.key.sign)


BAD_INIT = Text("usr/sbin/init", "#!/bin/sh\nexit 1\n", program=True)
"""What makes a version one that never comes up."""

TAKEN = "/data/in"
"""Where what is brought to a node is put on it."""


async def offer_version(
    lab: Lab, desk: Desk, by: str, version: str, plan: Plan, *, broken: bool = False
) -> None:
    """Make another version than the nodes run, and offer it to the fleet at one of them.

    A version that is not broken is what they run from then on: the next one is a change of it.

    :param broken: Make one that never comes up.
    :raises LabError: it cannot be made, or the node refuses it.
    """
    old = desk.runs or await desk.bundle()
    new = await desk.bundle(version, *([BAD_INIT] if broken else []))
    base, patch = await desk.patch(new, old)
    await put(lab, by, f"{TAKEN}/offer", desk.offer(new, {base: patch}, plan))
    await put(lab, by, f"{TAKEN}/change", patch.read_bytes())
    await run(lab, by, f"thicket update offer {TAKEN}")
    desk.runs = old if broken else new


async def run(lab: Lab, name: str, command: str) -> str:
    """Run a command that must succeed; return its output.

    :raises LabError: It failed.
    """
    status, output = await lab.run(name, command, PATIENCE)
    if status:
        raise LabError(f"{command[:200]!r} on {name} ended with {status}: {output[-2000:]}")
    return output


async def put(lab: Lab, name: str, path: str, data: bytes) -> None:
    """Write a small file on a node, line by line."""
    text = base64.b64encode(data).decode("ascii")
    await run(lab, name, f"mkdir -p {path.rpartition('/')[0]}; rm -f {path}.64 {path}")
    for at in range(0, len(text), PIECE):
        await run(lab, name, f"printf %s {text[at : at + PIECE]} >>{path}.64")
    await run(lab, name, f"base64 -d <{path}.64 >{path}")


async def put_large(lab: Lab, name: str, path: str, source: Path) -> None:
    """Write a large file on a node that has not installed anything yet: by its root slot B."""
    card = lab.directory / name / CARD
    with card.open("r+b") as disk, source.open("rb") as file:
        place = cards.read(disk)[cards.ROOT_B]
        size = source.stat().st_size
        if size > place.size:
            raise LabError(f"{source} does not fit into a slot")
        disk.seek(place.offset)
        while data := file.read(1 << 20):
            disk.write(data)
    await run(lab, name, f"mkdir -p {path.rpartition('/')[0]}")
    await run(lab, name, f"head -c {size} /dev/slots/root-b >{path}")

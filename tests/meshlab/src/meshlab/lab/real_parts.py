# SPDX-License-Identifier: Apache-2.0
"""The real parts of a lab: images, machines in QEMU, virtual chips, the medium's process."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firmware import card as cards
from meshlab.lab.copies import copy_sparse
from meshlab.lab.errors import LabError
from meshlab.lab.parts import ChipLike, FleetLike, MachineLike, Parts
from meshlab.machine import bootrom
from meshlab.machine.events import OnMachineEvent
from meshlab.machine.fat import Fat, FatError

if TYPE_CHECKING:
    from meshlab.chip.atecc608 import Atecc608
    from meshlab.image.image_set import ImageSet
    from meshlab.image.lab import Extras
    from meshlab.machine.accel import Accel

DATA_MIB = 64
"""Size of a node's data disk; the file is sparse."""

CARD_MIB = 768
"""Size of a node's card, if the image is not larger: cards are, and a node's first boot has to grow
into it. The file is sparse."""

SD_CARD_MIB = 1024
"""The same where QEMU takes powers of two only: for an SD card."""

CLOCK_TOLERANCE = 2e-4
"""How much a clock may differ from that of the computer that saved a lab: as much as clocks do."""

CARDS = ("rpi64", "x86_64")
"""Boards whose card image ``make BOARD`` leaves in the cache."""
STANDIN = "standin"
STANDINS = (STANDIN, "standin-rpi64")
"""Stand-ins for them, which ``meshlab.image.standin`` makes."""
CONFIG = "thicket.toml"
KERNEL = "kernel"
ROOTFS = "rootfs.erofs"
REPORT = "report.txt"
REPORT_LIMIT = 1 << 16


@dataclass(frozen=True)
class CardImage:
    """A card image that nodes boot from as a device does."""

    name: str
    card: Path
    arch: str
    """As in ``qemu-system-ARCH``."""
    description: str
    """One line for people: versions and sizes."""


class ServedChip:
    """A virtual ATECC608A and the server that a machine reaches it by."""

    def __init__(self, directory: Path, serial: bytes, seed: int, *, usb: bool = False) -> None:
        from meshlab.chip.server import ChipServer

        self._chip = open_chip(directory, serial, seed)
        self._server = ChipServer(directory / "chip.sock", self._chip, usb=usb)

    @property
    def fault(self) -> str | None:
        return self._chip.fault

    @fault.setter
    def fault(self, fault: str | None) -> None:
        self._chip.fault = fault

    @property
    def asleep(self) -> bool:
        return self._chip.asleep

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop()


def open_chip(directory: Path, serial: bytes, seed: int) -> Atecc608:
    """Return the virtual chip of the node in a directory.

    :raises LabError: when its file is not that of a chip.
    """
    from meshlab.chip.atecc608 import Atecc608
    from meshlab.chip.state import ChipStateError

    try:
        return Atecc608(serial, directory / "chip.json", seed=seed)
    except ChipStateError as error:
        raise LabError(str(error)) from error


class RealParts(Parts):
    """Parts of a lab that boots real nodes."""

    def __init__(
        self,
        image: ImageSet | CardImage,
        accel: Accel,
        cache: Path,
        seed: int,
        *,
        board: str | None = None,
        cables: bool = False,
        uplinks: Collection[str] = (),
    ) -> None:
        from meshlab.machine.spec import BOARDS

        self.images = image
        self.board = board
        self._virtio = board is None or BOARDS[board].virtio
        self.has_chip = self._virtio
        self.cables = cables and self._virtio
        self.uplinks = frozenset(uplinks) if self._virtio else frozenset()
        self._accel = accel
        self._cache = cache
        self.seed = seed
        self.image = image.name
        self.description = image.description + (f", on {board}" if board else "")
        self.accel = accel.name
        self.accel_reason = accel.reason
        cores = len(os.sched_getaffinity(0))
        # A TCG guest keeps one core busy while it boots; one more fills the gaps in which they
        # wait for each other. Under KVM a boot is short and mostly waits.
        self.boot_slots = cores + 1 if accel.name == "tcg" else 4 * cores

    @property
    def arch(self) -> str:
        """Return the processor of the guests, as in ``qemu-system-ARCH``."""
        return self.images.arch if isinstance(self.images, CardImage) else "x86_64"

    @property
    def memory_mib(self) -> int:
        """Return the memory of a node."""
        from meshlab.machine.spec import BOARDS, MEMORY_MIB

        own = None if self.board is None else BOARDS[self.board].memory_mib
        return own or MEMORY_MIB

    @property
    def has_card(self) -> bool:
        """Tell whether nodes have cards."""
        return isinstance(self.images, CardImage)

    def serial(self, seed: int, index: int) -> bytes:
        from meshlab.chip.state import serial_for

        return serial_for(seed, index)

    def fleet(self, directory: Path, name: str, prefix: str, keep: bool) -> FleetLike:
        from meshlab.lab.fleet import LabFleet

        return LabFleet(directory, name, prefix, keep=keep)

    def chip(self, directory: Path, serial: bytes) -> ChipLike:
        return ServedChip(directory, serial, self.seed, usb=not self._virtio)

    def disks(self, directory: Path, config: str) -> None:
        from meshlab.image.config import make_data_disk
        from meshlab.machine.spec import CARD

        if isinstance(self.images, CardImage):
            if not (directory / CARD).exists():
                size = (CARD_MIB if self._virtio else SD_CARD_MIB) << 20
                if not self._virtio:
                    size = max(size, 1 << (self.images.card.stat().st_size - 1).bit_length())
                copy_card(self.images.card, directory / CARD, size)
                self.configure(directory, config)
            return
        if not (directory / "config.img").exists():
            self.configure(directory, config)
        if not (directory / "data.img").exists():
            make_data_disk(directory / "data.img", DATA_MIB)

    def configure(self, directory: Path, config: str) -> None:
        from meshlab.image.config import make_config_disk
        from meshlab.machine.spec import CARD

        if not isinstance(self.images, CardImage):
            make_config_disk(directory / "config.img", config)
            return
        try:
            partition(directory / CARD, cards.CONFIG).write(CONFIG, config.encode())
        except FatError as error:
            raise LabError(f"{CONFIG} cannot be written to a node's card: {error}") from error

    def report(self, directory: Path) -> str | None:
        from meshlab.machine.spec import CARD

        if not isinstance(self.images, CardImage):
            return None
        try:
            text = partition(directory / CARD, cards.CONFIG).read(REPORT, REPORT_LIMIT)
        except (LabError, FatError, OSError):
            return None  # the node may be writing it just now
        return None if text is None else text.decode("utf-8", "replace")

    def machine(self, name: str, directory: Path, on_event: OnMachineEvent) -> MachineLike:
        from meshlab.machine.machine import Machine
        from meshlab.machine.spec import MachineSpec

        images = self.images
        spec = MachineSpec(
            name=name,
            directory=directory,
            kernel=None if isinstance(images, CardImage) else images.kernel,
            rootfs=None if isinstance(images, CardImage) else images.rootfs,
            cmdline="" if isinstance(images, CardImage) else images.cmdline,
            arch=self.arch,
            accel=self._accel,
            board=self.board,
            chip=self.has_chip,
            cable=self.cables,
            uplink=name in self.uplinks,
        )
        return Machine(spec, on_event)

    def keep_image(self, folder: Path) -> dict[str, Any]:
        from meshlab.machine.spec import BOARDS, DEFAULT_BOARDS

        board = self.board or DEFAULT_BOARDS[self.arch]
        if BOARDS[board].ecam is None:
            able = ", ".join(name for name, each in BOARDS.items() if each.ecam is not None)
            raise LabError(f"machines of the kind {board} cannot be saved, only those of {able}")
        if self.uplinks:
            raise LabError(
                f"a lab with uplinks cannot be saved ({', '.join(sorted(self.uplinks))})"
            )
        images = self.images
        found = {
            "name": images.name,
            "description": images.description,
            "arch": self.arch,
            "board": self.board,
            "cables": self.cables,
            "accel": self.accel,
            "cpu": self._accel.cpu,
            "tsc_khz": self._accel.tsc_khz,
        }
        if isinstance(images, CardImage):
            return found  # each node has its card
        for name, path in ((KERNEL, images.kernel), (ROOTFS, images.rootfs)):
            try:
                os.link(path, folder / name)
            except OSError:  # another file system, or one without links
                copy_sparse([path], folder / name)
        return {**found, "cmdline": images.cmdline}

    def medium(self, directory: Path) -> list[str]:
        return [sys.executable, "-m", "meshlab.medium", "--lab", str(directory)]


def copy_card(image: Path, target: Path, size: int) -> None:
    """Copy a card image to ``target`` as if written to a card of ``size`` bytes, larger or not.

    ``target`` appears when it is complete.

    :raises LabError: when it cannot be copied.
    """
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as directory:
        fresh = Path(directory, target.name)
        copy_sparse([image], fresh)
        os.truncate(fresh, max(size, fresh.stat().st_size))
        fresh.replace(target)


def partition(card: Path, number: int) -> Fat:
    """Return a FAT partition of a card image.

    :raises LabError: when there is none.
    """
    try:
        with card.open("rb") as file:
            return Fat(card, cards.read(file)[number])
    except cards.CardError as error:
        raise LabError(f"{card}: {error}") from error


def card_image(card: Path, name: str) -> CardImage:
    """Return the card image ``card``: for what processor, and what its builder wrote beside it.

    :raises LabError: when nothing on it can be booted.
    """
    try:
        found = bootrom.boot(card)
        with tempfile.TemporaryDirectory(prefix="meshlab-card-") as directory:
            kernel = Path(directory, "kernel")
            bootrom.extract(card, found, kernel)
            arch, kernel_bytes = bootrom.architecture(kernel), kernel.stat().st_size
    except (bootrom.BootError, OSError) as error:
        raise LabError(f"{card} cannot be booted: {error}") from error
    if arch is None:
        raise LabError(
            f"{card} cannot be booted: {found.kernel} on partition {found.partition} is no kernel "
            "for x86-64 (bzImage) or arm64 (Image)"
        )
    facts = _manifest(card.with_name("manifest.json"))
    if facts.get("arch", arch) != arch:
        raise LabError(
            f"{card} has a kernel for {arch}, and {card.with_name('manifest.json')} says "
            f"{facts['arch']}: they are not of one build"
        )
    mib = 1 << 20
    root = facts.get("slots", {}).get("root_bytes")
    sizes = [f"card {card.stat().st_size / mib:.0f} MiB", f"kernel {kernel_bytes / mib:.0f} MiB"]
    if isinstance(root, int):
        sizes.insert(1, f"root {root / mib:.0f} MiB")
    words = f"{name}: card image for {arch}"
    if "version" in facts:
        words += f", thicket {facts['version']}, Linux {facts.get('kernel', 'unknown')}"
    return CardImage(name, card.absolute(), arch, f"{words} ({', '.join(sizes)})")


def _manifest(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}  # a card image may come alone
    return facts if isinstance(facts, dict) else {}


def find_card(image: str, cache: Path) -> CardImage | None:
    """Return the card image that ``image`` names; ``None`` when it names another kind of image.

    :raises LabError: when it is not built, or cannot be booted.
    """
    if image in CARDS:
        card = cache / "build" / image / "images" / "card.img"
        if not card.exists():
            raise LabError(
                f"the firmware {image} is not built (there is no {card}): build it with "
                f"`make {image}`, or take IMAGE=lab, which needs no build of the firmware"
            )
        return card_image(card, image)
    path = Path(image)
    if path.is_dir() and (path / "card.img").is_file():
        path /= "card.img"
    return card_image(path, path.name) if path.is_file() else None


def directory_image(directory: Path) -> ImageSet:
    """Return the image in a directory: a kernel, ``rootfs.erofs`` and ``cmdline``.

    :raises LabError: when something is missing; the text names it.
    """
    from meshlab.image.image_set import ImageSet

    kernels = [directory / name for name in ("vmlinux", "bzImage", "Image")]
    kernel = next((path for path in kernels if path.is_file()), None)
    rootfs, cmdline = directory / "rootfs.erofs", directory / "cmdline"
    if kernel is None or not rootfs.is_file() or not cmdline.is_file():
        names = ("lab", *STANDINS, *CARDS)
        raise LabError(
            f"there is no image {str(directory)!r}: IMAGE is {', '.join(names)}, a card image, or "
            "a directory with card.img, or with a kernel (vmlinux, bzImage or Image), "
            "rootfs.erofs and cmdline"
        )
    return ImageSet(
        kernel=kernel.absolute(),
        rootfs=rootfs.absolute(),
        cmdline=cmdline.read_text().strip(),
        name=directory.name,
        description=f"the image in {directory}",
    )


def load(
    image: str,
    cache: Path,
    seed: int,
    progress: Callable[[str], None],
    extras: Extras | None = None,
    *,
    board: str | None = None,
    cables: bool = False,
    uplinks: Collection[str] = (),
) -> RealParts:
    """Return the parts for an image.

    :param image: ``lab``, which is built when it is not in the cache; ``rpi64`` or ``x86_64``, the
        firmware that ``make`` left there; the path of a card image; a directory with ``card.img``,
        or with a kernel, ``rootfs.erofs`` and ``cmdline``. ``standin`` and ``standin-rpi64`` are
        for tests: Debian's programs on a card, see ``meshlab.image.standin``.
    :param extras: For the lab image, which alone can have some.
    :param board: What it boots on, a key of ``spec.BOARDS``; ``None``: the usual one.
    :param cables: Whether nodes have wired ports, where the board can.
    :param uplinks: The nodes that have a port to this machine's own network, where the board can:
        ``uplink_interface``.
    :raises LabError: when there is no such image, or it cannot be built or booted, or not there.
    """
    from host.errors import HostError
    from meshlab.image import lab as lab_image
    from meshlab.image import standin
    from meshlab.machine import accel
    from meshlab.machine.spec import BOARDS

    if board is not None:  # said before an image is built for it
        check_board(board, "x86_64" if image == "lab" else None)
    images: ImageSet | CardImage
    try:
        if image == "lab":
            images = lab_image.build(cache, progress, extras)
        elif extras is not None:
            raise LabError(f"only the lab image can be given something in addition, not {image}")
        elif image in STANDINS:
            images = card_image(standin.build(cache, progress, image) / "card.img", image)
        else:
            images = find_card(image, cache) or directory_image(Path(image))
        arch = images.arch if isinstance(images, CardImage) else "x86_64"
        if board is not None:
            check_board(board, arch, images)
        chosen = accel.choose(cache, f"qemu-system-{arch}")
    except (HostError, accel.AccelError) as error:
        raise LabError(str(error)) from error
    if board is not None and BOARDS[board].own_processor:
        chosen = accel.Accel("tcg", f"{board} has a processor of its own", chosen.cpu)
    return RealParts(images, chosen, cache, seed, board=board, cables=cables, uplinks=uplinks)


def uplink_interface(*, cables: bool) -> str:
    """Return what a node calls its port to this machine's network; wired ports are in front."""
    return "eth1" if cables else "eth0"


def of_saved(folder: Path, kept: Mapping[str, Any], cache: Path, seed: int) -> RealParts:
    """Return the parts of nodes that were saved.

    :param folder: What ``RealParts.keep_image`` filled.
    :param kept: What it returned.
    :raises LabError: when machines that were saved so cannot wake on this computer.
    """
    from meshlab.image.image_set import ImageSet
    from meshlab.machine import accel

    try:
        chosen = accel.choose(cache, f"qemu-system-{kept['arch']}")
    except accel.AccelError as error:
        raise LabError(str(error)) from error
    if (chosen.name, chosen.cpu) != (kept["accel"], kept["cpu"]):
        raise LabError(
            f"the lab was saved under {kept['accel']} with the processor {kept['cpu']}; here nodes "
            f"run under {chosen.name} with {chosen.cpu} ({accel.OVERRIDE} chooses)"
        )
    was, now = kept["tsc_khz"], chosen.tsc_khz
    if was and now and abs(now - was) > CLOCK_TOLERANCE * was:
        raise LabError(
            f"the lab was saved where clocks count {was} kHz, and here they count {now} kHz: its "
            "nodes would live too fast or too slow"
        )
    # What the guests were told at their start holds for their lives.
    chosen = replace(chosen, tsc_khz=was)
    name, words = kept["name"], f"{kept['description']}, as it was saved"
    images: ImageSet | CardImage
    if "cmdline" in kept:
        images = ImageSet(name, folder / KERNEL, folder / ROOTFS, kept["cmdline"], words)
    else:
        images = CardImage(name, folder, kept["arch"], words)
    cables = bool(kept.get("cables"))
    return RealParts(images, chosen, cache, seed, board=kept["board"], cables=cables)


def check_board(
    board: str, arch: str | None = None, image: ImageSet | CardImage | None = None
) -> None:
    """Check that an image can boot on a board, as far as the image is known.

    :param board: What it is to boot on.
    :param arch: The processor that it is for, as in ``qemu-system-ARCH``.
    :param image: The image.
    :raises LabError: when it cannot.
    """
    from meshlab.machine.spec import BOARDS

    able = [name for name, one in BOARDS.items() if one.transport]
    if board not in able:
        what = (
            f"{board} can carry no relay" if board in BOARDS else f"there is no machine {board!r}"
        )
        raise LabError(f"{what}: MACHINE is {', '.join(able)}")
    hardware = BOARDS[board]
    if arch is not None and hardware.qemu != f"qemu-system-{arch}":
        raise LabError(f"the image is for {arch}, and {board} has another processor")
    if image is None or hardware.virtio:
        return
    if not isinstance(image, CardImage):
        raise LabError(f"{board} starts from a card, and {image.name} is no card image")
    model = bootrom.MODELS[hardware.model]
    try:
        bootrom.device_tree(image.card, bootrom.boot(image.card, model=model), model)
    except bootrom.BootError as error:
        raise LabError(f"{image.name} cannot start on {board}: {error}") from error

# SPDX-License-Identifier: Apache-2.0
"""The real parts of a lab: images, machines in QEMU, virtual chips, the medium's process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from meshlab.lab import ChipLike, LabError, MachineLike, OnMachineEvent

if TYPE_CHECKING:
    from meshlab.accel import Accel
    from meshlab.image.lab import ImageSet

DATA_MIB = 64
"""Size of a node's data disk; the file is sparse."""


class ServedChip:
    """A virtual ATECC608A and the server that a machine reaches it by."""

    def __init__(self, directory: Path, serial: bytes, seed: int) -> None:
        from meshlab.chip import Atecc608, ChipServer, ChipStateError

        try:
            self._chip = Atecc608(serial, directory / "chip.json", seed=seed)
        except ChipStateError as error:
            raise LabError(str(error)) from error
        self._server = ChipServer(directory / "chip.sock", self._chip)

    @property
    def fault(self) -> str | None:
        return self._chip.fault

    @fault.setter
    def fault(self, fault: str | None) -> None:
        self._chip.fault = fault

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop()


class RealParts:
    """Parts of a lab that boots real nodes."""

    def __init__(self, image: ImageSet, accel: Accel, cache: Path, seed: int) -> None:
        self._images = image
        self._accel = accel
        self._cache = cache
        self._seed = seed
        self.image = image.name
        self.accel = accel.name
        self.accel_reason = accel.reason
        cores = len(os.sched_getaffinity(0))
        # A TCG guest keeps one core busy while it boots; one more fills the gaps in which they
        # wait for each other. Under KVM a boot is short and mostly waits.
        self.boot_slots = cores + 1 if accel.name == "tcg" else 4 * cores

    def serial(self, seed: int, index: int) -> bytes:
        from meshlab.chip import serial_for

        return serial_for(seed, index)

    def chip(self, directory: Path, serial: bytes) -> ChipLike:
        return ServedChip(directory, serial, self._seed)

    def disks(self, directory: Path, config: str) -> None:
        from meshlab.image.config import make_config_disk, make_data_disk

        if not (directory / "config.img").exists():
            make_config_disk(directory / "config.img", config)
        if not (directory / "data.img").exists():
            make_data_disk(directory / "data.img", DATA_MIB)

    def machine(self, name: str, directory: Path, on_event: OnMachineEvent) -> MachineLike:
        from meshlab.machine import Machine, MachineSpec

        return Machine(
            MachineSpec(
                name=name,
                directory=directory,
                kernel=self._images.kernel,
                rootfs=self._images.rootfs,
                cmdline=self._images.cmdline,
                accel=self._accel,
            ),
            on_event,
        )

    def medium(self, directory: Path) -> list[str]:
        return [sys.executable, "-m", "meshlab.medium", "--lab", str(directory)]


def directory_image(directory: Path) -> ImageSet:
    """Return the image in a directory: a kernel, ``rootfs.erofs`` and ``cmdline``.

    Raises ``LabError`` naming what is missing.
    """
    from meshlab.image.lab import ImageSet

    kernels = [directory / name for name in ("vmlinux", "bzImage", "Image")]
    kernel = next((path for path in kernels if path.is_file()), None)
    rootfs, cmdline = directory / "rootfs.erofs", directory / "cmdline"
    if kernel is None or not rootfs.is_file() or not cmdline.is_file():
        raise LabError(
            f"there is no image {str(directory)!r}: IMAGE is lab, or a directory with a kernel "
            "(vmlinux, bzImage or Image), rootfs.erofs and cmdline"
        )
    return ImageSet(
        kernel=kernel.absolute(),
        rootfs=rootfs.absolute(),
        cmdline=cmdline.read_text().strip(),
        name=directory.name,
        description=f"the image in {directory}",
    )


def load(image: str, cache: Path, seed: int, progress: Callable[[str], None]) -> RealParts:
    """Return the parts for ``image``, built when it is not in the cache.

    ``image`` is ``lab`` or a directory that holds a built firmware. Raises ``LabError``.
    """
    from meshlab import accel
    from meshlab.image import lab as lab_image
    from meshlab.image.errors import ImageError

    built = image == "lab"
    try:
        images = lab_image.build(cache, progress) if built else directory_image(Path(image))
        chosen = accel.choose(cache)
    except (ImageError, accel.AccelError) as error:
        raise LabError(str(error)) from error
    return RealParts(images, chosen, cache, seed)

# SPDX-License-Identifier: Apache-2.0
"""Card images without Buildroot: Debian's programs, laid out by the scripts of the firmware.

``board/common/post-image.sh`` makes them as it makes the firmware's: hash tree, command lines, boot
partitions. So everything about cards that is not Buildroot's is tested where no firmware was built.

What stands in for what on the card:

=============== ==================================== ===============================================
                ``standin`` (x86-64)                 ``standin-rpi64`` (arm64)
=============== ==================================== ===============================================
programs        Debian's instead of Buildroot's      the same
kernel          the lab's                            mainline as Debian has it, with the firmware's
                                                     fragments but ``downstream.config``, which only
                                                     the Raspberry Pi kernel knows
device trees    none                                 mainline's
Pi's firmware   none                                 a line of text in place of each file
overlays        none                                 the same; ``meshlab.machine.bootrom`` looks at
                                                     their names, and no emulator at their contents
=============== ==================================== ===============================================

So ``standin-rpi64`` starts in an emulator only: a Raspberry Pi finds no firmware on it.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from firmware import bundle as bundles
from firmware.boards import ROOT
from host.progress import Report
from host.run import Runner
from meshlab.image import host, lab
from meshlab.image import tree as trees
from meshlab.image.cache import Cache, Digest
from meshlab.image.errors import ImageError

RECIPE = "2"

PROGRAMS = {
    "genimage": "genimage",
    "mcopy": "mtools",
    "mkfs.fat": "dosfstools",
    "veritysetup": "cryptsetup-bin",
}
"""Programs that make the card, and the package that brings each."""


@dataclass(frozen=True)
class Kind:
    """A stand-in."""

    board: str
    """The board whose scripts lay out the card."""
    kernel: str
    """The kernel's name on the card."""
    image: str | None = None
    """The board whose kernel it has (``lab.build``); ``None``: the lab image is on the card."""
    programs: tuple[tuple[str, str], ...] = ()
    """More programs that make it, and the package that brings each."""
    files: tuple[tuple[str, str], ...] = ()
    """Files that make it, and the package that brings each."""
    firmware: tuple[str, ...] = ()
    """Files that a Raspberry Pi reads before Linux, and no emulator: on the card by name only."""


KINDS = {
    # QEMU knows a kernel by its content: the ELF file saves every start the decompression.
    "standin": Kind("x86_64", "bzImage"),
    "standin-rpi64": Kind(
        "rpi64",
        "Image",
        image="rpi64",
        programs=(("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),),
        files=(("/usr/aarch64-linux-gnu/lib/libc.a", "libc6-dev-arm64-cross"),),
        firmware=("bootcode.bin", "start.elf", "fixup.dat", "start4.elf", "fixup4.dat"),
    ),
}

PLACEHOLDER = b"A card for emulators: a Raspberry Pi needs a file of its firmware instead.\n"

KEPT = ("card.img", "manifest.json", bundles.BOOT, bundles.ROOT_IMAGE)
"""What stays of a card: itself, what it says of itself, and what bundles are made of."""

_PLACES = "/usr/local/sbin:/usr/sbin:/sbin"


def extras(name: str) -> lab.Extras:
    """Return what a stand-in has that the lab image has not: RAUC.

    Debian's works by a service on D-Bus, the firmware's without; see ``board/qemu/standin``.

    :param name: A key of ``KINDS``.
    """
    configuration = (ROOT / "board/common/rauc/system.conf").read_text(encoding="utf-8")
    own = ROOT / "board/qemu/standin"
    return lab.Extras(
        packages=("dbus-bin", "dbus-daemon", "rauc"),
        files=("usr/bin/dbus-daemon", "usr/bin/dbus-send", "usr/bin/rauc"),
        texts=(
            lab.Text(
                "etc/rauc/system.conf", configuration.replace("@COMPATIBLE@", f"thicket-{name}")
            ),
            lab.Text("etc/rauc/dbus.conf", (own / "dbus.conf").read_text(encoding="utf-8")),
            lab.Text("usr/sbin/rauc", (own / "rauc").read_text(encoding="utf-8"), program=True),
        ),
    )


def build(
    cache: Path,
    progress: Report | None = None,
    name: str = "standin",
    texts: tuple[lab.Text, ...] = (),
) -> Path:
    """Return the directory of what is ``KEPT``, made if not in ``cache``.

    :param cache: The product's cache folder.
    :param progress: As ``lab.build`` has it.
    :param name: A key of ``KINDS``.
    :param texts: Files that differ from the tree's.
    :raises ImageError: when the image cannot be built, or genimage, veritysetup (Debian's
        cryptsetup-bin), mtools, mkfs.fat or a compiler is missing or fails.
    """
    kind = KINDS[name]
    packages = host.missing(PROGRAMS | dict(kind.programs), dict(kind.files))
    if packages:  # said before the image is built for it
        raise ImageError(
            "programs that make the stand-in card are missing. Install them with:\n"
            f"    apt-get install --no-install-recommends {' '.join(packages)}"
        )
    more = extras(name)
    more = replace(more, texts=(*more.texts, *texts))
    images = lab.build(cache, progress, more, board=kind.image)
    tree = trees.find()
    kept = Cache(cache / "images")
    made_of = Digest(RECIPE, images.rootfs.parent.name)
    common, board = tree.root / "board" / "common", tree.root / "board" / kind.board
    layouts = (common / "boot.cfg", common / "genimage.cfg")
    scripts = [common / "post-image.sh", *layouts, *(common / "card").iterdir()]
    made_of.files(tree.root, [*scripts, *(path for path in board.iterdir() if path.is_file())])
    made_of.words(PLACEHOLDER.decode(), *kind.firmware)
    facts = json.loads((images.rootfs.parent / "image.json").read_text())

    def make(directory: Path) -> None:
        shutil.copyfile(images.rootfs, directory / "rootfs.erofs")
        shutil.copyfile(images.kernel, directory / kind.kernel)
        for path in (images.kernel.parent / "dtbs").glob("*.dtb"):
            shutil.copyfile(path, directory / path.name)
        if kind.firmware:
            _stand_in_firmware(directory / "rpi-firmware", board, kind.firmware)
        (directory / "target" / "lib" / "modules" / facts["kernel"]).mkdir(parents=True)
        Runner(lab.NICE).run(
            [common / "post-image.sh", directory, kind.board],
            kept.log("standin"),
            what="making the stand-in card",
            env={
                "PATH": f"{os.environ.get('PATH', os.defpath)}:{_PLACES}",
                "TARGET_DIR": str(directory / "target"),
                "SOURCE_DATE_EPOCH": "0",
            },
        )
        for path in list(directory.iterdir()):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in KEPT:
                path.unlink()

    return kept.obtain("standin", made_of.key(), make, room=2 << 30)


def bundle(
    cache: Path,
    progress: Report | None = None,
    name: str = "standin",
    *,
    version: str | None = None,
    epoch: int | None = None,
    texts: tuple[lab.Text, ...] = (),
) -> Path:
    """Return an unsigned update bundle of a stand-in, made if not in ``cache``.

    It is for stand-ins only (``compatible`` is ``thicket-standin``): a device would not start it.

    :param cache: as for :func:`build`.
    :param progress: likewise.
    :param name: likewise.
    :param version: what it says instead of the tree's own version.
    :param epoch: likewise.
    :param texts: as for :func:`build`.
    :raises ImageError: as :func:`build`, or squashfs-tools are missing.
    """
    try:
        bundles.check_tools()
        images = build(cache, progress, name, texts)
        said = bundles.release(images)
    except bundles.BundleMakingError as error:
        raise ImageError(str(error)) from error
    said = bundles.Release(
        name,
        version or said.version,
        said.epoch if epoch is None else epoch,
        # Which card it is of; a commit is not part of what a stand-in is made of.
        images.name,
        said.root,
    )
    made_of = Digest(RECIPE, images.name, *map(str, said))
    made_of.files(ROOT, [*_BUNDLE_SOURCES, *sorted((ROOT / "board/common/bundle").iterdir())])

    def make(directory: Path) -> None:
        try:
            bundles.make(images, directory, said)
        except bundles.BundleMakingError as error:
            raise ImageError(str(error)) from error

    folder = Cache(cache / "images").obtain("standin-bundle", made_of.key(), make)
    return folder / said.filename


_BUNDLE_SOURCES = (
    ROOT / "tools/src/firmware/bundle.py",
    ROOT / "app/src/thicket/update/bundle.py",
    ROOT / "app/src/thicket/update/manifest.py",
    ROOT / "app/src/thicket/update/verity.py",
)


def _stand_in_firmware(directory: Path, board: Path, names: tuple[str, ...]) -> None:
    """Make a file of each name, and one of each overlay that the board's configuration asks for."""
    (directory / "overlays").mkdir(parents=True)
    lines = (board / "overlays.txt").read_text().splitlines()
    overlays = [f"overlays/{line}.dtbo" for line in lines if line and not line.startswith("#")]
    for name in (*names, *overlays):
        (directory / name).write_bytes(PLACEHOLDER)

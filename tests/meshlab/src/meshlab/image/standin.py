# SPDX-License-Identifier: Apache-2.0
"""A card image without Buildroot: the lab image, laid out by the scripts of the firmware.

``board/common/post-image.sh`` makes it as it makes the firmware's: hash tree, command lines, boot
partitions. So everything about cards that is not Buildroot's is tested where no firmware was built.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from host.progress import Report
from host.run import Runner
from meshlab.image import host, lab
from meshlab.image import tree as trees
from meshlab.image.cache import Cache, Digest
from meshlab.image.errors import ImageError

RECIPE = "1"
BOARD = "x86_64"

PROGRAMS = {
    "genimage": "genimage",
    "mcopy": "mtools",
    "mkfs.fat": "dosfstools",
    "veritysetup": "cryptsetup-bin",
}
"""Programs that make the card, and the package that brings each."""

_PLACES = "/usr/local/sbin:/usr/sbin:/sbin"


def build(cache: Path, progress: Report | None = None) -> Path:
    """Return the directory of ``card.img`` and ``manifest.json``, made if not in ``cache``.

    :raises ImageError: when the lab image cannot be built, or genimage, veritysetup (Debian's
        cryptsetup-bin), mtools or mkfs.fat is missing or fails.
    """
    packages = host.missing(PROGRAMS, {})
    if packages:  # said before the lab image is built for it
        raise ImageError(
            "programs that make the stand-in card are missing. Install them with:\n"
            f"    apt-get install --no-install-recommends {' '.join(packages)}"
        )
    images = lab.build(cache, progress)
    tree = trees.find()
    kept = Cache(cache / "images")
    made_of = Digest(RECIPE, images.rootfs.parent.name)
    common, board = tree.root / "board" / "common", tree.root / "board" / BOARD
    scripts = [common / "post-image.sh", common / "genimage.cfg", *(common / "card").iterdir()]
    made_of.files(tree.root, [*scripts, board / "board.conf", board / "hooks.sh"])
    facts = json.loads((images.rootfs.parent / "image.json").read_text())

    def make(directory: Path) -> None:
        shutil.copyfile(images.rootfs, directory / "rootfs.erofs")
        # QEMU knows a kernel by its content: the ELF file saves every start the decompression.
        shutil.copyfile(images.kernel, directory / "bzImage")
        (directory / "target" / "lib" / "modules" / facts["kernel"]).mkdir(parents=True)
        Runner().run(
            [common / "post-image.sh", directory, BOARD],
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
            elif path.name not in ("card.img", "manifest.json"):
                path.unlink()

    return kept.obtain("standin", made_of.key(), make)

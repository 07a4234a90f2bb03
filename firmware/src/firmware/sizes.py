# SPDX-License-Identifier: Apache-2.0
"""What takes how much room in a built image, by package and by part of the card."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path


def by_package(output: Path) -> Counter[str]:
    """Return the bytes of every package's files in the root filesystem, uncompressed.

    ``output`` is Buildroot's output directory, whose ``packages-file-list.txt`` says which package
    installed a file last. What no package installed is the overlay's and the build's: ``(thicket)``.
    """
    target = output / "target"
    owners = {}
    for line in (output / "build" / "packages-file-list.txt").read_text().splitlines():
        package, _, name = line.partition(",")
        owners[os.path.normpath(name)] = package
    sizes: Counter[str] = Counter()
    for directory, _names, files in os.walk(target):
        for name in files:
            path = Path(directory, name)
            if path.is_symlink():
                continue
            place = os.path.normpath(path.relative_to(target))
            # Byte code is compiled after its source was installed, and lib/ may be a link to usr/lib.
            candidates = [place, place.removesuffix("c"), place.removeprefix("usr/")]
            owner = next((owners[c] for c in candidates if c in owners), "(thicket)")
            sizes[owner] += path.stat().st_size
    return sizes


def by_part(output: Path) -> dict[str, int]:
    """Return the bytes of the parts of the card."""
    images = output / "images"
    manifest = json.loads((images / "manifest.json").read_text())
    slots = manifest["slots"]
    return {
        "card image": manifest["card_bytes"],
        "card image, used blocks": (images / "card.img").stat().st_blocks * 512,
        "a boot partition's files": slots["boot_bytes"],
        "kernel": slots["kernel_bytes"],
        "root, EROFS": slots["root_bytes"],
        "root's hash tree": slots["verity_bytes"],
    }


def table(output: Path, most: int = 25) -> str:
    """Return both as a table for people, the ``most`` largest packages first."""
    lines = [f"{size / 2**20:8.1f} MiB  {name}" for name, size in by_part(output).items()]
    packages = by_package(output)
    lines += ["", f"{packages.total() / 2**20:8.1f} MiB  root, uncompressed, by package:"]
    lines += [f"{size / 2**20:8.1f} MiB  {name}" for name, size in packages.most_common(most)]
    rest = packages.total() - sum(size for _name, size in packages.most_common(most))
    if rest:
        lines.append(f"{rest / 2**20:8.1f} MiB  {len(packages) - most} more packages")
    return "\n".join(lines)

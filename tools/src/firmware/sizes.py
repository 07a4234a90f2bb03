# SPDX-License-Identifier: Apache-2.0
"""How much room each package, and each part of the card, takes in a built image."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path


def by_package(output: Path) -> Counter[str]:
    """Return the bytes of every package's files in the root filesystem, uncompressed.

    Files that no package installed are the overlay's and the build's: ``(thicket)``.

    :param output: Buildroot's output directory, whose ``packages-file-list.txt`` says which package
        installed a file last.
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
            # Byte code is compiled after its source was installed, and lib is a link to usr/lib.
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


OTHERS = {
    "Home Assistant OS 17": {"root slot": 256, "card image": 2048, "memory of its test": 1024},
    "Infix 26.08": {"root slot": 250, "card image": 700, "memory of its test": 384},
    "Nerves (rpi4 2.0)": {"root slot": 133, "card image": 1024},
}
"""What a user would choose instead, in MiB, read in their trees: HAOS f58c959 (2026-02; genimage
and tests), Infix d6eda3c (2026-08; the card image is the sum of its parts), nerves_system_rpi4
2.0.4 (fwup.conf; "below 1 GB"). None of them publishes boot times."""


def beside_others(output: Path, memory_mib: int) -> list[tuple[str, ...]]:
    """Return rows of a table that sets a built image beside others; the first row is the head.

    :param memory_mib: the memory of the guests that were measured.
    """
    parts = by_part(output)
    ours = {
        "root slot": 128,
        "card image": parts["card image"] >> 20,
        "memory of its test": memory_mib,
    }
    used = f"{parts['root, EROFS'] / 2**20:.1f} of "
    keys = tuple(ours)
    rows = [("MiB", *keys), ("Thicket", *(used * (k == "root slot") + str(ours[k]) for k in keys))]
    for name, values in OTHERS.items():
        rows.append((name, *(str(values.get(key, "-")) for key in keys)))
    return rows

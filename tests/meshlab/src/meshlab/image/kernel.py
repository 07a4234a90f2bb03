# SPDX-License-Identifier: Apache-2.0
"""Builds a kernel from Debian's source and this tree's configuration fragments.

The configuration is everything off (``allnoconfig``) plus the fragments. Kconfig drops a line
silently when something it depends on is missing, so every line is looked up in the result.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from host.kconfig import FragmentError, Wanted, lost, merge
from host.progress import Stage
from host.run import Runner
from meshlab.image.architecture import Architecture
from meshlab.image.errors import ImageError

FIRMWARE = "thicket-firmware"


def configuration(paths: Iterable[Path], root: Path) -> tuple[str, list[Wanted]]:
    """Return the fragments as one text, and their lines, named relative to ``root``.

    :raises ImageError: when kconfig would skip a line without a word.
    """
    try:
        return merge(paths, root)
    except FragmentError as error:
        raise ImageError(str(error)) from error


def unpack(
    runner: Runner, log: Path, *, source: Path, firmware: Path, names: dict[str, str], work: Path
) -> Path:
    """Unpack the kernel's source package below ``work``; return the source's directory.

    ``names`` are files of the package ``firmware`` that go into the folder ``FIRMWARE``, from where
    ``CONFIG_EXTRA_FIRMWARE`` takes them.
    """
    packages = work / "package"
    runner.run(["dpkg-deb", "-x", source, packages], log, what="unpacking the kernel's package")
    archives = list((packages / "usr" / "src").glob("linux-source-*.tar.xz"))
    if len(archives) != 1:
        raise ImageError(f"{source.name} holds {len(archives)} source archives, not one")
    directory = work / "source"
    directory.mkdir()
    unused = ["tools/testing", "drivers/gpu/drm/amd/include", "sound/soc/codecs/*.c"]
    runner.run(
        [
            "tar",
            "-xf",
            archives[0],
            "-C",
            directory,
            "--strip-components=1",
            "--wildcards",
            *(f"--exclude=linux-*/{pattern}" for pattern in unused),
        ],
        log,
        what="unpacking the kernel's source",
    )
    shutil.rmtree(packages)
    runner.run(["dpkg-deb", "-x", firmware, packages], log, what="unpacking kernel firmware")
    target = directory / FIRMWARE
    target.mkdir()
    for name, path in names.items():
        try:
            shutil.copyfile(packages / path, target / name)
        except OSError as error:
            raise ImageError(f"{firmware.name} does not hold {path}: {error}") from error
    shutil.rmtree(packages)
    return directory


def build(
    runner: Runner,
    log: Path,
    progress: Stage,
    *,
    architecture: Architecture,
    source: Path,
    config: str,
    wanted: Iterable[Wanted],
    device_trees: Iterable[str],
    output: Path,
    work: Path,
) -> None:
    """Compile; leave the kernel, ``modules/``, ``dtbs/`` and ``config`` in ``output``.

    An ELF file (``vmlinux``) is stripped. ``dtbs`` is there if device trees are wanted.

    :raises ImageError: when lines of the fragments did not survive; the text names each.
    """
    objects = work / "objects"
    objects.mkdir()
    fragment = work / "fragments.config"
    fragment.write_text(config, encoding="utf-8")
    jobs = len(os.sched_getaffinity(0))
    # Neither the person nor the time of a build may be in what it makes.
    fixed = {
        "KBUILD_BUILD_USER": "thicket",
        "KBUILD_BUILD_HOST": "lab",
        "KBUILD_BUILD_TIMESTAMP": "@0",
        "KBUILD_BUILD_VERSION": "1",
        # A make above this one must not lend its flags or its job server.
        "MAKEFLAGS": "",
        "MFLAGS": "",
        "MAKELEVEL": "",
    }
    make = ["make", f"O={objects}", f"-j{jobs}", *architecture.make]

    progress.doing("configuring")
    runner.run(
        [*make, f"KCONFIG_ALLCONFIG={fragment}", "allnoconfig"],
        log,
        what="configuring the kernel",
        cwd=source,
        env=fixed,
    )
    result = (objects / ".config").read_text(encoding="utf-8")
    sentences = lost(wanted, result)
    if sentences:
        raise ImageError(
            "these lines of kernel fragments did not survive (what they depend on is off, or the "
            "option is not in this kernel):\n  " + "\n  ".join(sentences)
        )

    compiled = 0

    def count(line: str) -> None:
        nonlocal compiled
        if line.startswith(("  CC ", "  AS ")):
            compiled += 1
            percent = min(99, 100 * compiled // architecture.objects)
            progress.doing(f"compiled {compiled} objects, about {percent} %")

    image = objects / architecture.kernel
    trees = [f"{name}.dtb" for name in device_trees]
    runner.run(
        [*make, image.name, *trees, "modules"],
        log,
        what="compiling the kernel",
        cwd=source,
        env=fixed,
        on_line=count,
    )
    progress.doing("installing")
    modules = work / "install"
    runner.run(
        [*make, f"INSTALL_MOD_PATH={modules}", "INSTALL_MOD_STRIP=1", "modules_install"],
        log,
        what="installing kernel modules",
        cwd=source,
        env=fixed | {"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"},
    )
    if image.name == "vmlinux":
        # QEMU starts the ELF file itself (PVH note); symbols are in the kernel's own table.
        runner.run(
            ["strip", "--strip-all", "-o", output / image.name, image],
            log,
            what="stripping the kernel",
        )
    else:
        shutil.copyfile(image, output / image.name)
    for name in trees:
        (output / "dtbs").mkdir(exist_ok=True)
        made = image.parent / "dts" / name
        shutil.copyfile(made, output / "dtbs" / made.name)
    (output / "config").write_text(result, encoding="utf-8")
    for link in (modules / "lib" / "modules").glob("*/build"):
        link.unlink()
    (modules / "lib" / "modules").rename(output / "modules")

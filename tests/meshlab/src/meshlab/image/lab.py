# SPDX-License-Identifier: Apache-2.0
"""The lab image: Debian's userland, a kernel of our own fragments, the firmware's own overlay.

Stages, each kept by the hash of what goes into it::

    source ---> kernel ---------+
    userland -> python ---------+--> lab
    relay ----------------------+

The kernel and the userland are made side by side. The same stages make the stand-in for a board's
firmware: there the kernel is the board's, and what has to be run while building (Python, which
compiles modules, and BusyBox, which tells its applets) is the lab image's.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import NamedTuple

from firmware import start_archive
from firmware.build import changed
from host.errors import CancelledError
from host.progress import Progress, Report, reporter
from host.run import Runner
from meshlab.image import cache as caches
from meshlab.image import debian, host, kernel, rootfs, userland
from meshlab.image import tree as trees
from meshlab.image.architecture import NATIVE
from meshlab.image.cache import Cache, Digest
from meshlab.image.errors import ImageError
from meshlab.image.image_set import ImageSet
from meshlab.usb import ralink

RECIPE = "1"
"""Raised when the code that builds changes what it makes of the same inputs."""

CMDLINE = (
    "quiet norandmaps no_timer_check tsc=unstable root=/dev/vda ro rootfstype=erofs "
    "thicket.data=/dev/vdb thicket.boot=/dev/vdc"
)
"""Kernel command line: first disk the root, second the data, third the configuration.

``norandmaps``: QEMU keeps translated code by its virtual address; programs that are at another
address at each start are translated again at each start, which makes one 5 to 10 times slower.
``no_timer_check``: not to try for 40 ms whether an emulated timer interrupts. ``tsc=unstable``:
take time from the ACPI timer; the frequency of the time stamp counter is measured while the host
may interrupt, and clocks ran up to 40 times too fast. The console is the machine's business.
"""

LAB_RECIPE = "5"
"""The same for what the last stage alone does."""

STAGES = ("source", "kernel", "userland", "python", "relay", "lab")

ROOM = {"kernel": 3 << 30}
"""Bytes that a stage takes on the disk for a while, where that is more than ``cache.ROOM``."""

NICE = 10
"""Niceness of the programs that make an image, as QEMU's: nodes that run keep their processor."""


@dataclass(frozen=True)
class Extras:
    """What an image has in addition to the lab image."""

    applications: tuple[Path, ...] = ()
    """Directories of Python projects, which nodes run as applications."""
    packages: tuple[str, ...] = ()
    """Debian packages from which ``files`` are taken."""
    files: tuple[str, ...] = ()
    """Patterns of what is kept, from the root."""
    texts: tuple[Text, ...] = ()
    """Files of its own, in place of the tree's where both have one."""


class Text(NamedTuple):
    """A file of an image: its path from the root, what is in it, and whether it is a program."""

    path: str
    content: str
    program: bool = False


class Builder:
    """One build: the tree, the cache and what they have in common.

    :param board: The board whose firmware is stood in for; ``None``: the lab image.
    """

    def __init__(
        self,
        tree: trees.Tree,
        cache: Cache,
        progress: Progress,
        extras: Extras | None = None,
        board: str | None = None,
    ) -> None:
        self.tree = tree
        self.extras = extras or Extras()
        self.board = board
        self.what = f"stand-in for the firmware {board}" if board else "lab image"
        """The image, for people."""
        recipe = tree.recipe(board)
        self.recipe = replace(
            recipe,
            packages=(*recipe.packages, *self.extras.packages),
            files=(*recipe.files, *self.extras.files),
        )
        self.cache = cache
        self.progress = progress
        self.runner = Runner(NICE)
        self._runnable = self
        """The builder of programs that can be run here."""
        if recipe.architecture is not NATIVE:
            self._runnable = type(self)(tree, cache, progress)
            self._runnable.runner = self.runner  # what ends one ends the other
            self._runnable.what = self.what

    def _obtain(self, name: str, key: str, what: str, make: Callable[[Path, Path], None]) -> Path:
        """Return the stage's result; ``make(directory, log)`` makes it."""
        stage = self.progress.stage(name)

        def run(directory: Path) -> None:
            host.check(self.cache.root, self.what)
            stage.start(what)
            make(directory, self.cache.log(name))
            stage.done("made")

        try:
            return self.cache.obtain(
                name,
                key,
                run,
                room=ROOM.get(name, caches.ROOM),
                waiting=stage.doing,
                cancelled=self.runner.cancelled,
            )
        finally:
            stage.ended()

    def source(self) -> Path:
        """Download the kernel's source and firmware packages."""
        recipe = self.recipe
        packages = [recipe.kernel_source, recipe.firmware_package]
        # The same packages for all architectures.
        key = Digest(RECIPE, recipe.suite, NATIVE.name, *packages).key()

        def make(directory: Path, log: Path) -> None:
            debian.download(
                self.runner,
                log,
                suite=recipe.suite,
                architecture=NATIVE.name,
                packages=packages,
                directory=directory,
            )
            shutil.rmtree(directory / "root", ignore_errors=True)

        return self._obtain("source", key, f"downloading {recipe.kernel_source} (150 MB)", make)

    def kernel(self) -> Path:
        """Build the kernel: its file, ``modules/``, ``config``, ``dtbs/``, ``firmware/``."""
        recipe = self.recipe
        source = self.source()
        (kernel_package,) = source.glob(f"{recipe.kernel_source}_*.deb")
        (firmware_package,) = source.glob(f"{recipe.firmware_package}_*.deb")
        config, wanted = kernel.configuration(recipe.fragments, self.tree.root)
        firmware = [f"{name}={path}" for name, path in sorted(recipe.kernel_firmware.items())]
        # Comments and the order of what does not overlap make no other kernel.
        options = sorted({line.name: f"{line.name}={line.value}" for line in wanted}.values())
        made_of = Digest(RECIPE, *options, kernel_package.name, firmware_package.name, *firmware)
        key = made_of.words(*recipe.architecture.make, *recipe.device_trees).key()

        def make(directory: Path, log: Path) -> None:
            work = directory / "work"
            work.mkdir()
            stage = self.progress.stage("kernel")
            stage.doing("unpacking the source")
            tree = kernel.unpack(
                self.runner,
                log,
                source=kernel_package,
                firmware=firmware_package,
                names=recipe.kernel_firmware,
                work=work,
            )
            kernel.build(
                self.runner,
                log,
                stage,
                architecture=recipe.architecture,
                source=tree,
                config=config,
                wanted=wanted,
                device_trees=recipe.device_trees,
                output=directory,
                work=work,
            )
            if not recipe.firmware_built_in:
                (tree / kernel.FIRMWARE).rename(directory / "firmware")
            stage.doing("removing source and objects")
            shutil.rmtree(work)

        return self._obtain(
            "kernel", key, "compiling the kernel, some minutes the first time", make
        )

    def userland(self) -> Path:
        """Take from Debian what a node needs."""
        recipe = self.recipe
        runnable = None if self._runnable is self else self._runnable.userland()
        key = Digest(
            RECIPE,
            recipe.suite,
            recipe.architecture.name,
            *("packages", *recipe.packages),
            *("files", *recipe.files),
            *("unwanted", *recipe.unwanted),
            *("applets", *recipe.applets_unwanted),
            *("aside", repr(sorted(recipe.aside.items()))),
            *((runnable.parent.name,) if runnable else ()),
        ).key()

        def make(directory: Path, log: Path) -> None:
            stage = self.progress.stage("userland")
            stage.doing("downloading and unpacking packages")
            unpacked = directory / "unpacked"
            debian.extract(
                self.runner,
                log,
                suite=recipe.suite,
                architecture=recipe.architecture.name,
                packages=recipe.packages,
                directory=unpacked,
                aside=sorted({package for package, _path in recipe.aside.values()}),
                aside_directory=directory / "aside",
                notes=directory / "notes",
            )
            stage.doing("choosing files")
            root = directory / "root"
            root.mkdir()
            chosen = userland.select(unpacked, root, recipe)
            notes, noted = directory / "notes", directory / userland.DEBIAN
            userland.note(notes, unpacked, chosen, noted, directory / "aside")
            userland.place_aside(directory / "aside", root, recipe)
            userland.link_applets(
                self.runner,
                log,
                root,
                asked=runnable or root,
                busyboxes=["busybox-static", "busybox"],
                unwanted=recipe.applets_unwanted,
            )
            stage.doing("compiling Python's library")
            version = userland.python_version(root)
            library = f"usr/lib/python{version}"
            if runnable and userland.python_version(runnable) != version:
                raise ImageError(
                    f"Debian's Python for {recipe.architecture.name} is {version}, and "
                    f"{userland.python_version(runnable)} is to compile for it"
                )
            userland.compile_python(
                self.runner, log, runnable or root, root / library, f"/{library}"
            )
            # Debian's interpreter looks for packages in one place, everybody else's in another.
            (root / library / "site-packages").mkdir(exist_ok=True)
            packages = root / "usr" / "lib" / "python3" / "dist-packages"
            shutil.rmtree(packages.parent, ignore_errors=True)
            packages.parent.mkdir(parents=True)
            packages.symlink_to(f"../python{version}/site-packages")
            for name in ("unpacked", "aside", "notes"):
                shutil.rmtree(directory / name)

        return self._obtain("userland", key, "taking the userland from Debian", make) / "root"

    def python(self, base: Path) -> Path:
        """Take the node's Python packages from PyPI, compiled by the interpreter of ``base``."""
        requirements = self.tree.requirements()
        version = userland.python_version(base)
        key = Digest(RECIPE, base.parent.name, *requirements).key()

        def make(directory: Path, log: Path) -> None:
            stage = self.progress.stage("python")
            stage.doing("downloading " + ", ".join(requirements))
            wheels = directory / "wheels"
            wheels.mkdir()
            packages = directory / "packages"
            packages.mkdir()
            hashes = self.tree.hashes()
            for wheel in userland.download_wheels(
                self.runner, log, requirements, hashes=hashes, version=version, directory=wheels
            ):
                userland.unpack_wheel(wheel, packages, userland.wanted_of_wheel)
            shutil.rmtree(wheels)
            stage.doing("compiling")
            userland.compile_python(
                self.runner, log, base, packages, f"/usr/lib/python{version}/site-packages"
            )

        return self._obtain("python", key, "taking Python packages from PyPI", make) / "packages"

    def relay(self) -> Path | None:
        """Compile the guest's end of the simulated radio; ``None`` where there is no source."""
        architecture = self.recipe.architecture
        compiler = "gcc" if architecture is NATIVE else f"{architecture.triplet}-gcc"
        if not self.tree.relay.is_dir():
            return None
        sources = [p for p in sorted(self.tree.relay.iterdir()) if p.suffix in (".c", ".h")]
        names = [*sources, self.tree.relay / "Makefile"]
        key = Digest(RECIPE, *architecture.make).files(self.tree.relay, names).key()

        def make(directory: Path, log: Path) -> None:
            for path in names:
                shutil.copyfile(path, directory / path.name)
            # Linked statically, because the host's C library is not the node's.
            self.runner.run(
                ["make", "-C", directory, f"CC={compiler}", "CFLAGS=-O2", "LDFLAGS=-static -s"],
                log,
                what="compiling hwsim-relay",
                env={"MAKEFLAGS": "", "MFLAGS": ""},
            )

        return self._obtain("relay", key, "compiling hwsim-relay", make) / "hwsim-relay"

    def lab(self, kernel_set: Path, base: Path, packages: Path, relay: Path | None) -> Path:
        """Put the parts and this tree's own files together."""
        runnable = base if self._runnable is self else self._runnable.userland()
        tree = self.tree
        digest = Digest(RECIPE, LAB_RECIPE, kernel_set.name, base.parent.name, packages.parent.name)
        digest.words(relay.parent.name if relay else "no relay", tree.version())
        digest.files(tree.overlay).files(tree.app)
        archive = (Path(start_archive.__file__), start_archive.NAMES)
        digest.files(archive[0].parent, archive)
        placeholder = self.recipe.adapter_firmware
        if placeholder:
            digest.words("adapter", placeholder)
        for application in self.extras.applications:
            digest.words("application").files(application)
        for text in self.extras.texts:
            digest.words("text", text.path, text.content, str(text.program))
        key = digest.key()
        version = userland.python_version(base)

        def make(directory: Path, log: Path) -> None:
            stage = self.progress.stage("lab")
            root = directory / "root"
            root.mkdir()
            stage.doing("putting the root filesystem together")
            rootfs.clone(base, root)
            site = f"usr/lib/python{version}/site-packages"
            rootfs.clone(packages, root / site)
            for name in ("modules", "firmware"):
                if (kernel_set / name).is_dir():
                    rootfs.clone(kernel_set / name, root / "usr" / "lib" / name)
            if placeholder:
                (root / "usr" / "lib" / "firmware" / placeholder).write_bytes(ralink.firmware())
            app = directory / "app" / "thicket"
            app.mkdir(parents=True)
            rootfs.overlay(tree.app, app)
            defaults = app / "thicket.toml"
            # as package/thicket/thicket.mk does it in the firmware
            userland.compile_python(self.runner, log, runnable, app.parent, f"/{site}", optimise=2)
            rootfs.clone(app.parent, root / site)
            if self.extras.applications:
                stage.doing("installing applications")
                installed = directory / "applications"
                installed.mkdir()
                for application in self.extras.applications:
                    userland.install(self.runner, log, application, installed)
                userland.compile_python(self.runner, log, runnable, installed, f"/{site}")
                rootfs.clone(installed, root / site)
                shutil.rmtree(installed)
            rootfs.overlay(tree.overlay, root)
            start_archive.write(root)
            if defaults.exists():
                place = root / "usr" / "share" / "thicket" / "thicket.toml"
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(defaults, place)
            if relay:
                shutil.copyfile(relay, root / "usr" / "sbin" / "hwsim-relay")
                (root / "usr" / "sbin" / "hwsim-relay").chmod(0o755)
            variant = "Lab" if self.board is None else f"Standin-{self.board}"
            (root / "usr" / "lib" / "os-release").write_text(
                f'NAME=Thicket\nID=thicket\nPRETTY_NAME="Thicket {tree.version()} ({self.what})"\n'
                f"VERSION_ID={tree.version()}\nVARIANT={variant}\nVARIANT_ID={variant.lower()}\n"
                f"IMAGE_ID=thicket-{variant.lower()}\nIMAGE_VERSION={key}\n"
                f"THICKET_EPOCH={tree.epoch()}\n"
            )
            for text in self.extras.texts:
                place = root / text.path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.unlink(missing_ok=True)
                place.write_text(text.content)
                place.chmod(0o755 if text.program else 0o644)
            rootfs.skeleton(root)
            rootfs.normalise(root)
            rootfs.check(
                root, (f"{site}/thicket/daemon/daemon.pyc", f"{site}/pyroute2/__init__.pyc")
            )
            stage.doing("packing")
            # A board without a battery starts at the image's time. Not in the key: a commit that
            # changes no file makes no other image.
            time = changed(tree.root, *tree.content) if self.board else 0
            rootfs.pack(self.runner, log, root, directory / "rootfs.erofs", time)
            shutil.rmtree(root)
            shutil.rmtree(app.parent)
            rootfs.clone(kernel_set, directory / "kernel")
            for name in ("modules", "firmware"):
                shutil.rmtree(directory / "kernel" / name, ignore_errors=True)
            release = next((kernel_set / "modules").iterdir()).name
            facts = {
                "version": tree.version(),
                "kernel": release,
                "python": version,
                "rootfs_bytes": (directory / "rootfs.erofs").stat().st_size,
                "kernel_bytes": (directory / "kernel" / self.kernel_name).stat().st_size,
                "relay": relay is not None,
            }
            (directory / "image.json").write_text(json.dumps(facts, indent=1) + "\n")

        return self._obtain("lab", key, "putting the lab image together", make)

    @property
    def kernel_name(self) -> str:
        """Return the name of the kernel's file."""
        return PurePath(self.recipe.architecture.kernel).name

    def build(self) -> Path:
        """Make what is missing; return the directory of the finished image."""
        self.cache.sweep(
            lambda stage: self.progress.line(f"{stage}: removing what an interrupted build left")
        )
        with ThreadPoolExecutor(max_workers=3, thread_name_prefix="image") as pool:

            def debian_side() -> tuple[Path, Path]:
                base = self.userland()
                # Byte code alone, so the same for all architectures.
                runnable = base if self._runnable is self else self._runnable.userland()
                return base, self._runnable.python(runnable)

            kernel_side = pool.submit(self.kernel)
            base_side = pool.submit(debian_side)
            relay_side = pool.submit(self.relay)
            futures: list[Future[object]] = [kernel_side, base_side, relay_side]  # type: ignore[list-item]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
                first = [f.exception() for f in futures if f.done() and f.exception()]
                if first:
                    self.runner.cancel()
                    wait(futures)
                    errors = [error for f in futures if (error := f.exception())]
                    # The one that ended the others is the one to tell.
                    errors.sort(key=lambda error: isinstance(error, CancelledError))
                    raise errors[0]
            except BaseException:
                self.progress.line("stopping, and removing what is not finished")
                self.runner.cancel()
                raise
            base, packages = base_side.result()
            return self.lab(kernel_side.result(), base, packages, relay_side.result())


def describe(directory: Path, kernel: str = "vmlinux") -> ImageSet:
    """Return the finished image in ``directory``.

    :param directory: Where it is.
    :param kernel: The name of the kernel's file.
    """
    facts = json.loads((directory / "image.json").read_text())
    mib = 1 << 20
    return ImageSet(
        name="lab",
        kernel=directory / "kernel" / kernel,
        rootfs=directory / "rootfs.erofs",
        cmdline=CMDLINE,
        description=(
            f"lab image: Debian userland with Python {facts['python']}, "
            f"Linux {facts['kernel']}, thicket {facts['version']} "
            f"(root {facts['rootfs_bytes'] / mib:.0f} MiB, "
            f"kernel {facts['kernel_bytes'] / mib:.0f} MiB)"
        ),
    )


def build(
    cache: Path,
    progress: Report | None = None,
    extras: Extras | None = None,
    board: str | None = None,
) -> ImageSet:
    """Return the lab image, made as far as it is not in the cache. May be killed at any time.

    :param cache: The product's cache folder; images are in ``images`` below it.
    :param progress: Called with lines for a person (``host.progress``); without one they go to
        standard error.
    :param extras: What it has in addition.
    :param board: Instead of the lab image the stand-in for this board's firmware.
    :raises HostError: when it cannot be built; the text is for a person.
    """
    report = progress if progress is not None else reporter(sys.stderr)
    builder = Builder(trees.find(), Cache(cache / "images"), Progress(report), extras, board)
    return describe(builder.build(), builder.kernel_name)


def of_debian(cache: Path, board: str | None = None) -> Path:
    """Return what is taken from Debian, made if not in ``cache``; ``userland.DEBIAN`` is beside it.

    :param cache: as for :func:`build`.
    :param board: likewise.
    :raises HostError: when it cannot be made.
    """
    builder = Builder(
        trees.find(), Cache(cache / "images"), Progress(reporter(sys.stderr)), board=board
    )
    return builder.userland()

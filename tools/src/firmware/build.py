# SPDX-License-Identifier: Apache-2.0
"""Builds the firmware images with Buildroot: ``python -m firmware.build BOARD [TARGET...]``.

Without a target: configure what changed, build, look up every fragment line in what Kconfig made of
it, and say where the card image is. With targets: those, of Buildroot (``menuconfig``, ``sdk``,
``busybox-rebuild`` ...) or of our own (``bundle``, ``sbom``, ``cve``, ``show-size``,
``savedefconfig``).

Everything lies in the cache: Buildroot's tree, downloads, ccache, and ``build/BOARD``, which is
Buildroot's output directory.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from firmware import bmap, boards, bundle, contents, sizes
from firmware.boards import Board, BoardError
from firmware.fragments import buildroot_lines, defconfig
from host import stop
from host.cache import cache_root
from host.errors import HostError
from host.kconfig import NO_KCONFIG, FragmentError, kconfig, lost, merge, parse
from host.progress import Line, reporter
from host.run import Runner

VERSION = "2026.02.3"
"""Buildroot's release (long-term support until 2029)."""
URL = f"https://buildroot.org/downloads/buildroot-{VERSION}.tar.xz"
SHA256 = "5a59e7501b0b4ec52c41f4bfa79412320e0b37eae5f719605a258e8d0c6fc7fb"
"""SHA-256 of the archive, as in the signed ``buildroot-2026.02.3.tar.xz.sign`` beside it."""

_STEP = re.compile(r">>> (?:(?P<package>\S+) (?P<version>\S*) ?)?(?P<step>[A-Z][a-z].*)")
_ERROR = re.compile(r"make(\[\d+\])?: \*\*\* .*Error \d+")
"""The first line of this kind is the failure; later ones pass it on."""
_LOCAL_PACKAGES = ("thicket", "hwsim-relay")
"""Packages whose sources are in this tree."""
_OURS = "thicket"
"""What these are called together where changes are noted."""
_PATCHES = "board/common/patches"
"""Patches of other packages, in a folder for each (``BR2_GLOBAL_PATCH_DIR``)."""
_OPTIONS = "board/common/options"
"""How other packages are built, a file for each (``br2-external/external.mk`` includes them)."""
_IN_TURN = frozenset(("legal-info",))
"""Buildroot's targets whose parts rely on their order: one begins by removing what is there."""
SBOM, CVE = "sbom.cyclonedx.json", "cve.cyclonedx.json"
"""Files beside the images: what they are made of, and which of that is vulnerable."""
_OWN_TARGETS = ("bundle", "cve", "savedefconfig", "sbom", "show-size")
_INTERACTIVE = re.compile(r".*(menu|n|x|g)config")


class BuildError(Exception):
    """The build cannot go on; the text says why and what to do."""


def images(board: str, cache: Path | None = None) -> Path:
    """Return the folder of a board's finished files; it may not exist."""
    return (cache or cache_root()) / "build" / board / "images"


def tree(cache: Path) -> Path:
    """Return Buildroot's tree, downloaded and unpacked if it is not in the cache.

    ``BUILDROOT`` in the environment names one's own.

    :raises BuildError: when that is no Buildroot tree, or the download fails.
    """
    own = os.environ.get("BUILDROOT")
    place = Path(own).absolute() if own else cache / f"buildroot-{VERSION}"
    makefile = place / "Makefile"
    if makefile.is_file():
        match = re.search(r"^export BR2_VERSION := (\S+)", makefile.read_text(), re.MULTILINE)
        found = match[1] if match else "none"
        if found != VERSION:
            say(f"warning: {place} is Buildroot {found}; Thicket is made for {VERSION}")
        return place
    if own:
        raise BuildError(f"BUILDROOT={own}: there is no Makefile, so this is no Buildroot tree")
    _download(cache)
    return place


def _download(cache: Path) -> None:
    folder = cache / "dl"
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"buildroot-{VERSION}.tar.xz"
    if not archive.is_file():
        say(f"downloading {URL}")
        new = archive.with_suffix(".new")
        try:
            with urllib.request.urlopen(URL, timeout=60) as answer, new.open("wb") as file:
                shutil.copyfileobj(answer, file)
        except OSError as error:
            raise BuildError(
                f"{URL} could not be downloaded: {error}\nWith Buildroot {VERSION} unpacked "
                f"somewhere, name it by BUILDROOT=, or put the archive into {folder}"
            ) from error
        new.replace(archive)
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise BuildError(f"{archive} has the SHA-256 {digest}, not {SHA256}: delete it")
    say(f"unpacking {archive.name}")
    unpacked = cache / f".buildroot-{VERSION}.{os.getpid()}"
    shutil.rmtree(unpacked, ignore_errors=True)
    with tarfile.open(archive) as source:
        source.extractall(unpacked, filter="tar")
    (unpacked / f"buildroot-{VERSION}").rename(cache / f"buildroot-{VERSION}")
    unpacked.rmdir()


def say(text: str, *, passing: bool = False) -> None:
    """Tell the person who builds; on a terminal the next line overwrites a ``passing`` one."""
    reporter(sys.stderr)(Line(f"thicket: {text}", passing=passing))


def commit(root: Path) -> str:
    """Return what a checkout is, or "unknown" for an unpacked archive."""
    return _git(root, "describe", "--always", "--dirty", "--abbrev=12") or "unknown"


def changed(root: Path, *paths: str) -> int:
    """Return when a checkout (or these paths in it) was changed last, in seconds since 1970.

    That is the time of the commit. An unpacked archive has nothing but the times of its files.
    """
    epoch = _git(root, "log", "-1", "--format=%ct", "--", *paths)
    return int(epoch or (root / "Makefile").stat().st_mtime)


def _git(root: Path, *words: str) -> str:
    try:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


class Build:
    """One board's build in its output directory."""

    def __init__(
        self,
        board: Board,
        *,
        toolchain: str = boards.TOOLCHAIN,
        extra: Sequence[Path] = (),
        cache: Path | None = None,
    ) -> None:
        """Take the choices; nothing is written yet."""
        self.board = board
        self.toolchain = toolchain
        self.extra = list(extra)
        self.cache = cache or cache_root()
        self.output = self.cache / "build" / board.name
        self.log = self.output / "build.log"

    # -- Buildroot

    def environment(self) -> dict[str, str]:
        """Return the environment of Buildroot: ours without what would leak into its packages."""
        leaks = ("PYTHON", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "LD_LIBRARY_PATH")
        kept = {n: v for n, v in os.environ.items() if not n.startswith(leaks)}
        kept["BR2_DL_DIR"] = os.environ.get("BR2_DL_DIR") or str(self.cache / "dl")
        kept["BR2_CCACHE_DIR"] = os.environ.get("BR2_CCACHE_DIR") or str(self.cache / "ccache")
        kept["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
        kept.setdefault("SOURCE_DATE_EPOCH", str(changed(self.board.root)))
        kept["THICKET_COMMIT"] = commit(self.board.root)
        if os.geteuid() == 0:
            # Some configure scripts refuse to run as root; in a container nobody else is there.
            kept["FORCE_UNSAFE_CONFIGURE"] = "1"
        return kept

    def command(self, *targets: str) -> list[str]:
        """Return the command line that makes ``targets``."""
        jobs = os.environ.get("JOBS") or str(len(os.sched_getaffinity(0)) + 1)
        if _IN_TURN & set(targets):
            jobs = "1"
        return [
            "make",
            f"-j{jobs}",
            "-C",
            str(tree(self.cache)),
            f"O={self.output}",
            f"BR2_EXTERNAL={self.board.root / 'br2-external'}",
            *targets,
        ]

    def configure(self) -> None:
        """Give Buildroot the fragments if they changed, and check that none of their lines is lost.

        What the tree's own packages ask for counts as well. What a person chose by ``menuconfig``
        stays until then.

        :raises BuildError: when a line is lost.
        """
        # Only lines from outside turn off what ours choose.
        known = kconfig(tree(self.cache)) if self.extra else NO_KCONFIG
        choice = (self.board, self.toolchain, self.extra, known)
        lines = defconfig(*choice)
        text = lines + self._tree()
        ours, config = self.output / "thicket_defconfig", self.output / ".config"
        if config.is_file() and ours.is_file() and ours.read_text() == text:
            return
        self.output.mkdir(parents=True, exist_ok=True)
        new = self.output / "thicket_defconfig.new"
        new.write_text(text)
        if config.is_file() and ours.is_file():
            kept = self.output / "config.before"
            shutil.copyfile(config, kept)
            why = (
                "this checkout is another one, or its packages ask for something else"
                if ours.read_text().startswith(lines)
                else "fragments or variables changed"
            )
            say(f"{why}: configuring anew; the last configuration is in {kept}")
        self._run(self.command(f"BR2_DEFCONFIG={new}", "defconfig"))
        wanted = buildroot_lines(*choice)
        self._refuse_lost(lost(wanted, config.read_text()), "Buildroot")
        new.replace(ours)

    def _tree(self) -> str:
        """Return a remark that is different when Buildroot has to be configured anew.

        It changes with the tree's place, which Buildroot's configuration names, and with its
        Config.in files: what they select gets into a configuration only when that is made anew.
        """
        digest = hashlib.sha256()
        for path in sorted((self.board.root / "package").glob("*/Config.in")):
            digest.update(path.read_bytes())
        return f"# The tree: {self.board.root}\n# Config.in of its packages: {digest.hexdigest()}\n"

    def check(self) -> None:
        """Look up every line of the kernel's and BusyBox's fragments in what was built.

        :raises BuildError: when lines are missing; the text names them.
        """
        config = _values(self.output / ".config")
        for package, key in (
            ("linux", "BR2_LINUX_KERNEL_CONFIG_FRAGMENT_FILES"),
            ("busybox", "BR2_PACKAGE_BUSYBOX_CONFIG_FRAGMENT_FILES"),
        ):
            names = config.get(key, "").strip('"').split()
            place = "$(BR2_EXTERNAL_THICKET_PATH)/"
            root = self.board.root
            files = [
                root / name.removeprefix(place) if name.startswith(place) else Path(name)
                for name in names
            ]
            made = self._built_config(package)
            if made is None:
                raise BuildError(f"{package} has left no .config in {self.output / 'build'}")
            _text, wanted = merge(files, root)
            self._refuse_lost(lost(wanted, made.read_text()), package)

    def _built_config(self, package: str) -> Path | None:
        found = [
            path
            for path in (self.output / "build").glob(f"{package}-*/.config")
            if (path.parent / ".stamp_built").exists()
        ]
        return max(found, key=lambda path: path.stat().st_mtime, default=None)

    def _refuse_lost(self, sentences: list[str], what: str) -> None:
        if sentences:
            raise BuildError(
                f"these lines of {what}'s fragments did not survive (what they depend on is off, "
                "or there is no such option):\n  " + "\n  ".join(sentences)
            )

    def _run(
        self, command: list[str], *, what: str = "", on_line: Callable[[str], None] | None = None
    ) -> None:
        """Run a command with its output in the log.

        :param what: what it is, for the error's text; else the command itself.
        :param on_line: called with every line of output.
        :raises BuildError: when it fails.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        what = what or " ".join(command)
        try:
            Runner().run(
                command, self.log, what=what, inherited=self.environment(), on_line=on_line
            )
        except HostError as error:
            raise BuildError(f"{what} failed. {self._failure()}") from error

    def _failure(self, lines: int = 12) -> str:
        """Return the part of the log where the build went wrong.

        Several packages are built at once, so the end of the log is often that of another one.
        """
        try:
            text = self.log.read_text(errors="replace").splitlines()
        except OSError as error:
            return f"{self.log}: {error}"
        found = (number for number, line in enumerate(text, start=1) if _ERROR.match(line))
        end = next(found, len(text))
        shown = "\n".join(f"  {line[:200]}" for line in text[max(0, end - lines) : end])
        return f"{self.log}, up to line {end}:\n{shown}"

    def build(self) -> None:
        """Build everything, telling what is being worked on; the rest goes to ``build.log``.

        :raises BuildError: when a package fails, or a line of a fragment is not in what was built.
        """
        started = time.monotonic()
        stamps = self._stamps()
        self.log.write_bytes(b"")
        self._forget_what_changed()
        live = sys.stderr.isatty()

        def show(line: str) -> None:
            match = _STEP.search(re.sub(r"\x1b\[[0-9;]*m", "", line))
            if match is None:
                return
            # Packages of a build that was stopped count as well: they need not be built.
            done = sum(stamp.exists() for stamp in stamps)
            text = f"{done}/{len(stamps)} {match['package'] or ''} {match['step'].strip().lower()}"
            if live:
                seconds = int(time.monotonic() - started)
                say(f"{seconds // 60}:{seconds % 60:02}  {text}", passing=True)
            elif match["step"].startswith(("Building", "Executing", "Generating")):
                say(text)

        self._forget_bills()
        self._run(self.command(), what="Buildroot", on_line=show)
        self.check()
        self._tell_contents()
        card = self.output / "images" / "card.img"
        bmap.write(card, card.with_name(card.name + bmap.SUFFIX))
        took = int(time.monotonic() - started)
        say(f"built in {took // 60} min {took % 60} s: {card}")

    def _forget_bills(self) -> None:
        """Remove what was said of the images that are replaced now: it would lie beside others."""
        for name in (SBOM, CVE):
            path = self.output / "images" / name
            if path.exists():
                path.unlink()
                target = name.partition(".")[0]
                say(f"{path} was of the images before: `make {self.board.name}-{target}` makes it")

    def _tell_contents(self) -> None:
        """Warn of files that no node needs; whoever adds packages of his own has such."""
        wanted = contents.patterns(self.board.root / "board/common/wanted.txt")
        try:
            found = contents.look(self.output / "target", wanted)
        except contents.ContentsError as error:
            say(f"warning: what is in the root was not looked at: {error}")
            return
        for sentence in contents.sentences(found):
            say(f"warning: {sentence}")

    def _forget_what_changed(self) -> None:
        """Delete what is stale of an earlier build, from which this one goes on.

        Buildroot does not look at the sources and recipes of packages that lie in this tree, nor at
        patches and options once they are applied, and takes no file out of the root again. The root
        is put together from the packages' own directories, so it can be made anew each time.
        """
        note = self.output / "sources.sha256"
        before = set(note.read_text().splitlines()) if note.is_file() else set()
        now = {f"{digest} {name}" for name, digest in self._sources().items()}
        changed = {line.partition(" ")[2] for line in before ^ now}
        if changed and (self.output / "build").is_dir():
            # Those of a note that an older version of this wrote have no name.
            names = set(_LOCAL_PACKAGES) if changed & {"", _OURS} else set()
            if others := changed - {"", _OURS}:
                known = self.info()
                names |= {n for p in others for n in (p, f"host-{p}") if n in known}
            if names:
                self._run(self.command(*(f"{name}-dirclean" for name in sorted(names))))
        note.write_text("".join(f"{line}\n" for line in sorted(now)))
        shutil.rmtree(self.output / "target", ignore_errors=True)

    def _sources(self) -> dict[str, str]:
        """Return the hashes of our packages' sources and recipes, and of what changes others."""
        root = self.board.root
        ours = [path for place in ("app", "package") for path in sorted((root / place).rglob("*"))]
        groups = {_OURS: [path for path in ours if "__pycache__" not in path.parts]}
        for folder in sorted((root / _PATCHES).glob("*/")):
            # A file of hashes beside them says what is downloaded, and is checked then.
            groups[folder.name] = sorted(folder.rglob("*.patch"))
        for options in sorted((root / _OPTIONS).glob("*.mk")):
            groups.setdefault(options.stem, []).append(options)
        found = {}
        for name, paths in groups.items():
            digest = hashlib.sha256()
            for path in (path for path in paths if path.is_file()):
                digest.update(f"{path.relative_to(root)}\0".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
            if paths:
                found[name] = digest.hexdigest()
        return found

    def info(self) -> dict[str, dict[str, Any]]:
        """Return what Buildroot knows of the packages of this configuration, by name."""
        answer = subprocess.run(
            self.command("-s", "show-info"),
            capture_output=True,
            text=True,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if answer.returncode != 0:
            raise BuildError(f"Buildroot's show-info failed: {answer.stderr.strip()}")
        start = answer.stdout.index("{")
        found, _end = json.JSONDecoder().raw_decode(answer.stdout[start:])
        return dict(found)

    def _stamps(self) -> list[Path]:
        """Return the files that are there when the packages of this configuration are installed.

        Other versions of them, which were built before, have folders of their own.
        """
        found = (part.get("stamp_dir") for part in self.info().values())
        return [self.output / place / ".stamp_installed" for place in found if place]

    # -- our own targets

    def target(self, name: str) -> None:
        """Make one target, of ours or of Buildroot.

        :raises BuildError: when it fails.
        """
        match name:
            case "bundle":
                self._bundle()
            case "savedefconfig":
                self._savedefconfig()
            case "sbom":
                self._sbom()
            case "cve":
                self._cve()
            case "show-size":
                print(sizes.table(self.output))
            case _:
                status = subprocess.run(
                    self.command(name), env=self.environment(), check=False
                ).returncode
                if status != 0:
                    raise BuildError(f"Buildroot's target {name} failed with status {status}")
                if _INTERACTIVE.fullmatch(name):
                    say("what you chose is built by the next make; `savedefconfig` shows it")

    def _bundle(self) -> Path:
        """Build, and put an unsigned update bundle of that beside the card image."""
        folder = self.output / "images"
        try:
            bundle.check_tools()
            self.build()
            path = bundle.make(folder, folder, bundle.release(folder))
        except bundle.BundleMakingError as error:
            raise BuildError(str(error)) from error
        say(f"{path.stat().st_size / (1 << 20):.1f} MiB, to be signed (`thicket update`): {path}")
        return path

    def _savedefconfig(self) -> None:
        """Show what the configuration has beyond the fragments, as lines for one."""
        names = ["ours", "yours"]
        texts = {}
        for name in names:
            saved = self.output / f"{name}_defconfig"
            if name == "ours":
                scratch = self.output / "savedefconfig"
                shutil.rmtree(scratch, ignore_errors=True)
                other = Build(self.board, toolchain=self.toolchain, extra=self.extra)
                other.output, other.log = scratch, self.log
                other.configure()
                other._run(other.command(f"BR2_DEFCONFIG={saved}", "savedefconfig"))
                shutil.rmtree(scratch)
            else:
                self._run(self.command(f"BR2_DEFCONFIG={saved}", "savedefconfig"))
            texts[name] = parse(saved.read_text(), saved.name)
            saved.unlink()
        have = {(line.name, line.value) for line in texts["ours"]}
        more = [line for line in texts["yours"] if (line.name, line.value) not in have]
        gone = {line.name for line in texts["ours"]} - {line.name for line in texts["yours"]}
        if not more and not gone:
            say("the configuration is what the fragments say")
            return
        path = self.output / "changes.config"
        lines = [
            f"# {line.name} is not set" if line.value == "n" else f"{line.name}={line.value}"
            for line in more
        ] + [f"# {name} is back at Buildroot's default" for name in sorted(gone)]
        path.write_text("\n".join(lines) + "\n")
        print(path.read_text(), end="")
        say(f"this is in {path}: put it into configs/fragments, or build with EXTRA={path}")

    def _sbom(self) -> Path:
        path = self.output / "images" / SBOM
        path.parent.mkdir(parents=True, exist_ok=True)
        info = json.dumps(self.info())
        answer = subprocess.run(
            [
                sys.executable,
                str(tree(self.cache) / "utils" / "generate-cyclonedx"),
                "--project-name",
                f"thicket-{self.board.name}",
                "--project-version",
                commit(self.board.root),
            ],
            input=info,
            capture_output=True,
            text=True,
            env=self.environment(),
            check=False,
        )
        if answer.returncode != 0:
            last = (answer.stderr.strip().splitlines() or ["without a word"])[-1]
            raise BuildError(
                f"generate-cyclonedx failed: {last}\nIt fetches the list of licences from the "
                "internet (SPDX); is there a connection?"
            )
        path.write_text(answer.stdout)
        parts = len(json.loads(answer.stdout)["components"])
        say(f"{parts} components, CycloneDX: {path}")
        return path

    def _cve(self) -> None:
        bill = self._sbom()
        path = bill.with_name(CVE)
        say("comparing with the NVD (a download of some hundred megabytes the first time)")
        status = subprocess.run(
            [
                sys.executable,
                str(tree(self.cache) / "support" / "scripts" / "cve-check"),
                "--nvd-path",
                str(self.cache / "dl" / "buildroot-nvd"),
                "-i",
                str(bill),
                "-o",
                str(path),
            ],
            env=self.environment(),
            check=False,
        ).returncode
        if status != 0:
            raise BuildError(
                "cve-check failed; it needs the internet, and the Python packages that it named"
            )
        found = json.loads(path.read_text()).get("vulnerabilities", [])
        for entry in found:
            state = entry.get("analysis", {}).get("state", "exploitable")
            print(entry["id"], state, *(part["ref"] for part in entry.get("affects", [])))
        say(f"{len(found)} known vulnerabilities: {path}")


def _values(path: Path) -> dict[str, str]:
    return {line.name: line.value for line in parse(path.read_text(), path.name)}


@contextlib.contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keep a second build out of ``output``; the kernel lets go when this process ends."""
    output.mkdir(parents=True, exist_ok=True)
    with (output / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BuildError(f"another build works in {output}: wait for it") from None
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit status."""
    parser = argparse.ArgumentParser(prog="firmware.build", description=__doc__)
    parser.add_argument("board", choices=boards.names())
    parser.add_argument("targets", nargs="*", help=f"of Buildroot, or {', '.join(_OWN_TARGETS)}")
    parser.add_argument(
        "--toolchain", default=boards.TOOLCHAIN, help="bootlin, internal, or a file of your own"
    )
    parser.add_argument(
        "--extra", default="", help="files with more Buildroot lines, read last; blanks between"
    )
    options = parser.parse_args(arguments)
    extra = [Path(name).absolute() for name in options.extra.split()]
    for path in extra:
        if not path.is_file():
            parser.error(f"--extra: there is no file {path}")
    try:
        build = Build(boards.load(options.board), toolchain=options.toolchain, extra=extra)
        with stop.stopping(), locked(build.output):
            build.configure()
            for target in options.targets:
                build.target(target)
            if not options.targets:
                build.build()
    except (BoardError, BuildError, FragmentError) as error:
        say(str(error))
        return 1
    except stop.Stopped as stopped:
        say(f"{stopped}; the next make goes on from here")
        return stopped.status
    return 0


if __name__ == "__main__":
    sys.exit(main())

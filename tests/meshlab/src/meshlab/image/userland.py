# SPDX-License-Identifier: Apache-2.0
"""The part of a node's root filesystem that comes from Debian and PyPI.

Of what mmdebstrap unpacked only what the recipe names is kept, with the shared libraries that it
needs. Python's modules are compiled by the node's own interpreter, run by its own dynamic loader;
for another architecture by that of the lab image, since byte code is the same for all.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Set
from hashlib import sha256
from pathlib import Path, PurePath
from urllib.parse import unquote

from host import wheels
from host.run import Runner
from meshlab.image import elf
from meshlab.image.architecture import NATIVE
from meshlab.image.errors import ImageError
from meshlab.image.tree import Recipe

PYTHON = "usr/bin/python3"

DEBIAN = "debian"
"""The folder in which it is noted which packages of Debian the files are of."""

# Compile everything below argv[1] beside its source, as argv[2] will name it on the node, optimised
# as argv[3] says. The byte code is never checked against a source ("unchecked hash", PEP 552): the
# source is removed.
_COMPILE = """
import compileall, py_compile, sys
ok = compileall.compile_dir(
    sys.argv[1], maxlevels=30, stripdir=sys.argv[1], prependdir=sys.argv[2], legacy=True,
    optimize=int(sys.argv[3]), force=True, quiet=1,
    invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
)
sys.exit(not ok)
"""


def _target(unpacked: Path, link: Path) -> Path:
    """Return what a link points to on the node, as a path below ``unpacked``."""
    target = link.readlink()
    if target.is_absolute():
        return unpacked / target.relative_to("/")
    return Path(os.path.normpath(link.parent / target))


def _copy(source: Path, target: Path) -> None:
    """Copy a file or link; modes are normal ones, whatever the umask and the package say."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        if not target.is_symlink():
            target.symlink_to(source.readlink())
        return
    shutil.copyfile(source, target)
    target.chmod(0o755 if source.stat().st_mode & stat.S_IXUSR else 0o644)


def _matches(path: PurePath, patterns: Iterable[str]) -> bool:
    """Tell whether a path or one of the directories above it matches a pattern from the root."""
    parts = [path, *path.parents]
    return any(
        part.match(pattern) and len(part.parts) == len(PurePath(pattern).parts)
        for pattern in patterns
        for part in parts
    )


def select(unpacked: Path, root: Path, recipe: Recipe) -> list[str]:
    """Copy from ``unpacked`` to ``root`` what the recipe names, with the libraries it needs.

    :returns: The names of the files.
    :raises ImageError: when a pattern matches nothing or a library is missing: the recipe then does
        not fit the packages.
    """
    todo: list[Path] = []
    for pattern in recipe.files:
        # A link to an absolute path leads nowhere from here, and glob would not see it.
        exact = unpacked / pattern
        found = [exact] if exact.is_symlink() else sorted(unpacked.glob(pattern))
        if not found:
            raise ImageError(f"lab-image.toml: {pattern!r} is in none of the packages")
        for path in found:
            if path.is_dir() and not path.is_symlink():
                todo += [p for p in sorted(path.rglob("*")) if p.is_symlink() or p.is_file()]
            else:
                todo.append(path)
    done: set[str] = set()
    while todo:
        path = todo.pop()
        name = path.relative_to(unpacked)
        if str(name) in done or _matches(name, recipe.unwanted):
            continue
        done.add(str(name))
        _copy(path, root / name)
        if path.is_symlink():
            # One step: a link to a link needs both.
            target = _target(unpacked, path)
            if target.is_symlink() or target.is_file():
                todo.append(target)
            continue
        for library in elf.needed(path):
            place = unpacked / recipe.architecture.libraries / library
            if not place.is_symlink() and not place.exists():
                raise ImageError(f"{name} needs {library}, which is in none of the packages")
            todo.append(place)
    return sorted(done)


def note(notes: Path, unpacked: Path, chosen: Iterable[str], directory: Path, aside: Path) -> None:
    """Note which packages the chosen files are of.

    :param notes: what ``debian.extract`` noted.
    :param unpacked: all files of the packages.
    :param chosen: the names of those that are kept.
    :param directory: gets ``packages.json``, a list of name, version and architecture, and what
        Debian says of each package's licence in ``copyright/NAME``.
    :param aside: where packages were unpacked alone; all of them are of use.
    """
    kept = set(chosen)
    found = []
    (directory / "copyright").mkdir(parents=True)
    for path in sorted(notes.iterdir()):
        said, *names = path.read_text("utf-8", "replace").splitlines()
        if kept.isdisjoint(_merged(name) for name in names):
            continue
        found.append(said.split(" "))
        _note_licence(path.name, unpacked, directory)
    for path in sorted(aside.glob("*.deb")):
        facts = [unquote(word) for word in path.stem.split("_")]
        found.append(facts)
        _note_licence(facts[0], aside / facts[0], directory)
    (directory / "packages.json").write_text(json.dumps(found, indent=1) + "\n")


def _note_licence(name: str, unpacked: Path, directory: Path) -> None:
    said = unpacked / "usr/share/doc" / name / "copyright"
    if said.resolve().is_relative_to(unpacked.resolve()) and said.is_file():
        shutil.copyfile(said, directory / "copyright" / name)


def _merged(name: str) -> str:
    """Return a path of a package as it is where ``/bin`` and the like are links into ``/usr``."""
    name = name.removeprefix("./")
    return f"usr/{name}" if name.partition("/")[0] in ("bin", "lib", "lib64", "sbin") else name


def place_aside(directory: Path, root: Path, recipe: Recipe) -> None:
    """Copy the programs of packages that were unpacked alone, below ``directory``, to ``root``."""
    for name, (package, path) in recipe.aside.items():
        source = directory / package / path
        if not source.is_file():
            raise ImageError(f"lab-image.toml: the package {package} holds no {path}")
        _copy(source, root / name)


def link_applets(
    runner: Runner,
    log: Path,
    root: Path,
    *,
    asked: Path,
    busyboxes: Iterable[str],
    unwanted: Iterable[str],
) -> None:
    """Make BusyBox's applets programs, as far as there is no other program of the name.

    ``busyboxes`` are programs in ``usr/bin``: each serves the applets that those before it lack,
    except that the shell is always the last one's (see ``board/qemu/lab-image.toml``).

    :param asked: The root whose ``busyboxes`` are asked for their applets: ``root`` itself, or the
        same of an architecture that can be run here.
    """
    programs = list(busyboxes)
    skip = set(unwanted)
    for program in programs:
        last = program == programs[-1]
        listing: list[str] = []
        path = asked / "usr" / "bin" / program
        loader: list[str | Path] = []
        if elf.needed(path):
            loader = _loaded(asked)
        runner.run(
            [*loader, path, "--list-full"],
            log,
            what=f"asking {program} for its applets",
            on_line=listing.append,
        )
        places = [PurePath(line.strip()) for line in listing]
        if not any(place.name == "sh" for place in places):
            raise ImageError(f"{program} listed no shell among its applets: see {log}")
        for place in places:
            if place.name in skip or (place.name in ("sh", "ash") and not last):
                continue
            if any((root / "usr" / where / place.name).exists() for where in ("bin", "sbin")):
                continue
            # usr-merged: bin and sbin are links to the directories below usr.
            where = "sbin" if "sbin" in place.parts else "bin"
            link = root / "usr" / where / place.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(program if where == "bin" else f"../bin/{program}")


def _loaded(root: Path) -> list[str | Path]:
    """Return what runs a program of ``root`` here, with the libraries that it was built with."""
    return [root / NATIVE.interpreter, "--library-path", root / NATIVE.libraries]


def python_version(root: Path) -> str:
    """Return the node's Python version, ``3.13``."""
    target = (root / PYTHON).readlink().name
    return target.removeprefix("python")


def compile_python(
    runner: Runner, log: Path, userland: Path, directory: Path, name: str, *, optimise: int = 0
) -> None:
    """Compile all modules below ``directory``, known to the node as ``name``; remove the sources.

    :param userland: holds the interpreter and its library, compiled or not.
    :param optimise: as of :func:`compile`: 2 leaves out docstrings and assertions.
    :raises ImageError: when a module does not compile.
    """
    runner.run(
        [
            *_loaded(userland),
            userland / PYTHON,
            "-BS",
            "-c",
            _COMPILE,
            directory,
            name,
            str(optimise),
        ],
        log,
        what=f"compiling {name}",
        # Without it the interpreter would take the host's library for its own.
        env={"PYTHONHOME": str(userland / "usr"), "PYTHONPATH": ""},
    )
    for source in list(directory.rglob("*.py")):
        if not source.with_suffix(".pyc").exists():
            raise ImageError(f"{source.name} was not compiled: see {log}")
        source.unlink()


def download_wheels(
    runner: Runner,
    log: Path,
    requirements: Iterable[str],
    *,
    hashes: Mapping[str, Set[str]],
    version: str,
    directory: Path,
) -> list[Path]:
    """Download the node's Python packages, and what they need, as wheels.

    Wheels of zeroconf exist for machines only. They hold all of its Python beside what is compiled
    of it, which :func:`wanted_of_wheel` leaves out, as the firmware does.

    :param hashes: The SHA-256 digests of the files that may come, by the package's name.
    :raises ImageError: when another file comes.
    """
    runner.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--disable-pip-version-check",
            "--no-input",
            "--only-binary=:all:",
            f"--python-version={version}",
            "--platform=any",
            # what Debian's C library (2.41) can load
            *(f"--platform=manylinux_2_{minor}_x86_64" for minor in (17, 28, 34)),
            "--implementation=cp",
            f"--abi=cp{version.replace('.', '')}",
            "--abi=none",
            f"--dest={directory}",
            *requirements,
        ],
        log,
        what="downloading the node's Python packages",
    )
    downloaded = sorted(directory.glob("*.whl"))
    for wheel in downloaded:
        # Not --require-hashes: pip finds out itself what these packages need.
        name = wheel.name.partition("-")[0].replace("_", "-").lower()
        if sha256(wheel.read_bytes()).hexdigest() not in hashes.get(name, set()):
            raise ImageError(
                f"{wheel.name} was downloaded, and is none of the files of {name} that "
                "constraints.txt names by their hash: the index gave another one, or `make lock` "
                "was not run after a change of constraints.in"
            )
    return downloaded


def install(runner: Runner, log: Path, project: Path, directory: Path) -> None:
    """Put a Python project, without what it depends on, into ``directory``.

    It is built by what is installed here, which came by its hash. pip's isolation is off: it would
    fetch and run whatever the index has under the name of the project's build backend.

    :raises ImageError: when it is no project, needs another backend, or pip cannot build it.
    """
    if not (project / "pyproject.toml").is_file():
        raise ImageError(f"{project} is no Python project: there is no pyproject.toml")
    try:
        wheels.check_backend(project)
    except wheels.WheelError as error:
        raise ImageError(str(error)) from None
    with tempfile.TemporaryDirectory(prefix="meshlab-wheel-") as temporary:
        try:
            wheel = wheels.build(runner, log, project, Path(temporary))
        except wheels.WheelError as error:
            raise ImageError(str(error)) from None
        unpack_wheel(wheel, directory, wanted_of_wheel)


def unpack_wheel(wheel: Path, directory: Path, keep: Callable[[PurePath], bool]) -> None:
    """Unpack a wheel, without its scripts and type hints."""
    try:
        wheels.unpack(wheel, directory, keep)
    except wheels.WheelError as error:
        raise ImageError(str(error)) from None


def wanted_of_wheel(name: PurePath) -> bool:
    """Tell whether a file of a wheel is of use on a node."""
    top = name.parts[0]
    if top.endswith(".dist-info"):
        return name.name in ("METADATA", "entry_points.txt")
    unwanted = (".pxd", ".pyi", ".pyx", ".so", ".typed")
    return not top.endswith(".data") and name.suffix not in unwanted

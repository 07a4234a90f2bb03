# SPDX-License-Identifier: Apache-2.0
"""Makes what is in the file of an application: the project's packages and those that it needs.

Only wheels are taken of what it needs, so that no program of strangers runs here. What is made is
the same for the same project and wheels.
"""

from __future__ import annotations

import email.parser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from hashlib import file_digest
from pathlib import Path, PurePath
from typing import Final, NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

import thicket
from host import stop, wheels
from host.errors import HostError
from host.run import Runner
from thicket.applications import app_file, app_tree, entrypoints
from thicket.applications.app_file import ANY, SITE, About
from thicket.applications.service import GROUP

PYTHON: Final = "3.13"
"""Version of Python that images have."""

IN_IMAGE: Final = frozenset({"ifaddr", "pyroute2", "smbus2", "thicket-node", "zeroconf"})
"""Projects that the image brings, in its own versions."""
_MODULES_IN_IMAGE: Final = frozenset({"ifaddr", "pyroute2", "smbus2", "thicket", "zeroconf"})

_GLIBC: Final = ("manylinux2014", "manylinux_2_17", "manylinux_2_28")
_SQUASHFS: Final = (
    "-noappend", "-no-progress", "-quiet", "-reproducible", "-comp", "gzip", "-all-root",
    "-root-mode", "0755", "-no-xattrs", "-no-exports", "-mkfs-time", "0", "-all-time", "0",
)  # fmt: skip
_PATIENCE: Final = 600.0
_UNWANTED: Final = (".pxd", ".pyi", ".pyx", ".typed", ".pyc")
_NONE_FOUND: Final = re.compile(r"No matching distribution found for ([^\n]+)")


class AppBuildError(HostError):
    """An application cannot be built; the text says why and what to do."""


class Images(NamedTuple):
    """The versions of the image that an application runs on: from ``least``, and ``below`` one."""

    least: str
    below: str


class Wanted(NamedTuple):
    """What is to be built.

    :ivar number: of the version, in Unix seconds.
    """

    architecture: str
    images: Images
    fleet: bytes
    number: int


def own_images() -> Images:
    """Return the versions from the one of this checkout on, below the next one that may break."""
    numbers = app_file.version_key(thicket.__version__)
    return Images(".".join(map(str, numbers)) or "0", str((*numbers, 0)[0] + 1))


def images_of(text: str) -> Images:
    """Read versions of the image like ``>=0.1,<1``.

    :raises AppBuildError: they are written otherwise.
    """
    found = re.fullmatch(r"\s*>=\s*([0-9.]+)\s*(?:,\s*<\s*([0-9.]+)\s*)?", text)
    if found is None:
        raise AppBuildError(f"{text!r}: versions of the image are written as '>=0.1,<1' or '>=0.1'")
    return Images(found[1], found[2] or "")


def build(project: Path, work: Path, wanted: Wanted) -> tuple[Path, About]:
    """Make the contents of an application's file; return its path and what is to be signed.

    :param work: an empty folder.
    :raises HostError: it cannot be built.
    """
    if not project.is_dir():
        what = "is a file" if project.exists() else "is not there"
        raise AppBuildError(f"{project} {what}, and the folder of a Python project is needed")
    if not (project / "pyproject.toml").is_file():
        raise AppBuildError(
            f"{project} is no Python project: it has no pyproject.toml; examples/readings has one "
            "to begin with"
        )
    if not shutil.which("mksquashfs", path=_path()):
        raise AppBuildError(
            "mksquashfs is missing. Install it with:\n"
            "    sudo apt-get install --no-install-recommends squashfs-tools"
        )
    wheels.check_backend(project)
    log, tree = work / "log", work / "tree"
    own, needed = work / "own", work / "needed"
    for folder in (tree / SITE, own, needed):
        folder.mkdir(parents=True)
    wheel = wheels.build(Runner(), log, project, own)
    said = _metadata(wheel)
    _check_python(said)
    _download(_dependencies(said, wanted.architecture), project, needed, log, wanted.architecture)
    for one in (wheel, *sorted(needed.glob("*.whl"))):
        if canonicalize_name(one.name.partition("-")[0]) not in IN_IMAGE:
            wheels.unpack(one, tree / SITE, _keep, beside=True)
    try:
        app_tree.check(str(tree))
    except app_file.AppError as error:
        raise AppBuildError(f"nodes would not take it: {error}") from None
    about = _about(tree / SITE, said, wanted)
    contents = work / "contents"
    _squashfs(tree, contents)
    size = contents.stat().st_size
    if size > app_file.MAX_BYTES - (64 << 10):
        raise AppBuildError(
            f"it has {size >> 20} MiB, and nodes take {app_file.MAX_BYTES >> 20}: do without what "
            "is not needed"
        )
    with contents.open("rb") as file:
        digest = file_digest(file, "sha256").digest()
    about = about._replace(size=size, sha256=digest)
    try:
        app_file.parse(about.text())
    except app_file.AppError as error:
        raise AppBuildError(f"nodes would not take it: {error}") from None
    return contents, about


def _metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
        return email.parser.BytesParser().parsebytes(archive.read(name))


def _check_python(said: Message) -> None:
    try:
        fits = SpecifierSet(said.get("Requires-Python", "")).contains(f"{PYTHON}.0")
    except InvalidSpecifier as error:
        raise AppBuildError(f"requires-python: {error}") from None
    if not fits:
        raise AppBuildError(
            f"requires-python is {said['Requires-Python']!r}, and nodes have Python {PYTHON}"
        )


def _dependencies(said: Message, architecture: str) -> list[str]:
    """Return what is to be downloaded."""
    machine = {} if architecture == ANY else {"platform_machine": architecture}
    environment = {
        "python_version": PYTHON, "python_full_version": f"{PYTHON}.0", "sys_platform": "linux",
        "platform_system": "Linux", "os_name": "posix", "implementation_name": "cpython",
        "platform_python_implementation": "CPython", "extra": "", **machine,
    }  # fmt: skip
    found = []
    for text in said.get_all("Requires-Dist") or []:
        try:
            one = Requirement(text)
        except InvalidRequirement as error:
            raise AppBuildError(f"dependencies: {error}") from None
        if one.marker is not None and not one.marker.evaluate(environment):
            continue
        name = canonicalize_name(one.name)
        if name == "thicket":
            raise AppBuildError(
                "it depends on 'thicket', which is on the device; the package of that name on the "
                "public index is not ours. Take it out of the dependencies"
            )
        if one.url is not None:
            raise AppBuildError(f"{text!r}: dependencies by address are not taken, only wheels")
        if name not in IN_IMAGE:
            found.append(f"{one.name}{extras(one)}{one.specifier}")
    return sorted(found)


def extras(one: Requirement) -> str:
    """Return the extras of a requirement as it is written."""
    return f"[{','.join(sorted(one.extras))}]" if one.extras else ""


def _download(
    requirements: list[str], project: Path, directory: Path, log: Path, architecture: str
) -> None:
    if not requirements:
        return
    machines = [] if architecture == ANY else [f"{one}_{architecture}" for one in _GLIBC]
    pinned = project / "constraints.txt"
    lines: list[str] = []
    try:
        Runner().run(
            [
                sys.executable, "-m", "pip", "download", "--disable-pip-version-check",
                "--no-input", "--only-binary=:all:", f"--python-version={PYTHON}",
                "--implementation=cp", f"--abi=cp{PYTHON.replace('.', '')}", "--abi=abi3",
                "--abi=none", "--platform=any", *(f"--platform={one}" for one in machines),
                *(["--constraint", str(pinned)] if pinned.is_file() else []),
                f"--dest={directory}", *requirements,
            ],
            log,
            what="downloading what it needs",
            on_line=lines.append,
        )  # fmt: skip
    except HostError as error:
        if missing := _NONE_FOUND.search("\n".join(lines)):
            what = "pure Python" if architecture == ANY else f"Python {PYTHON} on {architecture}"
            raise AppBuildError(
                f"{missing[1].strip()} has no wheel for {what}, and nothing is compiled here: "
                "name another version, build its wheel and give it by PIP_FIND_LINKS"
                + (", or build for one architecture (--for)" if architecture == ANY else "")
            ) from error
        raise


def _keep(name: PurePath) -> bool:
    """Tell whether a file of a wheel is of use on a node."""
    top = name.parts[0]
    if len(name.parts) == 1 and top.endswith((".dist-info", ".data")):
        return False  # a file where a folder belongs
    if top.endswith(".dist-info"):
        licences = re.match(r"licen[cs]es?|copying|notice|authors", name.parts[1].lower())
        return name.name in ("METADATA", "entry_points.txt") or licences is not None
    if top.endswith(".data"):
        if name.parts[1] in ("purelib", "platlib"):
            raise AppBuildError(f"{name}: a wheel with modules at this place is not understood")
        return False
    return name.suffix not in _UNWANTED and "__pycache__" not in name.parts


def _about(site: Path, said: Message, wanted: Wanted) -> About:
    points = entrypoints.targets(GROUP, [str(site)])
    if not points:
        raise AppBuildError(f'it has no entry point: [project.entry-points."{GROUP}"] names it')
    compiled = sorted(path for path in site.rglob("*.so*") if path.is_file())
    if compiled and wanted.architecture == ANY:
        raise AppBuildError(
            f"{compiled[0].relative_to(site)} is compiled: build it for one architecture (--for)"
        )
    modules = sorted(
        {entry.name.partition(".")[0] for entry in site.iterdir() if entry.suffix != ".dist-info"}
    )
    taken = set(modules) & (_MODULES_IN_IMAGE | set(sys.stdlib_module_names))
    if taken:
        raise AppBuildError(
            f"it brings a module {min(taken)}, which the image has: give it another name, or leave "
            "out what brings it"
        )
    for name, target in points.items():
        if entrypoints.module_of(target) not in modules:
            raise AppBuildError(f"the entry point {name} names {target}, which is not there")
    return About(
        canonicalize_name(said["Name"]),
        said["Version"],
        wanted.number,
        wanted.fleet,
        wanted.images.least,
        wanted.images.below,
        PYTHON,
        wanted.architecture,
        tuple(sorted(points)),
        tuple(modules),
        0,
        b"",
    )


def _squashfs(tree: Path, path: Path) -> None:
    for one in [tree, *tree.rglob("*")]:
        one.chmod(0o755 if one.is_dir() else 0o644)  # whatever the umask is
    environment = {k: v for k, v in os.environ.items() if k != "SOURCE_DATE_EPOCH"}
    environment["PATH"] = _path()
    try:
        done = stop.run(["mksquashfs", tree, path, *_SQUASHFS], env=environment, timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        raise AppBuildError(f"mksquashfs did not end within {_PATIENCE:g} s") from None
    if done.returncode != 0:
        raise AppBuildError(f"mksquashfs failed: {done.stderr.strip()[-1000:]}")


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"

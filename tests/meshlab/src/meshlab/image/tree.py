# SPDX-License-Identifier: Apache-2.0
"""The checkout that images are built from."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from firmware import boards
from meshlab.image.architecture import ARCHITECTURES, Architecture
from meshlab.image.errors import ImageError

COMMON_FRAGMENTS = "board/common/linux"
"""Kernel fragments of every board, one per purpose; all are used, in order of their names."""

LAB_FRAGMENTS = ("board/x86_64/linux/x86_64.config", "board/qemu/linux/lab.config")
"""What the lab kernel adds, in this order: where two fragments differ the later one wins."""


@dataclass(frozen=True)
class Recipe:
    """``board/qemu/lab-image.toml``: what of Debian goes into an image, and what kernel."""

    suite: str
    """Debian release."""
    architecture: Architecture
    """The node's."""
    kernel_source: str
    """Package that holds the kernel's source as ``/usr/src/NAME.tar.xz``."""
    kernel_firmware: dict[str, str]
    """Files that the kernel asks for: name there -> path in the package ``firmware_package``."""
    firmware_package: str
    packages: tuple[str, ...]
    """Packages (with all they depend on) from which ``files`` are taken."""
    files: tuple[str, ...]
    """Patterns, relative to the root, of what is kept; shared libraries come by themselves."""
    unwanted: tuple[str, ...]
    """Patterns of what ``files`` would keep and a node never uses."""
    applets_unwanted: tuple[str, ...]
    """BusyBox applets that make no sense on a node."""
    aside: dict[str, tuple[str, str]]
    """Programs of packages that exclude one of ``packages``: name here -> package, path there."""
    fragments: tuple[Path, ...]
    """Fragments of the kernel's configuration in the order in which they apply."""
    device_trees: tuple[str, ...] = ()
    """Device trees that are built with the kernel, as its makefiles name them, without suffix."""
    firmware_built_in: bool = True
    """Whether ``kernel_firmware`` is compiled in; else it is in the root's ``/lib/firmware``."""
    adapter_firmware: str | None = None
    """A file for the driver of the emulated Wi-Fi adapter, in the root's ``/lib/firmware``."""


@dataclass(frozen=True)
class Tree:
    """A checkout of the product."""

    root: Path

    @property
    def overlay(self) -> Path:
        """Files laid over the root filesystem, the same as in the firmware."""
        return self.root / "overlay"

    @property
    def app(self) -> Path:
        """The node's Python package."""
        return self.root / "app" / "src" / "thicket"

    @property
    def content(self) -> tuple[str, ...]:
        """What images take from the checkout as it is, from its root."""
        return tuple(str(path.relative_to(self.root)) for path in (self.app, self.overlay))

    @property
    def relay(self) -> Path:
        """Sources of hwsim-relay."""
        return self.root / "package" / "hwsim-relay" / "src"

    @property
    def host_packages(self) -> Path:
        """The host's packages that the product needs."""
        return self.root / "host-packages.txt"

    def fragments(self) -> list[Path]:
        """Return the kernel fragments of the lab kernel in the order in which they apply."""
        common = sorted((self.root / COMMON_FRAGMENTS).glob("*.config"))
        return common + [self.root / name for name in LAB_FRAGMENTS]

    def recipe(self, board: str | None = None) -> Recipe:
        """Read ``board/qemu/lab-image.toml``.

        :param board: The board whose firmware is stood in for; ``None``: the lab image.
        :raises ImageError: when the file is not as expected.
        """
        path = self.root / "board" / "qemu" / "lab-image.toml"
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
            own = data if board is None else data["standin"][board]
            architecture = ARCHITECTURES[own["architecture"]]
            if board is None:
                fragments = self.fragments()
            else:
                fragments = boards.load(board, self.root).linux_fragments()
                left_out = [fragments.index(self.root / name) for name in own["fragments-unwanted"]]
                fragments = [f for index, f in enumerate(fragments) if index not in left_out]
                fragments += [self.root / name for name in own["fragments-more"]]
            return Recipe(
                suite=data["suite"],
                architecture=architecture,
                kernel_source=data["kernel"]["source"],
                kernel_firmware=dict(own["kernel"]["firmware"]),
                firmware_package=data["kernel"]["firmware-package"],
                fragments=tuple(fragments),
                device_trees=tuple(own.get("device-trees", ())),
                firmware_built_in=board is None,
                adapter_firmware=own.get("adapter-firmware"),
                packages=tuple(data["userland"]["packages"]),
                files=tuple(
                    pattern.replace("LOADER", architecture.loader).replace(
                        "LIBRARIES", architecture.libraries
                    )
                    for pattern in data["userland"]["files"]
                ),
                unwanted=tuple(data["userland"]["unwanted"]),
                applets_unwanted=tuple(data["userland"]["applets-unwanted"]),
                aside={
                    name: (package, path)
                    for name, (package, path) in data["userland"]["aside"].items()
                },
            )
        except KeyError as error:
            raise ImageError(f"{path}: the key {error} is missing") from error
        except (OSError, ValueError, boards.BoardError) as error:
            raise ImageError(f"{path} cannot be used: {error}") from error

    def requirements(self) -> list[str]:
        """Return the node's Python dependencies as ``NAME==VERSION``.

        Names come from ``app/pyproject.toml``, versions from ``constraints.txt``.

        :raises ImageError: when a name has no pinned version.
        """
        pyproject = tomllib.loads((self.root / "app" / "pyproject.toml").read_text("utf-8"))
        pinned = {}
        for line in (self.root / "constraints.txt").read_text("utf-8").splitlines():
            match = re.match(r"([A-Za-z0-9._-]+)==([^\s;#]+)", line)
            if match:
                pinned[_normal(match[1])] = match[2]
        found = []
        for dependency in pyproject["project"].get("dependencies", []):
            name = _normal(re.split(r"[^A-Za-z0-9._-]", dependency, maxsplit=1)[0])
            if name not in pinned:
                raise ImageError(
                    f"app/pyproject.toml needs {name}, but constraints.txt pins no version of it"
                )
            found.append(f"{name}=={pinned[name]}")
        return found

    def hashes(self) -> dict[str, set[str]]:
        """Return the SHA-256 digests (hex) of each package's files, from ``constraints.txt``."""
        found: dict[str, set[str]] = {}
        digests: set[str] = set()
        for line in (self.root / "constraints.txt").read_text("utf-8").splitlines():
            if match := re.match(r"([A-Za-z0-9._-]+)==", line):
                digests = found.setdefault(_normal(match[1]), set())
            digests |= set(re.findall(r"--hash=sha256:([0-9a-f]{64})\b", line))
        return found

    def version(self) -> str:
        """Return the version of the node's package.

        :raises ImageError: the daemon would say another one.
        """
        pyproject = tomllib.loads((self.root / "app" / "pyproject.toml").read_text("utf-8"))
        version = str(pyproject["project"]["version"])
        said = (self.root / "app/src/thicket/__init__.py").read_text("utf-8")
        if f'__version__ = "{version}"\n' not in said:
            raise ImageError(
                f"app/pyproject.toml has the version {version}, and app/src/thicket/__init__.py "
                "has another __version__: they must be the same"
            )
        return version

    def epoch(self) -> int:
        """Return the security epoch of images that are made of this tree."""
        pyproject = tomllib.loads((self.root / "app" / "pyproject.toml").read_text("utf-8"))
        return int(pyproject["tool"]["thicket"]["epoch"])


def _normal(name: str) -> str:
    """Return the canonical form of a distribution's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def find() -> Tree:
    """Return the checkout that this module belongs to.

    :raises ImageError: when the simulator was installed without its checkout.
    """
    root = Path(__file__).resolve().parents[5]
    tree = Tree(root)
    if not tree.overlay.is_dir() or not tree.app.is_dir():
        raise ImageError(
            "the lab image is built from Thicket's checkout, and this program is not in one "
            f"({root} has no overlay/ and app/): run it from a clone"
        )
    return tree

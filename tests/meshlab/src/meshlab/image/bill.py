# SPDX-License-Identifier: Apache-2.0
"""What software is in a stand-in: what a release says of it (bill of materials, licences)."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from urllib.parse import quote

from firmware import bundle as bundles
from firmware.build import commit
from firmware.releases import licences, sbom
from firmware.releases.licences import Licence, Package
from firmware.releases.make import Parts
from firmware.releases.sbom import Component
from meshlab.image import lab, standin
from meshlab.image import tree as trees
from meshlab.image.errors import ImageError
from meshlab.image.tree import Recipe, Tree
from meshlab.image.userland import DEBIAN

_INDIRECT = {"zeroconf": ("ifaddr",)}
"""Python packages that those of ``app/pyproject.toml`` need, and that are in images."""


def parts(cache: Path, name: str) -> Parts:
    """Make a stand-in and its update, and return what a release takes of them.

    :param cache: the product's cache folder.
    :param name: a key of ``standin.KINDS``.
    :raises ImageError: it cannot be made.
    """
    images = standin.build(cache, name=name)
    unsigned = standin.bundle(cache, name=name)
    said = bundles.release(images)
    kind = standin.KINDS[name]
    tree = trees.find()
    recipe = tree.recipe(kind.image)
    debian = lab.of_debian(cache, kind.image).parent / DEBIAN
    packages = [licences.package(one) for one in python_packages(tree)]
    kernel = str(json.loads((images / "manifest.json").read_text())["kernel"])
    found = [
        *(_of_python(one, tree.hashes()) for one in packages),
        *debian_components(recipe, debian),
        _kernel(kernel),
    ]
    texts = [
        licences.own(said.version),
        *map(licences.of_package, packages),
        *debian_licences(debian),
    ]
    return Parts(
        name,
        said.version,
        said.epoch,
        commit(tree.root),
        images / "card.img",
        unsigned,
        partial(_bill, name, said.version, found),
        tuple(texts),
    )


def _bill(name: str, version: str, found: list[Component], date: str) -> bytes:
    return sbom.made(f"thicket-{name}", version, "Apache-2.0", found, date)


def python_packages(tree: Tree) -> list[str]:
    """Return the names of the Python packages that images have."""
    names = [one.partition("==")[0] for one in tree.requirements()]
    return sorted({*names, *(more for name in names for more in _INDIRECT.get(name, ()))})


def _of_python(package: Package, hashes: dict[str, set[str]]) -> Component:
    name = re.sub(r"[-_.]+", "-", package.name).lower()
    return Component(
        "library",
        package.name,
        package.version,
        f"pkg:pypi/{name}@{package.version}",
        package.licence,
        tuple(sorted(hashes.get(name, ()))),
    )


def _kernel(release: str) -> Component:
    version = release.partition("-")[0]
    return Component(
        "operating-system", "linux", release, f"pkg:generic/linux@{version}", "GPL-2.0-only"
    )


def debian_components(recipe: Recipe, folder: Path) -> list[Component]:
    """Return the packages of Debian that files of an image are of.

    :param folder: what was noted of them when the image was made. Older ones have none: then it
        is the packages that the recipe names, whose versions are not known.
    """
    path = folder / "packages.json"
    if not path.is_file():
        return [
            Component("application", name, "", f"pkg:deb/debian/{name}?distro={recipe.suite}")
            for name in recipe.packages
        ]
    try:
        return [
            Component(
                "application",
                str(name),
                str(version),
                f"pkg:deb/debian/{name}@{quote(str(version), safe='.-~')}"
                f"?arch={architecture}&distro={recipe.suite}",
            )
            for name, version, architecture in json.loads(path.read_text(encoding="utf-8"))
        ]
    except ValueError as error:
        raise ImageError(f"{path} cannot be used: {error}") from None


def debian_licences(folder: Path) -> list[Licence]:
    """Return what Debian says of the licences of its packages; nothing where it was not noted."""
    if not (folder / "copyright").is_dir():
        return []
    return [
        Licence(f"{path.name} (Debian)", "", (("copyright", path.read_text("utf-8", "replace")),))
        for path in sorted((folder / "copyright").iterdir())
    ]

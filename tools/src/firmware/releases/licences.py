# SPDX-License-Identifier: Apache-2.0
"""The licences of what is in an image, as one text that anybody can open."""

from __future__ import annotations

import csv
import importlib.metadata
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from firmware.boards import ROOT
from firmware.releases.errors import ReleaseError

_FILES = re.compile(r"(LICEN[CS]E|COPYING|NOTICE|AUTHORS)", re.IGNORECASE)
_LINE = "=" * 100
_MOST = 4 << 20
"""Bytes of one licence that are taken."""


class Licence(NamedTuple):
    """The licence of one component.

    :ivar component: its name and version.
    :ivar name: as the component says it: SPDX, or words.
    :ivar texts: each with the name of the file that has it.
    """

    component: str
    name: str
    texts: tuple[tuple[str, str], ...]


class Package(NamedTuple):
    """A Python package that is installed here.

    :ivar licence: as it says it.
    """

    name: str
    version: str
    licence: str
    texts: tuple[tuple[str, str], ...]


def own(version: str) -> Licence:
    """Return the licence of Thicket itself."""
    return Licence(
        f"Thicket {version}",
        "Apache-2.0",
        (("LICENSE", (ROOT / "LICENSE").read_text(encoding="utf-8")),),
    )


def package(name: str) -> Package:
    """Return what a Python package says of its licence.

    :raises ReleaseError: it is not installed in this environment.
    """
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise ReleaseError(
            f"the Python package {name}, whose licence belongs to the release, is not in this "
            "environment: run it by `make release`"
        ) from None
    said = found.metadata.json
    classifiers = [
        line.rpartition(" :: ")[2]
        for line in said.get("classifier", [])
        if line.startswith("License :: ") and not line.endswith("OSI Approved")
    ]
    # Only the names of licences: some packages put the whole text there.
    names = [str(said.get(key, "")).partition("\n")[0] for key in ("license_expression", "license")]
    licence = next((text for text in (*names, *classifiers) if text), "")
    texts = tuple(
        sorted(
            (Path(str(path)).name, path.read_text(encoding="utf-8"))
            for path in found.files or []
            if ".dist-info/" in str(path) and _FILES.match(Path(str(path)).name)
        )
    )
    return Package(found.metadata["Name"], found.version, licence, texts)


def of_package(found: Package) -> Licence:
    """Return the licence of a Python package."""
    return Licence(f"{found.name} {found.version}", found.licence, found.texts)


def of_buildroot(folder: Path) -> list[Licence]:
    """Return what ``legal-info`` of Buildroot collected of the packages on the device.

    :param folder: its folder ``legal-info``.
    :raises ReleaseError: it is not there, or not as expected.
    """
    path = folder / "manifest.csv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        found = []
        for row in rows:
            name = f"{row['PACKAGE']}-{row['VERSION']}" if row["VERSION"] else row["PACKAGE"]
            texts = sorted((folder / "licenses" / name).rglob("*"))
            found.append(
                Licence(
                    f"{row['PACKAGE']} {row['VERSION']}".strip(),
                    row["LICENSE"],
                    tuple((one.name, _text(one)) for one in texts if one.is_file()),
                )
            )
    except (OSError, KeyError, csv.Error) as error:
        raise ReleaseError(f"{path} does not say which licences there are: {error!r}") from None
    return found


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MOST).decode("utf-8", "replace")


def text(title: str, licences: Sequence[Licence]) -> bytes:
    """Return one text with all licences; one that several components have is there once.

    :param title: what they are of.
    """
    listed = sorted(set(licences))
    parts = [
        f"Licences of what is in {title}\n",
        *(f"  {one.component}: {one.name or 'see its text'}\n" for one in listed),
    ]
    told: dict[str, str] = {}
    for one in listed:
        for name, content in one.texts:
            title_line = f"{one.component}: {name}"
            if content in told:
                parts.append(f"\n{_LINE}\n{title_line}\n\nThe same text as of {told[content]}\n")
                continue
            told[content] = title_line
            parts.append(f"\n{_LINE}\n{title_line}\n\n{content.strip()}\n")
    return "".join(parts).encode()

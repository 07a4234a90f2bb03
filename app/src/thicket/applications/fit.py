# SPDX-License-Identifier: Apache-2.0
"""Whether an application's file may run on this node, beside what is there."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Mapping
from importlib.machinery import all_suffixes
from typing import NamedTuple

from thicket.applications import app_file
from thicket.applications.app_file import ANY, About, AppError, AppFile
from thicket.trust.fleet import Fleet
from thicket.trust.verify import Verify, verify_signature

#: Modules of ours, which no application brings.
OWN = "thicket"
_SUFFIXES = ("", *all_suffixes())


class Place(NamedTuple):
    """What an application finds on this node.

    :ivar fleet: whose signers count; None without a fleet.
    :ivar revoked: names of devices and signers that are out.
    :ivar image: the image's version.
    :ivar python: version of Python: ``3.13``.
    :ivar machine: the architecture, as ``uname -m`` has it.
    """

    fleet: Fleet | None
    revoked: Collection[str]
    image: str
    python: str
    machine: str


def check(found: AppFile, place: Place, *, verify: Verify = verify_signature) -> str:
    """Return who has signed a file that may run here.

    :raises AppError: it may not.
    :raises SignerRefusedError: its signature does not count.
    """
    if place.fleet is None:
        raise AppError(
            "nobody",
            "this node takes applications from nobody: it belongs to no fleet ([trust] root). "
            "`thicket ca config` makes a configuration with the fleet's root",
        )
    signer = app_file.check_signer(found, place.fleet, revoked=place.revoked, verify=verify)
    check_image(found.about, place)
    return signer


def check_image(about: About, place: Place) -> None:
    """Make sure that a file is for the image that runs.

    :raises AppError: it is for another one.
    """
    own = app_file.version_key(place.image)
    from_least = own >= app_file.version_key(about.least)
    if not from_least or (about.below and own >= app_file.version_key(about.below)):
        until = f" and below {about.below}" if about.below else ""
        raise AppError(
            "image",
            f"{about.name} {about.version} is for images from {about.least}{until}, and this one "
            f"is {place.image}: "
            + ("build it for this one" if from_least else "update the image first"),
        )
    if about.python != place.python:
        raise AppError(
            "python",
            f"it is for Python {about.python}, and this image has {place.python}: build it anew",
        )
    if about.architecture not in (ANY, place.machine):
        raise AppError(
            "architecture",
            f"it is for {about.architecture}, and this device is {place.machine}: build it with "
            f"--for {place.machine}, or --for any if it has Python only",
        )


def check_beside(
    about: About, others: Iterable[About], image: Mapping[str, str], path: Collection[str]
) -> None:
    """Make sure that a file gets in the way of nothing else: all run in one process.

    :param others: the other files that are in force here.
    :param image: the image's own applications, each with its module.
    :param path: the folders that the image's modules are in.
    :raises AppError: it would.
    """
    for other in others:
        if both := set(about.applications) & set(other.applications):
            raise AppError(
                "taken",
                f"the application {min(both)} is in {other.name} already: `thicket app remove "
                f"{other.name}` first",
            )
        if both := set(about.modules) & set(other.modules):
            raise AppError(
                "modules",
                f"{other.name} brings a module {min(both)} as well, and there can be only one: "
                "put both applications into one project",
            )
    replaced = {image[name] for name in about.applications if name in image}
    for module in about.modules:
        if module in replaced:
            continue
        if module == OWN or module in sys.stdlib_module_names or in_image(module, path):
            raise AppError(
                "modules", f"it brings a module {module}, which the image has: build it without"
            )


def in_image(module: str, path: Iterable[str]) -> bool:
    """Return whether one of these folders has a module of this name at the top."""
    return any(
        os.path.exists(f"{folder or '.'}/{module}{suffix}")
        for folder in path
        for suffix in _SUFFIXES
    )

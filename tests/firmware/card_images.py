# SPDX-License-Identifier: Apache-2.0
"""The card images that tests boot: stand-ins, and the firmware where it is built."""

from __future__ import annotations

import functools
import sys

import pytest

from host.cache import cache_root
from meshlab.lab import real_parts
from meshlab.lab.errors import LabError


@functools.cache
def load(name: str) -> real_parts.RealParts:
    """Return the parts for an image, looked for once per process whatever the order of tests."""

    def progress(text: str) -> None:
        print(text, file=sys.__stderr__, flush=True)

    made = real_parts.load(name, cache_root(), 1, progress)
    progress(made.description)
    return made


def loaded(name: str) -> real_parts.RealParts:
    """Return the parts for an image; skip the test where it cannot be had."""
    if (
        name in real_parts.CARDS
        and not (cache_root() / "build" / name / "images/card.img").exists()
    ):
        pytest.skip(f"the firmware {name} is not built here (`make {name}`)")
    try:
        return load(name)
    except LabError as error:
        if "qemu-system" in str(error):
            pytest.skip(str(error))
        raise

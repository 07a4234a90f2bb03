# SPDX-License-Identifier: Apache-2.0
"""Running nodes for tests.

The nodes boot the lab image, which is built when it is not in the cache (minutes, once);
``MESHLAB_IMAGE`` names another: ``x86_64`` or ``rpi64`` for the firmware that was built. A module's
tests share one lab and run in their order: each leaves the mesh whole, as the next one expects it.
Its directory, with all logs, stays afterwards: ``$THICKET_CACHE/labs/test-<module>``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Generator
from pathlib import Path

import pytest
import pytest_asyncio

from meshlab import parts
from meshlab.image.lab import Extras
from meshlab.lab import Lab, LabSpec
from meshlab.paths import cache_root
from meshlab.testing import Nodes


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the state and the logs of every node beside a failure."""
    report = yield
    lab = getattr(item, "funcargs", {}).get("lab")
    if report.failed and isinstance(lab, Lab) and lab.nodes:
        report.sections.append(("lab", lab.report()))
    return report


@pytest.fixture(scope="module")
def real_parts(request: pytest.FixtureRequest) -> parts.RealParts:
    """Build or find the image, and find out how to run it.

    With the applications in the directories that the module's APPLICATIONS names; a firmware has
    those that it was built with.
    """

    def progress(text: str) -> None:
        print(text, file=sys.__stderr__, flush=True)

    applications: tuple[Path, ...] = getattr(request.module, "APPLICATIONS", ())
    image = os.environ.get("MESHLAB_IMAGE", "lab")
    if applications and image != "lab":
        pytest.skip(f"{image} has no applications; only the lab image is made with some")
    extras = Extras(applications=applications) if applications else None
    return parts.load(image, cache_root(), 1, progress, extras)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(request: pytest.FixtureRequest, real_parts: parts.RealParts) -> AsyncIterator[Lab]:
    """Run the lab that the module describes by its function ``spec(name)``."""
    name = request.module.__name__.rpartition(".")[2].replace("_", "-")
    spec: LabSpec = request.module.spec(name)
    async with Lab(spec, real_parts) as running:
        yield running


@pytest.fixture
def nodes(lab: Lab) -> Nodes:
    return Nodes(lab)

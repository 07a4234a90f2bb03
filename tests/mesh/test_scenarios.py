# SPDX-License-Identifier: Apache-2.0
"""The scenarios of the library on real nodes, each in a mesh of its own: minutes, `make soak`.

`make test` rehearses them all, and plays the first one on the mesh of test_line.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from host.cache import cache_root
from meshlab.lab.parts import Parts
from meshlab.lab.slots import Places
from meshlab.lab.testing import NODES_PER_CORE
from meshlab.scenario import perform, report
from meshlab.scenario.file import load
from meshlab.scenario.model import Scenario

pytestmark = pytest.mark.skipif(
    not os.environ.get("THICKET_SOAK"), reason="takes minutes: `make soak`, or THICKET_SOAK=1"
)

LIBRARY = sorted((Path(__file__).resolve().parents[2] / "examples" / "scenarios").glob("*.toml"))
SLACK = 5.0
"""How many times longer than they say expectations have: on a busy host that emulates the nodes."""


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
async def test_a_scenario_of_the_library(path: Path, tmp_path: Path) -> None:
    scenario = load(path)

    def parts(wanted: Scenario, seed: int) -> tuple[Parts, dict[str, Parts]]:
        return perform.real_parts(wanted, seed, lambda text: print(text, file=sys.stderr))

    def tell(at: float, text: str) -> None:
        print(f"{at:7.1f} s  {text}", flush=True)

    cores = len(os.sched_getaffinity(0))
    places = Places(cache_root() / "node-places", NODES_PER_CORE * cores, "tests on running nodes")
    held = await places.take(len(scenario.spec.topology.names))
    try:
        options = perform.Options(slack=SLACK, out=tmp_path, judge_medium=False)
        outcomes = await perform.perform(scenario, options, parts, tell)
    finally:
        for place in held:
            place.free()
    assert perform.status_of(outcomes) == 0, report.table(outcomes[0])

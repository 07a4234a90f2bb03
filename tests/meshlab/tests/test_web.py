# SPDX-License-Identifier: Apache-2.0
"""The page of a lab, on parts that boot nothing."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from patience import PATIENCE

from meshlab.lab import topology
from meshlab.lab.fake import FakeParts
from meshlab.lab.journal import Pace
from meshlab.lab.lab import Lab
from meshlab.lab.spec import LabSpec
from meshlab.web.source import LabSource
from web.errors import WebError
from web.model import Health, LinkState, Picture
from web.source import Deed


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the nodes, which cost nothing here, more often."""
    monkeypatch.setattr(Pace, "pause", lambda self, nodes, settled: 0.01)


def states(picture: Picture) -> dict[tuple[str, str], LinkState]:
    return {(one.one, one.other): one.state for one in picture.links}


async def test_a_lab_is_seen_and_changed(tmp_path: Path) -> None:
    spec = LabSpec(topology=topology.make("full", 3), name="web")
    async with Lab(spec, FakeParts(), tmp_path) as lab:
        await lab.formed(60)
        source = LabSource("web", lab.directory / "control.sock")
        pictures = source.watch(lambda: True)

        async def until(wanted: LinkState) -> None:
            async with asyncio.timeout(PATIENCE):
                while states(await anext(pictures))["n1", "n2"] is not wanted:
                    pass

        async with asyncio.timeout(PATIENCE):
            picture = await anext(pictures)
        assert [one.health for one in picture.nodes] == [Health.WELL] * 3
        assert set(states(picture).values()) == {LinkState.UP}
        assert picture.asked == "n1"

        begun = time.monotonic()
        await source.do(Deed("cut", "n1", "n2"))
        await until(LinkState.CUT)
        assert time.monotonic() - begun < 3.0
        await source.do(Deed("restore", "n1", "n2"))
        await until(LinkState.UP)

        found = await source.detail("n1")
        assert {one["node"] for one in found["peers"]} == {"n2", "n3"}
        assert {one["node"] for one in found["cluster"]} == {"n2", "n3"}

        await source.do(Deed("kill", "n2"))
        await until(LinkState.CUT)
        node = (await anext(pictures)).nodes[1]
        assert (node.health, node.on) == (Health.AWAY, False)
        await source.do(Deed("on", "n2"))
        await source.do(Deed("move", "n3", at=(7.0, 8.0)))
        assert lab.nodes["n3"].state.position == (7.0, 8.0)
        with pytest.raises(WebError, match="is not on"):
            await source.do(Deed("kill", "n2"))
            await source.do(Deed("kill", "n2"))
        with pytest.raises(WebError, match="needs more"):
            await source.do(Deed("cut", "n1"))
        await pictures.aclose()  # type: ignore[attr-defined]


async def test_a_lab_that_does_not_run_is_said(tmp_path: Path) -> None:
    source = LabSource("web", tmp_path / "control.sock")
    with pytest.raises(WebError, match="the lab 'web' does not answer"):
        await anext(source.watch(lambda: True))

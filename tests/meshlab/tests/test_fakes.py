# SPDX-License-Identifier: Apache-2.0
"""What stands for parts of a lab does what the real parts do, where that needs no guest."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE

from meshlab.chip.state import serial_for
from meshlab.image.image_set import ImageSet
from meshlab.lab.fake import FakeParts
from meshlab.lab.parts import ChipLike, Parts
from meshlab.lab.real_parts import RealParts
from meshlab.machine.accel import Accel
from meshlab.medium.config import (
    CONFIG_NAME,
    SOCKET_NAME,
    LinkConfig,
    MediumConfig,
    NodeConfig,
    RadioConfig,
    write_json,
)
from meshlab.wire.rpc import Client, RpcError


@pytest.fixture(params=["fake", "real"])
def parts(request: pytest.FixtureRequest, tmp_path: Path) -> Parts:
    if request.param == "fake":
        return FakeParts()
    image = ImageSet("lab", tmp_path / "vmlinux", tmp_path / "root", "", "never booted")
    return RealParts(image, Accel("tcg", "test", "max"), tmp_path, 1)


class TestMedium:
    """The process that ``Parts.medium`` names, asked as a lab asks it."""

    @pytest.fixture
    async def client(self, parts: Parts, tmp_path: Path) -> AsyncIterator[Client]:
        names = ("n1", "n2", "n3")
        config = MediumConfig(
            nodes=tuple(
                NodeConfig(name, name, (RadioConfig(bytes((2, 0, 0, 0, 0, number))),))
                for number, name in enumerate(names, start=1)
            ),
            links=(LinkConfig("n1", "n2", 30.0), LinkConfig("n2", "n3", 20.0)),
            run="r",
        )
        write_json(tmp_path / CONFIG_NAME, config.to_json())
        process = await asyncio.create_subprocess_exec(*parts.medium(tmp_path))
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    with contextlib.suppress(RpcError):
                        connected = await Client.connect(tmp_path / SOCKET_NAME)
                        break
                    await asyncio.sleep(0.05)
            async with connected:
                yield connected
        finally:
            process.terminate()
            await process.wait()

    async def links(self, client: Client) -> dict[tuple[str, str], dict[str, Any]]:
        found = (await client.call("links", timeout=PATIENCE))["links"]
        return {(link["a"], link["b"]): link for link in found}

    async def test_links_are_those_of_the_configuration(self, client: Client) -> None:
        links = await self.links(client)
        assert {pair: link["snr_db"] for pair, link in links.items()} == {
            ("n1", "n2"): 30.0,
            ("n2", "n1"): 30.0,
            ("n2", "n3"): 20.0,
            ("n3", "n2"): 20.0,
        }
        assert {(link["state"], link["loss"]) for link in links.values()} == {("link", 0.0)}

    async def test_a_link_is_cut_set_and_restored(self, client: Client) -> None:
        both = {"a": "n1", "b": "n2", "both": True}
        await client.call("link", {**both, "cut": True})
        links = await self.links(client)
        for pair in (("n1", "n2"), ("n2", "n1")):
            assert (links[pair]["state"], links[pair]["snr_db"]) == ("cut", None)
        await client.call("link", {**both, "both": False, "snr": 5.5})
        links = await self.links(client)
        assert (links["n1", "n2"]["state"], links["n1", "n2"]["snr_db"]) == ("set", 5.5)
        assert links["n2", "n1"]["state"] == "cut"
        await client.call("link", {**both, "restore": True})
        links = await self.links(client)
        for pair in (("n1", "n2"), ("n2", "n1")):
            assert (links[pair]["state"], links[pair]["snr_db"]) == ("link", 30.0)

    async def test_a_link_loses_frames_until_it_is_restored(self, client: Client) -> None:
        both = {"a": "n2", "b": "n3", "both": True}
        await client.call("link", {**both, "loss": 0.25})
        assert (await self.links(client))["n2", "n3"]["loss"] == 0.25
        await client.call("link", {**both, "restore": True})
        assert (await self.links(client))["n2", "n3"]["loss"] == 0.0

    async def test_status_has_what_a_lab_reads(self, client: Client) -> None:
        await client.call("radio", {"node": "n2", "index": 0, "plug": False})
        status = await client.call("status")
        plugged = {
            name: [radio["plugged"] for radio in node["radios"]]
            for name, node in status["nodes"].items()
        }
        assert plugged == {"n1": [True], "n2": [False], "n3": [True]}
        assert isinstance(status["frames"], int)
        assert isinstance(status["lag_ms"], float)
        assert status["valid"] in (True, False)

    async def test_the_rest_of_what_a_lab_asks(self, client: Client, tmp_path: Path) -> None:
        target = tmp_path / "air.pcapng"
        started = await client.call("pcap", {"path": str(target), "nodes": []})
        assert started["path"] == str(target)
        await client.call("pcap_stop", {"path": str(target)})
        assert target.stat().st_size > 0
        await client.call("move", {"node": "n1", "x": 1.0, "y": 2.0})
        await client.call("reset_stats")
        with pytest.raises(RpcError) as caught:
            await client.call("rubbish")
        assert caught.value.code == "no-such-method"


class TestChip:
    """A chip that ``Parts.chip`` makes."""

    @pytest.fixture
    def chip(self, parts: Parts, tmp_path: Path) -> ChipLike:
        return parts.chip(tmp_path, serial_for(1, 1))

    async def test_it_is_served_and_no_longer(self, chip: ChipLike) -> None:
        await chip.start()
        await chip.stop()

    async def test_its_fault_is_set_and_mended(self, chip: ChipLike) -> None:
        assert chip.fault is None
        for fault in ("absent", "nak", None):
            chip.fault = fault
            assert chip.fault == fault
        with pytest.raises(ValueError, match="absent"):
            chip.fault = "gone"
        assert chip.fault is None

# SPDX-License-Identifier: Apache-2.0
"""The medium's process over real sockets, with nodes that are made up."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
import struct
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE

from meshlab.medium import engine, session
from meshlab.medium.config import (
    CONFIG_NAME,
    SOCKET_NAME,
    STATE_NAME,
    LinkConfig,
    MediumConfig,
    NodeConfig,
    RadioConfig,
    load_state,
    write_json,
)
from meshlab.medium.fake import FAMILY, FakeKernel
from meshlab.medium.server import Medium, serve
from meshlab.wire import relay
from meshlab.wire.hwsim import Attribute, Command, Rate, TxFlag, TxFrame, encode_series
from meshlab.wire.relay import Kind, encode
from meshlab.wire.rpc import Client, RpcError

FREQUENCY = 2412
BROADCAST = b"\xff" * 6


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody be taken for stuck because this process, which is all nodes, was not run."""
    monkeypatch.setattr(engine, "ANSWER_DEADLINE", 60.0)
    monkeypatch.setattr(session, "REQUEST_DEADLINE", 60.0)
    monkeypatch.setattr(relay, "STALL", 60.0)


def mac(index: int) -> bytes:
    return bytes((2, 0x74, 0x68, 0, 0, index))


class Lab:
    """A lab of made-up nodes: a line n1 - n2 - n3 unless told otherwise."""

    def __init__(self, directory: Path, count: int = 3) -> None:
        self.directory = directory
        names = [f"n{i}" for i in range(1, count + 1)]
        self.config = MediumConfig(
            nodes=tuple(
                NodeConfig(name, name, (RadioConfig(mac(i)),), (60.0 * i, 0.0))
                for i, name in enumerate(names, start=1)
            ),
            links=tuple(LinkConfig(a, b, 30.0) for a, b in itertools.pairwise(names)),
            run="r",
        )
        self.kernels: dict[str, FakeKernel] = {}
        self.medium: Medium | None = None
        self.client: Client | None = None

    async def start(self) -> None:
        for node in self.config.nodes:
            await self.boot(node.name)
        await self.start_medium()

    async def boot(self, name: str) -> FakeKernel:
        (self.directory / name).mkdir(exist_ok=True)
        kernel = FakeKernel(self.directory / name / "relay.sock")
        kernel.keep = True
        await kernel.start()
        self.kernels[name] = kernel
        return kernel

    async def start_medium(self) -> None:
        state = load_state(self.directory / STATE_NAME, self.config.run)
        self.medium = Medium(self.directory, self.config, state)
        await self.medium.start()
        self.client = await Client.connect(self.directory / SOCKET_NAME)

    async def stop_medium(self) -> None:
        if self.client is not None:
            await self.client.close()
        if self.medium is not None:
            await self.medium.stop()
        self.client = self.medium = None

    async def stop(self) -> None:
        await self.stop_medium()
        for kernel in self.kernels.values():
            await kernel.stop()

    async def call(self, method: str, **params: Any) -> Any:
        assert self.client is not None
        return await self.client.call(method, params, timeout=PATIENCE)

    async def ready(self) -> None:
        """Wait until every node's radios are made and known."""
        await self.until(lambda status: all(n["ready"] for n in status["nodes"].values()))

    async def until(self, condition: Callable[[Any], bool]) -> Any:
        """Wait until the medium's status meets a condition; return it."""
        status: Any = None
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    status = await self.call("status")
                    if condition(status):
                        return status
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"not reached: {json.dumps(status, indent=1)}") from None

    def send(self, sender: str, receiver: bytes, number: int = 0, tries: int = 4) -> int:
        """Let a node send a frame; return its cookie."""
        kernel = self.kernels[sender]
        own = mac(int(sender[1:]))
        tx_info, flags = encode_series([Rate(4, tries, 0)])
        frame = b"\x08\0\0\0" + receiver + own + own + number.to_bytes(2, "little") + b"body"
        cookie = kernel.next_cookie()
        wanted = TxFlag.REQ_TX_STATUS | (TxFlag.NO_ACK if receiver[0] & 1 else 0)
        kernel.transmit(TxFrame(own, frame, int(wanted), FREQUENCY, tx_info, flags, cookie))
        kernel.flush()
        return cookie

    async def report(self, sender: str, cookie: int) -> bool:
        """Wait for a frame's report and return whether it was acknowledged."""
        kernel = self.kernels[sender]
        await kernel.wait(lambda: cookie in kernel.report_flags)
        return bool(kernel.report_flags[cookie] & TxFlag.STAT_ACK)

    async def acked(self, sender: str, receiver: str) -> bool:
        return await self.report(sender, self.send(sender, mac(int(receiver[1:]))))


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    made = Lab(tmp_path)
    await made.start()
    await made.ready()
    yield made
    await made.stop()
    assert all(kernel.duplicates == 0 for kernel in made.kernels.values())


async def test_radios_are_made_as_configured(lab: Lab) -> None:
    kernel = lab.kernels["n1"]
    assert kernel.commands == [Command.REGISTER, Command.GET_RADIO, Command.NEW_RADIO]
    radio = kernel.radios[mac(1)]
    assert (radio.name, radio.iftypes) == ("radio0", 0x8C)


async def test_frames_follow_the_links(lab: Lab) -> None:
    assert await lab.acked("n1", "n2")
    assert not await lab.acked("n1", "n3")
    cookie = lab.send("n2", BROADCAST)
    assert not await lab.report("n2", cookie)
    await lab.kernels["n1"].wait(lambda: lab.kernels["n1"].taken == 1)
    await lab.kernels["n3"].wait(lambda: lab.kernels["n3"].taken == 1)
    got = lab.kernels["n2"].received[0]
    assert int.from_bytes(got.attributes[Attribute.SIGNAL], "little", signed=True) == -61
    status = await lab.call("status")
    assert status["acked"] == 1
    assert status["not_acked"] == 1


@pytest.mark.parametrize("listens", [0, 5180])
async def test_a_radio_off_the_channel_does_not_acknowledge(lab: Lab, listens: int) -> None:
    """The receiving kernel refuses (EINVAL): down, or on another channel."""
    lab.kernels["n2"].radios[mac(2)].listens = listens
    assert not await lab.acked("n1", "n2")
    lab.kernels["n2"].radios[mac(2)].listens = FREQUENCY
    lab.send("n2", BROADCAST)
    await lab.kernels["n1"].wait(lambda: lab.kernels["n1"].taken > 0)
    assert await lab.acked("n1", "n2")
    losses = (await lab.call("status"))["losses"]
    assert losses["off_channel"] > 0


async def test_links_are_cut_degraded_and_restored(lab: Lab) -> None:
    await lab.call("link", a="n1", b="n2", cut=True)
    assert not await lab.acked("n1", "n2")
    links = {(e["a"], e["b"]): e for e in (await lab.call("links"))["links"]}
    assert links["n1", "n2"]["state"] == links["n2", "n1"]["state"] == "cut"
    assert links["n2", "n3"]["snr_db"] == 30.0
    await lab.call("link", a="n1", b="n2", snr=5.5, both=False)
    links = {(e["a"], e["b"]): e for e in (await lab.call("links"))["links"]}
    assert (links["n1", "n2"]["snr_db"], links["n2", "n1"]["snr_db"]) == (5.5, None)
    await lab.call("link", a="n1", b="n2", restore=True)
    assert await lab.acked("n1", "n2")
    await lab.call("link", a="n1", b="n3", snr=25)
    assert await lab.acked("n1", "n3")


async def test_a_link_loses_a_part_of_its_frames_and_says_how_many(lab: Lab) -> None:
    await lab.call("link", a="n1", b="n2", loss=1)
    await lab.call("reset_stats")
    assert not await lab.acked("n1", "n2")
    links = {(e["a"], e["b"]): e for e in (await lab.call("links"))["links"]}
    assert links["n1", "n2"]["loss"] == 1.0
    traffic = links["n1", "n2"]["traffic"]
    assert traffic["unicast"] == traffic["unicast_lost"] > 0
    await lab.call("link", a="n1", b="n2", restore=True)
    await lab.call("reset_stats")
    assert await lab.acked("n1", "n2")
    links = {(e["a"], e["b"]): e for e in (await lab.call("links"))["links"]}
    assert links["n1", "n2"]["loss"] == 0.0
    assert links["n1", "n2"]["traffic"]["unicast_lost"] == 0
    assert links["n2", "n1"]["traffic"]["acks"] == 1
    with pytest.raises(RpcError, match="from 0 to 1"):
        await lab.call("link", a="n1", b="n2", loss=20)


async def test_a_link_fades_until_it_is_restored(lab: Lab) -> None:
    async def link(a: str, b: str) -> tuple[str, bool]:
        links = {(e["a"], e["b"]): e for e in (await lab.call("links"))["links"]}
        return links[a, b]["fading"], links[a, b]["fading_set"]

    assert await link("n1", "n2") == ("none", False)
    how = "rician k=6 doppler=2 shadowing=4 decorrelation=10"
    answer = await lab.call("link", a="n2", b="n1", fading=how, both=False)
    assert answer == {"changed": [["n2", "n1"], ["n1", "n2"]]}
    assert await link("n1", "n2") == await link("n2", "n1") == (how, True)
    assert (await lab.call("status"))["fading"] == {
        "all": "none", "links": [{"a": "n1", "b": "n2", "fading": how, "set": True}]
    }  # fmt: skip
    assert json.loads((lab.directory / "medium-state.json").read_text())["fadings"] == [
        ["n1", "n2", how]
    ]
    await lab.call("link", a="n1", b="n2", restore=True)
    assert await link("n1", "n2") == ("none", False)
    with pytest.raises(RpcError, match="rayleigh, rician"):
        await lab.call("link", a="n1", b="n2", fading="rice")


async def test_moving_away_and_back(lab: Lab) -> None:
    await lab.call("move", node="n1", x=1e6, y=0)
    assert not await lab.acked("n1", "n2")
    await lab.call("move", node="n1", x=119.0, y=0.0)
    assert await lab.acked("n1", "n2")


@pytest.mark.parametrize(
    ("method", "params", "code", "words"),
    [
        ("link", {"a": "n1", "b": "n9", "cut": True}, "no-such-node", "n1, n2, n3"),
        ("link", {"a": "n1", "b": "n1", "cut": True}, "bad-params", "same node"),
        ("link", {"a": "n1", "b": "n2"}, "bad-params", "say one of"),
        ("link", {"a": "n1", "b": "n2", "snr": "x"}, "bad-params", "number"),
        ("link", {"a": "n1", "b": "n2", "cut": True, "restore": True}, "bad-params", "one of"),
        ("move", {"node": "n1", "x": 1}, "bad-params", "number"),
        ("radio", {"node": "n1", "index": 1, "plug": False}, "no-such-radio", "1 radios"),
        ("radio", {"node": "n1"}, "bad-params", "plug"),
        ("pcap", {}, "bad-params", "path"),
        ("pcap", {"path": "none/air.pcapng"}, "cannot-write", "No such file"),
        ("pcap", {"path": "/dev/null"}, "bad-params", "regular"),
        ("pcap", {"path": "x", "nodes": ["n7"]}, "no-such-node", "n7"),
        ("pcap", {"path": "x", "links": [["n1"]]}, "bad-params", "pair"),
        ("pcap", {"path": "x", "links": [["n1", "n7"]]}, "no-such-node", "n7"),
        ("pcap", {"path": "x", "decrypt": 1}, "bad-params", "true or false"),
        ("keys", {}, "bad-params", "pairs"),
        ("keys", {"pairs": [["zz", "00", "00"]]}, "bad-params", "hex"),
        ("pcap_stop", {"path": "x"}, "no-such-capture", "x"),
        ("add_node", {"node": {"name": "n1"}}, "exists", "n1"),
        ("add_node", {"node": {"name": "n4", "radios": [{}]}}, "bad-params", "mac"),
        ("remove_node", {"node": 1}, "no-such-node", "no node 1"),
    ],
)
async def test_requests_that_make_no_sense(
    lab: Lab, method: str, params: dict[str, Any], code: str, words: str
) -> None:
    with pytest.raises(RpcError, match=words) as caught:
        await lab.call(method, **params)
    assert caught.value.code == code


async def test_an_adapter_is_pulled_out_and_put_back(lab: Lab) -> None:
    kernel = lab.kernels["n2"]
    await lab.call("radio", node="n2", index=0, plug=False)
    await kernel.wait(lambda: not kernel.radios)
    assert not await lab.acked("n1", "n2")
    await lab.call("radio", node="n2", index=0, plug=True)
    await kernel.wait(lambda: mac(2) in kernel.radios)
    await lab.ready()
    assert await lab.acked("n1", "n2")


async def test_a_restarted_medium_goes_on(lab: Lab) -> None:
    """Radios stay, changes made while running hold, nothing is made twice."""
    await lab.call("link", a="n2", b="n3", cut=True)
    await lab.call("radio", node="n3", plug=False)
    await lab.call("move", node="n1", x=100.0, y=0.0)
    await lab.stop_medium()
    for kernel in lab.kernels.values():
        await kernel.wait(lambda kernel=kernel: not kernel.registered)  # type: ignore[misc]
        kernel.commands.clear()
    await lab.start_medium()
    await lab.ready()
    assert lab.kernels["n1"].commands == [Command.REGISTER, Command.GET_RADIO]
    assert lab.kernels["n3"].radios == {}
    assert await lab.acked("n1", "n2")
    assert not await lab.acked("n2", "n3")
    links = {(e["a"], e["b"]): e for e in (await lab.call("links"))["links"]}
    assert links["n2", "n3"]["state"] == "cut"
    assert links["n1", "n2"]["state"] == "model"
    # A new run of the lab does not inherit.
    await lab.stop_medium()
    lab.config = replace(lab.config, run="another")
    await lab.start_medium()
    await lab.ready()
    assert mac(3) in lab.kernels["n3"].radios
    assert await lab.acked("n2", "n3")


async def test_a_node_is_switched_off_and_on(lab: Lab) -> None:
    await lab.kernels["n2"].stop()
    await lab.until(lambda s: not s["nodes"]["n2"]["connected"])
    assert not await lab.acked("n1", "n2")
    kernel = await lab.boot("n2")
    await kernel.wait_radios(1)
    await lab.ready()
    assert await lab.acked("n1", "n2")


async def test_a_node_reboots_inside_of_its_machine(lab: Lab) -> None:
    """The socket stays; the relay greets, the radios are gone."""
    kernel = lab.kernels["n2"]
    kernel.reboot()
    await kernel.wait_radios(1)
    await lab.ready()
    assert await lab.acked("n1", "n2")


async def test_somebody_else_is_the_medium_for_a_while(tmp_path: Path) -> None:
    lab = Lab(tmp_path, 2)
    kernel = await lab.boot("n1")
    kernel.busy_registers = 2
    await lab.boot("n2")
    await lab.start_medium()
    try:
        await lab.ready()
        assert kernel.registers == 3
        assert await lab.acked("n1", "n2")
    finally:
        await lab.stop()


async def test_a_stuck_receiver_is_counted_and_spoils_the_run(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "ANSWER_DEADLINE", 0.2)
    lab.kernels["n2"].answers = False
    assert not await lab.acked("n1", "n2")
    status = await lab.call("status")
    assert status["losses"]["host_too_slow"] == 1
    assert status["valid"] is False
    assert any("no answer" in reason for reason in status["reasons"])
    await lab.call("reset_stats")
    status = await lab.call("status")
    assert not any("no answer" in reason for reason in status["reasons"])


async def test_relay_drops_spoil_the_run(lab: Lab) -> None:
    assert lab.medium is not None
    port = lab.medium.ports["n2"]
    port.relay_counters({"queue_full": 3, "overruns": 1, "to_host": 100})
    port.relay_counters({"queue_full": 3, "overruns": 2, "refused": 4, "to_host": 200})
    port.relay_counters({"queue_full": 1})  # restarted in between
    status = await lab.call("status")
    assert status["nodes"]["n2"]["relay_dropped"] == 10
    assert "the relay of n2 dropped 10 messages" in status["reasons"]
    assert status["valid"] is False


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\0" * 64,
        bytes(range(255, 100, -3)),
        encode(Kind.NETLINK, b"short"),
        encode(Kind.NETLINK, struct.pack("<IH14x", 40, FAMILY)),  # claims more than is there
        encode(Kind.NETLINK, struct.pack("<IH10xB15x", 32, FAMILY, Command.FRAME)),  # no frame
    ],
)
async def test_rubbish_from_a_node_costs_its_session_and_nothing_else(
    lab: Lab, rubbish: bytes
) -> None:
    kernel = lab.kernels["n2"]
    sessions = kernel.sessions
    kernel.write(rubbish)
    await kernel.wait(lambda: kernel.sessions > sessions)
    await lab.ready()
    assert await lab.acked("n1", "n2")
    assert await lab.acked("n3", "n2")
    assert (await lab.call("status"))["sync_losses"] == 1


async def test_nodes_come_and_go(lab: Lab) -> None:
    kernel = await lab.boot("n4")
    await lab.call(
        "add_node",
        node={"name": "n4", "radios": [{"mac": "02:74:68:00:00:04"}], "position": [240, 0]},
    )
    await kernel.wait_radios(1)
    await lab.call("link", a="n3", b="n4", snr=20)
    await lab.ready()
    assert await lab.acked("n3", "n4")
    await lab.stop_medium()
    await lab.start_medium()
    await lab.ready()
    assert await lab.acked("n3", "n4")
    await lab.call("remove_node", node="n4")
    await kernel.wait(lambda: kernel.transport is None)
    assert not await lab.acked("n3", "n4")
    assert "n4" not in (await lab.call("status"))["nodes"]


async def test_captures_are_started_and_stopped_while_running(lab: Lab) -> None:
    await lab.call("pcap", path="air.pcapng")
    await lab.call("pcap", path="n1.pcapng", nodes=["n1"])
    with pytest.raises(RpcError, match="already"):
        await lab.call("pcap", path="air.pcapng")
    assert await lab.acked("n1", "n2")
    assert await lab.acked("n2", "n3")
    ended = await lab.call("pcap_stop", path="n1.pcapng")
    assert [c["packets"] for c in ended["captures"]] == [2]
    assert await lab.acked("n1", "n2")
    ended = await lab.call("pcap_stop")
    assert [c["packets"] for c in ended["captures"]] == [6]
    assert (lab.directory / "air.pcapng").stat().st_size > 500


async def test_many_frames_are_all_reported(lab: Lab) -> None:
    cookies = [lab.send("n1", mac(2) if i % 2 else BROADCAST, i << 4) for i in range(150)]
    cookies_back = [lab.send("n3", mac(2), i << 4) for i in range(100)]
    for cookie in cookies:
        await lab.report("n1", cookie)
    for cookie in cookies_back:
        await lab.report("n3", cookie)
    assert lab.kernels["n1"].unanswered == 0
    order = [
        int.from_bytes(m.attributes[Attribute.FRAME][22:24], "little")
        for m in lab.kernels["n2"].received
        if m.attributes[Attribute.FRAME][10:16] == mac(1)
    ]
    assert order == sorted(order)


# The process.


async def _until_listening(path: Path) -> Client:
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(RpcError):
                return await Client.connect(path)
            await asyncio.sleep(0.05)


async def test_the_process_ends_with_sigterm(tmp_path: Path) -> None:
    write_json(tmp_path / CONFIG_NAME, Lab(tmp_path, 2).config.to_json())
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "meshlab.medium", "--lab", str(tmp_path)
    )
    client = await _until_listening(tmp_path / SOCKET_NAME)
    status = await client.call("status")
    assert set(status["nodes"]) == {"n1", "n2"}
    await client.close()
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(PATIENCE):
        assert await process.wait() == 0
    assert not (tmp_path / SOCKET_NAME).exists()


async def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    write_json(tmp_path / CONFIG_NAME, Lab(tmp_path, 1).config.to_json())
    program = (
        "import subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-m', 'meshlab.medium', '--lab', {str(tmp_path)!r}])\n"
        "sys.stdin.read()"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdin=asyncio.subprocess.PIPE
    )
    client = await _until_listening(tmp_path / SOCKET_NAME)
    await client.close()
    assert (tmp_path / SOCKET_NAME).exists()
    parent.kill()
    await parent.wait()
    async with asyncio.timeout(PATIENCE):
        while (tmp_path / SOCKET_NAME).exists():  # noqa: ASYNC110 - another process removes it
            await asyncio.sleep(0.02)


async def test_a_wrong_configuration_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert await serve(tmp_path, None) == 2
    (tmp_path / CONFIG_NAME).write_text('{"nodes": [{"name": ""}]}')
    assert await serve(tmp_path, None) == 2
    assert "is not a name" in caplog.text

# SPDX-License-Identifier: Apache-2.0
"""The supervisor, over a kernel and a wpa_supplicant that do what the test says.

The same against real radios is in tests/mesh.
"""

import asyncio
import contextlib
import errno
import time
from collections.abc import AsyncIterator, Callable
from ipaddress import IPv6Address, IPv6Interface
from typing import Any

import kernel_contract
import pytest
from fake_kernel import FakeEvents, FakeKernel, FakeLinks, FakeNl80211, radio, refused
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE
from radio_facts import PEER, station

from thicket.base.events import Listener
from thicket.base.pace import Backoff
from thicket.netlink import rtnl
from thicket.netlink.messages import NetlinkError
from thicket.radio import fault, kernel, mesh, nl80211, peers, presence, session
from thicket.radio.choose import obstacle
from thicket.radio.events import (
    Joined,
    Left,
    PeerDown,
    PeerUp,
    ProblemFound,
    ProblemSolved,
    RadioEvent,
)
from thicket.radio.inbox import Inbox, Signal, next_item
from thicket.radio.kernel import Kernel
from thicket.radio.mesh import Mesh
from thicket.radio.nl80211 import Channel, Station
from thicket.radio.paths import PATH_TIMEOUT
from thicket.radio.scan import Heard, ScanError
from thicket.radio.section import MeshSection
from thicket.radio.stations import REFRESH_SECONDS
from thicket.radio.supplicant import Supplicant, SupplicantError
from thicket.radio.wpa import Control, ControlError, Event

# Nothing here waits for the kernel or another process.
pytestmark = pytest.mark.virtual_time

LOOK_SECONDS = session.LOOK_SECONDS
"""The product's own, which is shorter in these tests."""

ADDRESS = IPv6Interface("fd12:3456:789a:1:0:6f44:e3c6:b802/64")
SETTINGS = MeshSection({"id": "lab", "security": "open"})


class World(FakeKernel):
    """What the kernel and wpa_supplicant would be like; the tests change it."""

    def __init__(self) -> None:
        super().__init__()
        self.start_error: SupplicantError | None = None
        self.starts = 0
        self.joins = True
        self.commands: list[str] = []
        self.times: list[float] = []
        self.command_error: ControlError | None = None
        self.refuses: tuple[str, ...] = ()
        self.mhz = 2412
        self.wpa_event: Callable[[Event], None] = lambda event: None
        self.wpa_exit: Callable[[], None] = lambda: None
        self.running = False
        self.fresh = False
        self.grouped = False
        #: The configuration and the interface of wpa_supplicant.
        self.runs_with = "", 0

    def set_up(self, index: int, up: bool) -> None:
        """Take an interface up or down; wpa_supplicant then enters the mesh once more."""
        super().set_up(index, up)
        self.grouped = False
        if up and self.running:
            asyncio.get_running_loop().call_later(0.01, self.enter, index)

    def enter(self, index: int) -> None:
        """Let wpa_supplicant enter the mesh."""
        if self.joins and index in self.up and index not in self.meshes:
            self.grouped = True
            self.join(index, self.mhz)
            self.event("MESH-GROUP-STARTED", 'ssid="lab" id=0')

    def event(self, name: str, rest: str = "") -> None:
        self.wpa_event(Event(3, name, rest))

    @property
    def text(self) -> str:
        """The configuration of wpa_supplicant."""
        return self.runs_with[0]

    @property
    def ifindex(self) -> int:
        """The index of the mesh interface."""
        return self.interfaces["mesh0"]["index"]

    @property
    def addresses(self) -> dict[str, int]:
        """The addresses of the mesh interface, with their flags."""
        return self.assigned[self.ifindex]


class FakeControl(Control):
    def __init__(self, world: World) -> None:
        self.world = world

    async def command(self, text: str, timeout: float = 20.0) -> str:
        self.world.commands.append(text)
        self.world.times.append(time.monotonic())
        if self.world.command_error is not None:
            error, self.world.command_error = self.world.command_error, None
            raise error
        if self.world.refuses and text.startswith(self.world.refuses):
            raise ControlError(f"wpa_supplicant answered 'FAIL' to {text}")
        if text == "STATUS":
            joined = self.world.grouped and not self.world.fresh
            self.world.fresh = False
            return "wpa_state=COMPLETED" if joined else "wpa_state=SCANNING"
        return "OK"

    async def attach(self, timeout: float = 20.0) -> None:
        await self.command("ATTACH")


class FakeSupplicant(Supplicant):
    def __init__(
        self,
        world: World,
        directory: str,
        on_event: Callable[[Event], None],
        on_exit: Callable[[], None],
    ) -> None:
        super().__init__(directory, on_event, on_exit)
        self.world = world
        self.ifindex: int | None = None
        world.wpa_event, world.wpa_exit = on_event, on_exit

    @property
    def control(self) -> Control:
        return FakeControl(self.world)

    @property
    def pid(self) -> int | None:
        return 77 if self.world.running else None

    async def adopt(self, interface: str, ifindex: int, configuration: str) -> bool:
        self.ifindex = ifindex
        return self.world.running and (configuration, ifindex) == self.world.runs_with

    async def start(self, interface: str, ifindex: int, configuration: str) -> None:
        self.world.starts += 1
        if self.world.start_error is not None:
            raise self.world.start_error
        self.world.running = self.world.fresh = True
        self.world.runs_with = configuration, ifindex
        self.ifindex = ifindex
        self.world.enter(ifindex)

    def reconfigured(self, configuration: str) -> None:
        self.world.runs_with = configuration, self.world.runs_with[1]

    async def stop(self) -> None:
        self.world.running = False
        if self.ifindex in self.world.meshes:
            self.world.leave(self.ifindex)

    def release(self) -> None: ...

    def last_words(self) -> str:
        return ""

    def exit_reason(self) -> str:
        return "was ended by SIGKILL"


class Told(Listener[RadioEvent]):
    """What a Mesh told."""

    def __init__(self) -> None:
        self.events: list[RadioEvent] = []

    def on(self, event: RadioEvent, /) -> None:
        self.events.append(event)


class Running:
    """A running Mesh, and what it told."""

    def __init__(self, subject: Mesh, told: Told) -> None:
        self.mesh = subject
        self.told = told.events

    def kinds(self) -> list[type[RadioEvent]]:
        return [type(event) for event in self.told]

    def found(self) -> list[ProblemFound]:
        return [event for event in self.told if isinstance(event, ProblemFound)]

    async def look(self, *, whole: bool = False) -> None:
        """Ask for a look when the last one is too old to do."""
        await asyncio.sleep(REFRESH_SECONDS + 0.001)  # sums of seconds are rounded
        await self.mesh.refresh(whole=whole)

    def codes(self) -> list[str]:
        return [problem["code"] for problem in self.mesh.problems()]

    async def until(self, condition: Callable[[], object], seconds: float = PATIENCE) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while not condition():
            assert loop.time() < deadline, (self.mesh.state, self.mesh.problems(), self.told)
            await asyncio.sleep(0.005)

    async def joined(self) -> None:
        await self.until(lambda: self.mesh.joined)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    one = World()
    monkeypatch.setattr(nl80211, "Nl80211", lambda: FakeNl80211(one))
    monkeypatch.setattr(rtnl, "Links", lambda: FakeLinks(one))
    monkeypatch.setattr(rtnl, "set_sysctl", lambda *arguments: None)
    monkeypatch.setattr(
        kernel, "Events", lambda protocol, groups, heard, lost: FakeEvents(one, protocol, heard)
    )
    monkeypatch.setattr(
        mesh,
        "Supplicant",
        lambda directory, event, exited, program: FakeSupplicant(one, directory, event, exited),
    )
    monkeypatch.setattr(mesh, "radio_names", lambda: [wiphy.name for wiphy in one.radios])
    monkeypatch.setattr(fault, "usb_without_driver", list)
    monkeypatch.setattr(session, "FIRST_PEER_SECONDS", 0.02)
    monkeypatch.setattr(session, "ADDRESS_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(session, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(session, "LOOK_OUTSIDE_SECONDS", 0.05)
    monkeypatch.setattr(presence, "LEFT_SECONDS", 0.3)
    monkeypatch.setattr(mesh, "PAUSES", (0.01, 0.02, 0.04, 0.05))
    return one


@contextlib.asynccontextmanager
async def running(world: World, settings: MeshSection = SETTINGS) -> AsyncIterator[Running]:
    told = Told()
    subject = Mesh(settings, ADDRESS, told)
    task = asyncio.create_task(subject.run())
    try:
        yield Running(subject, told)
        assert not task.done()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_the_fake_kernel_is_as_the_real_one(world: World) -> None:
    """A running node's kernel is asked the same in tests/mesh."""
    world.neighbours = [(PEER, "fd12:3456:789a:1::2")]
    world.stations = [station()]
    world.set_up(world.add_interface("mesh0", 0, 7), True)
    world.join(world.ifindex, world.mhz)
    inbox: Inbox = asyncio.Queue()
    asked = Kernel(inbox)
    try:
        questions = kernel_contract.Questions(asked, inbox, world, "mesh0")
        assert await questions.ask() == kernel_contract.ANSWERS
    finally:
        asked.close()


async def test_joining(world: World) -> None:
    world.add_interface("wlan0", 0, 2)
    world.up.add(world.interfaces["wlan0"]["index"])
    async with running(world) as one:
        await one.joined()
        made = world.interfaces["mesh0"]
        assert (made["type"], made["index"] in world.up) == (7, True)
        assert world.interfaces["wlan0"]["index"] not in world.up
        assert world.addresses == {str(ADDRESS.ip): 0}
        assert world.parameters[0]["ttl"] == 31
        assert one.mesh.ifindex == made["index"]
        shown = one.mesh.snapshot()["radio"]
        assert (shown["state"], shown["phy"], shown["interface"]) == ("joined", "phy0", "mesh0")
        assert (shown["mesh_id"], shown["frequency"], shown["security"]) == ("lab", 2412, "open")
        assert shown["supplicant"]["pid"] == 77
        assert one.kinds() == [Joined]
        assert one.mesh.problems() == []


async def test_peers_come_and_go_once(world: World) -> None:
    async with running(world) as one:
        await one.joined()
        for _ in range(3):
            world.event("MESH-PEER-CONNECTED", PEER)
        await one.until(lambda: PeerUp in one.kinds())
        world.stations = [station(), station("02:74:68:00:00:03", "LISTEN")]
        world.neighbours = [(PEER, "fe80::1"), (PEER, "fd12:3456:789a:1::2")]
        await one.look(whole=True)
        shown = one.mesh.snapshot()
        assert [(peer["mac"], peer["state"], peer["address"]) for peer in shown["peers"]] == [
            (PEER, "ESTAB", "fd12:3456:789a:1::2"),
            ("02:74:68:00:00:03", "LISTEN", None),
        ]
        assert shown["paths"][0]["active"] is True
        # Nothing was sent to its address in the mesh yet: its beacons tell which one it is.
        world.neighbours = [(PEER, "fe80::1")]
        await one.look(whole=True)
        assert one.mesh.snapshot()["peers"][0]["address"] is None
        one.mesh.announced = {"fe80::1": "fd12:3456:789a:1::2"}.get
        assert one.mesh.snapshot()["peers"][0]["address"] == "fd12:3456:789a:1::2"
        world.event("MESH-PEER-DISCONNECTED", PEER)
        await one.until(lambda: PeerDown in one.kinds())
        assert one.kinds().count(PeerUp) == one.kinds().count(PeerDown) == 1


async def test_lost_events_are_made_up_for_by_the_station_table(world: World) -> None:
    async with running(world) as one:
        await one.joined()
        world.stations = [station()]
        await one.look()
        assert one.told[-1] == PeerUp(PEER)


@pytest.mark.parametrize("another", [{"connected_s": 0}, {"plid": 9}], ids=["sae", "open"])
async def test_a_link_made_again_between_two_looks(world: World, another: dict[str, Any]) -> None:
    """Its peer was away: what was known of it is of before."""
    async with running(world) as one:
        await one.joined()
        for stations in ([station()], [station(connected_s=6)]):
            world.stations = stations
            await one.look()
            assert one.told[-1] == PeerUp(PEER)
        told = len(one.told)
        world.stations = [station(**{"connected_s": 6, **another})]
        world.next_hops[PEER] = OTHER
        await one.look()
        assert one.told[told:] == [PeerDown(PEER), PeerUp(PEER)]
        assert world.fixed_paths == [(PEER, PEER)]


async def test_a_look_for_silent_peers_asks_for_no_more_than_it_needs(world: World) -> None:
    """Several times a second; paths and neighbours cost as much again."""
    async with running(world) as one:
        await one.joined()
        world.stations = [station()]
        world.neighbours = [(PEER, "fd12:3456:789a:1::2")]
        await one.look()
        assert one.mesh.links() == [(IPv6Address("fd12:3456:789a:1::2"), 0.01)], "of a new peer"
        world.looks.clear()
        await one.look()
        assert world.looks == ["stations"]
        await one.look(whole=True)
        assert world.looks[1:] == ["stations", "neighbours", "paths"], "what is told is whole"


async def test_a_peer_is_asked_for_only_when_its_beacon_is_due(world: World) -> None:
    """Nothing else is asked while all is as it was, however often somebody looks."""
    sign, sign_of_other = f"sign of {PEER}", f"sign of {OTHER}"

    async def listen(seconds: float) -> list[str]:
        world.looks.clear()
        await one.mesh.listen(seconds)
        return world.looks.copy()

    def silences() -> list[float]:
        return [round(silent, 2) for _, silent in one.mesh.links()]

    async with running(world) as one:
        await one.joined()
        world.stations = [station(inactive_ms=500), station(OTHER, inactive_ms=900)]
        world.neighbours = [(PEER, "fd12:3456:789a:1::2"), (OTHER, "fd12:3456:789a:1::3")]
        await one.look(whole=True)
        assert await listen(0.0) == [], "all were asked for just now"
        await asyncio.sleep(REFRESH_SECONDS + 0.001)
        assert await listen(0.0) == [sign, "stations"], "what a sign tells of the table is new"
        assert silences() == [0.5, 0.9]
        await asyncio.sleep(0.2)
        assert silences() == [0.7, 1.1], "the silence goes on"
        assert await listen(1.2) == [], "none is silent for so long"
        assert await listen(1.0) == [sign_of_other]
        assert silences() == [0.7, 0.9]
        assert await listen(0.0) == [sign], "the other was asked for just now"
        await asyncio.sleep(0.2)
        world.stations[0]["inactive_ms"], world.stations[1]["inactive_ms"] = 100, 1100
        assert await listen(0.0) == [sign, sign_of_other]
        assert silences() == [0.1, 1.1]
        assert [peer["inactive_ms"] for peer in one.mesh.snapshot()["peers"]] == [100, 1100]


@pytest.mark.parametrize("change", ["new", "gone", "closed", "other link", "younger"])
async def test_a_sign_of_change_makes_for_a_look_at_all_stations(world: World, change: str) -> None:
    async with running(world) as one:
        await one.joined()
        world.stations = [station(), station(OTHER)]
        await one.look(whole=True)
        for _ in range(2):
            await asyncio.sleep(REFRESH_SECONDS + 0.001)
            await one.mesh.listen(0.0)
        await asyncio.sleep(REFRESH_SECONDS + 0.001)
        told = len(one.told)
        new = "02:74:68:00:00:04"
        if change == "new":
            world.stations = [station(), station(OTHER), station(new)]
            expected: list[object] = [PeerUp(new)]
        elif change == "gone":
            world.stations = [station(OTHER)]
            expected = [PeerDown(PEER)]
        elif change == "closed":
            world.stations = [station(state="HOLDING"), station(OTHER)]
            expected = [PeerDown(PEER)]
        else:
            again: dict[str, Any] = {"plid": 9} if change == "other link" else {"connected_s": 4}
            world.stations = [station(**again), station(OTHER)]
            expected = [PeerDown(PEER), PeerUp(PEER)]
        await one.mesh.listen(0.0)
        assert one.told[told:] == expected


async def test_listening_never_fails(world: World) -> None:
    async with running(world) as one:
        await one.mesh.listen(0.0)
        await one.joined()
        world.stations = [station()]
        await one.look(whole=True)
        world.refuse_signs = refused(errno.EPROTO)
        world.looks.clear()
        await asyncio.sleep(REFRESH_SECONDS + 0.001)
        await one.mesh.listen(0.0)
        assert world.looks == [f"sign of {PEER}", "stations", "neighbours"], "all are read instead"
        assert PeerDown not in one.kinds()


async def test_paths_over_a_peer_that_falls_silent_between_looks_are_given_up(
    world: World,
) -> None:
    async with running(world) as one:
        await one.joined()
        world.stations = [station(inactive_ms=5000)]
        await one.look(whole=True)
        await asyncio.sleep(REFRESH_SECONDS + 0.001)
        await one.mesh.listen(1.0)
        assert world.removed_paths == []
        await asyncio.sleep(REFRESH_SECONDS + 0.001)
        world.stations[0]["inactive_ms"] = 5200
        world.looks.clear()
        await one.mesh.listen(1.0)
        assert world.removed_paths == [PEER]
        assert world.looks == [f"sign of {PEER}", "paths", "paths"], "and no more is asked"


async def test_paths_over_a_silent_peer_are_given_up(world: World) -> None:
    async with running(world) as one:
        await one.joined()
        world.stations = [station(inactive_ms=5000)]
        await one.look()
        assert world.removed_paths == []  # four or five beacons may be lost on the air
        assert [peer["silent"] for peer in one.mesh.snapshot()["peers"]] == [False]
        world.stations = [station(inactive_ms=5200)]
        await one.look()
        assert world.removed_paths == [PEER]
        assert [peer["silent"] for peer in one.mesh.snapshot()["peers"]] == [True]


async def test_a_peer_that_came_back_is_reached_by_its_link(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by a path over others that is from before; and only until such paths have expired."""

    async def look(*stations: Station) -> None:
        world.stations = list(stations)
        await one.look()

    async with running(world) as one:
        await one.joined()
        world.next_hops[PEER] = OTHER
        await look(station(), station(OTHER))
        assert world.fixed_paths == []  # a new peer may well be reached better over another one
        await look(station(OTHER))
        await look(station(), station(OTHER))
        assert world.fixed_paths == [(PEER, PEER)]
        assert world.removed_paths == [PEER]
        assert one.mesh.snapshot()["paths"][0]["next_hop"] == PEER, "told as it is now"
        await look(station(), station(OTHER))
        assert world.fixed_paths == [(PEER, PEER)]
        world.next_hops[PEER] = OTHER  # the link was made anew unseen: the path ended with it
        await look(station(), station(OTHER))
        assert world.fixed_paths == [(PEER, PEER)] * 2
        await asyncio.sleep(PATH_TIMEOUT / 1000)
        await look(station(), station(OTHER))
        assert world.removed_paths == [PEER] * 3
        world.next_hops[PEER] = OTHER
        await look(station(), station(OTHER))
        assert world.fixed_paths == [(PEER, PEER)] * 2, "today's finding is left alone"


async def test_the_address_is_questioned_again_before_the_first_peer(world: World) -> None:
    async with running(world) as one:
        await one.joined()
        world.new_address_flags = rtnl.IFA_F_DADFAILED | rtnl.IFA_F_TENTATIVE
        world.event("MESH-PEER-CONNECTED", PEER)
        await one.until(lambda: one.mesh.state == "failed")
        (problem,) = one.mesh.problems()
        assert (problem["part"], problem["code"]) == ("radio", "address-duplicate")
        assert str(ADDRESS.ip) in problem["message"]
        assert one.kinds()[-2:] == [Left, ProblemFound]


async def test_no_radio_and_then_one(world: World) -> None:
    world.radios = []
    async with running(world) as one:
        await one.until(lambda: one.codes() == ["no-radio"])
        assert one.mesh.state == "absent"
        assert "MT7612U" in one.mesh.problems()[0]["message"]
        world.plug_in(radio(4))
        await one.joined()
        assert one.mesh.problems() == []
        assert one.kinds() == [ProblemFound, ProblemSolved, Joined]


async def test_no_nl80211_at_all(world: World) -> None:
    world.no_nl80211 = True
    async with running(world) as one:
        await one.until(lambda: one.codes() == ["no-radio"])
        assert "no 802.11 support" in one.mesh.problems()[0]["message"]


async def test_a_radio_that_cannot_mesh(world: World) -> None:
    world.radios = [radio(driver="brcmfmac", mesh_point=False)]
    async with running(world) as one:
        await one.until(lambda: one.mesh.state == "unsuitable")
        message = one.mesh.problems()[0]["message"]
        assert message.startswith("phy0 (brcmfmac) cannot do 802.11s mesh point")
        assert "it can do: station, access point" in message


async def test_the_radio_that_can_mesh_is_chosen(world: World) -> None:
    world.radios = [radio(0, "brcmfmac", mesh_point=False), radio(1)]
    async with running(world) as one:
        await one.joined()
        assert one.mesh.snapshot()["radio"]["phy"] == "phy1"


@pytest.mark.parametrize("word", ["rt2800usb", "02:74:68:00:01:01", "1-2"])
async def test_the_radio_that_a_person_wants_is_chosen(world: World, word: str) -> None:
    world.radios = [radio(0), radio(1, "rt2800usb")]
    async with running(world, SETTINGS.replace(radio=word.upper())) as one:
        await one.joined()
        shown = one.mesh.snapshot()["radio"]
        assert (shown["phy"], shown["port"]) == ("phy1", "1-2")
        one.mesh.apply(SETTINGS.replace(radio="mt76x2u"))
        await one.until(lambda: one.mesh.snapshot()["radio"]["phy"] == "phy0")
        await one.joined()


async def test_a_wanted_radio_that_is_not_there_is_waited_for(world: World) -> None:
    async with running(world, SETTINGS.replace(radio="1-9")) as one:
        await one.until(lambda: one.codes() == ["unsuitable-radio"])
        (problem,) = one.mesh.problems()
        assert 'no radio here is "1-9"' in problem["message"]
        assert "phy0 (mt76x2u), 02:74:68:00:01:00, at 1-1" in problem["message"]
        wanted = radio(1)
        wanted.port = "1-9"
        world.plug_in(wanted)
        await one.joined()


async def test_an_adapter_is_pulled_out_and_plugged_in(world: World) -> None:
    async with running(world) as one:
        await one.joined()
        world.pull_out()
        await one.until(lambda: one.mesh.state == "absent")
        assert one.mesh.ifindex is None
        assert not world.running
        world.plug_in(radio(1))
        await one.joined()
        assert one.mesh.problems() == []


async def test_a_removal_noticed_by_a_refused_request(world: World) -> None:
    async with running(world) as one:
        await one.joined()
        world.refuse_addresses = NetlinkError(errno.ENODEV, "No such device")
        world.address_changed(world.ifindex, rtnl.RTM_DELADDR)
        await one.until(lambda: ProblemFound in one.kinds())
        assert one.found()[-1].code == "radio-removed"
        await one.joined()


async def test_a_radio_without_a_second_interface(world: World) -> None:
    world.add_interface("wlan0", 0, 2)
    world.refuse_second_interface = True
    async with running(world) as one:
        await one.joined()
        assert list(world.interfaces) == ["mesh0"]
        assert world.interfaces["mesh0"]["type"] == 7


async def test_rfkill(world: World) -> None:
    world.refuse_up = NetlinkError(errno.ERFKILL, "Operation not possible due to RF-kill")
    async with running(world) as one:
        await one.until(lambda: ProblemFound in one.kinds())
        assert one.found()[0].code == "rfkill"
        await one.joined()


async def test_a_killed_supplicant_is_started_again(world: World) -> None:
    async with running(world) as one:
        await one.joined()
        world.running = False
        world.wpa_exit()
        await one.until(lambda: Left in one.kinds())
        await one.joined()
        assert world.starts == 2
        (problem,) = one.found()
        assert problem.part == "supplicant"
        assert "was ended by SIGKILL" in problem.message
        assert one.mesh.problems() == []


async def test_a_supplicant_that_cannot_be_started(world: World) -> None:
    world.start_error = SupplicantError("missing", "wpa_supplicant is not installed")
    async with running(world) as one:
        await one.until(
            lambda: any("failures in a row" in item["message"] for item in one.mesh.problems())
        )
        assert one.codes() == ["supplicant-missing"]
        assert one.kinds() == [ProblemFound], "told once, not at every attempt"
        world.start_error = None
        await one.joined()


async def test_a_hanging_supplicant_is_replaced(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "WATCHDOG_SECONDS", 0.05)
    async with running(world) as one:
        await one.joined()
        world.command_error = ControlError("wpa_supplicant did not answer ATTACH within 5 s")
        await one.until(lambda: world.starts == 2)
        assert one.found()[0].code == "supplicant-hangs"
        await one.joined()


async def test_a_mesh_that_is_never_joined(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "JOIN_SECONDS", 0.02)
    world.joins = False
    world.radios[0].channels[2412].disabled = True
    async with running(world) as one:
        await one.until(lambda: one.codes() == ["join-timeout"])
        assert "2412 MHz is disabled in regulatory domain '00'" in one.mesh.problems()[0]["message"]


async def test_a_refused_join_does_not_wait_for_the_deadline(world: World) -> None:
    world.joins = False
    async with running(world) as one:
        await one.until(lambda: world.running)
        world.event("mesh", "join error=-22")
        await one.until(lambda: one.codes() == ["join-refused"])
        world.joins = True
        await one.joined()


async def test_a_wrong_passphrase(world: World) -> None:
    settings = SETTINGS.replace(security="sae", passphrase="wrong one")
    async with running(world, settings) as one:
        await one.joined()
        for _ in range(4):
            world.event("MESH-SAE-AUTH-FAILURE", f"addr={PEER}")
        world.event("MESH-SAE-AUTH-BLOCKED", f"addr={PEER} duration=30")
        await one.until(lambda: "REASSOCIATE" in world.commands)
        problem, alone = one.mesh.problems()
        assert problem["code"] == "sae-failure"
        assert PEER in problem["message"]
        assert "mesh.passphrase" in problem["message"]
        assert alone["code"] == "passphrase-refused"
        assert "put the present one into thicket.toml" in alone["message"]
        assert one.kinds().count(ProblemFound) == 2
        world.event("MESH-SAE-AUTH-BLOCKED", f"addr={PEER} duration=30")
        world.stations = [station()]
        world.event("MESH-PEER-CONNECTED", PEER)
        await one.until(lambda: not one.mesh.problems())
        assert world.commands.count("REASSOCIATE") == 1, "rejoining is limited"


async def test_a_blocked_peer_is_no_reason_to_leave_the_others(world: World) -> None:
    async with running(world) as one:
        await one.joined()
        world.event("MESH-PEER-CONNECTED", PEER)
        world.event("MESH-SAE-AUTH-BLOCKED", "addr=02:74:68:00:00:09 duration=30")
        await one.until(lambda: one.codes() == ["sae-failure"])
        assert "REASSOCIATE" not in world.commands


SECURED = SETTINGS.replace(security="sae", passphrase="the old one")
OTHER = "02:74:68:00:00:09"


async def test_one_failure_of_authentication_is_nothing_to_tell(world: World) -> None:
    async with running(world, SECURED) as one:
        await one.joined()
        world.event("MESH-SAE-AUTH-FAILURE", f"addr={PEER}")
        await one.until(lambda: one.mesh.refused() == {PEER: 1})
        assert one.codes() == []
        world.event("MESH-SAE-AUTH-FAILURE", f"addr={PEER}")
        await one.until(lambda: one.codes() == ["sae-failure", "passphrase-refused"])


async def test_another_passphrase_leaves_the_links_alone(world: World) -> None:
    world.stations = [station()]
    async with running(world, SECURED) as one:
        await one.joined()
        await one.until(lambda: one.mesh.peers() == {PEER})
        one.mesh.apply(SECURED.replace(passphrase='the "new" one'))
        await one.until(lambda: "PMKSA_FLUSH" in world.commands)
        secret = b'the "new" one'.hex()
        assert f"SET_NETWORK 0 sae_password {secret}" in world.commands
        assert one.mesh.outdated
        assert secret not in world.text, "a next daemon must not take this process over"
        assert one.kinds().count(Left) == 0
        assert "REASSOCIATE" not in world.commands
        one.mesh.renew()
        await one.until(lambda: "REASSOCIATE" in world.commands)
        await one.until(lambda: f"sae_password={secret}" in world.text)
        assert not one.mesh.outdated
        assert world.starts == 1
        assert one.kinds().count(Left) == 0


async def test_the_other_end_gets_the_passphrase_when_nothing_is_lost_by_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "CARE_SECONDS", 0.05)
    world.stations = [station()]
    async with running(world, SECURED) as one:
        await one.joined()
        await one.until(lambda: one.mesh.peers() == {PEER})
        one.mesh.apply(SECURED.replace(passphrase="the new one"))
        await one.until(lambda: "PMKSA_FLUSH" in world.commands)
        world.stations = []
        await one.look(whole=True)
        await one.until(lambda: "REASSOCIATE" in world.commands)
        assert world.starts == 1


async def test_another_passphrase_without_peers_or_with_more_begins_anew(world: World) -> None:
    async with running(world, SECURED) as one:
        await one.joined()
        one.mesh.apply(SECURED.replace(passphrase="the new one"))
        await one.until(lambda: "the new one" in world.text)
        await one.joined()
        assert world.starts == 2
        world.stations = [station()]
        await one.look(whole=True)
        one.mesh.apply(SECURED.replace(passphrase="one more", id="other"))
        await one.until(lambda: world.starts == 3)
        await one.joined()


async def test_a_supplicant_that_does_not_take_the_passphrase_is_replaced(world: World) -> None:
    world.stations = [station()]
    async with running(world, SECURED) as one:
        await one.joined()
        await one.until(lambda: one.mesh.peers() == {PEER})
        world.command_error = ControlError("wpa_supplicant answered 'FAIL' to SET_NETWORK")
        one.mesh.apply(SECURED.replace(passphrase="the new one"))
        await one.until(lambda: world.starts == 2)
        await one.joined()
        assert "the new one" in world.text


@pytest.mark.parametrize(("authorized", "mfp"), [(False, True), (True, False), (None, None)])
async def test_a_link_that_protects_nothing_is_no_peer(
    world: World, monkeypatch: pytest.MonkeyPatch, authorized: bool | None, mfp: bool | None
) -> None:
    world.stations = [station(authorized=authorized, mfp=mfp)]
    async with running(world, SECURED) as one:
        await one.joined()
        world.event("MESH-PEER-CONNECTED", PEER)
        await one.until(lambda: one.codes() == ["peer-unprotected"])
        assert one.mesh.peers() == set()
        assert one.mesh.snapshot()["peers"][0]["state"] == "UNPROTECTED"
        world.stations = [station()]
        await one.look(whole=True)
        assert (one.mesh.peers(), one.codes()) == ({PEER}, [])


async def test_in_an_open_mesh_nobody_is_authenticated(world: World) -> None:
    world.stations = [station(mfp=False)]
    async with running(world) as one:
        await one.joined()
        await one.until(lambda: one.mesh.peers() == {PEER})
        assert one.mesh.snapshot()["radio"]["protection"].startswith("open")


async def test_a_neighbour_that_stays_blocked_is_helped_without_touching_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "CARE_SECONDS", 0.02)
    monkeypatch.setattr(peers, "STUCK_PAUSES", (0.1, 0.2, 0.4, 240.0))
    world.stations = [station(), station(OTHER, "BLOCKED")]
    async with running(world, SECURED) as one:
        await one.joined()
        await one.until(lambda: one.mesh.peers() == {PEER})
        await one.look(whole=True)
        await one.until(lambda: world.commands.count(f"MESH_PEER_ADD {OTHER}") == 3)
        helped = [text for text in world.commands if "PEER" in text or "SET_NET" in text]
        assert helped[:3] == [
            "SET_NETWORK 0 no_auto_peer 1",
            f"MESH_PEER_ADD {OTHER}",
            "SET_NETWORK 0 no_auto_peer 0",
        ]
        attempts = zip(world.commands, world.times, strict=True)
        first, second, third = [at for text, at in attempts if text.startswith("MESH_PEER")][:3]
        assert third - second > 1.5 * (second - first), "ever more seldom"
        assert "REASSOCIATE" not in world.commands
        assert world.starts == 1
        world.stations = [station(), station(OTHER)]
        await one.look(whole=True)
        helped = list(world.commands)
        await asyncio.sleep(2 * peers.STUCK_PAUSES[-1])
        assert world.commands.count(f"MESH_PEER_ADD {OTHER}") == helped.count(
            f"MESH_PEER_ADD {OTHER}"
        ), "it needs no help any more"


async def test_a_neighbour_that_is_helped_in_vain_costs_nothing_else(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "CARE_SECONDS", 0.02)
    monkeypatch.setattr(peers, "STUCK_PAUSES", (0.05, 0.1, 0.2, 240.0))
    world.refuses = ("MESH_PEER_ADD",)
    world.stations = [station(), station(OTHER, "LISTEN")]
    async with running(world, SECURED) as one:
        await one.joined()
        await one.until(lambda: world.commands.count(f"MESH_PEER_ADD {OTHER}") == 2)
        assert world.commands.count("SET_NETWORK 0 no_auto_peer 0") >= 1
        assert one.kinds().count(Left) == 0


async def test_alone_with_a_stuck_neighbour_the_mesh_is_entered_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "CARE_SECONDS", 0.02)
    monkeypatch.setattr(peers, "STUCK_PAUSES", (0.05, 0.1, 0.2, 240.0))
    world.stations = [station(OTHER, "LISTEN")]
    async with running(world, SECURED) as one:
        await one.joined()
        await one.look(whole=True)
        await one.until(lambda: "REASSOCIATE" in world.commands)
        await asyncio.sleep(peers.REJOIN_PAUSES[0] / 2)
        assert world.commands.count("REASSOCIATE") == 1, "rejoining is limited"


async def test_settings_change_while_running(world: World) -> None:
    async with running(world) as one:
        await one.joined()
        with pytest.raises(ValueError, match="has no passphrase"):
            one.mesh.apply(SETTINGS.replace(security="sae"))
        one.mesh.apply(SETTINGS)
        assert one.mesh.joined
        one.mesh.apply(SETTINGS.replace(id="other"))
        await one.until(lambda: Left in one.kinds())
        await one.joined()
        assert world.starts == 2
        assert 'ssid="other"' in world.text
        assert one.mesh.snapshot()["radio"]["mesh_id"] == "other"
        one.mesh.apply(one.mesh.settings, IPv6Interface("fd00::1/64"))
        await one.until(lambda: one.mesh.joined and "fd00::1" in world.addresses)
        assert list(world.addresses) == ["fd00::1"]


async def test_parameters_alone_need_no_new_process(world: World) -> None:
    async with running(world) as one:
        await one.joined()
        one.mesh.apply(SETTINGS.replace(gate=True, root_mode=4))
        await one.until(lambda: len(world.parameters) == 2)
        await one.joined()
        assert world.starts == 1
        assert world.parameters[1]["gate_announcements"] == 1
        assert world.parameters[1]["hwmp_rootmode"] == 4


async def test_joining_once_more_sets_the_parameters_once_more(world: World) -> None:
    async with running(world) as one:
        await one.joined()
        world.event("MESH-GROUP-STARTED", 'ssid="lab" id=0')
        await one.until(lambda: len(world.parameters) == 2)
        world.event("MESH-GROUP-REMOVED", "mesh0")
        await one.until(lambda: Left in one.kinds())
        await one.joined()


async def test_an_interface_taken_down_by_hand(world: World) -> None:
    async with running(world) as one:
        await one.joined()
        assert one.mesh.ifindex is not None
        world.set_up(one.mesh.ifindex, False)
        await one.until(lambda: Left in one.kinds())
        await one.until(lambda: one.mesh.ifindex in world.up)
        await one.joined()


async def test_an_address_removed_by_hand_comes_back(world: World) -> None:
    async with running(world) as one:
        await one.joined()
        world.remove_address(world.ifindex, str(ADDRESS.ip))
        await one.until(lambda: str(ADDRESS.ip) in world.addresses)
        assert one.mesh.joined


async def test_leaving(world: World) -> None:
    async with running(world) as one:
        await one.joined()
    await one.mesh.leave()
    assert not world.running
    assert "mesh0" not in world.interfaces
    assert not one.mesh.joined


async def test_a_failing_listener_is_survived(world: World) -> None:
    class Failing(Told):
        def on(self, event: RadioEvent, /) -> None:
            raise RuntimeError(event)

    subject = Mesh(SETTINGS, ADDRESS, Failing())
    task = asyncio.create_task(subject.run())
    try:
        await Running(subject, Told()).joined()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_settings_that_no_radio_can_have(world: World) -> None:
    with pytest.raises(ValueError, match="channel 999"):
        Mesh(SETTINGS.replace(channel=999), ADDRESS)


@pytest.mark.parametrize(
    ("change", "settings", "words"),
    [
        ({}, SETTINGS, None),
        ({"driver": "xradio_wlan"}, SETTINGS, "its driver cannot do it"),
        ({"iftypes": set()}, SETTINGS, "nothing known"),
        ({"mesh_auth": False}, SETTINGS, None),
        ({"mesh_auth": False}, SETTINGS.replace(security="sae", passphrase="x"), "authenticated"),
        ({}, SETTINGS.replace(channel=36), "no channel at 5180 MHz (it has 2.4 GHz)"),
        ({"channels": {}}, SETTINGS.replace(channel=36), None),
        ({"channels": {}}, SETTINGS.replace(channel=36, width=80), None),
        (
            {"channels": {}, "widths": {1: 40}},
            SETTINGS.replace(channel=36, width=80),
            "can use channels of 40 MHz at most there, and not of 80",
        ),
    ],
)
def test_obstacles(change: dict[str, Any], settings: MeshSection, words: str | None) -> None:
    wiphy = radio()
    for name, value in change.items():
        setattr(wiphy, name, value)
    reason = obstacle(wiphy, settings)
    assert reason is None if words is None else words in (reason or "")


@given(st.lists(st.floats(0, 200), min_size=1, max_size=40))
def test_backoff_never_gives_up_and_never_rushes(lasted: list[float]) -> None:
    backoff = Backoff(*mesh.PAUSES, settled=mesh.SETTLED_SECONDS)
    for seconds in lasted:
        wait = backoff.failed(seconds)
        assert 0.5 <= wait <= 60
        assert wait == 60 if backoff.exhausted else wait <= 0.5 * 2 ** (backoff.failures - 1)


def test_backoff_in_a_row() -> None:
    backoff = Backoff(*mesh.PAUSES, settled=mesh.SETTLED_SECONDS)
    assert [backoff.failed() for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 60, 60]
    assert backoff.failed(lasted=61) == 0.5


@pytest.mark.parametrize(
    ("frequency", "words"),
    [(None, "mesh0 has left the mesh"), (2437, "mesh0 is on 2437 MHz instead of 2412 MHz")],
)
async def test_a_mesh_left_behind_the_daemons_back_is_joined_again(
    world: World, frequency: int | None, words: str
) -> None:
    async with running(world) as one:
        await one.joined()
        world.meshes.clear()  # and the kernel's word of it was lost
        if frequency is not None:
            world.meshes[world.ifindex] = frequency
        since = time.monotonic()
        await one.until(lambda: Left in one.kinds())
        assert time.monotonic() - since >= presence.LEFT_SECONDS
        (problem,) = [p for p in one.mesh.problems() if p["code"] == "mesh-left"]
        assert problem["part"] == "radio"
        assert words in problem["message"]
        await one.joined()
        assert world.starts == 2
        await one.until(lambda: not one.mesh.problems())


async def test_the_kernel_says_why_it_left_the_mesh(world: World) -> None:
    async with running(world) as one:
        await one.joined()
        world.radios[0].channels[2412] = Channel(disabled=True, listen_only=False)
        world.leave(world.ifindex)
        await one.until(
            lambda: any("2412 MHz" in p["message"] and "mesh.country" in p["message"]
                        for p in one.mesh.problems())
        )  # fmt: skip


async def test_a_moment_outside_the_mesh_is_nothing(world: World) -> None:
    async with running(world) as one:
        await one.joined()
        world.leave(world.ifindex)
        looks = world.looks_outside
        await one.until(lambda: world.looks_outside > looks)
        world.join(world.ifindex, world.mhz)
        await asyncio.sleep(2 * presence.LEFT_SECONDS)
        assert Left not in one.kinds()
        assert world.starts == 1


async def test_our_own_leaving_and_entering_may_take_longer(world: World) -> None:
    async with running(world) as one:
        await one.joined()
        one.mesh.renew()
        await one.until(lambda: "REASSOCIATE" in world.commands)
        world.leave(world.ifindex)
        looks = world.looks_outside
        await one.until(lambda: world.looks_outside > looks)
        outside = time.monotonic()
        await one.until(lambda: time.monotonic() - outside > 2 * presence.LEFT_SECONDS)
        assert one.mesh.joined
        world.join(world.ifindex, world.mhz)
        await asyncio.sleep(2 * presence.LEFT_SECONDS)
        assert one.mesh.joined
        assert world.starts == 1


async def test_an_address_that_two_radios_have_is_not_blamed_on_the_passphrase(
    world: World,
) -> None:
    async with running(world, SECURED) as one:
        await one.joined()
        for _ in range(3):
            world.event("MESH-SAE-AUTH-FAILURE", f"addr={PEER}")
        await one.until(lambda: one.codes() == ["sae-failure", "passphrase-refused"])
        one.mesh.set_doubled({PEER})
        assert one.codes() == []
        for _ in range(3):
            world.event("MESH-SAE-AUTH-FAILURE", f"addr={PEER}")
            world.event("MESH-SAE-AUTH-FAILURE", f"addr={OTHER}")
        await one.until(lambda: one.mesh.refused() == {OTHER: 3})
        assert one.codes() == ["sae-failure", "passphrase-refused"]
        assert all(PEER not in problem["message"] for problem in one.mesh.problems())
        one.mesh.set_doubled(set())
        world.event("MESH-SAE-AUTH-FAILURE", f"addr={PEER}")
        await one.until(lambda: PEER in one.mesh.refused())


GERMAN = SETTINGS.replace(country="DE")


async def test_a_country_that_somebody_else_set_is_put_right(world: World) -> None:
    world.country = "DE"
    async with running(world, GERMAN) as one:
        await one.joined()
        world.country = "US"
        await one.until(lambda: world.country == "DE")
        assert world.asked == ["DE"]
        assert one.codes() == []
        world.takes_country = False
        one.mesh.apply(SETTINGS)
        await one.until(lambda: world.asked.count("00") == presence.COUNTRY_TIMES)


@pytest.mark.parametrize("present", ["DE", "98", "99", None])
async def test_rules_that_are_right_or_the_drivers_own_are_left_alone(
    world: World, present: str | None
) -> None:
    world.country = present
    async with running(world, GERMAN) as one:
        await one.joined()
        since = time.monotonic()
        await one.until(lambda: time.monotonic() - since > 4 * session.LOOK_SECONDS)
        assert world.asked == []
        assert one.codes() == []


async def test_a_country_that_the_kernel_does_not_take_is_told_of(world: World) -> None:
    world.takes_country = False
    async with running(world, GERMAN) as one:
        await one.joined()
        await one.until(lambda: one.codes() == ["country"])
        assert len(world.asked) == presence.COUNTRY_TIMES
        (problem,) = one.mesh.problems()
        assert "follows the rules of '00' and not of mesh.country, 'DE'" in problem["message"]
        assert one.mesh.joined
        world.country = "DE"
        await one.until(lambda: one.codes() == [])


ON_100 = SETTINGS.replace(channel=100, country="DE")


@pytest.fixture
def radars(world: World) -> Channel:
    """A world whose mesh is on channel 100, which radars use; the channel."""
    channel = Channel(disabled=False, listen_only=False, radar=True)
    world.radios[0].channels[5500] = channel
    world.mhz = 5500
    return channel


async def test_a_node_listens_for_radars_before_it_joins(world: World, radars: Channel) -> None:
    world.joins = False
    async with running(world, ON_100) as one:
        await one.until(lambda: world.starts == 1)
        world.event("DFS-CAC-START", "freq=5500 chan=100 sec_chan=0, width=0, cac_time=600s")
        await one.until(lambda: one.codes() == ["radar-check"])
        assert "listens for them for 600 s" in one.mesh.problems()[0]["message"]
        await asyncio.sleep(600.0)
        assert one.mesh.state == "starting"
        world.event("DFS-CAC-COMPLETED", "success=1 freq=5500")
        world.joins = True
        world.enter(world.ifindex)
        await one.joined()
        assert (world.starts, one.codes()) == (1, [])


async def test_a_check_that_began_before_the_daemon_is_waited_for(
    world: World, radars: Channel
) -> None:
    world.joins = False
    async with running(world, ON_100) as one:
        await asyncio.sleep(session.JOIN_SECONDS + 50.0)
        assert (world.starts, one.mesh.state) == (1, "starting")
        await one.until(lambda: one.codes() == ["join-timeout"])
        assert "listens for radars first (DFS)" in one.mesh.problems()[0]["message"]


@pytest.mark.parametrize("when", ["while it listens", "in the mesh"])
async def test_a_radar_ends_the_mesh_for_half_an_hour(
    world: World, radars: Channel, when: str
) -> None:
    world.joins = when == "in the mesh"
    async with running(world, ON_100) as one:
        await one.until(lambda: world.starts == 1)
        if world.joins:
            await one.joined()
        heard = time.monotonic()
        world.event("DFS-RADAR-DETECTED", "freq=5500 ht_enabled=1 chan_offset=0 chan_width=1")
        await one.until(lambda: one.codes() == ["radar"])
        assert not world.running, "it must not send"
        assert "after 30 min" in one.mesh.problems()[0]["message"]
        world.joins = True
        await one.until(lambda: one.mesh.joined, 2000.0)
        assert 1800.0 <= time.monotonic() - heard < 1810.0


async def test_a_radar_that_was_heard_before_the_start_is_waited_out(
    world: World, radars: Channel
) -> None:
    radars.radar_heard = 1500.0
    async with running(world, ON_100) as one:
        await one.until(lambda: one.codes() == ["radar"])
        assert world.starts == 0
        radars.radar_heard = None
        begun = time.monotonic()
        await one.until(lambda: one.mesh.joined, 2000.0)
        assert 295.0 < time.monotonic() - begun < 310.0


async def test_another_channel_is_used_at_once(world: World, radars: Channel) -> None:
    radars.radar_heard = 0.0
    async with running(world, ON_100) as one:
        await one.until(lambda: one.codes() == ["radar"])
        world.mhz = 2412
        one.mesh.apply(SETTINGS)
        await one.joined()


async def test_a_channel_that_is_narrower_than_asked_for_is_told_of(world: World) -> None:
    world.mhz = 5180
    world.radios[0].channels[5180] = Channel(disabled=False, listen_only=False)
    async with running(world, SETTINGS.replace(channel=36, country="DE", width=80)) as one:
        await one.joined()
        assert one.codes() == ["width"]
        assert "is 20 MHz wide and not 80 (mesh.width)" in one.mesh.problems()[0]["message"]
        world.width = 80
        one.mesh.apply(SETTINGS.replace(channel=36, country="DE", width=40))
        await one.until(lambda: one.mesh.joined and one.codes() == [])


def sender(mac: str = "02:00:00:00:00:77", **facts: Any) -> Heard:
    made: Heard = {
        "mac": mac, "frequency": 2412, "kind": "mesh", "name": "lab", "security": "sae",
        "signal_dbm": -70, "peers": 1, "seen_ms": 0,
    }  # fmt: skip
    made.update(facts)  # type: ignore[typeddict-item]
    return made


async def test_a_scan_listens_on_a_few_channels_at_a_time(world: World) -> None:
    world.stations = [station()]
    usable = {5 * n + 2407: Channel(disabled=False, listen_only=n > 11) for n in range(1, 14)}
    disabled = Channel(disabled=True, listen_only=False)
    six_gigahertz = Channel(disabled=False, listen_only=False)
    world.radios[0].channels = {**usable, 2484: disabled, 5955: six_gigahertz}
    world.heard = [sender(), sender(PEER, signal_dbm=-40), sender("02::", seen_ms=60_000)]
    async with running(world) as one:
        await one.joined()
        found = await one.mesh.scan()
        assert [mhz for part in world.scans for mhz in part] == list(usable)
        assert max(map(len, world.scans)) == 3
        shown = [(who["mac"], who["peer"]) for who in found]
        assert shown == [(PEER, True), ("02:00:00:00:00:77", False)], "the strongest first"
        assert one.mesh.joined


async def test_a_scan_that_never_ends_or_is_refused_is_an_error(world: World) -> None:
    async with running(world) as one:
        with pytest.raises(ScanError, match="not in the mesh"):
            await one.mesh.scan()
        await one.joined()
        world.scans_end = False
        with pytest.raises(ScanError, match="did not end a scan in 10 s"):
            await one.mesh.scan()
        world.refuse_scans = refused(errno.EOPNOTSUPP)
        with pytest.raises(ScanError, match="cannot scan while it is in a mesh"):
            await one.mesh.scan()
        assert one.mesh.joined


async def test_neighbours_with_another_security_are_told_of_until_they_are_right(
    world: World,
) -> None:
    world.heard = [sender(), sender("02:00:00:00:00:78", name="foreign")]
    async with running(world) as one:
        await one.until(lambda: one.codes() == ["other-security"])
        assert world.scans == [[2412]], "on our own channel alone"
        (problem,) = one.mesh.problems()
        assert '02:00:00:00:00:77: mesh "lab" there is "sae", and here "open"' in problem["message"]
        others = one.mesh.snapshot()["radio"]["others"]
        assert [(who["name"], who["security"]) for who in others] == [
            ("lab", "sae"), ("foreign", "sae")
        ]  # fmt: skip
        world.heard = []
        await one.until(lambda: one.codes() == [], session.SURVEY_ALONE_SECONDS + 5.0)


async def test_a_settled_session_wakes_up_once_in_four_seconds(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "LOOK_SECONDS", LOOK_SECONDS)
    world.stations = [station()]
    waits = 0

    async def counted(inbox: Inbox, seconds: float) -> Event | Signal | None:
        nonlocal waits
        waits += 1
        return await next_item(inbox, seconds)

    async with running(world) as one:
        await one.joined()
        await asyncio.sleep(30.0)
        monkeypatch.setattr(session, "next_item", counted)
        await asyncio.sleep(64.0)
        assert 15 <= waits <= 17, "the questions that are due come together"


async def test_with_peers_the_look_for_other_meshes_is_rare_and_may_fail(world: World) -> None:
    world.stations = [station()]
    world.refuse_scans = refused(errno.EBUSY)
    async with running(world) as one:
        await one.joined()
        await asyncio.sleep(100.0)
        world.refuse_scans = None
        await asyncio.sleep(session.SURVEY_SECONDS)
        assert len(world.scans) == 1
        assert one.mesh.joined and one.codes() == []

# SPDX-License-Identifier: Apache-2.0
"""The configuration file and the control socket.

Independent sources: the configurations that VintageNetWiFi's own tests expect for an open and an
SAE mesh (test/vintage_net_wifi_test.exs), and the real wpa_supplicant where it is installed.
"""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE

from thicket.radio import hang
from thicket.radio.channels import channel_frequency
from thicket.radio.hang import Doing
from thicket.radio.section import MeshSection
from thicket.radio.wpa import (
    Control,
    ControlError,
    Event,
    configuration,
    is_mac,
    parse_event,
    parse_status,
    quote,
)

OPEN = MeshSection({"id": "mesh", "security": "open"})
SAE = OPEN.replace(security="sae", passphrase="password")


def read_back(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """The global fields and those of the one network block, as wpa_supplicant splits lines."""
    lines = [line.strip() for line in text.split("\n")]
    start, end = lines.index("network={"), lines.index("}")
    pairs = [
        {name: value for name, _, value in (line.partition("=") for line in part if line)}
        for part in (lines[:start], lines[start + 1 : end])
    ]
    assert not any(lines[end + 1 :])
    return pairs[0], pairs[1]


def unquote(value: str) -> bytes:
    """A string value, by the rules in the comments of wpa_supplicant.conf."""
    if value.startswith('"'):
        assert value.endswith('"') and len(value) >= 2
        return value[1:-1].encode()
    return bytes.fromhex(value)


def test_open_mesh_holds_what_vintage_net_expects() -> None:
    head, network = read_back(configuration(OPEN, "/tmp/vintage_net/wpa_supplicant"))
    expected = (
        "ctrl_interface=/tmp/vintage_net/wpa_supplicant\ncountry=00\nwps_cred_processing=1\n"
        'network={\nssid="mesh"\nkey_mgmt=NONE\nmode=5\nfrequency=2412\n}\n'
    )
    want_head, want_network = read_back(expected)
    del want_head["wps_cred_processing"]  # WPS has no place in a mesh
    assert want_head.items() <= head.items()
    assert want_network.items() <= network.items()
    assert head["user_mpm"] == "1"
    assert "sae_groups" not in head
    assert "ieee80211w" not in network


def test_sae_mesh_holds_what_vintage_net_expects() -> None:
    head, network = read_back(configuration(SAE, "/tmp/vintage_net/wpa_supplicant"))
    expected = (
        "ctrl_interface=/tmp/vintage_net/wpa_supplicant\ncountry=00\nnetwork={\n"
        'ssid="mesh"\nkey_mgmt=SAE\nmode=5\nfrequency=2412\nsae_password="password"\n}\n'
    )
    want_head, want_network = read_back(expected)
    assert want_head.items() <= head.items()
    assert want_network.items() <= network.items()
    assert (head["sae_groups"], network["ieee80211w"]) == ("19", "2")


def test_every_setting_arrives() -> None:
    head, network = read_back(
        configuration(
            OPEN.replace(
                id="m", channel=36, country="DE", beacon_interval=500, peering_retries=3,
                peering_timeout=101, max_peers=20,
                max_inactivity=45, forwarding=False, rssi_threshold=-75,
            ),
            "/run/x",
            peers=7,
        )
    )  # fmt: skip
    assert head == {
        "ctrl_interface": "/run/x", "country": "DE", "ap_scan": "2", "user_mpm": "1",
        "max_peer_links": "7", "mesh_max_inactivity": "45",
    }  # fmt: skip
    assert network == {
        "ssid": '"m"', "key_mgmt": "NONE", "mode": "5", "frequency": "5180", "beacon_int": "500",
        "mesh_fwding": "0", "dot11MeshMaxRetries": "3", "dot11MeshRetryTimeout": "101",
        "dot11MeshConfirmTimeout": "101", "dot11MeshHoldingTimeout": "101",
        "mesh_rssi_threshold": "-75", "disable_ht40": "1", "max_oper_chwidth": "0",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (20, {"disable_ht40": "1", "max_oper_chwidth": "0"}),
        (40, {"max_oper_chwidth": "0"}),
        (80, {"max_oper_chwidth": "1"}),
    ],
)
def test_width(width: int, lines: dict[str, str]) -> None:
    five = OPEN.replace(channel=36, country="DE", width=width)
    _, network = read_back(configuration(five, "/run/x"))
    words = ("disable_ht40", "max_oper_chwidth")
    assert {name: value for name, value in network.items() if name in words} == lines


def test_options_that_not_every_build_has_are_written_only_when_asked_for() -> None:
    assert "disable_ht" not in configuration(OPEN, "/run/x")
    assert "disable_ht=1" in configuration(OPEN.replace(ht=False), "/run/x")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (OPEN.replace(id=""), "mesh id"),
        (OPEN.replace(id="ä" * 17), "mesh id must have 1 to 32 bytes, not 34"),
        (OPEN.replace(channel=0), "channel 0"),
        (OPEN.replace(country="de"), "country 'de'"),
        (OPEN.replace(country="D\n"), "country"),
        (OPEN.replace(security="wpa"), "neither 'open' nor 'sae'"),
        (OPEN.replace(beacon_interval=1), "beacon_interval 1"),
        (OPEN.replace(rssi_threshold=5), "rssi_threshold 5"),
        (OPEN.replace(max_peers=0), "max_peers 0"),
        (SAE.replace(passphrase=None), "the radio stays off: write mesh.passphrase into"),
        (SAE.replace(passphrase="a\0b"), "without NUL"),
        (SAE.replace(passphrase="x" * 129), "1 to 128 bytes"),
    ],
)
def test_what_cannot_be_written_is_refused_in_words(settings: MeshSection, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        configuration(settings, "/run/x")


@given(st.binary(min_size=0, max_size=128))
def test_quoting_gives_the_value_back_on_one_line(value: bytes) -> None:
    text = quote(value)
    assert unquote(text) == value
    assert "\n" not in text and "\r" not in text and "#" not in text
    assert text.count('"') in (0, 2)


@given(st.text(min_size=1, max_size=32), st.text(min_size=1, max_size=40))
def test_no_text_can_break_out_of_its_field(mesh_id: str, passphrase: str) -> None:
    settings = SAE.replace(id=mesh_id, passphrase=passphrase)
    try:
        text = configuration(settings, "/run/x")
    except ValueError:
        return
    plain = configuration(SAE, "/run/x")
    head, network = read_back(text)
    assert (head.keys(), network.keys()) == tuple(map(dict.keys, read_back(plain)))
    assert unquote(network["ssid"]) == mesh_id.encode("utf-8", "surrogateescape")
    assert unquote(network["sae_password"]) == passphrase.encode("utf-8", "surrogateescape")


@pytest.mark.parametrize(
    ("channel", "mhz"), [(1, 2412), (6, 2437), (13, 2472), (14, 2484), (36, 5180), (165, 5825)]
)
def test_channels(channel: int, mhz: int) -> None:
    """IEEE 802.11-2020, Annex E."""
    assert channel_frequency(channel) == mhz


# events


@pytest.mark.parametrize(
    ("data", "name", "address"),
    [
        (b"<3>MESH-PEER-CONNECTED 02:00:00:00:01:00", "MESH-PEER-CONNECTED", "02:00:00:00:01:00"),
        (b"<3>MESH-PEER-DISCONNECTED 0A:0b:00:00:01:00\n", "MESH-PEER-DISCONNECTED",
         "0a:0b:00:00:01:00"),
        (b"<3>MESH-SAE-AUTH-FAILURE addr=02:00:00:00:02:00", "MESH-SAE-AUTH-FAILURE",
         "02:00:00:00:02:00"),
        (b"IFNAME=mesh0 <3>MESH-SAE-AUTH-BLOCKED addr=02:00:00:00:02:00 duration=30",
         "MESH-SAE-AUTH-BLOCKED", "02:00:00:00:02:00"),
        (b'<3>MESH-GROUP-STARTED ssid="02:00:00:00:02:00" id=0', "MESH-GROUP-STARTED", None),
        (b"<4>MESH-GROUP-REMOVED mesh0", "MESH-GROUP-REMOVED", None),
        (b"<3>CTRL-EVENT-TERMINATING ", "CTRL-EVENT-TERMINATING", None),
    ],
)  # fmt: skip
def test_events(data: bytes, name: str, address: str | None) -> None:
    event = parse_event(data)
    assert event is not None
    assert (event.name, event.address) == (name, address)


@pytest.mark.parametrize("data", [b"", b"OK\n", b"<3", b"<x>A", b"<1234>A", b"IFNAME=", b"<>A"])
def test_what_is_no_event(data: bytes) -> None:
    assert parse_event(data) is None


def test_fields_of_an_event() -> None:
    event = parse_event(b'<3>MESH-GROUP-STARTED ssid="a \\"b\\" id=9 c" id=0')
    assert event is not None
    assert event.field("ssid") == 'a \\"b\\" id=9 c'
    assert event.field("none") is None
    blocked = Event(3, "MESH-SAE-AUTH-BLOCKED", "addr=02:00:00:00:02:00 duration=30")
    assert blocked.field("duration") == "30"


@given(st.binary(max_size=200))
def test_any_datagram_is_survived(data: bytes) -> None:
    event = parse_event(data)
    if event is not None:
        assert " " not in event.name
        assert event.address is None or is_mac(event.address)
        event.field("ssid")


@given(st.text(max_size=200))
def test_any_status_is_survived(text: str) -> None:
    assert all("=" not in name for name in parse_status(text))


def test_status() -> None:
    text = "bssid=00:00:00:00:00:00\nssid=a=b\nmode=mesh\nwpa_state=COMPLETED\nodd line\n"
    assert parse_status(text) == {
        "bssid": "00:00:00:00:00:00", "ssid": "a=b", "mode": "mesh", "wpa_state": "COMPLETED",
    }  # fmt: skip


# the control socket, against a stand-in


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory whose path is short enough for a socket's."""
    with tempfile.TemporaryDirectory(prefix="wpa", dir="/tmp") as path:
        yield Path(path)


class FakeSupplicant:
    """Answers at a control socket; what it answers can be changed."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(str(path))
        self.listeners: list[bytes] = []
        self.commands: list[bytes] = []
        self.answers: dict[bytes, bytes | None] = {b"ATTACH": b"OK\n", b"PING": b"PONG\n"}
        asyncio.get_running_loop().add_reader(self.socket.fileno(), self._readable)

    def _readable(self) -> None:
        data, sender = self.socket.recvfrom(4096)
        self.commands.append(data)
        answer = self.answers.get(data, b"UNKNOWN COMMAND\n")
        if answer is None:
            return
        self.socket.sendto(answer, sender)
        if data == b"ATTACH" and sender not in self.listeners:
            self.listeners.append(sender)

    def send_event(self, data: bytes) -> None:
        for listener in self.listeners:
            self.socket.sendto(data, listener)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.socket.fileno())
        self.socket.close()


@contextlib.asynccontextmanager
async def connected(directory: Path) -> AsyncIterator[tuple[FakeSupplicant, Control, list[Event]]]:
    events: list[Event] = []
    fake = FakeSupplicant(directory / "mesh0")
    control = Control(str(directory / "mesh0"), events.append)
    await control.open(60)
    try:
        yield fake, control, events
    finally:
        control.close()
        fake.close()


async def until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not condition():
        assert loop.time() < deadline, "the condition was not met in time"
        await asyncio.sleep(0.01)


async def test_commands_and_events_do_not_mix(directory: Path) -> None:
    async with connected(directory) as (fake, control, events):
        fake.send_event(b"<3>MESH-PEER-CONNECTED 02:00:00:00:01:00")
        assert await control.command("PING") == "PONG"
        fake.answers[b"STATUS"] = b"<3>looks like an event\n"
        assert await control.command("STATUS") == "<3>looks like an event"
        await until(lambda: events)
        assert [event.name for event in events] == ["MESH-PEER-CONNECTED"]


async def test_a_refusal_is_an_error(directory: Path) -> None:
    async with connected(directory) as (fake, control, _):
        fake.answers[b"RECONFIGURE"] = b"FAIL\n"
        with pytest.raises(ControlError, match="'FAIL' to RECONFIGURE"):
            await control.command("RECONFIGURE")
        with pytest.raises(ControlError, match="UNKNOWN COMMAND"):
            await control.command("NONSENSE with secret")


async def test_secrets_stay_out_of_errors(directory: Path) -> None:
    async with connected(directory) as (_, control, _):
        with pytest.raises(ControlError) as caught:
            await control.command('SET_NETWORK 0 sae_password "secret"')
        assert "secret" not in str(caught.value)


async def test_a_late_answer_is_not_taken_for_the_next_one(directory: Path) -> None:
    async with connected(directory) as (fake, control, _):
        fake.answers[b"SLOW"] = None
        with pytest.raises(ControlError, match="did not answer SLOW"):
            await control.command("SLOW", timeout=0.05)
        fake.answers[b"SLOW"] = b"late\n"
        assert await control.command("PING") == "PONG"


async def test_a_hanging_supplicant_is_noticed(directory: Path) -> None:
    async with connected(directory) as (fake, control, _):
        fake.answers[b"ATTACH"] = None
        with pytest.raises(ControlError, match="did not answer ATTACH"):
            await control.attach(0.05)


async def test_how_long_an_answer_is_waited_for_is_judged_by_what_the_process_does(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hang, "HANG_SECONDS", 0.2)
    async with connected(directory) as (fake, control, _):
        fake.answers[b"PING"] = None
        monkeypatch.setattr(control, "_doing", lambda: Doing("T", 7.0))
        with pytest.raises(ControlError, match="did not answer PING within 0 s and does nothing"):
            await control.command("PING", timeout=3600)


async def test_attaching_again_is_harmless(directory: Path) -> None:
    async with connected(directory) as (fake, control, events):
        await control.attach()
        fake.send_event(b"<3>ONCE")
        fake.send_event(b"<3>LAST")
        await until(lambda: events and events[-1].name == "LAST")
        assert [event.name for event in events] == ["ONCE", "LAST"]


async def test_opening_waits_for_the_socket(directory: Path) -> None:
    control = Control(str(directory / "mesh0"), lambda event: None)
    opening = asyncio.create_task(control.open(60))
    await asyncio.sleep(0)  # the first look finds nothing
    fake = FakeSupplicant(directory / "mesh0")
    await opening
    assert await control.command("PING") == "PONG"
    control.close()
    fake.close()


async def test_opening_gives_up(directory: Path) -> None:
    control = Control(str(directory / "mesh0"), lambda event: None)
    with pytest.raises(ControlError, match="no control socket at"):
        await control.open(0.05)
    with pytest.raises(ControlError, match="no control socket at"):
        await control.open(3600, lambda: True)
    with pytest.raises(ControlError, match="not connected"):
        await control.command("PING")


async def test_a_vanished_supplicant_is_an_error(directory: Path) -> None:
    async with connected(directory) as (fake, control, _):
        fake.socket.shutdown(socket.SHUT_RDWR)
        fake.answers.clear()
        with pytest.raises(ControlError):
            await control.command("PING", timeout=0.2)


async def test_commands_at_once_get_their_own_answers(directory: Path) -> None:
    async with connected(directory) as (fake, control, _):
        for number in range(20):
            fake.answers[b"GET %d" % number] = b"%d\n" % number
        answers = await asyncio.gather(*(control.command(f"GET {i}") for i in range(20)))
        assert answers == [str(i) for i in range(20)]


async def test_a_command_is_one_line(directory: Path) -> None:
    async with connected(directory) as (_, control, _):
        with pytest.raises(ValueError, match="one line"):
            await control.command("PING\nTERMINATE")


# the control socket and the configuration, against the real one


@contextlib.asynccontextmanager
async def real_supplicant(directory: Path, text: str) -> AsyncIterator[Control]:
    program = shutil.which("wpa_supplicant", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if program is None:
        pytest.skip("needs wpa_supplicant (package wpasupplicant)")
    (directory / "conf").write_text(text)
    arguments = [program, "-W", "-i", "lo", "-D", "none", "-c", str(directory / "conf")]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=log)  # noqa: ASYNC220
    control = Control(str(directory / "wpa" / "lo"), lambda event: None)
    try:
        try:
            await control.open(60, lambda: process.poll() is not None)
        except ControlError as error:
            pytest.fail(f"{error}; it said: {(directory / 'log').read_text()}")
        yield control
    finally:
        control.close()
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)


@pytest.mark.parametrize(
    "settings",
    [
        OPEN,
        SAE,
        SAE.replace(id='quote " and # and \\', passphrase='say "friend" # \\n and enter'),
        SAE.replace(id="Netz für äöü ☃", passphrase="\x01\x7f é\tx"),
        OPEN.replace(channel=36, country="DE", rssi_threshold=-70, ht=False),
    ],
)
async def test_the_real_one_reads_every_configuration(
    directory: Path, settings: MeshSection
) -> None:
    text = configuration(settings, str(directory / "wpa"))
    async with real_supplicant(directory, text) as control:
        assert await control.command("PING") == "PONG"
        assert await control.command("GET_NETWORK 0 mode") == "5"
        assert await control.command("GET_NETWORK 0 frequency") == str(settings.mhz)
        assert unquote(await control.command("GET_NETWORK 0 ssid")) == settings.id.encode()
        if settings.passphrase_in_use is not None:
            assert await control.command("GET_NETWORK 0 ieee80211w") == "2"
            assert await control.command("GET_NETWORK 0 sae_password") == "*"
        assert "wpa_state" in parse_status(await control.command("STATUS"))
        with pytest.raises(ControlError, match="UNKNOWN COMMAND"):
            await control.command("NO_SUCH_COMMAND")

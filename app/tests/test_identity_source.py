# SPDX-License-Identifier: Apache-2.0
"""Finding an identity: with a chip, with a broken one, and on machines that have none."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from emulated_bus import EmulatedBus, Time
from patience import PATIENCE

from authority import chips
from meshlab.chip.atecc608 import Atecc608
from meshlab.chip.state import serial_for
from thicket.identity import source as source_module
from thicket.identity.address import identity_of_value
from thicket.identity.bus import Bus, BusFaultError, NotAcknowledgedError
from thicket.identity.source import Host, Identity, read_identity

MAC = "02:74:68:00:00:01"
OTHER_MAC = "02:74:68:00:00:02"


class Machine:
    """The files of a machine in a temporary directory, and virtual chips on its buses."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "dev").mkdir()
        self.chips: dict[str, Atecc608] = {}
        self.opened: list[str] = []
        self.buses: list[EmulatedBus] = []
        self.fail: Callable[[], Bus] | None = None
        self.host = Host(
            devices=str(root / "dev"),
            board_serial=str(root / "serial-number"),
            radios=str(root / "radios"),
            data=str(root / "data"),
            open_bus=self.open,
            radio_wait=0.0,
        )

    def add_bus(self, number: int, chip: Atecc608 | None = None) -> None:
        path = self.root / "dev" / f"i2c-{number}"
        path.touch()
        silent = Atecc608(serial_for(1, 99))
        silent.fault = "absent"
        self.chips[str(path)] = chip or silent

    def open(self, path: str) -> Bus:
        self.opened.append(path.rpartition("/")[2])
        if self.fail is not None:
            return self.fail()
        bus = EmulatedBus(self.chips[path], Time())
        self.buses.append(bus)
        return bus

    def add_radio(self, name: str, mac: str) -> None:
        directory = self.root / "radios" / name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "macaddress").write_text(mac + "\n")

    @property
    def memory(self) -> Path:
        return self.root / "data" / "identity.json"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chip that answers has a minute for it."""
    for name in ("PATIENCE", "TOTAL_PATIENCE", "GIVE_UP_AFTER"):
        monkeypatch.setattr(source_module, name, 60.0)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


class Settings:
    def __init__(self, i2c_bus: str, address: str = "auto") -> None:
        self.i2c_bus = i2c_bus
        self.address = address


async def test_chip(machine: Machine) -> None:
    chip = Atecc608(serial_for(1, 3))
    machine.add_bus(1, chip)
    identity = await read_identity(host=machine.host)
    assert (identity.source, identity.software, identity.problem) == ("chip", False, None)
    assert identity.serial == chip.serial
    assert identity.id == chip.serial[2:8]
    assert identity.hostname == "n-" + chip.serial.hex()[4:16]
    assert identity.chip is not None
    assert identity.chip["model"] == "ATECC608A"
    assert str(identity.address_in("fd12:3456:789a:1::/64").ip).startswith("fd12:3456:789a:1:0:")
    assert not machine.memory.exists()
    assert all(bus.closed for bus in machine.buses)


async def test_all_buses_are_tried_and_the_header_comes_first(machine: Machine) -> None:
    for number in (20, 0, 1):
        machine.add_bus(number)
    machine.add_bus(11, Atecc608(serial_for(1, 3)))
    identity = await read_identity(host=machine.host)
    assert identity.source == "chip"
    assert machine.opened == ["i2c-1", "i2c-0", "i2c-11"]


async def test_one_bus_can_be_named(machine: Machine) -> None:
    machine.add_bus(1, Atecc608(serial_for(1, 3)))
    machine.add_bus(5, Atecc608(serial_for(1, 4)))
    identity = await read_identity(Settings("5"), host=machine.host)
    assert identity.serial == serial_for(1, 4)
    assert machine.opened == ["i2c-5"]


async def test_without_a_chip_on_purpose(machine: Machine) -> None:
    machine.add_bus(1, Atecc608(serial_for(1, 3)))
    machine.add_radio("phy0", MAC)
    identity = await read_identity(Settings("none"), host=machine.host)
    assert (identity.source, identity.software, identity.problem) == ("mac", True, None)
    assert machine.opened == []


async def test_trust_and_go_address(machine: Machine) -> None:
    chip = Atecc608(serial_for(1, 3))
    chip.state.config[16] = 0x35 << 1
    chip.power_cycle()
    machine.add_bus(1, chip)
    identity = await read_identity(host=machine.host)
    assert identity.chip is not None
    assert identity.chip["address"] == 0x35


async def test_absent_chip_is_told_in_words(machine: Machine) -> None:
    machine.add_bus(1)
    machine.add_radio("phy0", MAC)
    identity = await read_identity(host=machine.host)
    assert identity.source == "mac"
    assert identity.problem is not None
    for word in ("i2c-1", "no answer at 0x60", "0x35", "dtparam=i2c_arm=on", "SDA"):
        assert word in identity.problem


async def test_no_bus_at_all(machine: Machine) -> None:
    identity = await read_identity(host=machine.host)
    assert identity.problem is not None
    assert "there is no I2C bus" in identity.problem


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("bad-crc", "something answers at 0x60, but"),
        ("stuck", "the bus does not work"),
        ("nak:1", "no answer at 0x60"),
    ],
)
async def test_broken_chips(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, fault: str, words: str
) -> None:
    monkeypatch.setattr(source_module, "PATIENCE", 0.2)
    chip = Atecc608(serial_for(1, 3))
    chip.fault = fault
    machine.add_bus(1, chip)
    identity = await read_identity(host=machine.host)
    assert identity.software
    assert identity.problem is not None
    assert words in identity.problem
    chip.fault = None
    monkeypatch.setattr(source_module, "PATIENCE", 60.0)
    assert (await read_identity(host=machine.host)).serial == chip.serial


async def test_serial_number_that_cannot_be(machine: Machine) -> None:
    machine.add_bus(1, Atecc608(bytes.fromhex("0123000000000000ee")))
    identity = await read_identity(host=machine.host)
    assert identity.software
    assert "0123000000000000ee" in (identity.problem or "")


async def test_bus_that_cannot_be_opened(machine: Machine) -> None:
    machine.add_bus(1)

    def refuse() -> Bus:
        raise BusFaultError("/dev/i2c-1: Permission denied")

    machine.fail = refuse
    identity = await read_identity(host=machine.host)
    assert "Permission denied" in (identity.problem or "")


async def test_whatever_happens_there_is_an_identity(machine: Machine) -> None:
    machine.add_bus(1)

    def explode() -> Bus:
        raise ImportError("no module named smbus2")

    machine.fail = explode
    identity = await read_identity(host=machine.host)
    assert identity.software
    assert "smbus2" in (identity.problem or "")


async def test_transfer_that_never_returns(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "GIVE_UP_AFTER", 0.1)
    machine.add_bus(1)
    release = threading.Event()

    def hang() -> Bus:
        release.wait()
        raise BusFaultError("released")

    machine.fail = hang
    before = set(threading.enumerate())  # one of another test may still be ending
    try:
        identity = await read_identity(host=machine.host)
        assert "never came back" in (identity.problem or "")
        again = await read_identity(host=machine.host)
        assert "still hangs" in (again.problem or "")
        assert len(machine.opened) == 1
        assert again.id == identity.id
        new = set(threading.enumerate()) - before
        (thread,) = [one for one in new if one.name == "chip"]
    finally:
        release.set()
    await asyncio.to_thread(thread.join, PATIENCE)
    assert not thread.is_alive()
    monkeypatch.undo()
    assert "released" in ((await read_identity(host=machine.host)).problem or "")


# -- software identities


async def test_board_comes_before_radio(machine: Machine) -> None:
    (machine.root / "serial-number").write_bytes(b"10000000A1B2C3D4\0")
    machine.add_radio("phy0", MAC)
    identity = await read_identity(Settings("none"), host=machine.host)
    assert identity.source == "board"
    assert identity.id == identity_of_value("board", "10000000a1b2c3d4")
    address = identity.address_in("fd12:3456:789a:1::/64")
    assert address.ip.packed[8:10] == b"\x00\x01"
    assert not machine.memory.exists()


@pytest.mark.parametrize("content", [b"", b"\0", b"0000000000000000\0", b"\n"])
async def test_boards_without_a_serial_number(machine: Machine, content: bytes) -> None:
    (machine.root / "serial-number").write_bytes(content)
    machine.add_radio("phy0", MAC)
    assert (await read_identity(Settings("none"), host=machine.host)).source == "mac"


async def test_first_radio_counts(machine: Machine) -> None:
    machine.add_radio("phy10", OTHER_MAC)
    machine.add_radio("phy2", MAC.upper())
    machine.add_radio("phy0", "00:00:00:00:00:00")
    identity = await read_identity(Settings("none"), host=machine.host)
    assert identity.id == identity_of_value("mac", MAC)


async def test_mac_identity_outlives_an_unplugged_radio(machine: Machine) -> None:
    machine.add_radio("phy0", MAC)
    first = await read_identity(Settings("none"), host=machine.host)
    (machine.root / "radios" / "phy0" / "macaddress").unlink()
    assert (await read_identity(Settings("none"), host=machine.host)).id == first.id
    # the card in another device: another radio, another identity, or there would be two of one
    machine.add_radio("phy0", OTHER_MAC)
    moved = await read_identity(Settings("none"), host=machine.host)
    assert moved.id == identity_of_value("mac", OTHER_MAC)


async def test_random_identity_stays(machine: Machine) -> None:
    first = await read_identity(Settings("none"), host=machine.host)
    assert first.source == "random"
    assert first.problem is None
    machine.add_radio("phy0", MAC)
    second = await read_identity(Settings("none"), host=machine.host)
    assert (second.source, second.id) == ("random", first.id)
    machine.memory.unlink()
    assert (await read_identity(Settings("none"), host=machine.host)).source == "mac"


async def test_radio_that_appears_late(machine: Machine) -> None:
    machine.host.radio_wait = 30.0

    async def plug() -> None:
        machine.add_radio("phy0", MAC)

    identity, _ = await asyncio.gather(read_identity(Settings("none"), host=machine.host), plug())
    assert identity.source == "mac"


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"source": "random"}', '{"source": "chip", "value": "01"}',
     '{"source": "random", "value": 5}', '{"source": "mac", "value": ""}', "\xff\xfe"],
)  # fmt: skip
async def test_damaged_memory_is_made_anew(machine: Machine, content: str) -> None:
    machine.memory.parent.mkdir()
    machine.memory.write_bytes(content.encode("latin-1"))
    identity = await read_identity(Settings("none"), host=machine.host)
    assert identity.source == "random"
    kept = json.loads(machine.memory.read_text())
    assert identity_of_value("random", kept["value"]) == identity.id


async def test_random_identity_that_cannot_be_kept(machine: Machine) -> None:
    (machine.root / "data").write_text("a file where the directory should be")
    identity = await read_identity(Settings("none"), host=machine.host)
    assert identity.source == "random"
    assert "could not be kept" in (identity.problem or "")
    assert "changes with every start" in (identity.problem or "")


def test_what_an_identity_tells() -> None:
    identity = Identity("chip", bytes.fromhex("6f44e3c6b802"), serial=bytes(9))
    assert identity.hostname == "n-6f44e3c6b802"
    assert len(identity.machine_id) == 32
    assert identity.machine_id != Identity("mac", identity.id).machine_id
    assert json.loads(json.dumps(identity.as_dict())) == {
        "source": "chip",
        "software": False,
        "serial": "00" * 9,
        "id": "6f44e3c6b802",
        "chip": None,
    }
    assert "6f44e3c6b802" in repr(identity)
    with pytest.raises(ValueError):
        Identity("chip", bytes(6))


def chip_at(address: int) -> Atecc608:
    chip = Atecc608(serial_for(1, 3))
    chip.state.config[16] = address << 1
    chip.power_cycle()
    return chip


@pytest.mark.parametrize("address", [0x60, 0x35, 0x36, 0x58, 0x59])
async def test_a_chip_is_found_at_every_address_that_is_sold(
    machine: Machine, address: int
) -> None:
    machine.add_bus(1, chip_at(address))
    identity = await read_identity(host=machine.host)
    assert identity.chip is not None
    assert identity.chip["address"] == address


async def test_a_chip_at_another_address_is_found_where_it_is_named(machine: Machine) -> None:
    machine.add_bus(1, chip_at(0x6A))
    assert (await read_identity(host=machine.host)).source != "chip"
    identity = await read_identity(Settings("auto", "0x6a"), host=machine.host)
    assert identity.source == "chip"


async def test_no_other_address_is_tried_beside_the_one_that_is_named(machine: Machine) -> None:
    machine.add_bus(1, chip_at(0x60))
    identity = await read_identity(Settings("auto", "0x6a"), host=machine.host)
    assert identity.source != "chip"
    assert identity.problem is not None
    assert "no answer at 0x6a. " in identity.problem
    assert "identity.address in thicket.toml names another" in identity.problem


class Other(Bus):
    """A bus with a device of another kind on it."""

    def __init__(self, address: int) -> None:
        self.address = address
        self.written: set[bytes] = set()

    def write(self, address: int, data: bytes) -> None:
        if address == self.address:
            self.written.add(data)
        else:
            raise NotAcknowledgedError("nobody")

    def read(self, address: int, length: int) -> bytes:
        if address != self.address:
            raise NotAcknowledgedError("nobody")
        return b"\x16" * length


@pytest.mark.parametrize("address", [0x36, 0x58])
async def test_another_device_at_such_an_address_is_named_and_told_nothing_but_to_sleep(
    machine: Machine, address: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "PATIENCE", 0.2)  # it never becomes a chip
    machine.add_bus(1)
    bus = Other(address)
    machine.fail = lambda: bus
    identity = await read_identity(host=machine.host)
    assert identity.problem is not None
    assert f"something answers at 0x{address:02x}, but 16161616 came back" in identity.problem
    assert bus.written <= {b"\x01"}


@pytest.mark.parametrize("address", [0x60, 0x36, 0x58])
def test_enrolment_finds_the_chip_without_being_told_its_address(address: int) -> None:
    assert chips.chip_on(EmulatedBus(chip_at(address), Time())).address == address

# SPDX-License-Identifier: Apache-2.0
"""The bus of another machine: a process with a virtual chip stands for it."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_for_tests import PREFIX
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE

from authority.authority import Authority
from authority.chip import DeskChip
from authority.remote_bus import Pipe, RemoteBus
from meshlab.chip.state import ChipState, serial_for
from thicket.identity.bus import Bus, BusFaultError, BusLockedError
from thicket.identity.chip.errors import ChipAbsentError, ChipBusError, ChipBusLockedError
from thicket.identity.remote import BusServer, serve
from thicket.trust.credentials import enrolled_chain

OTHER_SIDE = """
import sys
from pathlib import Path
from meshlab.chip.atecc608 import Atecc608
from meshlab.chip.state import serial_for
from meshlab.chip.bus import Nak
from thicket.identity.bus import Bus, BusLockedError, NotAcknowledgedError
from thicket.identity.remote import BusServer, serve

class Wire(Bus):
    name = "/dev/i2c-9"
    def __init__(self): self.chip = Atecc608(serial_for(1, 1), Path(sys.argv[1]), scale=0.01)
    def write(self, address, data):
        try: self.chip.write(address, data)
        except Nak: raise NotAcknowledgedError(self.name)
    def read(self, address, length):
        try: return self.chip.read(address, length)
        except Nak: raise NotAcknowledgedError(self.name)
    def lock(self, deadline):
        if Path(sys.argv[1] + ".busy").exists(): raise BusLockedError("locked by another program")
        Path(sys.argv[1] + ".lock").touch()
    def unlock(self): Path(sys.argv[1] + ".lock").unlink()

serve(BusServer(Wire()), sys.stdin.buffer, sys.stdout.buffer)
"""


@pytest.fixture
def pipe(tmp_path: Path) -> Pipe:
    return Pipe((sys.executable, "-c", OTHER_SIDE, str(tmp_path / "chip.json")))


@pytest.fixture
def bus(pipe: Pipe) -> Iterator[RemoteBus]:
    remote = RemoteBus(pipe)
    yield remote
    remote.close()


def test_a_chip_is_enrolled_from_afar(bus: RemoteBus, tmp_path: Path) -> None:
    ca = Authority(tmp_path / "fleet", lambda _: "")
    ca.init("far", PREFIX, lab=True)
    chip = DeskChip(bus)
    assert bus.name.endswith("/dev/i2c-9")
    assert ca.enroll_chip(chip, write=True, show=lambda _: None) == serial_for(1, 1).hex()
    assert enrolled_chain(chip, ca.fleet)
    assert not (tmp_path / "chip.json.lock").exists()
    state = ChipState.load(tmp_path / "chip.json", serial_for(1, 1))
    assert state.config[86:89] == b"\0\0\xfe"


def test_errors_come_through(bus: RemoteBus, pipe: Pipe, tmp_path: Path) -> None:
    with pytest.raises(ChipAbsentError, match="0x35"):
        DeskChip(bus, 0x35).info()
    (tmp_path / "chip.json.busy").touch()
    with pytest.raises(ChipBusLockedError, match="another program"):
        DeskChip(bus, patience=0.1).info()
    (tmp_path / "chip.json.busy").unlink()
    DeskChip(bus).info()
    pipe._process.kill()
    pipe._process.wait()
    with pytest.raises(ChipBusError, match=r"gone|ended"):
        DeskChip(bus, patience=0.1).info()


def test_the_bus_is_let_go_with_the_connection(bus: RemoteBus, tmp_path: Path) -> None:
    bus.lock(time.monotonic() + PATIENCE)
    assert (tmp_path / "chip.json.lock").exists()
    bus.close()
    assert not (tmp_path / "chip.json.lock").exists()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("", "ended"),
        ("print('Welcome to node 7!', flush=True); input(); input()", "not an answer"),
        ("print('[1]', flush=True); input(); input()", "not an answer"),
    ],
)
def test_programs_that_serve_no_bus(code: str, words: str) -> None:
    with pytest.raises(BusFaultError, match=words):
        RemoteBus(Pipe((sys.executable, "-c", code)))
    with pytest.raises(BusFaultError, match="No such file"):
        Pipe(("/nonexistent/ssh",))


class Nothing(Bus):
    """A bus on which everything is well."""

    name = "nothing"
    locks = 0

    def write(self, address: int, data: bytes) -> None:
        pass

    def read(self, address: int, length: int) -> bytes:
        return bytes(min(length, 200))

    def lock(self, deadline: float) -> None:
        if self.locks:
            raise BusLockedError("twice")
        self.locks = 1

    def unlock(self) -> None:
        self.locks = 0


@given(st.lists(st.one_of(st.binary(max_size=60), st.sampled_from([
    b'{"do":"lock","seconds":1}', b'{"do":"read","address":96,"length":4}', b'{"do":"unlock"}',
    b'{"do":"write","address":96,"data":"00"}', b'{"do":"write"}', b'{"do":1}', b"[]", b"1e999",
])), max_size=8))  # fmt: skip
def test_anything_may_be_asked(lines: list[bytes]) -> None:
    bus, sink = Nothing(), io.BytesIO()
    source = io.BytesIO(b"\n".join(lines) + b"\n")
    serve(BusServer(bus), source, sink)
    answers = [json.loads(line) for line in sink.getvalue().splitlines()]
    assert len(answers) == source.getvalue().count(b"\n")
    assert all(a.get("error") in (None, "nak", "locked", "fault") for a in answers)
    assert bus.locks == 0

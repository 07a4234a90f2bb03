# SPDX-License-Identifier: Apache-2.0
"""The authority's command with a node at the other end: ssh and console, files, and the daemon.

A program called ssh stands for the way there; behind it are the real agent and the real command,
and a daemon's control socket.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pty
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulated_bus import EmulatedBus, Time
from fleet_for_tests import CLOCK, PREFIX
from patience import PATIENCE

from authority import nerveskey, provisioning, remote_node
from authority.authority import Authority
from authority.chip import DeskChip
from authority.cli import main as ca_main
from authority.errors import AuthorityError
from authority.issuer import years_from
from authority.remote_node import RemoteNode
from meshlab.chip.atecc608 import Atecc608
from meshlab.chip.state import serial_for
from thicket.cli.main import main
from thicket.identity.aio import AsyncAtecc
from thicket.trust import openssl
from thicket.trust.certificates import Certificate, CertificateError, from_pem, pem
from thicket.trust.credentials import (
    ChipKey,
    FileKey,
    enrolled_chain,
    keep_chain,
    make_credentials,
    software_key,
)
from thicket.trust.fleet import Fleet
from thicket.trust.revocations import Revocations, SignedList

SSH = """#!/bin/sh
[ "$1" = -T ] && [ "$2" = n-010203040506 ] || { echo "ssh: no such host" >&2; exit 255; }
shift 2
PATH=$THICKET_ROOT/bin:$PATH exec sh -c "$*"
"""


class Daemon:
    """A control socket, and what it was asked."""

    def __init__(self, root: Path, identity: dict[str, Any] | None) -> None:
        self.identity = identity
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.lists: dict[str, bytes] = {}
        (root / "run/thicket").mkdir(parents=True)
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(root / "run/thicket/control.sock"))
        self._server.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                line, _ = self._server.accept()
            except OSError:
                return
            with line, line.makefile("rwb") as stream:
                request = json.loads(stream.readline())
                self.asked.append((request["method"], request["params"]))
                answer = self._answer(request["method"], request["params"])
                stream.write(json.dumps({"id": 1, **answer}).encode() + b"\n")

    def _answer(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        if method == "status":
            return {"result": {"identity": self.identity}}
        if method == "reload":
            return {"result": {"faults": [], "changed": [], "later": [], "source": "x"}}
        if method == "revocations-import":
            packed = base64.b64decode(params["list"])
            if not packed.startswith(b"thicket revocations 1\n"):
                return {"error": {"code": "malformed", "message": "not a list of revocations"}}
            return {"result": {"number": 7, "names": 1}}
        if method == "revocations-export":
            if "digest" in params:
                return {"result": {"list": base64.b64encode(self.lists[params["digest"]]).decode()}}
            return {"result": {"lists": list(self.lists)}}
        return {"error": {"code": "unknown-method", "message": method}}

    def close(self) -> None:
        """End the thread before its descriptor is free: it would accept what comes to the next."""
        if self._thread.is_alive():
            self._server.shutdown(socket.SHUT_RDWR)
            self._thread.join()
        self._server.close()


SOFTWARE = {"source": "board", "id": "010203040506", "serial": None}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "n"
    for folder in ("bin", "here", "data/thicket"):
        (made / folder).mkdir(parents=True)
    programs = {
        "here/ssh": SSH,
        "bin/python3": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
        "bin/thicket": f'#!/bin/sh\nexec {sys.executable} -m thicket "$@"\n',
    }
    for name, text in programs.items():
        (made / name).write_text(text)
        (made / name).chmod(0o755)
    monkeypatch.setenv("THICKET_ROOT", str(made))
    monkeypatch.setenv("THICKET_CA", str(tmp_path / "fleet"))
    monkeypatch.setenv("PATH", f"{made}/here:{os.environ['PATH']}")
    monkeypatch.delenv("THICKET_CA_PASSPHRASE", raising=False)
    return made


@pytest.fixture
def daemon(root: Path) -> Iterator[Daemon]:
    made = Daemon(root, dict(SOFTWARE))
    yield made
    made.close()


@pytest.fixture
def ca(root: Path) -> Authority:
    made = Authority(root.parent / "fleet", lambda _: "")
    made.init("acme", PREFIX, lab=True)
    return made


HOST = "n-010203040506"


def check_software(root: Path, fleet: Fleet) -> None:
    folder = root / "data/thicket"
    assert (folder / "device.pem").stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in folder.iterdir()) == ["device.key", "device.pem"]
    key = FileKey.load(str(folder))
    peer = asyncio.run(make_credentials(key, fleet, CLOCK)).peer
    assert (peer.device, peer.software) == ("software-board-010203040506", True)


def test_a_node_without_chip_by_ssh(
    root: Path, daemon: Daemon, ca: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ca_main(["enroll", "--ssh", HOST, "--software"]) == 0
    assert "software-board-010203040506 enrolled" in capsys.readouterr().out
    check_software(root, ca.fleet)
    assert [method for method, _ in daemon.asked][-1] == "reload"
    assert "software-board-010203040506" in ca.list()["devices"]
    # once more, in another fleet: the file is replaced, the key stays
    before = (root / "data/thicket/device.key").read_bytes()
    assert ca_main(["enroll", "--software", "--ssh", HOST]) == 0
    assert (root / "data/thicket/device.key").read_bytes() == before


def test_a_node_without_chip_by_its_console(root: Path, daemon: Daemon, ca: Authority) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["PATH"] = f"{root}/bin:{os.environ['PATH']}"
        os.execvp("/bin/sh", ["/bin/sh", "-i"])
    # the terminal's near end stands for the serial adapter
    path = root / "console.sock"
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(path))
    server.listen()
    thread = threading.Thread(target=_bridge, args=(server, terminal), daemon=True)
    thread.start()
    try:
        assert ca_main(["enroll", "--console", str(path), "--software"]) == 0
        check_software(root, ca.fleet)
        assert [method for method, _ in daemon.asked][-1] == "reload"
        assert ca_main(["publish", "--console", str(path)]) == 0
        assert daemon.asked[-1][0] == "revocations-import"
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        # wakes the thread, wherever it waits
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as last:
            last.connect(str(path))
            thread.join(PATIENCE)
        os.close(terminal)
        server.close()


def _bridge(server: socket.socket, terminal: int) -> None:
    """Connect one after the other to the terminal, until its shell is gone."""
    import select

    while True:
        line, _ = server.accept()
        with line:
            data = b"any"
            while data:
                for one in select.select([line.fileno(), terminal], [], [])[0]:
                    try:
                        data = os.read(one, 4096)
                        if one != terminal:
                            os.write(terminal, data)
                        else:
                            line.sendall(data)
                    except ConnectionError:  # it left while the shell was speaking
                        data = b""
                    except OSError:
                        return


def test_what_a_node_refuses(
    root: Path, daemon: Daemon, ca: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.identity = None
    assert ca_main(["enroll", "--ssh", HOST, "--software"]) == 1
    assert "still finding out who it is" in capsys.readouterr().err
    daemon.identity = {"source": "chip", "id": "236ff5c5f3b1", "serial": "01" * 9}
    assert ca_main(["enroll", "--ssh", HOST, "--software"]) == 1
    assert "has a chip (0101010101" in capsys.readouterr().err
    assert ca_main(["enroll", "--ssh", HOST, "--bus", "250"]) == 1
    assert "see its message above" in capsys.readouterr().err
    assert ca_main(["enroll", "--ssh", "elsewhere", "--software"]) == 1
    assert "ended" in capsys.readouterr().err
    daemon.close()
    assert ca_main(["enroll", "--ssh", HOST, "--software"]) == 1
    assert ca.list()["devices"] == {}
    assert not (root / "data/thicket/device.pem").exists()


def test_the_agent_keeps_only_what_is_for_its_node(
    root: Path, daemon: Daemon, ca: Authority
) -> None:
    from thicket.trust.agent import Agent

    agent = Agent(None)

    def ask(**request: Any) -> dict[str, Any]:
        return dict(json.loads(agent.answer(json.dumps(request).encode())))

    key = openssl.public_key(openssl.generate_key())
    chain = ca.enroll_software("board", b"\1\2\3\4\5\6", key)
    text = "".join(map(pem, chain))
    assert "not for the key of this node" in ask(do="certificates", pem=text)["text"]
    assert "1 certificates" in ask(do="certificates", pem=pem(chain[0]))["text"]
    assert "error" in ask(do="certificates", pem="nonsense")
    assert ask(do="certificates")["error"] == "fault"
    daemon.identity = {"source": "chip", "id": "236ff5c5f3b1", "serial": "01" * 9}
    assert "the node's chip is 0101" in ask(do="certificates", pem=text)["text"]
    assert "no bus was named" in ask(do="name")["text"]
    assert not (root / "data/thicket/device.pem").exists()
    assert "not a list" in ask(do="revocations", list="AAAA")["text"]


def test_publishing(
    root: Path, daemon: Daemon, ca: Authority, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert ca_main(["enroll", "--ssh", HOST, "--software"]) == 0
    assert ca_main(["revoke", "software-board-010203040506"]) == 0
    assert "thicket ca publish" in capsys.readouterr().out
    assert ca_main(["publish", "--ssh", HOST]) == 0
    method, params = daemon.asked[-1]
    assert method == "revocations-import"
    found = Revocations.unpack(base64.b64decode(params["list"]), ca.fleet)
    assert found.names == {"software-board-010203040506"}
    assert ca_main(["publish", "--ssh", "elsewhere", "--ssh", HOST]) == 1
    assert "elsewhere does not tell which lists it has" in capsys.readouterr().err
    assert daemon.asked[-1][0] == "revocations-import"
    # by hand, on the node
    assert main(["revocations", "import", str(ca.folder / "revocations.bin")]) == 0
    assert capsys.readouterr().out == "List 7 is in force, with 1 name.\n"
    (tmp_path / "other").write_bytes(b"x")
    assert main(["revocations", "import", str(tmp_path / "other")]) == 1
    assert main(["revocations", "import", str(tmp_path / "none")]) == 1
    assert main(["revocations"]) == 2


# -- chips that cannot be written


def trust_and_go(index: int) -> tuple[DeskChip, Atecc608]:
    """A chip that is locked, with a key in slot 0 and nothing of ours, at its other address."""
    clock = Time()
    chip = Atecc608(serial_for(1, index), clock=clock)
    driver = DeskChip(EmulatedBus(chip, clock), clock=clock, sleep=clock.sleep)
    validity = years_from(CLOCK.now or CLOCK.floor, 31)
    stock = provisioning.NervesKeyIssuer(
        openssl.generate_key(), validity, manufacturer_serial="0815", device_validity=validity
    )
    provisioning.Provisioning(driver, nerveskey.Otp("b", "0815"), stock, show=lambda _: None).run()
    chip.state.config[16] = 0x35 << 1
    chip.power_cycle()
    return DeskChip(EmulatedBus(chip, clock), 0x35, clock=clock, sleep=clock.sleep), chip


def test_a_locked_chip_with_its_certificate_in_a_file(ca: Authority, tmp_path: Path) -> None:
    driver, chip = trust_and_go(6)
    with pytest.raises(AuthorityError, match=r"Trust&GO.*--certificate-on-device"):
        ca.enroll_chip(driver, write=True, show=lambda _: None)
    before, kept, shown = chip.memory, list[str](), list[str]()
    ca.enroll_chip(driver, write=False, show=shown.append, keep=kept.append)
    assert (kept, ca.list()["devices"]) == ([], {})
    assert "stays as it is" in shown[0]
    ca.enroll_chip(driver, write=True, show=shown.append, keep=kept.append)
    assert chip.memory == before
    device, signer = from_pem(kept[0])
    folder = str(tmp_path)
    with pytest.raises(CertificateError, match="not enrolled"):
        enrolled_chain(driver, ca.fleet, folder)
    keep_chain(folder, (device, signer))
    assert enrolled_chain(driver, ca.fleet, folder) == (device, signer)

    async def node() -> None:
        face = AsyncAtecc(driver)
        key = await ChipKey.load(face, ca.fleet, folder)
        peer = (await make_credentials(key, ca.fleet, CLOCK)).peer
        assert (peer.device, peer.software) == (chip.serial.hex(), False)
        await face.close()

    asyncio.run(node())
    assert ca.list()["devices"][chip.serial.hex()]["source"] == "chip"
    # not for the chip of another device that the card was moved to
    other, _ = trust_and_go(7)
    with pytest.raises(CertificateError, match=f"for the key of {chip.serial.hex()}"):
        enrolled_chain(other, ca.fleet, folder)
    # nor of another fleet, nor when it is damaged
    second = Authority(tmp_path / "second", lambda _: "")
    second.init("second", PREFIX, lab=True)
    with pytest.raises(CertificateError, match="not of fleet 'second'"):
        enrolled_chain(driver, second.fleet, folder)
    (tmp_path / "device.pem").write_bytes(b"\xff")
    with pytest.raises(CertificateError, match=r"device\.pem"):
        enrolled_chain(driver, ca.fleet, folder)


def test_only_locked_chips_leave_their_certificate_outside(ca: Authority) -> None:
    clock = Time()
    chip = Atecc608(serial_for(1, 8), clock=clock)
    driver = DeskChip(EmulatedBus(chip, clock), clock=clock, sleep=clock.sleep)
    with pytest.raises(AuthorityError, match="without --certificate-on-device"):
        ca.enroll_chip(driver, write=True, show=lambda _: None, keep=print)


def test_two_that_make_the_key_have_the_same(tmp_path: Path) -> None:
    made: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: made.append(software_key(str(tmp_path)))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    assert len(set(made)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["device.key"]


def test_certificates_for_a_node_are_those_that_were_signed(
    root: Path, daemon: Daemon, ca: Authority
) -> None:
    assert ca_main(["enroll", "--ssh", HOST, "--software"]) == 0
    chain = from_pem((root / "data/thicket/device.pem").read_text())
    assert Certificate(chain[1]).common_name == "Signer 0001"


def test_publishing_takes_up_what_another_copy_of_the_authority_revoked(
    root: Path, daemon: Daemon, ca: Authority, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert ca_main(["enroll", "--ssh", HOST, "--software"]) == 0
    shutil.copytree(ca.folder, tmp_path / "copy")
    copy = Authority(tmp_path / "copy", lambda _: "")
    many = [f"{number:012x}" for number in range(200)]
    for name in many:  # a list that is longer than one answer of the agent
        copy.enroll_software("mac", bytes.fromhex(name), ca.fleet.root.public_key)
    theirs = SignedList.read(
        copy.revocations.revoke([f"software-mac-{name}" for name in many]), ca.fleet
    )
    daemon.lists = {theirs.digest.hex(): theirs.packed}
    ca.revocations.revoke(["software-board-010203040506"])
    capsys.readouterr()
    assert ca_main(["publish", "--ssh", HOST]) == 0
    assert "Another copy of this authority has revoked software-mac-" in capsys.readouterr().out
    method, params = daemon.asked[-1]
    assert method == "revocations-import"
    found = Revocations.unpack(base64.b64decode(params["list"]), ca.fleet)
    assert len(found.names) == 201
    assert found.number == 3
    # The agent, as over a console, gives the same in pieces.
    assert RemoteNode(remote_node.ssh(HOST, None)).export_revocations(()) == [theirs.packed]
    assert RemoteNode(remote_node.ssh(HOST, None)).export_revocations(daemon.lists) == []
    # Without the root's key nothing reaches the node, and the engineer hears why.
    daemon.lists |= {"0" * 64: copy.revocations.revoke(["Signer 0001"])}
    (ca.folder / "root.key").unlink()
    before = len(daemon.asked)
    assert ca_main(["publish", "--ssh", HOST]) == 1
    assert "has revoked Signer 0001" in capsys.readouterr().err
    assert "revocations-import" not in [method for method, _ in daemon.asked[before:]]

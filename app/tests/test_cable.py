# SPDX-License-Identifier: Apache-2.0
"""thicket.cable: which interfaces are cables, and nodes on a switch that others find by their name.

The nodes are in network namespaces of their own, on a bridge; what looks for them is the engineer's
desk, and avahi, which is nobody's of ours.
"""

import json
import os
import pwd
import random
import selectors
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import network_namespace
import pytest
from patience import PATIENCE

from authority.authority import Authority
from authority.cli import main as ca_main
from cable import find
from cable.answers import SERVICE
from remote.cli import main as remote_main
from thicket.cable import links
from thicket.discovery.questions import browse

NODES = 5


class TestWhichAreCables:
    @pytest.fixture
    def sysfs(self, tmp_path: Path) -> Path:
        for name, kind, signs in (
            ("lo", 772, ()),
            ("eth0", 1, ("device",)),
            ("usb0", 1, ("device",)),
            ("end1", 1, ("device",)),
            ("mesh0", 1, ("device", "phy80211")),
            ("wlan0", 1, ("device", "wireless")),
            ("br0", 1, ()),
            ("dummy0", 1, ()),
            ("tun0", 65534, ()),
            ("eth1", 1, ("device", "master")),
            ("wwan0", 65534, ("device",)),
        ):
            folder = tmp_path / "class/net" / name
            folder.mkdir(parents=True)
            (folder / "type").write_text(f"{kind}\n")
            for sign in signs:
                (folder / sign).mkdir()
        return tmp_path

    def test_real_wired_ethernet_by_whatever_name(self, sysfs: Path) -> None:
        assert links.cables(str(sysfs)) == ("end1", "eth0", "usb0")

    def test_never_one_that_is_for_something_else(self, sysfs: Path) -> None:
        assert links.cables(str(sysfs), frozenset({"eth0"})) == ("end1", "usb0")

    def test_a_bounded_number(self, tmp_path: Path) -> None:
        for number in range(40):
            folder = tmp_path / f"class/net/eth{number}"
            (folder / "device").mkdir(parents=True)
            (folder / "type").write_text("1")
        assert len(links.cables(str(tmp_path))) == links.MOST

    def test_plugged(self, sysfs: Path) -> None:
        assert not links.plugged(str(sysfs), "eth0"), "it is down: it cannot be read"
        for text, plugged in (("0\n", False), ("1\n", True)):
            (sysfs / "class/net/eth0/carrier").write_text(text)
            assert links.plugged(str(sysfs), "eth0") is plugged

    def test_addresses_of_the_link_alone(self) -> None:
        with network_namespace.namespace():
            network_namespace.veth("eth0", "far0")
            network_namespace.ip("address add fd12::7/64 dev eth0 nodad")
            network_namespace.ip("address add 192.0.2.7/24 dev eth0")
            found = links.link("eth0")
            assert found is not None
            assert found.ipv6.is_link_local
            assert found.ipv4 is None
            network_namespace.ip("address flush dev eth0 scope global")
            network_namespace.ip("address add 169.254.3.4/16 dev eth0")
            found = links.link("eth0")
            assert found is not None
            assert found.ipv4 == IPv4Address("169.254.3.4")
            network_namespace.ip("link set eth0 down")
            assert links.link("eth0") is None
        assert links.link("nosuch0") is None


class Node:
    """A node with one cable, in its own namespace; :meth:`until` waits for what it shows."""

    def __init__(self, folder: Path, number: int) -> None:
        self.name = f"n-6f44e3c6b8{number:02x}"
        self.folder = folder / self.name
        self.folder.mkdir(parents=True)
        self.wire = f"w{number}"
        script = Path(__file__).with_name("cable_in_namespace.py")
        with (self.folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(script), str(self.folder), self.name],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        assert self.process.stdout is not None
        self.output = self.process.stdout.fileno()
        self.rest = b""
        self.status: dict[str, Any] = {}
        assert self.line(PATIENCE) == b"ready", self.log()

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def plug(self) -> None:
        network_namespace.ip(f"link add {self.wire} type veth peer eth0 netns {self.process.pid}")
        network_namespace.ip(f"link set {self.wire} master bench0 up")

    def begin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")
        self.process.stdin.flush()

    def line(self, seconds: float) -> bytes:
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.output, selectors.EVENT_READ)
            while b"\n" not in self.rest:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    return b""
                part = os.read(self.output, 65536)
                assert part, f"{self.name} ended with {self.process.wait(PATIENCE)}: {self.log()}"
                self.rest += part
        found, _, self.rest = self.rest.partition(b"\n")
        return found

    def until(self, condition: Callable[[dict[str, Any]], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not (self.status and condition(self.status)):
            if line := self.line(0.5):
                self.status = json.loads(line)
            assert time.monotonic() < deadline, f"{what}: {self.status} {self.log()}"

    def found(self) -> None:
        self.until(lambda status: status["answering"] == ["eth0"], "it can be found")

    def address(self) -> IPv6Address:
        (cable,) = self.status["cables"]
        return IPv6Address(cable["addresses"][0])

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def bench(folder: Path, number: int) -> Iterator[list[Node]]:
    """Give nodes on a switch, whose end at the engineer's machine is bench0."""
    with network_namespace.namespace():
        network_namespace.ip("link add bench0 type bridge mcast_snooping 0")
        network_namespace.up("bench0")
        nodes: list[Node] = []
        try:
            for one in range(1, number + 1):
                nodes.append(Node(folder, one))
                nodes[-1].plug()
                nodes[-1].begin()
            for node in nodes:
                node.found()
            yield nodes
        finally:
            for node in nodes:
                node.end()


def search(**words: Any) -> set[tuple[str, IPv6Address]]:
    return {(one.name, one.address) for one in find.search(asked=["bench0"], **words)}


@contextmanager
def socket_at(interface: str) -> Iterator[socket.socket]:
    index = socket.if_nametoindex(interface)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as made:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        yield made


def send(made: socket.socket, packet: bytes) -> None:
    made.sendto(packet, ("ff02::fb", 5353))


def test_five_devices_on_a_switch_are_found_by_what_they_are(tmp_path: Path) -> None:
    with bench(tmp_path, NODES) as nodes:
        assert search() == {(node.name, node.address()) for node in nodes}
        for node in nodes:
            assert node.status["used"] == [["eth0"]]
            assert node.status["problems"] == []
            (cable,) = node.status["cables"]
            number = int(node.name[-2:], 16)
            assert cable["addresses"][1] == f"169.254.7.{number}"
        known = find.search(asked=["bench0"])
        assert {one.version for one in known} == {"1.2.3"}
        assert find.search(known[1:], asked=["bench0"]) == known[:1], "who is known is not told"


def test_an_adapter_that_is_pulled_and_put_back(tmp_path: Path) -> None:
    with bench(tmp_path, 1) as (node,):
        network_namespace.ip(f"link set {node.wire} down")
        node.until(lambda status: not status["answering"], "the other end is gone")
        assert not node.status["cables"][0]["plugged"]
        network_namespace.ip(f"link set {node.wire} up")
        node.found()
        assert search() == {(node.name, node.address())}
        network_namespace.ip(f"link del {node.wire}")
        node.until(lambda status: status["cables"] == [], "there is no cable")
        assert node.status["used"] == [[]]
        node.plug()
        node.found()
        assert search() == {(node.name, node.address())}
        assert node.status["problems"] == []


def test_the_mesh_hears_nothing_of_it(tmp_path: Path) -> None:
    """Linux gives multicast to every socket of a machine that has the port."""
    with bench(tmp_path, 1) as (node,):
        network_namespace.ip(f"link add mesh1 type veth peer mesh0 netns {node.process.pid}")
        network_namespace.up("mesh1")
        there = ["nsenter", "-t", str(node.process.pid), "-n"]
        subprocess.run([*there, "ip", "link", "set", "mesh0", "up"], check=True)
        join = (
            "import socket, struct, time; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); "
            "s.setsockopt(41, 20, socket.inet_pton(10, 'ff02::fb') + "
            "struct.pack('@I', socket.if_nametoindex('mesh0'))); print('joined', flush=True); "
            "time.sleep(999)"
        )
        # somebody of the node has joined the group there, as its DNS-SD of the mesh does
        with subprocess.Popen(
            [*there, sys.executable, "-c", join], stdout=subprocess.PIPE
        ) as beside:
            assert beside.stdout is not None
            assert beside.stdout.readline() == b"joined\n"
            before = sum(node.status["dropped"].values())
            assert {one.name for one in find.search(asked=["bench0"])} == {node.name}
            with socket_at("mesh1") as other, suppress(TimeoutError):
                other.settimeout(2.0)
                for _ in range(5):
                    send(other, browse(SERVICE, []))
                    send(other, b"rubbish")
                answer = other.recv(9000)
                raise AssertionError(f"the node answers on its mesh: {answer!r}")
            node.line(0.2)
            assert sum(node.status["dropped"].values()) == before
            beside.kill()


def name(text: str) -> bytes:
    return b"".join(bytes((len(p),)) + p.encode() for p in text.strip(".").split(".")) + b"\0"


def record(owner: bytes, kind: int, data: bytes) -> bytes:
    return owner + struct.pack("!HHIH", kind, 1, 120, len(data)) + data


def lies(number: int, draw: random.Random) -> bytes:
    """A packet of somebody who wants to do harm."""
    host = f"n-{draw.randrange(1 << 48):012x}"
    service = name(f"{host}.{SERVICE}")
    pointer = record(name(SERVICE), 12, service)
    header = struct.pack("!HHHHHH", 0, 0x8400, 0, draw.choice((1, 1, 9, 65535)), 0, 0)
    return [
        # a name that leads to itself, and two that lead to each other (RFC 1035 4.1.4)
        header + record(b"\xc0\x0c", 12, b"\xc0\x0c"),
        header + record(b"\x01a\xc0\x10\x01b\xc0\x0c", 12, b"\xc0\x0e"),
        header + record(name(SERVICE), 12, name("n-\x1b[2Jevil.local")),
        header + pointer[: draw.randrange(len(pointer))],
        header + draw.randbytes(draw.randrange(1400)),
        header + record(name(f"{host}.local"), 28, draw.randbytes(draw.randrange(20))) + pointer,
        struct.pack("!HHHHHH", 0, 0, 1, 1, 0, 0) + service + b"\0\xff\0\1" + pointer,
        b"",
    ][number % 8]


def test_a_liar_on_the_cable(tmp_path: Path) -> None:
    """Nothing that it sends stops the nodes, or the search; what it claims is bounded."""
    draw = random.Random(5)
    with bench(tmp_path, 2) as nodes, socket_at("bench0") as liar:
        for number in range(4000):
            send(liar, lies(number, draw))
            if number % 500 == 0:
                time.sleep(0.1)  # the kernel's buffers are small
        for node in nodes:
            node.until(lambda status: sum(status["dropped"].values()) > 100, "rubbish is dropped")
            assert node.process.poll() is None
        deadline = time.monotonic() + PATIENCE
        honest = {(node.name, node.address()) for node in nodes}
        while not search() >= honest:
            assert time.monotonic() < deadline, "honest devices are found after it"


# -- software of others


AVAHI = [
    shutil.which(one) for one in ("avahi-daemon", "avahi-browse", "avahi-resolve", "dbus-daemon")
]
BUS = """<busconfig><listen>unix:path={path}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/>
<allow eavesdrop="true"/><allow own="*"/></policy></busconfig>
"""
CONFIG = """[server]
use-ipv4=yes
use-ipv6=yes
allow-interfaces=bench0
enable-dbus=yes
disallow-other-stacks=no
[publish]
disable-publishing=yes
"""


def no_avahi() -> str:
    """Return what is missing for it."""
    try:
        pwd.getpwnam("avahi")
    except KeyError:
        return "needs avahi-daemon, which brings the user avahi"
    return "needs avahi-utils and dbus-daemon" if None in AVAHI else ""


@pytest.mark.skipif(bool(no_avahi()), reason=no_avahi())
def test_avahi_resolves_and_finds_them(tmp_path: Path) -> None:
    with bench(tmp_path, 2) as nodes:
        network_namespace.ip("address add 169.254.99.1/16 dev bench0")
        (tmp_path / "bus.conf").write_text(BUS.format(path=tmp_path / "bus"))
        (tmp_path / "avahi.conf").write_text(CONFIG)
        environment = {
            **os.environ,
            "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={tmp_path / 'bus'}",
            "LC_ALL": "C",
        }
        # its socket and the number of its process are in a /run of its own
        script = (
            "mount -t tmpfs run /run && mkdir /run/avahi-daemon && exec avahi-daemon --no-chroot "
            f"--no-drop-root --no-rlimits --no-proc-title -f {tmp_path / 'avahi.conf'}"
        )
        commands = (
            ["dbus-daemon", "--nofork", "--config-file", str(tmp_path / "bus.conf")],
            ["unshare", "-m", "sh", "-c", script],
        )
        running = []
        try:
            for command in commands:
                with (tmp_path / "avahi.log").open("ab") as log:
                    running.append(
                        subprocess.Popen(command, env=environment, stdout=log, stderr=log)
                    )
                until_there(tmp_path / "bus", running[0], tmp_path / "avahi.log")

            def resolve(command: list[str], wanted: str) -> str:
                """Return what a program says, once that is in it."""
                deadline = time.monotonic() + PATIENCE
                while True:
                    done = subprocess.run(
                        ["timeout", "10", *command],
                        env=environment, capture_output=True, text=True, check=False,
                    )  # fmt: skip
                    if wanted in done.stdout:
                        return done.stdout
                    said = f"{wanted}: {done.stdout} {done.stderr}"
                    log = (tmp_path / "avahi.log").read_text()
                    assert running[1].poll() is None, log
                    assert time.monotonic() < deadline, said + log
                    time.sleep(0.2)

            for node in nodes:
                host = f"{node.name}.local"
                number = int(node.name[-2:], 16)
                for kind, wanted in (("-6", str(node.address())), ("-4", f"169.254.7.{number}")):
                    resolve(["avahi-resolve", kind, "-n", host], f"{host}\t{wanted}")
            browse_all = ["avahi-browse", "-prt", "_ssh._tcp"]
            for node in nodes:
                text = resolve(browse_all, f";{node.name}.local;")
                (line, *_) = [one for one in text.splitlines() if f";{node.name}.local;" in one]
                address, port, said = line.split(";")[7:]
                number = int(node.name[-2:], 16)
                assert address in {str(node.address()), f"169.254.7.{number}"}
                assert port == "22"
                assert '"version=1.2.3"' in said
        finally:
            for process in reversed(running):
                process.terminate()
                process.wait()


def until_there(path: Path, maker: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, log.read_text()
        assert maker.poll() is None, log.read_text()
        time.sleep(0.05)


# -- people get in, by ssh and the server of the image


DROPBEAR = [
    shutil.which(one) for one in ("dropbear", "dropbearkey", "ssh", "ssh-keygen", "nsenter")
]
needs_dropbear = pytest.mark.skipif(None in DROPBEAR, reason="needs dropbear-bin, openssh-client")


class Door:
    """The SSH server of a node. Its sessions run here, as root, with files of the node."""

    def __init__(self, node: Node, key: str) -> None:
        self.node = node
        self.folder = node.folder
        home = self.folder / "home"
        (home / ".ssh").mkdir(parents=True, mode=0o700)
        home.chmod(0o700)
        (home / ".ssh/authorized_keys").write_text(key)
        (home / ".ssh/authorized_keys").chmod(0o600)
        (self.folder / "passwd").write_text(f"root:x:0:0:root:{home}:/bin/sh\n")
        (self.folder / "data/thicket").mkdir(parents=True)
        (self.folder / "bin").mkdir()
        python = self.folder / "bin" / "python3"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        (self.folder / "session").write_text(
            f"export PATH={self.folder}/bin:$PATH THICKET_ROOT={self.folder}\n"
            'exec sh -c "$SSH_ORIGINAL_COMMAND"\n'
        )
        self.process: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        """Start it, with another host key each time, as a new card has one."""
        key = self.folder / "hostkey"
        key.unlink(missing_ok=True)
        made = ["dropbearkey", "-t", "ed25519", "-f", str(key)]
        subprocess.run(made, check=True, capture_output=True)
        script = (
            f"mount --bind {self.folder}/passwd /etc/passwd && exec dropbear -F -E -e -s -p 22 "
            f"-r {key} -P {self.folder}/pid -c 'sh {self.folder}/session'"
        )
        there = ["nsenter", "-t", str(self.node.process.pid), "-n"]
        with (self.folder / "sshd.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*there, "unshare", "-m", "sh", "-c", script], stderr=log, stdout=log
            )

    def close(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()


@needs_dropbear
def test_a_bench_of_devices_is_enrolled_by_its_cables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "id"
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
    subprocess.run(command, check=True)
    (tmp_path / "bin").mkdir()
    wrapper = f'#!/bin/sh\nexec {shutil.which("ssh")} -F none -i {key} -o IdentitiesOnly=yes "$@"\n'
    (tmp_path / "bin/ssh").write_text(wrapper)
    (tmp_path / "bin/ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("THICKET_CA", str(tmp_path / "fleet"))
    sources = (app_source(), str(Path(find.__file__).parents[1]))
    monkeypatch.setenv("PYTHONPATH", ":".join(sources))
    ca = Authority(tmp_path / "fleet", lambda _: "")
    ca.init("acme", IPv6Network("fd12:3456:789a:1::/64"), lab=True)
    with short_folder() as folder, bench(folder, NODES) as nodes:
        doors = [Door(node, key.with_suffix(".pub").read_text()) for node in nodes]
        try:
            for door in doors:
                (door.folder / "root").write_text(ca.fleet.identifier.hex())
            for door in doors[:-1]:
                door.open()
            # the last one's server does not run: the others are enrolled all the same
            assert ca_main(["enroll", "--cable", "--yes"]) == 1
            said = capsys.readouterr().out
            for number, node in enumerate(nodes[:-1], 1):
                device = f"software-board-{node.name[2:]}"
                assert f"[{number}/{NODES}] {node.name} enrolled as {device}" in said
                assert device in ca.list()["devices"]
                assert (node.folder / "data/thicket/device.pem").exists()
            assert f"BAD  {nodes[-1].name}  not enrolled: " in said
            assert f"{NODES - 1} of {NODES} devices are enrolled." in said
            # once more: what is done is done, and one that is plugged in late is taken
            doors[-1].open()
            assert ca_main(["enroll", "--cable", "--yes"]) == 0
            said = capsys.readouterr().out
            assert said.count("is enrolled already") == 2 * (NODES - 1)
            assert f"{nodes[-1].name} enrolled as software-board-" in said
            # a known name with another host key: a new card, or somebody else
            doors[0].close()
            doors[0].open()
            assert ca_main(["enroll", "--cable", nodes[0].name, "--yes"]) == 1
            printed = capsys.readouterr()
            assert f"ssh-keygen -R {nodes[0].name} -f" in printed.out
            assert remote_main(["--cable"]) == 0
            assert all(node.name in capsys.readouterr().out for node in nodes[:1])
            assert remote_main(["--cable", "status"]) == 1
            assert f"{NODES} devices answer; name one" in capsys.readouterr().err
        finally:
            for door in doors:
                door.close()


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder whose name leaves room for those of sockets."""
    with tempfile.TemporaryDirectory(prefix="t") as name:
        yield Path(name)


def app_source() -> str:
    return str(Path(links.__file__).parents[2])

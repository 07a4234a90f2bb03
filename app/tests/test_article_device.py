# SPDX-License-Identifier: Apache-2.0
"""A Nerves device as it was published beside two of our daemons: each of them lists both others.

The device is Elixir with the kernel's defaults (``net_ticktime`` 60, a port from epmd), in a
network namespace of its own on the bridge that the daemons' radios are. It stays for a few seconds,
or for as many as THICKET_SOAK says.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import network_namespace
import pytest
from daemons import Fleet, NamespaceNode
from erlang import Release, each_release, program
from patience import PATIENCE

STAY = 2.0
SECONDS = float(os.environ.get("THICKET_SOAK", "0"))

SERIAL = "0123E0F92F20DE47EE"
HARDWARE = "02:00:00:de:47:01"
NAME = "myapp@fd12:3456:789a:1::e0f9:2f20:de47"
OURS = """[cluster]
name = "myapp"
cookie = "democookie"
"""


class Device:
    """The device, and what it said."""

    def __init__(self, release: Release, home: Path, serial: str) -> None:
        home.mkdir(exist_ok=True)
        self.release = release
        self.said: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        script = Path(__file__).with_name("article_device.exs")
        environment = {**os.environ, "HOME": str(home), "LC_ALL": "C.UTF-8"}
        environment["PATH"] = f"{Path(release.erl).parent}:{environment['PATH']}"
        environment.pop("ERL_EPMD_PORT", None)
        self.process = subprocess.Popen(
            [release.program("elixir"), "--erl", "-proto_dist inet6_tcp", str(script), serial],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            preexec_fn=network_namespace.unshare_network,  # noqa: PLW1509  # no thread holds a lock
        )
        threading.Thread(target=self._read, daemon=True).start()
        # What a device runs beside it: Node.start/1 starts no port mapper.
        self.epmd = subprocess.Popen(
            [program("epmd")],
            env=environment,
            preexec_fn=lambda: _enter(self.process.pid),  # noqa: PLW1509
        )

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.rstrip())
            self._lines.put(line.rstrip())
        self._lines.put(None)

    def plug_in(self, bridge: str) -> None:
        """Give it an interface, up and without an address."""
        wire = f"w{self.process.pid}"
        # Its radio has the same hardware address after each start, which others remember.
        network_namespace.ip(
            f"link add {wire} type veth peer name mesh0 address {HARDWARE} netns {self.process.pid}"
        )
        network_namespace.ip(f"link set {wire} master {bridge} up")
        for words in ("lo up", "mesh0 up"):
            subprocess.run(
                ["ip", "link", "set", *words.split()],
                check=True,
                preexec_fn=lambda: _enter(self.process.pid),
            )

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self, beginning: str, seconds: float = PATIENCE) -> str:
        """Return the rest of the next line that begins so."""
        end = time.monotonic() + seconds
        while True:
            try:
                line = self._lines.get(timeout=max(end - time.monotonic(), 0))
            except queue.Empty:
                pytest.fail(f"no {beginning!r} within {seconds:g} s; the device said {self.said}")
            assert line is not None, f"the device ended; it said {self.said}"
            if line.startswith(beginning):
                return line.removeprefix(beginning).strip()

    def list(self) -> set[str]:
        """What ``Node.list()`` is there."""
        self.tell("list")
        return set(self.hear("nodes").split())

    def stop(self) -> None:
        for process in (self.process, self.epmd):
            process.send_signal(signal.SIGKILL)
            process.wait()


def _enter(pid: int) -> None:
    """Move this process into the network namespace of another one."""
    handle = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(handle, network_namespace.CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    os.close(handle)


@contextmanager
def a_device(release: Release, folder: Path, serial: str = SERIAL) -> Iterator[Device]:
    device = Device(release, folder / "device", serial)
    try:
        yield device
    finally:
        device.stop()


def names(node: NamespaceNode) -> dict[str, str]:
    """The other nodes that a daemon knows, and their states."""
    return {entry["name"]: entry["state"] for entry in node.ask("nodes")["cluster"]["nodes"]}


@pytest.mark.soak
@each_release
def test_the_articles_device_and_our_nodes_list_each_other(
    fleet: Fleet, release: Release, tmp_path: Path
) -> None:
    one, two = fleet.add(OURS), fleet.add(OURS)
    daemons = {node: node.name.replace("thicket@", "myapp@") for node in (one, two)}
    with a_device(release, tmp_path) as device:
        device.plug_in("medium")
        device.tell("lower_up")
        assert device.hear("started") == NAME
        device.tell("peers")  # as the radio tells of the first
        for node in daemons:
            fleet.until(lambda node=node: NAME in node.members(), "the daemon lists the device")  # type: ignore[misc]

        def whole() -> list[Any]:
            """What differs from everybody listing everybody, under its own name."""
            differences: list[Any] = []
            if (found := device.list()) != set(daemons.values()):
                differences.append(("the device", found))
            for node, name in daemons.items():
                expected = dict.fromkeys({NAME, *daemons.values()} - {name}, "up")
                if (listed := names(node)) != expected:
                    differences.append((name, listed))
            return differences

        fleet.until(lambda: not whole(), "all three list the two others")
        since = [stays(node) for node in daemons]
        end = time.monotonic() + max(STAY, SECONDS)
        while time.monotonic() < end:
            time.sleep(1)
            assert not whole()
        # The connections are those of the beginning: none was lost and made again.
        assert [stays(node) for node in daemons] == since
        # Every spelling that a person may write leads there.
        for spelling in (NAME, "myapp@fd12:3456:789a:1:0:e0f9:2f20:de47", "20de47"):
            assert one.ask("ping", node=spelling)["node"] == NAME
        assert one.ask("call", node=NAME, function="Elixir.Enum.sum", arguments=[[1, 2, 3]]) == {
            "node": NAME,
            "result": 6,
        }
        for name in daemons.values():
            device.tell(f"call {name}")
            assert device.hear("answer") == "pong"
    for node in daemons:
        fleet.until(lambda node=node: NAME not in node.members(), "the device is missed")  # type: ignore[misc]
        assert names(node).get(NAME, "connecting") == "connecting"
    # Started again, it is found by its beacon or by trying, whichever is first.
    with a_device(release, tmp_path) as device:
        device.plug_in("medium")
        device.tell("lower_up")
        for _ in daemons:  # whoever sends two beacons soon one after the other is answered
            device.tell("peers")
            time.sleep(0.5)
        for node, name in daemons.items():
            fleet.until(lambda node=node: NAME in node.members(), "the daemon lists it again")  # type: ignore[misc]
            fleet.until(lambda name=name: name in device.list(), "and the device the daemon")  # type: ignore[misc]


def stays(node: NamespaceNode) -> Any:
    """Since when the device is connected, as a daemon has it."""
    found = node.ask("nodes")["cluster"]["nodes"]
    return next(entry["since"] for entry in found if entry["name"] == NAME)

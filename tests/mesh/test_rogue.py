# SPDX-License-Identifier: Apache-2.0
"""A fleet of two, and two who do not belong to it.

n1 and n2 are the fleet. n3 has the mesh's passphrase and the cluster's cookie, but shows no
certificate; programs on it then try what a thief of certificates could try. n4 has no passphrase
and calls its mesh by the same name.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shlex
from datetime import UTC, datetime
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from authority.authority import Authority
from authority.issuer import years_from
from authority.keys import HeldKey
from meshlab.lab.fleet import LabFleet
from meshlab.lab.lab import Lab
from meshlab.lab.spec import PREFIX
from meshlab.lab.testing import PATIENCE, Nodes
from thicket.identity.address import identity_of_serial
from thicket.trust import fleet as fleets
from thicket.trust import openssl
from thicket.trust.certificates import Certificate

MESH = "rogue"

INSIDE = ["n1", "n2"]

#: A node of its own on n3: connects to another one with what it was given, and tells what came of
#: it.
INTRUDER = """
import asyncio, base64, json, sys
from datetime import UTC, datetime
from ipaddress import IPv6Address
from thicket.distribution import DistributionError, Node
from thicket.trust.fleet import Fleet
from thicket.trust.credentials import Credentials
from thicket.trust.tls import FleetTls
from thicket.trust.verify import Clock, Rules
given = json.load(open(sys.argv[1]))
der = lambda name: base64.b64decode(given[name])
async def main():
    tls = None
    if "key" in given:
        chain = tuple(map(base64.b64decode, given["chain"]))
        mine = Credentials(der("key"), chain, None, None)
        clock = Clock(datetime(2024, 1, 1, tzinfo=UTC))
        tls = FleetTls(Fleet(der("root")), mine, lambda: Rules(clock))
    node = Node("rogue", given["cookie"], IPv6Address(given["address"]), 0, epmd_port=None, tls=tls)
    await node.start()
    node.port = 9100  # where it tries; it listens somewhere else
    try:
        await node.connect(given["target"], 200)
        print(json.dumps(["connected", ""]))
    except DistributionError as e:
        print(json.dumps([e.code, str(e)]))
    await node.stop()
asyncio.run(main())
"""

#: Somebody on n3 who has an operator's key, or another one: runs a program on another node.
OPERATOR = """
import base64, json, socket, sys
from thicket.operators.frames import TO_OPERATOR, Kind, Reader
from thicket.trust.credentials import Credentials
from thicket.trust.fleet import Fleet
from thicket.trust.tls import OPERATORS, client_context
given = json.load(open(sys.argv[1]))
der = lambda text: base64.b64decode(text)
mine = Credentials(der(given["key"]), tuple(map(der, given["chain"])), None, None)
context = client_context(mine, Fleet(der(given["root"])))
context.set_alpn_protocols([OPERATORS])
request = {"id": 1, "method": "exec", "params": {"words": ["sh", "-c", "hostname; id -u"]}}
with context.wrap_socket(socket.create_connection((given["target"], 9102), 200)) as line:
    line.sendall(json.dumps(request).encode() + b"\\n")
    data = b""
    while b"\\n" not in data:
        data += line.recv(4096) or sys.exit(json.dumps(["closed", ""]))
    answer, _, rest = data.partition(b"\\n")
    if "error" in json.loads(answer):
        print(json.dumps([json.loads(answer)["error"]["code"], ""]))
        sys.exit()
    frames, said = Reader(TO_OPERATOR), b""
    while True:
        for frame in frames.feed(rest):
            if frame.kind is Kind.EXIT:
                print(json.dumps(["done", said.decode()]))
                sys.exit()
            said += frame.data
        rest = line.recv(4096)
"""

#: Hears a beacon of n1, and sends it to n2: as it was, and with one bit changed.
ECHO = """
import json, socket, struct, sys, time
other, target, own = sys.argv[1:]
index = socket.if_nametoindex("mesh0")
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 255)
s.bind(("::", 49999))
group = socket.inet_pton(socket.AF_INET6, "ff02::69") + struct.pack("@I", index)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
s.settimeout(240)
wanted = socket.inet_pton(socket.AF_INET6, other)
while True:
    heard, source = s.recvfrom(2048)
    if socket.inet_pton(socket.AF_INET6, source[0].partition("%")[0]) == wanted and len(heard) > 99:
        break
sender = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 255)
sender.bind((own, 0, 0, index))
for n in range(6):
    sender.sendto(heard, (target, 49999, 0, index))
    time.sleep(0.4)
for n in range(12):
    at = len(heard) * n // 12
    changed = heard[:at] + bytes((heard[at] ^ 1 << n % 8,)) + heard[at + 1:]
    sender.sendto(changed, (target, 49999, 0, index))
    time.sleep(0.4)
print(json.dumps(len(heard)))
"""


async def write(nodes: Nodes, name: str, path: str, text: str) -> None:
    """Write a file on a node, in pieces that a terminal takes."""
    data = base64.b64encode(text.encode()).decode()
    await nodes.run(name, f": >{path}.b64")
    for at in range(0, len(data), 1500):
        await nodes.run(name, f"printf %s {data[at : at + 1500]} >>{path}.b64")
    code = f"import base64; open('{path}', 'wb').write(base64.b64decode(open('{path}.b64').read()))"
    await nodes.run(name, f"python3 -c {shlex.quote(code)}")


async def last_line(nodes: Nodes, name: str, command: str) -> Any:
    return json.loads((await nodes.run(name, command)).strip().splitlines()[-1])


async def link_local(nodes: Nodes, name: str) -> str:
    """Return the link-local address of a node's mesh interface (scope 20 in if_inet6)."""
    rows = [line.split() for line in (await nodes.run(name, "cat /proc/net/if_inet6")).splitlines()]
    (text,) = (row[0] for row in rows if row[5] == "mesh0" and row[3] == "20")
    return str(IPv6Address(bytes.fromhex(text)))


class Intruder:
    """What somebody on n3 can make: any certificate that some authority signs."""

    def __init__(self, lab: Lab, nodes: Nodes) -> None:
        assert isinstance(lab.fleet, LabFleet)
        self.lab, self.nodes = lab, nodes
        self.ours = lab.fleet.authority

    def certificates(
        self,
        authority: Authority,
        device: str,
        validity: tuple[datetime, datetime] | None = None,
    ) -> dict[str, Any]:
        """A key, and a chain that says that it is the node ``device``'s."""
        serial = bytes.fromhex(self.lab.state.nodes[device].serial or "")
        issuer = authority.issuer()
        issuer.validity = validity or issuer.validity
        key, own = openssl.generate_key(), openssl.generate_key()
        signed = issuer.device("chip", identity_of_serial(serial), serial, openssl.public_key(key))
        above = Certificate(signed)
        profile = fleets.node_profile(
            authority.fleet, above, openssl.public_key(own), 1 << 125 | 1,
            (above.not_before, above.not_after),
        )  # fmt: skip
        leaf = profile.signed(openssl.sign(key, profile.digest()))
        chain = (leaf, signed, issuer.certificate)
        return {
            "key": base64.b64encode(own).decode(),
            "chain": [base64.b64encode(one).decode() for one in chain],
        }

    async def tries(self, certificates: dict[str, Any]) -> tuple[str, str]:
        """Let it connect to n1; code and words of what came of it, once n1 is reached."""
        given = {
            "root": base64.b64encode(self.ours.fleet.root.der).decode(),
            "cookie": self.lab.nodes["n1"].config["cluster"]["cookie"],
            "address": self.nodes.address("n3"),
            "target": self.nodes.status("n1", "cluster", "node"),
            **certificates,
        }
        await write(self.nodes, "n3", "/tmp/given.json", json.dumps(given))
        await write(self.nodes, "n3", "/tmp/intruder.py", INTRUDER)
        command = "python3 /tmp/intruder.py /tmp/given.json 2>/dev/null"
        found = ["", ""]

        async def reached() -> bool:
            found[:] = await last_line(self.nodes, "n3", command)
            return found[0] not in ("timeout", "unreachable")

        await self.nodes.until(reached, "n3 reaches n1")
        code, words = found
        return code, words

    async def refused(self, certificates: dict[str, Any], code: str) -> None:
        """It is refused for this reason, which both sides tell."""
        found, words = await self.tries(certificates)
        assert found == code, (found, words)

        async def logged() -> bool:
            return f"({code})" in await self.nodes.run("n1", "logread | grep refused; true")

        await self.nodes.until(logged, f"n1 says that it refused for {code}")

        async def counted() -> bool:
            status = await self.nodes.json("n1", "thicket status --json")
            return bool(status["cluster"]["refused"].get(code))

        await self.nodes.until(counted, f"n1 counts a refusal for {code}")
        assert self.lab.state.cluster("n1") <= {"n2"}


@pytest.fixture
def intruder(lab: Lab, nodes: Nodes) -> Intruder:
    return Intruder(lab, nodes)


async def test_the_fleet_forms_and_nobody_else_is_in_it(lab: Lab, nodes: Nodes) -> None:
    await nodes.wait(
        lambda: (lab.state.cluster("n1"), lab.state.cluster("n2")) == ({"n2"}, {"n1"}),
        "the two see each other and nobody else",
    )
    for name in INSIDE:
        assert nodes.status(name, "trust", "state") == "ready"
        assert nodes.status(name, "cluster", "security") == "tls"
        assert nodes.status(name, "trust", "software") is False
    assert lab.state.cluster("n3") == set()


async def test_an_operator_is_let_in_and_no_member(intruder: Intruder) -> None:
    nodes, ours = intruder.nodes, intruder.ours
    ours.operators.make("alice")
    alice = ours.operators.open("alice")
    assert isinstance(alice.key, HeldKey)
    common = {
        "root": base64.b64encode(ours.fleet.root.der).decode(),
        "target": nodes.address("n1"),
    }
    await write(nodes, "n3", "/tmp/runs_far.py", OPERATOR)

    async def tries(given: dict[str, Any]) -> list[str]:
        await write(nodes, "n3", "/tmp/given.json", json.dumps({**common, **given}))
        command = "python3 /tmp/runs_far.py /tmp/given.json 2>&1"
        found: list[str] = await last_line(nodes, "n3", command)
        return found

    operator = {
        "key": base64.b64encode(alice.key.exported()).decode(),
        "chain": [base64.b64encode(alice.certificate).decode()],
    }
    host = nodes.status("n1", "hostname")
    assert await tries(operator) == ["done", f"{host}\n0\n"]
    await nodes.logs("n1", "operator alice: sh ...")
    code, _ = await tries(intruder.certificates(ours, "n3"))
    assert code == "not-an-operator"
    # Nor is an operator a member.
    code, _ = await intruder.tries(operator)
    assert code in {"bad-chain", "wrong-certificate", "tls", "closed"}, code
    assert intruder.lab.state.cluster("n1") <= {"n2"}


async def test_without_the_passphrase_nothing_is_heard(lab: Lab, nodes: Nodes) -> None:
    await nodes.wait(
        lambda: nodes.status("n4", "radio", "state") == "joined", "n4 is in a mesh of its own"
    )
    before = await nodes.run("n4", "cat /sys/class/net/mesh0/statistics/rx_packets")
    for name in ("n1", "n2", "n3"):
        assert not await nodes.reaches(name, "n4")
    await nodes.reach("n1", "n2")
    after = await nodes.run("n4", "cat /sys/class/net/mesh0/statistics/rx_packets")
    assert int(after) == int(before)
    assert lab.state.peers("n4") == set()
    assert not any("n4" in lab.state.peers(name) for name in ("n1", "n2", "n3"))
    assert nodes.status("n4", "discovery", "received") == 0


async def test_without_a_certificate_no_cluster_is_joined(
    lab: Lab, nodes: Nodes, intruder: Intruder
) -> None:
    """The passphrase makes n3 a neighbour, the cookie is right, and neither helps."""
    await nodes.reach("n3", "n1")
    code, words = await intruder.tries({})
    assert code != "connected", words
    assert (await lab.run("n3", f"thicket ping {nodes.address('n1')}", PATIENCE))[0] != 0
    assert lab.state.cluster("n3") == set()
    assert lab.state.cluster("n1") <= {"n2"}


async def test_a_certificate_of_another_fleet(intruder: Intruder, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other", lambda _: "")
    other.init("other", IPv6Network(PREFIX), lab=True)
    await intruder.refused(intruder.certificates(other, "n3"), "other-fleet")


async def test_a_certificate_that_has_expired(intruder: Intruder) -> None:
    past = years_from(datetime(2001, 1, 1, tzinfo=UTC), 20)
    await intruder.refused(intruder.certificates(intruder.ours, "n3", past), "expired")


async def test_a_certificate_of_another_device(intruder: Intruder) -> None:
    await intruder.refused(intruder.certificates(intruder.ours, "n2"), "not-its-address")


async def test_repeated_and_changed_beacons_are_dropped_and_counted(lab: Lab, nodes: Nodes) -> None:
    await write(nodes, "n3", "/tmp/echo.py", ECHO)
    heard, own = await link_local(nodes, "n1"), await link_local(nodes, "n3")
    command = f"python3 /tmp/echo.py {heard} {nodes.address('n2')} {own}"

    async def counted() -> bool:  # of what is sent some may be lost on the way
        size = await last_line(nodes, "n3", command)
        assert 400 < size < 700
        drops = await nodes.now("n2", "discovery", "dropped")
        others = sum(count for reason, count in drops.items() if reason != "replay")
        return bool(drops.get("replay", 0) >= 3 and others >= 6)

    await nodes.until(counted, "n2 counts what it dropped")
    assert lab.state.cluster("n2") <= {"n1"}


async def test_a_revoked_device(lab: Lab, nodes: Nodes, intruder: Intruder) -> None:
    """The list goes to n2, and from there to n1, which then refuses."""
    nodes.unfit = "the device of n3 is revoked for good"
    serial = lab.state.nodes["n3"].serial or ""
    good = intruder.certificates(intruder.ours, "n3")
    assert (await intruder.tries(good))[0] == "connected"
    packed = await asyncio.to_thread(intruder.ours.revocations.revoke, [serial])
    code = "import sys, base64; sys.stdout.buffer.write(base64.b64decode(sys.argv[1]))"
    command = f"python3 -c {shlex.quote(code)} {base64.b64encode(packed).decode()}"
    said = await nodes.run("n2", f"{command} | thicket revocations import -")
    assert "1" in said
    await nodes.wait(
        lambda: (nodes.status("n1", "trust", "revocations", "names") or 0) == 1, "n1 has it"
    )
    await intruder.refused(good, "revoked")

# SPDX-License-Identifier: Apache-2.0
"""Three nodes behind their firewalls, and what one of them finds when it tries the others.

n2 has an application's port open and logs what it drops; n1 logs everything that there is to log.
"""

from __future__ import annotations

import json
import shlex

from meshlab.lab.lab import Lab
from meshlab.lab.testing import Nodes

MESH = "firewall"

NAMES = ["n1", "n2", "n3"]

#: Listens on ports for a while, as programs do that nobody thought of.
LISTEN = """
import socket, sys, time
servers = [socket.create_server(("::", int(port)), family=socket.AF_INET6) for port in sys.argv[1:]]
print("ready", flush=True)
time.sleep(600)
"""

#: Tries TCP ports until those that should answer did, for at most four minutes; prints them. A way
#: that is not there yet, or no answer at all, is no refusal: that port is tried again.
SCAN = """
import errno, json, selectors, socket, sys, time
host, wanted, others = sys.argv[1], *(set(map(int, word.split(","))) for word in sys.argv[2:])
passing = {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH}
end = time.monotonic() + 240
selector = selectors.DefaultSelector()
def begin(port):
    s = socket.socket(socket.AF_INET6)
    s.setblocking(False)
    while s.connect_ex((host, port)) in passing:
        time.sleep(0.2) if time.monotonic() < end else sys.exit("there is no way to it")
    selector.register(s, selectors.EVENT_WRITE, port)
for port in wanted | others:
    begin(port)
found, refused = set(), set()
while found < wanted and time.monotonic() < end:
    for key, _ in selector.select(1):
        error = key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        selector.unregister(key.fileobj)
        if error in passing:
            key.fileobj.close()
            begin(key.data)
        else:
            (refused if error else found).add(key.data)
print(json.dumps([sorted(found), sorted(refused)]))
"""

STORM = """
import socket, sys, time
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
index = socket.if_nametoindex("mesh0")
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
sent = 0
while sent < int(sys.argv[1]):
    try:
        s.sendto(b"fd12:3456:789a:1::bad", ("ff02::69", 49999, 0, index))
        sent += 1
    except OSError:  # the queue is full: the air is slower than the program
        time.sleep(0.01)
print(sent)
"""

#: Asks for the addresses of hosts by multicast DNS, as a computer in the mesh does, for at most two
#: minutes; prints those that answer. The answers come to the multicast group (RFC 6762 6).
RESOLVE = """
import json, select, socket, struct, sys, time
index = socket.if_nametoindex("mesh0")
group = socket.inet_pton(socket.AF_INET6, "ff02::fb")
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + struct.pack("@I", index))
s.bind(("::", 5353))
wanted = dict(zip(sys.argv[1::2], sys.argv[2::2]))
found, again, end = set(), 0, time.monotonic() + 120
while found < set(wanted) and time.monotonic() < end:
    if time.monotonic() > again:
        again = time.monotonic() + 3
        for host in set(wanted) - found:
            name = b"".join(bytes((len(p),)) + p.encode() for p in host.split(".")) + bytes(1)
            question = struct.pack("!HHHHHH", 0, 0, 1, 0, 0, 0) + name + struct.pack("!HH", 28, 1)
            s.sendto(question, ("ff02::fb", 5353, 0, index))
    if select.select([s], [], [], 1)[0]:
        answer = s.recv(9000)
        for host, address in wanted.items():
            if answer[2] & 0x80 and socket.inet_pton(socket.AF_INET6, address) in answer:
                found.add(host)
print(json.dumps(sorted(found)))
"""


def python(code: str, *arguments: object) -> str:
    return shlex.join(["python3", "-c", code, *map(str, arguments)])


async def test_every_node_has_its_rules_and_they_form_a_cluster(nodes: Nodes) -> None:
    for name in NAMES:
        await nodes.wait(lambda: nodes.status(name, "firewall", "state") == "on", "it is on")  # noqa: B023
        assert not nodes.problems(name, "firewall")
        rules = await nodes.run(name, "nft list table inet thicket")
        assert "hook input priority filter; policy drop;" in rules
        await nodes.says(name, "thicket status", "Firewall:")


async def test_only_what_is_served_answers(nodes: Nodes) -> None:
    served, others = {4369, 8080, 9100, 9102}, {21, 22, 80, 8081}
    log = "/tmp/listen.log"
    listen = python(LISTEN, 8080, *sorted(others))
    await nodes.run("n2", f": >{log}; {listen} >{log} 2>&1 & echo $! >/tmp/listen.pid")

    async def ready() -> bool:
        return "ready" in await nodes.run("n2", f"cat {log}")

    await nodes.until(ready, "n2 listens")
    words = (",".join(map(str, sorted(ports))) for ports in (served, others))
    scan = python(SCAN, nodes.address("n2"), *words)
    found, refused = json.loads((await nodes.run("n1", scan)).strip().splitlines()[-1])
    assert (set(found), refused) == (served, [])
    # To itself the node is open.
    words = (",".join(map(str, sorted(ports))) for ports in (served | others, {1}))
    inside = await nodes.run("n2", python(SCAN, nodes.address("n2"), *words))
    assert set(json.loads(inside.strip().splitlines()[-1])[0]) == served | others

    async def counted() -> bool:
        status = await nodes.json("n2", "thicket status --json")
        return bool(status["firewall"]["dropped"].get("closed", 0) >= len(others))

    await nodes.until(counted, "n2 counts what it dropped")

    await nodes.logs("n2", "firewall: ")
    assert "firewall: " not in await nodes.run("n3", "logread; true")
    await nodes.run("n2", "kill $(cat /tmp/listen.pid)")


async def test_a_storm_of_beacons_stays_outside(lab: Lab, nodes: Nodes) -> None:
    began = lab.elapsed
    before = {name: await nodes.now(name, "discovery", "received") for name in ("n2", "n3")}
    assert "3000" in await nodes.run("n1", python(STORM, 3000))

    def dropped() -> bool:
        counts = [nodes.status(name, "firewall", "dropped") or {} for name in ("n2", "n3")]
        return all(count.get("beacon_sender", 0) >= 100 for count in counts)

    await nodes.wait(dropped, "n2 and n3 drop beacons")
    for name, count in before.items():
        now = await nodes.now(name, "discovery", "received")
        assert now - count <= 20 + 12 * (lab.elapsed - began) + 60
    await nodes.whole()


async def test_nodes_answer_to_their_names(nodes: Nodes) -> None:
    """Multicast DNS gets through the firewalls, some time after joining."""

    def published() -> bool:
        found = [nodes.status(name, "dns_sd") or {} for name in NAMES]
        return all(f.get("state") == "published" for f in found)

    await nodes.wait(published, "every node is published")
    hosts = {
        f"{(await nodes.run(name, 'hostname')).split()[-1]}.local": nodes.address(name)
        for name in ("n2", "n3")
    }
    words = (word for pair in hosts.items() for word in pair)
    said = await nodes.run("n1", python(RESOLVE, *words))
    assert json.loads(said.strip().splitlines()[-1]) == sorted(hosts)


async def test_the_rules_follow_the_configuration(lab: Lab, nodes: Nodes) -> None:
    for allowed, rule, other in (
        ("udp/5000", "udp dport 5000", "8080"),
        ("tcp/8080", "8080", "5000"),
    ):
        code, output = await lab.configure("n2", [f"firewall.allow={allowed}"])
        assert code == 0, output

        async def followed(rule: str = rule, other: str = other) -> bool:
            rules = await nodes.run("n2", "nft list table inet thicket")
            return f"{rule} accept" in rules and other not in rules

        await nodes.until(followed, f"n2 has the rules of {allowed}")
    await nodes.whole()


async def test_nothing_that_a_node_shows_holds_a_secret(lab: Lab, nodes: Nodes) -> None:
    said = await nodes.run(
        "n1",
        "logread; dmesg; cat /run/thicket/status.json /run/thicket/firewall.nft;"
        " thicket status; thicket config show; thicket peers; ps; thicket logs;"
        " thicket support - | gzip -d; true",
    )
    for part in ("status.json", "settings.txt", "stations.txt", "firewall.txt"):
        assert f"/{part}" in said
    assert "sae" in said
    secret = lab.spec.passphrase
    assert secret
    assert secret not in said
    found = await nodes.run("n1", f"grep -rslF -- {shlex.quote(secret)} /run /tmp /etc; true")
    keepers = set(found.split())
    assert keepers
    for path in keepers:
        assert path.endswith(("/thicket.toml", "/wpa_supplicant.conf")), path


async def test_a_crashing_program_leaves_no_core(nodes: Nodes) -> None:
    command = "cd /tmp && ulimit -c unlimited; sh -c 'kill -SEGV $$'; ls -a /tmp | grep core; true"
    assert "core" not in (await nodes.run("n1", command)).replace("core dumped", "")
    assert "# CONFIG_COREDUMP is not set" in await nodes.run("n1", "zcat /proc/config.gz")

# SPDX-License-Identifier: Apache-2.0
"""Updates in a line of four devices with cards: they travel, are installed and kept, or are not.

The tests that leave the devices' versions as they were come first: a mesh serves all of them.
``MESHLAB_IMAGE=x86_64`` runs what needs no other files than those of a build.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from meshlab.image.lab import Text
from meshlab.lab.errors import LabError
from meshlab.lab.lab import Lab
from meshlab.lab.real_parts import CARDS, STANDIN, STANDINS
from meshlab.lab.testing import PATIENCE, Nodes
from meshlab.lab.updates import BAD_INIT, Desk, put, put_large
from meshlab.machine.shell import ShellError
from meshlab.wire.rpc import RpcError
from thicket.base.units import size_text
from thicket.device.boot_record import WORDS, Why
from thicket.update.offer import CHUNK, Plan, read_offer
from thicket.update.spread import WINDOW

MESH = "updates"

soak = pytest.mark.skipif(
    not os.environ.get("THICKET_SOAK"), reason="takes minutes: `make soak`, or THICKET_SOAK=1"
)

LONG = 1500.0
"""Seconds within which a fleet takes an update on a busy host that emulates it."""
PAUSE = 3.0
"""Seconds between two questions to all nodes: each costs an emulated one a second of work."""

NOBODY = ("n-000000000000",)
"""Canaries of a plan by which nobody begins."""

FULL = "/data/full"
FILL = f"dd if=/dev/zero of={FULL} bs=1M; dd if=/dev/zero bs=4096 >>{FULL}; sync"
"""Takes all the room on /data."""
NO_ROOM = "/data is full: remove something from it"

BALLAST = Text(
    "usr/share/ballast", base64.b64encode(random.Random(11).randbytes(3 << 20)).decode("ascii")
)
"""What makes a change one of a hundred chunks."""


@pytest.fixture
def desk(lab: Lab, tmp_path: Path) -> Desk:
    # The mesh is one of nodes of one kind, whatever the others are.
    image = lab.state.image
    return Desk(lab, tmp_path, image if image in CARDS else STANDIN)


@pytest.fixture
def varied(desk: Desk) -> None:
    """Skip a test that needs a version with other files."""
    if desk.image not in STANDINS:
        pytest.skip(f"the files of {desk.image} are as they were built; only stand-ins vary")


def plan(canaries: int | tuple[str, ...], well: int = 10) -> Plan:
    return Plan(canaries, well, waves=(100,), failures=0, window=None)


# -- what nodes tell


Told = dict[str, Any]
"""What a node says in ``thicket update status --json``."""


class Watch:
    """Asks nodes how an update goes, over all their restarts."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.told: dict[str, Told] = {}
        """The newest that each node has said."""
        self._ended: dict[str, Counter[str]] = {}
        """The counters of each node's runs that are over."""
        self._shown = ""

    async def ask(self, names: Iterable[str] | None = None) -> dict[str, Told]:
        """Ask nodes (all that are on); return what those have said that answered."""
        on = [name for name, node in self.lab.nodes.items() if node.state.power == "running"]
        wanted = [name for name in on if names is None or name in names]
        answers = await asyncio.gather(*map(self._ask, wanted))
        found = {name: told for name, told in zip(wanted, answers, strict=True) if told}
        for name, told in found.items():
            before, now = self._counters(name), told["spread"]["counters"]
            if any(now[key] < before[key] for key in now):
                self._ended.setdefault(name, Counter()).update(before)
            self.told[name] = told
        self._show(found)
        return found

    async def _ask(self, name: str) -> Told | None:
        try:
            async with asyncio.timeout(60):
                status, said = await self.lab.run(name, "thicket update status --json", 50)
        except (LabError, RpcError, ShellError, TimeoutError):
            return None  # it restarts
        return json.loads(said) if status == 0 else None

    def _counters(self, name: str) -> Counter[str]:
        told = self.told.get(name)
        return Counter(told["spread"]["counters"] if told else {})

    def count(self, name: str, what: str) -> int:
        """Return what a node has counted in all its runs."""
        return self._ended.get(name, Counter())[what] + self._counters(name)[what]

    def _show(self, found: dict[str, Told]) -> None:
        lines = []
        for name, told in found.items():
            own = [f"{one['state']} {one['percent']}" for one in told["rollout"]["nodes"]]
            lines.append(f"{name} has {here(told)}, sees {', '.join(own)}")
        shown = "; ".join(lines)
        if shown != self._shown:
            self._shown = shown
            print(f"{self.lab.elapsed:6.0f} s  {shown}", flush=True)

    async def until(
        self,
        what: str,
        check: Callable[[dict[str, Told]], bool],
        names: Iterable[str] | None = None,
    ) -> dict[str, Told]:
        """Ask until what nodes say is as it should be; return that.

        :param check: Gets what all of them said; it is not asked while one of them is silent.
        """
        wanted = list(self.lab.nodes if names is None else names)
        had = self.lab.given()
        while had.seconds() < LONG:
            found = await self.ask(wanted)
            if set(found) == set(wanted) and check(found):
                return found
            await asyncio.sleep(PAUSE)
        raise AssertionError(f"not within {LONG:g} s: {what}: {self._shown}\n{self.lab.report()}")


def here(told: Told) -> int:
    """Return the bytes of patches that a node has of the offer."""
    return sum(int(one["here"]) for one in told["spread"]["patches"])


def size(told: Told) -> int:
    return sum(int(one["size"]) for one in told["spread"]["patches"])


def offered(told: Told) -> int:
    """Return the number of the newest offer that a node has; 0 without one."""
    offer = told["spread"]["offer"]
    return 0 if offer is None else int(offer["number"])


def line(told: Told, host: str) -> dict[str, Any]:
    """Return the line of a node, by its host name, in what another one tells."""
    found = [one for one in told["rollout"]["nodes"] if one["node"] == host]
    return found[0] if found else {"state": "", "why": "", "percent": 0}


def kept(told: Told) -> str:
    """Return the slot that a node runs, and keeps."""
    return "".join(one["name"] for one in told["slots"] if one["runs"] and not one["trial"])


def number(packed: bytes) -> int:
    return read_offer(packed)[0].number


async def hosts(nodes: Nodes) -> dict[str, str]:
    """Return the host name of each node."""
    return {name: (await nodes.run(name, "hostname")).strip() for name in nodes.lab.nodes}


async def runs(nodes: Nodes, name: str) -> tuple[str, str]:
    """Return the version that a node runs, and from which slot."""
    release = await nodes.run(name, ". /usr/lib/os-release; echo $VERSION_ID")
    told = await nodes.run(name, "cat /proc/cmdline")
    return release.strip(), told.partition("thicket.slot=")[2][:1]


def restarts(lab: Lab, name: str) -> int:
    """Return how often a node has restarted."""
    return sum("restarts (" in one.text and one.node == name for one in lab.state.events)


async def refused(nodes: Nodes, name: str, command: str) -> str:
    """Run a command that must fail; return what it says."""
    status, said = await nodes.lab.run(name, f"{command} 2>&1", PATIENCE)
    assert status == 1, f"{command} ended with {status}: {said}"
    return said


# -- what is not taken


@soak
async def test_nothing_travels_that_was_changed_or_is_of_a_revoked_signer(
    lab: Lab, nodes: Nodes, desk: Desk
) -> None:
    named, watch = await hosts(nodes), Watch(lab)
    old, new = await desk.bundle(), await desk.bundle("2.0.0")
    base, patch = await desk.patch(new, old)
    good = desk.offer(new, {base: patch}, plan(NOBODY))
    found = await watch.until("all take part", lambda found: True)
    before = {name: offered(told) for name, told in found.items()}

    # An offer with one flipped bit, in what is signed.
    changed = bytearray(good)
    changed[good.index(b'"version":"2.0.0"') + 11] ^= 1
    await put(lab, "n1", "/data/changed/offer", bytes(changed))
    said = await refused(nodes, "n1", "thicket update offer /data/changed")
    assert "what it says was changed after it was signed" in said
    found = await watch.until("all take part", lambda found: True)
    assert {name: offered(told) for name, told in found.items()} == before

    # A patch with one flipped bit, beside the right offer: nobody gets it.
    damaged = bytearray(patch.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    await put(lab, "n1", "/data/in/change", bytes(damaged))
    await put(lab, "n1", "/data/in/offer", good)
    said = await refused(nodes, "n1", "thicket update offer /data/in")
    assert "there is none of the offer's patches in /data/in" in said
    await watch.until(
        "the offer is everywhere, and nothing of the patch",
        lambda found: all(offered(t) == number(good) and not here(t) for t in found.values()),
    )

    # A patch that goes bad on the card of the only neighbour of those that lack it.
    await lab.link("n2", "n3", cut=True)
    await nodes.wait(lambda: lab.state.cluster("n2") == {"n1"}, "n2 has no way to n3")
    await put(lab, "n1", "/data/in/change", patch.read_bytes())
    await nodes.succeeds("n1", "thicket update offer /data/in")
    found = await watch.until(
        "n2 has made the bundle of it",
        lambda found: line(found["n2"], named["n2"])["state"] == "waiting",
    )
    received = watch.count("n2", "received")
    stored = f"/data/update/offered/{sha256(patch.read_bytes()).hexdigest()}.patch"
    await nodes.run("n2", f"printf rubbish | dd of={stored} bs=1 seek=1000 conv=notrunc 2>&1")
    await lab.link("n2", "n3", restore=True)
    await nodes.whole()
    found = await watch.until(
        "all have the patch", lambda found: all(here(t) == size(t) for t in found.values())
    )
    right = f"{sha256(patch.read_bytes()).hexdigest()}  {stored}\n"
    for name, told in found.items():
        print(name, told["spread"]["counters"])
        assert await nodes.run(name, f"sha256sum {stored}") == right
        assert told["spread"]["counters"]["wrong"] == 0
    assert watch.count("n2", "received") == received + 1, "what was damaged is fetched again"

    # An offer of a signer whose revocation is known behind the first node alone.
    await lab.link("n1", "n2", cut=True)
    await nodes.wait(lambda: not lab.state.cluster("n1"), "n1 is alone")
    stolen = desk.offer(new, {base: patch}, plan(NOBODY), signer="thief")
    await put(lab, "n1", "/data/in/offer", stolen)
    await nodes.succeeds("n1", "thicket update offer /data/in")
    packed = await asyncio.to_thread(
        desk.authority.revocations.revoke, desk.authority.revocations.full_names(["thief"])
    )
    await put(lab, "n4", "/data/in/list", packed)
    await nodes.run("n4", "thicket revocations import /data/in/list")
    await nodes.wait(
        lambda: nodes.status("n2", "trust", "revocations", "names") == 1, "n2 has the list"
    )
    await put(lab, "n4", "/data/in/offer", stolen)
    said = await refused(nodes, "n4", "thicket update offer /data/in")
    assert "its signer is revoked" in said
    await lab.link("n1", "n2", restore=True)
    await nodes.whole()
    await watch.until(
        "n1 has the offer that counts again",
        lambda found: all(offered(t) == number(good) for t in found.values()),
    )


# -- orders


@soak
async def test_orders_given_at_one_node_are_obeyed_by_the_others(
    lab: Lab, nodes: Nodes, desk: Desk
) -> None:
    named, watch = await hosts(nodes), Watch(lab)
    before = {name: await runs(nodes, name) for name in lab.nodes}
    restarted = {name: restarts(lab, name) for name in lab.nodes}
    for name in lab.nodes:
        status, said = await lab.configure(name, [f"update.control={named['n1']}"])
        assert status == 0, said
    old, new = await desk.bundle(), await desk.bundle("2.0.0")
    base, patch = await desk.patch(new, old)
    packed = desk.offer(new, {base: patch}, plan((named["n4"],), well=3600))
    await put(lab, "n1", "/data/in/offer", packed)
    await put(lab, "n1", "/data/in/change", patch.read_bytes())
    await nodes.succeeds("n1", "thicket update offer /data/in")
    await nodes.run("n1", "thicket update order pause")

    async def all_are(state: str, why: str) -> None:
        def check(found: dict[str, Told]) -> bool:
            own = [line(told, named[name]) for name, told in found.items()]
            return all((one["state"], one["why"]) == (state, why) for one in own)

        await watch.until(f"all are {state}", check)

    await all_are("paused", "told to wait")
    said = await refused(nodes, "n3", "thicket update order resume")
    assert f"{named['n3']} may give no orders here" in said
    await nodes.run("n1", "thicket update order abort")
    await all_are("aborted", "told not to take it")
    assert {name: await runs(nodes, name) for name in lab.nodes} == before
    await nodes.run("n1", "thicket update order resume")
    await watch.until(
        "n4 keeps the version, as n1 sees it",
        lambda found: line(found["n1"], named["n4"])["state"] == "done",
        ["n1"],
    )
    assert (await runs(nodes, "n4"))[1] == "B"
    await nodes.run("n1", "thicket update order back")
    await all_are("aborted", "told to go back to the version before")
    await watch.until("n4 keeps slot A", lambda found: kept(found["n4"]) == "A", ["n4"])
    assert {name: await runs(nodes, name) for name in lab.nodes} == before
    for name in ("n1", "n2", "n3"):
        assert restarts(lab, name) == restarted[name], "untouched"


# -- what fails, and what falls apart


@pytest.mark.usefixtures("varied")
@soak
async def test_a_canary_that_fails_stops_it_and_the_next_offer_goes_through_a_partition(
    lab: Lab, nodes: Nodes, desk: Desk
) -> None:
    nodes.unfit = "its nodes run another version"
    named, watch = await hosts(nodes), Watch(lab)
    before = {name: await runs(nodes, name) for name in lab.nodes}
    restarted = {name: restarts(lab, name) for name in lab.nodes}
    old = await desk.bundle()
    await _fails(lab, nodes, desk, (watch, named, old))
    for name in ("n1", "n3", "n4"):
        assert await runs(nodes, name) == before[name]
        assert restarts(lab, name) == restarted[name], "untouched"
    assert await runs(nodes, "n2") == before["n2"]
    await _parts(lab, nodes, desk, (watch, named, old))
    for name in lab.nodes:
        assert await runs(nodes, name) == ("2.0.1", "B")


Known = tuple[Watch, dict[str, str], Path]


async def _fails(lab: Lab, nodes: Nodes, desk: Desk, known: Known) -> None:
    """The canary n2 gets a version that never comes up."""
    watch, named, old = known
    bad = await desk.bundle("2.0.0", BAD_INIT)
    base, patch = await desk.patch(bad, old)
    await put(lab, "n1", "/data/bad/offer", desk.offer(bad, {base: patch}, plan((named["n2"],))))
    await put(lab, "n1", "/data/bad/change", patch.read_bytes())
    await nodes.succeeds("n1", "thicket update offer /data/bad")
    words = WORDS[Why.NEVER_STARTED]
    stopped = f"stopped: canary {named['n2']} failed: {words}"

    def check(found: dict[str, Told]) -> bool:
        return all(
            told["rollout"]["stopped"] == stopped
            and line(told, named[name])["state"] == ("failed" if name == "n2" else "waiting")
            and line(told, named["n2"])["why"] == words
            for name, told in found.items()
        )

    found = await watch.until("all know why it has stopped", check)
    for name in ("n1", "n3", "n4"):
        assert line(found["n1"], named[name])["why"] == stopped
    print(await nodes.run("n4", "thicket update status"))


async def _parts(lab: Lab, nodes: Nodes, desk: Desk, known: Known) -> None:
    """The mesh falls apart in the middle of an update, and heals."""
    watch, named, old = known
    new = await desk.bundle("2.0.1", BALLAST)
    base, patch = await desk.patch(new, old)
    chunks = -(-patch.stat().st_size // CHUNK)
    await put_large(lab, "n1", "/data/good/change", patch)
    await put(lab, "n1", "/data/good/offer", desk.offer(new, {base: patch}, plan((named["n1"],))))
    count = {name: watch.count(name, "received") for name in lab.nodes}
    sent = sum(watch.count(name, "sent") for name in lab.nodes)
    await nodes.succeeds("n1", "thicket update offer /data/good")
    await watch.until(
        "n3 has a part", lambda found: 0 < here(found["n3"]) < size(found["n3"]), ["n3"]
    )
    await lab.link("n2", "n3", cut=True)
    print(f"{lab.elapsed:6.0f} s  cut: of {chunks} chunks n3 has {here(watch.told['n3'])} bytes")

    def apart(found: dict[str, Told]) -> bool:
        first, last = [found[n] for n in ("n1", "n2")], [found[n] for n in ("n3", "n4")]
        well = all(
            line(told, named[name])["state"] == "done" and line(told, named[name])["percent"] == 100
            for told in first
            for name in ("n1", "n2")
        )
        return well and here(last[0]) == here(last[1])

    found = await watch.until("n1 and n2 have it, n3 and n4 the same part", apart)
    for name in ("n3", "n4"):
        assert 0 < here(found[name]) < size(found[name])
        assert line(found[name], named[name])["state"] == "fetching"
        assert (await runs(nodes, name))[1] == "A"
    await lab.link("n2", "n3", restore=True)
    await watch.until(
        "all have it",
        lambda found: all(
            line(told, host)["state"] == "done" and line(told, host)["percent"] == 100
            for told in found.values()
            for host in named.values()
        ),
    )
    print(await nodes.run("n4", "thicket update status"))
    for name in ("n2", "n3", "n4"):
        received = watch.count(name, "received") - count[name]
        print(f"{name}: {received} chunks received, {chunks} in the patch")
        assert received == chunks
    sent = sum(watch.count(name, "sent") for name in lab.nodes) - sent
    print(f"{sent} chunks and lists sent, {3 * (chunks + 1)} needed")
    assert sent <= 3 * (chunks + 1) + WINDOW, "but those on their way when the link was cut"


# -- what comes later


async def test_a_change_is_kept_by_all_also_by_those_that_come_a_version_late(
    lab: Lab, nodes: Nodes, desk: Desk
) -> None:
    nodes.unfit = "its nodes run another version"
    await lab.formed(PATIENCE)
    named, watch = await hosts(nodes), Watch(lab)
    old, new = await desk.bundle(), await desk.bundle("2.0.0")
    base, patch = await desk.patch(new, old)
    packed = desk.offer(new, {base: patch}, plan((named["n1"],)))
    print(f"bundle {new.stat().st_size}, change {patch.stat().st_size}, offer {len(packed)}")
    for name in ("n3", "n4"):
        await lab.power_off(name, grace=PATIENCE)
    await put(lab, "n1", "/data/in/offer", packed)
    await put(lab, "n1", "/data/in/change", patch.read_bytes())
    # Neither the node that is told nor one that is to fetch has room.
    for name in ("n1", "n2"):
        await nodes.run(name, f"({FILL}) 2>/dev/null")
    assert NO_ROOM in await refused(nodes, "n1", "thicket update offer /data/in")
    await nodes.run("n1", f"rm {FULL}")
    said = await nodes.succeeds("n1", "thicket update offer /data/in")
    assert f"{size_text(patch.stat().st_size)}, here" in said
    words = f"offers what is not taken: {NO_ROOM}"
    await nodes.wait(
        lambda: any(words in one for one in nodes.problems("n2", "update")), "n2 has no room"
    )
    await nodes.run("n2", f"rm {FULL}")

    def have(*names: str) -> Callable[[dict[str, Told]], bool]:
        return lambda found: all(
            line(told, named[name])["state"] == "done" and line(told, named[name])["percent"] == 100
            for told in found.values()
            for name in names
        )

    await watch.until("those that are on have it", have("n1", "n2"), ["n1", "n2"])
    for name in ("n3", "n4"):
        await lab.power_on(name)
    await watch.until("all have it", have(*lab.nodes))
    for name, told in watch.told.items():
        assert [slot["version"] for slot in told["slots"] if slot["runs"]] == ["2.0.0"]
        assert (await runs(nodes, name))[1] == "B"
    await lab.formed(PATIENCE)
    print(await nodes.run("n1", "thicket update status"))

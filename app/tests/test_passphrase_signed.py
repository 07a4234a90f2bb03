# SPDX-License-Identifier: Apache-2.0
"""Another passphrase for the mesh of a fleet: its authority signs it, no member can do it alone."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from fleet_for_tests import NOW, PREFIX, TestFleet, one_fleet
from patience import PATIENCE
from private_network import Network, in_private_network, until
from test_passphrase import NEW, OLD, PEER, STRANGER, Host, Radio

from authority import passphrase as roll
from authority.authority import Authority
from authority.cli import main as ca_main
from authority.errors import AuthorityError
from authority.signing import sign_change
from thicket.base.files import write_atomically
from thicket.base.paths import Paths
from thicket.cli.common import BAD, OK, USAGE
from thicket.cli.main import main
from thicket.cluster import passphrase, passphrase_judge
from thicket.cluster.passphrase import Passphrase
from thicket.cluster.passphrase_exchange import NAME, Listener
from thicket.cluster.passphrase_file import FILE, PassphraseError
from thicket.config import edit
from thicket.config.load import load
from thicket.config.parse import parse
from thicket.config.schema import Settings
from thicket.device.boot_partition import StoreError
from thicket.distribution import Atom, Node
from thicket.trust import change as changes
from thicket.trust import openssl
from thicket.trust.certificates import pem
from thicket.trust.change import Change, SignedChange, tag
from thicket.trust.verify import RefusedError

# Nothing here waits for the kernel or another process.
pytestmark = pytest.mark.virtual_time

FLEET = one_fleet()
THIRD = "the third passphrase"


def signed(
    number: int,
    text: str = NEW,
    *former: str,
    used: bool = False,
    fleet: TestFleet = FLEET,
    key: bytes | None = None,
) -> bytes:
    """A change; without ``former`` it replaces OLD."""
    identifier = fleet.fleet.identifier
    tags = frozenset(tag(one, identifier) for one in former or (OLD,))
    return sign_change(
        Change(number, NOW, text, used, tags),
        identifier,
        lambda digest: openssl.sign(key or fleet.root_key, digest),
    )


def of_fleet(root: Path, present: str = OLD) -> Host:
    """A node of the fleet, with a card as `thicket ca config` makes it."""
    text = f"[trust]\nroot = '''\n{pem(FLEET.fleet.root.der)}'''\n\n"
    one = Host(root, f'{text}[mesh]\nsecurity = "sae"\npassphrase = "{present}"\n')
    one.mesh = one.radio = Radio(present)
    return one


class Encrypted(Node):
    """A node as far as it counts here: its connections are taken for encrypted ones."""

    @property
    def encrypted(self) -> bool:
        return True


@asynccontextmanager
async def cluster(
    network: Network, folder: Path, names: str = "ab", kind: type[Node] = Encrypted
) -> AsyncIterator[list[tuple[Passphrase, Host, Node]]]:
    """Nodes of the fleet, each connected with the first."""
    options: dict[str, Any] = {"cookie": "c", "port": 0, "tick_time": 3600}
    nodes = [
        kind(name, address=network.address(number), epmd_port=network.epmd_port, **options)
        for number, name in enumerate(names, 1)
    ]
    hosts = [of_fleet(folder / name) for name in names]
    subjects = [Passphrase(one) for one in hosts]
    tasks = []
    try:
        for node in nodes:
            await node.start()
            await until(lambda node=node: node.listening, "the node listens")  # type: ignore[misc]
        for node in nodes[1:]:
            await nodes[0].connect(node.name, 30.0)
        for mine, one in enumerate(hosts):
            others = nodes[1:] if mine == 0 else nodes[:1]
            one.known = [{"name": node.name, "state": "up"} for node in others]
            tasks.append(asyncio.create_task(subjects[mine].run(nodes[mine])))
        await until(lambda: all(n.whereis(NAME) for n in nodes), "all listen")
        yield list(zip(subjects, hosts, nodes, strict=True))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for node in nodes:
            await node.stop()


@contextmanager
def listened() -> Iterator[list[str]]:
    """Note what reaches a node of what others tell of changes, in a list that grows."""
    found: list[str] = []
    heard, take = Passphrase.heard, Passphrase.take

    def noted_heard(self: Passphrase, number: int, digest: bytes) -> bytes | None:
        found.append(f"have {number}")
        return heard(self, number, digest)

    async def noted_take(self: Passphrase, packed: bytes, who: str) -> bool:
        found.append(f"signed, from {who}")
        return await take(self, packed, who)

    with (
        mock.patch.object(Passphrase, "heard", noted_heard),
        mock.patch.object(Passphrase, "take", noted_take),
    ):
        yield found


async def refusal(attempt: Any) -> PassphraseError:
    with pytest.raises(PassphraseError) as caught:
        await attempt
    return caught.value


def importing(packed: bytes) -> dict[str, str]:
    return {"action": "import", "change": base64.b64encode(packed).decode()}


def mesh(one: Host) -> tuple[str, str]:
    return one.settings.mesh.passphrase, one.settings.mesh.next_passphrase


def file(one: Host) -> Path:
    """Where a node keeps what it knows of changes."""
    return Path(one.paths.data, "thicket", FILE)


def done(one: Host) -> str:
    """The digest of the change that a node has carried out, by its file."""
    return str(json.loads(file(one).read_bytes())["done"]) if file(one).exists() else ""


def by_hand(one: Host, passphrase: str) -> None:
    """A person writes a passphrase into the file of a node."""
    values: dict[str, object] = {"mesh.passphrase": passphrase, "mesh.next_passphrase": None}
    edit.apply(one.paths, edit.set_values(edit.source(one.paths)[0], values).encode())
    one.settings = load(one.paths).settings


# -- the format


def test_a_change_is_what_was_signed() -> None:
    packed = signed(7, NEW, OLD, THIRD, used=True)
    found = SignedChange.read(packed, FLEET.fleet)
    assert found.change == Change(
        7, NOW, NEW, True, frozenset(tag(t, FLEET.fleet.identifier) for t in (OLD, THIRD))
    )
    for shown in (repr(found), str(found), repr(found.change), f"{found.change}"):
        assert NEW not in shown
    for at in range(len(packed)):
        bad = bytearray(packed)
        bad[at] ^= 0x20
        with pytest.raises(RefusedError) as caught:
            SignedChange.read(bytes(bad), FLEET.fleet)
        assert NEW not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"number": 0}, {"number": "1"}, {"number": 1 << 60}, {"number": 1.5}, {"used": 1},
        {"used": True, "passphrase": ""}, {"passphrase": None}, {"passphrase": ["secret!!"]},
        {"former": "x"}, {"former": ["x"] * 65}, {"fleet": "00" * 20}, {"format": 2},
        {"issued": "secret!!"}, {"issued": 3}, {"number": None},
    ],
)  # fmt: skip
def test_a_change_of_another_form_is_refused_without_a_word_of_it(wrong: dict[str, Any]) -> None:
    document = json.loads(signed(1)[len(b"thicket passphrase 1\n") + 64 :])
    text = json.dumps({**document, **wrong}).encode()
    with pytest.raises(RefusedError) as caught:
        SignedChange.read(
            b"thicket passphrase 1\n" + bytes(64) + text, FLEET.fleet, verify=lambda *_: True
        )
    assert "secret" not in str(caught.value)


# -- members


@in_private_network
async def test_no_member_can_tell_a_node_another_passphrase(network: Network) -> None:
    """What one member could once do to each node: another passphrase for every one."""
    folder = network.folder()
    async with cluster(network, folder, "abc") as ((a, _, evil), *others):
        for subject, one, node in others:
            before, where = one.file(), (NAME, node.name)
            other = one_fleet("another")
            for number, request in enumerate(
                (
                    (Atom("change"), b"of-the-attacker"),
                    (Atom("prepare"), b"of-the-attacker"),
                    Atom("cancel"),
                    (Atom("signed"), signed(9, key=FLEET.signer_key, used=True)),
                    (Atom("signed"), signed(9, fleet=other, used=True)),
                    (Atom("signed"), signed(9, key=other.root_key, used=True)),
                    (Atom("signed"), b"nonsense"),
                    (Atom("what"), 1),
                ),
                1,
            ):
                answer = await evil.request(where, request, 20.0)
                assert answer[0] == "error", request
                assert subject.status()["refused"] == number
            assert one.file() == before
            assert one.codes() == {"change-refused"}
        # A person at a node is told who can do it, and nothing happens.
        for action in ("prepare", "change", "cancel", "unsigned"):
            error = await refusal(a.request({"action": action, "passphrase": NEW}))
            assert error.code == "not-signed"
            assert "thicket ca passphrase" in str(error)


@in_private_network
async def test_different_changes_for_different_nodes_end_as_one(network: Network) -> None:
    """Two copies of the authority, or a member that passes on one here and the other there."""
    folder = network.folder()
    with mock.patch.object(passphrase, "TELL", 0.0):
        async with cluster(network, folder, "abc") as all_three:
            one, two = signed(1, NEW, OLD, THIRD), signed(1, THIRD, OLD, NEW)
            for (_, _, node), packed in zip(all_three[1:], (one, two), strict=True):
                where = (NAME, node.name)
                assert await all_three[0][2].request(where, (Atom("signed"), packed), 20.0) in (
                    "ok", ("error", b"change 1 is in force here, which is newer"),
                )  # fmt: skip
            await until(
                lambda: len({subject.kept.newest() for subject, _, _ in all_three}) == 1,
                "all agree",
            )
            won = max(
                (SignedChange.read(p, FLEET.fleet) for p in (one, two)), key=lambda c: c.order
            )
            assert all_three[0][0].kept.newest() == won.order
            await until(
                lambda: (
                    all(done(host) == one.kept.newest()[1].hex() for one, host, _ in all_three)
                    and len({mesh(host) for _, host, _ in all_three}) == 1
                ),
                "all do so",
                60,
            )
            assert all(host.settings.mesh.passphrase == OLD for _, host, _ in all_three)
            for subject, host, _ in all_three:
                assert not await subject.take(won.packed, "nobody"), "nothing is on its way"
                assert done(host) == won.digest.hex()


@in_private_network
async def test_a_change_on_all_nodes_of_a_fleet(network: Network) -> None:
    folder = network.folder()
    async with cluster(network, folder, "abc") as nodes:
        here = nodes[0][0]
        for _ in range(2):  # the second time nothing is new, and nothing is wrong
            answer = await here.request(importing(signed(1)))
            assert (len(answer["done"]), answer["failed"], answer["used"]) == (3, {}, False)
        for _, host, _ in nodes:
            assert mesh(host) == (OLD, NEW)
            assert host.radio.settings.passphrase == OLD, "nothing is used yet"
        answer = await here.request(importing(signed(2, used=True)))
        assert (len(answer["done"]), answer["used"]) == (3, True)
        for _, host, _ in nodes:
            assert mesh(host) == (NEW, OLD), "both, until links of the new one stand"
            assert host.radio.settings.passphrase == NEW
            host.radio.outdated = True
            host.radio.linked = {PEER}
        for subject, host, _ in nodes:
            later = time.monotonic() + passphrase_judge.STAND
            await subject.step(later)
            await subject.step(later + passphrase_judge.STAND)
            assert mesh(host) == (NEW, OLD), "old links"
            assert host.radio.renewed == 0
        for _, host, _ in nodes:
            host.radio.outdated = False
        with mock.patch.object(passphrase_judge, "STAND", 0.0):
            await until(
                lambda: all(mesh(host) == (NEW, "") for _, host, _ in nodes), "one is left", 60
            )
        assert all(OLD not in host.file() for _, host, _ in nodes)
        error = await refusal(here.request(importing(signed(1))))
        assert error.code == "older"


@in_private_network
async def test_a_slow_node_is_said_and_waited_for(network: Network) -> None:
    folder = network.folder()
    with mock.patch.object(passphrase, "IMPORT", 0.0):
        async with cluster(network, folder, "ab") as ((a, mine, node), (_, other, _)):
            mine.follows.clear()
            answer = await a.request(importing(signed(1)))
            assert "still writing" in answer["failed"][node.name]
            assert len(answer["done"]) == 1
            assert (mesh(mine), mesh(other)) == ((OLD, ""), (OLD, NEW))
            mine.follows.set()
            await until(lambda: mesh(mine) == (OLD, NEW) and done(mine), "it goes on", 60)
            # What is not signed is told to nobody.
            error = await refusal(a.request(importing(signed(2, key=FLEET.signer_key))))
            assert error.code == "not-signed"
            assert a.kept.newest()[0] == 1


@in_private_network
async def test_news_from_many_nodes_turns_no_request_away(network: Network) -> None:
    names = "abcdef"
    assert len(names) > Listener.MOST + 1
    folder = network.folder()
    with listened() as told:
        async with cluster(network, folder, names) as nodes:
            (_, busy, middle), *others = nodes
            busy.follows.clear()  # the card takes its time
            same = signed(1)
            for number, (_, _, node) in enumerate(others):
                connection = node.connections[middle.name]
                listener = node.whereis(NAME)
                assert isinstance(listener, Listener)
                for packed in (same, signed(number + 2)):
                    node.send_to_name(connection, listener.pid, NAME, (Atom("signed"), packed))

            def taken() -> int:
                return sum(one.startswith("signed") for one in told)

            await until(lambda: taken() == 1 + len(others), "each change is taken once")
            (_, _, asker), *_ = others
            where, request = (NAME, middle.name), (Atom("signed"), signed(9))
            asked = asyncio.create_task(asker.request(where, request, PATIENCE))
            await until(lambda: taken() == 2 + len(others), "it is worked on as well")
            busy.follows.set()
            assert await asked == "ok"


@in_private_network
async def test_a_node_that_was_not_connected_gets_the_change_when_it_is(network: Network) -> None:
    folder = network.folder()
    with mock.patch.object(passphrase, "TELL", 1e9):
        async with cluster(network, folder, "ab") as ((a, _, here), (b, host, there)):
            # what a node takes alone it tells, and what it lacks it asks for
            await b.take(signed(4), passphrase.PERSON)
            await until(lambda: a.kept.newest() == b.kept.newest(), "a has it")
            here.disconnect(there.name)
            await until(lambda: not there.connected(here.name), "they are apart")
            await b.take(signed(5, used=True), passphrase.PERSON)
            with listened() as told:
                await here.connect(there.name, 30.0)
                for one, peer in ((here, there), (there, here)):  # behind whatever is on its way
                    assert await one.ping(peer.name, PATIENCE) > 0
                assert told == []
                assert a.kept.newest()[0] == 4
                b.node_up("nobody")
                b.node_up(here.name)
                await until(lambda: a.kept.newest() == b.kept.newest(), "a has it again")
                assert told == ["have 5", "have 4", f"signed, from {there.name}"]
            assert mesh(host) == (NEW, OLD)


@in_private_network
async def test_a_change_goes_on_to_nodes_that_are_connected_with_a_neighbour_only(
    network: Network,
) -> None:
    folder = network.folder()
    with mock.patch.object(passphrase, "TELL", 1e9):
        async with cluster(network, folder, "abc") as ((_, _, a), (b, _, _), (c, host, far)):
            assert [connection.name for connection in far.connections.values()] == [a.name]
            await b.take(signed(4), passphrase.PERSON)
            await until(lambda: c.kept.newest() == b.kept.newest(), "c has it, by way of a")
            await until(lambda: mesh(host) == (OLD, NEW), "c does what it says")


@in_private_network
async def test_in_clear_a_change_goes_to_nobody_else(network: Network) -> None:
    folder = network.folder()
    async with cluster(network, folder, "ab", Node) as (
        (a, mine, node),
        (b, other, there),
    ):
        answer = await a.request(importing(signed(1)))
        assert len(answer["done"]) == 1
        (why,) = answer["failed"].values()
        assert "not encrypted" in why
        where = (NAME, next(iter(answer["failed"])))
        refused = await node.request(where, (Atom("signed"), signed(2)), 20.0)
        assert refused[0] == "error"
        # What is only told where nobody can listen is not heard, and not answered.
        with listened() as told:
            for one, peer in ((node, there), (there, node)):
                connection = next(iter(one.connections.values()))
                for message in ((Atom("have"), 9, b"x" * 32), (Atom("signed"), signed(3))):
                    one.send_to_name(connection, one.pid, NAME, message)
                assert await one.ping(peer.name, PATIENCE) > 0  # behind the messages
            assert told == []
        assert a.kept.newest()[0] == 1
        assert (mesh(mine), mesh(other)) == ((OLD, NEW), (OLD, ""))
        assert b.kept.newest() == (0, b"")


# -- what a node takes


async def test_an_old_change_leads_no_new_card_astray(tmp_path: Path) -> None:
    """Whoever replays a change of the past to a node that has not heard of any."""
    one = of_fleet(tmp_path / "fresh", present=THIRD)
    fresh = Passphrase(one)
    error = await refusal(fresh.take(signed(2, NEW, OLD, used=True), "a member"))
    assert error.code == "not-ours"
    assert (
        fresh.heard(*SignedChange.read(signed(2, NEW, OLD, used=True), FLEET.fleet).order) is None
    )
    assert fresh.kept.newest() == (0, b"")
    assert await fresh.take(signed(3, NEW, OLD, THIRD), "a member")
    error = await refusal(fresh.take(signed(2, NEW, OLD, THIRD, used=True), "a member"))
    assert error.code == "older"
    again = Passphrase(one)
    assert again.kept.newest()[0] == 3, "also after a restart"
    assert file(one).stat().st_mode & 0o077 == 0, "there is a passphrase in it"


async def test_a_withdrawn_offer_is_dropped(tmp_path: Path) -> None:
    one = of_fleet(tmp_path / "n")
    subject = Passphrase(one)
    await subject.take(signed(1), "the root")
    assert mesh(one) == (OLD, NEW)
    await subject.take(signed(2, "", OLD), "the root")
    assert mesh(one) == (OLD, "")
    assert (await refusal(subject.take(signed(1), "a member"))).code == "older"


async def test_a_card_of_another_mesh_keeps_what_a_person_wrote(tmp_path: Path) -> None:
    one = of_fleet(tmp_path / "n")
    subject = Passphrase(one)
    await subject.take(signed(1, used=True), "the root")
    assert mesh(one) == (NEW, OLD)
    by_hand(one, THIRD)
    again = Passphrase(one)
    await again.step(time.monotonic())
    assert mesh(one) == (THIRD, ""), "it was done once, and is not done again"


async def test_an_open_mesh_and_a_node_without_fleet_take_nothing(tmp_path: Path) -> None:
    one = of_fleet(tmp_path / "n")
    one.settings = Settings({**_tables(one), "mesh": {"security": "open"}})
    subject = Passphrase(one)
    assert (await refusal(subject.take(signed(1), "the root"))).code == "open"
    assert subject.heard(*SignedChange.read(signed(1), FLEET.fleet).order) is None
    one.settings = Settings({"mesh": {"passphrase": OLD}})
    assert (await refusal(subject.take(signed(1), "the root"))).code == "no-fleet"


def _tables(one: Host) -> dict[str, Any]:
    return {"trust": {"root": one.settings.trust.root}}


# -- power cuts


class PowerCutError(BaseException):
    """The power fails here."""


@contextmanager
def power_fails(monkeypatch: pytest.MonkeyPatch, after: int, *, written: bool) -> Iterator[None]:
    """The power fails at the write with this number, before or after the disk has it."""
    count = 0
    real, apply = write_atomically, edit.apply

    def cut() -> bool:
        nonlocal count
        count += 1
        return count == after

    def write(path: str, data: bytes, **options: Any) -> None:
        if not path.endswith(FILE) or not cut():
            real(path, data, **options)
            return
        if written:
            real(path, data, **options)
        raise PowerCutError

    def changed(paths: Paths, data: bytes) -> str:
        if not cut():
            return apply(paths, data)
        if written:
            apply(paths, data)
        raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr("thicket.cluster.passphrase_file.write_atomically", write)
        patch.setattr(edit, "apply", changed)
        try:
            yield
        except PowerCutError:
            count = 1000
    assert count in (0, 1000) or count < after, "the power failed"


@pytest.mark.parametrize("written", [False, True])
async def test_the_power_may_fail_at_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, written: bool
) -> None:
    """The node starts with what the disk has, hears the change again, and ends as the others."""
    cuts = 0
    for offered in (False, True):
        for step in range(1, 20):
            folder = tmp_path / f"{offered}-{step}"
            one = of_fleet(folder)
            if offered:
                await Passphrase(one).take(signed(1), "the root")
            with power_fails(monkeypatch, step, written=written):
                await Passphrase(one).take(signed(2, used=True), "the root")
            one.settings = load(one.paths).settings
            cuts += not (mesh(one) == (NEW, OLD) and done(one))
            assert mesh(one)[0] in (OLD, NEW)
            again = Passphrase(one)
            await again.step(time.monotonic())  # as run() does
            if again.kept.newest()[0] != 2:
                await again.take(signed(2, used=True), "the others")
            assert mesh(one) == (NEW, OLD)
            assert again.status()["former"]
            # the offer is told again by others that have missed the rest
            assert (await refusal(again.take(signed(1), "the others"))).code == "older"
    assert cuts > 6


@pytest.mark.parametrize("written", [False, True])
async def test_the_power_may_fail_on_the_way_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, written: bool
) -> None:
    for step in (1, 2):
        one = of_fleet(tmp_path / f"{step}")
        subject = Passphrase(one)
        await subject.take(signed(2, used=True), "the root")
        with power_fails(monkeypatch, step, written=written):
            await subject.change()
        one.settings = load(one.paths).settings
        again = Passphrase(one)
        await again.step(time.monotonic())
        if mesh(one) == (NEW, OLD):  # it goes back once more, as it is still alone
            assert again.status()["former"]
            await again.change()
        assert mesh(one) == (OLD, NEW)
        assert not again.status()["former"]
        assert again.status()["change"] == {"number": 2, "used": True}


async def test_a_full_disk_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = of_fleet(tmp_path / "n")
    subject = Passphrase(one)

    def full(*_: Any, **__: Any) -> None:
        raise StoreError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(edit, "apply", full)
        assert (await refusal(subject.take(signed(1, used=True), "x"))).code == "not-written"
    assert mesh(one) == (OLD, "")
    await subject.step(time.monotonic())
    assert mesh(one) == (NEW, OLD)


def test_a_damaged_file_is_not_used_and_not_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = of_fleet(tmp_path / "n")
    path = file(one)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"change": base64.b64encode(signed(1)).decode(), "done": "", "former": ""}
    for data in (b"", b"{", b"[]", json.dumps({**whole, "change": NEW}).encode(), b"\xff" * 99):
        path.write_bytes(data)
        subject = Passphrase(one)
        assert subject.kept.newest() == (0, b"")
    assert "is damaged" in caplog.text
    assert NEW not in caplog.text
    path.write_text(json.dumps(whole), encoding="utf-8")
    assert Passphrase(one).kept.newest()[0] == 1
    assert Passphrase(one).status()["change"] == {"number": 1, "used": False}


# -- alone


class TestAlone:
    """A node that has changed, and whose neighbours have not."""

    @pytest.fixture
    async def changed(self, tmp_path: Path) -> tuple[Passphrase, Host]:
        one = of_fleet(tmp_path / "n")
        subject = Passphrase(one)
        await subject.take(signed(2, used=True), "the root")
        one.radio.applied.clear()
        return subject, one

    async def test_finds_nobody_and_goes_back(self, changed: tuple[Passphrase, Host]) -> None:
        subject, one = changed
        for _ in range(100):
            await asyncio.sleep(passphrase.LOOK)
            await subject.step(time.monotonic())
            if one.radio.settings.passphrase == OLD:
                one.radio.linked = {PEER}  # the neighbours have the old one
        assert mesh(one) == (OLD, NEW)
        assert one.radio.settings.passphrase == OLD
        # It tells them, and they change: it hears that they have what it has.
        await asyncio.sleep(passphrase_judge.RESTS[-1] + 1)
        assert subject.heard(*subject.kept.newest()) is None
        await subject.step(time.monotonic())
        assert mesh(one) == (NEW, OLD)

    async def test_is_refused_and_goes_back_sooner(self, changed: tuple[Passphrase, Host]) -> None:
        subject, one = changed
        one.radio.refusing = {PEER: 2}
        await subject.step(1000.0)
        assert one.radio.applied == [OLD]
        one.radio.linked = {PEER}
        await subject.step(1003.0)
        assert mesh(one) == (OLD, NEW)

    async def test_returns_when_the_old_one_is_of_no_use_either(
        self, changed: tuple[Passphrase, Host]
    ) -> None:
        subject, one = changed
        tried = []
        for now in range(0, 7200, 3):
            await subject.step(1000.0 + now)
            if one.radio.applied[-1:] == [OLD]:
                tried.append(now)
                one.radio.applied.append("seen")
        assert 5 < len(tried) < 20, "ever more seldom"
        assert mesh(one) == (NEW, OLD)
        assert one.radio.applied.count(NEW) >= len(tried) - 1

    async def test_with_links_nobody_lures_it_back(self, changed: tuple[Passphrase, Host]) -> None:
        """A thief of the old passphrase refuses the new one, as loudly as he likes."""
        subject, one = changed
        one.radio.linked, one.radio.outdated = {PEER}, True
        one.radio.refusing = {STRANGER: 99}
        for now in range(0, 600, 3):
            await subject.step(1000.0 + now)
        assert one.radio.applied == []
        one.radio.outdated = False
        for now in range(600, 700, 3):
            await subject.step(1000.0 + now)
        assert mesh(one) == (NEW, "")
        one.radio.linked = set()
        for now in range(700, 2000, 3):
            await subject.step(1000.0 + now)
        assert set(one.radio.applied) <= {NEW}, "the old one is gone for good"

    async def test_a_member_that_says_so_does_not_make_it_change_all_the_time(
        self, changed: tuple[Passphrase, Host]
    ) -> None:
        subject, one = changed
        await subject.change()
        assert mesh(one) == (OLD, NEW)
        times = 0
        for number in range(100):
            subject.heard(*subject.kept.newest())
            before = mesh(one)
            await subject.step(time.monotonic() + number * passphrase.RETRY)
            if mesh(one) != before:
                times += 1
                await subject.change()
        assert times <= 1, "within a moment"


# -- the authority


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    made = Authority(tmp_path / "fleet", lambda _: "", clock=lambda: NOW)
    made.init("acme", PREFIX, lab=True)
    return made


def read(ca: Authority, packed: bytes) -> Change:
    return SignedChange.read(packed, ca.fleet).change


def test_the_authority_numbers_its_changes_and_names_what_they_replace(ca: Authority) -> None:
    first = ca.network.secrets()[0]
    offer = read(ca, ca.network.offer_passphrase(NEW, replaces=["by-hand"]))
    assert (offer.number, offer.passphrase, offer.used) == (1, NEW, False)
    assert {tag(first, ca.fleet.identifier), "by-hand"} <= offer.former
    assert (ca.network.secrets()[0], ca.network.next_passphrase()) == (first, NEW)
    use = read(ca, ca.network.use_passphrase())
    assert (use.number, use.passphrase, use.used) == (2, NEW, True)
    assert offer.former <= use.former
    assert (ca.network.secrets()[0], ca.network.next_passphrase()) == (NEW, "")
    with pytest.raises(AuthorityError, match="begin with roll"):
        ca.network.use_passphrase()
    with pytest.raises(AuthorityError, match="no change to cancel"):
        ca.network.cancel_passphrase()
    with pytest.raises(AuthorityError, match="has this passphrase already"):
        ca.network.offer_passphrase(NEW)
    for bad in ("", "short", "x" * 64, "tab\tin it"):
        with pytest.raises(AuthorityError, match=r"a passphrase (must|is too)"):
            ca.network.offer_passphrase(bad)
    ca.network.offer_passphrase(THIRD)
    dropped = read(ca, ca.network.cancel_passphrase())
    assert (dropped.number, dropped.passphrase, dropped.used) == (4, "", False)
    assert (ca.network.secrets()[0], ca.network.next_passphrase()) == (NEW, "")
    for number in range(200):
        packed = ca.network.offer_passphrase(f"passphrase {number}")
    assert len(read(ca, packed).former) <= changes.MAX_FORMER
    assert len(packed) < changes.MAX_CHANGE


def test_a_card_that_is_made_during_a_change_works_before_and_after_it(ca: Authority) -> None:
    from authority import card_config

    ca.network.offer_passphrase(NEW)
    found = parse(card_config.text(ca).encode(), "x").mesh
    assert (found.passphrase, found.next_passphrase) == (ca.network.secrets()[0], NEW)
    ca.network.use_passphrase()
    found = parse(card_config.text(ca).encode(), "x").mesh
    assert (found.passphrase, found.next_passphrase) == (NEW, "")


def test_two_copies_of_the_authority_take_up_each_others_changes(
    ca: Authority, tmp_path: Path
) -> None:
    shutil.copytree(ca.folder, tmp_path / "copy")
    other = Authority(tmp_path / "copy", lambda _: "", clock=lambda: NOW)
    theirs = other.network.offer_passphrase(THIRD)
    assert ca.network.take_change(theirs) == 1
    assert ca.network.take_change(theirs) is None
    assert ca.network.next_passphrase() == THIRD
    assert read(ca, ca.network.use_passphrase()).number == 2
    assert other.network.take_change(ca.network.change()) == 2
    assert other.network.secrets()[0] == THIRD
    with pytest.raises(AuthorityError, match="node's change"):
        ca.network.take_change(signed(9))


class Channel:
    """The way to a node, whose daemon is a Passphrase in a cluster of one."""

    name = "a node"

    def __init__(self, subject: Passphrase, missing: list[str]) -> None:
        self.subject, self.missing = subject, missing

    def ask(self, request: dict[str, Any], seconds: float = 0) -> dict[str, Any]:
        assert request["do"] == "passphrase"
        if "change" not in request:
            return self.subject.held()
        asyncio.run(self.subject.take(base64.b64decode(request["change"]), passphrase.PERSON))
        change = self.subject.status()["change"]
        return {"done": ["t@fd00::1"], "failed": {}, "missing": self.missing, **change}

    def close(self) -> None: ...


def test_the_command(
    ca: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = f"[trust]\nroot = '''\n{pem(ca.fleet.root.der)}'''\n\n"
    # the passphrase on the cards is one that a person chose, not the authority's
    one = Host(tmp_path / "n", f'{text}[mesh]\nsecurity = "sae"\npassphrase = "{OLD}"\n')
    missing = ["t@fd00::2"]

    def command(*words: str) -> int:
        return ca_main(["passphrase", *words, "--ssh", "n1"])

    monkeypatch.setenv("THICKET_CA", str(ca.folder))
    monkeypatch.setattr(
        "authority.remote_node.ssh", lambda _host, _bus: Channel(Passphrase(one), missing)
    )
    monkeypatch.setattr("authority.passphrase.read_passphrase", lambda: NEW)
    assert command("roll") == BAD
    out = capsys.readouterr().out
    assert "t@fd00::1  has it" in out
    assert "t@fd00::2  MISSING" in out
    assert "The mesh keeps its passphrase" in out
    assert NEW not in out
    assert mesh(one) == (OLD, NEW)
    assert command("cancel") == BAD
    assert "t@fd00::1  dropped it" in capsys.readouterr().out
    assert mesh(one) == (OLD, "")
    assert command("roll", "--accept-missing") == BAD
    assert "t@fd00::1  has changed" in capsys.readouterr().out
    assert mesh(one) == (NEW, OLD)
    missing.clear()
    assert command("roll", "--generate") == OK
    out = capsys.readouterr().out
    assert ca.network.secrets()[0] in out
    assert mesh(one) == (ca.network.secrets()[0], NEW)
    for words in ([], ["what"], ["roll", NEW], ["finish", "--generate"]):
        assert ca_main(["passphrase", *words]) == USAGE
        assert NEW not in capsys.readouterr().err


def test_without_a_node_the_change_is_a_file(
    ca: Authority, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("THICKET_CA", str(ca.folder))
    monkeypatch.setattr("authority.passphrase.read_passphrase", lambda: NEW)
    assert ca_main(["passphrase", "roll"]) == OK
    path = ca.folder / roll.FILE
    assert "thicket passphrase import" in capsys.readouterr().out
    assert read(ca, path.read_bytes()) == read(ca, ca.network.change())
    assert path.stat().st_mode & 0o077 == 0
    assert not read(ca, path.read_bytes()).used
    assert ca_main(["passphrase", "finish"]) == OK
    assert read(ca, path.read_bytes()).used
    asked: list[dict[str, Any]] = []

    def request(_path: str, _method: str, params: dict[str, Any], timeout: float) -> Any:
        asked.append(params)
        return {"done": ["t@fd00::1"], "failed": {}, "missing": [], "number": 2, "used": True}

    monkeypatch.setattr("thicket.cli.passphrase.request", request)
    assert main(["passphrase", "import", str(path)]) == OK
    assert "has changed" in capsys.readouterr().out
    assert base64.b64decode(asked[0]["change"]) == path.read_bytes()
    assert main(["passphrase", "import", "/nonexistent"]) == BAD
    assert main(["passphrase", "import"]) == USAGE

# SPDX-License-Identifier: Apache-2.0
"""``thicket.update``: whether a slot is well, kept, or left, and what people are told of it."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE

from thicket.base.errors import RequestError, ThicketError
from thicket.base.headway import Headway
from thicket.base.paths import Paths
from thicket.base.problems import Problems
from thicket.config.schema import Settings
from thicket.device import boot_slots
from thicket.device.boot_record import WORDS, Phase, Run, Slot, State, Why, reject
from thicket.device.boot_slots import Slots
from thicket.update import epoch as epochs
from thicket.update import health, kept, service
from thicket.update.health import Abilities
from thicket.update.kept import Content, Kept
from thicket.update.section import UpdateSection
from thicket.update.service import Update

A, B = Slot.A, Slot.B
ALL = Abilities(joined=True, peer=True, node=True, applications=frozenset({"readings"}))


def document(**changes: Any) -> dict[str, Any]:
    return {
        "radio": {"state": "joined"},
        "peers": [{"state": "LISTEN"}, {"state": "ESTAB"}],
        "cluster": {"nodes": [{"state": "connecting"}, {"state": "up"}]},
        "applications": [
            {"name": "readings", "state": "running"},
            {"name": "other", "state": "waiting"},
        ],
        **changes,
    }


ALONE = {"peers": [], "cluster": {"nodes": []}}


class TestHealth:
    def test_what_works(self) -> None:
        assert health.of(document()) == ALL
        nothing = document(radio={"state": "starting"}, applications=[], **ALONE)
        assert health.of(nothing) == Abilities()

    def test_what_is_missing(self) -> None:
        assert health.missing(ALL, ALL) == []
        assert health.missing(Abilities(), Abilities()) == []
        assert health.missing(Abilities(), ALL) == []
        assert health.missing(ALL, Abilities()) == [
            "the radio is not in the mesh",
            "there is no peer",
            "no other node is in the cluster",
            "the application readings does not run",
        ]

    @given(st.booleans(), st.booleans(), st.booleans(), st.sets(st.text(max_size=8), max_size=64))
    def test_there_and_back(self, joined: bool, peer: bool, node: bool, names: set[str]) -> None:
        able = Abilities(joined, peer, node, frozenset(names))
        assert health.unpack(health.pack(able)) in (able, Abilities())
        assert (
            len(health.pack(able)) > health.MOST_BYTES or health.unpack(health.pack(able)) == able
        )

    @given(st.binary(max_size=200))
    def test_a_damaged_file_asks_for_nothing(self, data: bytes) -> None:
        assert health.unpack(data) == Abilities()

    @pytest.mark.parametrize(
        "change",
        [
            {"joined": 1}, {"applications": None}, {"applications": [1]}, {"peer": "yes"},
            {"applications": [str(n) for n in range(65)]}, {"applications": ["x" * 20_000]},
        ],
    )  # fmt: skip
    def test_values_of_other_kinds(self, change: dict[str, Any]) -> None:
        members = json.loads(health.pack(ALL)) | change
        assert health.unpack(json.dumps(members).encode()) == Abilities()

    def test_too_deep(self) -> None:
        assert health.unpack(b"[" * 10_000) == Abilities()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LOOK", 0.01), ("AGAIN", 0.01), ("KEEP", 0.05)):
        monkeypatch.setattr(service, name, value)


class Node:
    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for folder in ("proc/self", "dev/slots", "run/thicket", "data/thicket", "boot"):
            (path / folder).mkdir(parents=True)
        (path / "dev/slots/card").write_bytes(bytes(512 * 64))
        self.paths = Paths(str(path))
        self.problems = Problems(lambda: None)
        self.document = document()
        self.settings = Settings()
        self.health_time = 0.05
        self.named: list[Slot] = []
        self.fault: Exception | None = None
        self.chip: epochs.UseChip | None = None

        def name(_: Slots, slot: Slot) -> None:
            if self.fault is not None:
                raise self.fault
            self.named.append(slot)

        monkeypatch.setattr(boot_slots.Slots, "_name", name)
        self.boot(A)

    def boot(self, slot: Slot) -> None:
        Path(self.paths.cmdline).write_text(f"quiet thicket.slot={slot.name}\n")
        self.slots.begin()

    @property
    def slots(self) -> Slots:
        return Slots(self.paths)

    def able(self) -> Path:
        path = Path(self.paths.data + service.ABLE)
        path.parent.mkdir(exist_ok=True)
        return path

    def trial(self) -> Path:
        return Path(self.paths.data + boot_slots.TRIAL)

    def noted(self) -> str | None:
        return self.trial().read_text() if self.trial().exists() else None

    def messages(self) -> list[str]:
        return [f"{p['code']}: {p['message']}" for p in self.problems.all()]

    async def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, what
            await asyncio.sleep(0.005)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Update]:
        self.settings.update = SimpleNamespace(  # type: ignore[assignment]
            keyring=self.settings.update.keyring, health_time=self.health_time
        )
        update = Update(
            self.paths,
            self.problems,
            lambda: self.document,
            lambda: self.settings,
            chip=lambda: self.chip,
            changed=lambda: None,
        )
        task = asyncio.create_task(update.run())
        try:
            yield update
            assert not task.done(), task
        finally:
            task.cancel()
            await asyncio.wait({task})


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(tmp_path, monkeypatch)


async def test_an_ordinary_start_is_well_whatever_works(node: Node) -> None:
    node.able().write_bytes(health.pack(ALL))
    node.document = document(radio={"state": "absent"}, applications=[], **ALONE)
    async with node.running() as update:
        await node.until(lambda: node.slots.read().run is Run.WELL, "well")
        assert node.slots.read().state_a is State.GOOD
        await node.until(lambda: update.status[0]["state"] == "good", "the status tells it")
        assert update.status == [
            {
                "name": "A",
                "state": "good",
                "runs": True,
                "trial": False,
                "why": "",
                "version": None,
            },
            {
                "name": "B",
                "state": "untried",
                "runs": False,
                "trial": False,
                "why": "",
                "version": None,
            },
        ]
        await node.until(lambda: health.unpack(node.able().read_bytes()) == Abilities(), "kept")
    assert node.messages() == []
    assert node.named == []


async def test_it_is_not_well_before_its_time(node: Node) -> None:
    node.health_time = 600
    async with node.running() as update:
        await node.until(lambda: update.status, "it has begun")
        await asyncio.sleep(0.1)
        assert node.slots.read().run is Run.BEGUN


async def trial(node: Node) -> None:
    async with node.running():
        await node.until(
            lambda: node.able().exists() and health.unpack(node.able().read_bytes()) == ALL, "able"
        )
    node.slots.set_primary(B)
    node.boot(B)


async def test_a_trial_that_is_well_is_kept(node: Node) -> None:
    await trial(node)
    async with node.running() as update:
        await node.until(lambda: node.named == [B], "named")
        await node.until(lambda: update.status[1]["state"] == "good", "told")
        assert not update.status[1]["trial"]
    record = node.slots.read()
    assert (record.trial, record.state_b, record.named) == (Slot.NONE, State.GOOD, B)
    assert not node.trial().exists()


async def test_a_trial_that_is_called_off_is_not_kept(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    await trial(node)
    node.health_time = 600
    async with node.running() as update:
        await node.until(lambda: update.status and update.status[1]["trial"], "it is on trial")
        assert await update.back() == "A"
        await node.until(lambda: "called off" in update.status[1]["why"], "the status tells it")
        node.settings.update.health_time = 0  # type: ignore[misc]
        await node.until(lambda: "the trial of slot B was called off" in caplog.text, "judged")
    assert node.named == []
    assert node.slots.read().state_b is State.UNTRIED
    assert "is kept" not in caplog.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"radio": {"state": "starting"}}, "the radio is not in the mesh"),
        ({"peers": []}, "there is no peer"),
        ({"cluster": {"nodes": []}}, "no other node is in the cluster"),
        ({"applications": []}, "the application readings does not run"),
    ],
)
async def test_a_trial_that_lacks_something_is_not_kept_and_the_slot_before_says_why(
    changes: dict[str, Any], words: str, node: Node
) -> None:
    await trial(node)
    node.document = document(**changes)
    async with node.running():
        await node.until(lambda: node.noted() == words, "it is noted")
        await asyncio.sleep(4 * node.health_time)
        assert node.slots.read().phase is Phase.RUNS
    assert node.named == []
    assert node.slots.late()
    node.boot(A)
    node.document = document()
    told = f"left: slot B was left: it was not well in time: {words}"
    async with node.running():
        await node.until(lambda: told in node.messages(), "the slot before tells it")
        await node.until(lambda: node.slots.read().run is Run.WELL, "well")
        await asyncio.sleep(0.1)
        assert told in node.messages()
    # What is written over it is another matter.
    node.slots.set_bad(B)
    async with node.running():
        await node.until(lambda: node.messages() == [], "the problem is over")


async def test_what_comes_back_has_to_stay(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    await trial(node)
    clock = 0.0
    monkeypatch.setattr(service, "time", SimpleNamespace(monotonic=lambda: clock))
    node.health_time = 60
    node.document = document(peers=[])
    async with node.running():
        for now in (50.0, 100.0, 150.0):
            await node.until(lambda: node.noted() == "there is no peer", "noted")
            node.document = document()
            await node.until(lambda: node.noted() == "", "noted")
            clock = now
            node.document = document(peers=[])
        await node.until(lambda: node.noted() == "there is no peer", "noted")
        node.document = document()
        await node.until(lambda: node.noted() == "", "noted")
        assert node.named == []
        clock += 60
        await node.until(lambda: node.named == [B], "kept in the end")


async def test_a_slot_that_was_left_by_a_panic(node: Node) -> None:
    node.slots.change(lambda record: reject(record, B, Why.PANIC))
    async with node.running():
        await node.until(
            lambda: node.messages() == ["left: slot B was left: its kernel failed"], "told"
        )


async def test_the_last_words_of_a_kernel_that_failed_on_trial_stay(node: Node) -> None:
    node.slots.change(lambda record: reject(record, B, Why.PANIC))
    node.able()
    said = Path(node.paths.run + boot_slots.PANIC)
    said.write_text("VFS: no root")
    told = ["left: slot B was left: its kernel failed: VFS: no root"]
    async with node.running() as update:
        await node.until(lambda: node.messages() == told, "told")
        assert update.words_of_trial == "VFS: no root"
    said.unlink()  # another start
    async with node.running():
        await node.until(lambda: node.messages() == told, "told again")


async def test_what_an_earlier_trial_noted_is_not_told_of_this_one(node: Node) -> None:
    node.able()
    node.trial().write_text("there is no peer")
    node.slots.set_primary(B)
    node.slots.change(lambda record: reject(record, B, Why.SILENT))
    told = [f"left: slot B was left: {WORDS[Why.SILENT]}"]
    async with node.running():
        await node.until(lambda: node.messages() == told, "told")


async def test_why_a_slot_must_stay_is_told_without_its_trial(node: Node) -> None:
    node.able()
    node.trial().write_text("there is no peer")
    node.slots.change(lambda record: reject(record, B, Why.EPOCH))
    told = [f"left: slot B was left: {WORDS[Why.EPOCH]}"]
    async with node.running():
        await node.until(lambda: node.messages() == told, "told")


CONTENT = Content("ab" * 32, "2.0.0", 7)


async def test_a_bundle_that_was_tried_and_left_is_remembered(node: Node) -> None:
    await trial(node)
    kept.save(node.paths, Kept({B: CONTENT}, {}))
    node.document = document(peers=[])
    async with node.running() as update:
        await node.until(lambda: node.noted() == "there is no peer", "it is noted")
        assert kept.load(node.paths).rejected == {}
        assert [slot["version"] for slot in update.status] == [None, "2.0.0"]
    assert node.slots.late()
    node.boot(A)
    async with node.running():
        await node.until(lambda: kept.load(node.paths).rejected, "remembered")
    words = "it was not well in time: there is no peer"
    assert kept.load(node.paths) == Kept({B: CONTENT}, {CONTENT.bundle: words})


@pytest.mark.parametrize(
    ("why", "expected"),
    [(Why.PANIC, True), (Why.NEVER_STARTED, True), (Why.BY_HAND, False), (Why.EPOCH, False)],
)
async def test_what_was_not_tried_is_not_rejected(why: Why, expected: bool, node: Node) -> None:
    kept.save(node.paths, Kept({B: CONTENT}, {}))
    node.slots.change(lambda record: reject(record, B, why))
    async with node.running():
        await node.until(node.messages, "told")
    assert bool(kept.load(node.paths).rejected) == expected


class Chip:
    """A counter, and whether it fails."""

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self.fault: ThicketError | None = None

    async def use(self, work: Callable[[epochs.Counting], int]) -> int:
        if self.fault is not None:
            raise self.fault
        return work(self)

    def counter(self, number: int) -> int:
        return self.value

    def count_up(self, number: int) -> int:
        self.value += 1
        return self.value


def release(node: Node, epoch: int) -> None:
    folder = Path(node.paths.root + "/usr/lib")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "os-release").write_text(f"THICKET_EPOCH={epoch}\n")


async def test_the_epoch_of_a_slot_that_is_well_is_in_force(node: Node) -> None:
    chip = Chip(2)
    node.chip = chip.use
    release(node, 5)
    node.health_time = 600
    async with node.running() as update:
        await node.until(lambda: update.status, "it has begun")
        await asyncio.sleep(0.05)
        assert (chip.value, node.slots.read().epoch) == (2, 0), "not before it is well"
        assert await update.epoch_in_force() == 2
    node.health_time = 0
    async with node.running() as update:
        await node.until(lambda: chip.value == 5, "the chip keeps it")
        assert node.slots.read().epoch == 5
        # On another card the chip alone knows it.
        Path(node.slots.card).write_bytes(bytes(512 * 64))
        assert await update.epoch_in_force() == 5
    release(node, 3)
    async with node.running():
        await node.until(lambda: node.slots.read().epoch == 3, "of the new card")
        assert chip.value == 5


async def test_a_trial_of_a_higher_epoch_leaves_the_slot_before_for_good(node: Node) -> None:
    release(node, 1)
    await trial(node)
    release(node, 2)
    async with node.running() as update:
        await node.until(lambda: node.named == [B], "named")
        await node.until(lambda: node.slots.read().why_a is Why.EPOCH, "slot A is out")
        with pytest.raises(RequestError, match="slot A must stay: its security epoch is lower"):
            await update.back()
    assert node.slots.read().epoch == 2
    assert node.slots.read().trial is Slot.NONE


async def test_a_chip_that_fails_is_told_until_it_counts(node: Node) -> None:
    chip = Chip()
    chip.fault = ThicketError("the chip does not answer")
    node.chip = chip.use
    release(node, 4)
    async with node.running() as update:
        told = "epoch-not-kept: the chip cannot keep the epoch 4"
        await node.until(lambda: any(told in m for m in node.messages()), "told")
        assert await update.epoch_in_force() == 4, "the card has it"
    chip.fault = None
    async with node.running():
        await node.until(lambda: chip.value == 4, "kept")
        await node.until(lambda: not node.messages(), "over")


async def test_back_to_the_slot_before(node: Node) -> None:
    node.slots.set_bad(B)
    async with node.running() as update:
        await node.until(lambda: node.slots.read().run is Run.WELL, "well")
        with pytest.raises(RequestError, match="slot B holds no whole system"):
            await update.back()
        node.slots.set_good(B)
        assert await update.back() == "B"
        assert (node.slots.read().trial, node.slots.read().phase) == (B, Phase.READY)
        await node.until(lambda: update.status[1]["trial"], "the status tells it")


async def test_an_installation_is_told(node: Node) -> None:
    """A node that takes nothing says so; the real ones are in test_update_install."""
    async with node.running() as update:
        await node.until(lambda: node.slots.read().run is Run.WELL, "well")
        assert update.installation() is None
        update.installer.begin("/data/none.raucb")
        await node.until(lambda: update.installer.progress.state == "failed", "failed")
        assert update.installation() == {
            "state": "failed", "percent": 0, "version": "",
            "words": "/data/none.raucb: No such file or directory",
            "done": None, "size": None, "rate": None, "left": None,
        }  # fmt: skip


async def test_the_card_is_not_read_for_each_percent(node: Node) -> None:
    """The slots are told anew when something may have happened to them."""
    async with node.running() as update:
        await node.until(lambda: node.slots.read().run is Run.WELL, "well")
        boot, root = "Copying image to boot.1", "Copying image to root.1"
        for state, percent, words, news in (
            ("checking", 0, "", True), ("checking", 40, "", False), ("checking", 100, "", False),
            ("writing", 0, "", True), ("writing", 60, boot, True), ("writing", 64, boot, False),
            ("writing", 70, root, True), ("writing", 90, root, False), ("installed", 100, "", True),
        ):  # fmt: skip
            update._news.clear()
            update.installer.progress = Headway(state, percent, words=words)
            update._installing()
            assert update._news.is_set() == news, (state, percent)


async def test_news_that_come_with_the_end_do_not_hold_it_up(node: Node) -> None:
    async with asyncio.timeout(PATIENCE):
        async with node.running() as update:
            await node.until(lambda: node.slots.read().run is Run.WELL, "well")
            await node.until(lambda: update._news._waiters, "it waits for news")
            update._news.set()


async def test_a_card_that_takes_nothing_is_told_and_tried_again(node: Node) -> None:
    await trial(node)
    node.fault = OSError(5, "Input/output error")
    async with node.running():
        await node.until(lambda: any("Input/output" in m for m in node.messages()), "told")
        node.fault = None
        await node.until(lambda: node.named == [B], "kept")
        await node.until(lambda: node.messages() == [], "over")


async def test_a_card_that_hangs_is_told(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "HANGS", 0.05)
    hangs = threading.Event()
    monkeypatch.setattr(Slots, "well", lambda *_: hangs.wait(60))
    try:
        async with node.running():
            await node.until(
                lambda: any("the card does not answer" in m for m in node.messages()), "told"
            )
            await node.until(
                lambda: any("has not ended" in m for m in node.messages()), "and not begun anew"
            )
    finally:
        hangs.set()


async def test_data_that_cannot_be_written_is_no_reason_to_go_back(node: Node) -> None:
    await trial(node)
    folder = Path(node.paths.data + "/thicket")
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("")
    async with node.running():
        await node.until(lambda: node.named == [B], "kept")
    assert node.messages() == []


def pem(content: bytes) -> str:
    """Return a text that looks like a certificate from outside."""
    data = b"\x30\x82" + len(content).to_bytes(2, "big") + content
    text = base64.encodebytes(data).decode()
    return f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n"


KEY = UpdateSection.keys()["keyring"]
ONE, TWO = pem(b"1" * 300), pem(b"2" * 200)


class TestKeyring:
    def test_certificates(self) -> None:
        assert KEY.check("") == ""
        assert KEY.check(ONE + TWO) == ONE + TWO
        assert KEY.check(f"\r\n  {ONE}\n\n {TWO} ".replace("\n", "\r\n")) == ONE + TWO
        assert KEY.check(KEY.from_text(ONE.replace("\n", "\\n"))) == ONE

    @pytest.mark.parametrize(
        ("raw", "words"),
        [
            (5, "certificates in PEM"),
            ("hello", "certificate 1 is damaged"),
            (ONE + TWO[:100], "certificate 2 is damaged"),
            (ONE.replace("MTEx", "M!Ex", 1), "certificate 1 is damaged"),
            (ONE.replace("MTEx", "", 1), "certificate 1 is damaged"),
            (ONE * 17, "at most 16"),
            ("-----BEGIN EC PRIVATE KEY-----\n", "private key"),
        ],
    )
    def test_something_else(self, raw: object, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            KEY.check(raw)

    @given(st.text(max_size=200))
    def test_any_text(self, raw: str) -> None:
        try:
            assert KEY.check(raw) == ""
        except ValueError:
            return
        assert not raw.strip()

    @pytest.mark.parametrize(
        ("root", "keyring", "expected"),
        [("", "", None), ("", TWO, TWO), (ONE, "", ONE), (ONE, TWO, ONE)],
    )
    async def test_a_fleet_s_root_alone_counts(
        self, root: str, keyring: str, expected: str | None, node: Node
    ) -> None:
        node.settings = Settings({"trust": {"root": root}, "update": {"keyring": keyring}})
        path = Path(node.paths.run + service.KEYRING)
        path.write_text("from before")
        async with node.running():
            await node.until(lambda: node.slots.read().run is Run.WELL, "it has begun")
        assert (path.read_text() if path.exists() else None) == expected

    def test_rauc_reads_this_file(self) -> None:
        conf = Path(__file__).parents[2] / "board/common/rauc/system.conf"
        assert f"path=/run/thicket{service.KEYRING}\n" in conf.read_text()

# SPDX-License-Identifier: Apache-2.0
"""Installing a bundle: what is judged, what is remembered, and how RAUC is led.

A real RAUC on a card: tests/firmware/test_install.py.
"""

from __future__ import annotations

import asyncio
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from bundles_for_tests import MANIFEST, UpdateKey, signed, unsigned, update_key
from emulated_bus import NoisyBus, emulated
from fleet_for_tests import NOW, TestFleet, one_fleet
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE

from authority.chip import DeskChip
from authority.signing import sign_revocations
from thicket.base.headway import Headway
from thicket.base.paths import Paths
from thicket.cli import bar
from thicket.cli import update as command
from thicket.cli.common import UsageError
from thicket.config.schema import Settings
from thicket.device.boot_record import Phase, Slot
from thicket.device.boot_slots import Slots
from thicket.identity.chip.errors import ChipError
from thicket.identity.chip.packet import crc16
from thicket.trust import openssl
from thicket.trust.certificates import pem
from thicket.trust.revocations import Revocations, pack_parts
from thicket.trust.service import LIST_FILE
from thicket.trust.update_signer import SignerRefusedError
from thicket.update import bundle, check, epoch, image, install, kept, leftovers, terms
from thicket.update.bundle import UnsignedError
from thicket.update.errors import BundleError
from thicket.update.install import Installer
from thicket.update.judge import InstallError, Terms, judge
from thicket.update.kept import Content, Kept
from thicket.update.manifest import MAX_EPOCH
from thicket.update.verity import BLOCK

A, B = Slot.A, Slot.B
FLEET = one_fleet()
SIGNER = "Update signer release"
GOOD = Terms("thicket-x86_64", FLEET.fleet, False, (), 3, {}, {})


def read(data: bytes) -> bundle.Bundle:
    return bundle.read(io.BytesIO(data))


# -- what is judged


def judged(data: bytes, *, again: bool = False, **changes: object) -> str:
    return judge(read(data), GOOD._replace(**changes), again=again)  # type: ignore[arg-type]


def refused(data: bytes, code: str, words: str, **changes: object) -> None:
    with pytest.raises(InstallError) as caught:
        judge(read(data), GOOD._replace(**changes))  # type: ignore[arg-type]
    assert caught.value.code == code
    assert words in str(caught.value)


class TestJudge:
    def test_a_good_one(self) -> None:
        assert judged(signed()) == SIGNER
        assert judged(signed(), room={"boot": 64 << 20, "rootfs": 40 << 20}) == SIGNER
        assert judged(signed(), epoch=0) == SIGNER

    def test_another_board(self) -> None:
        refused(
            signed(), "compatible", "is for thicket-x86_64, and this device is thicket-rpi64",
            compatible="thicket-rpi64",
        )  # fmt: skip

    def test_a_lower_epoch(self) -> None:
        refused(signed(), "epoch", "epoch is 3, and 4 is in force here", epoch=4)

    def test_no_epoch(self) -> None:
        with pytest.raises(BundleError, match="names no epoch"):
            judged(signed(manifest=MANIFEST._replace(meta={})))

    def test_an_image_that_has_no_room(self) -> None:
        words = "root.img has 41943040 bytes, and the rootfs slot 41943039"
        refused(signed(), "too-large", words, room={"rootfs": (40 << 20) - 1})

    def test_one_that_was_left(self) -> None:
        name = kept.name_of(read(signed()).manifest)
        rejected = {name: "its kernel failed"}
        words = "version 0.1.0 was tried here and left: its kernel failed. `thicket update"
        refused(signed(), "rejected", words, rejected=rejected)
        assert judged(signed(), rejected=rejected, again=True) == SIGNER
        assert judged(signed(), rejected={"0" * 64: "another"}) == SIGNER

    def test_who_signed_does_not_change_which_bundle_it_is(self) -> None:
        first, second = (read(signed(update_key())), read(signed(UpdateKey(FLEET, "second"))))
        assert kept.name_of(first.manifest) == kept.name_of(second.manifest)

    def test_signers(self) -> None:
        with pytest.raises(UnsignedError):
            judged(unsigned())
        with pytest.raises(SignerRefusedError, match="another fleet"):
            judged(signed(UpdateKey(TestFleet("others"))))
        with pytest.raises(SignerRefusedError, match="revoked"):
            judged(signed(), revoked={SIGNER})

    def test_without_a_fleet(self) -> None:
        refused(signed(), "nobody", "takes bundles from nobody", fleet=None)
        assert judged(signed(), fleet=None, keyring=True) == ""
        refused(signed(), "revoked", "revoked", fleet=None, keyring=True, revoked={SIGNER})
        with pytest.raises(UnsignedError):
            judged(unsigned(), fleet=None, keyring=True)

    def test_the_signature_comes_first(self) -> None:
        """A stranger learns nothing of what this node takes."""
        with pytest.raises(SignerRefusedError):
            judged(signed(UpdateKey(TestFleet("others"))), compatible="thicket-rpi64", epoch=9)


# -- what is remembered

CONTENTS = st.builds(
    Content, st.text("0123456789abcdef", min_size=64, max_size=64), st.text(max_size=20),
    st.integers(0, MAX_EPOCH),
)  # fmt: skip
MEMORIES = st.builds(
    Kept,
    st.dictionaries(st.sampled_from((A, B)), CONTENTS),
    st.dictionaries(st.text(max_size=64), st.text(max_size=40), max_size=kept.MOST_REJECTED),
)


class TestKept:
    @given(MEMORIES)
    def test_there_and_back(self, memory: Kept) -> None:
        assert kept.unpack(kept.pack(memory)) == memory

    @given(st.binary(max_size=300))
    def test_garbage_says_nothing(self, data: bytes) -> None:
        assert kept.unpack(data) == Kept({}, {})

    @given(MEMORIES, st.integers(0), st.integers(0, 255))
    def test_a_damaged_file_is_no_surprise(self, memory: Kept, place: int, byte: int) -> None:
        data = bytearray(kept.pack(memory))
        data[place % len(data)] = byte
        found = kept.unpack(bytes(data))
        assert len(found.rejected) <= kept.MOST_REJECTED
        assert set(found.slots) <= {A, B}

    @pytest.mark.parametrize(
        "text",
        [
            '{"slots": {"C": {}}, "rejected": {}}', '{"slots": {}}', "[]", "1",
            '{"slots": {"NONE": {"bundle": "", "version": "", "epoch": 1}}, "rejected": {}}',
            '{"slots": {"A": {"bundle": "", "version": "", "epoch": -1}}, "rejected": {}}',
            '{"slots": {"A": {"bundle": 5, "version": "", "epoch": 1}}, "rejected": {}}',
            '{"slots": {}, "rejected": {"x": 5}}', "[" * 10_000, " " * 20_000,
        ],
    )  # fmt: skip
    def test_values_of_other_kinds(self, text: str) -> None:
        assert kept.unpack(text.encode()) == Kept({}, {})

    def test_the_newest_rejected_ones(self) -> None:
        memory = Kept({}, {})
        for number in range(kept.MOST_REJECTED + 3):
            memory = memory.with_rejected(str(number), "x" * 2000)
        assert next(iter(memory.rejected)) == "3"
        assert len(memory.rejected) == kept.MOST_REJECTED
        assert set(map(len, memory.rejected.values())) == {kept.MOST_WORDS}
        again = memory.with_rejected("3", "again")
        assert (list(again.rejected)[-1], len(again.rejected)) == ("3", kept.MOST_REJECTED)
        assert "3" not in again.without_rejected("3").rejected
        assert again.without_rejected("none") == again
        assert len(kept.pack(memory)) <= kept.MOST_BYTES

    def test_slots(self) -> None:
        content = Content("ab" * 32, "2", 1, "cd" * 32, "ef" * 32)
        memory = Kept({}, {}).written(B, content)
        assert memory.slots == {B: content}
        assert kept.unpack(kept.pack(memory)) == memory
        assert memory.written(B, None).slots == {}
        assert memory.written(A, None).slots == {B: content}

    def test_a_disk_that_takes_nothing(self, tmp_path: Path) -> None:
        paths = Paths(str(tmp_path))
        assert kept.load(paths) == Kept({}, {})
        (tmp_path / "data").write_text("no folder")
        kept.save(paths, Kept({}, {"a": "b"}))
        assert kept.load(paths) == Kept({}, {})
        (tmp_path / "data").unlink()
        kept.save(paths, Kept({}, {"a": "b"}))
        assert kept.load(paths) == Kept({}, {"a": "b"})


# -- the epoch


class Chip:
    """A counter, as far as the epoch needs it."""

    def __init__(self, value: int) -> None:
        self.value = value

    def counter(self, number: int) -> int:
        assert number == epoch.COUNTER
        return self.value

    def count_up(self, number: int) -> int:
        self.value += 1
        return self.value


class TestEpoch:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("NAME=Thicket\nTHICKET_EPOCH=7\n", 7), ("NAME=Thicket\n", 0), (None, 0),
            ("THICKET_EPOCH=-1\n", 0), ("THICKET_EPOCH=\n", 0), ("THICKET_EPOCH=x\n", 0),
            ("THICKET_EPOCH=99999999999999\n", MAX_EPOCH), ("x" * 9000 + "\nTHICKET_EPOCH=7", 0),
            ("THICKET_EPOCH=\u0661\n", 0),
        ],
    )  # fmt: skip
    def test_of_the_image(self, text: str | None, expected: int, tmp_path: Path) -> None:
        if text is not None:
            (tmp_path / "usr/lib").mkdir(parents=True)
            (tmp_path / "usr/lib/os-release").write_text(text)
        assert image.epoch(Paths(str(tmp_path))) == expected

    @pytest.mark.parametrize(
        ("text", "expected"), [("THICKET_DATE=1790000000\n", 1790000000), ("THICKET_DATE=x\n", 0)]
    )
    def test_when_the_image_was_made(self, text: str, expected: int, tmp_path: Path) -> None:
        (tmp_path / "usr/lib").mkdir(parents=True)
        (tmp_path / "usr/lib/os-release").write_text(text)
        assert image.made(Paths(str(tmp_path))) == expected

    def test_a_chip_of_another_product(self) -> None:
        assert epoch.read(Chip(MAX_EPOCH)) == MAX_EPOCH
        assert epoch.read(Chip(MAX_EPOCH + 1)) == 0
        foreign = Chip(MAX_EPOCH + 1)
        assert epoch.raise_to(5)(foreign) == MAX_EPOCH + 1
        assert foreign.value == MAX_EPOCH + 1, "it counts no further"

    def test_a_real_one_counts_to_the_epoch(self) -> None:
        driver, chip, _, _ = emulated()
        driver.lock_config(int.from_bytes(crc16(driver.read_config()), "little"))
        assert epoch.read(driver) == 0
        assert epoch.raise_to(3)(driver) == 3 == epoch.read(driver)
        assert epoch.raise_to(2)(driver) == 3
        assert chip.counters["Counter"] > 3

    @pytest.mark.parametrize("seed", range(3))
    def test_answers_that_are_lost_do_not_raise_it_further(self, seed: int) -> None:
        quiet, chip, _, clock = emulated()
        quiet.lock_config(int.from_bytes(crc16(quiet.read_config()), "little"))
        bus = NoisyBus(chip, clock, seed, rate=0.05)
        driver = DeskChip(bus, clock=clock, sleep=clock.sleep)
        for wanted in range(1, 20):
            try:
                assert epoch.raise_to(wanted)(driver) == wanted
            except ChipError:
                assert wanted - 1 <= epoch.read(quiet) <= wanted
                epoch.raise_to(wanted)(quiet)
            assert epoch.read(quiet) == wanted
        assert bus.trouble > 5

    @given(st.integers(0, 20), st.integers(0, 20))
    def test_it_only_grows(self, before: int, wanted: int) -> None:
        chip = Chip(before)
        assert epoch.raise_to(wanted)(chip) == max(before, wanted) == epoch.read(chip)


# -- what is gathered


class Node:
    """A node's folders; the card is a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for folder in (
            "proc/self", "dev/slots", "run/thicket", "data/thicket", "etc/rauc", "usr/lib", "bin",
        ):  # fmt: skip
            (path / folder).mkdir(parents=True)
        (path / "dev/slots/card").write_bytes(bytes(512 * 64))
        (path / "dev/slots/boot-b").write_bytes(bytes(64))
        (path / "dev/slots/root-b").write_bytes(bytes(128))
        (path / "proc/cmdline").write_text("quiet thicket.slot=A\n")
        (path / "etc/rauc/system.conf").write_text("[system]\ncompatible=thicket-x86_64\n")
        self.paths = Paths(str(path))
        self.slots = Slots(self.paths)
        self.settings = Settings({"trust": {"root": pem(FLEET.fleet.root.der)}})

    def gather(self, chip: int = 0) -> Terms:
        return terms.gather(self.paths, self.settings, self.slots, chip)

    def revoke(self, *names: str, fleet: TestFleet = FLEET) -> None:
        listed = Revocations(1, NOW, frozenset(names))
        packed = sign_revocations(
            listed, fleet.fleet.identifier, lambda digest: openssl.sign(fleet.root_key, digest)
        )
        (self.path / "data/thicket" / LIST_FILE).write_bytes(pack_parts([packed]))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


class TestTerms:
    def test_of_a_fleet(self, node: Node) -> None:
        node.revoke("thief")
        node.slots.change(lambda record: record._replace(epoch=4))
        kept.save(node.paths, Kept({}, {"ab": "why"}))
        found = node.gather()
        assert found.fleet is not None
        assert found.fleet.identifier == FLEET.fleet.identifier
        assert found._replace(fleet=None) == Terms(
            "thicket-x86_64", None, False, {"thief"}, 4, {"ab": "why"}, {"boot": 64, "rootfs": 128}
        )

    @pytest.mark.parametrize(("chip", "expected"), [(0, 4), (3, 4), (6, 6)])
    def test_the_higher_epoch_counts(self, chip: int, expected: int, node: Node) -> None:
        node.slots.change(lambda record: record._replace(epoch=4))
        assert node.gather(chip).epoch == expected

    def test_a_list_of_another_fleet_says_nothing(self, node: Node) -> None:
        node.revoke("release", fleet=TestFleet("others"))
        assert set(node.gather().revoked) == set()
        (node.path / "data/thicket" / LIST_FILE).write_bytes(b"damaged")
        assert set(node.gather().revoked) == set()

    def test_without_a_fleet(self, node: Node) -> None:
        node.revoke("thief")
        node.settings = Settings()
        found = node.gather()
        assert (found.fleet, found.keyring, set(found.revoked)) == (None, False, set())

    def test_a_card_that_does_not_tell_its_size(self, node: Node) -> None:
        (node.path / "dev/slots/root-b").unlink()
        assert node.gather().room == {"boot": 64}

    @pytest.mark.parametrize("text", [None, "[system]\n", "compatibles=x\n"])
    def test_an_image_without_updates(self, text: str | None, node: Node) -> None:
        path = node.path / "etc/rauc/system.conf"
        path.unlink() if text is None else path.write_text(text)
        with pytest.raises(InstallError, match=r"system\.conf") as caught:
            node.gather()
        assert caught.value.code == "no-updates"


# -- RAUC's handler


class TestHandler:
    MOUNTS = (
        "22 1 253:0 / / ro - erofs /dev/root ro\n"
        "80 22 253:1 / /run/rauc/bundle ro - squashfs /dev/dm-1 ro\n"
        "81 22 7:3 / /mnt ro - squashfs /dev/loop3 ro\n"
    )

    @pytest.fixture(autouse=True)
    def mounted(self, node: Node) -> None:
        (node.path / "proc/self/mountinfo").write_text(self.MOUNTS)
        dm, loop = node.path / "sys/dev/block/253:1/slaves", node.path / "sys/devices/loop3"
        for folder in (dm, loop / "loop", node.path / "sys/dev/block/7:3"):
            folder.mkdir(parents=True)
        (dm / "loop3").symlink_to(loop)
        (loop / "loop/backing_file").write_text("/data/my bundle.raucb\n")
        (node.path / "sys/dev/block/7:3/loop").symlink_to(loop / "loop")

    @pytest.mark.parametrize("place", ["/run/rauc/bundle", "/mnt"])
    def test_the_file_of_a_bundle(self, place: str, node: Node) -> None:
        assert check.backing_file(node.paths, place) == "/data/my bundle.raucb"

    @pytest.mark.parametrize("place", ["", "/", "/run", "/run/rauc", "/data"])
    def test_nothing_of_that_kind(self, place: str, node: Node) -> None:
        with pytest.raises(InstallError, match="no bundle is mounted at"):
            check.backing_file(node.paths, place)

    def test_a_daemon_that_does_not_answer(self, node: Node, capsys: Capture) -> None:
        assert check.epoch_of_chip(node.paths) == 0
        assert "the chip's epoch is not known" in capsys.readouterr().err

    def run(self, node: Node, monkeypatch: pytest.MonkeyPatch, data: bytes) -> int:
        path = node.path / "bundle"
        path.write_bytes(data)
        (node.path / "sys/devices/loop3/loop/backing_file").write_text(f"{path}\n")
        (node.path / "etc/thicket").mkdir(exist_ok=True)
        root = pem(FLEET.fleet.root.der)
        (node.path / "etc/thicket/thicket.toml").write_text(f'[trust]\nroot = """\n{root}"""\n')
        for name in ("boot-b", "root-b"):
            with (node.path / "dev/slots" / name).open("wb") as file:
                file.truncate(128 << 20)
        monkeypatch.setenv("THICKET_ROOT", str(node.path))
        monkeypatch.setenv(check.MOUNTED, "/run/rauc/bundle")
        return check.main()

    def test_it_judges_what_is_mounted(
        self, node: Node, monkeypatch: pytest.MonkeyPatch, capsys: Capture
    ) -> None:
        assert self.run(node, monkeypatch, signed()) == 0
        assert f"signed by {SIGNER}" in capsys.readouterr().out
        assert self.run(node, monkeypatch, signed(UpdateKey(TestFleet("others")))) == 1
        assert "another fleet" in capsys.readouterr().err.splitlines()[-1]

    def test_by_hand_every_byte_is_looked_at(
        self, node: Node, monkeypatch: pytest.MonkeyPatch, capsys: Capture
    ) -> None:
        """As the daemon does it before it starts RAUC."""
        data = bytearray(signed())
        data[BLOCK] ^= 1
        assert self.run(node, monkeypatch, bytes(data)) == 1
        assert "the images are damaged: 1 of 3 blocks" in capsys.readouterr().err.splitlines()[-1]

    def test_of_the_daemons_it_takes_the_one_that_was_checked(
        self, node: Node, monkeypatch: pytest.MonkeyPatch, capsys: Capture
    ) -> None:
        other = signed(manifest=MANIFEST._replace(version="0.0.9"))
        monkeypatch.setenv(leftovers.MARK, "1")
        monkeypatch.setenv(install.CHECKED, kept.name_of(read(signed()).manifest))
        assert self.run(node, monkeypatch, signed()) == 0
        assert self.run(node, monkeypatch, other) == 1
        assert "was replaced by another bundle" in capsys.readouterr().err.splitlines()[-1]
        monkeypatch.delenv(install.CHECKED)
        assert self.run(node, monkeypatch, signed()) == 1

    def test_a_bundle_that_was_left_is_taken_when_it_is_asked_for(
        self, node: Node, monkeypatch: pytest.MonkeyPatch, capsys: Capture
    ) -> None:
        name = kept.name_of(read(signed()).manifest)
        kept.save(node.paths, Kept({}, {name: "its kernel failed"}))
        assert self.run(node, monkeypatch, signed()) == 1
        assert "was tried here and left" in capsys.readouterr().err
        monkeypatch.setenv(install.AGAIN, "1")
        assert self.run(node, monkeypatch, signed()) == 0

    def test_the_way_back_is_not_written_over(
        self, node: Node, monkeypatch: pytest.MonkeyPatch, capsys: Capture
    ) -> None:
        node.slots.change(lambda record: record._replace(trial=A, phase=Phase.RUNS))
        assert self.run(node, monkeypatch, signed()) == 1
        assert "slot A is on trial, and slot B is the way back" in capsys.readouterr().err


Capture = pytest.CaptureFixture[str]


# -- what people see


@pytest.mark.parametrize(
    ("headway", "expected"),
    [
        (Headway("checking", 0, "", "new.raucb"), "checking new.raucb"),
        (
            Headway("checking", 45, "0.1.0", install.EVERY_BYTE),
            "[#########...........]  45 %  checking every byte of it",
        ),
        (
            Headway("writing", 99, "0.1.0", "Copying image to rootfs.1"),
            "[###################.]  99 %  Copying image to rootfs.1",
        ),
        (
            Headway("writing", 25, "", "lamp.app", 10 << 20, 40 << 20, 1 << 20, 30),
            "[#####...............]  25 %  lamp.app: 10.0 MiB of 40.0 MiB, 1.0 MiB/s, 30 s left",
        ),
        (
            Headway("failed", 25, "0.1.0", "it is damaged"),
            "[#####...............]  25 %  it is damaged",
        ),
    ],
)
def test_how_an_installation_goes_in_one_line(headway: Headway, expected: str) -> None:
    assert bar.text(headway._asdict()) == expected


def test_an_address_is_no_file() -> None:
    with pytest.raises(
        UsageError, match=r"bring https://garden\.example/new\.raucb to /data first"
    ):
        command.run(["install", "https://garden.example/new.raucb"], "")


# -- RAUC as a child

PROGRESS = """\
installing
  0% Installing
  0% Determining slot states
 44% Copying image to boot.1
 99% Copying image to rootfs.1
100% Installing done.
idle
Installing `new.raucb` succeeded
"""
FAILS = """\
installing
 44% Copying image to boot.1
LastError: Failed updating slot rootfs.1: Input/output error
Installing `new.raucb` failed
"""
NO_BUS = "rauc: Failed to install: the disk is full\nand more\n"


class Rauc:
    """A program ``rauc`` that is a shell script, and what is installed with it."""

    def __init__(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        self.node = node
        self.bundle = node.path / "new.raucb"
        self.bundle.write_bytes(signed())
        self.pid = node.path / "pid"
        self.seen: list[Headway] = []
        self.terms = GOOD
        monkeypatch.setattr(install, "_PATH", f"{node.path}/bin:/usr/bin:/bin")
        monkeypatch.setattr(install, "PROGRAM", f"{node.path}/bin/rauc")
        self.installer = Installer(node.paths, self._gather, self._changed)

    async def _gather(self) -> Terms:
        return self.terms

    def _changed(self) -> None:
        self.seen.append(self.installer.progress)

    def program(self, text: str) -> None:
        path = self.node.path / "bin/rauc"
        path.write_text(f"#!/bin/sh\necho $$ >{self.pid}\n{text}\n")
        path.chmod(0o755)

    def says(self, text: str, status: int = 0) -> None:
        said = self.node.path / "said"
        said.write_text(text)
        self.program(f"cat {said}; exit {status}")

    async def install(self, *, again: bool = False) -> Content:
        return await self.installer.install(str(self.bundle), again=again)

    async def fails(self, code: str, words: str) -> None:
        with pytest.raises(InstallError) as caught:
            await self.install()
        assert caught.value.code == code
        assert words in str(caught.value)
        assert self.installer.progress.state == "failed"
        assert words in self.installer.progress.words

    def card(self) -> list[bytes]:
        folder = self.node.path / "dev/slots"
        return [(folder / name).read_bytes() for name in ("card", "boot-b", "root-b")]

    def runs(self) -> bool:
        try:
            os.kill(int(self.pid.read_text()), 0)
        except (ProcessLookupError, OSError, ValueError):
            return False
        return True

    async def until(self, what: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not what():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)


@pytest.fixture
def rauc(node: Node, monkeypatch: pytest.MonkeyPatch) -> Rauc:
    return Rauc(node, monkeypatch)


class TestInstaller:
    async def test_it_installs(self, rauc: Rauc) -> None:
        rauc.says(PROGRESS)
        content = await rauc.install()
        manifest = read(signed()).manifest
        assert content == kept.content_of(manifest)
        assert content.root == manifest.root == "5a" * 32
        assert rauc.installer.progress == Headway(
            "installed", 100, "0.1.0", "slot B: the next start tries it"
        )
        assert [p.percent for p in rauc.seen if p.state == "writing"] == [0, 0, 0, 44, 99, 100]
        assert Headway("writing", 44, "0.1.0", "Copying image to boot.1") in rauc.seen
        whole = read(signed()).contents
        assert [p for p in rauc.seen if p.state == "checking"] == [
            Headway("checking", 0, "", "new.raucb"),
            Headway("checking", 0, "0.1.0", "its signature"),
            Headway("checking", 0, "0.1.0", "every byte of it"),
            Headway("checking", 100, "0.1.0", "every byte of it", whole, whole),
        ]
        assert kept.load(rauc.node.paths).slots == {B: content}

    async def test_it_hands_over_little(self, rauc: Rauc, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SECRET", "x")
        out = rauc.node.path / "environment"
        rauc.program(f'env >{out}; echo "$@" >>{out}')
        await rauc.install()
        text = out.read_text()
        assert "SECRET" not in text
        assert f"{install.CHECKED}={kept.name_of(read(signed()).manifest)}\n" in text
        assert install.AGAIN not in text
        assert text.endswith(f"install {rauc.bundle}\n")
        await rauc.install(again=True)
        assert f"{install.AGAIN}=1\n" in out.read_text()

    @pytest.mark.parametrize(
        ("said", "words"),
        [
            (FAILS, "Failed updating slot rootfs.1: Input/output error"),
            (NO_BUS, "Failed to install: the disk is full"),
            ("what is this\n", "what is this"), ("", "it said nothing"),
            ("x" * 100_000, "xxx"),
        ],
    )  # fmt: skip
    async def test_it_tells_why_rauc_failed(self, said: str, words: str, rauc: Rauc) -> None:
        rauc.says(said, 1)
        await rauc.fails("rauc", f"RAUC did not install it: {words}")
        assert len(rauc.installer.progress.words) < 500
        assert kept.load(rauc.node.paths).slots == {}

    async def test_what_a_slot_held_is_forgotten_before_it_is_written(self, rauc: Rauc) -> None:
        old = Content("ab" * 32, "1", 1)
        kept.save(rauc.node.paths, Kept({A: old, B: old}, {}))
        rauc.says("", 1)
        await rauc.fails("rauc", "nothing")
        assert kept.load(rauc.node.paths).slots == {A: old}

    @pytest.mark.parametrize(
        ("changes", "code", "words"),
        [
            (
                {"f_bavail": 20},
                "no-room",
                "data is full (80 KiB free), and RAUC keeps a file there",
            ),
            ({"f_ffree": 0}, "no-room", "data is full"),
            ({"f_flag": os.ST_RDONLY | os.ST_NOSUID}, "no-data", "data cannot be written"),
        ],
    )
    async def test_where_rauc_could_keep_nothing_the_slot_stays_as_it_is(
        self,
        changes: dict[str, int],
        code: str,
        words: str,
        rauc: Rauc,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        found = {"f_frsize": 4096, "f_bavail": 100, "f_files": 9, "f_ffree": 9, "f_flag": 0}
        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**(found | changes)))
        rauc.says(PROGRESS)
        kept.save(rauc.node.paths, Kept({B: Content("ab" * 32, "1", 1)}, {}))
        await rauc.fails(code, words)
        assert kept.load(rauc.node.paths).slots
        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**found))
        await rauc.install()

    async def test_no_rauc(self, rauc: Rauc) -> None:
        await rauc.fails("no-rauc", "RAUC cannot be started (No such file or directory)")

    async def test_what_is_not_for_this_node_never_reaches_rauc(self, rauc: Rauc) -> None:
        rauc.says(PROGRESS)
        rauc.terms = GOOD._replace(epoch=9)
        await rauc.fails("epoch", "9 is in force here")
        rauc.bundle.write_bytes(b"hsqs")
        await rauc.fails("bad-bundle", "new.raucb: this is a squashfs without")
        rauc.bundle.unlink()
        await rauc.fails("no-file", "No such file or directory")
        rauc.bundle.mkdir()
        await rauc.fails("no-file", "new.raucb: it is a folder, and a bundle is needed")
        rauc.node.slots.change(lambda record: record._replace(trial=A, phase=Phase.RUNS, named=B))
        await rauc.fails("trial", "slot A is on trial")
        rauc.node.slots.set_primary(B)
        await rauc.fails("trial", "the trial of slot A was called off, and slot B is what the")
        assert not rauc.pid.exists()

    @pytest.mark.parametrize(
        ("part", "words"),
        [
            ("squashfs", "and a bundle is needed"),
            ("images", "the images are damaged: 1 of 200 blocks"),
            ("top of the tree", "the hash tree behind the images is damaged"),
            ("hash tree", "the hash tree behind the images is damaged"),
            ("manifest", "what it says was changed after it was signed"),
            ("end", "what it says was changed after it was signed|the signature is wrong"),
            ("size", "one that is cut off"), ("cut", "one that is cut off"),
            ("gap", "part of the file is missing"), ("more", "with something behind its end"),
        ],
    )  # fmt: skip
    async def test_a_damaged_bundle_costs_nothing(self, part: str, words: str, rauc: Rauc) -> None:
        """The way back stays: RAUC is not even started."""
        data = bytearray(signed(blocks=200))
        found = read(bytes(data))
        places = {
            "squashfs": 1, "images": found.contents // 2, "top of the tree": found.contents,
            "hash tree": found.payload - 1, "manifest": data.index(b"version=") + 8,
            "end": -9, "size": -1,
        }  # fmt: skip
        if part in places:
            data[places[part]] ^= 1
        elif part == "cut":
            del data[found.payload + 5 :]
        elif part == "gap":
            del data[: 150 * BLOCK]
            data[:4] = b"hsqs"
        else:
            data += b"\n"
        rauc.bundle.write_bytes(data)
        rauc.says(PROGRESS)
        old = Kept({A: Content("ab" * 32, "1", 1), B: Content("cd" * 32, "0", 1)}, {})
        kept.save(rauc.node.paths, old)
        before = rauc.card()
        with pytest.raises(InstallError, match=words) as caught:
            await rauc.install()
        assert str(caught.value).startswith("new.raucb: ")
        assert rauc.installer.progress.words == str(caught.value)
        assert rauc.card() == before
        assert kept.load(rauc.node.paths) == old
        assert not rauc.pid.exists()

    @pytest.mark.parametrize("how", ["flipped", "gone"])
    async def test_a_file_that_changes_while_it_is_written(self, how: str, rauc: Rauc) -> None:
        """It was whole before. What is said is what happened to the file, and to the slot."""
        rauc.program(
            f"until [ -e {rauc.pid}.go ]; do sleep 0.05; done; echo LastError: EIO; exit 1"
        )
        task = asyncio.create_task(rauc.install())
        await rauc.until(rauc.runs)
        rauc.node.slots.set_bad(B)  # as RAUC does before it writes
        if how == "flipped":
            data = bytearray(rauc.bundle.read_bytes())
            data[BLOCK] ^= 1
            rauc.bundle.write_bytes(data)
        else:
            rauc.bundle.unlink()
        Path(f"{rauc.pid}.go").touch()
        with pytest.raises(InstallError, match="it was whole before, and was changed") as caught:
            await task
        assert caught.value.code == install.CHANGED
        words = str(caught.value)
        assert {"flipped": "1 of 3 blocks", "gone": "No such file"}[how] in words
        assert "Slot B is incomplete now and is never started, and slot A runs on" in words
        assert rauc.installer.progress.words == words
        assert kept.load(rauc.node.paths).slots == {}

    async def test_a_slot_that_cannot_be_written_is_told_as_well(self, rauc: Rauc) -> None:
        rauc.node.slots.set_bad(B)
        rauc.says(FAILS, 1)
        await rauc.fails(
            "rauc", "Input/output error. Slot B is incomplete now and is never started"
        )

    async def test_a_bundle_that_is_asked_for_again_is_no_rejected_one(self, rauc: Rauc) -> None:
        name = kept.name_of(read(signed()).manifest)
        kept.save(rauc.node.paths, Kept({}, {name: "why", "other": "why"}))
        rauc.terms = GOOD._replace(rejected={name: "why"})
        rauc.says(PROGRESS)
        await rauc.fails("rejected", "was tried here and left: why")
        await rauc.install(again=True)
        assert set(kept.load(rauc.node.paths).rejected) == {"other"}

    async def test_a_rauc_that_says_nothing(
        self, rauc: Rauc, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(install, "SILENT", 0.3)
        rauc.program("echo began; exec sleep 600")
        await rauc.fails("hangs", "said nothing")
        assert not rauc.runs()

    async def test_a_rauc_that_takes_too_long(
        self, rauc: Rauc, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(install, "LONGEST", 0.5)
        rauc.program("while echo word; do sleep 0.05; done")
        await rauc.fails("hangs", "took too long: word")
        assert not rauc.runs()

    async def test_a_rauc_that_does_not_want_to_end(
        self, rauc: Rauc, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(install, "SILENT", 0.3)
        monkeypatch.setattr(install, "GRACE", 0.3)
        rauc.program("trap '' TERM; while :; do sleep 0.1; done")
        await rauc.fails("hangs", "said nothing")
        assert not rauc.runs()

    async def test_one_at_a_time(self, rauc: Rauc) -> None:
        rauc.program("exec sleep 600")
        rauc.installer.begin(str(rauc.bundle))
        with pytest.raises(InstallError, match="another installation is running"):
            rauc.installer.begin(str(rauc.bundle))
        await rauc.until(rauc.runs)
        assert rauc.installer.busy
        with pytest.raises(InstallError, match="another installation is running"):
            await rauc.install()
        assert rauc.installer.progress.state == "writing", "the one that runs is not disturbed"
        await rauc.installer.close()
        assert not rauc.runs()
        assert not rauc.installer.busy
        assert rauc.installer.progress.state == "failed"
        assert rauc.installer.progress.words == "it was ended before it was complete"
        rauc.says(PROGRESS)
        rauc.installer.begin(str(rauc.bundle))
        await rauc.until(lambda: rauc.installer.progress.state == "installed")

    async def test_what_begins_tells_its_end_in_the_progress_alone(self, rauc: Rauc) -> None:
        rauc.says(FAILS, 1)
        rauc.installer.begin(str(rauc.bundle))
        await rauc.until(lambda: rauc.installer.progress.state == "failed")
        assert "Input/output error" in rauc.installer.progress.words
        await rauc.installer.close()

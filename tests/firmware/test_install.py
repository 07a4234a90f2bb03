# SPDX-License-Identifier: Apache-2.0
"""Updates installed by a real RAUC, refused, and left again, on a card that boots as a device's.

Version 2 is the same image with another version in ``/usr/lib/os-release``; worse versions differ
in one file. Bundles come on a stick. Stand-ins have Debian's RAUC, the firmware has its own. What
takes long runs with THICKET_SOAK=1.
"""

from __future__ import annotations

import asyncio
import base64
import configparser
import hashlib
import json
import os
import shlex
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from authority.signing import sign_revocations
from firmware import bundle as making
from firmware import card as cards
from host.cache import cache_root
from meshlab.image import standin
from meshlab.image.lab import Text
from meshlab.image.userland import python_version
from meshlab.lab import real_parts
from meshlab.lab.testing import HANGS
from meshlab.machine.events import Panic, WatchdogBite
from meshlab.machine.given import Given
from thicket.device import boot_record
from thicket.device.boot_record import PLACES, WORDS, BootRecord, Phase, Slot, Why
from thicket.trust import cms, openssl
from thicket.trust.certificates import pem
from thicket.trust.revocations import Revocations
from thicket.trust.update_signer import signer_name
from thicket.update import bundle as bundles
from thicket.update.bundle import Bundle
from thicket.update.manifest import Manifest
from thicket.update.service import ABLE

sys.path.insert(0, str(Path(__file__).parent))
from bundles_for_tests import UpdateKey
from card_device import BOOT, Device
from card_images import loaded
from fleet_for_tests import PREFIX, TestFleet

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.lab,
    pytest.mark.timeout(HANGS, func_only=True),
]

SOAK = bool(os.environ.get("THICKET_SOAK"))
soak = pytest.mark.skipif(not SOAK, reason="takes minutes: with THICKET_SOAK=1")

FLEET, OTHERS = TestFleet("garden"), TestFleet("others")
SIGNER, THIEF, STRANGER = UpdateKey(FLEET), UpdateKey(FLEET, "thief"), UpdateKey(OTHERS)
NOW = datetime.now(UTC)

RAUCS = "/data/rauc/central.raucs"
"""RAUC's own file of what it knows of the slots."""
DAMAGED = {
    "none": f"rm -f {RAUCS}",
    "empty": f": >{RAUCS}",
    "cut off": f"printf '[slot.boot.1]\\nbundle.comp' >{RAUCS}",
    "of another kind": f"head -c 4096 /bin/busybox >{RAUCS}",
    "of zeros": f"head -c 600 /dev/zero >{RAUCS}",
}
"""What a power cut or a bad card may leave of it. Zeros are blocks that were never written."""
FULL = "/data/full"
FILL = (
    f"dd if=/dev/zero of={FULL} bs=1M 2>/dev/null; dd if=/dev/zero bs=4096 2>/dev/null >>{FULL}; "
    f"df -k /data; sync"
)
"""Takes all the room on /data. A card of the tests has some 200 MB of it."""

WARNED = "/tmp/warned"
"""What RAUC says beside its answer."""
SLOTS = "/usr/lib/thicket/boot-slots"
WELL = "while [ ! -e /run/thicket/well ]; do sleep 0.2; done"
HEALTH = 10
"""Seconds that a slot must be well."""


def configuration(health: int = HEALTH) -> str:
    root = pem(FLEET.fleet.root.der)
    return (
        f'[mesh]\nid = "boot-test"\n[address]\nprefix = "{PREFIX}"\n[update]\n'
        f'health_time = {health}\n[trust]\nroot = """\n{root}"""\n'
    )


# -- bundles and the stick that they come on


def version(number: str, *texts: Text) -> tuple[Text, ...]:
    """Return what makes a stand-in another version."""
    release = f"VERSION_ID={number}\nTHICKET_EPOCH=1\n"
    return (Text("usr/lib/os-release", release), *texts)


def end(manifest: Manifest, key: UpdateKey = SIGNER) -> bytes:
    return ended(manifest.text(), key)


def ended(text: bytes, key: UpdateKey = SIGNER) -> bytes:
    return bundles.end(cms.sign(text, key.certificate, NOW, key.sign))


@dataclass(frozen=True)
class Stick:
    """A disk that holds a bundle's payload, and ends for it: 87 MB are copied to the node once."""

    path: Path
    payload: int
    ends: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, path: Path, unsigned: Path, ends: Callable[[Bundle], dict[str, bytes]]) -> Stick:
        places = {}
        with unsigned.open("rb") as file, path.open("wb") as out:
            found = bundles.read(file)
            file.seek(0)
            out.write(file.read(found.payload))
            for name, data in ends(found).items():
                out.seek(-(-out.tell() // 4096) * 4096)
                places[name] = (out.tell() // 4096, len(data))
                out.write(data)
            out.truncate(-(-out.tell() // 4096) * 4096)
        return cls(path, found.payload, places)

    @property
    def copy(self) -> str:
        """The command that copies the payload to the node."""
        return f"head -c {self.payload} /dev/vdb >/data/new.raucb"

    def with_end(self, name: str) -> str:
        """The command that gives the copy another end."""
        place, size = self.ends[name]
        blocks = -(-size // 4096)
        return (
            f"truncate -s {self.payload} /data/new.raucb && "
            f"dd if=/dev/vdb bs=4096 skip={place} count={blocks} 2>/dev/null | "
            f"head -c {size} >>/data/new.raucb"
        )


@asynccontextmanager
async def on(
    path: Path, image: real_parts.RealParts, toml: str, stick: Path | None = None, **more: Any
) -> AsyncIterator[Device]:
    made = Device(path, image, toml, stick, more)
    await made.chip.start()
    try:
        yield made
    finally:
        await made.cut()
        await made.chip.stop()
        made.card.unlink()


async def said(device: Device, command: str) -> tuple[int, str]:
    """Run a command that may fail; return its exit status and all that it says."""
    output = await device.run(f"{command} >/tmp/said 2>&1; echo $?; cat /tmp/said")
    status, _, text = output.partition("\n")
    return int(status), text


async def status(device: Device) -> dict[str, Any]:
    """Return the status document, as soon as there is a daemon that tells it."""
    tell = (
        "until thicket status --json >/tmp/status 2>/dev/null || [ -s /tmp/status ]; "
        "do sleep 1; done"
    )
    document: dict[str, Any] = json.loads(await device.run(f"{tell}; cat /tmp/status"))
    return document


async def until_status(
    device: Device, what: Callable[[dict[str, Any]], bool], words: str
) -> dict[str, Any]:
    had = Given(lambda: [device.machine.pid])
    while not what(document := await status(device)):
        assert had.seconds() < BOOT, f"{words}: {document}"
        await asyncio.sleep(0.5)
    return document


def digests(device: Device, *numbers: int) -> dict[int, str]:
    """Return what is in partitions of the card; 0 is the partition table."""
    layout = device.layout()
    found = {}
    with device.card.open("rb") as file:
        for number in numbers:
            place, size = (0, 512) if number == 0 else (layout[number].offset, layout[number].size)
            file.seek(place)
            found[number] = hashlib.sha256(file.read(size)).hexdigest()
    return found


def running_slot(device: Device) -> object:
    """Return everything that an installation must not change."""
    first = real_parts.partition(device.card, cards.CONFIG)
    texts = [first.read(name) for name in ("autoboot.txt", "thicket.toml", "README.txt")]
    return digests(device, 0, cards.BOOT_A, cards.ROOT_A), texts


# -- installed, tried, kept


def unsigned(name: str, folder: Path) -> Path:
    """Return version 2 of an image, unsigned."""
    if name in real_parts.STANDINS:
        return standin.bundle(cache_root(), name=name, version="2.0.0", texts=version("2.0.0"))
    images = cache_root() / "build" / name / "images"
    return making.make(images, folder, making.release(images)._replace(version="2.0.0"))


@pytest.mark.parametrize("name", [real_parts.STANDIN, *real_parts.CARDS])
async def test_an_update_is_installed_tried_and_kept(name: str, tmp_path: Path) -> None:
    image, update = loaded(name), unsigned(name, tmp_path)
    stick = Stick.of(tmp_path / "stick", update, lambda found: {"good": end(found.manifest)})
    async with on(tmp_path, image, configuration(), stick.path) as device:
        await device.on()
        await device.data_state()
        await device.run(stick.copy)
        await device.run(stick.with_end("good"))
        before = running_slot(device)
        # RAUC's keyring is made by the daemon.
        await device.run("while [ ! -e /run/thicket/keyring.pem ]; do sleep 0.2; done")
        for kind, damage in DAMAGED.items():
            await device.run(f"mkdir -p /data/rauc && {damage}")
            facts = await rauc_status(device)
            warned = await device.run(f"cat {WARNED}")
            assert facts["RAUC_BOOT_PRIMARY"] == "boot.0", f"{kind}: {warned}"
            assert "RAUC_SLOT_STATUS_BUNDLE_VERSION_1" not in facts, kind
        await device.run(DAMAGED["of zeros"])
        code, text = await said(device, "thicket update install /data/new.raucb")
        assert code == 0, text
        assert "version 2.0.0 is installed: slot B: the next start tries it" in text
        assert "Copying image to rootfs.1" in text
        assert running_slot(device) == before
        document = await until_status(
            device, lambda d: bool(d["slots"] and d["slots"][1]["trial"]), "to be tried"
        )
        assert document["installation"]["state"] == "installed"
        assert document["installation"]["version"] == document["slots"][1]["version"] == "2.0.0"
        assert document["slots"][1]["state"] == "untried"
        assert "B: untried, to be tried" in await device.run(f"{SLOTS} show")
        facts = await rauc_status(device)
        assert facts["RAUC_BOOT_PRIMARY"] == "boot.1"
        kept = configparser.ConfigParser(interpolation=None)
        kept.read_string(await device.run(f"cat {RAUCS}"))
        assert [kept[f"slot.{name}.1"]["status"] for name in ("boot", "rootfs")] == ["ok", "ok"]
        # Slot B has what the bundle says, byte for byte, but for the command line in it.
        layout = device.layout()
        with device.card.open("rb") as file, update.open("rb") as new:
            root = next(i for i in bundles.read(new).manifest.images if i.slot == "rootfs")
            file.seek(layout[cards.ROOT_B].offset)
            assert hashlib.sha256(file.read(root.size)).hexdigest() == root.sha256
        second = real_parts.partition(device.card, cards.BOOT_B)
        assert second.read("cmdline.txt") == second.read("cmdline-B.txt")
        await device.run(WELL)
        # A trial and its end need no room on /data.
        await device.run(FILL)
        await device.restart("reboot", times=2)
        assert "thicket.slot=B" in await device.run("cat /proc/cmdline")
        await device.run(WELL)
        assert "B: good, runs" in await device.run(f"{SLOTS} show")
        document = await until_status(
            device, lambda d: bool(d["slots"] and d["slots"][1]["state"] == "good"), "kept"
        )
        assert not [p for p in document["problems"] if p["part"] == "update"]
        assert [slot["version"] for slot in document["slots"]] == [None, "2.0.0"]
        after = running_slot(device)
        assert before[0] == after[0], "slot A is the way back"  # type: ignore[index]
        assert b"boot_partition=3\n[tryboot]" in after[1][0]  # type: ignore[index]
        assert before[1][1:] == after[1][1:]  # type: ignore[index]
        # And back to the slot before, which is kept as well.
        code, text = await said(device, "thicket update install /data/new.raucb")
        assert (code, "/data is full (0 KiB free)" in text) == (1, True), text
        code, text = await said(device, "thicket update back")
        assert (code, text.splitlines()[0]) == (
            0, "slot A is tried by the next start, and kept if it is well"
        )  # fmt: skip
        assert "A: untried, to be tried" in await device.run(f"{SLOTS} show")


async def rauc_status(device: Device) -> dict[str, str]:
    """Return what RAUC says of the slots; empty values are left out."""
    # Debian's RAUC gives its service 25 s for an answer; a busy machine emulates that more slowly.
    text = await device.run(
        f"while rauc status --output-format=shell 2>{WARNED} >/tmp/rauc; code=$?; "
        f"grep -q 'Timeout was reached' {WARNED}; do :; done; cat /tmp/rauc; (exit $code)"
    )
    pairs = (word.partition("=") for word in shlex.split(text))
    return {name: value for name, _, value in pairs if value}


# -- refused


def ends(found: Bundle) -> dict[str, bytes]:
    """Return the ends of bundles that are refused, and of one that is not."""
    manifest = found.manifest
    large = tuple(i._replace(size=200 << 20) if i.slot == "rootfs" else i for i in manifest.images)
    return {
        "good": end(manifest),
        "of strangers": end(manifest, STRANGER),
        "of a thief": end(manifest, THIEF),
        "unsigned": bundles.end(manifest.text()),
        "plain": ended(manifest.text().replace(b"format=verity", b"format=plain")),
        "other board": end(manifest._replace(compatible="thicket-rpi64")),
        "old": end(manifest._replace(meta={"thicket": {"epoch": "0"}})),
        "large": end(manifest._replace(images=large)),
    }


REFUSED = {
    "of strangers": "it is signed for another fleet",
    "of a thief": "its signer is revoked",
    "unsigned": "it is not signed",
    "plain": "the bundle's format is plain",
    "other board": "the bundle is for thicket-rpi64, and this device is thicket-standin",
    "old": "the bundle's epoch is 0, and 1 is in force here",
    "large": "root.img has 209715200 bytes, and the rootfs slot 134217728",
}
BY_HAND = {
    "of a thief": "its signer is revoked",
    "old": "the bundle's epoch is 0, and 1 is in force here",
    "large": "root.img has 209715200 bytes",
}


def revoked() -> str:
    """Return the fleet's list of revocations in Base64."""
    listed = Revocations(1, NOW, frozenset({signer_name("thief")}))
    made = sign_revocations(
        listed, FLEET.fleet.identifier, lambda digest: openssl.sign(FLEET.root_key, digest)
    )
    return base64.b64encode(made).decode()


async def test_what_is_refused(tmp_path: Path) -> None:
    found = unsigned(real_parts.STANDIN, tmp_path)
    stick = Stick.of(tmp_path / "stick", found, ends)
    install = "thicket update install /data/new.raucb"
    async with on(tmp_path, loaded(real_parts.STANDIN), configuration(), stick.path) as device:
        await device.on()
        await device.data_state()
        await device.run(stick.copy)
        await device.run(WELL)  # the epoch is in force then
        await device.run(f"echo {revoked()} | base64 -d >/tmp/list")
        code, text = await said(device, "thicket revocations import /tmp/list")
        assert code == 0, text
        table, before = await device.run(f"{SLOTS} show"), running_slot(device)
        other = digests(device, cards.BOOT_B, cards.ROOT_B)
        for name, words in REFUSED.items():
            await device.run(stick.with_end(name))
            code, text = await said(device, install)
            assert (code, words in text) == (1, True), f"{name}: {code} {text}"
        for name, words in BY_HAND.items():
            await device.run(stick.with_end(name))
            code, text = await said(device, "rauc install /data/new.raucb")
            assert (code, words in text) == (1, True), f"{name}: {code} {text}"
        await device.run(f"truncate -s {stick.payload - 100} /data/new.raucb")
        code, text = await said(device, install)
        assert (code, "cut off" in text) == (1, True), text
        code, text = await said(device, "thicket update install /data/none.raucb")
        assert (code, "No such file" in text) == (1, True), text
        assert await device.run(f"{SLOTS} show") == table
        assert running_slot(device) == before
        assert digests(device, cards.BOOT_B, cards.ROOT_B) == other
        document = await status(device)
        assert document["installation"]["state"] == "failed"
        assert "No such file" in document["installation"]["words"]

        # No room for what RAUC keeps. Nothing is begun, so the slot stays as it is.
        await device.run(stick.with_end("good"))
        await device.run(FILL)
        for command in (install, "rauc install /data/new.raucb"):
            code, text = await said(device, command)
            assert (code, "/data is full (0 KiB free)" in text) == (1, True), f"{command}: {text}"
        code, text = await said(device, "thicket update back")
        assert code == 0, text
        await device.run(f"{SLOTS} set-primary A")
        assert await device.run(f"{SLOTS} show") == table
        assert running_slot(device) == before
        assert digests(device, cards.BOOT_B, cards.ROOT_B) == other
        await device.run(f"rm {FULL}")

        # One that was changed behind its signature: found before the slot is written.
        block = stick.payload // 2 // 4096
        spoil = f"printf EVIL | dd of=/data/new.raucb bs=4096 seek={block} conv=notrunc 2>/dev/null"
        mend = (
            f"dd if=/dev/vdb of=/data/new.raucb bs=4096 skip={block} seek={block} count=1 "
            "conv=notrunc 2>/dev/null"
        )
        await device.run(spoil)
        for command in (install, "rauc install /data/new.raucb"):
            code, text = await said(device, command)
            words = f"blocks, the first at byte {block * 4096}; copy it again"
            assert (code, "the images are damaged: 1 of" in text) == (1, True), text
            assert words in text, text
        assert await device.run(f"{SLOTS} show") == table
        assert running_slot(device) == before
        assert digests(device, cards.BOOT_B, cards.ROOT_B) == other
        await device.run(mend)

        # And behind the check: RAUC meets the block when it is to be written.
        await device.run(DAMAGED["cut off"])
        await device.run(f"(({install}; echo ended $?) >/tmp/changing 2>&1 &)")
        await device.run("until kill -STOP $(pidof rauc) 2>/dev/null; do sleep 0.1; done")
        await device.run(f"{spoil}; kill -CONT $(pidof rauc)")
        text = await device.run(
            "until grep -q '^ended' /tmp/changing; do sleep 0.2; done; cat /tmp/changing"
        )
        assert "ended 1" in text, text
        assert "it was whole before, and was changed or failed while it was written" in text, text
        assert "Slot B is incomplete now and is never started, and slot A runs on" in text, text
        assert "B: incomplete" in await device.run(f"{SLOTS} show")
        assert running_slot(device) == before
        await device.run(mend)

        # One that was tried and left is asked for again; and a second one beside one that runs.
        await device.run(DAMAGED["of another kind"])
        code, text = await said(device, install)
        assert code == 0, text
        assert running_slot(device) == before
        await device.restart("reboot -f", times=2)
        assert "B: untried, runs, on trial" in await device.run(f"{SLOTS} show")
        await device.restart("reboot -f")
        await until_status(device, is_left, "slot B is left")
        code, text = await said(device, install)
        assert (code, "was tried here and left: it was restarted or lost its power" in text) == (
            1, True
        ), text  # fmt: skip
        await device.run(f"({install} --again >/dev/null 2>&1 &)")
        # It is stopped: it runs for as long as it is looked at.
        await device.run("until kill -STOP $(pidof rauc) 2>/dev/null; do sleep 0.1; done")
        assert "another installation is running" in await device.run(f"{install} 2>&1; true")
        document = await status(device)
        assert document["installation"]["state"] == "writing", "it is tried once more"
        code, text = await said(device, "thicket update back")
        assert (code, "slot B is being written" in text) == (1, True), text


def is_left(document: dict[str, Any]) -> bool:
    return any((p["part"], p["code"]) == ("update", "left") for p in document["problems"])


@soak
async def test_a_daemon_that_is_killed_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    """The RAUC that it had started goes on, with the bundle mounted."""
    stick = Stick.of(
        tmp_path / "stick",
        unsigned(real_parts.STANDIN, tmp_path),
        lambda found: {"good": end(found.manifest)},
    )
    install = "thicket update install /data/new.raucb"
    async with on(tmp_path, loaded(real_parts.STANDIN), configuration(), stick.path) as device:
        await device.on()
        await device.data_state()
        await device.run(stick.copy)
        await device.run(stick.with_end("good"))
        await device.run(WELL)
        await device.run(f"({install} >/dev/null 2>&1 &)")
        await device.run("until grep -q ' /run/rauc/bundle ' /proc/mounts; do sleep 0.2; done")
        code, text = await said(device, "rauc install /data/new.raucb")
        assert code == 1, text
        await device.run("killall -9 thicketd")
        await until_status(device, lambda d: d["installation"] is None, "init starts it again")
        await device.run(WELL)
        code, text = await said(device, install)
        assert (code, "the next start tries it" in text) == (0, True), text
        assert await device.run("grep -c ' /run/rauc/' /proc/mounts; true") == "0\n"
        assert "B: untried, to be tried" in await device.run(f"{SLOTS} show")


# -- going back


class Bad(NamedTuple):
    """A version that does not work.

    :ivar why: of a slot on a card whose kernel keeps no last words, and of one whose kernel does.
    :ivar kernel: the beginning of these last words.
    :ivar texts: what is wrong with it.
    :ivar late: seconds after which it is restarted for not being well.
    """

    why: Why
    with_pstore: Why
    texts: tuple[Text, ...] = ()
    late: int = 900
    kernel: str = ""


def script(name: str, text: str) -> Text:
    return Text(f"etc/init.d/{name}", f"#!/bin/sh\n{text}\n", program=True)


# Every process stands still once the watchdog is armed, the one that feeds it among them: what the
# watchdog sees of a kernel that hangs. A real-time loop leaves others a twentieth since Linux 6.12.
HANG = """\
(
	until pidof watchdog >/dev/null; do sleep 1; done
	sleep 5
	kill -STOP -1
) &"""

BAD = {
    "init": Bad(
        Why.NEVER_STARTED,
        Why.PANIC,
        (Text("usr/sbin/init", "#!/bin/sh\nexit 1\n", program=True),),
        kernel="Attempted to kill init!",
    ),
    "panic": Bad(
        Why.SILENT,
        Why.PANIC,
        (script("S97panic.sh", "echo c >/proc/sysrq-trigger"),),
        kernel="sysrq triggered crash",
    ),
    "daemon": Bad(
        Why.OVERDUE,
        Why.OVERDUE,
        (Text("usr/bin/thicketd", "#!/bin/sh\nexec sleep 3600\n", program=True),),
        late=3,
    ),
    "hang": Bad(Why.SILENT, Why.SILENT, (script("S97hang.sh", HANG),)),
}
"""A machine of the simulator that restarts has a new watchdog, which remembers nothing."""


def plant(device: Device, image: str, bad: Bad) -> None:
    """Put a version into slot B, as RAUC and the bundle's hook do."""
    made = standin.build(cache_root(), name=image, texts=version("2.0.0", *bad.texts))
    layout = device.layout()
    with device.card.open("r+b") as file:
        for number, name in ((cards.ROOT_B, making.ROOT_IMAGE), (cards.BOOT_B, making.BOOT)):
            file.seek(layout[number].offset)
            file.write((made / name).read_bytes())
    second = real_parts.partition(device.card, cards.BOOT_B)
    line = second.read("cmdline-B.txt")
    assert line is not None
    second.write("cmdline.txt", line.rstrip() + f" thicket.late={bad.late}\n".encode())


def arm(device: Device) -> None:
    """Have the next start try slot B."""
    record = BootRecord(1, named=Slot.A)
    record = boot_record.arm(record, Slot.B, Slot.A)
    assert record.phase is Phase.READY
    with device.card.open("r+b") as file:
        file.seek(PLACES[0] * boot_record.SECTOR)
        file.write(boot_record.pack(record))


async def ends_on_the_old_version(device: Device, words: str) -> None:
    """Wait until slot A runs again and says to everybody why slot B was left."""
    document = await until_status(device, is_left, "slot B is left")
    assert document["slot"] == "A"
    (problem,) = [p for p in document["problems"] if p["code"] == "left"]
    assert problem["message"].startswith(f"slot B was left: {words}"), problem
    assert document["slots"][1]["why"] in problem["message"]
    assert f"B: bad, {words}" in await device.run(f"{SLOTS} show")
    assert words in await device.run("thicket status; true")
    # At most every ten minutes, and 20 s after the start.
    await device.until(
        lambda: words in " ".join((device.parts.report(device.directory) or "").split()),
        f"the report says {words!r}",
    )
    await device.run(WELL)
    assert "A: good, runs" in await device.run(f"{SLOTS} show")


QUICK = ("init", "daemon")


@pytest.mark.parametrize(
    ("name", "image"),
    [
        pytest.param(name, image, marks=() if (name, image) in quick else soak)
        for quick in [{(name, real_parts.STANDIN) for name in QUICK}]
        for image in real_parts.STANDINS
        for name in BAD
    ],
)
async def test_a_bad_version_is_left(name: str, image: str, tmp_path: Path) -> None:
    bad = BAD[name]
    async with on(tmp_path, loaded(image), configuration(30)) as device:
        plant(device, image, bad)
        arm(device)
        await device.on()
        await device.until(lambda: device.machine.booted is not None and tried(device), "the trial")
        await device.until(lambda: not tried(device), "and the way back")
        why = bad.why if image == real_parts.STANDIN else bad.with_pstore
        words = f"{WORDS[why]}: {bad.kernel}" if why is Why.PANIC else WORDS[why]
        await ends_on_the_old_version(device, words)
        if name in ("init", "panic"):
            assert device.seen(Panic)
        if name == "hang":
            assert device.seen(WatchdogBite)
        if why is Why.PANIC:
            # At length.
            assert bad.kernel in await device.run("cat /data/log/crash-*.txt")


def tried(device: Device) -> bool:
    booted = device.machine.booted
    return booted is not None and booted.partition == cards.BOOT_B


@soak
async def test_a_root_with_a_flipped_bit_is_left(tmp_path: Path) -> None:
    async with on(tmp_path, loaded(real_parts.STANDIN), configuration(30)) as device:
        arm(device)
        # erofs_fs.h: the superblock is at byte 1024
        device.flip(device.layout()[cards.ROOT_B].offset + 1024 + 40, 3)
        await device.on()
        await device.until(lambda: tried(device), "the trial")
        await device.until(lambda: not tried(device), "and the way back")
        await ends_on_the_old_version(device, WORDS[Why.NEVER_STARTED])
        assert "corrupt" in device.seen(Panic)[0].message


@soak
async def test_a_kernel_that_is_cut_off_is_left(tmp_path: Path) -> None:
    """A Pi's firmware starts what there is of it, and restarts it by its own watchdog
    (``kernel_watchdog_timeout``), which QEMU has not: the power is cut instead."""
    async with on(tmp_path, loaded(real_parts.STANDIN), configuration(30)) as device:
        arm(device)
        second = real_parts.partition(device.card, cards.BOOT_B)
        kernel = second.read("bzImage", 64 << 20)
        assert kernel is not None
        second.write("bzImage", kernel[: len(kernel) // 2])
        await device.on()
        for _ in range(2):
            await device.until(lambda: tried(device), "the trial")
            await device.cut()
            await device.on()
        await ends_on_the_old_version(device, WORDS[Why.NEVER_STARTED])


TINY = """\
from thicket.applications.api import Application


class Tiny(Application):
    async def run(self):
        {}
"""


def application(body: str, python: str) -> tuple[Text, ...]:
    """Return a radio for the system, which applications wait for, and an application."""
    site = f"usr/lib/{python}/site-packages"
    return (
        script("S46radio.sh", "modprobe -r mac80211_hwsim; modprobe mac80211_hwsim radios=1"),
        Text(f"{site}/tiny.py", TINY.format(body)),
        Text(
            f"{site}/tiny-1.0.dist-info/entry_points.txt",
            "[thicket.applications]\ntiny = tiny:Tiny\n",
        ),
    )


@soak
async def test_an_application_that_gets_never_healthy_is_a_reason(tmp_path: Path) -> None:
    # The node's Python is in no place that does not name its version.
    standin.build(cache_root())
    userland = next((cache_root() / "images/userland").iterdir())
    python = f"python{python_version(userland / 'root')}"
    well = application("await super().run()", python)
    ill = application("raise OSError('no sensor')", python)
    made = standin.build(cache_root(), texts=version("1.0.0", *well))
    image = real_parts.load(str(made / "card.img"), cache_root(), 1, print)
    # Applications run in a cluster; this one has no fleet.
    toml = (
        '[mesh]\nid = "boot-test"\nsecurity = "open"\n[update]\nhealth_time = 10\n'
        '[cluster]\nsecurity = "cookie"\ncookie = "of-no-other-node-at-all"\n'
        '[discovery]\nbeacon = "plain"\n'
    )
    async with on(tmp_path, image, toml) as device:
        plant(device, real_parts.STANDIN, Bad(Why.OVERDUE, Why.OVERDUE, ill, late=180))
        await device.on()
        await until_status(
            device, lambda d: [a["state"] for a in d["applications"]] == ["running"], "it runs"
        )
        able = f"until grep -q tiny /data{ABLE}; do sleep 0.5; done"
        await device.run(f"{WELL}; {able}; {SLOTS} set-primary B")
        await device.restart("reboot", times=2)
        assert "thicket.slot=B" in await device.run("cat /proc/cmdline")
        await device.until(lambda: not tried(device), "and the way back")
        words = f"{WORDS[Why.OVERDUE]}: the application tiny does not run"
        await ends_on_the_old_version(device, words)

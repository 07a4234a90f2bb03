# SPDX-License-Identifier: Apache-2.0
"""Update bundles of what post-image.sh leaves, judged by RAUC itself; and the hook in them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
from bundles_for_tests import UpdateKey, update_key
from fleet_for_tests import NOW, one_fleet
from patience import PATIENCE

from firmware import boards, bundle
from firmware.bundle import BundleMakingError, Release
from thicket.trust import cms, openssl
from thicket.trust.certificates import pem
from thicket.update import bundle as bundles

SAID = Release("x86_64", "0.1.0", 2, "0123456789ab", "5a" * 32)
BOOT, ROOT = os.urandom(40_000) + bytes(300_000), os.urandom(500_000) + bytes(3616)
HOOK = boards.ROOT / "board/common/bundle/hook"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a build leaves, but small."""
    if not shutil.which("mksquashfs"):
        pytest.skip("no mksquashfs")
    folder = tmp_path_factory.mktemp("images")
    (folder / bundle.BOOT).write_bytes(BOOT)
    (folder / bundle.ROOT_IMAGE).write_bytes(ROOT)
    return folder


@pytest.fixture(scope="module")
def unsigned(images: Path) -> bytes:
    return bundle.make(images, images, SAID).read_bytes()


# -- making


def test_the_same_images_make_the_same_bundle(
    images: Path, unsigned: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever and wherever, and whatever their files' times and modes are."""
    other = tmp_path / "other"
    other.mkdir()
    for name in (bundle.ROOT_IMAGE, bundle.BOOT):
        shutil.copyfile(images / name, other / name)
        (other / name).chmod(0o600)
        os.utime(other / name, (5, 5))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1790000000")
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.sleep(1.1)  # a second that a file would keep
    made = bundle.make(other, tmp_path, SAID)
    assert made == tmp_path / "thicket-x86_64-0.1.0.unsigned"
    assert made.read_bytes() == unsigned
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", made.name]


def test_what_it_says_of_itself(unsigned: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    path.write_bytes(unsigned)
    with path.open("rb") as file:
        found = bundles.read(file)
        bundles.check_contents(file, found.contents, found.verity)
    said = found.manifest
    assert (said.compatible, said.version, said.build) == ("thicket-x86_64", "0.1.0", SAID.build)
    assert (said.epoch, said.root) == (2, SAID.root)
    assert [(i.slot, i.sha256, i.size, i.hooks) for i in said.images] == [
        ("boot", sha256(BOOT).hexdigest(), len(BOOT), ("post-install",)),
        ("rootfs", sha256(ROOT).hexdigest(), len(ROOT), ()),
    ]


def test_images_lie_in_it_as_they_are(unsigned: bytes) -> None:
    """Uncompressed, so that deltas are small; zeros in whole blocks take no place."""
    assert ROOT[: 384 << 10] in unsigned
    assert BOOT[:40_000] in unsigned
    assert len(unsigned) < len(BOOT) + len(ROOT)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleMakingError, match=r"boot\.vfat is needed"):
        bundle.make(tmp_path, tmp_path, SAID)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BundleMakingError, match="does not say what was built"):
        bundle.release(tmp_path)
    (tmp_path / "manifest.json").write_text('{"board": "x86_64", "version": "1"}')
    with pytest.raises(BundleMakingError, match="epoch"):
        bundle.release(tmp_path)


def test_without_squashfs_tools(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(BundleMakingError, match=r"apt-get install .* squashfs-tools"):
        bundle.make(images, images, SAID)


# -- what RAUC says


class Rauc:
    """RAUC with the keyring of a fleet, as a node has it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "root.pem").write_text(pem(one_fleet().fleet.root.der))
        (folder / "system.conf").write_text(
            "[system]\ncompatible=thicket-x86_64\nbootloader=noop\nbundle-formats=-plain\n"
            "[keyring]\npath=root.pem\ncheck-purpose=codesign\nuse-bundle-signing-time=true\n"
        )

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["rauc", "--conf=system.conf", *words],
            cwd=self.folder, capture_output=True, text=True, check=False, timeout=PATIENCE,
        )  # fmt: skip

    def info(self, data: bytes) -> subprocess.CompletedProcess[str]:
        (self.folder / "x.raucb").write_bytes(data)
        return self.run("info", "--output-format=json", "x.raucb")

    def refuses(self, data: bytes) -> str:
        done = self.info(data)
        assert done.returncode != 0
        return done.stderr


@pytest.fixture
def rauc(tmp_path: Path) -> Rauc:
    if not shutil.which("rauc"):
        pytest.skip("no rauc")
    return Rauc(tmp_path)


def signed_by(unsigned: bytes, key: UpdateKey, when: datetime = NOW) -> bytes:
    """Sign as ``thicket update sign`` does, at any time."""
    size = int.from_bytes(unsigned[-8:], "big")
    text, payload = unsigned[-8 - size : -8], unsigned[: -8 - size]
    return payload + bundles.end(key.message(text, when))


def test_rauc_verifies_and_reads_it(rauc: Rauc, unsigned: bytes) -> None:
    done = rauc.info(signed_by(unsigned, update_key()))
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["compatible"], said["version"]) == ("thicket-x86_64", "0.1.0")
    assert [name for image in said["images"] for name in image] == ["boot", "rootfs"]
    assert said["images"][0]["boot"]["hooks"] == ["post-install"]
    assert said["images"][1]["rootfs"]["checksum"] == sha256(ROOT).hexdigest()


@pytest.mark.skipif(not shutil.which("unsquashfs"), reason="no unsquashfs")
def test_rauc_checks_every_byte_and_takes_it_apart(rauc: Rauc, unsigned: bytes) -> None:
    data = signed_by(unsigned, update_key())
    (rauc.folder / "x.raucb").write_bytes(data)
    done = rauc.run("extract", "x.raucb", "out")
    assert done.returncode == 0, done.stderr
    out = rauc.folder / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "boot.vfat", "hook", "manifest.raucm", "root.img",
    ]  # fmt: skip
    assert (out / "boot.vfat").read_bytes() == BOOT
    assert (out / "root.img").read_bytes() == ROOT
    assert (out / "hook").read_bytes() == HOOK.read_bytes()
    assert os.access(out / "hook", os.X_OK)
    assert "verity-hash" not in (out / "manifest.raucm").read_text()
    broken = bytearray(data)
    broken[data.index(ROOT[1000:1100])] ^= 1
    (rauc.folder / "x.raucb").write_bytes(broken)
    done = rauc.run("extract", "x.raucb", "again")
    assert done.returncode != 0
    assert not (rauc.folder / "again").exists()


def test_rauc_refuses_what_is_not_signed(rauc: Rauc, unsigned: bytes) -> None:
    assert "Invalid bundle format" in rauc.refuses(unsigned)


def test_rauc_refuses_another_fleets_signer(rauc: Rauc, unsigned: bytes) -> None:
    other = update_key(one_fleet("other"))
    assert "unable to get local issuer certificate" in rauc.refuses(signed_by(unsigned, other))


def test_rauc_refuses_a_tampered_manifest(rauc: Rauc, unsigned: bytes) -> None:
    data = signed_by(unsigned, update_key())
    assert "signature verification failed" in rauc.refuses(data.replace(b"=0.1.0", b"=0.2.0"))


def test_rauc_refuses_a_bundle_that_is_cut_off(rauc: Rauc, unsigned: bytes) -> None:
    data = signed_by(unsigned, update_key())
    for gone in (1, 100, 5000):
        rauc.refuses(data[:-gone])


def test_rauc_refuses_those_who_sign_for_something_else(rauc: Rauc, unsigned: bytes) -> None:
    """Both have a chain to the fleet's root: RAUC asks what their certificates are for."""
    fleet = one_fleet()
    device, device_key = fleet.device()
    size = int.from_bytes(unsigned[-8:], "big")
    text, payload = unsigned[-8 - size : -8], unsigned[: -8 - size]
    for key, chain in (
        (device_key, device.chain),
        (fleet.signer_key, (fleet.signer,)),
    ):
        (rauc.folder / "root.pem").write_text("".join(map(pem, (fleet.fleet.root.der, *chain))))
        one = cms.sign(text, chain[0], NOW, partial(openssl.sign, key))
        said = rauc.refuses(payload + bundles.end(one))
        assert "unsuitable certificate purpose" in said or "unsupported certificate" in said


def test_rauc_judges_a_certificate_by_the_time_of_signing(rauc: Rauc, unsigned: bytes) -> None:
    begin = datetime(2020, 1, 1, tzinfo=UTC)
    fleet = one_fleet()
    ended = UpdateKey(fleet, "ended", (begin, begin + timedelta(days=365 * 7 + 30)))
    # The root of these tests begins in 2026.
    good = datetime(2026, 6, 1, tzinfo=UTC)
    assert rauc.info(signed_by(unsigned, ended, good)).returncode == 0
    said = rauc.refuses(signed_by(unsigned, ended, begin + timedelta(days=365 * 8)))
    assert "certificate has expired" in said


# -- the hook


LINES = {"A": "root=5 thicket.slot=A\n", "B": "root=6 thicket.slot=B\n"}


class Slot:
    """A boot slot with a new image in it, mounted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, line in LINES.items():
            self.file(f"cmdline-{name}.txt").write_text(line)
            os.utime(self.file(f"cmdline-{name}.txt"), (1_000_000, 1_000_000))
        self.file("cmdline.txt").write_text("panic=10 slot=none   \n"[: len(LINES["A"])])

    def file(self, name: str) -> Path:
        return self.folder / name

    def hook(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        rauc = {
            "RAUC_SLOT_CLASS": "boot",
            "RAUC_SLOT_NAME": "boot.1",
            "RAUC_SLOT_BOOTNAME": "B",
            "RAUC_SLOT_MOUNT_POINT": str(self.folder),
        }
        return subprocess.run(
            ["busybox", "sh", str(HOOK), *(words or ("slot-post-install",))],
            env={"PATH": os.environ["PATH"], **rauc, **variables},
            capture_output=True, text=True, check=False, timeout=PATIENCE,
        )  # fmt: skip


@pytest.fixture
def slot(tmp_path: Path) -> Slot:
    if not shutil.which("busybox"):
        pytest.skip("no busybox")
    return Slot(tmp_path)


@pytest.mark.parametrize("name", ["A", "B"])
def test_a_slot_gets_its_own_command_line(slot: Slot, name: str) -> None:
    before = slot.file("cmdline.txt").stat().st_ino
    done = slot.hook(RAUC_SLOT_BOOTNAME=name)
    assert done.returncode == 0, done.stderr
    now = slot.file("cmdline.txt")
    assert now.read_text() == LINES[name]
    # In place, and with the time of the image: the file system is else as the bundle brought it.
    assert (now.stat().st_ino, now.stat().st_mtime) == (before, 1_000_000)
    assert len(list(slot.folder.iterdir())) == 3


@pytest.mark.parametrize("present", ["short\n", "x" * 500, None])
def test_a_command_line_of_another_length_is_replaced(slot: Slot, present: str | None) -> None:
    if present is None:
        slot.file("cmdline.txt").unlink()
    else:
        slot.file("cmdline.txt").write_text(present)
    assert slot.hook().returncode == 0
    assert slot.file("cmdline.txt").read_text() == LINES["B"]


def test_the_hook_says_what_is_wrong(slot: Slot) -> None:
    """RAUC shows the last line."""

    def says(words: str, *called: str, **variables: str) -> None:
        before = slot.file("cmdline.txt").read_bytes()
        done = slot.hook(*called, **variables)
        assert done.returncode != 0
        assert words in done.stderr.splitlines()[-1]
        assert slot.file("cmdline.txt").read_bytes() == before

    says("no hook install-check", "install-check")
    says("for boot slots, not rootfs", RAUC_SLOT_CLASS="rootfs")
    says("is called 'C': there are A and B", RAUC_SLOT_BOOTNAME="C")
    says("is called ''", RAUC_SLOT_BOOTNAME="")
    says("has not mounted slot boot.1", RAUC_SLOT_MOUNT_POINT="")
    says("has not mounted slot boot.1", RAUC_SLOT_MOUNT_POINT=str(slot.folder / "none"))
    slot.file("cmdline-B.txt").unlink()
    says("has no cmdline-B.txt")


def test_a_full_slot_is_said(slot: Slot) -> None:
    """/dev/full stands for what cannot be written."""
    slot.file("cmdline.txt").unlink()
    slot.file("cmdline.txt.new").symlink_to("/dev/full")
    done = slot.hook()
    assert done.returncode != 0
    assert "cannot be written" in done.stderr.splitlines()[-1]

# SPDX-License-Identifier: Apache-2.0
"""``thicket update delta``, ``offer`` and ``order``, with bundles of small images."""

from __future__ import annotations

import io
import os
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from random import Random

import pytest
from apps_for_tests import ABOUT, SignerKey, lamp, packed
from fleet_for_tests import PREFIX

from authority import deltas, offers, update
from authority.authority import Authority
from authority.update import main as update_main
from firmware import bundle as making
from thicket.update import offer as said
from thicket.update import patch as patches
from thicket.update import stream, verity
from thicket.update.apply import Running, Wanted, apply
from thicket.update.verity import BLOCK

Captured = pytest.CaptureFixture[str]


def images(folder: Path, seed: int, slot: str = "none") -> Path:
    """Write a root with its hash tree and a boot image that names it; return the folder."""
    folder.mkdir()
    random = Random(1)
    root = bytearray(1024) + b"\xe2\xe1\xf5\xe0" + random.randbytes(60 * BLOCK - 1028)
    root[20 * BLOCK : 20 * BLOCK + 40] = Random(seed).randbytes(40)
    salt = sha256(root).digest()
    tree = verity.tree(io.BytesIO(root), len(root), salt)
    (folder / making.ROOT_IMAGE).write_bytes(root + tree.blocks)
    boot = bytearray(random.randbytes(5 * BLOCK) + bytes(90 * BLOCK) + random.randbytes(700))
    boot += bytes(2 << 20)
    line = f"panic=10 thicket.slot={slot} thicket.boot-image={tree.root.hex()}".ljust(499) + "\n"
    boot[4000:4500] = line.encode()
    (folder / making.BOOT).write_bytes(boot)
    return folder


def root_hash(folder: Path) -> str:
    root = (folder / making.ROOT_IMAGE).read_bytes()
    size = verity.data_bytes(len(root))
    return verity.tree(io.BytesIO(root), size, sha256(root[:size]).digest()).root.hex()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet with a signer, and two signed bundles with the images that they are of."""
    folder = tmp_path_factory.mktemp("made")
    before = datetime.now(UTC) - timedelta(days=2)
    one = Authority(folder / "fleet", lambda _: "correct horse", clock=lambda: before)
    one.init("acme", PREFIX, lab=True)
    one.update_signers.make("release")
    signer = one.update_signers.open()
    for number, version in enumerate(("0.1.0", "0.2.0")):
        release = making.Release("x86_64", version, 1, "0123456789ab", f"{number:064x}")
        unsigned = making.make(images(folder / version, number), folder, release)
        update.sign(unsigned, folder / f"{version}.raucb", one.fleet, signer, datetime.now(UTC))
    return folder


@pytest.fixture
def folder(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("THICKET_CA", str(made / "fleet"))
    return made


def says(capsys: Captured, *words: str | Path, status: int = 0) -> str:
    capsys.readouterr()
    assert update_main([str(word) for word in words]) == status
    out, err = capsys.readouterr()
    return err if status else out


def test_a_delta(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    out = says(capsys, "delta", folder / "0.1.0.raucb", folder / "0.2.0.raucb", "--out", tmp_path)
    path = tmp_path / "0.1.0-to-0.2.0.patch"
    assert str(path) in out
    assert path.stat().st_size < 4000
    # A device has its own command line in its slot.
    device = images(tmp_path / "device", 0)
    boot = bytearray((device / making.BOOT).read_bytes())
    boot[4000:4500] = b"console=tty1 thicket.slot=A".ljust(499) + b"\n"
    (device / making.BOOT).write_bytes(boot)
    new = (folder / "0.2.0.raucb").read_bytes()
    wanted = Wanted(str(tmp_path / "bundle"), len(new), sha256(new).hexdigest())
    running = Running(root_hash(device), str(device / making.ROOT_IMAGE), str(device / making.BOOT))
    apply(str(path), wanted, running, lambda *_: None)
    assert (tmp_path / "bundle").read_bytes() == new


def test_no_hash_tree_travels_and_the_same_makes_the_same(folder: Path, tmp_path: Path) -> None:
    first, second = (
        deltas.make(folder / "0.2.0.raucb", tmp_path / name, folder / "0.1.0.raucb", level=3)
        for name in ("a", "b")
    )
    assert first.path.read_bytes() == second.path.read_bytes()
    assert len(first.header.trees) == 2
    assert first.header.base_hash == root_hash(folder / "0.1.0")
    assert first.header.base is not None
    assert (4000, 4500) in first.header.base.boot.masks
    assert len(first.header.base.boot.masks) == 2  # and the zeros


def test_an_offer(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    new, out = folder / "0.2.0.raucb", tmp_path / "offer"
    path = deltas.make(new, tmp_path, folder / "0.1.0.raucb", level=3).path
    printed = says(
        capsys, "offer", new, "--delta", path, "--out", out, "--canaries",
        "n-0123456789ab", "--well", "5m", "--window", "23:00-04:30", "--waves", "50,100",
    )  # fmt: skip
    assert "any (the whole)" in printed
    fleet = Authority(folder / "fleet", lambda _: "").fleet
    offer = said.check_offer((out / offers.OFFER).read_bytes(), fleet)
    assert offer.plan == said.Plan(("n-0123456789ab",), 300, (50, 100), 0, (1380, 270))
    assert offer.bundle.version == "0.2.0"
    assert {patch.base for patch in offer.patches} == {"", root_hash(folder / "0.1.0")}
    assert {one.name for one in out.iterdir()} == {
        offers.OFFER, *(offers.filename(patch) for patch in offer.patches)
    }  # fmt: skip
    for patch in offer.patches:
        with (out / offers.filename(patch)).open("rb") as file:
            assert said.describe(file, patch.base)[0] == patch
            file.seek(0)
            assert patches.read(file).sha256 == offer.bundle.sha256
    printed = says(capsys, "order", "pause", out, "--out", tmp_path / "order")
    order = said.check_order((tmp_path / "order").read_bytes(), fleet)
    assert (order.order, order.offer) == ("pause", offer.identifier)
    assert f"pause for offer {offer.identifier.hex()[:12]}" in printed


def test_an_offer_of_an_application(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    authority = Authority(folder / "fleet", lambda _: "correct horse")
    key = SignerKey(authority.update_signers.open())
    about = ABOUT._replace(fleet=authority.fleet.identifier)
    app = packed(tmp_path, lamp("1.0"), about, key)
    printed = says(capsys, "offer", app, "--canaries", "2")
    assert "any (the whole)" in printed
    out = tmp_path / "offer-lamp-1.0"
    offer = said.check_offer((out / offers.OFFER).read_bytes(), authority.fleet)
    data = app.read_bytes()
    assert offer.bundle == said.Target("", "1.0", 0, len(data), sha256(data).hexdigest(), "lamp")
    (patch,) = offer.patches
    made = tmp_path / "made"
    wanted = Wanted(str(made), len(data), sha256(data).hexdigest())
    apply(str(out / offers.filename(patch)), wanted, None, lambda *_: None)
    assert made.read_bytes() == data
    # What nobody would install is not offered.
    app.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    assert "not those that were signed" in says(capsys, "offer", app, status=1)
    foreign = packed(tmp_path, lamp("1.0"), about)
    assert "lamp-1.0" in str(foreign)
    assert says(capsys, "offer", foreign, status=1)
    delta = deltas.make(folder / "0.2.0.raucb", tmp_path, folder / "0.1.0.raucb", level=3).path
    app.write_bytes(data)
    words = says(capsys, "offer", app, "--delta", delta, "--out", tmp_path / "o", status=1)
    assert "makes another bundle" in words


def test_an_offer_is_sent(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "offer"
    assert update_main(["offer", str(folder / "0.2.0.raucb"), "--out", str(out)]) == 0
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\necho "$@"\ncat >{tmp_path}/sent\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert update_main(["send", str(out), "n-0123456789ab.local"]) == 0
    assert "-T root@n-0123456789ab.local thicket update offer -" in capfd.readouterr().out
    with (tmp_path / "sent").open("rb") as file:
        stream.receive(file, str(tmp_path / "got"))
    assert {one.name: one.read_bytes() for one in (tmp_path / "got").iterdir()} == {
        one.name: one.read_bytes() for one in out.iterdir()
    }
    # A node that ends early has said why.
    ssh.write_text("#!/bin/sh\necho 'thicket: a newer offer is known here' >&2\nexit 1\n")
    assert update_main(["send", str(out), "me@host"]) == 1
    said_so = capfd.readouterr().err
    assert "a newer offer is known here" in said_so
    assert "me@host has not taken the offer (status 1), see above" in said_so
    assert update_main(["send", str(tmp_path), "host"]) == 1
    assert "has no offer: `thicket update offer` makes one" in capfd.readouterr().err
    assert update_main(["send", str(out), "-oProxyCommand=x"]) == 2


def test_what_is_refused(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    old, new = folder / "0.1.0.raucb", folder / "0.2.0.raucb"
    unsigned = folder / "thicket-x86_64-0.2.0.unsigned"
    words = says(capsys, "delta", old, unsigned, "--out", tmp_path, status=1)
    assert "is not signed: a patch makes the signed bundle" in words
    other = deltas.make(old, tmp_path / "other", level=3).path
    words = says(capsys, "offer", new, "--delta", other, "--out", tmp_path / "offer", status=1)
    assert "makes another bundle" in words
    words = says(
        capsys, "offer", old, "--delta", other, "--waves", "5", "--out", tmp_path / "o", status=1
    )
    assert "waves are percent that grow and end with 100" in words
    assert not (tmp_path / "o").exists()
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / offers.OFFER).write_text("one made before")
    says(capsys, "offer", old, "--delta", other, "--waves", "5", "--out", tmp_path / "o", status=1)
    assert (tmp_path / "o" / offers.OFFER).read_text() == "one made before"
    words = says(capsys, "delta", new, new, "--out", tmp_path, status=1)
    assert "are the same bundle: no patch is needed" in words
    words = says(capsys, "offer", new, "--window", "23-4", status=2)
    assert "'23' is no time of the day like 23:30" in words
    assert "choose from" in says(capsys, "order", "stop", status=2)
    assert list(tmp_path.glob(".*")) == []


def test_an_order_for_whichever_offer_is_in_force(
    folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    says(capsys, "order", "abort", "--out", tmp_path / "order")
    fleet = Authority(folder / "fleet", lambda _: "").fleet
    assert said.check_order((tmp_path / "order").read_bytes(), fleet).offer == b""

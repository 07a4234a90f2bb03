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

from authority import deltas, offers, telling, update
from authority.authority import Authority
from authority.telling import Telling
from authority.update import main as update_main
from firmware import bundle as making
from thicket.base.visible import visible_output
from thicket.trust import openssl
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
    assert f"`thicket update offer {folder}/0.2.0.raucb --delta {path}`" in out
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


def test_long_steps_of_a_patch_are_told_by_name(folder: Path, tmp_path: Path) -> None:
    """Most of the time goes into the old version, while nothing is compressed yet."""
    told: list[str] = []
    new = folder / "0.2.0.raucb"
    deltas.make(new, tmp_path, folder / "0.1.0.raucb", level=3, tell=told.append)
    indexing = next(number for number, text in enumerate(told) if text.startswith("indexing"))
    assert "the old version" in told[indexing]
    assert not any("compressing" in text for text in told[:indexing])
    assert "compressing the change: 100 %" in told[indexing:]
    told.clear()
    deltas.make(new, tmp_path, level=3, tell=told.append)
    assert not any("indexing" in text for text in told)
    assert "compressing the whole: 100 %" in told


def test_an_offer(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    new, out = folder / "0.2.0.raucb", tmp_path / "offer"
    path = deltas.make(new, tmp_path, folder / "0.1.0.raucb", level=3).path
    printed = says(
        capsys, "offer", new, "--delta", path, "--out", out, "--canaries",
        "n-0123456789ab", "--well", "5m", "--window", "23:00-04:30", "--waves", "50,100",
    )  # fmt: skip
    assert "any (the whole)" in printed
    assert f"`thicket update send {out} NODE`" in printed
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
    assert f"thicket update order - < {tmp_path}/order`" in printed
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
    assert "has no offer: `thicket update offer` makes a folder with" in capfd.readouterr().err
    assert update_main(["send", str(out), "-oProxyCommand=x"]) == 2


def test_what_is_refused(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    old, new = folder / "0.1.0.raucb", folder / "0.2.0.raucb"
    unsigned = folder / "thicket-x86_64-0.2.0.unsigned"
    words = says(capsys, "delta", old, unsigned, "--out", tmp_path, status=1)
    assert "is not signed: a patch makes the signed bundle" in words
    other = deltas.make(old, tmp_path / "other", level=3).path
    words = says(capsys, "offer", new, "--delta", other, "--out", tmp_path / "offer", status=1)
    assert "makes another bundle" in words
    wrong = ("--delta", other, "--delta", other, "--out", tmp_path / "o")
    words = says(capsys, "offer", old, *wrong, status=1)
    assert f"{other} and {other} are for the same version: give one of them" in words
    assert not (tmp_path / "o").exists()
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / offers.OFFER).write_text("one made before")
    says(capsys, "offer", old, *wrong, status=1)
    assert (tmp_path / "o" / offers.OFFER).read_text() == "one made before"
    words = says(capsys, "delta", new, new, "--out", tmp_path, status=1)
    assert "are the same bundle: no patch is needed" in words
    words = says(capsys, "offer", new, "--window", "23-4", status=2)
    assert "'23' is no time of the day like 23:30" in words
    words = says(capsys, "order", "stop", status=2)
    assert "'stop' is none of pause, resume, abort, back" in words
    assert list(tmp_path.glob(".*")) == []


def test_an_order_for_whichever_offer_is_in_force(
    folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    says(capsys, "order", "abort", "--out", tmp_path / "order")
    fleet = Authority(folder / "fleet", lambda _: "").fleet
    assert said.check_order((tmp_path / "order").read_bytes(), fleet).offer == b""


# -- what is there already


def test_an_offer_made_anew_has_what_it_names_and_nothing_else(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    new, out = folder / "0.2.0.raucb", tmp_path / "offer"
    path = deltas.make(new, tmp_path, folder / "0.1.0.raucb", level=3).path
    assert update_main(["offer", str(new), "--delta", str(path), "--out", str(out)]) == 0
    (out / f"{'5a' * 32}.list").write_bytes(b"for a web server")
    (out / f".{offers.OFFER}.new").write_bytes(b"of one that was interrupted")
    former = {one.name for one in out.iterdir()}
    assert update_main(["offer", str(new), "--out", str(out)]) == 0
    packed = (out / offers.OFFER).read_bytes()
    (whole,) = said.read_offer(packed)[0].patches
    assert {one.name for one in out.iterdir()} == {offers.OFFER, offers.filename(whole)} < former
    # What comes there later is not sent.
    (out / f"{'5a' * 32}.patch").write_bytes(b"of another offer")
    (out / "notes").write_text("mine")
    ssh = tmp_path / "ssh"
    ssh.write_text(f"#!/bin/sh\ncat >{tmp_path}/sent\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert update_main(["send", str(out), "host"]) == 0
    with (tmp_path / "sent").open("rb") as file:
        stream.receive(file, str(tmp_path / "got"))
    assert {one.name for one in (tmp_path / "got").iterdir()} == {
        offers.OFFER, offers.filename(whole)
    }  # fmt: skip
    # And a folder with files of somebody else becomes no offer's.
    capfd.readouterr()
    assert update_main(["offer", str(new), "--out", str(out)]) == 1
    assert "other files than those of an offer (notes): choose another" in capfd.readouterr().err
    assert (out / offers.OFFER).read_bytes() == packed
    # A patch that is lacking or damaged is found before anybody waits for it.
    patch = out / offers.filename(whole)
    patch.write_bytes(patch.read_bytes()[:-1] + b"?")
    assert update_main(["send", str(out), "host"]) == 1
    assert f"{patch} is not what its offer names: make the offer anew" in capfd.readouterr().err
    patch.unlink()
    assert update_main(["send", str(out), "host"]) == 1
    assert f"lacks {patch.name}, which its offer names" in capfd.readouterr().err


def test_patches_and_orders_are_not_replaced_by_mistake(
    folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    old, new = folder / "0.1.0.raucb", folder / "0.2.0.raucb"
    precious = tmp_path / "precious"
    precious.write_bytes(b"mine")
    words = says(capsys, "delta", old, new, "--out", precious, status=1)
    assert f"{precious} is there already, and no patch that makes {new}" in words
    words = says(capsys, "order", "pause", "--out", precious, status=1)
    assert f"{precious} is there already, and may be an order that is still to be given" in words
    assert precious.read_bytes() == b"mine"
    says(capsys, "order", "pause", "--out", precious, "--force")
    assert precious.read_bytes() != b"mine"
    # The same bundles make the same patch, so that nothing is lost by making it anew.
    says(capsys, "delta", old, new, "--out", precious, "--force")
    patch = precious.read_bytes()
    says(capsys, "delta", old, new, "--out", precious)
    assert precious.read_bytes() == patch


# -- the words of a plan


@pytest.mark.parametrize(
    ("option", "text", "words"),
    [
        ("--well", "10", "'10' is no duration: a whole number and its unit, one of 10s, 10m, 10h"),
        ("--well", "0", "is no duration"),
        ("--well", "1.5h", "is no duration"),
        ("--well", "10min", "is no duration"),
        ("--well", "_1_0m", "is no duration"),
        ("--well", "٣m", "is no duration"),
        ("--well", "8d", "8d is too long: at most 7d"),
        ("--canaries", "0", "with 0 nobody tries it first; say `--canaries none`"),
        ("--canaries", "-1", "is neither a number of nodes nor the host name of one"),
        ("--canaries", "1.5", "is neither a number of nodes nor the host name of one"),
        ("--canaries", "²", "is neither a number of nodes nor the host name of one"),
        ("--canaries", "n-0123456789AB", "as in n-0123456789ab,n-6f44e3c6b802"),
        ("--canaries", "n-0123456789ab,n-0123456789ab", "n-0123456789ab is named twice"),
        ("--canaries", "513", "513 is too many: at most 512 nodes"),
        ("--waves", "10", "are no waves: percent of the fleet, from 1 on, each more than the one"),
        ("--waves", "0,100", "as in 10,50,100"),
        ("--waves", "50,10,100", "are no waves"),
        ("--waves", "10,,100", "are no waves"),
        ("--waves", "10,1_0_0", "are no waves"),
        ("--failures", "5%", "'5%' is no number of nodes, from 0 to 10000"),
        ("--failures", "-1", "is no number of nodes"),
        ("--window", "23:00-23:00", "it begins when it ends. Without --window nodes start at any"),
        ("--window", "23:00", "as in 23:00-04:30 (UTC)"),
    ],
)
def test_what_a_plan_does_not_take(
    folder: Path, capsys: Captured, option: str, text: str, words: str
) -> None:
    printed = says(capsys, "offer", folder / "0.2.0.raucb", f"{option}={text}", status=2)
    assert f"thicket update: {option}: " in printed
    assert words in printed
    assert "make it anew" not in printed


def test_what_a_plan_takes(folder: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "offer"
    for words, plan in (
        (("--well", "0s", "--canaries", "none"), said.Plan(0, 0, (10, 50, 100), 0, None)),
        (
            ("--well", "7d", "--canaries", "2", "--waves", "50%,100%", "--failures", "3"),
            said.Plan(2, 604_800, (50, 100), 3, None),
        ),
    ):
        says(capsys, "offer", folder / "0.2.0.raucb", "--out", out, *words)
        assert said.read_offer((out / offers.OFFER).read_bytes())[0].plan == plan


# -- long work


def test_long_work_is_told_where_there_is_no_terminal(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that says nothing itself is told as well, and no codes of terminals are written."""
    monkeypatch.setattr(telling, "PLAIN", 0.01)
    err = ""
    with Telling() as tell:
        tell("trying the patch")
        while err.count("trying the patch") < 3:
            err += capsys.readouterr().err
    assert all(ord(" ") <= ord(one) < 127 for one in err.replace("\n", ""))
    assert capsys.readouterr().out == ""


def test_on_a_terminal_one_line_is_drawn_again_and_again() -> None:
    """The codes reach the terminal as codes, and what comes from outside does not."""
    screen = io.StringIO()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(screen, "isatty", lambda: True)
        patched.setattr("sys.stderr", screen)
        with visible_output(), Telling() as tell:
            tell("checking \x1b[2J.raucb")
            tell("compressing: 3 %")
    drawn = screen.getvalue()
    assert "\r\x1b[K[0 s] checking \\u001b[2J.raucb" in drawn
    assert "compressing: 3 %" in drawn
    assert drawn.endswith("\r\x1b[K")


def test_a_canary_that_nobody_knows_is_told(
    folder: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fleet waits for the canaries that are named."""
    before = datetime.now(UTC) - timedelta(days=2)
    fleet = tmp_path / "fleet"
    one = Authority(fleet, lambda _: "", clock=lambda: before)
    one.init("acme", PREFIX, lab=True)
    one.update_signers.make("release")
    for number in (1, 2):
        key = openssl.public_key(openssl.generate_key())
        one.enroll_software("mac", bytes((0, 0, 0, 0, 0, number)), key)
    (name,) = one.revocations.full_names([list(one.list()["devices"])[1]])
    one.revocations.revoke([name])
    monkeypatch.setenv("THICKET_CA", str(fleet))
    release = making.Release("x86_64", "0.1.0", 1, "0123456789ab", f"{0:064x}")
    unsigned = making.make(folder / "0.1.0", tmp_path, release)
    assert update_main(["sign", str(unsigned)]) == 0
    bundle = str(unsigned.with_suffix(".raucb"))
    for canary, words in (
        ("n-000000000001", ""),
        ("n-000000000002", "n-000000000002 is revoked, so that all others would wait for it\n"),
        ("n-000000000003", "n-000000000003 is no device that this folder knows"),
    ):
        capsys.readouterr()
        out = tmp_path / canary
        assert update_main(["offer", bundle, "--canaries", canary, "--out", str(out)]) == 0
        said = capsys.readouterr().err
        assert words in said
        assert bool(said) == bool(words)

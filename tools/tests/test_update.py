# SPDX-License-Identifier: Apache-2.0
"""``thicket ca update-signer`` and ``thicket update``: from key to signed bundle."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from bundles_for_tests import MANIFEST, signed, unsigned, update_key
from fleet_for_tests import NOW, PREFIX, one_fleet
from patience import PATIENCE

from authority import update
from authority.authority import Authority
from authority.cli import main as ca_main
from authority.errors import AuthorityError
from authority.holders import Holder
from authority.keys import decrypt_key
from authority.update import main as update_main
from firmware.boards import ROOT
from thicket.trust import cms
from thicket.trust.certificates import Certificate, from_pem, pem
from thicket.trust.update_signer import SignerRefusedError, is_signer
from thicket.update import bundle as bundles
from thicket.update.errors import BundleError


def authority(folder: Path, clock: datetime = NOW) -> Authority:
    return Authority(folder, lambda _: "correct horse", clock=lambda: clock)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet with one update signer. It is two days old: its certificates are valid now."""
    folder = tmp_path_factory.mktemp("made") / "fleet"
    one = authority(folder, datetime.now(UTC) - timedelta(days=2))
    one.init("acme", PREFIX, lab=True)
    one.update_signers.make("release")
    return folder


@pytest.fixture
def ca(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """A copy of that fleet, which the commands use by default."""
    folder = tmp_path / "fleet"
    shutil.copytree(made, folder)
    monkeypatch.setenv("THICKET_CA", str(folder))
    return authority(folder, datetime.now(UTC) - timedelta(days=2))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "thicket-x86_64-0.1.0.unsigned"
    path.write_bytes(unsigned())
    return path


Captured = pytest.CaptureFixture[str]


def says(capsys: Captured, *words: str | Path, status: int = 0) -> str:
    """Run ``thicket update``; return what it says, of which errors are on standard error only."""
    capsys.readouterr()
    assert update_main([str(word) for word in words]) == status
    out, err = capsys.readouterr()
    assert bool(err) == (status != 0), err
    return err if status else out


# -- signers


def test_a_signer_of_updates(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    made = authority(folder)
    made.init("acme", PREFIX)
    assert made.update_signers.make("release") == "Update signer release"
    certificate = Certificate(from_pem((folder / "update-release.pem").read_text())[0])
    assert is_signer(certificate)
    assert certificate.common_name == "Update signer release"
    assert (certificate.not_before.year, certificate.not_after.year) == (NOW.year, NOW.year + 10)
    assert decrypt_key((folder / "update-release.key").read_bytes(), "correct horse")
    assert (folder / "update-release.key").stat().st_mode & 0o777 == 0o600
    entry = made.list()["update_signers"]["release"]
    assert entry == {"name": "Update signer release", "until": "2036-11-24"}
    # Whoever builds releases gets neither the root's key nor that of a signer of devices.
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for name in ("root.key", "signer-0001.key"):
        (copy / name).unlink()
    assert authority(copy).update_signers.open("release").name == "Update signer release"
    with pytest.raises(AuthorityError, match="the root's key is needed"):
        authority(copy).update_signers.make("another")


@pytest.mark.parametrize(
    "name", ["", "Release", "v 1", "../x", "a" * 33, "-x", "x.y", "ü", "root\n"]
)
def test_a_name_that_none_has(ca: Authority, name: str) -> None:
    with pytest.raises(AuthorityError, match="small letters"):
        ca.update_signers.make(name)


def test_a_signer_is_made_once_and_after_its_revocation_never(ca: Authority) -> None:
    with pytest.raises(AuthorityError, match="there is, or was"):
        ca.update_signers.make("release")
    ca.revocations.revoke(["Update signer release"])
    with pytest.raises(AuthorityError, match="there is, or was"):
        ca.update_signers.make("release")


def test_which_signer(ca: Authority) -> None:
    assert ca.update_signers.open().name == "Update signer release"
    ca.update_signers.make("nightly")
    with pytest.raises(AuthorityError, match="--signer takes nightly, release"):
        ca.update_signers.open()
    assert ca.update_signers.open("nightly").name == "Update signer nightly"
    with pytest.raises(AuthorityError, match="no update signer 'weekly'"):
        ca.update_signers.open("weekly")
    ca.revocations.revoke(["Update signer nightly"])
    assert ca.update_signers.open().name == "Update signer release"
    with pytest.raises(AuthorityError, match="'nightly' was revoked on"):
        ca.update_signers.open("nightly")
    ca.revocations.revoke(["Update signer release"])
    with pytest.raises(AuthorityError, match="no update signer whose key is here"):
        ca.update_signers.open()


def test_a_signer_whose_time_is_over(ca: Authority) -> None:
    later = authority(ca.folder, datetime.now(UTC) + timedelta(days=3660))
    with pytest.raises(AuthorityError, match="'release' ended on"):
        later.update_signers.open("release")


def test_a_key_of_another_signer(ca: Authority) -> None:
    ca.update_signers.make("nightly")
    shutil.copyfile(ca.folder / "update-nightly.key", ca.folder / "update-release.key")
    with pytest.raises(AuthorityError, match="do not go together"):
        authority(ca.folder).update_signers.open("release")


def test_the_command_makes_lists_and_revokes_it(ca: Authority, capsys: Captured) -> None:
    assert ca_main(["update-signer", "nightly"]) == 0
    assert "'Update signer nightly' can sign updates" in capsys.readouterr().out
    assert ca_main(["list"]) == 0
    assert "  Update signer nightly          until " in capsys.readouterr().out
    assert ca_main(["revoke", "nightly"]) == 0
    assert "Revoked: Update signer nightly." in capsys.readouterr().out
    assert ca_main(["revoke", "Update signer nightly"]) == 0
    assert "Update signer nightly is revoked already" in capsys.readouterr().out
    assert ca_main(["list"]) == 0
    assert "REVOKED" in capsys.readouterr().out
    assert ca_main(["revoke", "weekly"]) == 1
    assert ca_main(["update-signer"]) == 2
    assert ca.revocations.names == {"Update signer nightly"}


def test_a_device_of_that_name_is_meant_before_a_signer(ca: Authority) -> None:
    """Names of devices are given by their chips."""
    document = json.loads((ca.folder / "fleet.json").read_text())
    document["devices"]["release"] = {"address": "::1"}
    (ca.folder / "fleet.json").write_text(json.dumps(document))
    assert ca.revocations.full_names(["release"]) == ["release"]


# -- signing


def test_from_unsigned_to_verified(ca: Authority, file: Path, capsys: Captured) -> None:
    said = says(capsys, "sign", file)
    out = file.with_suffix(".raucb")
    assert said.startswith("thicket-x86_64 0.1.0 (build 0123456789ab, epoch 3), 0.0 MiB, signed by")
    assert str(out) in said
    with out.open("rb") as opened:
        found = bundles.read(opened)
        bundles.check_contents(opened, found.contents, found.verity)
    assert bundles.check_signer(found, ca.fleet) == "Update signer release"
    assert found.message is not None
    assert abs(found.message.signed_at - datetime.now(UTC)) < timedelta(minutes=5)
    said = says(capsys, "verify", out)
    assert "by 'Update signer release' of fleet 'acme'; not among the 0 names" in said
    assert "every byte is as the manifest says (3 blocks)" in said
    root = file.with_name("root.pem")
    root.write_text(pem(ca.fleet.root.der))
    assert "REVOCATIONS WERE NOT LOOKED AT" in says(capsys, "verify", out, "--root", root)
    lists = ca.folder / "revocations.bin"
    said = says(capsys, "verify", out, "--root", root, "--revocations", lists)
    assert "not among the 0 names" in said


def test_what_whoever_makes_releases_needs(
    ca: Authority, file: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No key but the signer's, and nothing that is secret besides."""
    copy = file.with_name("copy")
    copy.mkdir()
    for name in ("fleet.json", "root.pem", "update-release.pem", "update-release.key"):
        shutil.copyfile(ca.folder / name, copy / name)
    shutil.rmtree(ca.folder)
    monkeypatch.setenv("THICKET_CA", str(copy))
    says(capsys, "sign", file)
    assert "every byte is" in says(capsys, "verify", file.with_suffix(".raucb"))


def test_inspect(ca: Authority, file: Path, capsys: Captured) -> None:
    said = says(capsys, "inspect", file)
    assert "Not signed." in said
    assert "boot         64.0 MiB  boot.vfat, hook post-install" in said
    facts = json.loads(says(capsys, "inspect", file, "--json"))
    assert facts["signature"] is None
    assert (facts["version"], facts["epoch"], facts["compatible"]) == ("0.1.0", 3, "thicket-x86_64")
    assert facts["images"][1]["sha256"] == MANIFEST.images[1].sha256
    says(capsys, "sign", file)
    out = file.with_suffix(".raucb")
    assert "by 'Update signer release', it says" in says(capsys, "inspect", out)
    facts = json.loads(says(capsys, "inspect", out, "--json"))
    assert facts["signature"]["signer"] == "Update signer release"
    assert facts["bytes"] == out.stat().st_size


def test_names_of_signed_files(ca: Authority, file: Path, capsys: Captured) -> None:
    other = file.with_name("mine")
    other.write_bytes(unsigned())
    assert str(file.with_name("mine.raucb")) in says(capsys, "sign", other)
    out = file.with_name("elsewhere")
    says(capsys, "sign", file, "--out", out)
    assert out.is_file()
    assert not file.with_suffix(".raucb").exists()


def test_signing_again(ca: Authority, file: Path, capsys: Captured) -> None:
    says(capsys, "sign", file)
    out = file.with_suffix(".raucb")
    ca.update_signers.make("nightly")
    before = out.read_bytes()
    said = says(capsys, "sign", out, "--signer", "nightly", status=1)
    assert "is signed already, by 'Update signer release': --again" in said
    assert out.read_bytes() == before
    says(capsys, "sign", out, "--signer", "nightly", "--again")
    assert "by 'Update signer nightly'" in says(capsys, "verify", out)


def test_what_is_signed_already_is_not_signed_anew(
    ca: Authority, file: Path, capsys: Captured
) -> None:
    """A signature is another one each time: patches made from the file would fit no longer."""
    says(capsys, "sign", file)
    out = file.with_suffix(".raucb")
    before = out.read_bytes()
    said = says(capsys, "sign", file)
    assert "is signed by 'Update signer release' on 20" in said
    assert f"{out}. Nothing is to be done." in said
    assert out.read_bytes() == before
    ca.update_signers.make("nightly")
    said = says(capsys, "sign", file, "--signer", "nightly", status=1)
    assert f"{out} is there already, the same bundle, signed by 'Update signer release'" in said
    assert "patches made from it would fit no longer. Choose another name (--out)" in said
    assert out.read_bytes() == before
    says(capsys, "sign", file, "--signer", "nightly", "--out", file.with_name("other.raucb"))
    says(capsys, "sign", file, "--signer", "nightly", "--force")
    assert "by 'Update signer nightly'" in says(capsys, "verify", out)


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (b"my notes\n", "is there already, and no bundle"),
        (unsigned(), "and a bundle without a signature"),
        (signed(manifest=MANIFEST._replace(version="0.2.0")), "another bundle, signed by"),
        (signed()[:5000] + b"?" + signed()[5001:], "the same bundle, signed by"),
    ],
    ids=["notes", "unsigned", "other", "foreign"],
)
def test_what_is_something_else_is_not_replaced(
    ca: Authority, file: Path, capsys: Captured, contents: bytes, words: str
) -> None:
    out = file.with_suffix(".raucb")
    out.write_bytes(contents)
    assert words in says(capsys, "sign", file, status=1)
    assert out.read_bytes() == contents
    says(capsys, "sign", file, "--force")
    says(capsys, "verify", out)


def test_a_damaged_one_of_ours_is_not_taken_for_the_same(
    ca: Authority, file: Path, capsys: Captured
) -> None:
    says(capsys, "sign", file)
    out = file.with_suffix(".raucb")
    data = bytearray(out.read_bytes())
    data[5000] ^= 1
    out.write_bytes(data)
    assert "and damaged (the images are damaged" in says(capsys, "sign", file, status=1)


def test_only_plain_files_are_replaced(
    ca: Authority, file: Path, tmp_path: Path, capsys: Captured
) -> None:
    os.mkfifo(tmp_path / "pipe")
    said = says(capsys, "sign", file, "--force", "--out", tmp_path / "pipe", status=1)
    assert "is no plain file and is not replaced: choose another name" in said
    assert not (tmp_path / "pipe").is_file()
    said = says(capsys, "sign", file, "--out", tmp_path, status=1)
    assert f"{tmp_path} is a folder, and the name of a file is needed" in said
    said = says(capsys, "sign", file, "--out", tmp_path / "no/x", status=1)
    assert f"there is no folder {tmp_path / 'no'} for x: make it, or choose another" in said
    said = says(capsys, "sign", file, "--out", file / "x", status=1)
    assert f"{file} is a file, so that there is no {file / 'x'}" in said


def test_a_damaged_file_is_not_signed(ca: Authority, file: Path, capsys: Captured) -> None:
    data = bytearray(unsigned())
    data[5000] ^= 1
    file.write_bytes(data)
    assert "the images are damaged: 1 of 3 blocks" in says(capsys, "sign", file, status=1)
    assert sorted(path.name for path in file.parent.iterdir()) == ["fleet", file.name]


def test_what_would_not_count_is_not_written(ca: Authority, file: Path, tmp_path: Path) -> None:
    """A folder whose certificates and root do not belong together."""
    key = update_key()
    alien = Holder("alien", key.certificate, ca.update_signers.open().key)
    out = tmp_path / "out.raucb"
    with pytest.raises(SignerRefusedError, match="another fleet"):
        update.sign(file, out, ca.fleet, alien, NOW)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fleet", file.name]


def test_a_full_disk_leaves_nothing(
    ca: Authority, file: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left on device" in says(capsys, "sign", file, status=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fleet", file.name]


# -- what verify refuses, each in its own words


@pytest.fixture
def raucb(ca: Authority, file: Path, capsys: Captured) -> Path:
    says(capsys, "sign", file)
    return file.with_suffix(".raucb")


def test_verify_refuses_an_unsigned_one(ca: Authority, file: Path, capsys: Captured) -> None:
    assert "it is not signed: `thicket update sign" in says(capsys, "verify", file, status=1)


def test_verify_refuses_another_fleets(ca: Authority, raucb: Path, capsys: Captured) -> None:
    raucb.write_bytes(signed(update_key(one_fleet("other"))))
    said = says(capsys, "verify", raucb, status=1)
    assert "it is signed for another fleet ('Update signer release' is no signer of 'acme')" in said


def test_verify_refuses_a_revoked_signer(ca: Authority, raucb: Path, capsys: Captured) -> None:
    root = raucb.with_name("root.pem")
    root.write_text(pem(ca.fleet.root.der))
    ca.revocations.revoke(["Update signer release"])
    said = says(capsys, "verify", raucb, status=1)
    assert "its signer is revoked (Update signer release): have another signer sign it" in said
    lists = ca.folder / "revocations.bin"
    said = says(capsys, "verify", raucb, "--root", root, "--revocations", lists, status=1)
    assert "its signer is revoked" in said


def test_verify_refuses_a_tampered_payload(ca: Authority, raucb: Path, capsys: Captured) -> None:
    data = bytearray(raucb.read_bytes())
    data[9000] ^= 1
    raucb.write_bytes(data)
    said = says(capsys, "verify", raucb, status=1)
    assert "the images are damaged: 1 of 3 blocks, the first at byte 8192; copy it again" in said


def test_verify_refuses_a_tampered_manifest(ca: Authority, raucb: Path, capsys: Captured) -> None:
    raucb.write_bytes(raucb.read_bytes().replace(b"epoch=3", b"epoch=9"))
    said = says(capsys, "verify", raucb, status=1)
    assert "what it says was changed after it was signed" in said


def test_verify_tells_all_faults(ca: Authority, raucb: Path, capsys: Captured) -> None:
    data = bytearray(raucb.read_bytes().replace(b"epoch=3", b"epoch=9"))
    data[9000] ^= 1
    raucb.write_bytes(data)
    assert len(says(capsys, "verify", raucb, status=1).splitlines()) == 2


def test_verify_refuses_one_that_is_cut_off(ca: Authority, raucb: Path, capsys: Captured) -> None:
    raucb.write_bytes(raucb.read_bytes()[:-700])
    said = says(capsys, "verify", raucb, status=1)
    assert "cut off" in said
    assert "get it anew from where it was built" in said


def test_verify_refuses_what_was_signed_when_the_signer_was_over(
    ca: Authority, file: Path, capsys: Captured
) -> None:
    out = file.with_suffix(".raucb")
    signer = ca.update_signers.open()
    data = io.BytesIO(unsigned())
    end = bundles.read(data).manifest.text()
    payload = unsigned()[: bundles.read(data).payload]
    when = datetime.now(UTC) + timedelta(days=3660)
    message = cms.sign(end, signer.certificate, when, signer.key.sign)
    out.write_bytes(payload + bundles.end(message))
    said = says(capsys, "verify", out, status=1)
    assert "the signer's certificate was not valid when it was signed" in said
    with pytest.raises(SignerRefusedError, match="was not valid when it was signed"):
        update.sign(file, out, ca.fleet, signer, when)


def test_verify_refuses_a_device_as_signer(ca: Authority, raucb: Path, capsys: Captured) -> None:
    issuer = ca.issuer()
    data = io.BytesIO(unsigned())
    found = bundles.read(data)
    message = cms.sign(
        found.manifest.text(), issuer.certificate, datetime.now(UTC), issuer.key.sign
    )
    raucb.write_bytes(unsigned()[: found.payload] + bundles.end(message))
    said = says(capsys, "verify", raucb, status=1)
    assert (
        "the certificate it is signed with is not for updates (it is that of 'Signer 0001')" in said
    )


# -- passphrases


@pytest.fixture
def locked(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fleet whose keys have a passphrase; returns an unsigned bundle."""
    one = authority(tmp_path / "locked", datetime.now(UTC) - timedelta(days=2))
    one.init("acme", PREFIX)
    one.update_signers.make("release")
    monkeypatch.setenv("THICKET_CA", str(tmp_path / "locked"))
    monkeypatch.delenv("THICKET_CA_PASSPHRASE", raising=False)
    return file


def test_a_wrong_passphrase_names_the_key(
    locked: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THICKET_CA_PASSPHRASE", "wrong")
    said = says(capsys, "sign", locked, status=1)
    assert "the key of update signer 'release' (" in said
    assert "locked/update-release.key) does not open: the passphrase is wrong, or the file" in said
    monkeypatch.setenv("THICKET_CA_PASSPHRASE", "correct horse")
    says(capsys, "sign", locked)
    # Nothing is asked for what is there already.
    monkeypatch.delenv("THICKET_CA_PASSPHRASE")
    assert "Nothing is to be done" in says(capsys, "sign", locked)


def test_nothing_typed_is_no_crash(
    locked: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(_: str) -> str:
        raise EOFError

    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    monkeypatch.setattr("getpass.getpass", nothing)
    assert "nothing was typed, so nothing was done" in says(capsys, "sign", locked, status=1)


def test_a_lab_has_no_passphrase_and_says_so(
    ca: Authority, file: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THICKET_CA_PASSPHRASE", "of another fleet")
    assert update_main(["sign", str(file)]) == 0
    words = "its keys have no passphrase: THICKET_CA_PASSPHRASE is not used"
    assert capsys.readouterr().err.count(words) == 1
    assert ca_main(["update-signer", "nightly"]) == 0
    assert capsys.readouterr().err.count(words) == 1
    assert ca_main(["list"]) == 0  # needs no key
    assert capsys.readouterr().err == ""


# -- the command line


def test_a_reader_that_ends_early(ca: Authority, file: Path) -> None:
    """``thicket update inspect FILE | head -1``"""
    for words in (["inspect", file, "--json"], ["help"]):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [ROOT / "bin/thicket", "update", *words],
            stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=PATIENCE,
        )  # fmt: skip
        os.close(writer)
        assert (done.returncode, done.stderr) == (0, "")


def test_help_behind_a_command(ca: Authority, capsys: Captured) -> None:
    assert "usage: thicket update" in says(capsys, "sign", "--help")
    assert "usage: thicket update" in says(capsys, "offer", "x", "-h")


def test_commands_of_nodes_are_known_here(ca: Authority, capsys: Captured) -> None:
    assert "install runs on a node: log in to it" in says(capsys, "install", "x", status=2)
    said = says(capsys, "sing", status=2)
    assert "there is no command 'sing', only delta, inspect, offer, order, send, sign, ver" in said


@pytest.mark.parametrize(
    "words",
    [
        [], ["install", "x"], ["sign"], ["inspect"], ["verify"], ["verify", "a", "b"],
        ["sign", "x", "--key", "y"], ["verify", "x", "--revocations", "y"], ["sign", ""],
        ["help", "x"],
    ],
)  # fmt: skip
def test_wrong_usage(ca: Authority, words: list[str], capsys: Captured) -> None:
    assert "Try `thicket update help`." in says(capsys, *words, status=2)


def test_files_that_are_not_there(ca: Authority, tmp_path: Path, capsys: Captured) -> None:
    gone = tmp_path / "gone"
    for command in ("sign", "inspect", "verify"):
        said = says(capsys, command, gone, status=1)
        assert f"{gone}: No such file or directory" in said
    assert "Is a directory" in says(capsys, "inspect", tmp_path, status=1)


def test_a_root_that_is_none(ca: Authority, raucb: Path, capsys: Captured) -> None:
    root = raucb.with_name("root.pem")
    root.write_text("nothing")
    assert "has no certificate in PEM" in says(capsys, "verify", raucb, "--root", root, status=1)
    root.write_text(pem(update_key().certificate))
    said = says(capsys, "verify", raucb, "--root", root, status=1)
    assert "not the root certificate of a fleet" in said


def test_without_a_fleet(tmp_path: Path, file: Path, capsys: Captured) -> None:
    none = ["--folder", str(tmp_path / "none")]
    assert "there is no fleet in" in says(capsys, *none, "sign", file, status=1)
    assert "Not signed." in says(capsys, *none, "inspect", file)


def test_bin_thicket_leads_to_it(file: Path) -> None:
    done = subprocess.run(
        [ROOT / "bin/thicket", "update", "inspect", file],
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Not signed." in done.stdout


def test_an_error_of_a_bundle_has_a_code() -> None:
    with pytest.raises(BundleError) as caught:
        bundles.read(io.BytesIO(b""))
    assert caught.value.code == "bad-bundle"

# SPDX-License-Identifier: Apache-2.0
"""The authority: its folder, its keys at rest, enrolment of chips, and the command."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from emulated_bus import EmulatedBus, Time, emulated
from fleet_for_tests import CLOCK, PREFIX

from authority import keys, nerveskey, provisioning
from authority.authority import Authority
from authority.chip import DeskChip
from authority.cli import main as desk_main
from authority.errors import AuthorityError
from authority.folder import Folder
from authority.issuer import years_from
from authority.keys import decrypt_key, encrypt_key
from meshlab.chip.atecc608 import Atecc608
from meshlab.chip.state import serial_for
from meshlab.cli.ca import main as ca_main
from thicket.identity.aio import AsyncAtecc
from thicket.timekeeping import statement
from thicket.trust import der, openssl, verify
from thicket.trust.certificates import Certificate, CertificateError, pem
from thicket.trust.credentials import (
    ChipKey,
    FileKey,
    enrolled_chain,
    make_credentials,
    software_key,
)
from thicket.trust.der import Reader
from thicket.trust.operator import check_operator
from thicket.trust.revocations import Revocations
from thicket.trust.verify import RefusedError, check_peer

NOW = datetime(2026, 11, 24, 12, 30, tzinfo=UTC)


def authority(folder: Path, passphrase: str = "correct horse") -> Authority:
    return Authority(folder, lambda _: passphrase, clock=lambda: NOW)


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    made = authority(tmp_path / "fleet")
    made.init("acme", PREFIX, lab=True)
    return made


# -- keys at rest


@pytest.fixture
def at_real_cost(monkeypatch: pytest.MonkeyPatch, cost_of_keys: int) -> None:
    monkeypatch.setattr(keys, "_ITERATIONS", cost_of_keys)


def test_a_guess_at_a_passphrase_costs_16_mib_five_times(at_real_cost: None) -> None:
    encrypted = Reader(encrypt_key(openssl.generate_key(), "secret")).inside(der.SEQUENCE)
    algorithm = encrypted.inside(der.SEQUENCE)
    algorithm.take()
    kdf = algorithm.inside(der.SEQUENCE).inside(der.SEQUENCE)
    kdf.take()
    cost = kdf.inside(der.SEQUENCE)
    cost.take()  # the salt
    # RFC 7914, section 2: 128 * N * r bytes, p times.
    assert [der.decode_integer(cost.next(der.INTEGER)) for _ in range(3)] == [1 << 14, 8, 5]


def test_keys_are_encrypted() -> None:
    key = openssl.generate_key()
    encrypted = encrypt_key(key, "secret ß")
    assert key not in encrypted
    assert decrypt_key(encrypted, "secret ß") == key
    for wrong in ("", "secret", "secret ß "):
        with pytest.raises(AuthorityError, match="passphrase is wrong"):
            decrypt_key(encrypted, wrong)
    with pytest.raises(AuthorityError, match="damaged"):
        decrypt_key(encrypted[:-20], "secret ß")
    assert encrypt_key(key, "secret ß") != encrypted


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl command")
def test_openssl_opens_the_keys(tmp_path: Path, at_real_cost: None) -> None:
    key = openssl.generate_key()
    (tmp_path / "key").write_bytes(encrypt_key(key, "pass"))
    done = subprocess.run(
        [
            "openssl",
            "pkey",
            "-inform",
            "DER",
            "-in",
            "key",
            "-passin",
            "pass:pass",
            "-outform",
            "DER",
        ],
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    assert openssl.public_key(done.stdout) == openssl.public_key(key)


def test_a_fleet_with_a_passphrase(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    ca = authority(folder)
    fleet = ca.init("acme", PREFIX)
    assert (fleet.name, fleet.network) == ("acme", PREFIX)
    assert sorted(p.name for p in folder.iterdir()) == [
        ".lock", "fleet.json", "network.json", "revocations.bin", "root.key", "root.pem",
        "signer-0001.key", "signer-0001.pem",
    ]  # fmt: skip
    assert folder.stat().st_mode & 0o777 == 0o700
    for file in folder.glob("*.key"):
        assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(AuthorityError, match="passphrase is wrong"):
        authority(folder, "other").signer()
    assert ca.signer() == 2
    # who enrols needs no root
    (folder / "root.key").unlink()
    assert ca.issuer().number == 2
    with pytest.raises(AuthorityError, match="the root's key is needed"):
        authority(folder).signer()
    with pytest.raises(AuthorityError, match="has a fleet already"):
        ca.init("again", PREFIX)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(AuthorityError, match="`thicket ca init NAME` makes one"):
        authority(tmp_path).issuer()
    (tmp_path / "fleet.json").write_text("{")
    with pytest.raises(AuthorityError, match=r"is damaged .*take it from your copy"):
        authority(tmp_path).list()
    for text in ("[]", "7", '{"format": 1}', '{"lab": true}'):
        (tmp_path / "fleet.json").write_text(text)
        with pytest.raises(AuthorityError, match="is not what `thicket ca init` makes"):
            authority(tmp_path).list()
    document = dict.fromkeys(("name", "prefix", "lab", "signers", "devices", "revocations"))
    (tmp_path / "fleet.json").write_text(json.dumps({**document, "format": 2}))
    with pytest.raises(AuthorityError, match="format 2, and this version reads 1"):
        authority(tmp_path).list()


def test_the_29th_of_february() -> None:
    begin, end = years_from(datetime(2028, 2, 29, 23, 59, tzinfo=UTC), 31)
    assert (begin, end) == (
        datetime(2028, 2, 28, 23, tzinfo=UTC),
        datetime(2059, 2, 28, 23, tzinfo=UTC),
    )


# -- chips


def quiet(_: str) -> None:
    pass


def test_a_blank_chip_is_enrolled_and_speaks_for_its_node(ca: Authority) -> None:
    driver, chip, _, _ = emulated()
    shown: list[str] = []
    before = chip.memory
    assert ca.enroll_chip(driver, write=False, show=shown.append) == chip.serial.hex()
    assert chip.memory == before
    assert "FOR EVER" in shown[0]
    assert ca.list()["devices"] == {}
    assert ca.enroll_chip(driver, write=True, show=quiet) == chip.serial.hex()
    assert chip.memory.config[86:89] == b"\0\0\xfe"

    async def node() -> None:
        face = AsyncAtecc(driver)
        key = await ChipKey.load(face, ca.fleet)
        credentials = await make_credentials(key, ca.fleet, CLOCK._replace(now=NOW))
        peer = check_peer(
            credentials.chain,
            ca.fleet,
            clock=CLOCK,
            address=ca.fleet.address("chip", chip.serial[2:8]),
            chip_required=True,
        )
        assert peer.device == chip.serial.hex()
        await face.close()

    asyncio.run(node())
    assert ca.list()["devices"][chip.serial.hex()]["source"] == "chip"
    # once more is no harm
    ca.enroll_chip(driver, write=True, show=quiet)


def test_a_nerves_key_in_use_is_enrolled_without_touching_it(ca: Authority) -> None:
    driver, chip, _, _ = emulated(2)
    validity = years_from(NOW, 31)
    stock = provisioning.NervesKeyIssuer(
        openssl.generate_key(), validity, manufacturer_serial="0815", device_validity=validity
    )
    provisioning.Provisioning(driver, nerveskey.Otp("b", "0815"), stock, show=quiet).run()
    before = nerveskey.read(driver)
    with pytest.raises(CertificateError, match=r"not enrolled in fleet 'acme'.*auxiliary.*empty"):
        enrolled_chain(driver, ca.fleet)
    ca.enroll_chip(driver, write=False, show=quiet)
    assert nerveskey.read(driver) == before
    ca.enroll_chip(driver, write=True, show=quiet)
    after = nerveskey.read(driver)
    assert after._replace(auxiliary=None) == before
    assert after.certificates() == before.certificates()
    device, signer = enrolled_chain(driver, ca.fleet)
    assert Certificate(device).common_name == chip.serial.hex()
    assert Certificate(signer).common_name == "Signer 0001"


def test_a_chip_of_another_fleet(ca: Authority, tmp_path: Path) -> None:
    driver, _, _, _ = emulated(3)
    other = authority(tmp_path / "other")
    other.init("other", PREFIX, lab=True)
    other.enroll_chip(driver, write=True, show=quiet)
    with pytest.raises(CertificateError, match="not of fleet 'acme'"):
        enrolled_chain(driver, ca.fleet)
    # it joins ours by its auxiliary slots, and keeps the other membership
    ca.enroll_chip(driver, write=True, show=quiet)
    enrolled_chain(driver, ca.fleet)
    enrolled_chain(driver, other.fleet)


def test_a_blank_chip_with_another_configuration(ca: Authority) -> None:
    driver, chip, _, _ = emulated(4)
    chip.state.config[87] = 0
    with pytest.raises(provisioning.ProvisioningError, match="not NervesKey's"):
        ca.enroll_chip(driver, write=True, show=quiet)
    chip.state.config[86] = 0
    chip.state.config[88] = 0xFE
    with pytest.raises(AuthorityError, match="no auxiliary slots"):
        ca.enroll_chip(driver, write=True, show=quiet)


def test_software_identities(ca: Authority) -> None:
    key = openssl.generate_key()
    chain = ca.enroll_software("board", b"\1\2\3\4\5\6", openssl.public_key(key))
    credentials = asyncio.run(
        make_credentials(FileKey(key, chain), ca.fleet, CLOCK._replace(now=NOW))
    )
    assert credentials.peer.software
    assert "software-board-010203040506" in ca.list()["devices"]
    with pytest.raises(AuthorityError, match="'chip' is not a source"):
        ca.enroll_software("chip", b"\1\2\3\4\5\6", openssl.public_key(key))


def test_the_key_of_a_software_identity_is_made_once(ca: Authority, tmp_path: Path) -> None:
    folder = str(tmp_path)
    with pytest.raises(CertificateError, match="enroll --ssh NODE --software"):
        FileKey.load(folder)
    key = software_key(folder)
    assert software_key(folder) == key
    assert (tmp_path / "device.key").stat().st_mode & 0o777 == 0o600
    chain = ca.enroll_software("random", b"\1\2\3\4\5\6", openssl.public_key(key))
    (tmp_path / "device.pem").write_text("".join(map(pem, chain)))
    device = FileKey.load(folder)
    peer = asyncio.run(make_credentials(device, ca.fleet, CLOCK._replace(now=NOW))).peer
    assert (peer.source, peer.software) == ("random", True)
    (tmp_path / "device.key").unlink()
    with pytest.raises(CertificateError, match="is not for the key"):
        FileKey.load(folder)
    (tmp_path / "device.key").write_bytes(b"damaged")
    with pytest.raises(CertificateError, match="damaged"):
        software_key(folder)
    assert (tmp_path / "device.key").read_bytes() == b"damaged"


def test_revocation(ca: Authority) -> None:
    driver, chip, _, _ = emulated(5)
    ca.enroll_chip(driver, write=True, show=quiet)
    first = Revocations.unpack(ca.revocations.packed, ca.fleet)
    assert (first.number, first.names) == (1, frozenset())
    name = chip.serial.hex()
    second = Revocations.unpack(ca.revocations.revoke([name]), ca.fleet)
    assert (second.number, second.names) == (2, frozenset({name}))
    assert ca.revocations.packed != b""
    key = ChipKey(AsyncAtecc(driver), enrolled_chain(driver, ca.fleet))
    chain = asyncio.run(make_credentials(key, ca.fleet, CLOCK._replace(now=NOW))).chain
    with pytest.raises(RefusedError) as caught:
        check_peer(chain, ca.fleet, clock=CLOCK, revoked=second.names)
    assert caught.value.reason == verify.REVOKED
    with pytest.raises(AuthorityError, match="was revoked on 2026-11-24"):
        ca.enroll_chip(driver, write=True, show=quiet)
    with pytest.raises(AuthorityError, match="no device, signer or operator"):
        ca.revocations.revoke(["ff" * 9])
    ca.signer()
    third = Revocations.unpack(ca.revocations.revoke(["Signer 0001"]), ca.fleet)
    assert third.names == {name, "Signer 0001"}
    assert ca.issuer().number == 2
    ca.revocations.revoke(["Signer 0002"])
    with pytest.raises(AuthorityError, match="no usable signer"):
        ca.issuer()


def test_trust_and_go_parts_have_no_room(ca: Authority) -> None:
    clock = Time()
    chip = Atecc608(serial_for(1, 6), clock=clock)
    chip.state.config[16] = 0x35 << 1
    chip.state.config[86:89] = b"\0\0\xfe"
    chip.power_cycle()
    driver = DeskChip(EmulatedBus(chip, clock), 0x35, clock=clock, sleep=clock.sleep)
    with pytest.raises(AuthorityError, match="Trust&GO"):
        ca.enroll_chip(driver, write=True, auxiliary=True, show=quiet)


# -- the command


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("THICKET_CA", str(tmp_path / "fleet"))
    monkeypatch.delenv("THICKET_CA_PASSPHRASE", raising=False)
    assert ca_main(["init", "lab", "--lab", "--prefix", "fd99:1:2:3::/64"]) == 0
    assert "fd99:1:2:3::/64" in capsys.readouterr().out
    chips = [tmp_path / f"{n}" / "chip.json" for n in range(3)]
    for number, path in enumerate(chips):
        path.parent.mkdir()
        Atecc608(serial_for("lab", number), path)
    assert ca_main(["enroll", "--virtual", *map(str, chips)]) == 0
    assert capsys.readouterr().out.count("enrolled") == 3
    kept = json.loads(chips[0].read_text())
    assert kept["config"][172:176] == "0000"
    assert ca_main(["list"]) == 0
    text = capsys.readouterr().out
    assert "for the simulator only" in text
    assert all(serial_for("lab", n).hex() in text for n in range(3))
    assert ca_main(["revoke", serial_for("lab", 1).hex()]) == 0
    capsys.readouterr()
    assert ca_main(["list", "--json"]) == 0
    devices = json.loads(capsys.readouterr().out)["devices"]
    assert [bool(d.get("revoked")) for d in devices.values()] == [False, True, False]
    assert ca_main(["enroll", "--virtual", str(chips[1])]) == 1
    assert "was revoked" in capsys.readouterr().err
    assert ca_main(["root"]) == 0
    assert capsys.readouterr().out == (tmp_path / "fleet/root.pem").read_text()
    key = openssl.public_key(openssl.generate_key()).hex()
    assert ca_main(["enroll", "--software", "mac", "010203040506", key]) == 0
    assert capsys.readouterr().out.count("BEGIN CERTIFICATE") == 2
    assert ca_main(["signer"]) == 0
    # the virtual chips keep it: what a node reads from its chip at boot
    from meshlab.chip.driver import open_chip

    assert enrolled_chain(open_chip(chips[2]), authority(tmp_path / "fleet").fleet)


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        ([], 2, "a command is needed: config, enroll"),
        (["nonsense"], 2, "there is no command 'nonsense'"),
        (["init"], 2, "needs the NAME"),
        (["init", "x", "--prefix", "10.0.0.0/8"], 2, "--prefix"),
        (["init", "x", "--prefix", "fd00::/32"], 2, "with /64 or /48"),
        (["list"], 1, "ca init"),
        (["list", "x"], 2, "only --json"),
        (["enroll"], 2, "needs --cable, --virtual"),
        (["enroll", "--virtual"], 2, "--virtual needs a value"),
        (["enroll", "--virtual", "/nonexistent"], 1, "not the file of a virtual chip"),
        (["enroll", "--software", "mac"], 2, "SOURCE, ID"),
        (["enroll", "--bus", "250"], 1, "ca init"),
        (["enroll", "--ssh", "-oX", "--bus", "1"], 2, "--ssh needs a value"),
        (["enroll", "--ssh=-oX", "--bus", "1"], 2, "'-oX' is no name"),
        (
            ["enroll", "--ssh", "a", "--console", "b", "--software"],
            2,
            "not allowed with argument --ssh",
        ),
        (["enroll", "--console", "b", "--baud", "fast", "--software"], 2, "--baud"),
        (
            ["enroll", "--ssh", "a", "--software", "--bus", "1"],
            2,
            "not allowed with argument --software",
        ),
        (["init", "x", "--lab", "--pkcs11", "pkcs11:token=t"], 2, "--lab"),
        (["config", "x"], 2, "only --out"),
        (["config"], 1, "ca init"),
        (["node"], 2, "folder DIR"),
        (["node", "x", "--days", "0"], 2, "--days"),
        (["publish"], 2, "--ssh HOST"),
        (["revoke"], 2, "needs names"),
        (["signer", "1"], 2, "no arguments"),
        (["init", "x"], 1, "THICKET_CA_PASSPHRASE"),
        (["help", "x"], 2, "no arguments"),
        (["root", "x"], 2, "no arguments"),
        (["passphrase"], 2, "roll, finish or cancel"),
        (["passphrase", "roll", "secret"], 2, "never stands on the command line"),
        (["node", ""], 2, "an empty name is none"),
        (["node", "x", "--name", "--days"], 2, "--name needs a value"),
        (["config", "--out", "--no-ssh-key"], 2, "--out needs a value"),
        (["--folder", "", "list"], 2, "an empty name is none"),
        (["enroll", "--virtual", "--bus", "1"], 2, "--virtual needs a value"),
        (["enroll", "--virtual", "x", "--ssh", "a"], 2, "files on this machine"),
        (["enroll", "--software", "--write"], 2, "--write go with --bus"),
        (["enroll", "--ssh", "a", "--software", "mac", "b"], 2, "mac b is not understood"),
        (["enroll", "--bus", "x"], 2, "'x' is not a number"),
        (["enroll", "--bus=-1"], 2, "is no name"),
        (["enroll", "--bus", "1", "--address", "x"], 2, "'x' is not a number"),
        (["publish", "--ssh"], 2, "--ssh needs a value"),
    ],
)
def test_the_command_says_what_is_wrong(
    *,
    words: list[str],
    status: int,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("THICKET_CA", str(tmp_path / "fleet"))
    monkeypatch.delenv("THICKET_CA_PASSPHRASE", raising=False)
    assert ca_main([*words]) == status
    assert text in capsys.readouterr().err


def test_without_the_simulator_there_are_no_virtual_chips(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert desk_main(["enroll", "--virtual", "chip.json"]) == 1
    assert "virtual chips need the simulator" in capsys.readouterr().err


def test_what_a_node_imports_is_small() -> None:
    """Neither the command of a node nor its trust pulls in what is the engineer's."""
    code = (
        "import sys, thicket.cli.main, thicket.trust.verify\n"
        "assert 'ssl' not in sys.modules and 'asyncio' not in sys.modules\n"
        "import thicket.trust.credentials, thicket.trust.tls\n"
        "bad = {'cryptography', 'meshlab', 'authority', 'thicket.trust.chip_slots',"
        " 'asn1crypto'} & set(sys.modules)\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


LATE = datetime(2128, 1, 1, 12, tzinfo=UTC)


def test_a_date_that_no_chip_can_keep_is_refused_before_a_chip_is_touched(tmp_path: Path) -> None:
    authority(tmp_path / "fleet").init("acme", PREFIX, lab=True)
    late = Authority(tmp_path / "fleet", lambda _: "correct horse", clock=lambda: LATE)
    driver, chip, _, _ = emulated()
    before = chip.memory
    with pytest.raises(AuthorityError, match=r"nothing was written.*2000 to 2127"):
        late.enroll_chip(driver, write=True, show=quiet)
    assert chip.memory == before


def test_a_date_that_no_chip_can_keep_makes_no_signer(tmp_path: Path) -> None:
    authority(tmp_path / "fleet").init("acme", PREFIX, lab=True)
    late = Authority(tmp_path / "fleet", lambda _: "correct horse", clock=lambda: LATE)
    before = sorted(path.name for path in (tmp_path / "fleet").iterdir())
    with pytest.raises(AuthorityError, match="nothing was written"):
        late.signer()
    assert sorted(path.name for path in (tmp_path / "fleet").iterdir()) == before


def test_a_date_that_no_chip_can_keep_makes_no_fleet(tmp_path: Path) -> None:
    late = Authority(tmp_path / "fleet", lambda _: "correct horse", clock=lambda: LATE)
    with pytest.raises(AuthorityError, match="nothing was written"):
        late.init("acme", PREFIX, lab=True)
    assert not (tmp_path / "fleet" / "root.pem").exists()


@pytest.mark.parametrize("what", ["signer-0002", "update-release"])
@pytest.mark.parametrize("lacks", [".key", ".pem", "fleet.json"])
def test_a_signer_that_cannot_be_kept_leaves_nothing(
    ca: Authority, monkeypatch: pytest.MonkeyPatch, what: str, lacks: str
) -> None:
    def make() -> object:
        return ca.signer() if what.startswith("signer") else ca.update_signers.make("release")

    def full(self: Folder, name: str, data: bytes) -> None:
        if name.endswith(lacks):
            raise AuthorityError("the disk is full")
        write(self, name, data)

    write = Folder.write
    before = {path.name: path.read_bytes() for path in ca.folder.iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr(Folder, "write", full)
        with pytest.raises(AuthorityError, match="full"):
            make()
    after = {path.name: path.read_bytes() for path in ca.folder.iterdir()}
    assert after == {**before, ".lock": b""}
    # What a power cut has left, of a key on a token, does not stand in the way of the next attempt.
    (ca.folder / f"{what}.p11").write_text("pkcs11:token=gone?module-path=/nowhere.so\n")
    make()
    assert not (ca.folder / f"{what}.p11").exists()
    if what.startswith("update"):
        assert ca.update_signers.open().name == "Update signer release"
        with pytest.raises(AuthorityError, match="there is, or was"):
            make()
        assert ca.update_signers.open().name == "Update signer release"


def test_a_clock_that_stands_before_the_fleet_makes_no_signer_of_updates(ca: Authority) -> None:
    early = Authority(
        ca.folder, lambda _: "correct horse", clock=lambda: datetime(1970, 1, 1, tzinfo=UTC)
    )
    before = sorted(path.name for path in ca.folder.iterdir())
    with pytest.raises(AuthorityError, match="1970-01-01 by the clock of this machine"):
        early.update_signers.make("release")
    assert sorted(path.name for path in ca.folder.iterdir()) == before
    ca.update_signers.make("release")


class TestOperators:
    """People who may run commands on the nodes."""

    def test_one_is_made_listed_renewed_and_revoked(self, ca: Authority) -> None:
        assert ca.operators.make("alice", days=30) == "Operator alice"
        made = ca.operators.open("alice")
        shown = check_operator((made.certificate,), ca.fleet, clock=CLOCK)
        assert shown.short == "alice"
        assert made.key.public_key == Certificate(made.certificate).public_key
        with pytest.raises(AuthorityError, match="there is, or was, an operator 'alice'"):
            ca.operators.make("alice")
        assert ca.operators.renew("alice", days=90) == "Operator alice"
        again = ca.operators.open("alice")
        assert again.certificate != made.certificate
        assert again.key.public_key == made.key.public_key
        assert check_operator((again.certificate,), ca.fleet, clock=CLOCK).until > shown.until
        ca.revocations.revoke(ca.revocations.full_names(["alice"]))
        assert ca.revocations.names == {"Operator alice"}
        with pytest.raises(AuthorityError, match="was revoked on"):
            ca.operators.open("alice")
        with pytest.raises(AuthorityError, match="was revoked on"):
            ca.operators.renew("alice", days=9)

    def test_who_gets_a_folder_has_what_he_needs_and_nothing_of_others(
        self, ca: Authority, tmp_path: Path
    ) -> None:
        ca.operators.make("alice")
        ca.operators.make("bob")
        target = tmp_path / "alices"
        ca.operators.hand_over("alice", target)
        assert {path.name for path in target.iterdir()} == {
            "fleet.json",
            "root.pem",
            "revocations.bin",
            "operator-alice.pem",
            "operator-alice.key",
        }
        assert target.stat().st_mode & 0o77 == 0
        copy = Authority(target, lambda _: "secret")
        assert copy.operators.open().name == "Operator alice"
        assert "bob" not in (target / "fleet.json").read_text()
        with pytest.raises(AuthorityError, match="root's key"):
            copy.operators.make("carol")
        with pytest.raises(AuthorityError, match="is not empty"):
            ca.operators.hand_over("bob", target)

    def test_a_name_that_means_two_is_not_guessed(self, ca: Authority) -> None:
        ca.operators.make("alice")
        ca.update_signers.make("alice")
        with pytest.raises(AuthorityError, match="'Operator alice' or 'Update signer alice'"):
            ca.revocations.full_names(["alice"])
        assert ca.revocations.full_names(["Operator alice"]) == ["Operator alice"]


# -- the time


def test_the_time_is_signed_into_a_file(
    ca: Authority,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("THICKET_CA_PASSPHRASE", "")
    out = tmp_path / "now.time"
    words = ["--folder", str(ca.folder), "time", "--out", str(out)]
    assert desk_main(words) == 0
    found = statement.read(out.read_bytes(), ca.fleet)
    assert abs((datetime.now(UTC) - found.issued).total_seconds()) < 60
    assert found.question == ""
    assert desk_main([*words, "--for", "ab" * 16]) == 0
    assert statement.read(out.read_bytes(), ca.fleet).question == "ab" * 16
    for wrong in (["time"], [*words[:3], "--ssh", "x", "--out", "y"], [*words, "--for", "no"]):
        assert desk_main(wrong) == 2
    assert "is signed" in capsys.readouterr().out


def test_a_node_is_told_the_time_by_ssh(
    ca: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What stands for ssh runs what the node would: it asks, and takes the answer."""
    monkeypatch.setenv("THICKET_CA_PASSPHRASE", "")
    question = "0f" * 16
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "ssh"
    program.write_text(
        "#!/bin/sh\nshift 4\n"
        f"case $1 in question) echo {question} ;; *) cat >{tmp_path}/taken; echo told ;; esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    assert desk_main(["--folder", str(ca.folder), "time", "--ssh", "root@node"]) == 0
    assert statement.read((tmp_path / "taken").read_bytes(), ca.fleet).question == question
    assert "told" in capsys.readouterr().out
    program.write_text("#!/bin/sh\necho something else\n")
    assert desk_main(["--folder", str(ca.folder), "time", "--ssh", "root@node"]) == 1
    assert "does not ask" in capsys.readouterr().err

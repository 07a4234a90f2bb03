# SPDX-License-Identifier: Apache-2.0
"""The authority's keys on a PKCS#11 token: SoftHSM, with the ways in and what goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import bundles_for_tests
import pytest
from emulated_bus import emulated
from fleet_for_tests import PREFIX
from hypothesis import given
from hypothesis import strategies as st

from authority.authority import Authority
from authority.cli import main as ca_main
from authority.errors import AuthorityError
from authority.token import Token, TokenError, TokenKey, Uri
from authority.update import sign as sign_bundle
from thicket.trust import openssl
from thicket.trust.certificates import Certificate, from_pem
from thicket.trust.credentials import enrolled_chain
from thicket.trust.revocations import Revocations
from thicket.update import bundle as bundles

MODULES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    f"/usr/lib/{os.uname().machine}-linux-gnu/softhsm/libsofthsm2.so",
)


def missing() -> str | None:
    if not any(map(os.path.exists, MODULES)) or not shutil.which("softhsm2-util"):
        return "no SoftHSM, the token of these tests: sudo apt-get install -y softhsm2"
    try:
        import pkcs11  # noqa: F401
    except ImportError:
        return "no python-pkcs11: pip install python-pkcs11"
    return None


needs_token = pytest.mark.skipif(missing() is not None, reason=missing() or "")


@pytest.fixture(scope="session")
def token(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of an initialised token; its module reads its place once, so it is one for all."""
    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(
        f"directories.tokendir = {folder}/tokens\nlog.level = ERROR\n"
    )
    os.environ["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")
    for label in ("acme ca", "other"):
        subprocess.run(
            ["softhsm2-util", "--init-token", "--free", "--label", label, "--pin", "123456",
             "--so-pin", "87654321"],
            check=True, capture_output=True,
        )  # fmt: skip
    module = next(filter(os.path.exists, MODULES))
    return f"pkcs11:token=acme%20ca?module-path={module}"


def authority(folder: Path, pin: str = "123456") -> tuple[Authority, list[str]]:
    asked: list[str] = []

    def ask(question: str) -> str:
        asked.append(question)
        return pin if question.startswith("PIN") else "correct horse"

    return Authority(folder, ask), asked


@needs_token
def test_a_fleet_on_a_token(token: str, tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    ca, asked = authority(folder)
    fleet = ca.init("one", PREFIX, token=token)
    assert asked == ["PIN of the token 'acme ca'"]  # once, for all keys
    assert not list(folder.glob("*.key"))
    assert "token=acme%20ca" in (folder / "root.p11").read_text()
    signer = Certificate(from_pem((folder / "signer-0001.pem").read_text())[0])
    assert openssl.verify(fleet.root.public_key, sha256(signer.tbs).digest(), signer.signature)
    # another process enrols a chip, and revokes it
    ca, asked = authority(folder)
    driver, chip, _, _ = emulated()
    ca.enroll_chip(driver, write=True, show=lambda _: None)
    assert enrolled_chain(driver, ca.fleet)
    packed = ca.revocations.revoke([chip.serial.hex()])
    assert Revocations.unpack(packed, ca.fleet).names == {chip.serial.hex()}
    assert len(asked) == 1
    # a signer in a file beside it, and one more on the token
    assert ca.signer() == 2
    assert (folder / "signer-0002.key").exists()
    assert ca.signer(token=token) == 3
    assert ca.issuer().number == 3


@needs_token
def test_the_key_does_not_leave_the_token(token: str, tmp_path: Path) -> None:
    import pkcs11

    uri = Token(Uri.parse(token), lambda _: "123456").generate("kept")
    key = TokenKey(uri, lambda _: "123456")
    digest = os.urandom(32)
    assert openssl.verify(key.public_key, digest, key.sign(digest))
    assert str(Uri.parse(str(uri))) == str(uri)
    library = pkcs11.lib(uri.query["module-path"])
    with library.get_token(token_label="acme ca").open(user_pin="123456") as session:
        (private,) = session.get_objects(
            {pkcs11.Attribute.LABEL: "kept", pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY}
        )
        assert private[pkcs11.Attribute.SENSITIVE]
        assert not private[pkcs11.Attribute.EXTRACTABLE]
    with pytest.raises(TokenError, match="has a key 'kept' already"):
        Token(Uri.parse(token), lambda _: "123456").generate("kept")


@needs_token
def test_what_goes_wrong_with_a_token(token: str, tmp_path: Path) -> None:
    def pin(_: str) -> str:
        return "123456"

    parsed = Uri.parse(token)
    with pytest.raises(TokenError, match="no tokens are 'elsewhere'"):
        Token(parsed._replace(path={"token": "elsewhere"}), pin).generate("x")
    with pytest.raises(TokenError, match="PIN of the token 'other' is wrong"):
        Token(parsed._replace(path={"token": "other"}), lambda _: "000000").generate("x")
    with pytest.raises(TokenError, match="no keys are"):
        TokenKey(parsed._replace(path={"token": "acme ca", "object": "nothing"}), pin)
    with pytest.raises(TokenError, match="cannot be loaded"):
        Token(parsed._replace(query={"module-path": "/nonexistent.so"}), pin).generate("x")
    with pytest.raises(TokenError, match="THICKET_PKCS11_MODULE"):
        Token(parsed._replace(query={}), pin).generate("x")
    folder = tmp_path / "fleet"
    ca, _ = authority(folder, "999999")
    with pytest.raises(TokenError, match="is wrong"):
        ca.init("two", PREFIX, token=token)
    # and nothing is in the way of another attempt
    ca, _ = authority(folder)
    ca.init("two", PREFIX, token=token)


@needs_token
def test_the_pin_from_a_file_and_the_command(
    token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("THICKET_CA", str(tmp_path / "fleet"))
    monkeypatch.setenv("THICKET_CA_PIN", "123456")
    assert ca_main(["init", "three", "--pkcs11", token]) == 0
    monkeypatch.delenv("THICKET_CA_PIN")
    assert ca_main(["signer", "--pkcs11", token]) == 1
    assert "set THICKET_CA_PIN" in capsys.readouterr().err
    (tmp_path / "pin").write_text("123456\n")
    with_file = f"{token}&pin-source=file:{tmp_path}/pin"
    ca = Authority(tmp_path / "fleet4", lambda _: "never asked")
    ca.init("four", PREFIX, token=with_file)
    assert "pin-source" in (ca.folder / "root.p11").read_text()
    with_value = f"{token}&pin-value=123456"
    ca = Authority(tmp_path / "fleet5", lambda _: "never asked")
    ca.init("five", PREFIX, token=with_value)
    assert "123456" not in (ca.folder / "root.p11").read_text()
    document = json.loads((ca.folder / "fleet.json").read_text())
    assert "123456" not in json.dumps(document)


def test_without_the_package(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['pkcs11'] = None\n"
        "from authority.cli import main\n"
        f"sys.exit(main(['--folder', {str(tmp_path / 'f')!r}, 'init', 'x', '--pkcs11',"
        " 'pkcs11:token=t?module-path=/x.so']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install python-pkcs11" in done.stderr
    with pytest.raises(AuthorityError, match="no fleet"):
        Authority(tmp_path / "f", lambda _: "").list()


# -- URIs


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file:/x", "no PKCS#11 URI"),
        ("pkcs11://token=x", "no PKCS#11 URI"),
        ("pkcs11:token", "not known"),
        ("pkcs11:colour=red", "not known"),
        ("pkcs11:token=a;token=b", "there twice"),
    ],
)
def test_uris_that_are_none(text: str, words: str) -> None:
    with pytest.raises(TokenError, match=words):
        Uri.parse(text)


def test_a_uri_must_name_a_token() -> None:
    with pytest.raises(TokenError, match="must name a token"):
        Token(Uri.parse("pkcs11:?module-path=/x"), lambda _: "")


@given(st.text(max_size=20), st.text(max_size=20))
def test_uris_are_read_as_they_were_written(label: str, source: str) -> None:
    uri = Uri({"token": label, "id": "%01%fF"}, {"pin-source": source})
    assert Uri.parse(str(uri)) == uri


@needs_token
def test_an_update_signer_on_a_token(token: str, tmp_path: Path) -> None:
    """The fleet's other keys are in files; the token signs a bundle, and needs its PIN alone."""
    folder = tmp_path / "fleet"
    ca, _ = authority(folder)
    ca.init("acme", PREFIX)
    ca.update_signers.make("release", token=token)
    assert not (folder / "update-release.key").exists()
    assert (folder / "update-release.p11").read_text().startswith("pkcs11:")
    unsigned = tmp_path / "x.unsigned"
    unsigned.write_bytes(bundles_for_tests.unsigned())
    again, asked = authority(folder)
    signer = again.update_signers.open()
    sign_bundle(unsigned, tmp_path / "x.raucb", again.fleet, signer, datetime.now(UTC))
    assert [question[:3] for question in asked] == ["PIN"]
    with (tmp_path / "x.raucb").open("rb") as file:
        found = bundles.read(file)
    assert bundles.check_signer(found, again.fleet) == "Update signer release"

# SPDX-License-Identifier: Apache-2.0
"""Signed messages: OpenSSL reads ours, and nothing but our one form is read."""

from __future__ import annotations

import os
import shutil
import subprocess
from datetime import UTC, datetime, timedelta, timezone
from functools import cache
from hashlib import sha256
from pathlib import Path

import pytest
from bundles_for_tests import UpdateKey, update_key
from fleet_for_tests import NOW, one_fleet
from hypothesis import given
from hypothesis import strategies as st

from thicket.trust import cms, der, openssl
from thicket.trust.certificates import pem
from thicket.trust.cms import CmsError
from thicket.trust.der import Reader

TEXT = b"[update]\ncompatible=thicket\n"


@cache
def packed() -> bytes:
    return update_key().message(TEXT)


@pytest.mark.parametrize("size", [0, 1, 27, 127, 128, 255, 256, 40_000])
def test_what_is_signed_is_read(size: int) -> None:
    key, text = update_key(), os.urandom(size)
    message = cms.read(key.message(text))
    assert message.content == text
    assert message.intact
    assert message.signed_at == NOW
    assert message.certificate.der == key.certificate
    assert openssl.verify(message.certificate.public_key, message.to_sign, message.signature)


@pytest.mark.parametrize(
    ("when", "said"),
    [
        (datetime(2049, 12, 31, 23, 59, 59, 999_999, UTC), "2049-12-31T23:59:59+00:00"),
        (datetime(2050, 1, 1, tzinfo=UTC), "2050-01-01T00:00:00+00:00"),
        (datetime(2026, 7, 1, 1, tzinfo=timezone(timedelta(hours=2))), "2026-06-30T23:00:00+00:00"),
    ],
)
def test_the_time_is_in_utc_and_of_either_form(when: datetime, said: str) -> None:
    assert cms.read(update_key().message(TEXT, when)).signed_at.isoformat() == said


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["openssl", *words], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if not shutil.which("openssl"):
        pytest.skip("no openssl command")
    (tmp_path / "root.pem").write_text(pem(one_fleet().fleet.root.der))
    (tmp_path / "other.pem").write_text(pem(one_fleet("other").fleet.root.der))
    (tmp_path / "message").write_bytes(packed())
    return tmp_path


def purpose(folder: Path) -> str:
    """OpenSSL knows code signing as a purpose from 3.2 on."""
    words = run(folder, "version").stdout.split()[1].split(".")
    return "codesign" if (int(words[0]), int(words[1])) >= (3, 2) else "any"


def verified(folder: Path, root: str, *more: str) -> subprocess.CompletedProcess[str]:
    at = str(int(NOW.timestamp()))
    return run(
        folder, "cms", "-verify", "-binary", "-inform", "DER", "-in", "message", "-CAfile", root,
        "-attime", at, "-purpose", purpose(folder), "-out", "text", *more,
    )  # fmt: skip


def test_openssl_verifies_it_by_the_root_of_the_fleet(folder: Path) -> None:
    done = verified(folder, "root.pem")
    assert done.returncode == 0, done.stderr
    assert (folder / "text").read_bytes() == TEXT
    assert verified(folder, "other.pem").returncode != 0


def test_openssl_finds_a_changed_content(folder: Path) -> None:
    data = packed().replace(b"compatible=thicket", b"compatible=thinket")
    (folder / "message").write_bytes(data)
    assert verified(folder, "root.pem").returncode != 0
    assert not cms.read(data).intact


def test_openssl_would_write_it_in_the_same_way(folder: Path) -> None:
    """It takes the message apart and puts it together again: our DER is DER."""
    done = run(
        folder, "cms", "-cmsout", "-inform", "DER", "-in", "message", "-outform", "DER", "-out",
        "again",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (folder / "again").read_bytes() == packed()


def test_another_form_of_openssl_is_refused(folder: Path) -> None:
    """With more attributes, several certificates, or none: each good, and not ours."""
    (folder / "key.pem").write_bytes(b"")
    for command in (
        ["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "key.pem"],
        ["req", "-x509", "-key", "key.pem", "-subj", "/CN=Update signer x", "-out", "cert.pem",
         "-days", "30"],
    ):  # fmt: skip
        done = run(folder, *command)
        assert done.returncode == 0, done.stderr
    (folder / "plain").write_bytes(TEXT)
    for more in ([], ["-nosmimecap", "-nocerts"], ["-nosmimecap", "-keyid"], ["-noattr"]):
        done = run(
            folder, "cms", "-sign", "-binary", "-nodetach", "-in", "plain", "-signer", "cert.pem",
            "-inkey", "key.pem", "-outform", "DER", "-out", "theirs", "-md", "sha256", *more,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        with pytest.raises(CmsError):
            cms.read((folder / "theirs").read_bytes())


def test_what_is_too_large_is_neither_written_nor_read() -> None:
    with pytest.raises(CmsError, match="at most 65536"):
        update_key().message(bytes(cms.MAX_SIZE))
    with pytest.raises(CmsError, match="at most 65536"):
        cms.read(packed() + bytes(cms.MAX_SIZE))


def test_what_follows_the_message_is_refused() -> None:
    with pytest.raises(CmsError):
        cms.read(packed() + b"\0")


def test_other_than_one_signer_is_refused() -> None:
    whole = Reader(packed()).inside(der.SEQUENCE)
    kind = whole.take()[2]
    fields = whole.inside(0xA0).inside(der.SEQUENCE)
    parts = [fields.take()[2] for _ in range(4)]
    signer = fields.next(der.SET)
    for signers in ((signer,), (signer, signer), ()):
        signed = der.sequence(*parts, der.tlv(der.SET, *signers))
        doubled = der.sequence(kind, der.context(0, signed))
        if len(signers) == 1:
            assert doubled == packed()
            continue
        with pytest.raises(CmsError):
            cms.read(doubled)


def test_the_certificate_must_be_the_signers() -> None:
    other = UpdateKey(one_fleet(), "other")
    data = packed().replace(update_key().certificate, other.certificate)
    with pytest.raises(CmsError):
        cms.read(data)


@given(st.data())
def test_a_changed_byte_is_never_taken(choice: st.DataObject) -> None:
    """Not one byte of a message can be changed so that it is read and still counts."""
    data = bytearray(packed())
    at = choice.draw(st.integers(0, len(data) - 1))
    data[at] ^= choice.draw(st.integers(1, 255))
    try:
        message = cms.read(bytes(data))
    except CmsError:
        return
    key, root = message.certificate, one_fleet().fleet.root
    counts = (
        message.intact
        and openssl.verify(key.public_key, message.to_sign, message.signature)
        and openssl.verify(root.public_key, sha256(key.tbs).digest(), key.signature)
    )
    assert not counts


@given(st.data())
def test_a_message_that_is_cut_off_is_refused(choice: st.DataObject) -> None:
    with pytest.raises(CmsError):
        cms.read(packed()[: choice.draw(st.integers(0, len(packed()) - 1))])


@given(st.binary(max_size=300))
def test_rubbish_is_refused_in_words(data: bytes) -> None:
    for start in (b"", packed()[:40], packed()[:200]):
        with pytest.raises(CmsError, match=r"\w"):
            cms.read(start + data)

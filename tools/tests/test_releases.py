# SPDX-License-Identifier: Apache-2.0
"""What a release says of itself: checksums, index, signature, bill of materials, licences."""

from __future__ import annotations

import json
import subprocess
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from bundles_for_tests import UpdateKey, update_key
from fleet_for_tests import NOW, one_fleet
from hypothesis import given
from hypothesis import strategies as st

from firmware.releases import index, licences, page, sbom, signature, sums
from firmware.releases.errors import ReleaseError
from firmware.releases.index import File, Index
from firmware.releases.licences import Licence
from firmware.releases.sbom import Component
from thicket.trust.certificates import pem

DIGEST = sha256(b"").hexdigest()
DATE = "2026-11-24T12:00:00Z"

NAMES = st.from_regex(sums.NAME, fullmatch=True)
DIGESTS = st.binary(max_size=3).map(lambda data: sha256(data).hexdigest())
WORDS = st.sampled_from(["rpi64", "x86_64", "standin-rpi64"])
FILES = st.builds(
    File,
    NAMES,
    st.sampled_from([index.IMAGE, index.MAP, index.BUNDLE, index.DELTA, "later"]),
    st.one_of(st.just(""), WORDS),
    st.integers(0, index.MAX_SIZE),
    DIGESTS,
    st.integers(0, index.MAX_SIZE),
    st.sampled_from(["", "0.1.0", "1.0~rc1+7"]),
)
INDEXES = st.builds(
    Index,
    st.sampled_from(["0.1.0", "2.0~rc1"]),
    st.integers(0, 99),
    st.sampled_from(["0123456789ab", "v1-3-gabcdef-dirty", "unknown"]),
    st.just(DATE),
    st.lists(FILES, min_size=1, max_size=9, unique_by=lambda file: file.name).map(
        lambda files: tuple(sorted(files))
    ),
)


def said(*files: File) -> Index:
    listed = files or (File("a.img.xz", index.IMAGE, "rpi64", 5, DIGEST, 10),)
    return Index("0.1.0", 1, "0123456789ab", DATE, tuple(sorted(listed)))


# -- SHA256SUMS


@given(st.dictionaries(NAMES, DIGESTS, max_size=20))
def test_checksums_are_read_as_they_were_written(listed: dict[str, str]) -> None:
    assert sums.read(sums.text(listed)) == listed


@given(st.binary(max_size=300).map(lambda data: sums.FIRST + data))
def test_only_the_one_form_is_read(data: bytes) -> None:
    try:
        found = sums.read(data)
    except ReleaseError as error:
        assert str(error)
    else:
        assert sums.text(found) == data


@pytest.mark.parametrize(
    "line",
    [
        f"{DIGEST} a", f"{DIGEST}  ../a", f"{DIGEST}  .a", f"{DIGEST}  a/b", f"{DIGEST.upper()}  a",
        f"{DIGEST[1:]}  a", f"{DIGEST}  a b", f"{DIGEST}  ü", f"# {DIGEST}  a", f"{DIGEST}  a\r",
        f"{DIGEST}  {'a' * 129}", "", f"{DIGEST}  b\n{DIGEST}  a", f"{DIGEST}  a\n{DIGEST}  a",
    ],
)  # fmt: skip
def test_lines_that_are_not_read(line: str) -> None:
    with pytest.raises(ReleaseError):
        sums.read(sums.FIRST + line.encode() + b"\n")


def test_other_lists_of_checksums_are_none_of_a_release() -> None:
    with pytest.raises(ReleaseError, match="none of a release"):
        sums.read(f"{DIGEST}  a\n".encode())
    with pytest.raises(ReleaseError, match="at most"):
        sums.read(sums.FIRST + bytes(sums.MAX_BYTES))
    with pytest.raises(ReleaseError, match="too many"):
        sums.text({f"{n:0128}": DIGEST for n in range(400)})
    with pytest.raises(ReleaseError, match="cannot be in"):
        sums.text({"a\nb": DIGEST})


def test_sha256sum_reads_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / sums.FILE).write_bytes(sums.text({"a": DIGEST}))
    command = ["sha256sum", "--check", "--strict", sums.FILE]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "a").write_bytes(b"x")
    assert subprocess.run(command, cwd=tmp_path, check=False, capture_output=True).returncode == 1


# -- index.json


@given(INDEXES)
def test_an_index_is_read_as_it_was_written(one: Index) -> None:
    if len(one.text()) <= index.MAX_BYTES:
        assert index.read(one.text()) == one


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=9), inner, max_size=3)
        ),
    ),
    st.sampled_from(["format", "version", "epoch", "commit", "date", "files", "new", "name",
                     "kind", "board", "size", "sha256", "unpacked", "from"]),
)  # fmt: skip
def test_any_member_may_be_anything(value: object, member: str) -> None:
    document = json.loads(said().text())
    target = document if member in ("new", *list(document)) else document["files"][0]
    target[member] = value
    try:
        found = index.read(json.dumps(document).encode())
    except ReleaseError as error:
        assert len(str(error)) < 400
    else:
        assert index.read(found.text()) == found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"format": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[]", "no.* object"),
        (b'{"format": 2}', "take a newer checkout"),
        (b'{"format": true}', "`format`"),
        (b'{"format": 1, "files": []}', "no list of 1 to"),
        (b'{"format": 1, "files": [1]}', "no object"),
        (bytes(index.MAX_BYTES + 1), "at most"),
    ],
)
def test_what_is_no_index(text: bytes, reason: str) -> None:
    with pytest.raises(ReleaseError, match=reason):
        index.read(text)


def test_a_file_twice() -> None:
    twice = said(File("a", "image", "x", 1, DIGEST), File("a", "image", "y", 1, DIGEST))
    with pytest.raises(ReleaseError, match="twice"):
        index.read(twice.text())


# -- the signature

LISTED = sums.text({"index.json": DIGEST})


def packed(key: UpdateKey | None = None, listed: bytes = LISTED) -> bytes:
    one = key or update_key()
    return signature.sign(listed, one.certificate, NOW, one.sign)


def test_a_signed_release() -> None:
    by = signature.check(packed(), LISTED, one_fleet().fleet)
    assert (by.signer, by.when) == ("Update signer release", NOW)
    assert signature.claimed(packed(), LISTED) == by


def test_openssl_checks_a_release(tmp_path: Path) -> None:
    """The line of docs/releases.md: it writes the list that was signed."""
    (tmp_path / "root.pem").write_text(pem(one_fleet().fleet.root.der))
    (tmp_path / "other.pem").write_text(pem(one_fleet("other").fleet.root.der))
    (tmp_path / signature.FILE).write_bytes(packed())
    certificate = tmp_path / "signer.pem"
    certificate.write_text(pem(update_key().certificate))

    def openssl(root: str) -> int:
        words = ["-verify", "-inform", "DER", "-in", signature.FILE, "-CAfile", root]
        when = str(int((NOW + timedelta(days=1)).timestamp()))
        words += ["-purpose", "any", "-out", sums.FILE, "-attime", when]
        done = subprocess.run(
            ["openssl", "cms", *words], cwd=tmp_path, check=False, capture_output=True
        )
        return done.returncode

    assert openssl("root.pem") == 0
    assert (tmp_path / sums.FILE).read_bytes() == LISTED
    assert openssl("other.pem") != 0
    shown = subprocess.run(
        ["openssl", "x509", "-in", certificate, "-noout", "-fingerprint", "-sha256"],
        check=True,
        capture_output=True,
        text=True,
    )
    fingerprint = signature.claimed(packed(), LISTED).fingerprint
    assert shown.stdout.strip().rpartition("=")[2] == fingerprint


def test_signatures_that_are_not_taken() -> None:
    ours, theirs = one_fleet().fleet, one_fleet("other").fleet
    with pytest.raises(ReleaseError, match="another fleet"):
        signature.check(packed(), LISTED, theirs)
    with pytest.raises(ReleaseError, match="is revoked"):
        signature.check(packed(), LISTED, ours, {"Update signer release"})
    with pytest.raises(ReleaseError, match="does not belong to"):
        signature.check(packed(), sums.text({"index.json": "0" * 64}), ours)
    with pytest.raises(ReleaseError, match="does not belong to"):
        signature.check(packed(listed=b"thicket update offer 1\n{}"), LISTED, ours)
    for data in (b"", LISTED, packed()[:-1], packed() + b"\0"):
        with pytest.raises(ReleaseError, match="cannot be used"):
            signature.check(data, LISTED, ours)
    changed = bytearray(packed())
    changed[-5] ^= 1
    with pytest.raises(ReleaseError, match=r"signature is wrong|cannot be used"):
        signature.check(bytes(changed), LISTED, ours)


# -- bills of materials, licences, the page

SMBUS = Component("library", "smbus2", "0.6.0", "pkg:pypi/smbus2@0.6.0", "MIT", (DIGEST, "0" * 64))
LINUX = Component("operating-system", "linux", "6.12.1-x", "pkg:generic/linux@6.12.1", "GPL-2.0")
NAMELESS = Component("application", "busybox", "", "pkg:deb/debian/busybox")


def test_a_bill_of_materials() -> None:
    made = sbom.made("thicket-x", "0.1.0", "Apache-2.0", [SMBUS, LINUX, NAMELESS], DATE)
    assert made == sbom.made("thicket-x", "0.1.0", "Apache-2.0", [NAMELESS, LINUX, SMBUS], DATE)
    assert sbom.components(made) == 3
    bill = json.loads(made)
    assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.6", 1)
    # What the specification asks for where members refer to each other.
    references = {one["bom-ref"] for one in bill["components"]}
    (edges,) = bill["dependencies"]
    assert edges["ref"] == bill["metadata"]["component"]["bom-ref"]
    assert set(edges["dependsOn"]) == references
    assert len(references) == 3
    other = sbom.made("thicket-x", "0.1.0", "Apache-2.0", [SMBUS], DATE)
    assert json.loads(other)["serialNumber"] != bill["serialNumber"]


def test_the_bill_follows_the_schema() -> None:
    """Where a validator and the schema of CycloneDX are at hand, they judge it."""
    schema = pytest.importorskip(
        "cyclonedx.validation.json", reason="cyclonedx-python-lib is not here: not judged by it"
    )
    versions = pytest.importorskip("cyclonedx.schema")
    made = sbom.made("thicket-x", "0.1.0", "Apache-2.0", [SMBUS, LINUX, NAMELESS], DATE)
    judge = schema.JsonStrictValidator(versions.SchemaVersion.V1_6)
    assert judge.validate_str(made.decode()) is None


def test_a_bill_of_buildroot_gets_a_number_of_its_own_contents() -> None:
    theirs = {
        "bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": "urn:uuid:random",
        "metadata": {"timestamp": "now", "component": {"name": "x"}}, "components": [{}],
    }  # fmt: skip
    one = sbom.normalised(json.dumps(theirs).encode(), DATE)
    theirs["serialNumber"] = "urn:uuid:another"
    assert sbom.normalised(json.dumps(theirs).encode(), DATE) == one
    assert json.loads(one)["metadata"] == {"timestamp": DATE, "component": {"name": "x"}}
    for wrong in (b"", b"[]", b"{}", b'{"bomFormat": "CycloneDX", "metadata": 1}'):
        with pytest.raises(ReleaseError, match="the bill of materials"):
            sbom.normalised(wrong, DATE)


def test_licences_are_one_text_in_which_each_is_once() -> None:
    listed = [
        Licence("b 1", "GPL-2.0", (("COPYING", "the text\n"),)),
        Licence("a 1", "GPL-2.0", (("COPYING", "the text\n"),)),
        Licence("c 1", "", ()),
    ]
    text = licences.text("Thicket", listed).decode()
    assert text.count("\nthe text\n") == 1
    assert "b 1: COPYING\n\nThe same text as of a 1: COPYING" in text
    assert text == licences.text("Thicket", listed[::-1]).decode()
    assert "Apache License" in licences.own("0.1.0").texts[0][1]


def test_the_licence_of_a_package_is_the_one_that_it_brings() -> None:
    found = licences.package("smbus2")
    assert found.licence.startswith("MIT")
    assert any("Permission is hereby granted" in text for _name, text in found.texts)
    with pytest.raises(ReleaseError, match="is not in this environment"):
        licences.package("no-such-package-anywhere")


def test_licences_that_buildroot_collected(tmp_path: Path) -> None:
    (tmp_path / "licenses/zlib-1.3").mkdir(parents=True)
    (tmp_path / "licenses/zlib-1.3/README").write_text("as is")
    (tmp_path / "manifest.csv").write_text(
        '"PACKAGE","VERSION","LICENSE","LICENSE FILES"\n'
        '"zlib","1.3","Zlib","README"\n"x","","",""\n'
    )
    assert licences.of_buildroot(tmp_path) == [
        Licence("zlib 1.3", "Zlib", (("README", "as is"),)),
        Licence("x", "", ()),
    ]
    (tmp_path / "manifest.csv").write_text("other\n1\n")
    with pytest.raises(ReleaseError, match="does not say which licences"):
        licences.of_buildroot(tmp_path)


def test_the_page_runs_nothing_and_names_every_file() -> None:
    one = said(
        File("a.img.xz", index.IMAGE, "rpi64", 5, DIGEST, 10),
        File("a.patch", index.DELTA, "rpi64", 5, DIGEST, 0, "0.0.9"),
    )
    text = page.text(one, "Update signer <release>").decode()
    assert "<script" not in text
    assert "Update signer &lt;release&gt;" in text
    assert all(f'href="{file.name}"' in text for file in one.files)
    assert "It is not signed" in page.text(one, None).decode()
    assert "openssl" not in page.text(one, None).decode()

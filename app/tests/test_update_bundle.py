# SPDX-License-Identifier: Apache-2.0
"""The file of a bundle: manifest, hash tree and end; and what is wrong with one."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from bundles_for_tests import MANIFEST, payload, signed, unsigned, update_key
from fleet_for_tests import one_fleet
from hypothesis import given
from hypothesis import strategies as st

from thicket.trust import update_signer
from thicket.trust.update_signer import SignerRefusedError
from thicket.update import bundle, manifest, verity
from thicket.update.bundle import DamagedError, UnsignedError
from thicket.update.errors import BundleError
from thicket.update.manifest import MAX_SIZE, Verity
from thicket.update.verity import BLOCK

# -- the hash tree


@pytest.mark.parametrize("blocks", [2, 3, 127, 128, 129, 300])
def test_veritysetup_takes_the_tree(blocks: int, tmp_path: Path) -> None:
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
    if not shutil.which("veritysetup", path=path):
        pytest.skip("no veritysetup")
    data, named = payload(blocks)
    assert named.size == verity.tree_bytes(blocks * BLOCK) == len(data) - blocks * BLOCK
    file = tmp_path / "file"

    def verify(content: bytes) -> int:
        file.write_bytes(content)
        return subprocess.run(
            ["veritysetup", "verify", "--no-superblock", "--hash=sha256", f"--salt={named.salt}",
             f"--data-blocks={blocks}", f"--hash-offset={blocks * BLOCK}", file, file, named.root],
            env={**os.environ, "PATH": path}, capture_output=True, check=False,
        ).returncode  # fmt: skip

    assert verify(data) == 0
    broken = bytearray(data)
    broken[-BLOCK] ^= 1
    assert verify(bytes(broken)) != 0


def test_the_tree_over_several_levels() -> None:
    """128 hashes make a block: 16385 blocks are the first that need three levels."""
    assert verity.tree_bytes(2 * BLOCK) == BLOCK
    assert verity.tree_bytes(128 * BLOCK) == BLOCK
    assert verity.tree_bytes(129 * BLOCK) == 3 * BLOCK
    assert verity.tree_bytes(16384 * BLOCK) == 129 * BLOCK
    assert verity.tree_bytes(16385 * BLOCK) == (129 + 2 + 1) * BLOCK


def test_a_file_that_ends_too_early() -> None:
    with pytest.raises(BundleError, match="ends after 8292 bytes"):
        verity.tree(io.BytesIO(bytes(2 * BLOCK + 100)), 4 * BLOCK, bytes(32))


# -- the manifest


def with_tree() -> manifest.Manifest:
    return MANIFEST._replace(verity=Verity("0a" * 32, "0b" * 32, 4096))


def test_a_manifest_is_read_as_it_was_written() -> None:
    for one in (MANIFEST, with_tree(), MANIFEST._replace(hook="", images=(), meta={})):
        assert manifest.read(one.text()) == one
    assert MANIFEST.epoch == 3


def test_the_text_of_a_manifest() -> None:
    """The bytes of bundles do not change by accident."""
    boot, root = MANIFEST.images
    assert with_tree().text().decode() == (
        "[update]\ncompatible=thicket-x86_64\nversion=0.1.0\nbuild=0123456789ab\n"
        "\n[bundle]\nformat=verity\n"
        f"verity-hash={'0a' * 32}\nverity-salt={'0b' * 32}\nverity-size=4096\n"
        "\n[hooks]\nfilename=hook\n"
        f"\n[image.boot]\nsha256={boot.sha256}\nsize=67108864\nhooks=post-install\n"
        "filename=boot.vfat\n"
        f"\n[image.rootfs]\nsha256={root.sha256}\nsize=41943040\nfilename=root.img\n"
        f"\n[meta.thicket]\nepoch=3\nroot={'5a' * 32}\n"
    )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("format=verity", "format=plain", "format is plain: Thicket takes verity only"),
        ("format=verity\n", "", "format is not named"),
        ("[bundle]\n", "[bundle]\nformat=plain\n", "not one more key: format"),
        ("version=0.1.0\n", "", "does not name version"),
        ("version=0.1.0", "version=", "version has no plain value"),
        ("version=0.1.0", "version= 0.1.0", "no plain value"),
        ("version=0.1.0", "version=0.1.0 ", "no plain value"),
        ("version=0.1.0", "version =0.1.0", "not one more key"),
        ("version=0.1.0", "version[de]=0.1.0", "not one more key"),
        ("version=0.1.0", r"version=0.1\n0", "characters that none has"),
        ("version=0.1.0", "version=0.1.0\r", "characters that none has"),
        ("version=0.1.0", "version=0.1.ü", "characters that none has"),
        ("version=0.1.0", "# version\nversion=0.1.0", "not one more key"),
        ("version=0.1.0", "version=0.1.0\nmin-rauc-version=1.15", "not known here"),
        ("[bundle]", "[update]", r"not one more group: \[update\]"),
        ("[bundle]", "[Bundle]", "not one more group"),
        ("[bundle]", "[bundle", "not one more group"),
        ("[hooks]", "[handler]", "not known here"),
        ("[hooks]\n", "[hooks]\nhooks=install-check\n", "not known here"),
        ("filename=hook", "filename=../hook", "no name of a file"),
        ("filename=root.img", "filename=/root.img", "no name of a file"),
        ("filename=root.img", "filename=.root", "no name of a file"),
        ("size=41943040", "size=041943040", "no number"),
        ("size=41943040", "size=-1", "no number"),
        ("size=41943040", "size=4194304000000", "no number"),
        ("hooks=post-install", "hooks=uninstall", "not known: uninstall"),
        ("image.rootfs", "image.root.fs", "no class of slots"),
        ("\n[image.rootfs]", "[image.rootfs]", "not known here"),
        ("5a\n", "5a", "not known here"),
        ("epoch=3\n", "epoch=3\n\n", "not known here"),
        ("verity-salt=0b", "verity-salt=0B", "verity-salt in the manifest is no SHA-256"),
        ("verity-hash=0a", "verity-hash=0", "verity-hash in the manifest is no SHA-256"),
        ("verity-size=4096\n", "", "does not name verity-size"),
    ],
)  # fmt: skip
def test_a_manifest_of_another_form_is_refused(old: str, new: str, words: str) -> None:
    text = with_tree().text().decode()
    assert text.count(old) == 1
    with pytest.raises(BundleError, match=words):
        manifest.read(text.replace(old, new).encode())


def test_a_manifest_that_is_too_large() -> None:
    with pytest.raises(BundleError, match="at most 65536"):
        manifest.read(b"[update]\n" + b"a=b\n" * MAX_SIZE)
    many = "".join(f"[g{n}]\n" for n in range(100))
    with pytest.raises(BundleError, match="not one more group"):
        manifest.read(many.encode())


def test_a_manifest_without_epoch() -> None:
    for meta in ({}, {"thicket": {"other": "1"}}, {"thicket": {"epoch": "x"}}):
        with pytest.raises(BundleError, match="epoch"):
            _ = MANIFEST._replace(meta=meta).epoch


def test_the_hash_of_the_root() -> None:
    assert MANIFEST.root == "5a" * 32
    assert MANIFEST._replace(meta={"thicket": {"epoch": "1"}}).root == ""
    with pytest.raises(BundleError, match="root hash"):
        _ = MANIFEST._replace(meta={"thicket": {"root": "5a" * 31}}).root


@given(st.binary(max_size=400) | st.text(max_size=200).map(str.encode))
def test_a_manifest_is_its_text_or_nothing(data: bytes) -> None:
    for start in (b"", with_tree().text(), with_tree().text()[:60]):
        try:
            found = manifest.read(start + data)
        except BundleError:
            continue
        assert found.text() == start + data


# -- the whole file


@cache
def one() -> bytes:
    """The same bytes every time, which two signatures never have."""
    return signed()


def read(data: bytes) -> bundle.Bundle:
    return bundle.read(io.BytesIO(data))


def check(data: bytes) -> None:
    file = io.BytesIO(data)
    found = bundle.read(file)
    bundle.check_contents(file, found.contents, found.verity)


def test_an_unsigned_bundle() -> None:
    found = read(unsigned())
    assert found.message is None
    assert found.manifest.version == "0.1.0"
    check(unsigned())
    with pytest.raises(UnsignedError, match="not signed: `thicket update sign"):
        bundle.check_signer(found, one_fleet().fleet)


def test_a_signed_bundle() -> None:
    found = read(signed())
    assert found.manifest == read(unsigned()).manifest
    assert bundle.check_signer(found, one_fleet().fleet) == "Update signer release"
    check(signed())


def test_only_the_end_differs_when_it_is_signed() -> None:
    assert signed()[: read(signed()).payload] == unsigned()[: read(unsigned()).payload]


def test_another_fleets_signer() -> None:
    with pytest.raises(SignerRefusedError, match="signed for another fleet"):
        bundle.check_signer(read(signed(update_key(one_fleet("other")))), one_fleet().fleet)


def test_a_tampered_payload() -> None:
    data = bytearray(signed())
    data[2 * BLOCK + 17] ^= 1
    data[BLOCK] ^= 1
    words = "the images are damaged: 2 of 3 blocks, the first at byte 4096; copy it again, and if"
    with pytest.raises(DamagedError, match=words):
        check(bytes(data))


@pytest.mark.parametrize("at", [5, BLOCK + 17, 3 * BLOCK - 1])
def test_a_tampered_hash_tree(at: int) -> None:
    """In the top, in the level below, and where that is filled up with zeros."""
    data = bytearray(signed(blocks=200))
    data[200 * BLOCK + at] ^= 1
    words = (
        f"the hash tree behind the images is damaged, at byte {200 * BLOCK + at}, and the images"
    )
    with pytest.raises(DamagedError, match=words):
        check(bytes(data))


NOT_SIGNED = "images and hash tree are not those that were signed"


def test_a_hash_tree_that_is_right_for_wrong_data() -> None:
    other, _ = payload(3, seed=2)
    with pytest.raises(DamagedError, match=NOT_SIGNED):
        check(other + signed()[len(other) :])


def test_images_and_hash_tree_that_are_damaged() -> None:
    data = bytearray(signed())
    data[BLOCK] ^= 1
    data[3 * BLOCK] ^= 1
    with pytest.raises(DamagedError, match=NOT_SIGNED):
        check(bytes(data))


def test_a_hash_tree_that_fits_to_more_data_than_there_is() -> None:
    """The tree of 3 blocks is as long as that of 2, and of 2 of them each has its hash."""
    data = signed(blocks=3)
    with pytest.raises(DamagedError, match=NOT_SIGNED):
        check(data[: 2 * BLOCK] + data[3 * BLOCK :])


@pytest.mark.parametrize("left", [0, 1, BLOCK, 2 * BLOCK, 3 * BLOCK - 1])
@pytest.mark.parametrize("flipped", [False, True])
def test_a_hash_tree_that_is_cut_off_behind_the_signature(left: int, flipped: bool) -> None:
    """The file became shorter when its end had been read."""
    data = bytearray(signed(blocks=200))
    found = read(bytes(data))
    data[BLOCK] ^= flipped
    words = NOT_SIGNED if flipped else f"damaged, at byte {found.contents + left}"
    with pytest.raises(DamagedError, match=words):
        bundle.check_contents(
            io.BytesIO(data[: found.contents + left]), found.contents, found.verity
        )


def test_a_hash_tree_of_another_size() -> None:
    data, named = payload(129)
    for size in (0, BLOCK, 2 * BLOCK, 4 * BLOCK, 128 * BLOCK):
        text = MANIFEST._replace(verity=named._replace(size=size)).text()
        with pytest.raises(BundleError, match="does not go with a payload of"):
            read(data + bundle.end(update_key().message(text)))


def test_something_behind_the_end() -> None:
    for more in (b"\0", b"\n", bytes(4096), b"x" * 70_000):
        with pytest.raises(BundleError, match="with something behind its end"):
            read(signed() + more)
    # a second end behind the first one: what is in between would have to be images
    data = signed()
    with pytest.raises(BundleError):
        check(data + bytes(-len(data) % BLOCK) + data[3 * BLOCK + BLOCK :])


def test_a_tampered_manifest() -> None:
    data = signed().replace(b"version=0.1.0", b"version=0.2.0")
    with pytest.raises(SignerRefusedError) as caught:
        bundle.check_signer(read(data), one_fleet().fleet)
    assert caught.value.reason == update_signer.CHANGED


def test_a_bundle_whose_signature_was_replaced_by_its_manifest() -> None:
    with pytest.raises(UnsignedError):
        bundle.check_signer(read(unsigned()), one_fleet().fleet)


@pytest.mark.parametrize("gone", [1, 8, 100, 4096, 8192])
def test_a_bundle_that_is_cut_off(gone: int) -> None:
    for data in (signed(), unsigned()):
        with pytest.raises(BundleError, match=r"cut off|to 536870912 are read"):
            read(data[:-gone])


def test_a_bundle_without_its_middle() -> None:
    data = signed(blocks=129)
    with pytest.raises(BundleError, match="part of the file is missing"):
        read(data[:BLOCK] + data[2 * BLOCK :])
    data = signed(blocks=128)  # where 127 have a tree of the same length
    with pytest.raises(DamagedError):
        check(data[:BLOCK] + data[2 * BLOCK :])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "this is an empty file, and a bundle is needed"),
        (b"MZ" + bytes(20_000), "this is something else"),
        (b"hsqs", "cut off"),
        (b"hsqs" + bytes(20_000), "cut off"),
        (b"hsqs" + b"\xff" * 20_000, "cut off"),
    ],
)
def test_what_is_no_bundle(data: bytes, words: str) -> None:
    with pytest.raises(BundleError, match=words):
        read(data)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.write(b"hsqs")
        file.truncate(bundle.MAX_BYTES + 1)  # sparse
    with path.open("rb") as file, pytest.raises(BundleError, match="this is no bundle: 512 MiB"):
        bundle.read(file)


def test_a_manifest_without_tree_is_no_bundle() -> None:
    data, _ = payload()
    with pytest.raises(BundleError, match="names no hash tree"):
        read(data + bundle.end(MANIFEST.text()))


PARTS = ("squashfs", "images", "hash tree", "signature", "size")


@cache
def parts() -> dict[str, range]:
    """Return where the parts of a bundle are."""
    found = read(one())
    size = len(one())
    places = (0, 96, found.contents, found.payload, size - 8, size)
    return {name: range(places[at], places[at + 1]) for at, name in enumerate(PARTS)}


def installable(data: bytes) -> bool:
    """Whether everything that is asked before a slot is written finds a bundle good."""
    try:
        bundle.check_signer(read(data), one_fleet().fleet)
        check(data)
    except (BundleError, SignerRefusedError) as error:
        assert str(error)
        return False
    return True


@pytest.mark.parametrize("part", PARTS)
@given(choice=st.data())
def test_every_changed_byte_is_found(part: str, choice: st.DataObject) -> None:
    """Wherever one byte of a signed bundle changes, something says so."""
    data = bytearray(one())
    assert installable(bytes(data))
    at = choice.draw(st.sampled_from(parts()[part]))
    data[at] ^= choice.draw(st.integers(1, 255))
    assert not installable(bytes(data))


def test_every_byte_of_the_end_counts() -> None:
    data = bytearray(one())
    for at in range(parts()["signature"].start, len(data)):
        data[at] ^= 1 << at % 8
        assert not installable(bytes(data)), at
        data[at] ^= 1 << at % 8
    assert installable(bytes(data))


@given(st.data())
def test_every_cut_is_found(choice: st.DataObject) -> None:
    data = one()
    assert not installable(data[: choice.draw(st.integers(0, len(data) - 1))])


@given(st.data())
def test_a_piece_that_is_missing_comes_twice_or_is_of_another_place_is_found(
    choice: st.DataObject,
) -> None:
    """What a copy over a bad line, or a file system that was cut off, may leave."""
    data = one()
    at, end = sorted(choice.draw(st.integers(0, len(data))) for _ in range(2))
    piece = data[at:end]
    place = choice.draw(st.integers(0, len(data) - len(piece)))
    for changed in (
        data[:at] + data[end:],
        data[:end] + piece + data[end:],
        data[:at] + bytes(len(piece)) + data[end:],
        data[:at] + data[place : place + len(piece)] + data[end:],
    ):
        assert changed == data or not installable(changed)

# SPDX-License-Identifier: Apache-2.0
"""Files are known for what they are, whoever made them and whatever they are called."""

from __future__ import annotations

import io
from hashlib import sha256

import pytest
from apps_for_tests import ABOUT
from bundles_for_tests import MANIFEST, signed, unsigned, update_key
from fleet_for_tests import NOW, one_fleet
from hypothesis import given
from hypothesis import strategies as st

from authority.signing import sign_change, sign_revocations
from thicket.trust import kinds, openssl, signed_file
from thicket.trust.certificates import pem
from thicket.trust.change import Change
from thicket.trust.revocations import Revocations, pack_parts
from thicket.update.offer import Offer, Order, Patch, Plan, Target
from thicket.update.patch import Header

FLEET = one_fleet()
DIGEST = sha256(b"").hexdigest()


def by_root(digest: bytes) -> bytes:
    return openssl.sign(FLEET.root_key, digest)


LIST = sign_revocations(Revocations(1, NOW, frozenset({"x"})), FLEET.fleet.identifier, by_root)
CHANGE = sign_change(
    Change(1, NOW, "correct horse", False, frozenset()), FLEET.fleet.identifier, by_root
)
OFFER = Offer(
    FLEET.fleet.identifier,
    1,
    Target("thicket-x86_64", "1.0", 0, 9000, DIGEST),
    (Patch("", 10, DIGEST, DIGEST),),
    Plan(1, 60, (100,), 0, None),
)
ORDER = Order(FLEET.fleet.identifier, 1, b"", "pause")
APP = b"hsqs" + bytes(4092) + signed_file.pack(update_key().message(ABOUT.text()))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "an empty file"),
        (unsigned(), "a bundle that is not signed (`thicket update sign`)"),
        (signed(), "a signed bundle"),
        (APP, kinds.AN_APPLICATION),
        (Header(9000, DIGEST, None, ()).packed(), kinds.A_PATCH),
        (update_key().message(OFFER.text()), "an offer (`thicket update offer`, `send`)"),
        (update_key().message(ORDER.text()), "an order (`thicket update order`)"),
        (update_key().message(MANIFEST.text()), "a signed bundle"),
        (update_key().message(b"something"), "a message"),
        (LIST, kinds.LISTS),
        (pack_parts([LIST]), kinds.LISTS),
        (pack_parts([LIST, LIST]), kinds.LISTS),
        (CHANGE, kinds.CHANGE),
        (pem(FLEET.fleet.root.der).encode(), "a certificate"),
        (signed()[:-1], kinds.CUT_OFF),
        (b"hsqs", kinds.CUT_OFF),
        (b"\x30\x82", "a damaged file"),
        (b"mesh = 1\n", "a text"),
        (b"\0" * 100, "something else"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # signatures differ each time
)
def test_kinds(data: bytes, kind: str) -> None:
    assert kinds.kind(io.BytesIO(data)) == kind


@given(st.binary(max_size=200), st.sampled_from([b"", b"hsqs", b"\x30", kinds.PATCH]))
def test_whatever_comes_has_a_name(data: bytes, beginning: bytes) -> None:
    assert kinds.kind(io.BytesIO(beginning + data))

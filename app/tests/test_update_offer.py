# SPDX-License-Identifier: Apache-2.0
"""Offers and orders: one form, bounds on every field, and whose they are."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest
from bundles_for_tests import MANIFEST, update_key
from fleet_for_tests import one_fleet
from hypothesis import given
from hypothesis import strategies as st

from thicket.trust import update_signer
from thicket.trust.update_signer import SignerRefusedError
from thicket.update import offer as offers
from thicket.update.bundle import MAX_BYTES
from thicket.update.offer import CHUNK, Offer, OfferError, Order, Patch, Plan, Target

FLEET = one_fleet().fleet
WHOLE = Patch("", 30_000_000, "aa" * 32, "bb" * 32)
OFFER = Offer(
    FLEET.identifier,
    1_795_975_200,
    Target("thicket-rpi64", "0.2.0", 3, 70_000_000, "cc" * 32),
    (Patch("dd" * 32, 90_000, "ee" * 32, "ff" * 32), WHOLE),
    Plan(("n-0123456789ab",), 600, (10, 50, 100), 2, (23 * 60 + 30, 4 * 60)),
)
ORDER = Order(FLEET.identifier, 1_795_975_201, OFFER.identifier, "pause")


def changed(text: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return a content with its object changed, in the form in which it is written."""
    line, _, rest = text.partition(b"\n")
    members = json.loads(rest)
    change(members)
    return line + b"\n" + json.dumps(members, sort_keys=True, separators=(",", ":")).encode()


def test_the_text_of_an_offer() -> None:
    """The bytes do not change by accident: nodes of another version read them."""
    assert OFFER.text().decode() == (
        "thicket update offer 1\n"
        f'{{"bundle":{{"compatible":"thicket-rpi64","epoch":3,"sha256":"{"cc" * 32}",'
        '"size":70000000,"version":"0.2.0"},'
        f'"fleet":"{FLEET.identifier.hex()}","number":1795975200,'
        f'"patches":[{{"base":"{"dd" * 32}","chunks":"{"ff" * 32}","sha256":"{"ee" * 32}",'
        f'"size":90000}},{{"base":"","chunks":"{"bb" * 32}","sha256":"{"aa" * 32}",'
        '"size":30000000}],"plan":{"canaries":["n-0123456789ab"],"failures":2,'
        '"waves":[10,50,100],"well":600,"window":["23:30","04:00"]}}'
    )
    assert OFFER.identifier == sha256(OFFER.text()).digest()


APP = OFFER._replace(bundle=Target("", "1.2", 0, 4096, "cc" * 32, "readings"))


def test_an_offer_of_an_application() -> None:
    assert (
        APP.text()
        .decode()
        .startswith(
            'thicket update offer 1\n{"bundle":{"application":"readings","compatible":"","epoch":0,'
        )
    )
    assert offers.parse_offer(APP.text()) == APP
    assert (APP.bundle.subject, APP.bundle.words) == ("app/readings", "readings 1.2")
    assert (OFFER.bundle.subject, OFFER.bundle.words) == (
        "image/thicket-rpi64", "thicket-rpi64 0.2.0"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("bundle.application", "", "application is not 1 to 64 of the characters"),
        ("bundle.application", "a_b", "application is not 1 to 64 of the characters"),
        ("bundle.application", "a/b", "application is not 1 to 64 of the characters"),
        ("bundle.application", "a" * 65, "application is not 1 to 64 of the characters"),
        ("bundle.application", 5, "application is not 1 to 64 of the characters"),
        ("bundle.compatible", "thicket-rpi64", "neither compatible nor epoch"),
        ("bundle.epoch", 1, "neither compatible nor epoch"),
        ("bundle.epoch", False, "not in the one form"),
    ],
)
def test_what_an_offer_of_an_application_may_not_say(name: str, value: object, words: str) -> None:
    with pytest.raises(OfferError, match=words):
        offers.parse_offer(changed(APP.text(), set_in(name, value)))


def test_the_text_of_an_order() -> None:
    assert ORDER.text().decode() == (
        "thicket update order 1\n"
        f'{{"fleet":"{FLEET.identifier.hex()}","number":1795975201,'
        f'"offer":"{OFFER.identifier.hex()}","order":"pause"}}'
    )


def test_a_signed_offer_and_order() -> None:
    packed = update_key().message(OFFER.text())
    found, message = offers.read_offer(packed)
    assert (found, message.content) == (OFFER, OFFER.text())
    assert offers.check_offer(packed, FLEET) == OFFER
    packed = update_key().message(ORDER.text())
    assert offers.read_order(packed)[0] == ORDER
    assert offers.check_order(packed, FLEET) == ORDER


@pytest.mark.parametrize("board", ["rpi64", "x86_64", "standin", "standin-rpi64"])
def test_an_offer_for_every_board(board: str) -> None:
    offer = OFFER._replace(bundle=OFFER.bundle._replace(compatible=f"thicket-{board}"))
    assert offers.parse_offer(offer.text()) == offer


def test_the_largest_offer_fits() -> None:
    patches = tuple(Patch(f"{n:064x}", MAX_BYTES, "a" * 64, "b" * 64) for n in range(16))
    hosts = tuple(f"n-{n:012x}" for n in range(offers.MAX_CANARIES))
    waves = (*range(1, offers.MAX_WAVES), 100)
    plan = Plan(hosts, offers.MAX_WELL, waves, offers.MAX_FAILURES, (1, 0))
    target = Target("c" * 64, "v" * 64, offers.MAX_EPOCH, MAX_BYTES, "d" * 64)
    largest = Offer(FLEET.identifier, offers.MAX_NUMBER, target, patches, plan)
    assert offers.check_offer(update_key().message(largest.text()), FLEET) == largest


def set_in(name: str, value: object) -> Callable[[dict[str, Any]], object]:
    """Return a change of one member, named by its path: ``plan.waves``, ``patches.0.size``."""

    def change(members: dict[str, Any]) -> None:
        *path, last = name.split(".")
        place: Any = members
        for part in path:
            place = place[int(part)] if isinstance(place, list) else place[part]
        place[last] = value

    return change


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("more", 1, "it does not have these members alone"),
        ("plan.more", 1, "plan does not have these members alone"),
        ("bundle", [], "bundle does not have these members alone"),
        ("patches.0.more", 1, "a patch does not have these members alone"),
        ("fleet", "00", "fleet is not 40 hexadecimal digits"),
        ("fleet", "A" * 40, "fleet is not 40 hexadecimal digits"),
        ("number", 0, "number is no number from 1 to"),
        ("number", 1 << 32, "number is no number from 1 to"),
        ("number", True, "number is no number from 1 to"),
        ("number", 1.0, "number is no number from 1 to"),
        ("number", "1", "number is no number from 1 to"),
        ("bundle.compatible", "", "compatible is not 1 to 64 of the characters"),
        ("bundle.compatible", "a" * 65, "compatible is not 1 to 64 of the characters"),
        ("bundle.compatible", "thicket\n", "compatible is not 1 to 64 of the characters"),
        ("bundle.version", "0 1", "version is not 1 to 64 of the characters"),
        ("bundle.version", "\x1b[2J", "version is not 1 to 64 of the characters"),
        ("bundle.version", "ü", "version is not 1 to 64 of the characters"),
        ("bundle.epoch", -1, "epoch is no number from 0"),
        ("bundle.size", 0, "size of the bundle is no number from 1"),
        ("bundle.size", MAX_BYTES + 1, "size of the bundle is no number from 1"),
        ("bundle.sha256", "cc" * 31, "sha256 of the bundle is not 64 hexadecimal digits"),
        ("patches", [], "patches is no list of 1 to 16"),
        ("patches", [WHOLE._asdict()] * 17, "patches is no list of 1 to 16"),
        ("patches", [WHOLE._asdict()] * 2, "two patches have the same base"),
        ("patches", {}, "patches is no list"),
        ("patches.0.base", "dd", "base of a patch is not 64 hexadecimal digits"),
        ("patches.0.base", None, "base of a patch is not 64 hexadecimal digits"),
        ("patches.0.size", 0, "size of a patch is no number from 1"),
        ("patches.0.sha256", "E" * 64, "sha256 of a patch is not 64 hexadecimal digits"),
        ("patches.0.chunks", 5, "chunks of a patch is not 64 hexadecimal digits"),
        ("plan.canaries", -1, "canaries is no number from 0 to 512"),
        ("plan.canaries", 513, "canaries is no number from 0 to 512"),
        ("plan.canaries", [], "canaries is no list of 1 to 512"),
        ("plan.canaries", ["n-0123456789ab"] * 2, "a canary is named twice"),
        ("plan.canaries", ["gate"], "a canary is not named like n-0123456789ab"),
        ("plan.canaries", ["n-0123456789AB"], "is not 12 hexadecimal digits"),
        ("plan.failures", -1, "failures is no number from 0"),
        ("plan.failures", 10_001, "failures is no number from 0"),
        ("plan.well", -1, "well is no number from 0 to 604800"),
        ("plan.well", 604_801, "well is no number from 0 to 604800"),
        ("plan.waves", [], "waves is no list"),
        ("plan.waves", [10, 50], "waves are percent that grow and end with 100"),
        ("plan.waves", [50, 10, 100], "waves are percent that grow"),
        ("plan.waves", [10, 10, 100], "waves are percent that grow"),
        ("plan.waves", [0, 100], "a wave is no number from 1 to 100"),
        ("plan.waves", [*range(1, 17), 100], "waves is no list of 1 to 16"),
        ("plan.window", ["23:30"], "window is not two different times"),
        ("plan.window", ["23:30", "23:30"], "window is not two different times"),
        ("plan.window", ["23:30", 4], "window is not two different times"),
        ("plan.window", ["24:00", "04:00"], "'24:00' is no time of the day"),
        ("plan.window", ["4:00", "05:00"], "'4:00' is no time of the day"),
        ("plan.window", ["00:60", "05:00"], "'00:60' is no time of the day"),
        ("plan.window", "23:30", "window is no list"),
    ],
)
def test_an_offer_out_of_bounds_is_refused(name: str, value: object, words: str) -> None:
    content = changed(OFFER.text(), set_in(name, value))
    with pytest.raises(OfferError, match=words) as caught:
        offers.parse_offer(content)
    assert caught.value.code == "bad-offer"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("order", "stop", "order is none of pause, resume, abort, back"),
        ("order", ["pause"], "order is none of"),
        ("offer", "00", "offer is not 64 hexadecimal digits"),
        ("offer", None, "offer is not 64 hexadecimal digits"),
        ("number", -1, "number is no number"),
        ("more", 1, "it does not have these members alone: fleet, number, offer, order"),
    ],
)
def test_an_order_out_of_bounds_is_refused(name: str, value: object, words: str) -> None:
    content = changed(ORDER.text(), set_in(name, value))
    with pytest.raises(OfferError, match=words) as caught:
        offers.parse_order(content)
    assert caught.value.code == "bad-order"


def test_another_form_of_the_same_is_refused() -> None:
    text = OFFER.text()
    for other in (
        text.replace(b'"number":', b'"number": '),
        text + b"\n",
        text.replace(b'"failures":2', b'"failures":2,"failures":2'),
        text.replace(b"thicket-rpi64", b"thicket\\u002drpi64"),
        text.replace(b'"epoch":3', b'"epoch":3e0'),
        text.replace(b'"well":600', b'"well":600.0'),
    ):
        with pytest.raises(OfferError):
            offers.parse_offer(other)
    with pytest.raises(OfferError, match="the one form"):
        offers.parse_offer(text + b" ")


@pytest.mark.parametrize(
    "rest", [b"", b"{", b"[" * 50_000, b"9" * 60_000, b"NaN", b"\xff", b'"' + b"x" * 70_000]
)
def test_what_is_no_object_is_refused(rest: bytes) -> None:
    with pytest.raises(OfferError):
        offers.parse_offer(b"thicket update offer 1\n" + rest)


def test_an_order_is_no_offer_and_a_manifest_is_neither() -> None:
    """All of them are signed by the same keys."""
    for content in (ORDER.text(), MANIFEST.text(), b""):
        with pytest.raises(OfferError, match=r"this is .*, and the `offer` in the folder that"):
            offers.check_offer(update_key().message(content), FLEET)
    for content in (OFFER.text(), MANIFEST.text()):
        with pytest.raises(OfferError, match=r"this is .*, and what `thicket update order`"):
            offers.check_order(update_key().message(content), FLEET)


def test_an_order_for_whichever_offer_is_in_force() -> None:
    order = ORDER._replace(offer=b"", order="abort")
    assert offers.parse_order(order.text()) == order


def test_an_offer_for_another_fleet() -> None:
    other = one_fleet("other")
    with pytest.raises(SignerRefusedError) as refused:
        offers.check_offer(update_key(other).message(OFFER.text()), FLEET)
    assert refused.value.reason == update_signer.OTHER_FLEET
    foreign = OFFER._replace(fleet=other.fleet.identifier)
    with pytest.raises(OfferError, match="for another fleet than 'test'") as caught:
        offers.check_offer(update_key().message(foreign.text()), FLEET)
    assert caught.value.code == "other-fleet"
    for_other = ORDER._replace(fleet=other.fleet.identifier)
    with pytest.raises(OfferError, match="the order is for another fleet"):
        offers.check_order(update_key().message(for_other.text()), FLEET)


def test_a_tampered_or_revoked_offer() -> None:
    packed = update_key().message(OFFER.text())
    with pytest.raises(SignerRefusedError) as caught:
        offers.check_offer(packed.replace(b'"well":600', b'"well":100'), FLEET)
    assert caught.value.reason == update_signer.CHANGED
    with pytest.raises(SignerRefusedError) as caught:
        offers.check_offer(packed, FLEET, revoked={"Update signer release"})
    assert caught.value.reason == update_signer.REVOKED
    with pytest.raises(OfferError, match="this is a damaged file, and the `offer`"):
        offers.check_offer(packed[:-1], FLEET)


def test_the_description_of_a_patch() -> None:
    data = bytes(range(256)) * 300  # 2 chunks and a part of one
    patch, listed = offers.describe(io.BytesIO(data), "ab" * 32)
    assert patch.chunk_count == 3
    assert listed == b"".join(
        sha256(data[at : at + CHUNK]).digest() for at in range(0, len(data), CHUNK)
    )
    assert patch == Patch(
        "ab" * 32, len(data), sha256(data).hexdigest(), sha256(listed).hexdigest()
    )


# -- any

HASHES = st.binary(min_size=32, max_size=32).map(bytes.hex)
PATCHES = st.lists(
    st.builds(Patch, HASHES | st.just(""), st.integers(1, MAX_BYTES), HASHES, HASHES),
    min_size=1, max_size=offers.MAX_PATCHES, unique_by=lambda patch: patch.base,
).map(tuple)  # fmt: skip
HOSTS = st.binary(min_size=6, max_size=6).map(lambda identity: "n-" + identity.hex())
WORDS = st.text("abcz019-_", min_size=1, max_size=64)
MINUTES = st.integers(0, 24 * 60 - 1)
PLANS = st.builds(
    Plan,
    st.integers(0, offers.MAX_CANARIES)
    | st.lists(HOSTS, min_size=1, max_size=5, unique=True).map(tuple),
    st.integers(0, offers.MAX_WELL),
    st.sets(st.integers(1, 99), max_size=offers.MAX_WAVES - 1).map(lambda s: (*sorted(s), 100)),
    st.integers(0, offers.MAX_FAILURES),
    st.none() | st.tuples(MINUTES, MINUTES).filter(lambda both: both[0] != both[1]),
)
SIZES = st.integers(1, MAX_BYTES)
TARGETS = st.builds(
    Target, WORDS, WORDS, st.integers(0, offers.MAX_EPOCH), SIZES, HASHES, st.just("")
) | st.builds(
    Target, st.just(""), WORDS, st.just(0), SIZES, HASHES,
    st.text("abcz019-", min_size=1, max_size=64),
)  # fmt: skip
FLEETS = st.binary(min_size=20, max_size=20)
NUMBERS = st.integers(1, offers.MAX_NUMBER)


@given(st.builds(Offer, FLEETS, NUMBERS, TARGETS, PATCHES, PLANS))
def test_every_offer_is_read_as_it_was_written(offer: Offer) -> None:
    assert offers.parse_offer(offer.text()) == offer


@given(
    st.builds(
        Order,
        FLEETS,
        NUMBERS,
        st.just(b"") | st.binary(min_size=32, max_size=32),
        st.sampled_from(offers.ORDERS),
    )
)
def test_every_order_is_read_as_it_was_written(order: Order) -> None:
    assert offers.parse_order(order.text()) == order


@given(st.data())
def test_a_content_is_its_text_or_nothing(choice: st.DataObject) -> None:
    """Whatever bytes are changed, what is taken is written in no other way."""
    data = bytearray(OFFER.text())
    for _ in range(choice.draw(st.integers(1, 3))):
        at = choice.draw(st.integers(0, len(data) - 1))
        data[at : at + choice.draw(st.integers(0, 3))] = choice.draw(st.binary(max_size=3))
    try:
        found = offers.parse_offer(bytes(data))
    except OfferError:
        return
    assert found.text() == bytes(data)


@given(MINUTES)
def test_minutes_of_the_day(number: int) -> None:
    assert offers.minute(offers.clock(number)) == number

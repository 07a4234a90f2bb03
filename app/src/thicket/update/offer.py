# SPDX-License-Identifier: Apache-2.0
"""What is signed and travels ahead of an update: offers, and orders about them.

Both are messages (``trust.cms``) by an update signer. Their content is a first line, which nothing
else has that such a signer signs, and a JSON object. One form is written and no other is read: a
content is taken if writing anew what was understood gives the same bytes.

An *offer* says which bundle a fleet is to run, from which patches a node makes it, and in which
order nodes take it. It is about one *subject*: the image of a kind of device, or an application.
An *order* holds that up, lets it go on, ends it or turns it back. The larger number wins, of the
offers about one subject and of orders.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from hashlib import sha256
from typing import BinaryIO, NamedTuple, TypeVar

from thicket.base.errors import CodedError
from thicket.trust import cms, kinds
from thicket.trust.cms import CmsError, Message
from thicket.trust.fleet import Fleet
from thicket.trust.update_signer import check_signature
from thicket.trust.verify import Verify, verify_signature
from thicket.update.bundle import MAX_BYTES
from thicket.update.strict import digits, items, members, number

CHUNK = 32768
"""Bytes of a chunk of a patch; the last one has less."""

MAX_PATCHES = 16
MAX_NUMBER = (1 << 32) - 1
MAX_EPOCH = 999_999_999_999
MAX_CANARIES = 512
MAX_FAILURES = 10_000
MAX_WAVES = 16
MAX_WELL = 7 * 24 * 3600
"""Seconds that the canaries and each wave have to be well, at most."""

BAD_OFFER = "bad-offer"
BAD_ORDER = "bad-order"
_NEEDED = {
    BAD_OFFER: (kinds.OFFER, "the `offer` in the folder that `thicket update offer` has made"),
    BAD_ORDER: (kinds.ORDER, "what `thicket update order` has made, NAME.order"),
}
OTHER_FLEET = "other-fleet"

ORDERS = ("pause", "resume", "abort", "back")

IMAGE, APP = "image/", "app/"
"""How subjects begin."""

_FLEET_BYTES = 20
_DIGEST_BYTES = 32
_LONGEST = 64
_KIND = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")
_VERSION = _KIND | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ.+~")
_APP_VERSION = _VERSION | frozenset("!")
_APPLICATION = _KIND - frozenset("_")
_DAY = 24 * 60

T = TypeVar("T")


class OfferError(CodedError):
    """An offer or order is not taken. The text says what was found and what to do.

    The code is ``bad-offer``, ``bad-order``, ``other-fleet`` or ``too-many``.
    """


class Patch(NamedTuple):
    """A file from which a node makes the bundle.

    :ivar base: dm-verity root hash of the root that it is a change of, in 64 hexadecimal digits;
        empty for the whole bundle.
    :ivar size: its bytes.
    :ivar sha256: of the file, in hexadecimal digits.
    :ivar chunks: SHA-256 of its chunk list: the SHA-256s of all chunks, one behind the other.
    """

    base: str
    size: int
    sha256: str
    chunks: str

    @property
    def chunk_count(self) -> int:
        """How many chunks it has."""
        return (self.size + CHUNK - 1) // CHUNK


class Plan(NamedTuple):
    """In which order the nodes of a fleet take an update.

    :ivar canaries: how many nodes take it first, or which, by host name.
    :ivar well: seconds that those of a wave have to be well before the next one begins.
    :ivar waves: percent of the fleet that may have it, wave by wave; the last one is 100.
    :ivar failures: so many nodes may fail; one more ends it.
    :ivar window: minutes of the day (UTC) from and until which nodes may start anew, or None for
        any time; it may go over midnight.
    """

    canaries: int | tuple[str, ...]
    well: int
    waves: tuple[int, ...]
    failures: int
    window: tuple[int, int] | None


class Target(NamedTuple):
    """The signed bundle, or the signed file of an application, that is offered.

    :ivar compatible: the kind of device that it is for; empty for an application, whose file says
        itself where it runs.
    :ivar epoch: the security epoch of an image; 0 for an application.
    :ivar size: its bytes.
    :ivar sha256: of the file, in hexadecimal digits.
    :ivar application: name of the application; empty for an image.
    """

    compatible: str
    version: str
    epoch: int
    size: int
    sha256: str
    application: str = ""

    @property
    def subject(self) -> str:
        """What it is about: ``image/`` and a kind of device, or ``app/`` and an application."""
        return f"{APP}{self.application}" if self.application else f"{IMAGE}{self.compatible}"

    def members(self) -> dict[str, object]:
        """Return what an offer has of it: ``application`` only where it is one."""
        found: dict[str, object] = self._asdict()
        if not self.application:
            del found["application"]
        return found

    @property
    def words(self) -> str:
        """The same for people, with the version."""
        return f"{self.application or self.compatible} {self.version}"


class Offer(NamedTuple):
    """A bundle for a fleet, and how it gets there.

    :ivar fleet: the fleet's identifier.
    :ivar number: when it was made, in Unix seconds; the larger number is the newer offer.
    """

    fleet: bytes
    number: int
    bundle: Target
    patches: tuple[Patch, ...]
    plan: Plan

    @property
    def identifier(self) -> bytes:
        """What stands for this offer (32 bytes), whoever has signed it."""
        return sha256(self.text()).digest()

    def text(self) -> bytes:
        """Return what is signed."""
        plan, window = self.plan, self.plan.window
        named = plan.canaries if isinstance(plan.canaries, int) else list(plan.canaries)
        return kinds.OFFER + _canonical(
            {
                "bundle": self.bundle.members(),
                "fleet": self.fleet.hex(),
                "number": self.number,
                "patches": [patch._asdict() for patch in self.patches],
                "plan": {
                    "canaries": named,
                    "failures": plan.failures,
                    "waves": list(plan.waves),
                    "well": plan.well,
                    "window": window and [clock(minute) for minute in window],
                },
            }
        )


class Order(NamedTuple):
    """What becomes of an offer that was made.

    :ivar fleet: the fleet's identifier.
    :ivar number: as that of an offer; the larger number is the newer order.
    :ivar offer: the offer's identifier; empty for whichever is in force.
    :ivar order: one of ``ORDERS``.
    """

    fleet: bytes
    number: int
    offer: bytes
    order: str

    def text(self) -> bytes:
        """Return what is signed."""
        return kinds.ORDER + _canonical(
            {
                "fleet": self.fleet.hex(),
                "number": self.number,
                "offer": self.offer.hex(),
                "order": self.order,
            }
        )


# -- messages


def read_offer(packed: bytes) -> tuple[Offer, Message]:
    """Read a signed offer; whose it is is not looked at.

    :raises OfferError: it is none.
    """
    message = _read(packed, BAD_OFFER)
    return parse_offer(message.content), message


def check_offer(
    packed: bytes,
    fleet: Fleet,
    *,
    revoked: Collection[str] = (),
    verify: Verify = verify_signature,
) -> Offer:
    """Read a signed offer that counts in a fleet.

    :param revoked: names of devices and signers, as ``Revocations.names`` has them.
    :raises OfferError: it is none, or is for another fleet.
    :raises SignerRefusedError: its signature does not count.
    """
    message = _read(packed, BAD_OFFER)
    check_signature(message, fleet, revoked=revoked, verify=verify)
    offer = parse_offer(message.content)
    _check_fleet(offer.fleet, fleet, "offer")
    return offer


def read_order(packed: bytes) -> tuple[Order, Message]:
    """Read a signed order; whose it is is not looked at.

    :raises OfferError: it is none.
    """
    message = _read(packed, BAD_ORDER)
    return parse_order(message.content), message


def check_order(
    packed: bytes,
    fleet: Fleet,
    *,
    revoked: Collection[str] = (),
    verify: Verify = verify_signature,
) -> Order:
    """Read a signed order that counts in a fleet.

    :param revoked: names of devices and signers, as ``Revocations.names`` has them.
    :raises OfferError: it is none, or is for another fleet.
    :raises SignerRefusedError: its signature does not count.
    """
    message = _read(packed, BAD_ORDER)
    check_signature(message, fleet, revoked=revoked, verify=verify)
    order = parse_order(message.content)
    _check_fleet(order.fleet, fleet, "order")
    return order


def _read(packed: bytes, code: str) -> Message:
    import io

    line, maker = _NEEDED[code]
    try:
        message = cms.read(packed)
    except CmsError:
        message = None
    if message is None or not message.content.startswith(line):
        found = kinds.kind(io.BytesIO(packed))
        raise OfferError(code, f"this is {found}, and {maker} is needed")
    return message


def _check_fleet(identifier: bytes, fleet: Fleet, what: str) -> None:
    if identifier != fleet.identifier:
        raise OfferError(
            OTHER_FLEET, f"the {what} is for another fleet than {fleet.name!r}: make one for it"
        )


# -- contents


def parse_offer(content: bytes) -> Offer:
    """Read what is signed of an offer.

    :raises OfferError: it is not in the form that :meth:`Offer.text` writes, or out of bounds.
    """
    return _parse(content, kinds.OFFER, _offer, Offer.text, (BAD_OFFER, "offer"))


def parse_order(content: bytes) -> Order:
    """Read what is signed of an order.

    :raises OfferError: it is not in the form that :meth:`Order.text` writes, or out of bounds.
    """
    return _parse(content, kinds.ORDER, _order, Order.text, (BAD_ORDER, "order"))


def describe(file: BinaryIO, base: str) -> tuple[Patch, bytes]:
    """Return what an offer says of a patch, and its chunk list.

    :param file: the patch, at its beginning.
    :param base: see :class:`Patch`.
    """
    whole, hashes, size = sha256(), bytearray(), 0
    while chunk := file.read(CHUNK):
        whole.update(chunk)
        hashes += sha256(chunk).digest()
        size += len(chunk)
    listed = bytes(hashes)
    return Patch(base, size, whole.hexdigest(), sha256(listed).hexdigest()), listed


def minute(text: str) -> int:
    """Return the minute of the day of a time like ``23:30``.

    :raises ValueError: it is none.
    """
    hours, colon, minutes = text.partition(":")
    if colon and len(text) == 5 and text.isascii() and (hours + minutes).isdecimal():
        found = int(hours) * 60 + int(minutes)
        if found < _DAY and clock(found) == text:
            return found
    raise ValueError(f"{text[:20]!r} is no time of the day like 23:30")


def clock(minute_of_day: int) -> str:
    """Return a minute of the day like ``23:30``."""
    return f"{minute_of_day // 60:02}:{minute_of_day % 60:02}"


def _canonical(said: dict[str, object]) -> bytes:
    import json

    return json.dumps(said, sort_keys=True, separators=(",", ":")).encode("ascii")


def _parse(
    content: bytes,
    line: bytes,
    build: Callable[[object], T],
    text: Callable[[T], bytes],
    names: tuple[str, str],
) -> T:
    """Read a content that begins with ``line``.

    :param names: code of the error, and what it is called.
    """
    import json

    code, what = names
    if len(content) > cms.MAX_SIZE or not content.startswith(line):
        raise OfferError(code, f"what is signed is no {what} of an update")
    try:
        found = build(json.loads(content[len(line) :].decode("ascii")))
        if text(found) != content:
            raise ValueError("it is not in the one form in which it is written")
    except (ValueError, RecursionError) as error:
        words = str(error).replace("\n", " ")[:200]
        raise OfferError(code, f"the {what} is not in order: {words}; make it anew") from None
    return found


def _offer(raw: object) -> Offer:
    said = members(raw, "it", ("bundle", "fleet", "number", "patches", "plan"))
    patches = tuple(_patch(one) for one in items(said["patches"], "patches", 1, MAX_PATCHES))
    if len({patch.base for patch in patches}) != len(patches):
        raise ValueError("two patches have the same base")
    return Offer(
        _fleet(said["fleet"]),
        number(said["number"], "number", 1, MAX_NUMBER),
        _target(said["bundle"]),
        patches,
        _plan(said["plan"]),
    )


def _order(raw: object) -> Order:
    said = members(raw, "it", ("fleet", "number", "offer", "order"))
    offer, order = said["offer"], said["order"]
    if order not in ORDERS or not isinstance(order, str):
        raise ValueError(f"order is none of {', '.join(ORDERS)}")
    return Order(
        _fleet(said["fleet"]),
        number(said["number"], "number", 1, MAX_NUMBER),
        b"" if offer == "" else bytes.fromhex(digits(offer, "offer", _DIGEST_BYTES)),
        order,
    )


def _target(raw: object) -> Target:
    if not isinstance(raw, dict) or "application" not in raw:
        said = members(raw, "bundle", Target._fields[:-1])
        application = ""
        kind = _word(said["compatible"], "compatible", _KIND)
        version = _word(said["version"], "version", _VERSION)
        epoch = number(said["epoch"], "epoch", 0, MAX_EPOCH)
    else:
        said = members(raw, "bundle", Target._fields)
        application = _word(said["application"], "application", _APPLICATION)
        kind, version, epoch = "", _word(said["version"], "version", _APP_VERSION), 0
        if (said["compatible"], said["epoch"]) != ("", 0):
            raise ValueError("an application has neither compatible nor epoch")
    return Target(
        kind,
        version,
        epoch,
        number(said["size"], "size of the bundle", 1, MAX_BYTES),
        digits(said["sha256"], "sha256 of the bundle", _DIGEST_BYTES),
        application,
    )


def _patch(raw: object) -> Patch:
    said = members(raw, "a patch", Patch._fields)
    base = said["base"]
    return Patch(
        "" if base == "" else digits(base, "base of a patch", _DIGEST_BYTES),
        number(said["size"], "size of a patch", 1, MAX_BYTES),
        digits(said["sha256"], "sha256 of a patch", _DIGEST_BYTES),
        digits(said["chunks"], "chunks of a patch", _DIGEST_BYTES),
    )


def _plan(raw: object) -> Plan:
    said = members(raw, "plan", Plan._fields)
    waves = tuple(
        number(one, "a wave", 1, 100) for one in items(said["waves"], "waves", 1, MAX_WAVES)
    )
    if list(waves) != sorted(set(waves)) or waves[-1] != 100:
        raise ValueError("waves are percent that grow and end with 100")
    return Plan(
        _canaries(said["canaries"]),
        number(said["well"], "well", 0, MAX_WELL),
        waves,
        number(said["failures"], "failures", 0, MAX_FAILURES),
        _window(said["window"]),
    )


def _canaries(raw: object) -> int | tuple[str, ...]:
    if not isinstance(raw, list):
        return number(raw, "canaries", 0, MAX_CANARIES)
    names = tuple(_host(one) for one in items(raw, "canaries", 1, MAX_CANARIES))
    if len(set(names)) != len(names):
        raise ValueError("a canary is named twice")
    return names


def _host(raw: object) -> str:
    if not isinstance(raw, str) or not raw.startswith("n-"):
        raise ValueError("a canary is not named like n-0123456789ab")
    return "n-" + digits(raw[2:], "a canary's name behind n-", 6)


def _window(raw: object) -> tuple[int, int] | None:
    if raw is None:
        return None
    times = [one for one in items(raw, "window", 1, 2) if isinstance(one, str)]
    if len(times) != 2 or times[0] == times[1]:
        raise ValueError("window is not two different times")
    return minute(times[0]), minute(times[1])


def _fleet(raw: object) -> bytes:
    return bytes.fromhex(digits(raw, "fleet", _FLEET_BYTES))


def _word(raw: object, what: str, allowed: frozenset[str]) -> str:
    if not isinstance(raw, str) or not 1 <= len(raw) <= _LONGEST or set(raw) - allowed:
        raise ValueError(f"{what} is not 1 to {_LONGEST} of the characters that it may have")
    return raw

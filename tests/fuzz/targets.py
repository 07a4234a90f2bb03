# SPDX-License-Identifier: Apache-2.0
"""What is fuzzed: every parser that bytes from the network reach, and what must hold for it.

A target is a function that makes the function under test, which takes any bytes. That one lets
through what must not happen: an exception that the parser does not document, a broken invariant. It
keeps nothing between two inputs and gives the same result for the same bytes, so that an input
found once can be tried again. Nothing is imported before a target is made: the fuzzer has to
instrument it first.

``seeds`` are inputs to begin with, made by the product itself; what the fuzzer found stands in
``corpus/TARGET``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from hashlib import sha512
from ipaddress import IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from thicket.trust.fleet import Fleet
    from thicket.update.offer import Offer

Try = Callable[[bytes], None]


class Target(NamedTuple):
    """One thing that is fuzzed."""

    make: Callable[[], Try]
    seeds: Callable[[], Iterator[bytes]]
    longest: int = 4096
    """Bytes of the longest input."""
    words: tuple[bytes, ...] = ()
    """What the fuzzer puts into inputs; it sees into our code, but not into that of ``json``."""


JSON_WORDS = (
    b'{"', b'":', b'"', b",", b"[", b"]", b"{", b"}", b"null", b"true", b"1e999", b"-1", b"1.5",
    b"NaN", b"\\ud800", b"\\u001b", b"[" * 64, b"0" * 64,
)  # fmt: skip
"""What stands in JSON, and what does not."""

OWN = IPv6Address("fd12:3456:789a:1:0:6f44:e3c6:b802")
OTHER = IPv6Address("fd12:3456:789a:1:0:e0f9:2f20:de47")
PREFIX = IPv6Network("fd12:3456:789a:1::/64")
COOKIE = "thicket"
OWN_NAME, OTHER_NAME = f"thicket@{OWN}", f"thicket@{OTHER}"


def records(data: bytes) -> Iterator[bytes]:
    """Cut an input into parts, each behind two bytes with its length; the last may be short."""
    while data:
        size = int.from_bytes(data[:2], "big")
        yield data[2 : 2 + size]
        data = data[2 + size :]


def joined(*parts: bytes) -> bytes:
    """Return an input that ``records`` cuts into ``parts``."""
    return b"".join(len(part).to_bytes(2, "big") + part for part in parts)


def pieces(data: bytes, salt: int) -> Iterator[bytes]:
    """Cut a stream as a network would, in a way that depends on ``salt``."""
    step = 1 + salt % 31 if salt % 4 else len(data) or 1
    for at in range(0, len(data), step):
        yield data[at : at + step]


# -- terms


def make_etf() -> Try:
    """The External Term Format, plain and compressed, and the JSON form of what it holds."""
    import json
    import zlib

    from thicket.distribution import etf
    from thicket.distribution.ioformat import MAX_TEXT, characters, formatted, term_text
    from thicket.distribution.jsonform import from_json, to_json, to_words

    def decoded(data: bytes, **limits: int) -> Any:
        try:
            return etf.decode(data, **limits)
        except etf.DecodeError:
            return None

    def one(data: bytes) -> None:
        # the atoms that were met before must make no difference
        etf._decoded_atoms.clear()
        etf._decoded_atoms.update(etf._WORDS)
        if data[:1] == b"Z":
            # a fuzzer does not find checksums by itself
            body = zlib.compress(data[1:], 1)
            size = len(data) - 1
            wrong = decoded(b"\x83P" + (size + 1).to_bytes(4, "big") + body)
            assert wrong is None, "a wrong size was believed"
            data = b"\x83P" + size.to_bytes(4, "big") + body
        decoded(data, max_depth=3, max_terms=20, max_uncompressed=100)
        term = decoded(data)
        if term is None:
            return
        once = etf.encode(term)
        again = etf.encode(etf.decode(once))
        assert again == once, "encoding is not stable"
        form = json.loads(json.dumps(to_json(term)))
        with suppress(ValueError):  # too deep, or with a "term" that is words only
            from_json(form)
        to_words(form)
        assert len(etf.shown(term)) < 1100
        for text in (term_text(term), characters(term), formatted(term, [term, 1])):
            assert len(text) < MAX_TEXT + 100
        assert len(repr(term)) < 1000 + 400 * len(data)

    return one


def etf_seeds() -> Iterator[bytes]:
    """Yield terms of every kind."""
    from thicket.distribution.etf import (
        Atom,
        BitString,
        Export,
        ImproperList,
        PairMap,
        Pid,
        Port,
        Reference,
        encode,
    )

    node = Atom(OTHER_NAME)
    pid, reference = Pid(node, 5, 0, 9), Reference(node, 9, (1, 2, 3))
    for term in (
        0, 255, -1, 2**31, -(2**70), 2**2100, 1.5, True, None, Atom("ok"), Atom("ü" * 100),
        b"", b"bytes", "text", "ü", [], [1, 2, 3], [1, 300], (), (1, (2, (3,))), {}, {"a": 1},
        {(1, b"x"): {Atom("k"): [None]}}, ImproperList((1, 2), 3), PairMap(((1, 1), (1.0, 2))),
        pid, Port(node, 2**40, 9), reference, Export(Atom("m"), Atom("f"), 2),
        BitString(b"\xa0", 3), {b"k": [pid, reference]},
    ):  # fmt: skip
        yield encode(term)
        yield b"Z" + encode(term)[1:]
    yield encode([b"x" * 50] * 20, compress=9)
    for raw in (
        "836400026f6b", "8373026f6b", "8377026f6b", "83760002c3bc",  # atoms
        "8363312e35303030303030303030303030303030303030302b30310000000000",  # float as text
        "836764000161000000010000000201", "836664000161000000010a", "8365640001610000000a02",
        "837200026400016102000000010000000f", "835a0002770161000000010000000100000002",
        "8358770161000000010000000200000003", "83597701610000000100000002",
        "8378770161000000000000000100000002", "836e0204ffff7f", "836f00000001ff01",
        "836b0003010203", "836c000000016101026a", "834d00000002080102", "8371770161770162610a",
        "83700000000501020304050607",
        "8374000000026101610277016a6a", "83680168016801680168016a", "836c00000001610168016a",
        "8374000000016c0000000161016a6101", "837400000001740000000161016102610a",
    ):  # fmt: skip
        yield bytes.fromhex(raw)


# -- the handshake


def make_handshake() -> Try:
    """Both sides of the handshake; the first byte chooses which one, and how it is fed."""
    from thicket.distribution import handshake
    from thicket.distribution.handshake import (
        ALIVE,
        MAX_FRAME,
        NOK,
        OK,
        OK_SIMULTANEOUS,
        Acceptor,
        HandshakeError,
        Initiator,
        LocalNode,
        split_name,
    )

    local = LocalNode(OWN_NAME, COOKIE, 7)

    def one(data: bytes) -> None:
        choice, data = data[0] if data else 0, data[1:]
        size = 4 if choice & 1 else 2
        machine: handshake.Handshake
        if choice & 2:
            machine = Initiator(local, OTHER_NAME, lambda: bool(choice & 4), size)
        else:
            status = (OK, OK_SIMULTANEOUS, ALIVE, NOK)[choice >> 2 & 3]
            machine = Acceptor(local, lambda _peer: status, size)
        machine._challenge = 0x01020304
        sent = len(machine.take())
        fed = 0
        try:
            for piece in pieces(data, choice >> 4):
                fed += len(piece)
                machine.receive(piece)
                sent += len(machine.take())
                assert len(machine._buffer) <= MAX_FRAME + size, "it keeps too much"
                if machine.done:
                    break
        except HandshakeError as error:
            assert error.code
            assert str(error)
            assert not machine.done
        sent += len(machine.take())
        assert sent < 2048, "it says too much"
        if machine.done:
            assert data[:fed].endswith(machine.rest)
            assert machine.peer is not None
            split_name(machine.peer.name)
            assert machine.peer.flags & handshake.MANDATORY == handshake.MANDATORY

    return one


def handshake_seeds() -> Iterator[bytes]:
    """Yield both sides of handshakes that succeed, and the old way to begin."""
    from thicket.distribution.handshake import ABILITIES, MANDATORY, digest

    name = OTHER_NAME.encode()
    challenge = 0x01020304
    flags, creation, length = ABILITIES.to_bytes(8, "big"), bytes(4), len(name).to_bytes(2, "big")
    proof = b"r" + bytes(4) + digest(COOKIE, challenge)
    begin = b"N" + flags + creation + length + name
    old = b"n\0\5" + (MANDATORY & 0xFFFFFFFF).to_bytes(4, "big") + name
    rest = b"c" + (ABILITIES >> 32).to_bytes(4, "big") + creation
    their = b"N" + flags + bytes(4) + creation + length + name
    for size, bit in ((2, 0), (4, 1)):

        def framed(*frames: bytes, size: int = size) -> bytes:
            return b"".join(len(f).to_bytes(size, "big") + f for f in frames)

        for status in range(4):
            extra = (b"strue",) if status == 2 else ()
            for salt in (0, 1, 5):
                first = bytes((bit | status << 2 | salt << 4,))
                yield first + framed(begin, *extra, proof) + b"rest"
                yield first + framed(old, *extra, rest, proof)
        for status_word in (
            b"sok",
            b"sok_simultaneous",
            b"salive",
            b"snok",
            b"snot_allowed",
            b"sx",
        ):
            answer = b"a" + digest(COOKIE, challenge)
            yield bytes((bit | 6,)) + framed(status_word, their, answer) + b"rest"
        yield bytes((bit | 2,)) + framed(b"salive")


# -- frames


def make_frames() -> Try:
    """The stream of frames and the messages in them, with small limits; first byte: which form."""
    from thicket.distribution import frames
    from thicket.distribution.etf import encode_bare
    from thicket.distribution.frames import (
        FrameError,
        FrameReader,
        LongFrameError,
        MessageReader,
        build,
    )

    def one(data: bytes) -> None:
        choice, data = data[0] if data else 0, data[1:]
        header = bool(choice & 1)
        limit = 600 if choice & 2 else 100_000
        discarded = []
        messages = MessageReader(
            header=header, max_message=limit, on_discarded=lambda *what: discarded.append(what)
        )
        stream = FrameReader(600 if choice & 2 else messages.max_frame)
        found = []
        try:
            for piece in pieces(data, choice >> 2):
                stream.push(piece)
                while True:
                    try:
                        frame = stream.take()
                    except LongFrameError as long:
                        messages.refuse(long)
                        continue
                    if frame is None:
                        break
                    message = messages.feed(frame) if frame else None
                    if message is not None:
                        found.append(message)
                    held = sum(p.size for p in messages._partial.values())
                    assert held == messages.held, "what is held was counted wrongly"
                    assert held <= 2 * limit, "it keeps too much"
                    assert len(messages._partial) <= frames.MAX_SEQUENCES
                assert len(stream._buffer) <= messages.max_frame + 2 * frames.READ_SIZE
        except FrameError as error:
            assert str(error)
        assert len(discarded) == messages.discarded
        for control, payload in found:
            assert type(control) is tuple
            assert type(control[0]) is int
            encoded = encode_bare(control)
            again = MessageReader(header=header)
            reader = FrameReader(again.max_frame)
            out = [
                message
                for frame in reader.feed(b"".join(build(encoded, payload, header=header)))
                if (message := again.feed(frame)) is not None
            ]
            assert len(out) == 1
            assert encode_bare(out[0][0]) == encoded
            # without a payload and with an empty one are one thing in this form
            assert (out[0][1] or None) == (payload or None) if header else out[0][1] == payload

    return one


def frame_seeds() -> Iterator[bytes]:
    """Yield messages in all forms, ticks, and interleaved fragments."""
    from thicket.distribution.etf import Atom, Pid, encode_bare
    from thicket.distribution.frames import REG_SEND, SEND_SENDER, TICK, build, fragments

    pid = Pid(Atom(OTHER_NAME), 5, 0, 9)
    control = encode_bare((REG_SEND, pid, Atom(""), Atom("rex")))
    other = encode_bare((SEND_SENDER, pid, pid))
    payload = encode_bare([1, b"two", Atom("three")])
    for header in (False, True):
        message = b"".join(build(control, payload, header=header))
        for choice in (0, 2, 4, 22):
            yield bytes((choice | header,)) + message + TICK + message
        yield bytes((header,)) + b"".join(build(other, None, header=header))

    def split(sequence: int, control: bytes, *parts: bytes) -> list[bytes]:
        made = []
        for number, part in zip(range(len(parts), 0, -1), parts, strict=True):
            first = number == len(parts)
            body = b"\x83" + (b"\x45" if first else b"\x46")
            body += sequence.to_bytes(8, "big") + number.to_bytes(8, "big")
            body += (b"\0" + control if first else b"") + part
            made.append(len(body).to_bytes(4, "big") + body)
        return made

    one, two = split(1, control, b"a", b"bc", b"d"), split(2, other, b"x" * 500, b"y" * 500)
    for choice in (1, 3, 5):
        yield bytes((choice,)) + b"".join((one[0], two[0], one[1], TICK, two[1], one[2]))
        yield bytes((choice,)) + b"".join(one)
        yield bytes((choice,)) + b"".join(list(fragments(control, payload, 3)))


# -- messages to a node


def make_messages() -> Try:
    """Messages of a connected peer, as far as a node handles them at once.

    An input is records of control message and payload behind it. What they start gets a few turns
    of the event loop before the connection is lost.
    """
    import asyncio
    import logging

    from thicket.cluster.passphrase_exchange import NAME, Listener
    from thicket.cluster.passphrase_file import PassphraseError
    from thicket.distribution.etf import encode_bare
    from thicket.distribution.frames import FrameError, MessageReader
    from thicket.distribution.groups import Scope
    from thicket.distribution.handshake import ABILITIES, TEXT, DistributionError, RemoteNode
    from thicket.distribution.identifiers import Identifiers
    from thicket.distribution.node import Node
    from thicket.trust.change import SignedChange
    from thicket.trust.exchange import Exchange
    from thicket.trust.fleet import Fleet
    from thicket.trust.revocations import InForce, Revocations
    from thicket.trust.verify import RefusedError

    ours = Fleet(fleet().root.der)

    def offered(data: bytes, _origin: str) -> bool:
        try:
            return Revocations.unpack(data, ours, verify=lambda *_: True).number > 5
        except RefusedError:
            return False

    class Held(InForce):
        """One list."""

        def by_digest(self) -> dict[bytes, bytes]:
            return {b"1" * 32: b"a list"}

        def knows(self, digest: bytes) -> bool:
            return digest in self.by_digest()

    class Asked:
        """Stands in for the node's passphrase."""

        def __init__(self) -> None:
            self.kept = self
            self.signed = False

        async def prepare(self, passphrase: str) -> None:
            if len(passphrase) < 8:
                raise PassphraseError("bad-passphrase", "too short")

        async def change_to(self, passphrase: str, _who: str) -> None:
            await self.prepare(passphrase)

        async def cancel(self) -> None:
            await asyncio.sleep(0)

        def fleet(self) -> Fleet | None:
            return ours if self.signed else None

        async def take(self, packed: bytes, who: str) -> bool:
            try:
                found = SignedChange.read(packed, ours, verify=lambda *_: True)
            except RefusedError as error:
                raise self.refuse(who, str(error)) from None
            return found.change.used

        def refuse(self, _who: str, why: str) -> PassphraseError:
            return PassphraseError("not-signed", why)

        def heard(self, number: int, digest: bytes) -> bytes | None:
            mine = self.newest()
            return next(change_seeds()) if (number, digest) < mine else None

        def newest(self) -> tuple[int, bytes]:
            return 5, bytes(32)

    class Safe(Node):
        """A node whose connections are encrypted, for what is only said there."""

        @property
        def encrypted(self) -> bool:
            return True

        def identify(self, name: str) -> Identifiers:
            return Identifiers(name, 4, 0)  # the same in every run

    asked: Any = Asked()
    lost = DistributionError("closed", "the connection was lost")

    class Peer:
        """Stands in for a connection."""

        name = OTHER_NAME
        source = str(OTHER)
        busy = False
        heard = used = 0.0

        def __init__(self, flags: int) -> None:
            self.flags = flags
            self.text = bool(flags & TEXT)
            self.peer = RemoteNode(OTHER_NAME, flags, 9, True)
            self.sent = 0

        def encode(self, term: Any) -> bytes:
            return encode_bare(term, text=self.text)

        def has(self, flag: int) -> bool:
            return bool(self.flags & flag)

        def send(
            self, control: tuple[Any, ...], payload: bytes | None = None, *, more: bool = False
        ) -> None:
            encode_bare(control)
            self.sent += 1

        async def drain(self) -> None:
            await asyncio.sleep(0)

    failures: list[str] = []

    class Failures(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if record.exc_info is not None:
                failures.append(f"{text}: {record.exc_info[1]!r}")

    logger = logging.getLogger("thicket")
    handler = Failures(logging.ERROR)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _loop, context: failures.append(repr(context)))

    def one(data: bytes) -> None:
        logger.propagate = False
        logger.addHandler(handler)
        try:
            loop.run_until_complete(exchange(data))
        finally:
            logger.removeHandler(handler)
            logger.propagate = True

    async def exchange(data: bytes) -> None:
        flags = ABILITIES if not data or data[0] & 1 else 0
        node = Safe("thicket", COOKIE, OWN)
        asked.signed = bool(data) and bool(data[0] & 2)
        Scope(node)
        Exchange(node, Held, offered)
        node.register(NAME, Listener(node, asked))
        node.export("fuzz.add")(_add)
        node.export("fuzz.wait")(_wait)
        peer: Any = Peer(flags)
        node.connections[OTHER_NAME] = peer
        messages = MessageReader(header=True)
        handled = 0
        for record in records(data[1:]):
            try:
                found = messages.feed(b"\x83\x44\0" + record)
            except FrameError:
                continue
            if found is not None:
                control, payload = found
                if data[0] & 2:  # as if the rest of it were too long
                    node.on_discarded(peer, control, payload or b"")
                else:
                    node.on_message(peer, control, payload)
                handled += 1
        assert node.counters["messages"] == handled
        for _ in range(4):
            await asyncio.sleep(0)
        for process in node.processes():
            process.on_disconnect(peer, lost)
        node.calls.stop()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # their ends are told by the loop
        assert not failures, failures.pop()
        assert not node.calls.jobs

    return one


def _add(a: int, b: int) -> int:
    return a + b


async def _wait(turns: int) -> str:
    import asyncio

    for _ in range(min(turns, 8)):
        await asyncio.sleep(0)
    return "done"


def message_seeds() -> Iterator[bytes]:
    """Yield one message of each kind, and the requests that stock nodes send."""
    from thicket.distribution import frames
    from thicket.distribution.etf import Atom, ImproperList, Pid, Reference, encode_bare

    mine, theirs = Atom(OWN_NAME), Atom(OTHER_NAME)
    # processes are numbered from 1: net_kernel, rex, membership, pg, and two more
    own, other = Pid(mine, 2, 0, 4), Pid(theirs, 77, 0, 9)
    group = Pid(mine, 4, 0, 4)
    reference = Reference(theirs, 9, (1, 2, 3))
    cookie, ok = Atom(""), Atom("ok")
    tag = ImproperList((Atom("alias"),), reference)
    leader = Pid(theirs, 70, 0, 9)

    def message(control: tuple[Any, ...], *payload: Any) -> bytes:
        return encode_bare(control) + b"".join(map(encode_bare, payload))

    def named(name: str, payload: Any) -> bytes:
        return message((frames.REG_SEND, other, cookie, Atom(name)), payload)

    def spawn(called: Any, values: Any, options: Any) -> bytes:
        return message((frames.SPAWN_REQUEST, reference, other, leader, called, options), values)

    monitor = [Atom("monitor")]
    call4, cast3 = (
        (Atom("erpc"), Atom(f"execute_{what}"), count) for what, count in (("call", 4), ("cast", 3))
    )
    fuzz, add, wait = Atom("fuzz"), Atom("add"), Atom("wait")
    call, gen_cast = Atom("$gen_call"), Atom("$gen_cast")
    everything = [
        named("net_kernel", (call, (other, tag), (Atom("is_auth"), theirs))),
        named("net_kernel", (call, (other, reference), 1)),
        named("thicket_membership", (Atom("suspect"), OWN_NAME.encode())),
        named("rex", (other, Atom("features_request"))),
        named("rex", (other, (Atom("sbcast"), Atom("rex"), 1))),
        named("rex", (other, (Atom("send"), Atom("nobody"), 1))),
        named("rex", (other, (Atom("call"), fuzz, add, [1, 2], Atom("user")))),
        named("logger_proxy", (Atom("log"), Atom("error"), b"~ts: ~p~n", [b"x", (1, [])], {})),
        named("logger", (Atom("log"), Atom("info"), (Atom("report"), {Atom("a"): 1.5}), {})),
        named("rex", (Atom("system"), (other, tag), Atom("get_state"))),
        named("rex", (call, (other, tag), 5)),
        named("rex", (gen_cast, (Atom("cast"), Atom("no"), add, [1, 2], leader))),
        named("rex", (call, (other, tag), (Atom("call"), Atom("no"), add, [1], leader))),
        named("rex", (gen_cast, (Atom("cast"), fuzz, add, [1, 2], leader))),
        named("rex", (call, (other, tag), (Atom("call"), fuzz, wait, [9], leader))),
        named("rex", (call, (other, tag), (Atom("block_call"), fuzz, add, [b"x", 1], leader))),
        named("thicket_trust", (Atom("lists"), [b"1" * 32])),
        named("thicket_trust", (Atom("lists"), [b"2" * 32])),
        named("thicket_trust", (Atom("lists"), [])),
        named("thicket_trust", (Atom("want"), [b"1" * 32, b"2" * 32])),
        named("thicket_trust", (Atom("list"), b"a list")),
        named("thicket_trust", (Atom("list"), next(revocation_seeds()))),
        named("thicket_passphrase", (call, (other, tag), (Atom("prepare"), b"a passphrase"))),
        named("thicket_passphrase", (call, (other, tag), (Atom("change"), b"a passphrase"))),
        named("thicket_passphrase", (call, (other, tag), (Atom("change"), b"the next one"))),
        named("thicket_passphrase", (call, (other, tag), (Atom("prepare"), b"\xff"))),
        named("thicket_passphrase", (call, (other, tag), Atom("cancel"))),
        named("thicket_passphrase", (call, (other, tag), (Atom("signed"), next(change_seeds())))),
        named("thicket_passphrase", (Atom("signed"), next(change_seeds()))),
        named("thicket_passphrase", (Atom("have"), 4, bytes(32))),
        named("thicket_passphrase", (Atom("have"), 7, b"2" * 32)),
        named("thicket_passphrase", (call, (other, tag), 1)),
        named("pg", (Atom("discover"), other)),
        named("pg", (Atom("discover"), other, 1)),
        named("pg", (gen_cast, (Atom("sync"), other, [(Atom("g"), [other, other])]))),
        named("pg", (gen_cast, (Atom("local_data"), other, 1, {Atom("g"): [other]}))),
        named("pg", (Atom("update"), other, [(Atom("g"), [other], [])])),
        named("pg", (Atom("join"), other, Atom("g"), other)),
        named("pg", (Atom("leave"), other, other, [Atom("g")])),
        message((frames.SEND_SENDER, other, own), (other, Atom("features_request"))),
        message((frames.SEND, cookie, group), (Atom("discover"), other)),
        message((frames.ALIAS_SEND, other, Reference(mine, 4, (0, 0, 0))), ok),
        message((frames.MONITOR_P, other, own, reference)),
        message((frames.MONITOR_P, other, Atom("pg"), reference)),
        message((frames.MONITOR_P, other, Atom("nobody"), reference)),
        message((frames.DEMONITOR_P, other, own, reference)),
        message((frames.MONITOR_P_EXIT, other, own, reference, ok)),
        message((frames.PAYLOAD_MONITOR_P_EXIT, other, group, Reference(mine, 4, (0, 0, 1))), ok),
        message((frames.LINK, other, own)),
        message((frames.UNLINK, other, own)),
        message((frames.UNLINK_ID, 5, other, own)),
        message((frames.UNLINK_ID_ACK, 5, other, own)),
        message((frames.EXIT, other, own, ok)),
        message((frames.PAYLOAD_EXIT, other, own), ok),
        message((frames.EXIT2, other, own, Atom("kill"))),
        message((frames.PAYLOAD_EXIT2, other, own), Atom("kill")),
        message((frames.GROUP_LEADER, other, own)),
        message((frames.SPAWN_REPLY, reference, own, 0, other)),
        spawn(call4, [reference, fuzz, add, [1, 2]], monitor),
        spawn(call4, [reference, fuzz, add, [b"1", 2]], [*monitor, Atom("link")]),
        spawn(call4, [reference, fuzz, Atom("none"), [1, 2]], [(Atom("monitor"), [])]),
        spawn(cast3, [fuzz, add, [1, 2]], []),
        spawn((fuzz, add, 2), [1, 2], monitor),
        spawn((fuzz, wait, 1), [3], [*monitor, Atom("link")]),
        spawn(call4, [reference, fuzz, wait, [9]], [*monitor, Atom("link")]),
        spawn(cast3, [fuzz, wait, [2]], []),
        spawn((Atom("erlang"), Atom("apply"), 2), [1, 2], monitor),
    ]
    for one in everything:
        yield b"\1" + joined(one)
        yield b"\0" + joined(one)
    waiting = spawn(call4, [reference, fuzz, wait, [9]], [*monitor, Atom("link")])
    # the number of that process is 7
    job = Pid(mine, 7, 0, 4)
    yield b"\1" + joined(waiting, message((frames.DEMONITOR_P, other, job, reference)))
    yield b"\1" + joined(waiting, message((frames.EXIT, other, job, ok)))
    yield b"\1" + joined(waiting, message((frames.PAYLOAD_EXIT2, other, job), Atom("kill")))
    yield b"\1" + joined(waiting, message((frames.UNLINK_ID, 1, other, job)))
    yield b"\1" + joined(*everything[11:21])
    yield b"\1" + joined(*everything[21:28])
    yield b"\1" + joined(*everything[31:45])


# -- epmd


def make_epmd() -> Try:
    """Requests to our port mapper, and answers of others; the first byte chooses."""
    import epmd_names

    from thicket.distribution import epmd
    from thicket.distribution.epmd import EpmdError, Registry

    class Transport:
        """Stands in for a client's connection."""

        def __init__(self, address: str) -> None:
            self.address = address
            self.written = b""
            self.closed = False

        def get_extra_info(self, _name: str) -> tuple[str, int]:
            return self.address, epmd.PORT

        def write(self, data: bytes) -> None:
            self.written += data

        def close(self) -> None:
            self.closed = True

        abort = close

    def requests(data: bytes, choice: int) -> None:
        local = bool(choice & 8)
        mapper: Any = epmd.PortMapper.__new__(epmd.PortMapper)
        mapper.registry = Registry("thicket", 9100, 5)
        mapper.clients = {}
        asked = 0
        for record in records(data):
            client = epmd._Client(mapper)
            transport: Any = Transport("::1" if local else str(OWN))
            client._transport = transport
            for piece in pieces(record, choice >> 4):
                client.data_received(piece)
                if transport.closed:
                    break
                assert len(client._data) <= 2 + epmd._MAX_REQUEST + len(piece)
            asked += 1
            assert len(transport.written) <= 2 * epmd._MAX_ANSWER
            if client._name is not None:
                assert local, "somebody else has registered a node"
        nodes = mapper.registry._nodes
        assert len(nodes) <= epmd._MAX_REGISTERED
        assert sum(mapper.registry.counters.values()) <= asked
        listing, _ = mapper.registry.answer(epmd_names.NAMES_REQUEST[2:], local=False)
        found = epmd_names.parse_names_answer(listing)
        assert found["thicket"] == 9100
        assert len(found) == len(nodes), "a name that was registered breaks the list"
        for name in nodes:
            answer, _ = mapper.registry.answer(epmd.port_request(name)[2:], local=False)
            try:
                epmd.parse_port_answer(answer)
            except EpmdError:
                assert name != "thicket"

    def one(data: bytes) -> None:
        choice, data = data[0] if data else 0, data[1:]
        try:
            if choice & 3 == 0:
                port = epmd.parse_port_answer(data)
                assert port is None or 0 < port < 0x10000
            elif choice & 3 == 1:
                for port in epmd_names.parse_names_answer(data).values():
                    assert 0 <= port < 0x10000
            elif choice & 3 == 2:
                epmd.parse_alive_answer(data)
            else:
                requests(data, choice)
        except EpmdError as error:
            assert str(error)

    return one


def epmd_seeds() -> Iterator[bytes]:
    """Yield requests and answers of all kinds."""
    import epmd_names

    from thicket.distribution import epmd

    registry = epmd.Registry("thicket", 9100, 5)
    answer = registry.answer(epmd.port_request("thicket")[2:], local=False)[0]
    yield b"\0" + answer
    yield b"\0w\1"
    listing = registry.answer(epmd_names.NAMES_REQUEST[2:], local=False)[0]
    yield b"\1" + listing
    yield b"\1" + listing + b"name other at port 1234\n"
    yield b"\2" + bytes((118, 0, 0, 0, 0, 5))
    yield b"\2" + bytes((121, 0, 0, 5))
    yield b"\2" + bytes((118, 1, 0, 0, 0, 5))
    asked = (
        epmd.port_request("thicket"), epmd.port_request("x"), epmd_names.NAMES_REQUEST,
        epmd.alive_request("other", 1234), epmd.alive_request("ü", 1, hidden=True),
        b"\0\1k", b"\0\1d", b"\0\5sother", b"\0\0",
    )  # fmt: skip
    for choice in (3, 11, 27, 75):
        yield bytes((choice,)) + joined(*asked)
        yield bytes((choice,)) + joined(asked[3], asked[3], asked[2])


# -- beacons


def make_beacon() -> Try:
    """Plain beacons, as Discovery judges them; the first byte chooses where they come from."""
    from thicket.discovery.beacon import REASONS, MalformedError, decode, encode
    from thicket.discovery.section import DiscoverySection
    from thicket.discovery.service import Discovery

    sources = ("fe80::1%mesh0", str(OTHER), "fd12:3456:789a:1::bad")

    def one(data: bytes) -> None:
        choice, data = data[0] if data else 0, data[1:]
        heard: list[IPv6Address] = []
        found = Discovery(
            DiscoverySection(), OWN, PREFIX, "lo", lambda address, _new: heard.append(address)
        )
        found._answer = lambda *_arguments: None  # type: ignore[method-assign]
        parts = [data] if choice & 4 else list(records(data))
        for at, payload in enumerate(parts):
            source = (sources[choice % 3], 49999, 0, 3)
            found.datagram(payload, source, 255 if choice & 8 else None, float(at))
        counters = found.counters
        assert sum(counters.dropped.values()) + len(heard) == len(parts) == counters.received
        assert set(found.counters.dropped) == set(REASONS)
        for address in heard:
            assert address in PREFIX
            assert address != OWN
            assert decode(encode(address), PREFIX, OWN) == address
        for payload in parts:
            try:
                assert decode(payload, PREFIX, None) in PREFIX
            except MalformedError as error:
                assert error.reason in REASONS

    return one


def beacon_seeds() -> Iterator[bytes]:
    """Yield addresses in many forms."""
    texts = [
        str(OTHER).encode(), str(OWN).encode(), b"fd12:3456:789a:1::6f44:e3c6:b803", b"::", b"::1",
        b"FD12:3456:789A:0001:0000:0BC3:E3C6:B802", b"fd12:3456:789a:1:0:bc3:227.198.184.2",
        b"fe80::1", b"ff02::69", b"fd12:3456:789a:1::1%mesh0", b"10.0.0.1", b"",
        b"fd12:3456:789a:1::",
    ]  # fmt: skip
    for text in texts:
        for choice in (4, 5, 6, 12):
            yield bytes((choice,)) + text
    yield b"\0" + joined(*texts)


@cache
def fleet() -> Fleet:
    """Return a fleet that is the same at each run. Its signatures are nobody's."""
    from authority.signing import root_profile
    from thicket.trust import compressed
    from thicket.trust import fleet as fleets

    profile = root_profile(
        "fuzz", PREFIX, number("root"), (datetime(2026, 1, 1, tzinfo=UTC), compressed.NO_END)
    )
    return fleets.Fleet(profile.signed(number("root signature")))


def number(what: str) -> bytes:
    """Return 64 bytes that stand in for a key or a signature."""
    return sha512(what.encode()).digest()


def signature(what: str) -> bytes:
    """Return 64 bytes that pass for a signature where its last bit decides."""
    return number(what)[:-1] + b"\0"


def chain(source: str = "chip", who: str = "one") -> tuple[bytes, bytes, bytes]:
    """Return node, device and signer certificate of that fleet."""
    from thicket.trust import compressed
    from thicket.trust import fleet as fleets
    from thicket.trust.certificates import Certificate

    begin = datetime(2026, 1, 1, tzinfo=UTC)
    validity = begin, compressed.NO_END
    serial = b"\x01\x23" + number(who)[:6] + b"\xee"
    signer = fleets.signer_profile(fleet(), 1, number("signer"), validity)
    device = fleets.device_profile(
        fleet(),
        source=source,
        identity=serial[2:8],
        serial=serial if source == "chip" else None,
        public_key=number(f"device {who}"),
        signer_id=1,
        signer_key=number("signer"),
        validity=validity,
    ).signed(signature("device"))
    leaf = fleets.node_profile(
        fleet(), Certificate(device), number(f"leaf {who}"), 1 << 125, (begin, validity[1])
    )
    return leaf.signed(signature("node")), device, signer.signed(signature("signer"))


def make_signed_beacon() -> Try:
    """Signed beacons; whether a signature is good depends on its last bit."""
    from thicket.discovery.beacon import REASONS, MalformedError
    from thicket.trust.certificates import CertificateError
    from thicket.trust.fleet import Fleet
    from thicket.trust.signed_beacon import (
        CHAIN_SIZE,
        SIZE,
        SignedBeacons,
        pack_chain,
        unpack_chain,
    )
    from thicket.trust.verify import Clock, Rules

    ours = Fleet(fleet().root.der)
    now = datetime(2026, 11, 24, tzinfo=UTC)
    sources = (IPv6Address("fe80::1"), None, OTHER)

    def one(data: bytes) -> None:
        choice, data = data[0] if data else 0, data[1:]
        told: list[tuple[IPv6Address, int]] = []
        clock = Clock(datetime(2026, 1, 1, tzinfo=UTC), now if choice & 1 else None)
        receiver = SignedBeacons(
            ours,
            5,
            lambda: Rules(clock, {"Signer 0002"}, chip_required=bool(choice & 2)),
            on_list_number=lambda address, number: told.append((address, number)),
            limit=2,
            verify=lambda _key, _digest, signature: not signature[-1] & 1,
        )
        receiver.own.address = int(ours.address("chip", number("own")[:6]))
        accepted = 0
        # the length is told by the datagram, and only by it
        for at in range(0, max(len(data), 1), SIZE):
            part = data[at : at + SIZE]
            seconds = float(at // SIZE * (700 if choice & 4 else 1))
            try:
                address = receiver.read(
                    part, sources[choice >> 3 & 3 if choice >> 3 & 3 < 3 else 0], seconds
                )
            except MalformedError as error:
                assert error.reason in REASONS
                continue
            accepted += 1
            assert address in PREFIX
            assert address != IPv6Address(receiver.own.address)
            # what was believed is what can be made again, to the byte
            packed = part[30 : 30 + CHAIN_SIZE]
            assert pack_chain(unpack_chain(packed, ours), ours) == packed
        assert len(told) == accepted
        assert len(receiver.senders) <= 2
        try:
            made = unpack_chain(data[:CHAIN_SIZE], ours)
        except CertificateError:
            return
        assert pack_chain(made, ours) == data[:CHAIN_SIZE]

    return one


def signed_beacon_seeds() -> Iterator[bytes]:
    """Yield beacons of several senders, and sequences of them."""
    from thicket.discovery.beacon import SIGNED_MARK
    from thicket.trust.signed_beacon import pack_chain

    good = signature("beacon")

    def one(packed: bytes, start: int, count: int, time: int = 0) -> bytes:
        return (
            SIGNED_MARK
            + fleet().identifier[:8]
            + start.to_bytes(5, "big")
            + count.to_bytes(4, "big")
            + time.to_bytes(5, "big")
            + (3).to_bytes(4, "big")
            + packed
            + good
        )

    packed = {
        (source, who): bytes(pack_chain(chain(source, who), fleet()))
        for source in ("chip", "board", "mac", "random")
        for who in ("one", "two", "own")
    }
    clock = int(datetime(2026, 11, 24, tzinfo=UTC).timestamp())
    for choice in range(16):
        for value in packed.values():
            yield bytes((choice,)) + one(value, 1, 1, clock * (choice & 1))
    first, second = packed["chip", "one"], packed["chip", "two"]
    sequence = (one(first, 1, 1), one(first, 1, 2), one(second, 1, 1), one(first, 1, 2))
    for choice in (0, 4):
        yield bytes((choice,)) + b"".join(sequence)
        yield bytes((choice,)) + b"".join((one(first, 2, 1), one(first, 1, 9), one(first, 2, 1)))
    yield b"\0" + first


# -- certificates


def make_operator() -> Try:
    """What an operator sends for a program, or what a node sends to an operator; the first byte
    chooses. However it is cut, it is the same frames, and nothing is kept beyond one."""
    from thicket.operators import frames
    from thicket.operators.frames import FrameError, Reader

    def read(kinds: frozenset[frames.Kind], data: bytes, piece: int) -> tuple[list[Any], str]:
        reader, found = Reader(kinds), []
        try:
            for at in range(0, len(data), piece):
                found += reader.feed(data[at : at + piece])
        except FrameError as error:
            return found, str(error)
        assert len(data) - sum(len(frame.packed()) for frame in found) <= frames.LONGEST + 3
        return found, ""

    def attempt(data: bytes) -> None:
        if not data:
            return
        kinds = frames.TO_NODE if data[0] & 1 else frames.TO_OPERATOR
        whole, fault = read(kinds, data[1:], len(data))
        pieces, same = read(kinds, data[1:], 1 + data[0] % 7)
        assert fault == same
        # A piece with a fault gives no frames, also not those before it.
        assert pieces == whole or (fault and whole == pieces[: len(whole)])
        for frame in pieces:
            assert frame.kind in kinds
            assert len(frame.data) <= frames.LONGEST

    return attempt


def operator_seeds() -> Iterator[bytes]:
    from thicket.operators import frames
    from thicket.operators.frames import Frame, Kind

    to_node = [Frame(Kind.IN, b"ls\n"), frames.of_size(24, 80), Frame(Kind.SIGNAL, b"\2")]
    to_operator = [Frame(Kind.OUT, b"x" * 300), Frame(Kind.ERROR, b"no\n"), Frame(Kind.EXIT, b"\1")]
    for first, sent in ((b"\1", to_node), (b"\2", to_operator)):
        yield first + b"".join(frame.packed() for frame in (*sent, Frame(Kind.ALIVE, b"")))


def make_certificate() -> Try:
    """Certificates in DER and PEM, and whole chains of them; the first byte chooses."""
    from thicket.trust import certificates, der
    from thicket.trust.certificates import Certificate, CertificateError
    from thicket.trust.der import DerError, Reader
    from thicket.trust.fleet import Fleet
    from thicket.trust.operator import check_operator
    from thicket.trust.verify import REASONS, Clock, RefusedError, check_peer

    clock = Clock(datetime(2026, 1, 1, tzinfo=UTC))
    ours = Fleet(fleet().root.der)

    def elements(data: bytes) -> None:
        """Read everything that looks like DER; there is one way to write each element."""
        todo = [data]
        while todo:
            reader = Reader(todo.pop())
            try:
                while reader.more:
                    tag, content, whole = reader.take()
                    assert der.tlv(tag, content) == whole
                    if tag & 0x20:
                        todo.append(content)
                    elif tag == der.OBJECT_IDENTIFIER:
                        dotted = der.decode_oid(content)
                        if all(int(part) < 1 << 200 for part in dotted.split(".")[1:2]):
                            assert der.oid(dotted) == whole
                    elif tag == der.INTEGER:
                        assert der.integer(der.decode_integer(content)) == whole
                    elif tag == der.BIT_STRING:
                        der.decode_bits(content)
                    elif tag in (der.UTC_TIME, der.GENERALIZED_TIME):
                        when = der.decode_time(tag, content)
                        assert der.time(when, generalized=tag == der.GENERALIZED_TIME) == whole
            except DerError as error:
                assert str(error)

    def read(data: bytes) -> Certificate | None:
        try:
            found = Certificate(data)
        except CertificateError as error:
            assert str(error)
            return None
        assert found.der == data
        assert len(found.public_key) == len(found.signature) == 64
        outer = Reader(data).inside(der.SEQUENCE)
        assert outer.take()[2] == found.tbs
        return found

    def one(data: bytes) -> None:
        choice, data = data[0] if data else 0, data[1:]
        if choice & 3 == 0:
            elements(data)
            if read(data) is not None:
                try:
                    Fleet(data)
                except CertificateError as error:
                    assert str(error)
        elif choice & 3 == 1:
            try:
                for found in certificates.from_pem(data.decode("latin-1")):
                    assert certificates.from_pem(certificates.pem(found)) == [found]
                    read(found)
            except CertificateError as error:
                assert str(error)
        elif choice & 3 == 2:
            try:
                raw = certificates.decode_signature(data)
            except CertificateError:
                return
            assert certificates.encode_signature(raw) == data
        else:
            shown = list(records(data))
            try:
                operator = check_operator(
                    shown, ours, clock=clock, verify=lambda _key, _digest, _signature: True
                )
            except RefusedError as error:
                assert error.reason in REASONS
            else:
                assert operator.name == f"Operator {operator.short}"
                assert operator.address in PREFIX
            try:
                peer = check_peer(
                    shown,
                    ours,
                    clock=clock,
                    node=OTHER_NAME if choice & 4 else None,
                    chip_required=bool(choice & 8),
                    verify=lambda _key, _digest, _signature: True,
                )
            except RefusedError as error:
                assert error.reason in REASONS
            else:
                assert peer.address in PREFIX
                assert peer.software == (peer.source != "chip")

    return one


def certificate_seeds() -> Iterator[bytes]:
    """Yield certificates of all kinds that a fleet or a chip has."""
    from authority import templates
    from thicket.trust import certificates

    whole = chain(), chain("mac", "two")
    for one in (fleet().root.der, *whole[0], *whole[1][:2]):
        yield b"\0" + one
        yield b"\1" + certificates.pem(one).encode()
    begin = datetime(2020, 1, 1, tzinfo=UTC), datetime(2048, 1, 1, tzinfo=UTC)
    key, raw = number("key"), number("signature")
    yield b"\0" + templates.nerves_key_signer(key, begin).signed(raw)
    yield b"\0" + templates.nerves_key_device(b"\1#" + bytes(7), key, "m", key, begin).signed(raw)
    yield b"\2" + certificates.encode_signature(raw)
    for choice in (3, 7, 11):
        for shown in whole:
            yield bytes((choice,)) + joined(*shown)
            yield bytes((choice,)) + joined(*shown, fleet().root.der)
    yield b"\3" + joined(whole[0][0], *whole[1][1:])


def make_compressed() -> Try:
    """Certificates in 72 bytes; the first byte chooses the template."""
    from authority import templates
    from thicket.trust import fleet as fleets
    from thicket.trust.certificates import Certificate, CertificateError
    from thicket.trust.compressed import SIZE, Compressed, encode_dates
    from thicket.trust.fleet import Fleet

    ours = Fleet(fleet().root.der)

    def rebuilt(choice: int, data: bytes, more: bytes) -> bytes:
        serial, key, above = more[:9].ljust(9, b"\0"), number("key"), number("above")
        if len(more) >= 73:
            key = more[9:73]
        match choice & 7:
            case 0:
                return fleets.rebuild_signer(ours, data, key)
            case 1:
                return fleets.rebuild_device(ours, data, serial, key, above)
            case 2:
                return fleets.rebuild_device_of(
                    ours,
                    data,
                    source="mac",
                    identity=serial[:6],
                    serial=None,
                    public_key=key,
                    signer_key=above,
                )
            case 3:
                return templates.rebuild_nerves_key_device(data, serial, key, "0123", above)
            case 4:
                return templates.rebuild_nerves_key_signer(data, key)
            case 5:
                return templates.rebuild_trust_and_go_device(data, serial, key, "0" * 12, above)
            case _:
                return templates.rebuild_trust_and_go_signer(data, key)

    def one(data: bytes) -> None:
        choice, data, more = data[0] if data else 0, data[1 : 1 + SIZE], data[1 + SIZE :]
        try:
            kept = Compressed.unpack(data)
            assert kept.pack() == data
            begin, end = kept.validity
            assert encode_dates(begin, end) == kept.dates
        except CertificateError as error:
            assert str(error)
        try:
            made = rebuilt(choice, data, more)
        except CertificateError as error:
            assert str(error)
            return
        read = Certificate(made)
        assert read.signature == data[:64]
        if choice & 7 < 2:
            again = fleets.compress_device if choice & 7 else fleets.compress_signer
            assert again(made, kept.signer_id)[:69] == data[:69]

    return one


def compressed_seeds() -> Iterator[bytes]:
    """Yield the forms that are known."""
    from thicket.trust import compressed
    from thicket.trust import fleet as fleets
    from thicket.trust.compressed import Compressed

    more = b"\x01\x23\1\2\3\4\5\6\xee" + number("key")
    _, device, signer = chain()
    yield b"\0" + fleets.compress_signer(signer, 1) + number("signer")
    for choice in (1, 2):
        yield bytes((choice,)) + fleets.compress_device(device, 1) + more
    dates = compressed.encode_dates(
        datetime(2020, 2, 29, 5, tzinfo=UTC), datetime(2048, 2, 29, 5, tzinfo=UTC)
    )
    for choice, template, source in (
        (3, 0, 0xA),
        (3, 0, 0xB),
        (4, 1, 0xA),
        (5, 2, 0xA),
        (6, 1, 0xA),
    ):
        packed = Compressed(number("s"), dates, 5, template, 0, source).pack()
        yield bytes((choice,)) + packed + more
    yield b"\0" + bytes(72)
    yield b"\0" + b"\xff" * 72


def make_revocations() -> Try:
    """The list of revocations. A good signature is taken for granted: the text is the root's."""
    from authority.signing import sign_revocations
    from thicket.trust.fleet import Fleet
    from thicket.trust.revocations import Revocations
    from thicket.trust.verify import REASONS, RefusedError

    ours = Fleet(fleet().root.der)

    def one(data: bytes) -> None:
        if data[:1] == b"{":
            data = b"thicket revocations 1\n" + number("signature") + data
        try:
            found = Revocations.unpack(data, ours, verify=lambda *_: True)
        except RefusedError as error:
            assert error.reason in REASONS
        else:
            packed = sign_revocations(found, ours.identifier, lambda _digest: number("signature"))
            assert Revocations.unpack(packed, ours, verify=lambda *_: True) == found
        try:
            Revocations.unpack(data, ours, verify=lambda *_: False)
        except RefusedError as error:
            assert error.reason in REASONS
        else:
            raise AssertionError("a list without a signature")

    return one


def revocation_seeds() -> Iterator[bytes]:
    """Yield lists, whole and as text."""
    from authority.signing import sign_revocations
    from thicket.trust.revocations import Revocations

    issued = datetime(2026, 11, 24, tzinfo=UTC)
    for names in ((), ("0123010203040506ee",), ("Signer 0001", "software-mac-010203040506")):
        packed = sign_revocations(
            Revocations(3, issued, frozenset(names)),
            fleet().identifier,
            lambda _digest: number("signature"),
        )
        yield packed
        yield packed[packed.index(b"{") :]


def make_labels() -> Try:
    """Labels of devices. Good signatures are taken for granted: the text is a signer's."""
    from thicket.trust.fleet import Fleet
    from thicket.trust.labels import KIND, SignedLabels, pack, signed_contents
    from thicket.trust.verify import REASONS, RefusedError

    ours, signer = Fleet(fleet().root.der), chain()[2]

    def one(data: bytes) -> None:
        if data[:1] == b"{":
            data = pack(data, number("signature"), signer)
        try:
            found = SignedLabels.read(data, ours, verify=lambda *_: True)
        except RefusedError as error:
            assert error.reason in REASONS
        else:
            text = signed_contents(found.labels, ours.identifier)
            again = pack(text, number("signature"), signer)
            assert SignedLabels.read(again, ours, verify=lambda *_: True).labels == found.labels
            assert found.packed.startswith(KIND.line)
        try:
            SignedLabels.read(data, ours, verify=lambda *_: False)
        except RefusedError as error:
            assert error.reason in REASONS
        else:
            raise AssertionError("labels without a signature")

    return one


def label_seeds() -> Iterator[bytes]:
    """Yield documents, whole and as text."""
    from thicket.trust.labels import Entry, Labels, pack, signed_contents

    issued = datetime(2026, 11, 24, tzinfo=UTC)
    entries = {
        0x6F44E3C6B802: Entry(1_790_000_000, "north mast", "roof", "key with the porter"),
        1 << 48 | 7: Entry(1_790_000_001, "", (52.5, -13.25)),
        2: Entry(1),
    }
    for some in ({}, entries):
        text = signed_contents(Labels(3, issued, some), fleet().identifier)
        yield text
        yield pack(text, number("signature"), chain()[2])


def make_gateway() -> Try:
    """An offer of a gateway, as a member of the cluster sends it."""
    from thicket.distribution.etf import DecodeError, decode
    from thicket.gateway.offers import pack, unpack
    from thicket.gateway.section import NAT64

    def one(data: bytes) -> None:
        try:
            message = decode(data)
        except DecodeError:
            return
        found = unpack(message, PREFIX)
        if found is None:
            return
        assert found.origin in PREFIX
        if found.prefix is not None:
            assert found.prefix.prefixlen == 64
            assert not found.prefix.overlaps(PREFIX)
            assert not found.prefix.overlaps(NAT64)
        assert unpack(pack(found), PREFIX) == found

    return one


def gateway_seeds() -> Iterator[bytes]:
    from thicket.distribution.etf import encode
    from thicket.gateway.offers import Offer, Way, pack

    given = IPv6Network("2001:db8:100::/64")
    for ways, prefix in ((Way.NONE, None), (Way.IPV6, given), (Way.IPV4 | Way.NAMES, None)):
        yield encode(pack(Offer(7, 1, OTHER, 0, ways, prefix)))


def make_lease() -> Try:
    """What a network at the uplink has given, behind the name of the protocol."""
    from thicket.gateway.lease import MOST_NAMES, PROTOCOLS, lease
    from thicket.gateway.plan import delegated

    def one(data: bytes) -> None:
        texts = [part.decode("utf-8", "replace") for part in records(data)]
        found = lease(dict(zip(PROTOCOLS, texts, strict=False)))
        assert len(found.names) <= MOST_NAMES
        for name in found.names:
            assert not (name.is_multicast or name.is_link_local or name.is_unspecified)
        given = delegated(found, PREFIX)
        if given is not None:
            assert given[0].subnet_of(given[1])
            assert given[0].prefixlen == 64

    return one


def lease_seeds() -> Iterator[bytes]:
    texts = (
        b"new_ip_address=192.0.2.100\nnew_routers=192.0.2.1\nnew_domain_name_servers=192.0.2.1\n",
        b"nd1_from=fe80::1\nnd1_addr1=2001:db8::5/64\nnd1_rdnss1_servers=2001:db8::1\n",
        b"new_dhcp6_ia_pd2_prefix1=2001:db8:100::\nnew_dhcp6_ia_pd2_prefix1_length=56\n",
    )
    yield b"".join(len(text).to_bytes(2, "big") + text for text in texts)


def make_summary() -> Try:
    """What another node tells of itself, and what is made of it."""
    import zlib

    from thicket.cli.cells import width
    from thicket.cli.fleet import lines
    from thicket.fleet.rows import Facts, Known, counts, rows
    from thicket.metrics.gather import Told
    from thicket.metrics.summary import Summary, pack, unpack

    def one(data: bytes) -> None:
        if data[:1] == b"{":
            data = zlib.compress(data)
        try:
            found, _ = unpack(data)
        except ValueError:
            return
        assert unpack(pack(found))[0] == found
        known = [Known(OWN_NAME, "self"), Known(OTHER_NAME, "up")]
        told = {OWN_NAME: Summary("joined", mac="0" * 12), OTHER_NAME: found}
        answers = {name: Told(it, 0.1, 1.8e9, 5.0) for name, it in told.items()}
        made = rows(Facts(OWN_NAME, known, answers, {}, {}, {}, {}, 5.0, True))
        document = {"nodes": made, "counts": counts(made), "dropped": 0}
        for line in lines(document, 80):
            assert line.isprintable()
            assert width(line) <= 80

    return one


def summary_seeds() -> Iterator[bytes]:
    """Yield summaries, packed and as text."""
    import zlib

    from thicket.metrics.summary import Application, Link, Problem, Summary, pack

    for told in (
        Summary("joined"),
        Summary(
            "degraded", "0.1.0", "A", 99, Problem("error", "radio", "no-radio", "no radio"), 1, 2,
            0.5, 4, 48.3, False, (500, 1000), (5, 10), 0, 0.3, 1, 1.8e9, True,
            (Application("sensors", "running"),), "027468000001",
            (Link("027468000002", -61, 217), Link("027468000003", None, None)),
        ),
    ):  # fmt: skip
        packed = pack(told)
        yield packed
        yield zlib.decompress(packed)


def make_change() -> Try:
    """A change of the passphrase. A good signature is taken for granted: the text is the root's."""
    from authority.signing import sign_change
    from thicket.trust.change import SignedChange
    from thicket.trust.fleet import Fleet
    from thicket.trust.verify import REASONS, RefusedError

    ours = Fleet(fleet().root.der)

    def one(data: bytes) -> None:
        if data[:1] == b"{":
            data = b"thicket passphrase 1\n" + number("signature") + data
        try:
            found = SignedChange.read(data, ours, verify=lambda *_: True)
        except RefusedError as error:
            assert error.reason in REASONS
        else:
            packed = sign_change(found.change, ours.identifier, lambda _digest: number("signature"))
            assert SignedChange.read(packed, ours, verify=lambda *_: True).change == found.change
            assert "a passphrase" not in repr(found)
        try:
            SignedChange.read(data, ours, verify=lambda *_: False)
        except RefusedError as error:
            assert error.reason in REASONS
        else:
            raise AssertionError("a change without a signature")

    return one


def change_seeds() -> Iterator[bytes]:
    """Yield changes, whole and as text."""
    from authority.signing import sign_change
    from thicket.trust.change import Change

    issued = datetime(2026, 11, 24, tzinfo=UTC)
    for text, used in (("a passphrase", False), ("a passphrase", True), ("", False)):
        packed = sign_change(
            Change(3, issued, text, used, frozenset(("0" * 32, "1" * 32))),
            fleet().identifier,
            lambda _digest: number("signature"),
        )
        yield packed
        yield packed[packed.index(b"{") :]


# -- updates, which anybody can offer


def make_bundle() -> Try:
    """The file of a bundle from its first byte to its last, and its signature."""
    import io

    from thicket.trust.fleet import Fleet
    from thicket.trust.update_signer import REASONS, SignerRefusedError
    from thicket.update import bundle
    from thicket.update.errors import BundleError

    ours = Fleet(fleet().root.der)
    whole = signed_bundle()
    signatures = set()

    def note(*words: bytes) -> bool:
        signatures.add(words)
        return True

    bundle.check_signer(bundle.read(io.BytesIO(whole)), ours, verify=note)

    def installable(data: bytes) -> bool:
        """Whether all that is asked before a slot is written finds a bundle good."""
        file = io.BytesIO(data)
        try:
            found = bundle.read(file)
            bundle.check_signer(found, ours, verify=lambda *words: words in signatures)
            bundle.check_contents(file, found.contents, found.verity)
        except (BundleError, SignerRefusedError) as error:
            assert len(str(error)) < 500, "it says too much"
            return False
        return True

    def one(data: bytes) -> None:
        if data.startswith(EDIT):
            changed = edited(whole, data[len(EDIT) :])
            assert installable(changed) == (changed == whole), "another bundle than was signed"
            return
        if not data.startswith(b"hsqs"):  # the end alone, behind contents that are good
            data = contents() + data + len(data).to_bytes(8, "big")
        file = io.BytesIO(data)
        try:
            found = bundle.read(file)
        except BundleError as error:
            assert str(error)
            return
        assert found.contents + found.verity.size == found.payload < len(data)
        assert found.manifest.text() in data
        if found.message is not None:
            assert found.message.packed() in data
        with suppress(BundleError):
            bundle.check_contents(file, found.contents, found.verity)
            if found.verity == bundle.read(io.BytesIO(whole)).verity:
                assert data[: found.payload] == contents(), "contents of one bundle in another"
        for good in (True, False):
            try:
                bundle.check_signer(found, ours, verify=lambda *_, good=good: good)
            except SignerRefusedError as error:
                assert error.reason in REASONS
            except BundleError:
                assert found.message is None
            else:
                assert good, "a bundle without a signature"

    return one


@cache
def contents() -> bytes:
    """Return contents of a bundle with their hash tree."""
    import io

    from thicket.update import verity

    data = b"hsqs" + bytes(2 * verity.BLOCK - 4)
    return data + verity.tree(io.BytesIO(data), len(data), bytes(32)).blocks


EDIT = b"edit"
"""Begins an input that changes a signed bundle: edits of six bytes, see :func:`edited`."""


def edited(data: bytes, edits: bytes) -> bytes:
    """Return data after edits: what to do, a value, and two places in two bytes each."""
    out = bytearray(data)
    for at in range(0, min(len(edits), 16 * 6) - 5, 6):
        what, value = edits[at] % 5, edits[at + 1]
        first, second = (
            int.from_bytes(edits[at + n : at + n + 2], "big") % (len(out) + 1) for n in (2, 4)
        )
        start, end = sorted((first, second))
        piece = out[start:end]
        if what == 0:
            out[start : start + 1] = bytes(byte ^ value for byte in out[start : start + 1])
        elif what == 1:
            del out[start:]
        elif what == 2:
            del out[start:end]
        elif what == 3:
            out[end:end] = piece
        else:
            out[first:first] = bytes((value,)) * (second % 4097)
        del out[1 << 16 :]
    return bytes(out)


@cache
def signed_bundle() -> bytes:
    """Return a bundle that is signed by :func:`update_certificate`."""
    from thicket.update import bundle

    *_, signed = bundle_ends()
    return contents() + bundle.end(signed)


@cache
def bundle_ends() -> tuple[bytes, bytes]:
    """Return the manifest of a bundle, and its signature."""
    from thicket.trust import cms
    from thicket.update import verity
    from thicket.update.manifest import Image, Manifest, Verity

    root = verity.root_of(contents()[8192:], 8192, bytes(32)).hex()
    text = Manifest(
        "thicket-x86_64",
        "0.1.0",
        "0123456789ab",
        (Image("boot", "boot.vfat", "0a" * 32, 64 << 20, ("post-install",)),),
        "hook",
        {"thicket": {"epoch": "1"}},
        Verity(root, "00" * 32, len(contents()) - 8192),
    ).text()
    when = datetime(2026, 11, 24, tzinfo=UTC)
    return text, cms.sign(text, update_certificate(), when, lambda _digest: signature("bundle"))


def bundle_seeds() -> Iterator[bytes]:
    """Yield ends of bundles, signed and not, whole ones, and edits of one."""
    from thicket.update import bundle

    text, signed = bundle_ends()
    yield text
    yield signed
    yield signed_bundle()
    yield contents() + bundle.end(text)
    yield EDIT
    size = len(signed_bundle())
    for what in range(5):
        for first, second in ((0, 1), (4096, 8192), (8192, 12288), (12288, size), (size - 8, size)):
            places = first.to_bytes(2, "big") + second.to_bytes(2, "big")
            yield EDIT + bytes((what, 1)) + places
            yield EDIT + bytes((what, 1)) + places + bytes((0, 128)) + places


def make_offer() -> Try:
    """A signed offer, a signed order, or what is signed of one."""
    from thicket.trust.fleet import Fleet
    from thicket.trust.update_signer import REASONS, SignerRefusedError
    from thicket.update import offer as offers
    from thicket.update.offer import OfferError

    ours = Fleet(fleet().root.der)

    def one(data: bytes) -> None:
        for parse in (offers.parse_offer, offers.parse_order):
            try:
                assert parse(data).text() == data, "read in two ways"
            except OfferError as error:
                assert len(str(error)) < 500, "it says too much"
        for good in (True, False):
            for check in (offers.check_offer, offers.check_order):
                try:
                    found = check(data, ours, verify=lambda *_, good=good: good)
                except SignerRefusedError as error:
                    assert error.reason in REASONS
                except OfferError as error:
                    assert error.code in (offers.BAD_OFFER, offers.BAD_ORDER, offers.OTHER_FLEET)
                else:
                    assert good, "taken without a signature"
                    assert found.fleet == ours.identifier

    return one


def offer_seeds() -> Iterator[bytes]:
    """Yield an offer, an order, and the signed messages with them."""
    from thicket.trust import cms
    from thicket.update.offer import Offer, Order, Patch, Plan, Target

    patches = (Patch("0a" * 32, 90_000, "0b" * 32, "0c" * 32), Patch("", 9, "0d" * 32, "0e" * 32))
    offer = Offer(
        fleet().identifier,
        1_795_975_200,
        Target("thicket-x86_64", "0.2.0", 1, 70_000_000, "0f" * 32),
        patches,
        Plan(("n-0123456789ab",), 600, (10, 50, 100), 2, (1410, 240)),
    )
    when = datetime(2026, 11, 24, tzinfo=UTC)
    for content in (
        offer.text(),
        offer._replace(plan=Plan(1, 0, (100,), 0, None)).text(),
        Order(offer.fleet, 1, offer.identifier, "pause").text(),
        Order(offer.fleet, 1, b"", "back").text(),
    ):
        yield content
        yield cms.sign(content, update_certificate(), when, lambda _digest: signature("bundle"))


def make_reports() -> Try:
    """What nodes tell each other of a rollout; a signature is good if its last bit says so."""
    from thicket.trust import verify
    from thicket.trust.fleet import Fleet
    from thicket.trust.verify import Clock, Rules
    from thicket.update import member, progress
    from thicket.update import reports as talk
    from thicket.update.progress import RecordError

    ours = Fleet(fleet().root.der)
    clock = Clock(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 11, 24, tzinfo=UTC))
    reasons = {
        *member.REASONS, *verify.REASONS, "malformed", "bad-record", "bad-order", "other-fleet",
        "ahead", "too-often", "not-allowed", "not-a-signer", "forged", "changed",
    }  # fmt: skip

    def one(data: bytes) -> None:
        try:
            record = progress.unpack(data)
            assert progress.pack(record) == data, "read in two ways"
        except RecordError as error:
            assert str(error)
        receiver = talk.Reports(
            ours,
            lambda: Rules(clock, {"Signer 0002"}),
            lambda: (f"n-{number('one')[:6].hex()}",),
            verify=lambda _key, _digest, signature: not signature[-1] & 1,
        )
        items = list(records(data))
        for now in (0.0, 1.0):
            taken = receiver.take(items, "peer", now)
            assert set(taken.onward) <= set(items), "it hands on what never came"
            assert all(len(item) <= talk.MAX_ITEM for item in taken.answer)
            assert taken.changed or not taken.onward
        assert set(receiver.counters) <= reasons, receiver.counters
        known = receiver.records()
        assert len(receiver.orders) <= talk.MOST_ORDERS
        again = talk.Reports(
            ours,
            lambda: Rules(clock, {"Signer 0002"}),
            lambda: (f"n-{number('one')[:6].hex()}",),
            verify=lambda _key, _digest, signature: not signature[-1] & 1,
        )
        list(again.recall(receiver.pack(), 0.0))
        assert again.records().keys() == known.keys()
        assert again.greeting() == receiver.greeting()
        list(again.recall(data, 2.0))

    return one


def reports_seeds() -> Iterator[bytes]:
    """Yield records, orders, and what it takes to compare them."""
    from thicket.trust import cms
    from thicket.trust.signed_beacon import pack_chain
    from thicket.update import member, progress
    from thicket.update.member import MARK, Kind, Sealed
    from thicket.update.offer import Order
    from thicket.update.progress import Progress, State, node_name

    def item(kind: int, content: bytes) -> bytes:
        return MARK + bytes((kind,)) + content

    def sealed(kind: Kind, content: bytes, packed: bytes) -> bytes:
        return Sealed(kind, content, member.key_of(packed), signature("seal")).packed()

    order = Order(fleet().identifier, 5, b"", "pause")
    when = datetime(2026, 11, 24, tzinfo=UTC)
    signed = cms.sign(order.text(), update_certificate(), when, lambda _digest: signature("order"))
    for source, who in (("chip", "one"), ("mac", "two")):
        packed = pack_chain(chain(source, who), fleet())
        identity = (b"\x01\x23" + number(who)[:6])[2:8]
        node = node_name(source, identity)
        one = Progress(node, bytes(32), 7, State.FAILED, 900, "no peer", 60, 5)
        told = sealed(Kind.PROGRESS, progress.pack(one), packed)
        given = sealed(Kind.ORDER, order.text(), packed)
        certificates = item(3, packed)
        yield progress.pack(one)
        yield joined(certificates, told)
        yield joined(told)
        yield joined(certificates, told, given, item(7, signed))
        yield joined(certificates, told, item(5, bytes(32)), item(4, member.key_of(packed)))
        yield joined(certificates, told, item(6, bytes(30)), item(8, bytes(16)))
    yield joined(item(9, b""), item(1, b""), b"", b"THU2")


@cache
def update_certificate() -> bytes:
    """Return the certificate of an update signer."""
    from thicket.trust.update_signer import signer_profile

    validity = (datetime(2026, 1, 1, tzinfo=UTC), datetime(2036, 1, 1, tzinfo=UTC))
    profile = signer_profile(fleet(), "release", number("update key"), validity)
    return profile.signed(signature("update signer"))


def make_patch() -> Try:
    """What is in front of the frame of a patch."""
    import io

    from thicket.update import patch as patches
    from thicket.update.bundle import MAX_BYTES

    def one(data: bytes) -> None:
        if not data.startswith(b"thicket"):  # the header alone
            data = patches.LINE + len(data).to_bytes(4, "big") + data
        file = io.BytesIO(data)
        try:
            found = patches.read(file)
        except patches.PatchError as error:
            assert error.code == patches.BAD_PATCH
            assert len(str(error)) < 500, "it says too much"
            return
        assert data.startswith(found.packed()), "read in two ways"
        assert file.tell() == len(found.packed())
        assert 0 < found.body <= found.size <= MAX_BYTES
        end = 0
        for tree in found.trees:
            assert end <= tree.at
            assert tree.start + tree.size <= tree.at
            end = tree.at + tree.bytes
        assert end <= found.size
        if found.base is not None:
            assert found.base.size <= 2 * MAX_BYTES + patches.ALIGNED
            assert all(0 <= a < b <= found.base.boot.size for a, b in found.base.boot.masks)

    return one


def patch_seeds() -> Iterator[bytes]:
    """Yield headers of a change and of a whole bundle."""
    from thicket.update.patch import Base, Boot, HashTree, Header, Root

    trees = (HashTree(69632, 4100, 65532 // 4096 * 4096, "0a" * 32),)
    base = Base(Root("0b" * 32, 65536), Boot(16384, "0c" * 32, ((5000, 5600), (8192, 12288))))
    for header in (
        Header(100_000, "0d" * 32, base, trees),
        Header(100_000, "0d" * 32, None, ()),
    ):
        yield header.packed() + b"frame"
        yield header.packed()[20:]


# -- the kernel and wpa_supplicant, which hand on what comes from the air


def make_netlink() -> Try:
    """Messages of netlink: the first byte chooses what they are taken for."""
    from thicket.netlink import messages as netlink
    from thicket.netlink import rtnl
    from thicket.radio import nl80211

    def one(data: bytes) -> None:
        choice, data = data[0] if data else 0, data[1:]
        end = 0
        for kind, flags, _, _, message in netlink.split(data):
            end += len(message)
            rtnl.link_event(message)
            rtnl.address_event(message)
            refusal = netlink._refusal(kind, flags, message)
            if refusal is not None:
                assert refusal.errno
                assert isinstance(refusal.strerror, str)
            for read in (nl80211.station, nl80211.path, rtnl.neighbour):
                repr(read(message))
            if choice & 1:
                continue
            decoded = netlink.decode(nl80211.Message, message)
            if decoded is None:
                continue
            repr(nl80211.interface(decoded))
            wiphy = nl80211.Wiphy(0)
            wiphy.absorb(decoded)
            str(wiphy)
        assert end <= len(data)
        for _, payload in netlink.attributes(data):
            assert len(payload) <= len(data)

    return one


def netlink_seeds() -> Iterator[bytes]:
    """Yield messages as the kernel sends them."""
    import struct

    from thicket.netlink import messages as netlink

    def attribute(kind: int, payload: bytes) -> bytes:
        return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)

    def message(kind: int, flags: int, body: bytes) -> bytes:
        return netlink.HEADER.pack(netlink.HEADER.size + len(body), kind, flags, 1, 0) + body

    mac = attribute(6, bytes.fromhex("020000000001"))
    four = bytes((1, 0, 0, 0))
    info = b"".join(attribute(kind, four * 2) for kind in range(1, 40))
    numbers = (
        attribute(1, four) + attribute(3, four) + attribute(4, b"mesh0\0") + attribute(5, four)
    )
    generic = (bytes((19, 1, 0, 0)), bytes((23, 1, 0, 0)), bytes((7, 1, 0, 0)), bytes((3, 1, 0, 0)))
    yield b"\0" + message(30, 2, generic[0] + mac + attribute(21, info))
    yield b"\0" + message(30, 2, generic[1] + mac + attribute(26, mac[4:10]) + attribute(27, info))
    yield b"\0" + message(30, 2, generic[2] + numbers + mac + attribute(24, b"mesh"))
    bands = attribute(0, attribute(1, attribute(0, attribute(1, four) + attribute(3, b""))))
    yield b"\0" + message(30, 2, generic[3] + numbers + attribute(22, bands))
    yield b"\1" + message(
        2, 0x300, struct.pack("=iIHHII", -22, 16, 0, 0, 0, 0) + attribute(1, b"no\0")
    )
    yield b"\1" + message(
        2, 0x200, struct.pack("=iIHHII", -22, 16, 0, 0, 0, 0) + attribute(1, b"no\0")
    )
    yield b"\1" + message(3, 2, struct.pack("=i", -95)) + message(2, 0, struct.pack("=i", 0))
    yield b"\1" + message(16, 0, struct.pack("=BxHiII", 0, 1, 3, 0x1003, 0))
    yield b"\1" + message(20, 0, bytes(8) + attribute(1, bytes(16)))


def make_wpa() -> Try:
    """What wpa_supplicant says: events, and the answer to STATUS."""
    from thicket.radio.wpa import is_mac, parse_event, parse_status

    def one(data: bytes) -> None:
        for name, value in parse_status(data.decode("utf-8", "replace")).items():
            assert "\n" not in name + value
        event = parse_event(data)
        if event is None:
            return
        assert 0 <= event.level <= 999
        assert event.address is None or is_mac(event.address)
        for name in ("addr", "reason", "ssid"):
            event.field(name)
        repr(event)

    return one


def wpa_seeds() -> Iterator[bytes]:
    """Yield events and an answer."""
    for text in (
        "<3>MESH-PEER-CONNECTED 02:00:00:00:01:00",
        "<3>MESH-SAE-AUTH-BLOCKED addr=02:00:00:00:01:00 duration=300",
        'IFNAME=mesh0 <2>MESH-GROUP-STARTED ssid="a \\"b\\" c" id=0',
        "<4>CTRL-EVENT-SCAN-FAILED ret=-16 retry=1",
        "bssid=02:00:00:00:00:00\nfreq=2412\nwpa_state=COMPLETED\nmode=mesh\n",
        "OK\n",
        "FAIL\n",
    ):
        yield text.encode()


def make_config() -> Try:
    """The configuration on the card."""
    import tomllib  # noqa: F401  # parse() imports it late: it is to be instrumented, too

    from thicket.base.fields import ConfigError
    from thicket.config.parse import parse

    def one(data: bytes) -> None:
        try:
            parse(data, "thicket.toml")
        except ConfigError as error:
            assert error.findings
            assert all(str(finding) for finding in error.findings)
            assert len(str(error)) < 100_000

    return one


def config_seeds() -> Iterator[bytes]:
    """Yield files as people and attackers write them."""
    for text in (
        '[mesh]\nid = "greenhouse"\npassphrase = "a long one"\nchannel = 0x0b\n',
        '[cluster]\ncookie = "c"\ntick_time = 15\n[application.x]\ny = [{a = 1}, 1979-05-27]\n',
        "[mesh]\nchannel = 0x" + "f" * 100,
        "a" + ".a" * 99 + " = 1\n",
        "[a" + ".'a' " * 120 + "]\n",
        'a = """\n\\\n"""\n[[b]]\n[[b.c]]\n',
        "a = " + "[" * 60 + "]" * 60,
        "a = " + "{a = " * 60 + "1" + "}" * 60,
        '[access]\nssh_keys = ["ssh-ed25519 AAAA x"]\n',
    ):
        yield text.encode()


# -- updates between nodes


_SUBJECT = "image/thicket-rpi64"
_CHUNK = b"a chunk"


def _small_offer() -> Offer:
    """Return an offer of two patches of one chunk each."""
    from hashlib import sha256

    from thicket.update.offer import Offer, Patch, Plan, Target

    listed, other = sha256(_CHUNK).digest(), b"another one"
    patches = (
        Patch("", len(_CHUNK), sha256(_CHUNK).hexdigest(), sha256(listed).hexdigest()),
        Patch("ab" * 32, len(other), sha256(other).hexdigest(), "cd" * 32),
    )
    target = Target("thicket-rpi64", "0.2.0", 1, 70_000_000, "0f" * 32)
    return Offer(fleet().identifier, 7, target, patches, Plan(1, 600, (100,), 0, None))


def make_update() -> Try:
    """Messages of a peer to ``thicket_update``, while a patch is being fetched and served.

    An input is records, each of them a term.
    """
    import asyncio
    from hashlib import sha256
    from types import SimpleNamespace

    from thicket.base.errors import CodedError
    from thicket.base.problems import Problems
    from thicket.distribution.etf import DecodeError, decode, encode
    from thicket.distribution.identifiers import Identifiers
    from thicket.distribution.node import Node
    from thicket.update import messages, spread
    from thicket.update.carrier import Carrier, Download, Newest
    from thicket.update.exchange import WAITING, Exchange, Follower
    from thicket.update.messages import Offered
    from thicket.update.offer import Patch
    from thicket.update.spread import Way
    from thicket.update.store import Held, Store, everything

    class Safe(Node):
        """A node whose connections are encrypted."""

        @property
        def encrypted(self) -> bool:
            return True

        def identify(self, name: str) -> Identifiers:
            return Identifiers(name, 4, 0)

    class Host:
        """Stands in for a daemon."""

        problems = Problems(lambda: None)

        def check(self, packed: bytes) -> Any:
            raise CodedError("bad-offer", "no offer")

        def base(self) -> str:
            return ""

        def wants(self, _offer: Any) -> bool:
            return True

        def share(self) -> float:
            return 0.2

        def ways(self) -> dict[str, Way]:
            return {OTHER_NAME: Way()}

        async def take(self, path: str, offer: Any, patch: Patch) -> None:
            """Never called: nothing is written."""

    listed = sha256(_CHUNK).digest()
    offer = _small_offer()
    patch = offer.patches[0]
    newest = Newest(offer, b"", offer.identifier, "release")
    sent: list[messages.Message] = []
    loop = asyncio.new_event_loop()
    connection: Any = SimpleNamespace(name=OTHER_NAME)

    class Silent(Exchange):
        """Its messages stay here."""

        def send(self, peer: str, subject: str, message: messages.Message) -> None:
            sent.append(message)

    async def take(_subject: str, _packed: bytes, _who: str) -> bool:
        raise CodedError("bad-offer", "no offer")

    async def exchange(data: bytes) -> None:
        del sent[:]
        process = Silent(Safe("thicket", COOKIE, OWN), Host(), take)
        carrier = Carrier(Host(), Store("/nowhere"), process.wire(_SUBJECT))
        process.followers[_SUBJECT] = Follower(carrier)
        await carrier._adopt(newest)
        for place, one_patch in enumerate(offer.patches):
            carrier.held[place] = Held("/nowhere/x", one_patch, listed)
        carrier.held[1].have = 1
        carrier.download = Download(0, patch, carrier.theirs[0], carrier.held[0])
        count = 0
        for record in records(data):
            try:
                term = decode(record)
            except DecodeError:
                continue
            message = messages.unwrap(term)
            if message is not None:
                assert messages.unwrap(decode(encode(messages.wrap(*message)))) == message
            process.on_message(connection, term)
            count += 1
            for asked in carrier.download.asks(0.0, Host().ways()):
                assert asked[0] == OTHER_NAME
            for theirs, known in zip(carrier.theirs, offer.patches, strict=True):
                assert all(
                    bits | everything(known) == everything(known) for bits in theirs.bits.values()
                )
            assert len(carrier._serve) <= spread.UPLOADS
            fetch = carrier.download.fetch
            assert fetch is not None
            assert all(carrier.held[0].is_right(*one) for one in carrier.download.writing)
            assert len(carrier.download.writing) <= patch.chunk_count
        assert len(sent) <= 2 * count, "it says too much"
        assert not any(isinstance(message, Offered) and message.packed for message in sent)
        assert set(process.followers) == {_SUBJECT}, "nobody has signed another"
        assert process._offers.qsize() <= WAITING
        assert len(process._buckets) <= 4
        await asyncio.sleep(0)

    def one(data: bytes) -> None:
        loop.run_until_complete(exchange(data))

    return one


def make_release() -> Try:
    """What a release says of itself: its list of checksums, its index."""
    from firmware.releases import index, sums
    from firmware.releases.errors import ReleaseError

    def one(data: bytes) -> None:
        try:
            listed = sums.read(data)
        except ReleaseError as error:
            assert len(str(error)) < 1000
        else:
            assert sums.text(listed) == data
        try:
            found = index.read(data)
        except ReleaseError as error:
            assert len(str(error)) < 1000
        else:
            assert index.read(found.text()) == found
            assert len(found.files) <= index.MAX_FILES
            for file in found.files:
                assert "/" not in file.name

    return one


def update_seeds() -> Iterator[bytes]:
    """Yield one message of each kind."""
    from hashlib import sha256

    from thicket.distribution.etf import encode
    from thicket.update.messages import (
        Data,
        Get,
        Has,
        Have,
        Message,
        No,
        Offered,
        Piece,
        Records,
        wrap,
    )

    data, offer = _CHUNK, _small_offer()
    listed = sha256(data).digest()
    mine, chunk = offer.identifier, Piece(0, "chunk", 0)
    kinds: list[Message] = [
        Have(0, b""),
        Have(offer.number, mine),
        Have(offer.number + 1, mine),
        Offered(b"an offer"),
        Has(mine, ((0, 1), (1, 1))),
        Get(mine, Piece(1, "chunk", 0)),
        Get(mine, Piece(1, "list", 0)),
        Get(mine, chunk),
        Data(mine, chunk, data),
        Data(mine, chunk, b"rubbish"),
        Data(mine, Piece(0, "list", 0), listed),
        No(mine, chunk, 500),
        No(mine, chunk, 0),
        Records((b"a record", b"")),
        Has(mine, ((0, 0),)),
    ]
    packed = [encode(wrap(_SUBJECT, message)) for message in kinds]
    yield from map(joined, packed)
    yield joined(*packed)
    yield joined(packed[4], packed[8])
    yield joined(packed[4], packed[9], packed[8])
    yield joined(*(encode(wrap("app/readings", message)) for message in kinds))


def release_seeds() -> Iterator[bytes]:
    """Yield a list of checksums and an index."""
    from firmware.releases import index, sums

    digest = "5" * 64
    yield sums.text({"index.json": digest, "a-1.0~rc1+x.img.xz": digest})
    files = (
        index.File("a.img.xz", index.IMAGE, "rpi64", 5, digest, 10),
        index.File("a.patch", index.DELTA, "rpi64", 5, digest, 0, "0.0.9"),
        index.File("b", "later", "", 0, digest),
    )
    yield index.Index("0.1.0", 1, "0123456789ab", "2026-11-24T12:00:00Z", files).text()


def make_application() -> Try:
    """The file of an application. The first byte chooses: an end, or what is signed."""
    import io

    from thicket.applications import app_file
    from thicket.applications.app_file import AppError
    from thicket.trust import signed_file
    from thicket.trust.fleet import Fleet
    from thicket.trust.update_signer import REASONS, SignerRefusedError

    ours = Fleet(fleet().root.der)

    def one(data: bytes) -> None:
        if data[:1] == b"{":
            text = b"thicket application 1\n" + data
            try:
                about = app_file.parse(text)
            except AppError as error:
                assert str(error)
                return
            assert about.text() == text
            assert app_file.is_name(about.name)
            assert 0 < about.size <= app_file.MAX_BYTES
            assert app_file.version_key(about.least) is not None
            return
        file = io.BytesIO(b"hsqs" + bytes(60) + signed_file.pack(data) if data else b"hsqs")
        try:
            found = app_file.read(file)
        except AppError as error:
            assert str(error)
            return
        assert found.message.packed() == data
        assert found.about.text() in data
        for good in (True, False):
            try:
                app_file.check_signer(found, ours, verify=lambda *_, good=good: good)
            except SignerRefusedError as error:
                assert error.reason in REASONS
            except AppError as error:
                assert error.code == "other-fleet"
            else:
                assert good, "a file without a signature"

    return one


def application_seeds() -> Iterator[bytes]:
    """Yield what is signed of applications, and ends of files."""
    from thicket.applications.app_file import About
    from thicket.trust import cms
    from thicket.trust.update_signer import signer_profile

    validity = (datetime(2026, 1, 1, tzinfo=UTC), datetime(2036, 1, 1, tzinfo=UTC))
    profile = signer_profile(fleet(), "release", number("update key"), validity)
    certificate = profile.signed(signature("update signer"))
    when = datetime(2026, 11, 24, tzinfo=UTC)
    for below in ("", "1"):
        text = About(
            "lamp", "1.0", 1_000, fleet().identifier, "0.1", below, "3.13", "any", ("lamp",),
            ("a", "lamp_app"), 64, bytes(32),
        ).text()  # fmt: skip
        yield text.partition(b"\n")[2]
        yield cms.sign(text, certificate, when, lambda _digest: signature("application"))


# -- a cable


def make_cable() -> Try:
    """Multicast DNS at a cable: what a node takes up, and what the desk makes of answers."""
    import asyncio

    from cable import answers, reach
    from thicket.discovery.gate import REASONS, QuestionGate
    from thicket.discovery.questions import HEADER, MOST_BYTES, label

    sender = IPv6Address("fe80::1")
    taken: list[bytes] = []

    class Inner(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: object) -> None:
            taken.append(data)

    def one(data: bytes) -> None:
        found = answers.read(data, sender, "eth0")
        assert len(found) <= answers.MOST_IN_PACKET
        for device in found:
            assert reach.is_device(device.name)
            assert device.address.is_link_local
            assert device.version.isascii()
            assert device.version.isprintable()
        taken.clear()
        dropped = dict.fromkeys(REASONS, 0)
        gate = QuestionGate(Inner(), frozenset({label("n-6f44e3c6b802")}), dropped)
        gate.datagram_received(data, ("fe80::1", 5353))
        assert len(taken) + sum(dropped.values()) == 1
        for packet in taken:
            assert HEADER.size <= len(packet) <= MOST_BYTES
            assert not packet[2] & 0x80

    return one


def cable_seeds() -> Iterator[bytes]:
    from cable.answers import SERVICE
    from thicket.discovery.questions import browse, name, probe

    host = "n-6f44e3c6b802"
    yield browse(SERVICE, [])
    yield browse(SERVICE, [f"{host}.{SERVICE}"])
    question = probe(f"{host}.{SERVICE}", f"{host}.local.", 22, IPv6Address("fe80::1"))
    yield question
    # the same as an answer, with its records behind no questions
    records = question[question.rindex(name(f"{host}.{SERVICE}")) :]
    yield b"\0\0\x84\0\0\0\0\2\0\0\0\0" + records
    yield (
        b"\0\0\x84\0\0\0\0\1\0\0\0\0"
        + name(SERVICE)
        + (b"\0\x0c\0\1\0\0\x11\x94\0\x11\x0en-6f44e3c6b802\xc0\x0c")
    )


TARGETS: dict[str, Target] = {
    "cable": Target(make_cable, cable_seeds, longest=1600),
    "application": Target(
        make_application,
        application_seeds,
        4096,
        (
            b'"applications":[',
            b'"architecture":"',
            b'"fleet":"',
            b'"image":{"below":null,"least":"0.1"}',
            b'"modules":[',
            b'"name":"',
            b'"number":',
            b'"python":"3.13"',
            b'"sha256":"',
            b'"size":',
            b'"version":"',
        ),
    ),
    "update": Target(make_update, update_seeds, 2048),
    "etf": Target(make_etf, etf_seeds),
    "handshake": Target(
        make_handshake, handshake_seeds, 1024, (b"sok", b"salive", b"strue", b"sfalse", b"snok")
    ),
    "frames": Target(make_frames, frame_seeds),
    "messages": Target(make_messages, message_seeds, 10_000),
    "epmd": Target(make_epmd, epmd_seeds, 8192, (b"name ", b" at port ", b"\n", b"0" * 64)),
    "beacon": Target(make_beacon, beacon_seeds, 512),
    "signed_beacon": Target(make_signed_beacon, signed_beacon_seeds, 2200),
    "certificate": Target(make_certificate, certificate_seeds),
    "operator": Target(make_operator, operator_seeds),
    "compressed": Target(make_compressed, compressed_seeds, 200),
    "bundle": Target(
        make_bundle,
        bundle_seeds,
        16384,
        (
            b"hsqs",
            EDIT,
            b"[update]\n",
            b"[bundle]\n",
            b"[image.",
            b"[meta.",
            b"verity-size=",
            b"\n\n[",
        ),
    ),
    "offer": Target(
        make_offer,
        offer_seeds,
        words=(
            b"thicket update offer 1\n",
            b"thicket update order 1\n",
            b'{"',
            b'":',
            b'"',
            b",",
            b"[",
            b"]",
            b"{",
            b"}",
            b"null",
            b"true",
            b"1e999",
            b"-1",
            b"1.5",
            b"NaN",
            b"\\ud800",
            b"[" * 64,
            b"0" * 64,
            b'"canaries":',
            b'"window":',
            b'"patches":',
            b'"base":"",',
            b'"n-0123456789ab"',
            b'"23:30"',
        ),
    ),
    "reports": Target(
        make_reports, reports_seeds, 4096, (b"THU1", b"THU1\1", b"THU1\2", b"THU1\3")
    ),
    "patch": Target(
        make_patch,
        patch_seeds,
        words=(b'"base":null', b'"masks":[', b'"trees":[', b'{"', b'":', b"]", b"}", b",", b"4096"),
    ),
    "change": Target(make_change, change_seeds),
    "labels": Target(
        make_labels,
        label_seeds,
        words=(*JSON_WORDS, b'"number":', b'"labels":', b'"0000000000000007":[1,"'),
    ),
    "gateway": Target(make_gateway, gateway_seeds),
    "lease": Target(
        make_lease, lease_seeds, words=(b"nd1_", b"_length=", b"_vltime=0", b"/129", b"%", b"::")
    ),
    "summary": Target(
        make_summary,
        summary_seeds,
        words=(
            *JSON_WORDS,
            b'"state":"',
            b'"links":[[',
            b'"problem":["error","',
            b'"applications":[["',
            b'"memory":[',
        ),
    ),
    "revocations": Target(
        make_revocations,
        revocation_seeds,
        words=(
            b'{"',
            b'":',
            b'"',
            b",",
            b"[",
            b"]",
            b"{",
            b"}",
            b"null",
            b"true",
            b"1e999",
            b"-1",
            b"1.5",
            b"NaN",
            b"Infinity",
            b"\\ud800",
            b"[" * 64,
            b"0" * 64,
            b'"format":1',
            b'"fleet":',
            b'"number":',
            b'"issued":',
            b'"revoked":',
            b"2026-11-24T00:00:00Z",
            b"T",
            b"Z",
        ),
    ),
    "netlink": Target(make_netlink, netlink_seeds),
    "config": Target(
        make_config,
        config_seeds,
        65536,
        (
            b"[mesh]",
            b"[application.x]",
            b'"""',
            b"'''",
            b"= ",
            b".a",
            b'".',
            b"[[",
            b"{a=",
            b"0x",
            b"\\u",
        ),
    ),
    "release": Target(
        make_release,
        release_seeds,
        words=(b"# thicket release 1\n", b"  index.json\n", b"5" * 64, b'"files": [', b'"name": "'),
    ),
    "wpa": Target(
        make_wpa, wpa_seeds, 512, (b"<3>", b"IFNAME=", b" addr=", b"=", b'"', b"\\", b"02:00:00")
    ),
}

# SPDX-License-Identifier: Apache-2.0
"""The handshake's two state machines, against each other, bytes of Erlang's, and nonsense; and the
frames that follow it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thicket.distribution import frames, handshake
from thicket.distribution.etf import Atom, encode_bare
from thicket.distribution.frames import FrameError, FrameReader, MessageReader
from thicket.distribution.handshake import (
    ABILITIES,
    Acceptor,
    Handshake,
    HandshakeError,
    Initiator,
    LocalNode,
    RemoteNode,
    digest,
    key_of,
    split_name,
)

A = LocalNode("a@fd12::1", "secret", 4711)
B = LocalNode("b@fd12::2", "secret", 815)

# The first frame of OTP 25.2.3 started as e@fd12::2 without epmd.
FROM_ERLANG = bytes.fromhex("00184e0000000d07df7fbd6b031baf00096540666431323a3a32")


def accept_all(peer: RemoteNode) -> str:
    return handshake.OK


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(2, "big") + body


def name_frame(
    name: bytes = b"a@fd12::1", flags: int = ABILITIES, creation: int = 1, extra: bytes = b""
) -> bytes:
    return frame(
        b"N"
        + flags.to_bytes(8, "big")
        + creation.to_bytes(4, "big")
        + len(name).to_bytes(2, "big")
        + name
        + extra
    )


def challenge_frame(
    challenge: int = 7, name: bytes = b"b@fd12::2", flags: int = ABILITIES
) -> bytes:
    return frame(
        b"N"
        + flags.to_bytes(8, "big")
        + challenge.to_bytes(4, "big")
        + (815).to_bytes(4, "big")
        + len(name).to_bytes(2, "big")
        + name
    )


def failure(machine: Handshake, data: bytes) -> HandshakeError:
    with pytest.raises(HandshakeError) as caught:
        machine.receive(data)
    assert not machine.done
    return caught.value


def shake(one: Handshake, two: Handshake) -> None:
    """Carry bytes between the two until nothing is left to be sent."""
    while True:
        first, second = one.take(), two.take()
        if not first and not second:
            return
        two.receive(first)
        one.receive(second)


# --- how it should go -------------------------------------------------------------------------


def test_two_nodes_meet() -> None:
    seen: list[RemoteNode] = []

    def decide(peer: RemoteNode) -> str:
        seen.append(peer)
        return handshake.OK

    one, two = Initiator(A, B.name), Acceptor(B, decide)
    shake(one, two)
    assert one.done
    assert two.done
    flags = A.flags & B.flags
    assert one.peer == RemoteNode(B.name, flags, B.creation, published=True)
    assert two.peer == RemoteNode(A.name, flags, A.creation, published=True)
    assert seen == [two.peer]


@given(
    st.sampled_from([2, 4]),
    st.sampled_from([handshake.OK, handshake.OK_SIMULTANEOUS, handshake.ALIVE]),
    st.binary(max_size=50),
    st.randoms(use_true_random=False),
)
def test_any_cut_of_the_stream(size: int, status: str, rest: bytes, chance) -> None:  # type: ignore[no-untyped-def]
    """What follows the last frame in the same segment belongs to the connection."""
    one = Initiator(A, B.name, length_size=size)
    two = Acceptor(B, lambda peer: status, length_size=size)
    to_two, to_one = one.take(), b""
    while not (one.done and two.done):
        if to_two:
            n = chance.randint(1, len(to_two))
            two.receive(to_two[:n])
            to_two = to_two[n:]
            if two.done:
                assert not to_two
        to_one += two.take()
        if two.done:
            to_one += rest
        if to_one:
            n = len(to_one) if two.done else chance.randint(1, len(to_one))
            one.receive(to_one[:n])
            to_one = to_one[n:]
        to_two += one.take()
    assert one.rest == rest
    assert two.rest == b""
    assert one.status == status


def test_proofs_are_those_of_erlang() -> None:
    # erlang:md5([Cookie | integer_to_list(Challenge)]) of OTP 25.2.3
    assert digest("secret", 1234567890).hex().upper() == "E0FCFC1BA511FC6FE6EE357C9ADDB932"
    assert digest("s\xe4cret", 0).hex().upper() == "C13445001E95D6009696AA161393EA2E"


def test_a_frame_of_erlangs() -> None:
    two = Acceptor(B, accept_all)
    two.receive(FROM_ERLANG)
    assert two.peer is not None
    assert (two.peer.name, two.peer.creation) == ("e@fd12::2", 0x6B031BAF)
    assert two.peer.flags & handshake.FRAGMENTS
    assert two.peer.flags & handshake.SPAWN
    # Erlang offers the atom cache; the connection goes without.
    assert not two.peer.flags & handshake.DIST_HDR_ATOM_CACHE
    assert two.take().startswith(b"\0\x03sok")


def test_flags_have_the_values_of_otp() -> None:
    """0xd07df7fbd is what OTP 25.2.3 sends; every flag of ours but two is among them."""
    assert ABILITIES & ~0xD07DF7FBD == handshake.TEXT | handshake.ROSTER
    assert handshake.MANDATORY_25_DIGEST == 0x4000000


def test_otp_23_without_a_port_mapper_begins_the_old_way() -> None:
    """Its first frame has 32 bits of flags and no creation; a second one completes it."""
    two = Acceptor(B, accept_all)
    flags = ABILITIES & ~handshake.MANDATORY_25_DIGEST
    low = (flags & 0xFFFFFFFF).to_bytes(4, "big")
    two.receive(frame(b"n\0\x05" + low + b"a@fd12::1"))
    answer = two.take()
    challenge = int.from_bytes(answer[16:20], "big")
    two.receive(frame(b"c" + (flags >> 32).to_bytes(4, "big") + (99).to_bytes(4, "big")))
    two.receive(frame(b"r\0\0\0\x05" + digest("secret", challenge)))
    assert two.take() == frame(b"a" + digest("secret", 5))
    assert two.done
    assert two.peer == RemoteNode("a@fd12::1", flags, 99, published=False)
    failure(Acceptor(B, accept_all), frame(b"n\0\x04" + low + b"a@fd12::1"))


def test_what_later_versions_add_is_ignored() -> None:
    two = Acceptor(B, accept_all)
    two.receive(name_frame(extra=b"more"))
    assert two.take() != b""


# --- how it should not go ---------------------------------------------------------------------


def test_a_wrong_cookie() -> None:
    one, two = Initiator(A._replace(cookie="other"), B.name), Acceptor(B, accept_all)
    with pytest.raises(HandshakeError) as caught:
        shake(one, two)
    assert caught.value.code == "wrong-cookie"
    assert not two.done
    assert two.take() == b""  # as Erlang does, without a word
    assert one.awaits_proof
    # And a peer that accepts ours but cannot prove itself.
    one = Initiator(A, B.name)
    one.receive(frame(b"sok") + challenge_frame())
    assert failure(one, frame(b"a" + bytes(16))).code == "wrong-cookie"


def test_a_reflected_challenge_proves_nothing() -> None:
    """A peer without the cookie that sends our own proof back."""
    one = Initiator(A, B.name)
    one.receive(frame(b"sok") + challenge_frame(challenge=7))
    proof = one.take()[-16:]
    assert failure(one, frame(b"a" + proof)).code == "wrong-cookie"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (b"nok", "simultaneous"),
        (b"nonsense", "protocol"),
        (b"named:\0\x09x@fd12::1\0\0\0\x01", "protocol"),
        (b"", "protocol"),
    ],
)
def test_statuses_that_end_it(status: bytes, code: str) -> None:
    assert failure(Initiator(A, B.name), frame(b"s" + status)).code == code


def test_an_acceptor_that_takes_itself_for_connected() -> None:
    one = Initiator(A, B.name, on_alive=lambda: False)
    one.take()
    assert failure(one, frame(b"salive")).code == "connected"
    assert one.take() == frame(b"sfalse")
    two = Acceptor(B, lambda peer: handshake.ALIVE)
    two.receive(name_frame())
    assert two.take() == frame(b"salive")
    assert failure(two, frame(b"sfalse")).code == "connected"
    two = Acceptor(B, lambda peer: handshake.ALIVE)
    two.receive(name_frame())
    assert failure(two, frame(b"smaybe")).code == "protocol"


def test_an_acceptor_that_does_not_want_to() -> None:
    two = Acceptor(B, lambda peer: handshake.NOK)
    assert failure(two, name_frame()).code == "simultaneous"
    assert two.take() == frame(b"snok")

    def refuse(peer: RemoteNode) -> str:
        raise HandshakeError("wrong-source", "no")

    two = Acceptor(B, refuse)
    assert failure(two, name_frame()).code == "wrong-source"
    told = two.take()
    assert told == frame(b"snot_allowed") + frame(b"xwrong-source no")
    one = Initiator(A, B.name)
    error = failure(one, told)
    assert (error.code, error.refusal) == ("wrong-source", handshake.THEIRS)
    assert str(error) == f"{B.name} refuses this node: no"


def test_a_refusal_without_a_reason_is_one_when_the_peer_says_no_more() -> None:
    one = Initiator(A, B.name)
    one.receive(frame(b"snot_allowed"))
    assert one.refusal is not None
    assert (one.refusal.code, one.refusal.refusal) == ("not-allowed", handshake.THEIRS)
    assert failure(one, frame(b"something else")).code == "not-allowed"


def test_who_connects_may_refuse_in_place_of_its_name() -> None:
    one = Initiator(A, B.name)
    one.refuse(HandshakeError("revoked", "the device is revoked: 0123"))
    told = one.take()
    assert told == frame(b"xrevoked the device is revoked: 0123")
    error = failure(Acceptor(B, accept_all), told)
    assert (error.code, error.refusal) == ("revoked", handshake.THEIRS)
    assert "the peer refuses this node: the device is revoked: 0123" in str(error)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"", "not-allowed"),
        (b"x" * 900, "not-allowed"),
        (b"simultaneous it would have us wait for it", "not-allowed"),
        (b"EXPIRED words", "not-allowed"),
        (b"\xff\xfe\x1b[31m a\nb", "not-allowed"),
        (b"expired \x1b[31mred\nline \xff", "expired"),
        ("not-its-name n\u00e4me".encode(), "not-its-name"),
    ],
)
def test_what_a_peer_says_of_its_reasons_is_not_believed(said: bytes, code: str) -> None:
    error = failure(Acceptor(B, accept_all), frame(b"x" + said))
    assert error.code == code
    assert str(error).isprintable()
    assert len(str(error)) < 600


def test_long_reasons_fit_into_a_frame() -> None:
    data = handshake.refusal_frame(HandshakeError("expired", "\u00e4" * 2000))
    assert len(data) < handshake.MAX_FRAME
    assert handshake.read_refusal(data, "b").code == "expired"


def test_tls_where_none_is_expected() -> None:
    for data in (b"\x15\x03\x03\0\x02\x02\x46", b"\x16\x03\x01\x02\0"):
        assert failure(Acceptor(B, accept_all), data).code == "tls-required"
        assert failure(Initiator(A, B.name), data).code == "tls-required"


@pytest.mark.parametrize(
    "name",
    [
        "x",
        "@fd12::1",
        "x@",
        "x@host",
        "x@127.0.0.1",
        "x y@fd12::1",
        "x@[fd12::1]",
        "x@fd12::1%mesh0",
        "x@y@fd12::1",
        "ä@fd12::1",
        "x" * 250 + "@fd12::1",
        "x@fd12::1\n",
    ],
)
def test_names_that_no_node_has(name: str) -> None:
    two = Acceptor(B, accept_all)
    assert failure(two, name_frame(name.encode())).code == "bad-name"
    assert two.take().startswith(frame(b"snot_allowed"))


def test_all_spellings_of_a_name_have_one_key() -> None:
    host = "fd12:3456:789a:1:0:6f44:e3c6:b802"
    for spelling in (
        host,
        "fd12:3456:789a:1::6f44:e3c6:b802",  # as a device of the post names itself
        "FD12:3456:789A:1:0:6F44:E3C6:B802",
        "fd12:3456:789a:0001:0000:6f44:e3c6:b802",
        "fd12:3456:789a:1::6f44:227.198.184.2",
    ):
        assert split_name(f"my_app-2@{spelling}") == ("my_app-2", host)
        assert key_of(f"my_app-2@{spelling}") == f"my_app-2@{host}"
    for other in ("my_app-2", "x@host", "x@fd12::1%mesh0", "", "x" * 300):
        assert key_of(other) == other


def test_the_peer_keeps_its_own_spelling() -> None:
    there = LocalNode("b@FD12::0:0002", "secret", 2)
    one, two = Initiator(A, B.name), Acceptor(there, accept_all)
    shake(one, two)
    assert one.peer is not None
    assert (one.done, one.peer.name) == (True, there.name)
    # It connects, too.
    one, two = Initiator(there, A.name), Acceptor(A, accept_all)
    shake(one, two)
    assert two.peer is not None
    assert (two.done, two.peer.name) == (True, there.name)
    # Another address, or another name at the address, is another node.
    for other in ("b@fd12::3", "c@fd12::2", "b@fd12::0:2%lo", "b"):
        one = Initiator(A, B.name)
        one.receive(frame(b"sok"))
        assert failure(one, challenge_frame(name=other.encode())).code == "wrong-peer"


def test_a_name_that_is_no_text() -> None:
    assert failure(Acceptor(B, accept_all), name_frame(b"\xff@fd12::1")).code == "bad-name"


def test_missing_abilities() -> None:
    bare = ABILITIES & ~handshake.MANDATORY_25_DIGEST
    for bit in (handshake.BIG_CREATION, handshake.MAP_TAG, handshake.UTF8_ATOMS):
        error = failure(Acceptor(B, accept_all), name_frame(flags=bare & ~bit))
        assert error.code == "missing-flags"
        assert ("BIG_CREATION" in str(error)) == (bit == handshake.BIG_CREATION)
    # The digest stands for all of them (OTP 25), and all of them for the digest.
    for flags in (handshake.MANDATORY_25_DIGEST, bare):
        two = Acceptor(B, accept_all)
        two.receive(name_frame(flags=flags))
        assert two.peer is not None
        assert two.peer.flags & handshake.MANDATORY == handshake.MANDATORY


def test_a_node_that_wants_a_name_is_not_allowed() -> None:
    error = failure(
        Acceptor(B, accept_all), name_frame(b"fd12::1", flags=ABILITIES | handshake.NAME_ME)
    )
    assert error.code == "not-allowed"


def test_another_node_than_expected() -> None:
    one = Initiator(A, B.name)
    assert failure(one, frame(b"sok") + challenge_frame(name=b"c@fd12::2")).code == "wrong-peer"


@pytest.mark.parametrize("size", [0, 1025, 65535])
@pytest.mark.parametrize("make", [lambda: Initiator(A, B.name), lambda: Acceptor(B, accept_all)])
def test_frames_of_a_wrong_length(make: Callable[[], Handshake], size: int) -> None:
    assert failure(make(), size.to_bytes(2, "big")).code == "protocol"


def test_frames_in_the_wrong_order_or_cut_short() -> None:
    acceptor_steps = [name_frame(), frame(b"r" + bytes(20))]
    initiator_steps = [frame(b"sok"), challenge_frame(), frame(b"a" + bytes(16))]
    for make, steps in (
        (lambda: Acceptor(B, accept_all), acceptor_steps),
        (lambda: Initiator(A, B.name), initiator_steps),
    ):
        for position, step in enumerate(steps):
            for wrong in (
                frame(b"?"),
                frame(step[2:-1]),
                *steps[:position],
                *steps[position + 1 :],
            ):
                machine: Handshake = make()
                for earlier in steps[:position]:
                    machine.receive(earlier)
                assert failure(machine, wrong).code in ("protocol", "wrong-peer", "bad-name")


@given(st.lists(st.binary(max_size=80), max_size=6), st.booleans())
@settings(max_examples=500)
def test_arbitrary_bytes(parts: list[bytes], framed: bool) -> None:
    starts: list[tuple[Callable[[], Handshake], list[bytes]]] = [
        (lambda: Acceptor(B, accept_all), [b"", name_frame()]),
        (lambda: Initiator(A, B.name), [b"", frame(b"sok"), frame(b"sok") + challenge_frame()]),
    ]
    for make, beginnings in starts:
        for beginning in beginnings:
            machine = make()
            with suppress(HandshakeError):
                machine.receive(beginning)
                for part in parts:
                    machine.receive(frame(part) if framed and part else part)
            assert not machine.done  # nobody guesses a proof
            assert len(machine._buffer) <= handshake.MAX_FRAME + 2


# --- frames -----------------------------------------------------------------------------------

CONTROL = (frames.REG_SEND, Atom("a"), Atom(""), Atom("sink"))


@given(
    st.lists(
        st.one_of(st.none(), st.binary(max_size=40), st.just(bytes(range(256)) * 600)), max_size=8
    ),
    st.booleans(),
    st.booleans(),
    st.integers(1, 70_000),
)
@settings(max_examples=100, deadline=None)
def test_messages_come_out_as_they_went_in(
    payloads: list[bytes | None], header: bool, fragments: bool, cut: int
) -> None:
    wire = b""
    for number, payload in enumerate(payloads):
        body = encode_bare(payload) if payload is not None else None
        sequence = number if header and fragments else None
        wire += b"".join(frames.build(encode_bare(CONTROL), body, header=header, sequence=sequence))
        wire += frames.TICK
    cut = max(cut, len(wire) // 4000)  # a megabyte byte by byte takes too long
    messages = MessageReader(header=header)
    reader = FrameReader(messages.max_frame)
    found = []
    ticks = 0
    for start in range(0, len(wire), cut):
        for part in reader.feed(wire[start : start + cut]):
            if not part:
                ticks += 1
            elif (message := messages.feed(part)) is not None:
                found.append(message)
    assert ticks == len(payloads)
    assert [control for control, _ in found] == [CONTROL] * len(payloads)
    assert [body for _, body in found] == [
        encode_bare(payload) if payload is not None else None for payload in payloads
    ]


def in_fragments(sequence: int, size: int, control: object = CONTROL) -> list[bytes]:
    """Return the frames of a message, without their lengths."""
    wire = frames.build(encode_bare(control), b"x" * size, header=True, sequence=sequence)
    return FrameReader(1 << 20).feed(b"".join(wire))


def test_fragments_as_the_protocol_describes_them() -> None:
    first, second = in_fragments(7, frames.FRAGMENT_SIZE + 1, (1,))
    assert first[:23] == (
        b"\x83\x45" + (7).to_bytes(8, "big") + (2).to_bytes(8, "big") + b"\0" + b"h\x01a\x01"
    )
    assert second == b"\x83\x46" + (7).to_bytes(8, "big") + (1).to_bytes(8, "big") + b"x"


def test_fragments_of_several_messages_interleave() -> None:
    messages = MessageReader(header=True)
    one, two = in_fragments(1, 200_000), in_fragments(2, 150_000)
    found = []
    for a, b in zip(one[:3], two, strict=True):
        found += [messages.feed(a), messages.feed(b)]
    found.append(messages.feed(one[3]))
    sizes = [len(message[1] or b"") for message in found if message is not None]
    assert sizes == [150_000, 200_000]


def test_fragments_out_of_order() -> None:
    one = in_fragments(1, 200_000)
    for wrong in (one[1], one[0][:2] + one[0][2:10] + bytes(8) + one[0][18:]):
        with pytest.raises(FrameError, match="order"):
            MessageReader(header=True).feed(wrong)
    for wrong in (one[0], one[2]):
        messages = MessageReader(header=True)
        messages.feed(one[0])
        with pytest.raises(FrameError, match="order"):
            messages.feed(wrong)


def test_messages_that_are_too_long_are_dropped_whole() -> None:
    messages = MessageReader(header=True, max_message=100_000)
    for number in range(3):
        assert [messages.feed(part) for part in in_fragments(number, 150_000)] == [None] * 3
    assert messages.discarded == 3
    small = [messages.feed(part) for part in in_fragments(9, 90_000)]
    assert small[-1] == (CONTROL, b"x" * 90_000)
    assert (messages.held, messages._partial) == (0, {})


def test_incomplete_messages_are_bounded_together() -> None:
    messages = MessageReader(header=True, max_message=100_000)
    for number in range(10):
        assert messages.feed(in_fragments(number, 90_000)[0]) is None
        assert messages.held <= 200_000
    assert messages.discarded == 7
    for number in range(10, frames.MAX_SEQUENCES):
        messages.feed(in_fragments(number, 90_000)[0])
    with pytest.raises(FrameError, match="4096 messages"):
        messages.feed(in_fragments(9999, 90_000)[0])


def test_a_frame_that_is_too_long() -> None:
    reader = FrameReader(1000)
    assert reader.feed((1000).to_bytes(4, "big")) == []
    with pytest.raises(FrameError, match="limit 1000"):
        FrameReader(1000).feed((1001).to_bytes(4, "big") + bytes(1001))


@pytest.mark.parametrize(
    ("header", "wrong"),
    [
        (False, b"\x83\x44\0h\x01a\x01"),
        (False, b"\x70\x83h\x01a\x01\x00"),
        (False, b"\x70\x83a\x01"),
        (True, b"\x70\x83h\x01a\x01"),
        (True, b"\x83\x44\x01h\x01a\x01"),
        (True, b"\x83\x45" + bytes(16) + b"\x01h\x01a\x01"),
        (True, b"\x83\x44\0a\x01"),
        (True, b"\x83\x44\0h\0"),
        (True, b"\x83\x44\0h\x01w\x01a"),
        (True, b"\x83\x47\0"),
        (True, b"\x83\x46\0"),
        (True, b"\x83"),
    ],
)
def test_frames_that_are_no_messages(header: bool, wrong: bytes) -> None:
    with pytest.raises(FrameError):
        MessageReader(header=header).feed(wrong)


@given(st.lists(st.binary(max_size=100), max_size=8), st.booleans())
@settings(max_examples=500)
def test_arbitrary_frames(parts: list[bytes], header: bool) -> None:
    for head in (b"", b"\x70\x83h", b"\x83\x44\0h", b"\x83\x45", b"\x83\x46"):
        reader = FrameReader(1000)
        messages = MessageReader(header=header, max_message=1000)
        with suppress(FrameError):
            for part in parts:
                for raw in reader.feed(part):
                    if raw:
                        messages.feed(raw)
        with suppress(FrameError):
            for part in parts:
                messages.feed(head + part)
        assert messages.held <= 2000

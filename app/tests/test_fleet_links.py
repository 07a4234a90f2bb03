# SPDX-License-Identifier: Apache-2.0
"""A fleet's nodes inside TLS: who is refused on which side, and what both sides learn of it."""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from erlang import Erl, Release, a_real_epmd, in_each_release, in_oldest_and_newest, mapped
from fleet_for_tests import CLOCK, TestFleet, one_fleet
from patience import PATIENCE
from private_network import Network, in_private_network, until
from told import Told

from authority import stock
from thicket.distribution import DistributionError, Node, admission
from thicket.distribution.events import NodeDown, Refused
from thicket.distribution.secure import Shared, TlsTransport, explained
from thicket.trust import tls as fleet_tls
from thicket.trust.credentials import Credentials, FileKey, make_credentials
from thicket.trust.tls import FleetTls
from thicket.trust.verify import REASONS, Clock, Rules

FLEET, OTHER = one_fleet(), one_fleet("other")


def now() -> Clock:
    # Erlang looks at the machine's clock
    return Clock(CLOCK.floor, datetime.now(UTC))


LONG_AGO = Clock(CLOCK.floor, CLOCK.floor + timedelta(days=1))


async def credentials(
    device: FileKey, fleet: TestFleet = FLEET, clock: Clock | None = None
) -> Credentials:
    return await make_credentials(device, fleet.fleet, clock or now())


class Policy:
    """A node's TLS, and what it is asked about peers."""

    def __init__(self, mine: Credentials, fleet: TestFleet = FLEET) -> None:
        self.revoked: set[str] = set()
        self.chip_required = False
        self.mine = mine
        self.tls = FleetTls(
            fleet.fleet,
            mine,
            lambda: Rules(now(), self.revoked, chip_required=self.chip_required),
        )


@contextmanager
def what_is_logged() -> Iterator[list[str]]:
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(f"{record.levelname} {record.getMessage()}")

    handler = Keep()
    logger = logging.getLogger("thicket")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@asynccontextmanager
async def a_node(
    network: Network, policy: Policy, address: IPv6Address | None = None, **options: Any
) -> AsyncIterator[tuple[Node, Told]]:
    if not network.private:
        pytest.skip("needs a network of its own, which this machine does not permit")
    address = address or policy.mine.peer.address
    with suppress(OSError):  # it is there
        network.add(address)
    events = Told()
    node = Node(
        "thicket",
        "secret",
        address,
        0,
        epmd_port=network.epmd_port,
        tls=policy.tls,
        listener=events,
        **{"setup_time": PATIENCE, **options},
    )
    await node.start()
    try:
        await mapped(node)
        yield node, events
    finally:
        await node.stop()


async def failure(attempt: Awaitable[object]) -> DistributionError:
    with pytest.raises(DistributionError) as caught:
        await attempt
    return caught.value


async def a_refusal(
    refusing: Node, refused: Node, dialler: Node, code: str, lines: list[str]
) -> str:
    """Let ``dialler``, one of both, connect; both sides must learn ``code``. Returns the words."""
    other = refused if dialler is refusing else refusing
    del lines[:]
    counted = refusing.statistics()["refused"].get(code, 0)
    told = refused.statistics()["refused_by"].get(code, 0)
    error = await failure(dialler.connect(other.name, PATIENCE))
    assert error.code == code, (error, lines)
    await until(
        lambda: refusing.statistics()["refused"].get(code, 0) == counted + 1,
        f"counted by who refuses: {refusing.statistics()}",
    )
    await until(
        lambda: refused.statistics()["refused_by"].get(code, 0) == told + 1,
        f"counted by who is refused: {refused.statistics()} {lines}",
    )
    assert not refusing.nodes()
    assert not refused.nodes()
    return str(error)


# Each case makes the policy of a node that `SERVER` does not want: on its own address, or another.


async def other_fleet(server: Policy) -> tuple[Policy, str]:
    mine = await credentials(OTHER.device(2)[0], OTHER)
    policy = Policy(await credentials(FLEET.device(2)[0]))
    policy.mine = mine
    policy.tls.use(mine)  # it trusts our fleet, and shows another's certificate
    return policy, "other-fleet"


async def expired(server: Policy) -> tuple[Policy, str]:
    return Policy(await credentials(FLEET.device(2)[0], clock=LONG_AGO)), "expired"


async def revoked(server: Policy) -> tuple[Policy, str]:
    policy = Policy(await credentials(FLEET.device(2)[0]))
    server.revoked.add(policy.mine.peer.device)
    return policy, "revoked"


async def revoked_signer(server: Policy) -> tuple[Policy, str]:
    server.revoked.add("Signer 0001")
    return Policy(await credentials(FLEET.device(2)[0])), "revoked"


async def not_its_address(server: Policy) -> tuple[Policy, str]:
    return Policy(await credentials(FLEET.device(3)[0])), "not-its-address"


async def software(server: Policy) -> tuple[Policy, str]:
    server.chip_required = True
    return Policy(await credentials(FLEET.software()[0])), "software-identity"


CASES = [other_fleet, expired, revoked, revoked_signer, not_its_address, software]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_who_is_refused_and_both_sides_know_why(
    case: Callable[[Policy], Awaitable[tuple[Policy, str]]],
) -> None:
    async def body(network: Network) -> None:
        one = Policy(await credentials(FLEET.device(1)[0]))
        two, code = await case(one)
        address = two.mine.peer.address
        if case is not_its_address:
            address = (await credentials(FLEET.device(2)[0])).peer.address
        with what_is_logged() as lines:
            async with a_node(network, one) as (a, heard), a_node(network, two, address) as (b, _):
                for dialler in (b, a):
                    words = await a_refusal(a, b, dialler, code, lines)
                    assert code == "other-fleet" or REASONS[code] in words
                ours = heard.of(Refused)
                assert ours, heard
                assert {event.code for event in ours} == {code}
                assert {event.source for event in ours} == {b.host}
                if code != "other-fleet":  # who it is, when OpenSSL has found the chain good
                    assert {event.name for event in ours} == {b.name}
                    assert all(two.mine.peer.device in event.message for event in ours)

    in_private_network(body)()


@in_private_network
async def test_each_side_logs_a_refusal_once_and_not_a_thousand_times(network: Network) -> None:
    now = 1000.0
    one = Policy(await credentials(FLEET.device(1)[0]))
    two, code = await revoked(one)
    with pytest.MonkeyPatch.context() as patch, what_is_logged() as lines:
        # A minute, in which twenty connections are refused, lasts as long as these need.
        patch.setattr(admission, "time", SimpleNamespace(monotonic=lambda: now))
        async with a_node(network, one) as (a, _), a_node(network, two) as (b, _):

            async def refusals(count: int) -> list[str]:
                """Return the warnings so far when there have been so many."""
                while b.statistics()["refused_by"].get(code, 0) < count:
                    assert (await failure(b.connect(a.name, PATIENCE))).code == code
                await until(lambda: a.statistics()["refused"] == {code: count}, "on both sides")
                return [line for line in lines if line.startswith("WARNING") and "refused" in line]

            first = await refusals(20)
            now += 61
            second = (await refusals(21))[len(first) :]
    assert len(first) == 2, first
    (ours,) = (line for line in first if "refused a connection" in line)
    (theirs,) = (line for line in first if "refused by" in line)
    for words in (b.host, b.name, two.mine.peer.device, "(revoked)"):
        assert words in ours
    for words in (a.host, a.name, "(revoked)", REASONS[code]):
        assert words in theirs
    assert len(second) == 2, second
    assert all("(19 more since the last of these lines)" in line for line in second)


@in_private_network
async def test_no_certificate_no_tls_and_nothing_at_all(network: Network) -> None:
    one = Policy(await credentials(FLEET.device(1)[0]))
    two = Policy(await credentials(FLEET.device(2)[0]))
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.load_verify_locations(cadata=FLEET.fleet.root.der)
    bare.verify_flags |= ssl.VerifyFlags(fleet_tls.NO_CHECK_TIME)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with what_is_logged() as lines:
        async with a_node(network, one) as (a, _), a_node(network, two) as (b, _):
            good, two.tls.client = two.tls.client, bare
            await a_refusal(a, b, b, "no-certificate", lines)
            two.tls.client = old
            await a_refusal(a, b, b, "tls-version", lines)
            two.tls.client = good

            for said in (b"\0\x20N" + bytes(31), b"GET / HTTP/1.0\r\n\r\n", b"\x80", b"\0"):
                reader, writer = await asyncio.open_connection(a.host, a.port)
                writer.write(said)
                async with asyncio.timeout(PATIENCE):
                    assert await reader.read() == b"\x15\3\3\0\2\2\x46"
                writer.close()
            await until(lambda: a.statistics()["refused"]["no-tls"] == 4, "counted")

            # A record of TLS with nonsense in it, and an end in the middle.
            reader, writer = await asyncio.open_connection(a.host, a.port)
            writer.write(b"\x16\3\1\0\4" + b"\xff" * 4)
            async with asyncio.timeout(PATIENCE):
                await reader.read()
            writer.close()
            await until(lambda: a.statistics()["refused"].get("tls") == 1, "nonsense is refused")
            _, writer = await asyncio.open_connection(a.host, a.port)
            writer.write(b"\x16\3\1")
            writer.close()
            await until(lambda: a.statistics()["abandoned"] == 1, "who gives up is no attacker")
            await b.connect(a.name, PATIENCE)


@in_private_network
async def test_a_peer_that_stalls_in_the_handshake_of_tls(network: Network) -> None:
    """It holds its place for the setup time, and eight of one address are all there are."""
    one = Policy(await credentials(FLEET.device(1)[0]))
    two = Policy(await credentials(FLEET.device(2)[0]))
    async with a_node(network, one) as (a, _), a_node(network, two) as (b, _):
        streams = [await asyncio.open_connection(a.host, a.port) for _ in range(9)]
        async with asyncio.timeout(PATIENCE):
            with suppress(ConnectionResetError):
                assert await streams[0][0].read() == b""
        await until(lambda: a.statistics()["refused"].get("too-many") == 1, "one is too many")
        await b.connect(a.name, PATIENCE)  # from another address
        for _, writer in streams:
            writer.close()
        await until(lambda: a.statistics()["handshakes"] == 0, "all have gone")
    async with a_node(network, one, setup_time=0.2) as (a, _), a_node(network, two) as (b, _):
        streams = [await asyncio.open_connection(a.host, a.port) for _ in range(8)]
        await until(lambda: a.statistics()["refused"].get("timeout") == 8, "all are closed")
        assert a.statistics()["handshakes"] == 0
        for _, writer in streams:
            writer.close()

        # Who is connected to may stall as well.
        held: list[Any] = []
        server = await asyncio.start_server(lambda *streams: held.append(streams), b.host, a.port)
        error = await failure(a.connect(f"silent@{b.host}", PATIENCE))
        assert error.code == "timeout"
        assert "TLS" in str(error)
        for _, writer in held:
            writer.close()
        server.close()


@in_private_network
async def test_a_revocation_ends_open_links(network: Network) -> None:
    one = Policy(await credentials(FLEET.device(1)[0]))
    two = Policy(await credentials(FLEET.device(2)[0]))
    three = Policy(await credentials(FLEET.software()[0]))
    async with (
        a_node(network, one) as (a, events),
        a_node(network, two) as (b, _),
        a_node(network, three) as (c, _),
    ):
        await a.connect(b.name, PATIENCE)
        await c.connect(a.name, PATIENCE)
        await until(lambda: len(a.nodes()) == 2, "both are there")
        assert a.recheck() == []
        watching = a.monitor(current=False)
        one.revoked.add(two.mine.peer.device)
        assert a.recheck() == [b.name]
        async with asyncio.timeout(PATIENCE):
            event = await anext(aiter(watching))
        assert (event.kind, event.name, event.code) == ("down", b.name, "revoked")
        assert REASONS["revoked"] in event.reason
        (down,) = events.of(NodeDown)
        assert (down.name, down.code) == (b.name, "revoked")
        await until(lambda: not b.nodes(), "it is cut off")
        assert a.connected(c.name)
        assert a.statistics()["refused"] == {"revoked": 1}
        assert (await failure(b.connect(a.name, PATIENCE))).code == "revoked"
        # A change of policy is one, too.
        one.chip_required = True
        assert a.recheck() == [c.name]
        await until(lambda: not c.nodes(), "it is cut off")
        assert (await failure(c.connect(a.name, PATIENCE))).code == "software-identity"
        assert a.nodes() == []
        # And what was taken back holds.
        one.revoked.clear()
        await b.connect(a.name, PATIENCE)


@in_private_network
async def test_renewal_under_load_drops_no_link(network: Network) -> None:
    """Running servers and clients take renewed credentials; open links and calls go on."""
    one = Policy(await credentials(FLEET.device(1)[0]))
    two = Policy(await credentials(FLEET.device(2)[0]))
    three = Policy(await credentials(FLEET.device(3)[0]))
    async with (
        a_node(network, one) as (a, events),
        a_node(network, two) as (b, _),
        a_node(network, three) as (c, _),
    ):

        @a.export("load.size")
        def size(data: bytes) -> int:
            return len(data)

        await b.connect(a.name, PATIENCE)
        await until(lambda: a.connected(b.name), "connected")
        before = a.connections[b.name]
        calls = 0
        going_on = True

        async def load() -> None:
            nonlocal calls
            data = bytes(200_000)
            while going_on:
                assert await b.call(a.name, "load.size", data, timeout=PATIENCE) == len(data)
                calls += 1

        tasks = [asyncio.create_task(load()) for _ in range(4)]
        keys = set()
        for turn in range(5):
            for policy, device in ((one, 1), (two, 2)):
                policy.tls.use(await credentials(FLEET.device(device)[0]))
            done = calls
            await until(lambda done=done: calls >= done + 10, "calls go on", 120)  # type: ignore[misc]
            # New links see the new key, on whichever side they begin.
            await (c.connect(a.name, 60) if turn % 2 else a.connect(c.name, PATIENCE))
            await until(lambda: c.connected(a.name), "connected")
            seen = fleet_tls.check_connection(
                c.connections[a.name].ssl_object, FLEET.fleet, clock=now()
            )
            keys.add(seen.public_key)
            c.disconnect(a.name)
            await until(lambda: not a.connected(c.name) and not c.nodes(), "apart")
        going_on = False
        await asyncio.gather(*tasks)
        assert len(keys) == 5
        assert one.mine.peer.public_key not in keys
        assert a.connections[b.name] is before
        assert a.recheck() == b.recheck() == []
        assert [event.name for event in events.of(NodeDown)] == [c.name] * 5


@in_private_network
async def test_a_check_that_breaks_lets_nobody_in(network: Network) -> None:
    one = Policy(await credentials(FLEET.device(1)[0]))
    two = Policy(await credentials(FLEET.device(2)[0]))

    def broken(ssl_object: Any, host: str, name: str) -> None:
        raise RuntimeError("no clock")

    with what_is_logged() as lines:
        async with a_node(network, one) as (a, _), a_node(network, two) as (b, _):
            good = one.tls.check
            one.tls.check = broken  # type: ignore[method-assign]
            for dialler in (b, a):
                await a_refusal(a, b, dialler, "tls", lines)
                assert "no clock" not in "".join(b.statistics()["refused_by"])
            one.tls.check = good  # type: ignore[method-assign]
            await b.connect(a.name, PATIENCE)


def test_alerts_in_plain_words() -> None:
    def said(reason: str) -> tuple[str, str]:
        error = ssl.SSLError(1, f"[SSL: {reason}]")
        error.reason = reason
        found = explained(error, "b")
        return found.code, found.refusal

    assert said("TLSV1_ALERT_UNKNOWN_CA") == ("other-fleet", "theirs")
    assert said("TLSV13_ALERT_CERTIFICATE_REQUIRED") == ("no-certificate", "theirs")
    assert said("SSLV3_ALERT_CERTIFICATE_EXPIRED") == ("expired", "theirs")
    assert said("TLSV1_ALERT_SOMETHING_NEW") == ("tls", "theirs")
    assert said("PEER_DID_NOT_RETURN_A_CERTIFICATE") == ("no-certificate", "ours")
    assert said("SOMETHING_NEW") == ("tls", "ours")


async def test_closing_towards_a_peer_that_has_gone_already() -> None:
    """The kernel may know no connection any more when its end is to be told."""

    class Gone(asyncio.Transport):
        aborted = False

        def can_write_eof(self) -> bool:
            return True

        def write_eof(self) -> None:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

        def abort(self) -> None:
            self.aborted = True

    class Heard:
        """A connection whose peer has said something."""

        heard = True

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert transport is not gone

    mine = await credentials(FLEET.device(1)[0])
    shared, gone = Shared(), Gone()
    context = FleetTls(FLEET.fleet, mine, lambda: Rules(now())).server
    transport = TlsTransport(Heard(), context, shared, server_side=True)  # type: ignore[arg-type]
    transport.connection_made(gone)
    transport.close()
    assert gone.aborted
    assert not shared.lingering


# --- with Erlang --------------------------------------------------------------------------------


@asynccontextmanager
async def an_erlang(
    network: Network,
    release: Release,
    mine: Credentials,
    *,
    address: IPv6Address | None = None,
    certificate: bool = True,
) -> AsyncIterator[Erl]:
    """Run a stock node with the files that ``thicket ca node`` makes."""
    if not network.private:
        pytest.skip("needs a network of its own, which this machine does not permit")
    address = address or mine.peer.address
    with suppress(OSError):
        network.add(address)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="guest-")))
        files = stock.files(folder, FLEET.fleet, mine)
        if not certificate:
            head, client = files["ssl_dist.conf"].split("{client,")
            client = re.sub(r'\{(certfile|keyfile),"[^"]*"\},', "", client)
            files["ssl_dist.conf"] = head + "{client," + client
        for name, text in files.items():
            (folder / name).write_text(text)
        erlc = Path(release.erl).parent / "erlc"
        process = await asyncio.create_subprocess_exec(
            erlc, "-o", str(folder), str(folder / f"{stock.MODULE}.erl")
        )
        assert await process.wait() == 0
        options = ["-ssl_dist_optfile", str(folder / "ssl_dist.conf"), "-pa", str(folder)]
        async with await Erl.start(
            network, "e", address, release=release, proto="inet6_tls", options=options
        ) as erl:
            yield erl


async def theirs(node: Node, erl: Erl, which: str, code: str) -> None:
    """Let Erlang connect until ``node`` has counted one refusal more; Erlang must see a failure.

    More than once, as on a busy machine either side may give up before it comes to that.
    """
    begin = node.statistics()[which].get(code, 0)
    for _ in range(20):
        assert await erl.eval(f"net_adm:ping('{node.name}')") == "pang"
        with suppress(AssertionError):
            await until(lambda: node.statistics()[which].get(code, 0) > begin, code, 3)
            return
    raise AssertionError(f"no refusal for {code}: {node.statistics()} {erl.log}")


async def ours(node: Node, erl: Erl, code: str) -> None:
    """Connect to Erlang until that fails for the reason that is wanted.

    A stock node may reset the connection when it has refused us, before its alert is read.
    """
    for _ in range(20):
        error = await failure(node.connect(erl.name, PATIENCE))
        if error.code == code:
            return
        assert error.code in ("closed", "tls", "timeout"), (str(error), erl.log)
    raise AssertionError(f"no refusal for {code}: {error}, {node.statistics()} {erl.log}")


@in_each_release
async def test_erlang_with_a_guests_files_is_one_of_the_cluster(
    network: Network, release: Release
) -> None:
    one = Policy(await credentials(FLEET.device(1)[0]))
    guest = await credentials(FLEET.software()[0])
    async with (
        a_real_epmd(network),
        a_node(network, one, max_message=20_000_000) as (node, _),
        an_erlang(network, release, guest) as erl,
    ):
        node.export("lists.sort")(in_order)
        for direction in ("theirs", "ours"):
            if direction == "theirs":
                await erl.until(f"net_adm:ping('{node.name}')", "pong")
            else:
                await node.connect(erl.name, PATIENCE)
            await erl.until("nodes()", [node.name])
            assert node.connections[erl.name].ssl_object.version() == "TLSv1.3"
            assert await node.call(erl.name, "lists.sort", [2, 1], timeout=PATIENCE) == [1, 2]
            assert await erl.eval(f"erpc:call('{node.name}', lists, sort, [[2,1]])") == [1, 2]
            data = bytes(range(250)) * 40_000
            assert await node.call(erl.name, "erlang.byte_size", data, timeout=PATIENCE) == len(
                data
            )
            box = node.mailbox("box")
            await erl.eval(f"{{box, '{node.name}'}} ! binary:copy(<<7>>, 10000000), ok")
            assert await box.get() == b"\7" * 10_000_000
            box.close()
            if direction == "theirs":
                node.disconnect(erl.name)
                await erl.until("nodes()", [])
        # Renewed credentials are used by the next connection, and this one stays.
        one.tls.use(await credentials(FLEET.device(1)[0]))
        assert await node.call(erl.name, "erlang.abs", -1, timeout=PATIENCE) == 1
        # A revocation ends the open link, and there is no way back.
        one.revoked.add(guest.peer.device)
        assert node.recheck() == [erl.name]
        await erl.until("nodes()", [])
        await theirs(node, erl, "refused", "revoked")
        await ours(node, erl, "revoked")
        one.revoked.clear()
        # It has lived through all that.
        await erl.until(f"net_adm:ping('{node.name}')", "pong")


def in_order(values: list[int]) -> list[int]:
    return sorted(values)


@in_oldest_and_newest
async def test_erlang_is_refused_for_the_same_reasons(network: Network, release: Release) -> None:
    one = Policy(await credentials(FLEET.device(1)[0]))
    guest = await credentials(FLEET.software()[0])
    async with a_real_epmd(network), a_node(network, one) as (node, _):

        async def both_ways(erl: Erl, code: str) -> None:
            await theirs(node, erl, "refused", code)
            await ours(node, erl, code)
            assert node.nodes() == []

        async with an_erlang(network, release, guest) as erl:
            one.chip_required = True
            await both_ways(erl, "software-identity")
            one.chip_required = False
            # Erlang refuses us, and its alerts say why.
            for mine, code in (
                (await credentials(OTHER.device(1)[0], OTHER), "other-fleet"),
                (await credentials(FLEET.device(1)[0], clock=LONG_AGO), "expired"),
            ):
                one.tls.use(mine)
                await ours(node, erl, code)
                await theirs(node, erl, "refused_by", code)
            # Another device's certificate: Erlang asks for the address when it connects.
            one.tls.use(await credentials(FLEET.device(2)[0]))
            assert await erl.eval(f"net_adm:ping('{node.name}')") == "pang"
            one.tls.use(one.mine)
            await erl.until(f"net_adm:ping('{node.name}')", "pong")
        foreign = await credentials(OTHER.software()[0], OTHER)
        async with an_erlang(network, release, foreign) as erl:
            await both_ways(erl, "other-fleet")
        old = await credentials(FLEET.software()[0], clock=LONG_AGO)
        async with an_erlang(network, release, old) as erl:
            await both_ways(erl, "expired")
        other = await credentials(FLEET.software(b"\6\5\4\3\2\1")[0])
        async with an_erlang(network, release, other, address=guest.peer.address) as erl:
            await both_ways(erl, "not-its-address")
        async with an_erlang(network, release, guest, certificate=False) as erl:
            await theirs(node, erl, "refused", "no-certificate")

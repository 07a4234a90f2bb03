# SPDX-License-Identifier: Apache-2.0
"""TLS between nodes: real handshakes by Python's ssl in memory and on loopback, and by openssl."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
from datetime import timedelta
from ipaddress import IPv6Address
from pathlib import Path

import pytest
from fleet_for_tests import CLOCK, NOW, one_fleet
from patience import PATIENCE

from thicket.distribution.handshake import HandshakeError
from thicket.trust import certificates as x509
from thicket.trust import der, openssl, tls, verify
from thicket.trust import fleet as fleets
from thicket.trust.certificates import Certificate
from thicket.trust.credentials import Credentials, FileKey, key_pem, make_credentials
from thicket.trust.signed_beacon import SignedBeacons
from thicket.trust.tls import FleetTls
from thicket.trust.verify import Clock, Proven, RefusedError, Rules

FLEET, OTHER = one_fleet(), one_fleet("other")
ONE, ONE_KEY = FLEET.device(1)


def credentials(device: FileKey, clock: Clock = CLOCK) -> Credentials:
    fleet = OTHER if device.chain[1] == OTHER.signer else FLEET
    return asyncio.run(make_credentials(device, fleet.fleet, clock))


SERVER, CLIENT = credentials(ONE), credentials(FLEET.device(2)[0])


def handshake(
    server: ssl.SSLContext, client: ssl.SSLContext
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Let two contexts shake hands in memory; raises what either side raises."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    left = server.wrap_bio(to_server, to_client, server_side=True)
    right = client.wrap_bio(to_client, to_server, server_side=False)
    for _ in range(10):
        pending = 0
        for side in (right, left):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pending += 1
        if not pending:
            return left, right
    raise AssertionError("the handshake does not end")


def contexts(
    server: Credentials = SERVER, client: Credentials = CLIENT
) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    return tls.server_context(server, FLEET.fleet), tls.client_context(client, FLEET.fleet)


def test_both_sides_know_each_other() -> None:
    left, right = handshake(*contexts())
    assert left.version() == right.version() == "TLSv1.3"
    client = tls.check_connection(left, FLEET.fleet, clock=CLOCK)
    server = tls.check_connection(
        right,
        FLEET.fleet,
        clock=CLOCK,
        address=SERVER.peer.address,
        node=f"thicket@{SERVER.peer.address}",
        chip_required=True,
    )
    assert (client, server) == (CLIENT.peer, SERVER.peer)
    assert [len(tls.peer_chain(side)) for side in (left, right)] == [4, 4]


def test_the_reason_is_known_when_somebody_is_refused() -> None:
    left, right = handshake(*contexts())
    for arguments, reason in (
        ({"address": IPv6Address("fd12:3456:789a:1::42")}, verify.NOT_ITS_ADDRESS),
        ({"node": "thicket@n-000000000042"}, verify.NOT_ITS_ADDRESS),
        ({"revoked": [SERVER.peer.device]}, verify.REVOKED),
        ({"clock": Clock(CLOCK.floor, NOW + timedelta(days=9))}, verify.EXPIRED),
    ):
        with pytest.raises(RefusedError) as caught:
            tls.check_connection(right, FLEET.fleet, **{"clock": CLOCK, **arguments})  # type: ignore[arg-type]
        assert caught.value.reason == reason
    # effective on an open connection: it was good a moment ago
    tls.check_connection(left, FLEET.fleet, clock=CLOCK)
    with pytest.raises(RefusedError):
        tls.check_connection(left, FLEET.fleet, clock=CLOCK, revoked=[CLIENT.peer.device])


def test_another_fleet_does_not_get_through_the_handshake() -> None:
    foreign = credentials(OTHER.device(1)[0])
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tls.server_context(SERVER, FLEET.fleet), tls.client_context(foreign, OTHER.fleet))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tls.server_context(foreign, OTHER.fleet), tls.client_context(CLIENT, FLEET.fleet))
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        handshake(tls.server_context(SERVER, FLEET.fleet), tls.client_context(foreign, FLEET.fleet))


def test_nobody_comes_in_without_a_certificate() -> None:
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.load_verify_locations(cadata=FLEET.fleet.root.der)
    bare.verify_flags |= ssl.VerifyFlags(tls.NO_CHECK_TIME)
    with pytest.raises(ssl.SSLError, match=r"(?i)peer did not return a certificate"):
        handshake(tls.server_context(SERVER, FLEET.fleet), bare)


def test_tls_1_2_is_not_spoken() -> None:
    server, client = contexts()
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"(?i)version|protocol"):
        handshake(server, old)
    assert client.minimum_version == ssl.TLSVersion.TLSv1_3


def forged(names: bytes, common_name: str) -> Credentials:
    """What root on device 1 can make its chip sign for an address that is not its own."""
    key = openssl.generate_key()
    profile = fleets.node_profile(
        FLEET.fleet,
        Certificate(ONE.chain[0]),
        openssl.public_key(key),
        5,
        (NOW, NOW + timedelta(days=1)),
    )
    kept = [e for e in profile.extensions if der.oid(x509.ALTERNATIVE_NAMES) not in e]
    profile = profile._replace(subject=x509.common_name(common_name), extensions=(*kept, names))
    leaf = profile.signed(openssl.sign(ONE_KEY, profile.digest()))
    return Credentials(key, (leaf, *ONE.chain), None, SERVER.peer)


def test_openssl_itself_refuses_a_device_that_names_another() -> None:
    """Host names hold for every program that uses OpenSSL, not only for ours."""
    victim = CLIENT.peer
    names = x509.alternative_names((victim.host,), (SERVER.peer.address,))
    bad = forged(names, SERVER.peer.host)
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        handshake(*contexts(server=bad))
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        handshake(*contexts(client=bad))
    # an address beside its own name is found by us
    names = x509.alternative_names((SERVER.peer.host,), (victim.address,))
    _, right = handshake(*contexts(server=forged(names, SERVER.peer.host)))
    with pytest.raises(RefusedError) as caught:
        tls.check_connection(right, FLEET.fleet, clock=CLOCK)
    assert caught.value.reason == verify.NOT_ITS_NAME
    # and one outside the fleet's prefix by OpenSSL again
    names = x509.alternative_names((SERVER.peer.host,), (IPv6Address("fd99::1"),))
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        handshake(*contexts(server=forged(names, SERVER.peer.host)))
    ipv4 = x509.extension(
        x509.ALTERNATIVE_NAMES,
        der.sequence(
            der.context(2, SERVER.peer.host.encode(), constructed=False),
            der.context(7, b"\x0a\0\0\1", constructed=False),
        ),
    )
    with pytest.raises(ssl.SSLCertVerificationError, match="subtree violation"):
        handshake(*contexts(server=forged(ipv4, SERVER.peer.host)))


def test_what_a_beacon_has_proven_is_not_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    revoked: set[str] = set()

    def rules() -> Rules:
        return Rules(CLOCK, revoked)

    count = 0
    real = openssl.verify

    def counted(*signed: bytes) -> bool:
        nonlocal count
        count += 1
        return real(*signed)

    monkeypatch.setattr(openssl, "verify", counted)
    proven = Proven()
    sender = SignedBeacons(FLEET.fleet, 1, rules)
    sender.use(CLIENT)
    beacons = SignedBeacons(FLEET.fleet, 1, rules, proven=proven)
    beacons.read(sender.payload(0.0), IPv6Address("fe80::1"), 0.0)
    mine = FleetTls(FLEET.fleet, SERVER, rules, proven)
    server, _ = handshake(mine.server, tls.client_context(CLIENT, FLEET.fleet))
    count = 0
    peer = CLIENT.peer
    mine.check(server, str(peer.address), f"thicket@{peer.address}")
    assert count == 0
    revoked.add(peer.device)
    with pytest.raises(HandshakeError) as caught:
        mine.check(server, str(peer.address), f"thicket@{peer.address}")
    assert caught.value.code == verify.REVOKED
    revoked.clear()
    alone = FleetTls(FLEET.fleet, SERVER, rules)
    for _ in range(2):
        alone.check(server, str(peer.address), f"thicket@{peer.address}")
    assert count == 3


def test_renewed_credentials_are_used_from_then_on() -> None:
    server, client = contexts()
    left, right = handshake(server, client)
    renewed = credentials(ONE)
    tls.use_credentials(server, renewed)
    _, again = handshake(server, client)
    assert (
        tls.check_connection(again, FLEET.fleet, clock=CLOCK).public_key == renewed.peer.public_key
    )
    assert (
        tls.check_connection(right, FLEET.fleet, clock=CLOCK).public_key == SERVER.peer.public_key
    )
    left.write(b"still open")


def test_a_wrong_clock_of_the_machine_is_no_failure() -> None:
    """OpenSSL looks at no dates: certificates that began in 2040 or ended in 2027 shake hands."""
    future = credentials(ONE, Clock(CLOCK.floor, NOW.replace(year=2035, month=12)))
    handshake(*contexts(server=future))
    past = credentials(ONE, Clock(CLOCK.floor, CLOCK.floor + timedelta(days=1)))
    _, right = handshake(*contexts(server=past))
    with pytest.raises(RefusedError):
        tls.check_connection(right, FLEET.fleet, clock=CLOCK)


async def test_asyncio_on_loopback() -> None:
    server_context, client_context = contexts()
    seen: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = tls.check_connection(writer.get_extra_info("ssl_object"), FLEET.fleet, clock=CLOCK)
        seen.append(peer.device)
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_context)
    peer = tls.check_connection(writer.get_extra_info("ssl_object"), FLEET.fleet, clock=CLOCK)
    assert peer == SERVER.peer
    writer.write(b"hello\n")
    assert await reader.readline() == b"hello\n"
    writer.close()
    server.close()
    await server.wait_closed()
    assert seen == [CLIENT.peer.device]


def test_sockets_have_a_chain_as_well() -> None:
    server_context, client_context = contexts()
    left, right = socket.socketpair()
    left.settimeout(PATIENCE)
    right.settimeout(PATIENCE)

    async def both() -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
        return await asyncio.gather(
            asyncio.to_thread(server_context.wrap_socket, left, server_side=True),
            asyncio.to_thread(client_context.wrap_socket, right),
        )

    one, two = asyncio.run(both())
    with one, two:
        assert tls.check_connection(one, FLEET.fleet, clock=CLOCK) == CLIENT.peer
        assert tls.check_connection(two, FLEET.fleet, clock=CLOCK) == SERVER.peer


def test_no_key_is_left_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(Path("/proc/self/fd").iterdir())
    tls.server_context(SERVER, FLEET.fleet)
    assert len(set(Path("/proc/self/fd").iterdir()) - before) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl command")
def test_the_openssl_command_agrees(tmp_path: Path) -> None:
    """An independent program judges the chain for both purposes, strictly, with names."""
    (tmp_path / "root.pem").write_text(x509.pem(FLEET.fleet.root.der))
    (tmp_path / "chain.pem").write_text("".join(map(x509.pem, SERVER.chain[1:])))
    (tmp_path / "leaf.pem").write_text(x509.pem(SERVER.chain[0]))
    (tmp_path / "key.pem").write_text(key_pem(SERVER.private_key))

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["openssl", *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    base = (
        "verify",
        "-x509_strict",
        "-no_check_time",
        "-CAfile",
        "root.pem",
        "-untrusted",
        "chain.pem",
    )
    for purpose in ("sslserver", "sslclient"):
        good = run(*base, "-purpose", purpose, "leaf.pem")
        assert good.returncode == 0, good.stderr
    named = run(*base, "-verify_ip", str(SERVER.peer.address), "leaf.pem")
    assert named.returncode == 0, named.stderr
    named = run(*base, "-verify_hostname", SERVER.peer.host, "leaf.pem")
    assert named.returncode == 0, named.stderr
    assert run(*base, "-verify_ip", str(CLIENT.peer.address), "leaf.pem").returncode != 0
    bad = forged(
        x509.alternative_names((CLIENT.peer.host,), (SERVER.peer.address,)), SERVER.peer.host
    )
    (tmp_path / "leaf.pem").write_text(x509.pem(bad.chain[0]))
    refused = run(*base, "leaf.pem")
    assert refused.returncode != 0
    assert "permitted subtree violation" in refused.stderr
    assert "P-256" in run("pkey", "-in", "key.pem", "-text", "-noout").stdout

# SPDX-License-Identifier: Apache-2.0
"""TLS with a stock Erlang: both sides verify, and Erlang's own path validation holds the names.

Erlang's certificate check is another implementation than OpenSSL's; it is what the distribution of
stock nodes (``-proto_dist inet6_tls``) uses.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fleet_for_tests import CLOCK, one_fleet
from patience import PATIENCE

from thicket.trust import certificates as x509
from thicket.trust import fleet as fleets
from thicket.trust import openssl, tls
from thicket.trust.certificates import Certificate
from thicket.trust.credentials import Credentials, FileKey, key_pem, make_credentials
from thicket.trust.verify import Clock

FLEET = one_fleet()


def now() -> Clock:
    # Erlang looks at the machine's clock
    return Clock(CLOCK.floor, datetime.now(UTC))


def credentials(device: FileKey) -> Credentials:
    return asyncio.run(make_credentials(device, FLEET.fleet, now()))


ONE, ONE_KEY = FLEET.device(1)
HERE = credentials(FLEET.device(2)[0])


def forged() -> Credentials:
    """What root on device 1 can make its chip sign: a certificate for device 2's host name."""
    key = openssl.generate_key()
    time = datetime.now(UTC).replace(microsecond=0)
    profile = fleets.node_profile(
        FLEET.fleet,
        Certificate(ONE.chain[0]),
        openssl.public_key(key),
        5,
        (time, time + timedelta(days=1)),
    )
    names = x509.alternative_names((HERE.peer.host,), (credentials(ONE).peer.address,))
    profile = profile._replace(extensions=(*profile.extensions[:-1], names))
    leaf = profile.signed(openssl.sign(ONE_KEY, profile.digest()))
    return Credentials(key, (leaf, *ONE.chain), None, HERE.peer)


def has_erlang() -> bool:
    try:
        return (
            subprocess.run(
                ["erl", "-noshell", "-eval", "{ok,_}=application:ensure_all_started(ssl),halt(0)."],
                capture_output=True,
                check=False,
                timeout=PATIENCE,
            ).returncode
            == 0
        )
    except FileNotFoundError:
        return False


pytestmark = pytest.mark.skipif(not has_erlang(), reason="no Erlang with its ssl application")

SERVER = """
main([Folder]) ->
    application:ensure_all_started(ssl),
    logger:set_primary_config(level, none),
    F = fun(Name) -> filename:join(Folder, Name) end,
    {ok, Listen} = ssl:listen(0, [{ip, {127,0,0,1}}, {versions, ['tlsv1.3']},
        {active, false}, {mode, binary},
        {verify, verify_peer}, {fail_if_no_peer_cert, true}, {cacertfile, F("root.pem")},
        {certfile, F("chain.pem")}, {keyfile, F("key.pem")}, {depth, 3}]),
    {ok, {_, Port}} = ssl:sockname(Listen),
    io:format("~b~n", [Port]),
    {ok, Socket} = ssl:transport_accept(Listen),
    case ssl:handshake(Socket, 20000) of
        {ok, Tls} ->
            {ok, Data} = ssl:recv(Tls, 6, 20000),
            ok = ssl:send(Tls, Data),
            io:format("accepted~n");
        {error, Reason} -> io:format("refused ~p~n", [Reason])
    end.
"""

CLIENT = """
main([Folder, Port]) ->
    application:ensure_all_started(ssl),
    logger:set_primary_config(level, none),
    F = fun(Name) -> filename:join(Folder, Name) end,
    case ssl:connect({127,0,0,1}, list_to_integer(Port), [{versions, ['tlsv1.3']},
        {active, false}, {mode, binary},
        {verify, verify_peer}, {cacertfile, F("root.pem")}, {certfile, F("chain.pem")},
        {keyfile, F("key.pem")}, {depth, 3}, {server_name_indication, disable}], 20000) of
        {ok, Tls} ->
            ok = ssl:send(Tls, <<"hello\\n">>),
            {ok, <<"hello\\n">>} = ssl:recv(Tls, 6, 20000),
            io:format("accepted~n");
        {error, Reason} -> io:format("refused ~p~n", [Reason])
    end.
"""


@contextmanager
def erlang(
    folder: Path, script: str, mine: Credentials, *words: str
) -> Iterator[subprocess.Popen[str]]:
    (folder / "root.pem").write_text(x509.pem(FLEET.fleet.root.der))
    (folder / "chain.pem").write_text("".join(map(x509.pem, mine.chain)))
    (folder / "key.pem").write_text(key_pem(mine.private_key))
    (folder / "peer.escript").write_text("%% -*- erlang -*-\n" + script)
    process = subprocess.Popen(
        ["escript", folder / "peer.escript", folder, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def to_erlang(tmp_path: Path, theirs: Credentials, ours: Credentials) -> tuple[str, bytes]:
    with erlang(tmp_path, SERVER, theirs) as peer:
        assert peer.stdout is not None
        line = peer.stdout.readline()
        assert line.strip().isdecimal(), line + peer.stdout.read()
        context = tls.client_context(ours, FLEET.fleet)
        data = b""
        with socket.create_connection(("127.0.0.1", int(line)), 20) as raw:
            try:
                with context.wrap_socket(raw) as connection:
                    found = tls.check_connection(connection, FLEET.fleet, clock=now())
                    assert found == theirs.peer
                    connection.sendall(b"hello\n")
                    data = connection.recv(6)
            except ssl.SSLError as error:
                data = str(error).encode()
        return peer.stdout.read(), data


def test_we_connect_to_erlang(tmp_path: Path) -> None:
    said, data = to_erlang(tmp_path, credentials(ONE), HERE)
    assert (said.strip(), data) == ("accepted", b"hello\n")


def test_erlang_refuses_a_device_that_names_another(tmp_path: Path) -> None:
    said, _ = to_erlang(tmp_path, HERE, forged())
    assert said.startswith("refused"), said
    assert "name_not_permitted" in said or "bad_certificate" in said, said


def from_erlang(tmp_path: Path, theirs: Credentials) -> tuple[str, list[str]]:
    context = tls.server_context(HERE, FLEET.fleet)
    seen: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        with erlang(tmp_path, CLIENT, theirs, str(server.getsockname()[1])) as peer:
            raw, _ = server.accept()
            raw.settimeout(PATIENCE)
            try:
                with context.wrap_socket(raw, server_side=True) as connection:
                    seen.append(tls.check_connection(connection, FLEET.fleet, clock=now()).device)
                    connection.sendall(connection.recv(6))
                    connection.unwrap()
            except (ssl.SSLError, OSError) as error:
                seen.append(str(error))
            raw.close()
            assert peer.stdout is not None
            return peer.stdout.read(), seen


def test_erlang_connects_to_us(tmp_path: Path) -> None:
    theirs = credentials(ONE)
    said, seen = from_erlang(tmp_path, theirs)
    assert said.strip() == "accepted"
    assert seen[0] == theirs.peer.device


NAMES = """
main([Folder, Address, Host, Other]) ->
    {ok, Pem} = file:read_file(filename:join(Folder, "chain.pem")),
    [{_, Leaf, _} | _] = public_key:pem_decode(Pem),
    Ip = fun(Text) -> {ok, Tuple} = inet:parse_address(Text), Tuple end,
    io:format("~p ~p ~p ~p~n", [public_key:pkix_verify_hostname(Leaf, [{ip, Ip(Address)}]),
        public_key:pkix_verify_hostname(Leaf, [{dns_id, Host}]),
        public_key:pkix_verify_hostname(Leaf, [{ip, Ip(Other)}]),
        public_key:pkix_verify_hostname(Leaf, [{dns_id, "n-000000000042.mesh"}])]).
"""


def test_erlang_knows_a_node_by_address_and_by_name(tmp_path: Path) -> None:
    """Stock nodes call each other by address (thicket@fd12:...), and ask the certificate for it."""
    other = str(HERE.peer.address + 1)
    words = (str(HERE.peer.address), HERE.peer.host, other)
    with erlang(tmp_path, NAMES, HERE, *words) as peer:
        assert peer.stdout is not None
        assert peer.stdout.read().split() == ["true", "true", "false", "false"]

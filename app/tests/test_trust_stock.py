# SPDX-License-Identifier: Apache-2.0
"""Stock Erlang nodes in a fleet: what ``thicket ca node`` makes, used by a real ``erl``."""

from __future__ import annotations

import asyncio
import os
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest
from erlang import _SERVER, Erl, Release, in_each_release, in_oldest_and_newest, program
from fleet_for_tests import NOW, PREFIX
from patience import PATIENCE
from private_network import Network, until

from authority import stock
from authority.authority import Authority
from authority.cli import main as ca_main
from authority.errors import AuthorityError
from thicket.distribution import Node
from thicket.distribution.handshake import HandshakeError
from thicket.trust import openssl, tls
from thicket.trust.certificates import Certificate, from_pem
from thicket.trust.credentials import Credentials, FileKey, make_credentials
from thicket.trust.verify import Clock, RefusedError, check_peer


def authority(folder: Path, name: str = "acme") -> Authority:
    made = Authority(folder, lambda _: "")
    made.init(name, PREFIX, lab=True)
    return made


def now() -> Clock:
    return Clock(NOW, datetime.now(UTC))


class FleetTls:
    """What a Thicket node uses of its fleet for the connections of the cluster."""

    def __init__(self, credentials: Credentials, ca: Authority) -> None:
        self._fleet = ca.fleet
        self.server: ssl.SSLContext = tls.server_context(credentials, ca.fleet)
        self.client: ssl.SSLContext = tls.client_context(credentials, ca.fleet)

    def check(self, ssl_object: Any, host: str, name: str) -> None:
        try:
            tls.check_connection(ssl_object, self._fleet, clock=now(), node=name)
        except RefusedError as error:
            raise HandshakeError("wrong-certificate", str(error)) from error


@asynccontextmanager
async def a_node(
    network: Network, ca: Authority, number: int, address: IPv6Address | None = None
) -> AsyncIterator[Node]:
    key = openssl.generate_key()
    identity = bytes((1, 2, 3, 4, 5, number))
    device = FileKey(key, ca.enroll_software("mac", identity, openssl.public_key(key)))
    credentials = await make_credentials(device, ca.fleet, now())
    host = address or credentials.peer.address
    network.add(host)
    node = Node(
        "acme",
        ca.network.secrets()[1],
        host,
        9100,
        epmd_port=None,
        tls=FleetTls(credentials, ca),
        setup_time=PATIENCE,
    )
    await node.start()
    try:
        await until(lambda: node.listening, "the node listens")
        yield node
    finally:
        await node.stop()


@asynccontextmanager
async def an_erl(network: Network, made: stock.StockNode, release: Release) -> AsyncIterator[Erl]:
    """Start ``erl`` with the folder, as it is printed."""
    network.add(made.address)
    home = tempfile.mkdtemp(prefix="erl-")
    process = await asyncio.create_subprocess_exec(
        release.erl or program(),
        *("-args_file", f"{made.folder}/vm.args"),
        # On a busy machine a handshake may take longer than the 7 s that it has by default.
        *("-kernel", "net_setuptime", "120"),
        *("-noshell", "-eval", _SERVER.replace("\n", " ")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "HOME": home},
    )
    async with Erl(process, made.name, home) as erl:
        assert await erl.eval("node()", PATIENCE) == made.name, erl.log
        yield erl


@in_each_release
async def test_a_stock_node_and_a_node_of_ours(network: Network, release: Release) -> None:
    if not network.private:
        pytest.skip("needs a network namespace of its own, which this machine does not permit")
    with tempfile.TemporaryDirectory(prefix="stock-") as folder:
        ca = authority(Path(folder) / "fleet")
        made = await asyncio.to_thread(stock.make, ca, Path(folder) / "laptop")
        async with a_node(network, ca, 1) as node, an_erl(network, made, release) as erl:
            node.export("lists.sort")(sorted)
            for direction in ("theirs", "ours"):
                if direction == "theirs":
                    assert await erl.eval(f"net_adm:ping('{node.name}')") == "pong", erl.log
                else:
                    await node.connect(erl.name)
                await erl.until("nodes()", [node.name])
                assert await erl.eval(f"rpc:call('{node.name}', lists, sort, [[2,1]])") == [1, 2]
                assert await node.call(erl.name, "lists.sort", [2, 1]) == [1, 2]
                connection = node.connections[erl.name]
                assert connection.ssl_object.version() == "TLSv1.3"
                assert connection.outgoing is (direction == "ours")
                node.disconnect(erl.name)
                await erl.until("nodes()", [])


@in_oldest_and_newest
async def test_a_stock_node_of_another_fleet(network: Network, release: Release) -> None:
    if not network.private:
        pytest.skip("needs a network namespace of its own, which this machine does not permit")
    with tempfile.TemporaryDirectory(prefix="stock-") as folder:
        ours, theirs = authority(Path(folder) / "a"), authority(Path(folder) / "b", "other")
        made = await asyncio.to_thread(stock.make, theirs, Path(folder) / "laptop")
        async with a_node(network, ours, 1) as node, an_erl(network, made, release) as erl:
            await erl.eval(f"erlang:set_cookie(node(), '{ours.network.secrets()[1]}')")
            assert await erl.eval(f"net_adm:ping('{node.name}')") == "pang"
            assert node.nodes() == []


@in_oldest_and_newest
async def test_a_stock_node_knows_whose_address_it_is(network: Network, release: Release) -> None:
    if not network.private:
        pytest.skip("needs a network namespace of its own, which this machine does not permit")
    with tempfile.TemporaryDirectory(prefix="stock-") as folder:
        ca = authority(Path(folder) / "fleet")
        made = await asyncio.to_thread(stock.make, ca, Path(folder) / "laptop")
        address = ca.fleet.address("mac", b"\1\2\3\4\5\6")
        async with a_node(network, ca, 1, address) as liar, an_erl(network, made, release) as erl:
            assert await erl.eval(f"net_adm:ping('{liar.name}')") == "pang"
            # what it logs about that comes a moment later
            await until(
                lambda: "hostname_check_failed" in " ".join(erl.log), "the reason is logged"
            )


# -- the folder


def test_the_folder(tmp_path: Path) -> None:
    ca = authority(tmp_path / "fleet")
    made = stock.make(ca, tmp_path / "laptop", name="n", days=30)
    assert made.name == f"n@{made.address}"
    assert not made.renewed
    assert (made.until - datetime.now(UTC)) > timedelta(days=29, hours=23)
    files = {p.name: p.stat().st_mode & 0o777 for p in made.folder.iterdir()}
    assert (files.pop("thicket_names.beam", None) is not None) == made.compiled
    assert files == dict.fromkeys(
        ("chain.pem", "device.key", "device.pem", "key.pem", "root.pem", "ssl_dist.conf",
         "thicket_names.erl", "vm.args"),
        0o600,
    )  # fmt: skip
    assert made.folder.stat().st_mode & 0o777 == 0o700
    chain = from_pem((made.folder / "chain.pem").read_text())
    peer = check_peer(chain, ca.fleet, clock=now(), address=made.address, node=made.name)
    assert (peer.device, peer.software) == (made.device, True)
    assert made.device in ca.list()["devices"]
    # renewed without a key of the authority, under the same name
    for key in ca.folder.glob("signer-*.key"):
        key.unlink()
    again = stock.make(Authority(ca.folder, lambda _: ""), made.folder, name="n", days=60)
    assert again.renewed
    assert (again.name, again.device) == (made.name, made.device)
    assert again.until > made.until
    renewed = from_pem((made.folder / "chain.pem").read_text())
    assert Certificate(renewed[0]).public_key != Certificate(chain[0]).public_key
    # not into the folder of another fleet's node
    with pytest.raises(AuthorityError, match="of no use for fleet 'other'"):
        stock.make(authority(tmp_path / "other", "other"), made.folder)
    with pytest.raises(AuthorityError, match="letters, digits"):
        stock.make(ca, tmp_path / "x", name="a@b")
    with pytest.raises(AuthorityError, match="quotes"):
        stock.make(ca, tmp_path / 'x"y')
    (tmp_path / "file").touch()
    with pytest.raises(AuthorityError, match="file"):
        stock.make(ca, tmp_path / "file")


def test_the_command_prints_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("THICKET_CA", str(tmp_path / "fleet"))
    authority(tmp_path / "fleet")
    assert ca_main(["node", str(tmp_path / "laptop"), "--name", "me", "--days", "7"]) == 0
    text = capsys.readouterr().out
    assert f"erl -args_file {tmp_path}/laptop/vm.args" in text
    assert "iex --erl" in text
    assert "ip address add fd12:3456:789a:1:" in text
    cookie = Authority(tmp_path / "fleet", lambda _: "").network.secrets()[1]
    assert cookie not in text
    assert cookie in (tmp_path / "laptop/vm.args").read_text()

# SPDX-License-Identifier: Apache-2.0
"""Distribution inside TLS: among ourselves, and with the releases of Erlang that have ssl."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from erlang import Erl, Release, a_real_epmd, in_each_release, mapped
from patience import PATIENCE
from private_network import Network, in_private_network, until

from thicket.distribution import DistributionError, Node
from thicket.distribution.file_tls import FileTls
from thicket.distribution.secure import Tls


class Authority:
    """A certificate authority in a directory."""

    def __init__(self, path: Path, name: str = "ca") -> None:
        self.path = path
        self.name = name
        self._openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *(
                "-keyout",
                f"{name}.key",
                "-out",
                f"{name}.pem",
                "-days",
                "2",
                "-subj",
                f"/CN={name}",
            ),
            *("-addext", "keyUsage=critical,keyCertSign"),
        )

    def _openssl(self, *arguments: str) -> None:
        done = subprocess.run(
            ["openssl", *arguments], cwd=self.path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def certificate(self, name: str, address: str) -> str:
        """Make a key and a certificate for the address; the stem of their files."""
        (self.path / f"{name}.cnf").write_text(
            f"subjectAltName=IP:{address},DNS:{address}\n"
            "extendedKeyUsage=serverAuth,clientAuth\nkeyUsage=digitalSignature\n"
        )
        self._openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"),
        )
        self._openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", f"{self.name}.pem"),
            *("-CAkey", f"{self.name}.key", "-CAcreateserial", "-out", f"{name}.pem"),
            *("-days", "2", "-extfile", f"{name}.cnf"),
        )
        return name

    def tls(self, name: str, address: str) -> Tls:
        """Return the contexts of a node."""
        self.certificate(name, address)
        return FileTls(
            self.path / f"{name}.pem", self.path / f"{name}.key", self.path / f"{self.name}.pem"
        )

    def erlang(self, name: str, address: str) -> list[str]:
        """Return the options of an Erlang node."""
        self.certificate(name, address)
        files = (
            f'{{certfile,"{self.path}/{name}.pem"}},{{keyfile,"{self.path}/{name}.key"}},'
            f'{{cacertfile,"{self.path}/{self.name}.pem"}},{{verify,verify_peer}}'
        )
        options = self.path / f"{name}.conf"
        options.write_text(
            f"[{{server,[{files},{{fail_if_no_peer_cert,true}}]}},{{client,[{files}]}}]."
        )
        return ["-ssl_dist_optfile", str(options)]


@contextmanager
def authority() -> Iterator[Authority]:
    with tempfile.TemporaryDirectory(prefix="tls-") as path:
        yield Authority(Path(path))


@asynccontextmanager
async def a_node(
    network: Network, name: str, number: int, tls: Tls | None, **options: Any
) -> AsyncIterator[Node]:
    node = Node(
        name,
        "secret",
        network.address(number),
        0,
        epmd_port=network.epmd_port,
        tls=tls,
        max_message=20_000_000,
        **{"setup_time": PATIENCE, **options},
    )
    await node.start()
    try:
        await mapped(node)
        yield node
    finally:
        await node.stop()


async def code_of(attempt: Any) -> str:
    with pytest.raises(DistributionError) as caught:
        await attempt
    return caught.value.code


@in_each_release
async def test_tls_with_erlang_both_ways(network: Network, release: Release) -> None:
    address = str(network.address(2))
    with authority() as ca:
        tls = ca.tls("py", str(network.address(1)))
        options = ca.erlang("e", address)
        async with (
            a_real_epmd(network),
            a_node(network, "py", 1, tls) as node,
            await Erl.start(
                network,
                "e",
                network.address(2),
                release=release,
                proto="inet6_tls",
                options=options,
            ) as erl,
        ):
            node.export("lists.sort")(sorted_list)
            for direction in ("theirs", "ours"):
                if direction == "theirs":
                    assert await erl.eval(f"net_adm:ping('{node.name}')") == "pong"
                else:
                    await node.connect(erl.name)
                await erl.until("nodes()", [node.name])
                assert await node.call(erl.name, "lists.sort", [2, 1]) == [1, 2]
                assert await erl.eval(f"rpc:call('{node.name}', lists, sort, [[2,1]])") == [1, 2]
                data = bytes(range(250)) * 40_000
                assert await node.call(erl.name, "erlang.byte_size", data, timeout=PATIENCE) == len(
                    data
                )
                box = node.mailbox("box")
                await erl.eval(f"{{box, '{node.name}'}} ! binary:copy(<<7>>, 10000000), ok")
                assert await box.get() == b"\7" * 10_000_000
                box.close()
                connection = node.connections[erl.name]
                assert connection.outgoing is (direction == "ours")
                assert connection.ssl_object.version() in ("TLSv1.2", "TLSv1.3")
                node.disconnect(erl.name)
                await erl.until("nodes()", [])
            assert not [line for line in erl.log if "ERROR" in line], erl.log


def sorted_list(values: list[int]) -> list[int]:
    return sorted(values)


@in_private_network
async def test_tls_among_ourselves_and_who_is_refused(network: Network) -> None:
    one, two = str(network.address(1)), str(network.address(2))
    with authority() as ca:
        other = Authority(ca.path, "other")
        wrong_name = "fd12::dead"
        async with a_node(network, "a", 1, ca.tls("a", one)) as a:
            async with a_node(network, "b", 2, ca.tls("b", two)) as b:
                b.export("lists.sort")(sorted_list)
                assert await a.call(b.name, "lists.sort", list(range(5000, 0, -1))) == list(
                    range(1, 5001)
                )
                assert await b.ping(a.name, PATIENCE) > 0
                a.disconnect(b.name)
                await until(lambda: not b.nodes(), "apart")
            # A certificate for another address, of another authority, and no TLS at all.
            if network.private:
                async with a_node(network, "c", 2, ca.tls("c", wrong_name)) as c:
                    assert await code_of(a.connect(c.name)) == "wrong-certificate"
                    assert await code_of(c.connect(a.name)) == "wrong-certificate"
                    assert a.statistics()["refused"] == {"wrong-certificate": 2}
                    await until(
                        lambda: c.statistics()["refused_by"] == {"wrong-certificate": 2},
                        "it knows why, both times",
                    )
            async with a_node(network, "d", 2, other.tls("d", two)) as d:
                assert await code_of(a.connect(d.name)) == "other-fleet"
                await until(
                    lambda: d.statistics()["refused_by"] == {"other-fleet": 1}, "it is told so"
                )
                assert await code_of(d.connect(a.name)) == "other-fleet"
                assert d.statistics()["refused"] == {"other-fleet": 1}
            async with a_node(network, "e", 2, None) as e:
                assert await code_of(a.connect(e.name)) == "tls"
                assert e.statistics()["refused"] == {"tls-required": 1}
                assert await code_of(e.connect(a.name)) == "tls-required"
                assert a.statistics()["refused"]["no-tls"] == 1
            assert a.nodes() == []

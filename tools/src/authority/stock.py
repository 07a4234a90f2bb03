# SPDX-License-Identifier: Apache-2.0
"""Stock Erlang and Elixir nodes, and laptops, as members of a fleet: a folder with all they need.

Such a machine has a software identity with a random address. Its folder holds the key that the
authority vouches for (``device.key``), which signs a certificate for the Erlang node, as a device's
chip does for a Thicket node; a stock node cannot renew that by itself, so it lasts for months, and
is renewed here without the authority's keys.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final, NamedTuple

from authority.authority import Authority
from authority.errors import AuthorityError
from host.stop import held
from thicket.identity.address import ID_SIZE
from thicket.trust import certificates as x509
from thicket.trust import openssl
from thicket.trust.certificates import Certificate, CertificateError
from thicket.trust.credentials import (
    Credentials,
    FileKey,
    keep_chain,
    key_pem,
    make_credentials,
    software_key,
)
from thicket.trust.fleet import Fleet
from thicket.trust.verify import Clock, RefusedError

SOURCE: Final = "random"

PORT: Final = 9100
"""Where the nodes listen (``[cluster] port``)."""


MODULE: Final = "thicket_names"

_SOURCE: Final = """\
%% SPDX-License-Identifier: Apache-2.0
%% Whose certificate it is when nodes are called by address: Erlang up to 26 looks for the address
%% among the DNS names of the certificate, and it stands among its IP addresses.
-module(thicket_names).
-export([match/2]).

match({dns_id, Host}, {iPAddress, Bytes}) ->
    case inet:parse_strict_address(Host) of
        {ok, Address} when tuple_size(Address) =:= 8 ->
            << <<Word:16>> || Word <- tuple_to_list(Address) >> =:= iolist_to_binary([Bytes]);
        _ -> false
    end;
match(_, _) -> default.
"""


class StockNode(NamedTuple):
    """What was made.

    :ivar name: the Erlang node's name, ``name@address``.
    :ivar device: the name by which it can be revoked.
    :ivar renewed: whether the identity was there before.
    :ivar compiled: whether ``MODULE`` is compiled; if not, the machine that has Erlang does it.
    """

    folder: Path
    name: str
    address: IPv6Address
    device: str
    until: datetime
    renewed: bool
    compiled: bool


def make(
    authority: Authority,
    folder: Path,
    *,
    name: str = "iex",
    days: int = 365,
    now: datetime | None = None,
) -> StockNode:
    """Make the folder of a stock node, or renew the certificate in it.

    :param name: the part of the Erlang node's name before ``@``.
    :param days: how long its certificate lasts.
    :raises AuthorityError: when that cannot be done, also because the folder belongs to another
        fleet.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise AuthorityError(f"--name {name!r}: letters, digits, _ and - make the name of a node")
    folder = folder.absolute()
    if re.search(r'["\\\n]', str(folder)):
        raise AuthorityError(f"{folder}: Erlang's files cannot have quotes in a name")
    fleet = authority.fleet
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        renewed = (folder / "device.pem").exists()
        if not renewed:
            public_key = openssl.public_key(software_key(str(folder)))
            keep_chain(
                str(folder), authority.enroll_software(SOURCE, os.urandom(ID_SIZE), public_key)
            )
        device = FileKey.load(str(folder))
        clock = Clock(datetime(2026, 1, 1, tzinfo=UTC), now or datetime.now(UTC))
        made = asyncio.run(make_credentials(device, fleet, clock, lifetime=timedelta(days=days)))
        address = made.peer.address
        for file, text in files(folder, fleet, made).items():
            _write(folder / file, text)
        _write(
            folder / "vm.args", _arguments(folder, name, address, authority.network.secrets()[1])
        )
        compiled = _compile(folder)
    except (CertificateError, RefusedError) as error:
        raise AuthorityError(
            f"{folder} is of no use for fleet {fleet.name!r}: {error}. Take another folder"
        ) from None
    except OSError as error:
        raise AuthorityError(f"{error.filename or folder}: {error.strerror}") from None
    until = Certificate(made.chain[0]).not_after
    return StockNode(
        folder, f"{name}@{address}", address, made.peer.device, until, renewed, compiled
    )


def files(folder: Path, fleet: Fleet, credentials: Credentials) -> dict[str, str]:
    """Return the files, by name, that Erlang needs in ``folder`` to use ``credentials``."""
    return {
        "key.pem": key_pem(credentials.private_key),
        "chain.pem": "".join(map(x509.pem, credentials.chain)),
        "root.pem": x509.pem(fleet.root.der),
        "ssl_dist.conf": _options(folder),
        f"{MODULE}.erl": _SOURCE,
    }


def _compile(folder: Path) -> bool:
    compiler = shutil.which("erlc")
    if compiler is None:
        return False
    done = subprocess.run(
        [compiler, f"{MODULE}.erl"], cwd=folder, capture_output=True, check=False, timeout=600
    )
    return done.returncode == 0


def _options(folder: Path) -> str:
    files = (
        f'{{certfile,"{folder}/chain.pem"}},{{keyfile,"{folder}/key.pem"}},'
        f"{{cacertfile,\"{folder}/root.pem\"}},{{versions,['tlsv1.3']}},"
        "{verify,verify_peer},{depth,3}"
    )
    return (
        "% Options of -ssl_dist_optfile for a stock Erlang node of the fleet.\n"
        f"[{{server,[{files},{{fail_if_no_peer_cert,true}}]}},\n"
        f" {{client,[{files},\n"
        f"   {{customize_hostname_check,[{{match_fun,fun {MODULE}:match/2}}]}}]}}].\n"
    )


def _arguments(folder: Path, name: str, address: IPv6Address, cookie: str) -> str:
    # in decimal: a # begins a comment in a file of arguments
    words = (int(word, 16) for word in address.exploded.split(":"))
    interface = "{" + ",".join(map(str, words)) + "}"
    return (
        f"-name {name}@{address}\n"
        f"-setcookie {cookie}\n"
        "-proto_dist inet6_tls\n"
        f'-ssl_dist_optfile "{folder}/ssl_dist.conf"\n'
        f'-pa "{folder}"\n'
        "-start_epmd false\n"
        f"-erl_epmd_port {PORT}\n"
        # as our nodes have it; the second keeps nodes that are not connected with all others
        "-kernel net_ticktime 15\n"
        "-kernel prevent_overlapping_partitions false\n"
        f"-kernel inet_dist_use_interface {interface}\n"
        f'-kernel inet_dist_connect_options "[{{ip,{interface}}}]"\n'
    )


def _write(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new")
    with held():
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        new.replace(path)


def usage(node: StockNode) -> str:
    """Return what a person types, in words."""
    return (
        f"{node.folder} is for the node {node.name}, until {node.until:%Y-%m-%d} "
        f"(`thicket ca revoke {node.device}` takes it out).\n"
        "Give the machine its address, on the interface that reaches the mesh:\n"
        f"    sudo ip address add {node.address}/64 dev INTERFACE\n"
        + (
            ""
            if node.compiled
            else "compile its module, once (there is no erlc here):\n"
            f"    cd {node.folder} && erlc {MODULE}.erl\n"
        )
        + "and start one of:\n"
        f"    erl -args_file {node.folder}/vm.args\n"
        f"    iex --erl '-args_file {node.folder}/vm.args'\n"
    )

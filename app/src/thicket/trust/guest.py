# SPDX-License-Identifier: Apache-2.0
"""Files for a computer with a stock Erlang or Elixir that shall join a fleet's cluster.

It gets a software identity, made here with its address in the fleet's prefix, and a certificate of
its own that ends after some days. The key of the identity is thrown away: for another certificate
the computer becomes another guest.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from thicket.trust import certificates as x509
from thicket.trust import openssl
from thicket.trust.node import Credentials, FileKey, key_pem, make_credentials
from thicket.trust.verify import Clock

if TYPE_CHECKING:
    from thicket.trust.authority import Authority
    from thicket.trust.fleet import Fleet

DAYS: Final = 30
"""Validity of a guest's certificate, unless it is told otherwise."""

_OPTIONS: Final = """\
% TLS of Erlang's distribution, for: erl -proto_dist inet6_tls -ssl_dist_optfile THIS
[{{server,
  [{{certfile, {chain}}},
   {{keyfile, {key}}},
   {{cacertfile, {root}}},
   {{verify, verify_peer}},
   {{fail_if_no_peer_cert, true}},
   {{versions, ['tlsv1.3']}}]}},
 {{client,
  [{{certfile, {chain}}},
   {{keyfile, {key}}},
   {{cacertfile, {root}}},
   {{verify, verify_peer}},
   % Before OTP 27: run erlc on thicket_names.erl, start with -pa DIRECTORY, remove the % below.
   % {{customize_hostname_check, [{{match_fun, fun thicket_names:match/2}}]}},
   {{versions, ['tlsv1.3']}}]}}].
"""

_MODULE: Final = """\
%% Erlang before OTP 27 does not look for the address of a node in its certificate.
-module(thicket_names).
-export([match/2]).

match({dns_id, Host}, {iPAddress, Address}) ->
    case inet:parse_ipv6strict_address(Host) of
        {ok, Words} ->
            << <<Word:16>> || Word <- tuple_to_list(Words) >> =:= iolist_to_binary(Address);
        {error, _} ->
            default
    end;
match(_, _) ->
    default.
"""


def erlang_files(folder: Path, fleet: Fleet, credentials: Credentials) -> dict[str, str]:
    """Return the files, by name, that an Erlang node needs in ``folder`` to use ``credentials``."""

    def path(name: str) -> str:
        text = str(folder.absolute() / name).replace("\\", "\\\\").replace('"', '\\"')
        return f'"{text}"'

    return {
        "root.pem": x509.pem(fleet.root.der),
        "chain.pem": "".join(map(x509.pem, credentials.chain)),
        "key.pem": key_pem(credentials.private_key),
        "ssl_dist.conf": _OPTIONS.format(
            chain=path("chain.pem"), key=path("key.pem"), root=path("root.pem")
        ),
        "thicket_names.erl": _MODULE,
    }


async def make_guest(authority: Authority, folder: Path, clock: Clock, days: int) -> Credentials:
    """Enrol a guest with ``authority`` and write its files into the new ``folder``.

    Raises ``OSError``, also when the folder exists, and ``AuthorityError``.
    """
    folder.mkdir(mode=0o700, parents=True)
    key = openssl.generate_key()
    identity = os.urandom(6)
    chain = authority.enroll_software("random", identity, openssl.public_key(key))
    credentials = await make_credentials(
        FileKey(key, chain), authority.fleet, clock, lifetime=timedelta(days=days)
    )
    for name, text in erlang_files(folder, authority.fleet, credentials).items():
        mode = 0o600 if name == "key.pem" else 0o644
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(folder / name, flags, mode), "w", encoding="utf-8") as file:
            file.write(text)
    return credentials


def how_to_join(folder: Path, credentials: Credentials) -> str:
    """Return what to do with the files, in words and commands."""
    address = credentials.peer.address
    from shlex import quote  # noqa: PLC0415

    words = ",".join(f"16#{word}" for word in address.exploded.split(":"))
    return f"""\
The guest {credentials.peer.device} has the address {address}. Give it to the interface
that is in the mesh, or routed into it:

  ip -6 address add {address}/64 dev INTERFACE

  erl -name guest@{address} -setcookie COOKIE -proto_dist inet6_tls \\
      -ssl_dist_optfile {quote(str(folder.absolute() / "ssl_dist.conf"))} \\
      -kernel net_ticktime 15 -kernel prevent_overlapping_partitions false \\
      -kernel inet_dist_use_interface '{{{words}}}' \\
      -kernel inet_dist_connect_options '[{{ip,{{{words}}}}}]'

Before OTP 27 see the comment in ssl_dist.conf. `thicket ca revoke {credentials.peer.device}`
ends the visit.
"""

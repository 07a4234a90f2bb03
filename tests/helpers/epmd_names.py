# SPDX-License-Identifier: Apache-2.0
"""Asks a port mapper for all names, as ``epmd -names`` does; no node of ours needs that."""

from __future__ import annotations

from thicket.distribution import epmd
from thicket.distribution.epmd import EpmdError

NAMES_REQUEST = b"\0\x01\x6e"


def parse_names_answer(data: bytes) -> dict[str, int]:
    """Return names and ports in the answer ``data``.

    :raises EpmdError: it is no such answer.
    """
    if len(data) < 4:
        raise EpmdError("the answer to a request for the names ends too early")
    names: dict[str, int] = {}
    for line in data[4:].decode("utf-8", "replace").splitlines():
        match line.split():
            case ["name", name, "at", "port", number] if _is_port(number):
                names[name] = int(number)
            case []:
                pass
            case _:
                raise EpmdError(f"not a line of names: {line!r}")
    return names


def _is_port(text: str) -> bool:
    # not any number: int() refuses one of some thousand digits
    return text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) < 0x10000


async def names(host: str, *, timeout: float = 2.0, port: int = epmd.PORT) -> dict[str, int]:
    """Ask the port mapper at ``host`` for all names and their ports.

    :raises OSError: nobody answers at ``host``.
    :raises EpmdError: the answer makes no sense.
    """
    return parse_names_answer(
        await epmd.ask(host, NAMES_REQUEST, 64 * 1024, timeout=timeout, port=port)
    )

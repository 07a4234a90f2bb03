# SPDX-License-Identifier: Apache-2.0
"""Another passphrase for the mesh of a lab, by its fleet's authority, carried to a node."""

from __future__ import annotations

import asyncio
import base64
import shlex
import tomllib
from typing import Protocol

from meshlab.lab.errors import LabError
from meshlab.lab.fleet import LabFleet
from meshlab.lab.parts import FleetLike
from meshlab.lab.questions import PATIENCE, Runs
from thicket.trust.change import tag


class Fleet(Runs, Protocol):
    """A lab with an authority."""

    fleet: FleetLike | None


def _fleet(lab: Fleet) -> LabFleet:
    if not isinstance(lab.fleet, LabFleet):
        raise LabError("the lab has no authority, which a change of the passphrase needs")
    return lab.fleet


async def known(lab: Runs, name: str) -> list[str]:
    """Return what a node's file says of passphrases, and what its wpa_supplicant has."""
    command = "cat /etc/thicket/thicket.toml /run/thicket/wpa_supplicant.conf"
    status, text = await lab.run(name, command, PATIENCE)
    if status:
        raise LabError(f"{command} on {name} ended with {status}: {text.strip()[-500:]}")
    keys = ("passphrase", "next_passphrase", "sae_password")
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line.replace("=", " ").split(" ")[0] in keys]


async def present(lab: Runs, name: str) -> str:
    """Return the mesh's passphrase, as the file of a node has it."""
    first, *_ = await known(lab, name)
    return str(tomllib.loads(first)["passphrase"])


async def bring(lab: Runs, name: str, packed: bytes) -> tuple[int, str]:
    """Bring a signed change to a node, as a person does who carries it there."""
    code = "import sys, base64; sys.stdout.buffer.write(base64.b64decode(sys.argv[1]))"
    command = f"python3 -c {shlex.quote(code)} {base64.b64encode(packed).decode()}"
    return await lab.run(name, f"{command} | thicket passphrase import -", PATIENCE)


async def offer(lab: Fleet, name: str, passphrase: str) -> tuple[int, str]:
    """Let the fleet's authority offer another passphrase, by way of a node."""
    ca = _fleet(lab).authority
    # The lab gives its cards a passphrase of its own.
    replaces = [tag(await present(lab, name), ca.fleet.identifier)]
    packed = await asyncio.to_thread(ca.network.offer_passphrase, passphrase, replaces=replaces)
    return await bring(lab, name, packed)


async def use(lab: Fleet, name: str) -> tuple[int, str]:
    """Let the authority order that the offered passphrase is used."""
    packed = await asyncio.to_thread(_fleet(lab).authority.network.use_passphrase)
    return await bring(lab, name, packed)


async def roll(
    lab: Fleet, name: str, passphrase: str, *, accept_missing: bool = False
) -> tuple[int, str]:
    """Do what ``thicket ca passphrase roll`` does, with the changes carried to a node."""
    code, output = await offer(lab, name, passphrase)
    if code != 0 and not accept_missing:
        return code, output
    code, more = await use(lab, name)
    return code, output + more

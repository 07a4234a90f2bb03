# SPDX-License-Identifier: Apache-2.0
"""``thicket ca``: the fleet's certificate authority, on the engineer's machine."""

from __future__ import annotations

import json
import os
import sys
from ipaddress import IPv6Network
from pathlib import Path
from typing import Final

from thicket.identity.atecc import Atecc, ChipError
from thicket.identity.bus import Bus, BusError, LinuxBus
from thicket.trust.authority import Authority, AuthorityError
from thicket.trust.certificates import pem
from thicket.trust.nerveskey import Otp, ProvisioningError, default_otp
from thicket.trust.openssl import OpenSslError

HELP: Final = """\
usage: thicket ca [--folder DIR] COMMAND

  init NAME [--prefix PREFIX] [--lab]
                            make a fleet: root, first signer, empty list of revocations;
                            --lab for the simulator: keys with an empty passphrase
  signer                    make another signer, used for new devices from then on
  enroll --virtual FILE...  enrol virtual chips (chip.json of nodes that do not run)
  enroll [--ssh HOST] --bus N [--address 0xNN] [--serial TEXT] [--board NAME] [--write]
                            enrol the chip on /dev/i2c-N, of this machine or of a node that
                            ssh reaches; without --write the plan is shown and nothing is
                            changed. Locks are for ever
  enroll --software SOURCE ID KEY
                            enrol a node without chip: SOURCE board, mac or random, ID its
                            12 digits, KEY its public key (128 digits); prints certificates
  guest DIR [--days N]      make files for a computer with a stock Erlang or Elixir, which may
                            take part in the cluster for N (30) days
  revoke NAME...            revoke devices or signers, for ever
  list [--json]             signers and devices
  root                      print the root certificate, which every node needs

DIR is THICKET_CA or ~/.local/share/thicket/fleet. The passphrase of keys is asked for, or taken
from THICKET_CA_PASSPHRASE.
"""

OK, BAD, USAGE = 0, 1, 2

DEFAULT_PREFIX: Final = "fd12:3456:789a:1::/64"


class UsageError(Exception):
    """The command line is wrong."""


def main(words: list[str]) -> int:
    """Run ``thicket ca`` with these arguments; the exit status (as of ``thicket``)."""
    try:
        return _run(list(words))
    except UsageError as error:
        sys.stderr.write(f"thicket ca: {error}\nTry `thicket ca help`.\n")
        return USAGE
    except (AuthorityError, ProvisioningError, ChipError, BusError, OpenSslError) as error:
        sys.stderr.write(f"thicket ca: {error}\n")
        return BAD


def _folder() -> Path:
    chosen = os.environ.get("THICKET_CA")
    return Path(chosen) if chosen else Path.home() / ".local/share/thicket/fleet"


def _passphrase(question: str) -> str:
    given = os.environ.get("THICKET_CA_PASSPHRASE")
    if given:
        return given
    if not sys.stdin.isatty():
        raise AuthorityError(
            f"{question}: nobody can be asked here; set THICKET_CA_PASSPHRASE, or run it in a "
            "terminal"
        )
    from getpass import getpass  # noqa: PLC0415

    first = getpass(f"{question}: ")
    if not first:
        raise AuthorityError("an empty passphrase protects nothing (--lab is for the simulator)")
    if question.startswith("New") and getpass("Once more: ") != first:
        raise AuthorityError("the two passphrases are not the same; nothing was written")
    return first


def _option(words: list[str], name: str) -> str | None:
    if name not in words:
        return None
    at = words.index(name)
    if at + 1 >= len(words):
        raise UsageError(f"{name} needs a value")
    value = words[at + 1]
    del words[at : at + 2]
    return value


def _flag(words: list[str], name: str) -> bool:
    if name not in words:
        return False
    words.remove(name)
    return True


def _run(words: list[str]) -> int:
    folder = _option(words, "--folder")
    authority = Authority(Path(folder) if folder else _folder(), _passphrase)
    if not words:
        raise UsageError("no command")
    command, rest = words[0], words[1:]
    if command in {"help", "-h", "--help"}:
        sys.stdout.write(HELP)
        return OK
    if command == "init":
        return _init(authority, rest)
    if command == "enroll":
        return _enroll(authority, rest)
    if command == "guest":
        return _guest(authority, rest)
    if command == "revoke":
        if not rest or any(word.startswith("-") for word in rest):
            raise UsageError("revoke needs names of devices or signers")
        authority.revoke(rest)
        print(f"Revoked: {', '.join(rest)}. The list for nodes: {authority.folder}/revocations.bin")
        return OK
    if command == "list":
        return _list(authority, rest)
    if rest:
        raise UsageError(f"{command} takes no arguments")
    if command == "signer":
        print(f"Signer {authority.signer()} signs new devices from now on.")
        return OK
    if command == "root":
        sys.stdout.write(pem(authority.fleet.root.der))
        return OK
    raise UsageError(f"unknown command {command!r}")


def _init(authority: Authority, rest: list[str]) -> int:
    prefix = _option(rest, "--prefix") or DEFAULT_PREFIX
    lab = _flag(rest, "--lab")
    if len(rest) != 1 or rest[0].startswith("-"):
        raise UsageError("init needs the NAME of the fleet")
    try:
        network = IPv6Network(prefix)
        if network.prefixlen not in (48, 64):
            raise ValueError("a /64 or a /48 is needed")
    except ValueError as error:
        raise UsageError(f"--prefix {prefix}: {error}") from None
    fleet = authority.init(rest[0], network, lab=lab)
    print(
        f"Fleet {fleet.name!r} for {fleet.network} is in {authority.folder}. Nodes need root.pem; "
        "keep a copy of the folder where it is safe."
    )
    return OK


def _enroll(authority: Authority, rest: list[str]) -> int:
    if _flag(rest, "--virtual"):
        from thicket.trust.virtual import open_chip  # noqa: PLC0415

        if not rest:
            raise UsageError("--virtual needs files of virtual chips")
        for file in rest:
            serial = authority.enroll_chip(open_chip(Path(file)), write=True, show=lambda _: None)
            print(f"Device {serial} enrolled ({file}).")
        return OK
    if _flag(rest, "--software"):
        return _enroll_software(authority, rest)
    bus, write = _option(rest, "--bus"), _flag(rest, "--write")
    address, serial_text = _option(rest, "--address") or "0x60", _option(rest, "--serial")
    board, host = _option(rest, "--board"), _option(rest, "--ssh")
    if bus is None or rest or not bus.isdecimal():
        raise UsageError("enroll needs --virtual FILE..., --bus N or --software SOURCE ID KEY")
    try:
        number = int(address, 0)
    except ValueError:
        raise UsageError(f"--address {address} is not a number") from None
    chip = Atecc(_bus(f"/dev/i2c-{bus}", host), number)
    try:
        otp = None
        if serial_text is not None or board is not None:
            default = default_otp(chip.serial_number())
            otp = Otp(board or default.board, serial_text or default.serial)
        serial = authority.enroll_chip(chip, write=write, otp=otp)
    finally:
        chip.bus.close()
    print(
        f"Device {serial} enrolled."
        if write
        else "Nothing was written. With --write it is done, and what is marked FOR EVER stays so."
    )
    return OK


def _bus(path: str, host: str | None) -> Bus:
    if host is None:
        return LinuxBus(path)
    if host.startswith("-"):
        raise UsageError(f"--ssh {host} is not a host")
    from thicket.identity.remote import RemoteBus  # noqa: PLC0415

    return RemoteBus(("ssh", "-T", host, "python3", "-m", "thicket.identity.remote", path))


def _enroll_software(authority: Authority, rest: list[str]) -> int:
    try:
        source, identity, key = rest
        device, signer = authority.enroll_software(
            source, bytes.fromhex(identity), bytes.fromhex(key)
        )
    except ValueError as error:
        raise UsageError(
            f"--software needs SOURCE, ID (12 digits) and KEY (128 digits): {error}"
        ) from None
    sys.stdout.write(pem(device) + pem(signer))
    return OK


def _guest(authority: Authority, rest: list[str]) -> int:
    import asyncio  # noqa: PLC0415
    from datetime import UTC, datetime  # noqa: PLC0415

    from thicket.trust.guest import DAYS, how_to_join, make_guest  # noqa: PLC0415
    from thicket.trust.verify import Clock  # noqa: PLC0415

    days = _option(rest, "--days") or str(DAYS)
    if not days.isdecimal() or not 0 < int(days) <= 3650:
        raise UsageError(f"--days {days}: a number from 1 to 3650 is needed")
    if len(rest) != 1 or rest[0].startswith("-"):
        raise UsageError("guest needs the DIRECTORY for the files")
    folder, now = Path(rest[0]), datetime.now(UTC)
    try:
        guest = asyncio.run(make_guest(authority, folder, Clock(now, now), int(days)))
    except FileExistsError:
        raise AuthorityError(f"{folder} exists; a guest's files go into a new directory") from None
    except OSError as error:
        raise AuthorityError(f"{folder} cannot be written: {error.strerror}") from None
    sys.stdout.write(how_to_join(folder, guest))
    return OK


def _list(authority: Authority, rest: list[str]) -> int:
    if any(word != "--json" for word in rest):
        raise UsageError("list takes only --json")
    document = authority.list()
    if rest:
        print(json.dumps(document, indent=2))
        return OK
    print(f"Fleet {document['name']!r}, prefix {document['prefix']}", end="")
    print(", for the simulator only" if document["lab"] else "")
    for signer in document["signers"].values():
        state = f"REVOKED {signer['revoked']}" if signer.get("revoked") else ""
        print(f"  {signer['name']:<30} until {signer['until']}  {state}".rstrip())
    for name, device in document["devices"].items():
        state = f"REVOKED {device['revoked']}" if device.get("revoked") else ""
        print(f"  {name:<30} {device['address']}  {state}".rstrip())
    return OK

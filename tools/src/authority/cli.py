# SPDX-License-Identifier: Apache-2.0
"""``thicket ca``: the fleet's certificate authority, on the engineer's machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from ipaddress import IPv6Network
from pathlib import Path
from typing import Final

from authority import remote_node
from authority.authority import Authority
from authority.errors import AuthorityError
from authority.nerveskey import Otp, default_otp
from authority.provisioning import ProvisioningError
from authority.remote_bus import Channel, RemoteBus
from authority.remote_node import RemoteNode
from authority.token import TokenError
from thicket.cli.common import BAD, OK, USAGE, UsageError
from thicket.identity.bus import Bus, BusError, LinuxBus
from thicket.identity.chip.atecc import ADDRESSES, Atecc
from thicket.identity.chip.errors import ChipAbsentError, ChipError, ChipProtocolError
from thicket.trust.certificates import pem
from thicket.trust.fleet import device_name
from thicket.trust.openssl import OpenSslError
from thicket.trust.revocations import SignedList, split
from thicket.trust.verify import RefusedError

HELP: Final = """\
usage: thicket ca [--folder DIR] COMMAND

A fleet:
  init NAME [--prefix PREFIX] [--lab] [--pkcs11 URI]
                            make a fleet: root, first signer, empty list of revocations;
                            --lab for the simulator: keys with an empty passphrase;
                            --pkcs11 makes the keys on the token that URI names
                            (pkcs11:token=NAME?module-path=/usr/lib/.../module.so)
  signer [--pkcs11 URI]     make another signer, used for new devices from then on
  config [--out FILE] [--ssh-key FILE... | --no-ssh-key]
                            a thicket.toml for the fleet's cards, the same one every time;
                            asks whose SSH key may log in (usually yours, of ~/.ssh)
  list [--json]             signers and devices
  root                      print the root certificate, which every node needs

Its devices, where WHERE is one of: nothing (this machine), --ssh HOST (a node that ssh reaches),
--console PATH [--baud N] (the root shell on a node's serial port, or a simulated node's socket):
  enroll [WHERE] --bus N [--address 0xNN] [--serial TEXT] [--board NAME] [--write]
                            enrol the chip on /dev/i2c-N; without --write the plan is shown
                            and nothing is changed. Locks are for ever. Without --address
                            those that chips are sold with are tried (0x60, 0x35, 0x36 ...)
  enroll WHERE --bus N --certificate-on-device [--write]
                            the same for a chip that cannot be written (Trust&GO): its
                            certificate goes to a file on the device, its key stays in it
  enroll WHERE --software   enrol a node without chip
  enroll --software SOURCE ID KEY
                            the same by hand: SOURCE board, mac or random, ID its 12
                            digits, KEY its public key (128 digits); prints certificates
  enroll --virtual FILE...  enrol virtual chips (chip.json of nodes that do not run)
  enroll ... --replace      enrol a device under a name that was enrolled with another key
  node DIR [--name iex] [--days 365]
                            make, or renew, the identity of a stock Erlang or Elixir node
  revoke NAME...            revoke devices or signers, for ever
  publish --ssh HOST... | --console PATH
                            bring the list of revocations to a node; it spreads from there.
                            What another copy of this authority has revoked is taken up
  passphrase roll [--generate] [--accept-missing] [WHERE]
                            another passphrase for the mesh, typed or from standard input:
                            hand it to every node by way of the one at WHERE, change to it
                            when all have it. Without WHERE the signed change is for
                            `thicket passphrase import`, from DIR/passphrase.change
  passphrase finish|cancel [WHERE]
                            change to the one that was handed out, or drop it

DIR is THICKET_CA or ~/.local/share/thicket/fleet. Passphrases of keys and PINs of tokens are
asked for, or taken from THICKET_CA_PASSPHRASE and THICKET_CA_PIN.
"""


DEFAULT_PREFIX: Final = "fd12:3456:789a:1::/64"


def main(words: list[str]) -> int:
    """Run ``thicket ca`` with these arguments; the exit status (as of ``thicket``)."""
    try:
        return _run(list(words))
    except UsageError as error:
        sys.stderr.write(f"thicket ca: {error}\nTry `thicket ca help`.\n")
        return USAGE
    except (
        AuthorityError, ProvisioningError, ChipError, BusError, OpenSslError, TokenError
    ) as error:  # fmt: skip
        sys.stderr.write(f"thicket ca: {error}\n")
        return BAD


def _folder() -> Path:
    chosen = os.environ.get("THICKET_CA")
    return Path(chosen) if chosen else Path.home() / ".local/share/thicket/fleet"


def _passphrase(question: str) -> str:
    pin = question.startswith("PIN")
    variable = "THICKET_CA_PIN" if pin else "THICKET_CA_PASSPHRASE"
    given = os.environ.get(variable)
    if given:
        return given
    if not sys.stdin.isatty():
        raise AuthorityError(
            f"{question}: nobody can be asked here; set {variable}, or run it in a terminal"
        )
    from getpass import getpass

    first = getpass(f"{question}: ")
    if not first and not pin:
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
    if command == "revoke":
        if not rest or any(word.startswith("-") for word in rest):
            raise UsageError("revoke needs names of devices or signers")
        return _revoke(authority, rest)
    if command == "list":
        return _list(authority, rest)
    if command == "config":
        return _config(authority, rest)
    if command == "node":
        return _node(authority, rest)
    if command == "publish":
        return _publish(authority, rest)
    if command == "passphrase":
        from authority.passphrase import run

        return run(authority, rest, where=_where(rest))
    token = _option(rest, "--pkcs11") if command == "signer" else None
    if rest:
        raise UsageError(f"{command} takes no arguments")
    if command == "signer":
        print(f"Signer {authority.signer(token=token)} signs new devices from now on.")
        return OK
    if command == "root":
        sys.stdout.write(pem(authority.fleet.root.der))
        return OK
    raise UsageError(f"unknown command {command!r}")


def _init(authority: Authority, rest: list[str]) -> int:
    prefix = _option(rest, "--prefix") or DEFAULT_PREFIX
    lab, token = _flag(rest, "--lab"), _option(rest, "--pkcs11")
    if lab and token is not None:
        raise UsageError("--lab is for keys in files")
    if len(rest) != 1 or rest[0].startswith("-"):
        raise UsageError("init needs the NAME of the fleet")
    try:
        network = IPv6Network(prefix)
        if network.prefixlen not in (48, 64):
            raise ValueError("a /64 or a /48 is needed")
    except ValueError as error:
        raise UsageError(f"--prefix {prefix}: {error}") from None
    fleet = authority.init(rest[0], network, lab=lab, token=token)
    print(
        f"Fleet {fleet.name!r} for {fleet.network} is in {authority.folder}; keep a copy of it "
        "where it is safe. `thicket ca config --out my.toml` makes the file for the cards."
    )
    return OK


def _enroll(authority: Authority, rest: list[str]) -> int:
    replace = _flag(rest, "--replace")
    if _flag(rest, "--virtual"):
        from authority.virtual import open_chip

        if not rest:
            raise UsageError("--virtual needs files of virtual chips")
        for file in rest:
            serial = authority.enroll_chip(
                open_chip(Path(file)), write=True, show=lambda _: None, replace=replace
            )
            print(f"Device {serial} enrolled ({file}).")
        return OK
    software, write = _flag(rest, "--software"), _flag(rest, "--write")
    on_device = _flag(rest, "--certificate-on-device")
    bus = _option(rest, "--bus")
    address, serial_text = _option(rest, "--address"), _option(rest, "--serial")
    board, where = _option(rest, "--board"), _where(rest)
    if software:
        if bus is not None or on_device:
            raise UsageError("--software is for nodes without chip; --bus and the like are not")
        if where is None:
            return _enroll_by_hand(authority, rest, replace=replace)
        if rest:
            raise UsageError(f"{' '.join(rest)} is not understood")
        return _enroll_software(authority, where, replace=replace)
    if bus is None or rest or not bus.isdecimal():
        raise UsageError("enroll needs --virtual FILE..., --bus N or --software")
    try:
        number = None if address is None else int(address, 0)
    except ValueError:
        raise UsageError(f"--address {address} is not a number") from None
    path = f"/dev/i2c-{bus}"
    # Asked for before a node is kept waiting
    authority.issuer()
    channel = where(path) if where is not None else None
    used = RemoteBus(channel) if channel is not None else LinuxBus(path)
    chip = Atecc(used, number) if number is not None else _chip_on(used)
    try:
        otp = None
        if serial_text is not None or board is not None:
            default = default_otp(chip.serial_number())
            otp = Otp(board or default.board, serial_text or default.serial)
        keep: Callable[[str], object] | None = None
        if on_device:
            keep = RemoteNode(channel).put_certificates if channel is not None else print
        serial = authority.enroll_chip(chip, write=write, otp=otp, keep=keep, replace=replace)
        print(
            f"Device {serial} enrolled."
            if write
            else "Nothing was written. With --write it is done, and what is marked FOR EVER stays "
            "so."
        )
        if write and channel is not None:
            _tell_daemon(RemoteNode(channel))
    finally:
        chip.bus.close()
    return OK


def _chip_on(bus: Bus) -> Atecc:
    """Return the chip at the first of the usual addresses that has one, else that of the first."""
    for address in ADDRESSES:
        chip = Atecc(bus, address)
        try:
            chip.serial_number()
        except (ChipAbsentError, ChipProtocolError):  # nothing there, or something else
            continue
        return chip
    return Atecc(bus)


def _where(rest: list[str]) -> Callable[[str | None], Channel] | None:
    """Return what reaches the node that the command line names, for a bus of it or none."""
    host, path = _option(rest, "--ssh"), _option(rest, "--console")
    speed = _option(rest, "--baud") or "115200"
    if host is not None and path is not None:
        raise UsageError("--ssh or --console, not both")
    if host is not None:
        if host.startswith("-"):
            raise UsageError(f"--ssh {host} is not a host")
        return lambda bus: remote_node.ssh(host, bus)
    if path is not None:
        if not speed.isdecimal():
            raise UsageError(f"--baud {speed} is not a number")
        return lambda bus: remote_node.console(path, bus, int(speed))
    return None


def _enroll_software(
    authority: Authority, where: Callable[[str | None], Channel], *, replace: bool
) -> int:
    authority.issuer()
    node = RemoteNode(where(None))
    try:
        claim = node.claim()
        if claim.public_key is None:
            raise AuthorityError(
                f"the node has a chip ({claim.serial}); enrol that with --bus N in place of "
                "--software"
            )
        device, signer = authority.enroll_software(
            claim.source, claim.identity, claim.public_key, replace=replace
        )
        file = node.put_certificates(pem(device) + pem(signer))
        name = device_name(claim.source, claim.identity, None)
        print(f"Device {name} enrolled; its certificates are in {file} there.")
        _tell_daemon(node)
    finally:
        node.close()
    return OK


def _tell_daemon(node: RemoteNode) -> None:
    try:
        faults = node.reload()
    except (AuthorityError, BusError) as error:
        # the enrolment is done; the daemon finds it at its next start
        sys.stderr.write(f"The node's daemon does not take it up until it starts again: {error}\n")
        return
    for fault in faults:
        sys.stderr.write(f"The node says of its configuration: {fault}\n")


def _enroll_by_hand(authority: Authority, rest: list[str], *, replace: bool) -> int:
    try:
        source, identity, key = rest
        device, signer = authority.enroll_software(
            source, bytes.fromhex(identity), bytes.fromhex(key), replace=replace
        )
    except ValueError as error:
        raise UsageError(
            "--software needs --ssh HOST or --console PATH, or SOURCE, ID (12 digits) and KEY "
            f"(128 digits): {error}"
        ) from None
    sys.stdout.write(pem(device) + pem(signer))
    return OK


def _config(authority: Authority, rest: list[str]) -> int:
    from authority import card_config, ssh_keys

    out, nobody = _option(rest, "--out"), _flag(rest, "--no-ssh-key")
    files: list[str] = []
    while (file := _option(rest, "--ssh-key")) is not None:
        files.append(file)
    if rest:
        raise UsageError("config takes only --out FILE, --ssh-key FILE and --no-ssh-key")
    if files and nobody:
        raise UsageError("--ssh-key or --no-ssh-key, not both")
    _ = authority.fleet  # where there is none, nobody is asked for keys
    # Nobody is asked again for a file that is as it was made.
    keys = card_config.keys_in(Path(out)) if out is not None and not files and not nobody else None
    if out is None or keys is None or not card_config.is_same(Path(out), authority, keys):
        keys = ssh_keys.read(files)
        if not files and not nobody:
            keys = ssh_keys.choose(Path.home() / ".ssh")
    made = card_config.text(authority, keys)
    if not keys:
        sys.stderr.write(
            "thicket ca: NOBODY CAN LOG IN to nodes with this file: it names no SSH key. Put one "
            "into access.ssh_keys, or reach them as a member of the fleet (`thicket ca node`)\n"
        )
    if out is None:
        sys.stdout.write(made)
        return OK
    if card_config.write(Path(out), made):
        print(f"{out} is for all cards: make flash DEV=/dev/sdX CONFIG={out}")
    else:
        print(f"{out} is there already, and the same.")
    return OK


def _node(authority: Authority, rest: list[str]) -> int:
    from authority import stock

    name, days = _option(rest, "--name") or "iex", _option(rest, "--days") or "365"
    if len(rest) != 1 or rest[0].startswith("-"):
        raise UsageError("node needs the folder DIR")
    if not days.isdecimal() or not 1 <= int(days) <= 11_000:
        raise UsageError("--days takes 1 to 11000")
    node = stock.make(authority, Path(rest[0]), name=name, days=int(days))
    sys.stdout.write(stock.usage(node))
    return OK


def _revoke(authority: Authority, names: list[str]) -> int:
    before = authority.revocations.names
    authority.revocations.revoke(names)
    for name in names:
        if name in before:
            print(f"{name} is revoked already.")
    new = [name for name in dict.fromkeys(names) if name not in before]
    if new:
        print(f"Revoked: {', '.join(new)}. `thicket ca publish` brings the list to the nodes.")
    return OK


class _UnreachedError(Exception):
    """A node does not tell which lists it has, or does not take one."""


def _publish(authority: Authority, rest: list[str]) -> int:
    hosts: list[str] = []
    while (host := _option(rest, "--ssh")) is not None:
        hosts.append(host)
    where = _where(rest)
    if rest or not (hosts or where) or any(host.startswith("-") for host in hosts):
        raise UsageError("publish needs --ssh HOST... or --console PATH")
    # All are asked first: what one copy of the authority revoked must reach the others' nodes.
    found: list[bytes] = []
    status = OK
    node = RemoteNode(where(None)) if where is not None else None
    try:
        reached = []
        for host in hosts:
            try:
                found += _held_by(host)
                reached.append(host)
            except _UnreachedError as error:
                sys.stderr.write(f"thicket ca: {error}\n")
                status = BAD
        if node is not None:
            own = SignedList.read(authority.revocations.packed, authority.fleet)
            found += node.export_revocations({own.digest.hex()})
        new, packed = authority.revocations.merge(found)
        if new:
            print(f"Another copy of this authority has revoked {', '.join(sorted(new))}: taken up.")
        if node is not None:
            number, names = node.import_revocations(packed)
            print(f"The node has list {number} now, with {names} names.")
    finally:
        if node is not None:
            node.close()
    for host in reached:
        try:
            _over_ssh(host, "has not taken the list", "import", "-", data=packed)
        except _UnreachedError as error:
            sys.stderr.write(f"thicket ca: {error}\n")
            status = BAD
    return status


def _held_by(host: str) -> list[bytes]:
    """Return the lists that a node has."""
    data = _over_ssh(host, "does not tell which lists it has; it gets none", "export")
    try:
        return split(data)
    except RefusedError as error:
        raise _UnreachedError(f"{host}: {error}") from None


def _over_ssh(host: str, failed: str, *words: str, data: bytes = b"") -> bytes:
    """Run ``thicket revocations`` on ``host``, which may be a login that can do nothing else."""
    exporting = words[0] == "export"
    try:
        done = subprocess.run(
            ["ssh", "-T", host, "thicket", "revocations", *words],
            input=data, stdout=subprocess.PIPE if exporting else None, check=False, timeout=300,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _UnreachedError(f"{host} {failed}: {error}") from None
    if done.returncode != 0:
        raise _UnreachedError(f"{host} {failed}")
    return done.stdout or b""


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
    for name, date in document.get("revoked", {}).items():
        print(f"  {name:<30} of another copy of this authority  REVOKED {date}")
    return OK

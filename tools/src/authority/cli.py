# SPDX-License-Identifier: Apache-2.0
"""``thicket ca``: the fleet's certificate authority, on the engineer's machine."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path
from typing import Final

from authority import remote_node, ssh
from authority.authority import Authority
from authority.chip import DeskChip
from authority.chips import chip_on
from authority.errors import AuthorityError
from authority.holders import entries
from authority.nerveskey import Otp, default_otp
from authority.remote_bus import Channel, RemoteBus
from authority.remote_node import RemoteNode
from authority.words import Command, Parser, a_number, a_path, a_word, run_desk
from thicket.cli.common import BAD, OK, UsageError
from thicket.identity.bus import BusError, LinuxBus
from thicket.trust.certificates import pem
from thicket.trust.fleet import device_name
from thicket.trust.labels import device_of
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
  update-signer NAME [--pkcs11 URI]
                            make a signer of updates (`thicket update sign`)
  operator NAME [--days 365] [--renew] [--out DIR]
                            let somebody run commands on all nodes (`thicket --via`), or for
                            longer; DIR is a folder for him, with nothing of others
  config [--out FILE] [--ssh-key FILE... | --no-ssh-key]
                            a thicket.toml for the fleet's cards, the same one every time;
                            asks whose SSH key may log in (usually yours, of ~/.ssh)
  list [--json]             signers of devices and of updates, operators, devices and their labels
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
  enroll --cable [DEVICE...] [--yes] [--watch]
                            enrol all devices at the cables of this machine (or those named),
                            one after the other, with and without chips; blank chips are locked
                            for ever. --watch waits for more, as they are plugged in
  enroll ... --replace      enrol a device under a name that was enrolled with another key
  node DIR [--name iex] [--days 365]
                            make, or renew, the identity of a stock Erlang or Elixir node
  revoke NAME...            revoke devices, signers or operators, for ever
  label NODE [--label TEXT] [--place TEXT | --place=LAT,LON] [--note TEXT]
                            say what a device is called, where it is, and what is to be known of
                            it; "" takes that away. NODE is its serial number, address, host name,
                            last digits or label. No key is needed
  label --import FILE | --export FILE
                            the same for many, from a table (CSV): device, label, place, note
  publish --ssh HOST... | --console PATH
                            bring the list of revocations, and labels, to a node; they spread
                            from there. What another copy of this authority has revoked or named
                            is taken up
  passphrase roll [--generate] [--accept-missing] [WHERE]
                            another passphrase for the mesh, typed or from standard input:
                            hand it to every node by way of the one at WHERE, change to it
                            when all have it. Without WHERE the signed change is for
                            `thicket passphrase import`, from DIR/passphrase.change
  passphrase finish|cancel [WHERE]
                            change to the one that was handed out, or drop it
  time --ssh HOST           tell a node the time by this machine's clock, signed; the
                            fleet follows where nobody knows better
  time --out FILE [--for QUESTION]
                            the same for `thicket time import`, and the answer to
                            `thicket time question`: without it, it is only later than

DIR is THICKET_CA or ~/.local/share/thicket/fleet. Passphrases of keys and PINs of tokens are
asked for, or taken from THICKET_CA_PASSPHRASE and THICKET_CA_PIN.
"""


_PATIENCE: Final = 300.0
DEFAULT_PREFIX: Final = IPv6Network("fd12:3456:789a:1::/64")

OpenChip = Callable[[Path], DeskChip]

Where = Callable[[str | None], Channel]
"""Reaches a node; it is given the name of the chip's bus there, or None."""


def main(words: list[str], *, open_chip: OpenChip | None = None) -> int:
    """Run ``thicket ca``; return the exit status (as of ``thicket``).

    :param words: its arguments.
    :param open_chip: opens the file of a virtual chip, where there is a simulator.
    """
    enroll: Command = partial(_enroll, open_chip=open_chip)
    return run_desk("ca", list(words), HELP, {**_COMMANDS, "enroll": enroll})


def _network(text: str) -> IPv6Network:
    with suppress(ValueError):
        network = IPv6Network(text)
        if network.prefixlen in (48, 64):
            return network
    raise argparse.ArgumentTypeError(
        f"{text[:60]!r} is no IPv6 prefix with /64 or /48, such as {DEFAULT_PREFIX}"
    )


def _init(authority: Authority, rest: list[str]) -> int:
    parser = Parser("init needs the NAME of the fleet")
    parser.add_argument("name")
    parser.add_argument("--prefix", type=_network, default=DEFAULT_PREFIX)
    keys = parser.add_mutually_exclusive_group()
    keys.add_argument("--lab", action="store_true")
    keys.add_argument("--pkcs11")
    args = parser.parse_args(rest)
    fleet = authority.init(args.name, args.prefix, lab=args.lab, token=args.pkcs11)
    print(
        f"Fleet {fleet.name!r} for {fleet.network} is in {authority.folder}; keep a copy of it "
        "where it is safe. `thicket ca config --out my.toml` makes the file for the cards."
    )
    return OK


def _signer(authority: Authority, rest: list[str]) -> int:
    parser = Parser("signer takes no arguments but --pkcs11 URI")
    parser.add_argument("--pkcs11")
    number = authority.signer(token=parser.parse_args(rest).pkcs11)
    print(f"Signer {number} signs new devices from now on.")
    return OK


def _update_signer(authority: Authority, rest: list[str]) -> int:
    parser = Parser("update-signer needs the NAME of the signer")
    parser.add_argument("name", type=a_word)
    parser.add_argument("--pkcs11")
    args = parser.parse_args(rest)
    signer = authority.update_signers.make(args.name, token=args.pkcs11)
    print(f"{signer!r} can sign updates from now on: `thicket update sign FILE`.")
    return OK


def _operator(authority: Authority, rest: list[str]) -> int:
    parser = Parser("operator needs the NAME of the operator")
    parser.add_argument("name", type=a_word)
    parser.add_argument("--days", type=a_number, default=365)
    parser.add_argument("--renew", action="store_true")
    parser.add_argument("--out", type=a_path)
    args = parser.parse_args(rest)
    if not 1 <= args.days <= 3650:
        raise UsageError(f"--days takes 1 to 3650 days, not {args.days}")
    operators = authority.operators
    known = args.name in authority.list().get(operators.member, {})
    if not known or args.renew or args.out is None:
        make = operators.renew if args.renew else operators.make
        full = make(args.name, days=args.days)
        print(f"{full!r} can run commands on the nodes from now on, for {args.days} days.")
    if args.out is not None:
        operators.hand_over(args.name, args.out)
        print(f"Give {args.out} to {args.name}, and nobody else: THICKET_CA={args.out} uses it.")
    print("    thicket --via root@HOST status NODE")
    return OK


def _root(authority: Authority, rest: list[str]) -> int:
    Parser("root takes no arguments").parse_args(rest)
    sys.stdout.write(pem(authority.fleet.root.der))
    return OK


def _enroll(authority: Authority, rest: list[str], *, open_chip: OpenChip | None) -> int:
    if any(word.partition("=")[0] == "--cable" for word in rest):
        from authority import bench

        return bench.run(authority, rest)
    parser = Parser("enroll needs --cable, --virtual FILE..., --bus N or --software")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--virtual", nargs="+", type=a_path)
    kind.add_argument("--software", nargs="*")
    kind.add_argument("--bus", type=a_number)
    for option in ("--serial", "--board"):
        parser.add_argument(option)
    parser.add_argument("--address", type=a_number)
    for option in ("--certificate-on-device", "--write", "--replace"):
        parser.add_argument(option, action="store_true")
    parser.add_where()
    args = parser.parse_args(rest)
    of_chips = (args.serial, args.board, args.address, args.certificate_on_device, args.write)
    if args.bus is None and any(given not in (None, False) for given in of_chips):
        raise UsageError(
            "--address, --serial, --board, --certificate-on-device and --write go with --bus"
        )
    where = _where(args)
    if args.bus is not None:
        return _enroll_chip(authority, args, where)
    if args.virtual is not None:
        if where is not None:
            raise UsageError("--virtual is for files on this machine")
        if open_chip is None:
            raise AuthorityError("virtual chips need the simulator: bin/thicket of a checkout")
        return _enroll_virtual(authority, map(open_chip, args.virtual), replace=args.replace)
    if where is None:
        return _enroll_by_hand(authority, args.software, replace=args.replace)
    if args.software:
        raise UsageError(f"{' '.join(args.software)} is not understood")
    return _enroll_software(authority, where, replace=args.replace)


def _enroll_virtual(authority: Authority, chips: Iterable[DeskChip], *, replace: bool) -> int:
    for chip in chips:
        serial = authority.enroll_chip(chip, write=True, show=lambda _: None, replace=replace)
        print(f"Device {serial} enrolled ({chip.bus.name}).")
    return OK


def _enroll_chip(authority: Authority, args: argparse.Namespace, where: Where | None) -> int:
    path = f"/dev/i2c-{args.bus}"
    # Asked for before a node is kept waiting
    authority.issuer()
    channel = where(path) if where is not None else None
    used = RemoteBus(channel) if channel is not None else LinuxBus(path)
    chip = DeskChip(used, args.address) if args.address is not None else chip_on(used)
    try:
        otp = None
        if args.serial is not None or args.board is not None:
            default = default_otp(chip.serial_number())
            otp = Otp(args.board or default.board, args.serial or default.serial)
        keep: Callable[[str], object] | None = None
        if args.certificate_on_device:
            keep = RemoteNode(channel).put_certificates if channel is not None else print
        serial = authority.enroll_chip(
            chip, write=args.write, otp=otp, keep=keep, replace=args.replace
        )
        print(
            f"Device {serial} enrolled."
            if args.write
            else "Nothing was written. With --write it is done, and the steps marked FOR EVER "
            "cannot be undone."
        )
        if args.write and channel is not None:
            _tell_daemon(RemoteNode(channel))
    finally:
        chip.bus.close()
    return OK


def _where(args: argparse.Namespace) -> Where | None:
    """Return what reaches the node that the command line names."""
    if args.ssh is not None:
        return partial(remote_node.ssh, args.ssh)
    if args.console is not None:
        return partial(remote_node.console, args.console, baud=args.baud)
    return None


def _enroll_software(authority: Authority, where: Where, *, replace: bool) -> int:
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
    if len(rest) != 3:
        raise UsageError(
            "--software needs --ssh HOST or --console PATH, or SOURCE, ID (12 digits) and KEY "
            "(128 digits)"
        )
    source, *digits = rest
    for what, text, size in zip(("ID", "KEY"), digits, (12, 128), strict=True):
        if not re.fullmatch(f"[0-9a-fA-F]{{{size}}}", text):
            raise UsageError(
                f"--software: {text[:40]!r} is no {what}, which has {size} hexadecimal digits"
            )
    identity, key = map(bytes.fromhex, digits)
    device, signer = authority.enroll_software(source, identity, key, replace=replace)
    sys.stdout.write(pem(device) + pem(signer))
    return OK


def _config(authority: Authority, rest: list[str]) -> int:
    from authority import card_config, ssh_keys

    parser = Parser("config takes only --out FILE, --ssh-key FILE and --no-ssh-key")
    parser.add_argument("--out", type=a_path)
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--ssh-key", action="append", default=[])
    who.add_argument("--no-ssh-key", action="store_true")
    args = parser.parse_args(rest)
    out, files, nobody = args.out, args.ssh_key, args.no_ssh_key
    _ = authority.fleet  # where there is none, nobody is asked for keys
    # Nobody is asked again for a file that is as it was made.
    keys = card_config.keys_in(out) if out is not None and not files and not nobody else None
    if out is None or keys is None or not card_config.is_same(out, authority, keys):
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
    if card_config.write(out, made):
        print(f"{out} is for all cards: make flash DEV=/dev/sdX CONFIG={out}")
    else:
        print(f"{out} is there already, and the same.")
    return OK


def _node(authority: Authority, rest: list[str]) -> int:
    from authority import stock

    parser = Parser("node needs the folder DIR")
    parser.add_argument("folder", type=a_path)
    parser.add_argument("--name", default="iex")
    parser.add_argument("--days", type=a_number, default=365)
    args = parser.parse_args(rest)
    if not 1 <= args.days <= 11_000:
        raise UsageError(f"--days takes 1 to 11000 days, not {args.days}")
    node = stock.make(authority, args.folder, name=args.name, days=args.days)
    sys.stdout.write(stock.usage(node))
    return OK


def _revoke(authority: Authority, rest: list[str]) -> int:
    parser = Parser("revoke needs names of devices, signers or operators")
    parser.add_argument("names", nargs="+")
    names = authority.revocations.full_names(parser.parse_args(rest).names)
    before = authority.revocations.names
    authority.revocations.revoke(names)
    for name in names:
        if name in before:
            print(f"{name} is revoked already.")
    new = [name for name in dict.fromkeys(names) if name not in before]
    if new:
        print(f"Revoked: {', '.join(new)}. `thicket ca publish` brings the list to the nodes.")
    return OK


class _UnreachedError(AuthorityError):
    """A node does not tell which lists it has, or does not take one."""


def _publish(authority: Authority, rest: list[str]) -> int:
    parser = Parser("publish needs --ssh HOST... or --console PATH")
    parser.add_argument("--ssh", action="append", type=a_word, default=[])
    parser.add_argument("--console", type=a_word)
    parser.add_argument("--baud", type=a_number, default=115200)
    args = parser.parse_args(rest)
    if not args.ssh and args.console is None:
        parser.error("no node is named")
    # All are asked first: what one copy of the authority revoked must reach the others' nodes.
    found: list[bytes] = []
    status = OK
    node = None
    if args.console is not None:
        node = RemoteNode(remote_node.console(args.console, None, args.baud))
    try:
        reached = []
        for host in args.ssh:
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
        for host in reached:
            try:
                _over_ssh(host, "has not taken the list", "import", "-", data=packed)
            except _UnreachedError as error:
                sys.stderr.write(f"thicket ca: {error}\n")
                status = BAD
        from authority import label

        over_ssh = partial(_over_ssh, subject="labels")
        return max(status, label.publish(authority, node, reached, over_ssh))
    finally:
        if node is not None:
            node.close()


def _held_by(host: str) -> list[bytes]:
    """Return the lists that a node has."""
    data = _over_ssh(host, "does not tell which lists it has; it gets none", "export")
    try:
        return split(data)
    except RefusedError as error:
        raise _UnreachedError(f"{host}: {error}") from None


def _over_ssh(
    host: str, failed: str, *words: str, data: bytes = b"", subject: str = "revocations"
) -> bytes:
    """Run ``thicket revocations``, or another subject, on ``host``, which may be a login that can
    do nothing else."""
    exporting = words[0] == "export"
    try:
        done = subprocess.run(
            [ssh.program(), "-T", host, "thicket", subject, *words],
            input=data,
            stdout=subprocess.PIPE if exporting else None,
            check=False,
            timeout=_PATIENCE,
        )
    except OSError as error:
        raise _UnreachedError(f"{host} {failed}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise _UnreachedError(f"{host} {failed}: no answer within {_PATIENCE:.0f} s") from None
    if done.returncode != 0:
        raise _UnreachedError(f"{host} {failed} (ssh: status {done.returncode}), see above")
    return done.stdout or b""


def _passphrase_change(authority: Authority, rest: list[str]) -> int:
    from authority.passphrase import run

    parser = Parser()
    parser.add_where()
    # The rest may have a passphrase in it, which is not shown: no parser tells what it is.
    args, words = parser.parse_known_args(rest)
    return run(authority, words, where=_where(args))


def _time(authority: Authority, rest: list[str]) -> int:
    from authority.time import run

    return run(authority, rest)


def _label(authority: Authority, rest: list[str]) -> int:
    from authority import label

    return label.run(authority, rest)


def _list(authority: Authority, rest: list[str]) -> int:
    parser = Parser("list takes only --json")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(rest)
    from authority import label

    document = authority.list()
    if args.json:
        label.name_devices(document, authority)
        print(json.dumps(document, indent=2))
        return OK
    print(f"Fleet {document['name']!r}, prefix {document['prefix']}", end="")
    print(", for the simulator only" if document["lab"] else "")
    for signer in (*document["signers"].values(), *entries(document).values()):
        state = f"REVOKED {signer['revoked']}" if signer.get("revoked") else ""
        print(f"  {signer['name']:<30} until {signer['until']}  {state}".rstrip())
    called = label.shown(authority)
    for name, device in document["devices"].items():
        state = f"REVOKED {device['revoked']}  " if device.get("revoked") else ""
        state += called.get(device_of(IPv6Address(device["address"])), "")
        print(f"  {name:<30} {device['address']}  {state}".rstrip())
    for name, date in document.get("revoked", {}).items():
        print(f"  {name:<30} of another copy of this authority  REVOKED {date}")
    return OK


_COMMANDS: Final[dict[str, Callable[[Authority, list[str]], int]]] = {
    "config": _config,
    "init": _init,
    "label": _label,
    "list": _list,
    "node": _node,
    "operator": _operator,
    "passphrase": _passphrase_change,
    "publish": _publish,
    "revoke": _revoke,
    "root": _root,
    "signer": _signer,
    "time": _time,
    "update-signer": _update_signer,
}

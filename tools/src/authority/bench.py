# SPDX-License-Identifier: Apache-2.0
"""``thicket ca enroll --cable``: a bench of devices, enrolled one after the other by cable."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, NamedTuple

from authority import remote_node
from authority.authority import Authority
from authority.chips import chip_on
from authority.errors import AuthorityError
from authority.remote_bus import Channel, RemoteBus
from authority.remote_node import Claim, RemoteNode
from authority.words import Parser
from cable import find, reach
from cable.answers import Device
from cable.errors import CableError
from thicket.base.errors import ThicketError
from thicket.cli.common import BAD, OK, UsageError
from thicket.identity.bus import BusFaultError
from thicket.trust.certificates import pem
from thicket.trust.fleet import device_name

Open = Callable[[str | None], Channel]
"""Starts the agent on a device; it is given the name of the chip's bus there, or None."""

_PAUSE: Final = 1.0
"""Seconds between two looks for devices that are plugged in (``--watch``)."""


class Result(NamedTuple):
    """What became of one device.

    :ivar good: it is enrolled now.
    :ivar text: what was done, or why not.
    :ivar advice: what a person can do.
    """

    device: Device
    good: bool
    text: str
    advice: str = ""


def run(authority: Authority, rest: list[str]) -> int:
    """Run ``thicket ca enroll --cable``; return the exit status."""
    parser = Parser("enroll --cable takes names of devices, --yes, --watch and --replace")
    parser.add_argument("--cable", nargs="*")
    for option in ("--yes", "--watch", "--replace"):
        parser.add_argument(option, action="store_true")
    args = parser.parse_args(rest)
    for name in args.cable:
        if not reach.is_device(name):
            raise UsageError(f"{name} is no device: n-... or ADDRESS%INTERFACE")
    if not args.yes and not sys.stdin.isatty():
        raise UsageError("without a terminal to ask at, enroll --cable needs --yes")
    bench = _Bench(authority, args.cable, replace=args.replace)
    if not args.watch:
        bench.enroll(bench.new(), ask=not args.yes)
        return bench.end()
    print("Plug devices in, one after the other or many at once; Ctrl-C ends.", flush=True)
    with suppress(KeyboardInterrupt):  # Ctrl-C: what was done is told
        while True:
            bench.wait(ask=not args.yes)
    print()
    return bench.end()


def enroll(authority: Authority, start: Open, *, replace: bool) -> str:
    """Enrol the device at the other end; return what was done, in words.

    :raises ThicketError: it could not be done; the text says why.
    """
    node = RemoteNode(start(None))
    try:
        claim = node.claim()
        if claim.root == authority.fleet.identifier.hex() and not replace:
            return "is enrolled already"
        if claim.public_key is not None:
            name = _software(authority, node, claim, claim.public_key, replace=replace)
            return f"enrolled as {name}" + _reloaded(node)
    finally:
        node.close()
    return _chip(authority, start, claim, replace=replace)


def _software(
    authority: Authority, node: RemoteNode, claim: Claim, key: bytes, *, replace: bool
) -> str:
    certificate, signer = authority.enroll_software(
        claim.source, claim.identity, key, replace=replace
    )
    node.put_certificates(pem(certificate) + pem(signer))
    return device_name(claim.source, claim.identity, None)


def _chip(authority: Authority, start: Open, claim: Claim, *, replace: bool) -> str:
    if claim.bus is None:
        raise AuthorityError(
            "it does not say at which bus its chip is; enrol it with --ssh HOST --bus N"
        )
    channel = start(claim.bus)
    bus = RemoteBus(channel)
    try:
        serial = authority.enroll_chip(
            chip_on(bus), write=True, show=lambda _: None, replace=replace
        )
        return f"chip {serial} enrolled" + _reloaded(RemoteNode(channel))
    finally:
        bus.close()


def _reloaded(node: RemoteNode) -> str:
    """Let the daemon take its certificates up; return what is to be said of that."""
    try:
        faults = node.reload()
    except ThicketError as error:  # the enrolment is done: the daemon finds it at its next start
        return f", which counts from its next start on ({error})"
    return f"; it says of its configuration: {'; '.join(faults)}" if faults else ""


class _Bench:
    """The devices that were found, and what became of each."""

    def __init__(self, authority: Authority, names: Sequence[str], *, replace: bool) -> None:
        authority.issuer()  # its passphrase is asked for before anybody waits
        self._authority = authority
        self._names = names
        self._replace = replace
        self._results: dict[str, Result] = {}
        self._seen: set[Device] = set()

    def new(self) -> list[Device]:
        """Return the devices that answer now, and were not there before.

        :raises CableError: it cannot be told which are meant.
        """
        found = find.search(self._seen)
        if self._names and not self._seen:
            found = [reach.chosen(found, name) for name in self._names]
        self._seen.update(found)
        if not self._seen:
            reach.chosen([], None)  # says what may be the reason
        return found

    def enroll(self, found: list[Device], *, ask: bool) -> None:
        """Show devices, and enrol them one after the other; a failure of one is noted."""
        places: dict[str, list[Device]] = {}
        for device in found:
            places.setdefault(device.name, []).append(device)
        for device in found:
            print(f"{device.name}  {device.host}  {device.version}".rstrip())
        if ask and not self._agreed(len(places)):
            for name, (device, *_) in places.items():
                self._results[name] = Result(device, False, "not enrolled: it was not wanted")
            return
        for number, (name, devices) in enumerate(places.items(), 1):
            print(f"[{number}/{len(places)}] {name} ", end="", flush=True)
            began = time.monotonic()
            result = self._results[name] = self._one(devices)
            print(f"{result.text}  ({time.monotonic() - began:.0f} s)", flush=True)
            if result.advice:
                print(f"    {result.advice}", flush=True)

    def _agreed(self, number: int) -> bool:
        fleet = self._authority.fleet.name
        what = "this device" if number == 1 else f"these {number} devices"
        question = f"Enrol {what} in fleet {fleet!r}? Blank chips are locked FOR EVER. [y/N] "
        return input(question).strip().lower() in {"y", "yes"}

    def _one(self, devices: list[Device]) -> Result:
        device, folder = devices[0], self._authority.folder
        if len(devices) > 1 and not reach.known(device, folder):
            there = ", ".join(one.host for one in devices)
            return Result(
                device,
                False,
                f"not enrolled: it answers at {there}",
                "These are several cables to one device, or somebody else says that he is it. "
                "Leave one cable, or name the place",
            )
        start = partial(_agent, device, reach.options(device, folder))
        try:
            return Result(device, True, enroll(self._authority, start, replace=self._replace))
        except BusFaultError as error:  # ssh has ended, and has said why
            return Result(device, False, f"not enrolled: {error}", reach.advice(device, folder))
        except (ThicketError, OSError) as error:
            return Result(device, False, f"not enrolled: {error}")

    def wait(self, *, ask: bool) -> None:
        """Look once for devices that were plugged in, and enrol them."""
        time.sleep(_PAUSE)
        try:
            found = self.new()
        except CableError:  # a cable that is pulled
            return
        if found:
            self.enroll(found, ask=ask)

    def end(self) -> int:
        """Print what became of all; return the exit status."""
        bad = [result for result in self._results.values() if not result.good]
        if len(self._results) > 1:
            print()
            for name, result in sorted(self._results.items()):
                print(f"{'ok ' if result.good else 'BAD'}  {name}  {result.text}")
        print(f"{len(self._results) - len(bad)} of {len(self._results)} devices are enrolled.")
        return BAD if bad else OK


def _agent(device: Device, options: tuple[str, ...], bus: str | None) -> Channel:
    return remote_node.ssh(f"root@{device.host}", bus, options)

# SPDX-License-Identifier: Apache-2.0
"""What tests on running nodes ask of them, in short words."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from ipaddress import IPv6Address
from typing import Any

from meshlab import summary
from meshlab.lab import Lab
from meshlab.state import get, get_list


class Nodes:
    """What tests ask of nodes, in short words."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def status(self, name: str, *keys: str) -> Any:
        """Return a member of a node's status."""
        return get(self.lab.state.nodes[name].status, *keys)

    def problems(self, name: str, part: str) -> list[str]:
        """Return the problems of a part of a node, in its words."""
        found = get_list(self.lab.state.nodes[name].status, "problems")
        return [str(problem["message"]) for problem in found if problem["part"] == part]

    def address(self, name: str) -> str:
        address = self.lab.state.nodes[name].address
        assert address, f"{name} has no address"
        return address

    async def run(self, name: str, command: str, timeout: float = 60) -> str:
        """Run a command that must succeed; return its output."""
        status, output = await self.lab.run(name, command, timeout)
        assert status == 0, f"{command!r} on {name} ended with {status}: {output}"
        return output

    async def kernel_addresses(self, name: str, interface: str) -> list[str]:
        """Return the global IPv6 addresses of an interface, as the kernel has them.

        ``/proc/net/if_inet6`` (net/ipv6/addrconf.c): address, index, prefix length, scope (0 is
        global), flags, name. It is there whichever ``ip`` an image has.
        """
        lines = (await self.run(name, "cat /proc/net/if_inet6")).splitlines()
        rows = [line.split() for line in lines]
        return [
            str(IPv6Address(bytes.fromhex(row[0])))
            for row in rows
            if row[5] == interface and row[3] == "00"
        ]

    async def reaches(self, name: str, other: str) -> bool:
        """Tell whether one ping of three is answered."""
        command = f"ping -6 -n -c 3 -i 0.3 -W 2 {self.address(other)}"
        return (await self.lab.run(name, command, 60))[0] == 0

    async def until(self, check: Callable[[], Awaitable[bool]], timeout: float, what: str) -> None:
        """Wait for a condition that has to be asked for."""
        deadline = self.lab.elapsed + timeout
        while not await check():
            if self.lab.elapsed > deadline:
                raise TimeoutError(f"not within {timeout:g} s: {what}\n{self.lab.report()}")

    async def whole(self, timeout: float = 120) -> None:
        """Wait until nothing is missing."""
        await self.lab.wait(lambda: not summary.missing(self.lab.state), timeout, "whole again")

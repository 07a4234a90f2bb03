# SPDX-License-Identifier: Apache-2.0
"""The uplink of a gateway: takes addresses there, checks it, and runs what the mesh needs of it.

dhcpcd takes addresses, routes and a prefix; tayga translates IPv6 into IPv4 (NAT64); unbound
answers for names, with addresses in the prefix of NAT64 for those that have only IPv4 (DNS64).
What passes is the firewall's matter: nothing is forwarded before its rules are in force.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv6Interface, IPv6Network, ip_address
from logging import getLogger
from typing import TYPE_CHECKING, Any, NamedTuple

from thicket.base.files import make_folder, read, remove, write_atomically
from thicket.base.pace import Backoff
from thicket.base.patience import run
from thicket.base.threads import finish
from thicket.gateway import checks
from thicket.gateway.health import Health, Look, works
from thicket.gateway.lease import PROTOCOLS, Lease
from thicket.gateway.lease import read as read_lease
from thicket.gateway.offers import Way
from thicket.gateway.plan import Own, delegated
from thicket.gateway.program import Program, ProgramError
from thicket.gateway.section import NAT64, NAT64_INTERFACE, NAT64_POOL, address_and_port
from thicket.netlink.messages import NetlinkError
from thicket.netlink.rtnl import set_sysctl

if TYPE_CHECKING:
    from thicket.base.problems import Problems
    from thicket.gateway.apply import Kernel
    from thicket.gateway.section import GatewaySection

log = getLogger(__name__)

#: Of the routes that dhcpcd makes: behind those to another gateway (:data:`.plan.METRIC`).
METRIC = 2048
#: It needs no rights once it has its interface, and parses what comes from both sides.
_TAYGA = ("tayga", "--nodetach", "-u", "nobody", "-g", "nogroup")
_TUN = "/dev/net/tun"
SCRIPT = "/usr/lib/thicket/uplink-event"
#: Seconds until a program is started again that has ended by itself.
_AGAIN = (1.0, 5.0, 20.0, 60.0)
#: The user that unbound runs as.
_RESOLVER_USER = "unbound"
PART = "gateway"


def dhcpcd_conf(interface: str, script: str, folder: str) -> str:
    """Return the configuration of dhcpcd, dhcpcd.conf(5)."""
    return (
        f"script {script}\nenv thicket_leases={folder}\nallowinterfaces {interface}\n"
        "duid ll\nnoipv4ll\n"
        "option domain_name_servers, classless_static_routes, interface_mtu\n"
        "option dhcp6_name_servers\n"
        f"interface {interface}\n\tmetric {METRIC}\n\tipv6rs\n\tia_na 1\n\tia_pd 2 -\n"
    )


def tayga_conf() -> str:
    """Return the configuration of tayga, tayga.conf(5)."""
    return (
        f"tun-device {NAT64_INTERFACE}\nipv4-addr {NAT64_POOL.network_address + 1}\n"
        f"prefix {NAT64}\ndynamic-pool {NAT64_POOL}\n"
    )


def unbound_conf(
    folder: str,
    me: IPv6Interface,
    prefix: IPv6Network | None,
    names: Sequence[object],
    *,
    translates: bool,
    user: str,
) -> str:
    """Return the configuration of unbound, unbound.conf(5): a small resolver that asks others.

    :param prefix: of the addresses that nodes may ask from besides those of the mesh.
    :param names: whom it asks.
    :param translates: whether names that have only IPv4 get addresses of NAT64.
    :param user: the user that it runs as; empty for the one that starts it.
    """
    modules = "dns64 iterator" if translates else "iterator"
    clients = [str(me.network), *([str(prefix)] if prefix is not None else [])]
    lines = [
        "server:", f'\tusername: "{user}"', '\tchroot: ""', f'\tdirectory: "{folder}"',
        f'\tpidfile: "{folder}/unbound.own"', "\tuse-syslog: yes", "\tnum-threads: 1",
        f"\tinterface: {me.ip}", "\tinterface: ::1", "\tport: 53", "\tip-freebind: yes",
        "\taccess-control: ::1 allow", *(f"\taccess-control: {one} allow" for one in clients),
        f'\tmodule-config: "{modules}"', f"\tdns64-prefix: {NAT64}",
        # A small one for one small network: some megabytes.
        "\tmsg-cache-size: 512k", "\trrset-cache-size: 1m", "\tkey-cache-size: 64k",
        "\tneg-cache-size: 64k", "\toutgoing-range: 64", "\tnum-queries-per-thread: 64",
        "\tso-rcvbuf: 0", "\tincoming-num-tcp: 8", "\toutgoing-num-tcp: 8",
        "\thide-identity: yes", "\thide-version: yes", "\tdo-not-query-localhost: no",
        "\tserve-expired: no", "remote-control:", "\tcontrol-enable: no",
        "forward-zone:", '\tname: "."', *(f"\tforward-addr: {one}" for one in names),
    ]  # fmt: skip
    return "".join(f"{line}\n" for line in lines)


class Seen(NamedTuple):
    """What the last look at the uplink has found."""

    lease: Lease
    four: Look
    six: Look


class Uplink:
    """One uplink, from its beginning to its end.

    :param folder: in RAM, for the files of the programs.
    :param me: returns this node's address in the mesh.
    :param root: the folder that ``usr`` is in.
    :ivar own: what it leads to now.
    """

    def __init__(
        self,
        folder: str,
        settings: GatewaySection,
        problems: Problems,
        kernel: Kernel,
        me: Callable[[], IPv6Interface],
        *,
        root: str = "",
    ) -> None:
        self.own = Own()
        self.health = {4: Health(), 6: Health()}
        self.seen: Seen | None = None
        self._folder = folder
        self._settings = settings
        self._problems = problems
        self._kernel = kernel
        self._me = me
        self._script = root + SCRIPT
        self._programs: dict[str, Program] = {}
        self._texts: dict[str, str] = {}
        self._pauses: dict[str, tuple[Backoff, float]] = {}
        self._ready = False
        self._tun_asked = False

    @property
    def interface(self) -> str:
        return self._settings.uplink

    async def close(self) -> None:
        """End the programs. What they have set up on interfaces goes with them."""
        for program in self._programs.values():
            await program.stop()
        self._programs.clear()
        _sysctl("ipv6/conf/all/forwarding", "0")
        _sysctl("ipv4/ip_forward", "0")
        self._problems.clear(PART)

    async def look(self) -> Own:
        """Look at the uplink, and do what is due; return what it leads to."""
        index = self._kernel.links.index(self.interface)
        if index is None:
            self._problems.report(
                PART,
                "no-uplink",
                f"there is no interface {self.interface} (gateway.uplink); there are: "
                f"{', '.join(_interfaces()) or 'none'}",
            )
            self.seen, self._ready = None, False  # a new one of the name has settings of its own
            self._lost("there is no such interface")
            return self.own
        self._problems.clear(PART, "no-uplink")
        if not self._ready:
            self._prepare(index)
        await self._keep("dhcpcd", self._dhcpcd())
        lease = read_lease(self._folder, read) if self._runs("dhcpcd") else Lease()
        now = time.monotonic()
        four, six = await self._ask(lease, index)
        self.seen = Seen(lease, four, six)
        self.health[4].note(works(four), now)
        self.health[6].note(works(six), now)
        await self._follow(lease)
        self._tell()
        return self.own

    def _lost(self, why: str) -> None:
        now = time.monotonic()
        for health in self.health.values():
            health.note(why, now)
        if not any(health.good for health in self.health.values()):
            self.own = Own()

    def _prepare(self, index: int) -> None:
        """Make this machine a router. The firewall's rules are in force already."""
        make_folder(self._folder, 0o755)
        make_folder(f"{self._folder}/empty", 0o755)  # where dhcpcd locks itself in, see passwd
        for one in PROTOCOLS:  # of an earlier start
            remove(f"{self._folder}/lease.{one}")
        try:
            set_sysctl(self.interface, "disable_ipv6", 0)
            set_sysctl(self.interface, "accept_redirects", 0)
            for family in ("ipv4", "ipv6"):
                # The kernel looks after its neighbours often enough to miss a router in time.
                _sysctl(f"{family}/neigh/{self.interface}/base_reachable_time_ms", "3000")
                _sysctl(f"{family}/neigh/{self.interface}/delay_first_probe_time", "1")
            self._kernel.links.set_up(index, True)
        except OSError as error:
            log.warning("%s cannot be prepared: %s", self.interface, error)
            return
        _sysctl("ipv6/conf/all/forwarding", "1")
        _sysctl("ipv4/ip_forward", "1")
        self._ready = True
        log.info("the mesh is led into the network at %s", self.interface)

    # -- what is asked

    async def _ask(self, lease: Lease, index: int) -> tuple[Look, Look]:
        name = self.interface
        targets, asked = self._settings.check, tuple((str(one), one) for one in lease.names)
        found, names = await asyncio.gather(
            checks.all_targets(targets, name), checks.all_of(asked, name)
        )
        looks = []
        for version, has_address, routers in (
            (4, lease.address4 is not None, lease.routers4),
            (6, lease.global6 or bool(lease.prefixes), lease.routers6),
        ):
            there = None
            if routers:
                there = self._kernel.routes.is_there(index, routers[0])
                checks.poke(routers[0], name, index)
            looks.append(
                Look(
                    has_address,
                    bool(routers),
                    there,
                    {one: good for one, good in names.items() if _version(one) == version},
                    {one: good for one, good in found.items() if _target(one) == version},
                )
            )
        return looks[0], looks[1]

    # -- what follows

    async def _follow(self, lease: Lease) -> None:
        """Run what the mesh needs of an uplink that is good, and note what it leads to."""
        me, ways = self._me(), Way.NONE
        prefix = delegated(lease, me.network)
        if self.health[6].good:
            ways |= Way.IPV6
        else:
            prefix = None
        translator = await self._translate() if self.health[4].good else 0
        if translator:
            ways |= Way.IPV4
        elif not self.health[4].good:
            await self._end("tayga")
        names = lease.names if self.health[4].good or self.health[6].good else ()
        if names and ways:
            text = unbound_conf(
                self._folder,
                me,
                prefix[0] if prefix is not None else None,
                names,
                translates=bool(translator),
                user=_user(_RESOLVER_USER),
            )
            self._write("unbound.conf", text)
            command = ("unbound", "-d", "-c", f"{self._folder}/unbound.conf")
            await self._keep("unbound", command, text)
            if self._runs("unbound"):
                ways |= Way.NAMES
        else:
            await self._end("unbound")
        first, whole = prefix if prefix is not None else (None, None)
        self.own = Own(ways, first, whole, translator, names)

    async def _translate(self) -> int:
        """Run NAT64; return the index of its interface, 0 without it."""
        if not self._settings.nat64:
            return 0
        if not os.path.exists(_TUN) and not self._tun_asked:
            self._tun_asked = True  # a module of the kernel makes it, where it is not built in
            await finish(_load_tun)
        text = tayga_conf()
        self._write("tayga.conf", text)
        await self._keep("tayga", (*_TAYGA, "-c", f"{self._folder}/tayga.conf"), text)
        if not self._runs("tayga"):
            return 0
        index = self._kernel.links.index(NAT64_INTERFACE)
        if index is None:
            return 0
        try:
            self._kernel.links.set_up(index, True)
        except NetlinkError as error:
            log.warning("%s cannot be set up: %s", NAT64_INTERFACE, error)
            return 0
        return index

    def _dhcpcd(self) -> tuple[str, ...]:
        path = f"{self._folder}/dhcpcd.conf"
        if "dhcpcd.conf" not in self._texts:
            self._write("dhcpcd.conf", dhcpcd_conf(self.interface, self._script, self._folder))
        return ("dhcpcd", "-B", "-q", "-f", path, self.interface)

    def _write(self, name: str, text: str) -> None:
        if self._texts.get(name) != text:
            write_atomically(f"{self._folder}/{name}", text.encode(), mode=0o644, durable=False)
            self._texts[name] = text

    # -- programs

    def _runs(self, name: str) -> bool:
        program = self._programs.get(name)
        return program is not None and program.running

    async def _keep(self, name: str, command: tuple[str, ...], text: str = "") -> None:
        """Have a program run, and anew where its configuration is another; with growing pauses
        where it ends by itself.

        :param text: its configuration.
        """
        key, program = f"{name} runs with", self._programs.get(name)
        if program is not None and program.running and self._texts.get(key) == text:
            return
        backoff, due = self._pauses.get(name, (Backoff(*_AGAIN, settled=60.0), 0.0))
        now = time.monotonic()
        if program is not None and not program.running and now < due:
            return
        ended = program is not None and not program.running
        if ended and program is not None:
            message = f"{name} has ended: {program.last_words() or 'its log may say why (logread)'}"
            self._problems.report(PART, "program-ended", message, "warning", name)
        program = Program(self._folder, command)
        before = self._programs.get(name)
        if before is not None:
            await before.stop()
        self._programs[name] = program
        self._texts[key] = text
        try:
            await program.start()
        except ProgramError as error:
            message = _words(name, str(error))
            self._problems.report(PART, f"program-{error.code}", message, subject=name)
        else:
            self._problems.clear_one(PART, "program-missing", name)
        self._pauses[name] = (backoff, now + backoff.failed(now - due if due else 0.0))

    async def _end(self, name: str) -> None:
        program = self._programs.pop(name, None)
        if program is not None:
            await program.stop()
        self._problems.clear_one(PART, "program-ended", name)

    # -- telling

    def _tell(self) -> None:
        if self.own.ways & (Way.IPV4 | Way.IPV6):
            self._problems.clear(PART, "no-way-out")
            return
        whys = "; ".join(
            f"IPv{version}: {health.why}" for version, health in sorted(self.health.items())
        )
        self._problems.report(
            PART, "no-way-out", f"{self.interface} leads nowhere: {whys}", "warning"
        )

    def status(self) -> dict[str, Any]:
        """Return what is known of the uplink, for the status document."""
        lease = self.seen.lease if self.seen is not None else Lease()
        own = self.own
        return {
            "interface": self.interface,
            "state": "good" if own.ways & (Way.IPV4 | Way.IPV6) else "failed",
            "ipv4": _kind(self.health[4], lease.address4),
            "ipv6": _kind(self.health[6], own.prefix or ("by NAT66" if lease.global6 else None)),
            "nat64": bool(own.translator),
            "names": [str(one) for one in lease.names],
            "resolver": bool(own.ways & Way.NAMES),
            "checks": self._checks(),
        }

    def _checks(self) -> dict[str, bool]:
        if self.seen is None:
            return {}
        found: dict[str, bool] = {}
        for look in (self.seen.six, self.seen.four):
            found |= {**look.names, **look.targets}
        return found


def _kind(health: Health, has: object) -> dict[str, Any]:
    return {
        "good": health.good,
        "why": health.why or None,
        "has": str(has) if has is not None else None,
    }


def _version(address: str) -> int:
    return ip_address(address).version


def _target(target: str) -> int:
    found = address_and_port(target)
    return _version(found[0]) if found is not None else 0


def _words(name: str, error: str) -> str:
    without = {
        "dhcpcd": "the uplink gets no addresses",
        "tayga": "nodes reach no place that has only IPv4; set gateway.nat64 = false without it",
        "unbound": "nodes have no name server here",
    }
    return f"{error}, so {without[name]}; use an image with the gateway's programs (gateway.md)"


def _interfaces() -> list[str]:
    try:
        return sorted(set(os.listdir("/sys/class/net")) - {"lo", "mesh0", NAT64_INTERFACE})
    except OSError:
        return []


def _user(name: str) -> str:
    import pwd

    try:
        return pwd.getpwnam(name).pw_name
    except KeyError:
        return ""


def _load_tun() -> None:
    try:
        status, said = run(["modprobe", "tun"], 10.0)
    except (OSError, TimeoutError) as error:
        status, said = 1, str(error)
    if status != 0:
        log.warning("the kernel's module tun cannot be loaded: %s", said[-200:])


def _sysctl(name: str, value: str) -> None:
    path = f"/proc/sys/net/{name}"
    try:
        if read(path) != value:
            with open(path, "w", encoding="ascii") as file:
                file.write(value)
    except OSError as error:
        log.warning("%s cannot be set: %s", path, error.strerror)

# SPDX-License-Identifier: Apache-2.0
"""A provider of internet in a network namespace, with the real servers of one.

``Isp`` has a cable to a node's namespace. Behind it is a host of the internet that answers by TCP,
by IPv4 and IPv6, with the address that asks; and a resolver that knows a few names.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

#: A host of the internet, which is no neighbour of the node.
HOST6, HOST4 = "2001:db8:ffff::1", "203.0.113.1"
#: Where it answers, and the names that lead there. One has only an address of IPv4.
PORT = 7777
NAME, NAME4 = "echo.example", "old.example"
#: What is delegated, in parts of 56 bits.
DELEGATED = "2001:db8:100::/40"

_RADVD = """interface wan {
  AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4; AdvDefaultLifetime 1800;
  AdvOtherConfigFlag on; AdvManagedFlag %(managed)s;
  prefix 2001:db8:0:1::/64 { AdvOnLink on; AdvAutonomous on; };
  RDNSS 2001:db8:0:1::1 { };
};
"""
_DHCPD6 = """default-lease-time 3600; authoritative;
subnet6 2001:db8:0:1::/64 {
  range6 2001:db8:0:1::1000 2001:db8:0:1::1fff;
  prefix6 2001:db8:100:: 2001:db8:1ff:ff00:: /56;
}
"""
_SERVERS = Path(__file__).with_name("isp_servers.py")


class Isp:
    """One provider.

    :param kind: ``pd`` (IPv6 with a delegated prefix), ``slaac`` (IPv6, one prefix of 64 bits for
        the cable) or ``ipv4``.
    :param interface: the node's end of the cable.
    """

    def __init__(self, folder: Path, kind: str, interface: str) -> None:
        self.folder = folder
        self.kind = kind
        self.interface = interface
        self._running: dict[str, subprocess.Popen[Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo ready; exec sleep infinity"],
            stdout=subprocess.PIPE,
        )
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        self._running["holder"] = holder
        self.pid = holder.pid

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command in the provider's namespace."""
        done = subprocess.run(
            ["nsenter", f"--net=/proc/{self.pid}/ns/net", *command],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{command}: {done.stderr}"
        return done.stdout

    def connect(self, pid: int) -> None:
        """Plug the cable into the namespace of a process, and serve."""
        run = self.run
        run("ip", "link", "add", "wan", "type", "veth", "peer", "name", self.interface,
            "netns", str(pid))  # fmt: skip
        run("ip", "link", "set", "lo", "up")
        run("sysctl", "-qw", "net.ipv6.conf.wan.accept_dad=0", "net.ipv6.conf.all.forwarding=1")
        run("ip", "link", "set", "wan", "up")
        for address, where in ((f"{HOST6}/128", "lo"), (f"{HOST4}/32", "lo")):
            run("ip", "address", "add", address, "dev", where)
        if self.kind == "ipv4":
            run("ip", "address", "add", "192.0.2.1/24", "dev", "wan")
        else:
            run("ip", "address", "add", "2001:db8:0:1::1/64", "dev", "wan", "nodad")
        self.serve()

    def serve(self) -> None:
        """Start everything that a provider runs."""
        folder = self.folder
        self.start("servers", sys.executable, str(_SERVERS))
        if self.kind == "ipv4":
            self.start(
                "dnsmasq", "dnsmasq", "--keep-in-foreground", "--no-daemon",
                "--conf-file=/dev/null", "--port=0", "--interface=wan",
                "--dhcp-range=192.0.2.100,192.0.2.150,1h",
                "--dhcp-option=option:dns-server,192.0.2.1", "--dhcp-authoritative",
                f"--dhcp-leasefile={folder}/leases", "--pid-file=", "--no-ping",
            )  # fmt: skip
            return
        (folder / "radvd.conf").write_text(
            _RADVD % {"managed": "on" if self.kind == "pd" else "off"}
        )
        self.start(
            "radvd", "radvd", "-n", "-m", "stderr", "-C", f"{folder}/radvd.conf",
            "-p", f"{folder}/radvd.pid",
        )  # fmt: skip
        if self.kind == "pd":
            (folder / "dhcpd.conf").write_text(_DHCPD6)
            (folder / "dhcpd.leases").touch()
            self.start(
                "dhcpd", "dhcpd", "-6", "-f", "-q", "--no-pid", "-cf", f"{folder}/dhcpd.conf",
                "-lf", f"{folder}/dhcpd.leases", "wan",
            )  # fmt: skip

    def start(self, name: str, *command: str) -> None:
        """Run a server in the provider's namespace until :meth:`stop`."""
        self.stop(name)  # one that runs already
        with (self.folder / f"{name}.log").open("a") as output:
            self._running[name] = subprocess.Popen(
                ["nsenter", f"--net=/proc/{self.pid}/ns/net", *command],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip

    def route_back(self, link_local: str) -> None:
        """Send what is delegated to the node, as a provider's router does."""
        self.run("ip", "-6", "route", "replace", DELEGATED, "via", link_local, "dev", "wan")

    def stop(self, *names: str) -> None:
        """End some servers, or all."""
        for name in names if names else [one for one in self._running if one != "holder"]:
            process = self._running.pop(name, None)
            if process is not None:
                process.terminate()
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def close(self) -> None:
        """End it, and with it the cable."""
        self.stop()
        self.stop("holder")

    def logs(self) -> str:
        """What the servers have said last."""
        logs = self.folder.glob("*.log")
        return "\n".join(f"--- {path.name}\n{path.read_text()[-1500:]}" for path in logs)

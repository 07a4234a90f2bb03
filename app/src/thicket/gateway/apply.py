# SPDX-License-Identifier: Apache-2.0
"""Makes this machine's network as :mod:`.plan` wants it: addresses, routes, name servers."""

from __future__ import annotations

import os
from ipaddress import IPv6Interface
from logging import getLogger

from thicket.base.files import read, write_atomically
from thicket.gateway.plan import Network, resolver_file
from thicket.netlink.messages import NETLINK_ROUTE, Requests
from thicket.netlink.routes import Routes
from thicket.netlink.rtnl import Links

log = getLogger(__name__)


class Kernel:
    """The kernel's tables, and the file of name servers.

    :param root: the folder that ``run/resolv.conf`` is in.
    :param mesh: the name of the mesh interface.
    """

    def __init__(self, root: str, mesh: str) -> None:
        self.links = Links()
        self._requests = Requests(NETLINK_ROUTE)
        self.routes = Routes(self._requests)
        self._mesh = mesh
        self._names = f"{root}/run/resolv.conf"

    def close(self) -> None:
        self.links.close()
        self._requests.close()

    def mesh(self) -> int:
        """Return the index of the mesh interface; 0 without it."""
        return self.links.index(self._mesh) or 0

    def apply(self, wanted: Network, index: int) -> None:
        """Make everything as it should be; what is so already is left alone.

        :param index: the mesh interface's; 0 without it.
        :raises OSError: the kernel refuses.
        """
        present: set[IPv6Interface] = self.links.borrowed(index) if index else set()
        for address in wanted.addresses - present:
            self.links.add_borrowed(index, address)  # before the routes that name it
        routes = set(self.routes.ours())
        for route in routes - wanted.routes:
            self.routes.remove(route)
        for route in wanted.routes - routes:
            self.routes.add(route)
        for address in present - wanted.addresses:
            self.links.remove_address(index, str(address.ip), address.network.prefixlen)
        text = resolver_file(wanted.names)
        if (read(self._names) or "") != text.strip():
            os.makedirs(os.path.dirname(self._names), exist_ok=True)
            write_atomically(self._names, text.encode(), mode=0o644, durable=False)

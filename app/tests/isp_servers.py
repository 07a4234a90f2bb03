# SPDX-License-Identifier: Apache-2.0
"""A resolver with a few names, and a host that answers with the address that asks; see isp.py."""

from __future__ import annotations

import ipaddress
import socket
import socketserver
import struct
import threading

import isp

A, NS, AAAA = 1, 2, 28
NAMES = {
    (isp.NAME, AAAA): ipaddress.ip_address(isp.HOST6).packed,
    (isp.NAME, A): ipaddress.ip_address(isp.HOST4).packed,
    (isp.NAME4, A): ipaddress.ip_address(isp.HOST4).packed,
    ("", NS): b"\1a\4root\7example\0",
}


class Resolver(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        packet, sock = self.request
        at, labels = 12, []
        while packet[at]:
            labels.append(packet[at + 1 : at + 1 + packet[at]].decode())
            at += 1 + packet[at]
        kind = struct.unpack_from(">H", packet, at + 1)[0]
        end = at + 5
        name = ".".join(labels).lower()
        known = not name or any(one == name for one, _ in NAMES)
        data = NAMES.get((name, kind))
        head = packet[:2] + (b"\x81\x80" if known else b"\x81\x83")
        head += struct.pack(">HHHH", 1, data is not None, 0, 0)
        answer = head + packet[12:end]
        if data is not None:
            answer += b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 60, len(data)) + data
        sock.sendto(answer, self.client_address)


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(self.client_address[0].encode())


class Udp(socketserver.ThreadingUDPServer):
    address_family = socket.AF_INET6


class Tcp(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True


def dual(made: socketserver.TCPServer) -> None:
    threading.Thread(target=made.serve_forever).start()


def main() -> None:
    # One socket of IPv6 would answer questions of IPv4 by whatever address it likes.
    for family, address in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
        for kind, port, handler in ((Udp, 53, Resolver), (Tcp, isp.PORT, Echo)):
            made = type(kind.__name__, (kind,), {"address_family": family})(
                (address, port), handler, bind_and_activate=False
            )
            if family == socket.AF_INET6:
                made.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.server_bind()
            made.server_activate()
            dual(made)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""A small generator of traffic, which runs on nodes: the lab writes this file there.

``flow.py answer PORT SECONDS`` sends back what it gets, with how many it got.
``flow.py send ADDRESS PORT RATE SIZE SECONDS`` sends datagrams with numbers in them and tells what
became of them, in JSON. It uses nothing but Python's own library and one clock, the sender's.
"""

import json
import selectors
import socket
import struct
import sys
import time

HEAD = struct.Struct("!IIQ")
"""Number, how many the other end got so far, and the sender's clock in nanoseconds."""
LATE = 3.0
"""Seconds for which answers are waited for after the last datagram."""


def answer(port: int, seconds: float) -> None:
    """Send back every datagram that comes within some seconds."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::", port))
        sock.settimeout(1.0)
        print("ready", flush=True)
        end, got = time.monotonic() + seconds, set()
        while time.monotonic() < end:
            try:
                data, sender = sock.recvfrom(2048)
                if len(data) < HEAD.size:
                    continue
                number, _, sent = HEAD.unpack_from(data)
                got.add(number)
                sock.sendto(HEAD.pack(number, len(got), sent) + data[HEAD.size :], sender)
            except OSError:  # nothing came, or there is no way back just now
                continue


def send(address: str, port: int, rate: float, size: int, seconds: float) -> dict[str, object]:
    """Send datagrams at a steady rate; return what became of them.

    A sender that was held up sends what is due at once: all are sent, however busy the host is.
    """
    times: dict[int, float] = {}
    sent = refused = arrived = twice = disordered = 0
    wanted = max(1, round(rate * seconds))
    newest, gap = -1, 0.0
    padding = bytes(size - HEAD.size)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        watched = selectors.DefaultSelector()
        watched.register(sock, selectors.EVENT_READ)
        begun = last = ended = time.monotonic()
        while True:
            now = time.monotonic()
            over = sent == wanted
            due = ended + LATE if over else begun + sent / rate
            if over and (now >= due or len(times) == sent):
                break
            if not over and now >= due:
                try:
                    head = HEAD.pack(sent, 0, time.monotonic_ns())
                    sock.sendto(head + padding, (address, port))
                except OSError:  # no way, or no room: lost like on the air
                    refused += 1
                sent, ended = sent + 1, now
                continue
            pause = due - now
            if not watched.select(max(0.0, pause)):
                continue
            try:
                data = sock.recv(2048)
            except OSError:
                continue
            if len(data) < HEAD.size:
                continue
            number, count, stamp = HEAD.unpack_from(data)
            arrived = max(arrived, count)
            if number in times:
                twice += 1
                continue
            now = time.monotonic()
            times[number] = (time.monotonic_ns() - stamp) / 1e6
            disordered += number < newest
            newest = max(newest, number)
            gap, last = max(gap, now - last), now
        # The end counts: a way that broke and stayed broken is an outage, too.
        gap = max(gap, min(time.monotonic(), max(ended, begun + seconds)) - last)
    found = sorted(times.values())
    at = {"median": 0.5, "p95": 0.95, "max": 1.0}
    return {
        "sent": sent,
        "refused": refused,
        "arrived": arrived,
        "answered": len(found),
        "twice": twice,
        "disordered": disordered,
        "outage_s": round(gap, 3),
        "round_trip_ms": {
            name: round(found[min(len(found) - 1, int(share * len(found)))], 3)
            for name, share in at.items()
            if found
        },
    }


if __name__ == "__main__":
    if sys.argv[1] == "answer":
        answer(int(sys.argv[2]), float(sys.argv[3]))
    else:
        where, at_port, per_second, length, lasting = sys.argv[2:7]
        print(
            json.dumps(send(where, int(at_port), float(per_second), int(length), float(lasting))),
            flush=True,
        )

# SPDX-License-Identifier: Apache-2.0
"""``make bench-beacon``: what a signed beacon costs, and what a flood of them does.

Prints tables. Nothing passes or fails. Processor time of this process, which other programs of a
busy machine hardly change. The floods are those of the tests, 10,000 datagrams a second in
simulated time, given to the judge without a socket: what it costs when all of them get that far. In
a node at most 1000 a second do.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import process_time

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests/helpers"))

from fleet_for_tests import CLOCK
from test_trust_beacon import LINK, RATE, STORMS, credentials, node

from thicket.discovery.beacon import MalformedError
from thicket.trust import openssl
from thicket.trust.signed_beacon import SIZE

SECONDS = 10


def milliseconds(what: Callable[[], object], times: int = 200) -> float:
    """Return the processor time of one call."""
    what()
    begin = process_time()
    for _ in range(times):
        what()
    return (process_time() - begin) / times * 1e3


def single() -> list[tuple[str, float]]:
    """Return what single operations cost, in ms."""
    sender, receiver = node(1), node(2)
    first = sender.payload(0.0)
    receiver.read(first, LINK, 0.0)
    key, digest = credentials(1).private_key, bytes(range(32))
    signature = openssl.sign(key, digest)
    later = iter([sender.payload(0.0) for _ in range(201)])
    clock = iter(range(10, 100_000, 10))
    fresh = iter([node(2) for _ in range(201)])
    ignorant = iter([node() for _ in range(201)])

    def repeated() -> None:
        try:
            receiver.read(first, LINK, 1.0)
        except MalformedError as error:
            assert error.reason == "replay"

    return [
        ("one signature", milliseconds(lambda: openssl.sign(key, digest))),
        (
            "one signature check",
            milliseconds(lambda: openssl.verify(credentials(1).peer.public_key, digest, signature)),
        ),
        ("making a beacon", milliseconds(lambda: sender.payload(0.0))),
        (
            "a beacon of a known node",
            milliseconds(lambda: receiver.read(next(later), LINK, float(next(clock)))),
        ),
        ("the same beacon again", milliseconds(repeated, 20_000)),
        (
            "a beacon of an unknown node, its signer known",
            milliseconds(lambda: next(fresh).read(first, LINK, 0.0)),
        ),
        (
            "a beacon of an unknown node and signer",
            milliseconds(lambda: next(ignorant).read(first, LINK, 0.0)),
        ),
    ]


def main() -> None:
    """Print all figures."""
    print(f"A signed beacon has {SIZE} bytes of payload, {SIZE + 48} with UDP and IPv6.\n")
    print("| | ms |\n| --- | --- |")
    for what, cost in single():
        print(f"| {what} | {cost:.4f} |")
    print(
        f"\n{SECONDS} s of {RATE} datagrams a second:\n\n"
        "| flood | drops a CPU second | CPU of the time | signatures checked a second |\n"
        "| --- | --- | --- | --- |"
    )
    for storm in STORMS:
        receiver = node(2, clock=lambda: CLOCK)
        receiver.read(node(1).payload(0.0), LINK, 0.0)
        payloads = storm(random.Random(69))
        made = [next(payloads) for _ in range(RATE * SECONDS)]
        before = receiver.genuine.checked
        begin = process_time()
        for i, payload in enumerate(made):
            with suppress(MalformedError):
                receiver.read(payload, LINK, 10.0 + i / RATE)
        cost = process_time() - begin
        checked = receiver.genuine.checked - before
        print(
            f"| {storm.__name__.replace('_', ' ')} | {len(made) / cost:,.0f} "
            f"| {100 * cost / SECONDS:.1f} % | {checked / SECONDS:.1f} |"
        )


if __name__ == "__main__":
    main()

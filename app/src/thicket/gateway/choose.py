# SPDX-License-Identifier: Apache-2.0
"""Which gateway a node takes: a decision of what is offered and how near it is, and of time.

A gateway whose offer has ended is left at once. One that is good is left for a nearer one only
where that is nearer by a fourth at least, has been for :data:`PATIENCE` seconds, and has been
offered for as long: whoever comes and goes is not returned to. So changes that are not forced are
at least that far apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address
from typing import NamedTuple

from thicket.gateway.offers import ENDS, Heard, Way

#: Seconds for which another gateway has to be nearer before it is taken in place of a good one.
PATIENCE = 20.0
#: A gateway is nearer if its way costs less than this share of the present one's.
NEARER = 0.75


class Chosen(NamedTuple):
    """The gateway that is taken, and what is remembered for the next decision.

    :ivar gateway: None without any.
    :ivar rival: a nearer one, and ``since``: from when on it has been nearer.
    """

    gateway: IPv6Address | None = None
    rival: IPv6Address | None = None
    since: float = 0.0


def choose(
    before: Chosen,
    known: Iterable[Heard],
    costs: Mapping[IPv6Address, float],
    way: Way,
    now: float,
) -> Chosen:
    """Return the gateway to take for one kind of way.

    :param before: the decision before; ``Chosen()`` at first.
    :param costs: of the ways through the mesh, by the gateways' addresses: airtime metrics. One
        that has none is farther than all that have.
    :param now: the monotonic clock.
    """
    good = {one.offer.origin: one for one in known if one.offer.ways & way and now - one.at < ENDS}

    def distance(address: IPv6Address) -> tuple[float, int, IPv6Address]:
        return costs.get(address, float("inf")), good[address].offer.hops, address

    if not good:
        return Chosen()
    if before.gateway not in good:
        return Chosen(min(good, key=distance))
    cost = costs.get(before.gateway)
    if cost is None:
        return Chosen(before.gateway)  # nobody is known to be nearer
    nearer = [
        address
        for address, one in good.items()
        if costs.get(address, float("inf")) < NEARER * cost and now - one.since >= PATIENCE
    ]
    if not nearer:
        return Chosen(before.gateway)
    # As long as the same one is nearer its patience counts, even if a third is nearer still.
    rival = before.rival if before.rival in nearer else min(nearer, key=distance)
    since = before.since if rival == before.rival else now
    if now - since >= PATIENCE:
        return Chosen(rival)
    return Chosen(before.gateway, rival, since)

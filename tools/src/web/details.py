# SPDX-License-Identifier: Apache-2.0
"""What one node knows: its peers and paths by radio, and beside them what the cluster tells it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from web.checked import number, table, tables, text, whole
from web.model import MOST_NODES, MOST_PROBLEMS, Problem

#: Most peers (``mesh.max_peers`` is 99) and paths that are shown.
MOST_PEERS, MOST_PATHS = 128, 1024
NOBODY = "00:00:00:00:00:00"


def of_status(document: Any, names: Mapping[str, str]) -> dict[str, Any]:
    """Return what a node knows, of its status document (docs/node.md).

    :param names: of nodes by their addresses, MAC addresses in lower case, and names in the
        cluster.
    """
    status = table(document)

    def named(*keys: Any) -> str:
        found = [key.lower() for key in keys if isinstance(key, str) and key]
        known = (names[key] for key in found if key in names)
        return next(known, text(found[0], 64) if found else "")

    radio = table(status.get("radio"))
    cluster = table(status.get("cluster"))
    own = text(cluster.get("node"), 96)
    return {
        "state": text(status.get("state"), 32),
        "radio": {
            "state": text(radio.get("state"), 32),
            "mac": text(radio.get("mac"), 17),
            "mesh": text(radio.get("mesh_id"), 64),
            "frequency": number(radio.get("frequency"), 0, 1e6),
        },
        "peers": [
            {
                "node": named(one.get("address"), one.get("mac")),
                "state": text(one.get("state"), 16),
                "signal": whole(one.get("signal_dbm"), -200, 100),
                "metric": whole(one.get("metric"), 0),
                "sends": number(one.get("tx_kbps"), 0),
                "hears": number(one.get("rx_kbps"), 0),
                "connected": number(one.get("connected_s"), 0),
            }
            for one in tables(status.get("peers"), MOST_PEERS)
        ],
        "paths": [
            {
                "node": named(one.get("address"), one.get("destination")),
                "next": named(one.get("next_hop")) if one.get("next_hop") != NOBODY else "",
                "hops": whole(one.get("hops"), 0, 255),
                "metric": whole(one.get("metric"), 0),
            }
            for one in tables(status.get("paths"), MOST_PATHS)
        ],
        "cluster": [
            {
                "node": named(one.get("name"), text(one.get("name"), 96).partition("@")[2]),
                "state": text(one.get("state"), 16),
                "why": text(one.get("message")),
            }
            for one in tables(cluster.get("nodes"), MOST_NODES)
            if one.get("name") != own
        ],
        "problems": [one.to_json() for one in problems(status.get("problems"))],
    }


def problems(value: Any) -> tuple[Problem, ...]:
    """Return the problems of a status document."""
    return tuple(
        Problem(
            "error" if one.get("severity") == "error" else "warning",
            text(one.get("part"), 64),
            text(one.get("code"), 32),
            text(one.get("message")),
        )
        for one in tables(value, MOST_PROBLEMS)
    )

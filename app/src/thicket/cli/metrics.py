# SPDX-License-Identifier: Apache-2.0
"""``thicket metrics`` and ``netjson``: what the node's server gives, which need not be on."""

from __future__ import annotations

import json
import sys

from thicket.cli.common import OK, UsageError, control_socket, node_paths
from thicket.control.client import request


def metrics(words: list[str]) -> int:
    if words not in ([], ["--openmetrics"]):
        raise UsageError("metrics takes only --openmetrics")
    document = request(control_socket(), "status", {})
    from thicket.metrics import machine
    from thicket.metrics.families import FAMILIES
    from thicket.metrics.numbers import numbers
    from thicket.metrics.text import exposition

    found = numbers(document, machine.read(node_paths().root))
    sys.stdout.write(exposition(FAMILIES, found, openmetrics=bool(words)))
    return OK


def netjson(words: list[str]) -> int:
    if words not in (["graph"], ["monitoring"]):
        raise UsageError("netjson takes graph or monitoring")
    document = request(control_socket(), "status", {})
    from thicket.metrics import machine, netjson
    from thicket.metrics.numbers import numbers

    facts = machine.read(node_paths().root)
    if words == ["graph"]:
        name = document["cluster"]["node"] or document["hostname"]
        made = netjson.graph({name: numbers(document, facts)}, document["version"])
    else:
        made = netjson.monitoring(document, facts)
    print(json.dumps(made, indent=2))
    return OK

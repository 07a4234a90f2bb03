# SPDX-License-Identifier: Apache-2.0
"""``thicket metrics``: the node's numbers, as its server gives them; it need not be on."""

from __future__ import annotations

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

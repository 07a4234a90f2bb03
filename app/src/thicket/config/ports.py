# SPDX-License-Identifier: Apache-2.0
"""The TCP ports that a node serves: no two things can have the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thicket.base.fields import Finding

if TYPE_CHECKING:
    from thicket.config.schema import Settings

#: Ports that are no settings: SSH, and the port mapper of Erlang.
_FIXED = {22: "SSH", 4369: "the port mapper"}


def check_ports(settings: Settings, file: str) -> Finding | None:
    """Return the fault of settings that serve two things at one port, or None.

    :param file: where the settings are from.
    """
    taken = {**_FIXED, settings.cluster.port: "the cluster"}
    access, metrics = settings.access, settings.metrics
    served = (
        ("access.operator_port", access.operator_port, "operators", access.operators),
        ("metrics.port", metrics.port, "numbers", bool(metrics.listen)),
    )
    for key, port, what, serves in served:
        if not serves:
            continue
        if port in taken:
            return Finding(file, key, str(port), f"is the port of {taken[port]}")
        taken[port] = what
    return None

# SPDX-License-Identifier: Apache-2.0
"""``[update]``: how a slot that was just written is judged."""

from __future__ import annotations

from thicket.base.fields import Integer, Section


class UpdateSection(Section, name="update"):
    """Updates of the whole system, which are tried once before they are kept."""

    __slots__ = ()
    health_time = Integer(
        60,
        "How long a slot must be well, without a break, before it is kept: the daemon runs, the "
        "node is in the mesh, has a peer, sees another node, and its applications run, each of "
        "them if it was so before. What is not well a quarter of an hour after its start is left.",
        least=10,
        most=600,
        unit="s",
    )

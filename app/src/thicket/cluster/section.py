# SPDX-License-Identifier: Apache-2.0
"""``[cluster]``: the node's name, cookie, port and topology."""

from __future__ import annotations

from thicket.base.fields import Choice, Integer, Section, Text


class ClusterSection(Section, name="cluster"):
    """The Distributed Erlang cluster. All nodes of a cluster have the same values here."""

    __slots__ = ()
    name = Text(
        "thicket",
        "First part of every node's name: the node is `<name>@<IPv6 address>`.",
        least=1,
        most=64,
        letters="_-",
    )
    cookie = Text(
        "thicket",
        "Erlang's shared secret. It keeps clusters apart; it is not a protection against "
        "somebody who can listen.",
        least=1,
        most=255,
        printable=True,
        secret=True,
    )
    security = Choice(
        "tls",
        "What a node must have to be let in: `tls`, a certificate of the fleet ([trust]; mutual "
        "TLS 1.3, everything is encrypted); or `cookie`, nothing but the cookie, in clear: for "
        "meeting nodes without certificates in a mesh that is protected otherwise.",
        "tls",
        "cookie",
    )
    port = Integer(
        9100, "TCP port that the node listens on for other nodes.", least=1024, most=65535
    )
    tick_time = Integer(
        15,
        "A node that was silent for so long is gone (Erlang's net_ticktime; four ticks are sent "
        "in that time).",
        least=4,
        most=600,
        unit="s",
    )
    max_message = Integer(
        32,
        "Longest message that is taken from another node: the arguments of a call, its result, "
        "what is sent to a mailbox. Who sends a longer one is told `system_limit`. Never more than "
        "an eighth of the device's memory.",
        least=1,
        most=1024,
        unit="MiB",
    )
    topology = Choice(
        "full",
        "Which nodes are kept connected: `full`, all that are heard, as Erlang does; or "
        "`neighbours`, those with a mesh link to this node, for fleets of dozens of nodes. Others "
        "are connected when they are called or sent something; groups reach connected nodes only.",
        "full",
        "neighbours",
    )

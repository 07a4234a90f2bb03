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
        "Erlang's shared secret. It keeps clusters apart; it does not protect against somebody "
        "who can listen.",
        least=1,
        most=255,
        printable=True,
        secret=True,
    )
    security = Choice(
        "tls",
        "What a node needs to be accepted. `tls`: a certificate of the fleet ([trust]; mutual "
        "TLS 1.3, everything is encrypted). `cookie`: only the cookie, nothing is encrypted; for "
        "clusters with nodes without certificates, in a mesh that is protected in another way.",
        "tls",
        "cookie",
    )
    port = Integer(
        9100, "TCP port that the node listens on for other nodes.", least=1024, most=65535
    )
    tick_time = Integer(
        15,
        "A node that is silent for this time counts as lost (Erlang's net_ticktime; four ticks "
        "are sent in that time).",
        least=4,
        most=600,
        unit="s",
    )
    max_message = Integer(
        32,
        "Longest message that is accepted from another node: the arguments of a call, its result, "
        "a message to a mailbox. A process that waits for a longer one gets `system_limit`. Never "
        "more than an eighth of the device's memory.",
        least=1,
        most=1024,
        unit="MiB",
    )
    topology = Choice(
        "auto",
        "Which nodes this node stays connected to. `full`: all that it hears, as Erlang does. "
        "`neighbours`: some of those with a mesh link to it; a call or message to another node "
        "connects to it for as long as that is used, and all nodes know of all others by their "
        "neighbours. `auto`: `full` in a fleet of up to 16 nodes, `neighbours` in a larger one.",
        "auto",
        "full",
        "neighbours",
    )

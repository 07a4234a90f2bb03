# SPDX-License-Identifier: Apache-2.0
"""The simulated air between the radios of the nodes: ``python -m meshlab.medium --lab DIR``.

- ``propagation``: who hears whom, how well.
- ``error``: how likely a frame of that signal, rate and length is lost.
- ``airtime``: how long it takes.
- ``reception``: which of several overlapping frames a receiver takes, and whether that survives.
- ``engine``: queues, carrier sense, collisions, retries and acknowledgements; knows no sockets.
- ``stats``, ``capture``: what happened, as counters and as pcapng.
- ``config``: ``medium.json`` and ``medium-state.json``.
- ``session``: making a node's radios through its relay.
- ``server``: the process that connects all of that to the nodes and to people.
"""

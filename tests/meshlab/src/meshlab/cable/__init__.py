# SPDX-License-Identifier: Apache-2.0
"""Cables from this machine to nodes: a network of its own, in which programs see the nodes' wired
ports as a laptop does that is plugged into them."""

# SPDX-License-Identifier: Apache-2.0
"""``thicket --via``: commands of nodes, run from the engineer's machine."""

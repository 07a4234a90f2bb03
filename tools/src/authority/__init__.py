# SPDX-License-Identifier: Apache-2.0
"""``thicket ca``: the fleet's certificate authority, on the engineer's machine."""

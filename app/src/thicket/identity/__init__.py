# SPDX-License-Identifier: Apache-2.0
"""Who this node is: read from its security chip, or made up in a way that is marked as such.

``address`` turns an identity into an IPv6 address, ``source`` finds the identity, ``atecc`` drives
the chip over a ``bus``.
"""

from thicket.identity.address import parse_address, split_address
from thicket.identity.source import Host, Identity, find_chip, read_identity

__all__ = ["Host", "Identity", "find_chip", "parse_address", "read_identity", "split_address"]

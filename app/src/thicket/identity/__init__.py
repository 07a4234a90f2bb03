# SPDX-License-Identifier: Apache-2.0
"""Who this node is: read from its security chip, or made without one and marked as such.

``address`` turns an identity into an IPv6 address, ``source`` finds the identity, ``chip`` drives
the security chip over a ``bus``.
"""

# SPDX-License-Identifier: Apache-2.0
"""Who may be believed: certificates from the fleet's root down to the chip and the node.

``der`` and ``certificates`` are the formats, ``compressed`` what a chip keeps of them, ``openssl``
the mathematics, ``nerveskey`` the chip as NervesKey and Trust&GO use it, ``fleet`` what the
certificates of a fleet say, ``verify`` who is refused and why, ``node`` the node's own key,
``tls`` connections, and ``authority`` what issues it all on the engineer's machine.

Nothing is imported here: a node that does without a chip shall not pay for it.
"""

# SPDX-License-Identifier: Apache-2.0
"""Whom a node believes: certificates from the fleet's root down to the chip and the node.

``der`` and ``certificates`` are the formats, ``compressed`` what a chip keeps of them,
``chip_slots`` where it keeps it, ``openssl`` the mathematics, ``fleet`` what the certificates of a
fleet say, ``verify`` who is refused and why, ``credentials`` the node's own key, ``tls``
connections, ``signed_beacon`` what a node sends to be found. ``signed`` is the form of what else
the root signs: ``revocations``, which ``exchange`` spreads, and ``change``, the passphrase's.
``cms`` is the form of a signed update, ``update_signer`` decides who may sign one.
``standing`` is what a node is in one fleet, ``service`` the daemon's part. The engineer's desk
(``tools/src/authority``) issues it all.
"""

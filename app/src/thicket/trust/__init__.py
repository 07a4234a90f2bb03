# SPDX-License-Identifier: Apache-2.0
"""Who may be believed: certificates from the fleet's root down to the chip and the node.

``der`` and ``certificates`` are the formats, ``compressed`` what a chip keeps of them, ``openssl``
the mathematics, ``nerveskey`` the chip as NervesKey and Trust&GO use it, ``fleet`` what the
certificates of a fleet say, ``verify`` who is refused and why, ``node`` the node's own key,
``tls`` connections, ``beacon`` what a node sends to be found, and ``authority`` what issues it all
on the engineer's machine.

Nothing is imported before it is used: a node that does without shall not pay for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thicket.trust.tls import (
        check_connection,
        client_context,
        server_context,
        use_credentials,
    )

__all__ = ["check_connection", "client_context", "server_context", "use_credentials"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from thicket.trust import tls  # noqa: PLC0415 - ssl takes a while to load

    return getattr(tls, name)

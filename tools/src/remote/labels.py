# SPDX-License-Identifier: Apache-2.0
"""Which node a label means: a signer of the fleet says it, not the node that is asked."""

from __future__ import annotations

from base64 import b64decode
from ipaddress import IPv6Address
from typing import Any, Protocol

from remote.errors import RemoteError
from thicket.trust.fleet import Fleet
from thicket.trust.labels import SignedLabels, key
from thicket.trust.verify import RefusedError


class Asks(Protocol):
    """A node that answers requests, see ``remote.session.Session``."""

    async def request(self, method: str, params: dict[str, Any]) -> Any:
        """Call a method of the node, and return its result."""


async def meant(node: Asks, text: str, fleet: Fleet, revoked: frozenset[str]) -> str:
    """Return the address of the device with the label ``text``; ``text`` where there is none.

    :param node: keeps the labels.
    :param revoked: names of signers that have signed nothing.
    """
    try:
        answer = await node.request("labels-export", {})
        found = SignedLabels.read(b64decode(answer["labels"], validate=True), fleet)
    except (RemoteError, RefusedError, ValueError, LookupError, TypeError):
        return text  # an older node, or one without labels
    if found.signer in revoked:
        return text
    called = [
        device for device, entry in found.labels.entries.items() if key(entry.label) == key(text)
    ]
    if len(called) != 1:
        return text
    return str(IPv6Address(int(fleet.network.network_address) | called[0]))

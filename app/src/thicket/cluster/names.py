# SPDX-License-Identifier: Apache-2.0
"""Which node a person means."""

from __future__ import annotations

from collections.abc import Mapping, Set
from ipaddress import IPv6Address

from thicket.base.errors import RequestError

#: The half of an address that says which device it is.
LOWER = (1 << 64) - 1


def device_of(name: str) -> int:
    """Return the lower half of the address in a node's name, as a number; -1 without one."""
    try:
        return int(IPv6Address(name.partition("@")[2])) & LOWER
    except ValueError:
        return -1


def host_digits(name: str) -> str:
    """Return the 12 digits in the host name of the node ``cluster@address``: its identity."""
    device = device_of(name)
    return f"{device & (1 << 48) - 1:012x}" if device >= 0 else ""


def resolve(text: str, known: Set[str], labels: Mapping[str, str]) -> str:
    """Return the name of the node that a person means by a host name (``n-`` and the 12 digits of
    the identity), its last digits, or a label.

    A host name comes first, so that no label hides it. What is the last digits of one node and the
    label of another is neither: nobody shall restart the wrong one.

    :param known: names of nodes.
    :param labels: what nodes are called, by their names, which need not be known otherwise.
    :raises RequestError: no node, or more than one, matches.
    """
    known = known | labels.keys()
    wanted = text.strip().casefold()
    digits = wanted.removeprefix("n-")
    found = {name for name in known if digits and host_digits(name).endswith(digits)}
    if not (found and wanted == f"n-{digits}" and len(digits) == 12):
        found |= {name for name, label in labels.items() if wanted and label.casefold() == wanted}
    matches = sorted(found)
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise RequestError("ambiguous", f"{text} may be {' or '.join(matches)}")
    names = ", ".join(f"{n} ({labels[n]})" if labels.get(n) else n for n in sorted(known))
    raise RequestError(
        "unknown-node", f"no node is known as {text!r}; known are: {names or 'none'}"
    )

# SPDX-License-Identifier: Apache-2.0
"""Multicast DNS on one cable (RFC 6762, RFC 6763): the node by its name, and its ``_ssh._tcp``.

A laptop then finds every device of a switch, and ``ssh root@n-....local`` works where its resolver
asks by multicast. The node only answers and announces. It asks nothing and keeps nothing of what
others say. It does not give way to one who claims its name, which is made of its identity and
nobody else's: whoever is on the cable could hide it otherwise. Who it is, its host key proves.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from thicket.base.errors import ThicketError
from thicket.discovery import zeroconfs
from thicket.discovery.gate import REASONS, QuestionGate
from thicket.discovery.hints import zeroconf_errors
from thicket.discovery.questions import label

if TYPE_CHECKING:
    from collections.abc import Callable

    from thicket.cable.links import Link

SERVICE = "_ssh._tcp.local."
SSH_PORT = 22


class NotAnsweringError(ThicketError):
    """The node cannot be found by its name on a cable."""

    code = "not-answering"


async def answer(
    hostname: str,
    properties: dict[str, str],
    link: Link,
    dropped: dict[str, int],
    ready: Callable[[], None],
) -> None:
    """Answer on a cable until cancelled.

    :param properties: the TXT record; it holds nothing secret.
    :param dropped: counts what is dropped, by reason; made with :func:`counted`.
    :param ready: called when the node can be found.
    :raises NotAnsweringError, OSError: that cannot be done, as the interface has gone.
    :raises ImportError: zeroconf is not installed.
    """
    interfaces: list[str | int] = [link.number]
    if link.ipv4 is not None:
        interfaces.append(str(link.ipv4))
    zeroconf = await zeroconfs.begun(interfaces, version="V6Only" if link.ipv4 is None else "All")
    names = frozenset({label(hostname), label("_ssh")})
    try:
        await zeroconfs.opened(zeroconf)
        zeroconfs.guard(
            zeroconf.zeroconf, link.name, lambda inner: QuestionGate(inner, names, dropped)
        )
        info = _info(hostname, properties, link)
        zeroconf.zeroconf.registry.async_add(info)
        async for _ in zeroconfs.announce(zeroconf.zeroconf, info):
            ready()
        await asyncio.Event().wait()
    except zeroconf_errors() as e:
        raise NotAnsweringError(f"{type(e).__name__}: {e}".rstrip(": ")) from e
    finally:
        await zeroconfs.closed(zeroconf)


def counted() -> dict[str, int]:
    """Return counters of what is dropped, all 0."""
    return dict.fromkeys(REASONS, 0)


def _info(hostname: str, properties: dict[str, str], link: Link) -> Any:
    from zeroconf import ServiceInfo

    return ServiceInfo(
        SERVICE,
        f"{hostname}.{SERVICE}",
        addresses=[address.packed for address in link.addresses],
        port=SSH_PORT,
        properties=properties,
        server=f"{hostname}.local.",
    )

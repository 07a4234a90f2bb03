# SPDX-License-Identifier: Apache-2.0
"""Messages of syslog (RFC 5424), framed for TLS (RFC 5425 4.3)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

from thicket.base.visible import visible

#: RFC 5424 6.2.1: facility 3, system daemons.
_FACILITY = 3 << 3
#: Longest text in bytes; every receiver takes a message of 2048, most one of 8192 (RFC 5424 6.1).
LONGEST = 4096
#: A number for examples (RFC 5612), as Thicket has no enterprise number of its own.
_ENTERPRISE = 32473


class Line(NamedTuple):
    """A line of the log.

    :ivar time: seconds since 1970, by the node's clock.
    :ivar severity: RFC 5424 6.2.1.
    :ivar synchronised: whether a time service had set the clock.
    """

    time: float
    severity: int
    text: str
    synchronised: bool


class Sender(NamedTuple):
    """Who sends.

    :ivar hostname: of the node; empty while it is not known.
    :ivar node: its name in the cluster, and ``address``; empty likewise.
    """

    hostname: str
    node: str
    address: str
    version: str
    program: str
    process: int


def _field(text: str, most: int) -> str:
    """Return a text as a field of the header: printable ASCII without blanks, or "-"."""
    return "".join(c for c in text if "!" <= c <= "~")[:most] or "-"


def _value(text: str) -> str:
    """Return a text as the value of structured data (RFC 5424 6.3.3)."""
    clean = visible(text, keep="")
    return "".join(f"\\{c}" if c in '"\\]' else c for c in clean)


def message(line: Line, sender: Sender) -> bytes:
    """Return a line as a message, without its frame."""
    when = datetime.fromtimestamp(line.time, UTC).isoformat(timespec="microseconds")
    elements = [
        ("timeQuality", (("tzKnown", "1"), ("isSynced", str(int(line.synchronised))))),
        ("origin", (("ip", sender.address), ("software", "thicket"),
                    ("swVersion", sender.version[:32]))),
        (f"thicket@{_ENTERPRISE}", (("node", sender.node),)),
    ]  # fmt: skip
    data = ""
    for name, parameters in elements:
        known = [f' {key}="{_value(value)}"' for key, value in parameters if value]
        data += f"[{name}{''.join(known)}]" if known else ""
    head = (
        f"<{_FACILITY | line.severity}>1 {when.removesuffix('+00:00')}Z "
        f"{_field(sender.hostname, 255)} {_field(sender.program, 48)} {sender.process} - {data}"
    )
    text = visible(line.text, keep="").encode("utf-8", "replace")
    if len(text) > LONGEST:
        text = text[:LONGEST].decode("utf-8", "ignore").encode()
    return head.encode() + b" " + text


def framed(data: bytes) -> bytes:
    """Return a message with its length in front."""
    return b"%d %s" % (len(data), data)

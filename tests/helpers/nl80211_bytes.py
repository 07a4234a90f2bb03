# SPDX-License-Identifier: Apache-2.0
"""nl80211 messages as bytes built by hand, by include/uapi/linux/nl80211.h and netlink.h."""

from __future__ import annotations

import struct


def attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def message(command: int, *attributes: bytes) -> bytes:
    body = struct.pack("=BBH", command, 1, 0) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), 0x1C, 2, 1, 0) + body

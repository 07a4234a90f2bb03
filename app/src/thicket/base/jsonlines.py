# SPDX-License-Identifier: Apache-2.0
"""JSON lines: one object per line, in UTF-8. The programs of a node talk with each other so."""

from __future__ import annotations

import json
from typing import Any


def pack(message: dict[str, Any]) -> bytes:
    """Return ``message`` as a line, line end included.

    :raises TypeError, ValueError: when it has no form in JSON.
    """
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def unpack(line: bytes | bytearray) -> dict[str, Any]:
    """Return the message in a line.

    :raises ValueError: when it is not JSON, nested too deeply, or not an object; the text says
        which.
    """
    try:
        message = json.loads(line)
    except RecursionError as e:
        raise ValueError("not JSON: nested too deeply") from e
    except ValueError as e:
        raise ValueError(f"not JSON: {e}") from e
    if not isinstance(message, dict):
        raise ValueError("not a JSON object")
    return message

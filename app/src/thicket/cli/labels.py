# SPDX-License-Identifier: Apache-2.0
"""``thicket labels``: what devices are called, brought to a node or taken from it."""

from __future__ import annotations

import base64
import sys

from thicket.cli.common import BAD, OK, UsageError, control_socket
from thicket.cli.config import is_no
from thicket.control.client import request


def labels(rest: list[str]) -> int:
    if rest == ["export"]:
        held = request(control_socket(), "labels-export", {}, timeout=30.0)
        sys.stdout.buffer.write(base64.b64decode(held["labels"]))
        sys.stdout.flush()
        return OK
    if len(rest) != 2 or rest[0] != "import":
        raise UsageError("labels needs: import FILE, or export")
    from thicket.trust import kinds
    from thicket.trust.labels import MAX_LABELS

    if rest[1] == "-":
        data = sys.stdin.buffer.read(MAX_LABELS + 1)
    else:
        with open(rest[1], "rb") as file:
            data = file.read(MAX_LABELS + 1)
    if is_no(kinds.LABELS, data, rest[1], "`thicket ca publish`, or `thicket labels export`,"):
        return BAD
    params = {"labels": base64.b64encode(data).decode()}
    answer = request(control_socket(), "labels-import", params, timeout=30.0)
    count = answer["labels"]
    state = "in force" if answer["taken"] else "in force already, or newer ones are"
    print(f"Labels {answer['number']}, for {count} device{'' if count == 1 else 's'}: {state}.")
    return OK

# SPDX-License-Identifier: Apache-2.0
"""``thicket door``: lets an operator's ssh reach the daemon's control socket."""

from __future__ import annotations

import os
import selectors
import socket
import sys

from thicket.cli.common import OK, UsageError
from thicket.control.client import ClientError

_PIECE = 16 * 1024


def door(words: list[str], control: str) -> int:
    """Carry bytes between standard input and output and the control socket until one side ends."""
    if words:
        raise UsageError(
            "door takes no arguments; `thicket --via` on the engineer's machine uses it"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as daemon:
        try:
            daemon.connect(control)
        except OSError as e:
            message = f"the daemon does not answer at {control} ({e.strerror})"
            raise ClientError("unreachable", message) from e
        with selectors.PollSelector() as ready:  # which takes files as well
            ready.register(sys.stdin, selectors.EVENT_READ)
            ready.register(daemon, selectors.EVENT_READ)
            while True:
                for key, _ in ready.select():
                    if key.fileobj is daemon:
                        data = daemon.recv(_PIECE)
                        _write(data)
                    else:
                        data = os.read(0, _PIECE)
                        daemon.sendall(data)
                    if not data:
                        return OK


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]

# SPDX-License-Identifier: Apache-2.0
"""``python -m meshlab.cable``: runs inside the network, which it fills and runs a command in."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from meshlab.cable.errors import CableError
from meshlab.cable.network import INTERFACE
from meshlab.cable.plugs import Plugs
from meshlab.cable.tap import open_tap, show_interfaces, switch_on, wait_for_address

SIGNALLED = 128


async def run(sockets: dict[str, str], command: list[str]) -> int:
    """Carry frames while a command runs; return its exit status.

    :param sockets: Where the cables' other ends are, by node.
    :param command: The command.
    :raises CableError: when the interface cannot be made.
    :raises OSError: when the command cannot be run.
    """
    show_interfaces()
    switch_on("lo")
    descriptor = open_tap(INTERFACE)
    plugs = Plugs(descriptor, {name: Path(path) for name, path in sockets.items()})
    carrying = asyncio.create_task(plugs.carry())
    try:
        await asyncio.to_thread(wait_for_address, INTERFACE)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, lambda: None)  # for the command
        process = await asyncio.create_subprocess_exec(*command)
        loop.add_signal_handler(signal.SIGTERM, process.terminate)
        status = await process.wait()
    finally:
        carrying.cancel()
        await asyncio.gather(carrying, return_exceptions=True)
        os.close(descriptor)
    return status if status >= 0 else SIGNALLED - status


def main(words: list[str]) -> int:
    """Run it; return the exit status."""
    try:
        if words == ["--check"]:
            show_interfaces()
            os.close(open_tap(INTERFACE))
            return 0
        return asyncio.run(run(json.loads(words[0]), words[1:]))
    except CableError as error:
        print(f"meshlab: {error}" if words != ["--check"] else error, file=sys.stderr)
    except OSError as error:
        print(f"meshlab: {error.filename or words[1:]}: {error.strerror}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

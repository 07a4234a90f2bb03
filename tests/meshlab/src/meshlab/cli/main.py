# SPDX-License-Identifier: Apache-2.0
"""The ``meshlab`` command: run a lab, and talk to one that runs."""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
from collections.abc import Sequence

from host.cache import cache_root
from meshlab.cable.errors import CableError
from meshlab.cli import air, inside, lab, node, scenario
from meshlab.cli.common import CommandError, Run
from meshlab.lab.errors import LabError
from meshlab.lab.paths import lab_directory
from meshlab.wire.rpc import RpcError
from meshlab.wire.sockets import socket_address

DESCRIPTION = """\
Boot a mesh of simulated Thicket nodes, watch it, and play with it from other terminals.
"""

EPILOG = """\
NODE is a node's name or number: n3 or 3. Every command takes --lab NAME before it when several labs
run at once.

  meshlab up --nodes 5 --topology ring      boots five nodes; Ctrl-C ends it
  meshlab exec n1 -- thicket nodes          who is in the cluster, seen from n1
  meshlab link n1 n2 --cut                  the two no longer hear each other
  meshlab pcap -w - | wireshark -k -i -     everything on the air
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="meshlab",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument(
        "--lab", default="default", metavar="NAME", help="which lab (default: default)"
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, text: str, run: Run, *, of_node: bool = False
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run=run)
        if of_node:
            sub.add_argument("node", metavar="NODE")
        return sub

    for group in (lab, node, inside, air, scenario):
        group.define(command)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    :param arguments: The command line; None: the program's own.
    :returns: The exit status.
    """
    options = parser().parse_args(arguments)
    try:
        lab_directory(options.lab)
        status: int = options.run(options)
    except CommandError as failure:
        print(f"meshlab: {failure}", file=sys.stderr)
        return failure.status
    except (CableError, LabError, ValueError) as error:
        print(f"meshlab: {error}", file=sys.stderr)
        return 1
    except RpcError as error:
        print(f"meshlab: {explained(error, options.lab)}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Who read our output has left: not an error, and nothing more can be said there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return status


def explained(error: RpcError, name: str) -> str:
    """Return what a person is told of an error of the lab ``name``."""
    if error.code != "not-running":
        return error.message
    labs = running_labs()
    if labs and name not in labs:
        return f"no lab {name!r} is running; running: {', '.join(labs)} (choose with --lab NAME)"
    start = "make qemu-mesh" if name == "default" else f"make qemu-mesh LAB={name}"
    return f"no lab {name!r} is running: start one with `{start}`"


def running_labs() -> list[str]:
    """Return the names of the labs whose supervisor answers."""
    found = []
    with contextlib.suppress(OSError):
        for path in sorted((cache_root() / "labs").glob("*/control.sock")):
            with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
                probe.connect(socket_address(path))
                found.append(path.parent.name)
    return found


if __name__ == "__main__":
    sys.exit(main())

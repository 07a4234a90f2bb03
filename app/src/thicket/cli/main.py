# SPDX-License-Identifier: Apache-2.0
"""The ``thicket`` command, by which a person asks a node.

It starts fast, as the nodes of a simulated fleet are slow: it imports little, parses the command
line by hand, and imports everything else where it is needed.

docs/node.md explains the exit statuses.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import thicket
from thicket.base.visible import visible_output
from thicket.cli.common import BAD, OK, UNREACHABLE, USAGE, UsageError, control_socket
from thicket.cli.config import RELOAD, config, revocations, tell_reload
from thicket.cli.show import ping, show
from thicket.control.client import ClientError, request

HELP = """\
usage: thicket COMMAND

All nodes of the fleet:
  fleet [--json] [--watch] [--wide]
                           how each one is, the worst first; --watch draws it anew until
                           Ctrl-C, --wide says more than the terminal has columns for

What the node does:
  status [--json]          state, problems, address, radio and cluster in short
  peers [--json]           stations with a mesh link to this node, and mesh paths
  scan [--json]            meshes and access points in the air; takes some seconds
  nodes [--json]           nodes of the cluster, connected or being connected
  metrics [--openmetrics]  the node's numbers as Prometheus reads them (docs/metrics.md)
  netjson graph|monitoring the mesh around the node, or the node, for OpenWISP and others
  logs [-f] [-n LINES] [--before]
                           the system's log: go on with -f, or from before the last start
  ping NODE [-c COUNT]     ask another node for an answer; NODE is a name, an
                           address, a host name or its last digits, or a label

The time (docs/time.md; UTC, such as 2026-03-31T16:05:00Z):
  time [--json]            what the node's clock is worth, and where it is from
  time set TIME            set it, where no server does; nodes that know no better follow
  time question            ask for a signed time: `thicket ca time --for`
  time import FILE         take a signed time ("-" is standard input)

This very device (docs/node.md):
  identify [--for TIME]    flicker with its light, for 30s or so long (2min; 0 ends it)
  reboot                   restart the device in order
  support [FILE|-]         gather what helps to find a fault, without secrets
  factory-reset [--yes]    erase all that applications and the node have kept, but not
                           who it is and whom it belongs to, and restart

What other nodes do and say (docs/cluster.md; VALUE is JSON, :name for an atom, or text):
  call NODE MODULE.FUNCTION [VALUE...] [--timeout SECONDS] [--json]
                           call a function that a node exports
  publish GROUP VALUE      send a message to the members of a group, on all nodes
  monitor [GROUP] [--json] show nodes that come and go, or messages to a group,
                           until Ctrl-C

Configuration (docs/configuration.md lists the keys):
  config show              what is in force, secrets masked
  config check FILE        check a file ("-" is standard input); nothing is changed
  config apply FILE        check a file, make it the device's, and follow it at once
  config set KEY=VALUE...  change keys (section.key) in the device's file likewise;
                           KEY alone reads the value from standard input
  config unset KEY...      go back to the default of keys
  config default           print the file with all keys and their defaults
  reload                   read the configuration file again
  revocations import FILE  take a list of who is out of the fleet ("-" is standard
                           input); it spreads to all nodes from here
  revocations export       write the lists in force to standard output
  labels import FILE       take what devices are called, as `ca publish` brings it
  labels export            write what is in force to standard output

The mesh's passphrase, on all nodes at once (docs/radio.md):
  passphrase roll          hand a new one, typed or from standard input, to every
                           node; change to it when all have it (--generate makes one,
                           --accept-missing does without nodes that are away)
  passphrase finish        change to the one that was handed out
  passphrase cancel        drop it
  passphrase import FILE   take a change that the fleet's authority has signed; in a
                           fleet there are no others (ca passphrase)

Updates, on a node that runs from a card (docs/updating.md):
  update install FILE      check every byte of a signed bundle, and write it into the slot
                           that does not run; the next start tries it (--restart restarts
                           at once, --again takes a bundle that was left before)
  update back              have the other slot tried by the next start (--restart)
  update offer FOLDER      offer the fleet what `thicket update offer` made
  update order WORD [APP]  pause, resume, abort or back: about the image that is offered,
                           or an application, from a node that [update] control names;
                           or a signed FILE (- for standard input)
  update status [--json]   the slots, and a line for each node of the fleet

Applications, without a restart of the node (docs/applications.md):
  app install FILE         take a signed application and start it; a version that fails
                           is left for the one before (--again takes one that was left
                           or is older, --wait returns when it was judged)
  app list [--json]        those installed, and what became of versions that were left
  app back NAME            run the version before, or the image's
  app remove NAME          do without; the image's runs again, if it has one

On the engineer's machine:
  --via HOST COMMAND       any of these commands on any node (docs/operating.md)
  ca help                  the fleet's certificate authority (docs/provisioning.md)
  update help              sign bundles and look into them (docs/updating.md)
  app help                 build applications (docs/applications.md)

  version                  print the version
  help                     print this text

exit status: 0 well, 1 bad news, 2 wrong usage, 3 daemon not reachable
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command, and return the exit status."""
    return guarded(_run, sys.argv[1:] if arguments is None else arguments)


def guarded(run: Callable[[list[str]], int], words: list[str]) -> int:
    """Run one command for a person at a terminal: print errors, and return the exit status.

    All output is made visible, as text from outside may hold control characters.
    """
    with visible_output():
        return _guarded(run, words)


def _guarded(run: Callable[[list[str]], int], words: list[str]) -> int:
    try:
        status = run(words)
        sys.stdout.flush()
        return status
    except UsageError as e:
        sys.stderr.write(f"thicket: {e}\nTry `thicket help`.\n")
        return USAGE
    except ClientError as e:
        sys.stderr.write(f"thicket: {e}\n")
        return UNREACHABLE if e.code == "unreachable" else BAD
    except KeyboardInterrupt:
        return 130
    except EOFError:
        sys.stderr.write("thicket: nothing was typed, so nothing was done\n")
        return BAD
    except BrokenPipeError:
        # the reader (head, a closed pager) has ended
        _say_no_more()
        return OK
    except OSError as e:
        _say_no_more()
        sys.stderr.write(f"thicket: {e.filename or 'what is printed'}: {e.strerror or e}\n")
        return BAD


def _say_no_more() -> None:
    """Keep the interpreter from printing an error when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(words: list[str]) -> int:
    if not words:
        raise UsageError("no command")
    command, rest = words[0], words[1:]
    asks = rest[-1:] in (["-h"], ["--help"]) and command not in {"call", "publish"}
    if asks or command in {"help", "-h", "--help"}:
        sys.stdout.write(HELP)
        return OK
    if command in {"version", "--version", "-V"}:
        print(f"thicket {thicket.__version__}")
        return OK
    if command in {"status", "peers", "nodes", "scan"}:
        return show(command, rest)
    if command == "fleet":
        from thicket.cli.fleet import fleet

        return fleet(rest)
    if command in {"metrics", "netjson"}:
        from thicket.cli import metrics

        return metrics.metrics(rest) if command == "metrics" else metrics.netjson(rest)
    if command == "ping":
        return ping(rest)
    if command in {"call", "publish", "monitor"}:
        from thicket.cli.cluster import run

        return run(command, rest, control_socket())
    if command == "reload":
        if rest:
            raise UsageError("reload takes no arguments")
        return tell_reload(request(control_socket(), "reload", {}, timeout=RELOAD))
    if command == "config":
        return config(rest)
    if command in {"factory-reset", "identify"}:
        from thicket.cli import by_hand

        return by_hand.identify(rest) if command == "identify" else by_hand.factory_reset(rest)
    if command == "time":
        from thicket.cli.time import run as time

        return time(rest)
    if command == "revocations":
        return revocations(rest)
    if command == "labels":
        from thicket.cli.labels import labels

        return labels(rest)
    if command == "passphrase":
        from thicket.cli.passphrase import run as passphrase

        return passphrase(rest, control_socket())
    if command == "update":
        from thicket.cli.update import run as update

        return update(rest, control_socket())
    if command == "app":
        from thicket.cli.app import run as app

        return app(rest, control_socket())
    if command in {"logs", "reboot", "support"}:
        from thicket.cli import care

        return care.COMMANDS[command](rest)
    if command == "door":
        from thicket.cli.door import door

        return door(rest, control_socket())
    if command == "ca":
        raise UsageError(
            "ca runs on the engineer's machine only: bin/thicket ca, in the source tree"
        )
    raise UsageError(f"unknown command {command!r}")

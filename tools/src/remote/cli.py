# SPDX-License-Identifier: Apache-2.0
"""``thicket --via HOST COMMAND``: the command of a node, run from the engineer's machine.

``--lab NAME`` enters a simulated fleet. The simulator knows how (:data:`OpenLab`).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from authority.keys import HeldKey
from authority.telling import Bar, Telling
from authority.words import Parser, a_path, a_word, authority_in, chosen_folder, guarded
from cable import find, reach
from remote import member, programs, ways
from remote.errors import RemoteError
from remote.files import atomic
from remote.session import Operator, Session, opened
from remote.ways import Entrance, Way
from thicket.base.units import size_text
from thicket.cli.common import BAD, OK, UsageError
from thicket.cli.main import guarded as for_a_person
from thicket.operators.frames import LONGEST
from thicket.trust.revocations import SignedList

HELP: Final = """\
usage: thicket --via HOST [--node NODE] [--operator NAME] [--folder DIR] COMMAND ...
       thicket --lab NAME [--node NODE] COMMAND ...
       thicket --cable [DEVICE] [--node NODE] ... COMMAND ...

HOST is the way to a first node:
  HOST                      by ssh; as for ssh, and root there if it names nobody
  tls:ADDRESS               by TLS to a node that this machine reaches, at port 9102, or
                            tls:[ADDRESS]:PORT
NAME is a simulated fleet that runs (`make qemu-mesh` runs "default"), whose operator is made with
it; NAME/n3 enters it at n3 and not at its first node.

With --cable the first node is a device at a wired interface of this machine, which is found by
its answers (multicast DNS) and entered by ssh. DEVICE is its name, n-..., or the last digits of
that behind n-, or ADDRESS%INTERFACE; it is needed where more than one answers. Without COMMAND
those that answer are listed. Host keys are kept in DIR/cable_known_hosts.

NODE is the node that is meant: its address, host name, the last digits of that, or its label.
Without it the command runs on the first node. For another one this machine needs the certificate
of an operator (`thicket ca operator NAME`), in DIR (THICKET_CA, or the fleet's folder). A node on
the way carries bytes and cannot read them.

COMMAND is any command of a node (`thicket help` there), and these; those with [NODE] take the node
as a word, too:
  status|peers|nodes|scan|identify|logs|reboot|support [NODE] ...
                            these commands of a node
  shell [NODE]              a shell as root; Enter ~ . leaves a node that does not answer
  run [NODE] -- WORD...     any program, without a shell
  time set                  tell the fleet the time by this machine's clock
  web [--port N] [--open]   the fleet as a live page for a browser on this machine, until Ctrl-C;
      [--plan IMAGE --corners A B]  on a floor plan or map; docs/web.md
  erl|iex [ARGUMENT...]     a real Erlang or Elixir on this machine, as a member of the cluster
  cp FILE... NODE:FOLDER    bring files to a node (":FOLDER" is the first one)
  cp NODE:FILE... FOLDER    or from a node to here

Files that a command reads (config apply FILE, update install FILE ...) are those of this machine.
The exit status is the command's; 1 also where the node cannot be reached.
"""

#: Commands that take a node as their first word.
_ON_NODE: Final = frozenset(
    {"status", "peers", "nodes", "scan", "identify", "logs", "reboot", "support", "shell"}
)
#: Commands whose last word is a file that they read from standard input as well.
_FROM_INPUT: Final = frozenset(
    {
        ("config", "check"),
        ("config", "apply"),
        ("revocations", "import"),
        ("labels", "import"),
        ("passphrase", "import"),
        ("time", "import"),
        ("update", "order"),
    }
)
#: Commands with a file that is brought to the node first.
_BROUGHT: Final = frozenset({("update", "install"), ("app", "install")})
#: Bytes that a node may send as its archive; it has a bound for each of its parts.
_MOST_SUPPORT: Final = 64 << 20
_ORDERS: Final = frozenset({"pause", "resume", "abort", "back"})
_INCOMING: Final = "/data/thicket/incoming/"
#: Makes a folder for one file and prints its name, after what is read is in it.
_TAKE: Final = f"""\
set -e
umask 077
I="${{THICKET_ROOT-}}{_INCOMING}"
mkdir -p "$I"
D=$(mktemp -d "$I"XXXXXX)
trap 'rm -rf "$D"' HUP INT TERM
cat >"$D/$0"
test "$(stat -c %s "$D/$0")" = "$1" || {{ rm -rf "$D"; exit 1; }}
printf '%s\\n' "$D"
"""
#: Puts what is read into a folder under a name, or into a file: whole, or not at all.
_PUT: Final = """\
if [ -d "$0" ]; then T=$0/$1; else T=$0; fi
trap 'rm -f "$T.part"' HUP INT TERM
cat >"$T.part" && mv -f "$T.part" "$T" || { rm -f "$T.part"; exit 1; }
"""
#: Runs a command with a file that was brought, and removes its folder.
_USE: Final = 'D=$0; trap \'rm -rf "$D"\' EXIT HUP INT TERM; "$@"'


OpenLab = Callable[[str], AbstractContextManager[Entrance]]
"""Opens the way into the simulated fleet of this name."""


class Target(NamedTuple):
    """Where a command runs.

    :ivar way: the way to the first node.
    :ivar node: the node that is meant; None for the first one.
    """

    way: Callable[[], Way]
    node: str | None
    operator: Callable[[], Operator]

    def opened(self) -> AbstractAsyncContextManager[Session]:
        """Give a connection, see :func:`remote.session.opened`."""
        return opened(self.way(), self.node, self.operator)


def main(words: list[str], open_lab: OpenLab | None = None) -> int:
    """Run ``thicket --via ...``; return the exit status.

    :param words: its arguments.
    :param open_lab: for ``--lab``; without one there is no simulator here.
    """
    return guarded(_way_in(words), lambda: _run(words, open_lab))


def _run(words: list[str], open_lab: OpenLab | None) -> int:
    at = _command_at(words)
    parser = Parser("--via HOST, --cable or --lab NAME, and a COMMAND are needed")
    first = parser.add_mutually_exclusive_group()
    first.add_argument("--via", type=a_word)
    first.add_argument("--lab", type=a_word)
    first.add_argument("--cable", nargs="?", const="", type=str)
    parser.add_argument("--node", type=a_word)
    parser.add_argument("--operator", type=a_word)
    parser.add_argument("--folder", type=a_path)
    args = parser.parse_args(words[:at])
    rest = words[at:]
    if args.cable is not None and not rest:
        return _list_cables(args.cable or None)
    if not rest or rest[0] in {"help", "-h", "--help"}:
        sys.stdout.write(HELP)
        return OK
    node = args.node
    if rest[0] in _ON_NODE | {"run"} and rest[1:] and not rest[1].startswith("-"):
        if node is not None:
            raise UsageError(f"--node {node} and {rest[1]} are two nodes, and one is needed")
        node, rest = rest[1], [rest[0], *rest[2:]]
    with _entrance(args, open_lab) as entrance:
        operator = cache(partial(_operator, args.folder or entrance.folder, args.operator))
        place = args.via or args.lab or "a cable"
        return _from(Target(entrance.way, node, operator), place, rest)


def _entrance(
    args: argparse.Namespace, open_lab: OpenLab | None
) -> AbstractContextManager[Entrance]:
    """Return where the command begins."""
    folder = args.folder or chosen_folder()
    if args.via is not None:
        return nullcontext(Entrance(partial(ways.chosen, args.via), folder))
    if args.cable is not None:
        return nullcontext(Entrance(partial(ways.by_cable, args.cable or None, folder), folder))
    if args.lab is None:
        raise UsageError("--via HOST, --cable, or --lab NAME, tells where the command runs")
    if open_lab is None:
        raise UsageError("--lab needs the simulator: bin/thicket of a checkout has it")
    return open_lab(args.lab)


def _from(target: Target, place: str, rest: list[str]) -> int:
    node = target.node
    if rest[0] in member.PROGRAMS:
        if node is not None:
            raise UsageError(f"{rest[0]} is a member like any other, and runs here, not on {node}")
        return asyncio.run(member.run(target.way, target.operator(), rest[0], rest[1:]))
    if rest[0] == "web":
        if node is not None:
            raise UsageError(f"web shows all nodes; leave --node {node} out")
        return asyncio.run(_web(place, target, rest[1:]))
    if rest[0] == "cp":
        return asyncio.run(_copy(target, rest[1:]))
    return asyncio.run(_command(target, rest))


def _command_at(words: list[str]) -> int:
    """Return where the command begins: behind options, each of which has a value. That of --cable
    may be missing, and is no command."""
    at = 0
    while at < len(words) and words[at].startswith("--"):
        alone = "=" in words[at] or words[at] == "--help"
        if words[at] == "--cable":
            alone = not (at + 1 < len(words) and reach.is_device(words[at + 1]))
        at += 1 if alone else 2
    return min(at, len(words))


def _way_in(words: list[str]) -> str:
    """Return the option that names the way, which messages begin with."""
    options = {word.partition("=")[0] for word in words[: _command_at(words)]}
    return next((one for one in ("--cable", "--lab") if one in options), "--via")


def _list_cables(node: str | None) -> int:
    """Show the devices that answer."""
    found = find.search()
    if node is not None or not found:
        found = [reach.chosen(found, node)]
    for device in found:
        print(f"{device.name}  {device.host}  {device.version}".rstrip())
    return OK


def _operator(folder: Path, name: str | None) -> Operator:
    """Return who this machine is, from an authority's folder or an operator's copy of one."""
    authority = authority_in(folder)
    holder = authority.operators.open(name)
    if not isinstance(holder.key, HeldKey):
        raise RemoteError("on-token", f"the key of {holder.name!r} is on a token, and TLS needs it")
    fleet = authority.fleet
    revoked = SignedList.read(authority.revocations.packed, fleet).listed.names
    return Operator(
        holder.name, holder.key.exported(), (holder.certificate,), fleet, frozenset(revoked)
    )


# -- commands


async def _command(target: Target, words: list[str]) -> int:
    command, rest = words[0], words[1:]
    if command == "shell":
        if rest:
            raise UsageError("shell takes only a NODE; `run NODE -- WORD...` runs a program")
        return await _program(target, [], terminal=True)
    if command == "run":
        if rest[:1] == ["--"]:
            rest = rest[1:]
        if not rest:
            raise UsageError("run needs the NODE, --, and a program with its words")
        return await _program(target, rest)
    if command == "support":
        return await _support(target, rest)
    if words == ["time", "set"]:
        # By this machine's clock: the operator's word, over a connection that proves whose it is.
        words = [*words, f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"]
    kind = (command, rest[0] if rest else "")
    if kind in _FROM_INPUT and len(rest) >= 2 and rest[-1] not in {"-", *_ORDERS}:
        path = Path(rest[-1])
        if kind != ("update", "order") or len(rest) == 2:
            contents = await asyncio.to_thread(path.read_bytes)
            return await _fed(target, ["thicket", command, *rest[:-1], "-"], contents)
    if kind in _BROUGHT:
        files = [word for word in rest[1:] if not word.startswith("-")]
        if len(files) != 1:
            raise UsageError(f"{command} {rest[0]} needs a FILE")
        return await _with_file(target, ["thicket", *words], files[0], Path(files[0]))
    if kind == ("update", "offer") and rest[1:] != ["-"]:
        raise UsageError("`thicket update send FOLDER HOST` brings an offer to a node")
    return await _program(target, ["thicket", *words])


async def _program(target: Target, words: list[str], *, terminal: bool | None = None) -> int:
    if terminal and not sys.stdin.isatty():
        terminal = False  # a script on standard input
    async with target.opened() as session:
        return await programs.run(session, words, terminal=terminal)


async def _fed(target: Target, words: list[str], contents: bytes) -> int:
    async with target.opened() as session:
        return await programs.fed(session, words, (contents,), sys.stdout.buffer.write)


async def _with_file(target: Target, words: list[str], name: str, path: Path) -> int:
    """Run a command with a file of this machine, which is brought to the node for that.

    :param name: the file, as it stands among the words.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        async with target.opened() as session:
            take = ["sh", "-c", _TAKE, path.name, str(size)]
            with Telling() as tell:
                said = bytearray()
                status = await programs.fed(
                    session, take, _pieces(file, Bar(size, tell)), said.extend
                )
    folder = said.decode("utf-8", "replace").strip()
    if status or _INCOMING not in folder:
        raise RemoteError("not-brought", f"{path} could not be brought to the node, see above")
    there = [f"{folder}/{path.name}" if word == name else word for word in words]
    return await _program(target, ["sh", "-c", _USE, folder, *there])


def _pieces(file: BinaryIO, bar: Bar) -> Iterator[bytes]:
    done = 0
    while data := file.read(LONGEST):
        yield data
        done += len(data)
        bar(done)


async def _support(target: Target, rest: list[str]) -> int:
    parser = Parser("support takes a NODE and --out FILE")
    parser.add_argument("--out", type=a_path)
    out: Path | None = parser.parse_args(rest).out
    async with target.opened() as session:
        path = out or Path(f"support-{session.node.rpartition('@')[2]}.tar.gz")
        with atomic(path) as file:

            def write(data: bytes) -> None:
                if file.tell() + len(data) > _MOST_SUPPORT:
                    raise RemoteError("too-long", f"{session.node} sends more than it should")
                file.write(data)

            status = await programs.fed(session, ["thicket", "support", "-"], (), write)
            size = file.tell()
            if status:
                raise RemoteError("not-made", "the node has not made it, see above")
    print(f"{path}: {size_text(size)}; look into it before you give it to anybody")
    return OK


# -- the page


async def _web(place: str, target: Target, words: list[str]) -> int:
    """Serve the page until Ctrl-C."""
    from remote.fleet_source import FleetSource
    from web.plan import Origin, Plan, corner, read
    from web.serve import serve

    parser = Parser("web takes --port N, --open, and --plan IMAGE with --corners A B")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--open", action="store_true")
    parser.add_argument("--plan", type=a_path)
    parser.add_argument("--corners", nargs=2, metavar=("A", "B"))
    options = parser.parse_args(words)
    if (options.plan is None) != (options.corners is None):
        raise UsageError("--plan IMAGE and --corners A B belong together")
    origin: Origin | None = None
    plan: Plan | None = None
    if options.plan is not None:
        first, second = (corner(one) for one in options.corners)
        origin = Origin(*first)
        plan = read(options.plan, (0.0, 0.0), origin.metres(*second))

    def tell(address: str) -> None:
        print(address, flush=True)
        print("Only who has this address can look. Ctrl-C ends it.", file=sys.stderr, flush=True)
        if options.open:
            import webbrowser

            webbrowser.open(address)

    def opens(node: str | None) -> AbstractAsyncContextManager[Session]:
        return target._replace(node=node).opened()

    await serve(FleetSource(place, opens, origin), port=options.port, plan=plan, tell=tell)
    return OK


# -- files


async def _copy(target: Target, words: list[str]) -> int:
    if len(words) < 2:
        raise UsageError("cp needs FILE... NODE:FOLDER, or NODE:FILE... FOLDER")
    *sources, goal = words
    there = [_place(word) for word in words]
    if there[-1] is not None and not any(there[:-1]):
        node, folder = there[-1]
        return await _bring(_at(target, node), [Path(one) for one in sources], folder)
    if there[-1] is None and all(there[:-1]):
        status = OK
        for node, path in filter(None, there[:-1]):
            status = status or await _fetch(_at(target, node), path, Path(goal))
        return status
    raise UsageError("cp copies from here to a node, or from nodes to here")


def _place(word: str) -> tuple[str, str] | None:
    """Return node and path of ``NODE:PATH``; None for a file of this machine."""
    if word.startswith(("/", "./", "../")) or ":" not in word:
        return None
    node, _, path = word.rpartition(":")
    return node.strip("[]"), path


def _at(target: Target, node: str) -> Target:
    if not node:
        return target
    if target.node not in {None, node}:
        raise UsageError(f"--node {target.node} and {node} are two nodes, and one is needed")
    return target._replace(node=node)


async def _bring(target: Target, sources: list[Path], folder: str) -> int:
    for path in sources:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            async with target.opened() as session:
                with Telling() as tell:
                    goal = ["sh", "-c", _PUT, folder or "/root", path.name]
                    pieces = _pieces(file, Bar(size, tell))
                    status = await programs.fed(session, goal, pieces, sys.stdout.buffer.write)
        if status:
            return BAD
        print(f"{path}: {size_text(size)}")
    return OK


async def _fetch(target: Target, path: str, goal: Path) -> int:
    to = goal / Path(path).name if goal.is_dir() else goal
    async with target.opened() as session:
        with atomic(to) as file:
            status = await programs.fed(session, ["cat", "--", path], (), file.write)
            size = file.tell()
            if status:
                raise RemoteError("not-fetched", f"{path} was not fetched, see above")
    print(f"{to}: {size_text(size)}")
    return OK


if __name__ == "__main__":
    sys.exit(for_a_person(main, sys.argv[1:]))

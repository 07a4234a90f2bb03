# SPDX-License-Identifier: Apache-2.0
"""``thicket update``: updates of this node, and of its whole fleet."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from typing import Any, BinaryIO

from thicket.base.units import size_text
from thicket.cli.bar import Bar, text
from thicket.cli.common import BAD, OK, UsageError, node_paths, speaking_of
from thicket.cli.show import folded
from thicket.control.client import ClientError, request

#: Seconds between two looks at how an installation goes.
_LOOK = 0.5
#: Seconds that the daemon may take for an answer, and for taking large files.
_ANSWER = 35.0
_LONG = 900.0
#: Codes of errors of a node that is not in its fleet yet, as after a restart into a trial.
_ALONE = frozenset(("not-joined", "no-fleet"))
#: Nodes that have not followed an order yet and are named.
_NAMED = 5
#: Bytes of a signed order that are read.
_MOST_ORDER = 65536

ORDERS = ("pause", "resume", "abort", "back")
_DESK = {"delta", "help", "inspect", "send", "sign", "verify"}


def run(words: list[str], control: str) -> int:
    """Run one command of ``thicket update``, and return the exit status."""
    verb, rest = (words[0] if words else ""), words[1:]
    options = {word for word in rest if word.startswith("-")}
    names = [word for word in rest if not word.startswith("-")]
    restart = "--restart" in options
    if verb == "install":
        if len(names) != 1 or options - {"--again", "--restart"}:
            raise UsageError("update install needs a FILE; it takes --again and --restart")
        if "://" in names[0]:
            raise UsageError(
                f"update install needs a FILE: bring {names[0]} to /data first; or have the fleet "
                "look there for offers ([update] source)"
            )
        return _install(control, names[0], again="--again" in options, restart=restart)
    if verb == "back":
        if names or options - {"--restart"}:
            raise UsageError("update back takes --restart alone")
        return _back(control, restart=restart)
    if verb == "status":
        if names or options - {"--json"}:
            raise UsageError("update status takes --json alone")
        return _status(control, as_json="--json" in options)
    if verb == "offer":
        if (len(names), options) == (0, {"-"}):
            return _offer_stream(control, sys.stdin.buffer)
        if len(names) != 1 or options:
            raise UsageError(
                "update offer needs the FOLDER that `thicket update offer` made, or - for what "
                "`thicket update send` sends"
            )
        with speaking_of(names[0]):
            return _offer(control, names[0])
    if verb == "order":
        if (len(names), options) == (0, {"-"}):
            data = sys.stdin.buffer.read(_MOST_ORDER)
            return _give(control, _signed(data), "standard input")
        if not 1 <= len(names) <= 2 or options:
            raise UsageError(
                "update order needs pause, resume, abort or back, and for an application its name; "
                "or a signed FILE, or - for one on standard input"
            )
        return _order(control, *names)
    if verb in _DESK:
        raise UsageError(
            f"update {verb} runs on the engineer's machine only: bin/thicket update, in the source "
            "tree"
        )
    raise UsageError("update needs install FILE, back, offer FOLDER|-, order WORD|FILE|- or status")


def _install(control: str, path: str, *, again: bool, restart: bool) -> int:
    params = {"path": os.path.abspath(path), "again": again}
    request(control, "update-install", params, timeout=_ANSWER)
    progress = _watch(control)
    if progress["state"] != "installed":
        sys.stderr.write(f"thicket: not installed: {progress['words']}\n")
        return BAD
    print(f"version {progress['version']} is installed: {progress['words']}")
    return _restart(restart)


def _watch(control: str) -> dict[str, Any]:
    """Show how the installation goes until it ends; return the end."""
    bar = Bar()
    while True:
        progress: dict[str, Any] = request(control, "update-progress", {}, timeout=_ANSWER)
        if progress["state"] in {"installed", "failed", "none"}:
            bar.clear()
            return progress
        bar.show(progress)
        time.sleep(_LOOK)


def _back(control: str, *, restart: bool) -> int:
    answer = request(control, "update-back", {}, timeout=_ANSWER)
    print(f"slot {answer['slot']} is tried by the next start, and kept if it is well")
    return _restart(restart)


def _restart(restart: bool) -> int:
    if not restart:
        print("`reboot` starts it")
        return OK
    print("restarting", flush=True)
    try:
        return OK if subprocess.run(["reboot"], check=False).returncode == 0 else BAD
    except OSError as error:
        raise ClientError("no-reboot", f"reboot: {error.strerror}") from None


# -- the fleet


def _status(control: str, *, as_json: bool) -> int:
    try:
        answer = request(control, "update-status", {}, timeout=_ANSWER)
    except ClientError as error:
        if error.code in _ALONE and not as_json:
            _print_own(request(control, "status", {}, timeout=_ANSWER))
        raise
    if as_json:
        print(json.dumps({key: value for key, value in answer.items() if key != "tables"}))
        return OK
    _print_own(answer)
    for one, table in zip([answer, *answer["others"]], answer["tables"], strict=True):
        print("\n".join(["", *shown(one["spread"], one["rollout"]["mine"])]))
        if table["rows"]:
            print()
            _print_table(table)
    return OK


def _print_own(answer: dict[str, Any]) -> None:
    """Print what a node knows without the others: its slots, and how an installation goes."""
    for slot in answer["slots"]:
        print(f"slot {slot_line(slot)}", flush=True)
    installation = answer["installation"]
    if installation is not None and installation["state"] != "none":
        state = "" if installation["state"] == "checking" else f"{installation['state']}: "
        print(f"installation: {state}{text(installation)}", flush=True)


def slot_line(slot: dict[str, Any]) -> str:
    """Return what is known of a slot in one line."""
    words = [slot["state"], *(["runs"] if slot["runs"] else [])]
    if slot["trial"]:
        words.append("on trial" if slot["runs"] else "to be tried")
    line = f"{slot['name']}: {', '.join(words)}"
    line += f", version {slot['version']}" if slot["version"] else ""
    return line + (f" ({slot['why']})" if slot["why"] else "")


def _print_table(table: dict[str, Any]) -> None:
    print(table["headline"])
    if table["rows"]:
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(folded(table["heads"], table["rows"], columns))
    if pending := table.get("pending"):
        count = f"{len(pending)} node{' has' if len(pending) == 1 else 's have'}"
        more = f" and {len(pending) - _NAMED} more" if len(pending) > _NAMED else ""
        print(
            f"{count} not said yet to follow the order: {', '.join(pending[:_NAMED])}{more}; the "
            "table tells what they did before. `thicket update status` shows it later"
        )


def _offer(control: str, folder: str) -> int:
    params = {"folder": os.path.abspath(folder)}
    until = time.monotonic() + _LONG
    while not (answer := request(control, "update-offer", params, timeout=_ANSWER)):
        if time.monotonic() > until:
            raise ClientError("hangs", f"the card has not taken {folder} within {_LONG:.0f} s")
        print("copying patches to /data", flush=True)
    offer = answer["offer"]
    what = offer["application"] or offer["compatible"]
    print(f"offered to the fleet: {what} {offer['version']}")
    for patch in answer["patches"]:
        what = f"change of {patch['base'][:12]}" if patch["base"] else "whole"
        here = "here" if patch["here"] == patch["size"] else "not here"
        print(f"  {what}: {size_text(patch['size'])}, {here}")
    print("`thicket update status` shows how it gets on")
    return OK


def _offer_stream(control: str, stream: BinaryIO) -> int:
    """Offer what comes from the engineer's machine, see :mod:`thicket.update.stream`."""
    from thicket.base.files import locked
    from thicket.update import stream as streams

    data = node_paths().data + streams.FOLDER
    busy = ClientError("busy", "another offer is being sent to this node: wait for its end")
    try:
        with locked(data + ".lock", 0.0, busy):
            try:
                shutil.rmtree(data, ignore_errors=True)  # of one that was cut off
                streams.receive(stream, data)
                return _offer(control, data)
            finally:
                shutil.rmtree(data, ignore_errors=True)
    except streams.StreamError as error:
        raise ClientError(error.code, str(error)) from None
    except OSError as error:
        raise ClientError("not-kept", f"/data does not take it: {error.strerror}") from None


def _order(control: str, what: str, application: str = "") -> int:
    params: dict[str, Any] = {"order": what, "application": application}
    if what not in ORDERS:
        try:
            with open(what, "rb") as file:
                data = file.read(_MOST_ORDER)
        except OSError as error:
            raise UsageError(
                f"there is no order {what!r}, only {', '.join(ORDERS)}, and no file of this name "
                f"with a signed one ({error.strerror})"
            ) from None
        if application:
            raise UsageError(f"a signed order says itself what it is about, not {application!r}")
        params = _signed(data)
    return _give(control, params, what)


def _signed(data: bytes) -> dict[str, Any]:
    """Return the parameters of a command that takes what is signed."""
    import base64

    return {"signed": base64.b64encode(data).decode("ascii")}


def _give(control: str, params: dict[str, Any], what: str) -> int:
    for table in _ordered(control, what, params):
        _print_table(table)
    return OK


def _ordered(control: str, what: str, params: dict[str, Any]) -> list[dict[str, Any]]:
    """Give an order; what is wrong with a signed one is said of its file."""
    try:
        tables: list[dict[str, Any]] = request(control, "update-order", params, timeout=_ANSWER)
    except ClientError as error:
        if "signed" not in params or error.code == "unreachable":
            raise
        raise ClientError(error.code, f"{what}: {error}") from None
    return tables


def shown(answer: dict[str, Any], mine: dict[str, Any] | None) -> list[str]:
    """Return as lines the newest offer, its patches, what this node does, and who has how much.

    :param mine: see :class:`thicket.update.mine.Mine`.
    """
    offer = answer["offer"]
    if offer is None:
        return ["No update is offered."]
    what = f"{offer['version']} for {offer['compatible']}"
    if offer["application"]:
        what = f"{offer['application']} {offer['version']}"
    lines = [f"Update to {what} (offer {offer['number']})"]
    lines += [_patch(patch) for patch in answer["patches"]]
    if mine is not None:
        lines += _mine(mine)
    if answer["nodes"]:
        width = max(len(node["name"]) for node in answer["nodes"])
        lines += ["", "What the connected nodes have of a patch:"]
        lines += [
            f"{node['name']:<{width}}  {_hops(node['hops']):<7}  "
            f"{_bar(node['percent'])} {node['percent']:3} %"
            for node in answer["nodes"]
        ]
    return lines


def _mine(mine: dict[str, Any]) -> list[str]:
    """Return what this node does, and what a person can do."""
    state = ": " + mine["state"] if mine["state"] else ""
    percent = f", {mine['percent']} % of the way" if mine["percent"] is not None else ""
    lines = [f"This node{state}{percent}: {mine['words']}"]
    return [*lines, f"  what to do: {mine['remedy']}"] if mine["remedy"] else lines


def _patch(patch: dict[str, Any]) -> str:
    what = f"from {patch['base'][:12]}" if patch["base"] else "whole"
    here, size = patch["here"], patch["size"]
    state = "here" if here == size else f"{size_text(here)} here" if here else "not here"
    if patch["fetching"]:
        state += ", being fetched"
    if patch["failed"]:
        state += f", of no use: {patch['failed']}"
    return f"  patch, {what}: {size_text(size)}, {state}"


def _hops(hops: int) -> str:
    return f"{hops} hop{'' if hops == 1 else 's'}"


def _bar(percent: int) -> str:
    return "[" + "#" * (percent // 5) + "-" * (20 - percent // 5) + "]"

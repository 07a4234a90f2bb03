# SPDX-License-Identifier: Apache-2.0
"""Commands for what is between the nodes: links, places, radios, recordings, the medium."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

from meshlab.cli.common import CommandError, Define, ask, connected, fading_text, request
from meshlab.wire.rpc import Params


def define(command: Define) -> None:
    """Define the commands.

    :param command: Adds one.
    """
    link = command("link", "change what two nodes hear of each other", cmd_link)
    link.add_argument("a", metavar="A")
    link.add_argument("b", metavar="B")
    how = link.add_mutually_exclusive_group(required=True)
    how.add_argument("--cut", action="store_true", help="nothing any more")
    how.add_argument("--snr", type=float, metavar="DB", help="this signal-to-noise ratio")
    how.add_argument(
        "--loss", type=float, metavar="PERCENT", help="share of all frames that get lost"
    )
    how.add_argument(
        "--fading",
        type=fading_text,
        metavar="HOW",
        help="the signal changes by itself: 'rayleigh doppler=2', 'rician k=6 doppler=2', "
        "'shadowing=4 decorrelation=10' (dB, seconds), both, or 'none'",
    )
    how.add_argument("--restore", action="store_true", help="as it was at the start")
    link.add_argument("--oneway", action="store_true", help="only what B hears of A")

    move = command(
        "move",
        "put a node elsewhere; its links then follow its distances",
        request("move", "node", "x", "y"),
        of_node=True,
    )
    move.add_argument("x", type=float, metavar="X", help="metres")
    move.add_argument("y", type=float, metavar="Y", help="metres")

    radio = command(
        "radio",
        "unplug a node's radio, or plug it in",
        request("radio", "node", "action"),
        of_node=True,
    )
    radio.add_argument("action", choices=("unplug", "plug"))

    pcap = command("pcap", "record what is on the air, as pcapng, until Ctrl-C", cmd_pcap)
    pcap.add_argument(
        "nodes", nargs="*", metavar="NODE", help="only what these nodes send and hear"
    )
    pcap.add_argument(
        "--link",
        nargs=2,
        action="append",
        metavar=("A", "B"),
        help="only what these two send in range of each other; repeatable",
    )
    pcap.add_argument(
        "--decrypt", action="store_true", help="in clear, with keys that the nodes are asked for"
    )
    pcap.add_argument("-w", dest="file", metavar="FILE", help="where to; - or nothing: to stdout")
    pcap.add_argument("--stop", action="store_true", help="end a recording that was left running")

    medium = command(
        "medium", "show the medium's figures, or kill it (it is restarted)", cmd_medium
    )
    medium.add_argument("action", choices=("status", "kill"), nargs="?", default="status")


def cmd_link(options: argparse.Namespace) -> int:
    if options.loss is not None and not 0 <= options.loss <= 100:
        raise CommandError(f"--loss {options.loss:g}: a loss is 0 to 100 percent of all frames", 2)
    params = {
        "a": options.a,
        "b": options.b,
        "cut": options.cut,
        "snr": options.snr,
        "loss": None if options.loss is None else options.loss / 100,
        "fading": options.fading,
        "restore": options.restore,
        "both": not options.oneway,
    }
    ask(options, "link", params)
    return 0


def cmd_medium(options: argparse.Namespace) -> int:
    answer = ask(options, "medium", {"action": options.action})
    if options.action == "status":
        print(json.dumps(answer, indent=2))
    return 0


def cmd_pcap(options: argparse.Namespace) -> int:
    if options.stop:
        ask(options, "pcap", {"stop": True})
        return 0
    if options.file in (None, "-"):
        if sys.stdout.isatty():
            raise CommandError("a recording is no text: -w FILE, or pipe it somewhere", 2)
        return asyncio.run(_pcap_stdout(options))
    return asyncio.run(_pcap_file(options, Path(options.file).absolute()))


def _interruption() -> asyncio.Event:
    """Return an event that SIGINT, SIGTERM and SIGHUP set from now on."""
    loop = asyncio.get_running_loop()
    interrupted = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, interrupted.set)
    return interrupted


def _wanted(options: argparse.Namespace, path: Path) -> Params:
    return {
        "path": str(path),
        "nodes": options.nodes,
        "links": options.link or [],
        "decrypt": options.decrypt,
    }


async def _pcap_file(options: argparse.Namespace, path: Path) -> int:
    async with connected(options.lab) as client:
        interrupted = _interruption()
        await client.call("pcap", _wanted(options, path))
        print(f"recording to {path}, Ctrl-C ends it", file=sys.stderr, flush=True)
        await interrupted.wait()
        ended = await client.call("pcap", {"stop": True, "path": str(path)})
        for capture in ended.get("captures", []):
            problem = f", {capture['problem']}" if capture.get("problem") else ""
            print(f"{capture['packets']} packets in {path}{problem}", file=sys.stderr)
    return 0


async def _pcap_stdout(options: argparse.Namespace) -> int:
    """Have the medium write to a file of ours, and pass on what it gets."""
    with tempfile.TemporaryDirectory(prefix="meshlab-") as directory:
        path = Path(directory) / "air.pcapng"
        async with connected(options.lab) as client:
            interrupted = _interruption()
            await client.call("pcap", _wanted(options, path))
            with path.open("rb") as recorded:
                try:
                    while not interrupted.is_set():
                        _pass_on(recorded)
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(0.2):
                                await interrupted.wait()
                finally:
                    await client.call("pcap", {"stop": True, "path": str(path)})
                _pass_on(recorded)
    return 0


def _pass_on(recorded: BinaryIO) -> None:
    """Write what was appended since to the standard output."""
    while data := recorded.read(1 << 20):
        sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()

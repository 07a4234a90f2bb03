# SPDX-License-Identifier: Apache-2.0
"""What the commands share: requests to a running lab, and how the program is called."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

from meshlab.lab.paths import lab_directory
from meshlab.medium import fading
from meshlab.wire.rpc import Client, Json, Params

Run = Callable[[argparse.Namespace], int]
"""Does what a command is for, and returns the exit status."""


class Define(Protocol):
    """Adds a command to the parser."""

    def __call__(
        self, name: str, text: str, run: Run, *, of_node: bool = False
    ) -> argparse.ArgumentParser:
        """Add one.

        :param name: Its name.
        :param text: What it does, for the help.
        :param run: Does it.
        :param of_node: Its first argument is a node.
        :returns: Its parser, for more arguments.
        """
        ...


class CommandError(Exception):
    """Ends the program.

    :param message: What is said on standard error.
    :param status: The exit status.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def fading_text(text: str) -> str:
    """Return how links change, as it is written.

    :raises argparse.ArgumentTypeError: when it is not understood.
    """
    try:
        return str(fading.parse(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def own_command() -> str:
    """Return how a person in this directory calls this program."""
    given = os.environ.get("MESHLAB_COMMAND")
    if given:
        return given
    # From a checkout there is bin/meshlab, which finds its Python environment by itself.
    program = Path(__file__).resolve().parents[5] / "bin" / "meshlab"
    if not program.exists():
        return "meshlab"
    near = os.path.relpath(program)
    return near if not near.startswith("..") else str(program)


@contextlib.asynccontextmanager
async def connected(lab: str) -> AsyncIterator[Client]:
    """Connect to a lab's supervisor.

    :param lab: The lab's name.
    :raises RpcError: when the lab does not run.
    """
    async with await Client.connect(lab_directory(lab) / "control.sock") as client:
        yield client


def ask(
    options: argparse.Namespace,
    method: str,
    params: Params | None = None,
    *,
    timeout: float | None = 60.0,
    on_event: Callable[[Json], None] | None = None,
) -> Json:
    """Make one request to the running lab.

    :param options: Of the command line: they name the lab.
    :param method: What is asked.
    :param params: The request's parameters.
    :param timeout: Seconds that the lab may be silent; None: for ever.
    :param on_event: Gets each event before the result.
    :returns: The result.
    :raises RpcError: when the lab does not run, or refuses.
    """

    async def go() -> Json:
        async with connected(options.lab) as client:
            return await client.call(method, params, timeout=timeout, on_event=on_event)

    return asyncio.run(go())


def request(method: str, *names: str) -> Run:
    """Return what makes one request and says nothing.

    :param method: What is asked.
    :param names: The options that are its parameters, by the same names.
    """

    def run(options: argparse.Namespace) -> int:
        ask(options, method, {name: getattr(options, name) for name in names})
        return 0

    return run

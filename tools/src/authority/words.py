# SPDX-License-Identifier: Apache-2.0
"""How the desk's commands read their words, and ask for passphrases."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from authority.authority import Authority
from authority.errors import AuthorityError
from thicket.cli.common import OK, UsageError

Command = Callable[[Authority, list[str]], int]
"""Runs one command with its arguments; returns the exit status."""


def chosen_folder() -> Path:
    """Return the folder of the fleet's authority."""
    chosen = os.environ.get("THICKET_CA")
    return Path(chosen) if chosen else Path.home() / ".local/share/thicket/fleet"


def ask_passphrase(question: str) -> str:
    """Ask the person for a passphrase, or a PIN; the environment may have the answer.

    :raises AuthorityError: nobody can be asked, or the answer will not do.
    """
    pin = question.startswith("PIN")
    variable = "THICKET_CA_PIN" if pin else "THICKET_CA_PASSPHRASE"
    given = os.environ.get(variable)
    if given:
        return given
    if not sys.stdin.isatty():
        raise AuthorityError(
            f"{question}: there is no terminal to ask at; set {variable}, or run it in a terminal"
        )
    from getpass import getpass

    first = getpass(f"{question}: ")
    if not first and not pin:
        raise AuthorityError("an empty passphrase protects nothing (--lab is for the simulator)")
    if question.startswith("New") and getpass("Once more: ") != first:
        raise AuthorityError("the two passphrases are not the same; nothing was written")
    return first


class Parser(argparse.ArgumentParser):
    """Reads the words of one command; ``needs`` says with each fault what the command needs."""

    def __init__(self, needs: str = "") -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        self._needs = needs

    def error(self, message: str) -> NoReturn:
        raise UsageError("; ".join(filter(None, (message, self._needs))))

    def add_where(self) -> None:
        """Add the options that name a node and the way to it."""
        node = self.add_mutually_exclusive_group()
        node.add_argument("--ssh", type=a_word)
        node.add_argument("--console", type=a_word)
        self.add_argument("--baud", type=a_number, default=115200)


def a_word(text: str) -> str:
    """Read a name: an empty file is the present folder, and ssh has options that run programs."""
    if not text or text.startswith("-"):
        raise argparse.ArgumentTypeError(f"{text!r} is no name")
    return text


def a_path(text: str) -> Path:
    """Read the name of a file or folder."""
    return Path(a_word(text))


def a_number(text: str) -> int:
    """Read a number, also in hexadecimal (``0x60``)."""
    try:
        return int(a_word(text), 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def run_command(words: list[str], help_text: str, commands: Mapping[str, Command]) -> int:
    """Run the command that ``words`` begin with, with the fleet's authority.

    :raises UsageError: there is none of that name.
    """
    parser = Parser()
    parser.add_argument("--folder", type=a_path, default=chosen_folder())
    args, words = parser.parse_known_args(words)
    if not words:
        raise UsageError("no command")
    command, rest = words[0], words[1:]
    if command in {"help", "-h", "--help"}:
        Parser("help takes no arguments").parse_args(rest)
        sys.stdout.write(help_text)
        return OK
    if command not in commands:
        raise UsageError(f"unknown command {command!r}")
    return commands[command](Authority(args.folder, ask_passphrase), rest)

# SPDX-License-Identifier: Apache-2.0
"""How the desk's commands read their words, and ask for passphrases."""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NoReturn

from authority.authority import Authority
from authority.errors import AuthorityError
from host import stop
from host.errors import HostError
from thicket.base.errors import ThicketError
from thicket.cli.common import BAD, OK, USAGE, UsageError

FOR_KEYS: Final = "THICKET_CA_PASSPHRASE"

ON_NODES: Final = frozenset({"install", "back", "status", "list", "remove"})
"""Commands of the same names that nodes have."""

_UNKNOWN: Final = re.compile(r"unrecognized arguments: (.+)", re.S)
_NO_CHOICE: Final = re.compile(r"argument (\S+): invalid choice: (.+) \(choose from (.+)\)", re.S)
_NO_VALUE: Final = re.compile(r"argument (\S+): expected (?:one|at least one) argument")
_ARGUMENT: Final = re.compile(r"argument (\S+): (.+)", re.S)

_NEXT: Final = {
    errno.EISDIR: "a file is needed, and this is a folder",
    errno.ENOTDIR: "a folder is needed, and this is a file",
    errno.EACCES: "only its owner may, or whom he lets",
    errno.ENOSPC: "make room; files that are in use meanwhile are in /tmp, or in TMPDIR",
}
"""What a person can do about an error of the system."""

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
    variable = "THICKET_CA_PIN" if pin else FOR_KEYS
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


def authority_in(folder: Path) -> Authority:
    """Return the fleet's authority in a folder, which asks the person for passphrases."""
    return Authority(folder, ask_passphrase, unneeded=_tell_unneeded)


def _tell_unneeded() -> None:
    if os.environ.get(FOR_KEYS):
        sys.stderr.write(
            f"thicket: this fleet is for the simulator, and its keys have no passphrase: "
            f"{FOR_KEYS} is not used\n"
        )


class Parser(argparse.ArgumentParser):
    """Reads the words of one command; ``needs`` says with each fault what the command needs."""

    def __init__(self, needs: str = "") -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        self._needs = needs

    def error(self, message: str) -> NoReturn:
        raise UsageError(_plain(message, self._needs))

    def add_where(self) -> None:
        """Add the options that name a node and the way to it."""
        node = self.add_mutually_exclusive_group()
        node.add_argument("--ssh", type=a_word)
        node.add_argument("--console", type=a_word)
        self.add_argument("--baud", type=a_number, default=115200)


def _plain(message: str, needs: str) -> str:
    """Return a fault of argparse in plain words."""
    if message.startswith("the following arguments are required") and needs:
        return needs
    if found := _UNKNOWN.fullmatch(message):
        return "; ".join(filter(None, (f"{found[1]} is not understood here", needs)))
    if found := _NO_CHOICE.fullmatch(message):
        choices = ", ".join(re.findall(r"[\w-]+", found[3]))
        return f"{found[2]} is none of {choices}; {needs}"
    if found := _NO_VALUE.fullmatch(message):
        return f"{found[1]} needs a value"
    if found := _ARGUMENT.fullmatch(message):
        name, words = found[1], found[2]
        return f"{name}: {words}" if name.startswith("-") else words
    return "; ".join(filter(None, (message, needs)))


def a_word(text: str) -> str:
    """Read a name: an empty file is the present folder, and ssh has options that run programs."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name is none")
    if text.startswith("-"):
        raise argparse.ArgumentTypeError(f"{text!r} is no name, as it begins with a hyphen")
    return text


def a_path(text: str) -> Path:
    """Read the name of a file or folder."""
    return Path(a_word(text))


def a_number(text: str) -> int:
    """Read a number, also in hexadecimal (``0x60``)."""
    word = a_word(text)
    if re.fullmatch("[0-9]{1,9}", word):
        return int(word)
    if re.fullmatch("0[xX][0-9a-fA-F]{1,8}", word):
        return int(word, 16)
    raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number, such as 64 or 0x40")


def run_desk(name: str, words: list[str], help_text: str, commands: Mapping[str, Command]) -> int:
    """Run one of the desk's programs; return the exit status (as of ``thicket``).

    What a signal stops leaves nothing half-made.

    :param name: what the program is called behind ``thicket``.
    """
    return guarded(name, lambda: run_command(words, help_text, commands))


def guarded(name: str, run: Callable[[], int]) -> int:
    """Run one of the desk's programs for a person: print errors; return the exit status.

    What a signal stops leaves nothing half-made.

    :param name: what the program is called behind ``thicket``.
    """
    with stop.stopping():
        return _guarded(name, run)


def _guarded(name: str, run: Callable[[], int]) -> int:
    try:
        return run()
    except UsageError as error:
        sys.stderr.write(f"thicket {name}: {error}\nTry `thicket {name} help`.\n")
        return USAGE
    except BrokenPipeError:
        raise  # whoever reads has ended: nothing is wrong
    except stop.Stopped as stopped:
        sys.stderr.write(f"thicket {name}: {stopped}\n")
        return stopped.status
    except EOFError:
        sys.stderr.write(f"thicket {name}: nothing was typed, so nothing was done\n")
    except OSError as error:
        sys.stderr.write(f"thicket {name}: {_of_the_system(error)}\n")
    except (ThicketError, HostError) as error:
        sys.stderr.write(f"thicket {name}: {error}\n")
    return BAD


def _of_the_system(error: OSError) -> str:
    what = error.filename2 or error.filename
    advice = _NEXT.get(error.errno or 0)
    words = error.strerror or str(error)
    return f"{what or 'a file'}: {words}" + (f": {advice}" if advice else "")


def run_command(words: list[str], help_text: str, commands: Mapping[str, Command]) -> int:
    """Run the command that ``words`` begin with, with the fleet's authority.

    :raises UsageError: there is none of that name.
    """
    parser = Parser()
    parser.add_argument("--folder", type=a_path, default=chosen_folder())
    args, words = parser.parse_known_args(words)
    if not words:
        raise UsageError(f"a command is needed: {', '.join(sorted(commands))}")
    command, rest = words[0], words[1:]
    if command in commands and {"-h", "--help"} & set(rest):
        command, rest = "help", []
    if command in {"help", "-h", "--help"}:
        Parser("help takes no arguments").parse_args(rest)
        sys.stdout.write(help_text)
        return OK
    if command not in commands:
        if command in ON_NODES:
            raise UsageError(f"{command} runs on a node: log in to it (ssh root@NODE), and type it")
        raise UsageError(
            f"there is no command {command!r}, only {', '.join(sorted(commands))} and help"
        )
    return commands[command](authority_in(args.folder), rest)

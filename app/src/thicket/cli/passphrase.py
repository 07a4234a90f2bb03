# SPDX-License-Identifier: Apache-2.0
"""``thicket passphrase``: changes the mesh's passphrase on all nodes at once."""

from __future__ import annotations

import base64
import sys
from typing import Any

from thicket.cli.common import BAD, OK, UsageError
from thicket.control.client import ClientError, request

_SECONDS = 40.0
#: 20 of 32 characters are a hundred bits; characters that look alike are left out.
_LETTERS = "abcdefghjkmnpqrstuvwxyz123456789"
_GROUPS = 5
_GROUP = 4

_OPTIONS = ("--generate", "--accept-missing", "--unencrypted")


def run(words: list[str], control: str) -> int:
    """Run one of roll, finish, cancel and import, and return the exit status."""
    verb, options = (words[0] if words else ""), words[1:]
    if verb == "import":
        return _import(options, control)
    allowed = {"roll": _OPTIONS, "finish": ("--accept-missing",), "cancel": ()}.get(verb)
    if allowed is None:
        raise UsageError("passphrase needs roll, finish, cancel or import FILE")
    for option in options:
        if option not in allowed:
            # it may be a passphrase: not shown
            known = ", ".join(allowed) or "no options"
            raise UsageError(
                f"passphrase {verb} takes {known}; a passphrase never stands on the command line, "
                "where other programs can read it"
            )
    accepted = "--accept-missing" in options
    if verb == "roll":
        return _roll(control, options, accepted=accepted)
    if verb == "finish":
        return _finish(control)
    show(request(control, "passphrase", {"action": "cancel"}, timeout=_SECONDS), "dropped it")
    return OK


def generate() -> str:
    """Return a passphrase that nobody can guess, in groups that are easy to read out."""
    from secrets import choice

    groups = ("".join(choice(_LETTERS) for _ in range(_GROUP)) for _ in range(_GROUPS))
    return "-".join(groups)


def read_passphrase() -> str:
    """Ask a person for the new passphrase, twice, or read it from standard input."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    from getpass import getpass

    first = getpass("New passphrase of the mesh: ")
    if getpass("Once more: ") != first:
        raise ClientError("different", "the two are not the same; nothing was changed")
    return first


def _roll(control: str, options: list[str], *, accepted: bool) -> int:
    generated = "--generate" in options
    if sys.stdin.isatty():  # fail before a person types it
        request(control, "passphrase", {"action": "unsigned"})
    passphrase = generate() if generated else read_passphrase()
    params = {
        "action": "prepare",
        "passphrase": passphrase,
        "unencrypted": "--unencrypted" in options,
    }
    answer = request(control, "passphrase", params, timeout=_SECONDS)
    if generated:
        print(f"The new passphrase is {passphrase}")
        print("Keep it: a node that is away now, and every new card, needs it.")
    show(answer, "has it")
    if (answer["failed"] or answer["missing"]) and not accepted and not agreed():
        answer = request(control, "passphrase", {"action": "cancel"}, timeout=_SECONDS)
        show({**answer, "missing": []}, "dropped it again")
        if answer["failed"]:
            print(
                "Those still have the new passphrase beside the old one, which is in use: "
                "`thicket passphrase cancel` tells them again."
            )
        print("The mesh keeps its passphrase. --accept-missing does without those nodes.")
        return BAD
    return _finish(control)


def _import(options: list[str], control: str) -> int:
    """Read a signed change from a file or standard input, and give it to every node."""
    if len(options) != 1 or options[0].startswith("--"):
        raise UsageError('passphrase import needs a FILE ("-" is standard input)')
    from thicket.cli.config import is_no
    from thicket.trust import kinds
    from thicket.trust.change import MAX_CHANGE

    try:
        if options[0] == "-":
            data = sys.stdin.buffer.read(MAX_CHANGE + 1)
        else:
            with open(options[0], "rb") as file:
                data = file.read(MAX_CHANGE + 1)
    except OSError as error:
        sys.stderr.write(f"thicket: cannot read {options[0]}: {error.strerror}\n")
        return BAD
    if is_no(kinds.CHANGE, data, options[0], "`thicket ca passphrase roll` without a node"):
        return BAD
    params = {"action": "import", "change": base64.b64encode(data).decode("ascii")}
    return show_import(request(control, "passphrase", params, timeout=_SECONDS))


def show_import(answer: dict[str, Any], what: str = "") -> int:
    """Print which nodes have taken a signed change; OK when none is missing.

    :param what: what these nodes have done, in words.
    """
    show(answer, what or ("has changed" if answer["used"] else "has it"))
    if answer["missing"]:
        print("Those get it when they are connected again, as long as a link can be made.")
    return BAD if answer["failed"] or answer["missing"] else OK


def agreed() -> bool:
    """Ask whether to change although some nodes do not have the new passphrase."""
    if not sys.stdin.isatty():
        return False
    print(
        "They will have to get it on their cards. Change nevertheless? [y/N] ", end="", flush=True
    )
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _finish(control: str) -> int:
    answer = request(control, "passphrase", {"action": "change"}, timeout=_SECONDS)
    show(answer, "has changed")
    if answer["failed"]:
        print(
            "Nodes that have the new passphrase and did not get the order to change find out by "
            "themselves, when their neighbours refuse the old one."
        )
    return BAD if answer["failed"] else OK


def show(answer: dict[str, Any], what: str) -> None:
    """Print what each node has done."""
    for name in answer["done"]:
        print(f"{name}  {what}")
    for name, why in answer["failed"].items():
        print(f"{name}  NOT: {why}")
    for name in answer["missing"]:
        print(f"{name}  MISSING: known, and not connected")

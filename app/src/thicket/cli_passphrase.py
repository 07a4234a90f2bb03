# SPDX-License-Identifier: Apache-2.0
"""``thicket passphrase``: another passphrase for the mesh, on all nodes at once."""

import sys
from typing import Any, Final

from thicket.cli import BAD, OK, UsageError
from thicket.client import ClientError, request

_SECONDS: Final = 40.0
#: 20 letters of 32: a hundred bits, without letters and digits that look alike.
_LETTERS: Final = "abcdefghjkmnpqrstuvwxyz123456789"
_GROUPS: Final = 5
_GROUP: Final = 4

_OPTIONS: Final = ("--generate", "--accept-missing", "--unencrypted")


def run(words: list[str], control: str) -> int:
    """Run one of roll, finish and cancel; the exit status."""
    verb, options = (words[0] if words else ""), words[1:]
    allowed = {"roll": _OPTIONS, "finish": ("--accept-missing",), "cancel": ()}.get(verb)
    if allowed is None:
        raise UsageError("passphrase needs roll, finish or cancel")
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
    _show(request(control, "passphrase", {"action": "cancel"}, timeout=_SECONDS), "dropped it")
    return OK


def generate() -> str:
    """A passphrase that nobody can guess, in groups that can be read to somebody."""
    from secrets import choice  # noqa: PLC0415

    groups = ("".join(choice(_LETTERS) for _ in range(_GROUP)) for _ in range(_GROUPS))
    return "-".join(groups)


def _read() -> str:
    """The new passphrase, from a person (twice) or from standard input."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    from getpass import getpass  # noqa: PLC0415

    first = getpass("New passphrase of the mesh: ")
    if getpass("Once more: ") != first:
        raise ClientError("different", "the two are not the same; nothing was changed")
    return first


def _roll(control: str, options: list[str], *, accepted: bool) -> int:
    generated = "--generate" in options
    passphrase = generate() if generated else _read()
    params = {
        "action": "prepare",
        "passphrase": passphrase,
        "unencrypted": "--unencrypted" in options,
    }
    answer = request(control, "passphrase", params, timeout=_SECONDS)
    if generated:
        print(f"The new passphrase is {passphrase}")
        print("Keep it: a node that is away now, and every new card, needs it.")
    _show(answer, "has it")
    if (answer["failed"] or answer["missing"]) and not accepted and not _agreed():
        answer = request(control, "passphrase", {"action": "cancel"}, timeout=_SECONDS)
        _show({**answer, "missing": []}, "dropped it again")
        if answer["failed"]:
            print(
                "Those still have the new passphrase beside the old one, which is in use: "
                "`thicket passphrase cancel` tells them again."
            )
        print("The mesh keeps its passphrase. --accept-missing does without those nodes.")
        return BAD
    return _finish(control)


def _agreed() -> bool:
    """Ask whether to do without the nodes that have not got it."""
    if not sys.stdin.isatty():
        return False
    print(
        "They will have to get it on their cards. Change nevertheless? [y/N] ", end="", flush=True
    )
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _finish(control: str) -> int:
    answer = request(control, "passphrase", {"action": "change"}, timeout=_SECONDS)
    _show(answer, "has changed")
    if answer["failed"]:
        print(
            "Those who have the new passphrase and were not told to change find out by themselves "
            "when their neighbours refuse the old one."
        )
    return BAD if answer["failed"] else OK


def _show(answer: dict[str, Any], what: str) -> None:
    for name in answer["done"]:
        print(f"{name}  {what}")
    for name, why in answer["failed"].items():
        print(f"{name}  NOT: {why}")
    for name in answer["missing"]:
        print(f"{name}  MISSING: known, and not connected")

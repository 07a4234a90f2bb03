# SPDX-License-Identifier: Apache-2.0
"""``thicket ca passphrase``: another passphrase for a fleet's mesh, signed by its authority."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from authority.authority import Authority
from authority.remote_bus import Channel
from authority.remote_node import RemoteNode
from thicket.cli.common import BAD, OK, UsageError
from thicket.cli.passphrase import agreed, generate, read_passphrase, show_import

FILE: Final = "passphrase.change"
"""The newest signed change in the authority's folder, for a node that is not reached from here."""

_OPTIONS: Final = {"roll": ("--generate", "--accept-missing"), "finish": (), "cancel": ()}


def run(
    authority: Authority, words: list[str], *, where: Callable[[str | None], Channel] | None
) -> int:
    """Run one of roll, finish and cancel; return the exit status.

    :param words: the verb and its options.
    :param where: reaches a node, if the command line names one.
    :raises UsageError: when ``words`` are not understood.
    """
    verb, options = (words[0] if words else ""), words[1:]
    if verb not in _OPTIONS:
        raise UsageError("ca passphrase needs roll, finish or cancel")
    for option in options:
        if option not in _OPTIONS[verb]:
            # it may be a passphrase: not shown
            known = ", ".join(_OPTIONS[verb]) or "no options but --ssh HOST or --console PATH"
            raise UsageError(
                f"ca passphrase {verb} takes {known}; a passphrase never stands on the command "
                "line, where other programs can read it"
            )
    passphrase = ""
    if verb == "roll":
        passphrase = generate() if "--generate" in options else read_passphrase()
    node = RemoteNode(where(None)) if where is not None else None
    try:
        replaces = _look(authority, node)
        if verb == "cancel":
            packed = authority.network.cancel_passphrase(replaces=replaces)
            return _bring(authority, node, packed, "dropped it")
        if verb == "roll":
            packed = authority.network.offer_passphrase(passphrase, replaces=replaces)
            if "--generate" in options:
                print(f"The new passphrase is {passphrase}")
                print("A node that is away now needs it on its card, if it comes after the change.")
            done = _bring(authority, node, packed, "has it")
            if node is None:
                print("`thicket ca passphrase finish` follows when all nodes have it.")
                return OK
            if done != OK and "--accept-missing" not in options and not agreed():
                print(
                    "The mesh keeps its passphrase, and the nodes that have the new one keep that "
                    "beside it: `thicket ca passphrase finish` changes to it, `cancel` drops it."
                )
                return BAD
        packed = authority.network.use_passphrase(replaces=replaces)
        return _bring(authority, node, packed, "has changed")
    finally:
        if node is not None:
            node.close()


def _look(authority: Authority, node: RemoteNode | None) -> tuple[str, ...]:
    """Take up what another copy of the authority signed; the tag of the node's passphrase."""
    if node is None:
        return ()
    packed, present = node.held_change()
    if packed and (number := authority.network.take_change(packed)) is not None:
        print(f"Change {number} of the passphrase, of another copy of this authority: taken up.")
    return (present,)


def _bring(authority: Authority, node: RemoteNode | None, packed: bytes, what: str) -> int:
    """Bring a change to the nodes, or into a file; OK when all of them have done it."""
    path = authority.network.write_change(FILE, packed)
    if node is not None:
        return show_import(node.import_change(packed), what)
    print(f"{path} is the signed change, with the passphrase in it: bring it to a node, and type")
    print(f"    thicket passphrase import {FILE}")
    return OK

# SPDX-License-Identifier: Apache-2.0
"""``thicket ca time``: the time by this machine's clock, signed by the fleet's authority."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from authority import ssh
from authority.authority import Authority
from authority.errors import AuthorityError
from authority.words import Parser, a_word
from thicket.cli.common import OK
from thicket.timekeeping.statement import QUESTION

_PATIENCE: Final = 120.0


def run(authority: Authority, rest: list[str]) -> int:
    """Sign the time, for a node that is reached by ssh, or into a file."""
    parser = Parser("time needs --ssh HOST, or --out FILE [--for QUESTION]")
    parser.add_argument("--ssh", type=a_word)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--for", dest="question", type=a_word)
    args = parser.parse_args(rest)
    if (args.ssh is None) == (args.out is None) or (args.ssh and args.question):
        parser.error("either a node or a file is named")
    if args.question and not _is_question(args.question):
        parser.error("a question is what `thicket time question` prints on the node")
    sign = authority.time_signer()  # the key's passphrase is typed before the node is asked
    if args.out is not None:
        args.out.write_bytes(sign(args.question or ""))
        print(f"{args.out} is signed; on a node: thicket time import {args.out.name}")
        return OK
    question = _over_ssh(args.ssh, "question").decode("ascii", "replace").strip()
    if not _is_question(question):
        raise AuthorityError(f"{args.ssh} does not ask for the time: {question[:80]!r}")
    sys.stdout.write(_over_ssh(args.ssh, "import", "-", data=sign(question)).decode())
    return OK


def _is_question(text: str) -> bool:
    return len(text) == 2 * QUESTION and not set(text) - set("0123456789abcdef")


def _over_ssh(host: str, *words: str, data: bytes = b"") -> bytes:
    """Run ``thicket time`` on a node.

    :raises AuthorityError: it fails.
    """
    try:
        done = subprocess.run(
            [ssh.program(), "-T", host, "thicket", "time", *words],
            input=data,
            stdout=subprocess.PIPE,
            check=False,
            timeout=_PATIENCE,
        )
    except OSError as error:
        raise AuthorityError(f"{host} is not reached: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise AuthorityError(f"{host}: no answer within {_PATIENCE:.0f} s") from None
    if done.returncode != OK:
        raise AuthorityError(f"{host} has not taken the time (status {done.returncode}), see above")
    return done.stdout

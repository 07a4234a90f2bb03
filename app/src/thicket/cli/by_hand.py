# SPDX-License-Identifier: Apache-2.0
"""``thicket factory-reset`` and ``thicket identify``: what concerns this very device."""

from __future__ import annotations

import re
import subprocess
import sys

from thicket.cli.common import BAD, OK, UsageError, control_socket, node_paths
from thicket.control.client import ClientError, request

_UNITS = {"s": 1, "min": 60, "m": 60, "": 1}


def identify(rest: list[str]) -> int:
    """Run ``thicket identify [--for TIME]``."""
    seconds = 30.0
    match rest:
        case []:
            pass
        case ["--for", text]:
            seconds = _seconds(text)
        case _:
            raise UsageError("identify takes only --for TIME, such as 30s or 2min; 0 ends it")
    request(control_socket(), "identify", {"seconds": seconds})
    print(f"The light flickers for {seconds:g} s." if seconds else "The light shows the state.")
    return OK


def _seconds(text: str) -> float:
    digits = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = _UNITS.get(text[len(digits) :])
    number = int(digits) if re.fullmatch("[0-9]{1,5}", digits) else None
    if unit is None or number is None or number * unit > 3600:
        raise UsageError(f"{text!r} is no time up to an hour, such as 30s or 2min")
    return float(number * unit)


def factory_reset(rest: list[str]) -> int:
    """Run ``thicket factory-reset [--yes]``."""
    from thicket.device import factory_reset as reset

    if rest not in ([], ["--yes"]):
        raise UsageError("factory-reset takes only --yes")
    paths = node_paths()
    try:
        reset.check_data(paths)
        found = reset.survey(paths)
        print(f"This node restarts and erases: {found.text()}.")
        print("It keeps its identity, its enrolment, the lists of revocations and its settings.")
        if not rest:
            sys.stdout.write("Type yes to do it: ")
            sys.stdout.flush()
            if input().strip() != "yes":
                print("Nothing was done.")
                return BAD
        reset.ask(paths, "command")
    except reset.ResetError as error:
        raise ClientError(error.code, str(error)) from None
    try:
        return OK if subprocess.run(["reboot"], check=False).returncode == 0 else BAD
    except OSError as error:
        raise ClientError(
            "no-reboot", f"reboot: {error.strerror}; the next start does the reset"
        ) from None

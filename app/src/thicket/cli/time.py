# SPDX-License-Identifier: Apache-2.0
"""``thicket time``: what the node's clock is worth, and a person's word about the time."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Any

from thicket.cli.common import BAD, OK, UsageError, control_socket
from thicket.control.client import request

#: Seconds that setting the clock may take: chronyd ends, and starts again.
SECONDS = 60.0
_FORMS = ("%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M")


def run(rest: list[str]) -> int:
    """Run ``thicket time ...``; return the exit status."""
    match rest:
        case [] | ["--json"]:
            document = request(control_socket(), "status", {})["time"]
            if document is None:
                document = {"state": "starting", "known": False}
            print(json.dumps(document, indent=2) if rest else time_text(document))
            return OK if document["known"] else BAD
        case ["set", *words] if words:
            document = request(control_socket(), "time", {"set": _time(" ".join(words))}, SECONDS)
            print(time_text(document))
            return OK
        case ["question"]:
            print(request(control_socket(), "time", {"ask": True}, SECONDS)["question"])
            return OK
        case ["import", file]:
            return _import(file)
    raise UsageError("time takes nothing or --json, or: set TIME, question, import FILE")


def _time(text: str) -> float:
    """Return a time in seconds since 1970."""
    plain = text.strip().removesuffix("UTC").strip().removesuffix("Z")
    for form in _FORMS:
        try:
            return datetime.strptime(plain, form).replace(tzinfo=UTC).timestamp()
        except ValueError:
            continue
    raise UsageError(f"{text!r} is no time such as 2026-03-31T16:05:00Z (UTC, always)")


def _import(file: str) -> int:
    import base64

    from thicket.timekeeping.statement import MOST

    try:
        if file == "-":
            packed = sys.stdin.buffer.read(MOST + 1)
        else:
            with open(file, "rb") as stream:
                packed = stream.read(MOST + 1)
    except OSError as error:
        sys.stderr.write(f"thicket: cannot read {file}: {error.strerror}\n")
        return BAD
    if len(packed) > MOST:
        sys.stderr.write(f"thicket: {file} is no signed time: `thicket ca time` makes one\n")
        return BAD
    params = {"signed": base64.b64encode(packed).decode()}
    answer = request(control_socket(), "time", params, SECONDS)
    issued = datetime.fromtimestamp(answer["issued"], UTC)
    print(f"It is later than {issued:%Y-%m-%d %H:%M:%S} UTC: all nodes will know.")
    if answer["answers"]:
        print(time_text(answer))
    return OK


def time_text(told: dict[str, Any] | None) -> str:
    """Return what the clock is worth, in words."""
    if told is None or told["state"] == "starting":
        return "not known yet"
    now = datetime.now(UTC)
    shown = f"{now:%Y-%m-%d %H:%M:%S} UTC"
    match told["state"]:
        case "off":
            return f"{shown}, left to other programs (time.enabled)"
        case "failed":
            return f"{shown}, kept by nobody: see the warning"
        case "guess":
            whose = f", as {told['source']} says" if told["source"] else ""
            return f"{shown}, A GUESS{whose}: nobody has told this fleet the time"
        case "held":
            ago = _duration(told["told"] or 0)
            how = "a person" if told["by"] == "operator" else f"the {told['by']}"
            return f"{shown}, told by {how} {ago} ago"
        case state:
            kind = "server" if state == "network" else "node"
            within = f", within {told['error']:.3g} s" if told["error"] is not None else ""
            return f"{shown} by the {kind} {told['source']}{within}, stratum {told['stratum']}"


def _duration(seconds: float) -> str:
    from thicket.cli.show import duration

    return duration(seconds)

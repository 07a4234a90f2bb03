# SPDX-License-Identifier: Apache-2.0
"""``thicket app``: installs applications on this node, lists them and takes them back."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from thicket.cli.bar import Bar
from thicket.cli.common import BAD, OK, UsageError, speaking_of
from thicket.cli.show import table
from thicket.control.client import request

#: Seconds that the daemon may take for one answer.
_ANSWER = 60.0
#: Seconds that a trial is waited for: five times the longest `[update] health_time`, and more.
_TRIAL = 3600.0
#: Seconds between two looks at a trial.
_LOOK = 1.0
_USAGE = "app needs install FILE, list, back NAME or remove NAME"
_DESK = {"build", "help", "inspect", "verify"}
_OPTIONS = {
    "install": {"--again", "--wait"},
    "list": {"--json"},
    "back": set[str](),
    "remove": set[str](),
}


def run(words: list[str], control: str) -> int:
    """Run one of install, list, back and remove, and return the exit status."""
    verb, rest = (words[0] if words else ""), words[1:]
    options = {word for word in rest if word.startswith("--")}
    names = [word for word in rest if not word.startswith("--")]
    if verb in _DESK:
        raise UsageError(
            f"app {verb} runs on the engineer's machine only: bin/thicket app, in the source tree"
        )
    if verb not in _OPTIONS or options - _OPTIONS[verb] or len(names) != (verb != "list"):
        raise UsageError(_USAGE)
    if verb == "list":
        return _list(control, as_json="--json" in options)
    if verb == "install":
        return _install(control, names[0], again="--again" in options, wait="--wait" in options)
    answer = _asked(control, f"app-{verb}", {"name": names[0]})
    print(f"{names[0]} is removed" if verb == "remove" else entry_text(answer))
    return OK


def _install(control: str, path: str, *, again: bool, wait: bool) -> int:
    params = {"path": os.path.abspath(path), "again": again}
    with speaking_of(path):
        entry = _asked(control, "app-install", params)
    print(entry_text(entry), flush=True)
    if not wait:
        print("`thicket app list` tells when it was judged")
        return OK
    name, number = entry["name"], entry["number"]
    end = time.monotonic() + _TRIAL
    while entry["trial"]:
        if time.monotonic() > end:
            sys.stderr.write(
                f"thicket: {name} is not judged yet: its time counts while the node is in the "
                "cluster (`thicket status`)\n"
            )
            return BAD
        time.sleep(_LOOK)
        entry = next(one for one in _installed(control) if one["name"] == name)
    if entry["number"] != number:
        sys.stderr.write(f"thicket: {name} was left: {entry['left']}\n")
        return BAD
    print(entry_text(entry))
    return OK


def _asked(control: str, method: str, params: dict[str, Any]) -> dict[str, Any]:
    """Ask for something, and wait until it is done, however slow the card is."""
    answer: dict[str, Any] = request(control, method, params, timeout=_ANSWER)
    bar = Bar()
    try:
        while (headway := answer.get("pending")) is not None:
            bar.show(headway)
            answer = request(control, "app-result", {}, timeout=_ANSWER)
    finally:
        bar.clear()
    return answer


def _installed(control: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = request(control, "app-list", {}, timeout=_ANSWER)["installed"]
    return found


def _list(control: str, *, as_json: bool) -> int:
    found = _installed(control)
    print(json.dumps(found, indent=2) if as_json else list_text(found))
    return OK


def list_text(found: list[dict[str, Any]]) -> str:
    """Return the applications that were installed as a table, and why versions were left."""
    if not found:
        return "No application was installed beside the image's."
    rows = [
        [
            one["name"],
            one["version"] or "-",
            _state(one),
            "yes" if one["before"] else "-",
            one["signer"] or "-",
        ]
        for one in found
    ]
    lines = [table(["NAME", "VERSION", "STATE", "BEFORE", "SIGNER"], rows)]
    lines += [f"{one['name']}: a version was left: {one['left']}" for one in found if one["left"]]
    return "\n".join(lines)


def entry_text(entry: dict[str, Any]) -> str:
    """Return what became of an application in one line."""
    if entry["version"] is None:
        return f"{entry['name']}: none that was installed runs"
    return f"{entry['name']} {entry['version']}: {_state(entry)}"


def _state(entry: dict[str, Any]) -> str:
    if entry["version"] is None:
        return "not in force"
    return "on trial" if entry["trial"] else "in force"

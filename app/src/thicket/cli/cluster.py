# SPDX-License-Identifier: Apache-2.0
"""``thicket call``, ``publish`` and ``monitor``: commands for the cluster."""

import json
import time
from typing import Any

from thicket.cli.common import BAD, OK, UsageError
from thicket.control.client import ClientError, request
from thicket.distribution.jsonform import from_word, to_json, to_words


def run(command: str, words: list[str], control: str) -> int:
    """Run one of the commands, and return the exit status."""
    words, as_json = [word for word in words if word != "--json"], "--json" in words
    if command == "call":
        return _call(words, as_json, control)
    if command == "publish":
        if len(words) != 2 or as_json:
            raise UsageError("publish needs a GROUP and a VALUE")
        params = {"group": _group(words[0]), "message": _value(words[1])}
        answer = request(control, "publish", params, timeout=30.0)
        print(f"sent to {answer['members']} member{'' if answer['members'] == 1 else 's'}")
        return OK if answer["members"] else BAD
    if len(words) > 1 or any(word.startswith("-") for word in words):
        raise UsageError("monitor takes a GROUP, or nothing for nodes, and --json")
    return _monitor(_group(words[0]) if words else None, as_json, control)


def _value(word: str) -> Any:
    """Return the JSON form of the value that a word means."""
    try:
        return to_json(from_word(word))
    except ValueError as e:
        raise UsageError(f"{word}: {e}") from None


def _group(word: str) -> Any:
    """Return the JSON form of a group's name; a plain word is an atom, as in Python."""
    value = _value(word)
    return {"atom": value} if isinstance(value, str) else value


def _call(words: list[str], as_json: bool, control: str) -> int:
    timeout = 5.0
    if "--timeout" in words:
        at = words.index("--timeout")
        try:
            timeout = float(words[at + 1])
        except (IndexError, ValueError):
            raise UsageError("--timeout needs a number of seconds") from None
        if not 0 < timeout <= 25:
            raise UsageError("--timeout takes up to 25 seconds")
        words = words[:at] + words[at + 2 :]
    if len(words) < 2:
        raise UsageError("call needs NODE and MODULE.FUNCTION")
    node, function, *rest = words
    if "." not in function.strip("."):
        raise UsageError(f"a function is called MODULE.FUNCTION, not {function!r}")
    params = {
        "node": node,
        "function": function,
        "arguments": [_value(word) for word in rest],
        "timeout": timeout,
    }
    answer = request(control, "call", params, timeout=timeout + 15.0)
    print(json.dumps(answer, indent=2) if as_json else to_words(answer["result"]))
    return OK


def _monitor(group: Any, as_json: bool, control: str) -> int:
    feed: int | None = None
    while True:
        params: dict[str, Any] = {"group": group, "wait": 20.0}
        if feed is not None:
            params["feed"] = feed
        try:
            answer = request(control, "events", params, timeout=30.0)
        except ClientError as e:
            if e.code != "gone":
                raise
            feed = None  # the cluster was left and joined again
            continue
        if feed is None and group is None and not as_json:
            print(f"{_clock(time.time())}  {answer['node']} is this node", flush=True)
        feed = answer["feed"]
        if answer["missed"] and not as_json:
            print(f"({answer['missed']} more were not shown: too many at once)", flush=True)
        for event in answer["events"]:
            print(json.dumps(event) if as_json else _shown(event), flush=True)


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def _shown(event: dict[str, Any]) -> str:
    """Return an event in one line."""
    if event["kind"] == "message":
        return f"{_clock(event['time'])}  {to_words(event['message'])}"
    why = f"  ({event['reason']})" if event.get("reason") else ""
    return f"{_clock(event['time'])}  {event['kind']:<4}  {event['name']}{why}"

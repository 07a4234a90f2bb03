# SPDX-License-Identifier: Apache-2.0
"""What a person asks of the cluster with the command ``thicket``, by way of the daemon: calls,
messages to groups, and feeds of events and messages, which the command asks for again and again."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

from thicket.base.errors import RequestError
from thicket.base.pace import wait
from thicket.distribution.etf import EncodeError
from thicket.distribution.handshake import DistributionError
from thicket.distribution.jsonform import TooLongError, from_json, to_json
from thicket.distribution.node import Node

#: Most feeds at the same time.
MAX_FEEDS = 8
#: Most events of a feed that wait for the next question; older ones are dropped and counted.
KEPT = 256
#: Most characters of JSON of a message in a feed.
MAX_SHOWN = 16 * 1024
#: Seconds after the last question until a feed is closed.
EXPIRES = 60.0
#: Most seconds that a question waits for an event.
MAX_WAIT = 20.0
#: Most seconds for a call: fewer than the control socket gives a request.
MAX_TIMEOUT = 25.0


class _Feed:
    """Events since they were last asked for."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self.events: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self.missed = 0
        self.asked = time.monotonic()
        self.more = asyncio.Event()
        self.task = asyncio.create_task(self._collect())

    async def _collect(self) -> None:
        async for event in self.source:
            if len(self.events) == KEPT:
                self.missed += 1
            if hasattr(event, "kind"):
                found = {key: value for key, value in event._asdict().items() if value}
            else:
                found = {"kind": "message", "message": _short(event)}
            self.events.append({"time": time.time(), **found})
            self.more.set()

    def close(self) -> None:
        """End it."""
        self.task.cancel()
        self.source.close()


def _short(message: Any) -> Any:
    """Return the JSON form of a message, or words where that would be too long."""
    try:
        return to_json(message, MAX_SHOWN)
    except TooLongError as error:
        return {"term": f"a message ({type(message).__name__}), but {error}"}


class Requests:
    """The requests of people, for one node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._feeds: dict[int, _Feed] = {}
        self._last = 0

    async def call(self, peer: str, params: dict[str, Any]) -> Any:
        """Call a function of another node.

        :param params: ``function``, ``arguments`` (JSON forms), ``timeout`` in seconds.
        :raises RequestError: there is no result.
        """
        function, arguments = params.get("function"), params.get("arguments", [])
        timeout = params.get("timeout", 5.0)
        if not isinstance(function, str) or not isinstance(arguments, list):
            raise RequestError("bad-request", 'params need "function" and a list "arguments"')
        if not isinstance(timeout, int | float) or not 0 < timeout <= MAX_TIMEOUT:
            raise RequestError("bad-request", f'"timeout" is up to {MAX_TIMEOUT:g} seconds')
        try:
            values = [from_json(value) for value in arguments]
            result = await self.node.call(peer, function, *values, timeout=timeout)
        except DistributionError as error:
            causes: list[str] = []
            cause = error.__cause__
            while cause is not None and len(causes) < 8:
                causes.append(f"{getattr(cause, 'type', type(cause).__name__)}: {cause}")
                cause = cause.__cause__
            because = "".join(f"; caused by {words}" for words in causes)
            raise RequestError(error.code, f"{error}{because}") from error
        except (EncodeError, ValueError) as error:
            raise RequestError("bad-request", str(error)) from error
        try:
            return {"node": peer, "result": to_json(result)}
        except TooLongError as error:
            message = f"{function} has a result, but {error}: call it from an application"
            raise RequestError("too-long", message) from error

    async def publish(self, params: dict[str, Any]) -> Any:
        """Send a message to the members of a group.

        :param params: ``group`` and ``message``, JSON forms.
        :raises RequestError: it cannot be sent.
        """
        if "message" not in params or not params.get("group"):
            raise RequestError("bad-request", 'params need "group" and "message"')
        try:
            group, message = from_json(params["group"]), from_json(params["message"])
            if "pg" not in self.node.scopes:
                self.node.scope()  # it asks other nodes for their members
                await asyncio.sleep(0.5)
            return {"members": await self.node.publish(group, message)}
        except (EncodeError, ValueError) as error:
            raise RequestError("bad-request", str(error)) from error

    async def events(self, params: dict[str, Any]) -> Any:
        """Return what has happened since the last question; wait if that is nothing.

        :param params: ``feed``, the number of a feed: without it a new feed is made, of nodes or,
            with ``group``, of the messages to a group. ``wait``, the most seconds to wait.
        :raises RequestError: ``gone``, when there is no such feed (any more).
        """
        now = time.monotonic()
        for number, old in list(self._feeds.items()):
            if now - old.asked > EXPIRES:
                self._feeds.pop(number).close()
        wanted = params.get("feed")
        if wanted is None:
            wanted = self._new(params.get("group"))
        feed = self._feeds.get(wanted) if isinstance(wanted, int) else None
        if feed is None:
            raise RequestError("gone", "there is no such feed (any more); begin a new one")
        seconds = params.get("wait", MAX_WAIT)
        if not isinstance(seconds, int | float):
            raise RequestError("bad-request", '"wait" is a number of seconds')
        if not feed.events:
            feed.more.clear()
            await wait(feed.more, min(max(seconds, 0.0), MAX_WAIT))
        feed.asked = time.monotonic()
        found, missed = list(feed.events), feed.missed
        feed.events.clear()
        feed.missed = 0
        return {"feed": wanted, "node": self.node.name, "events": found, "missed": missed}

    def _new(self, group: Any) -> int:
        if len(self._feeds) >= MAX_FEEDS:
            raise RequestError(
                "too-many", f"{MAX_FEEDS} feeds are open; one that is not asked ends in a minute"
            )
        try:
            source = self.node.monitor() if group is None else self.node.subscribe(from_json(group))
        except (EncodeError, ValueError) as error:
            raise RequestError("bad-request", str(error)) from error
        self._last += 1
        self._feeds[self._last] = _Feed(source)
        return self._last

    def close(self) -> None:
        """End all feeds."""
        for feed in self._feeds.values():
            feed.close()
        self._feeds.clear()

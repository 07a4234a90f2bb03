# SPDX-License-Identifier: Apache-2.0
"""The medium of a lab: its process, which is kept running, and requests to it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from pathlib import Path

from host.child import tied
from meshlab.lab.directory import last_lines
from meshlab.lab.errors import LabError
from meshlab.lab.journal import Journal, Pace
from meshlab.lab.parts import Doubts
from meshlab.lab.state import (
    Kind,
    LabState,
    LinkState,
)
from meshlab.machine.given import Given, within
from meshlab.wire.rpc import Client, Json, Params, RpcError

log = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds, as it is given them, within which a medium answers, also one that is started again."""

END_PATIENCE = 5.0
"""Seconds, as it is given them, that a medium has to end by itself."""

RESTART_PAUSE = 1.0
"""Seconds before a medium that ended quickly is started again."""


class Air:
    """The medium's process in a lab, and what the lab's state says of it.

    :param doubts: Why figures cannot be trusted, beside the medium's own reasons.
    """

    def __init__(
        self,
        directory: Path,
        command: list[str],
        state: LabState,
        journal: Journal,
        pace: Pace,
        *,
        doubts: Doubts | None = None,
    ) -> None:
        self._directory = directory
        self._command = command
        self._state = state
        self._journal = journal
        self._pace = pace
        self._doubts = doubts or Doubts()
        self._process: asyncio.subprocess.Process | None = None
        self._client: Client | None = None
        self._given_up: str | None = None
        self._lock = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """Return the process of the medium, None while there is none."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process is not None else None

    async def keep(self) -> None:
        """Run the medium, and run it again whenever it ends.

        :raises LabError: when it ends again and again.
        """
        quick = 0
        while True:
            begun = time.monotonic()
            with (self._directory / "medium.log").open("ab") as output:
                self._process = await asyncio.create_subprocess_exec(
                    *tied(self._command),
                    cwd=self._directory,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    process_group=0,  # Ctrl-C in the terminal is the supervisor's to handle
                )
            code = await self._process.wait()
            self._state.medium = {}
            tail = last_lines(self._directory / "medium.log", 3)
            quick = quick + 1 if time.monotonic() - begun < 3 else 0
            if quick >= 4:
                self._given_up = f"the medium does not stay up (status {code}): {tail}"
                raise LabError(self._given_up)
            self._state.medium_restarts += 1
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}: {tail}"
            self._journal.tell(Kind.MEDIUM, f"the medium ended ({how}), starting it again")
            self._pace.lively()
            await asyncio.sleep(0.2 if quick == 0 else RESTART_PAUSE)

    async def call(
        self, method: str, params: Params | None = None, *, patience: float = PATIENCE
    ) -> Json:
        """Make a request to the medium, waiting ``patience`` seconds for one that restarts.

        :raises RpcError: the medium's own, or ``medium-down``: at once when nobody starts it again.
        """
        had = Given(lambda: [self.pid])
        async with self._lock:
            while True:
                try:
                    if self._client is None:
                        self._client = await Client.connect(self._directory / "medium.sock")
                    async with within(PATIENCE, lambda: [self.pid]):
                        answer = await self._client.call(method, params, timeout=None)
                    if method == "reset_stats":
                        self._doubts.reset()
                    return self._judged(answer) if method == "status" else answer
                except (RpcError, TimeoutError) as error:
                    silent = isinstance(error, TimeoutError)
                    if isinstance(error, RpcError) and error.code not in ("not-running", "closed"):
                        raise
                    if self._client is not None:
                        await self._client.close()
                        self._client = None
                    if self._given_up is not None:
                        raise RpcError("medium-down", self._given_up) from None
                    if silent or had.seconds() >= patience:
                        why = f"{method}: nothing within {PATIENCE:g} s" if silent else error
                        text = f"the medium does not answer ({why}); see medium.log"
                        raise RpcError("medium-down", text) from None
                await asyncio.sleep(0.1)

    def _judged(self, status: Json) -> Json:
        """Return the medium's status with the verdict of those who know more."""
        doubts = self._doubts.reasons()
        if not doubts:
            return status
        reasons = [*status.get("reasons", []), *doubts]
        return {**status, "valid": False, "reasons": reasons, "reason": "; ".join(reasons)}

    async def watch(self) -> None:
        """Keep the state's picture of the medium fresh."""
        since_links = 0
        was_valid = True
        while True:
            pause = 2.0
            try:
                facts = dict(await self.call("status", patience=0))
                self._state.medium = facts
                # While nodes boot beside it the medium is late, and nothing depends on it yet.
                valid = facts.get("valid") is not False or self._state.formed is None
                if was_valid and not valid:
                    reason = facts.get("reason") or "the host cannot keep up"
                    self._journal.tell(Kind.TROUBLE, f"the medium's figures are invalid: {reason}")
                was_valid = valid
                if since_links == 0:
                    await self.refresh_links()
                since_links = (since_links + 1) % 5
            except RpcError as error:
                log.debug("medium: %s", error)
                pause = 0.3
            await asyncio.sleep(pause)

    async def refresh_links(self) -> None:
        """Ask the medium who hears whom and where the nodes are."""
        self._take_links(await self.call("links"))

    def _take_links(self, answer: Json) -> None:
        heard: dict[tuple[str, str], float | None] = {}
        for each in answer["links"]:
            heard[each["a"], each["b"]] = each["snr_db"]
        known = dict.fromkeys([*self._state.links, *heard])
        for a, b in known:
            if (b, a) in self._state.links:
                continue
            snr, back = heard.get((a, b)), heard.get((b, a))
            if (a, b) in self._state.links or snr is not None or back is not None:
                self._state.links[a, b] = LinkState(a, b, snr, back)
        self._journal.notify()

    def kill(self) -> None:
        """Kill the medium's process; ``keep`` starts it again."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    def terminate(self) -> None:
        """Ask the medium to end."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    async def stop(self) -> None:
        """Wait until the medium has ended, and make it end."""
        if self._process is not None:
            try:
                async with within(END_PATIENCE, lambda: [self.pid]):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
            self._process = None
        if self._client is not None:
            await self._client.close()
            self._client = None

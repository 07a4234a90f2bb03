# SPDX-License-Identifier: Apache-2.0
"""What a scenario is played on: a lab, as far as steps and expectations use it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from meshlab.lab.parts import FleetLike
from meshlab.lab.questions import Runs
from meshlab.lab.spec import LabSpec
from meshlab.lab.state import Event, LabState
from meshlab.wire.rpc import Json, Params


class Stage(Runs, Protocol):
    """A lab; ``meshlab.lab.lab.Lab`` is the real one."""

    spec: LabSpec
    fleet: FleetLike | None

    @property
    def directory(self) -> Path: ...
    @property
    def failed(self) -> str | None:
        """Why the lab cannot go on."""

    def snapshot(self) -> LabState: ...
    def on_event(self, listener: Callable[[Event], None]) -> None: ...
    def watch(self) -> None:
        """Ask the nodes more often for a while: somebody waits for what they say."""

    async def formed(self, timeout: float) -> None: ...
    async def push(self, name: str, path: str, content: bytes) -> None: ...
    async def link(
        self,
        a: str,
        b: str,
        *,
        cut: bool = ...,
        snr: float | None = ...,
        loss: float | None = ...,
        fading: str | None = ...,
        restore: bool = ...,
        both: bool = ...,
    ) -> None: ...
    async def move(self, name: str, x: float, y: float, *, told: bool = ...) -> None: ...
    async def chip_fault(self, name: str, fault: str | None) -> None: ...
    async def radio(self, name: str, *, plug: bool, index: int = ...) -> None: ...
    async def configure(self, name: str, settings: Iterable[str]) -> tuple[int, str]: ...
    async def power_on(self, name: str) -> None: ...
    async def power_off(self, name: str, *, grace: float = ...) -> None: ...
    def edit_card(self, name: str, text: str | None = ...) -> None: ...
    def kill_medium(self) -> None: ...
    async def medium_call(
        self, method: str, params: Params | None = ..., *, patience: float = ...
    ) -> Json: ...


def running(stage: Stage, name: str) -> bool:
    """Tell whether a node is on."""
    return stage.state.nodes[name].power == "running"

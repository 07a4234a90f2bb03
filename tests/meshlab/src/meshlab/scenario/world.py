# SPDX-License-Identifier: Apache-2.0
"""What steps and expectations of one run share: the lab, the clock, and the flows of traffic."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from meshlab.scenario.errors import StepError, UnknowableError
from meshlab.scenario.stage import Stage
from meshlab.scenario.traffic import Flow, Flowed, flow

if TYPE_CHECKING:
    from meshlab.lab.updates import Desk


class World:
    """One run's.

    :param stage: The lab.
    :param seed: Of what happens by chance.
    :param folder: Where what the run makes is put.
    """

    def __init__(self, stage: Stage, seed: int, folder: Path) -> None:
        self.stage = stage
        self.seed = seed
        self.folder = folder
        self.flows: dict[str, asyncio.Future[Flowed]] = {}
        self._loop = asyncio.get_running_loop()
        self._desk: Desk | None = None

    @property
    def now(self) -> float:
        """Seconds of the run's clock: the host's, or that of an imagined lab."""
        return self._loop.time()

    async def flow(self, name: str, wanted: Flow) -> None:
        """Let traffic flow, to its end; ``flows`` has what came of it."""
        future = self.flows[name] = self._loop.create_future()
        try:
            future.set_result(await flow(self.stage, wanted, len(self.flows) - 1))
        except BaseException as error:
            known = isinstance(error, StepError | UnknowableError)
            failure = error if known else StepError(f"the traffic failed: {error}")
            future.set_exception(failure)
            future.exception()  # whoever asks for it gets it; nobody has to
            raise

    async def update(
        self, by: str, version: str, canaries: int, well: int, *, broken: bool
    ) -> None:
        """Make a version and offer it to the fleet."""
        from meshlab.lab.lab import Lab
        from meshlab.lab.updates import Desk, offer_version
        from thicket.update.offer import Plan

        if not isinstance(self.stage, Lab):
            raise UnknowableError("only real nodes take a version")
        if self._desk is None:
            self._desk = Desk(self.stage, self.folder, self.stage.image_of(by))
        plan = Plan(canaries, well, waves=(100,), failures=0, window=None)
        await offer_version(self.stage, self._desk, by, version, plan, broken=broken)

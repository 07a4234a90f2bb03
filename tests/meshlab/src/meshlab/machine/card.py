# SPDX-License-Identifier: Apache-2.0
"""The card of a machine that starts as a Raspberry Pi does."""

from __future__ import annotations

import asyncio
import os

from meshlab.machine import bootrom
from meshlab.machine.output import Output
from meshlab.machine.qemu import MachineError
from meshlab.machine.spec import CARD, KERNEL, TREE, MachineSpec, Start, card_parameters


class Card:
    """What a machine starts from its card, and the guest's memory: lost with the power only.

    :param spec: The machine.
    :param output: Where the boot ROM says what it found.
    :ivar booted: What the boot ROM found at the latest start.
    """

    def __init__(self, spec: MachineSpec, output: Output) -> None:
        self.booted: bootrom.Boot | None = None
        self._spec = spec
        self._output = output
        self._memory: int | None = None

    async def start(self, request: bootrom.Request) -> Start:
        """Find out what to start, and say it on the console as a Pi does.

        :param request: What the guest asked of its restart.
        :raises MachineError: when nothing on the card can be started, in the words of the boot ROM.
        """
        spec = self._spec
        card = spec.directory / CARD

        model = bootrom.MODELS[spec.hardware.model]

        def find() -> bootrom.Boot:
            found = bootrom.boot(card, request, model)
            bootrom.extract(card, found, spec.directory / KERNEL)
            if model.trees:
                tree = bootrom.device_tree(card, found, model, spec.hardware.absent)
                (spec.directory / TREE).write_bytes(tree)
            return found

        try:
            # Not in the loop: this reads some 30 MB, and other nodes want to be served.
            found = await asyncio.to_thread(find)
            parameters = " ".join(card_parameters(spec, found.cmdline))
            if len(parameters) > bootrom.CMDLINE_LIMIT:
                raise bootrom.BootError(
                    f"cmdline.txt on partition {found.partition} leaves no room: with what the "
                    f"machine needs it has {len(parameters)} characters, a kernel takes "
                    f"{bootrom.CMDLINE_LIMIT}"
                )
        except (bootrom.BootError, OSError) as error:
            self._output.say(f"boot ROM: {error}")
            raise MachineError(f"{spec.name}: nothing to start: {error}") from error
        self.booted = found
        self._output.begin_boot()
        for note in found.notes:
            self._output.say(f"boot ROM: {note}")
        self._output.say(f"boot ROM: {found.in_words()}")
        return self._given(found)

    def wake(self, booted: bootrom.Boot) -> Start:
        """Give what a machine was given that was saved later; its kernel is in its memory.

        :param booted: What the boot ROM had found.
        """
        self.booted = booted
        return self._given(booted)

    def _given(self, booted: bootrom.Boot) -> Start:
        if self._memory is None:
            self._memory = os.memfd_create(f"thicket-{self._spec.name}", os.MFD_CLOEXEC)
            os.ftruncate(self._memory, self._spec.memory << 20)
        return Start(booted, self._memory)

    def power_off(self) -> None:
        """Lose what was in memory."""
        if self._memory is not None:
            os.close(self._memory)
            self._memory = None

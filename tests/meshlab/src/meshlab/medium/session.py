# SPDX-License-Identifier: Apache-2.0
"""Making a node's radios: REGISTER, then whatever is missing or should not be there.

The kernel makes a second radio of the same address without complaint (``mac80211_hwsim_new_radio``
inserts into its table without looking), so radios are listed first and known by their names.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from meshlab.medium.engine import Engine
from meshlab.medium.objects import Node, Radio
from meshlab.wire import hwsim
from meshlab.wire.hwsim import Command, KernelAnswer, Message

log = logging.getLogger(__name__)

REQUEST_DEADLINE = 10.0
"""Seconds a kernel has to answer; a booting guest without KVM needs a good part of one."""

RETRY_MIN = 0.2
RETRY_MAX = 5.0

_Callback = Callable[[KernelAnswer], None]
_Later = Callable[[float, Callable[[], None]], object]


def radio_name(index: int) -> str:
    """Return the name of a radio (the node's ``iw phy`` shows it)."""
    return f"radio{index}"


class RadioSession:
    """The requests of one node's session.

    :param later: Calls something after some seconds.
    :param restart: Begins the session anew (with a reason) when the kernel does not answer.
    """

    def __init__(
        self,
        engine: Engine,
        node: Node,
        later: _Later,
        clock: Callable[[], float],
        restart: Callable[[str], None],
    ) -> None:
        self.node = node
        self.problem: str | None = None
        """Why the node's radios are not as they should be, in words."""
        self.registered = False
        self.foreign_radios = 0
        """Radios of the node's kernel that the medium did not make."""
        self._engine = engine
        self._later = later
        self._clock = clock
        self._restart = restart
        self._requests: dict[int, tuple[_Callback, float]] = {}
        self._dump_seq = 0
        self._found: list[hwsim.RadioInfo] = []
        self._wait = RETRY_MIN
        self._generation = 0

    def begin(self, family: int) -> None:
        """A session has started."""
        self._generation += 1
        self._requests.clear()
        self._dump_seq = 0
        self._wait = RETRY_MIN
        self.registered = False
        self.problem = "waiting for the node's kernel"
        self._engine.node_up(self.node, family)
        self._register()

    def end(self) -> None:
        """The session is over."""
        self._generation += 1
        self._requests.clear()
        self._dump_seq = 0
        self.registered = False
        self.problem = None
        self._engine.node_down(self.node)

    @property
    def ready(self) -> bool:
        """Tell whether every radio is as it should be."""
        return self.registered and all(r.up == r.plugged for r in self.node.radios)

    def check(self) -> None:
        """Look after the deadlines of requests."""
        if self._requests:
            _callback, deadline = next(iter(self._requests.values()))
            if deadline < self._clock():
                self._requests.clear()
                self._restart("the node's kernel does not answer")

    def plug(self, radio: Radio) -> None:
        """Make or remove a radio in the node, as its ``plugged`` says."""
        if not radio.plugged:
            self._engine.radio_down(radio)
        if self.registered:
            if radio.plugged:
                self._create(radio)
            else:
                self._delete(radio)

    # Session of the engine.

    def answer(self, answer: KernelAnswer) -> bool:
        """Take the kernel's answer to one of the requests."""
        request = self._requests.pop(answer.seq, None)
        if request is None:
            return False
        request[0](answer)
        return True

    def message(self, message: Message) -> None:
        """Take a message of the dump."""
        if message.command == Command.GET_RADIO and message.seq == self._dump_seq:
            self._found.append(hwsim.radio_info(message))

    def done(self, seq: int) -> None:
        """Take the end of the dump."""
        if seq and seq == self._dump_seq:
            self._requests.pop(seq, None)
            self._dump_seq = 0
            self._listed()

    # Requests.

    def _request(self, make: Callable[[int], bytes], callback: _Callback) -> int:
        seq = self.node.next_seq()
        self._requests[seq] = (callback, self._clock() + REQUEST_DEADLINE)
        self.node.put(make(seq))
        return seq

    def _retry(self, action: Callable[[], None], problem: str) -> None:
        if problem != self.problem:
            log.warning("%s: %s", self.node.name, problem)
        self.problem = problem
        generation = self._generation

        def again() -> None:
            if generation == self._generation:
                action()

        self._later(self._wait, again)
        self._wait = min(self._wait * 2, RETRY_MAX)

    def _register(self) -> None:
        family = self.node.family
        self._request(lambda seq: hwsim.register(family, seq), self._register_answered)

    def _register_answered(self, answer: KernelAnswer) -> None:
        if answer.error >= 0:
            self.registered = True
            self._list()
        elif -answer.error == hwsim.EBUSY:
            # The relay's previous socket may not be closed yet.
            self._retry(self._register, "another program in the node is its medium")
        elif -answer.error == hwsim.EOPNOTSUPP:
            self._retry(self._register, "a radio in the node has several channels at a time")
        else:
            self._retry(self._register, f"REGISTER failed: {_words(answer)}")

    def _list(self) -> None:
        family = self.node.family
        self._found.clear()
        self._dump_seq = self._request(lambda seq: hwsim.get_radios(family, seq), self._list_failed)

    def _list_failed(self, answer: KernelAnswer) -> None:
        self._dump_seq = 0
        self._retry(self._list, f"GET_RADIO failed: {_words(answer)}")

    def _listed(self) -> None:
        names = {found.name for found in self._found}
        self.problem = None
        self._wait = RETRY_MIN
        own = {radio_name(radio.index) for radio in self.node.radios}
        self.foreign_radios = len(names - own)
        for radio in self.node.radios:
            there = radio_name(radio.index) in names
            if radio.plugged and there:
                self._engine.radio_up(radio)
            elif radio.plugged:
                self._create(radio)
            elif there:
                self._delete(radio)

    def _create(self, radio: Radio) -> None:
        family, config = self.node.family, radio.config
        name = radio_name(radio.index)

        def answered(answer: KernelAnswer) -> None:
            if answer.error >= 0:
                self.problem = None
                if radio.plugged:
                    self._engine.radio_up(radio)
            else:
                self._retry(create, f"NEW_RADIO {name} failed: {_words(answer)}")

        def create() -> None:
            if radio.plugged:
                self._request(
                    lambda seq: hwsim.new_radio(family, seq, config.mac, name, config.iftype_mask),
                    answered,
                )

        create()

    def _delete(self, radio: Radio) -> None:
        family = self.node.family
        name = radio_name(radio.index)

        def answered(answer: KernelAnswer) -> None:
            if answer.error < 0 and -answer.error != hwsim.ENODEV:
                self._retry(delete, f"DEL_RADIO {name} failed: {_words(answer)}")
            else:
                self.problem = None

        def delete() -> None:
            if not radio.plugged:
                self._request(lambda seq: hwsim.del_radio(family, seq, name), answered)

        delete()


def _words(answer: KernelAnswer) -> str:
    text = f"error {-answer.error}"
    return f"{text} ({answer.text})" if answer.text else text

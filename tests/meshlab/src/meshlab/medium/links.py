# SPDX-License-Identifier: Apache-2.0
"""How well one node hears another right now: links, changes made while running, positions."""

from __future__ import annotations

from typing import NamedTuple

from meshlab.medium.config import MediumConfig, NodeConfig, Receiver, State
from meshlab.medium.fading import Fading, Fadings
from meshlab.medium.propagation import Place, Propagation


class Hearing(NamedTuple):
    """How one node hears another."""

    snr: float | None
    """dB over the noise, None: not at all."""
    state: str
    """"cut" or "set" while running, "link" by the configuration, "model" by position, "none"."""
    loss: float = 0.0
    """Part of all frames that is lost on top of what the signal loses."""


class Links:
    """Answers who hears whom. ``version`` grows with every change."""

    def __init__(self, config: MediumConfig, state: State) -> None:
        self.receiver: Receiver = config.receiver
        self.state = state
        self.version = 0
        self._propagation: Propagation = config.make_propagation()
        own = {(link.a, link.b): link.fading for link in config.links if link.fading is not None}
        self.fadings = Fadings(config.seed, config.fading, own)
        self.fadings.change(state.fadings)
        self._model_unlinked = config.unlinked == "model"
        self._links: dict[tuple[str, str], float] = {}
        self._positions: dict[str, tuple[float, float]] = {}
        for link in config.links:
            if link.snr is None:
                continue
            self._links[link.a, link.b] = link.snr
            if link.both:
                self._links[link.b, link.a] = link.snr

    def add_node(self, node: NodeConfig) -> None:
        """Learn the position of a node."""
        if node.position is not None:
            self._positions[node.name] = node.position
        self.version += 1

    def remove_node(self, name: str) -> None:
        """Forget a node."""
        self._positions.pop(name, None)
        self.version += 1

    def position(self, name: str) -> tuple[float, float] | None:
        """Return where a node is, in metres, if that is known."""
        return self.state.positions.get(name, self._positions.get(name))

    def set(self, a: str, b: str, snr: float | None) -> None:
        """From now on ``b`` hears ``a`` with ``snr`` dB, or not at all (None)."""
        self.state.overrides[a, b] = snr
        self.version += 1

    def restore(self, a: str, b: str) -> None:
        """Undo what ``set``, ``lose`` and ``fade`` changed."""
        self.state.overrides.pop((a, b), None)
        self.state.fadings.pop((min(a, b), max(a, b)), None)
        self.fadings.change(self.state.fadings)
        self.state.losses.pop((a, b), None)
        self.version += 1

    def lose(self, a: str, b: str, loss: float) -> None:
        """From now on ``b`` misses that part of ``a``'s frames, of whatever rate and length."""
        self.state.losses[a, b] = loss
        self.version += 1

    def fade(self, a: str, b: str, fading: Fading) -> None:
        """From now on the signal between the two changes by itself, the same way for both."""
        self.state.fadings[min(a, b), max(a, b)] = fading
        self.fadings.change(self.state.fadings)
        self.version += 1

    def fading_set(self, a: str, b: str) -> bool:
        """Tell whether ``fade`` changed the link."""
        return (min(a, b), max(a, b)) in self.state.fadings

    def move(self, name: str, x: float, y: float) -> None:
        """Put a node somewhere else; from now on its links follow the propagation model."""
        self.state.positions[name] = (x, y)
        self.version += 1

    def hearing(self, a: str, b: str, tx_power_dbm: float, frequency: int) -> Hearing:
        """Return how ``b`` hears ``a`` sending with its own power at ``frequency`` (MHz).

        :param tx_power_dbm: That power. Explicit links hold for it, whatever it is.
        """
        if a == b:
            return Hearing(self.receiver.same_node_snr_db, "link")
        found = self._signal(a, b, tx_power_dbm, frequency)
        loss = self.state.losses.get((a, b))
        return found if loss is None else Hearing(found.snr, found.state, loss)

    def _signal(self, a: str, b: str, tx_power_dbm: float, frequency: int) -> Hearing:
        if (a, b) in self.state.overrides:
            snr = self.state.overrides[a, b]
            return Hearing(snr, "cut" if snr is None else "set")
        moved = a in self.state.positions or b in self.state.positions
        if not moved:
            found = self._links.get((a, b))
            if found is not None:
                return Hearing(found, "link")
            if not self._model_unlinked:
                return Hearing(None, "none")
        here, there = self.position(a), self.position(b)
        if here is None or there is None:
            return Hearing(None, "none")
        loss = self._propagation.path_loss_db(
            Place(a, *here, tx_power_dbm), Place(b, *there, tx_power_dbm), frequency
        )
        return Hearing(tx_power_dbm - loss - self.receiver.noise_dbm, "model")

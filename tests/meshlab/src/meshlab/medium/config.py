# SPDX-License-Identifier: Apache-2.0
"""``medium.json``: what the medium is told at its start; ``medium-state.json``: what changed since.

``medium.json``::

    {"seed": 1, "run": "any text", "unlinked": "cut",
     "nodes": [{"name": "n1", "directory": "n1", "position": [0.0, 0.0],
                "radios": [{"mac": "02:74:68:00:00:01", "mesh": true}]}],
     "links": [{"a": "n1", "b": "n2", "snr": 30.0, "both": true}],
     "propagation": {"model": "log-distance", "exponent": 3.0, "shadowing_db": 0.0}}

Only ``nodes`` is needed. Nodes that no link joins hear nothing of each other (``unlinked``: "cut")
or what the propagation model makes of their positions ("model").
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from meshlab.medium import fading
from meshlab.medium.fading import STEADY, Fading
from meshlab.medium.propagation import NOISE_FLOOR_DBM, FreeSpace, LogDistance, Propagation
from meshlab.medium.stats import Bounds
from meshlab.wire.hwsim import Iftype

CONFIG_NAME = "medium.json"
STATE_NAME = "medium-state.json"
SOCKET_NAME = "medium.sock"
RELAY_NAME = "relay.sock"

KERNEL_MOST_DBM = 20.0
"""Most that kernels ask of hwsim's radios (its ``max_power`` of every channel)."""
LEAST_DBM = -50.0
"""Least power of a radio, whatever a kernel says."""

MIN_SNR = -50.0
MAX_SNR = 100.0

IFTYPES: dict[str, Iftype] = {
    "adhoc": Iftype.ADHOC,
    "station": Iftype.STATION,
    "ap": Iftype.AP,
    "monitor": Iftype.MONITOR,
    "mesh": Iftype.MESH_POINT,
}

DECODING = ("hard", "soft")

DEFAULT_IFTYPES = ("station", "ap", "mesh")
MESHLESS_IFTYPES = ("station", "ap")
"""What a Pi's own radio can be: brcmfmac does no mesh."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says where and what is allowed."""


def parse_mac(text: Any, where: str) -> bytes:
    """Return the six bytes of an address.

    :raises ConfigError: when it is none.
    """
    if isinstance(text, str) and re.fullmatch(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", text):
        mac = bytes.fromhex(text.replace(":", ""))
        if not mac[0] & 1 and any(mac):
            return mac
    raise ConfigError(f"{where}: {text!r} is no address of a station, such as 02:74:68:00:00:01")


def format_mac(mac: bytes) -> str:
    """Return an address as people write it."""
    return mac.hex(":")


@dataclass(frozen=True, slots=True)
class RadioConfig:
    """One radio of a node."""

    mac: bytes
    iftypes: tuple[str, ...] = DEFAULT_IFTYPES
    tx_power_dbm: float = 20.0
    """Its own power, which explicit links are meant for; its kernel may ask for less."""
    plugged: bool = True
    promiscuous: bool = False
    """It is handed every frame that it can decode, not only those addressed to it."""

    def attenuation_db(self, asked_dbm: float) -> float:
        """Return how much less than its own power it sends with when its kernel asks for a power.

        hwsim's radios can do ``KERNEL_MOST_DBM``. A radio of less sends with what it can; what one
        of more has beyond that is an amplifier, and follows.
        """
        amplified = max(0.0, self.tx_power_dbm - KERNEL_MOST_DBM)
        return max(0.0, self.tx_power_dbm - amplified - max(asked_dbm, LEAST_DBM))

    @property
    def iftype_mask(self) -> int:
        """The bits of ``IFTYPE_SUPPORT``."""
        return sum(1 << IFTYPES[name] for name in set(self.iftypes))

    def to_json(self) -> dict[str, Any]:
        """Return what ``medium.json`` has for it."""
        return {
            "mac": format_mac(self.mac),
            "iftypes": list(self.iftypes),
            "tx_power_dbm": self.tx_power_dbm,
            "plugged": self.plugged,
            "promiscuous": self.promiscuous,
        }


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """One node."""

    name: str
    directory: str
    """Of its ``relay.sock``; relative to the lab's directory."""
    radios: tuple[RadioConfig, ...]
    position: tuple[float, float] | None = None
    """Metres."""

    def to_json(self) -> dict[str, Any]:
        """Return what ``medium.json`` has for it."""
        return {
            "name": self.name,
            "directory": self.directory,
            "position": list(self.position) if self.position else None,
            "radios": [radio.to_json() for radio in self.radios],
        }


@dataclass(frozen=True, slots=True)
class LinkConfig:
    """How well ``b`` hears ``a`` (and, with ``both``, ``a`` hears ``b``) in dB over the noise."""

    a: str
    b: str
    snr: float | None
    """None: what the positions of the nodes give."""
    both: bool = True
    fading: Fading | None = None
    """Of the signal in both directions. None: as all links."""

    def to_json(self) -> dict[str, Any]:
        """Return what ``medium.json`` has for it."""
        found: dict[str, Any] = {"a": self.a, "b": self.b, "both": self.both}
        if self.snr is not None:
            found["snr"] = self.snr
        return found if self.fading is None else {**found, "fading": str(self.fading)}


@dataclass(frozen=True, slots=True)
class Receiver:
    """What a receiver can do, in dB over the noise."""

    noise_dbm: float = NOISE_FLOOR_DBM
    detection_snr_db: float = -1.0
    """Weaker frames are only noise to it: Barker's preamble needs about as much."""
    carrier_sense_snr_db: float = 3.0
    """From here on a signal keeps it from sending. IEEE Std 802.11-2020, 17.3.10.6 demands 9 dB
    (-82 dBm); receivers notice every preamble that they could decode at 6 Mbit/s."""
    interference_snr_db: float = -10.0
    """Weaker signals do not even disturb."""
    energy_detect_snr_db: float = 29.0
    """From here on a signal whose beginning it missed keeps it from sending: -62 dBm, 20 dB above
    the sensitivity (17.3.10.6)."""
    preamble_capture_db: float = 5.0
    """By so much a frame must be stronger than all else to take a receiver from another one that
    began less than ``capture_window_us`` ago."""
    capture_window_us: float = 16.0
    capture_db: float = 9.0
    """The same later within the other frame."""
    same_node_snr_db: float = 60.0
    """Between two radios of one node."""


@dataclass(frozen=True, slots=True)
class MediumConfig:
    """Everything the medium is told."""

    nodes: tuple[NodeConfig, ...] = ()
    links: tuple[LinkConfig, ...] = ()
    seed: str = "1"
    run: str = ""
    """Tells one run of a lab from the next, so that none continues with another's state."""
    unlinked: str = "cut"
    propagation: dict[str, Any] = field(default_factory=dict)
    fading: Fading = STEADY
    """Of links that have none of their own."""
    decoding: str = "hard"
    """How receivers decode OFDM: ``hard`` or ``soft`` decisions."""
    aggregation: bool = False
    """The medium aggregates frames of HT and VHT, and kernels do not agree on it."""
    receiver: Receiver = field(default_factory=Receiver)
    bounds: Bounds = field(default_factory=Bounds)

    def to_json(self) -> dict[str, Any]:
        """Return ``medium.json``."""
        return {
            "seed": self.seed,
            "run": self.run,
            "unlinked": self.unlinked,
            "propagation": self.propagation,
            "fading": str(self.fading),
            "decoding": self.decoding,
            "aggregation": self.aggregation,
            "receiver": {f.name: getattr(self.receiver, f.name) for f in fields(Receiver)},
            "bounds": {f.name: getattr(self.bounds, f.name) for f in fields(Bounds)},
            "nodes": [node.to_json() for node in self.nodes],
            "links": [link.to_json() for link in self.links],
        }

    def make_propagation(self) -> Propagation:
        """Return the model named by ``propagation``.

        :raises ConfigError: when the model or one of its settings cannot be used.
        """
        return make_propagation(self.propagation, self.seed)


def make_propagation(settings: dict[str, Any], seed: str) -> Propagation:
    """Return a propagation model from its settings.

    :raises ConfigError: when the model or one of its settings cannot be used.
    """
    given = dict(settings)
    model = given.pop("model", "log-distance")
    allowed: tuple[str, ...]
    if model == "log-distance":
        allowed = ("exponent", "reference_m", "shadowing_db")
    elif model == "free-space":
        allowed = ()
    else:
        raise ConfigError(f"propagation: model {model!r}, use log-distance or free-space")
    values = {}
    for key, value in given.items():
        if key not in allowed:
            raise ConfigError(f"propagation: {model} has no {key!r}; it has {list(allowed)}")
        values[key] = _number(value, f"propagation.{key}", 0.0, 1000.0)
    if model == "free-space":
        return FreeSpace()
    if values.get("reference_m", 1.0) <= 0:
        raise ConfigError("propagation.reference_m: must be more than 0")
    return LogDistance(**values, seed=seed)


def _number(value: Any, where: str, low: float, high: float) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
        if math.isfinite(number) and low <= number <= high:
            return number
    raise ConfigError(f"{where}: expected a number from {low:g} to {high:g}, found {value!r}")


def parse_snr(value: Any, where: str) -> float:
    """Return a signal-to-noise ratio in dB.

    :raises ConfigError: when it is no number, or out of range.
    """
    return _number(value, where, MIN_SNR, MAX_SNR)


def parse_loss(value: Any, where: str) -> float:
    """Return the part of frames that get lost.

    :raises ConfigError: when it is no number from 0 to 1.
    """
    return _number(value, where, 0.0, 1.0)


def parse_fading(value: Any, where: str) -> Fading:
    """Return how a link's signal changes.

    :raises ConfigError: when it is not understood.
    """
    try:
        return fading.parse(value)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def parse_position(value: Any, where: str) -> tuple[float, float]:
    """Return a position in metres.

    :raises ConfigError: when it is none.
    """
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ConfigError(f"{where}: expected [x, y] in metres, found {value!r}")
    return _number(value[0], where, -1e7, 1e7), _number(value[1], where, -1e7, 1e7)


def _object(value: Any, where: str, allowed: Iterable[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected an object, found {value!r}")
    unknown = set(value) - set(allowed)
    if unknown:
        raise ConfigError(f"{where}: unknown {sorted(unknown)}; known are {sorted(allowed)}")
    return value


def _bool(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{where}: expected true or false, found {value!r}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(f"{where}: expected a list, found {value!r}")
    return value


def _settings(value: Any, where: str, kind: Any) -> dict[str, float]:
    names = [f.name for f in fields(kind)]
    given = _object(value, where, names)
    return {key: _number(v, f"{where}.{key}", -1000.0, 1e6) for key, v in given.items()}


def parse_radio(value: Any, where: str) -> RadioConfig:
    """Return a radio from ``medium.json``.

    :raises ConfigError: when it makes no sense; the text says where and why.
    """
    keys = ("mac", "iftypes", "mesh", "tx_power_dbm", "plugged", "promiscuous")
    given = _object(value, where, keys)
    iftypes: tuple[str, ...] = DEFAULT_IFTYPES
    if not _bool(given.get("mesh", True), f"{where}.mesh"):
        iftypes = MESHLESS_IFTYPES
    if "iftypes" in given:
        iftypes = tuple(str(v) for v in _list(given["iftypes"], f"{where}.iftypes"))
        if not iftypes or set(iftypes) - set(IFTYPES):
            raise ConfigError(f"{where}.iftypes: {list(iftypes)}, use some of {list(IFTYPES)}")
    return RadioConfig(
        mac=parse_mac(given.get("mac"), f"{where}.mac"),
        iftypes=iftypes,
        tx_power_dbm=_number(
            given.get("tx_power_dbm", 20.0), f"{where}.tx_power_dbm", LEAST_DBM, 60
        ),
        plugged=_bool(given.get("plugged", True), f"{where}.plugged"),
        promiscuous=_bool(given.get("promiscuous", False), f"{where}.promiscuous"),
    )


def parse_node(value: Any, where: str) -> NodeConfig:
    """Return a node from ``medium.json``.

    :raises ConfigError: when it makes no sense; the text says where and why.
    """
    given = _object(value, where, ("name", "directory", "position", "radios"))
    name = given.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"{where}.name: {name!r} is not a name (letters, digits, '_', '.', '-')")
    directory = given.get("directory", name)
    if not isinstance(directory, str) or not directory:
        raise ConfigError(f"{where}.directory: expected a path, found {directory!r}")
    position = given.get("position")
    radios = [
        parse_radio(radio, f"{where}.radios[{i}]")
        for i, radio in enumerate(_list(given.get("radios", []), f"{where}.radios"))
    ]
    return NodeConfig(
        name=name,
        directory=directory,
        radios=tuple(radios),
        position=None if position is None else parse_position(position, f"{where}.position"),
    )


def parse_config(value: Any) -> MediumConfig:
    """Return the configuration in a decoded ``medium.json``.

    :raises ConfigError: when it makes no sense; the text says where and why.
    """
    keys = [f.name for f in fields(MediumConfig)]
    given = _object(value, "medium.json", keys)
    nodes = [
        parse_node(node, f"nodes[{i}]")
        for i, node in enumerate(_list(given.get("nodes", []), "nodes"))
    ]
    names = {node.name for node in nodes}
    if len(names) != len(nodes):
        raise ConfigError("nodes: every node needs a name of its own")
    links: list[LinkConfig] = []
    for i, link in enumerate(_list(given.get("links", []), "links")):
        where = f"links[{i}]"
        entry = _object(link, where, ("a", "b", "snr", "both", "fading"))
        for end in ("a", "b"):
            if entry.get(end) not in names:
                raise ConfigError(f"{where}.{end}: there is no node {entry.get(end)!r}")
        if entry["a"] == entry["b"]:
            raise ConfigError(f"{where}: a link has two ends")
        if "fading" in entry and any(
            {link.a, link.b} == {entry["a"], entry["b"]} and link.fading for link in links
        ):
            raise ConfigError(f"{where}.fading: the link has one, which is that of both directions")
        by_place = "snr" not in entry and "fading" in entry
        links.append(
            LinkConfig(
                entry["a"],
                entry["b"],
                None if by_place else parse_snr(entry.get("snr"), f"{where}.snr"),
                _bool(entry.get("both", True), f"{where}.both"),
                parse_fading(entry["fading"], f"{where}.fading") if "fading" in entry else None,
            )
        )
    unlinked = given.get("unlinked", "cut")
    if unlinked not in ("cut", "model"):
        raise ConfigError(f'unlinked: {unlinked!r}, use "cut" or "model"')
    decoding = given.get("decoding", "hard")
    if decoding not in DECODING:
        raise ConfigError(f"decoding: {decoding!r}, use one of {list(DECODING)}")
    propagation = given.get("propagation", {})
    if not isinstance(propagation, dict):
        raise ConfigError(f"propagation: expected an object, found {propagation!r}")
    config = MediumConfig(
        nodes=tuple(nodes),
        links=tuple(links),
        seed=str(given.get("seed", "1")),
        run=str(given.get("run", "")),
        unlinked=unlinked,
        propagation=propagation,
        fading=parse_fading(given.get("fading", "none"), "fading"),
        decoding=decoding,
        aggregation=_bool(given.get("aggregation", False), "aggregation"),
        receiver=Receiver(**_settings(given.get("receiver", {}), "receiver", Receiver)),
        bounds=Bounds(**_settings(given.get("bounds", {}), "bounds", Bounds)),
    )
    config.make_propagation()
    return config


def load_config(path: Path) -> MediumConfig:
    """Return the configuration in the file ``path``.

    :raises ConfigError: when it cannot be read, or makes no sense.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON: {error}") from None
    try:
        return parse_config(value)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


@dataclass(slots=True)
class State:
    """What was changed while running."""

    overrides: dict[tuple[str, str], float | None] = field(default_factory=dict)
    """How well the second hears the first, None when not at all; by direction."""
    losses: dict[tuple[str, str], float] = field(default_factory=dict)
    """Part of the frames of the first that the second misses whatever the signal; by direction."""
    fadings: dict[tuple[str, str], Fading] = field(default_factory=dict)
    """How the signal between two nodes changes; by their sorted names."""
    positions: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Nodes that were moved: the propagation model has replaced their explicit links."""
    plugged: dict[tuple[str, int], bool] = field(default_factory=dict)
    """Radios, by node and index, that were plugged or unplugged."""
    added: dict[str, NodeConfig] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)

    def forget(self, node: str) -> None:
        """Forget everything about a node."""
        self.overrides = {k: v for k, v in self.overrides.items() if node not in k}
        self.losses = {k: v for k, v in self.losses.items() if node not in k}
        self.fadings = {k: v for k, v in self.fadings.items() if node not in k}
        self.positions.pop(node, None)
        self.plugged = {k: v for k, v in self.plugged.items() if k[0] != node}
        self.added.pop(node, None)

    def to_json(self, run: str) -> dict[str, Any]:
        """Return ``medium-state.json``."""
        return {
            "run": run,
            "overrides": [[a, b, snr] for (a, b), snr in self.overrides.items()],
            "losses": [[a, b, loss] for (a, b), loss in self.losses.items()],
            "fadings": [[a, b, str(fading)] for (a, b), fading in self.fadings.items()],
            "positions": {name: list(place) for name, place in self.positions.items()},
            "plugged": [[name, index, on] for (name, index), on in self.plugged.items()],
            "added": [node.to_json() for node in self.added.values()],
            "removed": sorted(self.removed),
        }


def parse_state(value: Any, run: str) -> State:
    """Return the state of this ``run`` in a decoded ``medium-state.json``.

    That of another run is none.

    :raises ConfigError: when it makes no sense; the text says where and why.
    """
    keys = ("run", "overrides", "losses", "fadings", "positions", "plugged", "added", "removed")
    given = _object(value, STATE_NAME, keys)
    state = State()
    if given.get("run") != run:
        return state
    for a, b, snr in _entries(given, "overrides", (str, str, object)):
        state.overrides[a, b] = None if snr is None else parse_snr(snr, "overrides")
    for a, b, loss in _entries(given, "losses", (str, str, object)):
        state.losses[a, b] = parse_loss(loss, "losses")
    for a, b, text in _entries(given, "fadings", (str, str, str)):
        state.fadings[a, b] = parse_fading(text, "fadings")
    positions = given.get("positions", {})
    if not isinstance(positions, dict):
        raise ConfigError(f"positions: expected an object, found {positions!r}")
    for name, place in positions.items():
        state.positions[name] = parse_position(place, f"positions.{name}")
    for name, index, plugged in _entries(given, "plugged", (str, int, bool)):
        state.plugged[name, index] = plugged
    for i, node in enumerate(_list(given.get("added", []), "added")):
        parsed = parse_node(node, f"added[{i}]")
        state.added[parsed.name] = parsed
    state.removed = {str(name) for name in _list(given.get("removed", []), "removed")}
    return state


def _entries(given: dict[str, Any], key: str, kinds: tuple[type, ...]) -> Iterable[list[Any]]:
    for entry in _list(given.get(key, []), key):
        if (
            not isinstance(entry, list)
            or len(entry) != len(kinds)
            or not all(isinstance(v, kind) for v, kind in zip(entry, kinds, strict=True))
        ):
            raise ConfigError(f"{key}: found {entry!r}")
        yield entry


def load_state(path: Path, run: str) -> State:
    """Return the state in the file ``path``, an empty one when there is no file.

    :raises ConfigError: when there is one that makes no sense.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return State()
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from None
    try:
        return parse_state(value, run)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def write_json(path: Path, value: Any) -> None:
    """Write a file that is either the old or the new one, whatever happens.

    :raises OSError: when it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(value, indent=1) + "\n")
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise

# SPDX-License-Identifier: Apache-2.0
"""A scenario: what is built, what is done to it and when, and what is expected of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from meshlab.lab.spec import LabSpec
from meshlab.scenario import keys
from meshlab.scenario.actions import Action
from meshlab.scenario.expectations import Condition
from meshlab.scenario.keys import Place, key

FORMED = "formed"
"""What `after` calls the moment from which a scenario counts."""


@dataclass(frozen=True)
class Head:
    """`[scenario]`: what it is, and its bounds."""

    name: str = key(keys.text, "what it is called in reports")
    description: str = key(keys.text, "what it shows, in a sentence or two", default="")
    seed: int = key(keys.whole(0, 2**31), "of chips, topology and chance on the air", default=1)
    timeout: float = key(
        keys.seconds, "seconds for the whole run, from the first boot", default=1800.0
    )
    forming: float = key(keys.seconds, "seconds within which the mesh has to form", default=900.0)


@dataclass(frozen=True)
class Shape:
    """`[topology]`: who is where and who hears whom."""

    kind: str = key(
        keys.one_of("line", "ring", "grid", "full", "star", "random", "links", "distance"),
        "a regular shape; `links`: those of `[[link]]`; `distance`: by the places of `[[node]]`",
    )
    nodes: int | None = key(
        keys.whole(1, 250), "how many, in a regular shape: n1, n2, ...", default=None
    )
    exponent: float = key(
        keys.number(1, 8),
        "of `distance`: 2 in the open, 2.7 to 3.5 in a town, 4 to 6 in a building",
        default=3.0,
    )
    shadowing: float = key(
        keys.number(0, 30, "dB"), "of `distance`: spread of what stands in the way", default=0.0
    )
    fading: str = key(
        keys.fading, "how the signals of all links change; see `degrade`", default="none"
    )
    decoding: str = key(
        keys.one_of("hard", "soft"),
        "how receivers decode; `soft` as real ones do, which is worth 3 to 4 dB",
        default="hard",
    )


@dataclass(frozen=True)
class Mesh:
    """`[mesh]`: what all nodes are."""

    image: str = key(keys.text, "what they boot: `lab`, `standin`, `x86_64`, ...", default="lab")
    machine: str | None = key(keys.text, "what they boot on, such as `raspi3b`", default=None)
    security: str = key(keys.one_of("sae", "open"), "with a passphrase, or open", default="sae")
    ht: bool = key(keys.truth, "HT rates and aggregation instead of legacy rates", default=False)
    applications: tuple[Path, ...] = key(
        keys.folders, "Python projects that are installed on the lab image", default=()
    )


@dataclass(frozen=True)
class OwnNode:
    """`[[node]]`: how a node differs from the others; with `links` and `distance`, that it is."""

    at: Place | None = key(keys.place, "where it is", default=None)
    image: str | None = key(keys.text, "another image than the others", default=None)
    machine: str | None = key(keys.text, "another machine", default=None)
    chip: str | None = key(keys.fault, "what its chip suffers from at power-on", default=None)
    mesh_point: bool = key(keys.truth, "whether its radio can do mesh", default=True)
    tx_power: float = key(
        keys.number(-20, 40, "dBm"),
        "its radio's own power, for links that follow from the places; the node may set less",
        default=20.0,
    )
    card: str | None = key(
        keys.text, "the whole text of its `thicket.toml`, right or wrong", default=None
    )


@dataclass(frozen=True)
class OwnLink:
    """`[[link]]`: two nodes that hear each other."""

    between: tuple[keys.Link, ...] = key(keys.links, "which")
    snr: float | None = key(
        keys.number(-50, 100, "dB"),
        "signal over noise; without it as the shape has it (with `distance` by the places), and "
        "30 for a link that the shape has not",
        default=None,
    )
    fading: str | None = key(
        keys.fading,
        "how the signal changes, in both directions, instead of the `fading` of all; see `degrade`",
        default=None,
    )


@dataclass(frozen=True)
class When:
    """When a step or an expectation begins."""

    at: float | None = key(
        keys.seconds, "seconds after the mesh has formed, or after `after`", default=None
    )
    after: str | None = key(
        keys.text,
        "the name of a step or an expectation that has to be over, or `formed`",
        default=None,
    )
    name: str | None = key(keys.text, "what `after` and reports call it", default=None)


@dataclass(frozen=True)
class Terms:
    """How long an expectation has time."""

    within: float | None = key(
        keys.seconds,
        "seconds within which it must become true; without it and `for`, 60",
        default=None,
    )
    holds: float = key(
        keys.seconds, "seconds for which it must then stay true", default=0.0, name="for"
    )


@dataclass(frozen=True)
class Expectation:
    """Something that has to be so."""

    name: str
    line: int
    when: When
    within: float
    holds: float
    condition: Condition

    @property
    def words(self) -> str:
        """Return it in a line for people."""
        within = f" within {self.within:g} s" if self.within else ""
        holds = f" for {self.holds:g} s" if self.holds else ""
        return f"{self.condition.words}{within}{holds}"


@dataclass(frozen=True)
class Step:
    """Something that is done, and what is expected of it."""

    name: str
    line: int
    when: When
    background: bool
    """Whether the next step begins while this one still goes on."""
    action: Action
    expectations: tuple[Expectation, ...] = ()


@dataclass(frozen=True)
class Images:
    """What the nodes boot."""

    image: str = "lab"
    machine: str | None = None
    applications: tuple[Path, ...] = ()
    others: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)
    """Image and machine of the nodes that differ."""


@dataclass(frozen=True)
class Scenario:
    """A whole scenario."""

    path: Path
    head: Head
    spec: LabSpec
    images: Images
    steps: tuple[Step, ...] = ()
    finally_: tuple[Expectation, ...] = ()
    """What is expected by itself: at its time, or when all steps are over."""

    @property
    def names(self) -> list[str]:
        """Return the names of all steps and expectations."""
        own = [name for s in self.steps for name in (s.name, *(e.name for e in s.expectations))]
        return own + [each.name for each in self.finally_]

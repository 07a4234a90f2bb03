# SPDX-License-Identifier: Apache-2.0
"""The two text formats that Prometheus reads: its own, 0.0.4, and OpenMetrics 1.0.

https://prometheus.io/docs/instrumenting/exposition_formats/ and
https://prometheus.io/docs/specs/om/open_metrics_spec/. They differ in the names of families (a
counter of OpenMetrics has its ``_total`` at the samples alone), in units, which only OpenMetrics
has, and in its mark of the end.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isinf, isnan
from typing import Literal, NamedTuple, TypeAlias

from thicket.base.visible import visible

#: What is told of each format in ``Content-Type``.
PLAIN = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

#: Characters of a label's value; longer ones are cut.
LONGEST = 128

Samples: TypeAlias = dict[tuple[str, ...], float]
"""The samples of a family by the values of its labels."""

Numbers: TypeAlias = dict[str, Samples]
"""Samples by the names of their families."""


class Family(NamedTuple):
    """What is known of all samples of one name.

    :ivar name: without ``_total`` or ``_info``.
    :ivar help: what it tells, in one line.
    :ivar unit: the last word of the name where that is a unit, else empty.
    """

    name: str
    kind: Literal["gauge", "counter", "info"]
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""

    @property
    def sample(self) -> str:
        """The name of its samples."""
        return self.name + {"gauge": "", "counter": "_total", "info": "_info"}[self.kind]


def label_value(text: str) -> str:
    """Return a text as the value of a label: visible, and not longer than LONGEST."""
    return printable(text, LONGEST)


def printable(text: str, most: int) -> str:
    """Return a text that is visible, and has so many characters at most."""
    return visible(text[: most + 1], keep="")[:most]


def escaped(text: str) -> str:
    """Return a text as it stands between the quotes of a label."""
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def number(value: float) -> str:
    """Return a number as both formats have it."""
    if isnan(value):
        return "NaN"
    if isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value) if isinstance(value, float) else str(int(value))


def exposition(
    families: Iterable[Family],
    numbers: Numbers,
    *,
    openmetrics: bool,
    first: str = "",
) -> str:
    """Return the numbers as text; a family without samples is left out.

    :param first: a label in front of those of each family, whose value is a sample's first.
    """
    lines = []
    for family in families:
        samples = numbers.get(family.name)
        if not samples:
            continue
        lines += _head(family, openmetrics=openmetrics)
        names = (first, *family.labels) if first else family.labels
        for values, value in samples.items():
            labels = ",".join(
                f'{name}="{escaped(text)}"' for name, text in zip(names, values, strict=True)
            )
            inside = f"{{{labels}}}" if labels else ""
            lines.append(f"{family.sample}{inside} {number(value)}")
    if openmetrics:
        lines.append("# EOF")
    return "".join(f"{line}\n" for line in lines)


def _head(family: Family, *, openmetrics: bool) -> list[str]:
    about = family.help.replace("\\", r"\\").replace("\n", r"\n")
    if not openmetrics:
        kind = "counter" if family.kind == "counter" else "gauge"
        return [f"# HELP {family.sample} {about}", f"# TYPE {family.sample} {kind}"]
    about = about.replace('"', r"\"")
    unit = [f"# UNIT {family.name} {family.unit}"] if family.unit else []
    return [f"# TYPE {family.name} {family.kind}", *unit, f"# HELP {family.name} {about}"]


def wanted(accept: str) -> bool:
    """Return whether a client that sent this header ``Accept`` gets OpenMetrics (RFC 9110 12.5.1).

    It gets what it likes better, and Prometheus' own format where it does not say.
    """
    likes = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for part in accept.split(","):
        kind, *parameters = (word.strip().lower() for word in part.split(";"))
        if kind not in likes:
            continue
        given = dict(word.partition("=")[::2] for word in parameters)
        version = given.get("version", "").strip('"')
        if kind == "application/openmetrics-text" and version not in {"", "0.0.1", "1.0.0"}:
            continue
        likes[kind] = max(likes[kind], _quality(given.get("q", "1")))
    return likes["application/openmetrics-text"] > likes["text/plain"]


def _quality(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0 <= value <= 1 else 0.0

# SPDX-License-Identifier: Apache-2.0
"""The whole schema: the sections of all parts, and :func:`check`, which finds every fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from thicket.base.fields import MASK, Choice, ConfigError, Finding, Integer, Key, Section, show_raw
from thicket.base.visible import visible
from thicket.cluster.section import ClusterSection
from thicket.config.ports import check_ports
from thicket.device.section import LedSection, ResetSection, check_gpios
from thicket.discovery.section import DiscoverySection, check_expire
from thicket.firewall.section import FirewallSection
from thicket.gateway.section import GatewaySection, check_gateway
from thicket.identity.section import AddressSection, IdentitySection
from thicket.metrics.section import MetricsSection
from thicket.radio.section import (
    Country,
    MeshSection,
    check_country,
    check_passphrase,
    check_width,
)
from thicket.syslog.section import SyslogSection
from thicket.timekeeping.section import TimeSection
from thicket.trust.section import TrustSection, check_fleet
from thicket.update.section import UpdateSection
from thicket.upkeep.section import AccessSection

#: Most faults of one file that are reported; a file with more of them is no configuration.
MOST_FINDINGS = 32


class StatusSection(Section, name="status"):
    """What the node tells about itself."""

    __slots__ = ()
    interval = Integer(
        5,
        "Time between two refreshes of signals, rates and paths in `/run/thicket/status.json`, "
        "while somebody reads it. Changes are written at once, whatever the interval.",
        least=1,
        most=300,
        unit="s",
    )


class LogSection(Section, name="log"):
    """The log (`logread` on the node)."""

    __slots__ = ()
    level = Choice(
        "info", "The least important kind of message that is logged.", "debug", "info", "warning",
        "error",
    )  # fmt: skip


class Settings:
    """A whole configuration, valid by construction."""

    __slots__ = (
        "access", "address", "application", "cluster", "discovery", "firewall", "gateway",
        "identity", "led", "log", "mesh", "metrics", "reset", "status", "syslog", "time",
        "trust", "update",
    )  # fmt: skip

    def __init__(self, values: dict[str, dict[str, Any]] | None = None) -> None:
        v = values or {}
        self.mesh = MeshSection(v.get("mesh"))
        self.address = AddressSection(v.get("address"))
        self.cluster = ClusterSection(v.get("cluster"))
        self.discovery = DiscoverySection(v.get("discovery"))
        self.trust = TrustSection(v.get("trust"))
        self.identity = IdentitySection(v.get("identity"))
        self.status = StatusSection(v.get("status"))
        self.log = LogSection(v.get("log"))
        self.access = AccessSection(v.get("access"))
        self.led = LedSection(v.get("led"))
        self.reset = ResetSection(v.get("reset"))
        self.firewall = FirewallSection(v.get("firewall"))
        self.update = UpdateSection(v.get("update"))
        self.metrics = MetricsSection(v.get("metrics"))
        self.syslog = SyslogSection(v.get("syslog"))
        self.time = TimeSection(v.get("time"))
        self.gateway = GatewaySection(v.get("gateway"))
        #: Settings of applications by name, as the file has them; the application judges them.
        self.application: dict[str, dict[str, Any]] = dict(v.get(APPLICATION, {}))

    def sections(self) -> Iterator[tuple[str, Section]]:
        for name in SECTIONS:
            yield name, getattr(self, name)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Settings):
            return NotImplemented
        return self.application == other.application and all(
            a[1] == b[1] for a, b in zip(self.sections(), other.sections(), strict=True)
        )

    __hash__ = None  # type: ignore[assignment]  # compared by value

    def changed(self, other: Settings) -> list[str]:
        """Return the keys (``section.key``) in which ``other`` differs, in order of declaration.

        All settings of an application count as one key, ``application.NAME``.
        """
        keys = [
            key.path
            for (_, a), (_, b) in zip(self.sections(), other.sections(), strict=True)
            for (key, old), (_, new) in zip(a.items(), b.items(), strict=True)
            if old != new
        ]
        names = sorted(self.application.keys() | other.application.keys())
        return keys + [
            f"{APPLICATION}.{name}"
            for name in names
            if self.application.get(name) != other.application.get(name)
        ]


def locked_out(settings: Settings) -> str | None:
    """Return why nobody can log in to a node with these settings, or None when somebody can."""
    if settings.access.ssh_keys or settings.access.console or settings.trust.root:
        return None
    return (
        "the settings name no SSH key (access.ssh_keys), keep the serial console closed "
        "(access.console) and belong to no fleet (trust.root)"
    )


#: Section name -> class, in the order of files and documents.
SECTIONS: dict[str, type[Section]] = {
    "mesh": MeshSection,
    "address": AddressSection,
    "cluster": ClusterSection,
    "discovery": DiscoverySection,
    "trust": TrustSection,
    "identity": IdentitySection,
    "status": StatusSection,
    "log": LogSection,
    "access": AccessSection,
    "led": LedSection,
    "reset": ResetSection,
    "firewall": FirewallSection,
    "update": UpdateSection,
    "metrics": MetricsSection,
    "syslog": SyslogSection,
    "time": TimeSection,
    "gateway": GatewaySection,
}

#: The table of the applications' own settings, ``[application.NAME]``.
APPLICATION = "application"
#: Most applications with settings, and how deep tables and lists may be nested in them.
MAX_APPLICATIONS = 32
MAX_DEPTH = 8


def find_key(path: str) -> Key[Any]:
    """Return the key named ``section.key``.

    :raises ValueError: there is none; the text names the nearest one.
    """
    section, _, name = path.partition(".")
    if section in SECTIONS:
        key = SECTIONS[section].keys().get(name)
        if key is not None:
            return key
    if section == APPLICATION:
        raise ValueError("settings of applications are changed in the file itself (config apply)")
    if section in SECTIONS and not name:
        raise ValueError(f"names a section; its keys are {', '.join(SECTIONS[section].keys())}")
    raise ValueError("unknown key" + _suggestion(path, _all_paths()))


def _all_paths() -> list[str]:
    return [key.path for cls in SECTIONS.values() for key in cls.keys().values()]


def _all_names() -> dict[str, str]:
    """Return the path of each key by its name; of several the first one."""
    names: dict[str, str] = {}
    for path in _all_paths():
        names.setdefault(path.partition(".")[2], path)
    return names


def _suggestion(word: str, known: list[str], elsewhere: dict[str, str] | None = None) -> str:
    from difflib import get_close_matches  # rare: only to help with a mistake

    word = word.lower()
    near = get_close_matches(word, known, n=1, cutoff=0.6)
    if not near and elsewhere:
        near = [elsewhere[name] for name in get_close_matches(word, elsewhere, n=1, cutoff=0.8)]
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"


def check(
    tables: dict[str, object],
    file: str,
    base: dict[str, dict[str, Any]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Check parsed TOML, and return the values over those of ``base``, by section and key.

    :raises ConfigError: every fault found.
    """
    found: list[Finding] = []
    values = {name: dict(section) for name, section in (base or {}).items()}
    for section, table in tables.items():
        if len(found) > MOST_FINDINGS:
            break
        if section == APPLICATION:
            found += _check_applications(table, file, values.setdefault(section, {}))
            continue
        if section not in SECTIONS:
            # A key before the first [section] is as common a mistake as a mistyped section
            if isinstance(table, dict):
                message = "unknown section" + _suggestion(section, [*SECTIONS, APPLICATION])
                found.append(Finding(file, f"[{section}]", "", message))
            else:
                homes = [
                    k.path for c in SECTIONS.values() for n, k in c.keys().items() if n == section
                ]
                hint = f"; did you mean {' or '.join(homes)}?" if homes else ""
                message = f"stands outside of any [section]{hint}"
                secret = any(find_key(home).secret for home in homes)
                shown = MASK if secret else show_raw(None, table)
                found.append(Finding(file, section, shown, message))
            continue
        if not isinstance(table, dict):
            message = f"is a section; write [{section}] on a line of its own and its keys below"
            found.append(Finding(file, section, show_raw(None, table), message))
            continue
        keys = SECTIONS[section].keys()
        for name, raw in table.items():
            key = keys.get(name)
            if len(found) > MOST_FINDINGS:
                break
            if key is None:
                message = "unknown key" + _suggestion(name, list(keys), _all_names())
                # never show the value: it may be a secret under a mistyped name
                found.append(Finding(file, f"{section}.{name}", "", message))
                continue
            try:
                values.setdefault(section, {})[name] = key.check(raw)
            except ValueError as e:
                from thicket.config.advice import instead

                right = None if isinstance(key, Country) else instead(key, raw)
                message = f"{e}; write {right}" if right is not None else str(e)
                found.append(Finding(file, key.path, show_raw(key, raw), message))
    faulty = {finding.key for finding in found}
    settings = Settings(values)
    for cross in _CROSS_CHECKS:
        fault = cross(settings, file)
        if fault is not None and fault.key not in faulty:
            found.append(fault)
    if len(found) > MOST_FINDINGS:
        del found[MOST_FINDINGS:]
        found.append(Finding(file, "", "", "has more faults than these; correct them first"))
    if found:
        raise ConfigError(found)
    return values


def _check_applications(raw: object, file: str, values: dict[str, Any]) -> list[Finding]:
    """Copy the ``[application.NAME]`` tables to ``values``, and return the faults of their form.

    The application judges the keys. Values are not shown, as they may be secret.
    """
    if not isinstance(raw, dict) or not all(isinstance(table, dict) for table in raw.values()):
        message = "holds one table per application; write [application.NAME] and its keys below"
        return [Finding(file, APPLICATION, "", message)]
    found = []
    if len(raw) > MAX_APPLICATIONS:
        message = f"has settings of {len(raw)} applications; at most {MAX_APPLICATIONS} are allowed"
        found.append(Finding(file, APPLICATION, "", message))
    for name, table in raw.items():
        path = f"{APPLICATION}.{name}"
        if not 1 <= len(name) <= 64 or not all(
            c.isascii() and (c.isalnum() or c in "._-") for c in name
        ):
            message = "must have a name of 1 to 64 ASCII letters, digits, '.', '_', '-'"
            found.append(Finding(file, path[:80], "", message))
            continue
        faults = [(key, fault) for key, v in table.items() if (fault := _unfit(v, MAX_DEPTH - 1))]
        if not isinstance(table.get("enabled", True), bool):
            faults.append(("enabled", "must be true or false, without quotes"))
        if faults:
            found += [Finding(file, f"{path}.{visible(key)[:80]}", "", f) for key, f in faults]
            continue
        values[name] = {**values.get(name, {}), **table}
    return found


def _unfit(value: object, depth: int) -> str | None:
    """Return why an application cannot get this value, or None."""
    if isinstance(value, dict | list):
        if depth == 0:
            return f"is nested too deeply; {MAX_DEPTH} levels are allowed"
        parts = value.values() if isinstance(value, dict) else value
        return next((fault for part in parts if (fault := _unfit(part, depth - 1))), None)
    if isinstance(value, float) and value - value != 0:
        return "holds a number that is not finite"
    if not isinstance(value, str | int | float):
        return "holds a date or a time; write it as text, in quotes"
    return None


#: Checks of several keys, or of several sections.
_CROSS_CHECKS: tuple[Callable[[Settings, str], Finding | None], ...] = (
    lambda settings, file: check_passphrase(settings.mesh, file),
    lambda settings, file: check_fleet(settings.trust, settings.address.prefix.network, file),
    lambda settings, file: check_country(settings.mesh, file),
    lambda settings, file: check_width(settings.mesh, file),
    lambda settings, file: check_expire(settings.discovery, file),
    lambda settings, file: check_gpios(settings.led, settings.reset, file),
    check_ports,
    lambda settings, file: check_gateway(
        settings.gateway,
        settings.address.prefix.network,
        firewall=settings.firewall.enabled,
        file=file,
    ),
)

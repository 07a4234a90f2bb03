# SPDX-License-Identifier: Apache-2.0
"""The configuration in force: the device's file, the last good one, or the image's defaults.

:func:`load` never fails. It reports a file with faults and uses the last good one, or without that
the image's defaults.
"""

from __future__ import annotations

import os
from typing import Any

from thicket.base.fields import ConfigError, Finding
from thicket.base.files import MAX_FILE_BYTES, read_kept, read_limited, write_atomically
from thicket.base.paths import Paths, boot_device, boot_mounted
from thicket.base.toml import toml_value
from thicket.config.parse import parse, values_of
from thicket.config.schema import Settings


def image_defaults(path: str) -> tuple[dict[str, dict[str, Any]], list[Finding]]:
    """Return values and faults of the image's own file; no values when it is absent or faulty."""
    try:
        data = read_limited(path)
        return values_of(data, path), []
    except FileNotFoundError:
        return {}, []
    except OSError as e:
        return {}, [Finding(path, "", "", f"cannot be read: {e.strerror}")]
    except ConfigError as e:
        return {}, e.findings
    except Exception as e:  # as in _parse_any
        return {}, [Finding(path, "", "", f"cannot be judged: {type(e).__name__}")]


class Loaded:
    """What :func:`load` found.

    :ivar settings: the settings in force.
    :ivar source: the path they are from, or ``defaults``.
    :ivar findings: the faults of all files.
    :ivar data: the bytes of the device's file when it is in force, to become the last good one.
    """

    __slots__ = ("data", "findings", "last_good_used", "settings", "source")

    def __init__(
        self,
        settings: Settings,
        source: str,
        findings: list[Finding],
        data: bytes | None,
        last_good_used: bool,
    ) -> None:
        self.settings = settings
        self.source = source
        self.findings = findings
        self.data = data
        self.last_good_used = last_good_used


def _parse_any(
    data: bytes, file: str, base: dict[str, dict[str, Any]], findings: list[Finding]
) -> Settings | None:
    """Return the settings in a file, or None; its faults are added to ``findings``."""
    try:
        return parse(data, file, base)
    except ConfigError as e:
        findings.extend(e.findings)
    except Exception as e:  # an error in our code must not keep a node from starting
        findings.append(Finding(file, "", "", f"cannot be judged: {type(e).__name__}"))
    return None


def load(paths: Paths) -> Loaded:
    """Return the configuration to run with; in the worst case it is the image's defaults."""
    base, findings = image_defaults(paths.image)
    for path in (paths.device, paths.local):
        try:
            data = read_limited(path)
        except FileNotFoundError:
            continue
        except OSError as e:
            findings.append(Finding(path, "", "", f"cannot be read: {e.strerror}"))
            break
        settings = _parse_any(data, path, base, findings)
        if settings is not None:
            return Loaded(settings, path, findings, data, False)
        break
    else:
        lost = _lost(paths)
        if lost is None:
            return Loaded(Settings(base), "defaults", findings, None, False)
        findings.append(lost)
    try:
        data = read_kept(paths.last_good, MAX_FILE_BYTES + 1)
        whole = _is_whole(paths, data)
    except FileNotFoundError:
        pass
    except OSError as e:
        findings.append(Finding(paths.last_good, "", "", f"cannot be read: {e.strerror}"))
    else:
        if not whole:
            findings.append(Finding(paths.last_good, "", "", "is damaged: its checksum differs"))
        elif data:
            settings = _parse_any(data, paths.last_good, base, findings)
            if settings is not None:
                return Loaded(settings, paths.last_good, findings, None, True)
    return Loaded(Settings(base), "defaults", findings, None, False)


def _lost(paths: Paths) -> Finding | None:
    """Return why the configuration file is missing; None on a node that never had one."""
    device = boot_device(paths)
    if device is None:
        place = paths.local
    elif not boot_mounted(paths):
        message = f"the configuration disk {device} could not be mounted there"
        return Finding(paths.boot, "", "", message)
    else:
        place = paths.boot + "/thicket.toml"
        if os.path.exists(place):
            return Finding(place, "", "", "could not be read as a whole when the node started")
    try:
        if not os.path.getsize(paths.last_good):
            return None
    except FileNotFoundError:
        return None
    except OSError:
        pass
    message = "is gone: there was one before. Put it back; one with nothing but a remark in it "
    message += "(# defaults) means the image's defaults"
    try:
        others = sorted(os.listdir(os.path.dirname(place)))
    except OSError:
        others = []
    near = next(
        (n for n in others if n.lower().startswith("thicket") and ".tom" in n.lower()), None
    )
    if near is not None:
        message = f"is gone, but there is {toml_value(near)}: give that the name thicket.toml"
    return Finding(place, "", "", message)


def _digest(data: bytes) -> str:
    import hashlib  # only after the start, or when something is wrong

    return hashlib.sha256(data).hexdigest()


def _is_whole(paths: Paths, data: bytes) -> bool:
    """Return whether ``data`` has a known checksum of the last good configuration.

    True without a file of checksums, as older versions wrote none.

    :raises OSError: the checksums cannot be read.
    """
    try:
        return (
            _digest(data) in read_kept(paths.last_good_sum, 4096).decode("ascii", "replace").split()
        )
    except FileNotFoundError:
        return True


def remember(paths: Paths, loaded: Loaded) -> None:
    """Keep a valid configuration as the last good one.

    The checksums, the old one and the new one, are written first, so that a power cut between the
    two files leaves a matching pair. Nothing is written when nothing changed, as flash wears.

    :raises OSError: /data is not writable.
    """
    data = loaded.data
    if data is None:
        return
    try:
        old = read_kept(paths.last_good, MAX_FILE_BYTES + 1)
    except OSError:
        old = b""
    known = os.path.exists(paths.last_good_sum)
    try:
        if known and old == data and _is_whole(paths, data):
            return
    except OSError:
        pass
    sums = [_digest(data)] + ([_digest(old)] if old and old != data else [])
    write_atomically(paths.last_good_sum, "".join(f"{s}\n" for s in sums).encode(), mode=0o600)
    if old != data:
        write_atomically(paths.last_good, data, mode=0o600)

# SPDX-License-Identifier: Apache-2.0
"""Why the previous run ended, a short history of that, and the state of ``/data`` in this boot.

The sources, the most reliable first:

1. The last messages of a kernel that failed, in ``/sys/fs/pstore`` (ramoops keeps them in memory
   across a restart): ``panic``.
2. The mark that init's last script leaves on ``/data``; its state at power-on is in
   ``/run/thicket/last-run`` (see ``init.d/S40state.sh``): ``shutdown``.
3. The hardware watchdog's own record, or the Raspberry Pi's reset register, which the boot ROM
   passes on in the device tree: ``watchdog``.
4. The mark that ``boot-slots late`` leaves before it restarts the node: ``overdue``.
5. A mark that says "running", and none of the above: ``power`` (or a reset by hand, which looks the
   same).
6. No mark: ``first`` when there is no history either, else ``unknown``.

The history, ``/data/thicket/restarts.jsonl``, has one JSON object per line, oldest first, at most
:data:`KEPT`. Everything else in the file is dropped.
"""

from __future__ import annotations

import json
import os
import time
from logging import getLogger
from typing import Any

from thicket.base.files import read_kept, write_atomically
from thicket.base.paths import Paths
from thicket.device.reset import kernel_records, last_words, watchdog_fired

log = getLogger(__name__)

#: Entries of the history.
KEPT = 10
#: Files of kernel messages that are kept, the newest ones.
CRASHES = 5
#: Bytes of one such file, the last ones.
CRASH_BYTES = 64 * 1024

#: The states that init's S20data.sh reports.
DATA_STATES = ("clean", "repaired", "created", "rebuilt", "readonly", "ram")

WORDS = {
    "first": "first start with this data partition",
    "shutdown": "switched off or restarted in order",
    "panic": "the kernel failed",
    "watchdog": "the hardware watchdog restarted the node, it had stood still",
    "overdue": "it was not well in time, and restarted itself",
    "power": "power cut or reset",
    "unknown": "unknown",
}


def data_state(paths: Paths) -> tuple[str, str]:
    """Return the state of /data, one of DATA_STATES or "unknown", and the reason in words."""
    try:
        with open(paths.run + "/data", encoding="utf-8", errors="replace") as f:
            state, _, why = f.read(1024).strip().partition(" ")
    except OSError:
        return "unknown", ""
    return (state, why.strip()) if state in DATA_STATES else ("unknown", "")


def text(record: dict[str, Any]) -> str:
    """Return a record in words, for people."""
    words = WORDS.get(str(record.get("reason")), "unknown")
    message = record.get("message")
    return f"{words}: {message}" if message else words


def read(paths: Paths) -> list[dict[str, Any]]:
    """Return the history, oldest first; lines that are no records are left out."""
    try:
        lines = read_kept(_history(paths), 64 * 1024).decode("utf-8", "replace").split("\n")
    except OSError:
        return []
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and record.get("reason") in WORDS:
            if type(record.get("run")) is not int:
                record["run"] = 0
            records.append(record)
    return records[-KEPT:]


def known(paths: Paths) -> dict[str, Any] | None:
    """Return the record that an earlier daemon of this boot made, or None."""
    try:
        with open(_found(paths), "rb") as f:
            record = json.loads(f.read(4096))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("reason") in WORDS else None


def find_out(paths: Paths, version: str, slot: str | None) -> tuple[dict[str, Any], str | None]:
    """Find out how the last run ended, once per boot, and keep it; blocks on the disk.

    :returns: the record, and why it could not be kept, or None.
    """
    before = known(paths)
    if before is not None:
        return before, None
    history = read(paths)
    run = max((record["run"] for record in history), default=0) + 1
    panic = last_words(paths)
    mark = _text(paths.run + "/last-run")
    record: dict[str, Any] = {"run": run, "reason": "unknown", "message": ""}
    if panic is not None:
        record["reason"], record["message"] = "panic", panic
    elif mark == "stopped":
        record["reason"] = "shutdown"
    elif mark == "overdue":
        record["reason"] = "overdue"
    elif watchdog_fired(paths):
        record["reason"] = "watchdog"
    elif mark == "running":
        record["reason"] = "power"
    elif data_state(paths)[0] in {"ram", "rebuilt"}:
        record["message"] = "nothing was kept from before"
    elif not history and mark != "damaged":
        record["reason"] = "first"
    # Where the node does not know the time yet, this is the time that boot has set.
    record["at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    record["version"], record["slot"] = version, slot
    record["words"] = text(record)
    trouble = None
    if panic is not None:
        record["crash"], trouble = _keep_crash(paths, run)
    try:
        lines = (json.dumps(entry) + "\n" for entry in [*history, record][-KEPT:])
        write_atomically(_history(paths), "".join(lines).encode(), mode=0o600)
        _sync(paths.data + "/thicket/run")
    except OSError as e:
        trouble = f"{e.filename or _history(paths)}: {e.strerror}"
    try:
        write_atomically(_found(paths), json.dumps(record).encode() + b"\n", durable=False)
    except OSError as e:
        log.warning("cannot write %s: %s", _found(paths), e)
    return record, trouble


def _history(paths: Paths) -> str:
    return paths.data + "/thicket/restarts.jsonl"


def _found(paths: Paths) -> str:
    return paths.run + "/last-restart.json"


def _text(path: str, most: int = 256) -> str:
    try:
        with open(path, "rb") as f:
            return f.read(most).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _sync(path: str) -> None:
    """Wait until the mark "running" is on the disk: a power cut is recognised from now on."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _keep_crash(paths: Paths, run: int) -> tuple[str | None, str | None]:
    """Move the kernel's last messages to ``/data/log``, or to RAM when that fails.

    They are removed from pstore in any case: there is little room, and the next start would take
    them for its own reason.

    :returns: the file's path, and why it will not last, or None.
    """
    records = kernel_records(paths)
    share = CRASH_BYTES // max(1, len(records))
    parts = [
        f"--- {path.rpartition('/')[2]}\n{_text(path, CRASH_BYTES)[-share:]}\n" for path in records
    ]
    text = "".join(parts).encode("utf-8", "replace")
    place: str | None = f"{paths.data}/log/crash-{run}.txt"
    trouble = None
    try:
        write_atomically(str(place), text, mode=0o600)
        _sweep(paths.data + "/log")
    except OSError as e:
        trouble = f"{e.filename or place}: {e.strerror}"
        place = f"{paths.run}/crash-{run}.txt"
        try:
            write_atomically(place, text, mode=0o600, durable=False)
        except OSError:
            place = None
    for path in records:
        try:
            os.unlink(path)
        except OSError as e:
            log.warning("cannot remove %s: %s", path, e)
    return place and place.removeprefix(paths.root), trouble


def _sweep(folder: str) -> None:
    """Keep only the newest files of kernel messages."""
    names = os.listdir(folder)
    kept = [n for n in names if n.startswith("crash-") and n.endswith(".txt")]
    kept.sort(key=lambda n: (len(n), n))
    for old in kept[:-CRASHES]:
        os.unlink(f"{folder}/{old}")

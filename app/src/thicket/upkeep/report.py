# SPDX-License-Identifier: Apache-2.0
"""The report on the card's first partition, by which a node without a network explains itself.

It has a fixed length and is overwritten in its place (:mod:`thicket.device.in_place`).
"""

import re
import time
from typing import Any

from thicket.base.errors import ThicketError
from thicket.base.paths import Paths, boot_device
from thicket.base.visible import visible
from thicket.device import in_place
from thicket.device.boot_partition import StoreError, boot_lock, mount_boot
from thicket.upkeep import last_run

NAME = "report.txt"
#: Length of the file, whatever its text.
BYTES = 16 * 1024
_WRITTEN = "Written: "
_SOURCES = {
    "board": "the board's serial number",
    "mac": "the radio's address",
    "random": "a random number",
}
_CUT = "... and more, for which there is no room here"
#: The states of the node and of its data partition, for people.
_STATES = {
    "joined": "in the mesh",
    "joining": "looking for the mesh",
    "starting": "starting",
    "degraded": "not working as it should: see the problems below",
}
_DATA = {
    "clean": "sound",
    "repaired": "was damaged and is repaired",
    "created": "new",
    "rebuilt": "was damaged beyond repair and is made again",
    "readonly": "can only be read",
    "ram": "in memory only: lost when the device is switched off",
    "unknown": "not known",
}
#: Rewrites messages for a person with a shell on the node into ones for a person with its card: a
#: word without which there is nothing to rewrite (most messages have none of them), what is found
#: and what stands there instead.
_FOR_CARD = (
    # files, by their names on the card
    ("thicket.toml", r"{path}(?:etc/thicket|boot)/thicket\.toml", "thicket.toml"),
    ("last-good", r"{path}data/thicket/last-good\.toml", "the last good settings"),
    ("share", r"{path}usr/share/thicket/thicket\.toml", "the image's defaults"),
    # commands, replaced by what they would do
    (
        "; correct",
        r"; correct the file, then run `thicket reload`",
        "; correct thicket.toml on this card",
    ),
    ("or use `", r",? or use `thicket config set [^`=]*`", ""),
    ("=", r"`thicket config set ([\w.]+)=([^`]*)`", r"\1 = \2 stands in thicket.toml"),
    ("config set", r"`thicket config set ([^`]*)`", r"\1 in thicket.toml"),
    ("reload", r"`thicket reload`", "starting the device again"),
)
_PATH = r"(?<![\w.])/(?:[^\s:,;\"']*/)?"
_COMMANDS = "Words like `thicket ...` are commands, for somebody who is logged in to a node."
_DESK = "`thicket ca ...` is run on the computer that holds the fleet's authority."


class ReportError(ThicketError):
    """The report could not be written; the old one is unchanged or partly overwritten."""


def compose(doc: dict[str, Any]) -> str:
    """Return the report, made of the status document; lines end with a line feed.

    It is the same as long as nothing of note changes.
    """
    identity, data, last = doc["identity"], doc["data"], doc["last_restart"]
    if identity is None:
        who = "not known yet"
    elif identity["source"] == "chip":
        who = f"security chip, serial number {identity['serial']}"
    else:
        source = _SOURCES.get(identity["source"], identity["source"])
        who = f"{identity['id']}, from {source}; no security chip, so nothing proves it"
    slot = f", slot {doc['slot']}" if doc["slot"] else ""
    source = doc["configuration"]["source"]
    settings = "the image's defaults" if source == "defaults" else for_card(source)
    if doc["configuration"]["last_good_used"]:
        settings = "the last good ones, which the device keeps; not from this thicket.toml"
    facts = [
        ("Host name", doc["hostname"] or "not known yet"),
        ("Address", f"{doc['address']}/{doc['prefix_length']}" if doc["address"] else "none"),
        ("Identity", who),
        ("State", _STATES.get(doc["state"], doc["state"])),
        ("Software", f"Thicket {doc['version']}{slot}"),
        (
            "Data",
            _DATA.get(data["state"], data["state"])
            + (f" ({data['message']})" if data["message"] else ""),
        ),
        ("Last restart", last_run.text(last) if last else "not known yet"),
        *([("Last reset", reset_text(doc["factory_reset"]))] if doc["factory_reset"] else []),
        ("Settings from", settings),
    ]
    lines = [
        "This is what the Thicket device says about itself. It is written by the device.",
        "To change its settings, edit the file thicket.toml beside this one (plain text, UTF-8),",
        "put the card back and start the device, which then writes this report again.",
        "",
    ]
    lines += [f"{name + ':':<15}{value}" for name, value in facts]
    faults = [p for p in doc["problems"] if p["part"] == "configuration"]
    others = [p for p in doc["problems"] if p["part"] != "configuration"]
    lines += ["", "Settings (thicket.toml)"]
    for problem in faults:
        # a fault shows the faulty line below its message
        first, *rest = for_card(problem["message"]).split("\n")
        lines += [f"  - {first}", *(f"    {line}" for line in rest)]
    if not faults:
        lines.append("  Nothing is wrong with them.")
    lines += ["", "Problems"]
    told = [f"  - {p['part']} ({p['severity']}): {for_card(p['message'])}" for p in others]
    lines += told or ["  None."]
    commands = re.findall(r"`thicket (\w+)", "\n".join(told)) if told else []
    if commands:
        lines.append("")
        lines += [_COMMANDS] if any(word != "ca" for word in commands) else []
        lines += [_DESK] if "ca" in commands else []
    # Line by line: who chooses a name must not be able to add lines to a report.
    return "\n".join(visible(line, keep="") for line in lines)


def reset_text(reset: dict[str, Any]) -> str:
    """Return what the last factory reset did, in a line."""
    at = reset["at"].replace("T", " ").removesuffix("Z")[:16]
    return f"{at} UTC (the device's clock), {reset['words']}"


def for_card(message: str) -> str:
    """Return a message in words for a person who has the card, but no shell."""
    for mark, pattern, words in _FOR_CARD:
        if mark in message:  # compiling a pattern costs more than all the rest of a report
            message = re.sub(pattern.replace("{path}", _PATH), words, message)
    return message


def pack(text: str, written: str) -> bytes:
    """Return the file of a report: Windows line ends, UTF-8, :data:`BYTES` bytes."""
    head = [f"{_WRITTEN}{written}", ""]
    body = text.split("\n")
    data = "\r\n".join([*head, *body, ""]).encode("utf-8", "replace")
    while len(data) > BYTES:
        body.pop()
        data = "\r\n".join([*head, *body, _CUT, ""]).encode("utf-8", "replace")
    # lines of blanks, which an editor does not show, replace the end of an older report
    blank = b" " * 62 + b"\r\n"
    rest = BYTES - len(data)
    tail = b" " * (rest % 64) if rest % 64 < 2 else b" " * (rest % 64 - 2) + b"\r\n"
    return data + tail + blank * (rest // 64)


def unpack(data: bytes) -> str:
    """Return the text of a file that :func:`pack` made; any other file gives another text."""
    lines = [line.rstrip() for line in data.decode("utf-8", "replace").split("\r\n")]
    while lines and not lines[-1]:
        lines.pop()
    return "\n".join(lines[2:]) if lines and lines[0].startswith(_WRITTEN.rstrip()) else ""


def write(paths: Paths, text: str) -> bool:
    """Write the report unless it has the same text; blocks.

    A device whose kernel command line names no boot partition has no report.

    :returns: whether it was written.
    :raises ReportError: it cannot be written.
    """
    device = boot_device(paths)
    if device is None:
        return False
    target = f"{paths.boot}/{NAME}"
    try:
        with boot_lock(paths):
            mount_boot(paths, device)
            old = in_place.read(target, BYTES)
            if old is not None and len(old) == BYTES and unpack(old) == unpack(pack(text, "")):
                return False
            now = time.strftime("%Y-%m-%d %H:%M UTC (the device's clock)", time.gmtime())
            in_place.write(paths, device, target, pack(text, now))
    except (OSError, StoreError) as e:
        words = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        raise ReportError(f"{target} cannot be written: {words}") from e
    return True

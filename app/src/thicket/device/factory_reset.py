# SPDX-License-Identifier: Apache-2.0
"""The factory reset: everything on ``/data`` goes but what :data:`KEPT` names.

It is asked for by a command, by a file on the card's first partition or by a button, and done by
the start scripts (``overlay/etc/init.d/S32reset.sh``), when nothing else runs. The request is on
``/data`` before anything is erased and goes last, so that a reset that a power cut interrupts is
begun again by the next start, and is never half done when the daemon starts.

    /data/reset/request      what is being done, while it is: who asked, and what there was
    /data/reset/last.json    what the last one erased
    /data/reset/room         as large as a request: a full disk has room for one
    /data/reset/button       see :mod:`thicket.device.reset_button`
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from thicket.base.errors import CodedError
from thicket.base.files import make_folder, read, read_kept, remove, sync_folder, write_atomically
from thicket.base.paths import Paths, boot_device
from thicket.base.units import size_text
from thicket.base.visible import visible
from thicket.device import led, reset_button

#: Files that outlive a reset, from ``/data``; ``*`` is any name. A folder that is not on the way to
#: one of them goes with everything in it.
#:
#: What proves who the node is and to whom it belongs; what keeps old news from being taken for
#: new (lists of revocations, offers and orders of the fleet, numbers of starts, the time); what the
#: slots hold; and copies of the configuration, without which nobody could get in after a reset of
#: a node whose ``thicket.toml`` is damaged.
KEPT: Final = (
    *(
        f"{folder}/{name}"
        for folder in ("thicket", "thicket.#")  # of each format, for the way back
        for name in (
            "format", "size", "run", "clock",
            "identity.json", "device.key", "device.pem", "revocations.bin", "start",
            "passphrase.json", "time.signed", "labels.bin",
            "thicket.toml", "last-good.toml", "last-good.sha256", "console",
        )
    ),
    "ssh/host-ed25519", "ssh/authorized_keys",
    "update/starts", "update/bundles.json", "update/journal.json", "update/reports",
    "update/offered/offer",
    "update/others/*/reports", "update/others/*/offered/offer",
    "rauc/central.raucs",
    "led",
    "reset/request", "reset/last.json", "reset/button", "reset/room",
    "lost+found/",  # the folder of e2fsck, and nothing in it
)  # fmt: skip

#: A person's request on the first partition. Some computers add an ending that they do not show.
FILES = ("factory-reset", "factory-reset.txt")
FOLDER = "/reset"
REQUEST, LAST, ROOM = FOLDER + "/request", FOLDER + "/last.json", FOLDER + "/room"
#: Below ``/run/thicket``: what this start has done of a reset, or why it was not done.
DONE, FAILED = "/reset-done", "/reset-failed"
#: Bytes of the largest file of these that is read, and of the room that is kept for a request.
MOST_BYTES, ROOM_BYTES = 64 * 1024, 4096
#: Characters of a line that the kernel's log takes.
MOST_LINE = 700
#: Names that are told of what was erased, the largest; those of them that stand in the line for
#: people; characters of each; and failures that are told.
MOST_NAMES, MOST_TOLD, MOST_NAME, MOST_LEFT = 40, 10, 100, 10

#: Who asked, for programs and for people.
WORDS = {
    "file": "a file on the card",
    "button": "the button",
    "command": "a command",
    "unknown": "a request that is damaged",
}


class ResetError(CodedError):
    """A reset is not begun: ``no-data``, ``not-kept``, ``not-removed``; the text says why."""


class Erased(NamedTuple):
    """Something that a reset erases.

    :ivar name: from ``/data``.
    :ivar files: files in it, or 1.
    :ivar bytes: what it takes on the disk.
    """

    name: str
    files: int
    bytes: int


class Survey(NamedTuple):
    """What there is to erase: the largest by their names, and the sum of all."""

    names: tuple[Erased, ...]
    files: int
    bytes: int
    #: How many more than ``names``.
    more: int

    def text(self, most: int = MOST_TOLD) -> str:
        """Return it in a line for people, with so many names at most."""
        if not self.files and not self.names:
            return "nothing was there to be erased"
        told = [f"{visible(one.name, keep='')} {size_text(one.bytes)}" for one in self.names[:most]]
        more = len(self.names) - len(told) + self.more
        told += [f"{more} more"] if more else []
        files = f"{self.files} file{'' if self.files == 1 else 's'}"
        return f"{files}, {size_text(self.bytes)}" + (f": {', '.join(told)}" if told else "")


# -- what goes


def _segments(pattern: str) -> tuple[re.Pattern[str], ...]:
    """Return what the names on the way to a file match; the last one of a folder matches none."""
    named = {"*": ".+", "": r"(?!)"}
    return tuple(
        re.compile(named.get(part, re.escape(part).replace(r"\#", r"\d{1,4}")), re.DOTALL)
        for part in pattern.split("/")
    )


def doomed(paths: Paths) -> list[str]:
    """Return the files and folders that a reset erases, from ``/data``. No link is followed."""
    return list(_doomed(paths.data, "", [_segments(pattern) for pattern in KEPT]))


def _doomed(folder: str, prefix: str, patterns: list[tuple[re.Pattern[str], ...]]) -> Iterator[str]:
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        below = [parts[1:] for parts in patterns if parts[0].fullmatch(entry.name)]
        way = [parts for parts in below if parts]
        if entry.is_dir(follow_symlinks=False):
            if not way:
                yield prefix + entry.name
            else:
                yield from _doomed(entry.path, f"{prefix}{entry.name}/", way)
        elif () not in below:
            yield prefix + entry.name


def survey(paths: Paths) -> Survey:
    """Return what a reset erases."""
    found = [one for name in doomed(paths) for one in _weighed(paths, name)]
    found.sort(key=lambda one: (-one.bytes, one.name))
    return Survey(
        tuple(one._replace(name=one.name[:MOST_NAME]) for one in found[:MOST_NAMES]),
        sum(one.files for one in found),
        sum(one.bytes for one in found),
        max(0, len(found) - MOST_NAMES),
    )


def _weighed(paths: Paths, name: str) -> list[Erased]:
    """Return what one takes; of a folder of ``/data`` itself, each of what is in it."""
    path = f"{paths.data}/{name}"
    if "/" not in name and not os.path.islink(path) and os.path.isdir(path):
        inside = sorted(os.listdir(path))
        return [_weigh(f"{path}/{one}", f"{name}/{one}") for one in inside] or [Erased(name, 0, 0)]
    return [_weigh(path, name)]


def _weigh(path: str, name: str) -> Erased:
    files = size = 0
    pending = [path]
    while pending:
        one = pending.pop()
        with contextlib.suppress(OSError):  # what cannot be looked at may still be erased
            found = os.lstat(one)
            size += found.st_blocks * 512
            if os.path.isdir(one) and not os.path.islink(one):
                pending += [f"{one}/{child}" for child in os.listdir(one)]
            else:
                files += 1
    return Erased(name, files, size)


def erase(paths: Paths) -> list[str]:
    """Erase what is to go; return in words what could not be erased.

    It blocks for as long as that takes. It needs no room, and folders may be as deep as a file
    system allows.
    """
    left: list[str] = []
    for name in doomed(paths):
        path = f"{paths.data}/{name}"
        with _noted(left, name):
            if os.path.isdir(path) and not os.path.islink(path):
                _erase_folder(path, name, left)
            else:
                os.unlink(path)
    return left


def _erase_folder(path: str, name: str, left: list[str]) -> None:
    """Remove a folder: the folders of its folders move up, level by level, until there are none."""
    number = 0
    before: list[str] | None = None
    while True:
        folders = []
        for entry in _entries(path):
            with _noted(left, f"{name}/{entry.name}"):
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    os.unlink(entry.path)
        if not folders or folders == before:  # none, or none that can be emptied
            break
        before = folders
        for folder in folders:
            for entry in _entries(folder):
                with _noted(left, f"{name}/{entry.name}"):
                    if not entry.is_dir(follow_symlinks=False):
                        os.unlink(entry.path)
                        continue
                    while os.path.lexists(f"{path}/{number}"):
                        number += 1
                    os.rename(entry.path, f"{path}/{number}")
            with _noted(left, f"{name}/{os.path.basename(folder)}"):
                os.rmdir(folder)
    os.rmdir(path)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        return list(found)


@contextlib.contextmanager
def _noted(left: list[str], name: str) -> Iterator[None]:
    """Note what cannot be erased; the rest goes on."""
    try:
        yield
    except OSError as error:
        words = f"{name[:MOST_NAME]}: {error.strerror}"
        if words not in left:
            left.append(words)


# -- the request and the record


class Request(NamedTuple):
    """A reset that was asked for.

    :ivar by: a word of :data:`WORDS`.
    :ivar survey: what there was; None until erasing begins.
    """

    by: str
    survey: Survey | None = None


def _pack(request: Request) -> bytes:
    found = request.survey
    return json.dumps({"by": request.by, "survey": found and found._asdict()}).encode() + b"\n"


def _unpack_survey(members: Any) -> Survey:
    names = tuple(
        Erased(str(name), int(files), int(size)) for name, files, size in members["names"]
    )
    return Survey(names, int(members["files"]), int(members["bytes"]), int(members["more"]))


def load_request(paths: Paths) -> Request | None:
    """Return the reset that is to be done, None without one; a damaged one is one as well."""
    try:
        members = json.loads(read_kept(paths.data + REQUEST, MOST_BYTES))
        by = members["by"] if members["by"] in WORDS else "unknown"
        found = members["survey"]
        return Request(by, None if found is None else _unpack_survey(found))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return Request("unknown")


def ask(paths: Paths, by: str) -> None:
    """Have the next start do a reset; it is on the disk when this returns.

    :raises ResetError: it cannot be kept.
    """
    _keep_request(paths, Request(by))


def _keep_request(paths: Paths, request: Request) -> None:
    path = paths.data + REQUEST
    try:
        try:
            write_atomically(path, _pack(request), mode=0o600)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            remove(paths.data + ROOM)
            write_atomically(path, _pack(request), mode=0o600)
    except OSError as error:
        raise ResetError("not-kept", f"{path} cannot be written: {error.strerror}") from None


def keep_room(paths: Paths) -> None:
    """Keep room for a request, as a disk may be full when a reset is to empty it."""
    path = paths.data + ROOM
    if not os.path.exists(path):
        make_folder(paths.data + FOLDER, 0o700)
        write_atomically(path, bytes(ROOM_BYTES), mode=0o600)


def last(paths: Paths) -> dict[str, Any] | None:
    """Return for the status document what the last reset did; docs/node.md has the members."""
    try:
        members = json.loads(read_kept(paths.data + LAST, MOST_BYTES))
        found, by = _unpack_survey(members["survey"]), members["by"]
        return {
            "by": by if by in WORDS else "unknown",
            "at": str(members["at"]),
            "files": found.files,
            "bytes": found.bytes,
            "erased": [one._asdict() for one in found.names],
            "more": found.more,
            "left": [str(one) for one in members["left"]],
            "words": f"by {WORDS.get(by, WORDS['unknown'])}: {found.text()}",
        }
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


# -- at a start


def wanted_by_file(paths: Paths) -> str | None:
    """Return the path of a person's request on the first partition, None without one."""
    return next((p for n in FILES if os.path.lexists(p := f"{paths.boot}/{n}")), None)


def check_data(paths: Paths) -> None:
    """See that a reset makes sense.

    :raises ResetError: what is on ``/data`` cannot be erased.
    """
    state = (read(paths.run + "/data") or "").partition(" ")[0]
    if state == "readonly":
        raise ResetError("no-data", "/data can only be read, so nothing can be erased")
    if state == "ram":
        raise ResetError(
            "no-data", "/data is in memory only: a restart forgets it, and nothing is erased"
        )


def run(paths: Paths, *, pressed: bool = False) -> str | None:
    """Do the reset that is asked for, if any; return in words what was done, None for nothing.

    :param pressed: the button was held for long enough.
    :raises ResetError: it cannot be begun; everything is as before.
    """
    request, file = load_request(paths), wanted_by_file(paths)
    if request is None:
        if file is None and not pressed:
            return None
        request = Request("file" if file is not None else "button")
    check_data(paths)
    if request.survey is None:
        # before the file is removed, and before anything else is: from here on a start continues
        _keep_request(paths, request)
    if file is not None:
        _remove_file(paths, file, request)
    if pressed or request.by == "button":
        reset_button.spend(paths)
    if request.survey is None:
        request = request._replace(survey=survey(paths))
        with contextlib.suppress(ResetError):  # a full disk: then a cut costs the names
            _keep_request(paths, request)
    return _finish(paths, request)


def _remove_file(paths: Paths, file: str, request: Request) -> None:
    """Remove the request on the first partition, without which each start would be a reset.

    :raises ResetError: it cannot be removed, and nothing was erased yet.
    """
    # late: few starts have such a file
    from thicket.device import boot_partition

    try:
        device = boot_device(paths)
        with boot_partition.boot_lock(paths):
            for name in FILES:
                if os.path.lexists(path := f"{paths.boot}/{name}"):
                    boot_partition.remove_from_boot(paths, device, path)
    except (OSError, boot_partition.StoreError) as error:
        if request.survey is not None or request.by != "file":
            return  # go on; the next start finds the file, and does nothing as long as it stays
        remove(paths.data + REQUEST)
        words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ResetError(
            "not-removed", f"{file} cannot be removed, so nothing was erased: {words}"
        ) from None


def _finish(paths: Paths, request: Request) -> str:
    assert request.survey is not None
    left = erase(paths)
    os.sync()
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    record = {
        "by": request.by,
        "at": now,
        "survey": request.survey._asdict(),
        "left": left[:MOST_LEFT],
    }
    write_atomically(paths.data + LAST, json.dumps(record).encode() + b"\n", mode=0o600)
    said = f"factory reset by {WORDS[request.by]}: {request.survey.text(5)}"
    if left:
        # the request stays: the next start tries again
        return f"{said}; NOT ERASED: {'; '.join(left[:MOST_LEFT])}"
    os.unlink(paths.data + REQUEST)
    sync_folder(paths.data + FOLDER)
    return said


def _tell(paths: Paths, name: str, words: str) -> None:
    """Tell the daemon."""
    with contextlib.suppress(OSError):
        write_atomically(paths.run + name, f"{words}\n".encode(), durable=False)


def main() -> int:
    """Run ``factory-reset`` at a start; the exit status is 0, or 1 where it could not be begun."""
    paths = Paths()
    light = led.kernel_light(paths, led.remembered(paths))

    def show(name: str) -> None:
        with contextlib.suppress(OSError):
            if light is not None:
                light.show(name)

    try:
        said = run(paths, pressed=reset_button.at_start(paths, show))
    except (ResetError, OSError) as error:
        print(f"factory reset: {error}", file=sys.stderr)
        _tell(paths, FAILED, str(error))
        return 1
    if said:
        print(said[:MOST_LINE])
        _tell(paths, DONE, said)
    return 0

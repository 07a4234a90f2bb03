# SPDX-License-Identifier: Apache-2.0
"""``thicket config`` and ``thicket revocations``: files that a person checks and installs."""

from __future__ import annotations

import sys
from typing import Any

from thicket.cli.common import BAD, OK, UsageError, control_socket, node_paths
from thicket.control.client import ClientError, request

#: Seconds until a daemon that does not answer is given up: it may work for 30 s, see WORK of the
#: control socket.
RELOAD = 60.0


def config(rest: list[str]) -> int:
    verbs = "show, check, apply, set, unset or default"
    if not rest:
        raise UsageError(f"config needs {verbs}")
    verb, words = rest[0], rest[1:]
    if verb in {"check", "apply"}:
        if len(words) != 1:
            raise UsageError(f"config {verb} needs one FILE")
        return _config_file(verb, words[0])
    if verb in {"set", "unset"}:
        if not words:
            raise UsageError(f"config {verb} needs a KEY")
        return _config_edit(words, unset=verb == "unset")
    if verb in {"show", "default"}:
        if words:
            raise UsageError(f"config {verb} takes no arguments")
        if verb == "default":
            from thicket.config.template import template

            sys.stdout.write(template())
            return OK
        return _config_show()
    raise UsageError(f"config knows {verbs}, not {verb!r}")


def _config_show() -> int:
    from thicket.base.fields import show_value
    from thicket.config.load import load

    faults: list[str] = []
    try:
        answer = request(control_socket(), "config", {})
        origin = f"in force, from {answer['source']}"
        values = answer["values"]
    except ClientError as e:
        if e.code != "unreachable" or e.late:
            raise
        loaded = load(node_paths())
        faults = [str(finding) for finding in loaded.findings]
        origin = f"the daemon is not running; it would use {loaded.source}"
        values = {
            name: {key.name: show_value(key, value) for key, value in section.items()}
            for name, section in loaded.settings.sections()
        }
    print(f"# {origin}")
    for name, section in values.items():
        print(f"\n[{name}]")
        for key, shown in section.items():
            print(f"{key} = {shown}")
    for fault in faults:
        sys.stderr.write(f"{fault}\n")
    return BAD if faults else OK


def _read(file: str, most: int) -> bytes | None:
    """Return at most ``most`` + 1 bytes of a file; None after printing an error."""
    try:
        if file == "-":
            return sys.stdin.buffer.read(most + 1)
        with open(file, "rb") as stream:
            return stream.read(most + 1)
    except OSError as e:
        sys.stderr.write(f"thicket: cannot read {file}: {e.strerror}\n")
        return None


def _config_file(verb: str, file: str) -> int:
    from thicket.base.fields import ConfigError
    from thicket.base.files import MAX_FILE_BYTES
    from thicket.config.load import image_defaults
    from thicket.config.parse import parse

    data = _read(file, MAX_FILE_BYTES)
    if data is None:
        return BAD
    shown = "standard input" if file == "-" else file
    paths = node_paths()
    try:
        settings = parse(data, shown, image_defaults(paths.image)[0])
        if settings.application:
            _judge_applications(data, shown, settings.application)
    except ConfigError as e:
        return _faulty(e)
    if verb == "check":
        print(f"{shown} is right.")
        return OK
    return _write(data)


def _judge_applications(data: bytes, shown: str, tables: dict[str, dict[str, Any]]) -> None:
    """Let the applications that are installed here check their settings.

    :raises ConfigError: a setting is wrong.
    """
    from thicket.applications import entrypoints
    from thicket.applications.service import GROUP, judge
    from thicket.base.fields import ConfigError, Finding
    from thicket.config.parse import decode
    from thicket.config.syntax import locate

    found, notes = judge(tables, entrypoints.find(GROUP))
    for note in notes:
        sys.stderr.write(f"{shown}: {note}\n")
    if found:
        findings = [Finding(shown, key, "", words) for key, words in found]
        locate(decode(data, shown), findings)
        raise ConfigError(findings)


def revocations(rest: list[str]) -> int:
    import base64

    if rest == ["export"]:
        return _export_revocations()
    if len(rest) != 2 or rest[0] != "import":
        raise UsageError("revocations needs: import FILE, or export")
    from thicket.trust import kinds
    from thicket.trust.revocations import MAX_LIST, split
    from thicket.trust.verify import RefusedError

    data = _read(rest[1], 64 * MAX_LIST)  # lists of several authorities, at most
    if data is None:
        return BAD
    if is_no(kinds.LISTS, data, rest[1], "`thicket revocations export` on another node"):
        return BAD
    try:
        parts = split(data)
    except RefusedError:
        parts = []
    if not parts or any(len(part) > MAX_LIST for part in parts):
        sys.stderr.write(f"thicket: {rest[1]} is cut off, or has too many lists: get it anew\n")
        return BAD
    answer: dict[str, Any] = {}
    for part in parts:
        params = {"list": base64.b64encode(part).decode()}
        answer = request(control_socket(), "revocations-import", params, timeout=30.0)
    names = answer["names"]
    print(f"List {answer['number']} is in force, with {names} name{'' if names == 1 else 's'}.")
    return OK


def is_no(wanted: str, data: bytes, file: str, maker: str) -> bool:
    """Return whether a file is of another kind than it should be, and say so.

    :param maker: what makes such a file.
    """
    import io

    from thicket.trust import kinds

    found = kinds.kind(io.BytesIO(data))
    if found == wanted:
        return False
    shown = "standard input" if file == "-" else file
    sys.stderr.write(
        f"thicket: {shown}: this is {found}, and {wanted} is needed; {maker} makes it\n"
    )
    return True


def _export_revocations() -> int:
    import base64

    from thicket.trust.revocations import pack_parts

    held = request(control_socket(), "revocations-export", {}, timeout=30.0)["lists"]
    parts = [
        base64.b64decode(
            request(control_socket(), "revocations-export", {"digest": digest}, timeout=30.0)[
                "list"
            ]
        )
        for digest in held
    ]
    sys.stdout.buffer.write(pack_parts(parts))
    sys.stdout.flush()
    return OK


def _faulty(e: Exception) -> int:
    sys.stderr.write(f"{e}\n")
    return BAD


def _config_edit(words: list[str], *, unset: bool) -> int:
    from thicket.base.fields import MASK, ConfigError, Finding
    from thicket.config.edit import set_values, source
    from thicket.config.schema import find_key
    from thicket.device.boot_partition import StoreError

    changes: dict[str, object] = {}
    findings = []
    if any(word.startswith("=") for word in words):
        # "a.b = c": nobody shall wait for the value of a.b
        raise UsageError("KEY=VALUE is one word, without blanks around =")
    for word in words:
        path, mark, text = word.partition("=")
        key = None
        try:
            key = find_key(path)
            if path in changes:
                raise ValueError("stands there twice; several values of a list are KEY=ONE,TWO")
            if unset:
                if mark:
                    raise ValueError("unset takes the key alone")
                changes[path] = None
                continue
            if not mark:
                # keeps secrets out of the process list and the shell's history
                text = _asked(path, secret=key.secret)
            changes[path] = key.plain(key.check(key.from_text(text)))
        except ValueError as e:
            # It may be a secret under a mistyped name, or a private key in place of a public one.
            shown = "" if key is None else MASK if key.hides(text) else text
            findings.append(Finding("command line", path, shown, str(e)))
    if findings:
        return _faulty(ConfigError(findings))
    try:
        text, _ = source(node_paths())
        return _write(set_values(text, changes).encode("utf-8"))
    except ConfigError as e:
        sys.stderr.write(
            "thicket: the file in use has faults; `thicket config apply` replaces it\n"
        )
        return _faulty(e)
    except StoreError as e:
        return _faulty(e)


def _asked(path: str, *, secret: bool) -> str:
    """Return the value of a key from standard input; a person at a terminal is asked for it."""
    if sys.stdin.isatty():
        if secret:
            from getpass import getpass

            return getpass(f"{path}: ")
        sys.stderr.write(f"{path}: ")
        sys.stderr.flush()
    return sys.stdin.readline().rstrip("\r\n")


def _write(data: bytes) -> int:
    from thicket.base.fields import ConfigError
    from thicket.config.edit import apply
    from thicket.config.load import load
    from thicket.config.schema import locked_out
    from thicket.device.boot_partition import StoreError

    paths = node_paths()
    before = locked_out(load(paths).settings)
    try:
        target = apply(paths, data)
    except (ConfigError, StoreError) as e:
        return _faulty(e)
    after = locked_out(load(paths).settings)
    if after is not None and before is None:
        sys.stderr.write(f"NOBODY CAN GET INTO THIS NODE from now on: {after}\n")
    print(f"Written to {target}.")
    try:
        return tell_reload(request(control_socket(), "reload", {}, timeout=RELOAD))
    except ClientError as e:
        if e.code != "unreachable" or e.late:
            raise
        print("The daemon is not running; it will use the file when it starts.")
        return OK


def tell_reload(answer: dict[str, Any]) -> int:
    if answer["faults"]:
        for fault in answer["faults"]:
            sys.stderr.write(f"{fault}\n")
        return BAD
    changed = ", ".join(answer["changed"]) or "nothing"
    print(f"Configuration from {answer['source']} in force; changed: {changed}.")
    if answer["later"]:
        print(f"Followed from the next start on: {', '.join(answer['later'])}.")
    return OK

# SPDX-License-Identifier: Apache-2.0
"""The engineer's own SSH public keys, for the file of a fleet's cards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from authority.errors import AuthorityError
from thicket.upkeep.section import AccessSection, PublicKeys

#: The names that ``ssh-keygen`` gives to keys, best first.
NAMES: Final = ("id_ed25519", "id_ed25519_sk", "id_ecdsa", "id_ecdsa_sk", "id_rsa")

_KEY: Final = AccessSection.ssh_keys
_OPTIONS: Final = "--ssh-key FILE (the file that ends in .pub) or --no-ssh-key"


def read(files: list[str]) -> list[str]:
    """Return the public keys in files, one per entry, each once.

    :raises AuthorityError: for a file without a usable key, and for a private key.
    """
    keys: list[str] = []
    for file in files:
        path = Path(file).expanduser()
        try:
            with path.open("rb") as stream:
                text = stream.read(PublicKeys.MOST_BYTES + 1).decode(errors="replace")
            found = _KEY.check(text).splitlines()
        except OSError as error:
            raise AuthorityError(f"{file}: {error.strerror}") from None
        except ValueError as error:
            public = path.with_name(path.name + ".pub")
            hint = f" (--ssh-key {public})" if public.exists() else ""
            raise AuthorityError(f"{file} {error}{hint}") from None
        if not found:
            raise AuthorityError(f"{file} holds no key")
        keys += [key for key in found if key not in keys]
    return keys


def own(folder: Path) -> list[tuple[str, str]]:
    """Return the engineer's own keys as pairs of place and key: first files, then the agent."""
    names = [f"{name}.pub" for name in NAMES]
    try:
        there = sorted(path.name for path in folder.glob("*.pub"))
    except OSError:
        there = []
    ordered = [n for n in names if n in there] + [n for n in there if n not in names]
    found: dict[str, tuple[str, str]] = {}
    for name in ordered:
        try:
            keys = read([str(folder / name)])
        except AuthorityError:  # a certificate, a key of a kind that is out of use
            continue
        for key in keys:
            found.setdefault(_blob(key), (str(folder / name), key))
    for key in _agent():
        found.setdefault(_blob(key), ("the SSH agent", key))
    return list(found.values())


def _blob(key: str) -> str:
    return " ".join(key.split()[:2])


def _agent() -> list[str]:
    """The public keys of the running agent; none without one."""
    if not os.environ.get("SSH_AUTH_SOCK"):
        return []
    try:
        done = subprocess.run(
            ["ssh-add", "-L"], capture_output=True, text=True, check=False, timeout=30,
            errors="replace",
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    keys = []
    for line in done.stdout.splitlines() if done.returncode == 0 else []:
        try:
            keys += _KEY.check(line).splitlines()
        except ValueError:
            continue
    return keys


def choose(folder: Path) -> list[str]:
    """Return the keys of those who may log in: the engineer's own, confirmed if one can ask.

    :raises AuthorityError: when nobody can be asked and it is not clear who is meant.
    """
    found = own(folder)
    if sys.stdin.isatty():
        return _ask(found, folder)
    if len(found) == 1:
        (place, key) = found[0]
        sys.stderr.write(f"thicket ca: the owner of this key may log in to the nodes: {place}\n")
        return [key]
    what = "more than one SSH key" if found else "no SSH public key"
    places = "".join(f"\n  --ssh-key {place}" for place, _ in found)
    raise AuthorityError(
        f"there is {what} in {folder}, and no terminal to ask at who may log in to the nodes: "
        f"give {_OPTIONS}{places}"
    )


def _ask(found: list[tuple[str, str]], folder: Path) -> list[str]:
    say = sys.stderr.write
    say("Who may log in to the nodes, as root by SSH?\n")
    for number, (place, key) in enumerate(found, 1):
        words = key.split(None, 2)
        say(f"  {number}  {place}: {words[0]} {words[2] if len(words) > 2 else ''}\n")
    if not found:
        say(f"  There is no key in {folder} (`ssh-keygen -t ed25519` makes one).\n")
    usual = "1" if found else "none"
    while True:
        say(f"Numbers, files that end in .pub, or none [{usual}]: ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            raise AuthorityError(f"no answer: give {_OPTIONS}")
        words = line.replace(",", " ").split() or [usual]
        if words == ["none"]:
            return []
        keys: list[str] = []
        try:
            for word in words:
                if word.isdecimal():
                    if not 1 <= int(word) <= len(found):
                        raise AuthorityError(f"there is no {word}")
                    keys.append(found[int(word) - 1][1])
                else:
                    keys += read([word])
        except AuthorityError as error:
            say(f"{error}\n")
            continue
        return list(dict.fromkeys(keys))

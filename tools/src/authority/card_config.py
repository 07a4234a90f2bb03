# SPDX-License-Identifier: Apache-2.0
"""The ``thicket.toml`` for the cards of a fleet, complete except for what only a person knows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from authority.authority import Authority
from authority.errors import AuthorityError
from host.stop import held
from thicket.base.fields import ConfigError
from thicket.base.files import read_limited
from thicket.base.toml import toml_value
from thicket.config.parse import parse
from thicket.trust.certificates import pem

_TEXT: Final = """\
# The settings of the nodes of fleet {fleet}. The same file is for every card:
#
#     make flash DEV=/dev/sdX CONFIG=my.toml
#
# It has the mesh's passphrase and the cluster's cookie in it: keep it where only you can read it.
# docs/configuration.md describes every key; those that are not here have their defaults.

[trust]
# Who is let in: devices that `thicket ca enroll` has enrolled, and nobody else. It is no secret.
root = '''
{root}'''

[mesh]
id = {id}
security = "sae"
passphrase = {passphrase}{offered}
# Where the nodes are used, such as "DE" or "US": decides which channels and power are legal.
#country = "00"
# 1 to 13, or in the 5 GHz band 36 to 48 and 149 to 165, which need a country.
#channel = 1

[address]
prefix = {prefix}

[cluster]
name = {name}
cookie = {cookie}

[access]
# Who may log in as root by ssh: the line in your file ~/.ssh/id_ed25519.pub.
{keys}
# A root shell on the serial port, for whoever can touch the node. Enrolment over it needs that.
#console = true
"""


def text(authority: Authority, keys: Sequence[str] = ()) -> str:
    """Return the file's text. It is the same every time.

    :param keys: SSH public keys of those who may log in.
    :raises AuthorityError: when there is no fleet, or no valid configuration can be made for it.
    """
    fleet = authority.fleet
    passphrase, cookie = authority.network.secrets()
    offered = authority.network.next_passphrase()
    name = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "-" for c in fleet.name)
    made = _TEXT.format(
        fleet=" ".join(fleet.name.split()),
        root=pem(fleet.root.der),
        id=toml_value(_shortened(fleet.name, 32)),
        passphrase=toml_value(passphrase),
        # a change that is under way: such a card works before and after it
        offered=f"\nnext_passphrase = {toml_value(offered)}" if offered else "",
        # a /48 is the whole site on-link; the nodes' own half is the same
        prefix=toml_value(f"{fleet.network.network_address}/{fleet.network.prefixlen}"),
        name=toml_value(name[:64].strip("-") or "thicket"),
        cookie=toml_value(cookie),
        keys=_keys(keys),
    )
    try:
        parse(made.encode(), "thicket.toml")
    except ConfigError as error:
        raise AuthorityError(
            f"no valid configuration can be made for this fleet:\n{error}"
        ) from None
    return made


def _keys(keys: Sequence[str]) -> str:
    lines = [f"  {toml_value(key)}," for key in keys]
    return "\n".join(["ssh_keys = [", *lines, "]"]) if keys else '#ssh_keys = ""'


def keys_in(path: Path) -> list[str] | None:
    """Return the SSH keys of a file that is there already, or None."""
    try:
        return parse(read_limited(str(path)), str(path)).access.ssh_keys.splitlines()
    except (OSError, ConfigError):
        return None


def is_same(path: Path, authority: Authority, keys: Sequence[str]) -> bool:
    """Return whether the file is as it would be made with these keys."""
    try:
        return path.read_text(encoding="utf-8") == text(authority, keys)
    except (OSError, UnicodeDecodeError):
        return False


def _shortened(text: str, most: int) -> str:
    return text.encode()[:most].decode(errors="ignore")


def write(path: Path, made: str) -> bool:
    """Write the file, readable by its owner only.

    :returns: False when it is there already, with the same contents.
    :raises AuthorityError: when it cannot be written, or is there with other contents: what
        somebody has edited is not replaced.
    """
    try:
        if path.read_text(encoding="utf-8") == made:
            return False
        raise AuthorityError(
            f"{path} is there already, with other contents; it is not replaced. Choose another "
            "name, or remove it"
        )
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise AuthorityError(f"{path}: {error}") from None
    try:
        with held():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(made)
    except OSError as error:
        raise AuthorityError(f"{path}: {error.strerror}") from None
    return True

# SPDX-License-Identifier: Apache-2.0
"""The configuration that goes onto a card: judged by the node's own schema, put on by mtools."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from firmware.errors import FlashError
from host import mtools
from host.errors import HostError
from thicket.base.fields import ConfigError
from thicket.base.files import read_limited
from thicket.base.toml import toml_value
from thicket.cluster.section import ClusterSection
from thicket.config.parse import parse
from thicket.config.schema import Settings, locked_out

FILE = "thicket.toml"


def read(path: Path) -> bytes:
    """Return a configuration file that a node will accept.

    :raises FlashError: when there are faults; the text has every one that the node would find.
    """
    try:
        data = read_limited(str(path))
        parse(data, str(path))
    except OSError as error:
        raise FlashError(f"the configuration {path} cannot be read: {error.strerror}") from None
    except ConfigError as error:
        faults = "\n".join(f"  {finding}" for finding in error.findings)
        raise FlashError(
            f"a node would refuse this configuration:\n{faults}\n"
            "  docs/configuration.md lists all keys and what is allowed."
        ) from None
    return data


def described(data: bytes) -> str:
    """Return what a person wants to see of a configuration, in one line."""
    settings = parse(data, FILE)
    mesh = settings.mesh
    return (
        f"mesh {toml_value(mesh.id)}, {mesh.security}, channel {mesh.channel}, "
        f"prefix {settings.address.prefix}"
    )


def lockout(data: bytes | None) -> str | None:
    """Return why nobody will get into a device with this configuration, or None.

    None stands for the image's defaults, which name nobody.
    """
    settings = parse(data, FILE) if data is not None else Settings()
    why = locked_out(settings)
    if why is None:
        return None
    return (
        f"NOBODY WILL BE ABLE TO GET INTO THIS DEVICE: {why}. `bin/thicket ca config --out "
        "my.toml` makes a configuration with your key, for CONFIG=my.toml; or edit thicket.toml on "
        "the card before its first start."
    )


def warnings(data: bytes) -> list[str]:
    """Return what is allowed in a configuration, but may not be wanted in the field."""
    settings = parse(data, FILE)
    found = []
    if settings.mesh.security == "open":
        found.append(
            "the mesh is open: anybody near may join and listen "
            '(mesh.security = "sae" and a passphrase prevent it)'
        )
    elif not settings.mesh.passphrase:
        found.append("mesh.passphrase is not set: the radio stays off until it is")
    elif len(settings.mesh.passphrase) < 12:
        found.append("mesh.passphrase has fewer than 12 characters: it may be guessed")
    if not settings.access.ssh_keys and locked_out(settings) is None:
        found.append("access.ssh_keys is empty: there is no way in by SSH")
    if settings.cluster.cookie == ClusterSection.cookie.default:
        found.append("cluster.cookie is the one that every image has")
    if settings.mesh.country == "00":
        found.append(
            "mesh.country is not set: only channels and power that are legal everywhere are used"
        )
    return found


def put(partition: BinaryIO, data: bytes) -> None:
    """Write ``thicket.toml`` into a FAT file system in a file, over one that is there.

    :raises FlashError: when that fails, also because what is read back is not ``data``.
    """
    _mtools(partition, ["mcopy", "-o", "-i", "@", "-", f"::{FILE}"], data)
    if get(partition) != data:
        raise FlashError(f"mcopy wrote another {FILE} than it was given; its version: mtools -V")


def get(partition: BinaryIO) -> bytes | None:
    """Return ``thicket.toml`` of a FAT file system in a file; None when it has none."""
    listing = _mtools(partition, ["mdir", "-b", "-i", "@", "::"])
    if f"::/{FILE}" not in listing.decode(errors="replace").splitlines():
        return None
    return _mtools(partition, ["mtype", "-i", "@", f"::{FILE}"])


def _mtools(partition: BinaryIO, command: list[str], data: bytes = b"") -> bytes:
    # Files without a name are used, which mtools reaches through /proc.
    fd = partition.fileno()
    command = [f"/proc/self/fd/{fd}" if word == "@" else word for word in command]
    try:
        done = mtools.run(command, data, pass_fds=[fd])
    except HostError as error:
        raise FlashError(str(error)) from None
    if done.failed:
        said = (done.said + done.output.decode(errors="replace")).strip()
        raise FlashError(
            f"the card's configuration partition could not be used: {command[0]} said: {said}"
        )
    return done.output

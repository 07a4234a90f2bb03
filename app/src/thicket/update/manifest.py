# SPDX-License-Identifier: Apache-2.0
"""The manifest of a bundle: which device it is for, which version, and what is in it.

RAUC reads it with GLib's key files, which allow much more than a bundle needs: escapes, comments,
translations, groups that occur twice. Here only one form is read, the one that is written: a text
is taken if writing anew what was understood gives the same bytes. So this reader and RAUC's never
understand two different things.
"""

from __future__ import annotations

from typing import NamedTuple

from thicket.update.errors import BundleError

MAX_SIZE = 64 * 1024
"""Bytes of the largest manifest that is read."""

HASH_DIGITS = 64

MAX_EPOCH = 9999
"""The highest epoch: it grows by one with the repair of a hole, and a chip counts up to it."""

_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_FILE = _NAME | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ._")
_MOST_GROUPS = 64
_MOST_DIGITS = 12
_HOOKS = ("pre-install", "install", "post-install")

Group = dict[str, str]


class Image(NamedTuple):
    """One image in a bundle.

    :ivar slot: the class of slots that it is for: ``boot`` or ``rootfs``.
    :ivar filename: its name in the bundle.
    :ivar sha256: in 64 hexadecimal digits.
    :ivar hooks: what the bundle's hook is called for.
    """

    slot: str
    filename: str
    sha256: str
    size: int
    hooks: tuple[str, ...] = ()


class Verity(NamedTuple):
    """The hash tree over a bundle's contents, which only the manifest that is signed names.

    :ivar root: hash of the tree's top, in 64 hexadecimal digits.
    :ivar salt: likewise.
    :ivar size: bytes of the tree.
    """

    root: str
    salt: str
    size: int


class Manifest(NamedTuple):
    """What a bundle says of itself.

    :ivar compatible: the kind of device that it is for: ``thicket-rpi64``.
    :ivar build: the commit that it was built from.
    :ivar hook: name of the program in the bundle that RAUC calls; empty for none.
    :ivar meta: facts of ours by their group and key; RAUC hands them to hooks and handlers.
    """

    compatible: str
    version: str
    build: str
    images: tuple[Image, ...]
    hook: str
    meta: dict[str, Group]
    verity: Verity | None = None

    @property
    def epoch(self) -> int:
        """The security epoch: a device takes nothing below the one in force.

        :raises BundleError: the manifest names none.
        """
        try:
            epoch = _number(self.meta["thicket"]["epoch"], "the epoch")
        except KeyError:
            raise BundleError("the manifest names no epoch: it is of no Thicket bundle") from None
        if epoch > MAX_EPOCH:
            raise BundleError(f"the epoch is {epoch}, and {MAX_EPOCH} is the highest")
        return epoch

    @property
    def root(self) -> str:
        """The dm-verity root hash of the root; empty where it is not named.

        :raises BundleError: what is named is no hash.
        """
        named = self.meta.get("thicket", {}).get("root", "")
        return _hash(named, "the root hash") if named else ""

    def text(self) -> bytes:
        """Return the manifest as RAUC reads it."""
        groups: list[tuple[str, Group]] = [
            (
                "update",
                {"compatible": self.compatible, "version": self.version, "build": self.build},
            )
        ]
        bundle = {"format": "verity"}
        if self.verity is not None:
            bundle["verity-hash"] = self.verity.root
            bundle["verity-salt"] = self.verity.salt
            bundle["verity-size"] = str(self.verity.size)
        groups.append(("bundle", bundle))
        if self.hook:
            groups.append(("hooks", {"filename": self.hook}))
        for image in self.images:
            one = {"sha256": image.sha256, "size": str(image.size)}
            if image.hooks:
                one["hooks"] = ";".join(image.hooks)
            groups.append((f"image.{image.slot}", one | {"filename": image.filename}))
        groups += [(f"meta.{name}", group) for name, group in self.meta.items()]
        parts = (
            f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in group.items())
            for name, group in groups
        )
        return "\n".join(parts).encode("ascii")


def read(data: bytes) -> Manifest:
    """Read a manifest.

    :raises BundleError: it is not in the form that :meth:`Manifest.text` writes.
    """
    if len(data) > MAX_SIZE:
        raise BundleError(f"a manifest of {len(data)} bytes: at most {MAX_SIZE} are read")
    groups = _groups(data)
    update, bundle = _known(groups, "update"), _known(groups, "bundle")
    if (kind := bundle.get("format")) != "verity":
        raise BundleError(
            f"the bundle's format is {kind or 'not named'}: Thicket takes verity only, as RAUC's "
            "plain format is checked before it is read, and can be changed in between"
        )
    verity = None
    if "verity-hash" in bundle:
        verity = Verity(
            _hash(_value(bundle, "verity-hash"), "verity-hash"),
            _hash(_value(bundle, "verity-salt"), "verity-salt"),
            _number(_value(bundle, "verity-size"), "verity-size"),
        )
    images = tuple(
        _image(name.removeprefix("image."), group)
        for name, group in groups.items()
        if name.startswith("image.")
    )
    hook = groups["hooks"].get("filename", "") if "hooks" in groups else ""
    if hook:
        _file(hook)
    manifest = Manifest(
        _value(update, "compatible"),
        _value(update, "version"),
        _value(update, "build"),
        images,
        hook,
        {n.removeprefix("meta."): g for n, g in groups.items() if n.startswith("meta.")},
        verity,
    )
    if manifest.text() != data:
        raise BundleError(
            "the manifest has groups or keys that are not known here, or is not in the order in "
            "which Thicket writes it"
        )
    return manifest


def _groups(data: bytes) -> dict[str, Group]:
    found: dict[str, Group] = {}
    group: Group | None = None
    for number, line in enumerate(data.split(b"\n"), start=1):
        if any(not 0x20 <= byte <= 0x7E or byte == 0x5C for byte in line):
            raise BundleError(f"line {number} of the manifest has characters that none has")
        text = line.decode("ascii")
        if not text:
            continue
        if text[0] == "[":
            name = text[1:-1]
            plain = not set(name) - _NAME - {"."} and text == f"[{name}]"
            if not plain or not name or name in found or len(found) >= _MOST_GROUPS:
                raise BundleError(f"line {number} of the manifest: not one more group: {text}")
            group = found[name] = {}
            continue
        key, equals, value = text.partition("=")
        if group is None or not equals or not key or set(key) - _NAME or key in group:
            raise BundleError(f"line {number} of the manifest: not one more key: {text[:80]}")
        if not value or value != value.strip():
            raise BundleError(f"line {number} of the manifest: {key} has no plain value")
        group[key] = value
    return found


def _known(groups: dict[str, Group], name: str) -> Group:
    try:
        return groups[name]
    except KeyError:
        raise BundleError(f"the manifest has no group [{name}]") from None


def _value(group: Group, key: str) -> str:
    try:
        return group[key]
    except KeyError:
        raise BundleError(f"the manifest does not name {key}") from None


def _image(slot: str, group: Group) -> Image:
    hooks = tuple(group["hooks"].split(";")) if "hooks" in group else ()
    if not slot or set(slot) - _NAME:
        raise BundleError(f"{slot!r} is no class of slots")
    if unknown := set(hooks) - set(_HOOKS):
        raise BundleError(f"[image.{slot}] has a hook that is not known: {sorted(unknown)[0]}")
    return Image(
        slot,
        _file(_value(group, "filename")),
        _hash(_value(group, "sha256"), f"sha256 of {slot}"),
        _number(_value(group, "size"), f"size of {slot}"),
        hooks,
    )


def _file(name: str) -> str:
    """Return a file name that is no path."""
    if set(name) - _FILE or name.startswith((".", "-")):
        raise BundleError(f"{name!r} is no name of a file in a bundle")
    return name


def _hash(text: str, what: str) -> str:
    if len(text) != HASH_DIGITS or set(text) - frozenset("0123456789abcdef"):
        raise BundleError(f"{what} in the manifest is no SHA-256 in {HASH_DIGITS} digits")
    return text


def _number(text: str, what: str) -> int:
    digits = text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS
    if not digits or str(int(text)) != text:
        raise BundleError(f"{what} in the manifest is no number: {text[:40]!r}")
    return int(text)

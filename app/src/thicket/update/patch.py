# SPDX-License-Identifier: Apache-2.0
"""The file of a patch, from which a node makes a signed bundle, byte for byte.

    first line    thicket patch 1
    size          of the header, 4 bytes, the highest first
    header        a JSON object in the one form in which it is written
    frame         zstd, to the end of the file

The frame makes the *body*: the bundle without its hash trees, that of the root in it and that over
its own contents. They are a third of a small change and nothing that could not be computed: the
header says where each tree belongs and what it is over. The signature is in the body.

The frame's prefix is the *base*, what the node runs from: the root without its hash tree, zeros up
to the next 64 KiB, and the boot image. In a slot the boot image differs from the bundle's in the
command line. Such ranges, and long ones of zeros, are *masked*: they count as zeros whatever they
hold, so that slots A and B are the same base. The whole bundle is a patch without base.

A patch needs no signature: what it makes is compared with the SHA-256 that a signed offer names.
"""

from __future__ import annotations

from typing import BinaryIO, Final, NamedTuple

from thicket.base.errors import CodedError
from thicket.trust import kinds
from thicket.update import verity
from thicket.update.bundle import MAX_BYTES
from thicket.update.strict import digits, items, members, number
from thicket.update.verity import BLOCK

LINE: Final = kinds.PATCH
MAX_HEADER = 8192
MAX_MASKS = 64
MAX_TREES = 4

ALIGNED = 65536
"""What the boot image in a base is aligned to: whole pages on every processor."""

BAD_PATCH = "bad-patch"
OTHER_TARGET = "other-target"
NO_BASE = "no-base"
OTHER_BASE = "other-base"
BASE_DIFFERS = "base-differs"
DIFFERS = "differs"
NO_SPACE = "no-space"

AGAIN: Final = "get it anew; if it is the same then, make it anew (`thicket update delta`)"

_SIZE = 4
_DIGEST = 32


class PatchError(CodedError):
    """The bundle cannot be made from a patch; nothing of it is left.

    The code is one of these, or ``no-zstd`` where the library is missing:

    ``bad-patch``
        the file is no patch, or a damaged one
    ``other-target``
        it makes another bundle than the one that is wanted
    ``no-base``
        it is a change of something, and this node runs from no slot of a card
    ``other-base``
        it is a change of another root than the one that runs
    ``base-differs``
        the boot slot is not as the image had it
    ``differs``
        what was made is not the bundle
    ``no-space``, ``no-memory``
        there is not enough of it
    ``card``
        the card, or the disk of ``/data``, fails
    ``failed``
        anything else; it did not end in time
    """


class HashTree(NamedTuple):
    """A dm-verity hash tree in the bundle.

    :ivar at: where it lies.
    :ivar start: where the data begins that it is over.
    :ivar size: bytes of these.
    :ivar salt: in hexadecimal digits.
    """

    at: int
    start: int
    size: int
    salt: str

    @property
    def bytes(self) -> int:
        """How long it is."""
        return verity.tree_bytes(self.size)


class Boot(NamedTuple):
    """The boot image of a base, as far as it is used.

    :ivar size: whole blocks of 4096 bytes.
    :ivar sha256: of these bytes with zeros in place of what is masked.
    :ivar masks: ranges that count as zeros, each with its start and end.
    """

    size: int
    sha256: str
    masks: tuple[tuple[int, int], ...]


class Root(NamedTuple):
    """The root of a base, without its hash tree.

    :ivar hash: root hash of the tree, which stands for it.
    :ivar size: whole blocks of 4096 bytes.
    """

    hash: str
    size: int


class Base(NamedTuple):
    """What a patch is a change of."""

    root: Root
    boot: Boot

    @property
    def boot_at(self) -> int:
        """Where the boot image begins."""
        return self.root.size + -self.root.size % ALIGNED

    @property
    def size(self) -> int:
        """Bytes of the whole."""
        return self.boot_at + self.boot.size


class Header(NamedTuple):
    """What a patch says of itself.

    :ivar size: bytes of the bundle that it makes.
    :ivar sha256: of that bundle.
    :ivar base: None where it needs none.
    :ivar trees: in the order in which they lie in the bundle.
    """

    size: int
    sha256: str
    base: Base | None
    trees: tuple[HashTree, ...]

    @property
    def body(self) -> int:
        """How many bytes the frame makes."""
        return self.size - sum(tree.bytes for tree in self.trees)

    @property
    def base_hash(self) -> str:
        """What stands for the base in an offer; empty where it needs none."""
        return self.base.root.hash if self.base else ""

    def packed(self) -> bytes:
        """Return everything that is in front of the frame.

        :raises PatchError: it is longer than any that is read.
        """
        import json

        base = None
        if self.base is not None:
            boot = self.base.boot
            base = {
                "boot": {"masks": boot.masks, "sha256": boot.sha256, "size": boot.size},
                "root": self.base.root._asdict(),
            }
        said = {
            "base": base,
            "bundle": {"sha256": self.sha256, "size": self.size},
            "trees": [tree._asdict() for tree in self.trees],
        }
        text = json.dumps(said, sort_keys=True, separators=(",", ":")).encode("ascii")
        if len(text) > MAX_HEADER:
            raise PatchError(BAD_PATCH, f"a header of {len(text)} bytes; at most {MAX_HEADER}")
        return LINE + len(text).to_bytes(_SIZE, "big") + text


def read(file: BinaryIO) -> Header:
    """Read everything in front of the frame; the file is then at the frame.

    :raises PatchError: it is no patch, or what it says is out of bounds.
    """
    import json

    if file.read(len(LINE)) != LINE:
        raise PatchError(
            BAD_PATCH,
            f"this is {kinds.kind(file)}, and a patch is needed; `thicket update delta` makes "
            "OLD-to-NEW.patch",
        )
    size = int.from_bytes(file.read(_SIZE), "big")
    if not 0 < size <= MAX_HEADER:
        raise PatchError(BAD_PATCH, f"a damaged patch: a header of {size} bytes; {AGAIN}")
    text = file.read(size)
    try:
        header = _header(json.loads(text.decode("ascii")))
        if header.packed() != LINE + size.to_bytes(_SIZE, "big") + text:
            raise ValueError("its header is not in the one form in which it is written")
    except (ValueError, RecursionError) as error:
        words = str(error)[:200]
        raise PatchError(BAD_PATCH, f"a damaged patch: {words}; {AGAIN}") from None
    return header


def _header(raw: object) -> Header:
    said = members(raw, "the header", ("base", "bundle", "trees"))
    bundle = members(said["bundle"], "bundle", ("sha256", "size"))
    size = number(bundle["size"], "size of the bundle", 1, MAX_BYTES)
    trees = tuple(_tree(one, size) for one in items(said["trees"], "trees", 0, MAX_TREES))
    end = 0
    for tree in trees:
        if tree.at < end:
            raise ValueError("two hash trees lie in the same place")
        end = tree.at + tree.bytes
    base = None if said["base"] is None else _base(said["base"])
    header = Header(size, digits(bundle["sha256"], "sha256 of the bundle", _DIGEST), base, trees)
    if header.body < 1:
        raise ValueError("a bundle of hash trees alone")
    return header


def _tree(raw: object, size: int) -> HashTree:
    said = members(raw, "a hash tree", HashTree._fields)
    at = number(said["at"], "place of a hash tree", 2 * BLOCK, size)
    over = number(said["size"], "data of a hash tree", 2 * BLOCK, at)
    if over % BLOCK or at + verity.tree_bytes(over) > size:
        raise ValueError(f"a hash tree over {over} bytes does not fit at {at}")
    start = number(said["start"], "start of a hash tree's data", 0, at - over)
    return HashTree(at, start, over, digits(said["salt"], "salt of a hash tree", _DIGEST))


def _base(raw: object) -> Base:
    said = members(raw, "base", Base._fields)
    root = members(said["root"], "root of the base", Root._fields)
    boot = members(said["boot"], "boot image of the base", Boot._fields)
    size = _blocks(boot["size"], "boot image of the base")
    masks: list[tuple[int, int]] = []
    end = -1
    for one in items(boot["masks"], "masks", 0, MAX_MASKS):
        first, last = items(one, "a mask", 2, 2)
        start = number(first, "start of a mask", end + 1, size)
        end = number(last, "end of a mask", start + 1, size)
        masks.append((start, end))
    return Base(
        Root(
            digits(root["hash"], "hash of the base", _DIGEST),
            _blocks(root["size"], "root of the base"),
        ),
        Boot(size, digits(boot["sha256"], "sha256 of the boot image", _DIGEST), tuple(masks)),
    )


def _blocks(raw: object, what: str) -> int:
    size = number(raw, f"size of the {what}", BLOCK, MAX_BYTES)
    if size % BLOCK:
        raise ValueError(f"size of the {what} is no number of whole blocks")
    return size

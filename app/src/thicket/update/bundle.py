# SPDX-License-Identifier: Apache-2.0
"""The file of a RAUC bundle in verity format, before and after it is signed.

    contents      squashfs, whole blocks of 4096 bytes
    hash tree     dm-verity over the contents, see ``verity``
    end           signed: a message (``trust.cms``) around the manifest
                  unsigned: the manifest alone
    size          of the end, 8 bytes, the highest first

Only the end differs, so that signing reads no image and rewrites none. RAUC refuses an unsigned
bundle. Everything up to the end is the same for the same commit; a signature is not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import BinaryIO, NamedTuple

from thicket.trust import cms, kinds, signed_file
from thicket.trust.cms import CmsError, Message
from thicket.trust.fleet import Fleet
from thicket.trust.signed_file import EndError
from thicket.trust.update_signer import check_signature
from thicket.trust.verify import Verify, verify_signature
from thicket.update import manifest as manifests
from thicket.update import verity
from thicket.update.errors import BundleError
from thicket.update.manifest import Manifest, Verity
from thicket.update.verity import BLOCK

MAX_BYTES = 512 << 20
"""Bytes of the largest bundle that is read; the slots of a card take less than half of it."""

MAX_END = max(cms.MAX_SIZE, manifests.MAX_SIZE)

_AGAIN = "copy it again, and if it is the same then, get it anew from where it was built"
_MADE = "`make BOARD-bundle` makes NAME.unsigned, `thicket update sign` NAME.raucb of it"


class UnsignedError(BundleError):
    """The bundle is not signed, and was to be verified."""

    code = "unsigned"


class DamagedError(BundleError):
    """The contents are not those that the manifest's hash tree is of."""

    code = "damaged"


class Bundle(NamedTuple):
    """A bundle that was read; what is in it is unread and unverified.

    :ivar contents: bytes of the squashfs.
    :ivar payload: bytes in front of the end: contents and hash tree.
    :ivar verity: the tree, as the manifest names it.
    :ivar message: the signature, if there is one; nobody has checked it.
    """

    contents: int
    payload: int
    manifest: Manifest
    verity: Verity
    message: Message | None


def read(file: BinaryIO) -> Bundle:
    """Read the end of a bundle.

    :param file: a seekable file.
    :raises BundleError: it is none.
    """
    payload, end = _end(file)
    message: Message | None = None
    text = end
    if end.startswith(kinds.DER):
        try:
            message = cms.read(end)
        except CmsError as error:
            raise BundleError(f"the end of the file is {error}; {_AGAIN}") from None
        text = message.content
        if not text.startswith(kinds.MANIFEST):
            raise _no_bundle(file)
    manifest = manifests.read(text)
    tree = manifest.verity
    if tree is None:
        raise BundleError(f"the manifest names no hash tree over the contents; {_AGAIN}")
    contents = payload - tree.size
    if contents < 2 * BLOCK or contents % BLOCK or tree.size != verity.tree_bytes(contents):
        raise BundleError(
            f"a hash tree of {tree.size} bytes does not go with a payload of {payload}: part of "
            f"the file is missing, or there is too much of it; {_AGAIN}"
        )
    return Bundle(contents, payload, manifest, tree, message)


def _end(file: BinaryIO) -> tuple[int, bytes]:
    """Return the size of the payload, and what is behind it."""
    whole = file.seek(0, os.SEEK_END)
    file.seek(0)
    if whole > MAX_BYTES:
        raise BundleError(
            f"this is no bundle: {whole >> 20} MiB, and bundles have at most {MAX_BYTES >> 20}"
        )
    if file.read(len(kinds.SQUASHFS)) != kinds.SQUASHFS:
        raise _no_bundle(file)
    try:
        payload, found = signed_file.read(file, MAX_END)
    except EndError:
        raise _no_bundle(file) from None
    if payload < 2 * BLOCK or payload % BLOCK:
        raise _no_bundle(file)
    return payload, found


def _no_bundle(file: BinaryIO) -> BundleError:
    found = kinds.kind(file)
    if found == kinds.CUT_OFF:
        return BundleError(f"this is {found}; {_AGAIN}")
    return BundleError(f"this is {found}, and a bundle is needed; {_MADE}")


def end(data: bytes) -> bytes:
    """Return what goes behind the payload of a bundle.

    :param data: a signed message, or the manifest.
    """
    if not 0 < len(data) <= MAX_END:
        raise BundleError(f"the end of a bundle has at most {MAX_END} bytes, not {len(data)}")
    return signed_file.pack(data)


def check_contents(
    file: BinaryIO,
    contents: int,
    named: Verity,
    progress: Callable[[int], object] = lambda _: None,
) -> None:
    """Compare every byte of the contents, and of the hash tree, with the manifest.

    :param contents: as in :class:`Bundle`, and so is ``named`` (its ``verity``).
    :param progress: called with the bytes of each piece of the contents that was read.
    :raises DamagedError: they differ; the text says which part does.
    :raises BundleError: the file ends within them.
    """
    salt = bytes.fromhex(named.salt)
    made = verity.tree(file, contents, salt, progress=progress)
    file.seek(contents)
    kept = file.read(named.size)
    if made.root.hex() == named.root:
        if made.blocks == kept:
            return
        at = contents + _first_difference(made.blocks, kept)
        raise DamagedError(
            f"the hash tree behind the images is damaged, at byte {at}, and the images are good; "
            f"{_AGAIN}"
        )
    where = verity.damaged(made, kept, contents)
    if where and verity.root_of(kept, contents, salt).hex() == named.root:
        raise DamagedError(
            f"the images are damaged: {len(where)} of {contents // BLOCK} blocks, the first at "
            f"byte {where[0]}; {_AGAIN}"
        )
    raise DamagedError(
        "images and hash tree are not those that were signed: of another bundle, or both damaged; "
        f"{_AGAIN}"
    )


def _first_difference(one: bytes, other: bytes) -> int:
    """Return where two texts differ first, or the length of the shorter one."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def check_signer(
    bundle: Bundle,
    fleet: Fleet,
    *,
    revoked: Collection[str] = (),
    verify: Verify = verify_signature,
) -> str:
    """Return who has signed a bundle, if that counts in a fleet.

    :param revoked: names of devices and signers, as ``Revocations.names`` has them.
    :raises UnsignedError: nobody has.
    :raises SignerRefusedError: it does not count.
    """
    if bundle.message is None:
        raise UnsignedError(
            "it is not signed: `thicket update sign FILE` on the engineer's machine"
        )
    return check_signature(bundle.message, fleet, revoked=revoked, verify=verify)

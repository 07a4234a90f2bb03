# SPDX-License-Identifier: Apache-2.0
"""What a node keeps of an update on its card: the newest offer, and the chunks of its patches.

    /data/update/offered/offer           the signed offer
    /data/update/offered/SHA256.list     the chunk list of a patch: the SHA-256s of its chunks
    /data/update/offered/SHA256.patch    the patch, in its full length from the beginning on

Which chunks are there is not written down: those are there whose hashes are right. So a power cut
costs the chunks that were not on the card yet, a damaged one is fetched again, and no chunk is
passed on that differs from what was signed. Patches stay, so that the node serves them, until a
newer offer comes.

Everything here may wait for the card: the caller has a thread for it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from hashlib import sha256

from thicket.base.errors import CodedError
from thicket.base.files import (
    discard,
    entries,
    opened,
    own_folder,
    read_kept,
    sync_file,
    sync_folder,
    write_atomically,
)
from thicket.base.units import size_text
from thicket.trust import cms
from thicket.update.offer import CHUNK, Patch

FOLDER = "/offered"
"""In the folder of a subject; nothing else is there."""

RESERVE = 16 << 20
"""Bytes that stay free on ``/data``."""

MOST_BYTES = 1 << 30
"""Bytes of all patches that are kept, at most."""

HASH = 32

NO_ROOM = "no-room"
NOT_KEPT = "not-kept"
WRONG = "wrong"

#: A pipe hangs nobody, and a link leads nowhere.
_PLAIN = os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_OFFER = "offer"
_SPARE = 64 * 1024


class StoreError(CodedError):
    """Something cannot be kept, with ``no-room``, ``not-kept`` or ``wrong``: it is not what was
    signed. The text says what to do."""


class Held:
    """The chunks of one patch on the card.

    :param path: of the files, without their ends.
    :param listed: the chunk list; it is the one that was signed.
    :ivar have: the chunks that are there: bit N is set for chunk N.
    """

    __slots__ = ("_list", "have", "patch", "path")

    def __init__(self, path: str, patch: Patch, listed: bytes) -> None:
        self.path = path + ".patch"
        self.patch = patch
        self.have = 0
        self._list = listed

    @property
    def complete(self) -> bool:
        """Whether every chunk is there."""
        return self.have == everything(self.patch)

    @property
    def size(self) -> int:
        """Bytes of the patch that are there."""
        last = self.patch.chunk_count - 1
        short = CHUNK - length(self.patch, last) if self.have >> last & 1 else 0
        return self.have.bit_count() * CHUNK - short

    def look(self) -> None:
        """Find out which chunks are there, by reading all of them."""
        have = 0
        try:
            with opened(self.path) as file:
                for number in range(self.patch.chunk_count):
                    if self.is_right(number, file.read(CHUNK)):
                        have |= 1 << number
        except OSError:
            pass  # what cannot be read is not there
        self.have = have

    def is_right(self, number: int, data: bytes) -> bool:
        """Whether these are the bytes of a chunk."""
        at = number * HASH
        return (
            len(data) == length(self.patch, number)
            and sha256(data).digest() == self._list[at : at + HASH]
        )

    def part_of_list(self, number: int) -> bytes:
        """Return a chunk of the chunk list; empty where there is none of this number."""
        return self._list[number * CHUNK : (number + 1) * CHUNK] if number >= 0 else b""

    def write(self, number: int, data: bytes) -> None:
        """Keep a chunk, which :meth:`is_right`.

        :raises StoreError: the card does not take it.
        """
        try:
            fd = os.open(self.path, os.O_WRONLY | _PLAIN)
            try:
                view, at = memoryview(data), number * CHUNK
                while view:
                    done = os.pwrite(fd, view, at)
                    view, at = view[done:], at + done
            finally:
                os.close(fd)
        except OSError as error:
            raise _failed(error) from None
        self.have |= 1 << number

    def read(self, number: int) -> bytes | None:
        """Return a chunk; None where it is not there, or no longer as it was signed."""
        if not self.have >> number & 1:
            return None
        data = b""
        try:
            with opened(self.path) as file:
                file.seek(number * CHUNK)
                data = file.read(CHUNK)
        except OSError:
            pass  # as if it were damaged
        if self.is_right(number, data):
            return data
        self.have &= ~(1 << number)
        return None

    def finish(self) -> None:
        """Write the whole patch out to the card.

        :raises StoreError: it is not there, is not what was signed, or the card does not take it.
        """
        whole = sha256()
        try:
            with opened(self.path) as file:
                while data := file.read(CHUNK):
                    whole.update(data)
                os.fsync(file.fileno())
            sync_file(self.path.removesuffix(".patch") + ".list")
            sync_folder(os.path.dirname(self.path))
        except OSError as error:
            raise _failed(error) from None
        if whole.hexdigest() != self.patch.sha256:
            self.look()
            if self.complete:
                raise StoreError(
                    WRONG, "the patch is not the one that its offer names: make the offer anew"
                )
            raise StoreError(NOT_KEPT, "the card has lost parts of the patch; they are fetched")


class Store:
    """The folder with what the node keeps of an update.

    :param folder: it is made when something is kept.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def offer(self) -> bytes:
        """Return the packed offer, which nobody has checked; empty without one."""
        try:
            packed = read_kept(f"{self.folder}/{_OFFER}", cms.MAX_SIZE + 1)
        except OSError:
            return b""
        return packed if len(packed) <= cms.MAX_SIZE else b""

    def keep(self, packed: bytes, patches: Collection[Patch]) -> None:
        """Keep an offer in place of the one before, and only what belongs to it.

        It outlives a power cut when :meth:`settle` has ended.

        :raises StoreError: it cannot be written; what was before stays.
        """
        try:
            own_folder(self.folder)
            write_atomically(f"{self.folder}/{_OFFER}", packed, durable=False, own=True)
        except OSError as error:
            raise _failed(error) from None
        self.sweep(patches)

    def settle(self) -> None:
        """Write the offer out to the card.

        :raises StoreError: the card does not take it.
        """
        try:
            sync_file(f"{self.folder}/{_OFFER}")
            sync_folder(self.folder)
        except OSError as error:
            raise _failed(error) from None

    def sweep(self, patches: Collection[Patch]) -> None:
        """Remove what belongs to no patch of these."""
        wanted = {patch.sha256 for patch in patches}
        for name in entries(self.folder):
            if name != _OFFER and name.partition(".")[0] not in wanted:
                discard(f"{self.folder}/{name}")

    def drop(self, patch: Patch) -> None:
        """Remove a patch."""
        discard(self._path(patch) + ".patch")
        discard(self._path(patch) + ".list")

    def open(self, patch: Patch) -> Held | None:
        """Return what is there of a patch; None when not even its chunk list is."""
        try:
            listed = read_kept(self._path(patch) + ".list", patch.chunk_count * HASH + 1)
        except OSError:
            return None
        if not is_list(patch, listed):
            return None
        held = Held(self._path(patch), patch, listed)
        held.look()
        return held

    def begin(self, patch: Patch, listed: bytes) -> Held:
        """Make room for a patch.

        :param listed: its chunk list.
        :raises StoreError: the list is wrong, there is no room, or the card does not take it.
        """
        if not is_list(patch, listed):
            raise StoreError(WRONG, "the chunk list is not the one that was signed")
        path = self._path(patch)
        try:
            self.check_room(patch)
            # Without it the list would be fetched again, and not the chunks.
            write_atomically(path + ".list", listed, durable=False, own=True)
            fd = os.open(path + ".patch", os.O_RDWR | os.O_CREAT | _PLAIN, 0o644)
            try:
                os.ftruncate(fd, patch.size)
                os.posix_fallocate(fd, 0, patch.size)
            finally:
                os.close(fd)
        except OSError as error:
            self.drop(patch)
            raise _failed(error) from None
        held = Held(path, patch, listed)
        held.look()
        return held

    def adopt(self, path: str, patch: Patch, listed: bytes) -> Held:
        """Keep a copy of a patch that is in a file on this node; :meth:`Held.finish` it then.

        :raises StoreError: the file is another one, or as :meth:`begin`.
        """
        held = self.begin(patch, listed)
        try:
            with opened(path) as file:
                for number in range(patch.chunk_count):
                    data = file.read(CHUNK)
                    if not held.is_right(number, data):
                        raise StoreError(WRONG, f"{path} has changed meanwhile")
                    if not held.have >> number & 1:
                        held.write(number, data)
        except OSError as error:
            raise _failed(error) from None
        return held

    def _path(self, patch: Patch) -> str:
        return f"{self.folder}/{patch.sha256}"

    def check_room(self, patch: Patch) -> None:
        """Find out whether there is room for what is not there yet of a patch.

        :raises StoreError: there is none.
        """
        try:
            own_folder(self.folder)
            found = os.statvfs(self.folder)
        except OSError as error:
            raise _failed(error) from None
        own = allocated(self._path(patch) + ".patch")
        kept = sum(allocated(f"{self.folder}/{name}") for name in entries(self.folder))
        if kept - own + patch.size > MOST_BYTES:
            raise StoreError(
                NO_ROOM,
                f"patches take {size_text(kept - own)} on /data already, and "
                f"{size_text(MOST_BYTES)} are allowed: an offer of fewer or smaller patches helps",
            )
        free = found.f_bavail * found.f_frsize
        needed = max(0, patch.size - own) + patch.chunk_count * HASH + _SPARE + RESERVE
        if free < needed:
            raise StoreError(
                NO_ROOM,
                f"/data has {size_text(free)} free, and a patch of {size_text(patch.size)} "
                f"needs {size_text(needed)}: remove something from /data, or use a larger card",
            )


def list_of(patch: Patch) -> bytes | None:
    """Return the chunk list if it follows from the offer: that of a patch of one chunk."""
    listed = bytes.fromhex(patch.sha256)
    return listed if is_list(patch, listed) else None


def everything(patch: Patch) -> int:
    """Return the bits of all chunks."""
    return (1 << patch.chunk_count) - 1


def length(patch: Patch, number: int) -> int:
    """Return the bytes of a chunk; 0 where there is none of this number."""
    return max(0, min(CHUNK, patch.size - number * CHUNK)) if number >= 0 else 0


def parts_of_list(patch: Patch) -> int:
    """Return how many chunks the chunk list itself has."""
    return (patch.chunk_count * HASH + CHUNK - 1) // CHUNK


def is_list(patch: Patch, listed: bytes) -> bool:
    """Whether this is the chunk list that was signed."""
    return len(listed) == patch.chunk_count * HASH and sha256(listed).hexdigest() == patch.chunks


def allocated(path: str) -> int:
    """Return the bytes that a file takes on the card."""
    try:
        return os.stat(path).st_blocks * 512
    except OSError:
        return 0


def _failed(error: OSError) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(NO_ROOM, "/data is full: remove something from it")
    return StoreError(NOT_KEPT, f"the card does not take it: {error.strerror or error}")

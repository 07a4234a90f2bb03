# SPDX-License-Identifier: Apache-2.0
"""Makes a bundle from a patch: what the process does that :mod:`thicket.update.rebuild` starts.

Base, patch and bundle are mapped files, and libzstd unpacks from the one into the other. So the
memory that this takes is small and does not grow with the image; all the rest is the kernel's page
cache. It is a process of its own because a card that fails ends it by SIGBUS, because its memory is
limited, and because it can be ended at any moment.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from io import BufferedRandom
from typing import NamedTuple

from thicket.base.files import remove, sync_folder
from thicket.base.headway import Tally, Tell
from thicket.base.units import size_text
from thicket.update import patch as patches
from thicket.update import verity, worker, zstd
from thicket.update.mapped import Mapped
from thicket.update.patch import Header, PatchError
from thicket.update.zstd import EMPTY, Memory, ZstdError

USAGE = "usage: apply MEMORY PATCH OUT SIZE SHA256 [HASH ROOT BOOT]"

NEW = ".new"
"""What is appended to the bundle's name while it is not complete."""

SPARE = 1 << 20
"""Bytes that stay free beside the bundle: without them it could be made, but not installed."""

_PIECE = 1 << 20


class Wanted(NamedTuple):
    """The bundle that is to be made.

    :ivar path: where it is put.
    :ivar sha256: in hexadecimal digits.
    """

    path: str
    size: int
    sha256: str


class Running(NamedTuple):
    """What this node runs from.

    :ivar hash: dm-verity root hash of the root.
    :ivar root: device or file with the root.
    :ivar boot: device or file with its boot image.
    """

    hash: str
    root: str
    boot: str


def _all(header: Header) -> int:
    """Return the bytes of all the work."""
    boot = header.base.boot.size if header.base else 0
    return boot + header.body + sum(tree.size for tree in header.trees) + header.size


def apply(path: str, wanted: Wanted, running: Running | None, tell: Tell) -> None:
    """Make a bundle from the patch in a file.

    The bundle appears as a whole and durably; where that fails, nothing of it is left.

    :param tell: called for every percent.
    :raises PatchError: it cannot be made.
    """
    with _faults(wanted), open(path, "rb") as file:
        header = patches.read(file)
        if (header.size, header.sha256) != (wanted.size, wanted.sha256):
            raise PatchError(patches.OTHER_TARGET, f"the patch makes another bundle: {_ANEW}")
        work = Tally(_all(header), tell)
        at, size = file.tell(), file.seek(0, os.SEEK_END)
        with _base(header, running, work) as prefix, _mapped(size) as packed:
            packed.place(0, file.fileno(), size)
            frame = Memory(packed.memory.address + at, size - at)
            _make(header, frame, prefix, wanted, work)


_ANEW = "offer and patches do not belong together, so make both anew (`thicket update offer`)"


@contextmanager
def _faults(wanted: Wanted) -> Iterator[None]:
    """Say in words what the system cannot give."""
    try:
        yield
    except MemoryError:
        raise PatchError(worker.NO_MEMORY, _no_memory()) from None
    except ZstdError as error:
        if error.code == zstd.BAD_FRAME:
            raise PatchError(
                patches.BAD_PATCH, f"a damaged patch: {error}; {patches.AGAIN}"
            ) from None
        message = _no_memory() if error.code == zstd.NO_MEMORY else str(error)
        raise PatchError(error.code, message) from None
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise PatchError(worker.NO_MEMORY, _no_memory()) from None
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PatchError(patches.NO_SPACE, _no_space(wanted)) from None
        code = worker.CARD if error.errno == errno.EIO else worker.FAILED
        name = error.filename or os.path.basename(wanted.path)
        raise PatchError(code, f"{name}: {error.strerror}") from None


def _no_memory() -> str:
    return "there is not enough memory to make a bundle from a patch: end what else runs"


def _no_space(wanted: Wanted) -> str:
    folder = os.path.dirname(wanted.path) or "."
    return (
        f"the bundle takes {size_text(wanted.size)} and {folder} has {size_text(_free(wanted))} "
        f"free, of which {size_text(SPARE)} are kept: remove what is not needed"
    )


def _free(wanted: Wanted) -> int:
    found = os.statvfs(os.path.dirname(wanted.path) or ".")
    return found.f_bavail * found.f_frsize


@contextmanager
def _mapped(size: int) -> Iterator[Mapped]:
    found = Mapped(size)
    try:
        yield found
    finally:
        found.close()


@contextmanager
def _base(header: Header, running: Running | None, work: Tally) -> Iterator[Memory]:
    """Yield the base of a patch as one piece of memory, checked as far as dm-verity has not."""
    base = header.base
    if base is None:
        yield EMPTY
        return
    if running is None:
        raise PatchError(
            patches.NO_BASE,
            "the patch is a change, and this node runs from no slot: take the whole",
        )
    if running.hash != base.root.hash:
        raise PatchError(
            patches.OTHER_BASE,
            f"the patch is a change of root {base.root.hash[:12]}, and {running.hash[:12]} runs: "
            "take another patch, or the whole",
        )
    with _mapped(base.size) as mapped:
        _place(mapped, 0, running.root, base.root.size)
        _place(mapped, base.boot_at, running.boot, base.boot.size)
        for start, end in base.boot.masks:
            mapped.mask(base.boot_at + start, base.boot_at + end)
        with mapped.view() as view, view[base.boot_at :] as boot:
            if _digest(boot, work) != base.boot.sha256:
                raise PatchError(
                    patches.BASE_DIFFERS,
                    "a file of the boot slot that runs was changed since it was written: take the "
                    "whole",
                )
        yield mapped.memory


def _place(mapped: Mapped, at: int, path: str, size: int) -> None:
    with open(path, "rb", buffering=0) as file:
        if file.seek(0, os.SEEK_END) < size:
            raise PatchError(
                patches.OTHER_BASE, f"{path} is shorter than what the patch is a change of"
            )
        mapped.place(at, file.fileno(), size)


def _make(header: Header, frame: Memory, prefix: Memory, wanted: Wanted, work: Tally) -> None:
    new = wanted.path + NEW
    remove(new)
    if _free(wanted) < header.size + SPARE:
        raise PatchError(patches.NO_SPACE, _no_space(wanted))
    try:
        with open(new, "x+b", opener=_private) as file:
            os.posix_fallocate(file.fileno(), 0, header.size)
            _fill(header, frame, prefix, file, work)
            os.fsync(file.fileno())
        os.replace(new, wanted.path)
        sync_folder(os.path.dirname(wanted.path) or ".")
    except BaseException:
        remove(new)
        raise


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _fill(header: Header, frame: Memory, prefix: Memory, file: BufferedRandom, work: Tally) -> None:
    """Make all bytes of a bundle in a file of its size."""
    with mmap.mmap(file.fileno(), header.size) as out:
        first = ctypes.c_char.from_buffer(out)
        try:
            made = zstd.unpack(frame, Memory(ctypes.addressof(first), header.body), prefix)
        finally:
            del first
        if made != header.body:
            raise PatchError(
                patches.BAD_PATCH,
                f"a damaged patch: it makes {made} bytes in place of {header.body}; "
                f"{patches.AGAIN}",
            )
        work.add(made)
        for tree in header.trees:
            # what is behind it moves to its place; it is short, as the trees lie near the end
            out.move(tree.at + tree.bytes, tree.at, made - tree.at)
            salt = bytes.fromhex(tree.salt)
            found = verity.tree(file, tree.size, salt, tree.start, work.add)
            out[tree.at : tree.at + tree.bytes] = found.blocks
            made += tree.bytes
        with memoryview(out) as view:
            if _digest(view, work) != header.sha256:
                raise PatchError(
                    patches.DIFFERS,
                    "what the patch makes is not the bundle that is signed: take another patch, or "
                    "the whole",
                )


def _digest(view: memoryview, work: Tally) -> str:
    found = sha256()
    for at in range(0, len(view), _PIECE):
        with view[at : at + _PIECE] as part:
            found.update(part)
            work.add(len(part))
    return found.hexdigest()


# -- the process


def main(words: list[str]) -> int:
    """Run the process; the exit status is 0, 1 or 2.

    :param words: see ``USAGE``; the last three only for a node that runs from a slot.
    """
    if len(words) not in (5, 8):
        print(USAGE, file=sys.stderr)
        return 2
    memory, path, out, size, digest, *base = words
    wanted, running = Wanted(out, int(size), digest), Running(*base) if base else None
    return worker.run(int(memory), lambda tell: apply(path, wanted, running, tell))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

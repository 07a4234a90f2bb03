# SPDX-License-Identifier: Apache-2.0
"""Makes patches: what a node makes a signed bundle from (``thicket.update.patch``).

libzstd compresses here and unpacks on the node, so that one library decides what a frame means;
Debian and Ubuntu have it on every machine, as dpkg needs it. The same bundles and the same library
make the same patch. A patch is tried before it counts, by what a node tries it with.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, NamedTuple

from authority import files
from authority.errors import AuthorityError
from host import stop
from thicket.update import bundle as bundles
from thicket.update import patch as patches
from thicket.update import verity, zstd
from thicket.update.apply import Running, Wanted, apply
from thicket.update.bundle import Bundle
from thicket.update.errors import BundleError
from thicket.update.manifest import Image
from thicket.update.patch import ALIGNED, Base, Boot, HashTree, Header, Root
from thicket.update.verity import BLOCK
from thicket.update.zstd import EMPTY, Memory

ENDING = ".patch"
LEVEL = 19
"""How hard zstd tries: half a minute for a delta, a minute for a whole bundle."""

Tell = Callable[[str], object]
"""Is told now and then what is being done."""

_BOOT, _ROOT = "boot", "rootfs"
_EROFS = b"\xe2\xe1\xf5\xe0"
_EROFS_AT = 1024
_ZEROS = 64 * 1024
_COMMAND_LINE = re.compile(rb"panic=10 thicket\.slot=none thicket\.boot-image=([0-9a-f]{64}) *\n")
_PATIENCE = 600.0


class Made(NamedTuple):
    """A patch that was made.

    :ivar size: its bytes.
    :ivar header: what it says of itself.
    """

    path: Path
    size: int
    header: Header


class Old(NamedTuple):
    """What a device has in its slot when it runs an older bundle.

    :ivar root: file with the root.
    :ivar boot: file with the boot image.
    """

    bundle: Bundle
    root: Path
    boot: Path


def name(old: Bundle | None, new: Bundle) -> str:
    """Return what the file of a patch is called."""
    version = new.manifest.version
    return f"{old.manifest.version}-to-{version}{ENDING}" if old else f"{version}{ENDING}"


def place(new: Path, out: Path, old: Path | None) -> Path:
    """Return where a patch is put: a folder gets it under its own name.

    :param new: see :func:`make`, and the others as well.
    :raises ThicketError: one of the bundles is none.
    """
    if not out.is_dir():
        return out
    with files.reading(new) as file:
        found = bundles.read(file)
    before = None
    if old is not None:
        with files.reading(old) as file:
            before = bundles.read(file)
    return out / name(before, found)


def make(
    new: Path,
    out: Path,
    old: Path | None = None,
    *,
    tell: Tell = lambda _: None,
    level: int = LEVEL,
) -> Made:
    """Make a patch and try it.

    :param new: the signed bundle that it makes.
    :param out: where it is put, as a whole or not at all; a folder gets it under its own name.
    :param old: bundle that runs on the devices that it is for; None: it is for any device.
    :param level: see ``LEVEL``.
    :raises BundleError: one of them is no bundle, damaged, or not signed.
    :raises AuthorityError: they are for different kinds of devices; a program is missing.
    :raises PatchError, ZstdError: there is not enough memory or space.
    """
    with files.opened(new) as file, stop.temporary("thicket-delta-") as folder:
        found = _checked(new, file, tell)
        if found.message is None:
            raise BundleError(
                f"{new} is not signed: a patch makes the signed bundle, so `thicket update sign` "
                "comes first"
            )
        before = _old(old, folder, found, tell) if old else None
        if out.is_dir():
            out /= name(before.bundle if before else None, found)
        with files.replacing(out) as target:
            header = _write(file, found, before, target, (tell, level))
            tell("trying the patch")
            stop.apart(partial(_try, Path(target.name), header, before, folder))
    return Made(out, out.stat().st_size, header)


def pack(new: Path, out: Path, *, tell: Tell = lambda _: None, level: int = LEVEL) -> Made:
    """Make a patch of a file as a whole, whatever is in it, and try it.

    :param out: where it is put, as a whole or not at all.
    :param level: see ``LEVEL``.
    :raises PatchError, ZstdError: there is not enough memory or space.
    """
    with stop.temporary("thicket-delta-") as folder:
        with files.opened(new) as file:
            data = bytearray(file.read())
        header = Header(len(data), sha256(data).hexdigest(), None, ())
        with files.replacing(out) as target:
            _compress(header, data, bytearray(), target, (tell, level))
            stop.apart(partial(_try, Path(target.name), header, None, folder))
    return Made(out, out.stat().st_size, header)


def _checked(path: Path, file: BinaryIO, tell: Tell) -> Bundle:
    tell(f"checking {path.name}")
    try:
        found = bundles.read(file)
        bundles.check_contents(file, found.contents, found.verity)
    except BundleError as error:
        raise type(error)(f"{path}: {error}") from None
    return found


def _write(
    file: BinaryIO, bundle: Bundle, old: Old | None, out: BinaryIO, how: tuple[Tell, int]
) -> Header:
    """Write a patch into a file.

    :param how: see :func:`make`.
    """
    how[0]("comparing with the hash trees")
    base, prefix = _base(old) if old else (None, bytearray())
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        header = Header(len(data), sha256(data).hexdigest(), base, _trees(file, data, bundle))
        body, at = bytearray(), 0
        for tree in header.trees:
            body += data[at : tree.at]
            at = tree.at + tree.bytes
        body += data[at:]
    _compress(header, body, prefix, out, how)
    return header


def _compress(
    header: Header, body: bytearray, prefix: bytearray, target: BinaryIO, how: tuple[Tell, int]
) -> None:
    """Write what is left of a file without its hash trees, as a change of ``prefix``."""
    tell, level = how
    what = "the change" if prefix else "the whole"
    if prefix:
        # One call of the library, which says nothing until it has ended.
        size = f"{len(prefix) / 2**20:.0f} MiB"
        tell(f"indexing the old version ({size}), which takes most of the time")
    else:
        tell(f"compressing {what}: 0 %")
    target.write(header.packed())

    def compress() -> None:
        with _memory(body) as source, _memory(prefix) as front:
            zstd.pack(
                source,
                target.write,
                front,
                level=level,
                progress=lambda done: tell(f"compressing {what}: {100 * done // len(body)} %"),
            )

    stop.apart(compress)
    target.flush()
    os.fsync(target.fileno())


@contextmanager
def _memory(data: bytearray) -> Iterator[Memory]:
    """Yield where bytes are, which do not move in the meantime."""
    if not data:
        yield EMPTY
        return
    first = ctypes.c_char.from_buffer(data)
    try:
        yield Memory(ctypes.addressof(first), len(data))
    finally:
        del first


def _trees(file: BinaryIO, data: mmap.mmap, bundle: Bundle) -> tuple[HashTree, ...]:
    """Return the hash trees that need not travel: that of the root, and the bundle's own."""
    own = HashTree(bundle.contents, 0, bundle.contents, bundle.verity.salt)
    image = _image(bundle, _ROOT)
    at = _place(data, image)
    if at is None:
        return (own,)  # in several pieces: squashfs leaves out blocks of zeros
    try:
        size = verity.data_bytes(image.size)
    except BundleError:
        return (own,)
    salt = sha256(data[at : at + size]).digest()
    made = verity.tree(file, size, salt, at)
    if made.blocks != data[at + size : at + image.size]:
        return (own,)
    return (HashTree(at + size, at, size, salt.hex()), own)


def _place(data: mmap.mmap, image: Image) -> int | None:
    """Return where an EROFS image lies in one piece."""
    at = data.find(_EROFS)
    while at >= 0:
        start = at - _EROFS_AT
        if start >= 0 and sha256(data[start : start + image.size]).hexdigest() == image.sha256:
            return start
        at = data.find(_EROFS, at + 1)
    return None


def _image(bundle: Bundle, slot: str) -> Image:
    for image in bundle.manifest.images:
        if image.slot == slot:
            return image
    raise BundleError(f"the bundle has no image for the slot {slot}")


# -- what runs on a device


def _old(path: Path, folder: Path, new: Bundle, tell: Tell) -> Old:
    """Take the images out of the bundle that devices run."""
    with files.opened(path) as file:
        bundle = _checked(path, file, tell)
    ours, theirs = bundle.manifest.compatible, new.manifest.compatible
    if ours != theirs:
        raise AuthorityError(f"{path} is for {ours} and the new bundle for {theirs}: no delta")
    tell(f"unpacking {path.name}")
    root, boot = _image(bundle, _ROOT), _image(bundle, _BOOT)
    _unsquash(path, folder / "old", [root.filename, boot.filename])
    return Old(bundle, folder / "old" / root.filename, folder / "old" / boot.filename)


def _unsquash(path: Path, folder: Path, names: list[str]) -> None:
    program = shutil.which("unsquashfs", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if program is None:
        raise AuthorityError(
            "unsquashfs is missing. Install it with:\n"
            "    sudo apt-get install --no-install-recommends squashfs-tools"
        )
    try:
        done = stop.run(
            [program, "-quiet", "-no-progress", "-no-xattrs", "-dest", folder, path, *names],
            timeout=_PATIENCE,
        )
    except subprocess.TimeoutExpired:
        raise AuthorityError(f"unsquashfs did not end within {_PATIENCE:g} s") from None
    if done.returncode:
        raise AuthorityError(f"{path}: unsquashfs failed: {done.stderr.strip()[-500:]}")


def _base(old: Old) -> tuple[Base, bytearray]:
    """Return what a patch says of its base, and the base."""
    root = old.root.read_bytes()
    try:
        size = verity.data_bytes(len(root))
    except BundleError:
        size = 0
    if not size:
        raise BundleError("the old bundle's root has no hash tree: devices could not tell it")
    boot = bytearray(old.boot.read_bytes().rstrip(b"\0"))
    boot += bytes(-len(boot) % BLOCK)
    line = _COMMAND_LINE.search(boot)
    with old.root.open("rb") as file:
        made = verity.tree(file, size, sha256(root[:size]).digest())
    if line is None or made.root.hex() != line[1].decode() or made.blocks != root[size:]:
        raise BundleError(
            "the old bundle's boot image does not name its root by the hash of its tree: it was "
            "not made by board/common/post-image.sh of this or an older tree"
        )
    masks = _masks(boot, line.span())
    for start, end in masks:
        boot[start:end] = bytes(end - start)
    base = Base(
        Root(made.root.hex(), size), Boot(len(boot), sha256(boot).hexdigest(), tuple(masks))
    )
    return base, bytearray(root[:size]) + bytes(-size % ALIGNED) + boot


def _masks(boot: bytearray, line: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the ranges of a boot image whose bytes on a device do not count.

    The command line, as each slot has its own; and the longest ranges of zeros, so that nobody has
    to read them, or to care whether they were ever written.

    :param line: start and end of the command line.
    """
    zeros: list[tuple[int, int]] = []
    for at in range(0, len(boot), _ZEROS):
        end = min(at + _ZEROS, len(boot))
        if not any(boot[at:end]):
            joined = zeros and zeros[-1][1] == at
            zeros.append((zeros.pop()[0] if joined else at, end))
    longest = sorted(zeros, key=lambda pair: pair[0] - pair[1])[: patches.MAX_MASKS - 1]
    return sorted([line, *longest])


def _try(path: Path, header: Header, old: Old | None, folder: Path) -> None:
    """Make the bundle from a patch, as a node does."""
    running = Running(header.base_hash, str(old.root), str(old.boot)) if old else None
    out = folder / "tried"
    apply(str(path), Wanted(str(out), header.size, header.sha256), running, lambda *_: None)
    out.unlink()

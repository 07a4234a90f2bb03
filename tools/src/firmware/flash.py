# SPDX-License-Identifier: Apache-2.0
"""``bin/flash``: writes a card image to a card, with a configuration, and proves that it is there.

The order is what makes it safe. Everything that can be wrong is looked for before the card is
touched: the disk, the image's checksums, the configuration. Then the card's partition table is
erased, the rest is written, read back and compared, and only then the new partition table is
written: a card that was interrupted never starts half a system.
"""

from __future__ import annotations

import argparse
import contextlib
import enum
import errno
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from firmware import bmap, card, plan, ranges, settings, source
from firmware.blockdev import Disk, Machine, described, device_number, human
from firmware.errors import FlashError
from firmware.releases.find import Chosen, choose
from firmware.releases.find import is_meant as is_release
from firmware.report import Report
from firmware.target import Buffer, Target
from firmware.unpacked import ENDINGS, MOST
from host import stop
from host.cache import cache_root
from thicket.base.fields import ConfigError

_LATEST = 253_402_000_000  # in the year 9999: a file of a damaged disk has any time
BOOT_BLOCK = 4096
"""Bytes at the start of the card that are written last: the MBR, in a block that all cards take."""

PIECE = 4 << 20
"""Bytes in one write: the erase unit of usual cards."""

DESCRIPTION = "Write a Thicket image to an SD card (or any USB disk) and check what was written."

EPILOG = """\
  bin/flash --list                          which disks could be meant
  bin/flash /dev/sdb --config my.toml       what `make rpi64` built, with this configuration
  bin/flash --image card.img.xz /dev/sdb    any card image, also packed (xz, gz, zst)
  bin/flash --image https://example.org/thicket/ /dev/sdb     what a release has for a board
  bin/flash --file node.img                 a plain file in place of a card

docs/flashing.md tells more, and how to do without this program.
"""


class State(enum.Enum):
    """What a card (or the file in its place) is worth when the program ends."""

    UNTOUCHED = "Nothing was written: the {it} is as it was."
    ERASED = (
        "The {it} is half written and has no partition table, so nothing starts from it. "
        "Flash it again before it is used."
    )
    WRITTEN = (
        "The {it} is written, but was not proven to be right, and has no partition table, so "
        "nothing starts from it. Flash it again before it is used."
    )
    UNSURE = "Only the partition table was not proven to be right. Flash the {it} again."
    COMPLETE = "The {it} is complete and was checked: it can be used."

    def told(self, it: str) -> str:
        """Return it in words for a person.

        :param it: "card" or "file".
        """
        return self.value.format(it=it)


@dataclass
class Writer:
    """Writes one card.

    :ivar state: what the card is worth, at any time.
    """

    content: source.Content
    target: Target
    report: Report
    state: State = State.UNTOUCHED

    def __post_init__(self) -> None:
        image = self.content.image
        self._wanted = plan.for_card(
            self.content.read,
            image.layout,
            self.content.mapped,
            self.content.data,
            image_size=image.size,
            size=self.target.size,
        )
        self._buffer = Buffer(PIECE)

    @property
    def total(self) -> int:
        """How many bytes are written."""
        return ranges.length(self._wanted)

    def run(self, config: bytes | None = None) -> None:
        """Write and check the card.

        :param config: what its ``thicket.toml`` has to be in the end.
        :raises OSError: when the card fails.
        :raises FlashError: when the card does not hold what was written, or the image changed
            meanwhile.
        """
        before = os.fstat(self.content.image.file.fileno())
        self.state = State.ERASED
        self._erase()
        digests = self._write_body()
        self.state = State.WRITTEN
        after = os.fstat(self.content.image.file.fileno())
        if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
            raise FlashError(
                f"{self.content.image.path} was changed while it was written (by a build?)"
            )
        self.target.forget()
        self._check_body(digests)
        if config is not None:
            self._check_config(config)
        self._write_boot_block()
        self.state = State.COMPLETE

    def _erase(self) -> None:
        block = self._buffer[BOOT_BLOCK]
        block[:] = bytes(BOOT_BLOCK)
        self.target.write(0, block)
        self.target.sync()

    def _body(self) -> Iterator[tuple[int, int]]:
        return ranges.pieces(ranges.subtract(self._wanted, [(0, BOOT_BLOCK)]), PIECE)

    def _write_body(self) -> dict[int, bytes]:
        digests = {}
        with self.report.phase("Writing", self.total - BOOT_BLOCK):
            for start, end in self._body():
                view = self._buffer[end - start]
                self.content.read_into(start, view)
                digests[start] = _digest(view)
                self.target.write(start, view)
                self.report.advance(len(view))
            self.target.sync()
        return digests

    def _check_body(self, digests: dict[int, bytes]) -> None:
        with self.report.phase("Checking", self.total - BOOT_BLOCK):
            for start, end in self._body():
                view = self._buffer[end - start]
                self.target.read(start, view)
                if _digest(view) != digests[start]:
                    raise FlashError(self._difference(start, view))
                self.report.advance(len(view))

    def _difference(self, start: int, found: memoryview) -> str:
        wanted = self.content.read(start, len(found))
        at = next((i for i, (a, b) in enumerate(zip(wanted, found, strict=True)) if a != b), 0)
        return (
            f"{self.target.path} does not hold what was written to it: byte {start + at} is "
            f"{found[at]:#04x}, written was {wanted[at]:#04x}.\n"
            "  The card is worn out, or pretends to be larger than it is, or the reader is bad. "
            "Try another reader, then another card."
        )

    def _check_config(self, config: bytes) -> None:
        partition = self.content.image.layout[card.CONFIG]
        used = plan.fat_used(
            lambda offset, count: self.content.read(partition.offset + offset, count),
            partition.size,
        )
        end = partition.offset + (used or partition.size)

        def read(offset: int, view: memoryview) -> None:
            # Only what was written; the free space behind it may hold anything.
            view[:] = bytes(len(view))
            for start, to in ranges.clip(self._wanted, offset, min(offset + len(view), end)):
                part = self._buffer[to - start]
                self.target.read(start, part)
                view[start - offset : to - offset] = part

        with source.partition_file(read, partition) as file:
            if settings.get(file) != config:
                raise FlashError(
                    f"{settings.FILE} on {self.target.path} is not what was written to it"
                )

    def _write_boot_block(self) -> None:
        block = self._buffer[BOOT_BLOCK]
        self.content.read_into(0, block)
        wanted = bytes(block)
        self.state = State.UNSURE
        self.target.write(0, block)
        self.target.forget()
        self.target.read(0, block)
        if block != wanted:
            raise FlashError(self._difference(0, block))


def _digest(data: memoryview) -> bytes:
    # Compared with itself only, so a fast one.
    return hashlib.blake2b(data, digest_size=16).digest()


def main(arguments: list[str] | None = None) -> int:
    """Run the program; the exit status is 0, 1 (refused or failed), 2 (usage), or 128 and
    the number of the signal that stopped it: 130 for Ctrl-C."""
    words = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(words)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    session = Session(console, options, words)
    with stop.stopping():  # a closed terminal tells (and leaves) the card's state as Ctrl-C does
        return _run(session, options, console)


def _run(session: Session, options: argparse.Namespace, console: Console) -> int:
    try:
        if options.list:
            session.show_disks()
            return 0
        if not (options.device or options.file):
            session.show_disks()
            console.print("Say which: `make flash DEV=/dev/sdX`, or `bin/flash /dev/sdX`.")
            return 2
        session.flash()
    except stop.Stopped as stopped:
        return session.ended(str(stopped), stopped.status)
    except FlashError as error:
        return session.ended(str(error), 1)
    except OSError as error:
        return session.ended(_explained(error, session.path), 1)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bin/flash",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("device", nargs="?", metavar="DEVICE", help="the whole disk, as /dev/sdb")
    add("--image", default="rpi64", help="a board whose image was built (rpi64), a path, or a URL")
    add("--board", metavar="NAME", help="which image of a release (rpi64)")
    add(
        "--root", metavar="PEM", help="whose release it must be (the fleet here); `none`: anybody's"
    )
    add("--config", type=Path, metavar="TOML", help="becomes thicket.toml on the card")
    add("--list", action="store_true", help="show which disks could be meant, and end")
    add("--yes", action="store_true", help="do not ask: for scripts")
    add("--file", metavar="FILE", help="write to a plain file, made when there is none")
    add("--force-fixed", action="store_true", help="also a disk that is not removable")
    add("--no-eject", action="store_true", help="leave the card in")
    return parser


class Found(NamedTuple):
    """A card image that is here.

    :ivar map: its block map, if it is not in the file beside it.
    :ivar most: bytes that it may hold when it is unpacked.
    """

    path: Path
    map: bmap.Bmap | None = None
    most: int = MOST


class Session:
    """One run of the program."""

    def __init__(self, console: Console, options: argparse.Namespace, words: list[str]) -> None:
        self._console = console
        self._options = options
        self._words = words
        self._machine = Machine()
        self._report = Report(console)
        self._writer: Writer | None = None
        self._writing = False
        self._lockout: str | None = None
        self._is_file = False
        self.path = ""

    def ended(self, text: str, status: int) -> int:
        """Tell why the program ends early and what the card is worth; return ``status``."""
        self._console.print(Text(f"thicket: {text}", style="bold red"))
        if self._writing:
            state = self._writer.state if self._writer else State.UNTOUCHED
            self._console.print(state.told("file" if self._is_file else "card"))
        return status

    def show_disks(self) -> None:
        """Print the disks of this machine and which of them could be flashed."""
        disks = [(disk, self._machine.refusals(disk, 0)) for disk in self._machine.disks()]
        if not disks:
            self._console.print("No disk of this machine is to be seen here.")
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("disk", "size", "what", "bus", "now on it", ""):
            table.add_column(name, justify="right" if name == "size" else "left")
        for disk, refusals in sorted(disks, key=lambda pair: bool(pair[1])):
            full = described(disk)
            kinds = [f"{p.filesystem or '?'} {p.label}".strip() for p in full.contents]
            reason = refusals[0].reason.removeprefix(disk.path + " ") if refusals else ""
            table.add_row(
                disk.path,
                human(disk.size) if disk.size else "-",
                Text(full.model),
                disk.transport,
                Text(", ".join(kinds) or "-"),
                reason or "can be flashed",
                style="dim" if refusals else "",
            )
        self._console.print(table)
        if all(refusals for _, refusals in disks):
            self._console.print("None of them can be flashed: is the card in?")

    def flash(self) -> None:
        """Do what was asked for.

        :raises FlashError: when it cannot or must not be done.
        :raises OSError: when the card fails.
        :raises KeyboardInterrupt: when a person stops it.
        """
        options = self._options
        if options.device and options.file:
            raise FlashError("a device and --file: only one of them can be written")
        config = settings.read(options.config) if options.config else None
        wanted = self._wanted()
        self._is_file = self._choose()
        self._writing = True
        if isinstance(wanted, Chosen):
            if not self._is_file:
                self._judge(wanted.file.unpacked)  # before anything large is downloaded for it
            wanted = Found(wanted.take(self._report), wanted.map, wanted.most)
        path = wanted.path
        with contextlib.ExitStack() as stack:
            open_image = partial(source.opened, path, map_=wanted.map, most=wanted.most)
            if path.suffix in ENDINGS:
                with self._report.phase("Image", wanted.map.image_size if wanted.map else 0):
                    image = stack.enter_context(open_image(self._report.advance))
            else:
                image = stack.enter_context(open_image())
            content = source.Content(image)
            config_shown = self._configure(stack, content, config)
            size = -(-max(image.size, image.layout[card.CONFIG].end) // card.SECTOR) * card.SECTOR
            disk = None if self._is_file else self._judge(size)
            if disk is not None:
                self._check_permission(disk)
            self._show(image, disk, config_shown)
            asks = self._asks(disk)
            if image.map is not None and not image.checked:
                with self._report.phase("Image", ranges.length(image.mapped)):
                    image.check(self._report.advance)
            if asks:
                self._confirm(disk.name if disk else Path(self.path).name)
            target = stack.enter_context(self._open(disk, size))
            self._writer = writer = Writer(content, target, self._report)
            writer.run(config)
            reread = target.reread_partitions()
        self._finish(disk, reread)

    def _wanted(self) -> Found | Chosen:
        """Return the image that is meant: a file, or one of a release, which was looked at."""
        options = self._options
        if not is_release(options.image):
            if options.root not in (None, "none"):
                raise FlashError(
                    f"--root: {options.image} is in no release, so nothing there is signed"
                )
            if options.board:
                raise FlashError(f"--board: {options.image} is in no release, of which it chooses")
            return Found(source.locate(options.image, cache_root()))
        from firmware.releases.trust import trusted

        found = choose(options.image, options.board, trusted(options.root), cache_root())
        title, *told = found.told
        self._console.print(f"Release {title}")
        for line in told:
            self._console.print(f"        {line}")
        return found

    def _choose(self) -> bool:
        """Find out what is to be written to; return whether it is a plain file."""
        options = self._options
        self.path = options.file or options.device
        path = Path(self.path)
        if path.is_file():
            return True
        if not options.file:
            if not path.exists():
                near = Path("/dev") / self.path
                hint = f" Is it {near}?" if "/" not in self.path and near.exists() else ""
                raise FlashError(
                    f"there is no {self.path}.{hint}\n  `bin/flash --list` shows the disks; "
                    "--file makes a plain file."
                )
            if device_number(self.path) is None:
                raise FlashError(
                    f"{self.path} is neither a disk nor a plain file.\n"
                    "  `bin/flash --list` shows the disks."
                )
            return False
        if path.exists():
            raise FlashError(f"--file {self.path}: that is not a plain file")
        if path.absolute().parts[:2] == ("/", "dev"):
            raise FlashError(
                f"--file {self.path}: no file is made in /dev.\n"
                "  `bin/flash --list` shows the disks."
            )
        return True

    def _judge(self, size: int) -> Disk:
        """Return the disk that is to be written.

        :raises FlashError: when it must not be written.
        """
        name = self._machine.find(self.path)
        parent = self._machine.parent(name) if name else None
        if parent is not None:
            raise FlashError(
                f"{self.path} is a partition; a card image is written to a whole disk.\n"
                f"  The disk that it is on is /dev/{parent}."
            )
        disk = self._machine.disk(name) if name else None
        if disk is None:
            raise FlashError(
                f"{self.path}: the kernel tells nothing of this disk in /sys; was it pulled out?"
            )
        refusals = self._machine.refusals(disk, size, self._options.force_fixed)
        if refusals:
            raise FlashError("\nthicket: ".join(map(str, refusals)))
        return described(disk)

    def _check_permission(self, disk: Disk) -> None:
        if not os.access(disk.path, os.W_OK):
            raise FlashError(
                f"{disk.path} may be written by root only. Run:\n    {self._with_sudo()}"
            )

    def _with_sudo(self) -> str:
        program = Path(__file__).resolve().parents[3] / "bin/flash"
        with contextlib.suppress(ValueError):
            program = program.relative_to(Path.cwd())
        settled = [f"THICKET_CACHE={cache_root()}"]
        if is_release(self._options.image):
            from authority.words import chosen_folder

            # Root has a folder of its own, with another fleet or none.
            settled.append(f"THICKET_CA={chosen_folder()}")
        # Root's search path may lead to another Python, for which an environment would be made.
        python = str(getattr(sys, "_base_executable", sys.executable))
        if not python.startswith(("/usr/bin/", "/usr/local/bin/")):
            settled.append(f"PYTHON={python}")
        return shlex.join(["sudo", "env", *settled, str(program), *self._words])

    def _configure(
        self, stack: contextlib.ExitStack, content: source.Content, config: bytes | None
    ) -> bytes | None:
        """Put the configuration into what will be written; return the one that the card has."""
        if config is None and shutil.which("mtools") is None:
            return None
        partition = content.image.layout[card.CONFIG]
        file = stack.enter_context(source.partition_file(content.read_into, partition))
        if config is None:
            return settings.get(file)
        settings.put(file, config)
        content.replace_config(file)
        return config

    def _show(self, image: source.Image, disk: Disk | None, config: bytes | None) -> None:
        out = self._console.print
        when = ""
        if not is_release(self._options.image):  # which told its date already
            built = time.localtime(min(image.path.stat().st_mtime, _LATEST))
            when = f", of {time.strftime('%Y-%m-%d %H:%M', built)}"
        out(f"Image   {image.path}: {human(image.size)}{when}")
        if image.map is None:
            out("        without a block map (.bmap): it has no checksums to be compared with")
        if disk is None:
            exists = Path(self.path).exists()
            how = "a plain file, overwritten" if exists else "a new plain file"
            out(f"Target  {self.path}: {how}, not a card")
        else:
            what = [disk.model, human(disk.size), disk.transport]
            what += [f"serial {disk.serial}"] if disk.serial else []
            out(f"Card    {disk.path}: {', '.join(filter(None, what))}", style="bold")
            for part in disk.contents:
                label = f'"{part.label}"' if part.label else ""
                kind = part.filesystem or "no known file system"
                out(f"          {part.name:12} {human(part.size):>10}  {kind} {label}")
            if not disk.contents:
                out("          no partitions, no file system")
        name = self._options.config or "the image's own thicket.toml"
        if config is None:
            out("Config  the image's defaults: no --config was given")
            self._lockout = settings.lockout(None)
            self._tell_lockout()
            return
        try:
            out(f"Config  {name}: {settings.described(config)}")
            warnings = settings.warnings(config)
            self._lockout = settings.lockout(config)
        except ConfigError as error:  # in the image's own file: its defaults will be in force
            warnings = [str(error)]
            self._lockout = settings.lockout(None)
        self._tell_lockout()
        for warning in warnings:
            out(Text(f"        note: {warning}", style="yellow"))

    def _tell_lockout(self) -> None:
        if self._lockout is not None:
            self._console.print(Text(self._lockout, style="bold red"))

    def _asks(self, disk: Disk | None) -> bool:
        """Tell whether a person has to confirm.

        :raises FlashError: when nobody is there to do so.
        """
        if self._options.yes or (disk is None and not Path(self.path).exists()):
            return False
        if not sys.stdin.isatty():
            raise FlashError(
                f"{self.path} is not overwritten without asking, and there is no terminal to ask "
                "at. Scripts give --yes (YES=1 with make)."
            )
        return True

    def _confirm(self, name: str) -> None:
        self._console.print(
            f"Everything on {self.path} will be lost. "
            f"Type {name} to overwrite it, anything else to leave it:",
            style="bold",
        )
        try:
            answer = input("> ").strip()
        except EOFError:
            answer = ""
        if answer not in (name, self.path):
            raise FlashError("not confirmed")

    def _open(self, disk: Disk | None, size: int) -> Target:
        if disk is None:
            return Target.file(Path(self.path), size)
        try:
            target = Target.device(Path(disk.path))
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.EWOULDBLOCK):
                raise FlashError(
                    f"{disk.path} is in use by something that is not visible here (another "
                    "container, a virtual machine, another flash program). End that first."
                ) from None
            raise
        now = self._machine.disk(disk.name)
        if now is None or (now.sequence, now.number) != (disk.sequence, disk.number):
            target.__exit__(None, None, None)
            raise FlashError(f"{disk.path} is no longer the card that was shown. Start again.")
        return target

    def _finish(self, disk: Disk | None, reread: bool) -> None:
        out = self._console.print
        if disk is None:
            out(f"Done. {State.COMPLETE.told('file')}", style="bold green")
            self._tell_lockout()
            return
        out(f"Done. {State.COMPLETE.told('card')}", style="bold green")
        self._tell_lockout()
        if not reread:
            out("The kernel still has the old partition table in mind: take the card out once.")
        if self._options.no_eject or not disk.is_card:
            return
        out(eject(disk))


def eject(disk: Disk) -> str:
    """Let a card go, as far as this machine can; return what to tell."""
    if disk.transport == "sd":
        return "It can be taken out."  # a slot has no way to eject; everything is written
    for command in (
        ["eject", disk.path],
        ["udisksctl", "power-off", "--no-user-interaction", "-b", disk.path],
    ):
        if shutil.which(command[0]):
            try:
                subprocess.run(command, capture_output=True, check=True, timeout=30)
                return "It was ejected and can be taken out."
            except (OSError, subprocess.SubprocessError):
                continue
    try:
        Path(f"/sys/block/{disk.name}/device/delete").write_text("1")
        return f"{disk.path} was removed from the system and can be taken out."
    except OSError:
        return "It could not be ejected, but everything is written: it can be taken out."


def _explained(error: OSError, path: str) -> str:
    """Return what an error of the operating system means to a person."""
    what = f"{error.strerror or error}"
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.EIO, errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM):
        return (
            f"{path} does not answer any more: {what}. Was it pulled out? If not, the card or the "
            "reader is broken."
        )
    if error.errno == errno.ENOSPC:
        return f"no space left for {path}{where}"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{path} may not be written: {what}{where}"
    return f"{path}: {what}{where}"


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""What a Raspberry Pi does between power-on and the kernel, done with a card image.

The boot ROM, the EEPROM or ``bootcode.bin``, and ``start.elf`` are one here: read the partition
table, ``autoboot.txt``, choose the boot partition, read ``config.txt`` and ``cmdline.txt`` there,
and name the kernel. Sources, by the names that docstrings below use:

- autoboot: www.raspberrypi.com/documentation/computers/config_txt.html, "autoboot.txt"
- config: the same page: "What is config.txt?", "Boot options", "Conditional filters"
- bootflow: www.raspberrypi.com/documentation/computers/raspberry-pi.html, "EEPROM boot flow"
- walk: the same page, ``PARTITION_WALK``; rpi-eeprom pull requests 659 and 736, issue 738
- oscheck: config, ``os_check``; rpi-eeprom pull request 685, issue 682

Where these leave a question open the answer here is the one that trusts a card least, and says so.
Nothing is executed, and nothing that a card holds can do more than end in ``BootError``.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from firmware import card as cards
from firmware.devicetree import DeviceTreeError
from meshlab.machine.devicetree import without
from meshlab.machine.fat import TYPES, Fat, FatError, ToolError, usable_name

AUTOBOOT = "autoboot.txt"
AUTOBOOT_LIMIT = 512
"""autoboot: the file "is limited to 512 bytes"."""

LINE_LIMIT = 98
"""config, "File format": characters of a line past this one are ignored."""

CONFIG_LIMIT = 64 << 10
KERNEL_LIMIT = 128 << 20
TREE_LIMIT = 1 << 20
CMDLINE_LIMIT = 2047
"""Characters that a kernel takes: ``COMMAND_LINE_SIZE`` is 2048 on x86 and arm64, with its NUL."""

BLUETOOTH = frozenset({"/soc/serial@7e201000/bluetooth"})
"""What the overlay ``disable-bt`` takes from below the serial port."""

WALK_LAST = 8
"""walk: the bootloader tries each partition "up to 8 and wrapping to 0"."""

_INCLUDES = 16
_NOTES = 50


class BootError(Exception):
    """A Pi would not start from this card. The text says which file on which partition, and why."""


@dataclass(frozen=True)
class Model:
    """What differs between the models whose start is simulated."""

    name: str
    filters: frozenset[str]
    """Model filters that pass (config, "Model filters")."""
    starts: tuple[str, ...]
    """A partition is bootable when it has these files (autoboot; walk)."""
    kernels: tuple[str, ...] = ("kernel8.img",)
    """Without ``kernel=`` the first of these that is there."""
    walks: bool = True
    """Whether a partition that is not bootable makes it try the others. Bootloaders of the Pi 4 and
    5 do since August 2025; those of the Pi 3 and Zero 2 W, being files on the card, never do."""
    wants_kernel: bool = False
    """Whether a partition without a kernel counts as not bootable. A Pi looks for the kernel when
    its firmware has been started, and there is no way back from that."""
    trees: tuple[str, ...] = ()
    """Device trees, of which the first that is there is taken; none: the emulator makes one."""


def _with_eeprom(name: str, filters: frozenset[str], tree: str) -> Model:
    """Return a model whose whole firmware is in its EEPROM; it asks a partition for a tree."""
    return Model(name, filters, ("config.txt", tree), ("kernel_2712.img", "kernel8.img"))


MODELS: Mapping[str, Model] = {
    model.name: model
    for model in (
        # As a Pi 4, but its own firmware is QEMU: a card for x86-64 has no start4.elf.
        Model("simulated", frozenset({"pi4"}), ("config.txt",), wants_kernel=True),
        # The Raspberry Pi kernel's device tree, or mainline's, which a Pi takes if config.txt has
        # upstream_kernel=1.
        Model(
            "pi3",
            frozenset({"pi3"}),
            ("start.elf",),
            walks=False,
            trees=("bcm2710-rpi-3-b.dtb", "bcm2837-rpi-3-b.dtb"),
        ),
        Model(
            "pi3+",
            frozenset({"pi3", "pi3+"}),
            ("start.elf",),
            walks=False,
            trees=("bcm2710-rpi-3-b-plus.dtb", "bcm2837-rpi-3-b-plus.dtb"),
        ),
        Model("cm3", frozenset({"pi3", "cm3"}), ("start.elf",), walks=False),
        Model("zero2w", frozenset({"pi0", "pi0w", "pi02"}), ("start.elf",), walks=False),
        Model("pi4", frozenset({"pi4"}), ("start4.elf",), trees=("bcm2711-rpi-4-b.dtb",)),
        Model("pi400", frozenset({"pi4", "pi400"}), ("start4.elf",)),
        Model("cm4", frozenset({"pi4", "cm4"}), ("start4.elf",)),
        Model("cm4s", frozenset({"pi4", "cm4s"}), ("start4.elf",)),
        _with_eeprom("pi5", frozenset({"pi5"}), "bcm2712-rpi-5-b.dtb"),
        # oscheck: since March 2025 these two look for a tree of their own; a 500 for a Pi 5's.
        _with_eeprom("cm5", frozenset({"pi5", "cm5"}), "bcm2712-rpi-cm5-cm5io.dtb"),
        _with_eeprom("cm5lite", frozenset({"pi5", "cm5"}), "bcm2712-rpi-cm5l-cm5io.dtb"),
        _with_eeprom("pi500", frozenset({"pi5", "pi500"}), "bcm2712-rpi-5-b.dtb"),
    )
}
SIMULATED = MODELS["simulated"]


@dataclass(frozen=True)
class Request:
    """What the system that ran before asked of the boot ROM; nothing after power-on."""

    partition: int = 0
    """Partition to boot from; 0: as ``autoboot.txt`` says."""
    tryboot: bool = False
    """bootflow, "Fail-safe OS updates": the one-shot flag, gone with the start that it changes."""


@dataclass(frozen=True)
class Boot:
    """What the boot ROM found: everything that starts a system."""

    partition: int
    """Number of the boot partition."""
    tryboot: bool
    kernel: str
    """The kernel's path on the partition."""
    cmdline: str
    """The first line of ``cmdline.txt``, as it is on the card."""
    settings: Mapping[str, str]
    """What ``config.txt`` came to; of settings given twice the last."""
    overlays: tuple[str, ...] = ()
    """The names of device tree overlays in the order in which ``config.txt`` has them."""
    notes: tuple[str, ...] = ()
    """What a person should know: what was passed over, ignored or cut off."""

    def in_words(self) -> str:
        """Return one line for the console."""
        how = " (tryboot)" if self.tryboot else ""
        return f"partition {self.partition}{how}, kernel {self.kernel}"


@dataclass
class Settings:
    """The settings of a configuration file, and what was odd about it."""

    values: dict[str, str] = field(default_factory=dict)
    overlays: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


_RESTART = re.compile(r"reboot: Restarting system(?: with command '([^'\n]*)')?")


def request_of(console: str) -> Request:
    """Return what a guest asked for with its last restart, from its console.

    Linux (kernel/reboot.c, ``kernel_restart``) prints the argument of reboot(2) at the highest
    priority. A Pi's kernel hands it to the firmware: a partition number, and ``tryboot`` behind it.
    """
    found = _RESTART.findall(console)
    if not found:
        return Request()
    words = found[-1].split()
    number = int(words[0]) if words and re.fullmatch(r"[0-9]{1,3}", words[0]) else 0
    # bootflow: the number "must be specified if extra arguments are added".
    return Request(number, bool(words) and words[0].isdecimal() and words[1:2] == ["tryboot"])


Find = Callable[[str], bytes | None]
"""Returns the content of a file of the same partition, ``None`` when there is none."""


def parse(
    text: bytes,
    name: str,
    *,
    tryboot: bool = False,
    filters: frozenset[str] = frozenset(),
    find: Find | None = None,
) -> Settings:
    """Parse ``config.txt`` or ``autoboot.txt``.

    config, "File format" and "Conditional filters": a ``key=value`` a line, ``#`` begins a comment
    line, ``[filter]`` limits what follows. Filters of different types add up, one replaces another
    of its type, and ``[all]`` ends all. ``[none]`` counts until ``[all]``. Filters that look at
    hardware (EDID, GPIO, serial number, board type) and those that nobody knows do not pass. A NUL
    ends the file, as it ends a text in the firmware.

    ``find`` gives the files that are included; without it, as in the bootloader, none are.

    :raises BootError: when files include each other without end.
    """
    parser = _Parser(tryboot, filters, find)
    parser.read(text, name)
    return parser.found


class _Parser:
    def __init__(self, tryboot: bool, models: frozenset[str], find: Find | None) -> None:
        self.found = Settings()
        self._tryboot = tryboot
        self._models = models
        self._find = find
        self._passed: dict[str, bool] = {}
        self._included = 0

    def read(self, text: bytes, name: str) -> None:
        for number, raw in enumerate(text.partition(b"\0")[0].split(b"\n"), start=1):
            line = raw.decode("latin-1").rstrip("\r")
            comment = line.lstrip().startswith("#")
            if len(line) > LINE_LIMIT and not comment:
                self._note(f"{name}, line {number}: ignored from character {LINE_LIMIT + 1} on")
            line = line[:LINE_LIMIT].strip()
            if comment or not line:
                continue
            if line.startswith("[") and line.endswith("]"):
                self._filter(line[1:-1])
            elif all(self._passed.values()):
                self._setting(line, name, number)

    def _note(self, text: str) -> None:
        if len(self.found.notes) < _NOTES:
            self.found.notes.append(text)

    def _filter(self, word: str) -> None:
        if word == "all":
            self._passed.clear()
        elif word == "tryboot":
            self._passed["tryboot"] = self._tryboot
        elif re.match(r"(pi|cm)[0-9]", word):
            self._passed["model"] = word in self._models
        else:
            # [none], hardware, or a filter to come. What stands before the value is its type.
            self._passed[re.split("[=:0-9]", word, maxsplit=1)[0]] = False

    def _setting(self, line: str, name: str, number: int) -> None:
        word, _, rest = line.partition(" ")
        if word == "include" and rest:
            self._include(rest.strip(), name)
        elif word == "initramfs" and rest:  # the one setting that is written without "="
            self.found.values[word] = rest.strip()
        elif "=" in line:
            key, _, value = line.partition("=")
            self.found.values[key.strip()] = value.strip()
            if key.strip() == "dtoverlay" and value.strip():
                self.found.overlays.append(value.partition(",")[0].strip())
        else:
            self._note(f"{name}, line {number}: {line!r} is no setting")

    def _include(self, other: str, name: str) -> None:
        self._included += 1
        if self._included > _INCLUDES:
            raise BootError(
                f"{name} includes {other}, the {self._included}th file: they include each other"
            )
        text = self._find(other) if self._find else None
        if text is not None:
            self.read(text, other)
        elif self._find is None:
            self._note(f"{name}: include {other} is ignored, the bootloader knows none")
        else:
            self._note(f"{name} includes {other}, which is not there")


def boot(card: Path, request: Request = Request(), model: Model = SIMULATED) -> Boot:
    """Return what a Pi would start from the card image ``card``.

    The partition is the one that the system asked for when it restarted, else the one of
    ``boot_partition`` in ``autoboot.txt`` on the first FAT partition, else (also for 0) the first
    that is bootable. One that is not bootable is passed over where the model does that (walk): the
    following ones are tried up to 8, then from 1 on, without looking at ``autoboot.txt`` again.

    :raises BootError: when nothing can be started.
    :raises OSError: when the image cannot be read.
    """
    try:
        with card.open("rb") as file:
            table = cards.read(file)
    except cards.CardError as error:
        raise BootError(f"{card.name}: {error}") from None
    fats = {p.number: Fat(card, p) for p in table.partitions.values() if p.type in TYPES}
    if not fats:
        have = ", ".join(f"{n} of type {p.type:#04x}" for n, p in sorted(table.partitions.items()))
        raise BootError(f"{card.name}: no FAT partition (partitions: {have or 'none'})")
    rom = _Rom(card.name, fats, model, request.tryboot)
    try:
        return rom.start(request.partition)
    except FatError as error:
        raise BootError(str(error)) from error


def extract(card: Path, found: Boot, target: Path) -> None:
    """Copy the kernel that ``boot`` found to ``target``.

    :raises BootError: when it is empty, a folder, or cannot be read.
    """
    try:
        with card.open("rb") as file:
            fat = Fat(card, cards.read(file)[found.partition])
        there = fat.copy(found.kernel, target, KERNEL_LIMIT)
    except (FatError, cards.CardError) as error:
        raise BootError(str(error)) from error
    if not there or target.stat().st_size == 0:
        raise BootError(f"{found.kernel} on {fat.where} is empty or a folder")


def device_tree(
    card: Path, found: Boot, model: Model, absent: frozenset[str] = frozenset()
) -> bytes:
    """Return the device tree that the kernel gets: the model's, with the overlays applied.

    Of overlays only ``disable-bt`` is known, and by its name: QEMU has no Bluetooth behind the
    serial port, and a kernel that finds one in the device tree gives the port to that. What any
    other overlay changes is nothing that QEMU has.

    :param absent: What else is taken out: nodes and properties, by their paths.
    :raises BootError: when there is none, or it is damaged.
    """
    try:
        with card.open("rb") as file:
            fat = Fat(card, cards.read(file)[found.partition])
        for name in model.trees:
            tree = fat.read(name, TREE_LIMIT)
            if tree is not None:
                off = BLUETOOTH if "disable-bt" in found.overlays else frozenset()
                return without(tree, off | absent)
    except (FatError, cards.CardError) as error:
        raise BootError(str(error)) from error
    except DeviceTreeError as error:
        raise BootError(f"{name} on {fat.where} is damaged: {error}") from error
    raise BootError(f"{fat.where} has no device tree {' or '.join(model.trees)}")


def architecture(kernel: Path) -> str | None:
    """Return what a kernel runs on, ``x86_64`` or ``aarch64``; ``None``: no kernel that is known.

    Known are Linux's ``Image`` of arm64 (Documentation/arch/arm64/booting.rst), plain or as gzip,
    ``bzImage`` of x86 (Documentation/arch/x86/boot.rst), and ELF files of both.
    """
    with kernel.open("rb") as file:
        head = file.read(4096)
    if head[:2] == b"\x1f\x8b":
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, 4096)
        except zlib.error:
            return None
    head = head.ljust(0x210, b"\0")
    if head[:4] == b"\x7fELF":
        (machine,) = struct.unpack_from("<H", head, 18)
        return {62: "x86_64", 183: "aarch64"}.get(machine)  # elf.h: EM_X86_64, EM_AARCH64
    if head[0x38:0x3C] == b"ARM\x64":
        return "aarch64"
    if head[0x202:0x206] == b"HdrS":
        return "x86_64"
    return None


class _Rom:
    """One start."""

    def __init__(self, name: str, fats: dict[int, Fat], model: Model, tryboot: bool) -> None:
        self.name = name
        self.fats = fats
        self.model = model
        self.tryboot = tryboot
        self.notes: list[str] = []
        self.in_partition = False
        """``tryboot_a_b``: the flag chose the partition, the files there are the usual ones."""

    def start(self, wanted: int) -> Boot:
        chosen = self._autoboot()
        number = wanted or chosen or min(self.fats)
        reasons: list[str] = []
        for candidate in self._candidates(number, any_first=not (wanted or chosen)):
            try:
                self._check_bootable(candidate)
                if not self.model.wants_kernel:
                    break
                return self._partition(candidate)
            except ToolError:
                raise
            except (BootError, FatError) as error:
                reasons.append(str(error))
                self.notes.append(f"passed over: {error}")
        else:
            raise BootError("; ".join(reasons[:4]))
        return self._partition(candidate)

    def _candidates(self, number: int, *, any_first: bool) -> list[int]:
        if self.model.walks:
            order = [*range(number, WALK_LAST + 1), *range(1, min(number, WALK_LAST + 1))]
            rest = [n for n in order if n in self.fats and n != number]
            return [number, *rest]
        # autoboot: 0 "means boot from the default partition which is the first bootable FAT".
        return sorted(self.fats) if any_first else [number]

    def _autoboot(self) -> int:
        """Return ``boot_partition``, 0 without one."""
        fat = self.fats[min(self.fats)]
        try:
            text = fat.read(AUTOBOOT, CONFIG_LIMIT)
        except ToolError:
            raise
        except FatError as error:
            self.notes.append(f"no {AUTOBOOT}: {error}")
            return 0
        if text is None:
            self.notes.append(f"there is no {AUTOBOOT} on {fat.where}")
            return 0
        if len(text) > AUTOBOOT_LIMIT:
            # What a bootloader makes of it is not documented: nothing to rely on.
            raise BootError(
                f"{AUTOBOOT} on {fat.where} has {len(text)} bytes, a bootloader reads "
                f"{AUTOBOOT_LIMIT} at most: shorten it"
            )
        # Of all filters it knows [all], [none] and [tryboot].
        settings = parse(text, AUTOBOOT, tryboot=self.tryboot)
        self.notes += settings.notes
        self.in_partition = settings.values.get("tryboot_a_b", "0") == "1"
        value = settings.values.get("boot_partition", "0")
        if not re.fullmatch("[0-9]{1,3}", value):
            self.notes.append(f"{AUTOBOOT} on {fat.where}: boot_partition={value} is no number")
            return 0
        return int(value)

    def _check_bootable(self, number: int) -> None:
        """Raise ``BootError`` or ``FatError`` when a partition is not bootable."""
        if number not in self.fats:
            have = ", ".join(map(str, sorted(self.fats)))
            raise BootError(f"partition {number} of {self.name} is no FAT partition ({have} are)")
        fat = self.fats[number]
        fat.check()
        for needed in self.model.starts:
            if not fat.has(needed):
                raise BootError(f"{fat.where} is not bootable: there is no {needed}")

    def _partition(self, number: int) -> Boot:
        """Return what a partition starts.

        :raises BootError: when it starts nothing.
        :raises FatError: when it cannot be read.
        """
        fat = self.fats[number]
        name = "tryboot.txt" if self.tryboot and not self.in_partition else "config.txt"
        text = fat.read(name, CONFIG_LIMIT)
        settings = Settings()
        if text is None:
            settings.notes.append(f"there is no {name} on {fat.where}: defaults")
        else:
            settings = parse(
                text,
                name,
                tryboot=self.tryboot,
                filters=self.model.filters,
                find=lambda other: fat.read(other, CONFIG_LIMIT) if usable_name(other) else None,
            )
        for key in ("initramfs", "ramfsfile"):
            if key in settings.values:
                raise BootError(
                    f"{name} on {fat.where} has {key}: the simulated boot ROM loads none"
                )
        kernel = self._kernel(fat, settings.values, name)
        cmdline, notes = self._cmdline(fat, settings.values)
        notes = [*self.notes, *settings.notes, *notes]
        return Boot(
            number,
            self.tryboot,
            kernel,
            cmdline,
            settings.values,
            tuple(settings.overlays),
            tuple(notes),
        )

    def _kernel(self, fat: Fat, values: dict[str, str], config: str) -> str:
        wanted = values.get("kernel")
        names = [wanted] if wanted else list(self.model.kernels)
        for name in names:
            if not usable_name(name):
                raise BootError(f"{config} on {fat.where}: kernel={name!r} is no usable file name")
        prefix = values.get("os_prefix", "")
        if not usable_name(f"{prefix}x"):
            raise BootError(f"{config} on {fat.where}: os_prefix={prefix!r} is not usable")
        # config, "os_prefix": ignored "unless the expected kernel [...] can be found"; a name that
        # begins with "/" has no prefix.
        for front in dict.fromkeys((prefix, "")):
            for name in names:
                path = name if name.startswith("/") else front + name
                if fat.has(path):
                    values["os_prefix"] = front
                    return path
        raise BootError(f"{fat.where} has no kernel {' or '.join(names)} (from {config})")

    def _cmdline(self, fat: Fat, values: dict[str, str]) -> tuple[str, list[str]]:
        name = values.get("cmdline", "cmdline.txt")
        path = name if name.startswith("/") else values.get("os_prefix", "") + name
        text = fat.read(path, CONFIG_LIMIT) if usable_name(path) else None
        if text is None:
            return "", [f"there is no {path} on {fat.where}: the kernel gets no parameters"]
        first, _, rest = text.partition(b"\0")[0].partition(b"\n")
        notes = []
        if rest.strip():
            notes.append(f"{path} on {fat.where}: only its first line counts")
        line = first.decode("latin-1").strip()
        if not all(" " <= character <= "~" or character == "\t" for character in line):
            raise BootError(f"{path} on {fat.where} is not text: {line[:40]!r}")
        if len(line) > CMDLINE_LIMIT:
            raise BootError(
                f"{path} on {fat.where} has {len(line)} characters, a kernel takes {CMDLINE_LIMIT}"
            )
        return line, notes

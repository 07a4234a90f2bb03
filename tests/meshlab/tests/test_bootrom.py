# SPDX-License-Identifier: Apache-2.0
"""The simulated boot ROM: the documented rules, on card images made by hand."""

from __future__ import annotations

import gzip
import random
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshlab.machine import bootrom, fat
from meshlab.machine.bootrom import MODELS, BootError, Request, architecture, boot, extract, parse
from meshlab.machine.bootrom import request_of as requested
from meshlab.machine.devicetree import without

sys.path.insert(0, str(Path(__file__).parent))
from crafted_card import AUTOBOOT, KERNEL, MIB, make_card, make_fat, mbr, slot
from flat_tree import node, prop, tree
from tiny_guest import guest

TRY = Request(tryboot=True)
PI4 = frozenset({"pi4"})


def values(text: str, *, tryboot: bool = False) -> dict[str, str]:
    return parse(text.encode(), "config.txt", tryboot=tryboot, filters=PI4).values


# -- the language of the configuration files


def test_settings_comments_and_the_last_one_counts() -> None:
    text = "# kernel=no\nkernel=a\r\n  kernel = b c  \n\ndtparam=i2c_arm=on\n#[none]\nx=1"
    assert values(text) == {"kernel": "b c", "dtparam": "i2c_arm=on", "x": "1"}


def test_lines_are_cut_off_and_it_is_said() -> None:
    long = "kernel=" + "k" * 100
    found = parse(f"a=1\n{long}\n# {long}\n".encode(), "config.txt")
    assert found.values == {"a": "1", "kernel": "k" * 91}
    assert found.notes == ["config.txt, line 2: ignored from character 99 on"]


def test_a_nul_ends_the_file() -> None:
    assert parse(b"a=1\nb=2\0\0\0\nc=3\n", "x").values == {"a": "1", "b": "2"}


def test_what_is_no_setting_is_told() -> None:
    assert parse(b"nonsense\n", "config.txt").notes == [
        "config.txt, line 1: 'nonsense' is no setting"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[pi4]\nk=1", "1"),
        ("[pi3]\nk=1", None),
        ("[pi3]\n[pi4]\nk=1", "1"),  # of the same type: replaced
        ("[pi4]\n[pi3]\nk=1", None),
        ("[pi3]\n[all]\nk=1", "1"),
        ("[none]\nk=1", None),
        ("[none]\n[pi4]\nk=1", None),  # of different types: both
        ("[none]\n[all]\nk=1", "1"),
        ("[tryboot]\nk=1", None),
        ("[EDID=DEL-X]\n[pi4]\nk=1", None),
        ("[gpio4=1]\nk=1", None),
        ("[0x12345678]\n[all]\n[pi4]\nk=1", "1"),
        ("[board-type=0x14]\nk=1", None),
        ("[of a time to come]\nk=1", None),
        ("[]\nk=1", None),
        ("[cm4]\nk=1", None),
        ("[pi4\nk=1", "1"),  # no filter without its end
    ],
)
def test_filters(text: str, expected: str | None) -> None:
    assert values(text).get("k") == expected


def test_the_tryboot_filter_and_models_add_up() -> None:
    text = "[tryboot]\nk=try\n[pi3]\nk=3\n[pi4]\nk=4\n"
    assert values(text, tryboot=True)["k"] == "4"
    assert "k" not in values(text)


def test_includes() -> None:
    files = {"a.txt": b"k=a\n[pi3]\n", "loop.txt": b"include loop.txt\n"}

    def run(text: bytes) -> bootrom.Settings:
        return parse(text, "config.txt", filters=PI4, find=files.get)

    assert run(b"include a.txt\n").values == {"k": "a"}
    # Inserted: a filter that begins there goes on here.
    assert run(b"include a.txt\nk=b\n").values == {"k": "a"}
    assert run(b"[pi3]\ninclude a.txt\n").values == {}
    assert run(b"include absent.txt\n").notes == [
        "config.txt includes absent.txt, which is not there"
    ]
    with pytest.raises(BootError, match=r"loop\.txt includes loop\.txt.*each other"):
        run(b"include loop.txt\n")
    files["wide.txt"] = b"include wide.txt\n" * 3000
    with pytest.raises(BootError, match="each other"):
        run(b"include wide.txt\n")
    assert "the bootloader knows none" in parse(b"include a.txt\n", "autoboot.txt").notes[0]


LINES = st.lists(
    st.one_of(
        st.sampled_from(["[all]", "[none]", "[tryboot]", "[pi3]", "[pi4]", "[x=1]", "# c", ""]),
        st.builds("{}={}".format, st.sampled_from("abc"), st.integers(0, 9)),
    ),
    max_size=30,
)


def expected_of(lines: list[str], *, tryboot: bool) -> dict[str, str]:
    """Tell what lines come to, each looked at by itself, from the end of the last [all] on."""
    found = {}
    for at, line in enumerate(lines):
        if "=" not in line or line.startswith("["):
            continue
        above = lines[:at]
        if "[all]" in above:
            above = above[len(above) - above[::-1].index("[all]") :]
        models = [word for word in above if word.startswith("[pi")]
        hidden = "[none]" in above or "[x=1]" in above or ("[tryboot]" in above and not tryboot)
        if not hidden and (not models or models[-1] == "[pi4]"):
            key, _, value = line.partition("=")
            found[key] = value
    return found


@given(LINES, st.booleans())
def test_filters_against_a_second_reading_of_the_rules(lines: list[str], tryboot: bool) -> None:
    assert values("\n".join(lines), tryboot=tryboot) == expected_of(lines, tryboot=tryboot)


@given(st.binary(max_size=600))
def test_any_bytes_are_a_configuration(text: bytes) -> None:
    found = parse(text, "config.txt", find={"config.txt": text}.get)
    assert all("\n" not in key + value for key, value in found.values.items())


# -- what a Pi gives the kernel besides


def test_the_device_tree_of_a_model_and_the_overlay_that_is_known(tmp_path: Path) -> None:
    uart = node("serial@7e201000", prop(b"okay\0"), node("bluetooth"))
    whole = tree(node("", node("soc", uart)))
    pi3 = MODELS["pi3"]

    def found(
        config: bytes, files: dict[str, bytes], absent: frozenset[str] = frozenset()
    ) -> bytes:
        more = {"start.elf": b"x", "kernel8.img": KERNEL, "config.txt": config, **files}
        card = make_card(tmp_path / "card.img", None, {**slot("A"), **more})
        return bootrom.device_tree(card, boot(card, model=pi3), pi3, absent)

    mainline = {"bcm2837-rpi-3-b.dtb": whole}
    assert found(b"", mainline) == whole
    both = b"dtoverlay=disable-bt\ndtoverlay=disable-wifi\n"
    assert found(both, mainline) == without(whole, bootrom.BLUETOOTH) != whole
    assert found(b"[pi4]\ndtoverlay=disable-bt\n", mainline) == whole
    assert found(b"", mainline, frozenset({"/soc"})) == without(whole, frozenset({"/soc"}))
    assert found(b"", {**mainline, "bcm2710-rpi-3-b.dtb": tree(node(""))}) == tree(node(""))
    with pytest.raises(BootError, match=r"no device tree bcm2710-rpi-3-b.dtb or bcm2837-rpi-3-b"):
        found(b"", {})
    with pytest.raises(BootError, match=r"bcm2837-rpi-3-b\.dtb on .* is damaged"):
        found(b"", {"bcm2837-rpi-3-b.dtb": b"\x7fELF" * 20})


# -- what the guest asks for


@pytest.mark.parametrize(
    ("console", "expected"),
    [
        ("", Request()),
        ("[ 2.5] reboot: Restarting system\r\n", Request()),
        ("[ 2.5] reboot: Restarting system with command '0 tryboot'\r\n", TRY),
        ("reboot: Restarting system with command '3'\n", Request(3)),
        ("reboot: Restarting system with command '3 tryboot'\n", Request(3, tryboot=True)),
        ("reboot: Restarting system with command 'tryboot'\n", Request()),
        ("reboot: Restarting system with command '0 tryboots'\n", Request()),
        ("reboot: Restarting system with command 'bootloader'\n", Request()),
        ("reboot: Restarting system with command '99999999999999'\n", Request()),
        # Of several the last: an emergency restart after the one that was asked for.
        (
            "reboot: Restarting system with command '0 tryboot'\nreboot: Restarting system\n",
            Request(),
        ),
    ],
)
def test_restart_request(console: str, expected: Request) -> None:
    assert requested(console) == expected


# -- which partition, which kernel


def test_the_firmware_s_own_card(tmp_path: Path) -> None:
    card = make_card(tmp_path / "card.img")
    found = boot(card)
    assert (found.partition, found.tryboot, found.kernel) == (2, False, "Image")
    assert found.cmdline == "console=serial0,115200 thicket.slot=A"
    assert found.notes == ()
    extract(card, found, tmp_path / "kernel")
    assert (tmp_path / "kernel").read_bytes() == KERNEL
    tried = boot(card, TRY)
    assert (tried.partition, tried.tryboot) == (3, True)
    assert "slot=B" in tried.cmdline
    assert boot(card).partition == 2, "nothing is kept: the flag counts once"
    assert "partition 3 (tryboot), kernel Image" in tried.in_words()


def test_committed_to_the_other_slot(tmp_path: Path) -> None:
    other = AUTOBOOT.replace(b"=2", b"=x").replace(b"=3", b"=2").replace(b"=x", b"=3")
    card = make_card(tmp_path / "card.img", {"autoboot.txt": other.ljust(512, b"\0")})
    assert boot(card).partition == 3
    assert boot(card, TRY).partition == 2


def test_reboot_names_a_partition(tmp_path: Path) -> None:
    card = make_card(tmp_path / "card.img")
    assert boot(card, Request(3)).partition == 3
    assert boot(card, Request(2, tryboot=True)).partition == 2


def test_no_autoboot(tmp_path: Path) -> None:
    card = make_card(tmp_path / "card.img", {"x": b""})
    found = boot(card)
    assert found.partition == 2, "the first that is bootable"
    assert found.notes[0] == "there is no autoboot.txt on partition 1 of card.img"
    assert "partition 1 of card.img is not bootable: there is no config.txt" in found.notes[1]
    # Partition 1 itself, when it is bootable.
    assert boot(make_card(tmp_path / "rescue.img", slot("R"))).partition == 1


@pytest.mark.parametrize("line", [b"boot_partition=7", b"boot_partition=9", b"boot_partition=4"])
def test_a_partition_that_is_none(tmp_path: Path, line: bytes) -> None:
    card = make_card(tmp_path / "card.img", {"autoboot.txt": line})
    found = boot(card)
    assert found.partition == 2
    number = line.decode()[-1]
    assert f"passed over: partition {number} of card.img is no FAT partition" in found.notes[0]
    # The bootloaders of the Pi 3 and Zero 2 W do not look further.
    with pytest.raises(BootError, match=f"partition {number} of card.img is no FAT partition"):
        boot(card, model=MODELS["pi3"])


def test_a_number_that_is_none(tmp_path: Path) -> None:
    card = make_card(tmp_path / "card.img", {"autoboot.txt": b"boot_partition=two\n"})
    found = boot(card)
    assert found.partition == 2
    assert "boot_partition=two is no number" in found.notes[0]


def test_the_walk_goes_up_then_from_the_start(tmp_path: Path) -> None:
    three = make_card(tmp_path / "a.img", None, {"config.txt": b""}, slot("B"))
    assert boot(three).partition == 3, "2 has no kernel"
    text = {"autoboot.txt": b"boot_partition=3\n", **slot("R")}
    assert boot(make_card(tmp_path / "b.img", text, slot("A"), {})).partition == 1
    del text["Image"]
    found = boot(make_card(tmp_path / "c.img", text, slot("A"), {}))
    assert found.partition == 2
    assert len(found.notes) == 2, "why not 3, why not 1"


def test_the_walk_reads_no_second_autoboot(tmp_path: Path) -> None:
    first = {"autoboot.txt": b"boot_partition=2\n"}
    third = {**slot("B"), "autoboot.txt": b"boot_partition=1\n"}
    assert boot(make_card(tmp_path / "c.img", first, {}, third)).partition == 3


def test_nothing_to_boot_says_why_for_each(tmp_path: Path) -> None:
    card = make_card(tmp_path / "card.img", None, {}, {"config.txt": b"kernel=Image\n"})
    with pytest.raises(BootError) as error:
        boot(card)
    words = str(error.value)
    assert "partition 2 of card.img is not bootable: there is no config.txt" in words
    assert "partition 3 of card.img has no kernel Image (from config.txt)" in words


def test_models_want_their_own_files(tmp_path: Path) -> None:
    files = slot("A")
    with pytest.raises(BootError, match=r"there is no start4\.elf"):
        boot(make_card(tmp_path / "a.img", None, files, files), model=MODELS["pi4"])
    files |= {"start4.elf": b"x", "bcm2712-rpi-5-b.dtb": b"x"}
    card = make_card(tmp_path / "b.img", None, files, files)
    assert boot(card, model=MODELS["pi4"]).partition == 2
    assert boot(card, model=MODELS["pi5"]).partition == 2
    with pytest.raises(BootError, match=r"there is no start\.elf"):
        boot(card, model=MODELS["zero2w"])


@pytest.mark.parametrize(
    ("name", "tree", "section"),
    [
        ("pi5", "bcm2712-rpi-5-b.dtb", "pi5"),
        ("cm5", "bcm2712-rpi-cm5-cm5io.dtb", "cm5"),
        ("cm5lite", "bcm2712-rpi-cm5l-cm5io.dtb", "cm5"),
        ("pi500", "bcm2712-rpi-5-b.dtb", "pi500"),
    ],
)
def test_models_without_start_elf_want_a_tree(
    tmp_path: Path, name: str, tree: str, section: str
) -> None:
    files = {
        "config.txt": f"[pi4]\nkernel=other\n[{section}]\nkernel=mine\n".encode(),
        "mine": KERNEL,
    }
    with pytest.raises(BootError, match=f"there is no {tree}"):
        boot(make_card(tmp_path / "a.img", None, files), model=MODELS[name])
    card = make_card(tmp_path / "b.img", None, files | {tree: b"x"})
    assert boot(card, model=MODELS[name]).kernel == "mine"


@pytest.mark.parametrize(
    ("name", "section"), [("cm3", "pi3"), ("pi400", "pi4"), ("cm4s", "pi4"), ("cm5", "pi5")]
)
def test_a_section_for_a_chip_is_for_its_modules_too(name: str, section: str) -> None:
    text = f"[{section}]\na=1\n[{name}]\nb=1\n[none]\nc=1\n".encode()
    found = parse(text, "config.txt", filters=MODELS[name].filters)
    assert found.values == {"a": "1", "b": "1"}


def test_firmware_that_was_started_does_not_walk_on(tmp_path: Path) -> None:
    """A first partition with start4.elf and without kernel ends a Pi 4 that has no autoboot.txt."""
    files = {**slot("A"), "start4.elf": b"x", "bcm2712-rpi-5-b.dtb": b"x"}
    first = {"config.txt": b"", "start4.elf": b"x"}
    card = make_card(tmp_path / "card.img", first, files, files)
    with pytest.raises(BootError, match=r"^partition 1 of card\.img has no kernel"):
        boot(card, model=MODELS["pi4"])
    assert boot(card, model=MODELS["pi5"]).partition == 2
    assert boot(card).partition == 2


def test_default_kernels(tmp_path: Path) -> None:
    files = {"config.txt": b"", "kernel8.img": KERNEL, "kernel_2712.img": KERNEL}
    files["bcm2712-rpi-5-b.dtb"] = b"x"
    card = make_card(tmp_path / "card.img", None, files)
    assert boot(card).kernel == "kernel8.img"
    assert boot(card, model=MODELS["pi5"]).kernel == "kernel_2712.img"


def test_prefixes_and_other_names(tmp_path: Path) -> None:
    files = {
        "config.txt": b"os_prefix=new/\nkernel=Image\ncmdline=other.txt\n",
        "new/Image": KERNEL,
        "new/other.txt": b"new\n",
        "Image": KERNEL,
        "other.txt": b"old\n",
    }
    found = boot(make_card(tmp_path / "a.img", None, files))
    assert (found.kernel, found.cmdline) == ("new/Image", "new")
    del files["new/Image"]
    found = boot(make_card(tmp_path / "b.img", None, files))
    assert (found.kernel, found.cmdline) == ("Image", "old"), "ignored without a kernel there"
    files["config.txt"] = b"os_prefix=new/\nkernel=/Image\ncmdline=/other.txt\n"
    found = boot(make_card(tmp_path / "c.img", None, files))
    assert (found.kernel, found.cmdline) == ("/Image", "old"), "absolute names have no prefix"


def test_includes_on_the_card(tmp_path: Path) -> None:
    files = {**slot("A"), "config.txt": b"include more.txt\n", "more.txt": b"kernel=Image\n"}
    assert boot(make_card(tmp_path / "a.img", None, files)).kernel == "Image"
    files["more.txt"] = b"include more.txt\n"
    with pytest.raises(BootError, match=r"more\.txt includes more\.txt"):
        boot(make_card(tmp_path / "b.img", None, files, {}))


def test_tryboot_at_the_level_of_files(tmp_path: Path) -> None:
    files = {**slot("A"), "tryboot.txt": b"kernel=New\n", "New": KERNEL}
    card = make_card(tmp_path / "card.img", {"autoboot.txt": b"boot_partition=2\n"}, files)
    assert boot(card).kernel == "Image"
    assert boot(card, TRY).kernel == "New"
    both = make_card(
        tmp_path / "b.img", {"autoboot.txt": b"tryboot_a_b=1\nboot_partition=2\n"}, files
    )
    assert boot(both, TRY).kernel == "Image"


def test_the_command_line_is_one_line(tmp_path: Path) -> None:
    files = {**slot("A"), "cmdline.txt": b" quiet root=/dev/dm-0 \r\nsecond\n"}
    found = boot(make_card(tmp_path / "a.img", None, files))
    assert found.cmdline == "quiet root=/dev/dm-0"
    assert "only its first line counts" in found.notes[0]
    del files["cmdline.txt"]
    found = boot(make_card(tmp_path / "b.img", None, files))
    assert found.cmdline == ""
    assert "there is no cmdline.txt on partition 2 of b.img" in found.notes[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cmdline.txt": b"a" * 2048}, "cmdline.txt on partition 2 .* has 2048 characters"),
        ({"cmdline.txt": b"a\x1bb"}, "cmdline.txt on partition 2 .* is not text"),
        ({"config.txt": b"kernel=*"}, r"config.txt on partition 2 .*kernel='\*'"),
        ({"config.txt": b"kernel=c:Image"}, "no usable file name"),
        ({"config.txt": b"os_prefix=[a]"}, "os_prefix"),
        ({"config.txt": b"initramfs initrd followkernel\nkernel=Image"}, "initramfs"),
        ({"config.txt": b"ramfsfile=initrd\nkernel=Image"}, "ramfsfile"),
        ({"config.txt": b"#" * (65 << 10)}, r"config.txt on partition 2 .* longer than 65536"),
    ],
)
def test_malformed_files_are_named(tmp_path: Path, changes: dict[str, bytes], words: str) -> None:
    card = make_card(tmp_path / "card.img", None, {**slot("A"), **changes}, {})
    with pytest.raises(BootError, match=words):
        boot(card)


def test_autoboot_may_not_be_long(tmp_path: Path) -> None:
    card = make_card(tmp_path / "card.img", {"autoboot.txt": AUTOBOOT.ljust(513)})
    with pytest.raises(BootError, match=r"autoboot.txt on partition 1 .* 513 bytes.*512"):
        boot(card)


def test_kernels_that_are_none(tmp_path: Path) -> None:
    card = make_card(tmp_path / "card.img", None, {**slot("A"), "Image": b""})
    with pytest.raises(BootError, match=r"Image on partition 2 of card\.img is empty"):
        extract(card, boot(card), tmp_path / "kernel")


def test_cards_that_are_none(tmp_path: Path) -> None:
    card = tmp_path / "card.img"
    for content, words in (
        (b"", "shorter than one sector"),
        (bytes(4096), "no partition table"),
        (mbr([]), r"no FAT partition \(partitions: none\)"),
        (mbr([(0x83, 1, 5)]), r"no FAT partition \(partitions: 1 of type 0x83\)"),
        (mbr([(0xEE, 1, 5)]), "GPT"),
        (mbr([(0x0C, 8, 5)]), "begins behind the end of the card"),
        (mbr([(0x0C, 1, 1)]) + bytes(512), "holds no FAT file system"),
    ):
        card.write_bytes(content)
        with pytest.raises(BootError, match=words):
            boot(card)
    with pytest.raises(OSError):
        boot(tmp_path / "absent.img")


def test_a_card_cut_off_behind_the_boot_partitions(tmp_path: Path) -> None:
    card = make_card(tmp_path / "card.img")
    with card.open("r+b") as file:
        file.truncate(MIB + 3 * 2 * MIB)
    assert boot(card).partition == 2


# -- damaged file systems


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
def test_damaged_file_systems_end_in_words(seed: int) -> None:
    """Bytes of boot sectors, allocation tables and folders changed: an answer, or a BootError."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        card = make_card(Path(directory, "card.img"))
        with card.open("r+b") as file:
            for _ in range(chance.choice([1, 4, 16, 64])):
                start = MIB + chance.randrange(3) * 2 * MIB
                # Mostly where the structures are: within the first 16 KiB of a partition.
                file.seek(start + chance.choice([chance.randrange(64), chance.randrange(16 << 10)]))
                file.write(bytes([chance.randrange(256)]))
        try:
            with mock.patch.object(subprocess, "run", wraps=subprocess.run) as program:
                found = boot(card)
                extract(card, found, Path(directory, "kernel"))
            assert Path(directory, "kernel").stat().st_size <= bootrom.KERNEL_LIMIT
        except BootError as error:
            assert "partition" in str(error) or "card.img" in str(error)
        assert program.call_count <= 12, "each ends in time (fat.PATIENCE, fat.LONGEST)"


def test_a_chain_of_clusters_without_end(tmp_path: Path) -> None:
    """A file of 4 GiB whose clusters go round in a circle: noticed, or bounded by its size."""
    card = make_card(tmp_path / "card.img")
    raw = bytearray(card.read_bytes())
    start = MIB + 2 * MIB  # partition 2
    reserved, fats, entries = struct.unpack_from("<HBH", raw, start + 14)
    (per_fat,) = struct.unpack_from("<H", raw, start + 22)
    root = start + (reserved + fats * per_fat) * 512
    at = raw.index(b"IMAGE      ", root, root + 32 * entries) if b"IMAGE      " in raw else -1
    assert at > 0
    (cluster,) = struct.unpack_from("<H", raw, at + 26)
    struct.pack_into("<I", raw, at + 28, 0xFFFFFFFF)
    # FAT12: the first cluster of the file is followed by itself.
    for table in range(fats):
        place = start + (reserved + table * per_fat) * 512 + cluster * 3 // 2
        (old,) = struct.unpack_from("<H", raw, place)
        new = (old & 0x000F) | cluster << 4 if cluster & 1 else (old & 0xF000) | cluster
        struct.pack_into("<H", raw, place, new)
    card.write_bytes(raw)
    program = mock.patch.object(subprocess, "run", wraps=subprocess.run)
    with (
        program as runs,
        pytest.raises(BootError, match=r"Image on partition 2 of .*(loop|longer)"),
    ):
        extract(card, boot(card), tmp_path / "kernel")
    assert runs.call_count <= 12


# -- the file system's other side


def test_writing_and_deleting(tmp_path: Path) -> None:
    card = make_card(tmp_path / "card.img")
    from firmware import card as cards

    with card.open("rb") as file:
        config = fat.Fat(card, cards.read(file)[cards.CONFIG])
    config.write("thicket.toml", b"a = 1\n")
    config.write("thicket.toml", b"b = 2\n")
    assert config.read("THICKET.TOML") == b"b = 2\n", "names are not told apart by case"
    assert config.has("thicket.toml")
    config.delete("thicket.toml")
    assert config.read("thicket.toml") is None
    assert not config.has("thicket.toml")
    with pytest.raises(fat.FatError, match=r"no thicket\.toml on partition 1"):
        config.delete("thicket.toml")
    with pytest.raises(fat.FatError, match=r"large on partition 1 of card\.img"):
        config.write("large", bytes(3 * MIB))
    with pytest.raises(fat.FatError, match="no file name"):
        config.read("*.txt")
    assert config.read("autoboot.txt") == AUTOBOOT


def test_missing_mtools_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = make_card(tmp_path / "card.img")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "prlimit").symlink_to("/usr/bin/prlimit")
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(BootError, match=r"^mtype is missing[^;]*apt-get install [^;]*mtools$"):
        boot(card)


# -- kernels


def test_architectures(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    bz = bytearray(0x1000)
    bz[0x202:0x206] = b"HdrS"
    for content, expected in (
        (KERNEL, "aarch64"),
        (gzip.compress(KERNEL), "aarch64"),
        (bytes(bz), "x86_64"),
        (guest(), "x86_64"),
        (b"", None),
        (b"\x1f\x8bnonsense", None),
        (bytes(1000), None),
        (b"\x7fELF" + bytes(100), None),
    ):
        path.write_bytes(content)
        assert architecture(path) == expected


def test_fat_in_a_partition_of_its_own(tmp_path: Path) -> None:
    """The helper of these tests itself: what was put in comes out."""
    image = tmp_path / "x.img"
    image.write_bytes(mbr([(0x0C, 2048, 4096)]).ljust(3 * MIB, b"\0"))
    make_fat(image, MIB, 2, {"a/b": b"1"})
    from firmware import card as cards

    with image.open("rb") as file:
        assert fat.Fat(image, cards.read(file)[1]).read("a/b") == b"1"

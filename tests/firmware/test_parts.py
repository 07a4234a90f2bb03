# SPDX-License-Identifier: Apache-2.0
"""Every part of every supported Raspberry Pi has its driver: the table, fragments, built kernels.

The table is ``board/rpi64/parts.toml``. That its options are set is checked always; that a kernel
has them, and that no enabled node of a device tree is forgotten, where ``make rpi64`` was run.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from firmware import boards, build, devicetree, parts
from firmware.fragments import defconfig
from firmware.parts import Parts, PartsError
from host.kconfig import merge, parse, settle
from meshlab.machine import bootrom

BOARD = boards.load("rpi64")
FOLDER = BOARD.root / "board" / "rpi64"
TABLE = parts.load(FOLDER / "parts.toml")
CHIPS = {"bcm2837", "bcm2711", "bcm2712"}


def on_the_card() -> set[str]:
    """The device trees that the board's configuration puts on the card."""
    lines = {line.name: line.value for line in parse(defconfig(BOARD), "defconfig")}
    names = lines["BR2_LINUX_KERNEL_INTREE_DTS_NAME"].strip('"').split()
    return {name.removeprefix("broadcom/") for name in names}


def overlays_on_the_card() -> set[str]:
    lines = (FOLDER / "overlays.txt").read_text().splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def asked_for(model: parts.Model, setting: str) -> list[str]:
    """What ``config.txt`` asks a model for by ``dtparam`` or ``dtoverlay``, without values."""
    text = (FOLDER / "config.txt").read_bytes()
    filters = bootrom.MODELS[model.boots_as].filters
    found = []
    lines = text.split(b"\n")
    for number, line in enumerate(lines):
        if not line.startswith(setting.encode() + b"="):
            continue
        # Its own section's filters decide: the file up to it, with a mark in its place.
        seen = bootrom.parse(
            b"\n".join([*lines[:number], b"here=1"]), "config.txt", filters=filters
        )
        if "here" in seen.values:
            found.append(line.decode().split("=")[1].split(",")[0])
    return found


# -- the table and the fragments


def test_every_option_of_the_table_is_set_by_the_fragments() -> None:
    _text, lines = merge(BOARD.linux_fragments(), BOARD.root)
    values = {line.name: line.value for line in settle(lines)}
    assert parts.unset(TABLE, values) == []


def test_an_option_that_a_later_fragment_turns_off_is_named() -> None:
    _text, lines = merge(BOARD.linux_fragments(), BOARD.root)
    lines += parse("# CONFIG_USB_DWC2 is not set\nCONFIG_I2C_CHARDEV=m\n", "later.config")
    values = {line.name: line.value for line in settle(lines)}
    assert parts.unset(TABLE, values) == ["usb brcm,bcm2835-usb: CONFIG_USB_DWC2 is n"]


def test_the_table_covers_every_kind_of_part() -> None:
    assert {part.kind for part in TABLE.parts} == set(parts.KINDS)
    assert {model.chip for model in TABLE.models.values()} == CHIPS


@pytest.mark.parametrize("key", TABLE.models)
def test_every_model_has_what_no_node_can_be_without(key: str) -> None:
    model = TABLE.models[key]
    own = [part for part in TABLE.parts if key in part.models]
    everywhere = set(parts.KINDS) - {"button", "pcie", "ethernet", "reset", "rp1", "rtc"}
    wanted = (
        everywhere
        | {
            "bcm2837": set(),
            "bcm2711": {"reset"},
            "bcm2712": {"button", "ethernet", "pcie", "reset", "rp1", "rtc"},
        }[model.chip]
    )
    if key in ("pi3b", "pi3bplus", "pi4", "pi400", "cm4"):
        wanted.add("ethernet")
    if key in ("pi4", "pi400", "cm4"):
        wanted.add("pcie")
    if key == "cm4":
        wanted.add("rtc")  # of the board that it is on
    assert {part.kind for part in own} == wanted


def test_nothing_is_both_a_part_and_without_a_driver() -> None:
    driven = {word for part in TABLE.parts for word in part.compatible}
    without = [word for entry in TABLE.without for word in entry.compatible]
    assert not driven.intersection(without)
    assert len(set(without)) == len(without)


# -- what is on the card, and what the firmware is asked for


@pytest.mark.parametrize("key", TABLE.models)
def test_every_model_finds_its_tree_and_overlays_on_the_card(key: str) -> None:
    model = TABLE.models[key]
    assert model.tree in on_the_card()
    assert set(model.overlays) <= overlays_on_the_card()


def test_the_boot_rom_simulates_every_model() -> None:
    simulated = {name for name in bootrom.MODELS if name != "simulated"}
    assert {model.boots_as for model in TABLE.models.values()} == simulated
    for model in TABLE.models.values():
        chip = {"bcm2837": {"pi3", "pi0"}, "bcm2711": {"pi4"}, "bcm2712": {"pi5"}}[model.chip]
        assert chip & bootrom.MODELS[model.boots_as].filters


@pytest.mark.parametrize("key", TABLE.models)
def test_config_txt_asks_no_model_for_what_it_does_not_know(key: str) -> None:
    model = TABLE.models[key]
    for setting, known in (("dtparam", TABLE.parameters), ("dtoverlay", TABLE.overlays)):
        asked = asked_for(model, setting)
        assert len(set(asked)) == len(asked)
        for name in asked:
            assert key in known[name].models | known[name].ignored, f"{setting}={name}"


@pytest.mark.parametrize("key", TABLE.models)
def test_every_model_gets_what_a_node_needs(key: str) -> None:
    model = TABLE.models[key]
    filters = bootrom.MODELS[model.boots_as].filters
    text = (FOLDER / "config.txt").read_bytes()
    found = bootrom.parse(text, "config.txt", filters=filters)
    assert found.notes == []
    assert ("otg_mode" in found.values) == (key == "cm4")
    pi5 = model.chip == "bcm2712"
    console = ["uart0_console"] if pi5 else ["watchdog"]
    assert asked_for(model, "dtparam") == ["i2c_arm", "i2c_arm_baudrate", *console]
    assert asked_for(model, "dtoverlay") == ["disable-bt", "disable-wifi"]


def test_every_overlay_of_the_card_is_in_the_table_and_the_other_way_round() -> None:
    assert overlays_on_the_card() == set(TABLE.overlays)
    used = {word for model in TABLE.models.values() for word in model.overlays}
    used |= {name for model in TABLE.models.values() for name in asked_for(model, "dtoverlay")}
    renamed = {f"{name}-pi5" for name in used}
    assert set(TABLE.overlays) <= used | renamed


def test_the_documentation_has_every_model() -> None:
    page = (BOARD.root / "docs/models.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    for model in TABLE.models.values():
        assert any(row.startswith(f"| {model.name} |") and model.tree in row for row in rows)


def test_the_table_of_emulations_has_every_model() -> None:
    page = (BOARD.root / "docs/models.md").read_text()
    legend = set(re.findall(r"^\| (\w+\*?) \| .*\|.*\|.*\|$", page, re.MULTILINE))
    table = page.partition("| model | drivers |")[2].partition("\n\n")[0].splitlines()[2:]
    rows = {cells[0]: cells for cells in (line.strip("| ").split(" | ") for line in table)}
    assert list(rows) == [model.name for model in TABLE.models.values()]
    for key, model in TABLE.models.items():
        cells = rows[model.name]
        assert set(", ".join(cells[1:5]).split(", ")) <= legend
        ethernet = any(part.kind == "ethernet" and key in part.models for part in TABLE.parts)
        assert ("j" in letters(cells[-1])) == ethernet, model.name


def letters(text: str) -> set[str]:
    """Return the letters of a text like ``a to c, f``."""
    found = set()
    for part in text.split(", "):
        first, _, last = part.partition(" to ")
        found |= {chr(code) for code in range(ord(first), ord(last or first) + 1)}
    return found


# -- a board that was built


def built_kernel() -> tuple[dict[str, str], bool]:
    """The configuration of the kernel that was built, and whether it is mainline's."""
    output = build.Build(BOARD).output
    found = sorted((output / "build").glob("linux-*/.config"), key=lambda p: p.stat().st_mtime)
    if not found:
        pytest.skip(f"no kernel in {output}: `make rpi64` builds one; it was not looked into")
    text = found[-1].read_text()
    values = {line.name: line.value for line in parse(text, ".config")}
    # An option that only the Raspberry Pi kernel has is not even named in mainline's.
    return values, "CONFIG_BRCM_CHAR_DRIVERS" not in values


def test_the_built_kernel_has_the_driver_of_every_enabled_node() -> None:
    values, mainline = built_kernel()
    trees = sorted(build.images(BOARD.name).glob("*.dtb"))
    if not trees:
        pytest.skip("no device trees beside the kernel; they were not looked into")
    missing = {
        tree.name: found
        for tree in trees
        if (
            found := parts.undriven(
                TABLE, devicetree.read(tree.read_bytes()), values, mainline=mainline
            )
        )
    }
    assert missing == {}


def test_the_built_kernel_has_every_option_of_the_table() -> None:
    values, mainline = built_kernel()
    wanted = [
        part._replace(options=part.mainline, needs=part.needs if part.mainline else ())
        if mainline
        else part
        for part in TABLE.parts
    ]
    assert parts.unset(TABLE._replace(parts=tuple(wanted)), values) == []


# -- the reader of the table

GOOD = """
[model.a]
name = "A"
chip = "c"
tree = "t"
boots_as = "pi3"
[[part]]
kind = "usb"
compatible = ["v,usb"]
models = ["c"]
options = ["USB_X"]
needs = ["USB"]
mainline = []
[[without]]
compatible = ["v,screen"]
why = "no screen"
"""


def table(tmp_path: Path, text: str) -> Parts:
    path = tmp_path / "parts.toml"
    path.write_text(text)
    return parts.load(path)


def test_a_good_table_is_read(tmp_path: Path) -> None:
    (part,) = table(tmp_path, GOOD).parts
    assert part == parts.Part(
        "usb", ("v,usb",), frozenset({"a"}), ("USB_X",), ("USB",), mainline=()
    )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('kind = "usb"', 'kind = "radio"', "v,usb: there is no kind 'radio'"),
        ('kind = "usb"\n', "", "v,usb: kind is missing"),
        ('models = ["c"]', 'models = ["d"]', "there is no model 'd'"),
        ('["USB_X"]', '["CONFIG-X"]', "CONFIG-X is no option"),
        ('["USB_X"]', '["USB_X", "USB_X"]', "names something twice"),
        ('["USB_X"]', "[]", "no option binds it"),
        ('["v,usb"]', '["v, usb"]', "not what a device tree names parts by"),
        ('["v,usb"]', "[]", "not what a device tree names parts by"),
        ('["v,usb"]', '"v,usb"', "is not a list"),
        ('why = "no screen"', 'why = " "', "v,screen: ' ' is not a text"),
        ('why = "no screen"', 'whi = "no screen"', "v,screen: why is missing"),
        ("needs", "need", "there is no need"),
        ("[[without]]", "[[with]]", "there is no such table: with"),
        ("[model.a]", "[models.a]", "there is no such table: models"),
        ('chip = "c"\n', "", "a: chip is missing"),
        ("mainline = []", "mainline = [", "parts.toml: "),
    ],
)
def test_a_bad_entry_is_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(PartsError) as caught:
        table(tmp_path, GOOD.replace(old, new, 1))
    assert words in str(caught.value)


ASKED = GOOD + '[parameter.p]\nfile = "x.dtsi"\nmodels = ["a"]\n'


def test_what_is_ignored_says_why_and_is_not_used_as_well(tmp_path: Path) -> None:
    with pytest.raises(PartsError, match="p: why is missing"):
        table(tmp_path, ASKED.replace('models = ["a"]', 'models = []\nignored = ["a"]'))
    with pytest.raises(PartsError, match="both used and ignored by a"):
        table(tmp_path, ASKED + 'ignored = ["a"]\nwhy = "x"\n')


def test_nodes_without_a_driver_are_named(tmp_path: Path) -> None:
    found = table(tmp_path, GOOD)
    nodes = [
        devicetree.Node("/", {"compatible": b"v,board\0"}, enabled=True),
        devicetree.Node("/usb", {"compatible": b"v,usb2\0v,usb\0"}, enabled=True),
        devicetree.Node("/off", {"compatible": b"v,off\0"}, enabled=False),
        devicetree.Node("/screen", {"compatible": b"v,screen\0"}, enabled=True),
        devicetree.Node("/new", {"compatible": b"v,new\0"}, enabled=True),
        devicetree.Node("/plain", {}, enabled=True),
    ]
    new = "/new (v,new): not in the table"
    on = {"CONFIG_USB_X": "m"}
    assert parts.undriven(found, nodes, on, mainline=False) == [new]
    assert parts.undriven(found, nodes, {}, mainline=False) == [
        "/usb (v,usb2, v,usb): off: USB_X",
        new,
    ]
    assert parts.undriven(found, nodes, on, mainline=True) == [
        "/usb (v,usb2, v,usb): off: no option of this kernel",
        new,
    ]

# SPDX-License-Identifier: Apache-2.0
"""Configurations from fragments: what is checked in, what is refused, what is found lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware import boards, defconfigs
from firmware.boards import BoardError
from firmware.fragments import _LINUX, defconfig
from host.kconfig import FragmentError, Wanted, kconfig, lost, merge, parse, settle

NAMES = st.from_regex(r"(CONFIG|BR2)_[A-Z0-9_]{1,8}", fullmatch=True)
VALUES = st.sampled_from(["y", "m", "n", '"text with = and #"', "0x1f", "12"])
LINES = st.lists(st.tuples(NAMES, VALUES), max_size=12)


def line(name: str, value: str) -> str:
    return f"# {name} is not set" if value == "n" else f"{name}={value}"


def test_what_is_checked_in_is_what_the_fragments_say() -> None:
    assert defconfigs.stale() == []


@pytest.mark.parametrize("name", boards.names())
def test_every_fragment_of_a_board_can_be_read(name: str) -> None:
    board = boards.load(name)
    files = board.linux_fragments()
    assert any(path.parent.parent.name == name for path in files), "none of the board's own"
    text, wanted = merge(files, board.root)
    assert len({w.name for w in wanted}) > 50
    assert text.count("# board/") >= len(files)
    for toolchain in ("bootlin", "internal"):
        defconfig(board, toolchain)


def test_a_stale_configuration_is_named(tmp_path: Path) -> None:
    board = boards.load("rpi64")
    changed = boards.Board(board.name, board.arch, board.fragments[1:], board.linux)
    assert defconfig(changed) != defconfig(board)


@given(LINES)
def test_parsing_returns_what_was_written(lines: list[tuple[str, str]]) -> None:
    text = "".join(f"{line(*pair)}\n" for pair in lines)
    assert [(w.name, w.value) for w in parse(text, "f")] == lines


@given(LINES, LINES)
def test_exactly_the_lines_that_are_not_there_are_lost(
    wanted: list[tuple[str, str]], have: list[tuple[str, str]]
) -> None:
    config = "".join(f"{line(*pair)}\n" for pair in have)
    sentences = lost([Wanted(n, v, f"f:{i}") for i, (n, v) in enumerate(wanted)], config)
    expected = [n for n, v in dict(wanted).items() if dict(have).get(n, "n") != v]
    assert [sentence.split()[1] for sentence in sentences] == expected


@pytest.mark.parametrize("bad", ["CONFIG_NET", "NET=y", "CONFIG_NET = y", "include x.config"])
def test_a_line_that_kconfig_would_skip_is_refused(bad: str) -> None:
    with pytest.raises(FragmentError, match=r"f:2: not a line of a configuration"):
        parse(f"# a comment\n{bad}\n", "f")


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ("CONFIG_MESH=y", "f:1: CONFIG_MESH should be y and is off"),
        ("CONFIG_SWAP=y", "f:1: CONFIG_SWAP should be y and is off"),
        ("CONFIG_HWSIM=y", "f:1: CONFIG_HWSIM should be y and is m"),
        ("# CONFIG_NET is not set", "f:1: CONFIG_NET should be off and is y"),
        ('CONFIG_VERSION="-x"', 'f:1: CONFIG_VERSION should be "-x" and is "-thicket"'),
    ],
)
def test_lost_lines_are_told_in_words(wanted: str, sentence: str) -> None:
    made = (
        "#\n# Automatically generated file; DO NOT EDIT.\n#\nCONFIG_NET=y\nCONFIG_HWSIM=m\n"
        '# CONFIG_SWAP is not set\nCONFIG_VERSION="-thicket"\n'
    )
    assert lost(parse(wanted, "f"), made) == [sentence]


def test_where_two_lines_name_one_option_the_later_one_counts() -> None:
    early = parse("CONFIG_SWAP=y\n", "early")
    late = parse("# CONFIG_SWAP is not set\n", "late")
    assert lost(early + late, "CONFIG_NET=y\n") == []
    assert lost(late + early, "CONFIG_NET=y\n") == ["early:1: CONFIG_SWAP should be y and is off"]


def test_later_fragments_win_and_the_own_ones_are_last(tmp_path: Path) -> None:
    extra = tmp_path / "mine.config"
    extra.write_text('BR2_TARGET_GENERIC_HOSTNAME="mine"\nBR2_PACKAGE_STRACE=y\n')
    text = defconfig(boards.load("rpi64"), extra=[extra])
    assert text.count("BR2_TARGET_GENERIC_HOSTNAME=") == 1
    assert 'BR2_TARGET_GENERIC_HOSTNAME="mine"' in text
    assert "BR2_PACKAGE_STRACE=y" in text
    assert str(tmp_path) not in text, "a path of this machine would be in the image"


KCONFIG = """
choice
	prompt "Kernel version"

config BR2_LINUX_KERNEL_CUSTOM_VERSION
	bool "Custom version"
	help
	config of choice

config BR2_LINUX_KERNEL_CUSTOM_TARBALL
	bool "Custom tarball"

endchoice

config BR2_LINUX_KERNEL_CUSTOM_VERSION_VALUE
	string "Kernel version"
	depends on BR2_LINUX_KERNEL_CUSTOM_VERSION

config BR2_LINUX_KERNEL_CUSTOM_TARBALL_LOCATION
	string "URL of custom kernel tarball"
	depends on BR2_LINUX_KERNEL_CUSTOM_TARBALL
"""
MAINLINE = """
BR2_LINUX_KERNEL_CUSTOM_VERSION=y
BR2_LINUX_KERNEL_CUSTOM_VERSION_VALUE="6.12.40"
BR2_LINUX_KERNEL_CONFIG_FRAGMENT_FILES-="$(BR2_EXTERNAL_THICKET_PATH)/board/rpi64/linux/downstream.config"
BR2_LINUX_KERNEL_CONFIG_FRAGMENT_FILES+="/home/me/more.config"
"""


def test_another_kernel_takes_the_place_of_ours(tmp_path: Path) -> None:
    (tmp_path / "linux").mkdir()
    (tmp_path / "linux" / "Config.in").write_text(KCONFIG)
    extra = tmp_path / "kernel.config"
    extra.write_text(MAINLINE)
    board = boards.load("rpi64")
    text = defconfig(board, extra=[extra], known=kconfig(tmp_path))
    assert "CUSTOM_TARBALL" not in text
    assert "BR2_LINUX_KERNEL_CUSTOM_VERSION=y" in text
    assert 'BR2_LINUX_KERNEL_CUSTOM_VERSION_VALUE="6.12.40"' in text
    ours = [path.name for path in board.linux_fragments()]
    line = next(line for line in text.splitlines() if line.startswith(_LINUX))
    found = [name.rpartition("/")[2] for name in line.partition("=")[2].strip('"').split()]
    assert found == [*(name for name in ours if name != "downstream.config"), "more.config"]


def test_what_is_taken_out_of_a_list_must_be_there(tmp_path: Path) -> None:
    extra = tmp_path / "kernel.config"
    extra.write_text('BR2_LINUX_KERNEL_CONFIG_FRAGMENT_FILES-="downstream.config"\n')
    with pytest.raises(FragmentError, match=r"kernel.config:1: .* has no downstream.config"):
        defconfig(boards.load("rpi64"), extra=[extra])


def test_a_board_s_own_lines_turn_nothing_off(tmp_path: Path) -> None:
    """They are checked in, and Kconfig says it when two of them do not go together."""
    lines = parse("BR2_A=y\nBR2_B=y\n", "f")
    (tmp_path / "Config.in").write_text("choice\nconfig BR2_A\nconfig BR2_B\nendchoice\n")
    assert settle(lines) == lines
    assert settle(lines, kconfig(tmp_path)) == lines[1:]


def test_toolchains_are_names_or_files(tmp_path: Path) -> None:
    board = boards.load("x86_64")
    own = tmp_path / "own.config"
    own.write_text("BR2_TOOLCHAIN_EXTERNAL=y\n")
    assert board.buildroot_fragments(str(own))[-1] == own
    assert "BOOTLIN_X86_64" in board.buildroot_fragments("bootlin")[-1].read_text()
    with pytest.raises(BoardError, match="TOOLCHAIN is bootlin, internal, or the path"):
        board.buildroot_fragments("gentoo")


def test_boards_are_read_with_words_for_what_is_wrong(tmp_path: Path) -> None:
    folder = tmp_path / "board" / "b"
    folder.mkdir(parents=True)
    conf = folder / "board.conf"
    conf.write_text('ARCH="aarch64"\nFRAGMENTS="base"\n')
    with pytest.raises(BoardError, match="LINUX is missing"):
        boards.load("b", tmp_path)
    conf.write_text('ARCH="$(reboot)"\n')
    with pytest.raises(BoardError, match=r"board\.conf:1: not a line"):
        boards.load("b", tmp_path)
    with pytest.raises(BoardError, match="there is no board 'c'; there are b"):
        boards.load("c", tmp_path)


@pytest.mark.parametrize("name", boards.names())
def test_nobody_can_log_in_by_password(name: str) -> None:
    wanted = {w.name: w.value for w in parse(defconfig(boards.load(name)), "d")}
    assert wanted["BR2_TARGET_ENABLE_ROOT_LOGIN"] == "n"
    assert wanted["BR2_TARGET_GENERIC_GETTY"] == "n"
    assert "BR2_TARGET_GENERIC_ROOT_PASSWD" not in wanted
    passwd = (boards.ROOT / "overlay/etc/passwd").read_text().splitlines()
    assert passwd
    assert all(entry.split(":")[1] in ("*", "!") for entry in passwd)

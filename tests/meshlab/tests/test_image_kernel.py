# SPDX-License-Identifier: Apache-2.0
"""Every line of a kernel fragment must be in the kernel that was built."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlab.image import kernel, tree
from meshlab.image.errors import ImageError

RESULT = """\
#
# Automatically generated file; DO NOT EDIT.
#
CONFIG_NET=y
CONFIG_MAC80211_HWSIM=m
CONFIG_LOCALVERSION="-thicket"
CONFIG_LOG_BUF_SHIFT=16
# CONFIG_SWAP is not set
"""


def lost(fragment: str) -> list[str]:
    return kernel.lost(kernel.parse(fragment, "a.config"), RESULT)


def test_lines_that_survived() -> None:
    assert (
        lost(
            "CONFIG_NET=y\nCONFIG_MAC80211_HWSIM=m\n# CONFIG_SWAP is not set\n"
            'CONFIG_LOCALVERSION="-thicket"\nCONFIG_LOG_BUF_SHIFT=16\n'
            # an option that this kernel has not is off as well
            "# CONFIG_NO_SUCH_THING is not set\n"
        )
        == []
    )


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("CONFIG_MESH=y", "a.config:2: CONFIG_MESH should be y and is off"),
        ("CONFIG_SWAP=y", "a.config:2: CONFIG_SWAP should be y and is off"),
        ("CONFIG_MAC80211_HWSIM=y", "a.config:2: CONFIG_MAC80211_HWSIM should be y and is m"),
        ("# CONFIG_NET is not set", "a.config:2: CONFIG_NET should be off and is y"),
        ("CONFIG_LOG_BUF_SHIFT=17", "a.config:2: CONFIG_LOG_BUF_SHIFT should be 17 and is 16"),
        ('CONFIG_LOCALVERSION="-x"', 'CONFIG_LOCALVERSION should be "-x" and is "-thicket"'),
    ],
)
def test_lines_that_did_not(line: str, sentence: str) -> None:
    found = lost(f"# a comment\n{line}\nCONFIG_NET=y\n" if "NET is" not in line else f"\n{line}\n")
    assert len(found) == 1
    assert sentence in found[0]


def test_a_later_fragment_wins() -> None:
    early = kernel.parse("CONFIG_SWAP=y\n", "early.config")
    late = kernel.parse("# CONFIG_SWAP is not set\n", "late.config")
    assert kernel.lost(early + late, RESULT) == []
    assert kernel.lost(late + early, RESULT) == [
        "early.config:1: CONFIG_SWAP should be y and is off"
    ]


@pytest.mark.parametrize("line", ["CONFIG_NET", "NET=y", "CONFIG_NET = y", "include x.config"])
def test_lines_that_kconfig_would_skip_are_refused(line: str) -> None:
    with pytest.raises(ImageError, match=r"x\.config:2: not a line of a kernel configuration"):
        kernel.parse(f"CONFIG_NET=y\n{line}\n", "x.config")


options = st.dictionaries(
    st.from_regex(r"CONFIG_[A-Z0-9_]{1,12}", fullmatch=True),
    st.sampled_from(["y", "m", "n", "17", '"text"']),
)


@given(wanted=options, have=options)
def test_exactly_the_differences_are_named(wanted: dict[str, str], have: dict[str, str]) -> None:
    def text(values: dict[str, str]) -> str:
        return "".join(
            f"# {name} is not set\n" if value == "n" else f"{name}={value}\n"
            for name, value in values.items()
        )

    found = kernel.lost(kernel.parse(text(wanted), "f"), text(have))
    different = {name for name, value in wanted.items() if have.get(name, "n") != value}
    assert {sentence.split()[1] for sentence in found} == different


def test_this_trees_fragments() -> None:
    found = tree.find()
    text, lines = kernel.configuration(found.fragments(), found.root)
    values = {line.name: line.value for line in lines}
    # what issue-level requirements hang on: mesh, the simulated radio as the only module, the chip
    assert values["CONFIG_MAC80211_MESH"] == "y"
    assert values["CONFIG_I2C_VIRTIO"] == "y"
    assert [name for name, value in values.items() if value == "m"] == ["CONFIG_MAC80211_HWSIM"]
    assert all(f"# {path.relative_to(found.root)}" in text for path in found.fragments())
    assert len(found.fragments()) >= 9


def test_boards_share_no_line_with_the_common_fragments_by_accident() -> None:
    """A line that says again what another fragment says hides which of them counts."""
    found = tree.find()
    _text, lines = kernel.configuration(found.fragments(), found.root)
    seen: dict[str, kernel.Wanted] = {}
    for line in lines:
        other = seen.setdefault(line.name, line)
        assert other is line or other.value != line.value, f"{line.origin} repeats {other.origin}"


def test_a_fragment_that_is_no_configuration_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.config"
    path.write_text("CONFIG_A=y\nCONFIG_B\n")
    with pytest.raises(ImageError, match=r"bad\.config:2"):
        kernel.configuration([path], tmp_path)

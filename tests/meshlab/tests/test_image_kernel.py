# SPDX-License-Identifier: Apache-2.0
"""The lab kernel's own fragments; tests/firmware/test_fragments.py has the rules for all."""

from __future__ import annotations

from pathlib import Path

import pytest

from host.kconfig import Wanted
from meshlab.image import kernel, tree
from meshlab.image.errors import ImageError


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
    seen: dict[str, Wanted] = {}
    for line in lines:
        other = seen.setdefault(line.name, line)
        assert other is line or other.value != line.value, f"{line.origin} repeats {other.origin}"


def test_a_fragment_that_is_no_configuration_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.config"
    path.write_text("CONFIG_A=y\nCONFIG_B\n")
    with pytest.raises(ImageError, match=r"bad\.config:2"):
        kernel.configuration([path], tmp_path)

# SPDX-License-Identifier: Apache-2.0
"""State of another format: migrated on a copy, and thrown away on the way back."""

from __future__ import annotations

from pathlib import Path

import pytest

from thicket.base.paths import Paths
from thicket.device import data_format
from thicket.device.data_format import FormatError, Step


def rename(old: str, new: str) -> Step:
    def step(folder: str) -> None:
        (Path(folder) / old).rename(Path(folder) / new)

    return step


def fail(folder: str) -> None:
    (Path(folder) / "half").write_text("done")
    raise OSError(28, "No space left on device")


STEPS = {2: rename("a", "b"), 3: rename("b", "c")}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "data/thicket"
    folder.mkdir(parents=True)
    (folder / "a").write_text("kept")
    (folder / "link").symlink_to("a")
    return folder


def target(state: Path, number: int) -> Path:
    return state.with_name(f"thicket.{number}")


def test_steps_change_a_copy(state: Path) -> None:
    made = target(state, 3)
    assert data_format.migrate(str(state), str(made), 3, STEPS) == 1
    assert (made / "c").read_text() == "kept"
    assert (made / "link").is_symlink()
    assert data_format.of_folder(str(made)) == 3
    assert (state / "a").read_text() == "kept"
    assert data_format.of_folder(str(state)) == 1
    # From the newest of the older ones, only what is missing is done.
    again = target(state, 4)
    assert data_format.migrate(str(made), str(again), 4, {4: rename("c", "d")}) == 3
    assert (again / "d").read_text() == "kept"


@pytest.mark.parametrize(
    ("steps", "words"), [({}, "how format 2 is made"), ({2: fail}, "No space left")]
)
def test_what_cannot_be_migrated_leaves_nothing(
    state: Path, steps: dict[int, Step], words: str
) -> None:
    with pytest.raises(FormatError, match=words):
        data_format.migrate(str(state), str(target(state, 2)), 2, steps)
    assert [path.name for path in state.parent.iterdir()] == ["thicket"]
    assert (state / "a").read_text() == "kept"


def test_what_a_power_cut_left_is_in_nobodys_way(state: Path) -> None:
    half = state.with_name("thicket.2.new")
    half.mkdir()
    (half / "b").write_text("half")
    data_format.migrate(str(state), str(target(state, 2)), 2, STEPS)
    assert (target(state, 2) / "b").read_text() == "kept"
    assert not half.exists()


def test_an_older_image_that_is_well_forgets_the_newer_ones(state: Path, tmp_path: Path) -> None:
    for number in (2, 3):
        target(state, number).mkdir()
    state.with_name("thicket.old").mkdir()
    image = tmp_path / "usr/share/thicket/data-format"
    image.parent.mkdir(parents=True)
    image.write_text("2\n")
    paths = Paths(str(tmp_path))
    assert data_format.of_image(paths) == 2
    data_format.forget_newer(paths)
    left = sorted(path.name for path in state.parent.iterdir())
    assert left == ["thicket", "thicket.2", "thicket.old"]


@pytest.mark.parametrize("text", ["", "x", "-1", "99999", "1\n2", "²"])
def test_a_number_that_is_none_is_the_first(state: Path, text: str) -> None:
    (state / "format").write_text(text)
    assert data_format.of_folder(str(state)) == 1

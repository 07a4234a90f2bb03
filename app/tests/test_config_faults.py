# SPDX-License-Identifier: Apache-2.0
"""A node starts whatever its configuration file holds, and the last good one wins."""

import json
from pathlib import Path

import pytest

from thicket import config
from thicket.config import Loaded, Paths

GOOD = b'[mesh]\nid = "good"\nsecurity = "open"\n'
LONG = 4000


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """The files of a node that has a last good configuration."""
    paths = Paths(str(tmp_path))
    for file in (paths.device, paths.last_good, paths.cmdline):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(paths.device).write_bytes(GOOD)
    config.remember(paths, config.load(paths))
    return paths


def load_with(paths: Paths, data: bytes) -> Loaded:
    """What is in force after the card's file became ``data`` and the node kept what is good."""
    Path(paths.device).write_bytes(data)
    loaded = config.load(paths)
    config.remember(paths, loaded)
    return loaded


def holds(paths: Paths, loaded: Loaded) -> bool:
    """Whether the last good configuration is in force, kept and the fault told of."""
    return (
        loaded.last_good_used
        and loaded.settings.mesh.id == "good"
        and bool(loaded.findings)
        and Path(paths.last_good).read_bytes() == GOOD
    )


NUMBERS = {
    "hexadecimal": "0x" + "f" * LONG,
    "octal": "0o" + "7" * 2 * LONG,
    "binary": "0b" + "1" * 5 * LONG,
    "decimal": "9" * 2 * LONG,
    "65 bits": str(2**63),
    "negative": str(-(2**63) - 1),
}
PLACES = {
    "known key": "[mesh]\nchannel = {}\n",
    "text key": "[mesh]\nid = {}\n",
    "unknown key": "[mesh]\nchanel = {}\n",
    "outside of a section": "channel = {}\n",
    "instead of a section": "mesh = {}\n",
    "list": "[access]\nssh_keys = [{}]\n",
    "application": "[application.garden]\nlimit = {}\n",
    "deep in an application": "[application.garden]\na = [{{ b = [{}] }}]\n",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_of_any_length_leaves_the_last_good_one_in_force(
    paths: Paths, number: str, place: str
) -> None:
    loaded = load_with(paths, PLACES[place].format(NUMBERS[number]).encode())
    assert holds(paths, loaded)
    json.dumps([str(finding) for finding in loaded.findings])


def test_the_largest_numbers_of_toml_reach_an_application(paths: Paths) -> None:
    text = f"[application.garden]\nmost = {2**63 - 1}\nleast = {-(2**63)}\n"
    loaded = load_with(paths, text.encode())
    assert loaded.settings.application["garden"] == {"most": 2**63 - 1, "least": -(2**63)}


def test_a_fault_of_the_judge_leaves_the_last_good_one_in_force(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(settings: config.Settings, _: str) -> None:
        if settings.mesh.id != "good":
            raise KeyError("mesh")

    monkeypatch.setattr(config, "_CROSS_CHECKS", (judge,))
    loaded = load_with(paths, b'[mesh]\nid = "other"\nsecurity = "open"\n')
    assert holds(paths, loaded)
    assert "cannot be judged: KeyError" in str(loaded.findings[0])


def test_a_fault_of_the_judge_in_every_file_leaves_the_defaults(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(*_: object) -> None:
        raise KeyError("mesh")

    Path(paths.image).parent.mkdir(parents=True)
    Path(paths.image).write_bytes(GOOD)
    monkeypatch.setattr(config, "_CROSS_CHECKS", (judge,))
    loaded = config.load(paths)
    assert loaded.source == "defaults"
    assert [f.file for f in loaded.findings] == [paths.image, paths.device, paths.last_good]


@pytest.mark.parametrize(
    "text",
    [
        "[mesh]\n" + "".join(f"x{n} = 1\n" for n in range(8000)),
        "".join(f"[x{n}]\n" for n in range(8000)),
    ],
    ids=["keys", "sections"],
)
def test_thousands_of_faults_are_told_of_by_the_first_ones(paths: Paths, text: str) -> None:
    loaded = load_with(paths, text[: config.MAX_FILE_BYTES].rsplit("\n", 1)[0].encode())
    assert holds(paths, loaded)
    assert len(loaded.findings) == config.MOST_FINDINGS + 1
    assert "more faults" in str(loaded.findings[-1])

# SPDX-License-Identifier: Apache-2.0
"""A node starts whatever its configuration file holds, and the last good one wins."""

import json
from pathlib import Path

import pytest

from thicket.base.files import MAX_FILE_BYTES, write_atomically
from thicket.base.paths import Paths
from thicket.config import schema
from thicket.config.edit import source
from thicket.config.load import Loaded, load, remember
from thicket.config.schema import MOST_FINDINGS, Settings

GOOD = b'[mesh]\nid = "good"\nsecurity = "open"\n'
LONG = 4000


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """The files of a node that has a last good configuration."""
    paths = Paths(str(tmp_path))
    for file in (paths.device, paths.last_good, paths.cmdline):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(paths.device).write_bytes(GOOD)
    remember(paths, load(paths))
    return paths


def load_with(paths: Paths, data: bytes) -> Loaded:
    """What is in force after the card's file became ``data`` and the node kept what is good."""
    Path(paths.device).write_bytes(data)
    loaded = load(paths)
    remember(paths, loaded)
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
    def judge(settings: Settings, _: str) -> None:
        if settings.mesh.id != "good":
            raise KeyError("mesh")

    monkeypatch.setattr(schema, "_CROSS_CHECKS", (judge,))
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
    monkeypatch.setattr(schema, "_CROSS_CHECKS", (judge,))
    loaded = load(paths)
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
    loaded = load_with(paths, text[:MAX_FILE_BYTES].rsplit("\n", 1)[0].encode())
    assert holds(paths, loaded)
    assert len(loaded.findings) == MOST_FINDINGS + 1
    assert "more faults" in str(loaded.findings[-1])


LOSSES = {
    "empty": b"",
    "blank": b" \r\n\n",
    "zeros": b"\0" * len(GOOD),
    "CR line ends": b'# mine\r[mesh]\rid = "good"\r',
    "CR line ends and a line feed": b'# mine\r[mesh]\rid = "good"\r\n',
}


@pytest.mark.parametrize("data", LOSSES.values(), ids=LOSSES.keys())
def test_what_is_no_whole_file_leaves_the_last_good_one_in_force(paths: Paths, data: bytes) -> None:
    assert holds(paths, load_with(paths, data))


def test_carriage_returns_are_named_with_their_line(paths: Paths) -> None:
    loaded = load_with(paths, b"# mine\r\n# by hand\r[mesh]\r")
    assert "line 2: ends with a carriage return only" in str(loaded.findings[0])


def test_remarks_alone_mean_the_defaults(paths: Paths) -> None:
    loaded = load_with(paths, b"# defaults\n")
    assert loaded.findings == []
    assert loaded.settings.mesh.id != "good"


@pytest.fixture
def boot(paths: Paths) -> Path:
    """The boot partition of the node, mounted."""
    Path(paths.cmdline).write_text("thicket.boot=/dev/vdc\n")
    Path(paths.mounts).parent.mkdir(parents=True, exist_ok=True)
    Path(paths.mounts).write_text(f"/dev/vdc {paths.boot} vfat ro 0 0\n")
    folder = Path(paths.boot)
    folder.mkdir()
    return folder


def lose(paths: Paths) -> Loaded:
    Path(paths.device).unlink()
    loaded = load(paths)
    remember(paths, loaded)
    return loaded


@pytest.mark.usefixtures("boot")
def test_a_file_that_is_gone_from_the_card_leaves_the_last_good_one_in_force(paths: Paths) -> None:
    loaded = lose(paths)
    assert holds(paths, loaded)
    assert f"{paths.boot}/thicket.toml: is gone" in str(loaded.findings[0])


def test_a_file_under_another_name_is_named(paths: Paths, boot: Path) -> None:
    (boot / "Thicket.toml.txt").write_bytes(GOOD)
    assert '"Thicket.toml.txt"' in str(lose(paths).findings[0])


def test_a_file_that_init_could_not_copy_is_told_of(paths: Paths, boot: Path) -> None:
    (boot / "thicket.toml").write_bytes(GOOD)
    loaded = lose(paths)
    assert holds(paths, loaded)
    assert "could not be read as a whole" in str(loaded.findings[0])
    Path(paths.last_good).unlink()
    assert load(paths).findings, "told of on a first start, too"


@pytest.mark.usefixtures("boot")
def test_a_node_that_never_had_a_file_has_the_defaults_without_a_word(paths: Paths) -> None:
    Path(paths.last_good).unlink()
    loaded = lose(paths)
    assert (loaded.source, loaded.findings) == ("defaults", [])
    assert not Path(paths.last_good).exists()


def test_a_damaged_last_good_one_is_not_taken_for_a_whole_one(paths: Paths) -> None:
    Path(paths.last_good).write_bytes(GOOD.replace(b"good", b"evil"))
    loaded = load_with(paths, b"")
    assert loaded.source == "defaults"
    assert "checksum" in str(loaded.findings[-1])
    load_with(paths, GOOD)
    assert holds(paths, load_with(paths, b"")), "a good file mends the copy"


def test_a_power_cut_between_checksum_and_copy_leaves_a_last_good_one(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = write_atomically

    def cut(path: str, data: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
        if path == paths.last_good:
            raise OSError(5, "power cut")
        write(path, data, mode=mode, durable=durable)

    monkeypatch.setattr("thicket.config.load.write_atomically", cut)
    with pytest.raises(OSError, match="power cut"):
        load_with(paths, GOOD.replace(b"good", b"next"))
    assert holds(paths, load_with(paths, b""))


def test_a_last_good_one_of_an_older_version_gets_a_checksum(paths: Paths) -> None:
    Path(paths.last_good_sum).unlink()
    assert holds(paths, load_with(paths, b""))
    load_with(paths, GOOD)
    assert Path(paths.last_good_sum).exists()


def test_a_change_on_a_node_whose_file_is_gone_changes_the_last_good_one(
    paths: Paths, boot: Path
) -> None:
    lose(paths)
    assert source(paths) == (GOOD.decode(), f"{boot}/thicket.toml")

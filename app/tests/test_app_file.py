# SPDX-License-Identifier: Apache-2.0
"""The file of an application, the terms of a node, its state, and the verdict on a trial."""

from __future__ import annotations

import io
import json
from hashlib import sha256
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
from apps_for_tests import ABOUT
from bundles_for_tests import UpdateKey, update_key
from fleet_for_tests import one_fleet
from hypothesis import given
from hypothesis import strategies as st

from thicket.applications import app_file, app_state, fit, trial
from thicket.applications.app_file import About, AppError
from thicket.applications.app_state import MOST_REJECTED, NOTHING, State
from thicket.applications.fit import Place
from thicket.applications.trial import PATIENCE, Seen, Trial, Verdict
from thicket.trust import signed_file
from thicket.trust.update_signer import SignerRefusedError, signer_name

CONTENTS = b"hsqs" + bytes(4092)
EXTENSION = f"lamp{EXTENSION_SUFFIXES[0]}"
PLACE = Place(one_fleet().fleet, (), "0.1.0", "3.13", "aarch64")


def whole(about: About = ABOUT, key: UpdateKey | None = None, contents: bytes = CONTENTS) -> bytes:
    return contents + signed_file.pack((key or update_key()).message(about.text()))


WORD = st.from_regex(r"[a-z0-9]{1,10}", fullmatch=True)
IMAGE = st.from_regex(r"[1-9]\.[0-9]", fullmatch=True)
ABOUTS = st.builds(
    About,
    name=WORD,
    version=WORD,
    number=st.integers(1, app_file.MAX_NUMBER),
    fleet=st.binary(min_size=20, max_size=20),
    least=IMAGE,
    below=st.sampled_from(["", "10", "10.1.0"]),
    python=st.sampled_from(["3.11", "3.13"]),
    architecture=st.sampled_from(app_file.ARCHITECTURES),
    applications=st.sets(WORD, min_size=1, max_size=8).map(lambda names: tuple(sorted(names))),
    modules=st.sets(WORD.map("m{}".format), min_size=1, max_size=9).map(
        lambda names: tuple(sorted(names))
    ),
    size=st.integers(1, app_file.MAX_BYTES),
    sha256=st.binary(min_size=32, max_size=32),
)


@given(ABOUTS)
def test_what_is_written_is_read(about: About) -> None:
    assert app_file.parse(about.text()) == about


@given(ABOUTS, st.data())
def test_another_text_says_something_else_or_nothing(about: About, data: st.DataObject) -> None:
    text = bytearray(about.text())
    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = app_file.parse(bytes(text))
    except AppError as error:
        assert str(error)
    else:
        assert found.text() == bytes(text)


@given(st.binary(max_size=200))
def test_rubbish_is_no_file(data: bytes) -> None:
    with pytest.raises(AppError):
        app_file.read(io.BytesIO(CONTENTS + data))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "../up"),
        ("name", "Lamp"),
        ("version", "1/2"),
        ("version", ""),
        ("number", 0),
        ("number", True),
        ("number", 1 << 32),
        ("fleet", "00"),
        ("image", {"least": "0.1"}),
        ("image", {"least": "01", "below": None}),
        ("image", {"least": "0.2", "below": "0.2.0"}),
        ("python", "2.7"),
        ("architecture", "mips"),
        ("applications", []),
        ("applications", ["b", "a"]),
        ("applications", ["a", "a"]),
        ("modules", [f"m{n:04}" for n in range(257)]),
        ("modules", ["a.b"]),
        ("size", app_file.MAX_BYTES + 1),
        ("sha256", "g" * 64),
        ("more", 1),
    ],
)
def test_what_is_out_of_bounds_is_not_taken(key: str, value: object) -> None:
    line, _, text = ABOUT.text().partition(b"\n")
    members = json.loads(text) | {key: value}
    changed = json.dumps(members, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(AppError, match="says of itself"):
        app_file.parse(line + b"\n" + changed)


def test_a_file_is_cut_at_every_place() -> None:
    data = whole()
    for size in [*range(0, 12), *range(4000, len(data), 3)]:
        with pytest.raises(AppError):
            app_file.read(io.BytesIO(data[:size]))


def test_who_signed_it_and_what_is_in_it() -> None:
    file = io.BytesIO(whole())
    found = app_file.read(file)
    assert found.about == ABOUT
    assert app_file.check_signer(found, one_fleet().fleet) == signer_name("release")
    app_file.check_contents(file, ABOUT)
    with pytest.raises(AppError, match="not those that were signed"):
        app_file.check_contents(io.BytesIO(whole(contents=b"hsqs" + b"\1" * 4092)), ABOUT)
    with pytest.raises(AppError, match="were signed; copy it again"):
        app_file.read(io.BytesIO(whole(contents=CONTENTS + b"\0")))
    with pytest.raises(SignerRefusedError, match="another fleet"):
        app_file.check_signer(found, one_fleet("other").fleet)
    foreign = app_file.read(io.BytesIO(whole(ABOUT._replace(fleet=bytes(20)))))
    with pytest.raises(AppError, match="another fleet than"):
        app_file.check_signer(foreign, one_fleet().fleet)
    with pytest.raises(SignerRefusedError, match="revoked"):
        fit.check(found, PLACE._replace(revoked={signer_name("release")}))
    with pytest.raises(AppError, match="from nobody"):
        fit.check(found, PLACE._replace(fleet=None))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"least": "0.1.1"}, "images from 0.1.1, and this one is 0.1.0: update the image"),
        ({"below": "0.1.0", "least": "0"}, "from 0 and below 0.1.0, .*: build it for this one"),
        ({"python": "3.12"}, "Python 3.12"),
        ({"architecture": "x86_64"}, "--for aarch64"),
    ],
)
def test_an_image_that_it_is_not_for(changed: dict[str, str], words: str) -> None:
    fit.check_image(ABOUT, PLACE)
    with pytest.raises(AppError, match=words):
        fit.check_image(ABOUT._replace(**changed), PLACE)  # type: ignore[arg-type]


def test_versions_of_images_are_numbers() -> None:
    names = ["", "0.1", "0.1.9", "0.2.dev3", "0.10", "1"]
    assert sorted(names, key=app_file.version_key) == names
    assert app_file.version_key("0.1") == app_file.version_key("0.1.0")


@pytest.mark.parametrize("name", ["lamp", "lamp.py", "lamp.pyc", "lamp.abi3.so", EXTENSION])
def test_a_module_of_the_image_of_any_kind(name: str, tmp_path: Path) -> None:
    assert not fit.in_image("lamp", [str(tmp_path)])
    (tmp_path / name).write_text("")
    assert fit.in_image("lamp", [str(tmp_path)])


@pytest.mark.parametrize(
    ("changed", "others", "words"),
    [
        ({}, [ABOUT._replace(name="a", modules=("x",))], "lamp is in a already"),
        ({}, [ABOUT._replace(name="a", applications=("x",))], "a brings a module lamp_app"),
        ({"modules": ("json",)}, [], "a module json, which the image has"),
        ({"modules": ("thicket",)}, [], "a module thicket, which the image has"),
        ({"modules": ("pytest",)}, [], "a module pytest, which the image has"),
        ({"applications": ("z",), "modules": ("own_app",)}, [], "own_app, which the image has"),
    ],
)
def test_nothing_gets_in_the_way(
    changed: dict[str, tuple[str, ...]], others: list[About], words: str, tmp_path: object
) -> None:
    import sys
    from pathlib import Path

    assert isinstance(tmp_path, Path)
    (tmp_path / "own_app.pyc").touch()
    path, image = [*sys.path, str(tmp_path)], {"lamp": "own_app"}
    # what it is put in place of may be of the same name
    fit.check_beside(ABOUT._replace(modules=("own_app",)), [], image, path)
    with pytest.raises(AppError, match=words):
        fit.check_beside(ABOUT._replace(**changed), others, image, path)  # type: ignore[arg-type]


# -- the state


FILES = st.sampled_from(["", "1.0-0123456789ab.app", "2+x-ba9876543210.app"])
STATES = st.builds(
    State,
    FILES,
    FILES,
    st.integers(0, 3),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=8),
    st.text(max_size=9),
)


@given(STATES)
def test_a_state_that_is_written_is_read(state: State) -> None:
    assert app_state.unpack(app_state.pack(state)) == state


@given(st.binary(max_size=99) | STATES.map(app_state.pack), st.integers(0, 60), st.binary())
def test_a_damaged_state_is_none(data: bytes, at: int, more: bytes) -> None:
    try:
        state = app_state.unpack(data[:at] + more + data[at:])
    except ValueError:
        return
    assert app_state.unpack(app_state.pack(state)) == state


def test_a_version_that_never_was_well_is_no_way_back() -> None:
    state = NOTHING.installed("1").well().installed("2")
    assert (state.current, state.before, state.trial) == ("2", "1", 1)
    state = state.installed("3")
    assert (state.current, state.before) == ("3", "1")
    assert state.tried().tried().tried().trial == app_state.MOST_TRIALS
    state = state.rejecting("id", "why")
    assert (state.current, state.before, state.trial, state.left) == ("1", "", 0, "why")
    assert state.installed("4").left == ""
    assert state.without_rejected("id").rejected == {}
    # the version before, installed once more, is not its own way back
    state = NOTHING.installed("1").well().installed("2").well().installed("1")
    assert (state.current, state.before) == ("1", "2")


def test_only_the_newest_reasons_are_kept() -> None:
    state = NOTHING
    for number in range(2 * MOST_REJECTED):
        state = state.rejecting(str(number), "x" * 1000)
    assert list(state.rejected) == [str(n) for n in range(MOST_REJECTED, 2 * MOST_REJECTED)]
    assert app_state.unpack(app_state.pack(state)) == state


def test_the_name_of_a_file_is_one_that_the_state_takes() -> None:
    name = app_state.file_name(ABOUT)
    assert name.startswith("1.0-")
    assert app_state.unpack(app_state.pack(NOTHING.installed(name))).current == name
    assert sha256(ABOUT.text()).hexdigest()[:12] in name


# -- the trial

RUNS = Seen("running", 1, "", "")


def test_a_trial_ends_well_after_its_time() -> None:
    course = Trial(100.0)
    for now in range(100, 110):
        course, verdict, _ = trial.judge(course, [RUNS], now, 10)
        assert verdict is Verdict.WAIT
    assert trial.judge(course, [RUNS], 110, 10)[1] is Verdict.WELL


def test_the_time_begins_anew_after_a_break() -> None:
    course, _, _ = trial.judge(Trial(0), [RUNS], 0, 10)
    course, _, _ = trial.judge(course, [RUNS, RUNS._replace(unwell="cold")], 9, 10)
    course, verdict, _ = trial.judge(course, [RUNS, RUNS], 10, 10)
    assert verdict is Verdict.WAIT
    assert trial.judge(course, [RUNS, RUNS], 20, 10)[1] is Verdict.WELL


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (RUNS._replace(state="waiting", why="ValueError: no"), "ValueError: no"),
        (RUNS._replace(state="unusable", why="[application.x] y is missing"), "y is missing"),
        (RUNS._replace(starts=2), "it failed"),
    ],
)
def test_one_failure_is_enough(seen: Seen, words: str) -> None:
    _, verdict, why = trial.judge(Trial(0), [RUNS, seen], 1, 10)
    assert verdict is Verdict.FAILED
    assert words in why


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (RUNS._replace(unwell="the sensor is cold"), "not well for 50 s: the sensor is cold"),
        (RUNS._replace(state="starting"), "its start does not end"),
    ],
)
def test_what_is_never_well_is_left(seen: Seen, words: str) -> None:
    course, verdict, _ = trial.judge(Trial(0), [seen], PATIENCE * 10 - 1, 10)
    assert verdict is Verdict.WAIT
    _, verdict, why = trial.judge(course, [seen], PATIENCE * 10, 10)
    assert verdict is Verdict.FAILED
    assert words in why


def test_what_the_configuration_keeps_from_running_is_well() -> None:
    course, _, _ = trial.judge(Trial(0), [], 0, 10)
    assert trial.judge(course, [], 10, 10)[1] is Verdict.WELL

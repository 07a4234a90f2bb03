# SPDX-License-Identifier: Apache-2.0
"""The program that runs the tests, on small test files of its own and a real pytest."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import signal
import subprocess
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from patience import PATIENCE

RUN = Path(__file__).with_name("run.py")

DECORATED = """
import functools

def decorated(test):
    @functools.wraps(test)
    def wrapper(): return test()
    return wrapper
"""

TESTS = """
import os, sys, pytest
sys.path.insert(0, "tests")
from decorated import decorated

@decorated
def test_right(): pass

@pytest.mark.parametrize("text", ["a b", "it's $5"])
def test_wrong(text): assert text == "", "no text is the right one"

@pytest.mark.skipif(True, reason="the kernel has no pstore")
def test_not_here(): pass

class TestInside:
    def test_deep(self): raise ValueError("broken")

@pytest.mark.lab
@pytest.mark.xdist_group("ring")
def test_of_a_mesh(): pass
"""


def load() -> ModuleType:
    spec = spec_from_file_location("thicket_tests_run", RUN)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


run = load()


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a checkout with one file of tests, which is taken for ours."""
    (tmp_path / "pyproject.toml").write_text(
        "[tool.pytest.ini_options]\n"
        'addopts = "--strict-markers --import-mode=importlib"\n'
        'markers = ["lab", "soak"]\n'
        'testpaths = ["tests"]\n'
    )
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_some.py").write_text(TESTS)
    (tmp_path / "tests" / "decorated.py").write_text(DECORATED)
    lint = tmp_path / "bin" / "lint"
    lint.parent.mkdir()
    lint.write_text("#!/bin/sh\necho 'ok    ruff'\necho 'FAIL  mypy'\necho '  why'\nexit 1\n")
    lint.chmod(0o755)
    monkeypatch.setattr(run, "TOP", tmp_path)
    monkeypatch.setenv("THICKET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(run, "workers", lambda: 0)
    monkeypatch.setattr(run, "PREPARE", ("-c", ""))
    for name in ("TESTS", "PYTEST", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    # Loading the others takes a second each time.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "xdist.plugin")
    return tmp_path


@pytest.fixture
def shuffling(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_PLUGINS", "xdist.plugin,random_order.plugin")


def outcomes(part: Any) -> dict[str, str]:
    return {case.name: case.outcome for case in part.cases}


def parts(tree: Path, names: list[str], *tests: str, options: tuple[str, ...] = ()) -> list[Any]:
    found: list[Any] = run.run(names, list(tests), list(options), tree / "out", dict(os.environ))
    return found


def test_every_part_runs_although_the_ones_before_failed(tree: Path) -> None:
    lint, unit, mesh = parts(tree, ["lint", "unit", "mesh"], "tests")
    assert outcomes(lint) == {"bin/lint: ruff": "passed", "bin/lint: mypy": "failed"}
    assert outcomes(unit) == {
        "tests/test_some.py::test_right": "passed",
        "tests/test_some.py::test_wrong[a b]": "failed",
        "tests/test_some.py::test_wrong[it's $5]": "failed",
        "tests/test_some.py::test_not_here": "skipped",
        "tests/test_some.py::TestInside::test_deep": "failed",
    }
    assert outcomes(mesh) == {"tests/test_some.py::test_of_a_mesh": "passed"}
    assert [part.passed for part in (lint, unit, mesh)] == [False, False, True]
    assert (tree / "out" / "unit.xml").exists()
    assert (tree / "out" / "mesh.xml").exists()


def test_the_report_says_what_failed_and_why_and_was_skipped_and_why(tree: Path) -> None:
    found = parts(tree, ["lint", "unit", "mesh"], "tests")
    out = io.StringIO()
    run.report(found, out)
    text = out.getvalue()
    assert "no text is the right one" in text
    assert "     1  the kernel has no pstore" in text
    assert "The slowest:" in text
    assert text.rstrip().splitlines()[-1] == "tests: 3 passed, 4 failed, 1 skipped"


def test_the_line_for_running_again_runs_exactly_what_failed(tree: Path) -> None:
    (unit,) = parts(tree, ["unit"], "tests")
    line = run.again([case for case in unit.cases if case.outcome == "failed"])
    make, target, variable = shlex.split(line)
    assert (make, target) == ("make", "test")
    # As make hands it on: $$ is $ by then.
    tests = shlex.split(variable.removeprefix("TESTS=").replace("$$", "$"))
    (second,) = parts(tree, ["unit"], *tests)
    assert list(outcomes(second).values()) == ["failed"] * 3


def test_the_line_names_files_where_the_tests_are_many() -> None:
    many = [run.Case(f"tests/test_{i % 2}.py::test_{i}", "failed", 1.0) for i in range(50)]
    assert run.again(many) == "make test TESTS='tests/test_0.py tests/test_1.py'"


def test_soak_looks_wherever_a_test_is_marked_so() -> None:
    words = run.pytest_words("soak", [], [])
    marked = {
        path.relative_to(run.TOP)
        for path in run.TOP.glob("**/test_*.py")
        if path != Path(__file__) and "pytest.mark.soak" in path.read_text()
    }
    assert marked
    for path in marked:
        assert any(path.is_relative_to(word) for word in words), path


def test_a_file_that_cannot_be_imported_is_a_failure_with_its_name(tree: Path) -> None:
    (tree / "tests" / "test_other.py").write_text("import nothing_of_that_name\n")
    (unit,) = parts(tree, ["unit"])
    assert not unit.passed
    assert any("test_other" in name for name in outcomes(unit))


def test_a_test_that_ends_its_process_is_a_failure(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "workers", lambda: 1)
    (tree / "tests" / "test_some.py").write_text("import os\ndef test_dies(): os._exit(7)\n")
    (unit,) = parts(tree, ["unit"])
    assert outcomes(unit) == {"tests/test_some.py::test_dies": "failed"}


def test_a_group_is_no_part_of_a_tests_name(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "workers", lambda: 1)
    (mesh,) = parts(tree, ["mesh"], "tests")
    assert outcomes(mesh) == {"tests/test_some.py::test_of_a_mesh": "passed"}


def test_what_nodes_need_is_made_beside_the_other_parts(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = tree / "begun"
    making = f"import os, time; os.symlink(str(os.getpid()), {str(begun)!r}); time.sleep(600)"
    monkeypatch.setattr(run, "PREPARE", ("-c", making))
    (tree / "tests" / "test_some.py").write_text(
        "import os, time\n"
        "def test_unit():\n"
        f"    while not os.path.islink({str(begun)!r}): time.sleep(0.01)\n"
        f"    os.kill(int(os.readlink({str(begun)!r})), 0)\n"
    )
    # One that fits no mesh is none that fails.
    unit, _ = parts(tree, ["unit", "mesh"])
    assert outcomes(unit) == {"tests/test_some.py::test_unit": "passed"}
    with pytest.raises(ProcessLookupError):
        os.kill(int(str(begun.readlink())), 0)
    begun.unlink()
    (tree / "tests" / "test_some.py").write_text(TESTS)
    # Who names tests waits for what these need, and for nothing else.
    parts(tree, ["unit", "mesh"], options=("--collect-only",))
    parts(tree, ["lint", "unit"])
    assert not begun.is_symlink()


def test_no_test_is_a_fault_where_tests_are_expected(tree: Path) -> None:
    (tree / "tests" / "test_some.py").write_text("")
    (unit,) = parts(tree, ["unit"])
    assert not unit.passed


def test_a_name_that_no_test_has_is_a_fault(tree: Path) -> None:
    found = parts(tree, ["unit", "mesh"], options=("-k", "nothing_has_this_name"))
    assert not all(part.passed for part in found)


def test_a_file_that_does_not_exist_is_named(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TESTS", "tests/test_gone.py::test_x")
    with pytest.raises(SystemExit) as ended:
        run.main([])
    assert ended.value.code == 2
    assert "there is no tests/test_gone.py" in capsys.readouterr().err


@pytest.mark.usefixtures("shuffling")
@pytest.mark.parametrize("words", [["unit", "mesh"], ["--rounds", "2", "unit"]])
def test_ctrl_c_ends_it_with_a_report_of_what_there_was(tree: Path, words: list[str]) -> None:
    (tree / "tests" / "test_some.py").write_text(
        "import pathlib, time\n"
        "def test_right(): pass\n"
        "def test_slow():\n"
        "    pathlib.Path('begun').touch()\n"
        # Again and again: Python notices a signal between two sleeps, not one just before a sleep.
        "    while True: time.sleep(0.05)\n"
    )
    code = (
        f"import sys; sys.argv={['run.py', *words]!r}; import runpy\n"
        f"module = runpy.run_path({str(RUN)!r})\n"
        f"module['main'].__globals__['TOP'] = __import__('pathlib').Path({str(tree)!r})\n"
        "module['main'].__globals__['workers'] = lambda: 0\n"
        "sys.exit(module['main']())\n"
    )
    running = subprocess.Popen(
        # as a shell without job control starts it in the background
        ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=tree,
    )
    deadline = time.monotonic() + PATIENCE
    while not (tree / "begun").exists():
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)  # what a terminal does
    output, _ = running.communicate(timeout=PATIENCE)
    assert running.returncode not in (0, None)
    assert "interrupted" in output
    assert "round 2 of" not in output
    assert "mesh" not in output.partition("part ")[2]


def test_loads_end_with_what_they_started(tree: Path) -> None:
    cores = os.sched_getaffinity(0)
    with run.one_core():
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == cores
    with run.stalled_disk():
        deadline = time.monotonic() + PATIENCE
        while not (tree / "cache" / "test" / "stall").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not (tree / "cache" / "test" / "stall").exists()


@pytest.mark.parametrize("load", ["second_copy", "stalled_disk"])
def test_loads_end_with_a_run_that_is_killed(tree: Path, load: str) -> None:
    (tree / "tests" / "test_some.py").write_text(
        "import os, time\n"
        f"def test_slow(): os.symlink(str(os.getpid()), {str(tree / 'begun')!r}); time.sleep(600)\n"
    )
    code = (
        f"import runpy; module = runpy.run_path({str(RUN)!r}); names = module['main'].__globals__\n"
        f"names['TOP'] = __import__('pathlib').Path({str(tree)!r})\n"
        f"with module[{load!r}](): __import__('time').sleep(600)\n"
    )
    running = subprocess.Popen([sys.executable, "-c", code])
    sign = tree / "begun" if load == "second_copy" else tree / "cache" / "test" / "stall"
    deadline = time.monotonic() + PATIENCE
    while not os.path.lexists(sign):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.kill()
    running.wait()

    def left() -> bool:
        if load == "second_copy":
            return Path("/proc", sign.readlink()).exists()
        mark = os.fsencode(sign)
        return any(mark in of.read_bytes() for of in Path("/proc").glob("[0-9]*/cmdline"))

    while True:
        with contextlib.suppress(OSError):  # a process that has just ended
            if not left():
                break
        assert time.monotonic() < deadline, "it runs on"
        time.sleep(0.05)


@pytest.mark.usefixtures("shuffling")
def test_rounds_differ_in_order_hashes_and_load(
    tree: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "LOADS", {"idle": run.contextlib.nullcontext, "core": run.one_core})
    (tree / "tests" / "test_some.py").write_text(
        "import os\ndef test_told(): print('hash', os.environ['PYTHONHASHSEED'])\n"
    )
    done = run.rounds(2, ["unit"], [], ["-rP"], tree / "out")
    assert [part.passed for one in done for part in one] == [True, True]
    output = capfd.readouterr().out
    assert "round 1 of 2: core" in output
    assert "round 2 of 2: idle" in output
    seeds = {line.split()[1] for line in output.splitlines() if line.startswith("hash ")}
    assert len(seeds) == 2

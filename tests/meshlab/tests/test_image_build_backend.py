# SPDX-License-Identifier: Apache-2.0
"""Building an application fetches nothing: what builds it is installed, and came by its hash."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from host.run import Runner
from meshlab.image import userland
from meshlab.image.errors import ImageError

EXAMPLE = Path(__file__).parents[3] / "examples/readings"
CONSTRAINTS = Path(__file__).parents[3] / "constraints.txt"


def project(folder: Path, build_system: str) -> Path:
    made = folder / "project"
    made.mkdir()
    (made / "pyproject.toml").write_text(
        f'{build_system}\n[project]\nname = "one"\nversion = "1"\n', encoding="utf-8"
    )
    (made / "one.py").write_text("WHAT = 1\n", encoding="utf-8")
    return made


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever asks an index for a package fails."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://[::1]:1/")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


@pytest.mark.usefixtures("no_index")
@pytest.mark.parametrize(
    "build_system",
    [
        "",
        '[build-system]\nrequires = ["setuptools>=68"]\nbuild-backend = "setuptools.build_meta"\n',
        '[build-system]\nrequires = ["setuptools", "wheel"]\n',
        "[build-system]\nrequires = [\"no-such ; sys_platform == 'plan9'\"]\n",
        # a backend of the project's own, which is there anyway
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "own"\nbackend-path = ["."]\n',
    ],
)
def test_a_project_is_built_without_any_index(tmp_path: Path, build_system: str) -> None:
    made = project(tmp_path, build_system)
    (made / "own.py").write_text("from setuptools.build_meta import *\n", encoding="utf-8")
    (made / "setup.cfg").write_text("[options]\npy_modules = one\n", encoding="utf-8")
    userland.install(Runner(), tmp_path / "log", made, tmp_path / "installed")
    assert (tmp_path / "installed/one.py").is_file()


@pytest.mark.usefixtures("no_index")
def test_the_example_is_built_without_any_index(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "readings")
    userland.install(Runner(), tmp_path / "log", tmp_path / "readings", tmp_path / "installed")
    assert list((tmp_path / "installed").glob("*.dist-info/entry_points.txt"))


@pytest.mark.parametrize(
    ("build_system", "words"),
    [
        ('requires = ["no-such-backend>=1"]\nbuild-backend = "no_such"', "no-such-backend>=1"),
        ('requires = ["setuptools", "no.such ; python_version > \'3\'"]', r"no\.such; .*"),
        ('requires = ["setuptools>=9999"]', "setuptools>=9999"),
        ('requires = []\nbuild-backend = "no_such_module.sub"', "no_such_module"),
    ],
)
def test_a_backend_that_is_not_there_is_named_and_not_fetched(
    tmp_path: Path, build_system: str, words: str
) -> None:
    made = project(tmp_path, f"[build-system]\n{build_system}\n")
    with pytest.raises(ImageError, match=rf"{words}, which is not in constraints.txt.*make lock"):
        userland.install(Runner(), tmp_path / "log", made, tmp_path / "installed")
    assert not (tmp_path / "log").exists(), "nothing was run"


@pytest.mark.parametrize(
    "text", ["[build-system", "build-system = 3", "[build-system]\nrequires = 3"]
)
def test_a_file_that_says_nothing_of_use_is_refused(tmp_path: Path, text: str) -> None:
    made = project(tmp_path, "")
    (made / "pyproject.toml").write_text(f"{text}\n", encoding="utf-8")
    with pytest.raises(ImageError, match=r"pyproject\.toml"):
        userland.install(Runner(), tmp_path / "log", made, tmp_path / "installed")


def test_the_backend_comes_by_its_hash() -> None:
    assert "\nsetuptools==" in CONSTRAINTS.read_text(encoding="utf-8")

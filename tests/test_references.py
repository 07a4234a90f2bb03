# SPDX-License-Identifier: Apache-2.0
"""Files and tests that comments and guides name are where they say."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from patience import PATIENCE

TOP = Path(__file__).resolve().parents[1]
GUIDES = (TOP / "README.md", *sorted((TOP / "docs").glob("*.md")))
#: What is no path of the tree, although it begins like one: by the file that says it.
ELSEWHERE = {
    # Buildroot's
    "board/common/busybox.config": {"package/busybox/busybox.config"},
    "board/common/patches/linux/linux.hash": {"board/raspberrypi/patches/linux/linux.hash"},
    "board/common/patches/linux-headers/linux-headers.hash": {
        "board/raspberrypi/patches/linux/linux.hash"
    },
    # programs of an image
    "tests/meshlab/tests/test_image_userland.py": {"bin/sh"},
    "tools/tests/test_enrolment.py": {"bin/python3"},
}
#: Files of any board or of none: BOARD, NAME and X stand for a name.
ANY = re.compile(r"^board/(?:BOARD|NAME|X)/")


class Named(NamedTuple):
    """A path, and where it is named."""

    file: str
    line: int
    path: str


def tracked() -> list[str]:
    """Return the tree's files, as git knows them."""
    answer = subprocess.run(
        ["git", "ls-files"], cwd=TOP, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    if answer.returncode:
        pytest.skip(f"not a checkout: {answer.stderr.strip()}")
    return [name for name in answer.stdout.splitlines() if (TOP / name).is_file()]


def commented(name: str, text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file that people read: all of a guide, else comments and docstrings."""
    python = name.endswith(".py")
    for number, line in enumerate(text.splitlines(), start=1):
        if name.endswith(".md") or "#" in line or (python and ('"""' in line or "``" in line)):
            yield number, line


def named(files: list[str]) -> list[Named]:
    """Return what looks like a path from the top of the tree."""
    tops = "|".join(sorted({re.escape(name.split("/")[0]) for name in files if "/" in name}))
    whole = re.compile(rf"(?<![\w./$<{{*-])((?:{tops})/[\w./+-]+)(?![\w*{{<$])")
    folder = re.compile(r"(?:^|[ (`])([\w-]{3,}(?:/[\w-]+)*/)(?=[ ,.:`)]|$)")
    found = []
    for name in files:
        path = TOP / name
        if path.is_symlink() or path.stat().st_size > 1 << 20:
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        # In Python and in guides, a word with a slash behind it may mean anything.
        shapes = (whole,) if name.endswith((".py", ".md")) else (whole, folder)
        for number, line in commented(name, text):
            for shape in shapes:
                found += [Named(name, number, word.rstrip("./:")) for word in shape.findall(line)]
    return found


def test_files_that_comments_and_guides_name_are_there() -> None:
    files = tracked()
    found = [one for one in named(files) if one.path not in ELSEWHERE.get(one.file, ())]
    assert len(found) > 200, "comments name files"
    boards = [path.name for path in (TOP / "board").iterdir()]
    missing = [
        one
        for one in found
        if not any((TOP / ANY.sub(f"board/{board}/", one.path)).exists() for board in boards)
    ]
    assert missing == []


def named_tests(text: str) -> Iterator[tuple[str, str]]:
    """Yield files of tests and names of tests in them; ``::name`` alone is of the last file."""
    file = ""
    for path, name in re.findall(r"`(tests/[\w/]+\.py)?(?:::(\w+))?`", text):
        file = path or file
        if file and (path or name):
            yield file, name


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_tests_that_guides_name_are_there(guide: Path) -> None:
    for file, name in named_tests(guide.read_text(encoding="utf-8")):
        assert (TOP / file).is_file(), file
        text = (TOP / file).read_text(encoding="utf-8")
        assert not name or re.search(rf"^(?:async )?def {name}\(", text, re.MULTILINE), name


def test_the_table_of_emulations_names_its_tests() -> None:
    found = list(named_tests((TOP / "docs/models.md").read_text(encoding="utf-8")))
    assert ("tests/firmware/test_boot_card.py", "test_every_pi_finds_its_files") in found
    assert len({name for _file, name in found if name}) >= 15

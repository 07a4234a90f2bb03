# SPDX-License-Identifier: Apache-2.0
"""The archive of the modules of a start: made of a root, and imported from."""

from __future__ import annotations

import compileall
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from firmware import start_archive
from thicket.base.archive import ArchiveFinder

APP = Path(__file__).resolve().parents[2] / "app" / "src" / "thicket"
START = """
from thicket.daemon.start import import_asyncio
import_asyncio()
import thicket.daemon.daemon, thicket.radio.mesh, thicket.trust.service, thicket.distribution
"""


def python(code: str, *arguments: object) -> list[str]:
    """Run code in an interpreter of its own, and return what it prints by words."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code}"]
        + [str(one) for one in arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a small ``thicket`` and a small library, compiled by this interpreter."""
    root = tmp_path / "root"
    library = root / "usr/lib/python3.13"
    thicket = library / "site-packages/thicket"
    for path, text in (
        (thicket / "__init__.py", "WHAT = 'archived'\n"),
        (thicket / "part/__init__.py", "from thicket.part import inner, late\n"),
        (thicket / "part/inner.py", "def where():\n    raise RuntimeError\n"),
        (thicket / "part/late.py", "VALUE = 5\n"),
        (library / "queue.py", "WHAT = 'archived'\n"),
        (library / "sched.py", "WHAT = 'not named'\n"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert compileall.compile_dir(root, quiet=1, legacy=True)
    for source in root.rglob("*.py"):
        source.unlink()
    start_archive.write(root)
    return root


ASK = """
from thicket.base import archive
for name in [name for name in sys.modules if name.partition(".")[0] == "thicket"]:
    del sys.modules[name]
archive.use(sys.argv[1])
"""


def test_modules_come_from_the_archive_and_say_where_their_own_files_are(root: Path) -> None:
    shutil.rmtree(root / "usr/lib/python3.13")
    code = f"""{ASK}
import thicket.part, queue, sched
print(thicket.WHAT, thicket.part.late.VALUE, queue.WHAT, hasattr(sched, "scheduler"))
print(thicket.__path__, thicket.part.inner.__file__, thicket.part.inner.__package__)
"""
    assert python(code, root / start_archive.PLACE) == [
        "archived", "5", "archived", "True",
        "['/usr/lib/python3.13/site-packages/thicket']",
        "/usr/lib/python3.13/site-packages/thicket/part/inner.pyc", "thicket.part",
    ]  # fmt: skip


def test_what_it_lacks_is_found_in_the_packages_directory(root: Path, tmp_path: Path) -> None:
    """As an application that is installed beside, or a module that was added by hand."""
    (tmp_path / "extra.py").write_text("VALUE = 6\n")
    code = f"""{ASK}
import thicket.part
thicket.part.__path__.append(sys.argv[2])
import thicket.part.extra
print(thicket.part.extra.VALUE)
"""
    assert python(code, root / start_archive.PLACE, tmp_path) == ["6"]


@pytest.mark.parametrize("kept", [0, 4, 8, 40])
def test_one_that_is_damaged_or_missing_is_none(root: Path, kept: int) -> None:
    path = root / start_archive.PLACE
    path.write_bytes(path.read_bytes()[:kept])
    code = f"{ASK}\nimport thicket.base\nprint(hasattr(thicket, 'WHAT'))"
    assert python(code, path) == ["False"]
    path.unlink()
    assert python(code, path) == ["False"]


def test_one_of_another_interpreter_is_none(root: Path) -> None:
    path = root / start_archive.PLACE
    path.write_bytes(b"\0\1\r\n" + path.read_bytes()[4:])
    with pytest.raises(ValueError, match="not for this interpreter"):
        ArchiveFinder(str(path))


def test_one_that_ends_early_says_so(root: Path) -> None:
    path = root / start_archive.PLACE
    path.write_bytes(path.read_bytes()[:-4])
    last = sorted(start_archive.find(root))[-1]
    with pytest.raises(ImportError, match=f"ends inside {last}"):
        ArchiveFinder(str(path)).get_code(last)


def test_byte_code_of_two_interpreters_makes_no_archive(root: Path) -> None:
    path = root / "usr/lib/python3.13/queue.pyc"
    path.write_bytes(b"\0\1\r\n" + path.read_bytes()[4:])
    with pytest.raises(ValueError, match="2 kinds"):
        start_archive.make(root)


def test_what_a_start_imports_is_named(tmp_path: Path) -> None:
    """By the Python that runs the tests; the node's may be another version."""
    code = f"""
before = set(sys.modules)
{START}
for name, module in sys.modules.items():
    origin = getattr(getattr(module, "__spec__", None), "origin", None) or ""
    if name not in before and origin.endswith(".py"):
        print(name)
"""
    found = {name for name in python(code) if name.partition(".")[0] != "thicket"}
    # pyroute2 itself is never run, see thicket.netlink.pyroute
    assert found - {"pyroute2"} <= set(start_archive.names())
    assert len(found) > 50


def test_what_a_start_must_not_import() -> None:
    """Each costs an emulated node 10 to 100 ms, and is imported where it is used."""
    loaded = set(python(f"{START}\nprint(*sys.modules)"))
    assert {"asyncio", "logging", "ipaddress"} <= loaded
    unwanted = {
        "argparse", "dataclasses", "inspect", "textwrap", "pathlib", "tempfile", "urllib", "email",
        "http", "random", "zeroconf", "multiprocessing", "unittest", "shutil", "thicket.cli",
        "thicket.discovery.dnssd", "thicket.update.service", "thicket.upkeep.report",
    }  # fmt: skip
    assert not unwanted & loaded

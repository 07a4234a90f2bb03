# SPDX-License-Identifier: Apache-2.0
"""``thicket logs`` and ``support``: what is kept of a log, and what an archive tells and hides."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from thicket.base.fields import MASK
from thicket.base.paths import Paths
from thicket.cli.care import COMMANDS
from thicket.cli.common import UsageError
from thicket.control.client import ClientError
from thicket.upkeep import kept_log, support

SECRET = "correct horse battery"


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """A node whose log has three lines, one of them with the mesh's passphrase."""
    monkeypatch.setenv("THICKET_ROOT", str(tmp_path))
    programs = tmp_path / "bin"
    programs.mkdir()
    logread = programs / "logread"
    logread.write_text(f"#!/bin/sh\nprintf 'one\\ntwo {SECRET}\\nthree\\n'\n")
    logread.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    made = Paths(str(tmp_path))
    for name in ("etc/thicket", "usr/share/thicket", "data/thicket"):
        (tmp_path / name).mkdir(parents=True)
    Path(made.image).write_text("")
    Path(made.device).write_text(f'[mesh]\npassphrase = "{SECRET}"\n')
    return made


def test_the_log_and_its_end(paths: Paths, capsys: pytest.CaptureFixture[str]) -> None:
    assert COMMANDS["logs"]([]) == 0
    assert capsys.readouterr().out == f"one\ntwo {SECRET}\nthree\n"
    assert COMMANDS["logs"](["-n", "1"]) == 0
    assert capsys.readouterr().out == "three\n"
    assert COMMANDS["logs"](["-n", "99"]) == 0
    assert capsys.readouterr().out.startswith("one\n")
    for wrong in (["-n"], ["-n", "x"], ["-n", "-1"], ["x"], ["-f", "--before"]):
        with pytest.raises(UsageError):
            COMMANDS["logs"](wrong)


def test_the_log_from_before_is_what_was_kept(
    paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ClientError, match="no log from before"):
        COMMANDS["logs"](["--before"])
    kept_log.keep(paths)
    kept = Path(paths.data + kept_log.NOW)
    assert kept.read_text().endswith("three\n")
    assert kept.stat().st_mode & 0o77 == 0
    kept.rename(paths.data + kept_log.BEFORE)  # as init.d/S40state.sh does
    assert COMMANDS["logs"](["--before", "-n", "1"]) == 0
    assert capsys.readouterr().out == "three\n"


def test_a_log_that_cannot_be_read_is_an_error(paths: Paths) -> None:
    (Path(paths.root) / "bin" / "logread").write_text("#!/bin/sh\necho gone >&2; exit 3\n")
    with pytest.raises(ClientError, match="logread: gone"):
        COMMANDS["logs"]([])
    with pytest.raises(OSError, match="status 3"):
        kept_log.keep(paths)
    assert not Path(paths.data + kept_log.NOW).exists()


def test_an_archive_tells_what_there_is_and_hides_secrets(paths: Paths) -> None:
    crash = Path(paths.data) / "log" / "crash-3.txt"
    crash.parent.mkdir()
    crash.write_text(f"Kernel panic\n{SECRET}\n")
    with tarfile.open(fileobj=io.BytesIO(support.pack(paths))) as archive:
        found = {}
        for entry in archive:
            file = archive.extractfile(entry)
            assert file is not None
            found[entry.name.partition("/")[2]] = file.read().decode()
    assert set(found) >= {*support.PROGRAMS, *support.FILES, *support.METHODS, "settings.txt"}
    assert not [name for name, text in found.items() if SECRET in text]
    assert found["log.txt"] == f"one\ntwo {MASK}\nthree\n"
    assert "Kernel panic" in found["crashes/crash-3.txt"]
    assert json.loads(found["restarts.json"]) == []
    assert "[mesh]" in found["settings.txt"]
    # What cannot be had is told in its place: there is no daemon, and no such program.
    assert found["status.json"].startswith("not to be had: the daemon does not answer")
    assert found["radio.txt"].startswith("not to be had: iw:") or "phy" in found["radio.txt"]


def test_a_part_that_is_long_is_its_end(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "MOST", 9)
    with tarfile.open(fileobj=io.BytesIO(support.pack(paths))) as archive:
        sizes = [entry.size for entry in archive]
    assert max(sizes) == 9

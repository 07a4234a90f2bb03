# SPDX-License-Identifier: Apache-2.0
"""The folder of an offer as a stream over ssh."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thicket.base.files import locked
from thicket.cli import update as command
from thicket.cli.common import BAD, OK, USAGE
from thicket.cli.main import main
from thicket.update.stream import FOLDER, MAX_FILES, StreamError, receive, send

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
FILES = st.dictionaries(NAMES, st.binary(min_size=1, max_size=3000), max_size=MAX_FILES)


def stream_of(folder: Path, files: dict[str, bytes]) -> bytes:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    out = io.BytesIO()
    told: list[int] = []
    send([str(folder / name) for name in files], out, told.append)
    assert told == sorted(told)
    assert not files or told[-1] == sum(map(len, files.values()))
    return out.getvalue()


def received(data: bytes, folder: Path) -> dict[str, bytes]:
    receive(io.BytesIO(data), str(folder))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(FILES)
def test_there_and_back(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as root:
        (Path(root) / "from").mkdir()
        data = stream_of(Path(root) / "from", files)
        assert received(data, Path(root) / "to") == files
        for end in {len(data) // 3, len(data) // 2, len(data) - 1}:
            with pytest.raises(StreamError):
                receive(io.BytesIO(data[:end]), f"{root}/cut-{end}")


@given(st.binary(max_size=200))
def test_anything_is_refused_or_stays_in_the_folder(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as root:
        for head in (b"", b"thicket offer 1\n"):
            folder = Path(root) / f"to-{len(head)}"
            try:
                receive(io.BytesIO(head + data), str(folder))
            except StreamError as error:
                assert "thicket update send" in str(error) or "ended" in str(error)
            except FileExistsError:
                pass  # a name twice
        assert {path.name for path in Path(root).iterdir()} <= {"to-0", "to-16"}


@pytest.mark.parametrize(
    "lines",
    [
        b"../etc/passwd 5\nhello",
        b".hidden 5\nhello",
        b"a/b 5\nhello",
        b"offer 0\n",
        b"offer -1\n",
        b"offer 99999999999\n",
        b"offer 9999999999\n",
        b"offer five\n",
        b"offer\n",
        b"x" * 5000,
        b"".join(b"f%d 1\nx" % n for n in range(MAX_FILES + 1)) + b"end\n",
    ],
)
def test_what_is_no_such_stream(lines: bytes, tmp_path: Path) -> None:
    with pytest.raises(StreamError):
        receive(io.BytesIO(b"thicket offer 1\n" + lines), str(tmp_path / "to"))
    assert not (tmp_path / "etc").exists()


def test_the_command_takes_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("THICKET_ROOT", str(tmp_path))
    (tmp_path / "from").mkdir()
    data = stream_of(tmp_path / "from", {"offer": b"an offer", "1.patch": b"a patch"})
    folder = tmp_path / "data" / FOLDER.lstrip("/")
    folder.mkdir(parents=True)
    (folder / "left").write_text("by a connection that was cut off")
    seen: list[set[str]] = []

    def request(_socket: str, _method: str, params: dict[str, str], timeout: float) -> object:
        seen.append({path.name for path in Path(params["folder"]).iterdir()})
        offer = {"compatible": "thicket-rpi64", "application": "", "version": "2.0"}
        return {"offer": offer, "patches": []}

    monkeypatch.setattr(command, "request", request)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    assert main(["update", "offer", "-"]) == OK
    assert seen == [{"offer", "1.patch"}]
    assert not folder.exists()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data[:-9])))
    assert main(["update", "offer", "-"]) == BAD
    assert "the connection has ended before all was here" in capsys.readouterr().err
    assert not folder.exists()
    assert main(["update", "offer", "-", "/data"]) == USAGE
    # Two at once do not mix: the second one is told, and what the first has sent stays.
    folder.mkdir()
    (folder / "offer").write_text("of the first")
    with locked(f"{folder}.lock", 0.0, OSError()):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        assert main(["update", "offer", "-"]) == BAD
    assert "another offer is being sent to this node" in capsys.readouterr().err
    assert (folder / "offer").read_text() == "of the first"

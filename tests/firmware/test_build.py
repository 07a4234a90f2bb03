# SPDX-License-Identifier: Apache-2.0
"""How a build is run, with a Makefile in place of Buildroot: progress, log, failures, ^C."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import PATIENCE

from firmware import boards, build, bundle
from firmware.build import Build, BuildError
from thicket.update import bundle as bundles

INFO = {
    "zlib": {"stamp_dir": "build/zlib-1"},
    "busybox": {"stamp_dir": "build/busybox-1"},
    "rootfs": {},
}
MAKEFILE = f"""\
export BR2_VERSION := {build.VERSION}
.DELETE_ON_ERROR:
all:
	@mkdir -p $(O)/build/zlib-1 && touch $(O)/build/zlib-1/.stamp_installed
	@printf '\\033[7m>>> zlib 1.3 Extracting\\033[27m\\n'
	@echo '>>> zlib 1.3 Building'
	@$(MAKE) -s -f $(firstword $(MAKEFILE_LIST)) $(O)/half
$(O)/half:
	@touch $@; END
%-dirclean:
	@echo $* >>$(O)/built-anew
show-info:
	@echo '{json.dumps(INFO)}'
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    (tmp_path / "buildroot").mkdir()
    monkeypatch.setenv("BUILDROOT", str(tmp_path / "buildroot"))
    made = Build(boards.load("x86_64"), cache=tmp_path)
    made.output.mkdir(parents=True)
    return made


def ends_with(tmp_path: Path, command: str) -> None:
    (tmp_path / "buildroot/Makefile").write_text(MAKEFILE.replace("END", command))


def test_a_failure_shows_where_in_the_log(
    made: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ends_with(tmp_path, "echo 'no such header'; exit 1")
    # An earlier build's version of a package is none of this one's.
    before = made.output / "build/busybox-0/.stamp_installed"
    before.parent.mkdir(parents=True)
    before.touch()
    with pytest.raises(
        BuildError, match=r"(?s)^Buildroot failed.*no such header.*Error 1"
    ) as caught:
        made.build()
    assert str(made.log) in str(caught.value)
    assert capsys.readouterr().err == "thicket: 1/2 zlib building\n"
    assert "zlib 1.3 Extracting" in made.log.read_text()


def test_a_configuration_that_is_made_anew_says_why(
    made: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "buildroot/Makefile").write_text(
        f"export BR2_VERSION := {build.VERSION}\ndefconfig:\n\t@cp $(BR2_DEFCONFIG) $(O)/.config\n"
    )
    made.configure()
    made.configure()
    assert capsys.readouterr().err == ""
    kept = f"configuring anew; the last configuration is in {made.output / 'config.before'}\n"
    # As another checkout leaves it, which shares the cache.
    noted = made.output / "thicket_defconfig"
    noted.write_text(noted.read_text().replace("# The tree: ", "# The tree: /elsewhere"))
    made.configure()
    why = "this checkout is another one, or its packages ask for something else"
    assert capsys.readouterr().err == f"thicket: {why}: {kept}"
    extra = tmp_path / "mine.config"
    extra.write_text("BR2_JLEVEL=2\n")
    Build(made.board, cache=tmp_path, extra=[extra]).configure()
    assert capsys.readouterr().err == f"thicket: fragments or variables changed: {kept}"


def test_what_relies_on_its_order_is_made_in_turn(
    made: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buildroot's legal-info removes its folder first, and names that beside what fills it."""
    monkeypatch.setenv("JOBS", "4")
    (tmp_path / "buildroot/Makefile").write_text(
        f"export BR2_VERSION := {build.VERSION}\n"
        "legal-info: clean part\n"
        "clean:\n\t@sleep 0.5; touch $(O)/clean\n"
        "part:\n\t@test -e $(O)/clean\n"
    )
    made.target("legal-info")
    assert (made.output / "clean").exists()


def test_interrupted(made: Build, tmp_path: Path) -> None:
    """On a terminal there is one line that changes; ^C ends all, and no half-made file stays."""
    ends_with(tmp_path, "sleep 600")
    code = (
        "from pathlib import Path; from firmware import boards; from firmware.build import Build;"
        f"Build(boards.load('x86_64'), cache=Path({str(tmp_path)!r})).build()"
    )
    terminal, end = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stderr=end)
    os.close(end)
    half = made.output / "half"
    line = "1/2 zlib extracting\r\x1b[Kthicket: 0:0"
    shown = ""
    deadline = time.monotonic() + PATIENCE
    while not (half.exists() and line in shown):
        assert process.poll() is None
        assert time.monotonic() < deadline, shown
        if select.select([terminal], [], [], 0.01)[0]:
            shown += os.read(terminal, 1 << 16).decode()
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) != 0
    assert not half.exists()
    shown += os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert shown.startswith("\r\x1b[Kthicket: 0:0")
    assert "Traceback" in shown, "the interrupt is told, not lost"


PATCHES = "board/common/patches"
OPTIONS = "board/common/options"


@pytest.mark.parametrize(
    ("changed", "anew"),
    [
        ("app/node.py", ["hwsim-relay", "thicket"]),
        ("package/thicket/thicket.mk", ["hwsim-relay", "thicket"]),
        (f"{PATCHES}/zlib/0001-x.patch", ["host-zlib", "zlib"]),
        (f"{PATCHES}/zlib/1.3/0002-new.patch", ["host-zlib", "zlib"]),
        (f"{PATCHES}/busybox/0001-x.patch", ["busybox"]),
        (f"{PATCHES}/busybox/busybox.hash", []),
        (f"{PATCHES}/elsewhere/0001-x.patch", []),
        (f"{OPTIONS}/busybox.mk", ["busybox"]),
        (f"{OPTIONS}/zlib.mk", ["host-zlib", "zlib"]),
    ],
)
def test_what_of_this_tree_has_changed_is_built_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str, anew: list[str]
) -> None:
    (tmp_path / "buildroot").mkdir()
    monkeypatch.setenv("BUILDROOT", str(tmp_path / "buildroot"))
    ends_with(tmp_path, "exit 1")
    makefile = tmp_path / "buildroot/Makefile"
    makefile.write_text(makefile.read_text().replace('"busybox"', '"host-zlib": {}, "busybox"'))
    tree = tmp_path / "tree"
    for name in ("app/node.py", "package/thicket/thicket.mk", f"{PATCHES}/zlib/0001-x.patch"):
        (tree / name).parent.mkdir(parents=True)
        (tree / name).write_text("one\n")
    shutil.copy(boards.ROOT / "Makefile", tree)
    board = dataclasses.replace(boards.load("x86_64"), root=tree)
    made = Build(board, cache=tmp_path)
    noted = made.output / "built-anew"
    made.output.mkdir(parents=True)
    for _ in range(2):
        with pytest.raises(BuildError):
            made.build()
    assert not noted.exists(), "nothing has changed"

    def built_anew() -> list[str]:
        with pytest.raises(BuildError):
            made.build()
        # make may do them in any order, several at a time
        return sorted(noted.read_text().split()) if noted.exists() else []

    (tree / changed).parent.mkdir(parents=True, exist_ok=True)
    (tree / changed).write_text("two\n")
    assert built_anew() == anew
    assert built_anew() == anew, "once"
    # A patch that is taken out is one that changes.
    (tree / changed).unlink()
    assert built_anew() == sorted([*anew, *anew])


def test_a_note_of_an_older_version_has_ours_built_anew_and_no_other(
    made: Build, tmp_path: Path
) -> None:
    ends_with(tmp_path, "exit 1")
    for _ in range(2):
        with pytest.raises(BuildError):
            made.build()
    (made.output / "sources.sha256").write_text("0" * 64)
    with pytest.raises(BuildError):
        made.build()
    assert sorted((made.output / "built-anew").read_text().split()) == ["hwsim-relay", "thicket"]


def test_the_time_of_a_checkout_is_that_of_its_last_change(tmp_path: Path) -> None:
    def git(*words: str, at: int = 0) -> None:
        names = ("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE")
        who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
        subprocess.run(
            ["git", *who, *words],
            cwd=tmp_path,
            env={**os.environ, **dict.fromkeys(names, f"{at} +0000")},
            check=True,
            capture_output=True,
        )

    (tmp_path / "Makefile").touch()
    os.utime(tmp_path / "Makefile", (7, 7))
    assert (build.commit(tmp_path), build.changed(tmp_path)) == ("unknown", 7), "an archive"
    git("init")
    for name, at in (("a", 1_700_000_000), ("b", 1_800_000_000)):
        (tmp_path / name).touch()
        git("add", name)
        git("commit", "-m", name, at=at)
    assert build.changed(tmp_path) == build.changed(tmp_path, "a", "b") == 1_800_000_000
    assert build.changed(tmp_path, "a") == 1_700_000_000
    assert build.changed(tmp_path, "c") == 7
    assert build.commit(tmp_path) != "unknown"


@pytest.mark.skipif(not shutil.which("mksquashfs"), reason="no mksquashfs")
def test_a_bundle_of_what_was_built(
    made: Build, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = made.output / "images"
    images.mkdir()

    def built() -> None:
        (images / bundle.BOOT).write_bytes(bytes(5000))
        (images / bundle.ROOT_IMAGE).write_bytes(b"root" * 1024)
        (images / "manifest.json").write_text(
            '{"board": "x86_64", "version": "1.2", "epoch": 4, "commit": "c0ffee", '
            f'"root_hash": "{"5a" * 32}"}}'
        )

    monkeypatch.setattr(made, "build", built)
    made.target("bundle")
    path = images / "thicket-x86_64-1.2.unsigned"
    with path.open("rb") as file:
        said = bundles.read(file).manifest
    assert (said.compatible, said.version, said.build) == ("thicket-x86_64", "1.2", "c0ffee")
    assert (said.epoch, said.root) == (4, "5a" * 32)
    assert str(path) in capsys.readouterr().err


def test_what_a_bundle_lacks_is_told_before_anything_is_built(
    made: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made, "build", lambda: pytest.fail("it was built"))
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(BuildError, match=r"apt-get install .* squashfs-tools"):
        made.target("bundle")

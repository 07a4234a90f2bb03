# SPDX-License-Identifier: Apache-2.0
"""Every command of the desk that reads a file is given every wrong one.

What it says names the file, tells what it is in place of what was needed, and is short.
"""

from __future__ import annotations

import errno
import fcntl
import os
from datetime import UTC, datetime, timedelta, tzinfo
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final

import pytest
from apps_for_tests import ABOUT
from bundles_for_tests import UpdateKey, signed, unsigned
from fleet_for_tests import PREFIX, one_fleet

from authority import app, files, offers
from authority.authority import Authority
from authority.cli import main as ca_main
from authority.errors import AuthorityError
from authority.holders import Holder
from authority.update import main as update_main
from thicket.trust import kinds, signed_file
from thicket.trust.certificates import pem
from thicket.update.offer import Order
from thicket.update.patch import Header

Captured = pytest.CaptureFixture[str]

SHORT: Final = 400
"""Characters of a message: some four lines of a terminal."""

SITE: Final = b"hsqs" + bytes(8188)
ABOUT_SITE: Final = ABOUT._replace(size=len(SITE), sha256=sha256(SITE).digest())
APP_BYTES: Final = SITE + signed_file.pack(UpdateKey(one_fleet()).message(ABOUT_SITE.text()))
ORDER_BYTES: Final = UpdateKey(one_fleet()).message(
    Order(one_fleet().fleet.identifier, 1, b"", "pause").text()
)

FILES: Final[dict[str, tuple[bytes, str]]] = {
    "empty": (b"", "an empty file"),
    "text": (b"hello\n" * 3000, "a text"),
    "random": (bytes(range(255, 0, -1)) * 100, "something else"),
    "app": (APP_BYTES, kinds.AN_APPLICATION),
    "patch": (Header(20_000, "ab" * 32, None, ()).packed() + bytes(20_000), "a patch"),
    "order": (ORDER_BYTES, "an order"),
    "unsigned": (unsigned(), "a bundle that is not signed"),
    "bundle": (signed(), "a signed bundle"),
    "cut": (signed()[:-900], "cut off"),
    "certificate": (pem(one_fleet().fleet.root.der).encode(), "a certificate"),
    "wheel": (b"PK\x03\x04" + bytes(9000), "a ZIP archive or a wheel"),
}
"""Wrong files, and what each is called."""

#: Commands with FILE in the place of the file, and the files that each may take.
READING: Final = [
    ("update sign FILE", {"unsigned", "bundle"}),
    ("update inspect FILE", {"unsigned", "bundle"}),
    ("update verify FILE", {"unsigned", "bundle"}),
    ("update verify GOOD --root FILE", {"certificate"}),
    ("update verify GOOD --root ROOT --revocations FILE", set[str]()),
    ("update delta FILE GOOD", {"unsigned", "bundle"}),
    ("update delta GOOD FILE", {"unsigned", "bundle"}),
    ("update offer FILE", {"unsigned", "bundle", "app"}),
    ("update offer GOOD --delta FILE", {"patch"}),
    ("update order pause FILE", set[str]()),
    ("update send FILE host", set[str]()),
    ("app inspect FILE", {"app"}),
    ("app verify FILE", {"app"}),
    ("app build FILE", set[str]()),
    ("ca config --ssh-key FILE", set[str]()),
]
MAINS: Final = {"update": update_main, "app": app.main, "ca": ca_main}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    for name, (contents, _) in FILES.items():
        (folder / name).write_bytes(contents)
    (folder / "folder").mkdir()
    before = datetime.now(UTC) - timedelta(days=2)
    one = Authority(folder / "fleet", lambda _: "", clock=lambda: before)
    one.init("acme", PREFIX, lab=True)
    one.update_signers.make("release")
    signer = one.update_signers.open()
    (folder / "good").write_bytes(signed(_Signing(signer), when=datetime.now(UTC)))
    (folder / "root.pem").write_text(pem(one.fleet.root.der))
    return folder


class _Signing(UpdateKey):
    """A key of an update signer that an authority has made."""

    def __init__(self, signer: Holder) -> None:
        self.certificate = signer.certificate
        self._signer = signer

    def sign(self, digest: bytes) -> bytes:
        return self._signer.key.sign(digest)


def says(desk: Path, line: str, name: str, capsys: Captured, status: int) -> str:
    """Run a command with a file that it does not take; return what it says."""
    places = {"FILE": desk / name, "GOOD": desk / "good", "ROOT": desk / "root.pem"}
    program, *words = line.split()
    capsys.readouterr()
    given = [str(places.get(word, word)) for word in words]
    assert MAINS[program](given) == status
    said = capsys.readouterr().err
    assert said.startswith(f"thicket {program}: ")
    assert len(said) - said.count(str(desk)) * len(str(desk)) < SHORT, said
    return said


@pytest.mark.parametrize(("line", "takes"), READING, ids=[line for line, _ in READING])
def test_the_wrong_file(
    desk: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch, line: str, takes: set[str]
) -> None:
    monkeypatch.setenv("THICKET_CA", str(desk / "fleet"))
    before = sorted(desk.iterdir())
    for name, (_, kind) in FILES.items():
        if name in takes:
            continue
        said = says(desk, line, name, capsys, 1)
        assert str(desk / name) in said, said
        if "FILE host" in line or "--" in line or "build" in line:
            continue  # these say what is needed, or lacking
        assert f": this is {kind}" in said or kind in said, said
    for name, words in (("gone", ("No such file", "is not there")), ("folder", ("folder",))):
        said = says(desk, line, name, capsys, 1)
        assert str(desk / name) in said
        assert any(word in said for word in words), said
    assert sorted(desk.iterdir()) == before


@pytest.mark.parametrize("line", [line for line, _ in READING if "ssh-key" not in line])
def test_a_pipe_and_a_device_are_not_waited_for(
    desk: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    if "--root" in line:
        pytest.skip("a shell gives these by a pipe: <(thicket ca root)")
    monkeypatch.setenv("THICKET_CA", str(desk / "fleet"))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pipe.open("r+b", buffering=0):  # who opens it to read does not wait
        said = says(desk, line, str(pipe), capsys, 1)
    assert str(pipe) in said
    assert "seekable" not in said
    zero = tmp_path / "zero"
    zero.symlink_to("/dev/zero")
    assert str(zero) in says(desk, line, str(zero), capsys, 1)
    assert "/" in says(desk, line, "/", capsys, 1)  # a name without a last part
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert str(loop) in says(desk, line, str(loop), capsys, 1)


@pytest.mark.parametrize("line", ["update sign GOOD --again", "update order pause"])
def test_a_link_that_leads_nowhere_is_not_replaced(
    desk: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setenv("THICKET_CA", str(desk / "fleet"))
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    assert "is a link that leads nowhere" in says(desk, f"{line} --out FILE", str(link), capsys, 1)
    assert link.is_symlink()


def test_another_fleet_is_told_of_every_kind(
    desk: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only bundles are signed, so no advice speaks of bundles alone."""
    monkeypatch.setenv("THICKET_CA", str(desk / "fleet"))
    for line, name in (
        ("update verify FILE", "bundle"),
        ("update offer FILE", "bundle"),
        ("update offer FILE", "app"),
        ("app verify FILE", "app"),
    ):
        said = says(desk, line, name, capsys, 1)
        assert "signed for another fleet ('Update signer release' is no signer of 'acme')" in said
        assert "take one that was signed for this fleet, or have a signer of this fleet" in said
        assert "unsigned bundle" not in said


def test_a_large_file_in_place_of_an_offer(
    desk: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told as what it is, and not by the part of it that would have been read."""
    monkeypatch.setenv("THICKET_CA", str(desk / "fleet"))
    large = tmp_path / "new.raucb"
    large.write_bytes(signed(blocks=40))
    assert update_main(["order", "pause", str(large)]) == 1
    said = capsys.readouterr().err
    assert f"{large}: this is a signed bundle, and the folder of an offer is needed" in said


def test_two_commands_that_write_one_file(tmp_path: Path) -> None:
    """One of them writes it, and the other says so; what is half written is never put in place."""
    path = tmp_path / "new.raucb"
    path.write_bytes(b"old")
    with files.replacing(path) as first:
        first.write(b"first, half")
        first.flush()
        with (
            pytest.raises(AuthorityError, match="is being written by another command"),
            files.replacing(path),
        ):
            pass
        assert path.read_bytes() == b"old"
        first.write(b" and whole")
    assert path.read_bytes() == b"first, half and whole"
    (tmp_path / ".new.raucb.new").write_bytes(b"what a power cut has left, which is longer")
    with files.replacing(path) as second:
        second.write(b"second")
    assert path.read_bytes() == b"second"
    with pytest.raises(ZeroDivisionError), files.replacing(path) as third:
        third.write(bytes(1 // 0))
    assert [one.name for one in tmp_path.iterdir()] == ["new.raucb"]
    assert path.read_bytes() == b"second"


def test_what_has_just_been_put_into_place_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new.raucb"
    lock = fcntl.flock

    def late(file: BinaryIO, how: int) -> None:
        path.with_name(".new.raucb.new").replace(path)  # the other command is done
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(AuthorityError, match="another command"), files.replacing(path) as file:
        file.write(b"x")
    assert path.exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object, **__: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / ".new.raucb.new"))

    monkeypatch.setattr(os, "open", read_only)
    monkeypatch.setattr(os, "unlink", read_only)
    with (
        pytest.raises(
            AuthorityError, match=r"new\.raucb cannot be written: Read-only file system: choo"
        ),
        files.replacing(tmp_path / "new.raucb"),
    ):
        pass


def test_an_order_by_a_wrong_clock_is_not_signed(
    desk: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No node would follow it, while somebody believes that the fleet has stopped."""

    class Early(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Early:
            return cls(1970, 1, 2, tzinfo=tz)

    monkeypatch.setenv("THICKET_CA", str(desk / "fleet"))
    monkeypatch.setattr(offers, "datetime", Early)
    out = tmp_path / "abort.order"
    assert update_main(["order", "abort", "--out", str(out)]) == 1
    assert "look at the clock of the machine that signs" in capsys.readouterr().err
    assert not out.exists()

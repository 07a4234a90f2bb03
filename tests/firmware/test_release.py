# SPDX-License-Identifier: Apache-2.0
"""Releases from the build to the card: made, served by a web server, taken and flashed."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from http import HTTPStatus
from io import BytesIO, StringIO
from pathlib import Path

import pytest
from bundles_for_tests import MANIFEST, unsigned
from fleet_for_tests import PREFIX
from rich.console import Console

from authority.authority import Authority
from firmware import bmap, flash, source
from firmware.releases import (
    built,
    cli,
    deltas,
    download,
    index,
    licences,
    pack,
    sbom,
    signature,
    sums,
)
from firmware.releases.download import Download
from firmware.releases.errors import ReleaseError
from firmware.releases.make import Order, Parts, Signing, make
from firmware.report import Report
from firmware.unpacked import Unpacked
from meshlab.lab import shared
from thicket.trust.certificates import pem
from thicket.update import bundle as bundles

sys.path.insert(0, str(Path(__file__).parent))
import small_card

DATE = int(datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp())
STEM = "thicket-rpi64-0.1.0"
IMAGE = f"{STEM}.img.xz"
TOP = Path(__file__).resolve().parents[2]


def quiet() -> Report:
    return Report(Console(file=StringIO()))


@pytest.fixture(scope="session")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def build(directory: Path) -> None:
        directory.mkdir()
        small_card.make(directory / "card.img")

    folder = shared.run_directory(tmp_path_factory)
    return shared.once(folder, "card-of-releases", build) / "card.img"


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """A fleet with a signer of updates, in the folder that the commands use."""
    folder = tmp_path / "fleet"
    own = Authority(
        folder, lambda _: "correct horse", clock=lambda: datetime.now(UTC) - timedelta(days=2)
    )
    own.init("acme", PREFIX, lab=True)
    own.update_signers.make("release")
    monkeypatch.setenv("THICKET_CA", str(folder))
    return own


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of one's own, no fleet; the programs take over signals of their process."""
    monkeypatch.setenv("THICKET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("THICKET_CA", str(tmp_path / "no-fleet"))
    monkeypatch.setattr(download, "PAUSES", (0.0,))
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    old = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in old.items():
        signal.signal(number, handler)


def parts(card: Path, folder: Path, board: str = "rpi64", version: str = "0.1.0") -> Parts:
    folder.mkdir(exist_ok=True)
    path = folder / f"thicket-{board}-{version}.unsigned"
    path.write_bytes(unsigned(MANIFEST._replace(compatible=f"thicket-{board}", version=version)))

    def bill(date: str) -> bytes:
        return sbom.made(f"thicket-{board}", version, "Apache-2.0", [], date)

    return Parts(board, version, 3, "0123456789ab", card, path, bill, (licences.own(version),))


def made(card: Path, out: Path, fleet: Authority | None = None, *boards: str) -> Path:
    signing = Signing(fleet.fleet, fleet.update_signers.open("release")) if fleet else None
    listed = [parts(card, out.with_name("built"), board) for board in boards or ("rpi64",)]
    make(Order(out, DATE, signing), listed, quiet(), lambda _: None)
    return out


@pytest.fixture
def release(card: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unsigned release of one board: a copy of one that is made once per run."""

    def build(directory: Path) -> None:
        directory.mkdir()
        made(card, directory / "release")

    folder = shared.run_directory(tmp_path_factory)
    whole = shared.once(folder, "release-of-one-board", build) / "release"
    return shutil.copytree(whole, tmp_path / "release")


@pytest.fixture
def packed_once(
    card: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pack the card once per run: for tests of what else is in a release, or is done with it."""
    anew = pack.xz

    def xz(source: Path, target: Path, progress: Callable[[int], object]) -> int:
        folder = shared.run_directory(tmp_path_factory)
        name = f"packed-{hashlib.sha256(source.read_bytes()).hexdigest()}"

        def make_packed(path: Path) -> None:
            anew(source, path)

        shutil.copyfile(shared.once(folder, name, make_packed), target)
        progress(source.stat().st_size)
        return source.stat().st_size

    monkeypatch.setattr(pack, "xz", xz)


@pytest.fixture
def signed(card: Path, tmp_path: Path, fleet: Authority, packed_once: None) -> Path:
    return made(card, tmp_path / "signed", fleet)


# -- making


def test_what_is_in_a_release(release: Path, card: Path) -> None:
    names = {path.name for path in release.iterdir()}
    assert names == {
        "SHA256SUMS", "index.html", "index.json", IMAGE, f"{STEM}.img.bmap", f"{STEM}.unsigned",
        f"{STEM}.cdx.json", f"{STEM}.licences.txt",
    }  # fmt: skip
    subprocess.run(["sha256sum", "--check", "--strict", sums.FILE], cwd=release, check=True)
    assert set(sums.read((release / sums.FILE).read_bytes())) == names - {"SHA256SUMS"}
    said = index.read((release / index.FILE).read_bytes())
    assert (said.version, said.epoch, said.date) == ("0.1.0", 3, "2026-11-24T12:00:00Z")
    for file in said.files:
        data = (release / file.name).read_bytes()
        assert (file.size, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    (image,) = said.of(index.IMAGE, "rpi64")
    assert image.unpacked == card.stat().st_size
    assert lzma.decompress((release / IMAGE).read_bytes()) == card.read_bytes()


def test_bmaptool_finds_and_takes_image_and_map(release: Path, card: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.img"
    done = subprocess.run(
        ["bmaptool", "copy", release / IMAGE, out], check=True, capture_output=True, text=True
    )
    assert "discovered bmap file" in done.stdout + done.stderr
    with card.open("rb") as file:
        for start, end in bmap.data_ranges(file):
            file.seek(start)
            assert out.read_bytes()[start:end] == file.read(end - start)


def test_the_same_builds_make_the_same_release(release: Path, card: Path, tmp_path: Path) -> None:
    again = made(card, tmp_path / "again")
    for path in release.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
        assert path.stat().st_mtime == (again / path.name).stat().st_mtime == DATE


def test_a_signed_release(signed: Path, fleet: Authority) -> None:
    """By signatures of bundles and of the list of checksums; the rest is as unsigned."""
    with (signed / f"{STEM}.raucb").open("rb") as file:
        found = bundles.read(file)
        assert bundles.check_signer(found, fleet.fleet) == "Update signer release"
    root = signed.with_name("root.pem")
    root.write_text(pem(fleet.fleet.root.der))
    words = ["-verify", "-inform", "DER", "-in", signature.FILE, "-CAfile", str(root)]
    out = signed.with_name("listed")
    subprocess.run(
        ["openssl", "cms", *words, "-purpose", "any", "-out", str(out)],
        cwd=signed, check=True, capture_output=True,
    )  # fmt: skip
    assert out.read_bytes() == (signed / sums.FILE).read_bytes()


def test_boards_of_different_builds(card: Path, tmp_path: Path) -> None:
    one, other = parts(card, tmp_path / "a"), parts(card, tmp_path / "b", "x86_64", "0.2.0")
    with pytest.raises(ReleaseError, match="build both of the same commit"):
        make(Order(tmp_path / "out", DATE), [one, other], quiet(), print)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("packed_once")
def test_what_is_there_is_not_overwritten(release: Path, card: Path, tmp_path: Path) -> None:
    one = parts(card, tmp_path / "a")
    with pytest.raises(ReleaseError, match="FORCE=1"):
        make(Order(release, DATE), [one], quiet(), print)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").write_text("kept")
    with pytest.raises(ReleaseError, match="is no release"):
        make(Order(mine, DATE, replace=True), [one], quiet(), print)
    assert (mine / "file").read_text() == "kept"
    (release / "more").write_text("x")
    make(Order(release, DATE, replace=True), [one], quiet(), print)
    assert not (release / "more").exists()
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == set()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_run_leaves_no_half_folder(
    card: Path, tmp_path: Path, error: BaseException
) -> None:
    class Ends(Report):
        def advance(self, count: int) -> None:
            raise error

    with pytest.raises(type(error)):
        make(
            Order(tmp_path / "out", DATE),
            [parts(card, tmp_path / "a")],
            Ends(Console(file=StringIO())),
            print,
        )
    assert {path.name for path in tmp_path.iterdir()} == {"a"}


@pytest.mark.usefixtures("packed_once")
def test_what_a_killed_run_left_is_removed(card: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.new").mkdir()
    (tmp_path / ".out.new/half").write_text("x")
    made(card, tmp_path / "out")
    assert not (tmp_path / "out/half").exists()
    assert not (tmp_path / ".out.new").exists()


def test_too_little_room(card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    with pytest.raises(ReleaseError, match="has room for 1 MiB"):
        made(card, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_older_bundles(release: Path, tmp_path: Path) -> None:
    found = deltas.older([str(release), str(release / f"{STEM}.unsigned")])
    assert [(one.compatible, one.version) for one in found] == [("thicket-rpi64", "0.1.0")] * 2
    for name in (tmp_path, tmp_path / "no", release / index.FILE):
        with pytest.raises(ReleaseError, match="FROM: "):
            deltas.older([str(name)])


@pytest.mark.usefixtures("packed_once")
def test_deltas_are_published(card: Path, release: Path, tmp_path: Path, fleet: Authority) -> None:
    """Made by the program zstd, which unpacks them again."""

    def delta(new: Path, out: Path, old: Path | None) -> None:
        base = [f"--patch-from={old}"] if old else []
        subprocess.run(["zstd", "-q", *base, new, "-o", out], check=True)

    older = deltas.older([str(release), str(release)])
    signing = Signing(fleet.fleet, fleet.update_signers.open())
    order = Order(tmp_path / "new", DATE, signing, (*older, older[0]._replace(compatible="x")))
    one = parts(card, tmp_path / "a", version="0.2.0")
    said = make(order._replace(delta=delta), [one], quiet(), print)
    found = {file.since: file.name for file in said.of(index.DELTA, "rpi64")}
    stem = "thicket-rpi64-0.2.0"
    assert found == {"": f"{stem}.patch", "0.1.0": f"{stem}-from-0.1.0.patch"}
    bundle = (tmp_path / "new" / f"{stem}.raucb").read_bytes()
    for since, name in found.items():
        base = [f"--patch-from={release / STEM}.unsigned"] if since else []
        done = subprocess.run(
            ["zstd", "-dcq", *base, tmp_path / "new" / name], check=True, capture_output=True
        )
        assert done.stdout == bundle


@pytest.mark.usefixtures("packed_once")
def test_what_a_build_of_buildroot_leaves(card: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    one = parts(card, images)
    (tmp_path / "legal-info").mkdir()
    (tmp_path / "legal-info/manifest.csv").write_text(
        '"PACKAGE","VERSION","LICENSE","LICENSE FILES"\n"zlib","1.3","Zlib","README"\n'
    )
    (images / "manifest.json").write_text(
        json.dumps(
            {
                "board": "rpi64",
                "version": "0.1.0",
                "epoch": 3,
                "commit": "0123456789ab",
                "root_hash": "5a" * 32,
            }
        )
    )
    with pytest.raises(ReleaseError, match="build rpi64 again"):
        built.read(tmp_path)
    shutil.copy(card, images / "card.img")
    (images / "sbom.cyclonedx.json").write_bytes(one.sbom("2020-01-01T00:00:00Z"))
    found = built.read(tmp_path)
    assert found[:4] == one[:4]
    assert found.bundle == one.bundle
    assert [each.name for each in found.licences] == ["Apache-2.0", "Zlib"]
    assert json.loads(found.sbom("2026-11-24T12:00:00Z"))["metadata"]["timestamp"][:4] == "2026"
    make(Order(tmp_path / "out", DATE), [found], quiet(), print)


@pytest.mark.usefixtures("packed_once")
def test_the_command(
    card: Path, tmp_path: Path, fleet: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    others = {"standin": lambda: parts(card, tmp_path / "a", "standin")}
    words = ["--boards", "standin", "--out", str(out)]

    def run(*more: str) -> tuple[int, str]:
        status = cli.main([*words, *more], others)
        return status, " ".join(capsys.readouterr().err.split())

    status, said = run("--signer", "nobody")
    assert (status, out.exists()) == (1, False)
    assert "there is no update signer 'nobody'" in said
    status, said = run("--signer", "release")
    assert status == 0, said
    assert "signed by 'Update signer release'" in said
    assert "no deltas, as FROM= names no older bundle" in said
    assert (out / signature.FILE).is_file()
    status, said = run("--force", "--from", str(out))
    assert status == 0, said
    assert "no deltas, as they make a signed bundle: give SIGNER=" in said
    assert cli.main(["--boards", "pi"], others) == 1
    assert "there is no board 'pi'; there are rpi64, standin, x86_64" in capsys.readouterr().err


# -- flashing, from a folder


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    status = flash.main([str(word) for word in words])
    return status, " ".join(capsys.readouterr().out.split())


def is_card(path: Path, card: Path) -> bool:
    with card.open("rb") as file:
        ranges = bmap.data_ranges(file)
    found, wanted = path.read_bytes(), card.read_bytes()
    return all(found[start:end] == wanted[start:end] for start, end in ranges)


Captured = pytest.CaptureFixture[str]


def test_a_folder_is_flashed(release: Path, card: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "out.img"
    status, said = run(capsys, "--image", release, "--file", out)
    assert status == 0, said
    assert "Thicket 0.1.0 for rpi64 (epoch 3, commit 0123456789ab, 2026-11-24)" in said
    assert "Only checksums are compared (no fleet's root certificate is in" in said
    assert "It is not signed" in said
    assert is_card(out, card)
    # The image by its own name is looked up in the release that it lies in.
    status, said = run(capsys, "--image", release / IMAGE, "--file", out, "--yes")
    assert status == 0, said
    assert "Only checksums are compared" in said


def test_whose_release_it_is(
    signed: Path,
    tmp_path: Path,
    fleet: Authority,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("--image", signed, "--yes", "--file", tmp_path / "out.img")
    status, said = run(capsys, *words)
    assert status == 0, said
    assert "by 'Update signer release' of the fleet 'acme'; not among the 0 names" in said
    root = tmp_path / "root.pem"
    root.write_text(pem(fleet.fleet.root.der))
    other = Authority(tmp_path / "other", lambda _: "x")
    other.init("other", PREFIX, lab=True)
    monkeypatch.setenv("THICKET_CA", str(tmp_path / "other"))
    status, said = run(capsys, *words)
    assert status == 1
    assert "it is signed for another fleet" in said
    assert "ROOT=none compares checksums alone" in said
    status, said = run(capsys, *words, "--root", root)
    assert status == 0, said
    status, said = run(capsys, *words, "--root", "none")
    assert status == 0, said
    assert "It says that 'Update signer release' signed it" in said
    assert "SHA-256 fingerprint" in said
    monkeypatch.setenv("THICKET_CA", str(fleet.folder))
    fleet.revocations.revoke(["Update signer release"])
    status, said = run(capsys, *words)
    assert status == 1
    assert "its signer is revoked" in said
    (signed / signature.FILE).unlink()
    status, said = run(capsys, *words)
    assert status == 1
    assert "is not signed, and must be by a signer of the fleet 'acme'" in said
    for wrong in (tmp_path / "no", signed / sums.FILE):
        status, said = run(capsys, *words, "--root", wrong)
        assert status == 1
        assert f"the root certificate {wrong}" in said
    alone = shutil.copy(signed / IMAGE, tmp_path)
    status, said = run(capsys, "--image", alone, "--root", root, "--file", tmp_path / "x")
    assert status == 1
    assert "is in no release, so nothing there is signed" in said


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (index.FILE, "index.json does not have the checksum"),
        (f"{STEM}.img.bmap", "bmap does not have the checksum"),
        (IMAGE, "is not the file of the release"),
        (sums.FILE, "does not have the checksum"),
    ],
)
def test_a_changed_file_is_found(
    release: Path, tmp_path: Path, name: str, reason: str, capsys: Captured
) -> None:
    data = bytearray((release / name).read_bytes())
    at = data.index(b"  index.json") - 1 if name == sums.FILE else len(data) // 2
    data[at] = data[at] ^ 1 if name == IMAGE else ord("0") if data[at] != ord("0") else ord("1")
    (release / name).write_bytes(data)
    out = tmp_path / "out.img"
    status, said = run(capsys, "--image", release, "--file", out)
    assert status == 1
    assert reason in said
    assert not out.exists()


def test_which_board(
    card: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = made(card, tmp_path / "release", None, "x86_64", "standin")
    out = tmp_path / "out.img"
    status, said = run(capsys, "--image", release, "--file", out)
    assert status == 1
    assert "no image for rpi64 (it has standin, x86_64): choose with BOARD=" in said
    status, said = run(capsys, "--image", release, "--board", "standin", "--file", out)
    assert status == 0, said
    assert "It is for the simulator: no device starts from it" in said
    image = release / "thicket-x86_64-0.1.0.img.xz"
    status, said = run(capsys, "--image", image, "--board", "rpi64", "--file", out, "--yes")
    assert status == 1
    assert "is for x86_64, not for rpi64" in said
    status, said = run(capsys, "--image", tmp_path, "--file", out, "--yes")
    assert status == 1
    assert "is no release: it has no SHA256SUMS" in said
    # A folder of a board's name is not taken for what was built, unless it is a release.
    (tmp_path / "x86_64").mkdir()
    monkeypatch.chdir(tmp_path)
    status, said = run(capsys, "--image", "x86_64", "--file", out, "--yes")
    assert status == 1
    assert "there is no image of x86_64" in said
    status, said = run(capsys, "--image", "x86_64", "--board", "rpi64", "--file", out, "--yes")
    assert status == 1
    assert "--board: x86_64 is in no release" in said


# -- flashing, from the web


class Handler(http.server.SimpleHTTPRequestHandler):
    """A web server that knows ranges, and fails as it is told."""

    def __init__(self, *arguments: object, site: Site, **more: object) -> None:
        self._site = site
        super().__init__(*arguments, directory=str(site.folder), **more)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        site = self._site
        name = self.path.rpartition("/")[2].partition("?")[0]
        site.asked.append((name, self.headers.get("Range")))
        if name in site.moved:
            self.send_response(HTTPStatus.FOUND)
            self.send_header("Location", site.moved[name])
            self.end_headers()
            return
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        data = site.replaced.get(name, path.read_bytes())
        first = 0
        self.close_connection = True
        if site.ranges and (wanted := self.headers.get("Range")):
            first = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if first >= len(data):
                self.send_error(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                return
            self.send_response(HTTPStatus.PARTIAL_CONTENT)
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(HTTPStatus.OK)
        if name not in site.no_length:
            self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        cut = site.cuts.pop(0) if name.endswith(".xz") and site.cuts else len(data)
        with contextlib.suppress(ConnectionError):  # whoever asked has heard enough
            self.wfile.write(data[first : first + cut])

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Site:
    """A folder on the web."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str | None]] = []
        self.moved: dict[str, str] = {}
        self.replaced: dict[str, bytes] = {}
        self.no_length: set[str] = set()
        self.cuts: list[int] = []
        self.ranges = True
        self._server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(Handler, site=self)
        )
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def site(release: Path) -> Iterator[Site]:
    one = Site(release)
    yield one
    one.close()


def test_a_url_is_flashed_and_kept(
    site: Site, card: Path, tmp_path: Path, capsys: Captured
) -> None:
    for out in ("a.img", "b.img"):
        for url in (site.url, f"{site.url}index.html", f"{site.url}{IMAGE}?download=1"):
            status, said = run(capsys, "--image", url, "--file", tmp_path / out, "--yes")
            assert status == 0, said
        assert is_card(tmp_path / out, card)
    assert sum(name == IMAGE for name, _ in site.asked) == 1, "it is in the cache"
    (kept,) = (tmp_path / "cache/releases").iterdir()
    kept.write_bytes(bytes(kept.stat().st_size))
    status, said = run(capsys, "--image", site.url, "--file", tmp_path / "c.img")
    assert status == 0, said
    assert is_card(tmp_path / "c.img", card)


def test_a_download_goes_on_where_it_was_cut(site: Site, tmp_path: Path, capsys: Captured) -> None:
    size = (site.folder / IMAGE).stat().st_size
    site.cuts = [100_000, 0, 200_000]
    status, said = run(capsys, "--image", site.url, "--file", tmp_path / "a.img")
    assert status == 0, said
    asked = [wanted for name, wanted in site.asked if name == IMAGE]
    assert asked == [None, "bytes=100000-", "bytes=100000-", "bytes=300000-"]
    assert size > 300_000


def test_a_download_goes_on_in_the_next_run(site: Site, tmp_path: Path, capsys: Captured) -> None:
    words = ("--image", site.url, "--file", tmp_path / "a.img")
    site.cuts = [100_000, *[0] * download.ATTEMPTS]
    status, said = run(capsys, *words)
    assert status == 1
    assert f"broke off at byte 100000 of {(site.folder / IMAGE).stat().st_size}" in said
    assert "Give the same command again later: it goes on from there" in said
    assert not (tmp_path / "a.img").exists()
    site.asked.clear()
    status, said = run(capsys, *words)
    assert status == 0, said
    assert (IMAGE, "bytes=100000-") in site.asked


def test_a_server_without_ranges(site: Site, tmp_path: Path, card: Path, capsys: Captured) -> None:
    site.ranges = False
    site.cuts = [100_000]
    status, said = run(capsys, "--image", site.url, "--file", tmp_path / "a.img")
    assert status == 0, said
    assert is_card(tmp_path / "a.img", card)


def test_what_is_left_of_another_file_is_thrown_away(
    site: Site, tmp_path: Path, card: Path, capsys: Captured
) -> None:
    digest = hashlib.sha256((site.folder / IMAGE).read_bytes()).hexdigest()
    part = tmp_path / "cache/releases" / f"{digest}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 5000)
    status, said = run(capsys, "--image", site.url, "--file", tmp_path / "a.img")
    assert status == 0, said
    assert is_card(tmp_path / "a.img", card)
    assert [wanted for name, wanted in site.asked if name == IMAGE] == ["bytes=5000-", None]


def test_wrong_answers_have_words(site: Site, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "a.img"

    def fails(url: str, *more: str) -> str:
        status, said = run(capsys, "--image", url, "--file", out, *more)
        assert status == 1, said
        assert not out.exists()
        return said

    whole = (site.folder / IMAGE).read_bytes()
    site.replaced = {IMAGE: whole + b"x"}
    assert f"has {len(whole) + 1} bytes, and the release says {len(whole)}" in fails(site.url)
    site.no_length = {IMAGE}
    assert f"has {len(whole) + 1} bytes or more, and the release" in fails(site.url)
    site.no_length = set()
    site.replaced = {IMAGE: whole[:-1] + b"x"}
    assert "is not the file of the release: its SHA-256 is" in fails(site.url)
    site.replaced = {index.FILE: b"{}"}
    assert "index.json does not have the checksum" in fails(site.url)
    site.replaced = {sums.FILE: b"<html>"}
    assert "is none of a release of Thicket" in fails(site.url)
    site.replaced = {sums.FILE: bytes(100_000)}
    assert "is larger than the 49152 bytes" in fails(site.url)
    site.replaced = {}
    assert "it has no SHA256SUMS" in fails(f"{site.url}other/")
    assert "the server has no" in fails(f"{site.url}other/card.img.xz")
    assert "is no card image of the release" in fails(f"{site.url}{STEM}.img")
    site.moved = {sums.FILE: "file:///etc/passwd"}
    assert "not a URL as https://" in fails(site.url)
    site.moved = {sums.FILE: f"/{sums.FILE}"}
    assert "from one place to the next" in fails(site.url)
    site.moved = {}
    (site.folder / IMAGE).unlink()
    assert f"the server has no {site.url}{IMAGE} (404" in fails(site.url)
    for url in ("file:///etc/", "ftp://x/y.img", "http:///x", "http://a b/", "https://[/"):
        assert f"{url}: not a URL as https://" in fails(url)
    assert "could not be had: Connection refused. Try again" in fails("http://127.0.0.1:1/x/")


def test_a_card_that_is_too_small_costs_no_download(
    site: Site, tmp_path: Path, capsys: Captured
) -> None:
    if os.geteuid() != 0:
        pytest.skip("loop devices need root: no card was too small")
    backing = tmp_path / "backing"
    backing.write_bytes(bytes(small_card.SIZE - 512))
    words = ["losetup", "--find", "--show", str(backing)]
    made = subprocess.run(words, check=False, capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"no loop device here: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        status, said = run(capsys, "--image", site.url, "--force-fixed", "--yes", device)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
    assert status == 1
    assert f"is too small: it has 24.0 MiB ({small_card.SIZE - 512} bytes)" in said
    assert IMAGE not in [name for name, _ in site.asked]


def test_an_image_alone_on_the_web(
    card: Path, tmp_path: Path, fleet: Authority, capsys: Captured
) -> None:
    folder = tmp_path / "alone"
    folder.mkdir()
    shutil.copy(card, folder / "card.img")
    site = Site(folder)
    try:
        words = ("--image", f"{site.url}card.img", "--file", tmp_path / "a.img")
        status, said = run(capsys, *words)
        assert status == 1
        assert "nothing says who made the image. ROOT=none takes it all the same" in said
        for _ in range(2):
            status, said = run(capsys, *words, "--root", "none", "--yes")
            assert status == 0, said
    finally:
        site.close()
    assert "Nobody vouches for it" in said
    assert is_card(tmp_path / "a.img", card)


def test_https_is_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    class Opener:
        def open(self, request: object, timeout: float) -> object:
            headers = http.client.HTTPMessage()
            headers["Location"] = "http://example.org/x"
            raise urllib.error.HTTPError("", 302, "Found", headers, BytesIO())

    monkeypatch.setattr(download, "_opener", Opener)
    with pytest.raises(ReleaseError, match="from HTTPS to HTTP: it was not followed"):
        download.text("https://example.org/x", 10)


def test_a_slow_server_is_given_up(site: Site) -> None:
    """By a clock that runs 61 seconds ahead with each look at it."""
    seconds = iter(range(0, 10_000, 61))
    waits: list[float] = []
    site.folder.joinpath("slow").write_bytes(bytes(1000))
    one = Download(f"{site.url}slow", 2000, 2000, clock=lambda: next(seconds), pause=waits.append)
    site.no_length = {"slow"}
    with pytest.raises(ReleaseError, match=r"only 1000 bytes came in 60 seconds|broke off"):
        one.into(BytesIO(), lambda _: None)
    assert len(waits) < 2 * download.ATTEMPTS
    with pytest.raises(ReleaseError, match="did not come within 60 seconds"):
        download.text(f"{site.url}slow", 5000, clock=lambda: next(seconds))


# -- packed images


def test_an_image_that_unpacks_to_more_than_it_says(
    card: Path, release: Path, tmp_path: Path, capsys: Captured
) -> None:
    bomb = lzma.compress(card.read_bytes() + bytes(32 << 20), preset=0)
    said = index.read((release / index.FILE).read_bytes())
    files = tuple(
        file._replace(size=len(bomb), sha256=hashlib.sha256(bomb).hexdigest())
        if file.kind == index.IMAGE
        else file
        for file in said.files
        if file.kind != index.MAP
    )
    (release / IMAGE).write_bytes(bomb)
    (release / index.FILE).write_bytes(said._replace(files=files).text())
    listed = {file.name: file.sha256 for file in files}
    listed[index.FILE] = hashlib.sha256((release / index.FILE).read_bytes()).hexdigest()
    (release / sums.FILE).write_bytes(sums.text(listed))
    status, words = run(capsys, "--image", release, "--file", tmp_path / "out.img")
    assert status == 1
    assert f"holds more than {card.stat().st_size} bytes" in words
    assert not (tmp_path / "out.img").exists()


def test_xz_that_takes_too_much_memory(card: Path, tmp_path: Path, capsys: Captured) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 20}]
    data = bytearray(lzma.compress(card.read_bytes(), filters=filters))
    # The block's header: size, flags, the filter's number and size, the dictionary's size, CRC.
    assert data[14:16] == b"\x21\x01"
    data[16] = 40  # 4 GiB less a byte
    length = (data[12] + 1) * 4
    data[12 + length - 4 : 12 + length] = lzma_crc(data[12 : 12 + length - 4])
    (tmp_path / "x.img.xz").write_bytes(data)
    status, said = run(capsys, "--image", tmp_path / "x.img.xz", "--file", tmp_path / "out.img")
    assert status == 1
    assert "needs more than 256 MiB of memory to be unpacked" in said


def lzma_crc(data: bytes | bytearray) -> bytes:
    import zlib

    return zlib.crc32(data).to_bytes(4, "little")


def test_an_image_is_unpacked_twice_and_no_more(release: Path, tmp_path: Path) -> None:
    """Once to check it, once to write it: all that is read out of turn is at hand."""
    from firmware.target import Target

    with source.opened(release / IMAGE) as opened:
        content = source.Content(opened)
        partition = opened.layout[1]
        with (
            source.partition_file(content.read_into, partition) as file,
            Target.file(tmp_path / "out.img", opened.size) as target,
        ):
            content.replace_config(file)
            flash.Writer(content, target, quiet()).run()
        assert isinstance(opened.file, Unpacked)
        assert opened.file.restarts == 2


def test_reading_a_packed_image_anywhere(card: Path, tmp_path: Path) -> None:
    """Also of several streams with zeros between them, as other programs write."""
    data = card.read_bytes()
    half = len(data) // 2 // 4096 * 4096
    path = tmp_path / "card.img.xz"
    streams = [lzma.compress(part, preset=0) for part in (data[:half], data[half:])]
    path.write_bytes(streams[0] + bytes(8) + streams[1] + bytes(4))
    with Unpacked(path) as file:
        with card.open("rb") as plain:
            assert file.scan(None) == bmap.data_ranges(plain)
        for at in (0, 500, 6 << 20, half - 10, len(data) - 5, 3 << 20, len(data) + 9):
            file.seek(at)
            assert file.read(70_000) == data[at : at + 70_000]
            assert file.tell() == min(at + 70_000, max(at, len(data)))
        assert file.seek(0, os.SEEK_END) == len(data)

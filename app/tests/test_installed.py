# SPDX-License-Identifier: Apache-2.0
"""Applications installed beside the image: taken, started, judged, taken back; real files."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv6Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from apps_for_tests import ABOUT, Unpacking, lamp, packed
from bundles_for_tests import UpdateKey
from fleet_for_tests import one_fleet
from private_network import until

from thicket.applications import app_file, app_state, installed, service
from thicket.applications.api import Application
from thicket.applications.app_file import AppError
from thicket.applications.fit import Place
from thicket.applications.installed import Follow, Installed
from thicket.applications.service import Applications
from thicket.base.errors import ThicketError
from thicket.base.headway import Headway
from thicket.base.paths import Paths
from thicket.base.problems import Problems
from thicket.daemon import installed_part
from thicket.daemon.installed_part import InstalledPart
from thicket.distribution import Node
from thicket.trust.update_signer import SignerRefusedError, signer_name

pytestmark = pytest.mark.skipif(
    not shutil.which("mksquashfs") or not shutil.which("unsquashfs"), reason="no squashfs-tools"
)

TWO = ABOUT._replace(version="2.0", number=2_000)
THREE = ABOUT._replace(version="3.0", number=3_000)


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thicket.applications.running.PAUSES", (0.05,))
    monkeypatch.setattr(service, "LOOK", 0.05)
    monkeypatch.setattr(installed, "LOOK", 0.02)
    monkeypatch.setattr(installed, "REVOKED", 0.05)


class OfTheImage(Application):
    """The image's application of the same name."""

    async def start(self) -> None:
        self.node.export("lamp.version")(self.version)

    async def version(self) -> str:
        return "image"


class Device:
    """A node's folder; what runs in it comes and goes with :meth:`on`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = Paths(str(folder / "root"))
        self.place = Place(one_fleet().fleet, set(), "0.1.0", "3.13", os.uname().machine)
        self.health_time = 0.3
        self.own: dict[str, Callable[[], Any]] = {}
        self.problems = Problems(lambda: None)
        self.mounter = Unpacking()
        self.apps: Installed
        self.node: Node

    @asynccontextmanager
    async def on(self) -> AsyncIterator[Device]:
        self.node = Node("a", "c", IPv6Address("::1"), 0, epmd_port=None)
        self.apps = Installed(
            self.paths,
            self.problems,
            lambda: self.place,
            self.own,
            mounter=self.mounter,
            health_time=lambda: self.health_time,
            changed=lambda: None,
        )
        await self.apps.load()
        runner = Applications(self.node, {}, self.problems, self.apps.found())
        tasks = [asyncio.create_task(runner.run()), asyncio.create_task(self.apps.watch(runner))]
        await self.node.start()
        await asyncio.sleep(0)
        try:
            yield self
            assert not any(task.done() for task in tasks), tasks
        finally:
            for task in reversed(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.node.stop()
            sys.path[:] = [path for path in sys.path if not path.startswith(self.paths.root)]
            sys.modules.pop("lamp_app", None)

    async def version(self) -> str:
        await until(lambda: "lamp.version" in self.node.exports(), "it runs")
        found = await self.node.call(self.node.name, "lamp.version")
        assert isinstance(found, str)
        return found

    def entry(self) -> dict[str, Any]:
        (one,) = self.apps.status()
        return one

    async def judged(self) -> dict[str, Any]:
        await until(lambda: not self.entry()["trial"], "it was judged")
        return self.entry()

    def files(self) -> list[str]:
        return sorted(one.name for one in Path(self.paths.data, "apps/lamp").iterdir())

    def words(self, code: str) -> list[str]:
        return [one["message"] for one in self.problems.all() if one["code"] == code]


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def one(device: Device) -> str:
    return str(packed(device.folder, lamp("1.0")))


async def test_a_version_is_installed_judged_and_replaced(device: Device) -> None:
    async with device.on():
        told = await device.apps.install(one(device))
        assert (told["version"], told["trial"], told["before"]) == ("1.0", True, False)
        assert told["signer"] == signer_name("release")
        assert await device.version() == "1.0"
        assert (await device.judged())["version"] == "1.0"
        await device.apps.install(str(packed(device.folder, lamp("2.0"), TWO)))
        assert await device.version() == "2.0"
        assert await device.judged() | {"signer": ""} == {
            "name": "lamp",
            "version": "2.0",
            "number": 2000,
            "signer": "",
            "applications": ["lamp"],
            "trial": False,
            "before": True,
            "left": None,
        }
        assert len(device.mounter.mounted) == 1
        assert len(device.files()) == 3
        await device.apps.install(str(packed(device.folder, lamp("3.0"), THREE)))
        await device.judged()
        assert len(device.files()) == 3
        assert (await device.apps.back("lamp"))["version"] == "2.0"
        assert await device.version() == "2.0"
        with pytest.raises(AppError, match="no version of lamp before"):
            await device.apps.back("lamp")
    async with device.on():
        assert await device.version() == "2.0"
        await device.apps.remove("lamp")
        assert device.apps.status() == []
        assert not device.mounter.mounted
        assert not Path(device.paths.data, "apps/lamp").exists()
        with pytest.raises(AppError, match="there are: none"):
            await device.apps.remove("lamp")


@pytest.mark.parametrize(
    ("start", "health", "words"),
    [
        ("raise OSError('no lamp')", "return None", "2.0: OSError: no lamp"),
        ("pass", "return 'dark'", "2.0: not well for 1.5 s: dark"),
        ("import no_such_module", "return None", "No module named 'no_such_module'"),
    ],
)
async def test_a_version_that_fails_is_left_for_the_one_before(
    device: Device, start: str, health: str, words: str
) -> None:
    async with device.on():
        await device.apps.install(one(device))
        await device.judged()
        bad = str(packed(device.folder, lamp("2.0", start, health), TWO))
        await device.apps.install(bad)
        await until(lambda: device.entry()["version"] == "1.0", "it went back")
        assert await device.version() == "1.0"
        assert words in device.entry()["left"]
        assert words in device.words("left")[0]
        assert len(device.files()) == 2
        with pytest.raises(AppError, match="was tried here and left"):
            await device.apps.install(bad)
        assert (await device.apps.install(bad, again=True))["version"] == "2.0"
        await until(lambda: device.entry()["version"] == "1.0", "it went back")
        with pytest.raises(AppError, match="installed already"):
            await device.apps.install(one(device))
    async with device.on():
        assert words in device.entry()["left"]
        assert await device.version() == "1.0"


async def test_it_takes_the_place_of_the_images_and_gives_it_back(device: Device) -> None:
    device.own = {"lamp": lambda: OfTheImage}
    async with device.on():
        assert await device.version() == "image"
        await device.apps.install(str(packed(device.folder, lamp("1.0", "raise OSError(1)"))))
        await until(lambda: device.entry()["version"] is None, "it was left")
        assert await device.version() == "image"
        await device.apps.install(str(packed(device.folder, lamp("2.0"), TWO)))
        assert await device.version() == "2.0"
        await device.judged()
        await device.apps.back("lamp")
        assert await device.version() == "image"


async def test_one_that_takes_the_daemon_along_is_left_in_the_end(device: Device) -> None:
    async with device.on():
        await device.apps.install(one(device))
        await device.judged()
    device.health_time = 1000
    async with device.on():
        await device.apps.install(str(packed(device.folder, lamp("2.0"), TWO)))
    folder = f"{device.paths.data}/apps/lamp"
    for tries in range(2, app_state.MOST_TRIALS + 1):
        async with device.on():
            await until(
                lambda tries=tries: app_state.load(folder).trial == tries,  # type: ignore[misc]
                "the start is counted",
            )
            assert await device.version() == "2.0"
    async with device.on():
        assert await device.version() == "1.0"
        assert "the daemon ended 3 times" in device.entry()["left"]


async def test_a_start_is_counted_before_what_is_on_trial_begins(device: Device) -> None:
    """One that ends the daemon as soon as it is imported would never be left otherwise."""
    device.health_time = 1000
    async with device.on():
        await device.apps.install(one(device))
    core = SimpleNamespace(
        paths=device.paths,
        problems=device.problems,
        changed=lambda: None,
        settings=SimpleNamespace(update=SimpleNamespace(health_time=1000)),
        make=SimpleNamespace(applications=dict, mounter=lambda: device.mounter),
    )
    part = InstalledPart(cast(Any, core))
    part._place = lambda: device.place  # type: ignore[method-assign]
    counted: list[int] = []

    def make(found: dict[str, Callable[[], Any]]) -> Any:
        assert list(found) == ["lamp"]
        counted.append(app_state.load(f"{device.paths.data}/apps/lamp").trial)
        return SimpleNamespace()

    await part.runner(make)
    assert counted == [2]
    sys.path[:] = [path for path in sys.path if not path.startswith(device.paths.root)]


async def test_a_revoked_signer_and_another_image(device: Device) -> None:
    async with device.on():
        await device.apps.install(one(device))
        await device.judged()
        other = packed(device.folder, lamp("2.0"), TWO, UpdateKey(one_fleet(), "second"))
        await device.apps.install(str(other))
        await device.judged()
        device.place = device.place._replace(revoked={signer_name("second")})
        await until(lambda: device.entry()["version"] == "1.0", "it is ended")
        assert await device.version() == "1.0"
        assert "is revoked" in device.words("not-started")[0]
        with pytest.raises(SignerRefusedError, match="revoked"):
            await device.apps.install(str(other), again=True)
    device.place = device.place._replace(image="0.0.9")
    async with device.on():
        assert device.entry()["version"] is None
        assert "update the image first" in device.words("not-started")[0]
    device.place = device.place._replace(image="0.1.0", revoked=set())
    async with device.on():
        assert await device.version() == "2.0"
        assert device.words("not-started") == []


async def test_a_damaged_file_is_not_started(device: Device) -> None:
    async with device.on():
        await device.apps.install(one(device))
        await device.judged()
        (file,) = [name for name in device.files() if name.endswith(".app")]
    path = Path(device.paths.data, "apps/lamp", file)
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    async with device.on():
        assert device.entry()["version"] is None
        assert "not those that were signed" in device.words("not-started")[0]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("squashfs", "the file of an application is needed"),
        ("contents", "the contents are not those that were signed; copy it again"),
        ("signature", "signed|cut off|a damaged file"),
        ("size", "cut off, or with something behind its end"),
        ("cut", "cut off"), ("more", "cut off, or with something behind its end"),
        ("unreadable", r"cannot be read to its end \(Input/output error\): what it is on fails"),
        ("changing", "was changed while it was read"),
        ("bad card", "the contents are not those that were signed"),
    ],
)  # fmt: skip
async def test_a_damaged_file_costs_nothing(
    how: str, words: str, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what runs nor what is kept of it is touched."""
    async with device.on():
        await device.apps.install(one(device))
        await device.judged()
        before = device.files()
        path = packed(device.folder, lamp("2.0"), TWO)
        data = bytearray(path.read_bytes())
        size = len(data)
        with path.open("rb") as file:
            contents = app_file.read(file).about.size
        places = {"squashfs": 0, "contents": contents - 1, "signature": contents + 30, "size": -2}
        if how in places:
            data[places[how]] ^= 1
        elif how == "cut":
            del data[size // 2 :]
        elif how == "more":
            data += b"\0"
        elif how == "unreadable":
            monkeypatch.setattr(installed, "_PIECE", 512)
            monkeypatch.setattr(installed, "opened", lambda path: Failing(Path(path).read_bytes()))
        elif how == "changing":
            other = packed(device.folder / "other", lamp("3.0"), THREE).read_bytes()
            make_room = Installed._make_room

            def exchange(*words: Any) -> None:
                make_room(*words)
                path.write_bytes(other)

            monkeypatch.setattr(Installed, "_make_room", exchange)
        else:

            def spoil(fd: int) -> None:
                os.pwrite(fd, b"spoilt", 100)

            monkeypatch.setattr(installed, "from_disk", spoil)
        path.write_bytes(data)
        with pytest.raises(ThicketError, match=words):
            await device.apps.install(str(path))
        assert device.files() == before
        assert await device.version() == "1.0"
        assert (device.entry()["version"], device.entry()["left"]) == ("1.0", None)


class Failing(io.BytesIO):
    """A file on a stick that is pulled out when the end was read, and some of the beginning."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left = 3

    def fileno(self) -> int:
        return 0

    def read(self, size: int | None = -1) -> bytes:
        if size == 512:
            self._left -= 1
        if not self._left:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read(size)


async def test_leftovers_and_a_damaged_state(device: Device) -> None:
    apps = Path(device.paths.data, "apps")
    async with device.on():
        await device.apps.install(one(device))
        await device.judged()
    (apps / "other").mkdir()
    (apps / "other" / "1.0-0123456789ab.app").write_bytes(b"hsqs")
    (apps / "lamp" / app_state.STATE).write_bytes(b"{")
    (apps / "lamp" / "9.9-0123456789ab.app").write_bytes(b"hsqs")
    async with device.on():
        assert device.entry()["version"] is None
        assert "is damaged: install it again" in device.words("not-started")[0]
        await device.apps.install(one(device))
        assert await device.version() == "1.0"
        assert device.words("not-started") == []
        assert len([name for name in device.files() if name.endswith(".app")]) == 1
        assert [folder.name for folder in apps.iterdir()] == ["lamp"]


def elsewhere(device: Device) -> Path:
    """Move an application's folder to somewhere else, and leave a link; return where it is."""
    folder = Path(device.paths.data, "apps", "lamp")
    there = device.folder / "elsewhere"
    folder.rename(there)
    (there / "diary.txt").write_text("somebody's")
    folder.symlink_to(there)
    return there


@pytest.mark.parametrize("what", ["remove", "install"])
async def test_a_link_in_the_place_of_a_folder_is_not_followed(device: Device, what: str) -> None:
    async with device.on():
        await device.apps.install(one(device))
        await device.judged()
    there = elsewhere(device)
    kept = sorted(path.name for path in there.iterdir())
    async with device.on():
        assert device.entry()["version"] is None
        assert "lamp is a link, which is not followed" in device.words("not-started")[0]
        if what == "remove":
            assert await device.apps.remove("lamp") == {"removed": "lamp"}
            assert device.apps.status() == []
            assert not os.path.lexists(Path(device.paths.data, "apps", "lamp"))
        else:
            await device.apps.install(one(device))
            assert await device.version() == "1.0"
            assert not Path(device.paths.data, "apps", "lamp").is_symlink()
        assert device.words("not-started") == []
    assert sorted(path.name for path in there.iterdir()) == kept


async def test_a_link_that_comes_while_it_runs_is_removed_alone(device: Device) -> None:
    async with device.on():
        await device.apps.install(one(device))
        await device.judged()
        there = elsewhere(device)
        kept = sorted(path.name for path in there.iterdir())
        await device.apps.remove("lamp")
        assert device.apps.status() == []
    assert sorted(path.name for path in there.iterdir()) == kept


def a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("")


def a_link_to_nothing(path: Path) -> None:
    shutil.rmtree(path)
    path.symlink_to("nothing")


def a_folder_as_state(path: Path) -> None:
    (path / app_state.STATE).unlink()
    (path / app_state.STATE / "in").mkdir(parents=True)


@pytest.mark.parametrize("put", [a_file, a_link_to_nothing, a_folder_as_state, shutil.rmtree])
@pytest.mark.parametrize("restart", [False, True])
async def test_whatever_is_in_its_place_can_be_removed_and_installed(
    device: Device, put: Callable[[Path], None], restart: bool
) -> None:
    folder = Path(device.paths.data, "apps", "lamp")
    async with device.on():
        await device.apps.install(one(device))
        await device.judged()
        put(folder)
        if not restart:
            await device.apps.remove("lamp")
            assert not os.path.lexists(folder)
    async with device.on():
        if device.apps.status():
            await device.apps.remove("lamp")
        assert not os.path.lexists(folder)
        await device.apps.install(one(device))
        assert await device.version() == "1.0"


async def test_what_cannot_be_removed_says_so_and_runs_on(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with device.on():
        await device.apps.install(one(device))
        await device.judged()

        def read_only(_path: str) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        with monkeypatch.context() as patch:
            patch.setattr(installed, "_remove", read_only)
            with pytest.raises(AppError, match="lamp cannot be removed: Read-only file system"):
                await device.apps.remove("lamp")
        assert await device.version() == "1.0"
        assert device.entry()["version"] == "1.0"


async def test_what_is_installed_before_the_cluster_is_started_by_it(device: Device) -> None:
    path = one(device)
    apps = Installed(
        device.paths, device.problems, lambda: device.place, {},
        mounter=device.mounter, health_time=lambda: 1.0, changed=lambda: None,
    )  # fmt: skip
    await apps.load()
    assert (await apps.install(path))["trial"]
    async with device.on():
        assert await device.version() == "1.0"


async def test_no_more_than_so_many(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "MOST", 0)
    async with device.on():
        with pytest.raises(AppError, match="0 applications are installed"):
            await device.apps.install(one(device))


async def test_what_is_refused_leaves_everything_as_it_was(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with device.on():
        await device.apps.install(str(packed(device.folder, lamp("2.0"), TWO)))
        await device.judged()
        before = device.files()
        with pytest.raises(AppError, match=r"was built before lamp 2\.0"):
            await device.apps.install(one(device))
        with pytest.raises(AppError, match="No such file"):
            await device.apps.install("/nowhere")
        with pytest.raises(AppError, match="no regular file"):
            await device.apps.install("/dev/null")
        with pytest.raises(AppError, match="it is a folder, and the file of an application is"):
            await device.apps.install(str(device.folder))
        foreign = packed(device.folder, lamp("3.0"), THREE, UpdateKey(one_fleet("other")))
        with pytest.raises(SignerRefusedError, match="another fleet"):
            await device.apps.install(str(foreign))
        newer = str(packed(device.folder, lamp("3.0"), THREE))
        with monkeypatch.context() as patched:
            patched.setattr(installed, "SPARE", 1 << 60)
            with pytest.raises(AppError, match=r"/data has .* free"):
                await device.apps.install(newer)
        stray = lamp("3.0") | {"json.py": ""}
        with pytest.raises(AppError, match="json, which is not signed"):
            await device.apps.install(str(packed(device.folder, stray, THREE)))
        assert device.files() == before
        assert await device.version() == "2.0"
        assert device.entry()["left"] is None


async def test_a_power_cut_leaves_either_version(device: Device) -> None:
    """The disk as it is before each write of an installation, and after the last one."""
    async with device.on():
        await device.apps.install(one(device))
        await device.judged()
    folder = Path(device.paths.data)
    shutil.copytree(folder, device.folder / "before")
    async with device.on():
        await device.apps.install(str(packed(device.folder, lamp("2.0"), TWO)))
        assert await device.version() == "2.0"
        (new,) = [name for name in device.files() if name.startswith("2.0-")]
        whole = (folder / "apps/lamp" / new).read_bytes()
    for name, data, expected in (
        (installed._NEW, whole[:100], "1.0"),
        (installed._NEW, whole, "1.0"),
        (new, whole, "1.0"),
        (app_state.STATE + ".new", b"{", "1.0"),
    ):
        shutil.rmtree(folder)
        shutil.copytree(device.folder / "before", folder)
        (folder / "apps/lamp" / name).write_bytes(data)
        async with device.on():
            assert await device.version() == expected


async def test_how_far_an_installation_is(device: Device) -> None:
    """Bytes as they are on the card: of the check of what has come, and of the copy."""
    size = (2 << 20) + 4097
    noise = hashlib.shake_128(b"lamp").hexdigest(size)
    path = packed(device.folder, lamp("1.0") | {"lamp_app/noise.txt": noise})
    told: list[Headway] = []
    async with device.on():
        await device.apps.judge(str(path), "lamp", told.append)
        contents = app_file.read(io.BytesIO(path.read_bytes())).about.size
        assert contents > size
        assert {one[:1] + one[2:4] for one in told} == {("checking", "", path.name)}
        assert told[0].done is None
        parts = [one.done or 0 for one in told[1:]]
        assert parts == sorted(set(parts))
        assert len(parts) > 2
        assert parts[-1] == contents == told[-1].size
        assert [one.percent for one in told[1:]] == [100 * part // contents for part in parts]
        told.clear()
        await device.apps.install(str(path), told.append)
        assert {one[:1] + one[2:4] for one in told} == {("writing", "", path.name)}
        assert told[-1][4:6] == (path.stat().st_size,) * 2
        assert len(told) > 3


async def test_a_person_who_waits_is_told_how_far_it_is(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(one(device))
    going = Headway("writing", 50, "", "lamp.app", 1, 2)
    goes_on = asyncio.Event()

    async def install(_path: str, follow: Follow, *, again: bool) -> dict[str, Any]:
        follow(going)
        await goes_on.wait()
        return {"again": again}

    monkeypatch.setattr(installed_part, "PATIENCE", 0.01)
    async with device.on():
        part = InstalledPart(cast(Any, None))
        part._installed, part._loading = device.apps, asyncio.create_task(asyncio.sleep(0))
        monkeypatch.setattr(device.apps, "install", install)
        answer = await part.install(path, again=True)
        while answer == {"pending": Headway()._asdict()}:
            answer = await part.result()
        assert answer == {"pending": going._asdict()}
        goes_on.set()
        while "pending" in answer:
            answer = await part.result()
        assert answer == {"again": True}

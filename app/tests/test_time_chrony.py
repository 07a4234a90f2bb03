# SPDX-License-Identifier: Apache-2.0
"""thicket.timekeeping.chrony and .report: the real chronyd, which leaves the machine's clock alone.

Each chronyd has a network namespace of its own.
"""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path
from tempfile import mkdtemp

import pytest

from thicket.base.files import read
from thicket.timekeeping.chrony import Chrony, ChronyError, Client, Setup, configuration
from thicket.timekeeping.keys import PairKey, of_client
from thicket.timekeeping.report import Report, ReportError, parse

pytestmark = pytest.mark.skipif(
    shutil.which("chronyd") is None or os.geteuid() != 0, reason="needs chronyd, and root"
)

NETWORK = IPv6Network("fd00:7::/64")
FIRST, SECOND = IPv6Address("fd00:7::1"), IPv6Address("fd00:7::2")
KEY = of_client(b"secret", SECOND)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that another user may enter, as /run is."""
    made = Path(mkdtemp(prefix="thicket-time-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def wire() -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Two network namespaces that are connected; how programs are started in each."""
    names = [f"thicket-{os.getpid()}-{number}" for number in (1, 2)]

    def run(*words: str) -> None:
        subprocess.run(words, check=True, capture_output=True)

    try:
        for name in names:
            run("ip", "netns", "add", name)
        run(
            *("ip", "link", "add", "wire", "netns", names[0], "type", "veth"),
            *("peer", "name", "wire", "netns", names[1]),
        )
        for name, address in zip(names, (FIRST, SECOND), strict=True):
            run("ip", "-n", name, "link", "set", "lo", "up")
            run("ip", "-n", name, "addr", "add", f"{address}/64", "dev", "wire", "nodad")
            run("ip", "-n", name, "link", "set", "wire", "up")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs the right to make network namespaces: {error}")
    try:
        first, second = (("ip", "netns", "exec", name) for name in names)
        yield first, second
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@asynccontextmanager
async def running(
    folder: Path, before: tuple[str, ...], setup: Setup, network: IPv6Network | None = NETWORK
) -> AsyncIterator[Chrony]:
    ended: list[None] = []
    chrony = Chrony(
        str(folder / "run"),
        str(folder / "drift"),
        lambda: ended.append(None),
        before=before,
        options=("-x",),
    )
    folder.mkdir()
    await chrony.start(network, setup)
    try:
        yield chrony
    finally:
        await chrony.stop()
    assert not chrony.running
    assert ended == []


async def until(chrony: Chrony, wanted: Callable[[Report], bool]) -> Report:
    """Return the first report that is as wanted."""
    async with asyncio.timeout(60):
        while True:
            report = await chrony.report()
            if wanted(report):
                return report
            await asyncio.sleep(0.2)


def follows(report: Report) -> bool:
    return any(one.state == "*" for one in report.sources) and bool(report.tracking.source)


async def test_a_node_follows_another_by_their_key(
    folder: Path, wire: tuple[tuple[str, ...], tuple[str, ...]]
) -> None:
    giving = Setup(clients=(KEY,), leads=True)
    taking = Setup(nodes=(Client(FIRST, KEY),))
    async with (
        running(folder / "1", wire[0], giving) as first,
        running(folder / "2", wire[1], taking) as second,
    ):
        report = await until(second, follows)
        assert [one.address for one in report.sources] == [str(FIRST)]
        assert report.tracking.stratum == 5
        assert abs(report.tracking.offset) < 1
        leading = (await first.report()).tracking
        assert leading.source == "", "it follows nobody"
        # what was measured can be forgotten, and measured anew at once
        await second.measure_anew()
        assert not follows(await second.report())
        await until(second, follows)
        # and it can be told otherwise, while it runs
        await second.follow(Setup(leads=True))
        assert (await second.report()).sources == ()


async def test_a_node_with_another_key_gives_no_time(
    folder: Path, wire: tuple[tuple[str, ...], tuple[str, ...]]
) -> None:
    forged = PairKey(KEY.number, bytes(16))
    async with (
        running(folder / "1", wire[0], Setup(clients=(forged,), leads=True)) as first,
        running(folder / "2", wire[1], Setup(nodes=(Client(FIRST, KEY),))) as second,
    ):
        for _ in range(20):
            report = await second.report()
            assert not follows(report)
            assert [one.reach for one in report.sources] == [0]
            await asyncio.sleep(0.25)
        # with the right one, which it is told while it runs, it does
        await first.know((KEY,))
        await second.follow(Setup())
        await second.follow(Setup(nodes=(Client(FIRST, KEY),)))
        await until(second, follows)


async def test_what_ends_by_itself_is_noticed_and_a_stray_one_is_ended(
    folder: Path, wire: tuple[tuple[str, ...], tuple[str, ...]]
) -> None:
    gone = asyncio.Event()
    words = {"before": wire[0], "options": ("-x",)}
    one = Chrony(str(folder / "run"), str(folder / "drift"), gone.set, **words)
    await one.start(NETWORK, Setup(leads=True))
    assert one.pid is not None
    # a daemon that was killed leaves it behind, and the next one does not know it
    two = Chrony(str(folder / "run"), str(folder / "drift"), lambda: None, **words)
    await two.start(NETWORK, Setup(leads=True))
    try:
        async with asyncio.timeout(10):
            await gone.wait()
        assert not one.running
        assert two.running
        assert await two.report()
    finally:
        await two.stop()
        await one.stop()


async def test_files_are_for_root_and_chronyd_alone(
    folder: Path, wire: tuple[tuple[str, ...], tuple[str, ...]]
) -> None:
    setup = Setup(clients=(KEY,), nodes=(Client(FIRST, KEY),), leads=True)
    async with running(folder / "1", wire[0], setup):
        run = folder / "1/run"
        assert run.stat().st_mode & 0o777 == 0o750
        assert (run / "keys").stat().st_mode & 0o777 == 0o640
        assert (run / "keys").stat().st_uid == 0
        assert read(str(run / "keys")) == KEY.line(), "a key is there once"


async def test_what_is_wrong_is_said(folder: Path) -> None:
    class Missing(Chrony):
        program = "no-such-chronyd"

    missing = Missing(str(folder / "run"), str(folder / "drift"), lambda: None)
    with pytest.raises(ChronyError, match="is not installed") as found:
        await missing.start(NETWORK, Setup())
    assert found.value.code == "missing"

    faulty = Chrony(str(folder / "run"), str(folder / "drift"), lambda: None, options=("-x", "-Z"))
    with pytest.raises(ChronyError, match="ended at once") as found:
        await faulty.start(NETWORK, Setup())
    assert found.value.code == "start"
    with pytest.raises(ChronyError):
        await faulty.report()


async def test_nts_is_there_or_not() -> None:
    assert await Chrony("/none", "/none", lambda: None).has_nts() in {True, False}


def test_the_configuration_gives_the_time_to_the_mesh_alone() -> None:
    text = configuration("/run/x", "/data/x/drift", "chrony", NETWORK)
    assert f"allow {NETWORK}\n" in text
    assert "makestep" not in text
    assert "rtcsync" not in text
    nobody = configuration("/run/x", "/data/x/drift", "chrony", None)
    assert "allow" not in nobody
    assert "port 0\n" in nobody


def test_servers_of_the_configuration() -> None:
    setup = Setup(servers=("ntp.example.org", "nts:time.example.org"))
    assert setup.sources().splitlines() == [
        "server ntp.example.org iburst minpoll 6 maxpoll 10",
        "server time.example.org iburst minpoll 6 maxpoll 10 nts",
    ]


TRACKING = (
    "B42E15AB,fd00::2,9,1796071688.694678685,4.999997139,-4.999997139,4.999997139,0.500,0.038,"
    "1.500,0.000010372,0.951921940,0.0,Normal\n"
)
SOURCES = "^,*,fd00::2,8,6,7,2,0.000000596,-4.999996662,0.000005397\n^,x,a,2,6,0,9,0,0.5,1\n"


def test_a_report_is_read() -> None:
    report = parse(TRACKING + SOURCES)
    assert report.tracking.source == "fd00::2"
    assert report.tracking.offset == 4.999997139, "the clock is slow"
    assert report.tracking.error == pytest.approx(0.951927126)
    assert (report.tracking.frequency, report.tracking.skew) == (0.5, 1.5)
    first, second = report.sources
    assert (first.address, first.stratum, first.reach) == ("fd00::2", 8, 7)
    assert first.offset == pytest.approx(4.999996543)
    assert first.agrees
    assert not second.agrees
    none = "00000000,,0,0.0,0.0,0.0,0.0,0.000,0.000,0.000,1.0,1.0,0.0,Not synchronised\n"
    assert parse(none).tracking.source == ""
    itself = "7F7F0101,,8,1.0,0.0,0.0,0.0,0.000,0.000,0.000,0.0,0.0,0.0,Normal\n"
    assert parse(itself).tracking.source == ""


@pytest.mark.parametrize(
    "text",
    ["", "506 Cannot talk to daemon", TRACKING[:40], TRACKING.replace("4.999997139", "nan"),
     TRACKING + "^,*,fd00::2\n", TRACKING.replace(",9,", ",x,")],
)  # fmt: skip
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(ReportError):
        parse(text)

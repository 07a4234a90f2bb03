# SPDX-License-Identifier: Apache-2.0
"""Running nodes for tests.

The nodes boot the lab image, which is built when it is not in the cache (minutes, once);
``MESHLAB_IMAGE`` names another: ``x86_64`` or ``rpi64`` for the firmware that was built.

A module names by ``MESH`` the mesh that its tests need, one of those below; one that names none
makes single machines itself, on an event loop of its own. The tests that need the
same one share it, in any order: each finds the mesh formed and ready, with every node on, its links
and its chips as they were. What else a test changes it puts back itself, or says by
``nodes.unfit`` that it cannot. The directory with all logs stays afterwards:
``$THICKET_CACHE/labs/test-<mesh>``, with ``-2`` and so on where the mesh had to be made anew.

``pytest -m lab -n 4 --dist loadgroup tests/mesh`` runs several meshes at a time; one that finds no
room for its nodes waits for the others.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from pathlib import Path

import pytest
import pytest_asyncio

from host.cache import cache_root
from meshlab.image.lab import Extras
from meshlab.lab import real_parts as parts
from meshlab.lab import topology
from meshlab.lab.errors import LabError
from meshlab.lab.lab import Lab
from meshlab.lab.slots import Places
from meshlab.lab.spec import LabSpec, NodeSpec
from meshlab.lab.testing import HANGS, NODES_PER_CORE, Kind, Mesh, Meshes, Nodes, is_skipped
from meshlab.scenario.engine import play
from meshlab.scenario.file import load
from meshlab.scenario.outcome import Outcome

HERE = Path(__file__).resolve().parent
IMAGE = os.environ.get("MESHLAB_IMAGE", "lab")
ARM64 = "standin-rpi64"
"""A card with a kernel of another architecture, which takes minutes to compile."""
READINGS = HERE.parents[1] / "examples" / "readings"
SCENARIOS = HERE.parents[1] / "examples" / "scenarios"
SLACK = 10.0
"""How many times longer than they say the expectations of scenarios have on a busy host."""

SOAK = (
    "test_app_update",
    "test_lossy",
    "test_power_cut",
    "test_scenarios",
    "test_update",
    "test_weak_link",
)
"""The modules whose tests watch or repeat for THICKET_SOAK seconds."""

FAILED = pytest.StashKey[bool]()
NEEDED = pytest.StashKey[Mapping[str, int]]()


# --- meshes -------------------------------------------------------------------------------------


def members(lab: Lab, *names: str) -> bool:
    """Tell whether these are peers of each other and see each other in the cluster."""
    return all(
        set(names) - {name} <= lab.state.peers(name) & lab.state.cluster(name) for name in names
    )


def misfits_are_out(lab: Lab) -> bool:
    peers = all({"n1", "n2", "n5"} - {n} <= lab.state.peers(n) for n in ("n1", "n2", "n5"))
    return peers and members(lab, "n1", "n2")


def rogues_are_out(lab: Lab) -> bool:
    return members(lab, "n1", "n2") and lab.state.peers("n3") >= {"n1", "n2"}


# In the order in which they begin. One that needs more places than are free makes those behind it
# wait, so the two largest are first and last. Between them, those whose tests take long come first.
# The first two begin before the single machines do, the others when most of these have run.
MESHES = {
    mesh.name: mesh
    for mesh in (
        Mesh(
            "grid",
            LabSpec(topology.make("grid", int(os.environ.get("THICKET_FLEET", "8")))),
        ),
        # Devices with cards, and with RAUC: they take updates. What a node sends it sends slowly.
        Mesh(
            "updates",
            LabSpec(
                topology.make("line", 4), config={"update": {"health_time": 10, "air_share": 1}}
            ),
            others=dict.fromkeys(
                ("n1", "n2", "n3", "n4"), Kind(IMAGE if IMAGE in parts.CARDS else parts.STANDIN)
            ),
        ),
        Mesh("full", LabSpec(topology.make("full", 4))),
        Mesh("line", LabSpec(topology.make("line", 3)), cables=True),
        # Its nodes are told the time, which they keep.
        Mesh("time", LabSpec(topology.make("full", 3))),
        Mesh(
            # n3 has a wrong passphrase; who is refused is shunned for an hour.
            "blocked",
            LabSpec(
                topology.make("full", 3),
                config={"mesh": {"max_inactivity": 3600}},
                nodes={"n3": NodeSpec(config={"mesh": {"passphrase": "not the passphrase"}})},
            ),
            ready=lambda lab: members(lab, "n1", "n2"),
        ),
        Mesh(
            # n2 has an application's port open and logs what it drops; n1 logs all that there is.
            "firewall",
            LabSpec(
                topology.make("full", 3),
                nodes={
                    "n1": NodeSpec(config={"log": {"level": "debug"}}),
                    "n2": NodeSpec(config={"firewall": {"allow": ["tcp/8080"], "log": True}}),
                },
            ),
        ),
        Mesh(
            # What ticks find out takes ten minutes, what missing peers do an hour.
            "ring",
            LabSpec(
                topology.make("ring", 4),
                config={
                    "cluster": {"tick_time": 600},
                    "mesh": {"max_inactivity": 3600},
                    "application.readings": {"interval": 2.0},
                },
            ),
            applications=(READINGS,),
        ),
        # The chips of an open mesh are blank.
        Mesh("open", LabSpec(topology.make("full", 2), security="open"), cables=True),
        Mesh(
            # n3 has the mesh's passphrase and the cluster's cookie, but shows no certificate; n4
            # has no passphrase and calls its mesh by the same name.
            "rogue",
            LabSpec(
                topology.make("full", 4),
                nodes={
                    "n3": NodeSpec(
                        config={
                            "trust": {"root": ""},
                            "cluster": {"security": "cookie"},
                            "discovery": {"beacon": "both"},
                        }
                    ),
                    "n4": NodeSpec(config={"mesh": {"security": "open"}}),
                },
            ),
            ready=rogues_are_out,
        ),
        Mesh(
            "neighbours",
            LabSpec(topology.make("line", 4), config={"cluster": {"topology": "neighbours"}}),
            applications=(READINGS,),
            uplinks=("n1",),
        ),
        # n2 is a Raspberry Pi 3 B. It has no chip, and is enrolled over its console.
        Mesh(
            "pi",
            LabSpec(topology.make("full", 2)),
            others={"n2": Kind(IMAGE if IMAGE == "rpi64" else ARM64, "raspi3b")},
        ),
        Mesh(
            # n3 names another mesh, n4 has a wrong passphrase, n5 has no chip, n6 a radio that
            # cannot do mesh, n7 a card that nobody has written a passphrase on.
            "misfits",
            LabSpec(
                topology.make("full", 7),
                nodes={
                    "n3": NodeSpec(config={"mesh": {"id": "elsewhere"}}),
                    "n4": NodeSpec(config={"mesh": {"passphrase": "not the passphrase"}}),
                    "n5": NodeSpec(chip_fault="absent"),
                    "n6": NodeSpec(mesh_point=False),
                    "n7": NodeSpec(config_text="[access]\nconsole = true\n"),
                },
            ),
            ready=misfits_are_out,
        ),
    )
}


# --- tests --------------------------------------------------------------------------------------


def mesh_of(item: pytest.Item) -> Mesh | None:
    """Return the mesh that a test's module names."""
    name = getattr(getattr(item, "module", None), "MESH", None)
    return None if name is None else MESHES[name]


def pytest_configure(config: pytest.Config) -> None:
    # Meshes begin in the order of the tests, not of how many there are.
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Say what is the same for all tests here, and put them in the order of their meshes."""

    def turn(item: pytest.Item) -> int:
        mesh = mesh_of(item)
        if mesh is not None:
            return 2 * list(MESHES).index(mesh.name)
        # Single machines, which take no place, run beside the first two meshes. What needs the
        # kernel of another architecture comes last: it may still be compiled (tests/run.py).
        image = getattr(getattr(item, "module", None), "IMAGE", "")
        late = ARM64 in item.nodeid or image == ARM64
        return 2 * len(MESHES) if late else 3

    for item in items:
        if HERE not in item.path.parents:
            continue
        mesh = mesh_of(item)
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem if mesh is None else mesh.name))
        if item.path.stem in SOAK:
            item.add_marker(pytest.mark.soak)
        item.add_marker(pytest.mark.lab)
        loop = "module" if mesh is None else "session"
        item.add_marker(pytest.mark.asyncio(loop_scope=loop), append=False)
        item.add_marker(pytest.mark.timeout(HANGS, func_only=True))
    items.sort(key=turn)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Count the tests that will need a mesh: it is ended after the last one."""
    items = [item for item in session.items if not is_skipped(item.iter_markers())]
    meshes = [mesh for item in items if (mesh := mesh_of(item)) is not None]
    session.config.stash[NEEDED] = Counter(mesh.name for mesh in meshes)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the state and the logs of every node beside a failure."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
        lab = getattr(item, "funcargs", {}).get("lab")
        if isinstance(lab, Lab) and lab.nodes:
            report.sections.append(("lab", lab.report()))
    return report


# --- fixtures -----------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def meshes(request: pytest.FixtureRequest) -> AsyncIterator[Meshes]:
    """Run the meshes that the tests need."""

    def progress(text: str) -> None:
        print(text, file=sys.__stderr__, flush=True)

    def real_parts(mesh: Mesh) -> parts.RealParts:
        # A firmware has the applications that it was built with.
        extras = Extras(applications=mesh.applications) if mesh.applications else None
        extras = extras if IMAGE == "lab" else None
        return parts.load(
            IMAGE, cache_root(), 1, progress, extras, cables=mesh.cables, uplinks=mesh.uplinks
        )

    def others(kind: Kind) -> parts.RealParts:
        try:
            return parts.load(kind.image, cache_root(), 1, progress, board=kind.board)
        except LabError as error:
            if "qemu-system" in str(error):
                pytest.skip(str(error))
            raise

    cores = len(os.sched_getaffinity(0))
    places = Places(cache_root() / "node-places", NODES_PER_CORE * cores, "tests on running nodes")
    found = Meshes(real_parts, places, others)
    found.needed.update(request.config.stash[NEEDED])
    yield found
    await found.end()


@pytest_asyncio.fixture(loop_scope="session")
async def lab(request: pytest.FixtureRequest, meshes: Meshes) -> AsyncIterator[Lab]:
    """Give the test the mesh that its module names."""
    mesh = mesh_of(request.node)
    assert mesh is not None, "a module of tests on running nodes names its MESH"
    running = await meshes.take(mesh)
    yield running
    unfit = getattr(request.node.funcargs.get("nodes"), "unfit", None)
    await meshes.give_back(mesh, fit=not unfit and not request.node.stash.get(FAILED, False))


@pytest.fixture
def nodes(lab: Lab) -> Nodes:
    return Nodes(lab)


@pytest.fixture
def played(lab: Lab, tmp_path: Path) -> Callable[[str], Awaitable[Outcome]]:
    """Give the test what plays a scenario of the library on its mesh, which has to fit."""

    async def go(name: str) -> Outcome:
        scenario = load(SCENARIOS / f"{name}.toml")
        assert scenario.spec.topology.links == lab.spec.topology.links
        return await play(
            scenario, lab, lambda at, text: print(f"{at:7.1f} s  {text}", flush=True),
            seed=lab.spec.topology.seed, folder=tmp_path, slack=SLACK,
            judge_medium=False,  # it has carried the frames of other tests, too
        )  # fmt: skip

    return go


@pytest.fixture
def readings() -> None:
    """Have the example application on the nodes, as the spec of the mesh says."""
    if IMAGE != "lab":
        pytest.skip(f"{IMAGE} has no applications; only the lab image is made with some")

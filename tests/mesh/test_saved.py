# SPDX-License-Identifier: Apache-2.0
"""A mesh that is saved goes on, and a second one goes on from its save, with all that was in the
memory of its nodes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from host.cache import cache_root
from meshlab.lab import real_parts
from meshlab.lab.lab import Lab
from meshlab.lab.saved import IMAGES, SavedLab, remove, saved_names
from meshlab.lab.saving import save
from meshlab.lab.slots import Places
from meshlab.lab.testing import FORMING, NODES_PER_CORE, Nodes

MESH = "full"
NAME = "test-saved"

pytestmark = pytest.mark.skipif(
    not os.environ.get("THICKET_SOAK"),
    reason="needs twice the nodes at a time: `make soak`, or THICKET_SOAK=1",
)

ALIVE = "cat /proc/sys/kernel/random/boot_id; pidof thicketd"


@pytest.fixture
def _clean() -> Iterator[None]:
    def clean() -> None:
        remove([name for name in saved_names() if name == NAME])

    clean()
    yield
    clean()


@pytest_asyncio.fixture(loop_scope="session")
async def again(lab: Lab, nodes: Nodes, _clean: None) -> AsyncIterator[Lab]:
    """Give a lab that goes on from a save of the mesh, in which n3's link with n4 is weak."""
    del nodes
    await lab.run("n1", "echo kept >/tmp/kept")
    for name in lab.nodes:
        await lab.run(name, ALIVE)  # a kernel makes its boot_id when it is read first
    await lab.link("n3", "n4", snr=14)
    try:
        await save(lab, NAME)
    finally:
        await lab.link("n3", "n4", restore=True)
    places = Places(
        cache_root() / "node-places",
        NODES_PER_CORE * len(os.sched_getaffinity(0)),
        "tests of saved labs",
    )
    held = await places.take(len(lab.nodes))
    try:
        found = SavedLab.open(NAME)
        made = real_parts.of_saved(
            found.path / IMAGES / "0", found.value["images"][0], cache_root(), 1
        )
        async with Lab(found.spec(NAME), made) as resumed:
            await resumed.formed(FORMING)
            yield resumed
    finally:
        for place in held:
            place.free()


async def test_saved_nodes_are_the_same_that_were_saved(lab: Lab, nodes: Nodes, again: Lab) -> None:
    for name in lab.nodes:
        assert await nodes.run(name, ALIVE) == await Nodes(again).run(name, ALIVE)
    await nodes.whole()
    assert await Nodes(again).run("n1", "cat /tmp/kept") == "kept\n"
    heard = (await again.medium_call("links"))["links"]
    assert {link["snr_db"] for link in heard if {link["a"], link["b"]} == {"n3", "n4"}} == {14}

    # The chip answers on the bus that was unplugged meanwhile: the daemon reads it at its start.
    guest = Nodes(again)
    before = await guest.run("n2", "pidof thicketd")
    await guest.run("n2", "kill -9 $(pidof thicketd)")

    async def started() -> bool:
        _, pid = await again.run("n2", "pidof thicketd")
        return bool(pid.strip()) and pid != before

    await guest.until(started, "the daemon of n2 starts again")
    await guest.whole()
    assert guest.status("n2", "identity", "source") == "chip"
    assert guest.address("n2") == lab.state.nodes["n2"].expected_address

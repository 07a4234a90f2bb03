# SPDX-License-Identifier: Apache-2.0
"""Saves a running lab, and wakes one that was saved."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import time
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from meshlab.lab import ssh
from meshlab.lab.copies import copy_sparse, occupied
from meshlab.lab.errors import LabError
from meshlab.lab.fleet import FOLDER
from meshlab.lab.node import Node
from meshlab.lab.saved import (
    DESCRIPTION,
    FORMAT,
    IMAGES,
    MEMORY,
    PASSPHRASE,
    SavedLab,
    SavedNode,
    files_of,
    new_folder,
    saved_path,
    saved_root,
    spec_to_json,
    taken,
)
from meshlab.lab.state import Kind, get
from meshlab.machine.given import Given
from meshlab.machine.qemu import MachineError
from meshlab.medium.config import STATE_NAME
from meshlab.wire.rpc import RpcError
from thicket import __version__

if TYPE_CHECKING:
    from meshlab.lab.lab import Lab
    from meshlab.lab.parts import Parts

CHIP_PATIENCE = 60.0
"""Seconds, as the nodes are given them, within which all chips are asleep at once: each is awake
for a second at most."""
CHIP_PAUSE = 0.1

AIR_PATIENCE = 10.0
"""Seconds, as the medium is given them, that machines wait for its connections before they wake."""

MARGIN = 64 << 20
"""Bytes that a save leaves free on the disk."""


class Saved(NamedTuple):
    """A save that was made."""

    path: Path
    size: int
    """Bytes on the disk."""
    paused: float
    """Seconds for which the nodes stood still."""


async def save(lab: Lab, name: str) -> Saved:
    """Save a running lab, which then goes on.

    All nodes are paused at one moment, so that nothing happens in one that another has not seen.

    :param lab: The lab.
    :param name: The name of the save.
    :raises LabError: when it cannot be saved; the lab goes on.
    """
    cache = lab.directory.parents[1]
    try:
        if saved_path(name, cache).exists():
            raise LabError(taken(name))
    except ValueError as error:
        raise LabError(str(error)) from None
    async with contextlib.AsyncExitStack() as stack:
        for node in lab.nodes.values():
            await stack.enter_async_context(node.lock)  # none is switched on or off meanwhile
        _check_nodes(lab)
        _check_room(lab, saved_root(cache))
        with new_folder(name, cache) as folder:
            kept = await asyncio.to_thread(_keep_images, lab, folder)
            paused = await _keep_nodes(lab, folder, kept)
            size = await asyncio.to_thread(occupied, folder)
    lab.journal.tell(
        Kind.CHANGE,
        f"saved as {name!r}: {size >> 20} MiB; the nodes stood still for {paused:.1f} s",
    )
    lab.pace.lively()
    return Saved(saved_path(name, cache), size, paused)


def _check_nodes(lab: Lab) -> None:
    for node in lab.nodes.values():
        if node.state.power not in ("running", "off"):
            raise LabError(f"{node.state.name} is {node.state.power}: save when it is on or off")
        if node.state.power == "running" and len(node.running().ports):
            raise LabError(
                f"somebody is connected with {node.state.name} (`meshlab ssh`, `cp`, `cable`, "
                "`thicket --lab`): save when that has ended"
            )


def _check_room(lab: Lab, root: Path) -> None:
    needed = MARGIN
    for node in lab.nodes.values():
        needed += sum(occupied(path) for path in files_of(node.directory))
        if node.machine is not None and node.state.power == "running":
            needed += node.machine.own_kib() << 10
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if free < needed:
        raise LabError(
            f"a save needs up to {needed >> 20} MiB, and there are {free >> 20} MiB free in "
            f"{root}: make room, for example with `meshlab saved --remove NAME`"
        )


class _Kept(NamedTuple):
    """The images of a save."""

    images: list[dict[str, Any]]
    numbers: dict[str, int]
    """The number of each node's."""


def _keep_images(lab: Lab, folder: Path) -> _Kept:
    kept = _Kept([], {})
    known: list[Parts] = []
    for name in lab.nodes:
        parts = lab.parts_of(name)
        if parts not in known:
            place = folder / IMAGES / str(len(known))
            place.mkdir(parents=True)
            kept.images.append(parts.keep_image(place))
            known.append(parts)
        kept.numbers[name] = known.index(parts)
    return kept


async def _keep_nodes(lab: Lab, folder: Path, kept: _Kept) -> float:
    """Write everything but the images.

    :returns: for how many seconds the nodes stood still.
    """
    running = [node for node in lab.nodes.values() if node.state.power == "running"]
    limit = asyncio.Semaphore(len(os.sched_getaffinity(0)))
    nodes: dict[str, SavedNode] = {}

    async def keep(node: Node) -> None:
        async with limit:
            place = folder / node.state.name
            place.mkdir()
            machine = None
            if node in running:
                machine = await node.running().save(place / MEMORY)
            await asyncio.to_thread(copy_sparse, files_of(node.directory), place)
        state = node.state
        nodes[state.name] = SavedNode(
            power=state.power,
            config=node.config,
            position=state.position,
            chip_fault=state.chip_fault,
            image=kept.numbers[state.name],
            machine=machine,
        )

    begun = time.monotonic()
    try:
        await _pause(running)
        begun = time.monotonic()
        await _all(keep(node) for node in lab.nodes.values())
        for name in (PASSPHRASE, STATE_NAME):
            with contextlib.suppress(FileNotFoundError):
                shutil.copy2(lab.directory / name, folder / name)
        for name in (FOLDER, ssh.FOLDER):
            if (lab.directory / name).is_dir():
                shutil.copytree(lab.directory / name, folder / name)
    except (LabError, MachineError, RpcError, OSError) as error:
        raise LabError(f"the lab is not saved: {error}") from error
    finally:
        await _go_on(running)
        paused = time.monotonic() - begun
    with contextlib.suppress(RpcError):
        # What the pause did to frames on their way is nothing that the air did.
        await lab.air.call("reset_stats")
    _describe(lab, folder, kept, nodes)
    return paused


def _describe(lab: Lab, folder: Path, kept: _Kept, nodes: dict[str, SavedNode]) -> None:
    files = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    value = {
        "format": FORMAT,
        "version": __version__,
        "saved": time.strftime("%Y-%m-%d %H:%M"),
        "formed": lab.state.formed is not None,
        "spec": spec_to_json(lab.spec),
        "images": kept.images,
        "nodes": {name: nodes[name].to_json() for name in lab.nodes},
        "files": files,
    }
    (folder / DESCRIPTION).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


async def _all(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do everything, also when something fails, and raise what failed first."""
    for error in await asyncio.gather(*work, return_exceptions=True):
        if error is not None:
            raise error


async def _pause(nodes: list[Node]) -> None:
    """Pause the machines at a moment at which all chips are asleep.

    :raises LabError: when there is none.
    """
    had = Given(lambda: [node.running().pid for node in nodes])
    while True:
        await asyncio.gather(*(node.running().pause() for node in nodes))
        awake = [node.state.name for node in nodes if not node.chip.asleep]
        if not awake:
            return
        await _go_on(nodes)
        if had.seconds() >= CHIP_PATIENCE:
            raise LabError(f"the chips of {', '.join(awake)} do not go to sleep")
        await asyncio.sleep(CHIP_PAUSE)


async def _go_on(nodes: list[Node]) -> None:
    machines = [node.machine for node in nodes if node.machine is not None]
    # One that died meanwhile has told so itself.
    await asyncio.gather(*(machine.go_on() for machine in machines), return_exceptions=True)


async def wake(lab: Lab, saved: SavedLab) -> None:
    """Start the nodes of a lab as they were saved: all at once, when all are ready.

    :param lab: A lab that was unpacked.
    :param saved: The save.
    :raises LabError: when a node cannot be woken.
    """
    asleep = []
    for name, one in saved.nodes.items():
        node = lab.node(name)
        if one.machine is None:
            node.state.power = "off"
        else:
            asleep.append(node)
    lab.journal.tell(Kind.BOOT, f"{len(asleep)} nodes wake from {saved.path.name!r}")
    limit = asyncio.Semaphore(len(os.sched_getaffinity(0)))

    async def load(node: Node) -> None:
        machine = saved.nodes[node.state.name].machine
        assert machine is not None
        async with limit:
            await node.load(saved.path / node.state.name / MEMORY, machine)

    await _all(load(node) for node in asleep)
    await _on_air(lab, [node.state.name for node in asleep])
    await _all(node.go_on() for node in asleep)
    lab.pace.lively()


async def _on_air(lab: Lab, names: list[str]) -> None:
    """Wait until the medium has a connection to each machine: who runs without one hears nobody."""
    had = lab.given()
    while had.seconds() < AIR_PATIENCE:
        with contextlib.suppress(RpcError):
            status = await lab.air.call("status", patience=AIR_PATIENCE)
            if all(get(status, "nodes", name, "reachable") is not False for name in names):
                return
        await asyncio.sleep(0.05)

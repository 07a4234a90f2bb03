# SPDX-License-Identifier: Apache-2.0
"""Labs that were saved: folders ``$THICKET_CACHE/saved/<name>``.

A folder holds all that a lab needs to go on: ``lab.json``, the mesh's passphrase, the fleet's
authority, what was changed of the medium, the images in ``images/<number>``, and for each node its
disks, its chip and, if it was on, its memory. It appears by a rename when it is complete.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from host.cache import cache_root
from meshlab.lab import ssh
from meshlab.lab.copies import copy_sparse, occupied
from meshlab.lab.directory import clear_node
from meshlab.lab.errors import LabError
from meshlab.lab.fleet import FOLDER
from meshlab.lab.paths import check_name
from meshlab.lab.spec import Config, LabSpec, NodeSpec
from meshlab.lab.topology import Position, Topology
from meshlab.machine.suspend import SavedMachine
from meshlab.medium.config import STATE_NAME

FORMAT = 1
"""Of ``lab.json`` and of the folder."""
DESCRIPTION = "lab.json"
IMAGES = "images"
MEMORY = "memory"
"""The file of a node with what its machine was."""
PASSPHRASE = "passphrase"


@dataclass(frozen=True)
class SavedNode:
    """What there is to know of a node, besides its files."""

    power: str
    """``running``, or ``off``."""
    config: Config
    """Its configuration in force."""
    position: Position
    chip_fault: str | None
    image: int
    """The number of its image."""
    machine: SavedMachine | None
    """What there is to know of its memory; ``None``: it was off."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values; ``from_json`` is the way back."""
        machine = None if self.machine is None else self.machine.to_json()
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**plain, "machine": machine}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return what ``to_json`` described.

        :raises TypeError: or KeyError, when it describes something else.
        """
        machine = value["machine"]
        plain = {**value, "position": tuple(value["position"])}
        plain["machine"] = None if machine is None else SavedMachine.from_json(machine)
        return cls(**plain)


def saved_root(cache: Path | None = None) -> Path:
    """Return the folder that holds one folder per saved lab."""
    return (cache or cache_root()) / "saved"


def saved_path(name: str, cache: Path | None = None) -> Path:
    """Return the folder of the saved lab ``name``.

    :raises ValueError: when the name could not be a folder of its own.
    """
    return saved_root(cache) / check_name(name, "of a saved lab")


def saved_names(cache: Path | None = None) -> list[str]:
    """Return the names of all saved labs."""
    return sorted(path.parent.name for path in saved_root(cache).glob(f"[!.]*/{DESCRIPTION}"))


def files_of(directory: Path) -> list[Path]:
    """Return the files of a node that outlive a run: its disks, its chip."""
    return [
        path
        for path in sorted(directory.iterdir())
        if path.is_file() and path.suffix not in (".log", ".sock", ".1")
    ]


class SavedLab:
    """A saved lab that is in use: it cannot be removed until this is closed.

    :param path: Its folder.
    :param value: What ``lab.json`` says.
    :param lock: A descriptor that holds it.
    """

    def __init__(self, path: Path, value: Mapping[str, Any], lock: int) -> None:
        self.path = path
        self.value = value
        self.nodes = {name: SavedNode.from_json(one) for name, one in value["nodes"].items()}
        self._lock: int | None = lock

    @classmethod
    def open(cls, name: str, cache: Path | None = None) -> Self:
        """Open a saved lab.

        :raises LabError: when there is none of this name, or it cannot be used.
        """
        path = saved_path(name, cache)
        try:
            lock = os.open(path / DESCRIPTION, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            known = ", ".join(saved_names(cache))
            there = f"there are {known}" if known else "there is none"
            raise LabError(f"no lab was saved as {name!r}: {there}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return cls(path, _described(path), lock)
        except BlockingIOError:
            os.close(lock)
            raise LabError(f"the saved lab {name!r} is being removed") from None
        except BaseException:
            os.close(lock)
            raise

    def close(self) -> None:
        """Let go of it. May be called twice."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def spec(self, name: str) -> LabSpec:
        """Return what to build: a lab of this name."""
        value = self.value["spec"]
        shape = value["topology"]
        links = {(a, b): snr for a, b, snr in shape["links"]}
        positions = {node: (x, y) for node, (x, y) in shape["positions"].items()}
        return LabSpec(
            Topology(shape["kind"], shape["seed"], positions, links),
            name=name,
            security=value["security"],
            nodes={node: NodeSpec(**one) for node, one in value["nodes"].items()},
            config=value["config"],
            propagation=value["propagation"],
            fading=value["fading"],
            decoding=value["decoding"],
            ht=value["ht"],
            resume=self,
        )

    def unpack(self, directory: Path, run: str) -> None:
        """Put everything but memory and images into the directory of a lab that nobody runs.

        :param directory: The lab's directory.
        :param run: What the medium calls the run that begins.
        :raises LabError: when that cannot be done.
        """
        try:
            for path in (PASSPHRASE, FOLDER, ssh.FOLDER, STATE_NAME):
                _copy_over(self.path / path, directory / path)
            if (directory / STATE_NAME).exists():
                changed = json.loads((directory / STATE_NAME).read_text())
                (directory / STATE_NAME).write_text(json.dumps({**changed, "run": run}))
            for name in self.nodes:
                (directory / name).mkdir(exist_ok=True)
                clear_node(directory / name, keep=False)
                files = [each for each in files_of(self.path / name) if each.name != MEMORY]
                copy_sparse(files, directory / name)
        except (OSError, ValueError) as error:
            raise LabError(f"{self.path} cannot be unpacked: {error}") from error


def _copy_over(source: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.exists():
        shutil.copy2(source, target)


def _described(path: Path) -> dict[str, Any]:
    """Return what ``lab.json`` says, when all that it tells of is there.

    :raises LabError: when it is not.
    """
    try:
        value = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
        if value["format"] != FORMAT:
            raise LabError(
                f"{path} was saved by another version of the simulator (format "
                f"{value['format']}, this one has {FORMAT})"
            )
        for name, size in value["files"].items():
            found = (path / name).stat().st_size
            if found != size:
                raise LabError(f"{path / name} has {found} bytes instead of {size}: it is damaged")
        for one in value["nodes"].values():
            SavedNode.from_json(one)
    except FileNotFoundError as error:
        raise LabError(f"{error.filename} is missing: the saved lab is damaged") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        text = f"{type(error).__name__}: {error}"
        raise LabError(f"{path / DESCRIPTION} cannot be read: {text}") from error
    assert isinstance(value, dict)
    return value


def spec_to_json(spec: LabSpec) -> dict[str, Any]:
    """Return what ``SavedLab.spec`` needs."""
    shape = spec.topology
    return {
        "topology": {
            "kind": shape.kind,
            "seed": shape.seed,
            "positions": shape.positions,
            "links": [[a, b, snr] for (a, b), snr in shape.links.items()],
        },
        "security": spec.security,
        "nodes": {name: asdict(node) for name, node in spec.nodes.items()},
        "config": spec.config,
        "propagation": spec.propagation,
        "fading": spec.fading,
        "decoding": spec.decoding,
        "ht": spec.ht,
    }


@contextlib.contextmanager
def new_folder(name: str, cache: Path | None = None) -> Iterator[Path]:
    """Give a folder to fill, which becomes that of the saved lab ``name`` when nothing is raised.

    :raises LabError: when the name is taken.
    """
    path = saved_path(name, cache)
    with _alone(path.parent):
        fresh = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=path.parent))
        lock = os.open(fresh, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield fresh
        _sync(fresh)
        try:
            fresh.rename(path)  # an empty folder may be there: it is no save
        except OSError:
            raise LabError(taken(name)) from None
        _sync_one(path.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        os.close(lock)


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Be the only one that makes folders, and remove what saves left that were cut."""
    root.mkdir(parents=True, exist_ok=True)
    door = os.open(root, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(door, fcntl.LOCK_EX)
        for path in root.glob(".*"):
            try:
                lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # it has just become a save, or was given up
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # it is being written
            else:
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
        yield
    finally:
        os.close(door)


def taken(name: str) -> str:
    """Say that a name is taken."""
    return f"there is a saved lab {name!r} already: take another name, or remove that one first"


def _sync(folder: Path) -> None:
    """Wait until everything in a folder is on the disk."""
    for path in folder.rglob("*"):
        if not path.is_symlink():
            _sync_one(path)
    _sync_one(folder)


def _sync_one(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(names: Sequence[str], cache: Path | None = None) -> int:
    """Remove saved labs, all or none.

    :returns: How many bytes were freed.
    :raises LabError: when one is not there, or a lab runs from it.
    """
    locks = []
    try:
        for name in names:
            path = saved_path(name, cache)
            try:
                locks.append(os.open(path / DESCRIPTION, os.O_RDONLY | os.O_CLOEXEC))
                fcntl.flock(locks[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except FileNotFoundError:
                raise LabError(f"no lab was saved as {name!r}") from None
            except BlockingIOError:
                raise LabError(f"a lab runs from the saved lab {name!r}: end it first") from None
        freed = sum(occupied(saved_path(name, cache)) for name in names)
        for name in names:
            # It goes by a rename as well: what is half removed is no saved lab.
            path = saved_path(name, cache)
            path.rename(path.with_name(f".{name}.gone"))
        with _alone(saved_root(cache)):
            return freed
    finally:
        for lock in locks:
            os.close(lock)


def saves(cache: Path | None = None) -> Iterator[tuple[str, SavedLab | LabError, int]]:
    """Yield name, what there is to know, and bytes on the disk of every saved lab."""
    for name in saved_names(cache):
        size = occupied(saved_path(name, cache))
        try:
            found = SavedLab.open(name, cache)
        except LabError as error:
            yield name, error, size
        else:
            found.close()
            yield name, found, size

# SPDX-License-Identifier: Apache-2.0
"""A card with anything in the place of what a node keeps: pipes, folders, links, files for folders.

Nothing hangs, what is there counts as nothing, and what is kept anew takes its place.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest
from bundles_for_tests import update_key
from fleet_for_tests import CLOCK
from patience import PATIENCE
from test_fleet_links import FLEET
from test_update_exchange import SMALL, an_offer, described, folder_of
from test_update_fleet import Host as CardHost
from test_update_part import Host, Wire

from thicket.applications import app_state
from thicket.base import files
from thicket.base.paths import Paths
from thicket.cluster import passphrase_file
from thicket.config import load as config
from thicket.device.boot_record import BootRecord, Slot
from thicket.trust.service import read_lists
from thicket.trust.signed_beacon import next_start
from thicket.trust.standing import Standing
from thicket.update import fleet, install, journal, kept, service
from thicket.update.carrier import Carrier, CarrierError
from thicket.update.journal import Journal, Phase, Start
from thicket.update.judge import InstallError
from thicket.update.kept import Content, Kept
from thicket.update.offer import CHUNK
from thicket.update.store import Store, StoreError
from thicket.upkeep import last_run

T = TypeVar("T")


def soon(work: Callable[[], T]) -> T:
    """Return what work returns, or raise what it raises; fail where it hangs."""
    found: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "it hangs"
    if raised:
        raise raised[0]
    return found[0]


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    (path / "in" / "it").mkdir(parents=True)


def a_socket(path: Path) -> None:
    # the longest name of a socket is short
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):
        made.bind(path.name)


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to("nothing")


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


CLUTTER = [a_pipe, a_folder, a_socket, a_link_to_nothing, a_link_to_itself]
clutter = pytest.mark.parametrize("put", CLUTTER)
Put = Callable[[Path], None]


@clutter
def test_files_are_read_and_replaced(put: Put, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    put(path)
    with pytest.raises(OSError, match="kept"):
        soon(lambda: files.read_kept(str(path), 10))
    put(tmp_path / "kept.new")
    soon(lambda: files.write_atomically(str(path), b"new", own=True))
    assert path.read_bytes() == b"new"
    assert files.entries(str(tmp_path)) == ["kept"]


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(NotADirectoryError):
        files.make_folder(str(tmp_path / "a" / "b"))
    files.make_folder(str(tmp_path / "a"))
    files.make_folder(str(tmp_path / "a"))
    (tmp_path / "somebody").mkdir()
    (tmp_path / "somebody" / "diary").write_text("dear")
    (tmp_path / "a" / "c").symlink_to(tmp_path / "somebody")
    store = Store(str(tmp_path / "a" / "c"))
    store.keep(b"offer", [])
    store.keep(b"offer", [])
    assert files.entries(str(tmp_path / "a" / "c")) == ["offer"]
    assert files.entries(str(tmp_path / "somebody")) == ["diary"], "a link is not followed"
    (tmp_path / "a" / "b").symlink_to("nowhere")
    files.make_folder(str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").is_dir()
    host = CardHost(tmp_path / "root")
    shutil.rmtree(host.paths.data + fleet.FOLDER)
    Path(host.paths.data + fleet.FOLDER).write_text("")
    fleet._load(host.paths, standing(), Start(Slot.A, BootRecord()))
    shutil.rmtree(host.paths.data + fleet.OTHERS)
    Path(host.paths.data + fleet.OTHERS).write_text("")
    fleet._load(host.paths, standing(), Start(Slot.A, BootRecord()))


@clutter
def test_the_memory_of_updates(put: Put, tmp_path: Path) -> None:
    paths = Paths(str(tmp_path))
    folder = Path(paths.data, "update")
    folder.mkdir(parents=True)
    for name in ("bundles.json", "journal.json", "able.json", "starts"):
        put(folder / name)
    assert soon(lambda: kept.load(paths)) == Kept({}, {})
    memory = Kept({Slot.A: Content("a" * 64, "1", 0)}, {})
    soon(lambda: kept.save(paths, memory))
    assert kept.load(paths) == memory
    assert soon(lambda: journal.load(str(folder))) == Journal()
    written = Journal(b"o" * 32, phase=Phase.BEGUN, slot="B")
    soon(lambda: journal.keep(str(folder), written))
    assert journal.load(str(folder)) == written
    able = str(folder / "able.json")
    assert soon(lambda: service._read(able)) == b""
    soon(lambda: service._write(able, b"new"))
    assert service._read(able) == b"new"
    assert soon(lambda: next_start(str(folder / "starts"), CLOCK)) > 0


@clutter
def test_other_things_that_a_node_keeps(put: Put, tmp_path: Path) -> None:
    paths = Paths(str(tmp_path))
    Path(paths.last_good).parent.mkdir(parents=True, exist_ok=True)
    for path in (paths.last_good, paths.last_good_sum, last_run._history(paths)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        put(Path(path))
    put(tmp_path / "lists")
    put(Path(paths.data, "thicket/passphrase.json"))
    assert soon(lambda: config.load(paths)).source == "defaults"
    assert soon(lambda: last_run.read(paths)) == []
    assert soon(lambda: read_lists(str(tmp_path / "lists"))) == []
    host = cast(Any, SimpleNamespace(paths=paths))
    assert soon(lambda: passphrase_file.Kept(host)).done == ""


@clutter
def test_what_was_fetched(put: Put, tmp_path: Path) -> None:
    patch = described(SMALL, "")
    listed = described_list(SMALL)
    store = Store(str(tmp_path / "offered"))
    for name in ("offer", f"{patch.sha256}.list", f"{patch.sha256}.patch", "else"):
        (tmp_path / "offered").mkdir(exist_ok=True)
        put(tmp_path / "offered" / name)
    assert soon(store.offer) == b""
    assert soon(lambda: store.open(patch)) is None
    soon(lambda: store.keep(b"offer", [patch]))
    assert store.offer() == b"offer"
    try:
        held = soon(lambda: store.begin(patch, listed))
    except StoreError:
        held = soon(lambda: store.begin(patch, listed))  # the next time, a minute later
    for number in range(patch.chunk_count):
        held.write(number, SMALL[number * CHUNK : (number + 1) * CHUNK])
    held.finish()
    assert files.entries(store.folder) == sorted(
        ["offer", f"{patch.sha256}.list", f"{patch.sha256}.patch"]
    )
    Path(held.path).unlink()
    put(Path(held.path))
    with pytest.raises(StoreError):
        soon(lambda: held.write(0, SMALL[:CHUNK]))
    assert soon(lambda: held.read(0)) is None
    soon(held.look)
    assert held.have == 0
    with pytest.raises(StoreError):
        soon(held.finish)


def described_list(data: bytes) -> bytes:
    return b"".join(sha256(data[at : at + CHUNK]).digest() for at in range(0, len(data), CHUNK))


@clutter
def test_applications(put: Put, tmp_path: Path) -> None:
    folder = tmp_path / "lamp"
    folder.mkdir()
    put(folder / "state.json")
    put(folder / "else.app")
    assert soon(lambda: app_state.load(str(folder))) == app_state.NOTHING
    state = app_state.NOTHING._replace(trial=1)
    soon(lambda: app_state.save(str(folder), state))
    assert app_state.load(str(folder)) == state
    soon(lambda: app_state.tidy(str(folder), state))
    assert files.entries(str(folder)) == ["state.json"]


@clutter
async def test_a_folder_that_is_offered(put: Put, tmp_path: Path) -> None:
    offer = an_offer(1, described(SMALL, ""))
    folder = Path(folder_of(tmp_path / "a", offer, SMALL))
    put(folder / "something")
    carrier = Carrier(Host(), Store(str(tmp_path / "b")), Wire())
    assert await carrier.offer_folder(str(folder)) == [0]
    (folder / "offer").unlink()
    put(folder / "offer")
    with pytest.raises(CarrierError, match="the folder is needed that `thicket update offer`"):
        await carrier.offer_folder(str(folder))


@clutter
def test_a_bundle_that_is_to_be_installed(put: Put, tmp_path: Path) -> None:
    put(tmp_path / "new.raucb")
    with pytest.raises(InstallError, match="raucb: "):
        soon(lambda: install.read(str(tmp_path / "new.raucb")))


# -- contents that were never written


@pytest.mark.parametrize("slot", ["", "C", "a"])
@pytest.mark.parametrize("phase", [p for p in Phase if p not in (Phase.NONE, Phase.FAILED)])
def test_a_journal_of_a_slot_that_there_is_not_restarts_no_node(slot: str, phase: Phase) -> None:
    written = Journal(b"o" * 32, "ab" * 32, "2.0", phase, slot)
    found = journal.unpack(journal.pack(written))
    assert found == Journal()
    assert journal.after_restart(found, Start(Slot.A, BootRecord())) == Journal()


def test_a_lane_of_the_own_image_is_opened_once(tmp_path: Path) -> None:
    """What a card of another kind of device has left is not taken for another lane."""
    host = CardHost(tmp_path)
    others = Path(host.paths.data + fleet.OTHERS)
    for name in ("image-thicket-rpi64", "image-else", "app-lamp", "image-", "else"):
        (others / name).mkdir(parents=True)
    start = Start(Slot.A, BootRecord())
    found = fleet._load(host.paths, standing(), start)
    assert found.own == "image/thicket-rpi64"
    assert found.others == ["app/lamp", "image/else"]


def standing() -> Standing:
    made = SimpleNamespace(fleet=FLEET.fleet, clock=lambda: CLOCK, key=update_key(FLEET))
    return cast(Standing, made)

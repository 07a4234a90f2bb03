# SPDX-License-Identifier: Apache-2.0
"""thicket.trust.service: fleets of real daemons with chips, certificates and revocations."""

import asyncio
import base64
import os
import re
import signal
from collections.abc import Callable
from ipaddress import IPv6Network
from pathlib import Path

import pytest
from daemons import PREFIX, Fleet, NamespaceNode, Secured
from patience import PATIENCE

from authority.authority import Authority
from meshlab.chip.atecc608 import Atecc608
from meshlab.chip.driver import open_chip
from meshlab.chip.state import serial_for
from thicket.base.paths import Paths
from thicket.base.problems import Problems
from thicket.config.schema import Settings
from thicket.control.client import ClientError
from thicket.identity.aio import AsyncAtecc
from thicket.identity.chip.errors import ChipAbsentError, ChipRefusedError
from thicket.identity.source import Identity
from thicket.trust import clock
from thicket.trust.certificates import CertificateError
from thicket.trust.service import FAILURES, Trust, failure
from thicket.trust.verify import RefusedError


def trust(node: NamespaceNode) -> dict[str, object]:
    return node.ask("status")["trust"]  # type: ignore[no-any-return]


def problem(node: NamespaceNode, code: str) -> str:
    """The words of the problem of the part ``trust`` with this code; empty when there is none."""
    found = [p for p in node.ask("status")["problems"] if (p["part"], p["code"]) == ("trust", code)]
    return found[0]["message"] if found else ""


def revoke(secured: Secured, *names: str) -> str:
    return base64.b64encode(secured.authority.revocations.revoke(list(names))).decode()


def test_a_secured_cluster_and_a_node_that_is_revoked(fleet: Fleet) -> None:
    secured = Secured(fleet)
    a, b, c = (secured.add() for _ in range(3))
    fleet.until(lambda: fleet.formed(a, b, c), "all see each other", PATIENCE)
    found = trust(a)
    assert found["state"] == "ready"
    assert (found["fleet"], found["device"]) == ("acme", a.serial.hex())
    assert found["software"] is False
    assert found["revocations"] is None
    assert a.ask("status")["cluster"]["security"] == "tls"

    # One node is told; the connections that stand end, everywhere, and the list stays.
    answer = a.ask("revocations-import", list=revoke(secured, c.serial.hex()))
    assert (answer["taken"], answer["names"]) == (True, 1)
    fleet.until(lambda: fleet.formed(a, b) and not c.members(), "c is out", PATIENCE)
    fleet.until(lambda: trust(b)["revocations"] == trust(a)["revocations"], "b has the list")
    again = a.ask("revocations-import", list=base64.b64encode(_list_of(a)).decode())
    assert again["taken"] is False
    fleet.until(
        lambda: a.ask("status")["cluster"]["refused"].get("revoked"), "a counts it", PATIENCE
    )
    fleet.until(lambda: "revoked" in a.log() and c.serial.hex() in a.log(), "a says who and why")
    fleet.until(lambda: "revoked" in c.log(), "c hears why", PATIENCE)
    assert b.stop() == 0
    b.start()
    fleet.until(lambda: fleet.formed(a, b), "b comes back", PATIENCE)
    fleet.until(lambda: trust(b)["revocations"] == trust(a)["revocations"], "b kept the list")
    assert not c.members()

    # A node that was away, or is new, gets it from the others.
    d = secured.add()
    fleet.until(lambda: fleet.formed(a, b, d), "d joins", PATIENCE)
    fleet.until(lambda: trust(d)["revocations"] == trust(a)["revocations"], "d has the list")

    # Neither a list of another fleet nor a damaged one is taken.
    other = Secured(fleet, "other")
    for data, why in (
        (other.authority.revocations.packed, "signature"),
        (_list_of(a)[:-1] + b"]", "signature"),
        (b"thicket", "not a list"),
    ):
        with pytest.raises(ClientError, match=why):
            a.ask("revocations-import", list=base64.b64encode(data).decode())
    with pytest.raises(ClientError, match="not taken"):
        a.ask("revocations-import", list="?")
    for node in (a, b, d):
        assert "Traceback" not in node.log(), node.log()


def _list_of(node: NamespaceNode) -> bytes:
    return (node.folder / "data/thicket/revocations.bin").read_bytes()


def test_a_revoked_signer_takes_its_devices_with_it(fleet: Fleet) -> None:
    secured = Secured(fleet)
    a = secured.add()
    assert secured.authority.signer() == 2
    b, c = secured.add(), secured.add()
    fleet.until(lambda: fleet.formed(a, b, c), "all see each other", PATIENCE)
    b.ask("revocations-import", list=revoke(secured, "Signer 0001"))
    fleet.until(lambda: fleet.formed(b, c) and not a.members(), "a is out", PATIENCE)
    fleet.until(lambda: "revoked" in a.log(), "a hears why", PATIENCE)
    # A node that gets the list knows what it means for itself.
    a.ask("revocations-import", list=base64.b64encode(_list_of(b)).decode())
    assert "revoked" in problem(a, "revoked")


def test_a_node_is_enrolled_while_it_runs(fleet: Fleet) -> None:
    secured = Secured(fleet)
    a, b = secured.add(), secured.add(enroll=False)
    fleet.until(lambda: problem(b, "not-enrolled"), "b says what it lacks")
    assert "thicket ca enroll" in problem(b, "not-enrolled")
    assert not a.members()
    # The emulated chip lies in a file, which its daemon must not have open at the same time.
    assert b.stop() == 0
    secured.authority.enroll_chip(
        open_chip(b.folder / "chip.json"), write=True, show=lambda _: None
    )
    b.start()
    fleet.until(lambda: fleet.formed(a, b), "b is in", PATIENCE)
    assert not problem(b, "not-enrolled")


def test_a_chip_of_another_fleet_proves_nothing_here(fleet: Fleet) -> None:
    secured = Secured(fleet)
    other = Secured(fleet, "other")
    a, b = secured.add(), secured.add(enrolled_by=other)
    fleet.until(lambda: problem(b, "not-enrolled"), "b says what it lacks")
    assert not a.members()


def test_without_a_fleet_nobody_is_let_in_and_one_may_come(fleet: Fleet) -> None:
    secured = Secured(fleet)
    a, b = secured.add(), secured.add(start=False)
    text = Path(b.paths.image).read_text()
    Path(b.paths.image).write_text('[mesh]\nsecurity = "open"\n')
    b.start()
    fleet.until(lambda: problem(b, "no-fleet"), "b says what it lacks")
    assert trust(b)["state"] == "no-fleet"
    assert b.ask("status")["state"] == "degraded"
    with pytest.raises(ClientError, match="no fleet"):
        b.ask("revocations-import", list="AAAA")
    Path(b.paths.device).write_text(text)
    assert "trust.root" in b.ask("reload")["changed"]
    fleet.until(lambda: fleet.formed(a, b), "b is in", PATIENCE)
    assert not problem(b, "no-fleet")
    # And out of it again.
    Path(b.paths.device).write_text("# defaults\n")
    b.ask("reload")
    fleet.until(lambda: not a.members(), "a notices", PATIENCE)
    assert problem(b, "no-fleet")


def test_a_cookie_alone_is_not_let_in(fleet: Fleet) -> None:
    secured = Secured(fleet)
    a = secured.add()
    plain = fleet.add('[discovery]\nbeacon = "both"\n')
    address = a.name.partition("@")[2]
    fleet.until(lambda: trust(a)["state"] == "ready", "a is ready", PATIENCE)
    with pytest.raises(ClientError):
        plain.ask("ping", node=address)
    with pytest.raises(ClientError):
        a.ask("ping", node=plain.name)
    assert not a.members()
    assert not plain.members()


def test_a_damaged_list_on_the_disk_is_replaced_by_the_others(fleet: Fleet) -> None:
    secured = Secured(fleet)
    a, b = secured.add(), secured.add(start=False)
    fleet.until(lambda: trust(a)["state"] == "ready", "a is ready", PATIENCE)
    a.ask("revocations-import", list=revoke(secured))
    (b.folder / "data/thicket/revocations.bin").write_bytes(b"rubbish")
    b.start()
    fleet.until(lambda: fleet.formed(a, b), "both see each other", PATIENCE)
    fleet.until(lambda: trust(b)["revocations"] == trust(a)["revocations"], "b has the list")
    assert "revocations.bin is not used" in b.log()
    fleet.until(lambda: _list_of(b) == _list_of(a), "b keeps the list")


def test_sighup_makes_new_credentials_and_keeps_connections(fleet: Fleet) -> None:
    secured = Secured(fleet)
    a, b = secured.add(), secured.add()
    fleet.until(lambda: fleet.formed(a, b), "both see each other", PATIENCE)
    since = a.ask("status")["cluster"]["nodes"][0]["since"]
    assert b.process is not None
    b.process.send_signal(signal.SIGHUP)
    fleet.until(lambda: "no change" in b.log(), "b has read its file again")
    assert b.ask("ping", node=a.name)["milliseconds"] > 0
    assert a.ask("status")["cluster"]["nodes"][0]["since"] == since


async def test_a_part_that_is_started_again_keeps_what_is_in_use(tmp_path: Path) -> None:
    """The cluster holds the TLS contexts: they must get the certificates that come later."""
    serial = serial_for("service", 1)
    authority = Authority(tmp_path / "authority", lambda _: "")
    authority.init("acme", IPv6Network(f"{PREFIX}::/64"), lab=True)
    Atecc608(serial, tmp_path / "chip.json")
    authority.enroll_chip(open_chip(tmp_path / "chip.json"), write=True, show=lambda _: None)
    root = (authority.folder / "root.pem").read_text()
    settings = [Settings({"trust": {"root": root}})]
    who = Identity("chip", serial[2:8], serial=serial, chip={"model": "ATECC608A"})
    trust = Trust(
        Paths(str(tmp_path)),
        lambda: settings[0],
        who,
        Problems(lambda: None),
        lambda: None,
        open_chip=lambda _: AsyncAtecc(open_chip(tmp_path / "chip.json")),
    )

    async def run(until: Callable[[], object]) -> None:
        task = asyncio.create_task(trust.run())
        async with asyncio.timeout(PATIENCE):
            while not until():  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait({task})

    await run(trust.ready.is_set)
    tls, beacons, standing = trust.tls, trust.beacons, trust.standing
    assert tls is not None
    assert standing is not None
    first = standing.credentials
    assert trust.take_list(authority.revocations.revoke([serial.hex()]), "a test")
    assert trust.status()["state"] == "revoked"
    assert standing.lists.names == {serial.hex()}, "also while nothing runs"
    await run(lambda: standing.credentials is not first)
    assert trust.standing is standing
    assert trust.tls is tls
    assert trust.beacons is beacons
    assert trust.status()["state"] == "revoked"
    # Another fleet, or none, is another matter.
    settings[0] = Settings()
    await run(lambda: trust.status()["state"] == "no-fleet")
    assert not any((trust.tls, trust.beacons, trust.standing))
    assert not trust.ready.is_set()


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (RefusedError("expired", "it"), "refused", "every other node would refuse this one: .*it"),
        (CertificateError("no file"), "not-enrolled", "^no file$"),
        (ChipRefusedError("slot 9"), "not-enrolled", "fleet 'acme': .*slot 9.*thicket ca enroll"),
        (ChipAbsentError("nobody answers"), "chip", "cannot prove its identity: nobody answers"),
        (OSError("the disk"), "chip", "cannot prove its identity: the disk"),
    ],
)
def test_why_a_node_cannot_prove_itself(error: Exception, code: str, words: str) -> None:
    found, message = failure(error, "acme")
    assert found == code
    assert found in FAILURES
    assert re.search(words, message)


def test_the_clock_is_believed_only_when_a_service_has_set_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "synchronised", lambda _root: False)
    read = clock.SystemClock(str(tmp_path)).read()
    assert read.now is None
    assert read.floor.year == 2024
    release = tmp_path / clock.IMAGE.lstrip("/")
    release.parent.mkdir(parents=True)
    release.touch()
    os.utime(release, (1_900_000_000, 1_900_000_000))
    assert clock.SystemClock(str(tmp_path)).read().floor.timestamp() == 1_900_000_000
    os.utime(release, (0, 0))  # an image without times
    assert clock.SystemClock(str(tmp_path)).read().floor.year == 2024
    monkeypatch.setattr(clock, "synchronised", lambda _root: True)
    assert clock.SystemClock(str(tmp_path)).read().now is not None


def test_what_the_kernel_says_of_the_clock_can_be_asked() -> None:
    assert clock.synchronised() in {True, False}

# SPDX-License-Identifier: Apache-2.0
"""Real daemons with the real chronyd, one of which is told the time; the machine's clock stays."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import Fleet, NamespaceNode, Secured, fleet_in

from thicket.base.files import read
from thicket.control.client import ClientError

pytestmark = pytest.mark.skipif(
    shutil.which("chronyd") is None or os.geteuid() != 0, reason="needs chronyd, and root"
)


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    # chronyc's socket is in it, whose path has 107 characters at most (unix(7)).
    with (
        tempfile.TemporaryDirectory(prefix="time-", ignore_cleanup_errors=True) as folder,
        fleet_in(Path(folder)) as made,
    ):
        yield made


def told(node: NamespaceNode) -> dict[str, Any]:
    found: dict[str, Any] = node.ask("status")["time"]
    return found


def address(node: NamespaceNode) -> str:
    return node.name.partition("@")[2]


def test_nodes_follow_one_that_is_told_the_time(fleet: Fleet) -> None:
    secured = Secured(fleet)
    nodes = [secured.add(start=False) for _ in range(3)]
    for node in nodes:
        (node.folder / "chrony").touch()
        node.start()
    fleet.until(lambda: fleet.formed(*nodes), "the cluster has formed")

    def guess() -> bool:
        found = [told(node) for node in nodes]
        return (
            all(one["state"] == "guess" for one in found)
            and sum(one["source"] is None for one in found) == 1
        )

    fleet.until(guess, "one leads, and the others follow its guess")
    last = nodes[-1]
    # What is certain is no matter of opinion.
    with pytest.raises(ClientError, match="authority"):
        last.ask("time", set=1_700_000_000)
    assert last.ask("time", set=time.time())["state"] == "held"

    def known() -> bool:
        return all(
            told(node)["known"] and told(node)["source"] == address(last) for node in nodes[:2]
        )

    fleet.until(known, "the others follow the one that knows")
    for node in nodes[:2]:
        assert told(node)["origin"] == address(last)
        assert (read(f"{node.folder}/run/thicket/clock") or "").startswith("known ")
        keys = (read(f"{node.folder}/run/thicket/time/keys") or "").splitlines()
        assert all(" AES128 HEX:" in line for line in keys)

    # Without it they know it still, and the next one leads.
    last.stop()
    rest = nodes[:2]

    def held() -> bool:
        found = [told(node) for node in rest]
        sources = {one["source"] for one in found}
        return all(one["known"] for one in found) and len(sources & {None}) == 1 < len(sources)

    fleet.until(held, "one of the two follows the other")
    # A daemon that starts anew has not forgotten it.
    rest[0].stop()
    rest[0].start()
    fleet.until(lambda: told(rest[0])["known"], "it knows the time again")
    assert not [p for p in rest[0].ask("status")["problems"] if p["part"] == "time"]

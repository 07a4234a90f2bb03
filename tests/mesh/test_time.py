# SPDX-License-Identifier: Apache-2.0
"""The time of a mesh without uplink: a guess that all share, a person's word that all follow, and a
member that lies."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from meshlab.lab.lab import Lab
from meshlab.lab.testing import Nodes

MESH = "time"
NAMES = ("n1", "n2", "n3")
TOLD = datetime(2031, 5, 6, 7, 8, tzinfo=UTC)
"""What the nodes are told: within the certificates of a lab, and later than any image."""


async def times(nodes: Nodes) -> dict[str, dict[str, Any]]:
    return {name: await nodes.now(name, "time") for name in NAMES}


async def clock(nodes: Nodes, name: str) -> datetime:
    return datetime.fromtimestamp(int(await nodes.run(name, "date +%s")), UTC)


async def apart(nodes: Nodes) -> float:
    """Return the seconds between the first and the last clock, and what asking takes."""
    found = [await clock(nodes, name) for name in NAMES]
    return (max(found) - min(found)).total_seconds()


async def tell(nodes: Nodes) -> None:
    """Tell n3 the time, unless the nodes know one."""
    if not await nodes.now("n3", "time", "known"):
        said = await nodes.run("n3", f"thicket time set {TOLD:%Y-%m-%dT%H:%M:%SZ}")
        assert "a person" in said

    async def known() -> bool:
        return all(one["known"] for one in (await times(nodes)).values())

    await nodes.until(known, "all know the time")


async def test_nodes_agree_on_a_guess_until_one_is_told_the_time(nodes: Nodes) -> None:
    await nodes.run("n2", "date -s @$(($(date +%s) + 5000))")  # its saved time was later

    async def agreed() -> bool:
        told = await times(nodes)
        leads = [name for name, one in told.items() if one.get("source") is None]
        return (
            len(leads) == 1
            and all(one["state"] == "guess" and not one["known"] for one in told.values())
            and await apart(nodes) < 600
        )

    await nodes.until(agreed, "all have the latest time, from one of them")
    for name in NAMES:
        assert nodes.problems(name, "time") == []
        assert (await nodes.run(name, "cat /run/thicket/clock")).split() == ["guess"]

    await tell(nodes)

    async def followed() -> bool:
        told = await times(nodes)
        return {told[name]["source"] for name in ("n1", "n2")} == {nodes.address("n3")}

    await nodes.until(followed, "the others follow n3")
    assert await apart(nodes) < 600
    for name in NAMES:
        assert await clock(nodes, name) >= TOLD
        assert abs(await nodes.now(name, "time", "offset")) < 1
        assert (await nodes.run(name, "cat /run/thicket/clock")).split()[0] == "known"
    await nodes.says("n1", "thicket time", f"by the node {nodes.address('n3')}", "stratum")
    await nodes.says("n1", "thicket status", "2031-05-06")

    # What is known of the time is what certificates are made by: a new one ends with the day.
    async def renewed() -> bool:
        until = datetime.fromisoformat(await nodes.now("n1", "trust", "until"))
        return until < TOLD + timedelta(days=2)

    await nodes.until(renewed, "n1 has a certificate for a day")
    await nodes.whole()


async def test_a_member_that_lies_is_outvoted_and_who_starts_anew_learns_the_time(
    lab: Lab, nodes: Nodes
) -> None:
    nodes.unfit = "its nodes know another time than their host"
    await tell(nodes)
    # No clock goes below what is certain.
    status, output = await lab.run("n1", "thicket time set 2024-03-01T00:00:00Z")
    assert status == 1
    assert "authority" in output
    assert await clock(nodes, "n1") >= TOLD

    # n1 says that a person has told it a time half a year ahead; the other two know better.
    lie = TOLD + timedelta(days=180)
    await nodes.run("n1", f"thicket time set {lie:%Y-%m-%dT%H:%M:%SZ}")

    async def refused() -> bool:
        told = [await nodes.now(name, "problems") for name in ("n2", "n3")]
        return any(p["part"] == "time" and p["code"] == "refused" for one in told for p in one)

    await nodes.until(refused, "it is refused")
    for name in ("n2", "n3"):
        assert await clock(nodes, name) < TOLD + timedelta(days=1)
        assert await nodes.now(name, "time", "known")

    await lab.kill("n1")
    await lab.kill("n2")
    await lab.power_on("n2")

    async def known() -> bool:
        told = await nodes.now("n2", "time")
        return told is not None and bool(told["known"]) and told["by"] == "nodes"

    await nodes.until(known, "n2 knows the time again")
    assert TOLD <= await clock(nodes, "n2") < TOLD + timedelta(days=1)

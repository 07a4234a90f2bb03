# SPDX-License-Identifier: Apache-2.0
"""Who fetches what from whom, in virtual time: lines, grids, partitions, rubbish and restarts."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mesh_of_updates import HOP, LOSS, METRIC, Mesh

from thicket.update import spread
from thicket.update.offer import CHUNK, Offer, Patch, Plan, Target
from thicket.update.spread import Air, Fetch, Listing, Offering, Peers, Serve, Teller, Way

#: Chunks of 0.22 MB, 5 MB and 13 MB.
DELTA, SOME, WHOLE = 7, 150, 400
#: Seconds of air that a patch takes on one hop, with what is sent again.
BUNDLE = HOP / (1 - LOSS)


def alone(count: int) -> float:
    """Seconds until one node has a patch from another, with nobody beside them."""
    mesh = Mesh(count)
    mesh.grid(2, 1)
    mesh.start("n0")
    mesh.start("n1")
    return mesh.run(mesh.complete)


def check(mesh: Mesh) -> None:
    """What holds in every mesh."""
    for node in mesh.nodes.values():
        assert set(node.got.values()) <= {1}, f"{node.name} got a chunk twice"
        assert node.most_uploads <= spread.UPLOADS


@pytest.mark.parametrize(
    ("count", "full"), [(DELTA, True), (DELTA, False), (SOME, False), (WHOLE, True)]
)
def test_a_grid_takes_a_patch(count: int, full: bool) -> None:
    mesh = Mesh(count, full=full)
    mesh.grid(4, 2)
    for name in mesh.nodes:
        mesh.start(name)
    took = mesh.run(mesh.complete)
    check(mesh)
    one = alone(count)
    air = [node.air / (count * BUNDLE) for node in mesh.nodes.values()]
    print(
        f"{count} chunks, {'full' if full else 'neighbours'}: {took:.1f} s, one node alone "
        f"{one:.1f} s; air {sum(air) / len(air):.2f} patches a node on average, {max(air):.2f} at "
        "most"
    )
    assert sum(air) / len(air) <= 1.3
    # small ones are bound by the air, see test_update_spread_times.py
    assert took <= max(2 * one, one + len(mesh.nodes) * count * BUNDLE)


def test_a_line_is_a_pipeline() -> None:
    mesh = Mesh(SOME)
    mesh.grid(8, 1)
    for name in mesh.nodes:
        mesh.start(name)
    took = mesh.run(mesh.complete)
    check(mesh)
    assert took <= 2 * alone(SOME)
    # nobody got it over more than one hop
    assert max(node.air for node in mesh.nodes.values()) < 1.1 * SOME * BUNDLE


def test_a_partition_heals() -> None:
    mesh = Mesh(SOME)
    mesh.grid(4, 2)
    for name in mesh.nodes:
        mesh.start(name)
    cut = []
    mesh.at(3.0, lambda: cut.extend(mesh.part({"n0", "n1", "n4", "n5"})))
    mesh.at(200.0, lambda: mesh.heal(cut))
    mesh.run(lambda: mesh.now > 190.0)
    assert {name for name, node in mesh.nodes.items() if node.done} <= {"n0", "n1", "n4", "n5"}
    assert mesh.nodes["n7"].have.bit_count() > 0, "the other half helps itself as far as it can"
    mesh.run(mesh.complete)
    check(mesh)


def test_nodes_that_come_late_catch_up_with_their_neighbours() -> None:
    mesh = Mesh(SOME)
    mesh.grid(4, 2)
    late = {"n3", "n6", "n7"}
    for name in mesh.nodes.keys() - late:
        mesh.start(name)
    mesh.run(lambda: all(mesh.nodes[name].done is not None for name in mesh.nodes.keys() - late))
    before = mesh.nodes["n0"].air
    for name in late:
        mesh.start(name)
    mesh.run(mesh.complete)
    check(mesh)
    assert mesh.nodes["n0"].air == before, "their neighbours serve them"


def test_a_restart_costs_what_was_on_its_way() -> None:
    mesh = Mesh(SOME)
    mesh.grid(4, 2)
    for name in mesh.nodes:
        mesh.start(name)

    def restart(name: str) -> None:
        mesh.stop(name)
        mesh.at(mesh.now + 2.0, lambda: mesh.start(name))

    for number, name in enumerate(("n1", "n4", "n0", "n5")):
        mesh.at(1.5 + number, lambda n=name: restart(n))  # type: ignore[misc]
    mesh.run(mesh.complete)
    check(mesh)


def test_rubbish_costs_one_chunk_at_a_time_and_the_turn() -> None:
    mesh = Mesh(SOME)
    mesh.grid(4, 2)
    mesh.nodes["n1"].rubbish = True
    for name in mesh.nodes:
        mesh.start(name)
    took = mesh.run(mesh.complete)
    check(mesh)
    wrong = [node.wrong["n1"] for node in mesh.nodes.values()]
    # two may have been on their way; it had one more turn at most within two minutes
    assert took < 120
    assert max(wrong) <= 4
    assert sum(wrong) > 0


@pytest.mark.parametrize("seed", range(3))
def test_it_goes_on_whatever_happens(seed: int) -> None:
    """Links and nodes come and go at random; in the end everybody has everything, once."""
    mesh = Mesh(60, seed=seed, full=bool(seed % 2))
    mesh.grid(4, 2)
    for name in mesh.nodes:
        mesh.start(name)

    def disturb() -> None:
        name = mesh.random.choice(sorted(mesh.nodes))
        if mesh.nodes[name].up:
            mesh.stop(name)
            mesh.at(mesh.now + 20 * mesh.random.random(), lambda: mesh.start(name))
        side = set(mesh.random.sample(sorted(mesh.nodes), 3))
        cut = mesh.part(side)
        mesh.at(mesh.now + 20 * mesh.random.random(), lambda: mesh.heal(cut))

    for at in range(1, 40, 3):
        mesh.at(float(at), disturb)
    mesh.at(65.0, lambda: None)
    mesh.run(lambda: mesh.now >= 65.0 and mesh.complete())
    check(mesh)


# -- the decisions one by one


def fetch_of(count: int, **bits: int) -> tuple[Fetch, Offering]:
    offering = Offering(Peers())
    offering.bits.update(bits)
    return Fetch(count, 0, offering, lambda _limit: 0), offering


def test_the_nearest_is_asked_and_farther_ones_when_it_has_nothing_for_long() -> None:
    fetch, offering = fetch_of(8, far=0xFF)
    ways = {"far": Way(3, 3 * METRIC), "near": Way(1, METRIC)}
    assert fetch.asks(0.0, ways) == []
    assert fetch.due(0.0) == spread.STALLED
    offering.bits["near"] = 1
    assert fetch.asks(1.0, ways) == [("near", 0)]
    fetch.kept("near", 0)
    assert fetch.asks(2.0, ways) == []
    due = fetch.due(2.0)
    assert due == 2.0 + spread.STALLED
    assert fetch.asks(due, ways) == [("far", 1), ("far", 2)]
    offering.bits["near"] = 0xFF
    assert {ask.peer for ask in fetch.asks(due + 1, ways)} == {"near"}


def test_who_does_not_answer_is_left_alone_for_longer_and_longer() -> None:
    fetch, _ = fetch_of(1, silent=1)
    ways = {"silent": Way()}
    now, pauses = 0.0, []
    for _turn in range(3):
        assert fetch.asks(now, ways) == [("silent", 0)]
        now += spread.PATIENCE
        assert fetch.asks(now, ways) == []
        due = fetch.due(now)
        assert due is not None
        pauses.append(due - now)
        now = due
    assert pauses == list(spread.SLOW_PAUSES[:3])


def test_who_sends_rubbish_is_not_well_by_coming_anew() -> None:
    peers = Peers()
    one = Fetch(4, 0, Offering(peers), lambda _limit: 0)
    one.offering.bits["bad"] = 0xF
    ways = {"bad": Way()}
    assert len(one.asks(0.0, ways)) == spread.WINDOW_OF_ONE
    one.wrong("bad", 0.0)
    assert not one.is_asked("bad", 1)
    again = Fetch(4, 0, Offering(peers), lambda _limit: 0)
    again.offering.bits["bad"] = 0xF
    assert again.asks(spread.WRONG_PAUSES[0] - 1, ways) == []
    assert again.asks(spread.WRONG_PAUSES[0], ways)


def test_who_has_no_time_is_asked_again_and_who_lacks_it_is_not() -> None:
    fetch, offering = fetch_of(2, one=0b11)
    ways = {"one": Way()}
    assert fetch.asks(0.0, ways) == [("one", 0), ("one", 1)]
    fetch.refused("one", 0, 0.0, 0.0)
    fetch.refused("one", 1, 3.0, 0.0)
    fetch.refused("stranger", 1, 9.0, 0.0)
    assert offering.bits["one"] == 0b10
    assert fetch.asks(4.9, ways) == []
    assert fetch.due(0.0) == spread.SLOW_PAUSES[0]
    assert fetch.asks(5.0, ways) == [("one", 1)]


def test_who_says_again_and_again_that_it_has_something_keeps_nobody_from_it() -> None:
    fetch, offering = fetch_of(1, liar=1, honest=1)
    ways = {"liar": Way(1, 10), "honest": Way(1, 1000)}
    now, asked = 0.0, []
    for _turn in range(4):
        found = fetch.asks(now, ways)
        assert len(found) == 1
        asked.append(found[0].peer)
        if asked[-1] == "honest":
            break
        fetch.refused("liar", 0, 0.0, now)
        offering.bits["liar"] = 1
    assert asked == ["liar", "honest"]
    offering.bits["liar"] = 1
    listing = Listing(1, offering)
    now = 100.0
    assert listing.ask(now, ways) == ("liar", 0)
    listing.refused("liar", 0.0, now)
    offering.bits["liar"] = 1
    assert listing.ask(now, ways) == ("honest", 0)


def test_a_neighbour_that_never_has_time_keeps_nobody_from_those_behind_it() -> None:
    fetch, _ = fetch_of(4, near=0b1111, far=0b1111)
    ways = {"near": Way(1, 10), "far": Way(2, 1000)}
    now = 0.0
    while not (asks := [ask for ask in fetch.asks(now, ways) if ask.peer == "far"]):
        for chunk in range(4):
            fetch.refused("near", chunk, 10.0, now)
        due = fetch.due(now)
        assert due is not None
        now = due
        assert now < spread.PATIENCE + spread.STALLED + 20
    assert len(asks) == spread.WINDOW_OF_ONE
    fetch.kept("near", 3)
    assert fetch.offering.within_reach(0b1, ways, now) == ["near"]


def test_rubbish_that_nobody_asked_for_changes_nothing_for_others() -> None:
    fetch, _ = fetch_of(1, honest=1)
    assert fetch.asks(0.0, {"honest": Way()}) == [("honest", 0)]
    fetch.wrong("liar", 0.0)
    assert fetch.is_asked("honest", 0)
    assert fetch.asks(0.1, {"honest": Way()}) == []


def test_who_does_not_read_what_it_gets_keeps_its_place_for_so_long() -> None:
    serve: Serve[int] = Serve(0.5)
    for peer in "abc":
        assert serve.ask(peer, 1, 0.1, 0.0) is None
    assert serve.take(0.0, lambda _peer: True) is None
    assert serve.ask("d", 1, 0.1, 0.0) is not None
    now = spread.PATIENCE
    assert serve.take(now, lambda _peer: True) is None
    assert serve.lost == [("a", 1), ("b", 1), ("c", 1)], "they are told"
    assert serve.ask("a", 1, 0.1, now, blocked=True) == spread.AGAIN[1]
    assert serve.ask("d", 1, 0.1, now) is None
    assert serve.ask("a", 1, 0.1, now, blocked=False) is None
    assert serve.take(now, lambda _peer: False) == ("d", 1)


def test_what_comes_from_outside_is_not_asked_for_in_the_mesh() -> None:
    fetch, _ = fetch_of(8, one=0xFF)
    assert fetch.claim(4, 0.0) == [0, 1, 2, 3]
    assert {ask.chunk for ask in fetch.asks(0.0, {"one": Way()})} == {4, 5}
    assert fetch.claim(4, 0.0) == [6, 7]
    fetch.release(spread.OUTSIDE)
    assert fetch.claim(9, 0.0) == [0, 1, 2, 3]


def test_two_are_served_in_turns_and_one_too_many_comes_again() -> None:
    serve: Serve[int] = Serve(0.5)
    for peer in "abc":
        assert serve.ask(peer, 1, 0.1, 0.0) is None
    assert serve.ask("a", 2, 0.1, 0.0) is None
    assert serve.ask("a", 2, 0.1, 0.0) is None
    assert serve.ask("a", 3, 0.1, 0.0) == spread.AGAIN[1]
    pause = serve.ask("d", 1, 0.1, 0.0)
    assert pause is not None
    assert spread.AGAIN[0] <= pause <= spread.AGAIN[1]
    sent = [serve.take(0.0, lambda peer: peer == "b") for _ in range(4)]
    assert sent == [("a", 1), ("c", 1), ("a", 2), None]
    serve.gone("b", 0.0)
    assert serve.pause(0.0) is None


class Asker(NamedTuple):
    """Somebody who asks again as soon as it has got something, or may.

    :ivar most: how many chunks it asks for at a time.
    :ivar obeys: whether it waits for as long as it is told; else it asks ten times a second.
    :ivar reads: seconds until it has read what it got.
    :ivar begins: when it begins.
    """

    most: int = spread.WINDOW_OF_ONE
    obeys: bool = True
    reads: float = 0.0
    begins: float = 0.0


GREEDY = {
    "keep their places": Asker(obeys=False),
    "ask for one at a time": Asker(most=1, obeys=False),
    "read slowly": Asker(obeys=False, reads=0.9 * spread.PATIENCE),
}


def served(askers: dict[str, Asker], seconds: float, airtime: float) -> Counter[str]:
    """Let these ask one node all the time; return how many chunks each has got."""
    serve: Serve[int] = Serve(0.2)
    step = 0.05
    now, count = 0.0, 0
    may = {name: asker.begins for name, asker in askers.items()}
    waiting: dict[str, set[int]] = {name: set() for name in askers}
    unsent: dict[str, list[float]] = {name: [] for name in askers}
    got: Counter[str] = Counter()
    while now < seconds:
        for name, asker in askers.items():
            unsent[name] = [at for at in unsent[name] if at > now]
            while len(waiting[name]) < asker.most and may[name] <= now:
                count += 1
                waiting[name].add(count)
                blocked = len(unsent[name]) >= 2
                pause = serve.ask(name, count, airtime, now, blocked=blocked)
                if pause is not None:
                    waiting[name].discard(count)
                    may[name] = now + (pause if asker.obeys else 0.1)
        assert len(serve) <= spread.UPLOADS
        while (sent := serve.take(now, lambda name: len(unsent[name]) >= 2)) is not None:
            name, item = sent
            serve.air.spend(airtime, now)
            waiting[name].discard(item)
            got[name] += 1
            unsent[name].append(now + askers[name].reads)
        now += step
    return got


@pytest.mark.parametrize("airtime", [0.005, 1.0], ids=["a fast link", "a slow link"])
@pytest.mark.parametrize("many", [3, 8])
@pytest.mark.parametrize("how", GREEDY)
def test_those_who_never_stop_asking_get_no_more_than_one_who_does(
    how: str, many: int, airtime: float
) -> None:
    greedy = {f"greedy{at}": GREEDY[how] for at in range(many)}
    got = served({**greedy, "honest": Asker()}, 2000.0, airtime)
    assert got["honest"] >= 0.5 * got.total() / (many + 1), got


def of_three(until: float) -> Serve[int]:
    """Return what has served three for some time, each of which has asked for something more."""
    serve: Serve[int] = Serve(0.2)
    for peer in "abc":
        assert serve.ask(peer, 1, 0.1, 0.0) is None
        assert serve.ask(peer, 2, 0.1, 0.0) is None
    assert {serve.take(until, lambda _: False) for _ in "abc"} == {("a", 1), ("b", 1), ("c", 1)}
    return serve


def test_whoever_had_a_place_for_long_leaves_it_to_who_waits() -> None:
    serve = of_three(spread.TURN)
    assert serve.ask("d", 1, 0.1, spread.TURN) is not None
    assert serve.ask("a", 3, 0.1, spread.TURN) is not None, "it leaves"
    assert serve.ask("b", 3, 0.1, spread.TURN) is None, "one is enough"
    assert serve.take(spread.TURN, lambda _: False) == ("a", 2)
    assert serve.ask("a", 3, 0.1, spread.TURN + 0.1) is not None, "the place is kept for d"
    assert serve.ask("d", 1, 0.1, spread.TURN + 0.4) is None
    assert len(serve) == spread.UPLOADS


def test_a_place_is_not_kept_for_who_does_not_come() -> None:
    serve = of_three(spread.TURN)
    pause = serve.ask("d", 1, 0.1, spread.TURN)
    assert pause is not None
    assert serve.ask("a", 3, 0.1, spread.TURN) is not None
    assert serve.ask("a", 3, 0.1, spread.TURN + pause + spread.EXPECTED) is None


def test_who_comes_late_is_not_served_before_all_others_for_long() -> None:
    early = {name: Asker() for name in "abc"}
    late = {name: Asker(obeys=False, begins=1000.0) for name in "defgh"}
    before = served(early | late, 1000.0, 0.1)
    after = served(early | late, 1100.0, 0.1) - before
    assert min(after.values()) >= 0.5 * after.total() / 8, after


def test_who_comes_anew_gains_nothing() -> None:
    serve = of_three(100.0)
    serve.gone("a", 100.0)
    assert serve.ask("d", 1, 0.1, 100.0) is None
    assert serve.ask("a", 2, 0.1, 101.0) is not None
    assert serve.ask("e", 1, 0.1, 101.0) is not None
    assert serve.ask("b", 3, 0.1, 101.0) is not None, "it leaves for e"
    assert serve.take(101.0, lambda one: one != "b") == ("b", 2)
    assert serve.ask("a", 2, 0.1, 101.1) is not None
    assert serve.ask("e", 1, 0.1, 101.4) is None


@given(st.floats(0.01, 0.9), st.lists(st.floats(0.001, 0.5), min_size=1, max_size=60))
def test_the_share_of_the_air_is_kept(share: float, chunks: list[float]) -> None:
    air, now, spent = Air(share), 5.0, 0.0
    for chunk in chunks:
        now += air.pause(now)
        air.spend(chunk, now)
        spent += chunk
        assert spent <= spread.BURST + share * now + chunk + 1e-6


def test_neighbours_hear_at_once_what_is_new_and_others_seldom() -> None:
    teller = Teller()
    ways = {"near": Way(), "far": Way(2), "sated": Way()}
    assert teller.take(1.0, ways, ["sated"]) == []
    teller.changed()
    assert teller.take(1.0, ways, ["sated"]) == ["near", "sated"]
    assert teller.due(ways, ["sated"]) == 1.0 + spread.TELL_FAR_FIRST
    for _ in range(spread.TELL_AT_ONCE - 1):
        teller.changed()
        assert teller.take(1.0, ways, ["sated"]) == ["near"]
    teller.changed()
    assert teller.take(1.0, ways, ["sated"]) == []
    assert teller.due(ways, ["sated"]) == 1.0 + spread.TELL_NEAR
    assert teller.take(1.0 + spread.TELL_NEAR, ways, ["sated"]) == ["near"]
    assert teller.due(ways, ["sated"]) == 1.0 + spread.TELL_SATED
    teller.gone("sated")
    del ways["sated"]
    first = 1.0 + spread.TELL_FAR_FIRST
    assert teller.take(first, ways, []) == ["far"]
    teller.changed()
    assert teller.take(first, ways, []) == ["near"]
    assert teller.due(ways, []) == first + spread.TELL_FAR


@given(st.lists(st.floats(0.0, 0.6), min_size=1, max_size=80))
def test_a_neighbour_is_told_at_a_pace(pauses: list[float]) -> None:
    teller, now, told = Teller(), 0.0, 0
    for pause in pauses:
        now += pause
        teller.changed()
        told += len(teller.take(now, {"near": Way()}, []))
    assert told <= spread.TELL_AT_ONCE + now / spread.TELL_NEAR + 1


def test_the_chunk_list_comes_from_who_has_it_without_a_chunk() -> None:
    offering = Offering(Peers())
    listing = Listing(1, offering)
    ways = {"near": Way(), "far": Way(3, 3 * METRIC)}
    assert listing.ask(0.0, ways) is None
    offering.bits.update(near=0, far=0b11)
    assert listing.ask(0.0, ways) == ("near", 0)
    fetch = Fetch(2, 0, offering)
    assert fetch.asks(0.0, ways) == [], "and the chunks from nearer than far"


@given(st.integers(1, (1 << 70) - 1), st.integers(0, 80))
def test_a_bit_that_is_set_is_found(bits: int, start: int) -> None:
    found = spread.bit_from(bits, start)
    assert bits >> found & 1
    assert found >= start or not bits >> start


def offer_of(*patches: tuple[str, int]) -> Offer:
    made = tuple(Patch(base, size, "ab" * 32, "cd" * 32) for base, size in patches)
    target = Target("thicket-rpi64", "2", 0, 1 << 20, "ef" * 32)
    return Offer(b"f" * 20, 7, target, made, Plan(1, 60, (100,), 0, None))


def test_which_patch_is_taken() -> None:
    a, b, c = "a" * 64, "b" * 64, "c" * 64
    offer = offer_of(("", 900), (a, 50), (b, 20))
    assert spread.choose(offer, a) == 1
    assert spread.choose(offer, b) == 2
    assert spread.choose(offer, c) == 0
    assert spread.choose(offer, "") == 0
    assert spread.choose(offer, a, {1}) == 0
    assert spread.choose(offer, a, {0, 1}) is None
    assert spread.choose(offer_of((a, 50)), b) is None


def test_the_air_of_a_chunk() -> None:
    # 8192 bits at 54 Mbit/s are 152 µs
    assert Way(1, 152).airtime() == pytest.approx(CHUNK * 8 / 54e6 * spread.OVERHEAD, rel=0.01)

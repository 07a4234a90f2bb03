# SPDX-License-Identifier: Apache-2.0
"""thicket.radio: peers, paths and presence judge facts, without a kernel: facts in, actions out."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from radio_facts import station

from thicket.radio.events import PeerDown, PeerUp
from thicket.radio.nl80211 import MeshPath
from thicket.radio.paths import NOBODY, PATH_TIMEOUT, Fix, GiveUp, Paths, Unfix
from thicket.radio.peers import (
    FORGET_SECONDS,
    REJOIN_PAUSES,
    STUCK_PAUSES,
    UNPROTECTED,
    Help,
    Note,
    Peers,
    Rejoin,
    made_again,
    patience,
    silent,
)
from thicket.radio.presence import (
    COUNTRY_TIMES,
    ENTERING_SECONDS,
    LEFT_SECONDS,
    AskForCountry,
    Presence,
)
from thicket.radio.reports import Report, Solved
from thicket.radio.searches import (
    LEARNED_SECONDS,
    MOST_AT_ONCE,
    SEARCH_PAUSES,
    Search,
    Searches,
)

A, B, C = (f"02:00:00:00:00:0{n}" for n in (1, 2, 3))
OLD = PATH_TIMEOUT / 1000


def path(destination: str, next_hop: str) -> MeshPath:
    return {
        "destination": destination, "next_hop": next_hop, "metric": 100, "hops": 1,
        "expires_ms": 1000, "flags": 0,
    }  # fmt: skip


def codes(words: list[Any]) -> list[str]:
    """What is reported, without what is solved or only noted."""
    return [word.code for word in words if isinstance(word, Report)]


class TestPaths:
    def test_paths_over_silent_stations_are_given_up(self) -> None:
        table = [path(C, A), path(B, B), path("02:00:00:00:00:09", NOBODY)]
        assert list(Paths().judge(table, {B}, {A}, 0.0)) == [GiveUp(C, A)]

    def test_frames_to_a_peer_that_came_back_take_its_link(self) -> None:
        paths = Paths()
        paths.lost(A, 10.0)
        paths.found(A, 15.0)
        assert paths.watched
        assert list(paths.judge([path(A, B)], {A, B}, set(), 16.0)) == [Fix(A, B)]
        paths.fixed(A, 16.0)
        assert list(paths.judge([path(A, A)], {A, B}, set(), 17.0)) == []

    def test_a_fixed_path_ends_with_the_link_or_its_time(self) -> None:
        for peers, now in (({A}, 16.0 + OLD), (set[str](), 17.0)):
            paths = Paths()
            paths.fixed(A, 16.0)
            assert list(paths.judge([path(A, A)], peers, set(), now)) == [Unfix(A)]
            assert list(paths.judge([path(A, A)], peers, set(), now)) == [], "once"
            assert not paths.watched

    def test_one_that_was_away_for_long_is_a_new_peer(self) -> None:
        paths = Paths()
        paths.lost(A, 10.0)
        paths.found(A, 1000.0)
        assert not paths.watched
        assert list(paths.judge([path(A, B)], {A, B}, set(), 1001.0)) == []

    def test_a_path_to_a_peer_that_is_looked_for_is_left_alone(self) -> None:
        paths = Paths()
        paths.lost(A, 10.0)
        paths.found(A, 11.0)
        assert list(paths.judge([], {A}, set(), 12.0)) == []

    @given(st.lists(st.tuples(st.sampled_from("lf"), st.integers(0, 300), st.floats(0, 100))))
    def test_what_is_remembered_ends(self, happened: list[tuple[str, int, float]]) -> None:
        paths, now = Paths(), 0.0
        for what, number, pause in happened:
            now += pause
            mac = f"02:00:00:00:{number // 256:02x}:{number % 256:02x}"
            (paths.lost if what == "l" else paths.found)(mac, now)
        list(paths.judge([], set(), set(), now + OLD))
        assert not paths.watched


GOOD = station(A, metric=418, signal_dbm=-61, connected_s=60)
WEAK = station(B, metric=5121, signal_dbm=-91, connected_s=1)


def searched(searches: Searches, table: list[MeshPath], now: float) -> list[str]:
    return [action.destination for action in searches.judge(table, (), now)]


class TestSearches:
    def test_a_weak_link_beside_a_good_one_is_a_reason_to_search(self) -> None:
        searches = Searches()
        searches.look([GOOD, WEAK], 0.0)
        table = [path(A, A), path(B, B), path(C, B)]
        assert list(searches.judge(table, (), 0.0)) == [Search(B, B, 5121)]

    def test_a_search_in_vain_is_repeated_ever_more_seldom(self) -> None:
        searches, table, now = Searches(), [path(B, B)], 0.0
        times = []
        while now < 1000.0:
            searches.look([GOOD, WEAK], now)
            if searched(searches, table, now):
                times.append(now)
            now += 0.5
        pauses = [later - earlier for earlier, later in pairwise(times)]
        assert tuple(pauses[: len(SEARCH_PAUSES)]) == SEARCH_PAUSES
        assert set(pauses[len(SEARCH_PAUSES) :]) == {SEARCH_PAUSES[-1]}
        assert max(SEARCH_PAUSES[:7]) < 5.0, "a relay that joins within 28 s is used within 5"

    def test_a_new_peer_is_a_reason_to_search_at_once(self) -> None:
        searches, table = Searches(), [path(B, B)]
        searches.look([GOOD, WEAK], 0.0)
        assert searched(searches, table, 0.0) == [B]
        assert searched(searches, table, 1.0) == []
        searches.peers_changed(1.5)
        assert searched(searches, table, 1.5) == [B]

    def test_what_is_behind_a_bad_link_follows_once_there_is_a_way_around_it(self) -> None:
        searches = Searches()
        searches.look([GOOD, WEAK], 0.0)
        assert searched(searches, [path(B, A), path(C, B)], 0.0) == [C]
        # the kernel found the same again: it is its choice
        assert searched(searches, [path(B, A), path(C, B)], 10.0) == []

    def test_the_searches_of_one_look_are_bounded_and_the_rest_follows(self) -> None:
        searches = Searches()
        searches.look([GOOD, WEAK], 0.0)
        table = [path(B, A), *(path(f"02:00:00:00:01:{n:02x}", B) for n in range(20))]
        asked = []
        for now in range(4):
            new = searched(searches, table, float(now))
            assert len(new) <= MOST_AT_ONCE
            asked += new
        assert sorted(asked) == sorted(one["destination"] for one in table[1:])

    def test_a_path_that_is_decided_elsewhere_is_left_alone(self) -> None:
        searches = Searches()
        searches.look([GOOD, WEAK], 0.0)
        assert list(searches.judge([path(B, B)], {B}, 0.0)) == []

    @pytest.mark.parametrize(
        "stations",
        [
            [],
            [WEAK],
            [GOOD, station(B, metric=900, connected_s=60)],
            [GOOD, station(B, metric=5121, signal_dbm=-62, connected_s=LEARNED_SECONDS - 1)],
            [GOOD, station(B, "OPN_SNT", metric=5121, signal_dbm=-91)],
            [GOOD, station(B, metric=None, signal_dbm=-91)],
        ],
        ids=["nobody", "alone", "no detour is better", "not learned", "no peer", "unknown"],
    )
    def test_other_links_are_no_reason(self, stations: list[Any]) -> None:
        searches = Searches()
        searches.look([GOOD, WEAK], 0.0)
        searches.look(stations, 1.0)
        assert not searches.due(1000.0)
        assert searched(searches, [path(B, B)], 1000.0) == []

    def test_a_bad_metric_of_an_old_link_is_believed_whatever_its_signal(self) -> None:
        searches = Searches()
        searches.look([GOOD, station(B, metric=5121, connected_s=LEARNED_SECONDS)], 0.0)
        assert searches.due(0.0)

    def test_a_link_that_became_worse_is_searched_around_anew(self) -> None:
        searches, table = Searches(), [path(B, B)]
        searches.look([GOOD, station(B, metric=1300, connected_s=60)], 0.0)
        assert searched(searches, table, 0.0) == [B]
        searches.look([GOOD, station(B, metric=5121, connected_s=60)], 0.5)
        assert searched(searches, table, 0.5) == [B]


class TestStations:
    def test_patience_is_in_beacons(self) -> None:
        assert patience(1000) == pytest.approx(5120.0)
        stations = [station(A, inactive_ms=5121), station(B, inactive_ms=5119), station(C)]
        assert silent(stations, patience(1000)) == {A}

    @pytest.mark.parametrize(
        ("before", "now", "again"),
        [
            ({}, {}, False), ({"plid": 2}, {"plid": 3}, True), ({"llid": 2}, {"llid": 3}, True),
            ({"connected_s": 5}, {"connected_s": 4}, True),
            ({"connected_s": None}, {"connected_s": None}, False),
        ],
    )  # fmt: skip
    def test_a_link_made_again(
        self, before: dict[str, Any], now: dict[str, Any], again: bool
    ) -> None:
        assert made_again(station(A, **before), station(A, **now)) is again


class TestPeers:
    def test_who_comes_and_goes(self) -> None:
        peers = Peers()
        events = [w for w in peers.become({A, B}) if isinstance(w, PeerUp | PeerDown)]
        assert events == [PeerUp(A), PeerUp(B)]
        events = [w for w in peers.become({B, C}) if isinstance(w, PeerUp | PeerDown)]
        assert events == [PeerDown(A), PeerUp(C)]
        assert peers.macs == {B, C}

    def test_a_link_that_is_another_one_is_lost_and_found(self) -> None:
        peers = Peers()
        first = [station(A), station(B)]
        peers.look([], first)
        words = peers.look(first, [station(A, plid=9), station(B)])
        assert [w for w in words if isinstance(w, PeerUp | PeerDown)] == [PeerDown(A), PeerUp(A)]

    @pytest.mark.parametrize(("fact", "word"), [("authorized", "data"), ("mfp", "management")])
    def test_nobody_is_a_peer_whose_frames_are_not_protected(self, fact: str, word: str) -> None:
        peers = Peers()
        facts: dict[str, Any] = {fact: False}
        stations = [station(A, **facts), station(B)]
        judged, (report,) = peers.protect(stations)
        assert isinstance(report, Report)
        assert word in report.message
        assert [one["state"] for one in judged] == [UNPROTECTED, "ESTAB"]
        assert stations == [station(A, **facts), station(B)], "what the kernel told stays as it was"
        again = [station(A)]
        assert peers.protect(again) == (again, [Solved(f"sae-unprotected-{A}")])

    def test_one_failure_may_be_the_air_and_two_are_told(self) -> None:
        peers = Peers()
        (note,) = peers.failed(A, 0.0)
        assert isinstance(note, Note)
        assert codes(peers.failed(A, 1.0)) == ["sae-failure", "passphrase-refused"]
        assert peers.refused() == {A: 2}

    def test_with_a_peer_it_is_the_others_passphrase(self) -> None:
        peers = Peers()
        peers.up(B)
        peers.failed(A, 0.0)
        assert codes(peers.failed(A, 1.0)) == ["sae-failure"]

    def test_who_becomes_a_peer_or_is_old_is_forgotten(self) -> None:
        peers = Peers()
        peers.failed(A, 0.0)
        peers.failed(B, 0.0)
        peers.up(A)
        assert peers.refused() == {B: 1}
        peers.forget_old(FORGET_SECONDS)
        assert peers.refused() == {B: 1}
        peers.forget_old(FORGET_SECONDS + 0.1)
        assert peers.refused() == {}

    def test_radios_with_one_address_are_no_matter_of_passphrases(self) -> None:
        peers = Peers()
        peers.failed(A, 0.0)
        peers.failed(A, 1.0)
        peers.share_address({A})
        assert peers.refused() == {}
        assert codes(peers.failed(A, 2.0, blocked=True)) == []

    def test_alone_the_mesh_is_entered_anew_ever_more_slowly(self) -> None:
        peers, gaps, last = Peers(), [], 0.0
        for now in range(3000):
            peers.watch_the_stuck([station(A, "LISTEN")], 5000, float(now))
            if peers.help_the_stuck(float(now), outdated=False) is not None:
                gaps.append(now - last)
                last = now
        assert gaps[0] == STUCK_PAUSES[0]
        assert all(a <= b for a, b in pairwise(gaps))
        assert gaps[-1] == STUCK_PAUSES[-1]
        assert len(gaps) >= 10, "for ever"

    def test_with_peers_only_the_neighbour_is_helped(self) -> None:
        peers = Peers()
        peers.up(B)
        peers.watch_the_stuck([station(A, "LISTEN"), station(B)], 5000, 0.0)
        assert peers.help_the_stuck(STUCK_PAUSES[0] - 1, outdated=False) is None
        assert peers.help_the_stuck(STUCK_PAUSES[0], outdated=False) == Help((A,))
        assert peers.rejoin(1e6, at_once=True) is None, "nothing may touch the links that stand"

    def test_another_passphrase_helps_all_at_once(self) -> None:
        peers = Peers()
        peers.watch_the_stuck([station(A, "LISTEN")], 5000, 0.0)
        peers.passphrase_changed()
        assert peers.help_the_stuck(1.0, outdated=False) == Rejoin()
        assert peers.help_the_stuck(2.0, outdated=True) == Rejoin(), "an old one opens links"
        assert peers.rejoin(2.0 + REJOIN_PAUSES[0]) is None, "the pauses double"

    @given(
        st.lists(
            st.tuples(
                st.sampled_from(("failed", "up", "down", "look", "help", "forget")),
                st.sampled_from((A, B, C)),
                st.floats(0, 300),
            ),
            max_size=60,
        )
    )
    def test_words_and_peers_agree_whatever_happens(
        self, happened: list[tuple[str, str, float]]
    ) -> None:
        peers, told, now = Peers(), set[str](), 0.0
        for what, mac, pause in happened:
            now += pause
            words: list[Any] = []
            if what == "failed":
                words = list(peers.failed(mac, now))
            elif what in {"up", "down"}:
                words = list(getattr(peers, what)(mac))
            elif what == "look":
                words = list(peers.look([], [station(mac), station(A, "LISTEN")]))
            elif what == "forget":
                words = list(peers.forget_old(now))
            else:
                peers.watch_the_stuck([station(mac, "LISTEN")], 5000, now)
                deed = peers.help_the_stuck(now, outdated=False)
                assert deed is None or isinstance(deed, Help if peers.macs else Rejoin)
            for word in words:
                if isinstance(word, PeerUp):
                    assert word.mac not in told
                    told.add(word.mac)
                elif isinstance(word, PeerDown):
                    told.remove(word.mac)
            assert told == peers.macs


class TestPresence:
    def test_a_moment_outside_is_nothing(self) -> None:
        presence = Presence()
        assert not presence.left(None, 2412, 10.0)
        assert not presence.inside
        assert not presence.left(2412, 2412, 10.0 + LEFT_SECONDS)
        assert presence.inside
        assert not presence.left(2437, 2412, 20.0)
        assert presence.left(2437, 2412, 20.0 + LEFT_SECONDS)

    def test_our_own_entering_has_its_time(self) -> None:
        presence = Presence()
        presence.entering(0.0)
        assert not any(
            presence.left(None, 2412, float(now)) for now in range(int(ENTERING_SECONDS))
        )
        assert presence.left(None, 2412, ENTERING_SECONDS)

    def test_the_country_is_asked_for_before_it_is_a_problem(self) -> None:
        presence = Presence()
        assert presence.judge_country("DE", "DE") == Solved("country")
        for _ in range(COUNTRY_TIMES):
            assert presence.judge_country("US", "DE") == AskForCountry("DE", "US")
        report = presence.judge_country("US", "DE")
        assert isinstance(report, Report)
        assert "'US'" in report.message
        assert presence.judge_country(None, "DE") == Solved("country")
        assert presence.judge_country("US", "DE") == AskForCountry("DE", "US"), "from the beginning"

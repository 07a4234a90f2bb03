# SPDX-License-Identifier: Apache-2.0
"""Every fuzz target over its kept inputs: what was found once is never lost again."""

from __future__ import annotations

import logging
import sys
import tracemalloc
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from time import process_time

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import limits
from targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"


def inputs(name: str) -> list[tuple[str, bytes]]:
    """Return names and contents of the seeds and the kept inputs of a target."""
    seeds = [(f"seed {i}", data) for i, data in enumerate(TARGETS[name].seeds())]
    return seeds + [(path.name, path.read_bytes()) for path in sorted((CORPUS / name).glob("*"))]


@pytest.mark.parametrize("name", TARGETS)
def test_kept_inputs(name: str) -> None:
    one = TARGETS[name].make()
    for what, data in inputs(name):
        try:
            one(data)
        except Exception as error:
            raise AssertionError(f"{name}: {what}: {error!r}") from error


@pytest.mark.parametrize("name", TARGETS)
def test_memory_for_kept_inputs(name: str) -> None:
    one = TARGETS[name].make()
    known = inputs(name)
    for _, data in known[:20]:
        one(data)  # what is loaded and cached at first counts for none of them
    tracemalloc.start()
    try:
        for what, data in known:
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            one(data)
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before < limits.memory(len(data)), f"{name}: {what}"
    finally:
        tracemalloc.stop()


def test_the_log_is_as_before() -> None:
    one = TARGETS["messages"].make()
    logger = logging.getLogger("thicket")
    before = logger.propagate, list(logger.handlers), logger.level
    one(b"\1")
    assert (logger.propagate, list(logger.handlers), logger.level) == before


def test_the_corpus_is_small_and_belongs_to_targets() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_000_000
    for path in files:
        assert path.stat().st_size <= TARGETS[path.parent.name].longest, path


def test_an_input_that_costs_too_much_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(data: bytes) -> None:
        end = process_time() + limits.seconds(len(data)) + 0.1
        while process_time() < end:
            pass

    hoard: list[bytes] = []

    def large(data: bytes) -> None:
        hoard.append(b"x" * (getrusage(RUSAGE_SELF).ru_maxrss * 1024 + 64 * 1024 * 1024))

    limits.watched(lambda _: None)(b"")
    with pytest.raises(AssertionError, match=r"4 bytes took 0\.6"):
        limits.watched(slow)(b"slow")
    monkeypatch.setattr(limits, "SECONDS", 60.0)  # so much memory takes its time, too
    with pytest.raises(AssertionError, match=r"5 bytes took .* MiB"):
        limits.watched(large)(b"large")


def test_limits_grow_with_the_length_alone() -> None:
    for limit in (limits.seconds, limits.memory):
        few, more, most = (limit(length) for length in (0, 10_000, 20_000))
        assert few < more < most
        assert most - more == pytest.approx(more - few)

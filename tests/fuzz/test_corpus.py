# SPDX-License-Identifier: Apache-2.0
"""Every fuzz target over its kept inputs: what was found once is never lost again."""

from __future__ import annotations

import logging
import sys
import tracemalloc
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"

MEMORY = 16 * 1024 * 1024
"""Bytes that no input may take, beyond what was there before."""


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
            assert peak - before < MEMORY, f"{name}: {what}"
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

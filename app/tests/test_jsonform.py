# SPDX-License-Identifier: Apache-2.0
"""Terms as JSON: what goes out comes in again, and what people type."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thicket.distribution.etf import Atom, PairMap, Pid, encode
from thicket.distribution.jsonform import from_json, from_word, to_json, to_words

texts = st.text(st.characters(exclude_categories=["Cs"]))
terms = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        texts,
        texts.map(Atom).filter(lambda atom: len(atom) < 256),
        st.binary(min_size=1).filter(lambda raw: not _is_text(raw)),
    ),
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.dictionaries(texts, inner),
    ),
    max_leaves=20,
)


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _plain(term: Any) -> Any:
    """Return ``term`` with the maps of pairs as dicts."""
    if isinstance(term, PairMap):
        return {_plain(key): _plain(value) for key, value in term.pairs}
    if type(term) is dict:
        return {key: _plain(value) for key, value in term.items()}
    if type(term) in (list, tuple):
        return type(term)(_plain(item) for item in term)
    return term


@given(terms)
def test_what_goes_out_comes_in_again(term: Any) -> None:
    form = json.loads(json.dumps(to_json(term)))
    assert encode(_plain(from_json(form))) == encode(term)
    assert to_words(form)


def test_forms() -> None:
    assert to_json({Atom("a"): (1, b"x", b"\xff")}) == {"a": {"tuple": [1, "x", {"bytes": "/w=="}]}}
    assert to_json({(1,): 2}) == {"map": [[{"tuple": [1]}, 2]]}
    assert to_json({"atom": 1}) == {"map": [["atom", 1]]}  # not taken for an atom
    assert to_json({"a": 1, b"a": 2}) == {"map": [["a", 1], ["a", 2]]}
    assert to_json(Pid(Atom("n"), 1, 2, 3)) == {"term": "Pid('n', 1, 2, 3)"}
    deep: Any = 1
    for _ in range(100):
        deep = [deep]
    assert "..." in json.dumps(to_json(deep))


@pytest.mark.parametrize(
    "form",
    [{"atom": 1}, {"tuple": 1}, {"bytes": "*"}, {"map": [[1]]}, {"map": 1}, {"term": "x"}],
    ids=str,
)
def test_forms_that_are_none(form: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_json(form)


def test_what_people_type() -> None:
    for word, term in (
        ("1", 1),
        ("hello", "hello"),
        ('"1"', "1"),
        (":ok", Atom("ok")),
        (":", ":"),
        ("[1, {}]", [1, {}]),
        ('{"tuple": []}', ()),
        ("null", None),
    ):
        assert from_word(word) == term
        assert type(from_word(word)) is type(term)
    nested = "[" * 100 + "]" * 100
    with pytest.raises(ValueError, match="nested"):
        from_word(nested)
    assert to_words(to_json([Atom("ok"), (b"x", 1.5), {"k": None}])) == (
        '[:ok, {"x", 1.5}, {"k": null}]'
    )

# SPDX-License-Identifier: Apache-2.0
"""``python -m meshlab.scenario.guide FILE``: writes the tables of docs/scenarios.md anew."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from meshlab.scenario.actions import ACTIONS
from meshlab.scenario.expectations import CONDITIONS
from meshlab.scenario.keys import Key, keys_of
from meshlab.scenario.model import Head, Mesh, OwnLink, OwnNode, Shape, Terms, When

PLACE = re.compile(r"(<!-- keys: ([\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
"""Where a table stands."""


def _words(key: Key) -> str:
    if key.needed:
        return f"{key.kind.words}; needed"
    default = key.default
    if default in (None, (), ""):
        return key.kind.words
    said = f"{default:g}" if isinstance(default, float) else str(default)
    return f"{key.kind.words}; {said.lower() if isinstance(default, bool) else said}"


def _rows(keys: Iterable[Key]) -> list[str]:
    return [f"| `{key.name}` | {_words(key)} | {key.help} |" for key in keys]


def record_table(*records: type[Any]) -> str:
    """Return the keys of records as a table."""
    rows = [row for record in records for row in _rows(keys_of(record))]
    return "\n".join(["| key | what is written; default | meaning |", "| --- | --- | --- |", *rows])


def kinds_table(word: str, kinds: dict[str, type[Any]]) -> str:
    """Return all that `do` or `that` can be, with their keys."""
    rows = []
    for name, record in kinds.items():
        meaning = " ".join((record.__doc__ or "").split())
        keys = [f"`{k.name}` ({_words(k)}): {k.help}" for k in keys_of(record)]
        rows.append(f"| `{name}` | {meaning} | {'<br>'.join(keys)} |")
    return "\n".join([f"| `{word}` | | keys |", "| --- | --- | --- |", *rows])


TABLES: dict[str, str] = {
    "scenario": record_table(Head),
    "topology": record_table(Shape),
    "mesh": record_table(Mesh),
    "node": record_table(OwnNode),
    "link": record_table(OwnLink),
    "when": record_table(When),
    "terms": record_table(Terms),
    "steps": kinds_table("do", ACTIONS),
    "expectations": kinds_table("that", CONDITIONS),
}


def written(text: str) -> str:
    """Return a guide with its tables as the code has them.

    :raises KeyError: it asks for a table that there is none of.
    """
    return PLACE.sub(lambda found: f"{found[1]}{TABLES[found[2]]}\n{found[3]}", text)


def main(arguments: Sequence[str]) -> int:
    """Write the tables of the files anew."""
    for name in arguments:
        path = Path(name)
        path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

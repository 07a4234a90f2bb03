# SPDX-License-Identifier: Apache-2.0
"""Versions that steps offer: each is a change of what the nodes run then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from meshlab.lab import updates
from meshlab.lab.updates import offer_version
from thicket.update.offer import Plan


class DeskOfNames:
    """Makes files whose names say what they are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs: Path | None = None
        self.patches: list[tuple[str, str | None]] = []

    async def bundle(self, version: str | None = None, *texts: object) -> Path:
        return self.folder / f"{version or 'old'}{'-bad' if texts else ''}"

    async def patch(self, new: Path, old: Path | None = None) -> tuple[str, Path]:
        self.patches.append((new.name, None if old is None else old.name))
        made = self.folder / "change"
        made.write_bytes(b"change")
        return "base", made

    def offer(self, bundle: Path, patches: dict[str, Path], plan: Plan) -> bytes:
        return bundle.name.encode()


async def test_a_version_follows_the_last_one_that_came_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought: list[tuple[str, bytes]] = []

    async def put(lab: object, name: str, path: str, data: bytes) -> None:
        brought.append((path, data))

    async def run(lab: object, name: str, command: str) -> str:
        brought.append((command, b""))
        return ""

    monkeypatch.setattr(updates, "put", put)
    monkeypatch.setattr(updates, "run", run)
    desk: Any = DeskOfNames(tmp_path)
    lab: Any = None
    plan = Plan(1, 10, (100,), 0, None)
    for version, broken in (("2.0.0", False), ("2.0.1", True), ("2.0.2", False)):
        await offer_version(lab, desk, "n1", version, plan, broken=broken)
    assert desk.patches == [("2.0.0", "old"), ("2.0.1-bad", "2.0.0"), ("2.0.2", "2.0.0")]
    assert brought[:3] == [
        ("/data/in/offer", b"2.0.0"),
        ("/data/in/change", b"change"),
        ("thicket update offer /data/in", b""),
    ]

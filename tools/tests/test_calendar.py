# SPDX-License-Identifier: Apache-2.0
"""Clocks at the ends of the calendar: each command works, or says what is wrong with the clock."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from fleet_for_tests import NOW, PREFIX

from authority.authority import Authority
from authority.errors import AuthorityError
from firmware.releases.cli import main as release


@pytest.mark.parametrize("year", [1, 1900, 1969, 1970, 1999, 2026, 2127, 2128, 9968, 9990, 9999])
def test_a_fleet_is_made_or_the_clock_is_doubted(year: int, tmp_path: Path) -> None:
    for when in (datetime(year, 1, 1, tzinfo=UTC), datetime(year, 12, 31, 23, 59, tzinfo=UTC)):
        folder = tmp_path / f"{when.month}"
        made = Authority(folder, lambda _: "correct horse", clock=partial(min, when, when))
        if 2000 <= year <= 2127:
            made.init("acme", PREFIX, lab=True)
        else:
            with pytest.raises(
                AuthorityError, match=r"nothing was written: .*Is the clock right\?"
            ):
                made.init("acme", PREFIX, lab=True)


@pytest.mark.parametrize("year", [1, 1969, 1970, 9989, 9990, 9999])
def test_a_signer_is_made_or_the_clock_is_doubted(year: int, tmp_path: Path) -> None:
    now = [NOW]
    made = Authority(tmp_path / "fleet", lambda _: "correct horse", clock=lambda: now[0])
    made.init("acme", PREFIX, lab=True)
    now[0] = datetime(year, 12, 31, tzinfo=UTC)
    try:
        made.update_signers.make("release")
    except AuthorityError as error:
        assert "lock" in str(error) or "begin" in str(error)
    else:
        assert year == 9989


@pytest.mark.parametrize("date", ["-1", "253402300800", "9" * 5000, "now"])
def test_a_release_of_a_date_that_is_none(
    date: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", date)
    words = ["--boards", "none", "--out", str(tmp_path / "out")]
    assert release(words, {"none": lambda: pytest.fail("not reached")}) == 1
    assert "not a number of seconds since 1970" in capsys.readouterr().err

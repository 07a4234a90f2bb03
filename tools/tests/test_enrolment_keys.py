# SPDX-License-Identifier: Apache-2.0
"""A name belongs to the key that it was first enrolled with."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from emulated_bus import emulated
from fleet_for_tests import PREFIX

from authority.authority import Authority
from authority.errors import AuthorityError
from thicket.trust import openssl

IDENTITY = bytes(range(1, 7))


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    made = Authority(
        tmp_path / "fleet", lambda _: "x", clock=lambda: datetime(2026, 11, 24, tzinfo=UTC)
    )
    made.init("acme", PREFIX, lab=True)
    return made


def a_key() -> bytes:
    return openssl.public_key(openssl.generate_key())


def test_a_software_name_keeps_its_key(ca: Authority) -> None:
    first, second = a_key(), a_key()
    ca.enroll_software("mac", IDENTITY, first)
    ca.enroll_software("mac", IDENTITY, first)  # again is no other
    with pytest.raises(AuthorityError, match=r"another key.*--replace"):
        ca.enroll_software("mac", IDENTITY, second)
    ca.enroll_software("mac", IDENTITY, second, replace=True)
    with pytest.raises(AuthorityError, match="another key"):
        ca.enroll_software("mac", IDENTITY, first)


def test_another_chip_with_the_same_serial_number_is_refused_untouched(ca: Authority) -> None:
    genuine, forged = emulated()[0], emulated()[0]
    words: list[str] = []
    ca.enroll_chip(genuine, write=True, show=words.append)
    assert any("cannot prove it" in line for line in words)
    ca.enroll_chip(genuine, write=True, show=words.append)
    for write in (False, True):
        with pytest.raises(AuthorityError, match="another key"):
            ca.enroll_chip(forged, write=write, show=words.append)
    assert forged.read_config()[87] != 0  # still blank: nothing was locked
    ca.enroll_chip(forged, write=True, show=words.append, replace=True)
    with pytest.raises(AuthorityError, match="another key"):
        ca.enroll_chip(genuine, write=True, show=words.append)

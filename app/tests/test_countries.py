# SPDX-License-Identifier: Apache-2.0
"""A country is one that the kernel's regulatory database has; others are refused with the right."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from thicket.base.fields import ConfigError
from thicket.config.parse import parse
from thicket.radio import countries

INSTALLED = [
    Path(folder, name)
    for folder in ("/usr/lib/firmware", "/lib/firmware")
    for name in ("regulatory.db", "regulatory.db-debian")
]


def codes(database: bytes) -> set[str]:
    """The countries of a regulatory.db: a head of two words, then a code and a place each."""
    magic, version = struct.unpack_from(">4sI", database)
    assert (magic, version) == (b"RGDB", 20)
    found = set()
    for code, place in struct.iter_unpack(">2sH", database[8 : len(database) // 4 * 4]):
        if not place:
            break
        found.add(code.decode())
    return found


def database(folder: Path) -> bytes | None:
    """The database of this computer, or of the package that the lab's image is made with."""
    for path in INSTALLED:
        if path.is_file():
            return path.read_bytes()
    from host.cache import cache_root

    packages = sorted(cache_root().glob("images/source/*/wireless-regdb_*.deb"))
    if not packages or shutil.which("dpkg-deb") is None:
        return None
    subprocess.run(["dpkg-deb", "-x", str(packages[-1]), str(folder)], check=True)
    return next(iter(folder.rglob("regulatory.db-debian"))).read_bytes()


def test_the_countries_are_those_of_the_regulatory_database(tmp_path: Path) -> None:
    data = database(tmp_path)
    if data is None:
        pytest.skip("no regulatory database here: install wireless-regdb, or make the lab's image")
    assert codes(data) - {"00"} == countries.CODES


def fault(code: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(f'[mesh]\ncountry = "{code}"\n'.encode(), "thicket.toml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("code", "right"),
    [
        ("UK", 'the code of the United Kingdom is "GB"'),
        ("uk", 'the code of the United Kingdom is "GB"'),
        ("EL", 'the code of Greece is "GR"'),
        ("de", 'write "DE"'),
        (" DE", 'write "DE"'),
        ("XX", "no country has the code XX"),
        ("EU", "no country has the code EU"),
        ("Germany", 'that of Germany is "DE"'),
        ("", 'such as "DE"'),
        ("D3", 'such as "DE"'),
    ],
)
def test_a_code_that_no_regulatory_domain_has_is_refused_with_the_right_one(
    code: str, right: str
) -> None:
    assert right in fault(code)


@pytest.mark.parametrize("code", ["00", "DE", "GB", "US"])
def test_a_country_of_the_database_is_accepted(code: str) -> None:
    assert parse(f'[mesh]\ncountry = "{code}"\n'.encode(), "f").mesh.country == code

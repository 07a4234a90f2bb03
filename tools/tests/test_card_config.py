# SPDX-License-Identifier: Apache-2.0
"""The file for the cards of a fleet."""

from __future__ import annotations

import asyncio
from ipaddress import IPv6Interface, IPv6Network
from pathlib import Path

import pytest
from fleet_for_tests import CLOCK, PREFIX

from authority import card_config
from authority.authority import Authority
from authority.cli import main as ca_main
from firmware import settings as cards
from thicket.config.parse import parse
from thicket.trust import openssl
from thicket.trust.certificates import from_pem
from thicket.trust.credentials import FileKey, make_credentials
from thicket.trust.fleet import Fleet


def authority(folder: Path, name: str = "acme", network: IPv6Network = PREFIX) -> Authority:
    made = Authority(folder, lambda _: "")
    made.init(name, network, lab=True)
    return made


def test_the_file_is_complete_and_the_same_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("THICKET_CA", str(tmp_path / "fleet"))
    ca = authority(tmp_path / "fleet")
    out = tmp_path / "my.toml"
    assert ca_main(["config", "--out", str(out), "--no-ssh-key"]) == 0
    assert f"CONFIG={out}" in capsys.readouterr().out
    assert out.stat().st_mode & 0o777 == 0o600
    assert (ca.folder / "network.json").stat().st_mode & 0o777 == 0o600
    found = parse(out.read_bytes(), "my.toml")
    assert (found.mesh.id, found.mesh.security, len(found.mesh.passphrase)) == ("acme", "sae", 32)
    assert (found.cluster.name, len(found.cluster.cookie)) == ("acme", 32)
    assert found.mesh.passphrase != found.cluster.cookie
    assert found.address.prefix == IPv6Interface("fd12:3456:789a:1::/64")
    assert (found.access.ssh_keys, found.access.console) == ("", False)
    fleet = Fleet(from_pem(found.trust.root)[0])
    assert fleet.identifier == ca.fleet.identifier
    # the same again, on paper and in the file
    assert ca_main(["config", "--out", str(out)]) == 0
    assert "and the same" in capsys.readouterr().out
    assert ca_main(["config", "--no-ssh-key"]) == 0
    assert capsys.readouterr().out == out.read_text()
    # what a person has changed is not thrown away
    edited = out.read_text().replace('#country = "00"', 'country = "DE"')
    edited = edited.replace("#channel = 1", "channel = 36").replace("#console", "console")
    out.write_text(edited)
    monkeypatch.setenv("HOME", str(tmp_path))
    again = parse(edited.encode(), "my.toml")
    assert (again.mesh.country, again.mesh.channel, again.access.console) == ("DE", 36, True)
    assert ca_main(["config", "--out", str(out)]) == 1
    assert out.read_text() == edited
    # and what writes cards takes it
    assert cards.read(out) == edited.encode()


def test_another_fleet_has_other_secrets(tmp_path: Path) -> None:
    one, two = authority(tmp_path / "1"), authority(tmp_path / "2")
    assert not set(one.network.secrets()) & set(two.network.secrets())


@pytest.mark.parametrize(
    ("name", "mesh", "cluster"),
    [
        ("acme", "acme", "acme"),
        ("Bären & Söhne", "Bären & Söhne", "B-ren---S-hne"),
        ('quo"te\\', 'quo"te\\', "quo-te"),
        ("x" * 60, "x" * 32, "x" * 60),
        ("ä" * 30, "ä" * 16, "thicket"),
    ],
)
def test_names_of_all_kinds(tmp_path: Path, name: str, mesh: str, cluster: str) -> None:
    made = card_config.text(authority(tmp_path, name))
    found = parse(made.encode(), "my.toml")
    assert (found.mesh.id, found.cluster.name) == (mesh, cluster)


def test_a_fleet_with_a_whole_site(tmp_path: Path) -> None:
    ca = authority(tmp_path, network=IPv6Network("fd12:3456:789a::/48"))
    found = parse(card_config.text(ca).encode(), "my.toml")
    assert found.address.prefix == IPv6Interface("fd12:3456:789a::/48")
    key = openssl.generate_key()
    device = FileKey(key, ca.enroll_software("mac", b"\1\2\3\4\5\6", openssl.public_key(key)))
    peer = asyncio.run(make_credentials(device, ca.fleet, CLOCK)).peer
    assert peer.address in found.address.prefix.network

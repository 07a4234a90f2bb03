# SPDX-License-Identifier: Apache-2.0
"""thicket.config: what a file may hold, what is said about faults, and which file is used."""

import base64
import os
import stat
import tomllib
from ipaddress import IPv6Interface
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware import document
from thicket.base.fields import MASK, ConfigError
from thicket.base.files import MAX_FILE_BYTES, write_atomically
from thicket.base.paths import Paths
from thicket.base.toml import toml_value
from thicket.config import parse as parsing
from thicket.config.load import load, remember
from thicket.config.parse import parse_toml
from thicket.config.schema import APPLICATION, SECTIONS, Settings, check
from thicket.config.template import template

TREE = Path(__file__).parents[2]


def faults(text: str | bytes) -> list[str]:
    data = text.encode() if isinstance(text, str) else text
    with pytest.raises(ConfigError) as caught:
        parsing.parse(data, "thicket.toml")
    return [str(finding) for finding in caught.value.findings]


def parse(text: str) -> Settings:
    return parsing.parse(text.encode(), "thicket.toml")


class TestSchema:
    def test_every_default_is_allowed_and_has_a_meaning(self) -> None:
        for cls in SECTIONS.values():
            assert cls.__doc__
            for key in cls.keys().values():
                assert key.check(key.plain(key.default)) == key.default, key.path
                assert key.help.endswith("."), key.path
                assert key.allowed, key.path

    def test_the_defaults_are_a_valid_configuration(self) -> None:
        assert parse("# defaults\n") == Settings()

    def test_defaults_of_the_post(self) -> None:
        settings = Settings()
        assert settings.address.prefix == IPv6Interface("fd12:3456:789a:1::/64")
        assert settings.mesh.channel == 1
        assert settings.mesh.security == "sae"  # theirs was open
        assert settings.mesh.beacon_interval == 1000

    @given(st.data())
    def test_allowed_values_survive_toml(self, data: st.DataObject) -> None:
        """What the writer writes is what TOML's own parser and the schema read."""
        values = {
            "mesh.id": data.draw(
                st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=8)
            ),
            "mesh.channel": data.draw(st.sampled_from(range(1, 14))),
            "cluster.cookie": data.draw(
                st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1).filter(
                    lambda t: len(t) <= 255
                )
            ),
            "discovery.check_source": data.draw(st.booleans()),
        }
        text = ""
        for path, value in values.items():
            section, _, name = path.partition(".")
            line = f"{name} = {toml_value(value)}\n"
            text += line if f"[{section}]\n" in text else f"[{section}]\n{line}"
        settings = parse(text)
        assert settings.mesh.id == values["mesh.id"]
        assert settings.mesh.channel == values["mesh.channel"]
        assert settings.cluster.cookie == values["cluster.cookie"]
        assert settings.discovery.check_source == values["discovery.check_source"]


class TestFaults:
    def test_all_are_reported_at_once_with_key_value_and_what_is_allowed(self) -> None:
        found = faults(
            '[mesh]\nchannel = 14\nid = ""\nsecurity = "wep"\ncolour = "red"\n'
            '[address]\nprefix = "fd12::/32"\n[cluster]\nport = "9100"\n[radio]\nx = 1\n'
        )
        assert len(found) == 7
        text = "\n".join(found)
        assert (
            "thicket.toml: line 2: mesh.channel = 14: must be a Wi-Fi channel: 1 to 13, 36" in text
        )
        assert 'mesh.id = "": must be text, 1 to 32 bytes of UTF-8' in text
        assert 'mesh.security = "wep": must be "sae" or "open"' in text
        assert "mesh.colour: unknown key" in text
        assert 'address.prefix = "fd12::/32": must be an IPv6 prefix' in text
        assert 'cluster.port = "9100": must be a whole number from 1024 to 65535' in text
        assert "[radio]: unknown section" in text

    def test_a_mistyped_key_gets_a_suggestion(self) -> None:
        assert faults("[mesh]\nchanel = 3\n") == [
            "thicket.toml: line 2: mesh.chanel: unknown key; did you mean channel?"
        ]
        assert "did you mean mesh?" in faults("[mash]\nid = 'a'\n")[0]

    def test_a_key_outside_of_its_section(self) -> None:
        assert faults("channel = 3\n")[0].endswith(
            "channel = 3: stands outside of any [section]; did you mean mesh.channel?"
        )
        assert "is a section; write [mesh]" in faults("mesh = 3\n")[0]

    @pytest.mark.parametrize(
        "text",
        [
            '[mesh]\nsecurity = "sae"\npassphrase = "secret7"\n',
            '[mesh]\npasphrase = "secret78"\n',
            'passphrase = "secret78"\n',
            '[cluster]\ncookie = "secret with blanks"\n',
            "[cluster]\ncookie = 5ecret\n",
        ],
    )
    def test_secrets_are_never_shown(self, text: str) -> None:
        assert "secret" not in "\n".join(faults(text))

    def test_syntax_errors_tell_the_line(self) -> None:
        (fault,) = faults("[mesh]\nid = \n")
        assert "the value is missing" in fault
        assert "line 2" in fault

    def test_duplicate_section_is_a_fault_even_when_empty(self) -> None:
        assert "[mesh] stands in line 1 already" in faults("[mesh]\n[mesh]\n")[0]

    def test_sae_needs_a_passphrase(self) -> None:
        assert "mesh.passphrase: is missing" in faults('[mesh]\nsecurity = "sae"\n')[0]
        good = parse('[mesh]\nsecurity = "sae"\npassphrase = "12345678"\n')
        assert good.mesh.passphrase == "12345678"

    def test_a_file_that_does_not_speak_of_it_is_followed_without_a_passphrase(self) -> None:
        """The radio says what is missing; whatever else the file says, such as keys, holds."""
        assert parse("# x\n").mesh.security == parse('[mesh]\nid = "x"\n').mesh.security == "sae"
        assert parse('[mesh]\nid = "x"\n').mesh.passphrase == ""
        assert parse('[mesh]\nsecurity = "open"\n').mesh.security == "open"

    def test_five_gigahertz_needs_a_country(self) -> None:
        assert "needs the country" in faults("[mesh]\nchannel = 36\n")[0]
        assert parse('[mesh]\nchannel = 36\ncountry = "DE"\n').mesh.channel == 36

    def test_channels_with_radars_are_taken_and_those_of_weather_radars_explained(self) -> None:
        assert parse('[mesh]\nchannel = 100\ncountry = "DE"\n').mesh.channel == 100
        (fault,) = faults('[mesh]\nchannel = 120\ncountry = "DE"\n')
        assert "mesh.channel = 120: is used by weather radars, which need ten minutes" in fault

    @pytest.mark.parametrize(
        ("channel", "width", "words"),
        [
            (36, 40, None),
            (48, 80, None),
            (161, 80, None),
            (144, 40, None),
            (6, 40, "on channel 6 (2.4 GHz) wpa_supplicant makes meshes of 20 MHz only"),
            (165, 40, "does not exist around channel 165"),
            (116, 40, "has channel 120 in it, where weather radars need ten minutes"),
            (100, 30, "must be 20, 40 or 80 (MHz)"),
        ],
    )
    def test_width(self, channel: int, width: int, words: str | None) -> None:
        text = f'[mesh]\nchannel = {channel}\nwidth = {width}\ncountry = "DE"\n'
        if words is None:
            assert parse(text).mesh.width == width
            assert "mesh.width = " in faults(text + "ht = false\n")[0]
        else:
            assert words in faults(text)[0]

    @pytest.mark.parametrize("number", ["inf", "-inf", "nan"])
    @pytest.mark.parametrize("key", ["channel", "id", "country", "radio"])
    def test_numbers_that_are_none_are_refused_in_words(self, key: str, number: str) -> None:
        assert f"mesh.{key} = " in faults(f"[mesh]\n{key} = {number}\n")[0]

    @pytest.mark.parametrize("word", ["mt76x2u", "00:C0:ca:12:34:56", "1-1.2", "mmc1:0001:1", ""])
    def test_a_radio_is_named_by_what_stays(self, word: str) -> None:
        assert parse(f'[mesh]\nradio = "{word}"\n').mesh.radio == word

    @pytest.mark.parametrize("word", ["phy0", "wlan1", "radio0"])
    def test_a_radio_is_not_named_by_what_changes(self, word: str) -> None:
        fault = faults(f'[mesh]\nradio = "{word}"\n')[0]
        assert f"another adapter may be {word} after the next start" in fault

    def test_expiry_must_leave_time_for_lost_beacons(self) -> None:
        assert "three times" in faults("[discovery]\ninterval = 20\nexpire = 30\n")[0]

    @pytest.mark.parametrize("value", ["true", "1.0", '"1"', "0", "14", "50", "2024-01-01", "[1]"])
    def test_channels_that_are_none(self, value: str) -> None:
        assert "mesh.channel" in faults(f"[mesh]\nchannel = {value}\n")[0]

    @pytest.mark.parametrize(
        "value",
        [
            "fd12:3456:789a:1::", "fd12:3456:789a:1::1/64", "fd12:3456:789a:1::/56", "fe80::/64",
            "ff02::/64", "::/64", "10.0.0.0/8", "fd12:3456:789a:1::/64%mesh0", "2/64", "",
        ],
    )  # fmt: skip
    def test_prefixes_that_are_none(self, value: str) -> None:
        assert "address.prefix" in faults(f'[address]\nprefix = "{value}"\n')[0]

    def test_the_post_s_prefix_length(self) -> None:
        prefix = parse('[address]\nprefix = "fd12:3456:789a:1::/48"\n').address.prefix
        assert str(prefix) == "fd12:3456:789a:1::/48"
        assert str(prefix.network) == "fd12:3456:789a::/48"

    @pytest.mark.parametrize("raw", ["a\nb", "tab\there", "\x7f", "\x85"])
    def test_control_characters_in_texts(self, raw: str) -> None:
        assert "control characters" in faults(f"[mesh]\nid = {toml_value(raw)}\n")[0]

    def test_mesh_id_counts_bytes(self) -> None:
        assert parse(f'[mesh]\nid = "{"ü" * 16}"\n').mesh.id == "ü" * 16
        assert "32 bytes" in faults(f'[mesh]\nid = "{"ü" * 17}"\n')[0]

    @pytest.mark.parametrize(
        ("text", "value"),
        [("0x58", "0x58"), ('"0x6A"', "0x6a"), ('"auto"', "auto"), ("96", "0x60")],
    )
    def test_address_of_the_chip(self, text: str, value: str) -> None:
        assert parse(f"[identity]\naddress = {text}\n").identity.address == value

    @pytest.mark.parametrize("text", ["0", "0x78", '"60"', '"0x"', "true", '"0x-1"', "-1"])
    def test_what_is_no_address_of_a_chip(self, text: str) -> None:
        assert "identity.address" in faults(f"[identity]\naddress = {text}\n")[0]

    def test_i2c_bus_as_number_or_text(self) -> None:
        assert parse("[identity]\ni2c_bus = 1\n").identity.i2c_bus == "1"
        assert parse('[identity]\ni2c_bus = "07"\n').identity.i2c_bus == "7"
        assert "identity.i2c_bus" in faults("[identity]\ni2c_bus = true\n")[0]


ED25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGm3S2ZKwQ0q8k7xZ2xk9y3m0m6m8nq9cQb4m2Yx5G1c"


def encoded(*fields: bytes) -> str:
    blob = b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    return base64.b64encode(blob).decode()


class TestPublicKeys:
    def test_a_list_or_lines(self) -> None:
        number = bytes([0, 200]) + bytes(255)
        rsa = f"ssh-rsa {encoded(b'ssh-rsa', bytes([1, 0, 1]), number)} two words"
        expected = f"{ED25519} anna@laptop\n{rsa}"
        for text in (
            f'ssh_keys = ["{ED25519} anna@laptop", "{rsa}"]',
            f'ssh_keys = """\n# keys\n  {ED25519} anna@laptop\n\n{rsa}\n"""',
            f'ssh_keys = "{ED25519} anna@laptop\\r\\n{rsa}"',
        ):
            assert parse(f"[access]\n{text}").access.ssh_keys == expected, text
        assert parse("[access]\nssh_keys = []").access.ssh_keys == ""
        again = f"[access]\nssh_keys = {toml_value(expected)}"
        assert parse(again).access.ssh_keys == expected

    @pytest.mark.parametrize(
        ("raw", "words"),
        [
            ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n", "is a private key"),
            ("PuTTY-User-Key-File-3: ssh-ed25519\nPrivate-Lines: 1", "is a private key"),
            ("ssh-ed25519", "the key itself is missing"),
            ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGm3S2Zk", "cut off"),
            ("ssh-ed25519 AAAA*", "not base64"),
            (f"ssh-ed25519 {encoded(b'ssh-ed25519', bytes(31))}", "32 bytes"),
            (f"ssh-ed25519 {encoded(b'ssh-rsa', b'', b'')}", "no ssh-ed25519 key"),
            (f"ssh-rsa {encoded(b'ssh-rsa', b'3', bytes([1]) * 128)}", "less than 2048 bits"),
            ("ssh-dss AAAA", "DSA"),
            (f"ecdsa-sha2-nistp256 {encoded(b'ecdsa-sha2-nistp256')}", "there is no key in it"),
            (f'command="reboot" {ED25519}', "options before its type"),
            ("hello", "unknown type"),
            (f"{ED25519} a\x1b[2J", "control characters"),
            (f"{ED25519} a\nhello", "key 2 has an unknown type"),
            ("\n".join([ED25519] * 33), "too much"),
            (7, "must be SSH public keys"),
            ([ED25519, 7], "must be SSH public keys"),
        ],
    )
    def test_what_is_none(self, raw: object, words: str) -> None:
        with pytest.raises(ConfigError) as info:
            check({"access": {"ssh_keys": raw}}, "f")
        (finding,) = info.value.findings
        assert finding.key == "access.ssh_keys"
        assert words in finding.message
        # it may be a private key
        assert "b3Blb" not in str(finding)
        assert finding.value == MASK

    @given(st.text(max_size=80))
    def test_any_text(self, text: str) -> None:
        for raw in (text, f"ssh-ed25519 {text}", f"{ED25519} {text}"):
            try:
                values = check({"access": {"ssh_keys": raw}}, "f")
            except ConfigError as e:
                assert e.findings[0].message
            else:
                # one key a line, nothing that another program could take for something else
                lines = values["access"]["ssh_keys"].split("\n")
                assert lines == [""] or all(line.startswith("ssh-ed25519 ") for line in lines)


class TestApplications:
    def test_are_handed_on_as_they_are(self) -> None:
        settings = parse(
            '[application.sensors]\npins = [4, 17]\nname = "x"\nrate = 1.5\non = true\n'
            "[application.sensors.deep]\na = { b = [] }\n[application.other]\n"
        )
        assert settings.application == {
            "sensors": {
                "pins": [4, 17], "name": "x", "rate": 1.5, "on": True, "deep": {"a": {"b": []}},
            },
            "other": {},
        }  # fmt: skip

    def test_over_the_image_s(self) -> None:
        base = {"application": {"a": {"x": 1, "y": 2}, "b": {"z": 3}}}
        settings = parsing.parse(b"[application.a]\ny = 5\n", "f", base)
        assert settings.application == {"a": {"x": 1, "y": 5}, "b": {"z": 3}}
        assert base["application"]["a"]["y"] == 2

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("application = 3", "write [application.NAME]"),
            ("[application]\nx = 3", "write [application.NAME]"),
            ('[application."a b"]\n', "must have a name"),
            ("[application.a]\nx = 1979-05-27", "write it as text"),
            ("[application.a]\nx = [[[1979-05-27]]]", "write it as text"),
            ("[application.a]\nx = inf", "not finite"),
            ("[application.a]\nx = [[[[[[[[1]]]]]]]]", "nested too deeply"),
            ("\n".join(f"[application.a{n}]" for n in range(33)), "at most 32"),
        ],
    )
    def test_what_cannot_be_handed_on(self, text: str, words: str) -> None:
        with pytest.raises(ConfigError) as info:
            parse(text)
        assert words in str(info.value)

    def test_values_are_not_shown(self) -> None:
        with pytest.raises(ConfigError) as info:
            parse('[application.a]\nsecret = ["hunter2", 1979-05-27]')
        assert "hunter2" not in str(info.value)

    def test_a_change_names_the_application(self) -> None:
        old, new = parse("[application.a]\nx = 1"), parse("[application.b]\n")
        assert old.changed(new) == ["application.a", "application.b"]
        assert old != new
        assert old == parse("[application.a]\nx = 1")

    def test_a_mistyped_section_gets_a_suggestion(self) -> None:
        with pytest.raises(ConfigError, match=r"did you mean application\?"):
            parse("[aplication.a]\nx = 1")


class TestBytes:
    def test_windows_editors(self) -> None:
        data = b'\xef\xbb\xbf[mesh]\r\nid = "a"\r\nchannel = 6\r\n'
        settings = parsing.parse(data, "f")
        assert (settings.mesh.id, settings.mesh.channel) == ("a", 6)

    def test_utf16_is_named(self) -> None:
        assert "UTF-16" in faults('[mesh]\nid = "a"\n'.encode("utf-16"))[0]

    def test_other_encodings_tell_the_line(self) -> None:
        assert (
            "line 3, column 4: holds a byte that is not UTF-8 (0xe4"
            in faults(b"# a\n# b\n# M\xe4rz\n")[0]
        )

    def test_size_limit(self) -> None:
        assert "larger than 64 KiB" in faults(b"#" * (MAX_FILE_BYTES + 1))[0]

    def test_deep_nesting(self) -> None:
        assert "line 1: is nested too deeply" in faults("a = " + "[" * 30000)[0]

    @given(st.binary(max_size=300))
    def test_no_bytes_do_anything_else_than_pass_or_fail_with_words(self, data: bytes) -> None:
        try:
            parsing.parse(data, "f")
        except ConfigError as e:
            assert e.findings
            assert str(e)

    @given(
        st.lists(
            st.tuples(
                st.sampled_from([*SECTIONS, "radio", ""]),
                st.sampled_from(["id", "channel", "prefix", "cookie", "passphrase", "x", "level"]),
                st.one_of(
                    st.integers(), st.booleans(), st.text(max_size=70), st.floats(),
                    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(), st.none()),
                ),
            ),
            max_size=6,
        )
    )  # fmt: skip
    def test_any_tables(self, entries: list[tuple[str, str, object]]) -> None:
        tables: dict[str, object] = {}
        for section, key, value in entries:
            if section:
                table = tables.setdefault(section, {})
                assert isinstance(table, dict)
                table[key] = value
            else:
                tables[key] = value
        try:
            values = check(tables, "f")
        except ConfigError as e:
            assert all(finding.message for finding in e.findings)
        else:
            assert Settings(values) is not None
            assert set(values) <= {*SECTIONS, APPLICATION}


class TestShortcut:
    """A file of sections and comments alone is not given to tomllib; it must make no difference."""

    @given(
        st.lists(
            st.sampled_from(["", "# c", "[mesh]", "[log]", "[mesh] # c", " [log]", "[nix]", "#[x"]),
            max_size=5,
        )
    )
    def test_same_as_tomllib(self, lines: list[str]) -> None:
        text = "\n".join(lines)
        try:
            expected: dict[str, object] | None = tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            expected = None
        try:
            got: dict[str, object] | None = parse_toml(text, "f")
        except ConfigError:
            got = None
        if expected is None:
            assert got is None
        else:
            assert got is not None
            # sections without keys may be left out
            assert {k: v for k, v in got.items() if v} == {k: v for k, v in expected.items() if v}
            assert all(k in got or k in SECTIONS for k in expected)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(str(tmp_path))
    for folder in ("etc/thicket", "data/thicket", "proc/self", "boot", "usr/share/thicket"):
        (tmp_path / folder).mkdir(parents=True)
    Path(made.cmdline).write_text("console=ttyS0 thicket.boot=/dev/vdc quiet\n")
    Path(made.mounts).write_text(f"/dev/vdc {made.boot} vfat ro 0 0\n")
    return made


class TestLoad:
    def test_without_any_file_the_built_in_defaults(self, paths: Paths) -> None:
        loaded = load(paths)
        assert loaded.settings == Settings()
        assert (loaded.source, loaded.findings, loaded.last_good_used) == ("defaults", [], False)

    def test_the_device_s_file_over_the_image_s(self, paths: Paths) -> None:
        Path(paths.image).write_text('[mesh]\nid = "fleet"\nchannel = 6\n')
        Path(paths.device).write_text("[mesh]\nchannel = 11\n")
        loaded = load(paths)
        assert loaded.source == paths.device
        assert (loaded.settings.mesh.id, loaded.settings.mesh.channel) == ("fleet", 11)

    def test_precedence(self, paths: Paths) -> None:
        Path(paths.local).write_text('[mesh]\nid = "local"\n')
        assert load(paths).settings.mesh.id == "local"
        Path(paths.device).write_text('[mesh]\nid = "device"\n')
        assert load(paths).settings.mesh.id == "device"

    def test_last_good_after_a_fault(self, paths: Paths) -> None:
        Path(paths.device).write_text('[mesh]\nid = "good"\n')
        remember(paths, load(paths))
        Path(paths.device).write_text('[mesh]\nid = "bad"\nchannel = 99\n')
        loaded = load(paths)
        assert loaded.settings.mesh.id == "good"
        assert loaded.last_good_used
        assert "mesh.channel = 99" in str(loaded.findings[0])
        # the faulty file must not become the last good one
        remember(paths, loaded)
        assert 'id = "good"' in Path(paths.last_good).read_text()

    def test_defaults_when_there_is_no_last_good(self, paths: Paths) -> None:
        Path(paths.image).write_text('[mesh]\nid = "fleet"\n')
        Path(paths.device).write_bytes(b"\xff")
        loaded = load(paths)
        assert loaded.source == "defaults"
        assert loaded.settings.mesh.id == "fleet"
        assert loaded.findings

    def test_a_broken_last_good_file(self, paths: Paths) -> None:
        Path(paths.device).write_bytes(b"[")
        Path(paths.last_good).write_bytes(b"\x00")
        loaded = load(paths)
        assert loaded.settings == Settings()
        assert {finding.file for finding in loaded.findings} == {paths.device, paths.last_good}

    def test_a_file_taken_away_means_last_good(self, paths: Paths) -> None:
        Path(paths.device).write_text('[mesh]\nid = "good"\n')
        remember(paths, load(paths))
        Path(paths.device).unlink()
        loaded = load(paths)
        assert loaded.settings.mesh.id == "good"
        assert "is gone" in str(loaded.findings[0])
        remember(paths, loaded)
        assert Path(paths.last_good).read_text() == '[mesh]\nid = "good"\n'

    def test_a_boot_partition_that_cannot_be_mounted_means_last_good(self, paths: Paths) -> None:
        Path(paths.last_good).write_text('[mesh]\nid = "good"\n')
        Path(paths.mounts).write_text("")
        loaded = load(paths)
        assert loaded.settings.mesh.id == "good"
        assert "/dev/vdc could not be mounted" in str(loaded.findings[0])

    def test_without_a_boot_partition_nothing_is_missing(self, paths: Paths) -> None:
        Path(paths.mounts).write_text("")
        Path(paths.cmdline).write_text("console=ttyS0\n")
        assert load(paths).findings == []

    def test_a_faulty_image_file_is_reported_and_passed_over(self, paths: Paths) -> None:
        Path(paths.image).write_text("[mesh]\nchannel = 99\n")
        Path(paths.device).write_text('[mesh]\nid = "mine"\n')
        loaded = load(paths)
        assert loaded.settings.mesh.id == "mine"
        assert loaded.findings[0].file == paths.image

    def test_a_directory_in_place_of_the_file(self, paths: Paths) -> None:
        Path(paths.device).mkdir()
        assert "cannot be read" in str(load(paths).findings[0])

    def test_last_good_is_private_and_written_once(self, paths: Paths) -> None:
        Path(paths.device).write_text('[mesh]\nid = "good"\n')
        remember(paths, load(paths))
        first = Path(paths.last_good).stat()
        assert first.st_mode & 0o777 == 0o600
        remember(paths, load(paths))
        assert Path(paths.last_good).stat().st_ino == first.st_ino


class TestChanged:
    def test_names_the_keys(self) -> None:
        other = parse('[mesh]\nid = "other"\n[cluster]\ncookie = "c"\n')
        assert Settings().changed(other) == ["mesh.id", "cluster.cookie"]
        assert other.changed(other) == []

    def test_secrets_do_not_show_in_repr(self) -> None:
        settings = parse('[cluster]\ncookie = "geheim"\n')
        assert "geheim" not in repr(settings.cluster)


class TestAtomicWrite:
    def test_a_failed_write_leaves_the_old_file_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target = tmp_path / "file"
        target.write_text("old")

        def full(_fd: int, _data: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match="space"):
            write_atomically(str(target), b"new")
        assert target.read_text() == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_what_an_interrupted_write_left_behind_does_not_widen_the_permissions(
        self, tmp_path: Path
    ) -> None:
        target, left = tmp_path / "file", tmp_path / "file.new"
        left.write_text("half")
        left.chmod(0o644)
        write_atomically(str(target), b"secret", mode=0o600)
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
        assert target.read_bytes() == b"secret"


class TestMadeTexts:
    @pytest.mark.parametrize("path", [*document.outputs(TREE)], ids=lambda p: p.name)
    def test_are_in_step_with_the_schema(self, path: Path) -> None:
        if not path.parent.parent.joinpath("app").is_dir() and path.suffix == ".md":
            pytest.skip("the tree's documents are not beside the package")
        made = document.outputs(TREE)[path]
        assert path.read_text(encoding="utf-8") == made, "run python -m firmware.document ."

    def test_the_template_is_the_defaults_with_and_without_its_remarks(self) -> None:
        text = template()
        assert parse(text) == Settings()
        lines = [line[1:] if line[:1] == "#" and line[1:2].islower() else line for line in
                 text.splitlines()]  # fmt: skip
        at = lines.index('passphrase = ""')
        lines[at] = 'passphrase = "12345678"'  # whoever says "sae" has to
        settings = parse("\n".join(lines))
        assert settings == Settings({"mesh": {"passphrase": "12345678"}})
        assert sum(len(table) for table in settings_values(settings)) == sum(
            len(cls.keys()) for cls in SECTIONS.values()
        )


def settings_values(settings: Settings) -> list[dict[str, object]]:
    return [section.values for _, section in settings.sections()]

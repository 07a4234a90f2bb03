# SPDX-License-Identifier: Apache-2.0
"""thicket.store: editing the file without spoiling it, and writing it where it belongs."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thicket.base.fields import ConfigError
from thicket.base.paths import Paths
from thicket.config.edit import apply, set_values, source
from thicket.config.load import load
from thicket.config.parse import parse
from thicket.config.template import template
from thicket.device import boot_partition
from thicket.device.boot_partition import StoreError

PLAIN = """\
# my greenhouse
[mesh]
id = "old"        # the name
channel = 6
# a remark at the end

[cluster]
cookie = "c"
"""


class TestSetValues:
    def test_a_value_is_replaced_in_its_line_and_remarks_stay(self) -> None:
        text = set_values(PLAIN, {"mesh.id": "new"})
        assert text == PLAIN.replace('id = "old"        # the name', 'id = "new"  # the name')

    def test_a_new_key_goes_into_its_section(self) -> None:
        text = set_values(PLAIN, {"mesh.country": "DE"})
        assert text == PLAIN.replace("channel = 6\n", 'channel = 6\ncountry = "DE"\n')

    def test_a_new_section_goes_to_the_end(self) -> None:
        assert set_values(PLAIN, {"log.level": "debug"}) == PLAIN + '\n[log]\nlevel = "debug"\n'

    def test_an_empty_file(self) -> None:
        assert set_values("", {"mesh.id": "a"}) == '[mesh]\nid = "a"\n'

    def test_the_template_keeps_its_remarks(self) -> None:
        text = set_values(template(), {"mesh.channel": 11})
        assert parse(text.encode(), "f").mesh.channel == 11
        assert text.count("\n") == template().count("\n") + 1

    def test_unset(self) -> None:
        assert set_values(PLAIN, {"mesh.channel": None}) == PLAIN.replace("channel = 6\n", "")
        assert set_values(PLAIN, {"mesh.country": None}) == PLAIN

    @pytest.mark.parametrize(
        "text",
        [
            'mesh = { id = "old", channel = 6 }\n',
            'mesh.id = "old"\nmesh.channel = 6\n',
            '[mesh]\n"id" = "old"\nchannel = 6\n',
            '[mesh]\nid = """\nold"""\nchannel = 6\n',
            "[mesh]\nchannel = 6\nid = '''a\nid = 3\n'''\n",
            '[ mesh ]  # x\nid = "old # no remark"\nchannel = 6\n',
            '["mesh"]\nid = "old"\nchannel = 6\n',
            '[mesh]\r\nid = "old"\r\nchannel = 6',
        ],
    )
    def test_unusual_layouts_keep_their_values(self, text: str) -> None:
        changed = tomllib.loads(set_values(text, {"mesh.id": 'n"ew', "log.level": "info"}))
        assert changed == {"mesh": {"id": 'n"ew', "channel": 6}, "log": {"level": "info"}}

    def test_settings_of_applications_and_key_lists_stay(self) -> None:
        text = (
            'access.ssh_keys = ["a", "b"]\n'  # a layout that is written anew
            '[application.a]\n"odd key" = { x = [1, 2.5, true] }\ns = "line\\nline \\"q\\""\n'
            '[application."b.c"]\nd-e = 1\n[application.empty]\n'
        )
        changed = set_values(text, {"mesh.channel": 6, "access.console": True})
        expected = tomllib.loads(text)
        expected["access"]["console"] = True
        expected["mesh"] = {"channel": 6}
        assert tomllib.loads(changed) == expected

    def test_a_file_that_is_no_toml(self) -> None:
        with pytest.raises(ConfigError):
            set_values("[mesh\n", {"mesh.id": "a"})

    @given(
        st.lists(
            st.sampled_from(
                [
                    "[mesh]", "[cluster]", "[log]", "", "# id = 1", 'id = "x"', "id = 3 # y",
                    'cookie = "#\\""', "level = 'debug'", "channel=1", "  channel = 2",
                ]
            ),
            max_size=8,
        ),
        st.sampled_from(["mesh.id", "mesh.channel", "cluster.cookie", "log.level"]),
        st.one_of(st.none(), st.text(max_size=6), st.integers(-5, 5), st.booleans()),
    )  # fmt: skip
    def test_exactly_the_wanted_key_changes(
        self, lines: list[str], path: str, value: object
    ) -> None:
        text = "\n".join(lines)
        try:
            expected = tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            return
        if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
            return
        section, _, key = path.partition(".")
        if value is None:
            expected.get(section, {}).pop(key, None)
        else:
            expected.setdefault(section, {})[key] = value
        got = tomllib.loads(set_values(text, {path: value}))
        tables = {name: table for name, table in expected.items() if table != {}}
        assert {name: table for name, table in got.items() if table != {}} == {
            # keys outside of any section are lost only when the file is written anew; they are
            # faults in any case
            name: table
            for name, table in tables.items()
            if isinstance(table, dict) or name in got
        }


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(str(tmp_path))
    for folder in ("etc/thicket", "proc/self", "boot"):
        (tmp_path / folder).mkdir(parents=True)
    Path(made.cmdline).write_text("console=ttyS0\n")
    Path(made.mounts).write_text("")
    return made


@pytest.fixture
def card(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A device with a boot partition; the mount commands that were run."""
    Path(paths.cmdline).write_text("thicket.boot=/dev/vdc\n")
    Path(paths.mounts).write_text(f"/dev/vdc {paths.boot} vfat ro 0 0\n")
    commands: list[str] = []
    monkeypatch.setattr(boot_partition, "run", lambda words: commands.append(" ".join(words)))
    return commands


class TestApply:
    def test_without_a_boot_partition_the_data_partition_has_it(self, paths: Paths) -> None:
        assert apply(paths, b'[mesh]\nid = "a"\n') == paths.local
        assert load(paths).settings.mesh.id == "a"
        assert Path(paths.local).stat().st_mode & 0o777 == 0o600

    def test_a_file_in_etc_does_not_hide_the_new_one(self, paths: Paths) -> None:
        Path(paths.device).write_text('[mesh]\nid = "hand-made"\n')
        apply(paths, b'[mesh]\nid = "a"\n')
        assert load(paths).settings.mesh.id == "a"

    def test_the_boot_partition_is_writable_only_meanwhile(
        self, paths: Paths, card: list[str]
    ) -> None:
        target = apply(paths, b'[mesh]\nid = "a"\n')
        assert target == f"{paths.boot}/thicket.toml"
        assert Path(target).read_text() == '[mesh]\nid = "a"\n'
        assert card == [f"mount -o remount,rw {paths.boot}", f"mount -o remount,ro {paths.boot}"]
        assert load(paths).settings.mesh.id == "a", "the copy in /etc follows"
        assert [p.name for p in Path(paths.boot).iterdir()] == ["thicket.toml"]

    def test_it_is_mounted_when_it_was_not(self, paths: Paths, card: list[str]) -> None:
        Path(paths.mounts).write_text("")
        apply(paths, b"# defaults\n")
        assert card[0] == f"mount -t vfat -o ro,nosuid,nodev,noexec,noatime /dev/vdc {paths.boot}"

    def test_faults_are_found_before_anything_is_written(
        self, paths: Paths, card: list[str]
    ) -> None:
        with pytest.raises(ConfigError, match=r"mesh\.channel"):
            apply(paths, b"[mesh]\nchannel = 99\n")
        assert card == []
        assert not Path(paths.device).exists()

    def test_it_is_read_only_again_after_a_failure(
        self, paths: Paths, card: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_args: object, **_kwargs: object) -> None:
            raise OSError(28, "No space left on device", "/boot/thicket.toml.new")

        monkeypatch.setattr("thicket.device.boot_partition.write_atomically", fail)
        with pytest.raises(StoreError, match="No space left"):
            apply(paths, b"# defaults\n")
        assert card[-1] == f"mount -o remount,ro {paths.boot}"

    def test_a_mount_that_fails_says_what_it_said(
        self, paths: Paths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        Path(paths.cmdline).write_text("thicket.boot=/dev/vdc\n")
        fake = tmp_path / "bin" / "mount"
        fake.parent.mkdir()
        fake.write_text("#!/bin/sh\necho 'no medium' >&2\nexit 32\n")
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", str(fake.parent), prepend=":")
        with pytest.raises(StoreError, match="no medium"):
            apply(paths, b"# defaults\n")


class TestSource:
    def test_which_file_is_edited(self, paths: Paths) -> None:
        assert source(paths) == ("", paths.local)
        Path(paths.device).write_bytes(b"\xef\xbb\xbf[mesh]\r\n")
        assert source(paths) == ("[mesh]\n", paths.device)

    def test_the_boot_partition_s_own_file_not_the_copy(
        self, paths: Paths, card: list[str]
    ) -> None:
        target = f"{paths.boot}/thicket.toml"
        Path(paths.device).write_text('[mesh]\nid = "tried by hand"\n')
        assert source(paths) == ("", target)
        Path(target).write_text('[mesh]\nid = "card"\n')
        assert source(paths) == ('[mesh]\nid = "card"\n', target)
        assert card == []

    def test_an_unmounted_boot_partition_is_mounted_before_its_file_is_missed(
        self, paths: Paths, card: list[str]
    ) -> None:
        """Otherwise an edit would replace the whole file by one line."""
        Path(paths.mounts).write_text("")
        source(paths)
        assert len(card) == 1

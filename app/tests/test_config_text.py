# SPDX-License-Identifier: Apache-2.0
"""A file as people write it is refused with the line, a mark below the place, and what to write."""

import importlib.metadata
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thicket.applications.api import Application
from thicket.applications.service import GROUP
from thicket.base.fields import ConfigError, Finding
from thicket.cli.common import BAD, OK
from thicket.cli.main import main
from thicket.config.edit import set_values
from thicket.config.parse import parse
from thicket.radio import countries, country_names

SECRET = "geheim123"


def faults(text: str | bytes) -> list[Finding]:
    data = text.encode() if isinstance(text, str) else text
    with pytest.raises(ConfigError) as caught:
        parse(data, "thicket.toml")
    return caught.value.findings


#: What stands in a file, where the mark is, and what is to be written instead.
MISTAKES = {
    "text without quotes": ('[mesh]\nid = "a"\ncountry = DE\n', 3, 11, 'write country = "DE"'),
    "name of a country": ("[mesh]\ncountry = Germany # here\n", 2, 11, 'write country = "DE"'),
    "yes": ("[access]\nconsole = yes\n", 2, 11, "write console = true, without quotes"),
    "True": ("[mesh]\nht = True\n", 2, 6, "write ht = true, without quotes"),
    "a word for yes or no": ("[mesh]\nht = maybe\n", 2, 6, "write ht = true or ht = false"),
    "curly quotes": ("[mesh]\nid = “acme”\n", 2, 6, 'straight ones (" or \'): write id = "acme"'),
    "low quotes": ("[mesh]\nid = „acme“\n", 2, 6, 'write id = "acme"'),
    "curly quote at the end": ('[mesh]\nid = "acme”\n', 2, 11, 'write id = "acme"'),
    "curly quotes around true": ("[mesh]\nht = “true”\n", 2, 6, "write ht = true"),
    "backquotes": ("[mesh]\nid = `acme`\n", 2, 6, "write id = 'acme'"),
    "colon": ("[mesh]\ncountry: DE\n", 2, 8, 'write country = "DE"'),
    "no equals sign": ("[mesh]\nchannel 6\n", 2, 9, "write channel = 6"),
    "two equals signs": ('[mesh]\nid == "x"\n', 2, 5, "one = is enough"),
    "no value": ("[mesh]\nchannel =\n", 2, 10, "the value is missing"),
    "key alone": ("[mesh]\nchannel\n", 2, 8, "a key is followed by ="),
    "zero before a number": ("[mesh]\nchannel = 06\n", 2, 11, "write channel = 6"),
    "unit": ("[discovery]\ninterval = 5 s\n", 2, 12, "write interval = 5"),
    "null": ("[mesh]\ncountry = null\n", 2, 11, "delete the line for the default of country"),
    "no closing quote": ('[mesh]\nid = "acme\n', 2, 6, 'write id = "acme"'),
    "quote in a text": ('[mesh]\nid = "ac"me"\n', 2, 12, 'write \\" for a quote in the text'),
    "text behind a text": ('[mesh]\nid = "ac" me\n', 2, 11, "behind the closing quote nothing"),
    "backslash": ('[mesh]\nid = "C:\\home"\n', 2, 9, "write it twice (\\\\)"),
    "twice": ('[mesh]\nid = "a"\nid = "b"\n', 3, 1, "id is set in line 2 already"),
    "section twice": ('[mesh]\nid = "a"\n[log]\n[mesh]\n', 4, 1, "stands in line 1 already"),
    "no bracket": ("[mesh\nid = 1\n", 1, 6, "write [mesh]"),
    "round brackets": ("(mesh)\n", 1, 1, "write [mesh]"),
    "key behind a section": ('[mesh] id = "a"\n', 1, 8, "alone on its line: write [mesh]"),
    "other remark": ("[mesh]\n// mine\n", 2, 1, "a remark begins with #"),
    "blank in a key": ('[mesh]\nmesh id = "a"\n', 2, 6, "one word of letters"),
    "list without quotes": ("[firewall]\nallow = [tcp/80]\n", 2, 10, 'allow = ["tcp/8080"'),
    "no list": ("[firewall]\nallow = tcp/80\n", 2, 9, 'write allow = ["tcp/80"]'),
    "open list": ('[firewall]\nallow = ["tcp/80"\n[log]\n', 2, 9, "bracket here is never closed"),
    "open text": ("[trust]\nroot = '''\nabc\n", 2, 8, "write ''' at the text's end"),
    "certificate without quotes": (
        "[trust]\nroot = -----BEGIN CERTIFICATE-----\nMIIB\n", 2, 8, "stands between three quotes",
    ),
    "number with a comma": ("[application.a]\nx = 1,5\n", 2, 5, "a number has a point"),
    "zeros": ('[mesh]\nid = "a"\n\0\0\0', 3, 1, "the file is damaged"),
    "control character": ('[mesh]\nid = "a\x07"\n', 2, 8, "a control character (U+0007)"),
    "blank of another kind": ('[mesh]\nid\xa0= "x"\n', 2, 3, "a blank of another kind (U+00A0)"),
    "JSON": ('{"log": {"level": "info"}}\n', 1, 1, "write [section], key = value"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_syntax_error_tells_line_column_and_what_to_write(mistake: str) -> None:
    text, line, column, right = MISTAKES[mistake]
    (fault,) = faults(text)
    assert (fault.line, fault.column) == (line, column)
    assert right in fault.message
    written = text.split("\n")[line - 1]
    if "\0" in written:
        assert fault.shown == ""
        return
    shown, mark = fault.shown.split("\n")
    assert mark == " " * (len(mark) - 1) + "^"
    if "****" not in shown:
        assert len(mark) == column
    assert shown.startswith(written[: len(mark) - 1])
    assert str(fault).splitlines()[1:] == [f"    {shown}", f"    {mark}"]


def test_all_syntax_errors_of_a_file_are_told_of() -> None:
    text = "[mesh]\nid = DE\ncountry = “DE”\nht = yes\n[log]\nlevel: info\n"
    found = faults(text)
    assert [fault.line for fault in found] == [2, 3, 4, 6]
    assert all("write " in fault.message for fault in found)


LEAKS = [
    "[mesh]\npassphrase = {}\n",
    "[mesh]\npassphrase: {}\n",
    "[mesh]\npassphrase {}\n",
    "[mesh]\npasphrase = {}\n",
    "[mesh]\npass phrase = {}\n",
    '[mesh]\npassphrase = "{}\n',
    "[mesh]\npassphrase = “{}”\n",
    '[mesh]\npassphrase = "a\\{}"\n',
    "{}\n",
    "[mesh] passphrase = {}\n",
    "[mesh passphrase {}\n",
    '[mesh]\nid = "x" passphrase = "{}"\n',
    '[mesh]\nid = “x”, passphrase = "{}"\n',
    "[mesh]\nid: x passphrase = {}\n",
    '{{"mesh": {{"passphrase": "{}"}}}}\n',
    "mesh:\n  passphrase: {}\n",
    "[application.garden]\ntoken = {}\n",
    "[access]\nssh_keys = [ssh-ed25519 {}]\n",
    '[mesh]\nid = "x\npassphrase = "{}"\n',
    '[mesh]\npassphrase = "{}"\npassphrase = "{}"\n',
    "#passphrase = {} \x07\n[mesh]\nid = 'x'\n",
]


@pytest.mark.parametrize("text", LEAKS)
def test_no_syntax_error_shows_a_secret(text: str) -> None:
    assert SECRET not in "\n".join(map(str, faults(text.replace("{}", SECRET).replace("{{", "{"))))


@settings(deadline=None)
@given(st.text("[]{}=\"'\\#\n\t ,.:-_mesh“”idx01\0\x07é", max_size=60))
def test_whatever_stands_in_a_file_has_an_answer(text: str) -> None:
    try:
        parse(text.encode(), "f")
    except ConfigError as error:
        for fault in error.findings:
            assert fault.message
            assert fault.line <= text.count("\n") + 1


def test_another_encoding_is_shown_with_its_place() -> None:
    (fault,) = faults('[mesh]\r\nid = "Gewächshaus"\r\n'.encode("cp1252"))
    assert (fault.line, fault.column) == (2, 10)
    assert "save the file as UTF-8" in fault.message
    assert fault.shown == 'id = "Gewächshaus"\n         ^'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[mesh]\nchannel = "6"\n', "line 2: mesh.channel = "),
        ('[mesh]\nchannel = "6"\n', "; write channel = 6"),
        ('[access]\nconsole = "yes"\n', "; write console = true"),
        ("[mesh]\nid = 12\n", '; write id = "12"'),
        ('[firewall]\nallow = "tcp/80"\n', '; write allow = ["tcp/80"]'),
        ('[address]\nchanel = 6\n', "line 2: address.chanel: unknown key; did you mean mesh."),
        ('[mesh]\nID = "a"\n', "did you mean id?"),
        ("[mesh]\npassphrase = 1234567890\n", '; write passphrase = "..."'),
        ('[mesh]\npassphrase = "abc"\n', "is too short: must be text, 8 to 63 bytes"),
        ("[application.garden]\n\nwhen = 2026-01-01\n", "line 3: application.garden.when: holds"),
        ('[application.garden]\nenabled = "no"\n', "2: application.garden.enabled: must be true"),
    ],
)  # fmt: skip
def test_a_wrong_value_tells_its_line_and_what_to_write(text: str, words: str) -> None:
    assert words in "\n".join(map(str, faults(text)))


def test_every_country_has_a_name_that_leads_to_its_code() -> None:
    names = country_names.english()
    assert names.keys() == countries.CODES
    for code, name in names.items():
        assert country_names.find(name) == (code, name)
        assert country_names.find(name.upper().replace(" AND ", " & ")) == (code, name)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("Deutschland", "DE"), ("oesterreich", "AT"), ("The Netherlands", "NL"), ("U.S.A.", "US"),
        ("Cote d'Ivoire", "CI"), ("Germny", "DE"), ("Great Britain", "GB"),
    ],
)  # fmt: skip
def test_other_names_and_misspelt_ones_are_understood(name: str, code: str) -> None:
    assert f'is "{code}"' in str(countries.fault(name))


@pytest.mark.parametrize("name", ["Niger", "Iraq", "Atlantis", ""])
def test_a_country_that_is_not_in_the_database_is_not_taken_for_another(name: str) -> None:
    assert country_names.find(name) is None


# -- the settings of applications


@dataclass
class GardenSettings:
    interval: float = 5.0

    def __post_init__(self) -> None:
        if self.interval <= 0:
            raise ValueError("interval: must be greater than 0")


@pytest.fixture
def garden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed application "garden"; the folder of the file."""
    info = tmp_path / "site/garden-1.dist-info"
    info.mkdir(parents=True)
    points = f"[{GROUP}]\ngarden = garden_for_tests:Garden\nbroken = garden_for_tests:No\n"
    (info / "entry_points.txt").write_text(points)
    module = types.ModuleType("garden_for_tests")
    module.Garden = type("Garden", (Application,), {"Settings": GardenSettings})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "garden_for_tests", module)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("THICKET_ROOT", str(tmp_path))
    assert importlib.metadata.entry_points(group=GROUP, name="garden")
    return tmp_path


def check(folder: Path, text: str, verb: str = "check") -> int:
    file = folder / "new.toml"
    file.write_text(text)
    return main(["config", verb, str(file)])


@pytest.mark.parametrize("verb", ["check", "apply"])
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("interval = 0", "interval: must be greater than 0"),
        ('interval = "x"', "interval: "),
        ("speed = 1", "speed is not known; known are: interval"),
    ],
)
def test_an_application_that_is_there_judges_its_settings(
    garden: Path, capsys: pytest.CaptureFixture[str], line: str, words: str, verb: str
) -> None:
    assert check(garden, f"# mine\n[application.garden]\n{line}\n", verb) == BAD
    err = capsys.readouterr().err
    assert "line 2: application.garden: " in err
    assert words in err
    assert not (garden / "data").exists()


def test_right_settings_of_an_application_are_right(
    garden: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(garden, "[application.garden]\ninterval = 3\nenabled = true\n") == OK
    assert capsys.readouterr().err == ""


def test_what_no_application_judges_is_told(
    garden: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(garden, "[application.gardn]\nx = 1\n[application.broken]\ny = 2\n") == OK
    out, err = capsys.readouterr()
    assert "is right" in out
    assert "[application.gardn] is not judged: the application is not installed here" in err
    assert "garden" in err
    assert "[application.broken] is not judged: AttributeError" in err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("format = 2", "format: is 2: the file was written for a newer version"),
        ("format = 0", "format: must be 1 to 1"),
        ('format = "1"', "format: must be 1 to 1"),
        ("format = true", "format: must be 1 to 1"),
        ("[format]\nx = 1", "format: must be 1 to 1"),
    ],
)
def test_a_file_for_another_version_is_refused_as_a_whole(line: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"{line}\n[mesh]\nnew_key = 1\n".encode(), "thicket.toml")
    (finding,) = caught.value.findings
    assert words in str(finding)


def test_the_format_stays_in_a_file_that_is_edited() -> None:
    text = "format = 1\n[mesh]\nid = 'a'\n"
    assert parse(text.encode(), "thicket.toml").mesh.id == "a"
    edited = set_values(text, {"mesh.id": "b"})
    assert edited.startswith("format = 1\n")
    # A file that has to be written anew keeps it, too.
    edited = set_values("format = 1\nmesh = { id = 'a' }\n", {"mesh.id": "b"})
    assert edited.startswith("format = 1\n")
    assert parse(edited.encode(), "thicket.toml").mesh.id == "b"

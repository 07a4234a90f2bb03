# SPDX-License-Identifier: Apache-2.0
"""What others say does nothing to the terminal that shows it."""

import io
import json
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thicket.base.visible import VisibleStream, visible, visible_output
from thicket.cli.main import main
from thicket.distribution import handshake

CLEAR = "\x1b[2J"
TITLE = "\x9d0;you are root\x9c"  # C1: OSC, ST
BIDI = "\u202egnp.exe\u2066"


@pytest.mark.parametrize("text", [CLEAR, TITLE, BIDI, "\r", "\x00", "\x7f", "\u2028", "\U000e0041"])
def test_what_steers_a_terminal_or_turns_text_round_is_shown_as_an_escape(text: str) -> None:
    assert visible(text) != text
    assert visible(text).isprintable()


@pytest.mark.parametrize("text", ["plain", "Grüße, 世界 €", "a\n\tb\n", "🙂"])
def test_text_stays_as_it_is(text: str) -> None:
    assert visible(text) == text


def test_layout_is_kept_only_where_it_is_wanted() -> None:
    assert visible("a\nb", keep="") == "a\\u000ab"


@given(st.text(st.characters()))
def test_nothing_else_is_left_and_json_means_the_same(text: str) -> None:
    shown = visible(text)
    assert all(unicodedata.category(c)[0] != "C" or c in "\n\t" for c in shown)
    document = json.dumps([text], ensure_ascii=False)
    try:
        document.encode()
    except UnicodeEncodeError:
        return  # halves of surrogate pairs are in no file
    assert json.loads(visible(document)) == [text]


def test_what_is_printed_within_is_visible_and_afterwards_as_before(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with visible_output():
        print(f"a{CLEAR}b")
        sys.stderr.write(BIDI)
    print(CLEAR)
    out, err = capsys.readouterr()
    assert out == f"a\\u001b[2Jb\n{CLEAR}\n"
    assert err == "\\u202egnp.exe\\u2066"


def test_the_command_prints_no_control_characters_of_a_remote_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(*_: object, **__: object) -> dict[str, object]:
        return {"result": f"{CLEAR}{TITLE}{BIDI}", "node": "n", "milliseconds": 1.0}

    monkeypatch.setattr("thicket.cli.cluster.request", answer)
    for module in ("main", "show", "config"):
        monkeypatch.setattr(f"thicket.cli.{module}.request", answer)
    for words in (["call", "n1", "m.f"], ["call", "n1", "m.f", "--json"], ["ping", "n1"]):
        assert main(words) == 0
    out = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in out)
    assert "\\u001b[2J" in out


def test_the_command_prints_no_control_characters_of_a_file(
    capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    file = f"{tmp_path}/thicket.toml"
    with open(file, "w", encoding="utf-8") as written:  # noqa: PTH123
        written.write(f'[mesh]\nid = 7\n"{BIDI}{TITLE}" = 1\n')
    assert main(["config", "check", file]) != 0
    said = "".join(capsys.readouterr())
    assert said
    assert all(c.isprintable() or c in "\n\t" for c in said)


def test_the_reason_of_a_refusal_is_visible() -> None:
    error = handshake.read_refusal(f"xnot-allowed {CLEAR}{BIDI}".encode(), "n2")
    assert str(error).isprintable()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_that_lacks_characters_shows_them_as_escapes(encoding: str) -> None:
    screen = io.TextIOWrapper(io.BytesIO(), encoding)
    VisibleStream(screen).write("root 5a5a… of Grüße, 世 🙂\n")
    VisibleStream(screen).write("plain\n")
    screen.seek(0)
    shown = screen.read()
    assert shown.isascii()
    assert json.loads(f'"{shown.splitlines()[0]}"') == "root 5a5a… of Grüße, 世 🙂"
    assert shown.splitlines()[1] == "plain"

# SPDX-License-Identifier: Apache-2.0
"""Kconfig fragments: put together into a configuration, and looked up in what Kconfig made of it.

Kconfig drops a line without a word when what it depends on is off, or when it does not know the
option. ``lost`` is the answer to that: every line of every fragment, of Buildroot (``BR2_``) and of
the kernel and BusyBox (``CONFIG_``), is looked for in the finished configuration.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_SET = re.compile(r"((?:CONFIG|BR2)_[A-Za-z0-9_]+)=(.+)")
_LIST = re.compile(r'(BR2_[A-Za-z0-9_]+)([+-])="(.*)"')
_UNSET = re.compile(r"# ((?:CONFIG|BR2)_[A-Za-z0-9_]+) is not set")


class FragmentError(Exception):
    """A fragment with a line that Kconfig would skip without a word."""


@dataclass(frozen=True)
class Wanted:
    """One line of a fragment.

    :ivar value: as in ``.config``; ``n`` for "is not set".
    :ivar origin: ``FILE:LINE``
    :ivar change: ``+`` or ``-`` where the words of the value are put behind those of the lines
        before it, or taken out of them: Buildroot's lists are words in one text.
    """

    name: str
    value: str
    origin: str
    change: str = ""


@dataclass(frozen=True)
class Kconfig:
    """Which options are turned off by lines for other options, by Kconfig's files.

    :ivar choices: by option, the number of the choice that it is a member of; one member is on.
    :ivar needs: by option, the one that it depends on, if the file says so in a line of its own.
    """

    choices: Mapping[str, int]
    needs: Mapping[str, str]


NO_KCONFIG = Kconfig({}, {})


def parse(text: str, file: str) -> list[Wanted]:
    """Return the lines of a configuration, in order.

    :raises FragmentError: for a line that is neither an option nor a comment nor empty.
    """
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        origin = f"{file}:{number}"
        if match := _SET.fullmatch(line.strip()):
            found.append(Wanted(match[1], match[2], origin))
        elif match := _LIST.fullmatch(line.strip()):
            found.append(Wanted(match[1], f'"{match[3]}"', origin, match[2]))
        elif match := _UNSET.fullmatch(line.strip()):
            found.append(Wanted(match[1], "n", origin))
        elif line.strip() and not line.lstrip().startswith("#"):
            raise FragmentError(f"{origin}: not a line of a configuration: {line.strip()!r}")
    return found


def kconfig(tree: Path) -> Kconfig:
    """Return what the files ``Config.in`` below ``tree`` say."""
    choices: dict[str, int] = {}
    needs: dict[str, str] = {}
    number = 0
    for path in sorted(tree.rglob("Config.in*")):
        option, inside = "", False
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            word, _, rest = line.strip().partition(" ")
            if word == "choice" and not rest:
                number, inside = number + 1, True
            elif word == "endchoice":
                inside = False
            elif word in ("config", "menuconfig") and line.startswith(word):
                option = rest.strip()
                if inside:
                    choices[option] = number
            elif option and (match := _NEEDS.fullmatch(line.strip())):
                needs[option] = match[1]
    return Kconfig(choices, needs)


_NEEDS = re.compile(r"depends on (BR2_[A-Za-z0-9_]+)")


def settle(lines: Iterable[Wanted], known: Kconfig = NO_KCONFIG) -> list[Wanted]:
    """Return one line for each option, as Kconfig is to have it.

    Where two lines name one option the later one counts, and lists are put together. An option that
    is on turns off those that were chosen in its place by earlier lines, and what depends on these.
    """
    last: dict[str, Wanted] = {}
    for line in lines:
        last[line.name] = _changed(last.get(line.name), line) if line.change else line
        choice = known.choices.get(line.name)
        if choice is None or line.value != "y":
            continue
        for other in [name for name in last if known.choices.get(name) == choice]:
            if other != line.name:
                del last[other]
                for name in [name for name in last if known.needs.get(name) == other]:
                    del last[name]
    return list(last.values())


def _changed(before: Wanted | None, line: Wanted) -> Wanted:
    words = before.value.strip('"').split() if before is not None else []
    change = line.value.strip('"').split()
    if line.change == "+":
        words += [word for word in change if word not in words]
    elif absent := [word for word in change if word not in words]:
        raise FragmentError(
            f"{line.origin}: {line.name} has no {absent[0]}; it has: {' '.join(words) or 'nothing'}"
        )
    else:
        words = [word for word in words if word not in change]
    return Wanted(line.name, f'"{" ".join(words)}"', line.origin)


def lost(wanted: Iterable[Wanted], config: str) -> list[str]:
    """Return a sentence for each fragment line that is not in the finished configuration.

    Where two lines name one option the later one counts: fragments are read in order.
    """
    have = {line.name: line.value for line in parse(config, ".config")}
    return [
        f"{line.origin}: {line.name} should be {_say(line.value)} and is "
        f"{_say(have.get(line.name, 'n'))}"
        for line in settle(wanted)
        if have.get(line.name, "n") != line.value
    ]


def _say(value: str) -> str:
    return "off" if value == "n" else value


def merge(fragments: Iterable[Path], root: Path) -> tuple[str, list[Wanted]]:
    """Return the fragments as one text, and their lines, named relative to ``root``."""
    texts = []
    lines: list[Wanted] = []
    for path in fragments:
        text = path.read_text(encoding="utf-8")
        name = str(path.relative_to(root) if path.is_relative_to(root) else path)
        texts.append(f"# {name}\n{text}\n")
        lines += parse(text, name)
    return "".join(texts), lines

# SPDX-License-Identifier: Apache-2.0
"""Declarations of configuration keys, and the faults of values that they do not allow.

Every key is declared once, as a :class:`Key` in a section's class. Validation, defaults,
``thicket config show``, the template file and ``docs/configuration.md`` all follow from that
declaration.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, Self, TypeVar, overload

from thicket.base.errors import ThicketError
from thicket.base.toml import toml_value

T = TypeVar("T")


class Finding:
    """One fault of a configuration file.

    :param file: the name shown to the person.
    :param key: ``section.key``; empty when the fault is in the file itself.
    :param value: the value as it is written; masked for secrets, empty when there is none.
    :param message: what is wrong and what is allowed.
    :param line: counted from 1, as is ``column``; 0 where it is not known.
    :param shown: the line, with a mark below the place.
    """

    __slots__ = ("column", "file", "key", "line", "message", "shown", "value")

    def __init__(
        self,
        file: str,
        key: str,
        value: str,
        message: str,
        *,
        line: int = 0,
        column: int = 0,
        shown: str = "",
    ) -> None:
        self.file = file
        self.key = key
        self.value = value
        self.message = message
        self.line = line
        self.column = column
        self.shown = shown

    def __str__(self) -> str:
        text = f"{self.file}: "
        if self.line:
            text += f"line {self.line}" + (f", column {self.column}: " if self.column else ": ")
        if self.key:
            text += self.key + (f" = {self.value}" if self.value else "") + ": "
        text += self.message
        return text + "".join(f"\n    {line}" for line in self.shown.split("\n") if line)

    def __repr__(self) -> str:
        return f"Finding({str(self)!r})"


class ConfigError(ThicketError):
    """A configuration that cannot be used.

    :ivar findings: every fault, in the order of the file.
    """

    code = "invalid"

    def __init__(self, findings: list[Finding]) -> None:
        super().__init__(findings)
        self.findings = findings

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings))


class Key(Generic[T]):
    """Declaration of one key: its default, what is allowed, and what it means.

    As a descriptor it reads as a value of type ``T`` on a section, and as itself on the class.
    """

    def __init__(self, default: T, help: str, *, secret: bool = False) -> None:
        self.default = default
        self.help = help
        self.secret = secret
        self.section = ""
        self.name = ""

    def __set_name__(self, owner: type[Section], name: str) -> None:
        self.name = name  # the section's name follows: Section.__init_subclass__

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: Section, owner: type) -> T: ...
    def __get__(self, instance: Section | None, owner: type) -> Self | T:
        if instance is None:
            return self
        value: T = instance.values.get(self.name, self.default)
        return value

    @property
    def path(self) -> str:
        """``section.key``, as people write it."""
        return f"{self.section}.{self.name}"

    @property
    def allowed(self) -> str:
        """What is allowed, as the end of the sentence "must be ..."."""
        raise NotImplementedError

    def check(self, raw: object) -> T:
        """Return the typed value for what the TOML file holds.

        :raises ValueError: why the value is refused.
        """
        raise NotImplementedError

    def from_text(self, text: str) -> object:
        """Return the TOML value meant by ``thicket config set section.key=text``."""
        return text

    def plain(self, value: T) -> object:
        """Return the TOML value (str, int or bool) of a typed value."""
        return value

    def refuse(self) -> ValueError:
        return ValueError(f"must be {self.allowed}")

    def hides(self, raw: object) -> bool:
        """Whether a refused value is kept out of messages, because it is or may hold a secret."""
        return self.secret and raw != ""


def listed(text: str) -> object:
    """Return the list that a person means: ``a,b``, ``a b``, or as in a file, ``["a", "b"]``.

    A shell takes away quotes that are not quoted themselves: ``[a, b]`` is the same list.
    """
    inner = text.strip()
    if inner.startswith("[") and inner.endswith("]"):
        inner = inner[1:-1]
    return [unquoted(word) for word in inner.replace(",", " ").split()]


def unquoted(text: str) -> str:
    """Return a word without the quotes that it has in a file."""
    quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if quoted else text


class Pasted(Key[str]):
    """A text of several lines that people paste. What is refused is not shown: it may be a private
    key, and is too long to be of use."""

    def hides(self, raw: object) -> bool:
        return raw != ""

    def from_text(self, text: str) -> object:
        return text.replace("\\n", "\n")


class Certificates(Pasted):
    """Certificates in PEM, or nothing."""

    allowed = (
        'certificates in PEM, each from "-----BEGIN CERTIFICATE-----" to its end (in TOML, a text '
        "of several lines stands between three quotes), or empty for none"
    )
    #: Most certificates.
    MOST = 16

    def check(self, raw: object) -> str:
        if not isinstance(raw, str):
            raise self.refuse()
        if "PRIVATE KEY" in raw:
            raise ValueError(
                "holds a private key, which must never be on a device: only certificates do"
            )
        blocks: list[str] = []
        rest = raw.strip()
        while rest:
            block, end, rest = rest.partition("-----END CERTIFICATE-----")
            body = block.strip().removeprefix("-----BEGIN CERTIFICATE-----")
            if not end or body == block.strip() or not self._is_certificate(body):
                raise ValueError(f"certificate {len(blocks) + 1} is damaged: copy all of its lines")
            lines = "\n".join(line.strip() for line in body.strip().split("\n"))
            blocks.append(f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n")
            rest = rest.strip()
        if len(blocks) > self.MOST:
            raise ValueError(f"holds {len(blocks)} certificates; at most {self.MOST}")
        return "".join(blocks)

    def _is_certificate(self, body: str) -> bool:
        """Whether this is the DER of one sequence, as far as that can be seen from outside.

        OpenSSL judges the rest: these certificates may have keys of any kind.
        """
        import base64  # few nodes have any

        try:
            data = base64.b64decode("".join(body.split()), validate=True)
        except ValueError:
            return False
        if len(data) < 4 or data[:2] != b"\x30\x82":
            return False
        return len(data) == 4 + int.from_bytes(data[2:4], "big")


class Listed(Key[tuple[str, ...]]):
    """A list of words.

    :cvar MOST: how many there may be.
    """

    MOST: int

    def from_text(self, text: str) -> object:
        return listed(text)

    def plain(self, value: tuple[str, ...]) -> object:
        return list(value)

    def entries(self, raw: object) -> list[str]:
        """Return the words, as the TOML file has them.

        :raises ValueError: it holds no list, too long a one, or something else than words.
        """
        if not isinstance(raw, list | tuple) or len(raw) > self.MOST:
            raise self.refuse()
        if not all(isinstance(word, str) for word in raw):
            raise self.refuse()
        return list(raw)


class Text(Key[str]):
    """Text without control characters; its length is counted in bytes of UTF-8.

    :param letters: allow only ASCII letters, digits and these characters.
    :param printable: allow only printable ASCII without blanks.
    """

    def __init__(
        self,
        default: str,
        help: str,
        *,
        least: int,
        most: int,
        letters: str | None = None,
        printable: bool = False,
        optional: bool = False,
        secret: bool = False,
    ) -> None:
        super().__init__(default, help, secret=secret)
        self.least = least
        self.most = most
        self.letters = letters
        self.printable = printable
        self.optional = optional

    @property
    def allowed(self) -> str:
        what = "text"
        if self.letters is not None:
            what = "ASCII letters, digits" + "".join(f", {c!r}" for c in self.letters)
        elif self.printable:
            what = "printable ASCII without blanks"
        size = f"{self.least} to {self.most} bytes of UTF-8" if what == "text" else ""
        size = size or f"{self.least} to {self.most} characters"
        return f"{what}, {size}" + (", or empty" if self.optional else "")

    def check(self, raw: object) -> str:
        if not isinstance(raw, str):
            raise self.refuse()
        if self.optional and not raw:
            return raw
        length = len(raw.encode("utf-8", "surrogatepass"))
        if raw and not self.least <= length <= self.most:
            raise ValueError(
                f"is too {'short' if length < self.least else 'long'}: {self.refuse()}"
            )
        if not raw and self.least:
            raise self.refuse()
        if self.letters is not None:
            good = all(c.isascii() and (c.isalnum() or c in self.letters) for c in raw)
        elif self.printable:
            good = all("!" <= c <= "~" for c in raw)
        else:
            # no C0, DEL or C1: nobody can type them, and they break line-based protocols
            good = all(c >= " " and not "\x7f" <= c <= "\x9f" for c in raw)
        if not good:
            if self.letters is None and not self.printable:
                raise ValueError("must not contain control characters")
            raise self.refuse()
        return raw


class Choice(Key[str]):
    """One of a few words."""

    def __init__(self, default: str, help: str, *choices: str) -> None:
        super().__init__(default, help)
        self.choices = choices

    @property
    def allowed(self) -> str:
        return " or ".join(f'"{c}"' for c in self.choices)

    def from_text(self, text: str) -> object:
        return unquoted(text)

    def check(self, raw: object) -> str:
        if isinstance(raw, str) and raw in self.choices:
            return raw
        raise self.refuse()


class Integer(Key[int]):
    """A whole number in a range."""

    def __init__(self, default: int, help: str, *, least: int, most: int, unit: str = "") -> None:
        super().__init__(default, help)
        self.least = least
        self.most = most
        self.unit = unit

    @property
    def allowed(self) -> str:
        unit = f" ({self.unit})" if self.unit else ""
        return f"a whole number from {self.least} to {self.most}{unit}"

    def check(self, raw: object) -> int:
        # bool is an int in Python, not in TOML
        if isinstance(raw, bool) or not isinstance(raw, int):
            raise self.refuse()
        if not self.least <= raw <= self.most:
            raise self.refuse()
        return raw

    def from_text(self, text: str) -> object:
        # The unit may be said; another one is refused rather than left out.
        digits = text.strip().removesuffix(self.unit).rstrip() if self.unit else text.strip()
        plain = digits.removeprefix("-")
        return int(digits) if plain.isascii() and plain.isdecimal() else text


class Boolean(Key[bool]):
    """Yes or no."""

    allowed = "true or false, without quotes"

    def check(self, raw: object) -> bool:
        if isinstance(raw, bool):
            return raw
        raise self.refuse()

    def from_text(self, text: str) -> object:
        return {"true": True, "false": False}.get(text.lower(), text)


class Section:
    """The values of one ``[section]``; its keys are the :class:`Key` attributes of the class."""

    __slots__ = ("values",)

    def __init_subclass__(cls, *, name: str) -> None:
        """Declare the section ``[name]``."""
        for key in cls.keys().values():
            key.section = name

    def __init__(self, values: dict[str, Any] | None = None) -> None:
        self.values: dict[str, Any] = values or {}

    @classmethod
    def keys(cls) -> dict[str, Key[Any]]:
        """The keys of the section, in the order of their declaration."""
        return {name: key for name, key in vars(cls).items() if isinstance(key, Key)}

    def items(self) -> Iterator[tuple[Key[Any], Any]]:
        for name, key in self.keys().items():
            yield key, self.values.get(name, key.default)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return [v for _, v in self.items()] == [v for _, v in other.items()]

    __hash__ = None  # type: ignore[assignment]  # compared by value

    def __repr__(self) -> str:
        shown = (f"{k.name}={show_value(k, v)}" for k, v in self.items())
        return f"{type(self).__name__}({', '.join(shown)})"


MASK = '"********"'


def show_value(key: Key[Any], value: Any) -> str:
    """Return a value as TOML, with secrets masked."""
    if key.secret and value:
        return MASK
    return toml_value(key.plain(value))


def show_raw(key: Key[Any] | None, raw: object) -> str:
    """Return what the file holds, for an error message: short, and never a secret."""
    if key is not None and key.hides(raw):
        return MASK
    if isinstance(raw, str | int):
        text = toml_value(raw)
    elif isinstance(raw, dict):
        text = "a table"
    elif isinstance(raw, list):
        text = "a list"
    else:
        text = str(raw)  # a float, a date or a time: as it is written
    return text if len(text) <= 60 else text[:57] + "..."

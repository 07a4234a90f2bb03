# SPDX-License-Identifier: Apache-2.0
"""The text of a configuration file, made :class:`~thicket.config.schema.Settings` or refused."""

from __future__ import annotations

from typing import Any, Final

from thicket.base.fields import ConfigError, Finding
from thicket.base.files import MAX_FILE_BYTES
from thicket.config.schema import SECTIONS, Settings, check

#: Most parts of a dotted key.
MOST_PARTS: Final = 100


def decode(data: bytes, file: str) -> str:
    """The text of a configuration file; a byte order mark and CRLF line ends are accepted.

    Raises ConfigError when the file is too large or not UTF-8.
    """

    def fault(message: str, line: int = 0) -> ConfigError:
        return ConfigError([Finding(file, "", "", message, line=line)])

    if len(data) > MAX_FILE_BYTES:
        raise fault(f"is larger than {MAX_FILE_BYTES // 1024} KiB; this is no configuration file")
    if data[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        raise fault('is UTF-16 ("Unicode" in some Windows editors); save it as UTF-8')
    if data[:3] == b"\xef\xbb\xbf":
        data = data[3:]
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        from thicket.config.syntax import encoding_fault

        raise ConfigError([encoding_fault(data, file, e.start)]) from None
    text = text.replace("\r\n", "\n")
    if "\r" in text:
        line = text.count("\n", 0, text.index("\r")) + 1
        raise fault(
            "ends with a carriage return only (old Macintosh line ends): save the file with line "
            "ends of Unix or Windows",
            line,
        )
    return text


def parse_toml(text: str, file: str) -> dict[str, object]:
    """The tables of a TOML text; ConfigError tells the line of a syntax error."""
    # The image's own file has sections, but all keys commented out: spare the import for it.
    said = [line for line in text.split("\n") if line and not line.startswith("#")]
    plain = all(line[1:-1] in SECTIONS and line == f"[{line[1:-1]}]" for line in said)
    if plain and len(set(said)) == len(said):
        return {}
    import tomllib

    try:
        _refuse_long_keys(text)
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as e:  # also: a date that does not exist, too many digits
        from thicket.config.syntax import syntax_faults

        raise ConfigError(syntax_faults(text, file, e)) from None
    large = _first_large(tables)
    if large is None:
        return tables
    message = "holds a number that is too large: TOML's whole numbers have 64 bits"
    raise ConfigError([Finding(file, large, "", message)])


def _refuse_long_keys(text: str) -> None:
    """Raise ValueError for a key of a hundred parts: tomllib needs time that grows with the square
    of their number, 18 s for a key that fills a file."""
    import re  # tomllib loads it, too

    # Each part is taken whole or not at all, and a chain is looked at from its beginning only: this
    # takes time in proportion to the text.
    part = r"""(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+"""
    found = re.search(rf"(?<![\w.-])(?:{part}){{{MOST_PARTS}}}", text, re.ASCII)
    if found is not None:
        line = text.count("\n", 0, found.start()) + 1
        raise ValueError(f"a key has more than {MOST_PARTS} parts (at line {line})")


def _first_large(tables: dict[str, object]) -> str | None:
    """The key of a whole number that does not fit into 64 bits, or None.

    Hexadecimal, octal and binary numbers may be of any length to Python, but cannot be written in
    decimal when they have more than 4300 digits: not in a message and not in JSON.
    """
    left: list[tuple[str, object]] = list(tables.items())
    while left:
        path, value = left.pop()
        if isinstance(value, dict):
            left += [(f"{path}.{name}" if len(path) < 80 else path, v) for name, v in value.items()]
        elif isinstance(value, list):
            left += [(path, item) for item in value]
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            return path[:80]
    return None


def parse(data: bytes, file: str, base: dict[str, dict[str, Any]] | None = None) -> Settings:
    """Settings from the bytes of a file, over the values of ``base`` (the image's defaults).

    Raises ConfigError with every fault found. A file of nothing but blanks, or of the zeros that a
    power cut leaves, is a fault: it is what remains of a file. One of remarks alone means the
    defaults.
    """
    if not data.strip(b"\0 \t\r\n"):
        what = "holds nothing but zeros: it is damaged" if data.strip() else "is empty"
        message = f"{what}; write the settings, or a remark (# defaults) for the image's defaults"
        raise ConfigError([Finding(file, "", "", message)])
    return Settings(values_of(data, file, base))


def values_of(
    data: bytes, file: str, base: dict[str, dict[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """The values of the bytes of a file over those of ``base``; raises ConfigError."""
    text = decode(data, file)
    try:
        return check(parse_toml(text, file), file, base)
    except ConfigError as e:
        from thicket.config.syntax import locate

        locate(text, e.findings)
        raise

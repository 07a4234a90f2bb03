# SPDX-License-Identifier: Apache-2.0
"""Turns the text of a configuration file into :class:`~thicket.config.schema.Settings`."""

from __future__ import annotations

from typing import Any

from thicket.base.fields import ConfigError, Finding
from thicket.base.files import MAX_FILE_BYTES
from thicket.config.schema import SECTIONS, Settings, check

#: The format of configuration files that this version reads. A file may say ``format = N`` in front
#: of its sections. The number grows with changes that an older version would misunderstand; new
#: sections and keys are none.
FORMAT = 1
#: Most parts of a dotted key.
MOST_PARTS = 100


def decode(data: bytes, file: str) -> str:
    """Return the text of a configuration file; a byte order mark and CRLF line ends are accepted.

    :raises ConfigError: the file is too large or not UTF-8.
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
    """Return the tables of a TOML text.

    :raises ConfigError: a syntax error, with its line.
    """
    # The image's own file has only sections and comments; it does not need the import.
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


def _check_format(number: object, file: str) -> None:
    """Refuse a file that is for another version as a whole, instead of its keys one by one.

    :raises ConfigError: this version does not read the format.
    """
    if isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= FORMAT:
        return
    message = f"must be 1 to {FORMAT}, the formats of configuration files that this version reads"
    if isinstance(number, int) and number > FORMAT:
        message = (
            f"is {number}: the file was written for a newer version, and this one reads up to "
            f"{FORMAT}"
        )
    raise ConfigError([Finding(file, "format", "", message)])


def _refuse_long_keys(text: str) -> None:
    """Refuse keys of very many parts: tomllib takes quadratic time for them, 18 s for a whole file.

    :raises ValueError: a key has more than MOST_PARTS parts.
    """
    import re  # tomllib loads it, too

    # Possessive matches that start only at the beginning of a chain take linear time.
    part = r"""(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+"""
    found = re.search(rf"(?<![\w.-])(?:{part}){{{MOST_PARTS}}}", text, re.ASCII)
    if found is not None:
        line = text.count("\n", 0, found.start()) + 1
        raise ValueError(f"a key has more than {MOST_PARTS} parts (at line {line})")


def _first_large(tables: dict[str, object]) -> str | None:
    """Return the key of an integer that does not fit into 64 bits, or None.

    Python reads hexadecimal, octal and binary numbers of any length, but writes no decimal of more
    than 4300 digits, neither in a message nor in JSON.
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
    """Return the settings in the bytes of a file, over the values of ``base`` (image defaults).

    A file with only comments means the defaults. A file of blanks, or of the zeros that a power cut
    leaves, is what remains of a lost file, and a fault.

    :raises ConfigError: every fault found.
    """
    if not data.strip(b"\0 \t\r\n"):
        what = "holds nothing but zeros: it is damaged" if data.strip() else "is empty"
        message = f"{what}; write the settings, or a remark (# defaults) for the image's defaults"
        raise ConfigError([Finding(file, "", "", message)])
    return Settings(values_of(data, file, base))


def values_of(
    data: bytes, file: str, base: dict[str, dict[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """Return the values in the bytes of a file, over those of ``base``.

    :raises ConfigError: every fault found.
    """
    text = decode(data, file)
    try:
        tables = parse_toml(text, file)
        _check_format(tables.pop("format", FORMAT), file)
        return check(tables, file, base)
    except ConfigError as e:
        from thicket.config.syntax import locate

        locate(text, e.findings)
        raise

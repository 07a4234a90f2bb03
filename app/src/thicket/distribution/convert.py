# SPDX-License-Identifier: Apache-2.0
"""Checks the arguments of exported functions by their annotations, and converts them.

Erlang has fewer types than Python, so some values are converted: a binary of UTF-8 text or a list
of characters (Erlang's ``"..."``) to ``str``, an integer to ``float``, ``nil`` and ``undefined`` to
``None``, a list to ``tuple`` and the reverse, any atom to ``Atom``. Every other value must have the
annotated type.
"""

from __future__ import annotations

import inspect
import types
import typing
from typing import TYPE_CHECKING, Any

from thicket.distribution.etf import (
    Atom,
    BitString,
    FrozenList,
    ImproperList,
    PairMap,
    Pid,
    Port,
    Reference,
)

if TYPE_CHECKING:
    from collections.abc import Callable

Convert = typing.Callable[[Any], Any]


class MismatchError(TypeError):
    """A value is not of the type it should have."""


def _name(value: Any) -> str:
    """Return the name of a value's type, for messages."""
    if value is None:
        return "nil"
    names = {Atom: "an atom", bytes: "a binary", str: "text", int: "an integer", bool: "a boolean"}
    names |= {float: "a float", list: "a list", tuple: "a tuple", dict: "a map", Pid: "a pid"}
    return names.get(type(value), f"a {type(value).__name__}")


def _exactly(kind: type, words: str) -> Convert:
    def convert(value: Any) -> Any:
        if type(value) is not kind:
            raise MismatchError(f"{words} was expected, not {_name(value)}")
        return value

    return convert


def _text(value: Any) -> str:
    if type(value) is str:
        return value
    try:
        if type(value) is bytes:
            return value.decode()
        if type(value) is list:
            return "".join(map(chr, value))
    except (UnicodeDecodeError, TypeError, ValueError, OverflowError):
        pass
    raise MismatchError(f"text (a binary in UTF-8) was expected, not {_name(value)}")


def _float(value: Any) -> float:
    if type(value) is float:
        return value
    if type(value) is int:
        try:
            return float(value)
        except OverflowError:
            pass
    raise MismatchError(f"a number was expected, not {_name(value)}")


def _none(value: Any) -> None:
    if value is not None and value != "undefined":
        raise MismatchError(f"nil was expected, not {_name(value)}")


def _atom(value: Any) -> Atom:
    if type(value) is Atom:
        return value
    if value is None or type(value) is bool:
        return Atom("nil" if value is None else str(value).lower())
    raise MismatchError(f"an atom was expected, not {_name(value)}")


def _anything(value: Any) -> Any:
    return value


_PLAIN: dict[Any, Convert] = {
    int: _exactly(int, "an integer"),
    bool: _exactly(bool, "true or false"),
    bytes: _exactly(bytes, "a binary"),
    Pid: _exactly(Pid, "a pid"),
    Port: _exactly(Port, "a port"),
    Reference: _exactly(Reference, "a reference"),
    BitString: _exactly(BitString, "a bit string"),
    ImproperList: _exactly(ImproperList, "an improper list"),
    str: _text,
    float: _float,
    None: _none,
    type(None): _none,
    Atom: _atom,
    Any: _anything,
    object: _anything,
    inspect.Parameter.empty: _anything,
}


def _sequence(made: Callable[[list[Any]], Any], words: str, item: Convert) -> Convert:
    def convert(value: Any) -> Any:
        if type(value) not in (list, tuple, FrozenList):
            raise MismatchError(f"{words} was expected, not {_name(value)}")
        return made([item(element) for element in value])

    return convert


def _fixed_tuple(items: list[Convert]) -> Convert:
    def convert(value: Any) -> Any:
        if type(value) not in (tuple, list, FrozenList) or len(value) != len(items):
            raise MismatchError(f"a tuple of {len(items)} was expected, not {_name(value)}")
        return tuple(item(element) for item, element in zip(items, value, strict=True))

    return convert


def _mapping(key: Convert, value: Convert) -> Convert:
    def convert(found: Any) -> Any:
        if type(found) is dict:
            pairs = found.items()
        elif isinstance(found, PairMap):
            pairs = dict(found.pairs).items()
        else:
            raise MismatchError(f"a map was expected, not {_name(found)}")
        result = {}
        for k, v in pairs:
            # Names as keys are atoms in Erlang, text in Python.
            name = str(k) if key is _text and type(k) is Atom else key(k)
            result[name] = value(v)
        return result

    return convert


def _either(choices: list[Convert]) -> Convert:
    def convert(value: Any) -> Any:
        reasons = []
        for choice in choices:
            try:
                return choice(value)
            except MismatchError as error:
                reasons.append(str(error))
        raise MismatchError(" or ".join(dict.fromkeys(reasons)))

    return convert


def _one_of(values: tuple[Any, ...]) -> Convert:
    def convert(value: Any) -> Any:
        for allowed in values:
            with_text = type(allowed) is str and type(value) in (bytes, str, Atom)
            found = value.decode(errors="replace") if type(value) is bytes else value
            if (with_text or type(value) is type(allowed)) and found == allowed:
                return allowed
        raise MismatchError(f"one of {', '.join(map(repr, values))} was expected")

    return convert


def converter(annotation: Any) -> Convert:
    """Return the function that checks and converts a value for ``annotation``.

    :raises TypeError: no value from another node can satisfy the annotation.
    """
    plain = _PLAIN.get(annotation) if annotation.__hash__ is not None else None
    if plain is not None:
        return plain
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is list or origin is list:
        item = converter(inner[0]) if inner else _anything
        return _sequence(list, "a list", item)
    if annotation is tuple or origin is tuple:
        if inner == ((),):  # another notation of the empty tuple
            inner = ()
        if annotation is tuple or (len(inner) == 2 and inner[1] is Ellipsis):
            item = converter(inner[0]) if inner else _anything
            return _sequence(tuple, "a tuple", item)
        return _fixed_tuple([converter(part) for part in inner])
    if annotation is dict or origin is dict:
        key, value = (converter(part) for part in inner) if inner else (_anything, _anything)
        return _mapping(key, value)
    if origin is typing.Union or origin is types.UnionType:
        # The strict ones first, so that `float | int` keeps an integer.
        parts = sorted(inner, key=lambda part: part in (str, float))
        return _either([converter(part) for part in parts])
    if origin is typing.Literal:
        return _one_of(inner)
    if origin is typing.Annotated:
        return converter(inner[0])
    raise TypeError(
        f"{annotation!r} is no type that a value of another node can have: use int, float, str, "
        f"bytes, bool, None, list, tuple, dict, Literal, Any, Atom, Pid, Port or Reference"
    )


class Signature:
    """The positional arguments of a function.

    :raises TypeError: other nodes cannot call the function.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        try:
            signature = inspect.signature(function, eval_str=True)
        except NameError as error:
            raise TypeError(f"an annotation of {function!r} cannot be read: {error}") from None
        self.least = 0
        self.rest: Convert | None = None
        self.names: list[str] = []
        self.converters: list[Convert] = []
        for parameter in signature.parameters.values():
            required = parameter.default is inspect.Parameter.empty
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                self.rest = converter(parameter.annotation)
            elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
                continue
            elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                if required:
                    raise TypeError(
                        f"{function!r} needs {parameter.name} as a keyword, which callers on "
                        f"other nodes cannot give"
                    )
            else:
                self.names.append(parameter.name)
                self.converters.append(converter(parameter.annotation))
                self.least += required

    def accepts(self, count: int) -> bool:
        """Return whether the function can be called with ``count`` arguments."""
        return self.least <= count and (self.rest is not None or count <= len(self.converters))

    def convert(self, arguments: list[Any]) -> list[Any]:
        """Return the converted arguments.

        :raises MismatchError: an argument, which the text names, has the wrong type.
        """
        made = []
        for number, value in enumerate(arguments):
            known = number < len(self.converters)
            convert = self.converters[number] if known else self.rest
            assert convert is not None
            try:
                made.append(convert(value))
            except MismatchError as error:
                name = f" ({self.names[number]})" if known else ""
                raise MismatchError(f"argument {number + 1}{name}: {error}") from None
        return made

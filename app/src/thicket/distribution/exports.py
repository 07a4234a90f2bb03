# SPDX-License-Identifier: Apache-2.0
"""The functions that other nodes may call; they can call no other Python function."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

from thicket.distribution.convert import Signature
from thicket.distribution.etf import Atom

if TYPE_CHECKING:
    from collections.abc import Callable


class Exported(NamedTuple):
    """A function that other nodes may call."""

    name: str
    function: Callable[..., Any]
    signature: Signature
    asynchronous: bool
    thread: bool

    @property
    def at_once(self) -> bool:
        """Whether it runs to its end in the event loop without waiting."""
        return not self.asynchronous and not self.thread


class Exports:
    """The functions that other nodes may call, by module and function name."""

    def __init__(self) -> None:
        self._functions: dict[tuple[str, str], Exported] = {}

    def add(self, name: str, function: Callable[..., Any], *, thread: bool = False) -> None:
        """Export ``function`` as ``name``, ``module.function``.

        :raises ValueError: the name is taken or invalid.
        :raises TypeError: other nodes cannot call the function.
        """
        key = split_function(name)
        if key in self._functions:
            raise ValueError(f"{name} is exported already")
        asynchronous = inspect.iscoroutinefunction(function)
        if thread and asynchronous:
            raise TypeError(f"{name} is a coroutine, which needs no thread")
        self._functions[key] = Exported(name, function, Signature(function), asynchronous, thread)

    def remove(self, name: str) -> None:
        """Take back an export; calls that run go on."""
        self._functions.pop(split_function(name), None)

    def find(self, module: Any, function: Any, count: int) -> Exported | None:
        """Return the exported function that takes ``count`` arguments, or None."""
        known = self._functions.get((word(module), word(function)))
        return known if known is not None and known.signature.accepts(count) else None

    def names(self) -> list[str]:
        """Return the names of the exported functions."""
        return sorted(known.name for known in self._functions.values())


def word(atom: Any) -> str:
    """Return the text of an atom, also of one that was decoded as True, False or None."""
    if type(atom) is Atom:
        return str(atom)
    if atom is None or type(atom) is bool:
        return {True: "true", False: "false", None: "nil"}[atom]
    return ""


def split_function(name: str) -> tuple[str, str]:
    """Return module and function of ``module.function``.

    :raises ValueError: the name is invalid.
    """
    module, dot, function = name.rpartition(".")
    if not dot or not module or not function or len(name) > 255:
        raise ValueError(f"a function is called module.function, not {name!r}")
    return module, function


def function_name(function: Callable[..., Any]) -> str:
    """Return the default name of an exported function: its module's last part, and its own."""
    module = function.__module__.rpartition(".")[2]
    return f"{module.strip('_') or module}.{function.__name__}"

# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for modules that a library imports and a node does not need.

The start of the daemon is mostly imports. What a library imports only for a few of its functions
is worth leaving out where a node does not call those.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@contextmanager
def stand_in(name: str, attributes: Mapping[str, object] | None) -> Iterator[None]:
    """Let ``import name`` within this context find a stand-in, unless the module is loaded already.

    Whoever imported the stand-in keeps it. Everybody else gets the real module afterwards.

    :param attributes: what the stand-in has; ``None`` makes the import an ImportError.
    """
    if name in sys.modules:
        yield
        return
    parent, _, child = name.rpartition(".")
    package = import_module(parent) if parent else ModuleType("")
    module = None
    if attributes is not None:
        module = ModuleType(name)
        vars(module).update(attributes)
        vars(package)[child] = module
    sys.modules[name] = module  # type: ignore[assignment]  # sys.modules is typed without None
    try:
        yield
    finally:
        if sys.modules.get(name, module) is module:
            sys.modules.pop(name, None)
            vars(package).pop(child, None)


@contextmanager
def postponed(name: str) -> Iterator[None]:
    """Let what is imported within this context import this module when it first uses it."""
    stand_ins = []

    def attribute(wanted: str) -> object:
        if sys.modules.get(name) in stand_ins:
            del sys.modules[name]
        return getattr(import_module(name), wanted)

    with stand_in(name, {"__getattr__": attribute}):
        stand_ins.append(sys.modules[name])
        yield

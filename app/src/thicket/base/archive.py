# SPDX-License-Identifier: Apache-2.0
"""The modules of the daemon's start from one file.

To find, open and read a module takes a dozen system calls, and a start imports two hundred modules.
An image has their byte code also in one file, an archive, which is made with the image
(``tools/src/firmware/start_archive.py``). What is not in it is imported from its own file as ever,
and so is everything where there is no archive.

An archive begins with the magic number of the interpreter's byte code and the length of its table,
4 bytes each. The table tells of each module, by its name: where its code is and how long, the file
that it was made of, and whether it is a package. Table and codes are in the form of :mod:`marshal`.
"""

from __future__ import annotations

import os
import sys
from importlib._bootstrap_external import MAGIC_NUMBER
from importlib.machinery import ModuleSpec
from marshal import loads

TYPE_CHECKING = False  # what is imported here comes from files of its own: not typing as well
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType, ModuleType

    #: Offset and length of the code, path of the module's file, whether it is a package.
    Entry = tuple[int, int, str, bool]

#: Where an image has it.
PATH = "/usr/lib/thicket/start.archive"


class ArchiveFinder:
    """Finds and loads the modules of an archive.

    :raises OSError: it cannot be read.
    :raises ValueError: it is not an archive for this interpreter.
    """

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            head = os.pread(self._file, 8, 0)
            if head[:4] != MAGIC_NUMBER or len(head) < 8:
                raise ValueError(f"{path} is not for this interpreter")
            length = int.from_bytes(head[4:], "little")
            self._table: dict[str, Entry] = loads(os.pread(self._file, length, 8))
        except (OSError, ValueError, EOFError, TypeError) as error:
            os.close(self._file)
            if isinstance(error, OSError):
                raise
            raise ValueError(f"{path}: {error}") from error

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        """Return how a module is loaded, None where the archive lacks it."""
        entry = self._table.get(name)
        if entry is None:
            return None
        origin, package = entry[2:]
        spec = ModuleSpec(
            name,
            self,  # type: ignore[arg-type]  # a loader by what it does
            origin=origin,
            is_package=package,
        )
        spec.has_location = True
        if package:
            spec.submodule_search_locations = [origin.rpartition("/")[0]]
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave making the module to the import system."""

    def exec_module(self, module: ModuleType) -> None:
        """Run a module's code."""
        exec(self.get_code(module.__name__), module.__dict__)

    def get_code(self, name: str) -> CodeType:
        """Return a module's code.

        :raises ImportError: it cannot be read.
        """
        offset, length = self._table[name][:2]
        code = os.pread(self._file, length, offset)
        if len(code) != length:
            raise ImportError(f"the archive ends inside {name}", name=name)
        module: CodeType = loads(code)
        return module


def use(path: str = PATH) -> None:
    """Import from the archive at ``path`` from now on, if there is one for this interpreter."""
    try:
        finder = ArchiveFinder(path)
    except (OSError, ValueError):
        return
    sys.meta_path.insert(-1, finder)  # before the one that looks into directories

# SPDX-License-Identifier: Apache-2.0
"""The files of an authority's folder.

A file is replaced as a whole, and only its owner can read it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TextIO

from authority import files
from authority.errors import AuthorityError
from host.stop import held
from thicket.trust import certificates as x509
from thicket.trust.certificates import CertificateError
from thicket.trust.fleet import Fleet

FORMAT: Final = 1

_MEMBERS: Final = {"format", "name", "prefix", "lab", "signers", "devices", "revocations"}
_OF_A_SIGNER: Final = (".key", ".p11", ".pem")
_COPY: Final = "take it from your copy of this folder"


class Folder:
    """The folder of one fleet's authority. Every method reads it anew.

    :ivar path: where it is. It need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._new: list[str] = []

    def document(self) -> dict[str, Any]:
        """Return the contents of ``fleet.json``.

        :raises AuthorityError: when there is no fleet, or the file cannot be read.
        """
        path = self.path / "fleet.json"
        try:
            document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise AuthorityError(
                f"there is no fleet in {self.path}; `thicket ca init NAME` makes one"
            ) from None
        except OSError as error:
            raise AuthorityError(f"{path} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise AuthorityError(f"{path} is damaged ({error}): {_COPY}") from None
        if not isinstance(document, dict) or not set(document) >= _MEMBERS:
            raise AuthorityError(f"{path} is not what `thicket ca init` makes: {_COPY}")
        if document["format"] != FORMAT:
            raise AuthorityError(
                f"{path} is of format {document['format']}, and this version reads {FORMAT}: take "
                "the version that has written it, or a newer one"
            )
        return document

    @contextmanager
    def changing(self) -> Iterator[dict[str, Any]]:
        """Give ``fleet.json`` to change; it is written at the end, unless there is an exception.

        No other process changes the folder meanwhile.

        :raises AuthorityError: as :meth:`document`.
        """
        self.document()  # where there is no fleet, no lock is left behind
        with self._lock() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            document = self.document()
            self._new.clear()
            try:
                yield document
                self.save(document)
            except BaseException:
                for stem in self._new:
                    self._remove(stem)
                raise

    def begin(self, stem: str) -> None:
        """Begin a signer in a change: its files go where that fails, and what an attempt has left
        that was cut off goes now. A key on a token would stand before one in a file.

        :param stem: what the names of its files begin with; it is no signer yet.
        """
        self._remove(stem)
        self._new.append(stem)

    def _remove(self, stem: str) -> None:
        for ending in _OF_A_SIGNER:
            with suppress(OSError):
                (self.path / f"{stem}{ending}").unlink()

    def _lock(self) -> TextIO:
        path = self.path / ".lock"
        try:
            return path.open("w")
        except OSError as error:
            raise files.not_written(path, error) from None

    def save(self, document: dict[str, Any]) -> None:
        """Write ``fleet.json``."""
        self.write("fleet.json", (json.dumps(document, indent=1) + "\n").encode())

    def write(self, name: str, data: bytes) -> None:
        """Write the file ``name``: all of it or nothing."""
        new = self.path / (name + ".new")
        try:
            with held():  # it is short, and may be a key
                descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                new.replace(self.path / name)
        except OSError as error:
            with suppress(OSError):
                new.unlink(missing_ok=True)
            raise files.not_written(self.path / name, error) from None

    def read(self, name: str, what: str) -> bytes:
        """Return the contents of the file ``name``.

        :param what: what the file is, for the error's text.
        :raises AuthorityError: when it cannot be read.
        """
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise AuthorityError(
                f"{what} is needed and not in {self.path}: {error.strerror}"
            ) from error

    @property
    def fleet(self) -> Fleet:
        """The fleet.

        :raises AuthorityError: when there is none.
        """
        self.document()
        try:
            return Fleet(x509.from_pem(self.read("root.pem", "the root").decode("ascii"))[0])
        except (CertificateError, LookupError, UnicodeDecodeError) as error:
            raise AuthorityError(f"{self.path / 'root.pem'}: {error}") from error

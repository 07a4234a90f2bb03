# SPDX-License-Identifier: Apache-2.0
"""Downloads by HTTP: small texts at once, large files into a file that goes on where it stopped.

Whoever answers is believed nothing: sizes are bounded, an answer that comes too slowly is given up,
and what is in a file is judged by its checksum elsewhere.
"""

from __future__ import annotations

import email.message
import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from typing import BinaryIO, Final
from urllib.parse import urljoin, urlsplit

from firmware.releases.errors import ReleaseError

SCHEMES = ("http", "https")

SILENCE = 30.0
"""Seconds without a byte after which a connection is given up."""

SLOW = 60.0
"""Seconds within which ``SLOWEST`` bytes must have come; also for all of a small text."""

SLOWEST = 64 * 1024

ATTEMPTS = 5
"""How often a download is tried again that did not get on by ``SLOWEST`` bytes meanwhile."""

PAUSES = (1.0, 2.0, 5.0, 10.0)
"""Seconds between them."""

REDIRECTS = 5
"""How often an answer may be that the file is elsewhere."""

_PIECE = 1 << 18
_MOVED = (301, 302, 303, 307, 308)
_BROKEN: Final = (OSError, http.client.HTTPException)


class CutError(Exception):
    """A download ended before its end, and can go on; the text says how it ended."""


class _PastEndError(CutError):
    """There is nothing behind what is here already."""


def _opener() -> urllib.request.OpenerDirector:
    # Not build_opener(): it also opens files of this machine, and follows redirects to anywhere.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", "thicket-flash")]
    return opener


class Answer:
    """What a server answers.

    :ivar status: 200, or 206 when it is a part.
    :ivar headers: those of the answer.
    """

    def __init__(self, url: str, start: int = 0) -> None:
        """Ask for a file.

        :param start: from which byte on.
        :raises ReleaseError: the server does not give it.
        :raises CutError: the server cannot be reached now.
        """
        self._answer = _followed(url, {"Range": f"bytes={start}-"} if start else {})
        self.status: int = self._answer.status
        self.headers: email.message.Message = self._answer.headers

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self._answer.close()

    def read(self, count: int) -> bytes:
        """Return what has come, at most ``count`` bytes; none at the end.

        :raises CutError: the connection broke.
        """
        try:
            data: bytes = self._answer.read1(count)
        except _BROKEN as error:
            raise CutError(_words(error)) from None
        return data

    @property
    def length(self) -> int | None:
        """How many bytes it says that it has."""
        return _decimal(self.headers.get("Content-Length", ""))

    @property
    def start(self) -> int:
        """From which byte of the file on it is."""
        if self.status != HTTPStatus.PARTIAL_CONTENT:
            return 0
        # RFC 9110, 14.4: bytes FIRST-LAST/ALL
        unit, _, span = self.headers.get("Content-Range", "").partition(" ")
        first = _decimal(span.partition("-")[0]) if unit == "bytes" else None
        return -1 if first is None else first


def _followed(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    """Return the answer to a question; redirects are followed, but none away from HTTPS."""
    opener = _opener()
    for _step in range(REDIRECTS + 1):
        request = urllib.request.Request(url, headers=headers)  # noqa: S310
        try:
            answer: http.client.HTTPResponse = opener.open(request, timeout=SILENCE)
        except urllib.error.HTTPError as error:
            with error:
                if error.code not in _MOVED or "Location" not in error.headers:
                    raise _refused(url, error.code, error.reason) from None
                url = _moved(url, error.headers["Location"])
        except urllib.error.URLError as error:
            raise _unreachable(url, error.reason) from None
        except _BROKEN as error:
            raise CutError(_words(error)) from None
        else:
            return answer
    raise ReleaseError(f"{url} leads from one place to the next, more than {REDIRECTS} times")


def _moved(url: str, location: str) -> str:
    target = urljoin(url, location)
    check_url(target)
    if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
        raise ReleaseError(f"{url} leads to {target}, from HTTPS to HTTP: it was not followed")
    return target


def check_url(url: str) -> None:
    """Make sure that a URL is one of the web.

    :raises ReleaseError: it is not.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or any(character <= " " or character > "~" for character in url):
        raise ReleaseError(f"{url}: not a URL as https://example.org/thicket/")


def text(url: str, most: int, clock: Callable[[], float] = time.monotonic) -> bytes | None:
    """Return a small file; None when the server has none.

    :param most: bytes that it may have.
    :param clock: seconds that go on.
    :raises ReleaseError: it cannot be had, or is larger.
    """
    end = clock() + SLOW
    data = b""
    try:
        with Answer(url) as answer:
            while piece := answer.read(most + 1 - len(data)):
                data += piece
                if len(data) > most:
                    raise ReleaseError(f"{url} is larger than the {most} bytes that are read of it")
                if clock() > end:
                    raise ReleaseError(f"{url} did not come within {SLOW:g} seconds: try again")
            if answer.length is not None and answer.length != len(data):
                raise CutError(f"{len(data)} of {answer.length} bytes came")
    except NotThereError:
        return None
    except CutError as error:
        raise ReleaseError(f"{url} could not be had: {error}. Try again") from None
    return data


class NotThereError(ReleaseError):
    """The server has no such file."""


class Download:
    """A large file on its way from a server into a file."""

    def __init__(
        self,
        url: str,
        size: int | None,
        most: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        """Prepare a download.

        :param size: how many bytes it must have, if that is known.
        :param most: how many it may have otherwise.
        :param clock: seconds that go on.
        :param pause: waits for so many seconds.
        """
        self._url = url
        self._size = size
        self._most = most
        self._clock = clock
        self._pause = pause

    def into(self, file: BinaryIO, advance: Callable[[int], object]) -> None:
        """Go on with what ``file`` has until it has all.

        :param advance: called with how many bytes came, also those that were there before; with
            less than 0 when these were thrown away.
        :raises ReleaseError: it cannot be had; what has come stays in the file.
        :raises OSError: the file cannot be written.
        """
        have = file.seek(0, 2)
        if self._size is not None and have > self._size:
            file.truncate(0)
            have = 0
        advance(have)
        failures, best = 0, have
        while self._size is None or have < self._size:
            try:
                self._attempt(file, advance)
                return
            except CutError as error:
                have = file.seek(0, 2)
                failures = 0 if have >= best + SLOWEST else failures + 1
                best = max(best, have)
                if failures >= ATTEMPTS:
                    raise ReleaseError(self._gave_up(have, error)) from None
            self._pause(PAUSES[min(failures, len(PAUSES) - 1)])

    def _gave_up(self, have: int, error: CutError) -> str:
        of = "" if self._size is None else f" of {self._size}"
        return (
            f"{self._url} broke off at byte {have}{of}, {ATTEMPTS} times one after the other: "
            f"{error}.\n  Give the same command again later: it goes on from there."
        )

    def _attempt(self, file: BinaryIO, advance: Callable[[int], object]) -> None:
        have = file.seek(0, 2)
        try:
            asked = Answer(self._url, have)
        except _PastEndError:
            advance(-have)
            file.truncate(0)
            raise
        with asked as answer:
            if answer.start != have:
                # A server that knows no ranges, or another part than the one that was asked for.
                advance(-have)
                file.truncate(0)
                have = file.seek(0)
                if answer.start != 0:
                    raise CutError("another part of the file was sent than was asked for")
            whole = None if answer.length is None else have + answer.length
            self._judge(whole)
            begin, before = self._clock(), have
            while piece := answer.read(_PIECE):
                have += len(piece)
                self._judge(have, at_least=True)
                file.write(piece)
                advance(len(piece))
                if self._clock() - begin > SLOW:
                    if have - before < SLOWEST:
                        raise CutError(f"only {have - before} bytes came in {SLOW:g} seconds")
                    begin, before = self._clock(), have
        file.flush()
        for wanted in (whole, self._size):
            if wanted is not None and have < wanted:
                raise CutError("the connection ended")

    def _judge(self, size: int | None, *, at_least: bool = False) -> None:
        """Make sure that a size can be that of the file."""
        if size is None:
            return
        if self._size is None and size > self._most:
            raise ReleaseError(f"{self._url} has more than the {self._most} bytes that are taken")
        if self._size is not None and (size > self._size or (size != self._size and not at_least)):
            raise ReleaseError(
                f"{self._url} has {size} bytes{' or more' if at_least else ''}, and the release "
                f"says {self._size}: the server has another file under this name. Tell who "
                "publishes it"
            )


def _decimal(value: str) -> int | None:
    return int(value) if value.isascii() and value.isdigit() and len(value) < 19 else None


def _words(error: BaseException) -> str:
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ended"
    if isinstance(error, TimeoutError):
        return f"nothing came for {SILENCE:g} seconds"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _refused(url: str, status: int, reason: str) -> Exception:
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        return NotThereError(f"the server has no {url} ({status} {reason}): is it spelt right?")
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return _PastEndError("the file is not longer than what is here of it")
    return ReleaseError(f"the server does not give {url}: {status} {reason}")


def _unreachable(url: str, reason: str | BaseException) -> Exception:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return ReleaseError(
            f"{urlsplit(url).hostname} cannot prove by its certificate who it is: "
            f"{reason.verify_message}. Is the clock of this machine right?"
        )
    return CutError(_words(reason) if isinstance(reason, BaseException) else str(reason))

# SPDX-License-Identifier: Apache-2.0
"""Updates from a folder on a web server: ``[update] source``.

The folder has ``offer``, and for each patch ``SHA256.patch`` and ``SHA256.list``, as the store of a
node has them. Where it has more offers, as those for other kinds of devices or of applications,
``offers`` has their names, one in a line. What comes from there is checked as what comes from a
node, so the server need not be trusted. A node that is set to look there gets what it lacks from
there and from the mesh. What is wrong with one offer or patch there holds up no other.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from logging import getLogger
from typing import TYPE_CHECKING, NamedTuple

from thicket.base import threads
from thicket.base.errors import CodedError, ThicketError
from thicket.base.pace import Backoff, uniform
from thicket.trust import cms
from thicket.update.offer import CHUNK
from thicket.update.spread import OUTSIDE
from thicket.update.store import HASH, length

if TYPE_CHECKING:
    from thicket.update.carrier import Carrier, Download

log = getLogger(__name__)

#: Seconds between two looks for a newer offer, and between two looks whether something is lacking.
LOOK = (600.0, 900.0)
GLANCE = 2.0
#: Seconds for which a server may say nothing, that one request may take, and until its thread is
#: given up.
SILENT = 20.0
LONGEST = 110.0
DEADLINE = 120.0
#: Pauses after failures in a row, in seconds.
PAUSES = (30.0, 60.0, 300.0, 900.0, 3600.0)
#: Most chunks of one request. It is halved where that takes too long, as nothing of it is kept
#: then, and doubled where it takes less than QUICK seconds.
RUN = 32
QUICK = 25.0

OFFER, OFFERS = "offer", "offers"
#: Offers in one folder, and bytes of the list of them.
MOST_OFFERS = 32
MOST_NAMES = 4096

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
#: An entity tag (RFC 9110, 8.8.3) of usual length; without one the offer is fetched again.
_TAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e]{0,100}"')
_SCHEMES = ("https://", "http://")

UNREACHABLE = "unreachable"


class SourceError(CodedError):
    """The folder cannot be used; the text says why."""


class Answer(NamedTuple):
    """What a server has answered.

    :ivar tag: the server's name for this version of the file; empty without one.
    """

    status: int
    body: bytes
    tag: str


def get(url: str, most: int, headers: dict[str, str]) -> Answer:
    """Fetch a file, or a part of it, in a thread of the caller.

    :param most: bytes that are read.
    :raises SourceError: the server does not give it.
    """
    from http.client import HTTPException
    from urllib.error import HTTPError

    from thicket.update.web import fetch, what_is_wrong  # few nodes have a source

    if not url.startswith(_SCHEMES):
        raise SourceError("bad-address", f"{url} is no address of a web server")
    try:
        found = fetch(url, most + 1, headers, SILENT, LONGEST)
    except HTTPError as error:
        with error:
            if error.code == 304:
                return Answer(304, b"", "")
            raise SourceError("no-file", f"{url}: {error.code} {error.reason}") from None
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise SourceError(UNREACHABLE, f"{url}: {what_is_wrong(reason)}") from None
    if len(found.body) > most:
        raise SourceError("too-long", f"{url} is longer than what is expected there")
    return Answer(found.status, found.body, found.tag if _TAG.fullmatch(found.tag) else "")


class _Rest:
    """A patch that cannot be had there for now.

    :ivar until: when it is tried again.
    """

    def __init__(self) -> None:
        self.until = 0.0
        self._pauses = Backoff(*PAUSES)

    def failed(self, now: float) -> None:
        """It was tried, in vain."""
        self.until = now + self._pauses.failed() * uniform(0.8, 1.2)


class Source:
    """Looks into the folder.

    :param carriers: returns what carries offers.
    :param take: takes an offer that was found in the folder that is named behind it.
    :param folder: returns its address; empty for none.
    """

    def __init__(
        self,
        carriers: Callable[[], Sequence[Carrier]],
        take: Callable[[bytes, str], Awaitable[bool]],
        folder: Callable[[], str],
        fetch: Callable[[str, int, dict[str, str]], Answer] = get,
    ) -> None:
        self._carriers = carriers
        self._take = take
        self._folder = folder
        self._fetch = fetch
        self._threads = threads.OneAtATime("update-source")
        self._pauses = Backoff(*PAUSES)
        self._tags: dict[str, str] = {}
        self._resting: dict[str, _Rest] = {}
        self._of = ""
        self._look_at = 0.0
        self._part = RUN

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            folder = self._folder()
            pause = GLANCE
            if folder:
                try:
                    pause = await self._look(folder)
                    self._pauses.reset()
                except (ThicketError, OSError) as error:  # a TimeoutError is one as well
                    pause = self._pauses.failed() * uniform(0.8, 1.2)
                    words = str(error) or "the server takes too long"
                    log.warning("no update from outside: %s", words)
            await asyncio.sleep(pause)

    async def _look(self, folder: str) -> float:
        """Fetch what is new or lacking; return the seconds until the next look."""
        if folder != self._of:
            self._of, self._look_at = folder, 0.0
            self._tags.clear()
            self._resting.clear()
        if time.monotonic() >= self._look_at:
            await self._look_for_offers(folder)
            self._look_at = time.monotonic() + uniform(*LOOK)
        pause, now = GLANCE, time.monotonic()
        lacking = [(one, found) for one in self._carriers() if (found := one.download) is not None]
        names = {download.patch.sha256 for _, download in lacking}
        self._resting = {name: rest for name, rest in self._resting.items() if name in names}
        for carrier, download in lacking:
            rest = self._resting.get(download.patch.sha256)
            if rest is not None and now < rest.until:
                continue
            pause = 0.1
            if not download.writing:
                await self._fetch_part(folder, carrier, download)
        return pause

    async def _fetch_part(self, folder: str, carrier: Carrier, download: Download) -> None:
        """Fetch something of a patch; one that cannot be had rests, as the mesh may have it."""
        name = download.patch.sha256
        try:
            if download.fetch is None:
                await self._fetch_list(folder, carrier, download)
            else:
                await self._fetch_chunks(folder, carrier, download)
        except SourceError as error:
            if error.code == UNREACHABLE:
                raise
            log.warning("no update from outside: %s", error)
            self._resting.setdefault(name, _Rest()).failed(time.monotonic())
        else:
            self._resting.pop(name, None)

    async def _look_for_offers(self, folder: str) -> None:
        """Take all offers that are new; one that is refused holds up nothing else."""
        tags: dict[str, str] = {}
        for name in await self._names(folder):
            url = f"{folder}/{name}"
            known = self._tags.get(url, "")
            try:
                answer = await self._get(
                    url, cms.MAX_SIZE, {"If-None-Match": known} if known else {}
                )
                if answer.status == 200:
                    await self._take(answer.body, folder)
                    known = answer.tag
                tags[url] = known
            except ThicketError as error:
                if error.code == UNREACHABLE:
                    raise
                log.warning("no update from outside: %s: %s", url, error)
        self._tags = tags

    async def _names(self, folder: str) -> list[str]:
        """Return the names of the offers in the folder."""
        try:
            answer = await self._get(f"{folder}/{OFFERS}", MOST_NAMES, {})
        except SourceError as error:
            if error.code != "no-file":
                raise
            return [OFFER]
        names = answer.body.decode("ascii", "replace").split()
        if bad := [name for name in names if not _NAME.fullmatch(name)]:
            raise SourceError("wrong", f"{folder}/{OFFERS}: {bad[0][:40]!r} is no name of a file")
        return names[:MOST_OFFERS]

    async def _fetch_list(self, folder: str, carrier: Carrier, download: Download) -> None:
        if download.listed is not None:
            return
        patch = download.patch
        answer = await self._get(f"{folder}/{patch.sha256}.list", patch.chunk_count * HASH, {})
        if carrier.download is download:
            carrier.take_list(OUTSIDE, answer.body, time.monotonic())
            if download.listed is None and download.fetch is None:
                raise SourceError("wrong", "the chunk list there is not the one that was signed")

    async def _fetch_chunks(self, folder: str, carrier: Carrier, download: Download) -> None:
        fetch, patch = download.fetch, download.patch
        if fetch is None:
            return
        began = time.monotonic()
        chunks = fetch.claim(self._part, began)
        if not chunks:
            return
        first = chunks[0] * CHUNK
        size = sum(length(patch, chunk) for chunk in chunks)
        try:
            url = f"{folder}/{patch.sha256}.patch"
            headers = {"Range": f"bytes={first}-{first + size - 1}"}
            try:
                answer = await self._get(url, size, headers)
            except (ThicketError, TimeoutError):
                self._part = max(1, self._part // 2)
                raise
            if time.monotonic() - began < QUICK:
                self._part = min(RUN, 2 * self._part)
            if answer.status != 206 and (first or size != patch.size):
                raise SourceError("no-ranges", f"{url}: the server gives no parts of files")
            _hand_in(carrier, download, chunks, answer.body)
        finally:
            fetch.release(OUTSIDE)

    async def _get(self, url: str, most: int, headers: dict[str, str]) -> Answer:
        return await self._threads.do(lambda: self._fetch(url, most, headers), DEADLINE)


def _hand_in(carrier: Carrier, download: Download, chunks: list[int], body: bytes) -> None:
    wrong = carrier.counters["wrong"]
    for place, chunk in enumerate(chunks):
        if carrier.download is not download:
            return
        data = body[place * CHUNK : (place + 1) * CHUNK]
        carrier.arrived(OUTSIDE, chunk, data, time.monotonic())
        if carrier.counters["wrong"] != wrong:
            raise SourceError("wrong", "a chunk there is not the one that was signed")

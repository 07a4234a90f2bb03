# SPDX-License-Identifier: Apache-2.0
"""Updates on one node: what the radio and the kernel tell, a web server's folder, the command."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import random
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.error import HTTPError
from urllib.request import Request

import pytest
from patience import PATIENCE
from private_network import until
from test_fleet_links import FLEET
from test_update_exchange import BASE, SMALL, an_offer, described, signed

from thicket.base.headway import Headway
from thicket.base.problems import Problems
from thicket.cli import update as command
from thicket.cli.common import OK, USAGE
from thicket.cli.main import main
from thicket.control.client import ClientError
from thicket.daemon import update_part
from thicket.update import source as source_module
from thicket.update import spread, web
from thicket.update.carrier import GIVEN, QUEUED, UNWRITTEN, Carrier, Download
from thicket.update.messages import Data, Get, Message, No, Piece
from thicket.update.mine import Mine
from thicket.update.offer import CHUNK, Offer, Patch, check_offer
from thicket.update.section import UpdateSection
from thicket.update.show import HEADS
from thicket.update.source import UNREACHABLE, Answer, Source, SourceError, get
from thicket.update.spread import AGAIN, ASSUMED, NEAR, OUTSIDE, Way
from thicket.update.store import Store

# -- what a node knows of itself and its ways


def test_ways_by_peers_and_paths() -> None:
    names = [f"thicket@fd00::{n}" for n in range(1, 6)]
    peers: list[dict[str, Any]] = [
        {"address": "fd00::1", "metric": 150, "state": "ESTAB"},
        {"address": "fd00::2", "metric": 8193, "state": "ESTAB"},
        {"address": "fd00::4", "metric": 10, "state": "LISTEN"},
        {"address": None, "metric": 1, "state": "ESTAB"},
    ]
    paths: list[dict[str, Any]] = [
        {"address": "fd00::2", "hops": 2, "metric": 300, "active": True},
        {"address": "fd00::3", "hops": 3, "metric": None, "active": True},
        {"address": "fd00::1", "hops": 0, "metric": 0, "active": False},
        {"address": None, "hops": 1, "metric": 5, "active": True},
    ]
    far = Way(update_part.FAR, update_part.FAR * ASSUMED)
    known = update_part.by_address(peers, paths)
    assert list(update_part.ways(names, known).values()) == [
        Way(1, 150), Way(2, 300), Way(3, 3 * ASSUMED), far, far
    ]  # fmt: skip
    assert set(update_part.ways(names, update_part.by_address([], [])).values()) == {Way()}
    # A neighbour in the overlay counts as near, though frames to it take two hops.
    assert update_part.ways(names, known, {names[1]})[names[1]] == Way(NEAR, 300)


def test_the_address_of_a_folder() -> None:
    key = UpdateSection.source
    for good in ("", "http://a/b", "https://example.org/updates/"):
        assert key.check(good) == good.rstrip("/")
    for bad in ("ftp://a", "http://", "https:///", "a/b", "http://a b", "https://me:pw@a/b", 5):
        with pytest.raises(ValueError, match="must be"):
            key.check(bad)


# -- a web server


class Wire:
    """Nobody is connected."""

    def send(self, peer: str, message: Message) -> None:
        raise AssertionError(peer)

    def unsent(self, peer: str) -> int:
        return 0

    def tell_near(self, but: str = "") -> None:
        pass


class Host:
    """A node alone."""

    def __init__(self) -> None:
        self.problems = Problems(lambda: None)
        self.taken: list[bytes] = []

    def check(self, packed: bytes) -> Offer:
        return check_offer(packed, FLEET.fleet)

    def base(self) -> str:
        return BASE

    def wants(self, offer: Offer) -> bool:
        return True

    def share(self) -> float:
        return 0.2

    def ways(self) -> Mapping[str, Way]:
        return {}

    async def take(self, path: str, offer: Offer, patch: Patch) -> None:
        self.taken.append(Path(path).read_bytes())


class Handler(BaseHTTPRequestHandler):
    """A web server with parts of files and tags."""

    files: dict[str, bytes]
    asked: list[str]

    def do_GET(self) -> None:
        data = self.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        tag = self.tag(data)
        given = self.headers.get("Range", "")
        self.asked.append(f"{self.path} {given}".strip())
        if self.headers.get("If-None-Match") == tag:
            self.send_response(304)
            self.end_headers()
            return
        if given:
            first, last = map(int, given.removeprefix("bytes=").split("-"))
            data = data[first : last + 1]
        self.send_response(206 if given else 200)
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def tag(self, data: bytes) -> str:
        return f'"{hashlib.sha256(data).hexdigest()[:8]}"'

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, type[Handler]]]:
    handler = type("OneServer", (Handler,), {"files": {}, "asked": []})
    made = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{made.server_address[1]}/folder", handler
    made.shutdown()
    made.server_close()


def fill(handler: type[Handler], data: bytes = SMALL) -> None:
    patch = described(SMALL, BASE)
    listed = b"".join(
        hashlib.sha256(SMALL[at : at + CHUNK]).digest() for at in range(0, len(SMALL), CHUNK)
    )
    handler.files.update(
        {
            "/folder/offer": signed(an_offer()),
            f"/folder/{patch.sha256}.list": listed,
            f"/folder/{patch.sha256}.patch": data,
        }
    )


@asynccontextmanager
async def looking(folder: Path, url: str) -> AsyncIterator[tuple[Host, Carrier]]:
    host = Host()
    carrier = Carrier(host, Store(str(folder)), Wire())
    source = Source(lambda: [carrier], carrier.take_offer, lambda: url)
    tasks = [asyncio.create_task(carrier.run()), asyncio.create_task(source.run())]
    try:
        yield host, carrier
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_an_update_from_a_web_server(
    tmp_path: Path, server: tuple[str, type[Handler]]
) -> None:
    url, handler = server
    fill(handler)
    async with looking(tmp_path / "a", url) as (host, _):
        await until(lambda: host.taken == [SMALL], "it is here")
    parts = [one for one in handler.asked if "bytes=" in one]
    assert len(parts) == 1
    # another node goes on with what it has
    del handler.asked[:]
    patch = described(SMALL, BASE)
    path = tmp_path / "a" / f"{patch.sha256}.patch"
    with path.open("r+b") as file:
        file.seek(2 * CHUNK)
        file.write(bytes(CHUNK))
    async with looking(tmp_path / "a", url) as (host, _):
        await until(lambda: host.taken == [SMALL], "it is here again")
    (part,) = [one for one in handler.asked if "bytes=" in one]
    assert part.endswith(f"bytes={2 * CHUNK}-{3 * CHUNK - 1}")


async def test_several_offers_in_one_folder(
    tmp_path: Path, server: tuple[str, type[Handler]], caplog: pytest.LogCaptureFixture
) -> None:
    url, handler = server
    fill(handler)
    taken: list[bytes] = []
    offers = [signed(an_offer(number)) for number in (1, 2, 3)]

    async def take(packed: bytes, who: str) -> bool:
        assert who == url
        taken.append(packed)
        if packed == offers[1]:
            raise SourceError("wrong", "this one does not count")
        return True

    for number, packed in enumerate(offers):
        handler.files[f"/folder/{number}.offer"] = packed
    handler.files["/folder/offers"] = b"0.offer\n1.offer\n2.offer\n"
    source = Source(list, take, lambda: url)
    await source._look(url)
    assert taken == offers, "one that is refused holds up no other"
    assert "does not count" in caplog.text
    source._look_at = 0.0
    await source._look(url)
    assert taken[3:] == [offers[1]], "the others have not changed"
    source._look_at = 0.0
    for bad in (b"../secret", b"a b/c", b"\xff"):
        handler.files["/folder/offers"] = bad
        with pytest.raises(SourceError, match="no name of a file"):
            await source._look(url)
    handler.files["/folder/offers"] = b"x" * 5000
    with pytest.raises(SourceError, match="longer"):
        await source._look(url)


async def test_chunks_that_nobody_asked_for_take_no_memory(tmp_path: Path) -> None:
    """A member that has a patch may send all of it at once, to a card that stands still."""
    host, data = Host(), random.Random(1).randbytes(40 * CHUNK)
    offer = an_offer(1, described(data, ""))
    chunks = [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]
    carrier = Carrier(host, Store(str(tmp_path)), Wire())
    await carrier.take_offer(signed(offer), "a node")
    held = carrier._card.store.begin(
        offer.patches[0], b"".join(hashlib.sha256(chunk).digest() for chunk in chunks)
    )
    carrier.held[0] = held
    carrier.download = download = Download(0, offer.patches[0], carrier.theirs[0], held)
    for number, chunk in enumerate(chunks):
        piece = Piece(0, "chunk", number)
        carrier.on("eager", Data(offer.identifier, piece, chunk))
    assert len(download.writing) == UNWRITTEN
    fetch = download.fetch
    assert fetch is not None
    carrier.arrived(OUTSIDE, 30, chunks[30], 0.0)
    assert len(download.writing) == UNWRITTEN + 1, "the source waits for the card by itself"
    download.writing.clear()
    for _ in range(20):
        carrier.on("liar", Data(offer.identifier, Piece(0, "chunk", 39), b"rubbish"))
    assert carrier.counters["wrong"] == 1, "who has sent rubbish is not listened to"


async def test_nobody_gets_everything_for_ever(tmp_path: Path) -> None:
    said: list[Message] = []

    class Said(Wire):
        def send(self, peer: str, message: Message) -> None:
            said.append(message)

    data = SMALL[: 2 * CHUNK]
    offer = an_offer(1, described(data, "aa" * 32))
    (tmp_path / "offer").write_bytes(signed(offer))
    (tmp_path / "data").write_bytes(data)
    carrier = Carrier(Host(), Store(str(tmp_path / "kept")), Said())
    await carrier.offer_folder(str(tmp_path))
    assert carrier.newest is not None
    get_it = Get(offer.identifier, Piece(0, "chunk", 0))
    for _ in range(GIVEN * 3):
        carrier.on("greedy", get_it)
        carrier._serve.air.spend(-1.0, time.monotonic())
        await carrier._send(carrier.newest, {})
    assert [type(one) for one in said] == [Data] * (GIVEN * 3)
    carrier.on("greedy", get_it)
    assert said[-1] == No(offer.identifier, get_it.piece, int(1000 * AGAIN[1]))
    carrier.on("honest", get_it)
    assert len(carrier._serve) == 1


async def test_who_reads_nothing_is_told_that_it_has_lost_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, Message]] = []

    class Full(Wire):
        def send(self, peer: str, message: Message) -> None:
            said.append((peer, message))

        def unsent(self, peer: str) -> int:
            return QUEUED + 1

    data = SMALL[: 2 * CHUNK]
    offer = an_offer(1, described(data, "aa" * 32))
    (tmp_path / "offer").write_bytes(signed(offer))
    (tmp_path / "data").write_bytes(data)
    carrier = Carrier(Host(), Store(str(tmp_path / "kept")), Full())
    await carrier.offer_folder(str(tmp_path))
    assert carrier.newest is not None
    get_it = Get(offer.identifier, Piece(0, "chunk", 0))
    carrier.on("slow", get_it)
    await carrier._send(carrier.newest, {})
    assert said == []
    monkeypatch.setattr(spread, "PATIENCE", 0.0)
    await carrier._send(carrier.newest, {})
    assert said == [("slow", No(offer.identifier, get_it.piece, int(1000 * AGAIN[1])))]


async def test_what_is_wrong_with_one_offer_or_patch_holds_up_no_other(
    tmp_path: Path, server: tuple[str, type[Handler]], caplog: pytest.LogCaptureFixture
) -> None:
    url, handler = server
    fill(handler)
    handler.files["/folder/other"] = b"no offer"
    handler.files["/folder/offers"] = b"other offer none"
    missing = Carrier(Host(), Store(str(tmp_path / "b")), Wire())
    await missing.take_offer(signed(an_offer(7, described(bytes(3 * CHUNK), ""))), "a node")
    host = Host()
    carrier = Carrier(host, Store(str(tmp_path / "a")), Wire())
    source = Source(lambda: [missing, carrier], carrier.take_offer, lambda: url)
    works = (missing.run(), carrier.run(), source.run())
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await until(lambda: host.taken == [SMALL], "it is here")
        await until(lambda: ".list: 404" in caplog.text, "the other one is asked for")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert caplog.text.count(".list: 404") == 1, "it rests"
    assert "/folder/none: 404" in caplog.text


@pytest.mark.parametrize(("quick", "asked"), [(0.0, [32, 16, 8, 8, 8, 8, 8]), (25.0, [32, 16, 8])])
async def test_a_slow_server_is_asked_for_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: float, asked: list[int]
) -> None:
    """Nothing of a request that takes too long is kept."""
    monkeypatch.setattr(source_module, "QUICK", quick)
    data = random.Random(1).randbytes(40 * CHUNK)
    listed = b"".join(
        hashlib.sha256(data[at : at + CHUNK]).digest() for at in range(0, len(data), CHUNK)
    )
    sizes: list[int] = []

    def fetch(url: str, _most: int, headers: dict[str, str]) -> Answer:
        if url.endswith(".list"):
            return Answer(200, listed, "")
        if not url.endswith(".patch"):
            raise SourceError("no-file", url)
        first, last = map(int, headers["Range"].removeprefix("bytes=").split("-"))
        sizes.append((last + 1 - first) // CHUNK)
        if sizes[-1] > 8:
            raise SourceError(UNREACHABLE, "the server takes too long")
        return Answer(206, data[first : last + 1], "")

    host = Host()
    carrier = Carrier(host, Store(str(tmp_path)), Wire())
    await carrier.take_offer(signed(an_offer(1, described(data, ""))), "a node")
    source = Source(lambda: [carrier], carrier.take_offer, lambda: "http://here", fetch)
    running = asyncio.create_task(carrier.run())
    try:
        async with asyncio.timeout(PATIENCE):
            while not host.taken:
                with contextlib.suppress(SourceError):
                    await source._look("http://here")
                await asyncio.sleep(0)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert host.taken == [data]
    assert sizes[: len(asked)] == asked
    assert quick == 0.0 or max(sizes[len(asked) :]) > 8, "a server that is quick again gets more"


async def test_tags_of_a_server_are_bounded() -> None:
    """A server may name other offers each time, and send tags that no request may have."""
    looks: list[int] = []

    def fetch(url: str, most: int, headers: dict[str, str]) -> Answer:
        if url.endswith("/offers"):
            return Answer(200, " ".join(f"{len(looks)}-{n}" for n in range(50)).encode(), "")
        return Answer(200, b"", '"tag"')

    async def take(packed: bytes, who: str) -> bool:
        return False

    source = Source(list, take, lambda: "http://here", fetch)
    for look in range(5):
        looks.append(look)
        source._look_at = 0.0
        await source._look("http://here")
        assert len(source._tags) == 32


@pytest.mark.parametrize("tag", ['"a\r\n b"', '"' + "x" * 5000 + '"', "none"])
def test_a_tag_that_is_none_is_not_kept(server: tuple[str, type[Handler]], tag: str) -> None:
    url, handler = server
    handler.files["/folder/a"] = b"a"
    with mock.patch.object(handler, "tag", lambda _self, _data: tag):
        assert get(f"{url}/a", 1, {}) == Answer(200, b"a", "")


class Trickle(BaseHTTPRequestHandler):
    """A server that never ends, in its headers or in what is behind them."""

    def do_GET(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        if self.path == "/body":
            self.wfile.write(b"Content-Length: 100000\r\n\r\n")
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b"a")
                time.sleep(0.02)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("path", ["headers", "body"])
def test_a_server_that_never_ends(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "LONGEST", 0.5)
    made = ThreadingHTTPServer(("127.0.0.1", 0), Trickle)
    made.daemon_threads = True
    threading.Thread(target=made.serve_forever, daemon=True).start()
    try:
        with pytest.raises(SourceError, match="takes too long") as caught:
            get(f"http://127.0.0.1:{made.server_address[1]}/{path}", 100_000, {})
        assert caught.value.code == "unreachable"
    finally:
        made.shutdown()
        made.server_close()


class Elsewhere(BaseHTTPRequestHandler):
    """A server that has everything elsewhere."""

    to = ""

    def do_GET(self) -> None:
        if self.path == "/there":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"there")
            return
        self.send_response(302)
        self.send_header("Location", self.to)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_where_a_server_may_lead() -> None:
    made = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{made.server_address[1]}"
    try:
        Elsewhere.to = "/there"
        assert get(f"{url}/here", 10, {}).body == b"there"
        for Elsewhere.to in ("ftp://127.0.0.1/there", "file:///etc/passwd", f"{url}/here"):
            with pytest.raises(SourceError, match="302") as caught:
                get(f"{url}/here", 10, {})
            assert caught.value.code == "no-file"
        request = Request("https://127.0.0.1/here")
        with pytest.raises(HTTPError, match="leads away"):
            web._Redirects().redirect_request(
                request, io.BytesIO(), 302, "Found", HTTPMessage(), f"{url}/there"
            )
    finally:
        made.shutdown()
        made.server_close()


async def test_an_offer_that_comes_while_the_card_is_read_is_adopted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adopted again, it would forget what has come since, and fetch that twice."""
    packed = signed(an_offer())
    before = Carrier(Host(), Store(str(tmp_path / "a")), Wire())
    assert await before.take_offer(packed, "a node")
    adopted: list[float] = []

    class Counting(Host):
        def share(self) -> float:
            adopted.append(0.2)
            return 0.2

    carrier = Carrier(Counting(), Store(str(tmp_path / "a")), Wire())
    del adopted[:]
    opened = Store.open

    def slow(store: Store, patch: Patch) -> Any:
        time.sleep(0.05)
        return opened(store, patch)

    monkeypatch.setattr(Store, "open", slow)
    await asyncio.gather(carrier._load(), carrier.take_offer(packed, "a node"))
    assert adopted == [0.2]


async def test_a_server_with_something_else(
    tmp_path: Path, server: tuple[str, type[Handler]], caplog: pytest.LogCaptureFixture
) -> None:
    url, handler = server
    fill(handler, bytes(len(SMALL)))
    async with looking(tmp_path / "a", url) as (host, carrier):
        await until(lambda: "is not the one that was signed" in caplog.text, "it is said")
        assert carrier.counters["wrong"] == 1
        assert host.taken == []


def test_what_a_server_may_send(server: tuple[str, type[Handler]]) -> None:
    url, handler = server
    handler.files["/folder/long"] = bytes(1000)
    assert get(f"{url}/long", 1000, {}).body == bytes(1000)
    tag = get(f"{url}/long", 1000, {}).tag
    assert get(f"{url}/long", 1000, {"If-None-Match": tag}) == Answer(304, b"", "")
    for path, most, words in (("long", 999, "longer"), ("none", 9, "404")):
        with pytest.raises(SourceError, match=words):
            get(f"{url}/{path}", most, {})
    with pytest.raises(SourceError, match="refused"):
        get("http://127.0.0.1:1/x", 9, {})
    with pytest.raises(SourceError, match="no address"):
        get("file:///etc/passwd", 9, {})


# -- a web server with TLS

AUTHORITY = """\
[ca]
default_ca = own
[own]
database = index.txt
new_certs_dir = .
serial = serial
default_md = sha256
policy = any
copy_extensions = copy
[any]
commonName = supplied
"""
DAY = "%y%m%d%H%M%SZ"


class Authority:
    """An authority that certifies web servers."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.certificate = folder / "authority.pem"
        (folder / "conf").write_text(AUTHORITY)
        (folder / "index.txt").write_text("")
        (folder / "serial").write_text("01")
        self._openssl("req", "-x509", *self._key("authority"), "-out", "authority.pem",
                      "-days", "2", "-subj", "/CN=authority")  # fmt: skip

    def server(self, name: str, begin: int = -1, end: int = 1) -> ssl.SSLContext:
        """Return what a server of this name shows.

        :param begin: of its certificate, in days from now, and ``end`` as well.
        """
        now = datetime.now(UTC)
        first, last = (f"{now + timedelta(days=day):{DAY}}" for day in (begin, end))
        self._openssl("req", "-new", *self._key("server"), "-out", "server.csr",
                      "-subj", "/CN=server", "-addext", f"subjectAltName={name}")  # fmt: skip
        self._openssl("ca", "-batch", "-notext", "-config", "conf", "-in", "server.csr",
                      "-cert", "authority.pem", "-keyfile", "authority.key",
                      "-startdate", first, "-enddate", last, "-out", "server.pem")  # fmt: skip
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "server.pem", self.folder / "server.key")
        return context

    def _key(self, name: str) -> tuple[str, ...]:
        kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
        return *kind, "-nodes", "-keyout", f"{name}.key"

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=self.folder)


@contextlib.contextmanager
def https(context: ssl.SSLContext | None) -> Iterator[tuple[str, type[Handler]]]:
    """Run a server with TLS, or without it; yield its folder's address, and what it serves."""
    handler = type("OneServer", (Handler,), {"files": {}, "asked": []})
    made = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if context is not None:
        made.socket = context.wrap_socket(
            made.socket, server_side=True, do_handshake_on_connect=False
        )
    threading.Thread(target=made.serve_forever, daemon=True).start()
    try:
        yield f"https://127.0.0.1:{made.server_address[1]}/folder", handler
    finally:
        made.shutdown()
        made.server_close()


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """An authority that this node knows, and no others: what the image has in /etc/ssl/cert.pem."""
    made = Authority(tmp_path / "authority")
    monkeypatch.setenv("SSL_CERT_FILE", str(made.certificate))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    return made


HERE = "IP:127.0.0.1"


async def test_an_update_comes_over_https(tmp_path: Path, authority: Authority) -> None:
    with https(authority.server(HERE)) as (url, handler):
        fill(handler)
        async with looking(tmp_path / "a", url) as (host, _):
            await until(lambda: host.taken == [SMALL], "it is here")
        assert any(".patch bytes=" in one for one in handler.asked), "in parts"


def refused(url: str) -> str:
    """Ask for a file that the node must not get; return what it says."""
    with pytest.raises(SourceError) as caught:
        get(f"{url}/offer", 100, {})
    assert caught.value.code == UNREACHABLE
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "begin", "end", "words"),
    [
        (HERE, -3, -1, "has expired: renew it there, or look at this node's clock"),
        (HERE, 1, 3, "is not valid yet: look at this node's clock"),
        ("IP:127.0.0.2", -1, 1, "is for another address: use the name that it is for"),
        ("DNS:updates.example", -1, 1, "is for another address: use the name that it is for"),
    ],
)
def test_a_server_whose_certificate_does_not_count(
    name: str, begin: int, end: int, words: str, authority: Authority
) -> None:
    with https(authority.server(name, begin, end)) as (url, handler):
        handler.files["/folder/offer"] = b"offer"
        assert f"{words}; http:// works as well" in refused(url)
        assert handler.asked == []


def test_a_server_of_another_name(authority: Authority) -> None:
    with https(authority.server("DNS:updates.example")) as (url, _):
        said = refused(url.replace("127.0.0.1", "localhost"))
        assert "is for another name: use the one that it is for" in said


def test_a_server_of_an_authority_that_nobody_knows(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = Authority(tmp_path / "stranger")
    with https(stranger.server(HERE)) as (url, _):
        assert "from no authority that this node knows" in refused(url)
    # an image without any
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    with https(authority.server(HERE)) as (url, _):
        assert "from no authority that this node knows" in refused(url)


def test_a_server_without_tls() -> None:
    with https(None) as (url, _):
        assert "does not speak HTTPS there: use http://" in refused(url)


# -- the command


def test_the_status_for_a_person() -> None:
    assert command.shown({"offer": None}, None) == ["No update is offered."]
    answer = {
        "offer": {"version": "2.0", "compatible": "thicket-rpi64", "application": ""}
        | {"number": 7, "wanted": False},
        "patches": [
            {"base": "", "size": 30 << 20, "here": 15 << 20, "fetching": True, "failed": ""},
            {"base": BASE, "size": 8908, "here": 0, "fetching": False, "failed": "so"},
            {"base": BASE, "size": 500, "here": 500, "fetching": False, "failed": ""},
        ],
        "nodes": [
            {"name": "thicket@fd00::1", "hops": 1, "percent": 50},
            {"name": "thicket@fd00::12", "hops": 2, "percent": 100},
        ],
    }
    mine = Mine("fetching", 15, "it gets the patch", "nothing: it goes on by itself")
    assert command.shown(answer, mine._asdict()) == [
        "Update to 2.0 for thicket-rpi64 (offer 7)",
        "  patch, whole: 30.0 MiB, 15.0 MiB here, being fetched",
        "  patch, from babababababa: 8.7 KiB, not here, of no use: so",
        "  patch, from babababababa: 500 bytes, here",
        "This node: fetching, 15 % of the way: it gets the patch",
        "  what to do: nothing: it goes on by itself",
        "",
        "What the connected nodes have of a patch:",
        "thicket@fd00::1   1 hop    [##########----------]  50 %",
        "thicket@fd00::12  2 hops   [####################] 100 %",
    ]


def test_the_command_asks_the_daemon(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, object]] = []

    def request(_socket: str, method: str, params: dict[str, object], timeout: float) -> object:
        asked.append((method, params))
        offer = {"compatible": "thicket-rpi64", "application": "", "version": "2.0"}
        patches = [{"base": "", "size": 10, "here": 10}, {"base": BASE, "size": 5, "here": 0}]
        return {"offer": offer, "patches": patches} if len(asked) > 1 else None

    monkeypatch.setattr(command, "request", request)
    assert main(["update", "offer", "/data/offered"]) == OK
    assert asked == 2 * [("update-offer", {"folder": "/data/offered"})]
    said = capsys.readouterr().out
    assert said.startswith("copying patches to /data\noffered to the fleet: thicket-rpi64 2.0\n")
    assert "whole: 10 bytes, here\n  change of babababababa: 5 bytes, not here\n" in said
    for wrong in (["offer"], ["offer", "-x"], ["status", "all"], ["sign"]):
        assert main(["update", *wrong]) == USAGE


def test_a_bar_without_a_terminal_has_no_control_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    going = [
        Headway("checking", words="new.raucb"),
        Headway("checking", 50, "2.0", "the whole bundle"),
        Headway("writing", 0, "2.0"),
        Headway("writing", 0, "2.0"),
        Headway("writing", 40, "2.0", "Copying image to root.1"),
        Headway("installed", 100, "2.0", "slot B: the next start tries it"),
    ]
    told = iter(going)
    monkeypatch.setattr(
        command,
        "request",
        lambda _socket, method, *_a, **_k: (
            next(told)._asdict() if method == "update-progress" else None
        ),
    )
    monkeypatch.setattr(command, "_LOOK", 0.0)
    assert main(["update", "install", "new.raucb"]) == OK
    said = capsys.readouterr().out
    assert said.splitlines() == [
        "checking new.raucb",
        "[##########..........]  50 %  checking the whole bundle",
        "[....................]   0 %  writing",
        "[########............]  40 %  Copying image to root.1",
        "version 2.0 is installed: slot B: the next start tries it",
        "`reboot` starts it",
    ]
    assert all(one.isprintable() for one in said.splitlines())


def test_who_has_not_followed_an_order_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = [f"n-{number:012x}" for number in range(7)]
    answers = iter([silent[:1], silent, []])

    def request(*_a: object, **_k: object) -> list[dict[str, object]]:
        rows = [["n-1", "canary", "paused", "-", "5 s", "now", "told to wait"]]
        return [{"headline": "h", "heads": HEADS, "rows": rows, "pending": next(answers)}]

    monkeypatch.setattr(command, "request", request)
    assert main(["update", "order", "pause"]) == OK
    assert "1 node has not said yet to follow the order: n-000000000000; the table tells" in (
        capsys.readouterr().out
    )
    assert main(["update", "order", "pause"]) == OK
    assert "7 nodes have not said yet to follow the order: n-000000000000, " in (
        said := capsys.readouterr().out
    )
    assert "n-000000000004 and 2 more; " in said
    assert main(["update", "order", "pause"]) == OK
    assert "yet" not in capsys.readouterr().out


def test_a_node_that_is_not_in_its_fleet_yet_tells_its_slots(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on trial, before it has joined."""
    slot = {"state": "untried", "runs": True, "trial": True, "version": "2.0", "why": ""}
    failed = "not-joined"

    def request(_socket: str, method: str, *_a: object, **_k: object) -> dict[str, object]:
        if method == "update-status":
            raise ClientError(failed, "the node has not joined the mesh yet: so")
        return {"slots": [{"name": "B", **slot}], "installation": None}

    monkeypatch.setattr(command, "request", request)
    assert main(["update", "status"]) != OK
    said = capsys.readouterr()
    assert said.out == "slot B: untried, runs, on trial, version 2.0\n"
    assert "the node has not joined the mesh yet: so" in said.err
    # Programs get what they asked for, or nothing.
    assert main(["update", "status", "--json"]) != OK
    assert capsys.readouterr().out == ""
    failed = "unreachable"
    assert main(["update", "status"]) != OK
    assert capsys.readouterr().out == ""

# SPDX-License-Identifier: Apache-2.0
"""One request to a web server that is not trusted: it can neither stretch it nor lead it astray.

Imported late: few nodes have a source.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from http.client import HTTPConnection, HTTPMessage, HTTPSConnection
from types import TracebackType
from typing import IO, NamedTuple
from urllib.error import HTTPError
from urllib.request import (
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    Request,
    build_opener,
)

#: What is wrong with a certificate, by OpenSSL's X509_V_ERR_* (x509_vfy.h).
_FAULTS = {
    9: "the server's certificate is not valid yet: look at this node's clock",
    10: "the server's certificate has expired: renew it there, or look at this node's clock",
    62: "the server's certificate is for another name: use the one that it is for",
    64: "the server's certificate is for another address: use the name that it is for",
    **dict.fromkeys(
        (18, 19, 20, 21),
        "the server's certificate is from no authority that this node knows: it needs one from a "
        "public authority, with all certificates between the two",
    ),
}
_PLAIN = "; http:// works as well, as what is there is signed"


class Found(NamedTuple):
    """What a server has answered.

    :ivar body: at most as much as was asked for.
    :ivar tag: the header ``ETag``; empty without one.
    """

    status: int
    body: bytes
    tag: str


def fetch(url: str, most: int, headers: dict[str, str], silent: float, longest: float) -> Found:
    """Fetch a file, or a part of it; blocking.

    :param most: bytes that are read.
    :param silent: seconds for which the server may say nothing.
    :param longest: seconds for all of it: a server may send a byte now and then, for ever.
    :raises OSError, HTTPException, ValueError: the server does not give it.
    """
    with _Limit(longest) as limit:
        try:
            with _opener(limit).open(Request(url, headers=headers), timeout=silent) as answer:  # noqa: S310
                found = Found(answer.status, answer.read(most), answer.headers.get("ETag") or "")
        except Exception:
            if limit.over:
                raise TimeoutError("the server takes too long") from None
            raise
        if limit.over:
            raise TimeoutError("the server takes too long")
        return found


def what_is_wrong(reason: object) -> str:
    """Return in words why a server does not give a file.

    :param reason: what was raised, or the reason that it names.
    """
    if isinstance(reason, ssl.SSLCertVerificationError):
        return _FAULTS.get(reason.verify_code, f"{reason}") + _PLAIN
    if isinstance(reason, ssl.SSLError) and reason.reason in {
        "WRONG_VERSION_NUMBER",
        "HTTP_REQUEST",
    }:
        return "the server does not speak HTTPS there: use http://, or another port"
    return str(reason)


class _Limit:
    """Ends the connections of a request when its time is over."""

    def __init__(self, seconds: float) -> None:
        self.over = False
        self._copies: list[socket.socket] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> _Limit:
        self._timer.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        with self._lock:
            for copy in self._copies:
                copy.close()
            self._copies.clear()

    def follow(self, connection: socket.socket) -> None:
        """End a connection as well; what TLS makes of it is the same connection."""
        with self._lock:
            self._copies.append(connection.dup())
            if self.over:
                self._shut()

    def _end(self) -> None:
        with self._lock:
            self.over = True
            self._shut()

    def _shut(self) -> None:
        for copy in self._copies:
            with contextlib.suppress(OSError):
                copy.shutdown(socket.SHUT_RDWR)


class _Redirects(HTTPRedirectHandler):
    """Follows a server to where else a file is, but not away from HTTPS, nor from the web."""

    def redirect_request(  # noqa: PLR0917
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        allowed = ("https",) if req.type == "https" else ("http", "https")
        if newurl.partition(":")[0].lower() not in allowed:
            raise HTTPError(
                newurl, code, "the server leads away from the web or HTTPS", headers, fp
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(limit: _Limit) -> OpenerDirector:
    class Plain(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            limit.follow(self.sock)

    class Secure(HTTPSConnection, Plain):
        """HTTPSConnection puts TLS around what Plain has connected."""

    context = ssl.create_default_context()

    class PlainHandler(HTTPHandler):
        def http_open(self, req: Request):  # type: ignore[no-untyped-def]
            return self.do_open(Plain, req)

    class SecureHandler(HTTPSHandler):
        def https_open(self, req: Request):  # type: ignore[no-untyped-def]
            return self.do_open(Secure, req, context=context)

    return build_opener(PlainHandler, SecureHandler(context=context), _Redirects)

# SPDX-License-Identifier: Apache-2.0
"""thicket.syslog: messages as RFC 5424 has them, and a forwarder before a real server with TLS."""

import asyncio
import contextlib
import logging
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import network_namespace
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from daemons import OPEN, PREFIX, Fleet
from hypothesis import given
from hypothesis import strategies as st

from thicket.base.fields import ConfigError
from thicket.base.problems import Problems
from thicket.base.visible import visible
from thicket.config import parse
from thicket.config.schema import Settings
from thicket.syslog import forward
from thicket.syslog.forward import Forwarder
from thicket.syslog.message import LONGEST, Line, Sender, framed, message
from thicket.syslog.section import PORT, host_and_port

#: RFC 5424 6, its ABNF. Of a parameter's value three characters stand behind a backslash.
MESSAGE = re.compile(
    r"<(?P<priority>\d{1,3})>1 "
    r"(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z) "
    r"(?P<host>[!-~]{1,255}) (?P<program>[!-~]{1,48}) (?P<process>[!-~]{1,128}) (?P<kind>-) "
    r'(?P<data>(?:\[[!#-<>-\\^-~]{1,32}(?: [!#-<>-\\^-~]{1,32}="(?:[^"\\\]]|\\["\\\]])*")*\])+) '
    r"(?P<text>.*)",
    re.DOTALL,
)
PARAMETER = re.compile(r' (\w+)="((?:[^"\\\]]|\\.)*)"')


def read(data: bytes) -> dict[str, str]:
    """The parts of a message, and its parameters."""
    found = MESSAGE.fullmatch(data.decode())
    assert found is not None, data
    parameters = {
        name: re.sub(r"\\(.)", r"\1", value) for name, value in PARAMETER.findall(found["data"])
    }
    return {**found.groupdict(), **parameters}


class TestMessages:
    def test_one(self) -> None:
        line = Line(1_800_000_000.25, 4, "radio: no peer", synchronised=True)
        sender = Sender("n-6f44e3c6b802", "thicket@fd12::1", "fd12::1", "0.1.0", "thicketd", 77)
        assert message(line, sender) == (
            b"<28>1 2027-01-15T08:00:00.250000Z n-6f44e3c6b802 thicketd 77 - "
            b'[timeQuality tzKnown="1" isSynced="1"]'
            b'[origin ip="fd12::1" software="thicket" swVersion="0.1.0"]'
            b'[thicket@32473 node="thicket@fd12::1"] radio: no peer'
        )

    def test_the_length_is_in_bytes(self) -> None:
        assert framed("zwölf".encode()) == b"6 zw\xc3\xb6lf"

    @given(st.text(), st.text(), st.text(), st.floats(0, 2**32), st.integers(0, 7))
    def test_any_text_makes_a_message(
        self, text: str, name: str, version: str, when: float, severity: int
    ) -> None:
        found = read(
            message(
                Line(when, severity, text, synchronised=False),
                Sender(name, name, name, version, name, 1),
            )
        )
        assert int(found["priority"]) == 24 + severity
        assert found["isSynced"] == "0"
        assert found["text"] == visible(text, keep="")[: len(found["text"])]
        if name:
            assert found["node"] == visible(name, keep="")

    def test_a_long_line_is_cut_between_characters(self) -> None:
        found = message(Line(0, 6, "ö" * LONGEST, synchronised=True), Sender("", "", "", "", "", 1))
        assert read(found)["text"] == "ö" * (LONGEST // 2)


class TestSettings:
    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("log.example.org", ("log.example.org", PORT)),
            ("log:6515", ("log", 6515)),
            ("192.0.2.7:1", ("192.0.2.7", 1)),
            ("[fd12::7]", ("fd12::7", PORT)),
            ("[fd12::7]:6515", ("fd12::7", 6515)),
            ("fd12::7", None),
            ("[log]:5", None),
            ("[fd12::7]5", None),
            ("[fe80::1%eth0]:5", None),
            ("log:", None),
            ("log:0", None),
            ("log:65536", None),
            ("log:6514 ", None),
            ("a..b", None),
            ("a" * 64, None),
            ("tls://log", None),
        ],
    )
    def test_servers(self, text: str, found: tuple[str, int] | None) -> None:
        assert host_and_port(text) == found
        text = f'[syslog]\nserver = "{text}"\n'
        if found is None:
            with pytest.raises(ConfigError, match="a host and a port"):
                parse.parse(text.encode(), "f")
        else:
            parse.parse(text.encode(), "f")

    def test_authorities(self, authority: "Authority") -> None:
        parse.parse(f'[syslog]\nca = """\n{authority.pem}"""\n'.encode(), "f")
        for wrong in ("x", authority.pem[:200], authority.key_pem):
            with pytest.raises(ConfigError):
                parse.parse(f'[syslog]\nca = """\n{wrong}"""\n'.encode(), "f")


# -- a server


class Authority:
    """An authority, and certificates of it."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self.make("authority", self.key, [], self.key)
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM).decode()
        self.key_pem = private(self.key).decode()

    def make(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        addresses: list[str],
        signer: ec.EllipticCurvePrivateKey,
    ) -> x509.Certificate:
        """A certificate for these addresses; without any it is that of the authority."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        now = datetime.now(UTC)
        # as Python 3.13 checks them strictly
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=not addresses, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False
            )
            .add_extension(
                x509.KeyUsage(
                    digital_signature=bool(addresses), key_cert_sign=not addresses,
                    crl_sign=not addresses, content_commitment=False, key_encipherment=False,
                    data_encipherment=False, key_agreement=False, encipher_only=False,
                    decipher_only=False,
                ), critical=True,
            )
        )  # fmt: skip
        if addresses:
            names = [x509.IPAddress(ip_address(one)) for one in addresses]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(signer, hashes.SHA256())

    def context(self, folder: Path, *addresses: str) -> ssl.SSLContext:
        """The context of a server with these addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self.make("server", key, list(addresses), self.key)
        path = folder / "server.pem"
        path.write_bytes(private(key) + certificate.public_bytes(serialization.Encoding.PEM))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context


def private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


class Receiver:
    """A server that keeps the messages that it gets; it ends a connection after ``each`` of them.

    :ivar connections: that stood, and ``ended``: those that ended in whatever way.
    """

    def __init__(
        self, context: ssl.SSLContext, address: str, port: int = 0, each: int | None = None
    ) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.socket = socket.create_server((address, port), family=family)
        self.port = self.socket.getsockname()[1]
        self.messages: list[bytes] = []
        self.connections = 0
        self.ended = 0
        self._context = context
        self._each = each
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self.socket.accept()
                plain.settimeout(60)
                try:
                    with self._context.wrap_socket(plain, server_side=True) as connection:
                        self.connections += 1
                        self._read(connection)
                except OSError:
                    pass  # the client does not like the certificate, or has gone
                finally:
                    plain.close()
                    self.ended += 1

    def _read(self, connection: ssl.SSLSocket) -> None:
        with connection.makefile("rb") as stream:
            got = 0
            while got != self._each:
                length = b""
                while (digit := stream.read(1)) != b" ":
                    if not digit:
                        return
                    length += digit
                assert re.fullmatch(rb"[1-9][0-9]*", length), length
                self.messages.append(stream.read(int(length)))
                got += 1

    def texts(self) -> list[str]:
        return [read(one)["text"] for one in self.messages]

    async def has(self, *, messages: int, ended: int) -> None:
        """Wait until so many messages have come, and so many connections ended."""
        await until(
            lambda: len(self.messages) == messages and self.ended == ended,
            f"{messages} messages, {ended} connections that ended",
        )

    def close(self) -> None:
        # a thread that waits in accept() is woken by this, and not by close()
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


@pytest.fixture
def receiver(authority: Authority, tmp_path: Path) -> Iterator[Receiver]:
    made = Receiver(authority.context(tmp_path, "127.0.0.1"), "127.0.0.1")
    yield made
    made.close()


async def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


class Forwarding:
    def __init__(self, port: int, ca: str) -> None:
        self.problems = Problems(lambda: None)
        settings = Settings({"syslog": {"server": f"127.0.0.1:{port}", "ca": ca}})
        self.forwarder = Forwarder(
            settings.syslog, self.problems, lambda: ("n-1", "thicket@fd12::1", "fd12::1", "0.1.0")
        )
        self.log = logging.getLogger("thicket.tests")

    async def has_sent(self, lines: int) -> None:
        """Wait until so many lines have been sent."""
        await until(lambda: self.told("sent") == lines, f"{lines} lines were sent")

    def told(self, name: str) -> Any:
        return self.forwarder.snapshot()[name]


@asynccontextmanager
async def forwarding(port: int, ca: str) -> AsyncIterator[Forwarding]:
    made = Forwarding(port, ca)
    task = asyncio.create_task(made.forwarder.run())
    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.INFO)
    try:
        await until(lambda: made.forwarder._waiting in root.handlers, "it listens")
        yield made
    finally:
        root.setLevel(level)
        task.cancel()
        await asyncio.wait({task})
    assert made.forwarder._waiting not in root.handlers


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "PAUSES", (0.01, 0.01))


@pytest.mark.usefixtures("impatient")
class TestForwarder:
    async def test_lines_arrive_in_order_with_who_sent_them(
        self, receiver: Receiver, authority: Authority
    ) -> None:
        async with forwarding(receiver.port, authority.pem) as run:
            run.log.warning("one\n  two")
            run.log.info("three \x1b[31m %s", "ö")
            run.log.debug("not logged")
            await until(lambda: len(receiver.messages) == 3, "three lines")
            assert receiver.texts() == ["one", "  two", "three \\u001b[31m ö"]
            found = [read(one) for one in receiver.messages]
            assert [one["priority"] for one in found] == ["28", "28", "30"]
            assert {one["node"] for one in found} == {"thicket@fd12::1"}
            assert {(one["host"], one["program"], one["process"]) for one in found} == {
                ("n-1", "thicketd", str(os.getpid()))
            }
            await until(lambda: run.told("waiting") == 0, "nothing waits")
            assert (run.told("connected"), run.told("sent"), run.told("lost")) == (True, 3, 0)

    async def test_what_was_logged_before_the_server_could_be_reached_is_sent_later(
        self, authority: Authority, tmp_path: Path
    ) -> None:
        context = authority.context(tmp_path, "127.0.0.1")
        closed = socket.create_server(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        closed.close()
        async with forwarding(port, authority.pem) as run:
            run.log.info("early")
            await until(run.problems.all, "it is told")
            (problem,) = run.problems.all()
            assert (problem["code"], problem["severity"]) == ("not-sent", "warning")
            receiver = Receiver(context, "127.0.0.1", port)
            await until(lambda: "early" in receiver.texts(), "it is sent")
            await until(lambda: not run.problems.all(), "all is well")
            receiver.close()

    async def test_a_server_that_comes_back_gets_what_it_missed(
        self, authority: Authority, tmp_path: Path
    ) -> None:
        receiver = Receiver(authority.context(tmp_path, "127.0.0.1"), "127.0.0.1", each=1)
        async with forwarding(receiver.port, authority.pem) as run:
            for number in range(1, 5):
                run.log.info("line %d", number)
                await receiver.has(messages=number, ended=number)
                await run.has_sent(number)
            assert receiver.texts() == [f"line {number}" for number in range(1, 5)]
            assert receiver.connections == 4
        receiver.close()

    async def test_a_server_of_another_authority_gets_nothing(self, receiver: Receiver) -> None:
        async with forwarding(receiver.port, Authority().pem) as run:
            run.log.info("secret")
            await until(run.problems.all, "it is refused")
            assert "certificate verify failed" in run.problems.all()[0]["message"]
        assert receiver.messages == []

    async def test_a_server_with_another_address_gets_nothing(
        self, authority: Authority, tmp_path: Path
    ) -> None:
        receiver = Receiver(authority.context(tmp_path, "127.0.0.2"), "127.0.0.1")
        async with forwarding(receiver.port, authority.pem) as run:
            run.log.info("secret")
            await until(run.problems.all, "it is refused")
            assert "not valid for '127.0.0.1'" in run.problems.all()[0]["message"]
        assert receiver.messages == []
        receiver.close()

    async def test_what_waits_is_bounded_and_what_was_lost_is_told(
        self, receiver: Receiver, authority: Authority, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(forward, "MOST_LINES", 3)
        made = Forwarding(receiver.port, authority.pem)
        for number in range(10):
            made.forwarder._waiting.put(Line(0, 6, f"line {number}", synchronised=True))
        assert (made.told("waiting"), made.told("lost")) == (3, 7)
        task = asyncio.create_task(made.forwarder.run())
        await until(lambda: len(receiver.messages) == 4, "they are sent")
        assert receiver.texts() == [
            "(7 lines before this one were lost)", "line 7", "line 8", "line 9",
        ]  # fmt: skip
        task.cancel()
        await asyncio.wait({task})

    def test_long_lines_are_bounded_in_bytes(self, authority: Authority) -> None:
        waiting = Forwarding(1, authority.pem).forwarder._waiting
        for _ in range(100):
            waiting.put(Line(0, 6, "x" * 10_000, synchronised=True))
        assert len(waiting.lines) == forward.MOST_BYTES // 10_000
        assert waiting.bytes == len(waiting.lines) * 10_000

    async def test_a_server_that_says_nothing_delays_nobody(
        self, authority: Authority, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(forward, "GRACE", 0.01)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            async with forwarding(silent.getsockname()[1], authority.pem) as run:
                run.log.info("waits for the handshake")
                await asyncio.to_thread(lambda: silent.accept()[0])
                run.log.info("is kept meanwhile")
                assert run.told("waiting") == 2

    async def test_what_waits_at_the_end_is_sent(
        self, receiver: Receiver, authority: Authority, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(forward, "GRACE", 60.0)
        async with forwarding(receiver.port, authority.pem) as run:
            for number in range(10):
                run.log.info("%d is the last", number)
        await until(lambda: len(receiver.messages) == 10, "all are sent")


def test_a_node_sends_its_log(fleet: Fleet, authority: Authority, tmp_path: Path) -> None:
    address = f"{PREFIX}::99"
    network_namespace.ip(f"address add {address}/64 dev medium nodad")
    receiver = Receiver(authority.context(tmp_path, address), address, PORT)
    settings = f'[syslog]\nserver = "[{address}]"\nca = """\n{authority.pem}"""\n'
    node = fleet.add(OPEN + settings)
    fleet.until(lambda: any("identity from" in text for text in receiver.texts()), "its start")
    fleet.until(lambda: node.ask("status")["syslog"]["connected"], "it is connected")
    found = read(receiver.messages[0])
    assert (found["host"], found["node"]) == (f"n-{node.identity}", node.name)
    node.ask("config-apply", text=OPEN)
    fleet.until(lambda: node.ask("status")["syslog"] is None, "it sends no more")
    assert node.stop() == 0
    receiver.close()

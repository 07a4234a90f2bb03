# SPDX-License-Identifier: Apache-2.0
"""``[syslog]``: where the log is sent to."""

from __future__ import annotations

from ipaddress import ip_address

from thicket.base.fields import Certificates, Key, Section

#: RFC 5425 4.1.
PORT = 6514


class Server(Key[str]):
    """A server: a host name or an address, and a port."""

    allowed = (
        'a host and a port, such as "log.example.org:6514" or "[fd12::7]:6514", or empty for none'
    )

    def check(self, raw: object) -> str:
        if not isinstance(raw, str):
            raise self.refuse()
        if raw and host_and_port(raw) is None:
            raise self.refuse()
        return raw


def host_and_port(text: str) -> tuple[str, int] | None:
    """Return host and port of a server, the port PORT where none is said; None where it is none."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        if not bracket or not _is_address(host) or (rest and colon != ":"):
            return None
    else:
        host, colon, port = text.partition(":")
        labels = host.split(".")
        if len(host) > 253 or not all(1 <= len(label) <= 63 for label in labels):
            return None
        if not all(c.isascii() and (c.isalnum() or c == "-") for c in "".join(labels)):
            return None
    if not colon:
        return host, PORT
    good = port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535
    return (host, int(port)) if good else None


def _is_address(text: str) -> bool:
    try:
        return ip_address(text).version == 6 and "%" not in text
    except ValueError:
        return False


class Authorities(Certificates):
    """Certificates of authorities in PEM, or nothing."""

    def check(self, raw: object) -> str:
        text = super().check(raw)
        if text:
            import ssl  # rare

            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
            except (ssl.SSLError, ValueError) as error:
                words = getattr(error, "reason", None) or error
                raise ValueError(f"is no certificate ({words}): {self.refuse()}") from None
        return text


class SyslogSection(Section, name="syslog"):
    """A server that gets the log as well, by syslog over TLS (RFC 5424, 5425); see metrics.md."""

    __slots__ = ()
    server = Server("", "The server, whose certificate must be for this name or address.")
    ca = Authorities(
        "",
        "The authority that the server's certificate must descend from; empty for the public ones.",
    )

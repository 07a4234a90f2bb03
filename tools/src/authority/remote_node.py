# SPDX-License-Identifier: Apache-2.0
"""A node that is reached over ssh or its console, as the authority needs it."""

from __future__ import annotations

import base64
from collections.abc import Container
from typing import Any, NamedTuple

from authority.console import AGENT, Console
from authority.errors import AuthorityError
from authority.remote_bus import Channel, Pipe
from thicket.trust.revocations import MAX_LIST, MAX_LISTS


class Claim(NamedTuple):
    """Who a node says it is."""

    source: str
    identity: bytes
    serial: str | None
    """The chip's serial number (18 digits), or None."""
    public_key: bytes | None
    """The key of a software identity (X and Y), or None of a chip's."""


def ssh(host: str, bus: str | None) -> Pipe:
    """Start the agent on ``host`` (as ssh knows it). Raises ``BusFaultError``."""
    return Pipe(("ssh", "-T", host, *AGENT.split(), *([bus] if bus else ())))


def console(path: str, bus: str | None, baud: int) -> Console:
    """Start the agent in the shell at the console ``path``. Raises ``BusFaultError``."""
    return Console(path, bus=bus, baud=baud)


class RemoteNode:
    """The node at the other end of a ``channel``. Everything raises ``AuthorityError`` when the
    node refuses, and ``BusFaultError`` when it does not answer."""

    def __init__(self, channel: Channel) -> None:
        """Ask over ``channel``."""
        self._channel = channel

    def _ask(self, request: dict[str, Any], seconds: float = 40.0) -> dict[str, Any]:
        answer = self._channel.ask(request, seconds)
        if "error" in answer:
            raise AuthorityError(f"{self._channel.name}: {answer.get('text', answer['error'])}")
        return answer

    def claim(self) -> Claim:
        """Return who the node says it is."""
        # ssh may ask for a password first
        answer = self._ask({"do": "identity"}, 120.0)
        try:
            key = answer.get("public_key")
            return Claim(
                str(answer["source"]),
                bytes.fromhex(answer["id"]),
                None if answer["serial"] is None else str(answer["serial"]),
                None if key is None else bytes.fromhex(key),
            )
        except (LookupError, ValueError, TypeError) as error:
            raise AuthorityError(
                f"{self._channel.name}: the node's answer is not understood: {error}"
            ) from None

    def put_certificates(self, pem: str) -> str:
        """Let the node keep device and signer certificate; the path of its file."""
        return str(self._ask({"do": "certificates", "pem": pem}).get("file", ""))

    def reload(self) -> list[str]:
        """Let the daemon read its configuration and certificates; faults that it finds."""
        return [str(fault) for fault in self._ask({"do": "reload"}).get("faults", ())]

    def import_revocations(self, packed: bytes) -> tuple[int, int]:
        """Give the node a list of revocations: the number of the one that it has then, and how
        many names are on it."""
        text = base64.b64encode(packed).decode()
        answer = self._ask({"do": "revocations", "list": text}, 120.0)
        try:
            return int(answer["number"]), int(answer["names"])
        except (LookupError, ValueError, TypeError):
            raise AuthorityError(
                f"{self._channel.name}: the node's answer is not understood"
            ) from None

    def export_revocations(self, known: Container[str]) -> list[bytes]:
        """Return the lists of revocations that the node has, without those whose digest (hex) is
        ``known``."""
        try:
            held = [str(digest) for digest in self._ask({"do": "revocations-held"})["lists"]]
            return [self._one_list(digest) for digest in held[:MAX_LISTS] if digest not in known]
        except (LookupError, ValueError, TypeError):
            raise AuthorityError(
                f"{self._channel.name}: the node's answer is not understood"
            ) from None

    def _one_list(self, digest: str) -> bytes:
        text = ""
        while len(text) < 2 * MAX_LIST:
            piece = self._ask({"do": "revocations-held", "digest": digest, "at": len(text)})["part"]
            if not piece:
                break
            text += str(piece)
        return base64.b64decode(text, validate=True)

    def held_change(self) -> tuple[bytes, str]:
        """Return the newest change of the passphrase that the node has, and the tag of the
        passphrase that it uses."""
        answer = self._ask({"do": "passphrase"}, 120.0)
        try:
            return base64.b64decode(answer["change"], validate=True), str(answer["present"])
        except (LookupError, ValueError, TypeError):
            raise AuthorityError(
                f"{self._channel.name}: the node's answer is not understood"
            ) from None

    def import_change(self, packed: bytes) -> dict[str, Any]:
        """Let all nodes take a change; the answer is that of ``thicket.cluster.passphrase``."""
        text = base64.b64encode(packed).decode("ascii")
        return self._ask({"do": "passphrase", "change": text}, 120.0)

    def close(self) -> None:
        """End the agent."""
        self._channel.close()

# SPDX-License-Identifier: Apache-2.0
"""A node that is reached over ssh or its console, as the authority needs it."""

from __future__ import annotations

import base64
import re
from collections.abc import Container
from typing import Any, NamedTuple

from authority.console import AGENT, Console
from authority.errors import AuthorityError
from authority.remote_bus import Channel, Pipe
from authority.ssh import program
from thicket.trust.labels import MAX_LABELS
from thicket.trust.revocations import MAX_LIST, MAX_LISTS


class Claim(NamedTuple):
    """Who a node says it is.

    :ivar serial: the chip's serial number (18 digits), or None.
    :ivar public_key: the key of a software identity (X and Y), or None of a chip's.
    :ivar root: the fingerprint (hex) of the fleet that it is enrolled in; None where there is none.
    :ivar bus: the device of its chip's bus, where it has one and says so.
    """

    source: str
    identity: bytes
    serial: str | None
    public_key: bytes | None
    root: str | None = None
    bus: str | None = None


def ssh(host: str, bus: str | None, options: tuple[str, ...] = ()) -> Pipe:
    """Start the agent on another machine.

    :param host: the machine as ssh knows it.
    :param options: what ssh is told besides.
    :param bus: the device of the node that the agent serves, or None.
    :raises AuthorityError: there is no ssh on this machine.
    :raises BusFaultError: when ssh cannot be started.
    """
    program()
    return Pipe(("ssh", "-T", *options, host, *AGENT.split(), *([bus] if bus else ())))


def console(path: str, bus: str | None, baud: int) -> Console:
    """Start the agent in the shell at a console.

    :param path: a serial port, or the socket of a simulated node.
    :param bus: the device of the node that the agent serves, or None.
    :raises BusFaultError: when no shell answers there.
    """
    return Console(path, bus=bus, baud=baud)


def _bus(said: object) -> str | None:
    """Return the device of a bus that a node names; it becomes a word of a command there.

    :raises ValueError: it is none.
    """
    if said is None:
        return None
    if not isinstance(said, str) or not re.fullmatch(r"/dev/i2c-[0-9]{1,3}", said, re.A):
        raise ValueError(f"{str(said)[:40]!r} is no I2C bus")
    return said


class RemoteNode:
    """The node at the other end of a ``channel``.

    Every method may raise two errors:

    :raises AuthorityError: when the node refuses.
    :raises BusFaultError: when it does not answer.
    """

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
                None if answer.get("root") is None else str(answer["root"]),
                _bus(answer.get("bus")),
            )
        except (LookupError, ValueError, TypeError) as error:
            raise AuthorityError(
                f"{self._channel.name}: the node's answer is not understood: {error}"
            ) from None

    def put_certificates(self, pem: str) -> str:
        """Let the node keep device and signer certificate; return the path of its file."""
        return str(self._ask({"do": "certificates", "pem": pem}).get("file", ""))

    def reload(self) -> list[str]:
        """Let the daemon read configuration and certificates; return the faults that it finds."""
        return [str(fault) for fault in self._ask({"do": "reload"}).get("faults", ())]

    def import_revocations(self, packed: bytes) -> tuple[int, int]:
        """Give the node a list of revocations.

        :returns: the number of the list that it has then, and how many names are on it.
        """
        text = base64.b64encode(packed).decode()
        answer = self._ask({"do": "revocations", "list": text}, 120.0)
        try:
            return int(answer["number"]), int(answer["names"])
        except (LookupError, ValueError, TypeError):
            raise AuthorityError(
                f"{self._channel.name}: the node's answer is not understood"
            ) from None

    def export_revocations(self, known: Container[str]) -> list[bytes]:
        """Return the lists of revocations that the node has.

        :param known: digests (hex) of lists that are left out.
        """
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

    def import_labels(self, packed: bytes) -> tuple[int, int]:
        """Give the node labels.

        :returns: the number of the document that it has then, and for how many devices that is.
        """
        answer = self._ask({"do": "labels", "labels": base64.b64encode(packed).decode()}, 120.0)
        try:
            return int(answer["number"]), int(answer["labels"])
        except (LookupError, ValueError, TypeError):
            raise AuthorityError(
                f"{self._channel.name}: the node's answer is not understood"
            ) from None

    def export_labels(self) -> bytes:
        """Return the labels that the node has; nothing where it has none."""
        text = ""
        try:
            while len(text) < 2 * MAX_LABELS:
                piece = self._ask({"do": "labels-held", "at": len(text)})["part"]
                if not piece:
                    break
                text += str(piece)
            return base64.b64decode(text, validate=True)
        except (LookupError, ValueError, TypeError):
            raise AuthorityError(
                f"{self._channel.name}: the node's answer is not understood"
            ) from None

    def held_change(self) -> tuple[bytes, str]:
        """Return what the node knows of the mesh's passphrase.

        :returns: the newest change that it has, and the tag of the passphrase that it uses.
        """
        answer = self._ask({"do": "passphrase"}, 120.0)
        try:
            return base64.b64decode(answer["change"], validate=True), str(answer["present"])
        except (LookupError, ValueError, TypeError):
            raise AuthorityError(
                f"{self._channel.name}: the node's answer is not understood"
            ) from None

    def import_change(self, packed: bytes) -> dict[str, Any]:
        """Let all nodes take a change; return the answer of ``thicket.cluster.passphrase``."""
        text = base64.b64encode(packed).decode("ascii")
        return self._ask({"do": "passphrase", "change": text}, 120.0)

    def close(self) -> None:
        """End the agent."""
        self._channel.close()

# SPDX-License-Identifier: Apache-2.0
"""The node's part in its enrolment: what ``thicket ca`` starts here, over ssh or on the console.

    python3 -m thicket.trust.agent [--console SESSION] [/dev/i2c-N]

It serves the bus of the chip (``identity.remote``) and what concerns the node: who it is, the file
with its certificates, a reload of the configuration by the daemon, and what the fleet's authority
has signed: revocations, changes of the passphrase, labels of devices. The passphrase, which the
node has, is the only secret of the fleet that it knows. The device's private key does not pass
through it.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Any

from thicket.identity.bus import Bus, BusError
from thicket.identity.remote import BusServer, serve

if TYPE_CHECKING:
    from thicket.base.paths import Paths

USAGE = "usage: python3 -m thicket.trust.agent [--console SESSION] [/dev/i2c-N]\n"

PIECE = 4096
"""Characters of a list of revocations (in Base64) that one answer has."""


class Agent(BusServer):
    """Answers the authority's questions about this node.

    :param bus: the bus of the node's chip, if it has one.
    :param paths: the node's files.
    """

    def __init__(self, bus: Bus | None, paths: Paths | None = None) -> None:
        super().__init__(bus)
        if paths is None:
            from thicket.base.paths import Paths

            paths = Paths()
        self._paths = paths
        self._folder = f"{paths.data}/thicket"

    def do(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        """See ``BusServer.do``; an ``error`` of ours is ``refused``, with a text for people."""
        from thicket.control.client import ClientError
        from thicket.trust.certificates import CertificateError

        own = {
            "hello": self._hello,
            "identity": self._identity,
            "certificates": self._certificates,
            "reload": self._reload,
            "revocations": self._revocations,
            "revocations-held": self._revocations_held,
            "passphrase": self._passphrase,
            "labels": self._labels,
            "labels-held": self._labels_held,
        }
        if operation not in own:
            return super().do(operation, request)
        try:
            return own[operation](request)
        except (CertificateError, ClientError) as error:
            return {"error": "refused", "text": str(error)}
        except OSError as error:
            return {"error": "refused", "text": f"{error.filename or ''}: {error.strerror}"}

    def _hello(self, _: dict[str, Any]) -> dict[str, Any]:
        import thicket

        return {"version": thicket.__version__}

    def _ask(self, command: str, params: dict[str, Any], timeout: float = 30.0) -> dict[str, Any]:
        """Ask the daemon.

        :param timeout: in seconds.
        :raises ClientError: it refuses, or does not answer.
        """
        from thicket.control.client import request

        return dict(request(self._paths.control, command, params, timeout=timeout))

    def _status(self) -> dict[str, Any]:
        """Return the node's identity."""
        return dict(self._document()["identity"])

    def _document(self) -> dict[str, Any]:
        """Return the status document of a node that knows who it is."""
        from thicket.control.client import ClientError

        document = self._ask("status", {}, 10.0)
        if not isinstance(document.get("identity"), dict):
            raise ClientError("starting", "the node is still finding out who it is; try again")
        return document

    def _identity(self, _: dict[str, Any]) -> dict[str, Any]:
        document = self._document()
        identity, trust = document["identity"], document.get("trust") or {}
        found = {name: identity[name] for name in ("source", "id", "serial")}
        # the fleet that it is enrolled in, and where its chip is
        found["root"] = trust.get("root") if trust.get("device") else None
        found["bus"] = (identity.get("chip") or {}).get("bus")
        if identity["source"] != "chip":
            from thicket.trust import openssl
            from thicket.trust.credentials import software_key

            found["public_key"] = openssl.public_key(software_key(self._folder)).hex()
        return found

    def _certificates(self, request: dict[str, Any]) -> dict[str, Any]:
        from thicket.trust import openssl
        from thicket.trust.certificates import (
            Certificate,
            CertificateError,
            from_pem,
        )
        from thicket.trust.credentials import keep_chain, software_key

        chain = from_pem(str(request["pem"]))
        if len(chain) != 2:
            raise CertificateError(f"{len(chain)} certificates came instead of 2")
        device, identity = Certificate(chain[0]), self._status()
        if identity["source"] == "chip":
            if device.common_name != identity["serial"]:
                raise CertificateError(
                    f"the certificate is for {device.common_name}, the node's chip is "
                    f"{identity['serial']}"
                )
        elif device.public_key != openssl.public_key(software_key(self._folder)):
            raise CertificateError("the certificate is not for the key of this node")
        return {"file": keep_chain(self._folder, (chain[0], chain[1]))}

    def _reload(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"faults": [str(fault) for fault in self._ask("reload", {})["faults"]]}

    def _revocations(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._ask("revocations-import", {"list": str(request["list"])})

    def _revocations_held(self, request: dict[str, Any]) -> dict[str, Any]:
        if "digest" not in request:
            return self._ask("revocations-export", {})
        text = self._ask("revocations-export", {"digest": str(request["digest"])})["list"]
        # in pieces: a console's line holds no list of thousands of names
        at = int(request["at"])
        return {"part": text[at : at + PIECE]}

    def _labels(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._ask("labels-import", {"labels": str(request["labels"])})

    def _labels_held(self, request: dict[str, Any]) -> dict[str, Any]:
        at = int(request["at"])
        return {"part": self._ask("labels-export", {})["labels"][at : at + PIECE]}

    def _passphrase(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the change that the node has and what goes with it, or hand out another one."""
        params = {"action": "held"}
        if "change" in request:
            params = {"action": "import", "change": str(request["change"])}
        return self._ask("passphrase", params, 60.0)


def serve_console(agent: BusServer, session: str, source: int = 0, sink: int = 1) -> None:
    """Answer on the terminal that this was started on; it is left as it was found."""
    import termios
    import tty

    from thicket.identity.console_frames import serve_frames

    before = termios.tcgetattr(source) if os.isatty(source) else None
    try:
        if before is not None:
            # what was typed while this started is not thrown away: it may be the first question
            tty.setraw(source, termios.TCSANOW)
        # a frame has an end of its own
        serve_frames(session, lambda question: agent.answer(question)[:-1], source, sink)
    finally:
        agent.release()
        if before is not None:
            termios.tcsetattr(source, termios.TCSADRAIN, before)


def main(words: list[str] | None = None) -> int:
    """Run with these arguments and return the exit status."""
    rest = list(sys.argv[1:] if words is None else words)
    session = None
    if rest[:1] == ["--console"] and len(rest) > 1:
        session = rest[1]
        del rest[:2]
    wrong = session is not None and not re.fullmatch("[0-9a-f]{4}", session)
    if wrong or len(rest) > 1 or any(word.startswith("-") for word in rest):
        sys.stderr.write(USAGE)
        return 2
    bus: Bus | None = None
    if rest:
        from thicket.identity.bus import LinuxBus

        try:
            bus = LinuxBus(rest[0])
        except BusError as error:
            sys.stderr.write(f"{error}\n")
            return 1
    agent = Agent(bus)
    if session is None:
        serve(agent, sys.stdin.buffer, sys.stdout.buffer)
    else:
        serve_console(agent, session)
    return 0


if __name__ == "__main__":
    sys.exit(main())

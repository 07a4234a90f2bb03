# SPDX-License-Identifier: Apache-2.0
"""Another passphrase for a running mesh, and the way back for a node that finds nobody.

In a fleet its authority signs each change (``thicket.trust.change``), and nodes refuse any other.
They tell each other the newest one that they know, keep it durably and do what it says: first every
node has the new passphrase beside the present one (*offered*), then all change to it (*used*).
Without a fleet, a node that a person asks tells the others, and each believes it.

The new passphrase waits as ``mesh.next_passphrase``. At the change the two trade places. The links
that stand stay, and for a while both passphrases open new ones. Then the nodes leave and enter the
mesh one after the other, each for a moment: every link is made anew, with the new passphrase, and
the old one opens nothing any more. When links of the new one stand, the old one is dropped.

Whoever has two passphrases and finds that neighbours refuse the present one tries the other for a
while, adopts it when a link comes of it, and returns otherwise. That brings a node along that
missed the change, and one back that changed alone. A node with links never goes back to an old
passphrase. A node that was off all the time cannot know the new one; the radio tells what to do
then (``passphrase-refused``).

What is kept, ``passphrase.json`` beside the certificates: the newest signed change, which one was
carried out, and whether the other passphrase is a former one. It is written before the
configuration changes and after that, so that a power cut at any moment repeats a step at most.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable, Coroutine
from logging import getLogger
from typing import TYPE_CHECKING, Any, Final, Protocol

from thicket.base.errors import CodedError
from thicket.base.fields import ConfigError
from thicket.base.files import write_atomically
from thicket.base.pace import Bucket
from thicket.base.paths import Paths
from thicket.config import edit
from thicket.config.schema import Settings
from thicket.device.boot_partition import StoreError
from thicket.distribution.etf import Atom, Pid
from thicket.distribution.handshake import DistributionError
from thicket.distribution.processes import Process
from thicket.radio.section import MeshSection

if TYPE_CHECKING:
    from thicket.base.problems import Problems
    from thicket.distribution.connection import Connection
    from thicket.distribution.node import Node
    from thicket.radio.radio import Radio
    from thicket.trust.change import SignedChange
    from thicket.trust.fleet import Fleet

log = getLogger(__name__)

#: Seconds that another node may take: it writes to its card, and may have to wait for that.
ANSWER: Final = 20.0
#: Seconds after which whoever imports a change hears how far it is; a request may take 30 s.
IMPORT: Final = 25.0
#: Nodes that are told at the same time.
AT_ONCE: Final = 32
#: Seconds between two looks at whether the passphrase is refused.
LOOK: Final = 3.0
#: Seconds for which the next passphrase is tried, and for which the old one is kept before it is
#: tried again; the latter doubles up to its last value.
TRIAL: Final = 60.0
REST: Final = 30.0
REST_AT_MOST: Final = 600.0
#: So many failures in a row with a neighbour make it one that refuses.
REFUSED: Final = 2
#: Seconds after a change until the first node makes its links anew, and from one node to the next.
GRACE: Final = 30.0
TURN: Final = 8.0
#: Seconds after which a change that was begun and not finished is a problem.
PENDING: Final = 120.0
#: Seconds for which links of the new passphrase must stand before the old one is dropped.
STAND: Final = 20.0
#: Seconds without any link after which a node that has changed tries the old passphrase.
ALONE: Final = 60.0
#: Seconds between two rounds in which all nodes hear of the newest signed change.
TELL: Final = 60.0
#: Seconds between two tries to carry out a change that could not be written.
RETRY: Final = 30.0
#: Seconds for which a refused change is a problem.
SHOWN: Final = 3600.0
#: Answers per second that one node gets about changes, on average and at once.
RATE: Final = 0.2
BURST: Final = 6.0

FILE: Final = "passphrase.json"
PERSON: Final = "a person"
_PRESENT_KEY: Final = "mesh.passphrase"
_NEXT_KEY: Final = "mesh.next_passphrase"
_HAVE: Final = Atom("have")
_SIGNED: Final = Atom("signed")
_OK: Final = Atom("ok")
_ERROR: Final = Atom("error")


class PassphraseError(CodedError):
    """A request that cannot be done: a code for programs, words for people."""


class Host(Protocol):
    """What a :class:`Passphrase` needs of its daemon."""

    @property
    def paths(self) -> Paths:
        """Where the node keeps its files."""

    @property
    def settings(self) -> Settings:
        """The settings in force."""

    @property
    def mesh(self) -> Radio | None:
        """The radio of now."""

    @property
    def problems(self) -> Problems:
        """The node's problems."""

    @property
    def reload(self) -> Callable[[], Awaitable[Any]]:
        """Reads the configuration again and follows it."""

    def nodes(self) -> list[dict[str, Any]]:
        """Return the other nodes of the cluster."""


class Passphrase:
    """The passphrase of one node, and its part in changing that of the mesh."""

    NAME = "thicket_passphrase"

    def __init__(self, host: Host) -> None:
        self._host = host
        self._node: Node | None = None
        self._listener: Listener | None = None
        self._writing = asyncio.Lock()
        self._taking = asyncio.Lock()
        #: Changes that a person has brought and that are being done.
        self._own: set[asyncio.Task[bool]] = set()
        self._trying = False
        self._asked: set[str] = set()
        self._since = float("-inf")
        self._rest = 0.0
        self._pending_since: float | None = None
        self._renew_at: float | None = None
        self._stands_since: float | None = None
        self._alone_since: float | None = None
        self._refused_at: float | None = None
        #: Changes of others that were not done: not signed, or not by this fleet's root.
        self.refused = 0
        self._fleet_of: tuple[str, Fleet] | None = None
        #: What is kept: the newest signed change, the digest of the one that was carried out, the
        #: tag of the former passphrase while the other one is that.
        self._change: SignedChange | None = None
        self._done = ""
        self._former = ""
        #: Changes that this node cannot do with the settings that it has, and these settings.
        self._unfit: dict[bytes, str] = {}
        self._read_state()

    async def run(self, node: Node) -> None:
        """Serve the other nodes, and look after a change that is under way, until cancelled."""
        listener = Listener(node, self)
        node.register(self.NAME, listener)
        self._node, self._listener = node, listener
        retry_at = tell_at = float("-inf")
        try:
            while True:
                now = time.monotonic()
                if now >= tell_at:
                    tell_at = now + TELL
                    listener.tell_all()
                async with self._taking:
                    if now >= retry_at:  # what a power cut or a full disk left undone
                        retry_at = now + RETRY
                        await self._or_log(self._carry_out())
                    await self._step(now)
                await asyncio.sleep(LOOK)
        finally:
            self._node = self._listener = None
            listener.close()
            node.end(listener)

    async def _step(self, now: float) -> None:
        self.look(now)
        if self._adopts():
            log.info("the other passphrase is the one that the neighbours have")
            self._trying = False
            await self._or_log(self.change())
        elif self._stands(now):
            log.info("links of the new passphrase stand, the former one is dropped")
            await self._or_log(self.forget())

    @staticmethod
    async def _or_log(step: Awaitable[object]) -> None:
        try:
            await step
        except PassphraseError as error:
            log.error("cannot keep the passphrase: %s", error)

    def node_up(self, name: str) -> None:
        """The node ``name`` is connected."""
        if self._listener is not None:
            self._listener.tell(name)

    def status(self) -> dict[str, Any]:
        """The part ``passphrase`` of the status document; docs/node.md has its members."""
        change = self._change.change if self._change is not None else None
        return {
            "change": None if change is None else {"number": change.number, "used": change.used},
            "former": self._is_former(),
            "refused": self.refused,
        }

    # --- what is kept

    @property
    def _path(self) -> str:
        return f"{self._host.paths.data}/thicket/{FILE}"

    def fleet(self) -> Fleet | None:
        """The fleet that this node belongs to, whose root signs changes."""
        from thicket.trust.certificates import CertificateError, from_pem
        from thicket.trust.fleet import Fleet

        text = self._host.settings.trust.root
        if self._fleet_of is not None and self._fleet_of[0] != text:
            # what the former fleet has signed is nothing to this one
            self._fleet_of, self._change, self._done = None, None, ""
        if not text:
            return None
        if self._fleet_of is None:
            try:
                self._fleet_of = text, Fleet(from_pem(text)[0])
            except CertificateError as error:  # the configuration's check lets none of these in
                raise PassphraseError("no-fleet", f"trust.root: {error}") from None
        return self._fleet_of[1]

    def _read_state(self) -> None:
        from thicket.trust.verify import RefusedError

        try:
            with open(self._path, "rb") as file:
                kept = json.loads(file.read(1 << 16))
            self._done, self._former = str(kept["done"]), str(kept["former"])
            packed, fleet = base64.b64decode(kept["change"]), self.fleet()
            if packed and fleet is not None:
                from thicket.trust.change import SignedChange

                self._change = SignedChange.read(packed, fleet)
        except FileNotFoundError:
            return
        except RefusedError:
            log.info("the kept change of the passphrase is of another fleet")
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            # nothing of it is told: there is a passphrase in it; the others have the change
            log.warning("%s is damaged and not used", self._path)

    async def _keep(self) -> None:
        state = {
            "change": ""
            if self._change is None
            else base64.b64encode(self._change.packed).decode("ascii"),
            "done": self._done,
            "former": self._former,
        }
        data = json.dumps(state).encode()

        def write() -> None:
            write_atomically(self._path, data, mode=0o600)

        try:
            await asyncio.get_running_loop().run_in_executor(None, write)
        except OSError as error:
            raise PassphraseError("not-written", f"{self._path}: {error.strerror}") from error

    def _tag(self, passphrase: str) -> str:
        from thicket.trust.change import tag

        fleet = self.fleet()
        return tag(passphrase, b"" if fleet is None else fleet.identifier)

    def _is_former(self) -> bool:
        """Whether the other passphrase is the one from before the change."""
        mesh = self._host.settings.mesh
        if not mesh.next_passphrase:
            return False
        other = self._tag(mesh.next_passphrase)
        if self._change is not None and (change := self._change.change).used:
            if mesh.passphrase == change.passphrase and other in change.former:
                return True
            if mesh.next_passphrase == change.passphrase:
                return False
        return other == self._former

    # --- on this node

    async def prepare(self, passphrase: str) -> None:
        """Keep the next passphrase. Raises PassphraseError."""
        settings = self._host.settings
        self._check(passphrase)
        if passphrase == settings.mesh.passphrase:
            raise PassphraseError("same", "the mesh has this passphrase already")
        await self._store({_NEXT_KEY: passphrase})
        log.info("the next passphrase of the mesh is kept")

    def _check(self, passphrase: str) -> None:
        if self._host.settings.mesh.security != "sae":
            raise PassphraseError(
                "open", "the mesh of this node is open (mesh.security), it has no passphrase"
            )
        try:
            if not MeshSection.next_passphrase.check(passphrase):
                raise ValueError(f"must be {MeshSection.next_passphrase.allowed}")
        except ValueError as error:
            raise PassphraseError("bad-passphrase", f"a passphrase {error}") from None

    async def change(self) -> bool:
        """Let the two passphrases trade places; False when there is no other one (any more).

        Raises PassphraseError.
        """
        mesh = self._host.settings.mesh
        if not mesh.next_passphrase:
            return False
        back = self._is_former()
        self._former = "" if back else self._tag(mesh.passphrase)
        await self._keep()
        await self._store({_PRESENT_KEY: mesh.next_passphrase, _NEXT_KEY: mesh.passphrase or None})
        self._trying = False
        self._stands_since = self._alone_since = None
        log.info(
            "the passphrase of the mesh %s", "is the former one again" if back else "has changed"
        )
        return True

    async def cancel(self) -> None:
        """Drop the next passphrase, if the other one is that. Raises PassphraseError."""
        if not self._is_former():
            await self.forget()

    async def forget(self) -> None:
        """Drop the other passphrase. Raises PassphraseError."""
        if self._host.settings.mesh.next_passphrase:
            await self._store({_NEXT_KEY: None})
            self._stands_since = self._alone_since = None
            log.info("one passphrase of the mesh is left")

    async def _store(self, changes: dict[str, object]) -> None:
        def write() -> None:
            paths = self._host.paths
            text, _ = edit.source(paths)
            edit.apply(paths, edit.set_values(text, changes).encode("utf-8"))

        async with self._writing:
            try:
                await asyncio.get_running_loop().run_in_executor(None, write)
            except (StoreError, ConfigError) as error:
                raise PassphraseError("not-written", str(error)) from error
            await self._host.reload()

    # --- signed changes

    async def take(self, packed: bytes, who: str) -> bool:
        """Take a signed change, keep it and do what it says; whether it is news.

        The same change again is done again as far as it was not. Raises PassphraseError.
        """
        from thicket.trust.change import SignedChange
        from thicket.trust.verify import RefusedError

        fleet = self.fleet()
        if fleet is None:
            raise PassphraseError("no-fleet", "this node belongs to no fleet ([trust] root)")
        try:
            found = SignedChange.read(packed, fleet)
        except RefusedError as error:
            if who == PERSON:
                raise PassphraseError("not-signed", str(error)) from None
            raise self.refuse(who, str(error)) from None
        async with self._taking:
            known = self._change
            if known is not None and found.order < known.order:
                raise PassphraseError(
                    "older", f"change {known.change.number} is in force here, which is newer"
                )
            news = known is None or found.order > known.order
            if news:
                try:
                    if found.change.passphrase:
                        self._check(found.change.passphrase)
                        self._check_replaces(found)
                except PassphraseError:
                    self._unfit[found.digest] = self._fit()
                    raise
                log.info(
                    "change %d of the passphrase (%s) is from %s",
                    found.change.number,
                    "used" if found.change.used else "offered",
                    who,
                )
                self._change, before = found, known
                try:
                    await self._keep()
                except PassphraseError:
                    self._change = before
                    raise
            await self._carry_out()
        if news and self._listener is not None:
            self._listener.tell_all(who)
        return news

    def _check_replaces(self, found: SignedChange) -> None:
        """Refuse what was not signed for a node with this node's passphrase."""
        present = self._host.settings.mesh.passphrase
        if present != found.change.passphrase and self._tag(present) not in found.change.former:
            raise PassphraseError(
                "not-ours",
                f"change {found.change.number} replaces other passphrases than the one of this "
                "node: it is too old, or somebody has changed this node's by hand",
            )

    async def _carry_out(self) -> None:
        """Do what the newest signed change says, unless that was done. Repeating it does no harm.

        Raises PassphraseError.
        """
        newest = self._change
        if newest is None or self._done == newest.digest.hex():
            return
        change, mesh = newest.change, self._host.settings.mesh
        present, following = mesh.passphrase, mesh.next_passphrase
        if change.passphrase in ("", present):
            if following and not self._is_former():
                await self.forget()
        elif following != change.passphrase or self._is_former():
            self._former = ""
            await self._keep()
            await self._store({_NEXT_KEY: change.passphrase})
        if change.used and present != change.passphrase:
            await self.change()
        self._done = newest.digest.hex()
        await self._keep()

    def refuse(self, who: str, why: str) -> PassphraseError:
        """Count a change that is not done, and say it; the error for who asked."""
        self.refused += 1
        self._refused_at = time.monotonic()
        self._host.problems.report(
            "radio",
            "change-refused",
            f"{who} wanted another passphrase for the mesh, which the fleet's authority has not "
            f"signed ({why}). Nothing was changed; if nobody typed it there, revoke that device",
            "warning",
        )
        return PassphraseError(
            "not-signed",
            "in a fleet its authority signs each change of the passphrase: `thicket ca passphrase "
            f"roll` on the engineer's machine ({why})",
        )

    def heard(self, number: int, digest: bytes) -> bytes | None:
        """A node has this change: the packed one that it lacks, nothing to ask for its, or None."""
        mine = self._change.order if self._change is not None else (0, b"")
        if (number, digest) < mine:
            assert self._change is not None
            return self._change.packed
        if (number, digest) == mine:
            self._once_more(time.monotonic())
            return None
        return None if self._unfit.get(digest) == self._fit() else b""

    def _fit(self) -> str:
        mesh = self._host.settings.mesh
        return mesh.security + self._tag(mesh.passphrase)

    def _once_more(self, now: float) -> None:
        """A neighbour has our change: the time to change again, if we went back alone before."""
        newest, mesh = self._change, self._host.settings.mesh
        if (
            newest is not None
            and newest.change.used
            and mesh.next_passphrase == newest.change.passphrase
            and not self._is_former()
            and now - self._since > self._rest
        ):
            self._since, self._done = now, ""
            self._rest = min(max(self._rest * 2, REST), REST_AT_MOST)

    def newest(self) -> tuple[int, bytes]:
        """Number and digest of the newest change; 0 and nothing where there is none."""
        return self._change.order if self._change is not None else (0, b"")

    # --- a change that this node missed, or made alone

    def look(self, now: float) -> None:
        """Try the other passphrase while neighbours refuse the present one, and return in time."""
        mesh, settings = self._host.mesh, self._host.settings.mesh
        if self._refused_at is not None and now - self._refused_at > SHOWN:
            self._refused_at = None
            self._host.problems.clear("radio", "change-refused")
        self._take_turn(now, mesh)
        former = self._is_former()
        self._judge_pending(now, bool(settings.next_passphrase) and not former)
        if mesh is None or not settings.next_passphrase or settings.security != "sae":
            self._trying = False
            self._rest = 0.0
            return
        if self._trying:
            if now - self._since > TRIAL:
                log.info("the other passphrase is of no use yet, back to the present one")
                self._use(mesh, settings.passphrase)
                self._trying, self._since, self._alone_since = False, now, None
                self._rest = min(max(self._rest * 2, REST), REST_AT_MOST)
            return
        refusing = {mac for mac, count in mesh.refused().items() if count >= REFUSED}
        if former and not self._is_alone(now, mesh, bool(refusing)):
            return
        if (refusing or former) and now - self._since > self._rest:
            log.info("%d neighbours refuse the passphrase; the other is tried", len(refusing))
            self._asked = refusing if mesh.peers() else set()
            self._trying, self._since = True, now
            self._use(mesh, settings.next_passphrase)

    def _is_alone(self, now: float, mesh: Any, refused: bool) -> bool:
        """Whether the new passphrase has brought no link for a while."""
        if mesh.peers():
            self._alone_since = None
            return False
        if self._alone_since is None:
            self._alone_since = now
        return refused or now - self._alone_since > ALONE

    def _stands(self, now: float) -> bool:
        """Whether links of the new passphrase stand, so that the former one can go."""
        mesh = self._host.mesh
        if mesh is None or self._trying or not self._is_former():
            self._stands_since = None
            return False
        if mesh.outdated or not mesh.peers():
            self._stands_since = None
        elif self._stands_since is None:
            self._stands_since = now
        return self._stands_since is not None and now - self._stands_since >= STAND

    def _take_turn(self, now: float, mesh: Any) -> None:
        """Make the links anew, when it is this node's turn after a change.

        All nodes were told at about the same time and know the same nodes, so that each can count
        its turn for itself; where two take theirs at once, nothing worse comes of it.
        """
        if mesh is None or self._node is None or self._trying or not mesh.outdated:
            self._renew_at = None
        elif self._renew_at is None:
            own = self._node.name
            turn = sum(str(one["name"]) < own for one in self._host.nodes())
            self._renew_at = now + GRACE + TURN * turn
        elif now >= self._renew_at:
            self._renew_at = None
            mesh.renew()

    def _adopts(self) -> bool:
        """Whether a link came of trying the next passphrase.

        With peers from before, it must be one with a neighbour that refused the present one: all
        others may be links that stood. Alone, any link proves it.
        """
        if not self._trying or self._host.mesh is None:
            return False
        peers: set[str] = self._host.mesh.peers()
        if not self._asked:
            return bool(peers)
        return bool(self._asked & peers)

    def _use(self, mesh: Any, passphrase: str) -> None:
        try:
            mesh.apply(mesh.settings.replace(passphrase=passphrase))
        except ValueError as error:
            log.error("the radio refuses a passphrase: %s", error)

    def _judge_pending(self, now: float, pending: bool) -> None:
        if not pending:
            self._pending_since = None
            self._host.problems.clear("radio", "passphrase-pending")
            return
        if self._pending_since is None:
            self._pending_since = now
        if now - self._pending_since > PENDING:
            fleet = bool(self._host.settings.trust.root)
            command = "thicket ca passphrase" if fleet else "thicket passphrase"
            self._host.problems.report(
                "radio",
                "passphrase-pending",
                "a change of the mesh's passphrase was begun and not finished: "
                f"`{command} finish` finishes it, `{command} cancel` drops it",
                "warning",
            )

    # --- on all nodes, for the person at this one

    async def request(self, params: dict[str, Any]) -> dict[str, Any]:
        """What ``thicket passphrase`` asks: ``action`` is prepare, change, cancel or import.

        The answer: ``done`` (names of nodes, this one among them), ``failed`` (why, by name) and
        ``missing`` (nodes that are known and not connected). ``import`` needs a signed ``change``
        (Base64), ``held`` returns the newest one and the tag of the passphrase in use, and
        ``unsigned`` asks whether the first three are possible here. Raises PassphraseError.
        """
        node, action = self._node, params.get("action")
        if node is None:
            raise PassphraseError("not-joined", "the node has not joined the mesh yet")
        if action not in {"prepare", "change", "cancel", "unsigned", "import", "held"}:
            raise PassphraseError("bad-request", '"action" is prepare, change, cancel or import')
        if action == "held":
            held = self._change.packed if self._change is not None else b""
            return {
                "change": base64.b64encode(held).decode("ascii"),
                "present": self._tag(self._host.settings.mesh.passphrase),
            }
        if action == "import":
            return await self._import(node, params.get("change"))
        if self.fleet() is not None:
            raise PassphraseError(
                "not-signed",
                "this node belongs to a fleet, whose authority signs each change of the "
                "passphrase: `thicket ca passphrase` on the engineer's machine does it, with roll, "
                "finish and cancel",
            )
        if action == "unsigned":
            return {}
        message: Any
        if action == "prepare":
            passphrase = params.get("passphrase")
            if not isinstance(passphrase, str):
                raise PassphraseError("bad-request", 'prepare needs a "passphrase"')
            if not node.encrypted and params.get("unencrypted") is not True:
                raise PassphraseError(
                    "unencrypted",
                    "the connections of this cluster are not encrypted "
                    '(cluster.security = "cookie"): only the passphrase of today would protect '
                    "the new one, and whoever knows it could listen. --unencrypted does it "
                    "nevertheless",
                )
            await self.prepare(passphrase)
            message = (Atom("prepare"), passphrase.encode())
        elif action == "change":
            following = self._host.settings.mesh.next_passphrase
            if not following or self._is_former():
                raise PassphraseError("nothing", "there is no change to finish: begin with roll")
            message = (Atom("change"), following.encode())
        else:
            message = Atom("cancel")
        answer = await self._tell_others(node, message)
        # This node comes last: until then it can be asked again.
        if action == "change":
            await self.change()
        elif action == "cancel":
            await self.cancel()
        return answer

    async def _import(self, node: Node, text: Any) -> dict[str, Any]:
        """Take a signed change here, let every node take it, and say who has it within IMPORT.

        The others hear of it from each other in any case, also where they were too slow here.
        """
        try:
            packed = base64.b64decode(text, validate=True)
        except (ValueError, TypeError):
            raise PassphraseError("bad-request", 'import needs a "change", in Base64') from None
        from thicket.trust.change import SignedChange
        from thicket.trust.verify import RefusedError

        fleet, since = self.fleet(), time.monotonic()
        if fleet is not None:  # what the root has not signed is told to nobody
            try:
                change = SignedChange.read(packed, fleet).change
            except RefusedError as error:
                raise PassphraseError("not-signed", str(error)) from None
        # It goes on also where the one who asked does not wait for it.
        own = asyncio.get_running_loop().create_task(self.take(packed, PERSON))
        self._own.add(own)
        own.add_done_callback(self._own_done)
        if fleet is None:
            await own  # it says what is wrong
        if node.encrypted:
            answer = await self._tell_others(node, (_SIGNED, packed))
        else:
            message = "its connections are not encrypted, bring the change to it by hand"
            known = [str(one["name"]) for one in self._host.nodes()]
            answer = {"done": [node.name], "failed": dict.fromkeys(known, message), "missing": []}
        await asyncio.wait({own}, timeout=max(0.0, since + IMPORT - time.monotonic()))
        if own.done():
            own.result()
        else:
            answer["done"].remove(node.name)
            answer["failed"][node.name] = "it is still writing, see `thicket status` there"
        return {**answer, "number": change.number, "used": change.used}

    def _own_done(self, task: asyncio.Task[bool]) -> None:
        self._own.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("a change that was brought here is not done: %s", error)

    async def _tell_others(self, node: Node, message: Any) -> dict[str, Any]:
        nodes = self._host.nodes()
        others = [str(one["name"]) for one in nodes if one["state"] == "up"]
        missing = [str(one["name"]) for one in nodes if one["state"] != "up"]
        room = asyncio.Semaphore(AT_ONCE)

        async def tell(name: str) -> str | None:
            async with room:
                return await self._tell(node, name, message)

        answers = await asyncio.gather(*map(tell, others))
        failed = {name: why for name, why in zip(others, answers, strict=True) if why is not None}
        done = [name for name in others if name not in failed]
        return {"done": sorted([node.name, *done]), "failed": failed, "missing": sorted(missing)}

    async def _tell(self, node: Node, name: str, message: Any) -> str | None:
        """Tell one node; why it has not done it, None when it has."""
        why = ""
        for _ in range(2):  # a lost connection comes back
            try:
                answer = await node.request((self.NAME, name), message, ANSWER / 2)
            except DistributionError as error:
                why = str(error)
                if error.code == "noproc":
                    return "it is no Thicket node, or one that has just started"
                continue
            match answer:
                case "ok":
                    return None
                case ("error", (str() | bytes()) as words):
                    return words.decode(errors="replace") if isinstance(words, bytes) else words
                case _:
                    return "it gave an answer that makes no sense"
        return why


class Listener(Process):
    """``thicket_passphrase``: what other nodes of the cluster ask, by ``gen_server:call``."""

    MOST = 4  # requests that are worked on at the same time

    def __init__(self, node: Node, passphrase: Passphrase) -> None:
        super().__init__(node)
        self._node = node
        self._passphrase = passphrase
        self._tasks: set[asyncio.Task[None]] = set()
        self._buckets: dict[str, Bucket] = {}

    def tell(self, peer: str) -> None:
        """Tell the node *peer* which change is the newest here; it asks for it, or sends a newer.

        Only authenticated and encrypted connections are good enough for that.
        """
        connection = self._node.connections.get(peer)
        if connection is not None and self._spreads:
            self._cast(connection, (_HAVE, *self._passphrase.newest()))

    def tell_all(self, but: str = "") -> None:
        """Tell all connected nodes."""
        for info in self._node.nodes():
            if info.state == "up" and info.name != but:
                self.tell(info.name)

    @property
    def _spreads(self) -> bool:
        return self._node.encrypted and self._passphrase.fleet() is not None

    def _cast(self, connection: Connection, message: Any) -> None:
        self.node.send_to_name(connection, self.pid, Passphrase.NAME, message)

    def _due(self, name: str) -> bool:
        return self._buckets.setdefault(name, Bucket(RATE, BURST)).take(time.monotonic())

    def on_disconnect(self, connection: Connection, reason: DistributionError) -> None:
        super().on_disconnect(connection, reason)
        self._buckets.pop(connection.name, None)

    def on_message(self, connection: Connection | None, message: Any) -> None:
        match message:
            case ("have", int() as number, bytes() as digest):
                if connection is not None and self._spreads and self._due(connection.name):
                    lacks = self._passphrase.heard(number, digest)
                    if lacks is not None:
                        answer = (_SIGNED, lacks) if lacks else (_HAVE, *self._passphrase.newest())
                        self._cast(connection, answer)
            case ("signed", bytes() as packed):
                if connection is None or not self._spreads or not self._due(connection.name):
                    return
                if len(self._tasks) < self.MOST:
                    self._begin(self._take(packed, connection.name))
            case ("$gen_call", (Pid() as sender, tag), request):
                if len(self._tasks) >= self.MOST:
                    self.reply(connection, sender, tag, (_ERROR, b"it is busy"))
                    return
                who = connection.name if connection is not None else self.node.name
                self._begin(self._answer(connection, sender, tag, request, who))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take(self, packed: bytes, who: str) -> None:
        try:
            await self._passphrase.take(packed, who)
        except PassphraseError as error:
            if error.code != "older":
                log.warning("a change of the passphrase from %s is not done: %s", who, error)

    async def _answer(
        self, connection: Connection | None, sender: Pid, tag: Any, request: Any, who: str
    ) -> None:
        answer: Any = _OK
        try:
            await self._do(request, who)
        except PassphraseError as error:
            log.warning("%s asked for what cannot be done: %s", who, error)
            answer = (_ERROR, str(error).encode())
        except Exception as error:
            log.exception("a request of %s failed", who)
            answer = (_ERROR, f"{type(error).__name__} there".encode())
        self.reply(connection, sender, tag, answer)

    async def _do(self, request: Any, who: str) -> None:
        subject = self._passphrase
        if subject.fleet() is not None:
            match request:
                case ("signed", bytes() as packed) if self._node.encrypted:
                    await subject.take(packed, who)
                    return
                case _:
                    raise subject.refuse(who, "it is not signed")
        match request:
            case ("prepare", bytes() as passphrase):
                log.info("%s hands over the mesh's next passphrase", who)
                await subject.prepare(_text(passphrase))
            case ("change", bytes() as passphrase):
                text = _text(passphrase)
                mesh = subject._host.settings.mesh
                if mesh.passphrase == text:
                    return  # told twice
                log.info("%s tells to change the mesh's passphrase", who)
                if not text or mesh.next_passphrase != text:
                    await subject.prepare(text)
                await subject.change()
            case "cancel":
                log.info("%s drops the mesh's next passphrase", who)
                await subject.cancel()
            case _:
                raise PassphraseError("bad-request", "this node does not know such a request")

    def on_stop(self) -> None:
        self.close()

    def close(self) -> None:
        """End what is being worked on."""
        for task in self._tasks:
            task.cancel()


def _text(passphrase: bytes) -> str:
    try:
        return passphrase.decode()
    except UnicodeDecodeError:
        raise PassphraseError("bad-passphrase", "a passphrase must be UTF-8") from None

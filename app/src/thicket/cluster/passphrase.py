# SPDX-License-Identifier: Apache-2.0
"""Another passphrase for a running mesh, and the way back for a node that finds nobody.

In a fleet the authority signs each change (``thicket.trust.change``), and nodes refuse any other.
They tell each other the newest one that they know, keep it durably and do what it says: first every
node has the new passphrase beside the present one (*offered*), then all change to it (*used*).
Without a fleet, a node that a person asks tells the others, and each believes it.

The new passphrase waits as ``mesh.next_passphrase``. At the change the two trade places. The links
that stand stay, and for a while both passphrases open new ones. Then the nodes leave and enter the
mesh one after the other, each for a moment: every link is made anew, with the new passphrase, and
the old one opens nothing any more. When links of the new one stand, the old one is dropped.

A node that has two passphrases and finds that neighbours refuse the present one tries the other for
a while, adopts it when this brings a link, and returns otherwise. So a node that missed the change
follows it, and a node that changed alone comes back. A node with links never goes back to an old
passphrase. A node that was off all the time cannot know the new one; the radio then tells what to
do (``passphrase-refused``).

``passphrase_judge.py`` decides when these things happen, ``passphrase_file.py`` keeps what must
outlive a power cut, ``passphrase_exchange.py`` talks with other nodes.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable
from logging import getLogger
from typing import TYPE_CHECKING, Any, Protocol

from thicket.base.fields import ConfigError
from thicket.base.paths import Paths
from thicket.base.threads import finish
from thicket.cluster.passphrase_exchange import (
    CANCEL,
    CHANGE,
    NAME,
    PREPARE,
    SIGNED,
    Listener,
    tell,
)
from thicket.cluster.passphrase_file import Kept, PassphraseError
from thicket.cluster.passphrase_judge import Deed, Facts, Judge
from thicket.config import edit
from thicket.config.schema import Settings
from thicket.device.boot_partition import StoreError
from thicket.radio.section import MeshSection

if TYPE_CHECKING:
    from thicket.base.problems import Problems
    from thicket.distribution.node import Node
    from thicket.radio.radio import Peering
    from thicket.trust.change import SignedChange

log = getLogger(__name__)

#: Seconds after which whoever imports a change hears how far it is; a request may take 30 s.
IMPORT = 25.0
#: Seconds between two looks at whether the passphrase is refused.
LOOK = 3.0
#: A neighbour with this many failures in a row refuses the passphrase.
REFUSED = 2
#: Seconds between two rounds in which all nodes hear of the newest signed change.
TELL = 60.0
#: Seconds between two tries to carry out a change that could not be written.
RETRY = 30.0
#: Seconds for which a refused change is a problem.
SHOWN = 3600.0

PERSON = "a person"
_PRESENT_KEY = "mesh.passphrase"
_NEXT_KEY = "mesh.next_passphrase"


class Host(Protocol):
    """What a :class:`Passphrase` needs of its daemon."""

    @property
    def paths(self) -> Paths:
        """Where the node keeps its files."""

    @property
    def settings(self) -> Settings:
        """The settings in force."""

    @property
    def mesh(self) -> Peering | None:
        """The radio of now."""

    @property
    def problems(self) -> Problems:
        """The node's problems."""

    def reload(self) -> Awaitable[Any]:
        """Read the configuration again and follow it."""

    def nodes(self) -> list[dict[str, Any]]:
        """Return the other nodes of the cluster."""


class Passphrase:
    """The passphrase of one node, and its part in changing that of the mesh.

    :ivar kept: what outlives the daemon.
    :ivar refused: how many changes of others were not done: not signed, or not by this fleet's
        root.
    """

    def __init__(self, host: Host) -> None:
        self.kept = Kept(host)
        self.refused = 0
        self._host = host
        self._judge = Judge()
        self._node: Node | None = None
        self._listener: Listener | None = None
        self._writing = asyncio.Lock()
        self._taking = asyncio.Lock()
        #: Changes that a person has brought and that are being done.
        self._own: set[asyncio.Task[bool]] = set()
        self._retry_at = float("-inf")
        self._refused_at: float | None = None
        #: Changes that this node cannot do with the settings that it has, and these settings.
        self._unfit: dict[bytes, str] = {}

    async def run(self, node: Node) -> None:
        """Serve the other nodes, and look after a change that is under way, until cancelled."""
        listener = Listener(node, self)
        node.register(NAME, listener)
        self._node, self._listener = node, listener
        tell_at = float("-inf")
        try:
            while True:
                now = time.monotonic()
                if now >= tell_at:
                    tell_at = now + TELL
                    listener.tell_all()
                await self.step(now)
                await asyncio.sleep(LOOK)
        finally:
            self._node = self._listener = None
            listener.close()
            node.end(listener)

    async def step(self, now: float) -> None:
        """Do what was left undone, look at the radio and the settings, and do what comes next."""
        async with self._taking:
            if now >= self._retry_at:  # what a power cut or a full disk left undone
                self._retry_at = now + RETRY
                await self._or_log(self._carry_out())
            facts = self._look()
            self._tell_problems(now, former=facts.former)
            for deed in self._judge.judge(now, facts):
                await self._do(deed, facts)

    def _look(self) -> Facts:
        radio, mesh, former = self._host.mesh, self._host.settings.mesh, self.kept.is_former()
        if radio is None:
            return Facts(former=former)
        turn = None
        if radio.outdated and self._node is not None:
            own = self._node.name
            turn = sum(str(one["name"]) < own for one in self._host.nodes())
        return Facts(
            two=bool(mesh.next_passphrase) and mesh.security == "sae",
            former=former,
            peers=radio.peers(),
            refusing={mac for mac, count in radio.refused().items() if count >= REFUSED},
            outdated=radio.outdated,
            turn=turn,
        )

    async def _do(self, deed: Deed, facts: Facts) -> None:
        radio, mesh = self._host.mesh, self._host.settings.mesh
        if deed is Deed.ADOPT:
            log.info("the other passphrase is the one that the neighbours have")
            await self._or_log(self.change())
        elif deed is Deed.DROP:
            log.info("links of the new passphrase stand, the former one is dropped")
            await self._or_log(self.forget())
        elif radio is None:
            return
        elif deed is Deed.RENEW:
            radio.renew()
        elif deed is Deed.TRY:
            log.info("%d neighbours refuse the passphrase; the other is tried", len(facts.refusing))
            self._use(radio, mesh.next_passphrase)
        else:
            log.info("the other passphrase is of no use yet, back to the present one")
            self._use(radio, mesh.passphrase)

    @staticmethod
    def _use(radio: Peering, passphrase: str) -> None:
        try:
            radio.apply(radio.settings.replace(passphrase=passphrase))
        except ValueError as error:
            log.error("the radio refuses a passphrase: %s", error)

    @staticmethod
    async def _or_log(step: Awaitable[object]) -> None:
        try:
            await step
        except PassphraseError as error:
            log.error("cannot keep the passphrase: %s", error)

    def _tell_problems(self, now: float, *, former: bool) -> None:
        problems, settings = self._host.problems, self._host.settings
        if self._refused_at is not None and now - self._refused_at > SHOWN:
            self._refused_at = None
            problems.clear("radio", "change-refused")
        unfinished = bool(settings.mesh.next_passphrase) and not former
        if not self._judge.is_overdue(now, unfinished=unfinished):
            problems.clear("radio", "passphrase-pending")
            return
        command = "thicket ca passphrase" if settings.trust.root else "thicket passphrase"
        problems.report(
            "radio",
            "passphrase-pending",
            "a change of the mesh's passphrase was begun and not finished: "
            f"`{command} finish` finishes it, `{command} cancel` drops it",
            "warning",
        )

    def node_up(self, name: str) -> None:
        """The node ``name`` is connected."""
        if self._listener is not None:
            self._listener.tell(name)

    def status(self) -> dict[str, Any]:
        """The part ``passphrase`` of the status document; docs/node.md has its members."""
        change = self.kept.change.change if self.kept.change is not None else None
        return {
            "change": None if change is None else {"number": change.number, "used": change.used},
            "former": self.kept.is_former(),
            "refused": self.refused,
        }

    # --- on this node

    async def prepare(self, passphrase: str) -> None:
        """Keep the next passphrase.

        :raises PassphraseError: it is no passphrase, not another one, or could not be written.
        """
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

        :raises PassphraseError: it could not be written.
        """
        mesh = self._host.settings.mesh
        if not mesh.next_passphrase:
            return False
        back = self.kept.is_former()
        self.kept.former = "" if back else self.kept.tag(mesh.passphrase)
        await self.kept.write()
        await self._store({_PRESENT_KEY: mesh.next_passphrase, _NEXT_KEY: mesh.passphrase or None})
        self._judge.trying = False
        self._judge.changed()
        log.info(
            "the passphrase of the mesh %s", "is the former one again" if back else "has changed"
        )
        return True

    async def change_to(self, passphrase: str, who: str) -> None:
        """Change to the passphrase that another node uses from now on, unless that was done.

        :raises PassphraseError: it is no passphrase, or could not be written.
        """
        mesh = self._host.settings.mesh
        if mesh.passphrase == passphrase:
            return  # told twice
        log.info("%s tells to change the mesh's passphrase", who)
        if not passphrase or mesh.next_passphrase != passphrase:
            await self.prepare(passphrase)
        await self.change()

    async def cancel(self) -> None:
        """Drop the next passphrase, if the other one is that.

        :raises PassphraseError: it could not be written.
        """
        if not self.kept.is_former():
            await self.forget()

    async def forget(self) -> None:
        """Drop the other passphrase.

        :raises PassphraseError: it could not be written.
        """
        if self._host.settings.mesh.next_passphrase:
            await self._store({_NEXT_KEY: None})
            self._judge.changed()
            log.info("one passphrase of the mesh is left")

    async def _store(self, changes: dict[str, object]) -> None:
        def write() -> None:
            paths = self._host.paths
            text, _ = edit.source(paths)
            edit.apply(paths, edit.set_values(text, changes).encode("utf-8"))

        async with self._writing:
            try:
                await finish(write)
            except (StoreError, ConfigError) as error:
                raise PassphraseError("not-written", str(error)) from error
            await self._host.reload()

    # --- signed changes

    async def take(self, packed: bytes, who: str) -> bool:
        """Take a signed change, keep it and do what it says; whether it is news.

        The same change again is done again as far as it was not.

        :param who: the node, or the person, that it is from.
        :raises PassphraseError: it is not signed, is older than the one in force, is not for this
            node, or could not be written.
        """
        from thicket.trust.change import SignedChange
        from thicket.trust.verify import RefusedError

        fleet = self.kept.fleet()
        if fleet is None:
            raise PassphraseError("no-fleet", "this node belongs to no fleet ([trust] root)")
        try:
            found = SignedChange.read(packed, fleet)
        except RefusedError as error:
            if who == PERSON:
                raise PassphraseError("not-signed", str(error)) from None
            raise self.refuse(who, str(error)) from None
        async with self._taking:
            known = self.kept.change
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
                self.kept.change, before = found, known
                try:
                    await self.kept.write()
                except PassphraseError:
                    self.kept.change = before
                    raise
            await self._carry_out()
        if news and self._listener is not None:
            self._listener.tell_all(who)
        return news

    def _check_replaces(self, found: SignedChange) -> None:
        """Refuse what was not signed for a node with this node's passphrase."""
        present = self._host.settings.mesh.passphrase
        if present != found.change.passphrase and self.kept.tag(present) not in found.change.former:
            raise PassphraseError(
                "not-ours",
                f"change {found.change.number} replaces other passphrases than the one of this "
                "node: it is too old, or somebody has changed this node's by hand",
            )

    async def _carry_out(self) -> None:
        """Do what the newest signed change says, unless that was done. Repeating it does no harm.

        :raises PassphraseError: it could not be written.
        """
        newest = self.kept.change
        if newest is None or self.kept.done == newest.digest.hex():
            return
        change, mesh = newest.change, self._host.settings.mesh
        present, following = mesh.passphrase, mesh.next_passphrase
        if change.passphrase in ("", present):
            if following and not self.kept.is_former():
                await self.forget()
        elif following != change.passphrase or self.kept.is_former():
            self.kept.former = ""
            await self.kept.write()
            await self._store({_NEXT_KEY: change.passphrase})
        if change.used and present != change.passphrase:
            await self.change()
        self.kept.done = newest.digest.hex()
        await self.kept.write()

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
        """A node has this change.

        :returns: the packed change that it lacks, nothing to ask for its, or None.
        """
        kept, mesh = self.kept, self._host.settings.mesh
        newest = kept.change
        if (number, digest) > kept.newest():
            return None if self._unfit.get(digest) == self._fit() else b""
        if newest is None:
            return None
        if (number, digest) < newest.order:
            return newest.packed
        # It is time to change again, if this node went back alone before.
        if (
            newest.change.used
            and mesh.next_passphrase == newest.change.passphrase
            and not kept.is_former()
            and self._judge.once_more(time.monotonic())
        ):
            kept.done = ""
        return None

    def _fit(self) -> str:
        mesh = self._host.settings.mesh
        return mesh.security + self.kept.tag(mesh.passphrase)

    # --- on all nodes, for the person at this one

    async def request(self, params: dict[str, Any]) -> dict[str, Any]:
        """Do what ``thicket passphrase`` asks.

        :param params: ``action`` is prepare, change, cancel or import. ``import`` needs a signed
            ``change`` (Base64), ``held`` returns the newest one and the tag of the passphrase in
            use, and ``unsigned`` asks whether the first three are possible here.
        :returns: ``done`` (names of nodes, this one among them), ``failed`` (why, by name) and
            ``missing`` (nodes that are known and not connected).
        :raises PassphraseError: it cannot be done.
        """
        node, action = self._node, params.get("action")
        if node is None:
            raise PassphraseError("not-joined", "the node has not joined the mesh yet")
        if action not in {"prepare", "change", "cancel", "unsigned", "import", "held"}:
            raise PassphraseError("bad-request", '"action" is prepare, change, cancel or import')
        if action == "held":
            return self.held()
        if action == "import":
            return await self._import(node, params.get("change"))
        if self.kept.fleet() is not None:
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
            message = (PREPARE, passphrase.encode())
        elif action == "change":
            following = self._host.settings.mesh.next_passphrase
            if not following or self.kept.is_former():
                raise PassphraseError("nothing", "there is no change to finish: begin with roll")
            message = (CHANGE, following.encode())
        else:
            message = CANCEL
        answer = await tell(node, self._host.nodes(), message)
        # This node comes last: until then it can be asked again.
        if action == "change":
            await self.change()
        elif action == "cancel":
            await self.cancel()
        return answer

    def held(self) -> dict[str, str]:
        """The newest signed change (Base64) and the tag of the passphrase in use."""
        packed = self.kept.change.packed if self.kept.change is not None else b""
        return {
            "change": base64.b64encode(packed).decode("ascii"),
            "present": self.kept.tag(self._host.settings.mesh.passphrase),
        }

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

        fleet, since = self.kept.fleet(), time.monotonic()
        if fleet is not None:  # what the root has not signed is told to nobody
            try:
                change = SignedChange.read(packed, fleet).change
            except RefusedError as error:
                raise PassphraseError("not-signed", str(error)) from None
        # It goes on also where the one who asked does not wait for it.
        own = asyncio.create_task(self.take(packed, PERSON))
        self._own.add(own)
        own.add_done_callback(self._own_done)
        if fleet is None:
            await own  # it says what is wrong
        if node.encrypted:
            answer = await tell(node, self._host.nodes(), (SIGNED, packed))
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

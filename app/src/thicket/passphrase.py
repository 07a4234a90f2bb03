# SPDX-License-Identifier: Apache-2.0
"""Another passphrase for a running mesh, and the way back for a node that was not there.

A change has two phases, and a person between them. First every connected node is handed the new
passphrase over the cluster's connections, keeps it durably as ``mesh.next_passphrase`` and says so.
Then, when all have it or the person does without those who have not, every node is told to change:
``mesh.passphrase`` becomes the new one. The links that stand stay, and for a while both passphrases
open new ones. Then the nodes leave and enter the mesh one after the other, each for a moment: every
link is made anew, with the new passphrase, and the old one opens nothing any more.

A node that has the next passphrase and missed the second phase finds out by itself: neighbours
refuse the passphrase that it has. It tries the next one for a while, adopts it when a link comes of
it, and goes back otherwise. A node that was off during the first phase cannot know the new one; the
radio tells what to do then (``passphrase-refused``).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from logging import getLogger
from typing import TYPE_CHECKING, Any, Final

from thicket import config, store
from thicket.distribution import services
from thicket.distribution.etf import Atom, Pid
from thicket.distribution.handshake import DistributionError
from thicket.distribution.processes import Process

if TYPE_CHECKING:
    from thicket.distribution.connection import Connection
    from thicket.distribution.node import Node

log = getLogger("thicket.passphrase")

#: Seconds that another node may take: it writes to its card, and may have to wait for that.
ANSWER: Final = 20.0
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

_PRESENT_KEY: Final = "mesh.passphrase"
_NEXT_KEY: Final = "mesh.next_passphrase"
_OK: Final = Atom("ok")
_ERROR: Final = Atom("error")


class PassphraseError(Exception):
    """A request that cannot be done: a code for programs, words for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Host:
    """What a :class:`Passphrase` needs of its daemon."""

    paths: config.Paths
    settings: config.Settings
    mesh: Any
    problems: Any
    reload: Callable[[], Awaitable[Any]]
    nodes: Callable[[], list[dict[str, Any]]]


class Passphrase:
    """The passphrase of one node, and its part in changing that of the mesh."""

    NAME = "thicket_passphrase"

    def __init__(self, host: Any) -> None:
        self._host: Host = host
        self._node: Node | None = None
        self._writing = asyncio.Lock()
        self._trying = False
        self._asked: set[str] = set()
        self._since = float("-inf")
        self._rest = 0.0
        self._pending_since: float | None = None
        self._renew_at: float | None = None

    async def run(self, node: "Node") -> None:
        """Serve the other nodes, and look after a change that is under way, until cancelled."""
        listener = Listener(node, self)
        node.register(self.NAME, listener)
        self._node = node
        try:
            while True:
                self.look(time.monotonic())
                if self._adopts():
                    log.info("the next passphrase is the one that the neighbours have")
                    self._trying = False
                    try:
                        await self.change()
                    except PassphraseError as error:
                        log.error("cannot keep the passphrase: %s", error)
                await asyncio.sleep(LOOK)
        finally:
            self._node = None
            listener.close()
            node.end(listener)

    # --- on this node

    async def prepare(self, passphrase: str) -> None:
        """Keep the next passphrase. Raises PassphraseError."""
        settings = self._host.settings
        if settings.mesh.security != "sae":
            raise PassphraseError(
                "open", "the mesh of this node is open (mesh.security), it has no passphrase"
            )
        try:
            if not config.Mesh.next_passphrase.check(passphrase):
                raise ValueError(f"must be {config.Mesh.next_passphrase.allowed}")
        except ValueError as error:
            raise PassphraseError("bad-passphrase", f"a passphrase {error}") from None
        if passphrase == settings.mesh.passphrase:
            raise PassphraseError("same", "the mesh has this passphrase already")
        await self._store({_NEXT_KEY: passphrase})
        log.info("the next passphrase of the mesh is kept")

    async def change(self) -> bool:
        """Make the next passphrase the present one; False when there is none (any more).

        Raises PassphraseError.
        """
        following = self._host.settings.mesh.next_passphrase
        if not following:
            return False
        await self._store({_PRESENT_KEY: following, _NEXT_KEY: None})
        self._trying = False
        log.info("the passphrase of the mesh has changed")
        return True

    async def forget(self) -> None:
        """Drop the next passphrase. Raises PassphraseError."""
        if self._host.settings.mesh.next_passphrase:
            await self._store({_NEXT_KEY: None})
            log.info("the next passphrase of the mesh was dropped")

    async def _store(self, changes: dict[str, object]) -> None:
        def write() -> None:
            paths = self._host.paths
            text, _ = store.source(paths)
            store.apply(paths, store.set_values(text, changes).encode("utf-8"))

        async with self._writing:
            try:
                await asyncio.get_running_loop().run_in_executor(None, write)
            except (store.StoreError, config.ConfigError) as error:
                raise PassphraseError("not-written", str(error)) from error
            await self._host.reload()

    # --- a change that this node missed

    def look(self, now: float) -> None:
        """Try the next passphrase while neighbours refuse the present one, and go back in time."""
        mesh, settings = self._host.mesh, self._host.settings.mesh
        self._take_turn(now, mesh)
        self._judge_pending(now, bool(settings.next_passphrase))
        if mesh is None or not settings.next_passphrase or settings.security != "sae":
            self._trying = False
            self._rest = 0.0
            return
        if self._trying:
            if now - self._since > TRIAL:
                log.info("the next passphrase is of no use yet, back to the present one")
                self._use(mesh, settings.passphrase)
                self._trying, self._since = False, now
                self._rest = min(max(self._rest * 2, REST), REST_AT_MOST)
            return
        refusing = {mac for mac, count in mesh.refused().items() if count >= REFUSED}
        if refusing and now - self._since > self._rest:
            log.info("%d neighbours refuse the passphrase; the next one is tried", len(refusing))
            self._asked = refusing if mesh.peers() else set()
            self._trying, self._since = True, now
            self._use(mesh, settings.next_passphrase)

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
            mesh.apply(mesh.settings._replace(passphrase=passphrase))
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
            self._host.problems.report(
                "radio",
                "passphrase-pending",
                "a change of the mesh's passphrase was begun and not finished: "
                "`thicket passphrase finish` finishes it, `thicket passphrase cancel` drops it",
                "warning",
            )

    # --- on all nodes, for the person at this one

    async def request(self, params: dict[str, Any]) -> dict[str, Any]:
        """What ``thicket passphrase`` asks: ``action`` is prepare, change or cancel.

        The answer: ``done`` (names of nodes, this one among them), ``failed`` (why, by name) and
        ``missing`` (nodes that are known and not connected). Raises PassphraseError.
        """
        node, action = self._node, params.get("action")
        if node is None:
            raise PassphraseError("not-joined", "the node has not joined the mesh yet")
        if action not in {"prepare", "change", "cancel"}:
            raise PassphraseError("bad-request", '"action" is prepare, change or cancel')
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
            if not following:
                raise PassphraseError("nothing", "there is no change to finish: begin with roll")
            message = (Atom("change"), following.encode())
        else:
            message = Atom("cancel")
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
        # This node comes last: until then it can be asked again.
        if action == "change":
            await self.change()
        elif action == "cancel":
            await self.forget()
        return {"done": sorted([node.name, *done]), "failed": failed, "missing": sorted(missing)}

    async def _tell(self, node: "Node", name: str, message: Any) -> str | None:
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

    def __init__(self, node: "Node", passphrase: Passphrase) -> None:
        super().__init__(node)
        self._passphrase = passphrase
        self._tasks: set[asyncio.Task[None]] = set()

    def on_message(self, connection: "Connection | None", message: Any) -> None:
        match message:
            case ("$gen_call", (Pid() as sender, tag), request):
                if len(self._tasks) >= self.MOST:
                    services.reply(self, connection, sender, tag, (_ERROR, b"it is busy"))
                    return
                who = connection.name if connection is not None else self.node.name
                task = asyncio.get_running_loop().create_task(
                    self._answer(connection, sender, tag, request, who)
                )
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _answer(
        self, connection: "Connection | None", sender: Pid, tag: Any, request: Any, who: str
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
        services.reply(self, connection, sender, tag, answer)

    async def _do(self, request: Any, who: str) -> None:
        subject = self._passphrase
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
                await subject.forget()
            case _:
                raise PassphraseError("bad-request", "this node does not know such a request")

    def close(self) -> None:
        """End what is being worked on."""
        for task in self._tasks:
            task.cancel()


def _text(passphrase: bytes) -> str:
    try:
        return passphrase.decode()
    except UnicodeDecodeError:
        raise PassphraseError("bad-passphrase", "a passphrase must be UTF-8") from None

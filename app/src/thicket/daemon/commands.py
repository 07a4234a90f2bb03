# SPDX-License-Identifier: Apache-2.0
"""The methods of the daemon's control socket; docs/node.md lists them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from thicket.base.errors import RequestError
from thicket.base.fields import show_value
from thicket.base.threads import finish
from thicket.daemon.led_part import IDENTIFY, MOST_IDENTIFY
from thicket.operators.methods import Methods

#: Seconds within which nodes that are connected say that they follow an order.
FOLLOWED = 10.0
NOT_JOINED = "the node has not joined the mesh yet: `thicket status` says how far it is"
#: Orders about a rollout, see :mod:`thicket.update.rollout`.
ORDERS = ("pause", "resume", "abort", "back")

if TYPE_CHECKING:
    from thicket.control.server import Handler
    from thicket.daemon.cluster_part import ClusterPart, ClusterSession
    from thicket.daemon.daemon import Daemon
    from thicket.daemon.live import Live
    from thicket.distribution.node import Node
    from thicket.fleet.label_store import LabelStore
    from thicket.trust.operator import Operator
    from thicket.update.fleet import FleetUpdate
    from thicket.update.service import Update


class Commands:
    """The methods of the control socket. Each takes the request's params and returns its result.

    A method that needs the identity or the cluster fails with a clear message before it is there.
    """

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._takeovers = Methods(self)

    # -- what operators need of this node, see operators.methods.Host

    @property
    def root(self) -> str:
        return self._daemon.core.paths.root

    def resolve(self, text: str) -> str:
        return self._joined()[0].resolve(text)

    def operator_port(self) -> int:
        return self._daemon.core.settings.access.operator_port

    def node(self) -> Node:
        return self._joined()[1].node

    def methods(self, operator: Operator | None = None) -> dict[str, Handler]:
        """Return the methods by name.

        :param operator: who asks; None for root on this node.
        """
        return {
            **self._takeovers.of(operator),
            "status": self._on_status,
            "peers": self._on_peers,
            "nodes": self._on_nodes,
            "scan": self._on_scan,
            "fleet": self._on_fleet,
            "ping": self._on_ping,
            "call": self._on_call,
            "publish": self._on_publish,
            "events": self._on_events,
            "reload": self._on_reload,
            "config": self._on_config,
            "config-apply": self._on_config_apply,
            "revocations-import": self._on_revocations_import,
            "revocations-export": self._on_revocations_export,
            "labels-import": self._on_labels_import,
            "labels-export": self._on_labels_export,
            "passphrase": self._on_passphrase,
            "update-install": self._on_update_install,
            "update-progress": self._on_update_progress,
            "update-back": self._on_update_back,
            "update-epoch": self._on_update_epoch,
            "update-offer": self._on_update_offer,
            "update-order": self._on_update_order,
            "update-status": self._on_update_status,
            "app-install": self._on_app_install,
            "app-list": self._on_app_list,
            "app-back": self._on_app_back,
            "app-remove": self._on_app_remove,
            "app-result": self._on_app_result,
            "identify": self._on_identify,
            "time": self._on_time,
            "stop-radio": self._on_stop_radio,
        }

    def _live(self) -> Live:
        live = self._daemon.live
        if live is None:
            raise RequestError("starting", "the node is still finding out who it is; try again")
        return live

    def _joined(self) -> tuple[ClusterPart, ClusterSession]:
        live = self._daemon.live
        if live is None or live.cluster.session is None:
            raise RequestError("not-joined", NOT_JOINED)
        return live.cluster, live.cluster.session

    async def _on_status(self, params: dict[str, Any]) -> Any:
        self._daemon.firewall.refresh()
        if self._daemon.live is not None:
            await self._daemon.live.radio.refresh()
        return self._daemon.document()

    async def _on_peers(self, params: dict[str, Any]) -> Any:
        document = await self._on_status(params)
        return {key: document[key] for key in ("state", "radio", "peers", "paths")}

    async def _on_nodes(self, params: dict[str, Any]) -> Any:
        document = self._daemon.document()
        return {key: document[key] for key in ("state", "cluster", "discovery")}

    async def _on_scan(self, params: dict[str, Any]) -> Any:
        from thicket.base.errors import CodedError

        mesh = self._live().radio.mesh
        if mesh is None:
            raise RequestError("not-joined", "the radio is off; `thicket status` says why")
        try:
            return {"heard": await mesh.scan(), "radio": self._daemon.document()["radio"]}
        except CodedError as e:
            raise RequestError(e.code, str(e)) from e

    async def _on_fleet(self, params: dict[str, Any]) -> Any:
        """Tell how all nodes are; with ``wait`` false, of what they have told before."""
        _, session = self._joined()
        view = session.fleet(self._live()).view
        return await view.document(wait=params.get("wait") is not False)

    async def _on_ping(self, params: dict[str, Any]) -> Any:
        cluster, session = self._joined()
        name = cluster.resolve(str(params.get("node", "")))
        if name == session.node.name:
            return {"node": name, "milliseconds": 0.0}  # as Erlang answers for itself
        try:
            seconds = await session.node.ping(name)
        except Exception as e:
            # every failure means "no answer"; the text says why
            code = str(getattr(e, "code", "no-answer"))
            raise RequestError(code, str(e) or type(e).__name__) from e
        return {"node": name, "milliseconds": round(seconds * 1000, 3)}

    async def _on_call(self, params: dict[str, Any]) -> Any:
        cluster, session = self._joined()
        node = cluster.resolve(str(params.get("node", "")))
        return await session.requests.call(node, params)

    async def _on_publish(self, params: dict[str, Any]) -> Any:
        return await self._joined()[1].requests.publish(params)

    async def _on_events(self, params: dict[str, Any]) -> Any:
        return await self._joined()[1].requests.events(params)

    async def _on_reload(self, params: dict[str, Any]) -> Any:
        return await self._daemon.reload.run()

    async def _on_config(self, params: dict[str, Any]) -> Any:
        core = self._daemon.core
        values = {
            name: {key.name: show_value(key, value) for key, value in section.items()}
            for name, section in core.settings.sections()
        }
        return {"source": core.loaded.source, "values": values}

    async def _on_config_apply(self, params: dict[str, Any]) -> Any:
        from thicket.config import edit  # rare

        text = params.get("text")
        if not isinstance(text, str):
            raise RequestError("bad-request", 'params need "text", the whole file')
        data = text.encode("utf-8", "surrogatepass")
        written = await finish(lambda: edit.apply(self._daemon.core.paths, data))
        return {"written": written, **await self._daemon.reload.run()}

    async def _on_revocations_import(self, params: dict[str, Any]) -> Any:
        """Take a list of revocations (``list``, in Base64); return the lists in force."""
        from base64 import b64decode  # rare

        from thicket.trust.service import ListError

        text = params.get("list")
        trust = self._live().trust
        if not isinstance(text, str):
            raise RequestError("bad-request", 'params need "list", in Base64')
        try:
            taken = trust.take_list(b64decode(text, validate=True), "a person")
        except (ValueError, ListError) as e:
            raise RequestError("not-taken", f"the list is not taken: {e}") from e
        trust.tell_all()
        return {"taken": taken, **trust.status()["revocations"]}

    async def _on_revocations_export(self, params: dict[str, Any]) -> Any:
        """Return the digests of the lists of revocations in force, or one list (``digest``)."""
        from base64 import b64encode  # rare

        current = self._live().trust.lists.by_digest()
        lists = {key.hex(): packed for key, packed in current.items()}
        digest = params.get("digest")
        if digest is None:
            return {"lists": list(lists)}
        if digest not in lists:
            raise RequestError("not-found", "no list with this digest is in force here")
        return {"list": b64encode(lists[digest]).decode()}

    def _labels(self) -> LabelStore:
        labels = self._joined()[1].labels
        if labels is None:
            if self._live().trust.standing is None:
                raise RequestError("no-fleet", "this node belongs to no fleet, so it has no labels")
            raise RequestError("starting", "the node has just joined the cluster; try again")
        return labels

    async def _on_labels_import(self, params: dict[str, Any]) -> Any:
        """Take labels (``labels``, in Base64); return what is in force."""
        from base64 import b64decode  # rare

        store, text = self._labels(), params.get("labels")
        if not isinstance(text, str):
            raise RequestError("bad-request", 'params need "labels", in Base64')
        try:
            taken = store.take(b64decode(text, validate=True), "a person")
        except ValueError as e:
            raise RequestError("not-taken", f"the labels are not taken: {e}") from e
        if taken:
            store.tell_all()
            await store.written()
        current = store.current()
        labels = current.labels if current is not None else None
        count = sum(not entry.empty for entry in labels.entries.values()) if labels else 0
        return {"taken": taken, "number": labels.number if labels else 0, "labels": count}

    async def _on_labels_export(self, params: dict[str, Any]) -> Any:
        """Return the labels in force, in Base64; empty where there are none."""
        from base64 import b64encode  # rare

        current = self._labels().current()
        return {"labels": b64encode(current.packed).decode() if current is not None else ""}

    async def _on_passphrase(self, params: dict[str, Any]) -> Any:
        passphrase = self._joined()[1].passphrase
        if passphrase is None:
            raise RequestError("not-joined", NOT_JOINED)
        return await passphrase.request(params)

    def _update(self) -> Update:
        update = self._daemon.update
        if update is None:
            if self._daemon.slot is not None:
                raise RequestError("starting", "the node is still starting; try again")
            raise RequestError(
                "no-slots",
                "this node does not run from a slot of a card, so no bundle can be installed: its "
                "card has to be flashed (`make flash`); in the simulator IMAGE=standin has slots",
            )
        return update

    async def _on_update_install(self, params: dict[str, Any]) -> Any:
        path = _path_of(params, "update-install")
        self._update().installer.begin(path, again=params.get("again") is True)
        return {"began": True}

    async def _on_update_progress(self, params: dict[str, Any]) -> Any:
        return self._update().installer.progress._asdict()

    async def _on_update_back(self, params: dict[str, Any]) -> Any:
        return {"slot": await self._update().back()}

    async def _on_update_epoch(self, params: dict[str, Any]) -> Any:
        return {"epoch": await self._update().epoch_in_force()}

    def _updates(self) -> FleetUpdate:
        if self._daemon.slot is None:
            raise RequestError(
                "no-slots",
                "this node does not run from a slot of a card, so it takes part in no updates of "
                "the fleet, those of applications among them; `thicket app install FILE` installs "
                "an application here",
            )
        self._update()
        updates = self._joined()[1].updates
        if updates is None:
            raise RequestError(
                "no-fleet",
                "this node takes no part in updates of a fleet: it cannot prove yet that it "
                "belongs to one (`thicket status`)",
            )
        return updates

    async def _on_update_offer(self, params: dict[str, Any]) -> Any:
        folder = params.get("folder")
        if not isinstance(folder, str) or not folder.startswith("/") or "\0" in folder:
            raise RequestError("bad-params", "update-offer needs the path of a folder")
        updates = self._updates()
        # A card may take long for it: who asks again with the same folder waits on.
        lane = await updates.offer(folder, 20.0)
        return lane.carrier.status() if lane is not None else None

    async def _on_update_order(self, params: dict[str, Any]) -> Any:
        """Give an order: ``order`` (a word) as this member, or ``signed`` (base64).

        ``application`` says which one a word is about; without it it is about the image.
        """
        updates = self._updates()
        signed = params.get("signed")
        if isinstance(signed, str):
            import base64  # rare

            try:
                lanes = updates.order(base64.b64decode(signed, validate=True))
            except ValueError:
                raise RequestError("bad-params", "the order is not in base64") from None
        else:
            word = params.get("order")
            if word not in ORDERS:
                raise RequestError("bad-params", f"an order is one of {', '.join(ORDERS)}")
            lanes = [updates.give(str(word), str(params.get("application") or ""))]
        await updates.followed(lanes, FOLLOWED)
        return [{**lane.table(), "pending": lane.pending()} for lane in lanes]

    async def _on_update_status(self, params: dict[str, Any]) -> Any:
        updates, update = self._updates(), self._update()
        return {
            "slots": update.status,
            "installation": update.installation(),
            **updates.status(),
            "tables": updates.tables(),
        }

    async def _on_app_install(self, params: dict[str, Any]) -> Any:
        path, again = _path_of(params, "app-install"), params.get("again") is True
        return await self._live().installed.install(path, again=again)

    async def _on_app_list(self, params: dict[str, Any]) -> Any:
        return {"installed": self._live().installed.status()}

    async def _on_app_back(self, params: dict[str, Any]) -> Any:
        name = str(params.get("name", ""))
        return await self._live().installed.ask(lambda apps: apps.back(name))

    async def _on_app_remove(self, params: dict[str, Any]) -> Any:
        name = str(params.get("name", ""))
        return await self._live().installed.ask(lambda apps: apps.remove(name))

    async def _on_app_result(self, params: dict[str, Any]) -> Any:
        return await self._live().installed.result()

    async def _on_identify(self, params: dict[str, Any]) -> Any:
        """Show for ``seconds`` by the light which node this is; 0 ends it."""
        seconds = params.get("seconds", IDENTIFY)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds < 0:
            raise RequestError("bad-params", "seconds is a number, 0 or more")
        self._daemon.led.identify(seconds)
        return {"seconds": min(seconds, MOST_IDENTIFY)}

    async def _on_time(self, params: dict[str, Any]) -> Any:
        """Do what a person asks about the time, see :meth:`.time_part.TimePart.request`."""
        return await self._live().time.request(params)

    async def _on_stop_radio(self, params: dict[str, Any]) -> Any:
        """Leave the cluster and the mesh, and end the daemon; for the shutdown of the device."""
        live = self._daemon.live
        mesh = live.radio.mesh if live is not None else None
        for name in ("cluster", "dns-sd", "discovery", "radio"):
            await self._daemon.stop_part(name)
        if mesh is not None:
            await mesh.leave()
        # send the answer first
        asyncio.get_running_loop().call_later(0.1, self._daemon.stop)
        return {"left": mesh is not None}


def _path_of(params: dict[str, Any], method: str) -> str:
    """Return the path that a request names."""
    path = params.get("path")
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
        raise RequestError("bad-params", f"{method} needs the path of a file")
    return path

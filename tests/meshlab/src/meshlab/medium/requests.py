# SPDX-License-Identifier: Apache-2.0
"""What clients ask of the medium over ``medium.sock``: requests judged, and answered by it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from meshlab.medium.capture import Capture, View
from meshlab.medium.config import (
    STATE_NAME,
    ConfigError,
    parse_fading,
    parse_loss,
    parse_node,
    parse_position,
    parse_snr,
)
from meshlab.medium.node_port import NodePort
from meshlab.medium.stats import verdict
from meshlab.wire.rpc import Call, Handler, Json, Params, RpcError

if TYPE_CHECKING:
    from meshlab.medium.server import Medium


class Requests:
    """The methods of a medium's socket."""

    def __init__(self, medium: Medium) -> None:
        self._medium = medium

    def methods(self) -> dict[str, Handler]:
        """Return the methods of ``medium.sock``, by their names."""
        return {
            "status": self._status,
            "links": self._links,
            "link": self._link,
            "move": self._move,
            "radio": self._radio,
            "pcap": self._pcap,
            "pcap_stop": self._pcap_stop,
            "keys": self._keys,
            "add_node": self._add_node,
            "remove_node": self._remove_node,
            "reset_stats": self._reset_stats,
        }

    def _port(self, params: Params, key: str) -> NodePort:
        name = params.get(key)
        ports = self._medium.ports
        port = ports.get(name) if isinstance(name, str) else None
        if port is None:
            known = ", ".join(ports) or "none at all"
            raise RpcError("no-such-node", f"{key}: there is no node {name!r}; there are {known}")
        return port

    def _save(self) -> None:
        try:
            self._medium.save()
        except OSError as error:
            raise RpcError("cannot-save", f"done, but {STATE_NAME}: {error.strerror}") from None

    async def _status(self, params: Params, call: Call) -> Json:
        medium = self._medium
        stats = medium.engine.stats
        drops = {name: port.dropped for name, port in medium.ports.items()}
        reasons = verdict(stats, medium.config.bounds, drops)
        return {
            "seed": medium.config.seed,
            "started": round(medium.started, 3),
            "since": round(medium.since, 3),
            **medium.recent.to_json(),
            "lag_worst_ms": round(stats.lag.maximum * 1e3, 2),
            "valid": not reasons,
            "reason": reasons[0] if reasons else None,
            "reasons": reasons,
            **stats.to_json(),
            "cpu_seconds": round(time.process_time(), 3),
            "fading": self._fading(),
            "captures": medium.captures.status(),
            "nodes": {name: port.status() for name, port in medium.ports.items()},
        }

    def _fading(self) -> Json:
        """Return how links change: all, and those that change otherwise."""
        links = self._medium.links
        own = [
            {"a": a, "b": b, "fading": str(how), "set": links.fading_set(a, b)}
            for (a, b), how in sorted(links.fadings.own().items())
        ]
        return {"all": str(self._medium.config.fading), "links": own}

    async def _links(self, params: Params, call: Call) -> Json:
        medium = self._medium
        found = []
        limit = medium.config.receiver.interference_snr_db
        for a, port in medium.ports.items():
            radios = port.node.radios
            power = radios[0].config.tx_power_dbm if radios else 20.0
            attenuation = radios[0].attenuation_db if radios else 0.0
            frequency = next((r.frequency for r in radios if r.frequency), 2412)
            for b in medium.ports:
                if a == b:
                    continue
                heard = medium.links.hearing(a, b, power, frequency)
                snr = None if heard.snr is None else heard.snr - attenuation
                if heard.state == "none" or (
                    heard.state == "model" and (snr is None or snr < limit)
                ):
                    continue
                signal = None if snr is None else round(medium.config.receiver.noise_dbm + snr)
                traffic = medium.engine.reaches.traffic.get((a, b))
                found.append(
                    {
                        "a": a,
                        "b": b,
                        "snr_db": None if snr is None else round(snr, 2),
                        "signal_dbm": signal,
                        "state": heard.state,
                        "loss": heard.loss,
                        "fading": str(medium.links.fadings.of(a, b)),
                        "fading_set": medium.links.fading_set(a, b),
                        "traffic": traffic.to_json() if traffic else None,
                    }
                )
        positions = {name: medium.links.position(name) for name in medium.ports}
        return {"links": found, "positions": positions}

    async def _link(self, params: Params, call: Call) -> Json:
        a, b = self._port(params, "a").node.name, self._port(params, "b").node.name
        if a == b:
            raise RpcError("bad-params", "a link has two ends: a and b are the same node")
        ways = ("cut", "snr", "loss", "fading", "restore")
        wanted = [
            key for key in ways if (value := params.get(key)) is not None and value is not False
        ]
        if len(wanted) != 1:
            raise RpcError(
                "bad-params",
                'say one of "cut": true, "snr": dB, "loss": 0 to 1, "fading": how, "restore": true',
            )
        pairs = [(a, b), (b, a)] if params.get("both", True) else [(a, b)]
        snr, loss = None, 0.0
        if wanted == ["fading"]:
            self._medium.links.fade(a, b, _checked(parse_fading, params["fading"], "fading"))
            self._save()
            return {"changed": [[a, b], [b, a]]}
        if wanted == ["snr"]:
            snr = _checked(parse_snr, params["snr"], "snr")
        elif wanted == ["loss"]:
            loss = _checked(parse_loss, params["loss"], "loss")
        for pair in pairs:
            if wanted == ["restore"]:
                self._medium.links.restore(*pair)
            elif wanted == ["loss"]:
                self._medium.links.lose(*pair, loss)
            else:
                self._medium.links.set(*pair, snr)
        self._save()
        return {"changed": [list(pair) for pair in pairs]}

    async def _move(self, params: Params, call: Call) -> Json:
        name = self._port(params, "node").node.name
        x, y = _checked(parse_position, [params.get("x"), params.get("y")], "position")
        self._medium.links.move(name, x, y)
        self._save()
        return {"position": [x, y]}

    async def _radio(self, params: Params, call: Call) -> Json:
        port = self._port(params, "node")
        index, plug = params.get("index", 0), params.get("plug")
        radios = port.node.radios
        if not isinstance(index, int) or not 0 <= index < len(radios):
            raise RpcError(
                "no-such-radio", f"{port.node.name} has {len(radios)} radios, counted from 0"
            )
        if not isinstance(plug, bool):
            raise RpcError("bad-params", 'say "plug": true or false')
        radio = radios[index]
        if radio.plugged != plug:
            radio.plugged = plug
            port.session.plug(radio)
            self._medium.state.plugged[port.node.name, index] = plug
            self._save()
        return {"plugged": plug, "connected": port.port.in_session}

    async def _pcap(self, params: Params, call: Call) -> Json:
        medium = self._medium
        path = params.get("path")
        if not isinstance(path, str) or not path:
            raise RpcError("bad-params", '"path": say where the file is to be')
        view = self._view(params)
        decrypt = params.get("decrypt", False)
        if not isinstance(decrypt, bool):
            raise RpcError("bad-params", 'say "decrypt": true or false')
        target = medium.lab / path
        if any(capture.path == target for capture in medium.captures.running):
            raise RpcError("busy", f"{target} is being written already")
        if target.exists() and not target.is_file():
            raise RpcError("bad-params", f"{target} is not a regular file")
        try:
            medium.captures.begin(
                Capture(
                    target,
                    view,
                    medium.drive.clock,
                    medium.config.receiver.noise_dbm,
                    medium.engine.keys if decrypt else None,
                )
            )
        except OSError as error:
            raise RpcError("cannot-write", f"{target}: {error.strerror}") from None
        return medium.captures.status()[-1]

    def _view(self, params: Params) -> View:
        nodes, links = params.get("nodes") or [], params.get("links") or []
        if not isinstance(nodes, list) or not isinstance(links, list):
            raise RpcError("bad-params", '"nodes" is a list of names, "links" one of pairs')
        pairs = []
        for link in links:
            if not isinstance(link, list) or len(link) != 2:
                raise RpcError("bad-params", f'"links": {link!r} is no pair of nodes')
            pairs.append({"a": link[0], "b": link[1]})
        return View(
            frozenset(self._port({"node": name}, "node").node.name for name in nodes),
            frozenset(
                frozenset(self._port(pair, end).node.name for end in ("a", "b")) for pair in pairs
            ),
        )

    async def _keys(self, params: Params, call: Call) -> Json:
        """Take master keys of pairs of addresses, for captures in clear."""
        pairs = params.get("pairs")
        if not isinstance(pairs, list):
            raise RpcError("bad-params", '"pairs": a list of [address, address, key in hex]')
        try:
            known = [
                (bytes.fromhex(a), bytes.fromhex(b), bytes.fromhex(key)) for a, b, key in pairs
            ]
        except (TypeError, ValueError):
            raise RpcError(
                "bad-params", '"pairs": a list of [address, address, key in hex]'
            ) from None
        for a, b, key in known:
            self._medium.engine.keys.learn(a, b, key)
        return {"learnt": len(known)}

    async def _pcap_stop(self, params: Params, call: Call) -> Json:
        path = params.get("path")
        medium = self._medium
        ended = [
            capture
            for capture in medium.captures.running
            if path is None or capture.path == medium.lab / str(path)
        ]
        if path is not None and not ended:
            raise RpcError("no-such-capture", f"{path} is not being written")
        medium.captures.end(ended)
        return {
            "captures": [
                {"path": str(c.path), "packets": c.packets, "problem": c.problem} for c in ended
            ],
            "decrypting": any(c.keys is not None for c in medium.captures.running),
        }

    async def _add_node(self, params: Params, call: Call) -> Json:
        config = _checked(parse_node, params.get("node", params), "node")
        medium = self._medium
        if config.name in medium.ports:
            raise RpcError("exists", f"there already is a node {config.name}")
        medium.add(config).port.start()
        medium.state.removed.discard(config.name)
        medium.state.added[config.name] = config
        self._save()
        return {"node": config.name}

    async def _remove_node(self, params: Params, call: Call) -> Json:
        name = self._port(params, "node").node.name
        await self._medium.remove(name)
        self._save()
        return {"node": name}

    async def _reset_stats(self, params: Params, call: Call) -> Json:
        self._medium.reset_stats()
        return {"since": self._medium.since}


def _checked(parse: Callable[[Any, str], Any], value: Any, where: str) -> Any:
    try:
        return parse(value, where)
    except ConfigError as error:
        raise RpcError("bad-params", str(error)) from None

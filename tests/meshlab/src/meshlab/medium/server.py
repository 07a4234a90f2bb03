# SPDX-License-Identifier: Apache-2.0
"""The medium's process: connects the engine to the relays of the nodes and to a control socket."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meshlab.medium.capture import Capture
from meshlab.medium.config import (
    CONFIG_NAME,
    RELAY_NAME,
    SOCKET_NAME,
    STATE_NAME,
    ConfigError,
    MediumConfig,
    NodeConfig,
    State,
    load_config,
    load_state,
    parse_loss,
    parse_node,
    parse_position,
    parse_snr,
    write_json,
)
from meshlab.medium.engine import Engine
from meshlab.medium.links import Links
from meshlab.medium.objects import Node, Radio, Transmission
from meshlab.medium.session import RadioSession
from meshlab.medium.stats import Stats, verdict
from meshlab.wire.relay import DROP_COUNTERS, RelayPort
from meshlab.wire.rpc import Call, Json, Params, RpcError, Server

log = logging.getLogger(__name__)

SLACK = 0.001
"""Seconds by which events may happen early: the resolution of the event loop's timer."""

BEAT = 0.1
"""Seconds between looks at deadlines."""

RATE_WINDOW = 5
"""Seconds over which rates and recent lag are reported."""

COUNTERS_EVERY = 5
"""Seconds between requests for the relays' counters."""


class NodePort:
    """One node: its relay's connection and its session."""

    def __init__(self, medium: Medium, node: Node, path: Path) -> None:
        self.node = node
        self.path = path
        self.counters: dict[str, int] = {}
        self.dropped = 0
        """Frames that the relay dropped since the medium's start or last reset."""
        self.relay_errors = 0
        self.last_relay_error: str | None = None
        self.sessions = 0
        self._medium = medium
        # Nonces of a medium must not be those of the one before it.
        self.port = RelayPort(path, self, first_nonce=time.time_ns() & 0x7FFFFFFFFFFFFFFF)
        self.session = RadioSession(
            medium.engine,
            node,
            later=medium.loop.call_later,
            clock=medium.loop.time,
            restart=self.port.resynchronise,
        )
        node.session = self.session
        node.wake = self._wake

    def _wake(self) -> None:
        self._medium.dirty.append(self)
        self._medium.kick()

    def flush(self) -> None:
        """Send what the engine has for the node."""
        out, self.node.out = self.node.out, []
        if out:
            self.port.send(out)

    # RelayUser.

    def session_started(self, family: int, counters: dict[str, int]) -> None:
        """Make the radios."""
        self.sessions += 1
        self.counters = counters
        if family == 0:
            self.relay_error(0, "the relay knows no number of the hwsim family")
            return
        log.info("%s: relay connected, hwsim is family %d", self.node.name, family)
        self.session.begin(family)
        self._medium.kick()

    def session_ended(self, reason: str) -> None:
        """Take the node off the air."""
        log.info("%s: off the air: %s", self.node.name, reason)
        self._medium.engine.stats.sync_losses += 1
        self.session.end()
        self._medium.kick()

    def netlink(self, buffer: bytes, start: int, end: int) -> None:
        """Hand a message to the engine."""
        medium = self._medium
        if self.node.family:
            try:
                medium.engine.receive(self.node, buffer, start, end, medium.loop.time())
            except ValueError:
                medium.engine.stats.malformed += 1
                raise
            if not medium.kicked:
                medium.kick()

    def relay_error(self, errno: int, text: str) -> None:
        """Remember what the relay complains of."""
        self.relay_errors += 1
        self.last_relay_error = f"{text} (error {errno})" if errno else text
        log.warning("%s: relay: %s", self.node.name, self.last_relay_error)

    def relay_counters(self, counters: dict[str, int]) -> None:
        """Count what the relay has dropped since it was last asked."""
        for name in DROP_COUNTERS:
            now, before = counters.get(name, 0), self.counters.get(name, 0)
            self.dropped += now - before if now >= before else now
        self.counters = counters

    def paused(self, paused: bool) -> None:
        """The node does not read, or reads again."""
        self.node.paused = paused

    def status(self) -> dict[str, Any]:
        """Return what a person would ask of this node."""
        return {
            "connected": self.port.in_session,
            "reachable": self.port.connected,
            "ready": self.port.in_session and self.session.ready,
            "problem": self.session.problem or self.last_relay_error,
            "paused": self.node.paused,
            "sessions": self.sessions,
            "unanswered": len(self.node.pending),
            "foreign_radios": self.session.foreign_radios,
            "relay": self.counters,
            "relay_dropped": self.dropped,
            "relay_errors": self.relay_errors,
            "radios": [
                {
                    "mac": radio.key.hex(":"),
                    "up": radio.up,
                    "plugged": radio.plugged,
                    "frequency": radio.frequency or None,
                    "sent": radio.sent,
                    "retries": radio.retries,
                    "received": radio.received,
                    "queued": radio.queued,
                }
                for radio in self.node.radios
            ],
        }


class _Fanout:
    """Several captures at once."""

    def __init__(self, captures: list[Capture]) -> None:
        self._captures = captures

    def transmission(self, sent: Transmission, outcomes: list[tuple[Radio, int]]) -> None:
        for capture in self._captures:
            capture.transmission(sent, outcomes)

    def acknowledgement(self, sent: Transmission, receiver: Radio, at: float, lost: bool) -> None:
        for capture in self._captures:
            capture.acknowledgement(sent, receiver, at, lost)


class Medium:
    """The medium of one lab. ``lab`` is its directory."""

    def __init__(self, lab: Path, config: MediumConfig, state: State | None = None) -> None:
        self.lab = lab
        self.config = config
        self.state = state if state is not None else State()
        self.loop = asyncio.get_running_loop()
        self.links = Links(config, self.state)
        self.engine = Engine(self.links, config.seed)
        self.ports: dict[str, NodePort] = {}
        self.dirty: list[NodePort] = []
        self.kicked = False
        self.captures: list[Capture] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._control: Server | None = None
        self._beat: asyncio.Task[None] | None = None
        self._started = time.time()
        self._since = self._started
        self._closing: set[asyncio.Task[None]] = set()
        self._window: list[tuple[float, int, int, int, float]] = []
        self._lag_second = 0.0
        for node in config.nodes:
            if node.name not in self.state.removed and node.name not in self.state.added:
                self._add(node)
        for node in self.state.added.values():
            self._add(node)
        for (name, index), plugged in self.state.plugged.items():
            port = self.ports.get(name)
            if port is not None and 0 <= index < len(port.node.radios):
                port.node.radios[index].plugged = plugged

    async def start(self) -> None:
        """Connect to the nodes and listen for requests. Raises ``OSError``."""
        handlers = {
            "status": self._rpc_status,
            "links": self._rpc_links,
            "link": self._rpc_link,
            "move": self._rpc_move,
            "radio": self._rpc_radio,
            "pcap": self._rpc_pcap,
            "pcap_stop": self._rpc_pcap_stop,
            "add_node": self._rpc_add_node,
            "remove_node": self._rpc_remove_node,
            "reset_stats": self._rpc_reset_stats,
        }
        self._control = Server(self.lab / SOCKET_NAME, handlers)
        await self._control.start()
        for port in self.ports.values():
            port.port.start()
        self._beat = self.loop.create_task(self._heartbeat())

    async def stop(self) -> None:
        """Close every connection and every file."""
        if self._beat is not None:
            self._beat.cancel()
            await asyncio.gather(self._beat, return_exceptions=True)
        if self._control is not None:
            await self._control.stop()
        await asyncio.gather(*(port.port.stop() for port in self.ports.values()), *self._closing)
        if self._timer is not None:
            self._timer.cancel()
        for capture in self.captures:
            capture.close()

    # The event loop and the engine.

    def kick(self) -> None:
        """Let the engine run before the loop sleeps; many causes, one run."""
        if not self.kicked:
            self.kicked = True
            self.loop.call_soon(self._run)

    def _run(self) -> None:
        engine = self.engine
        now = self.loop.time()
        due = engine.next_event()
        if due is not None and due <= now + SLACK:
            late = now - due
            if late > 0.0:
                engine.stats.lag.add(late)
                self._lag_second = max(self._lag_second, late)
            engine.advance(now + SLACK)
            due = engine.next_event()
        dirty, self.dirty = self.dirty, []
        for port in dirty:
            port.flush()
        self.kicked = False
        if due is not None and (self._timer is None or due < self._timer_at):
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = due
            self._timer = self.loop.call_at(due - SLACK / 2, self._timed)

    def _timed(self) -> None:
        self._timer = None
        if not self.kicked:
            self.kicked = True
            self._run()

    async def _heartbeat(self) -> None:
        due = self.loop.time()
        beats = 0
        while True:
            now = self.loop.time()
            late = now - due
            self.engine.stats.lag.add(late)
            self._lag_second = max(self._lag_second, late)
            self.engine.sweep(now)
            for port in self.ports.values():
                port.port.check(now)
                port.session.check()
            if self.dirty or self.engine.next_event() is not None:
                self.kick()
            beats += 1
            if beats % 10 == 0:
                self._second(now, beats // 10)
            # What was missed is not made up for.
            due = max(due + BEAT, now)
            await asyncio.sleep(due - self.loop.time())

    def _second(self, now: float, seconds: int) -> None:
        stats = self.engine.stats
        entry = (now, stats.frames, stats.deliveries, stats.lost(), self._lag_second)
        self._window.append(entry)
        del self._window[: -RATE_WINDOW - 1]
        self._lag_second = 0.0
        for capture in self.captures:
            capture.flush()
        if seconds % COUNTERS_EVERY == 0:
            for port in self.ports.values():
                port.port.request_counters()

    # Nodes.

    def _add(self, config: NodeConfig) -> NodePort:
        node = self.engine.add_node(config)
        port = NodePort(self, node, self.lab / config.directory / RELAY_NAME)
        self.ports[config.name] = port
        return port

    def _port(self, params: Params, key: str) -> NodePort:
        name = params.get(key)
        port = self.ports.get(name) if isinstance(name, str) else None
        if port is None:
            known = ", ".join(self.ports) or "none at all"
            raise RpcError("no-such-node", f"{key}: there is no node {name!r}; there are {known}")
        return port

    def _save(self) -> None:
        try:
            write_json(self.lab / STATE_NAME, self.state.to_json(self.config.run))
        except OSError as error:
            raise RpcError("cannot-save", f"done, but {STATE_NAME}: {error.strerror}") from None

    # Requests.

    async def _rpc_status(self, _params: Params, _call: Call) -> Json:
        return self.status()

    def status(self) -> dict[str, Any]:
        """Return the answer to ``status``."""
        stats = self.engine.stats
        reasons = verdict(stats, self.config.bounds, {n: p.dropped for n, p in self.ports.items()})
        rate = loss = lag = 0.0
        if len(self._window) > 1:
            first, last = self._window[0], self._window[-1]
            rate = (last[1] - first[1]) / max(last[0] - first[0], 1e-3)
            lost = last[3] - first[3]
            total = lost + last[2] - first[2]
            loss = 100 * lost / total if total > 0 else 0.0
            lag = max(entry[4] for entry in self._window[1:])
        return {
            "seed": self.config.seed,
            "started": round(self._started, 3),
            "since": round(self._since, 3),
            "frames_per_second": round(rate, 1),
            "recent_loss_percent": round(loss, 2),
            "lag_ms": round(lag * 1e3, 2),
            "lag_worst_ms": round(stats.lag.maximum * 1e3, 2),
            "valid": not reasons,
            "reason": reasons[0] if reasons else None,
            "reasons": reasons,
            **stats.to_json(),
            "cpu_seconds": round(time.process_time(), 3),
            "captures": [
                {
                    "path": str(capture.path),
                    "node": capture.node,
                    "packets": capture.packets,
                    "problem": capture.problem,
                }
                for capture in self.captures
            ],
            "nodes": {name: port.status() for name, port in self.ports.items()},
        }

    async def _rpc_links(self, _params: Params, _call: Call) -> Json:
        found = []
        limit = self.config.receiver.interference_snr_db
        for a, port in self.ports.items():
            radios = port.node.radios
            power = radios[0].config.tx_power_dbm if radios else 20.0
            frequency = next((r.frequency for r in radios if r.frequency), 2412)
            for b in self.ports:
                if a == b:
                    continue
                heard = self.links.hearing(a, b, power, frequency)
                snr = heard.snr
                if heard.state == "none" or (
                    heard.state == "model" and (snr is None or snr < limit)
                ):
                    continue
                signal = None if snr is None else round(self.config.receiver.noise_dbm + snr)
                traffic = self.engine.reaches.traffic.get((a, b))
                found.append(
                    {
                        "a": a,
                        "b": b,
                        "snr_db": None if snr is None else round(snr, 2),
                        "signal_dbm": signal,
                        "state": heard.state,
                        "loss": heard.loss,
                        "traffic": traffic.to_json() if traffic else None,
                    }
                )
        positions = {name: self.links.position(name) for name in self.ports}
        return {"links": found, "positions": positions}

    async def _rpc_link(self, params: Params, _call: Call) -> Json:
        a, b = self._port(params, "a").node.name, self._port(params, "b").node.name
        if a == b:
            raise RpcError("bad-params", "a link has two ends: a and b are the same node")
        ways = ("cut", "snr", "loss", "restore")
        wanted = [
            key for key in ways if (value := params.get(key)) is not None and value is not False
        ]
        if len(wanted) != 1:
            raise RpcError(
                "bad-params", 'say one of "cut": true, "snr": dB, "loss": 0 to 1 or "restore": true'
            )
        pairs = [(a, b), (b, a)] if params.get("both", True) else [(a, b)]
        snr, loss = None, 0.0
        if wanted == ["snr"]:
            snr = _checked(parse_snr, params["snr"], "snr")
        elif wanted == ["loss"]:
            loss = _checked(parse_loss, params["loss"], "loss")
        for pair in pairs:
            if wanted == ["restore"]:
                self.links.restore(*pair)
            elif wanted == ["loss"]:
                self.links.lose(*pair, loss)
            else:
                self.links.set(*pair, snr)
        self._save()
        return {"changed": [list(pair) for pair in pairs]}

    async def _rpc_move(self, params: Params, _call: Call) -> Json:
        name = self._port(params, "node").node.name
        x, y = _checked(parse_position, [params.get("x"), params.get("y")], "position")
        self.links.move(name, x, y)
        self._save()
        return {"position": [x, y]}

    async def _rpc_radio(self, params: Params, _call: Call) -> Json:
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
            self.state.plugged[port.node.name, index] = plug
            self._save()
        return {"plugged": plug, "connected": port.port.in_session}

    async def _rpc_pcap(self, params: Params, _call: Call) -> Json:
        path = params.get("path")
        if not isinstance(path, str) or not path:
            raise RpcError("bad-params", '"path": say where the file is to be')
        node = None if params.get("node") is None else self._port(params, "node").node.name
        target = self.lab / path
        if any(capture.path == target for capture in self.captures):
            raise RpcError("busy", f"{target} is being written already")
        if target.exists() and not target.is_file():
            raise RpcError("bad-params", f"{target} is not a regular file")
        try:
            capture = Capture(target, node, self.loop.time, self.config.receiver.noise_dbm)
        except OSError as error:
            raise RpcError("cannot-write", f"{target}: {error.strerror}") from None
        self.captures.append(capture)
        self._observe()
        return {"path": str(target), "node": node}

    async def _rpc_pcap_stop(self, params: Params, _call: Call) -> Json:
        path = params.get("path")
        ended = [c for c in self.captures if path is None or c.path == self.lab / str(path)]
        if path is not None and not ended:
            raise RpcError("no-such-capture", f"{path} is not being written")
        for capture in ended:
            self.captures.remove(capture)
            capture.close()
        self._observe()
        return {
            "captures": [
                {"path": str(c.path), "packets": c.packets, "problem": c.problem} for c in ended
            ]
        }

    def _observe(self) -> None:
        if len(self.captures) == 1:
            self.engine.observer = self.captures[0]
        else:
            self.engine.observer = _Fanout(list(self.captures)) if self.captures else None

    async def _rpc_add_node(self, params: Params, _call: Call) -> Json:
        config = _checked(parse_node, params.get("node", params), "node")
        if config.name in self.ports:
            raise RpcError("exists", f"there already is a node {config.name}")
        port = self._add(config)
        port.port.start()
        self.state.removed.discard(config.name)
        self.state.added[config.name] = config
        self._save()
        return {"node": config.name}

    async def _rpc_remove_node(self, params: Params, _call: Call) -> Json:
        port = self._port(params, "node")
        name = port.node.name
        del self.ports[name]
        task = self.loop.create_task(port.port.stop())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        await task
        self.engine.remove_node(name)
        self.state.forget(name)
        self.state.removed.add(name)
        self._save()
        return {"node": name}

    async def _rpc_reset_stats(self, _params: Params, _call: Call) -> Json:
        self.engine.stats = Stats()
        for traffic in self.engine.reaches.traffic.values():
            traffic.reset()
        self._window.clear()
        self._since = time.time()
        for port in self.ports.values():
            port.dropped = 0
        return {"since": self._since}


def _checked(parse: Callable[[Any, str], Any], value: Any, where: str) -> Any:
    try:
        return parse(value, where)
    except ConfigError as error:
        raise RpcError("bad-params", str(error)) from None


async def serve(lab: Path, parent: int | None) -> int:
    """Run the medium of the lab in ``lab`` until SIGTERM, or until process ``parent`` is gone.

    Returns the exit status.
    """
    try:
        config = load_config(lab / CONFIG_NAME)
    except ConfigError as error:
        log.error("%s", error)
        return 2
    try:
        state = load_state(lab / STATE_NAME, config.run)
    except ConfigError as error:
        log.error("%s; going on without what was changed while running", error)
        state = State()
    medium = Medium(lab, config, state)
    try:
        await medium.start()
    except OSError as error:
        log.error("cannot listen on %s: %s", lab / SOCKET_NAME, error.strerror)
        return 1
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        medium.loop.add_signal_handler(number, ended.set)
    log.info("medium of %d nodes, seed %s", len(medium.ports), config.seed)
    # What is here now stays: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    try:
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await ended.wait()
            if parent is not None and os.getppid() != parent:
                log.info("the process that started the medium is gone")
                break
    finally:
        await medium.stop()
    return 0

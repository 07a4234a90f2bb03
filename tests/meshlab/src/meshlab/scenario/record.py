# SPDX-License-Identifier: Apache-2.0
"""What a person did to a live lab, written as a scenario that does it again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from meshlab.lab.topology import KINDS, node_name
from meshlab.scenario.errors import ScenarioError
from meshlab.wire.rpc import Json
from thicket.base.toml import toml_value
from thicket.base.visible import visible
from thicket.config.schema import find_key

Table = dict[str, Any]


def recorded(told: Json, name: str) -> str:
    """Return the scenario of what was done to a lab.

    :param told: The lab's answer to ``deeds``.
    :param name: What the scenario is called.
    :raises ScenarioError: the lab has a shape that ``meshlab up`` does not make, or has not formed.
    """
    if told["topology"] not in KINDS:
        raise ScenarioError("a lab that a scenario made is not recorded: its file is there already")
    if told["formed"] is None:
        raise ScenarioError("the mesh has not formed: a scenario begins when it has")
    lines = [f"# Recorded from a lab: {visible(str(told['description']), keep='')}"]
    if told["forgotten"]:
        lines.append(f"# The first {told['forgotten']} deeds are forgotten.")
    lines += _table("scenario", {"name": name, "seed": told["seed"]})
    shape = {"kind": told["topology"], "nodes": told["nodes"]}
    for key, usual in (("fading", "none"), ("decoding", "hard")):
        if told[key] != usual:
            shape[key] = told[key]
    lines += _table("topology", shape)
    mesh = {"image": told["image"], "security": told["security"]}
    lines += _table("mesh", {**mesh, "ht": True} if told["ht"] else mesh)
    for node, image in told["images"].items():
        lines += _table("node", {"name": node, "image": image}, many=True)
    for deed in told["deeds"]:
        at = round(deed["at"] - told["formed"], 1)
        if at < 0:
            lines += ["", f"# {-at:g} s before the mesh had formed: {deed['method']}, left out"]
            continue
        for step, remark in _steps(deed["method"], deed["params"]):
            if remark:
                lines += ["", f"# {at:g} s: {visible(remark, keep='')}"]
            if step:
                lines += _table("step", {"at": at, **step}, many=True)
    if told["whole"]:
        # As it was when the record was made: a person may want to expect more.
        lines += _table("expect", {"that": "whole", "within": 120}, many=True)
    return "\n".join(lines) + "\n"


def _table(name: str, values: Table, *, many: bool = False) -> list[str]:
    head = f"[[{name}]]" if many else f"[{name}]"
    return ["", head, *(f"{key} = {toml_value(value)}" for key, value in values.items())]


def _node(value: object) -> str:
    text = str(value)
    return node_name(int(text)) if text.isdecimal() else text


def _steps(method: str, params: Table) -> Iterator[tuple[Table | None, str]]:
    """Yield the steps of a deed, each with a remark; None where there is no step for it."""
    match method:
        case "link":
            yield _link(params), ""
        case "move":
            node, path = _node(params["node"]), [[float(params["x"]), float(params["y"])]]
            yield {"do": "move", "node": node, "path": path}, ""
        case "power":
            verb = {"on": "power-on", "off": "power-off", "kill": "crash"}[params["action"]]
            yield {"do": verb, "nodes": _node(params["node"])}, ""
        case "chip":
            fault = params.get("fault") or "none"
            yield {"do": "chip", "nodes": _node(params["node"]), "fault": fault}, ""
        case "radio":
            verb = "plug-radio" if params.get("action") == "plug" else "pull-radio"
            yield {"do": verb, "nodes": _node(params["node"])}, ""
        case "config":
            yield _config(params)
        case "medium":
            yield {"do": "kill-medium"}, ""
        case "exec":
            remark = "its input is not recorded" if params.get("fed") else ""
            step = {"do": "command", "nodes": params["node"], "run": params["command"]}
            if 0 <= params["status"] <= 255:
                step["status"] = params["status"]
            yield step, remark
        case _:
            yield None, f"{method}, for which there is no step"


def _link(params: Table) -> Table:
    link = f"{_node(params['a'])}-{_node(params['b'])}"
    found: Table = {"do": "restore" if params.get("restore") else "cut", "links": link}
    if not params.get("restore") and not params.get("cut"):
        found["do"] = "degrade"
        if params.get("snr") is not None:
            found["snr"] = float(params["snr"])
        if params.get("loss") is not None:
            found["loss"] = 100 * float(params["loss"])
        if params.get("fading") is not None:
            found["fading"] = str(params["fading"])
    if not params.get("both", True):
        found["oneway"] = True
    return found


def _config(params: Table) -> tuple[Table | None, str]:
    told, secret = {}, []
    for setting in params["settings"]:
        path, _, value = setting.partition("=")
        try:
            hidden = find_key(path).secret
        except ValueError:
            hidden = True
        if hidden:
            secret.append(path)
        else:
            told[path] = value
    remark = f"what was set is not recorded: {', '.join(secret)}" if secret else ""
    step = {"do": "config", "nodes": _node(params["node"])}
    if not told:
        return None, remark
    # TOML's short form of a table, with keys in quotes.
    return {**step, "set": told}, remark

# SPDX-License-Identifier: Apache-2.0
"""thicket.metrics: what Prometheus' own parsers read of it, and a server that nobody wears out."""

import asyncio
import contextlib
import gzip
import json
import re
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request as Question
from urllib.request import urlopen

import network_namespace
import pytest
from daemons import OPEN, PREFIX, Fleet
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_plain
from status_documents import document

from thicket.base.fields import ConfigError
from thicket.base.problems import Problems
from thicket.base.visible import visible
from thicket.cli.main import main
from thicket.config import parse
from thicket.config.schema import find_key
from thicket.distribution.etf import Atom
from thicket.distribution.handshake import DistributionError
from thicket.metrics import gather, http, machine, netjson, places
from thicket.metrics.families import BY_NAME, FAMILIES
from thicket.metrics.http import Answer, RefusedError, Request, Server
from thicket.metrics.numbers import MOST, numbers
from thicket.metrics.text import LONGEST, Family, Numbers, exposition, label_value, wanted

TREE = Path(__file__).parents[2]
MACHINE = machine.Machine(
    time=1_800_000_000.25,
    synchronised=True,
    load=(0.5, 0.25, 0.125),
    cpus=4,
    cpu={"user": 12.5, "idle": 99.0},
    memory={"MemTotal": 1 << 30, "MemFree": 1 << 20, "MemAvailable": 1 << 29},
    data=(1000, 600, 500),
    data_errors=0,
    cards={"mmcblk0": machine.Card(0.3, 1)},
    temperatures={"cpu-thermal": 48.3},
    undervoltage=True,
    interfaces=[
        machine.Interface("mesh0", True, "02:74:68:00:00:01", 1500,
                          dict.fromkeys(machine.COUNTERS, 7))
    ],
)  # fmt: skip


def read(text: str, *, openmetrics: bool) -> dict[str, Any]:
    """What Prometheus' parser makes of it: the families by their names."""
    found = list((read_openmetrics if openmetrics else read_plain)(text))
    assert len({family.name for family in found}) == len(found)
    return {family.name: family for family in found}


def value(families: dict[str, Any], sample: str, **labels: str) -> float:
    """The one sample with this name and these labels."""
    (found,) = [
        one.value
        for family in families.values()
        for one in family.samples
        if one.name == sample and labels.items() <= one.labels.items()
    ]
    return float(found)


class TestNumbers:
    @pytest.mark.parametrize("openmetrics", [False, True])
    def test_both_parsers_read_every_family(self, openmetrics: bool) -> None:
        text = exposition(FAMILIES, numbers(document(), MACHINE), openmetrics=openmetrics)
        families = read(text, openmetrics=openmetrics)
        for family in FAMILIES:
            # the plain format has no kind for what is told by labels, and calls counters otherwise
            plain = family.sample if family.kind == "info" else family.name
            kind = "gauge" if family.kind == "info" and not openmetrics else family.kind
            told = families[family.name if openmetrics else plain]
            assert told.type == kind
            assert told.documentation == family.help
            assert told.samples, f"the document of these tests tells no {family.name}"
            assert {one.name for one in told.samples} == {family.sample}
            assert set(told.samples[0].labels) == set(family.labels)
            if openmetrics:
                assert told.unit == family.unit
        assert len(families) == len(FAMILIES)

    @pytest.mark.parametrize("openmetrics", [False, True])
    def test_values_are_in_base_units(self, openmetrics: bool) -> None:
        text = exposition(FAMILIES, numbers(document(), MACHINE), openmetrics=openmetrics)
        families = read(text, openmetrics=openmetrics)
        peer = {"mac": "02:74:68:00:00:02", "address": "fd12:3456:789a:1::2"}
        for name, expected in {
            "thicket_peer_signal_dbm": -61,
            "thicket_peer_airtime_metric": 217,
            "thicket_peer_inactive_seconds": 0.12,
            "thicket_peer_transmit_bits_per_second": 65e6,
            "thicket_peer_receive_bytes_total": 1 << 40,
            "thicket_peer_up": 1,
        }.items():
            assert value(families, name, **peer) == expected, name
        assert value(families, "thicket_peer_up", mac="02:74:68:00:00:03") == 0
        assert value(families, "thicket_peers") == 1
        assert value(families, "thicket_path_hops", mac="02:74:68:00:00:04") == 2
        assert value(families, "thicket_paths") == 2
        assert value(families, "thicket_state", state="joined") == 1
        assert value(families, "thicket_state", state="degraded") == 0
        assert value(families, "thicket_cluster_nodes", state="up") == 2
        assert value(families, "thicket_cluster_direct") == 1
        assert value(families, "thicket_cluster_unconnected", error="timeout") == 1
        assert value(families, "thicket_cluster_refused_total", reason="revoked") == 2
        assert value(families, "thicket_beacons_dropped_total", reason="prefix") == 3
        assert value(families, "thicket_radio_frequency_hertz") == 2.412e9
        assert value(families, "thicket_daemon_resident_memory_bytes") == 25600 << 10
        assert value(families, "thicket_update_progress_ratio", subject="image/rpi64") == 0.12
        assert value(families, "thicket_undervoltage") == 1
        assert value(families, "thicket_certificate_expiry_timestamp_seconds") == 1798135200
        assert value(families, "thicket_metrics_omitted") == 0

    def test_what_is_not_known_is_left_out(self) -> None:
        early = document(
            identity=None, address=None, peers=[], paths=[], trust=None, passphrase=None,
            discovery=None, dns_sd=None, last_restart=None, slots=[], installation=None, updates=[],
            applications=[], installed=[], metrics=None, syslog=None, problems=[], hostname="",
            radio={"state": "starting", "interface": "mesh0"},
            cluster={"node": None, "security": "tls", "refused": {}, "nodes": [], "counters": {}},
        )  # fmt: skip
        bare = machine.Machine(1.0, False, None, 1, {}, {}, None, None, {}, {}, None, [])
        for openmetrics in (False, True):
            text = exposition(FAMILIES, numbers(early, bare), openmetrics=openmetrics)
            families = read(text, openmetrics=openmetrics)
            assert value(families, "thicket_radio_joined") == 0
            assert "thicket_peer_signal_dbm" not in families
            assert "thicket_temperature_celsius" not in families
            assert "None" not in text

    def test_a_mesh_of_thousands_does_not_make_thousands_of_series(self) -> None:
        paths = [
            {"destination": f"02:00:00:00:{n >> 8:02x}:{n & 255:02x}", "address": None, "hops": 1,
             "metric": 5, "next_hop": "02:00:00:00:00:01"}
            for n in range(4000)
        ]  # fmt: skip
        found = numbers(document(paths=paths), MACHINE)
        assert max(map(len, found.values())) == MOST
        assert found["thicket_paths"] == {(): 4000}
        assert found["thicket_metrics_omitted"] == {(): 2 * (4000 - MOST)}

    def test_names_follow_the_rules(self) -> None:
        samples = [family.sample for family in FAMILIES]
        assert len(set(samples)) == len(samples) == len(BY_NAME)
        for family in FAMILIES:
            assert re.fullmatch(r"thicket_[a-z0-9_]+", family.name)
            assert not family.name.endswith(("_total", "_info", "_count", "_sum", "_bucket"))
            assert "node" not in family.labels  # what /fleet/metrics puts in front of them
            assert family.name.endswith(family.unit)
            assert family.unit or not family.name.endswith(("_seconds", "_bytes", "_ratio"))

    def test_the_guide_has_them_all(self) -> None:
        guide = (TREE / "docs/metrics.md").read_text(encoding="utf-8")
        rows = {
            (name, kind, labels, words)
            for name, kind, labels, words in re.findall(
                r"^\| `(\w+)` \| (\w+) \| (.*?) \| (.*) \|$", guide, re.M
            )
        }
        assert rows == {
            (f.sample, f.kind, ", ".join(f"`{label}`" for label in f.labels), f.help)
            for f in FAMILIES
        }


#: What NetJSON's schemas say of its objects (https://github.com/netjson/netjson, ``schema/``), and
#: OpenWISP's stricter one of DeviceMonitoring: a type, a list of one, or members, which must be
#: there where their name has no question mark.
GRAPH = {
    "type": str, "protocol": str, "version": str, "revision?": str, "metric": str,
    "nodes": [{"id": str, "label?": str, "local_addresses?": [str], "properties?": dict}],
    "links": [
        {"source": str, "target": str, "cost": (int, float), "cost_text?": str, "properties?": dict}
    ],
}  # fmt: skip
MONITORING = {
    "type": str,
    "general?": {"hostname?": str, "local_time?": int, "uptime?": int},
    "resources?": {
        "load?": [(int, float)], "cpus?": int,
        "memory?": {"total": int, "free": int, "buffered": int, "shared": int, "cached?": int,
                    "available?": int},
        "disk?": [{"mount_point": str, "filesystem": str, "used_bytes": int,
                   "available_bytes": int, "used_percent": int, "size_bytes": int}],
    },
    "interfaces?": [
        {
            "name": str, "type?": str, "up?": bool, "mac?": str, "mtu?": int,
            "statistics?": {f"{counter}?": int for counter in machine.COUNTERS},
            "wireless?": {
                "channel": int, "country": str, "frequency": int, "mode": str, "noise": int,
                "ssid": str, "tx_power": int,
                "clients?": [
                    {"mac": str, "auth": bool, "authorized": bool, "ht": bool, "vht": bool,
                     "wmm": bool, "mfp": bool, "assoc?": bool, "signal?": int, "bitrate?": int}
                ],
            },
        }
    ],
}  # fmt: skip


def fits(found: Any, schema: Any, where: str = "") -> None:
    """Check an object as a validator does; a member that the schema does not know is a fault."""
    if isinstance(schema, dict):
        assert isinstance(found, dict), where
        known = {name.rstrip("?"): (name, part) for name, part in schema.items()}
        assert found.keys() <= known.keys(), where
        for member, (name, part) in known.items():
            if member in found:
                fits(found[member], part, f"{where}.{member}")
            else:
                assert name.endswith("?"), f"{where}.{member} is missing"
    elif isinstance(schema, list):
        assert isinstance(found, list), where
        assert all(one not in found[:n] for n, one in enumerate(found)), where
        for one in found:
            fits(one, schema[0], f"{where}[]")
    else:
        assert isinstance(found, schema), where
        assert schema is bool or not isinstance(found, bool), where


class TestNetJson:
    def test_the_graph_of_one_node(self) -> None:
        here = document()
        made = netjson.graph({here["cluster"]["node"]: numbers(here, MACHINE)}, "0.1.0")
        fits(json.loads(json.dumps(made)), GRAPH)
        assert made["type"] == "NetworkGraph"
        me, peer = made["nodes"]
        assert (me["id"], me["label"]) == (here["address"], here["hostname"])
        assert me["local_addresses"] == ["02:74:68:00:00:01"]
        assert peer["id"] == "fd12:3456:789a:1::2"
        (link,) = made["links"]  # the other station is no peer
        assert (link["source"], link["target"]) == (me["id"], peer["id"])
        assert (link["cost"], link["cost_text"]) == (217, "2.222 ms")
        assert link["properties"] == {"signal_dbm": -61}

    def test_two_nodes_tell_both_directions(self) -> None:
        here = document()
        there = document(
            hostname="n-000000000002", address="fd12:3456:789a:1::2",
            radio={**here["radio"], "mac": "02:74:68:00:00:02"},
            # it does not know the address of its peer, and one knows the other by its radio
            peers=[{**here["peers"][0], "mac": "02:74:68:00:00:01", "address": None, "metric": 99}],
        )  # fmt: skip
        views = {f"thicket@{d['address']}": numbers(d, MACHINE) for d in (here, there)}
        made = netjson.graph(views, "0.1.0")
        fits(made, GRAPH)
        assert {(link["source"], link["target"]): link["cost"] for link in made["links"]} == {
            (here["address"], there["address"]): 217,
            (there["address"], here["address"]): 99,
        }
        assert len(made["nodes"]) == 2

    def test_one_node_for_openwisp(self) -> None:
        memory = {"MemTotal": 9, "MemFree": 5, "MemAvailable": 6, "Buffers": 1, "Cached": 2,
                  "Shmem": 1}  # fmt: skip
        made = netjson.monitoring(document(), MACHINE._replace(memory=memory))
        fits(json.loads(json.dumps(made)), MONITORING)
        assert made["type"] == "DeviceMonitoring"
        assert made["general"] == {
            "hostname": "n-6f44e3c6b802", "local_time": 1_800_000_000, "uptime": 1234,
        }  # fmt: skip
        assert made["resources"]["disk"][0]["used_percent"] == 40
        (interface,) = made["interfaces"]
        assert interface["statistics"]["rx_bytes"] == 7
        assert (interface["wireless"]["channel"], interface["wireless"]["frequency"]) == (1, 2412)
        (client,) = interface["wireless"]["clients"]
        assert client["mac"] == "02:74:68:00:00:02"
        assert (client["ht"], client["vht"], client["signal"]) == (True, False, -61)

    def test_what_is_not_known_is_left_out(self) -> None:
        bare = machine.Machine(1.0, False, None, 1, {}, {}, None, None, {}, {}, None, [])
        fits(netjson.monitoring(document(), bare), MONITORING)
        fits(netjson.monitoring(document(), machine.read()), MONITORING)
        fits(netjson.graph({"n-1": {}}, "0.1.0"), GRAPH)


class Members:
    """A cluster whose members answer what the test says."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked = self.most = 0

    async def request(self, target: Any, request: Any, timeout: float | None = None) -> Any:
        assert (target[0], request) == ("thicket_metrics", "numbers")
        self.asked += 1
        self.most = max(self.most, self.asked)
        try:
            await asyncio.sleep(0.001)
            answer = self.answers[target[1]]
            if isinstance(answer, float):
                await asyncio.sleep(answer)
            if isinstance(answer, Exception):
                raise answer
            return answer
        finally:
            self.asked -= 1


def told(**numbers_: Any) -> tuple[Atom, bytes]:
    """The answer of a member that tells this."""
    return Atom("ok"), zlib.compress(json.dumps(numbers_).encode())


class TestGathering:
    @given(st.dictionaries(st.sampled_from(sorted(BY_NAME)), st.lists(st.text()), max_size=5))
    def test_what_is_packed_comes_back(self, texts: dict[str, list[str]]) -> None:
        made: Numbers = {
            name: {tuple(label_value(text) for _ in BY_NAME[name].labels): 1 for text in found}
            for name, found in texts.items()
        }
        assert gather.unpack(gather.pack(made))[0] == made

    @pytest.mark.parametrize(
        "answer",
        [
            "words", (Atom("error"), b"no"), (Atom("ok"), "text"), (Atom("ok"), b""),
            (Atom("ok"), b"x" * gather.MOST_PACKED), (Atom("ok"), b"x" * (gather.MOST_PACKED + 1)),
            (Atom("ok"), zlib.compress(b"[" * 190_000)), (Atom("ok"), zlib.compress(b"5")),
            (Atom("ok"), zlib.compress(b"{}")[:-3]),
            (Atom("ok"), zlib.compress(b" " * 50_000_000)),  # of 50 KB
            (Atom("ok"), zlib.compress(b'{"thicket_cpus": [[[], ' + b"9" * 100_000 + b"]]}")),
            told(thicket_cpus=5), told(thicket_cpus=[5]), told(thicket_cpus=[[[], "5"]]),
            told(thicket_cpus=[[[], True]]), told(thicket_cpus=[[["x"], 5]]),
            told(thicket_cpus=[[[], 2**70]]), told(thicket_state=[[[], 1]]),
            told(thicket_state=[[[5], 1]]), told(thicket_beacons_sent=[[[], -1]]),
            told(thicket_beacons_sent=[[[], float("nan")]]),
            told(thicket_path_hops=[[[f"{n}", ""], 1] for n in range(MOST + 1)]),
            DistributionError("noproc", "it is of Erlang"), OSError("no route"),
        ],
    )  # fmt: skip
    async def test_nonsense_is_no_answer(self, answer: Any) -> None:
        members = Members(liar=answer, good=told(thicket_cpus=[[[], 4]]))
        found = await gather.gather(members, ["liar", "good"], 60)
        assert found == {"liar": None, "good": {"thicket_cpus": {(): 4}}}

    async def test_a_liar_spoils_nothing_for_others(self) -> None:
        label = 'x"} 1\nthicket_up{node="good"} 0\n# EOF\n' + "y" * 500
        members = Members(
            good=(Atom("ok"), gather.pack(numbers(document(), MACHINE))),
            liar=told(
                thicket_state=[[[label], 5], [[label], 6]], thicket_up=[[["good"], 0]], junk=[1],
                thicket_node=[[["a", "b", "c", "d", "e", "f"], 99]], thicket_cpus=[[[], 1e999]],
            ),
        )  # fmt: skip
        views = await gather.gather(members, ["good", "liar"], 60)
        for openmetrics in (False, True):
            families = (gather.UP, *FAMILIES)
            text = exposition(
                families, gather.merged({**views, "away": None}), openmetrics=openmetrics,
                first="node",
            )  # fmt: skip
            found = read(text, openmetrics=openmetrics)
            up = {one.labels["node"]: one.value for one in found["thicket_up"].samples}
            assert up == {"good": 1, "liar": 1, "away": 0}
            assert value(found, "thicket_peers", node="good") == 1
            assert value(found, "thicket_node_info", node="liar") == 1
            (state,) = [s for s in found["thicket_state"].samples if s.labels["node"] == "liar"]
            assert state.labels["state"] == label_value(label)

    @pytest.mark.virtual_time
    async def test_the_slow_do_not_delay_it_for_ever_and_few_are_asked_at_once(self) -> None:
        answers: dict[str, Any] = {f"n{n}": told() for n in range(100)}
        members = Members(**answers, slow=1000.0)
        begin = time.monotonic()
        found = await gather.gather(members, ["slow", *answers], 8)
        assert time.monotonic() - begin <= 8.1
        assert [name for name, told_ in found.items() if told_ is None] == ["slow"]
        assert members.most == gather.AT_ONCE
        assert members.asked == 0

    async def test_all_together_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gather, "MOST_OF_ALL", 100)
        answers = {f"n{n}": told(thicket_cpus=[[[], 4]]) for n in range(10)}
        found = await gather.gather(Members(**answers), answers, 60)
        size = len(json.dumps({"thicket_cpus": [[[], 4]]}))
        assert sum(numbers_ is not None for numbers_ in found.values()) == 100 // size


class TestText:
    @given(st.text(), st.text(), st.floats() | st.integers(-(2**63), 2**64), st.booleans())
    def test_any_label_and_value_comes_back(
        self, first: str, second: str, number: float, openmetrics: bool
    ) -> None:
        family = Family("a_family", "gauge", 'of "words"\\n\nand lines', ("one", "two"))
        labels = (label_value(first), label_value(second))
        text = exposition([family], {"a_family": {labels: number}}, openmetrics=openmetrics)
        (found,) = read(text, openmetrics=openmetrics).values()
        assert found.documentation == family.help
        (sample,) = found.samples
        assert (sample.labels["one"], sample.labels["two"]) == labels
        assert sample.value == pytest.approx(float(number), rel=0, nan_ok=True)

    @given(st.text())
    def test_a_label_is_visible_and_short(self, text: str) -> None:
        found = label_value(text)
        assert found.isprintable()
        assert len(found) <= LONGEST
        if len(visible(text, keep="")) <= LONGEST:
            assert found == visible(text, keep="")

    def test_a_label_in_front(self) -> None:
        family = Family("a_family", "counter", "words", ("one",))
        text = exposition([family], {"a_family": {("me", "x"): 1}}, openmetrics=True, first="node")
        (sample,) = read(text, openmetrics=True)["a_family"].samples
        assert sample.name == "a_family_total"
        assert sample.labels == {"node": "me", "one": "x"}

    @pytest.mark.parametrize(
        ("accept", "openmetrics"),
        [
            ("", False),
            ("*/*", False),
            ("text/html,application/xhtml+xml;q=0.9,*/*;q=0.8", False),
            ("application/openmetrics-text", True),
            # Prometheus 2.45 and 3.1
            ("application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1"
             ";q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", True),
            ("application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;"
             "version=0.0.4;q=0.9", False),
            ("text/plain;version=0.0.4;q=0.3, application/openmetrics-text; q=0.4", True),
            ("application/openmetrics-text;version=2.0.0", False),
            ("application/openmetrics-text;q=0", False),
            ("application/openmetrics-text;q=nan,text/plain", False),
            (",;=,;;q=9", False),
        ],
    )  # fmt: skip
    def test_a_client_gets_the_format_that_it_likes(self, accept: str, openmetrics: bool) -> None:
        assert wanted(accept) is openmetrics

    @given(st.text())
    def test_any_header_is_read(self, accept: str) -> None:
        assert wanted(accept) in {True, False}


class TestMachine:
    def test_this_one(self) -> None:
        found = machine.read()
        assert found.load is not None
        assert found.cpu["user"] > 0
        assert 0 < found.memory["MemAvailable"] <= found.memory["MemTotal"]
        assert abs(found.time - time.time()) < 60

    def test_a_raspberry_pi(self, tmp_path: Path) -> None:
        for name, text in {
            "sys/class/thermal/thermal_zone0/temp": "48312\n",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone1/temp": "51000\n",
            "sys/class/thermal/thermal_zone1/type": "cpu-thermal\n",
            "sys/class/hwmon/hwmon0/name": "cpu_thermal\n",
            "sys/class/hwmon/hwmon1/name": "rpi_volt\n",
            "sys/class/hwmon/hwmon1/in0_lcrit_alarm": "1\n",
            "sys/class/net/mesh0/operstate": "up\n",
            "sys/class/net/mesh0/address": "02:74:68:00:00:01\n",
            "sys/class/net/mesh0/mtu": "1500\n",
            "sys/class/net/mesh0/statistics/rx_bytes": "77\n",
            "sys/class/net/lo/statistics/rx_bytes": "5\n",
            "proc/loadavg": "0.10 0.20 0.30 1/99 1234\n",
            "proc/stat": "cpu  100 0 50 900 1 2 3 4 0 0\ncpu0 1\n",
            "proc/meminfo": "MemTotal:  1024 kB\nMemFree: 512 kB\nHugePages_Total: 0\n",
            "data/file": "",
        }.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        found = machine.read(str(tmp_path))
        assert found.temperatures == {"cpu-thermal": 48.312, "cpu-thermal-1": 51.0}
        assert found.undervoltage is True
        assert found.load == (0.1, 0.2, 0.3)
        assert set(found.cpu) == set(machine.MODES)
        assert found.cpu["idle"] == 9 * found.cpu["user"]
        assert found.memory == {"MemTotal": 1 << 20, "MemFree": 1 << 19}
        assert found.interfaces == [
            machine.Interface("mesh0", True, "02:74:68:00:00:01", 1500, {"rx_bytes": 77})
        ]
        assert found.data is not None

    @pytest.mark.parametrize("text", ["", "x", "nan nan", "cpu", "\xff\xfe", "MemTotal: x kB"])
    def test_files_that_tell_nothing(self, tmp_path: Path, text: str) -> None:
        for name in ("proc/loadavg", "proc/stat", "proc/meminfo",
                     "sys/class/thermal/thermal_zone0/temp"):  # fmt: skip
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode("latin-1"))
        found = machine.read(str(tmp_path))
        assert (found.load, found.cpu, found.memory) == (None, {}, {})
        assert (found.temperatures, found.interfaces, found.data) == ({}, [], None)


class TestRequests:
    def refusal(self, head: bytes) -> int:
        with pytest.raises(RefusedError) as error:
            http.parse(head)
        return error.value.status

    def test_what_a_client_asks_for(self) -> None:
        request = http.parse(b"GET /metrics?x=1 HTTP/1.1\r\nHOST: n\r\nAccept:  a \r\n\r\n")
        assert request == ("GET", "/metrics", {"host": "n", "accept": "a"})
        assert http.parse(b"GET http://n:9969/metrics HTTP/1.1\r\nHost: n\r\n\r\n")[1] == "/metrics"
        assert http.parse(b"HEAD / HTTP/1.0\r\n\r\n") == ("HEAD", "/", {})

    @pytest.mark.parametrize(
        ("head", "status"),
        [
            (b"\r\n\r\n", 400),
            (b"GET /\r\n\r\n", 400),
            (b"GET  / HTTP/1.1\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
            (b"GET / HTTP/2.0\r\nHost: n\r\n\r\n", 505),
            (b"GET / GOPHER\r\nHost: n\r\n\r\n", 400),
            (b"G(T / HTTP/1.1\r\nHost: n\r\n\r\n", 400),
            (b"GET /\x00 HTTP/1.1\r\nHost: n\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: n\r\n folded\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost : n\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: n\nX: y\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 65 + b"\r\n", 431),
            (b"POST / HTTP/1.1\r\nHost: n\r\n\r\n", 405),
            (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),  # TLS
        ],
    )
    def test_what_is_no_request(self, head: bytes, status: int) -> None:
        assert self.refusal(head) == status

    @given(st.binary(max_size=300))
    def test_garbage_is_a_request_or_refused(self, head: bytes) -> None:
        with contextlib.suppress(RefusedError):
            http.parse(head + b"\r\n\r\n")


@asynccontextmanager
async def serving(body: bytes = b"x" * 100_000) -> AsyncIterator[tuple[Server, int]]:
    """A server on the loopback, and its port."""

    async def handler(request: Request) -> Answer:
        if request.path == "/fails":
            raise ValueError("on purpose")
        if request.path != "/":
            raise RefusedError(404, "there is nothing")
        return Answer(body)

    server = Server(handler)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    listening = await server.serve(listener)
    try:
        yield server, listener.getsockname()[1]
    finally:
        listening.close()
        await server.close()


async def ask(port: int, head: bytes) -> bytes:
    """Everything that the server sends back before it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head)
        async with asyncio.timeout(60):
            return await reader.read()
    finally:
        writer.close()


async def until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


GET = b"GET / HTTP/1.1\r\nHost: n\r\n\r\n"


class TestServer:
    async def test_an_answer_has_all_that_a_client_needs(self) -> None:
        async with serving(b"numbers") as (server, port):
            head, _, body = (await ask(port, GET)).partition(b"\r\n\r\n")
            assert body == b"numbers"
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"\r\nContent-Length: 7\r\n" in head
            assert b"\r\nConnection: close" in head
            only = await ask(port, GET.replace(b"GET", b"HEAD"))
            assert only == head + b"\r\n\r\n"
            assert server.requests == 2

    async def test_long_answers_are_compressed_for_who_can_read_that(self) -> None:
        async with serving() as (_, port):
            packed = await ask(port, GET[:-2] + b"Accept-Encoding: deflate, gzip;q=0.5\r\n\r\n")
            head, _, body = packed.partition(b"\r\n\r\n")
            assert b"\r\nContent-Encoding: gzip\r\n" in head
            assert gzip.decompress(body) == b"x" * 100_000
            for refuses in (b"", b"Accept-Encoding: gzip;q=0, deflate\r\n"):
                assert (await ask(port, GET[:-2] + refuses + b"\r\n")).endswith(b"x" * 100_000)

    async def test_errors_are_answered_and_counted(self) -> None:
        async with serving() as (server, port):
            for path, status in ((b"/no", b"404"), (b"/fails", b"500")):
                said = await ask(port, GET.replace(b"/ ", path + b" "))
                assert said.startswith(b"HTTP/1.1 " + status)
            assert b"\r\nAllow: GET, HEAD\r\n" in await ask(port, b"PUT" + GET[3:])
            assert (await ask(port, b"\0\xff" * 9 + b"\r\n\r\n")).startswith(b"HTTP/1.1 400")
            long = await ask(port, GET[:-2] + b"A: " + b"b" * http.MAX_REQUEST + b"\r\n\r\n")
            assert long.startswith(b"HTTP/1.1 431")
            assert server.refused == {"404": 1, "500": 1, "405": 1, "400": 1, "431": 1}

    async def test_what_follows_a_request_does_not_cost_a_client_its_answer(self) -> None:
        async with serving() as (server, port):
            assert (await ask(port, GET + b"y" * 5000)).endswith(b"x" * 100_000)
            assert server.requests == 1

    async def test_a_client_that_sends_nothing_is_given_up(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(http, "SEND", 0.05)
        async with serving() as (server, port):
            for head in await asyncio.gather(ask(port, b""), ask(port, GET[:-1])):
                assert head == b""
            assert server.refused == {"slow": 2}

    async def test_a_client_that_reads_nothing_is_given_up(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(http, "READ", 0.05)
        async with serving(b"x" * (64 << 20)) as (server, port):
            with socket.socket() as s:
                s.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(s, ("127.0.0.1", port))
                await loop.sock_sendall(s, GET)
                await until(lambda: server.refused["slow"] == 1, "it is given up")
            await until(lambda: not server._clients, "nothing is kept")

    async def test_a_client_that_goes_is_forgotten(self) -> None:
        async with serving() as (server, port):
            with socket.create_connection(("127.0.0.1", port)) as s:
                s.send(b"GET")
            await until(lambda: server.refused["gone"] == 1, "it is gone")
            assert not server._clients

    async def test_many_of_one_do_not_keep_others_out(self) -> None:
        async with serving() as (server, port):
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
            await until(lambda: server.refused["clients"] == 20 - http.MAX_OF_ONE, "refused")
            assert len(server._clients) == http.MAX_OF_ONE
            other, _, body = (await asyncio.to_thread(_from, "127.0.0.2", port)).partition(
                b"\r\n\r\n"
            )
            assert other.startswith(b"HTTP/1.1 200")
            assert len(body) == 100_000
            for _, writer in silent:
                writer.close()

    async def test_no_more_clients_than_it_can_serve(self) -> None:
        async with serving() as (server, port):
            clients = [
                await asyncio.open_connection("127.0.0.1", port, local_addr=(f"127.0.1.{n}", 0))
                for n in range(1, 21)
            ]
            await until(
                lambda: server.refused["clients"] == 20 - http.MAX_CLIENTS, "the rest is refused"
            )
            assert len(server._clients) == http.MAX_CLIENTS
            for _, writer in clients:
                writer.close()
            await until(lambda: not server._clients, "they have gone")
            assert (await ask(port, GET)).startswith(b"HTTP/1.1 200")


def _from(address: str, port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 60, source_address=(address, 0)) as s:
        s.sendall(GET)
        found = b""
        while chunk := s.recv(65536):
            found += chunk
        return found


class TestPlaces:
    @pytest.mark.parametrize(
        "value",
        ['"lo"', "[5]", '[""]', '["a b"]', '["' + "x" * 16 + '"]', '["fe80::1"]', '["ff02::1"]',
         '["1.2.3"]', '["fd12::1%eth0"]', '["::g"]', '["a\\" accept"]', '[".."]', str(["a"] * 9)],
    )  # fmt: skip
    def test_what_is_refused(self, value: str) -> None:
        with pytest.raises(ConfigError, match="interfaces and of addresses"):
            parse.parse(f"[metrics]\nlisten = {value}\n".encode(), "f")

    def test_the_command_line_and_the_file_have_the_same_form(self) -> None:
        key = find_key("metrics.listen")
        places = ("mesh", "eth0", "192.0.2.7", "fd12::1", "::")
        assert key.check(key.from_text("mesh,eth0 192.0.2.7,fd12:0::1 mesh ::")) == places
        assert parse.parse(b'[metrics]\nlisten = ["mesh"]\n', "f").metrics.listen == ("mesh",)

    @pytest.mark.parametrize(("port", "whose"), [(9100, "the cluster"), (4369, "the port mapper")])
    def test_a_port_that_the_node_needs_is_refused(self, port: int, whose: str) -> None:
        text = f'[metrics]\nport = {port}\nlisten = ["lo"]\n'
        with pytest.raises(ConfigError, match=f"is the port of {whose}"):
            parse.parse(text.encode(), "f")
        parse.parse(f"[metrics]\nport = {port}\n".encode(), "f")  # nothing is served there

    async def test_an_interface_that_comes_and_goes_is_followed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(places, "LOOK", 0.02)
        monkeypatch.setattr(places, "PAUSES", (0.02, 0.02))
        problems = Problems(lambda: None)

        async def handler(request: Request) -> Answer:
            return Answer(b"numbers")

        def reached(address: str) -> bool:
            try:
                with socket.create_connection((address, 9969), 60) as s:
                    s.sendall(GET)
                    return s.recv(99).startswith(b"HTTP/1.1 200")
            except OSError:
                return False

        with network_namespace.namespace():
            network_namespace.ip("link set lo up")
            task = asyncio.create_task(
                places.serve(Server(handler), {"eth7": "eth7"}, 9969, problems)
            )
            for _ in range(2):
                await until(problems.all, "it is missing")
                (problem,) = problems.all()
                assert (problem["code"], problem["severity"]) == ("not-served", "warning")
                assert "eth7, port 9969" in problem["message"]
                network_namespace.ip("link add eth7 type veth peer name far7")
                network_namespace.ip("link set eth7 up")
                network_namespace.ip("address add 192.0.2.1/24 dev eth7")
                await until(lambda: not problems.all(), "it is served")
                assert await asyncio.to_thread(reached, "192.0.2.1")
                # what comes by another interface, as the loopback, is not for it
                assert not await asyncio.to_thread(reached, "127.0.0.1")
                network_namespace.ip("link delete eth7")
            task.cancel()
            await asyncio.wait({task})
        assert problems.all() == []


def fetched(address: str, path: str, **headers: str) -> tuple[str, str]:
    """Type and text of what a node answers."""
    question = Question(f"http://[{address}]:9969{path}", headers=headers)
    with urlopen(question, timeout=PATIENCE) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


SERVED = '[metrics]\nlisten = ["mesh"]\n'


class TestNode:
    def test_a_node_serves_its_numbers_in_both_formats(self, fleet: Fleet) -> None:
        node, silent = fleet.add(OPEN + SERVED), fleet.add(OPEN)
        fleet.until(lambda: fleet.formed(node, silent), "two nodes")
        network_namespace.ip(f"address add {PREFIX}::99/64 dev medium nodad")
        address = node.name.partition("@")[2]
        fleet.until(lambda: _answers(address), "it serves")
        kind, text = fetched(address, "/metrics")
        assert kind == "text/plain; version=0.0.4; charset=utf-8"
        families = read(text, openmetrics=False)
        assert value(families, "thicket_cluster_nodes", state="up") == 1
        assert value(families, "thicket_node_info", name=node.name) == 1
        kind, text = fetched(address, "/metrics", Accept="application/openmetrics-text")
        assert kind == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        assert value(read(text, openmetrics=True), "thicket_metrics_requests_total") >= 2
        for path, schema in (("graph", GRAPH), ("monitoring", MONITORING)):
            kind, text = fetched(address, f"/netjson/{path}")
            assert kind == "application/json"
            fits(json.loads(text), schema)
        with pytest.raises(HTTPError, match="404"):
            fetched(address, "/metric")
        assert not _answers(silent.name.partition("@")[2])
        # off, and on again, without a new start
        node.ask("config-apply", text=OPEN)
        fleet.until(lambda: not _answers(address), "it serves no more")
        assert node.ask("status")["metrics"] is None
        node.ask("config-apply", text=OPEN + SERVED)
        fleet.until(lambda: _answers(address), "it serves again")

    def test_one_node_tells_the_numbers_of_all(self, fleet: Fleet) -> None:
        gatherer = fleet.add(OPEN + SERVED + "fleet = true\n")
        other, secretive = fleet.add(OPEN), fleet.add(OPEN + "[metrics]\nshare = false\n")
        nodes = (gatherer, other, secretive)
        fleet.until(lambda: fleet.formed(*nodes), "three nodes")
        network_namespace.ip(f"address add {PREFIX}::99/64 dev medium nodad")
        address = gatherer.name.partition("@")[2]

        def up() -> dict[str, float]:
            families = read(fetched(address, "/fleet/metrics")[1], openmetrics=False)
            return {one.labels["node"]: one.value for one in families["thicket_up"].samples}

        fleet.until(lambda: _answers(address), "it serves")
        told_of = {gatherer.name: 1.0, other.name: 1.0, secretive.name: 0.0}
        fleet.until(lambda: up() == told_of, "two of three tell")
        kind, text = fetched(address, "/fleet/metrics", Accept="application/openmetrics-text")
        assert kind == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        families = read(text, openmetrics=True)
        for node in (gatherer, other):
            assert value(families, "thicket_node_info", node=node.name, name=node.name) == 1
            assert value(families, "thicket_cluster_nodes", node=node.name, state="up") == 2
        graph = json.loads(fetched(address, "/fleet/netjson")[1])
        fits(graph, GRAPH)
        assert {one["label"] for one in graph["nodes"]} == {
            f"n-{node.identity}" for node in (gatherer, other)
        }
        assert other.process is not None
        other.process.kill()
        fleet.until(lambda: up().get(other.name, 0.0) == 0, "one of three tells")

    def test_the_command_tells_the_same_where_nothing_is_served(
        self,
        fleet: Fleet,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        node = fleet.add(OPEN)
        monkeypatch.setenv("THICKET_ROOT", str(node.folder))
        fleet.until(lambda: node.ask("status")["state"] == "joined", "it has joined")
        for words in ([], ["--openmetrics"]):
            assert main(["metrics", *words]) == 0
            families = read(capsys.readouterr().out, openmetrics=bool(words))
            assert value(families, "thicket_radio_joined") == 1
        assert main(["metrics", "--json"]) == 2
        for word, schema in (("graph", GRAPH), ("monitoring", MONITORING)):
            assert main(["netjson", word]) == 0
            fits(json.loads(capsys.readouterr().out), schema)
        assert main(["netjson"]) == 2

    def test_a_node_that_does_not_use_it_imports_nothing_of_it(self) -> None:
        code = (
            f"import sys; sys.path[:0] = {sys.path!r}\n"
            "import thicket.daemon.daemon, thicket.daemon.live, thicket.distribution\n"
            "rooms = 'thicket.metrics.', 'thicket.syslog.'\n"
            "print(*(name for name in sys.modules if name.startswith(rooms)))"
        )
        done = subprocess.run(
            [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
        )
        assert sorted(done.stdout.split()) == [
            "thicket.metrics.section",
            "thicket.metrics.teller",
            "thicket.syslog.section",
        ]


def _answers(address: str) -> bool:
    try:
        fetched(address, "/")
    except OSError:
        return False
    return True

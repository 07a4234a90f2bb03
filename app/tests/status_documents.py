# SPDX-License-Identifier: Apache-2.0
"""A status document with every member filled in, for tests of what reads one."""

import copy
from typing import Any

MAC = "02:74:68:00:00:{:02x}"

_DOCUMENT: dict[str, Any] = {
    "schema": 1,
    "version": "0.1.0",
    "slot": "A",
    "slots": [
        {"name": "A", "state": "good", "runs": True, "trial": False, "why": "", "version": "7"},
        {"name": "B", "state": "bad", "runs": False, "trial": False, "why": "no", "version": None},
    ],
    "installation": {"state": "writing", "percent": 40, "version": "8", "words": "copying"},
    "updates": [
        {"subject": "image/rpi64", "version": "8", "state": "fetching", "percent": 12, "why": ""}
    ],
    "hostname": "n-6f44e3c6b802",
    "state": "joined",
    "problems": [
        {"part": "identity", "code": "no-chip", "message": "m", "severity": "warning", "since": 1.0}
    ],
    "times": {"daemon": 1.5, "identity": 1.9, "radio": 3.0, "first_peer": 4.5, "first_node": None},
    "restarts": 2,
    "uptime": 1234.5,
    "identity": {"source": "chip", "software": False, "serial": "01", "id": "02", "chip": {}},
    "address": "fd12:3456:789a:1:0:6f44:e3c6:b802",
    "prefix_length": 64,
    "configuration": {"source": "/etc/thicket/thicket.toml", "last_good_used": False},
    "data": {"state": "clean", "message": ""},
    "last_restart": {"run": 17, "reason": "power", "words": "power cut"},
    "radio": {
        "state": "joined", "phy": "phy0", "driver": "mt76x2u", "port": "1-1", "interface": "mesh0",
        "mac": MAC.format(1), "mesh_id": "green\nhouse", "frequency": 2412, "width": 20,
        "others": [{"mac": MAC.format(9), "name": "x", "security": "open", "signal_dbm": -80}],
        "security": "sae", "protection": "WPA3",
    },
    "peers": [
        {
            "mac": MAC.format(2), "address": "fd12:3456:789a:1::2", "state": "ESTAB",
            "signal_dbm": -61, "metric": 217, "inactive_ms": 120, "silent": False,
            "connected_s": 77,
            "tx_kbps": 65000, "rx_kbps": 39000, "rx_bytes": 1 << 40, "tx_bytes": 5, "tx_failed": 3,
            "authorized": True, "mfp": True,
        },
        {
            "mac": MAC.format(3), "address": None, "state": "LISTEN", "signal_dbm": None,
            "metric": None, "inactive_ms": None, "silent": False, "connected_s": None,
            "tx_kbps": None,
            "rx_kbps": None, "rx_bytes": 0, "tx_bytes": 0, "tx_failed": None, "authorized": None,
            "mfp": None,
        },
    ],
    "paths": [
        {"destination": MAC.format(4), "address": "fd12:3456:789a:1::4", "hops": 2, "metric": 400,
         "next_hop": MAC.format(2), "active": True},
        {"destination": MAC.format(5), "address": None, "hops": 0, "metric": 0,
         "next_hop": "00:00:00:00:00:00", "active": False},
    ],
    "cluster": {
        "node": "thicket@fd12:3456:789a:1:0:6f44:e3c6:b802",
        "security": "tls",
        "refused": {"revoked": 2},
        "nodes": [
            {"name": "thicket@fd12:3456:789a:1::2", "state": "up", "since": 9.0, "direct": True},
            {"name": "thicket@fd12:3456:789a:1::4", "state": "up", "since": 9.0, "direct": False},
            {"name": "thicket@fd12:3456:789a:1::5", "state": "connecting", "since": None,
             "direct": False, "error": "timeout", "message": "m", "attempts": 3},
        ],
        "counters": {
            "attempts": 9, "connected": 4, "accepted": 3, "simultaneous": 1, "abandoned": 0,
            "ended": 0, "links": 2, "roster_dropped": 0, "casts_sent": 1, "casts_passed": 2,
            "casts_delivered": 3, "casts_lost": 4, "casts_dropped": 5,
        },
    },
    "trust": {
        "state": "ready", "fleet": "acme", "root": "ab", "device": "0123", "software": False,
        "until": "2026-12-24T18:00:00Z",
        "revocations": {"number": 5, "issued": "2026-01-01T00:00:00Z", "names": 2, "lists": 1},
    },
    "gateway": {
        "uplink": {
            "interface": "eth0", "state": "good",
            "ipv4": {"good": True, "why": None, "has": "192.0.2.100"},
            "ipv6": {"good": True, "why": None, "has": "2001:db8:100::/64"},
            "nat64": True, "names": ["192.0.2.1"], "resolver": True,
            "checks": {"192.0.2.1": True},
        },
        "uses": {"ipv6": None, "ipv4": "fd12:3456:789a:1::2"},
        "addresses": ["2001:db8:100::1"], "names": ["::1"],
        "known": [
            {"node": "fd12:3456:789a:1::2", "ways": ["ipv4", "names"], "prefix": None, "hops": 0,
             "metric": None},
        ],
    },
    "time": {
        "state": "nodes", "known": True, "by": "nodes", "source": "fd12:3456:789a:1::2",
        "origin": "fd12:3456:789a:1::2", "stratum": 5, "offset": 0.000_02, "error": 0.000_4,
        "frequency": -3.5, "told": 60, "floor": 1764000000, "signed": None, "rtc": False,
        "clients": 1,
        "sources": [
            {"address": "fd12:3456:789a:1::2", "state": "followed", "stratum": 4, "reach": 255,
             "offset": 0.000_02},
            {"address": "fd12:3456:789a:1::3", "state": "silent", "stratum": 0, "reach": 0,
             "offset": 0.0},
        ],
    },
    "passphrase": {"change": None, "former": False, "refused": 1},
    "applications": [{"name": "sensors", "state": "running", "starts": 2}],
    "installed": [{"name": "sensors", "version": "3", "number": 1, "trial": False, "left": None}],
    "discovery": {
        "sent": 20, "answers": 1, "send_errors": 0, "received": 40, "repeated": 30, "malformed": 3,
        "dropped": {"prefix": 3}, "opened": 1,
        "forms": {"signed": {"senders": 2, "signatures_checked": 11}},
        "heard": [{"address": "fd12:3456:789a:1::2", "age": 1.0, "beacons": 9}],
    },
    "dns_sd": {"state": "published", "services": 2, "hints": 0, "announced": 2,
               "dropped": {"rate": 1}},
    "firewall": {"state": "on", "dropped": {"closed": 12, "beacon_flood": 1}},
    "metrics": {"requests": 5, "refused": {"404": 1}},
    "syslog": {"connected": True, "sent": 9, "waiting": 1, "lost": 0},
    "memory_kib": 25600,
    "cpu_seconds": 12.5,
}  # fmt: skip


def document(**members: Any) -> dict[str, Any]:
    """A document of its own, with other members."""
    return {**copy.deepcopy(_DOCUMENT), **members}

# SPDX-License-Identifier: Apache-2.0
"""The power that a node's kernel lets its radio send with, and who hears it then."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2 import IPRoute  # noqa: F401 (the whole package first: see thicket.netlink.pyroute)
from pyroute2.netlink.nl80211 import nl80211cmd

from meshlab.medium.config import RadioConfig, parse_config
from meshlab.medium.virtual import BROADCAST, VirtualAir, mac
from meshlab.wire import nl80211
from meshlab.wire.hwsim import HwsimError, parse

FAMILY = 30
"""nl80211's number in the made-up kernel; hwsim's is another."""


def interface(
    address: bytes, dbm: float | None, frequency: int | None = 5180, command: int = 7
) -> bytes:
    """Return a kernel's word on an interface, made by pyroute2."""
    message = nl80211cmd()
    message["cmd"], message["version"] = command, 1
    attributes: list[tuple[str, Any]] = [
        ("NL80211_ATTR_IFNAME", "mesh0"),
        ("NL80211_ATTR_MAC", address.hex(":")),
    ]
    if frequency is not None:
        attributes.append(("NL80211_ATTR_WIPHY_FREQ", frequency))
    if dbm is not None:
        level = int(dbm * 100) & 0xFFFFFFFF
        attributes.append(("NL80211_ATTR_WIPHY_TX_POWER_LEVEL", level))
    message["attrs"] = attributes
    message["header"]["type"] = FAMILY
    message.encode()
    return bytes(message.data)


@pytest.mark.parametrize("dbm", [20.0, 7.0, 0.0, -3.0])
def test_the_power_of_an_interface_is_read(dbm: float) -> None:
    assert nl80211.power(parse(interface(mac(1), dbm))) == (mac(1), dbm)


def test_what_says_nothing_of_a_power_is_none() -> None:
    """Before it is on a channel an interface has the 0 dBm that its kernel began with."""
    assert nl80211.power(parse(interface(mac(1), 0.0, frequency=None))) is None
    assert nl80211.power(parse(interface(mac(1), None))) is None
    assert nl80211.power(parse(interface(mac(1), 20.0, command=8))) is None


def test_an_attribute_of_another_size_is_refused() -> None:
    message = interface(mac(1), 20.0)
    at = message.index(struct.pack("<HH", 8, nl80211.WIPHY_TX_POWER_LEVEL))
    damaged = message[:at] + struct.pack("<HH", 6, nl80211.WIPHY_TX_POWER_LEVEL) + message[at + 4 :]
    with pytest.raises(HwsimError):
        nl80211.power(parse(damaged))


@pytest.mark.parametrize(
    ("own", "asked", "less"),
    [
        (20.0, 20.0, 0.0),
        (20.0, 10.0, 10.0),
        (20.0, 30.0, 0.0),
        (15.0, 20.0, 0.0),  # it cannot do more than its own
        (15.0, 10.0, 5.0),
        (27.0, 20.0, 0.0),  # an amplifier of 7 dB
        (27.0, 10.0, 10.0),
    ],
)
def test_a_radio_sends_with_what_it_can_and_is_asked_for(
    own: float, asked: float, less: float
) -> None:
    assert RadioConfig(mac(1), tx_power_dbm=own).attenuation_db(asked) == less


@given(st.floats(-50, 60), st.integers(-(2**31), 2**31 - 1), st.integers(-(2**31), 2**31 - 1))
def test_whatever_a_kernel_says_a_radio_never_gains(own: float, one: int, other: int) -> None:
    radio = RadioConfig(mac(1), tx_power_dbm=own)
    low, high = sorted((one / 100, other / 100))
    assert 0 <= radio.attenuation_db(high) <= radio.attenuation_db(low) <= 110


def signals(air: VirtualAir) -> dict[str, set[int]]:
    """Return with which signals everyone hears n1, and n1 the others."""
    air.injected.clear()
    for sender in (1, 2):
        air.send(sender, BROADCAST)
        air.run(0.1)
    found: dict[str, set[int]] = {}
    for one in air.injected:
        found.setdefault(f"n{one.frame[15]}-{one.node}", set()).add(one.signal)
    return found


def test_a_kernel_that_asks_for_less_is_heard_so_much_less() -> None:
    air = VirtualAir(3, [(1, 2, 40), (1, 3, 8)])
    assert signals(air) == {"n1-n2": {-51}, "n1-n3": {-83}, "n2-n1": {-51}}
    air.receive(1, interface(mac(1), 10.0))
    assert signals(air) == {"n1-n2": {-61}, "n2-n1": {-51}}
    air.receive(1, interface(mac(9), 0.0))  # of no radio that the medium made
    air.receive(1, interface(mac(1), 12.0))
    assert signals(air)["n1-n2"] == {-59}
    air.receive(1, interface(mac(1), 20.0))
    assert signals(air) == {"n1-n2": {-51}, "n1-n3": {-83}, "n2-n1": {-51}}


def test_acknowledgements_are_as_weak_as_what_their_radio_sends() -> None:
    """n2 asks for 0 dBm: it hears n1 as before, and n1 hears nothing of it."""
    air = VirtualAir(2, [(1, 2, 15)])
    air.receive(2, interface(mac(2), 0.0))
    cookie = air.send(1, 2)
    air.run(0.1)
    assert not air.reports["n1", cookie].acked
    assert len(air.injected) == 4
    assert air.engine.stats.ack_lost == 4


def test_who_is_too_weak_to_be_sensed_keeps_nobody_quiet() -> None:
    """Of two hidden senders' frames the weaker one is lost: 20 dB are more than capture needs."""
    air = VirtualAir(3, [(1, 2, 22), (3, 2, 22), (1, 3, 22)])
    air.receive(1, interface(mac(1), 0.0))
    for _ in range(50):
        air.send(1, BROADCAST, size=1000)
        air.run(0.0005)  # it is on the air
        air.send(3, BROADCAST, size=1000)
        air.run(0.02)
    from_weak = sum(one.frame[10:16] == mac(1) for one in air.injected if one.node == "n2")
    from_strong = sum(one.frame[10:16] == mac(3) for one in air.injected if one.node == "n2")
    assert (from_weak, from_strong) == (0, 50)


def test_a_radio_that_comes_anew_has_its_own_power() -> None:
    air = VirtualAir(2, [(1, 2, 40)])
    air.receive(1, interface(mac(1), 5.0))
    radio = air.node(1).radios[0]
    assert radio.attenuation_db == 15.0
    air.engine.radio_down(radio)
    air.engine.radio_up(radio)
    assert signals(air)["n1-n2"] == {-51}


def test_a_radios_own_power_carries_as_far_as_friis_says() -> None:
    """6 dB less reach half as far in free space: the same signal."""
    told = {
        "nodes": [
            {
                "name": f"n{i}", "position": [x, 0],
                "radios": [{"mac": mac(i).hex(":"), "tx_power_dbm": dbm}],
            }
            for i, x, dbm in ((1, 0, 14.0), (2, 100, 14.0), (3, 200, 20.0))
        ],
        "unlinked": "model", "propagation": {"model": "free-space"},
    }  # fmt: skip
    air = VirtualAir(3, config=parse_config(told))
    near = air.links.hearing("n1", "n2", 14.0, 5180)
    far = air.links.hearing("n3", "n1", 20.0, 5180)
    assert near.snr == pytest.approx(far.snr, abs=20 * math.log10(2) - 6 + 0.01)

# SPDX-License-Identifier: Apache-2.0
"""nl80211: which radios there are, their mesh interfaces, stations and mesh paths.

Numbers and meanings: ``include/uapi/linux/nl80211.h``. Only what a mesh node needs is declared;
attributes not declared here are skipped unread.
"""

import errno
import struct
import sys
from collections.abc import Callable
from typing import Any, TypedDict, TypeVar

from thicket.base.files import link_name, read
from thicket.netlink.messages import (
    HEADER,
    NETLINK_GENERIC,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NetlinkError,
    Requests,
    attribute,
    attributes,
    facts_of,
    family,
    hardware_address,
    integer,
    number,
    prepared,
)
from thicket.netlink.pyroute import genlmsg, nla
from thicket.radio.scan import ANY_MESH, Heard, heard
from thicket.radio.sign import Sign, SignReader

_T = TypeVar("_T")

# enum nl80211_commands
CMD_GET_WIPHY = 1
CMD_NEW_WIPHY = 3
CMD_DEL_WIPHY = 4
CMD_GET_INTERFACE = 5
CMD_SET_INTERFACE = 6
CMD_NEW_INTERFACE = 7
CMD_DEL_INTERFACE = 8
CMD_GET_STATION = 17
CMD_GET_MPATH = 21
CMD_NEW_MPATH = 23
CMD_DEL_MPATH = 24
CMD_REQ_SET_REG = 27
CMD_SET_MESH_CONFIG = 29
CMD_GET_REG = 31
CMD_GET_SCAN = 32
CMD_TRIGGER_SCAN = 33
CMD_NEW_SCAN_RESULTS = 34
CMD_SCAN_ABORTED = 35

# enum nl80211_iftype
IFTYPE_MESH_POINT = 7
IFTYPE_NAMES = {
    1: "ad-hoc", 2: "station", 3: "access point", 6: "monitor", 7: "mesh point", 8: "P2P client",
    9: "P2P group owner", 10: "P2P device",
}  # fmt: skip

# enum nl80211_feature_flags
_FEATURE_MAC_ON_CREATE = 1 << 27

# enum nl80211_band_attr and enum nl80211_frequency_attr
_BAND_ATTR_FREQS = 1
_5_GHZ_FROM = 4900
_BAND_ATTR_HT_CAPA = 4
_BAND_ATTR_VHT_CAPA = 8
_FREQUENCY_ATTR_FREQ = 1
_FREQUENCY_ATTR_DISABLED = 2
_FREQUENCY_ATTR_NO_IR = 3
_FREQUENCY_ATTR_RADAR = 5
_FREQUENCY_ATTR_DFS_STATE = 7
_FREQUENCY_ATTR_DFS_TIME = 8
# IEEE 802.11-2020, 9.4.2.55.2: Supported Channel Width Set
_HT_CAP_40_MHZ = 1 << 1
# enum nl80211_dfs_state
_DFS_UNAVAILABLE = 1
#: Seconds for which a channel must not be used once a radar was heard (EN 301 893, table D.1; the
#: kernel's IEEE80211_DFS_MIN_NOP_TIME_MS).
RADAR_SECONDS = 30 * 60.0
#: enum nl80211_chan_width, in MHz
_WIDTHS = {0: 20, 1: 20, 2: 40, 3: 80, 4: 160, 5: 160}

#: enum nl80211_plink_state; the words are those that ``iw`` prints.
PLINK_STATES = (
    "LISTEN", "OPN_SNT", "OPN_RCVD", "CNF_RCVD", "ESTAB", "HOLDING", "BLOCKED",
)  # fmt: skip
ESTABLISHED = "ESTAB"

# enum nl80211_sta_flags, as bits of struct nl80211_sta_flag_update
_STA_AUTHORIZED = 1 << 1
_STA_MFP = 1 << 4

# enum nl80211_mpath_flags
MPATH_ACTIVE = 1 << 0

#: What the kernel calls a regulatory domain of a driver's own making, or an intersection of several
#: (is_unknown_alpha2 and is_intersected_alpha2 of net/wireless/reg.c).
MADE_DOMAINS = ("99", "98")

SYSFS = "/sys/class/ieee80211"

#: Most stations for which a request is kept ready.
MOST_SIGNS = 256

#: Multicast group with the coming and going of radios and interfaces.
CONFIG_GROUP = "config"
#: Multicast group with the ends of scans.
SCAN_GROUP = "scan"


class _MeshParameters(nla):  # type: ignore[misc]
    """enum nl80211_meshconf_params, what wpa_supplicant does not set itself."""

    nla_map = (
        (6, "NL80211_MESHCONF_TTL", "uint8"),
        (11, "NL80211_MESHCONF_HWMP_ACTIVE_PATH_TIMEOUT", "uint32"),
        (14, "NL80211_MESHCONF_HWMP_ROOTMODE", "uint8"),
        (15, "NL80211_MESHCONF_ELEMENT_TTL", "uint8"),
        (16, "NL80211_MESHCONF_HWMP_RANN_INTERVAL", "uint16"),
        (17, "NL80211_MESHCONF_GATE_ANNOUNCEMENTS", "uint8"),
        (19, "NL80211_MESHCONF_FORWARDING", "uint8"),
        (20, "NL80211_MESHCONF_RSSI_THRESHOLD", "int32"),
        (28, "NL80211_MESHCONF_PLINK_TIMEOUT", "uint32"),
        (29, "NL80211_MESHCONF_CONNECTED_TO_GATE", "uint8"),
    )


# enum nl80211_attrs, for what is read without pyroute2
_ATTR_IFINDEX = 3
_ATTR_MAC = 6
_ATTR_STA_INFO = 21
_ATTR_MPATH_NEXT_HOP = 26
_ATTR_MPATH_INFO = 27
_ATTR_REG_ALPHA2 = 33
_ATTR_WIPHY_FREQ = 38
_ATTR_CHANNEL_WIDTH = 159

# enum nl80211_sta_info
_STA_INACTIVE_TIME = 1
_STA_RX_BYTES = 2
_STA_TX_BYTES = 3
_STA_LLID = 4
_STA_PLID = 5
_STA_PLINK_STATE = 6
_STA_SIGNAL = 7
_STA_TX_BITRATE = 8
_STA_TX_FAILED = 12
_STA_SIGNAL_AVG = 13
_STA_RX_BITRATE = 14
_STA_CONNECTED_TIME = 16
_STA_FLAGS = 17
_STA_RX_BYTES64 = 23
_STA_TX_BYTES64 = 24
_STA_AIRTIME_LINK_METRIC = 41

# enum nl80211_rate_info; units of 100 kbit/s
_RATE_BITRATE = 1
_RATE_BITRATE32 = 5

# enum nl80211_mpath_info
_MPATH_METRIC = 3
_MPATH_EXPTIME = 4
_MPATH_FLAGS = 5
_MPATH_HOP_COUNT = 8

_GENERIC = struct.Struct("=BBH")  # struct genlmsghdr: command, version, reserved
_BODY = HEADER.size + _GENERIC.size

_MAC_ATTRIBUTE = struct.Struct("=HH6sxx")
HEADER_OF_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type


class Message(genlmsg):  # type: ignore[misc]
    """A message of the nl80211 family: enum nl80211_attrs."""

    nla_map = (
        (1, "NL80211_ATTR_WIPHY", "uint32"),
        (2, "NL80211_ATTR_WIPHY_NAME", "asciiz"),
        (3, "NL80211_ATTR_IFINDEX", "uint32"),
        (4, "NL80211_ATTR_IFNAME", "asciiz"),
        (5, "NL80211_ATTR_IFTYPE", "uint32"),
        (6, "NL80211_ATTR_MAC", "l2addr"),
        (22, "NL80211_ATTR_WIPHY_BANDS", "cdata"),
        (26, "NL80211_ATTR_MPATH_NEXT_HOP", "l2addr"),
        (32, "NL80211_ATTR_SUPPORTED_IFTYPES", "cdata"),
        (33, "NL80211_ATTR_REG_ALPHA2", "cdata"),
        (35, "NL80211_ATTR_MESH_CONFIG", "mesh_parameters", 0x8000),  # NLA_F_NESTED
        (38, "NL80211_ATTR_WIPHY_FREQ", "uint32"),
        (42, "NL80211_ATTR_IE", "cdata"),
        (44, "NL80211_ATTR_SCAN_FREQUENCIES", "cdata", 0x8000),
        (45, "NL80211_ATTR_SCAN_SSIDS", "cdata", 0x8000),
        (115, "NL80211_ATTR_SUPPORT_MESH_AUTH", "flag"),
        (143, "NL80211_ATTR_FEATURE_FLAGS", "uint32"),
        (174, "NL80211_ATTR_SPLIT_WIPHY_DUMP", "flag"),
    )
    mesh_parameters = _MeshParameters


class Channel:
    """What a radio may do at one frequency, under the regulatory domain of the moment.

    :ivar radar: it listens for radars first.
    :ivar radar_heard: seconds since a radar was heard, so that the channel must not be used; None
        when it may.
    """

    __slots__ = ("disabled", "listen_only", "radar", "radar_heard")

    def __init__(
        self,
        *,
        disabled: bool,
        listen_only: bool,
        radar: bool = False,
        radar_heard: float | None = None,
    ) -> None:
        self.disabled = disabled
        self.listen_only = listen_only
        self.radar = radar
        self.radar_heard = radar_heard

    @property
    def obstacle(self) -> str | None:
        """Why a mesh cannot be started here, None when it can."""
        if self.disabled:
            return "is disabled"
        if self.listen_only:
            return "may only be listened to (no initiating of radiation)"
        return None


class Wiphy:
    """A radio.

    :ivar index: its number.
    :ivar name: its name, such as phy0.
    :ivar driver: empty when it is not known.
    :ivar port: where it is plugged in, such as 1-1.2 for USB; empty when it is not known.
    :ivar mac: its own MAC address.
    :ivar iftypes: the types of interface that it can be.
    :ivar channels: by frequency in MHz.
    :ivar widths: the widest channel in MHz where it is more than 20, by enum nl80211_band.
    :ivar features: enum nl80211_feature_flags.
    :ivar mesh_auth: it can do authenticated mesh.
    """

    __slots__ = (
        "channels", "driver", "features", "iftypes", "index", "mac", "mesh_auth", "name", "port",
        "widths",
    )  # fmt: skip

    def __init__(self, index: int) -> None:
        self.index = index
        self.name = f"phy{index}"
        self.driver = ""
        self.port = ""
        self.mac: str | None = None
        self.iftypes: set[int] = set()
        self.channels: dict[int, Channel] = {}
        self.widths: dict[int, int] = {}
        self.features = 0
        self.mesh_auth = False

    @property
    def mesh_point(self) -> bool:
        return IFTYPE_MESH_POINT in self.iftypes

    def widest(self, mhz: int) -> int:
        """The widest channel in MHz that it can use around a frequency."""
        return self.widths.get(0 if mhz < _5_GHZ_FROM else 1, 20)

    def absorb(self, message: Any) -> None:
        """Take what one message of a wiphy dump tells; a split dump has many of them."""
        name = message.get_attr("NL80211_ATTR_WIPHY_NAME")
        if isinstance(name, str):
            self.name = name
        types = message.get_attr("NL80211_ATTR_SUPPORTED_IFTYPES")
        if isinstance(types, bytes):
            self.iftypes.update(kind for kind, _ in attributes(types))
        bands = message.get_attr("NL80211_ATTR_WIPHY_BANDS")
        if isinstance(bands, bytes):
            self.channels.update(_channels(bands))
            self.widths.update(_widths(bands))
        features = message.get_attr("NL80211_ATTR_FEATURE_FLAGS")
        if isinstance(features, int):
            self.features |= features
        if message.get_attr("NL80211_ATTR_SUPPORT_MESH_AUTH"):
            self.mesh_auth = True

    def __str__(self) -> str:
        return f"{self.name} ({self.driver or 'unknown driver'})"


class Interface(TypedDict):
    """A wireless network interface.

    :ivar frequency: in MHz, None while it is not in use.
    """

    index: int
    name: str
    wiphy: int
    type: int
    mac: str | None
    frequency: int | None


class Station(TypedDict):
    """A station in a mesh interface's table. A value is None where the kernel does not tell it.

    :ivar signal_dbm: the average if there is one, otherwise that of the last frame.
    :ivar metric: the airtime link metric (IEEE 802.11-2020, 14.9), in units of 10.24 µs.
    :ivar inactive_ms: time since its last frame.
    :ivar authorized: data frames are let through, which needs authentication where the mesh has it.
    :ivar mfp: management frames are protected.
    """

    mac: str
    state: str
    llid: int | None
    plid: int | None
    signal_dbm: int | None
    metric: int | None
    inactive_ms: int | None
    connected_s: int | None
    tx_kbps: int | None
    rx_kbps: int | None
    rx_bytes: int
    tx_bytes: int
    tx_failed: int | None
    authorized: bool | None
    mfp: bool | None


class MeshPath(TypedDict):
    """A mesh path (IEEE 802.11-2020, 14.10): frames for ``destination`` go to ``next_hop``."""

    destination: str
    next_hop: str
    metric: int | None
    hops: int | None
    expires_ms: int | None
    flags: int


def _channels(bands: bytes) -> dict[int, Channel]:
    """The channels in an NL80211_ATTR_WIPHY_BANDS attribute, by frequency in MHz."""
    found = {}
    for _, band in attributes(bands):
        for kind, frequencies in attributes(band):
            if kind != _BAND_ATTR_FREQS:
                continue
            for _, frequency in attributes(frequencies):
                facts = facts_of(frequency)
                mhz = integer(facts.get(_FREQUENCY_ATTR_FREQ), 4)
                if mhz is None:
                    continue
                state = integer(facts.get(_FREQUENCY_ATTR_DFS_STATE), 4)
                since = integer(facts.get(_FREQUENCY_ATTR_DFS_TIME), 4) or 0
                found[mhz] = Channel(
                    disabled=_FREQUENCY_ATTR_DISABLED in facts,
                    listen_only=_FREQUENCY_ATTR_NO_IR in facts,
                    radar=_FREQUENCY_ATTR_RADAR in facts,
                    radar_heard=since / 1000 if state == _DFS_UNAVAILABLE else None,
                )
    return found


def _widths(bands: bytes) -> dict[int, int]:
    """The widest channels in MHz in an NL80211_ATTR_WIPHY_BANDS attribute, by band.

    In a dump of several messages the first one of a band tells, and the others list frequencies.
    """
    found = {}
    for which, band in attributes(bands):
        facts = facts_of(band)
        ht = integer(facts.get(_BAND_ATTR_HT_CAPA), 2) or 0
        if _BAND_ATTR_VHT_CAPA in facts:
            found[which] = 80  # every radio of 802.11ac can (IEEE 802.11-2020, 9.4.2.157.2)
        elif ht & _HT_CAP_40_MHZ:
            found[which] = 40
    return found


def _u32(data: bytes) -> int:
    return int.from_bytes(data, sys.byteorder)


def _number(info: Any, name: str) -> int | None:
    value = info.get_attr(name)
    return value if isinstance(value, int) else None


def _kbps(rate: bytes | None) -> int | None:
    """The bitrate in a nested attribute of enum nl80211_rate_info."""
    if rate is None:
        return None
    facts = facts_of(rate)
    value = integer(facts.get(_RATE_BITRATE32), 4)
    if value is None:
        value = integer(facts.get(_RATE_BITRATE), 2)
    return None if value is None else value * 100


def _flag(flags: bytes | None, bit: int) -> bool | None:
    """One of a station's flags: struct nl80211_sta_flag_update is a mask and the bits set in it."""
    if flags is None or len(flags) != 8 or not _u32(flags[:4]) & bit:
        return None
    return bool(_u32(flags[4:]) & bit)


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def station(message: bytes) -> Station | None:
    """The station that an NL80211_CMD_NEW_STATION message describes, None when it is malformed."""
    facts = facts_of(message, _BODY)
    mac = hardware_address(facts.get(_ATTR_MAC))
    if mac is None or _ATTR_STA_INFO not in facts:
        return None
    info = facts_of(facts[_ATTR_STA_INFO])
    state = integer(info.get(_STA_PLINK_STATE), 1)
    average = integer(info.get(_STA_SIGNAL_AVG), 1, signed=True) or None  # 0 until there is one
    return {
        "mac": mac,
        "state": PLINK_STATES[state]
        if state is not None and state < len(PLINK_STATES)
        else "UNKNOWN",
        "llid": integer(info.get(_STA_LLID), 2),
        "plid": integer(info.get(_STA_PLID), 2),
        "signal_dbm": _first(average, integer(info.get(_STA_SIGNAL), 1, signed=True)),
        "metric": integer(info.get(_STA_AIRTIME_LINK_METRIC), 4),
        "inactive_ms": integer(info.get(_STA_INACTIVE_TIME), 4),
        "connected_s": integer(info.get(_STA_CONNECTED_TIME), 4),
        "tx_kbps": _kbps(info.get(_STA_TX_BITRATE)),
        "rx_kbps": _kbps(info.get(_STA_RX_BITRATE)),
        "rx_bytes": _first(
            integer(info.get(_STA_RX_BYTES64), 8), integer(info.get(_STA_RX_BYTES), 4)
        )
        or 0,
        "tx_bytes": _first(
            integer(info.get(_STA_TX_BYTES64), 8), integer(info.get(_STA_TX_BYTES), 4)
        )
        or 0,
        "tx_failed": integer(info.get(_STA_TX_FAILED), 4),
        "authorized": _flag(info.get(_STA_FLAGS), _STA_AUTHORIZED),
        "mfp": _flag(info.get(_STA_FLAGS), _STA_MFP),
    }


def path(message: bytes) -> MeshPath | None:
    """The mesh path that an NL80211_CMD_NEW_MPATH message describes, None when it is malformed."""
    facts = facts_of(message, _BODY)
    destination = hardware_address(facts.get(_ATTR_MAC))
    next_hop = hardware_address(facts.get(_ATTR_MPATH_NEXT_HOP))
    if destination is None or next_hop is None or _ATTR_MPATH_INFO not in facts:
        return None
    info = facts_of(facts[_ATTR_MPATH_INFO])
    return {
        "destination": destination,
        "next_hop": next_hop,
        "metric": integer(info.get(_MPATH_METRIC), 4),
        "hops": integer(info.get(_MPATH_HOP_COUNT), 1),
        "expires_ms": integer(info.get(_MPATH_EXPTIME), 4),
        "flags": integer(info.get(_MPATH_FLAGS), 1) or 0,
    }


def interface(message: Any) -> Interface | None:
    """The interface that an NL80211_CMD_NEW_INTERFACE message describes.

    :returns: None when it is malformed, or has no network device (a P2P device has none).
    """
    index = _number(message, "NL80211_ATTR_IFINDEX")
    name = message.get_attr("NL80211_ATTR_IFNAME")
    wiphy = _number(message, "NL80211_ATTR_WIPHY")
    if index is None or wiphy is None or not isinstance(name, str):
        return None
    mac = message.get_attr("NL80211_ATTR_MAC")
    return {
        "index": index,
        "name": name,
        "wiphy": wiphy,
        "type": _number(message, "NL80211_ATTR_IFTYPE") or 0,
        "mac": mac if isinstance(mac, str) else None,
        "frequency": _number(message, "NL80211_ATTR_WIPHY_FREQ"),
    }


class Nl80211:
    """The nl80211 family.

    :ivar kept: the prepared request for a sign of life and what reads the answers, by interface and
        station.
    :raises NetlinkError: ENOENT, when the kernel has no nl80211; of every method, when the kernel
        refuses.
    """

    def __init__(self) -> None:
        self._requests = Requests(NETLINK_GENERIC)
        try:
            self.id, self.groups = family(self._requests, "nl80211")
        except OSError:
            self._requests.close()
            raise
        self._country = self._prepared(CMD_GET_REG)
        self.kept: dict[tuple[int, str], tuple[bytearray, SignReader]] = {}

    def close(self) -> None:
        self._requests.close()

    def _request(
        self, command: int, attrs: list[tuple[str, Any]], flags: int = NLM_F_ACK
    ) -> list[Any]:
        message = Message()
        message["cmd"] = command
        message["version"] = 1
        message["attrs"] = attrs
        return self._requests.request(self.id, message, flags, Message)

    def _dump(self, command: int, ifindex: int, read: Callable[[bytes], _T | None]) -> list[_T]:
        """All stations or paths of an interface. This is asked often, so without pyroute2."""
        wanted = number(_ATTR_IFINDEX, ifindex)
        size = _BODY + len(wanted)
        header = HEADER.pack(size, self.id, NLM_F_REQUEST | NLM_F_DUMP, 0, 0)
        return self._requests.ask(header + _GENERIC.pack(command, 1, 0) + wanted, read)

    def _prepared(self, command: int, attrs: bytes = b"") -> bytearray:
        """A request that is sent again and again, for one answer."""
        return prepared(self.id, _GENERIC.pack(command, 1, 0) + attrs)

    def wiphys(self) -> list[Wiphy]:
        """Every radio, in the order of their numbers."""
        found: dict[int, Wiphy] = {}
        for message in self._request(CMD_GET_WIPHY, [], NLM_F_DUMP):
            index = _number(message, "NL80211_ATTR_WIPHY")
            if index is not None:
                found.setdefault(index, Wiphy(index)).absorb(message)
        for wiphy in found.values():
            if not wiphy.channels:  # the kernel lists the channels of one radio in a dump
                self._complete(wiphy)
        for wiphy in found.values():
            wiphy.driver = link_name(f"{SYSFS}/{wiphy.name}/device/driver")
            wiphy.mac = read(f"{SYSFS}/{wiphy.name}/macaddress")
            # of USB the device and not its interface, as it stands on the socket: 1-1.2:1.0
            wiphy.port = link_name(f"{SYSFS}/{wiphy.name}/device").partition(":1.")[0]
        return [found[index] for index in sorted(found)]

    def _complete(self, wiphy: Wiphy) -> None:
        attrs = [("NL80211_ATTR_WIPHY", wiphy.index)]
        try:
            messages = self._request(CMD_GET_WIPHY, attrs)
        except NetlinkError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            # It is too long for one message. In pieces it takes about two hundred of them, which
            # is why they are only the second choice.
            messages = self._request(
                CMD_GET_WIPHY, [*attrs, ("NL80211_ATTR_SPLIT_WIPHY_DUMP", True)], NLM_F_DUMP
            )
        for message in messages:
            if _number(message, "NL80211_ATTR_WIPHY") == wiphy.index:
                wiphy.absorb(message)

    def country(self) -> str | None:
        """The regulatory domain that the kernel follows.

        :returns: a country, "00" for the world's rules, one of ``MADE_DOMAINS``, or None when the
            kernel does not tell.
        """
        code = attribute(self._requests.ask_one(self._country), _ATTR_REG_ALPHA2, _BODY)
        return None if code is None else code.rstrip(b"\0").decode("ascii", "replace")

    def ask_for_country(self, code: str) -> None:
        """Ask the kernel for the regulatory domain of a country. It follows later, or never."""
        self._request(CMD_REQ_SET_REG, [("NL80211_ATTR_REG_ALPHA2", code.encode() + b"\0")])

    def interfaces(self) -> list[Interface]:
        """Every wireless network interface."""
        messages = self._request(CMD_GET_INTERFACE, [], NLM_F_DUMP)
        return [one for one in map(interface, messages) if one is not None]

    def frequency(self, ifindex: int) -> int | None:
        """The frequency of an interface in MHz; None while it is not in use, or gone."""
        return self._fact(ifindex, _ATTR_WIPHY_FREQ)

    def width(self, ifindex: int) -> int | None:
        """The width of an interface's channel in MHz; None where :meth:`frequency` is None."""
        kind = self._fact(ifindex, _ATTR_CHANNEL_WIDTH)
        return None if kind is None else _WIDTHS.get(kind)

    def _fact(self, ifindex: int, kind: int) -> int | None:
        """A number of an interface's description; None without it, or without the interface."""
        request = self._prepared(CMD_GET_INTERFACE, number(_ATTR_IFINDEX, ifindex))
        try:
            answer = self._requests.ask_one(request)
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return integer(attribute(answer, kind, _BODY), 4)

    def add_mesh_interface(self, wiphy: Wiphy, name: str) -> Interface:
        """Create the mesh point interface ``name`` on a radio, with the radio's own address."""
        attrs: list[tuple[str, Any]] = [
            ("NL80211_ATTR_WIPHY", wiphy.index),
            ("NL80211_ATTR_IFNAME", name),
            ("NL80211_ATTR_IFTYPE", IFTYPE_MESH_POINT),
        ]
        if wiphy.mac is not None and wiphy.features & _FEATURE_MAC_ON_CREATE:
            # Otherwise the kernel makes up another one when the radio's first interface has it.
            attrs.append(("NL80211_ATTR_MAC", wiphy.mac))
        for message in self._request(CMD_NEW_INTERFACE, attrs):
            made = interface(message)
            if made is not None:
                return made
        raise NetlinkError(errno.EPROTO, "the kernel did not describe the interface it made")

    def make_mesh_point(self, ifindex: int) -> None:
        """Turn an interface that is down into a mesh point."""
        self._request(
            CMD_SET_INTERFACE,
            [("NL80211_ATTR_IFINDEX", ifindex), ("NL80211_ATTR_IFTYPE", IFTYPE_MESH_POINT)],
        )

    def remove_interface(self, ifindex: int) -> None:
        self._request(CMD_DEL_INTERFACE, [("NL80211_ATTR_IFINDEX", ifindex)])

    def start_scan(self, ifindex: int, frequencies: list[int]) -> None:
        """Begin to listen on channels, and to ask there who is present where that is allowed.

        The end is told to SCAN_GROUP.

        :param frequencies: in MHz.
        """
        self._request(
            CMD_TRIGGER_SCAN,
            [
                ("NL80211_ATTR_IFINDEX", ifindex),
                (
                    "NL80211_ATTR_SCAN_FREQUENCIES",
                    b"".join(number(at, mhz) for at, mhz in enumerate(frequencies)),
                ),
                ("NL80211_ATTR_SCAN_SSIDS", HEADER_OF_ATTRIBUTE.pack(4, 0)),  # any network
                ("NL80211_ATTR_IE", ANY_MESH),
            ],
        )

    def heard(self, ifindex: int) -> list[Heard]:
        """Who was heard in scans of the last half minute."""
        return self._dump(CMD_GET_SCAN, ifindex, lambda message: heard(message, _BODY))

    def stations(self, ifindex: int) -> list[Station]:
        """The stations that an interface knows, one entry for each address."""
        found = {one["mac"]: one for one in self._dump(CMD_GET_STATION, ifindex, station)}
        return [found[mac] for mac in sorted(found)]

    def sign(self, ifindex: int, mac: str) -> Sign:
        """The sign of life of one station. It is asked for about once in a beacon interval.

        :raises NetlinkError: ENOENT without such a station; EPROTO when the answer is damaged.
        """
        kept = self.kept.get((ifindex, mac))
        if kept is None:
            if len(self.kept) >= MOST_SIGNS:
                self.kept.clear()
            octets = _MAC_ATTRIBUTE.pack(10, _ATTR_MAC, bytes.fromhex(mac.replace(":", "")))
            request = self._prepared(CMD_GET_STATION, number(_ATTR_IFINDEX, ifindex) + octets)
            kept = self.kept[ifindex, mac] = request, SignReader()
        request, reader = kept
        found = reader.read(self._requests.ask_one(request))
        if found is None:
            raise NetlinkError(errno.EPROTO, f"the kernel's description of {mac} is damaged")
        return found

    def paths(self, ifindex: int) -> list[MeshPath]:
        """The mesh paths of an interface, one entry for each destination."""
        found = {one["destination"]: one for one in self._dump(CMD_GET_MPATH, ifindex, path)}
        return [found[mac] for mac in sorted(found)]

    def remove_path(self, ifindex: int, destination: str) -> None:
        """Forget the mesh path to a station; the next frame to it looks for another."""
        self._request(
            CMD_DEL_MPATH,
            [("NL80211_ATTR_IFINDEX", ifindex), ("NL80211_ATTR_MAC", destination)],
        )

    def fix_path(self, ifindex: int, destination: str, next_hop: str) -> None:
        """Let frames to a station go over ``next_hop``, a peer, until the path is removed."""
        self._request(
            CMD_NEW_MPATH,
            [
                ("NL80211_ATTR_IFINDEX", ifindex),
                ("NL80211_ATTR_MAC", destination),
                ("NL80211_ATTR_MPATH_NEXT_HOP", next_hop),
            ],
        )

    def set_mesh_parameters(self, ifindex: int, parameters: dict[str, int]) -> None:
        """Set mesh parameters.

        The kernel takes them only for an interface that has joined a mesh (ENOLINK before), and
        forgets them when it leaves.

        :param parameters: names as in the header, without their prefix and in lower case.
        """
        self._request(
            CMD_SET_MESH_CONFIG,
            [
                ("NL80211_ATTR_IFINDEX", ifindex),
                (
                    "NL80211_ATTR_MESH_CONFIG",
                    {
                        "attrs": [
                            (f"NL80211_MESHCONF_{name.upper()}", value)
                            for name, value in parameters.items()
                        ]
                    },
                ),
            ],
        )

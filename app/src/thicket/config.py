# SPDX-License-Identifier: Apache-2.0
"""The configuration of a node: one TOML file, one schema, and no way to lock the device out.

Every key is declared once, as a :class:`Key` in one of the section classes below. Validation, the
defaults, ``thicket config show``, the template file and ``docs/configuration.md`` all follow from
that declaration.

A file is judged as a whole: :func:`parse` either returns :class:`Settings` or raises
:class:`ConfigError` with *every* fault found in it. :func:`load` is what the daemon calls; it never
fails: a file with a fault is reported and the last good one is used, and without that the defaults
of the image.
"""

import os
from collections.abc import Callable, Iterator
from ipaddress import IPv6Interface
from typing import Any, Final, Generic, Self, TypeVar, overload

from thicket.visible import visible

T = TypeVar("T")

#: Most faults of one file that are told of; a file with more of them is no configuration.
MOST_FINDINGS: Final = 32

#: Most parts of a dotted key.
MOST_PARTS: Final = 100

#: Largest configuration file that is read, in bytes.
MAX_FILE_BYTES: Final = 64 * 1024

_REPAIR: Final = "correct the file (`thicket config check FILE` tells whether it is right)"


class Finding:
    """One fault of a configuration file.

    ``file`` is the name shown to the person, ``key`` is ``section.key`` (empty when the fault is in
    the file itself), ``value`` is how the value is written (masked for secrets, empty when there is
    none) and ``message`` says what is wrong and what is allowed. ``line`` and ``column`` count from
    1 and are 0 where they are not known; ``shown`` is the line with a mark below the place.
    """

    __slots__ = ("column", "file", "key", "line", "message", "shown", "value")

    def __init__(
        self,
        file: str,
        key: str,
        value: str,
        message: str,
        *,
        line: int = 0,
        column: int = 0,
        shown: str = "",
    ) -> None:
        self.file = file
        self.key = key
        self.value = value
        self.message = message
        self.line = line
        self.column = column
        self.shown = shown

    def __str__(self) -> str:
        text = f"{self.file}: "
        if self.line:
            text += f"line {self.line}" + (f", column {self.column}: " if self.column else ": ")
        if self.key:
            text += self.key + (f" = {self.value}" if self.value else "") + ": "
        text += self.message
        return text + "".join(f"\n    {line}" for line in self.shown.split("\n") if line)

    def __repr__(self) -> str:
        return f"Finding({str(self)!r})"


class ConfigError(Exception):
    """A configuration that cannot be used; ``findings`` holds every fault, in file order."""

    def __init__(self, findings: list[Finding]) -> None:
        super().__init__(findings)
        self.findings = findings

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings))


class Key(Generic[T]):
    """Declaration of one key: its default, what is allowed, and what it means.

    As a descriptor it reads as a value of type ``T`` on a section, and as itself on the class.
    """

    type_name = "value"

    def __init__(self, default: T, help: str, *, secret: bool = False) -> None:
        self.default = default
        self.help = help
        self.secret = secret
        self.section = ""
        self.name = ""

    def __set_name__(self, owner: "type[Section]", name: str) -> None:
        self.name = name
        self.section = owner.__name__.lower()

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: "Section", owner: type) -> T: ...
    def __get__(self, instance: "Section | None", owner: type) -> Self | T:
        if instance is None:
            return self
        value: T = instance.values.get(self.name, self.default)
        return value

    @property
    def path(self) -> str:
        """``section.key``, as people write it."""
        return f"{self.section}.{self.name}"

    @property
    def allowed(self) -> str:
        """What is allowed, as the end of the sentence "must be ..."."""
        raise NotImplementedError

    def check(self, raw: object) -> T:
        """The typed value for what the TOML file holds; ValueError says why it is refused."""
        raise NotImplementedError

    def from_text(self, text: str) -> object:
        """The TOML value meant by ``text`` in ``thicket config set section.key=text``."""
        return text

    def plain(self, value: T) -> object:
        """The TOML value (str, int or bool) that stands for ``value``."""
        return value

    def refuse(self) -> ValueError:
        return ValueError(f"must be {self.allowed}")

    def hides(self, raw: object) -> bool:
        """Whether a refused value stays out of the message: secrets, and what could hold one."""
        return self.secret and raw != ""


class Text(Key[str]):
    """Text whose length counts in bytes of UTF-8, without control characters.

    ``letters`` restricts it to ASCII letters, digits and the characters given; ``printable`` to
    printable ASCII without blanks.
    """

    type_name = "text"

    def __init__(
        self,
        default: str,
        help: str,
        *,
        least: int,
        most: int,
        letters: str | None = None,
        printable: bool = False,
        optional: bool = False,
        secret: bool = False,
    ) -> None:
        super().__init__(default, help, secret=secret)
        self.least = least
        self.most = most
        self.letters = letters
        self.printable = printable
        self.optional = optional

    @property
    def allowed(self) -> str:
        what = "text"
        if self.letters is not None:
            what = "ASCII letters, digits" + "".join(f", {c!r}" for c in self.letters)
        elif self.printable:
            what = "printable ASCII without blanks"
        size = f"{self.least} to {self.most} bytes of UTF-8" if what == "text" else ""
        size = size or f"{self.least} to {self.most} characters"
        return f"{what}, {size}" + (", or empty" if self.optional else "")

    def check(self, raw: object) -> str:
        if not isinstance(raw, str):
            raise self.refuse()
        if self.optional and not raw:
            return raw
        length = len(raw.encode("utf-8", "surrogatepass"))
        if raw and not self.least <= length <= self.most:
            raise ValueError(
                f"is too {'short' if length < self.least else 'long'}: {self.refuse()}"
            )
        if not raw and self.least:
            raise self.refuse()
        if self.letters is not None:
            good = all(c.isascii() and (c.isalnum() or c in self.letters) for c in raw)
        elif self.printable:
            good = all("!" <= c <= "~" for c in raw)
        else:
            # C0, DEL and C1; they could not be typed again and would break line-based protocols
            good = all(c >= " " and not "\x7f" <= c <= "\x9f" for c in raw)
        if not good:
            if self.letters is None and not self.printable:
                raise ValueError("must not contain control characters")
            raise self.refuse()
        return raw


class Choice(Key[str]):
    """One of a few words."""

    type_name = "word"

    def __init__(self, default: str, help: str, *choices: str) -> None:
        super().__init__(default, help)
        self.choices = choices

    @property
    def allowed(self) -> str:
        return " or ".join(f'"{c}"' for c in self.choices)

    def check(self, raw: object) -> str:
        if isinstance(raw, str) and raw in self.choices:
            return raw
        raise self.refuse()


class Country(Key[str]):
    """A country of the wireless regulatory database, or "00" for the world's rules."""

    type_name = "country"
    allowed = 'a country code of two capital letters such as "DE", or "00" for none'

    def check(self, raw: object) -> str:
        if not isinstance(raw, str):
            raise self.refuse()
        if raw != "00":
            from thicket import countries  # noqa: PLC0415  # most cards of a lab name none

            fault = countries.fault(raw)
            if fault is not None:
                raise ValueError(fault)
        return raw


class Bus(Key[str]):
    """The I2C bus of the chip: "auto", "none" or a number."""

    type_name = "bus"
    allowed = '"auto", "none" or the number of an I2C bus, "0" to "255"'

    def check(self, raw: object) -> str:
        if isinstance(raw, int) and not isinstance(raw, bool):
            raw = str(raw)
        if isinstance(raw, str):
            if raw in {"auto", "none"}:
                return raw
            if raw.isascii() and raw.isdigit() and len(raw) <= 3 and int(raw) <= 255:
                return str(int(raw))
        raise self.refuse()


class ChipAddress(Key[str]):
    """The 7-bit I2C address of the chip, or "auto"."""

    type_name = "address"
    allowed = (
        '"auto" or the 7-bit I2C address of the chip in hexadecimal, "0x08" to "0x77" '
        "(half of what configuration byte 16 holds)"
    )

    def check(self, raw: object) -> str:
        number = -1
        if isinstance(raw, int) and not isinstance(raw, bool):
            number = raw
        elif isinstance(raw, str):
            if raw == "auto":
                return raw
            digits = raw[2:] if raw[:2] in {"0x", "0X"} else ""
            if len(digits) == 2 and all(c in "0123456789abcdefABCDEF" for c in digits):
                number = int(digits, 16)
        if not 0x08 <= number <= 0x77:
            raise self.refuse()
        return f"0x{number:02x}"


class Integer(Key[int]):
    """A whole number in a range."""

    type_name = "number"

    def __init__(self, default: int, help: str, *, least: int, most: int, unit: str = "") -> None:
        super().__init__(default, help)
        self.least = least
        self.most = most
        self.unit = unit

    @property
    def allowed(self) -> str:
        unit = f" ({self.unit})" if self.unit else ""
        return f"a whole number from {self.least} to {self.most}{unit}"

    def check(self, raw: object) -> int:
        # bool is an int in Python, not in TOML
        if isinstance(raw, bool) or not isinstance(raw, int):
            raise self.refuse()
        if not self.least <= raw <= self.most:
            raise self.refuse()
        return raw

    def from_text(self, text: str) -> object:
        try:
            return int(text, 10)
        except ValueError:
            return text


class Channel(Integer):
    """A 20 MHz Wi-Fi channel that a mesh may start on without radar detection.

    Channels 1 to 13 are 2412 + 5 (n - 1) MHz, the others 5000 + 5 n MHz (IEEE 802.11-2020 annex E).
    Channels 52 to 144 need radar detection (DFS) before a station may transmit first.
    """

    type_name = "channel"
    CHANNELS: Final = (*range(1, 14), 36, 40, 44, 48, 149, 153, 157, 161, 165)

    @property
    def allowed(self) -> str:
        return "a Wi-Fi channel: 1 to 13, 36, 40, 44, 48, 149, 153, 157, 161 or 165"

    def check(self, raw: object) -> int:
        value = super().check(raw)
        if value not in self.CHANNELS:
            raise self.refuse()
        return value


class Boolean(Key[bool]):
    """Yes or no."""

    type_name = "yes/no"
    allowed = "true or false, without quotes"

    def check(self, raw: object) -> bool:
        if isinstance(raw, bool):
            return raw
        raise self.refuse()

    def from_text(self, text: str) -> object:
        return {"true": True, "false": False}.get(text.lower(), text)


class Prefix(Key[IPv6Interface]):
    """The first half of every node's address, with the length that is on-link.

    The value is an interface, not a network, because the form that Nerves meshes use is valid:
    address bits of the subnet ``fd12:3456:789a:1::`` with /48 on-link.
    """

    type_name = "prefix"
    allowed = (
        'an IPv6 prefix of 64 bits whose second half is zero, written with "/64" (or "/48": whole '
        'site on-link), such as "fd12:3456:789a:1::/64"'
    )

    def check(self, raw: object) -> IPv6Interface:
        if not isinstance(raw, str) or "%" in raw or "/" not in raw:
            raise self.refuse()
        try:
            value = IPv6Interface(raw)
        except ValueError:
            raise self.refuse() from None
        if value.network.prefixlen not in {48, 64} or int(value.ip) & (2**64 - 1):
            raise self.refuse()
        # 2000::/3 is the unicast space of RFC 4291 2.4, fc00::/7 the local one of RFC 4193
        top = int(value.ip) >> 121
        if not (top >> 4 == 0b001 or top == 0b1111110):
            raise ValueError(
                "must lie in fd00::/8 (local addresses, RFC 4193) or 2000::/3 (global)"
            )
        return value

    def plain(self, value: IPv6Interface) -> object:
        return str(value)


class PublicKeys(Key[str]):
    """SSH public keys as OpenSSH writes them: one per line of a text, or a list of such texts.

    The value has one key per line, without blank lines and remarks.
    """

    type_name = "public keys"
    allowed = (
        "SSH public keys, one per line or as a list, each as in the file that ends in .pub: a type "
        "(ssh-ed25519, ecdsa-sha2-nistp256, ssh-rsa ...), the key, and a comment if you like; "
        "empty for none"
    )
    #: Most keys, and most bytes of all of them.
    MOST: Final = 32
    MOST_BYTES: Final = 16 * 1024
    TYPES: Final = (
        "ssh-ed25519",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
        "ssh-rsa",
    )

    def hides(self, raw: object) -> bool:
        # it may be a private key, or too long to be of use
        return raw != ""

    def from_text(self, text: str) -> object:
        return text.replace("\\n", "\n")

    def check(self, raw: object) -> str:
        if isinstance(raw, list):
            if not all(isinstance(item, str) for item in raw):
                raise self.refuse()
            raw = "\n".join(raw)
        if not isinstance(raw, str):
            raise self.refuse()
        if "PRIVATE KEY" in raw or "PuTTY-User-Key-File" in raw:
            raise ValueError(
                "is a private key. Never put one on a card: whoever has the card has the key. "
                "Take the public one, the file that ends in .pub, and make a new pair"
            )
        lines = [line.strip() for line in raw.replace("\r", "\n").split("\n")]
        keys = [line for line in lines if line and not line.startswith("#")]
        if len(keys) > self.MOST or len(raw.encode("utf-8", "surrogatepass")) > self.MOST_BYTES:
            raise ValueError(
                f"holds too much: at most {self.MOST} keys, {self.MOST_BYTES // 1024} KiB"
            )
        for number, line in enumerate(keys, 1):
            fault = self._fault(line)
            if fault:
                which = f"key {number} " if len(keys) > 1 else ""
                raise ValueError(f"{which}{fault}")
        return "\n".join(keys)

    def _fault(self, line: str) -> str | None:
        """What is wrong with one key, or None. RFC 4253 6.6 has the form of the encoded part."""
        import base64  # noqa: PLC0415  # few nodes have keys

        words = line.split(None, 2)
        kind = words[0]
        if kind not in self.TYPES:
            if kind == "ssh-dss":
                return "is a DSA key, which no SSH server accepts any more; make an ed25519 one"
            if any(word in self.TYPES for word in words[1:]):
                return (
                    f"has options before its type; it must begin with the type ({kind!r} is none)"
                )
            return f"has an unknown type; must begin with one of {', '.join(self.TYPES)}"
        if len(words) < 2:
            return f"ends after its type ({kind}); the key itself is missing"
        if not line.isprintable():
            return "holds control characters"
        try:
            blob = base64.b64decode(words[1], validate=True)
        except ValueError:
            return "is damaged: it is not base64; copy the line of the .pub file as a whole"
        fields = []
        while blob:
            length = int.from_bytes(blob[:4], "big")
            if len(blob) < 4 + length:
                return "is damaged: it is cut off; copy the line of the .pub file as a whole"
            fields.append(blob[4 : 4 + length])
            blob = blob[4 + length :]
        if not fields or fields[0] != kind.encode():
            return f"is damaged: what is encoded in it is no {kind} key"
        if kind == "ssh-rsa" and (len(fields) != 3 or len(fields[2].lstrip(b"\0")) < 256):
            return "is an RSA key of less than 2048 bits; make an ed25519 one"
        if kind == "ssh-ed25519" and (len(fields) != 2 or len(fields[1]) != 32):
            return "is damaged: an ed25519 key has 32 bytes"
        if len(fields) < 2:
            return "is damaged: there is no key in it"
        return None


class Ports(Key[tuple[str, ...]]):
    """Ports in addition to the product's own: ``tcp/NUMBER``, ``udp/NUMBER``, or a range of them.

    The value has each port once: in order, without overlaps, ranges that meet joined.
    """

    type_name = "ports"
    allowed = (
        'a list of ports such as ["tcp/8080", "udp/5000-5009"]: tcp or udp, a slash, and a number '
        "from 1 to 65535 or a range"
    )
    #: Most entries.
    MOST: Final = 64

    def from_text(self, text: str) -> object:
        return text.replace(",", " ").split()

    def plain(self, value: tuple[str, ...]) -> object:
        return list(value)

    def check(self, raw: object) -> tuple[str, ...]:
        if not isinstance(raw, list | tuple) or len(raw) > self.MOST:
            raise self.refuse()
        found: dict[str, list[tuple[int, int]]] = {"tcp": [], "udp": []}
        for item in raw:
            protocol, slash, ports = item.partition("/") if isinstance(item, str) else ("", "", "")
            low, dash, high = ports.partition("-")
            if protocol not in found or not slash or not self._number(low):
                raise self.refuse()
            if dash and not (self._number(high) and int(low) < int(high)):
                raise self.refuse()
            found[protocol].append((int(low), int(high or low)))
        return tuple(
            f"{protocol}/{low}" + (f"-{high}" if high > low else "")
            for protocol, ranges in found.items()
            for low, high in self._joined(sorted(ranges))
        )

    @staticmethod
    def _number(text: str) -> bool:
        digits = text.isascii() and text.isdigit() and len(text) <= 5
        return digits and 1 <= int(text) <= 65535

    @staticmethod
    def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
        joined: list[tuple[int, int]] = []
        for low, high in ranges:
            if joined and low <= joined[-1][1] + 1:
                joined[-1] = (joined[-1][0], max(joined[-1][1], high))
            else:
                joined.append((low, high))
        return joined


class FleetRoot(Key[str]):
    """The root certificate of a fleet in PEM, or nothing."""

    type_name = "certificate"
    allowed = (
        'the text that `thicket ca root` prints, from "-----BEGIN CERTIFICATE-----" to the end '
        "(in TOML, a text of several lines stands between three quotes), or empty for no fleet"
    )

    def hides(self, raw: object) -> bool:
        return raw != ""  # it may be a private key, and is too long to be of use

    def from_text(self, text: str) -> object:
        return text.replace("\\n", "\n")

    def check(self, raw: object) -> str:
        if not isinstance(raw, str):
            raise self.refuse()
        text = "\n".join(line.strip() for line in raw.split("\n")).strip()
        if not text:
            return ""
        if "PRIVATE KEY" in text:
            raise ValueError(
                "is a private key. The fleet's keys never leave the machine that they were made "
                "on; `thicket ca root` prints what belongs here"
            )
        from thicket.trust.certificates import CertificateError, from_pem  # noqa: PLC0415
        from thicket.trust.fleet import Fleet  # noqa: PLC0415

        try:
            found = from_pem(text)
            if len(found) != 1:
                raise ValueError(f"holds {len(found)} certificates, and must be {self.allowed}")
            Fleet(found[0])
        except CertificateError as e:
            raise ValueError(
                f"is no root certificate of a fleet ({e}): copy the whole of what "
                "`thicket ca root` prints, without changing a letter"
            ) from None
        return text + "\n"


class Section:
    """The values of one ``[section]``; its keys are the :class:`Key` attributes of the class."""

    __slots__ = ("values",)

    def __init__(self, values: dict[str, Any] | None = None) -> None:
        self.values: dict[str, Any] = values or {}

    @classmethod
    def keys(cls) -> dict[str, Key[Any]]:
        """The keys of the section, in the order of their declaration."""
        return {name: key for name, key in vars(cls).items() if isinstance(key, Key)}

    def items(self) -> Iterator[tuple[Key[Any], Any]]:
        for name, key in self.keys().items():
            yield key, self.values.get(name, key.default)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return [v for _, v in self.items()] == [v for _, v in other.items()]

    __hash__ = None  # type: ignore[assignment]  # compared by value

    def __repr__(self) -> str:
        shown = (f"{k.name}={show_value(k, v)}" for k, v in self.items())
        return f"{type(self).__name__}({', '.join(shown)})"


class Mesh(Section):
    """The 802.11s mesh that the node joins. All nodes of a mesh have the same values here."""

    __slots__ = ()
    # IEEE 802.11-2020 9.4.2.98: a Mesh ID has 0 to 32 octets; 0 is the wildcard
    id = Text("thicket", "Name of the mesh.", least=1, most=32)
    security = Choice(
        "sae",
        "`sae` (simultaneous authentication of equals, as WPA3) admits who knows the passphrase "
        "and encrypts every frame; without a passphrase the radio stays off. `open` lets anybody "
        "in and encrypts nothing.",
        "sae",
        "open",
    )
    passphrase = Text(
        "",
        'The mesh\'s secret, needed by (and only used with) `security = "sae"`. '
        "`thicket ca passphrase roll` changes it on all nodes of a running mesh (without a fleet "
        "`thicket passphrase roll`).",
        least=8,
        most=63,
        optional=True,
        secret=True,
    )
    next_passphrase = Text(
        "",
        "The other passphrase during a change: first the one to come, then the former one until "
        "links of the new one stand. Commands that change the passphrase write it and take it "
        "away; it is tried where the present one fails.",
        least=8,
        most=63,
        optional=True,
        secret=True,
    )
    channel = Channel(
        1,
        "Wi-Fi channel, 20 MHz wide. 5 GHz channels (36 and up) need a country.",
        least=1,
        most=165,
    )
    country = Country(
        "00",
        "Where the node is used; decides which channels and power are legal. A code that the "
        "wireless regulatory database does not have is refused.",
    )
    # nl80211 accepts 10 to 10000 TU, wpa_supplicant 15 to 65535
    beacon_interval = Integer(
        1000,
        "Time between two Wi-Fi beacons. Short ones find peers sooner and cost airtime.",
        least=15,
        most=10000,
        unit="TU of 1.024 ms",
    )
    peering_retries = Integer(
        4, "How often an unanswered request to become a peer is repeated.", least=0, most=16
    )
    peering_timeout = Integer(
        500,
        "How long a peer may take to answer one step of the peering. The standard's 40 ms suit "
        "an idle laboratory; loaded or slow (simulated) nodes need more.",
        least=10,
        most=5000,
        unit="ms",
    )
    max_inactivity = Integer(
        30,
        "How long a silent peer is kept, and how long one whose passphrase did not fit is shunned.",
        least=5,
        most=3600,
        unit="s",
    )
    ht = Boolean(
        True,
        "Use the rates of 802.11n and later. Without it only the old ones (to 54 Mbit/s) are used.",
    )
    max_peers = Integer(99, "How many peers the node has at most.", least=1, most=99)
    rssi_threshold = Integer(
        0,
        "Do not become a peer of a node heard weaker than this; keeps long weak links from being "
        "preferred over a relay. 0 takes everybody.",
        least=-100,
        most=0,
        unit="dBm",
    )
    forwarding = Boolean(True, "Pass on frames of other nodes. Without it the node is only an end.")
    gate = Boolean(False, "Announce the node as a gate to another network.")
    # IEEE 802.11-2020 9.4.2.97 and nl80211_mesh root modes; 1 is the obsolete "no root" form
    root_mode = Integer(
        0,
        "Announce the node as root of a tree of paths: 0 no, 2 and 3 by proactive PREQ (3 asks for "
        "an answer), 4 by RANN.",
        least=0,
        most=4,
    )


class Address(Section):
    """The node's IPv6 address: this prefix, then an identifier that the chip proves."""

    __slots__ = ()
    prefix = Prefix(
        IPv6Interface("fd12:3456:789a:1::/64"),
        "First half of every address in the mesh. Take a random one of your own in fd00::/8 when "
        "networks may ever meet.",
    )


class Cluster(Section):
    """The Distributed Erlang cluster. All nodes of a cluster have the same values here."""

    __slots__ = ()
    name = Text(
        "thicket",
        "First part of every node's name: the node is `<name>@<IPv6 address>`.",
        least=1,
        most=64,
        letters="_-",
    )
    cookie = Text(
        "thicket",
        "Erlang's shared secret. It keeps clusters apart; it is not a protection against "
        "somebody who can listen.",
        least=1,
        most=255,
        printable=True,
        secret=True,
    )
    security = Choice(
        "tls",
        "What a node must have to be let in: `tls`, a certificate of the fleet ([trust]; mutual "
        "TLS 1.3, everything is encrypted); or `cookie`, nothing but the cookie, in clear: for "
        "meeting nodes without certificates in a mesh that is protected otherwise.",
        "tls",
        "cookie",
    )
    port = Integer(
        9100, "TCP port that the node listens on for other nodes.", least=1024, most=65535
    )
    tick_time = Integer(
        15,
        "A node that was silent for so long is gone (Erlang's net_ticktime; four ticks are sent "
        "in that time).",
        least=4,
        most=600,
        unit="s",
    )
    max_message = Integer(
        32,
        "Longest message that is taken from another node: the arguments of a call, its result, "
        "what is sent to a mailbox. Who sends a longer one is told `system_limit`. Never more than "
        "an eighth of the device's memory.",
        least=1,
        most=1024,
        unit="MiB",
    )
    topology = Choice(
        "full",
        "Which nodes are kept connected: `full`, all that are heard, as Erlang does; or "
        "`neighbours`, those with a mesh link to this node, for fleets of dozens of nodes. Others "
        "are connected when they are called or sent something; groups reach connected nodes only.",
        "full",
        "neighbours",
    )


class Discovery(Section):
    """How nodes find each other: a beacon to [ff02::69]:49999 that carries the node's address."""

    __slots__ = ()
    interval = Integer(
        20,
        "Mean time between beacons once the node has settled; each one is drawn from half to one "
        "and a half of it. Just after joining they are sent every 1 to 2 s.",
        least=2,
        most=600,
        unit="s",
    )
    expire = Integer(
        120,
        "A node not heard for so long is forgotten, unless it is connected. At least three times "
        "the interval.",
        least=10,
        most=3600,
        unit="s",
    )
    beacon = Choice(
        "signed",
        "Which form is sent and believed: `signed`, by the key of a node of the fleet ([trust]); "
        "`plain`, an address as text, which anybody can send; or `both`, for meeting nodes of the "
        "published kind.",
        "signed",
        "plain",
        "both",
    )
    dns_sd = Boolean(
        True,
        "Publish the node by DNS-SD (multicast DNS) on the mesh, so that any computer there can "
        "find it and use its name, `n-<identity>.local`; and try what others publish.",
    )
    max_nodes = Integer(256, "How many nodes are remembered at most.", least=8, most=4096)
    check_source = Boolean(
        True,
        "Drop a beacon whose sender is neither a link-local address nor the address it announces.",
    )


class Trust(Section):
    """The fleet that the node belongs to. `thicket ca` makes one, see provisioning.md."""

    __slots__ = ()
    root = FleetRoot(
        "",
        "The root certificate of the fleet: nodes with certificates that descend from it are let "
        "in, and nobody else. It is no secret. `thicket ca config` writes it.",
    )
    chip_required = Boolean(
        False,
        "Refuse nodes that have no security chip: their keys are in a file, which can be copied.",
    )


class Identity(Section):
    """Where the node's identity comes from."""

    __slots__ = ()
    i2c_bus = Bus(
        "auto",
        "The I2C bus of the ATECC chip. `auto` tries every bus, `none` does without a chip.",
    )
    address = ChipAddress(
        "auto",
        "The chip's address on the bus. `auto` tries those that chips are sold with: 0x60, 0x35 "
        "(Trust&GO), 0x36 (TrustFLEX), 0x58 and 0x59.",
    )


class Status(Section):
    """What the node tells about itself."""

    __slots__ = ()
    interval = Integer(
        5,
        "Time between two refreshes of signals, rates and paths in `/run/thicket/status.json`. "
        "Changes are written at once, whatever the interval.",
        least=1,
        most=300,
        unit="s",
    )


class Access(Section):
    """Ways in for a person. All are closed until they are asked for; there is no password."""

    __slots__ = ()
    ssh_keys = PublicKeys(
        "",
        "Whoever has one of these keys may log in as root over SSH. Without any there is no SSH "
        "server. The node keeps the keys, so that SSH is there even when the daemon cannot start.",
    )
    console = Boolean(
        False,
        "A root shell, without a question, on the node's serial port. Whoever can touch the node "
        "can then use it.",
    )


def locked_out(settings: "Settings") -> str | None:
    """Why nobody can get into a node with these settings, or None where somebody can."""
    if settings.access.ssh_keys or settings.access.console or settings.trust.root:
        return None
    return (
        "the settings name no SSH key (access.ssh_keys), keep the serial console closed "
        "(access.console) and belong to no fleet (trust.root)"
    )


class Firewall(Section):
    """What reaches the node over the mesh: what it serves by itself, and nothing else."""

    __slots__ = ()
    enabled = Boolean(
        True,
        "Without it every port of every program can be reached. The node does not join the mesh "
        "while a firewall that is wanted cannot be set up.",
    )
    allow = Ports(
        (),
        "Ports of the mesh interface that are open besides the node's own, for applications.",
    )
    log = Boolean(
        False, "Note dropped packets in the system's log (`logread`), at most ten a minute."
    )


class Log(Section):
    """The log (`logread` on the node)."""

    __slots__ = ()
    level = Choice(
        "info", "The least important kind of message that is logged.", "debug", "info", "warning",
        "error",
    )  # fmt: skip


class Settings:
    """A whole configuration, valid by construction."""

    __slots__ = (
        "access", "address", "application", "cluster", "discovery", "firewall", "identity", "log",
        "mesh", "status", "trust",
    )  # fmt: skip

    def __init__(self, values: dict[str, dict[str, Any]] | None = None) -> None:
        v = values or {}
        self.mesh = Mesh(v.get("mesh"))
        self.address = Address(v.get("address"))
        self.cluster = Cluster(v.get("cluster"))
        self.discovery = Discovery(v.get("discovery"))
        self.trust = Trust(v.get("trust"))
        self.identity = Identity(v.get("identity"))
        self.status = Status(v.get("status"))
        self.log = Log(v.get("log"))
        self.access = Access(v.get("access"))
        self.firewall = Firewall(v.get("firewall"))
        #: Settings of applications by name, as the file has them; the application judges them.
        self.application: dict[str, dict[str, Any]] = dict(v.get(APPLICATION, {}))

    def sections(self) -> Iterator[tuple[str, Section]]:
        for name in SECTIONS:
            yield name, getattr(self, name)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Settings):
            return NotImplemented
        return self.application == other.application and all(
            a[1] == b[1] for a, b in zip(self.sections(), other.sections(), strict=True)
        )

    __hash__ = None  # type: ignore[assignment]  # compared by value

    def changed(self, other: "Settings") -> list[str]:
        """The keys (``section.key``) in which ``other`` differs, in order of declaration.

        The settings of an application count as one, ``application.NAME``.
        """
        keys = [
            key.path
            for (_, a), (_, b) in zip(self.sections(), other.sections(), strict=True)
            for (key, old), (_, new) in zip(a.items(), b.items(), strict=True)
            if old != new
        ]
        names = sorted(self.application.keys() | other.application.keys())
        return keys + [
            f"{APPLICATION}.{name}"
            for name in names
            if self.application.get(name) != other.application.get(name)
        ]


#: Section name -> class, in the order of files and documents.
SECTIONS: Final[dict[str, type[Section]]] = {
    "mesh": Mesh,
    "address": Address,
    "cluster": Cluster,
    "discovery": Discovery,
    "trust": Trust,
    "identity": Identity,
    "status": Status,
    "log": Log,
    "access": Access,
    "firewall": Firewall,
}

#: The table of the applications' own settings, ``[application.NAME]``.
APPLICATION: Final = "application"
#: Most applications with settings, and how deep tables and lists may be nested in them.
MAX_APPLICATIONS: Final = 32
MAX_DEPTH: Final = 8

MASK: Final = '"********"'


def find_key(path: str) -> Key[Any]:
    """The key named ``section.key``; ValueError names the nearest one when there is none."""
    section, _, name = path.partition(".")
    if section in SECTIONS:
        key = SECTIONS[section].keys().get(name)
        if key is not None:
            return key
    if section == APPLICATION:
        raise ValueError("settings of applications are changed in the file itself (config apply)")
    if section in SECTIONS and not name:
        raise ValueError(f"names a section; its keys are {', '.join(SECTIONS[section].keys())}")
    raise ValueError("unknown key" + _suggestion(path, _all_paths()))


def _all_paths() -> list[str]:
    return [key.path for cls in SECTIONS.values() for key in cls.keys().values()]


def _all_names() -> dict[str, str]:
    """Where a key of a name belongs; of two sections the first one."""
    names: dict[str, str] = {}
    for path in _all_paths():
        names.setdefault(path.partition(".")[2], path)
    return names


def _suggestion(word: str, known: list[str], elsewhere: dict[str, str] | None = None) -> str:
    from difflib import get_close_matches  # noqa: PLC0415  # rare: only to help with a mistake

    word = word.lower()
    near = get_close_matches(word, known, n=1, cutoff=0.6)
    if not near and elsewhere:
        near = [elsewhere[name] for name in get_close_matches(word, elsewhere, n=1, cutoff=0.8)]
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"


def toml_value(value: object) -> str:
    """``value`` as TOML 1.0 writes it: a text, number, yes or no, or a list or table of these."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, dict):
        pairs = (f"{toml_value(str(k))} = {toml_value(v)}" for k, v in value.items())
        return "{ " + ", ".join(pairs) + " }" if value else "{}"
    text = []
    for c in str(value):
        if c in '"\\':
            text.append("\\" + c)
        elif c == "\n":
            text.append("\\n")
        elif c < " " or c == "\x7f":
            text.append(f"\\u{ord(c):04X}")
        else:
            text.append(c)
    return '"' + "".join(text) + '"'


def show_value(key: Key[Any], value: Any) -> str:
    """A value as TOML, with secrets masked."""
    if key.secret and value:
        return MASK
    return toml_value(key.plain(value))


def _show_raw(key: Key[Any] | None, raw: object) -> str:
    """What the file holds, for an error message: short, and never a secret."""
    if key is not None and key.hides(raw):
        return MASK
    if isinstance(raw, str | int):
        text = toml_value(raw)
    elif isinstance(raw, dict):
        text = "a table"
    elif isinstance(raw, list):
        text = "a list"
    else:
        text = str(raw)  # a float, a date or a time: as it is written
    return text if len(text) <= 60 else text[:57] + "..."


def decode(data: bytes, file: str) -> str:
    """The text of a configuration file; a byte order mark and CRLF line ends are accepted.

    Raises ConfigError when the file is too large or not UTF-8.
    """

    def fault(message: str, line: int = 0) -> ConfigError:
        return ConfigError([Finding(file, "", "", message, line=line)])

    if len(data) > MAX_FILE_BYTES:
        raise fault(f"is larger than {MAX_FILE_BYTES // 1024} KiB; this is no configuration file")
    if data[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        raise fault('is UTF-16 ("Unicode" in some Windows editors); save it as UTF-8')
    if data[:3] == b"\xef\xbb\xbf":
        data = data[3:]
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        from thicket import configtext  # noqa: PLC0415

        raise ConfigError([configtext.encoding_fault(data, file, e.start)]) from None
    text = text.replace("\r\n", "\n")
    if "\r" in text:
        line = text.count("\n", 0, text.index("\r")) + 1
        raise fault(
            "ends with a carriage return only (old Macintosh line ends): save the file with line "
            "ends of Unix or Windows",
            line,
        )
    return text


def parse_toml(text: str, file: str) -> dict[str, object]:
    """The tables of a TOML text; ConfigError tells the line of a syntax error."""
    # The image's own file has sections, but all keys commented out: spare the import for it.
    said = [line for line in text.split("\n") if line and not line.startswith("#")]
    plain = all(line[1:-1] in SECTIONS and line == f"[{line[1:-1]}]" for line in said)
    if plain and len(set(said)) == len(said):
        return {}
    import tomllib  # noqa: PLC0415

    try:
        _refuse_long_keys(text)
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as e:  # also: a date that does not exist, too many digits
        from thicket import configtext  # noqa: PLC0415

        raise ConfigError(configtext.syntax_faults(text, file, e)) from None
    large = _first_large(tables)
    if large is None:
        return tables
    message = "holds a number that is too large: TOML's whole numbers have 64 bits"
    raise ConfigError([Finding(file, large, "", message)])


def _refuse_long_keys(text: str) -> None:
    """Raise ValueError for a key of a hundred parts: tomllib needs time that grows with the square
    of their number, 18 s for a key that fills a file."""
    import re  # noqa: PLC0415  # tomllib loads it, too

    # Each part is taken whole or not at all, and a chain is looked at from its beginning only: this
    # takes time in proportion to the text.
    part = r"""(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+"""
    found = re.search(rf"(?<![\w.-])(?:{part}){{{MOST_PARTS}}}", text, re.ASCII)
    if found is not None:
        line = text.count("\n", 0, found.start()) + 1
        raise ValueError(f"a key has more than {MOST_PARTS} parts (at line {line})")


def _first_large(tables: dict[str, object]) -> str | None:
    """The key of a whole number that does not fit into 64 bits, or None.

    Hexadecimal, octal and binary numbers may be of any length to Python, but cannot be written in
    decimal when they have more than 4300 digits: not in a message and not in JSON.
    """
    left: list[tuple[str, object]] = list(tables.items())
    while left:
        path, value = left.pop()
        if isinstance(value, dict):
            left += [(f"{path}.{name}" if len(path) < 80 else path, v) for name, v in value.items()]
        elif isinstance(value, list):
            left += [(path, item) for item in value]
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            return path[:80]
    return None


def check(
    tables: dict[str, object],
    file: str,
    base: dict[str, dict[str, Any]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Validate parsed TOML against the schema; the values over ``base``, by section and key.

    Raises ConfigError with every fault.
    """
    found: list[Finding] = []
    values = {name: dict(section) for name, section in (base or {}).items()}
    for section, table in tables.items():
        if len(found) > MOST_FINDINGS:
            break
        if section == APPLICATION:
            found += _check_applications(table, file, values.setdefault(section, {}))
            continue
        if section not in SECTIONS:
            # A key before the first [section] is as common a mistake as a mistyped section
            if isinstance(table, dict):
                message = "unknown section" + _suggestion(section, [*SECTIONS, APPLICATION])
                found.append(Finding(file, f"[{section}]", "", message))
            else:
                homes = [
                    k.path for c in SECTIONS.values() for n, k in c.keys().items() if n == section
                ]
                hint = f"; did you mean {' or '.join(homes)}?" if homes else ""
                message = f"stands outside of any [section]{hint}"
                secret = any(find_key(home).secret for home in homes)
                shown = MASK if secret else _show_raw(None, table)
                found.append(Finding(file, section, shown, message))
            continue
        if not isinstance(table, dict):
            message = f"is a section; write [{section}] on a line of its own and its keys below"
            found.append(Finding(file, section, _show_raw(None, table), message))
            continue
        keys = SECTIONS[section].keys()
        for name, raw in table.items():
            key = keys.get(name)
            if len(found) > MOST_FINDINGS:
                break
            if key is None:
                message = "unknown key" + _suggestion(name, list(keys), _all_names())
                # the value may be a secret under a mistyped name: never shown
                found.append(Finding(file, f"{section}.{name}", "", message))
                continue
            try:
                values.setdefault(section, {})[name] = key.check(raw)
            except ValueError as e:
                from thicket import configtext  # noqa: PLC0415

                right = None if isinstance(key, Country) else configtext.instead(key, raw)
                message = f"{e}; write {right}" if right is not None else str(e)
                found.append(Finding(file, key.path, _show_raw(key, raw), message))
    faulty = {finding.key for finding in found}
    settings = Settings(values)
    for cross in _CROSS_CHECKS:
        fault = cross(settings, file)
        if fault is not None and fault.key not in faulty:
            found.append(fault)
    if len(found) > MOST_FINDINGS:
        del found[MOST_FINDINGS:]
        found.append(Finding(file, "", "", "has more faults than these; correct them first"))
    if found:
        raise ConfigError(found)
    return values


def _check_applications(raw: object, file: str, values: dict[str, Any]) -> list[Finding]:
    """Take over ``[application.NAME]`` tables as they are; what is wrong with them as such.

    What the keys mean is for the application to judge. Values are not shown: they may be secret.
    """
    if not isinstance(raw, dict) or not all(isinstance(table, dict) for table in raw.values()):
        message = "holds one table per application; write [application.NAME] and its keys below"
        return [Finding(file, APPLICATION, "", message)]
    found = []
    if len(raw) > MAX_APPLICATIONS:
        message = f"has settings of {len(raw)} applications; at most {MAX_APPLICATIONS} are allowed"
        found.append(Finding(file, APPLICATION, "", message))
    for name, table in raw.items():
        path = f"{APPLICATION}.{name}"
        if not 1 <= len(name) <= 64 or not all(
            c.isascii() and (c.isalnum() or c in "._-") for c in name
        ):
            message = "must have a name of 1 to 64 ASCII letters, digits, '.', '_', '-'"
            found.append(Finding(file, path[:80], "", message))
            continue
        faults = [(key, fault) for key, v in table.items() if (fault := _unfit(v, MAX_DEPTH - 1))]
        if not isinstance(table.get("enabled", True), bool):
            faults.append(("enabled", "must be true or false, without quotes"))
        if faults:
            found += [Finding(file, f"{path}.{visible(key)[:80]}", "", f) for key, f in faults]
            continue
        values[name] = {**values.get(name, {}), **table}
    return found


def _unfit(value: object, depth: int) -> str | None:
    """Why an application's value cannot be handed on, or None."""
    if isinstance(value, dict | list):
        if depth == 0:
            return f"is nested too deeply; {MAX_DEPTH} levels are allowed"
        parts = value.values() if isinstance(value, dict) else value
        return next((fault for part in parts if (fault := _unfit(part, depth - 1))), None)
    if isinstance(value, float) and value - value != 0:
        return "holds a number that is not finite"
    if not isinstance(value, str | int | float):
        return "holds a date or a time; write it as text, in quotes"
    return None


def _check_passphrase(settings: Settings, file: str) -> Finding | None:
    # Only where somebody has written "sae" is a missing passphrase a fault of the file. One that
    # says nothing about it, as that of a fresh card or one with nothing but SSH keys, is followed
    # in all it says; the radio stays off and says why.
    mesh = settings.mesh
    if mesh.values.get("security") == "sae" and not mesh.passphrase:
        message = (
            'is missing: mesh.security = "sae" needs one, 8 to 63 bytes, the same on all nodes '
            '(or set mesh.security = "open" for a mesh that anybody may enter)'
        )
        return Finding(file, "mesh.passphrase", "", message)
    return None


def _check_fleet(settings: Settings, file: str) -> Finding | None:
    if not settings.trust.root:
        return None
    from thicket.trust.certificates import from_pem  # noqa: PLC0415
    from thicket.trust.fleet import Fleet  # noqa: PLC0415

    network = Fleet(from_pem(settings.trust.root)[0]).network
    prefix = settings.address.prefix.network
    if prefix.network_address == network.network_address:
        return None
    message = f"is not the fleet's: its certificates are for addresses in {network}"
    return Finding(file, "address.prefix", str(prefix), message)


def _check_country(settings: Settings, file: str) -> Finding | None:
    mesh = settings.mesh
    if mesh.channel > 13 and mesh.country == "00":
        message = f"a 5 GHz channel ({mesh.channel}) needs the country where the node is used"
        return Finding(file, "mesh.country", '"00"', message)
    return None


def _check_expire(settings: Settings, file: str) -> Finding | None:
    interval, expire = settings.discovery.interval, settings.discovery.expire
    if expire >= 3 * interval:
        return None
    message = (
        f"must be at least three times discovery.interval ({interval} s), or nodes come and go"
    )
    return Finding(file, "discovery.expire", str(expire), message)


_CROSS_CHECKS: Final[tuple[Callable[[Settings, str], Finding | None], ...]] = (
    _check_passphrase,
    _check_fleet,
    _check_country,
    _check_expire,
)


def parse(data: bytes, file: str, base: dict[str, dict[str, Any]] | None = None) -> Settings:
    """Settings from the bytes of a file, over the values of ``base`` (the image's defaults).

    Raises ConfigError with every fault found. A file of nothing but blanks, or of the zeros that a
    power cut leaves, is a fault: it is what remains of a file. One of remarks alone means the
    defaults.
    """
    if not data.strip(b"\0 \t\r\n"):
        what = "holds nothing but zeros: it is damaged" if data.strip() else "is empty"
        message = f"{what}; write the settings, or a remark (# defaults) for the image's defaults"
        raise ConfigError([Finding(file, "", "", message)])
    return Settings(_values(data, file, base))


def _values(
    data: bytes, file: str, base: dict[str, dict[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """The values of the bytes of a file over those of ``base``; raises ConfigError."""
    text = decode(data, file)
    try:
        return check(parse_toml(text, file), file, base)
    except ConfigError as e:
        from thicket import configtext  # noqa: PLC0415

        configtext.locate(text, e.findings)
        raise


def image_defaults(path: str) -> tuple[dict[str, dict[str, Any]], list[Finding]]:
    """The values of the image's own file: ({}, []) when it is absent, ({}, faults) when wrong."""
    try:
        data = read_limited(path)
        return _values(data, path), []
    except FileNotFoundError:
        return {}, []
    except OSError as e:
        return {}, [Finding(path, "", "", f"cannot be read: {e.strerror}")]
    except ConfigError as e:
        return {}, e.findings
    except Exception as e:  # as in _parse_any
        return {}, [Finding(path, "", "", f"cannot be judged: {type(e).__name__}")]


def read_limited(path: str) -> bytes:
    """The file's bytes, at most one more than allowed, so that a huge file costs nothing."""
    with open(path, "rb") as f:  # noqa: PTH123  # pathlib costs start-up time here
        return f.read(MAX_FILE_BYTES + 1)


class Paths:
    """Where a node keeps its files; ``root`` lets tests and several daemons on one host coexist.

    Precedence of the configuration, first that exists: ``device`` (the copy that init makes of the
    boot partition's ``thicket.toml``), ``local`` (devices without a boot partition), then the
    image's defaults. Keys that the file does not set have the image's values in every case.
    """

    __slots__ = (
        "boot", "cmdline", "control", "data", "device", "hostname", "image", "last_good",
        "last_good_sum", "local", "machine_id", "mounts", "root", "run", "status", "sys", "times",
    )  # fmt: skip

    def __init__(self, root: str | None = None) -> None:
        root = (os.environ.get("THICKET_ROOT", "") if root is None else root).rstrip("/")
        self.root = root
        self.image = root + "/usr/share/thicket/thicket.toml"
        self.device = root + "/etc/thicket/thicket.toml"
        self.local = root + "/data/thicket/thicket.toml"
        self.last_good = root + "/data/thicket/last-good.toml"
        self.last_good_sum = root + "/data/thicket/last-good.sha256"
        self.data = root + "/data"
        self.sys = root + "/sys"
        self.boot = root + "/boot"
        self.run = root + "/run/thicket"
        self.status = self.run + "/status.json"
        self.times = self.run + "/times.json"
        self.control = self.run + "/control.sock"
        self.machine_id = root + "/etc/machine-id"
        self.hostname = root + "/etc/hostname"
        self.cmdline = root + "/proc/cmdline"
        self.mounts = root + "/proc/self/mounts"


class Loaded:
    """What :func:`load` found: the settings in force, their source, and the faults in words.

    ``data`` holds the bytes of the device's file when it is in force (to become the last good).
    """

    __slots__ = ("data", "findings", "last_good_used", "settings", "source")

    def __init__(
        self,
        settings: Settings,
        source: str,
        findings: list[Finding],
        data: bytes | None,
        last_good_used: bool,
    ) -> None:
        self.settings = settings
        self.source = source
        self.findings = findings
        self.data = data
        self.last_good_used = last_good_used


def parameter(paths: Paths, name: str) -> str | None:
    """The value of ``thicket.NAME=`` on the kernel command line, or None."""
    try:
        with open(paths.cmdline, encoding="utf-8", errors="replace") as f:  # noqa: PTH123
            words = f.read(4096).split()
    except OSError:
        return None
    start = f"thicket.{name}="
    return next((word[len(start) :] or None for word in words if word.startswith(start)), None)


def boot_device(paths: Paths) -> str | None:
    """The configuration disk that the kernel command line names (``thicket.boot=``), or None."""
    return parameter(paths, "boot")


def boot_mounted(paths: Paths) -> bool:
    """Whether something is mounted at the boot directory."""
    try:
        with open(paths.mounts, encoding="utf-8", errors="replace") as f:  # noqa: PTH123
            return any(line.split(" ", 2)[1:2] == [paths.boot] for line in f)
    except OSError:
        return False


def _parse_any(
    data: bytes, file: str, base: dict[str, dict[str, Any]], findings: list[Finding]
) -> Settings | None:
    """Settings from a file, or None and its faults in ``findings``; raises nothing."""
    try:
        return parse(data, file, base)
    except ConfigError as e:
        findings.extend(e.findings)
    except Exception as e:  # a fault of ours must not keep a node from starting
        findings.append(Finding(file, "", "", f"cannot be judged: {type(e).__name__}"))
    return None


def load(paths: Paths) -> Loaded:
    """The configuration to run with. Never fails; the worst case is the image's defaults."""
    base, findings = image_defaults(paths.image)
    for path in (paths.device, paths.local):
        try:
            data = read_limited(path)
        except FileNotFoundError:
            continue
        except OSError as e:
            findings.append(Finding(path, "", "", f"cannot be read: {e.strerror}"))
            break
        settings = _parse_any(data, path, base, findings)
        if settings is not None:
            return Loaded(settings, path, findings, data, False)
        break
    else:
        lost = _lost(paths)
        if lost is None:
            return Loaded(Settings(base), "defaults", findings, None, False)
        findings.append(lost)
    try:
        data = read_limited(paths.last_good)
        whole = _is_whole(paths, data)
    except FileNotFoundError:
        pass
    except OSError as e:
        findings.append(Finding(paths.last_good, "", "", f"cannot be read: {e.strerror}"))
    else:
        if not whole:
            findings.append(Finding(paths.last_good, "", "", "is damaged: its checksum differs"))
        elif data:
            settings = _parse_any(data, paths.last_good, base, findings)
            if settings is not None:
                return Loaded(settings, paths.last_good, findings, None, True)
    return Loaded(Settings(base), "defaults", findings, None, False)


def _lost(paths: Paths) -> Finding | None:
    """Why there is no configuration file where one should be; None on a node that never had one."""
    device = boot_device(paths)
    if device is None:
        place = paths.local
    elif not boot_mounted(paths):
        message = f"the configuration disk {device} could not be mounted there"
        return Finding(paths.boot, "", "", message)
    else:
        place = paths.boot + "/thicket.toml"
        if os.path.exists(place):  # noqa: PTH110
            return Finding(place, "", "", "could not be read as a whole when the node started")
    try:
        if not os.path.getsize(paths.last_good):  # noqa: PTH202
            return None
    except FileNotFoundError:
        return None
    except OSError:
        pass
    message = "is gone: there was one before. Put it back; one with nothing but a remark in it "
    message += "(# defaults) means the image's defaults"
    try:
        others = sorted(os.listdir(os.path.dirname(place)))  # noqa: PTH120, PTH208
    except OSError:
        others = []
    near = next(
        (n for n in others if n.lower().startswith("thicket") and ".tom" in n.lower()), None
    )
    if near is not None:
        message = f"is gone, but there is {toml_value(near)}: give that the name thicket.toml"
    return Finding(place, "", "", message)


def _digest(data: bytes) -> str:
    import hashlib  # noqa: PLC0415  # only after the start, or when something is wrong

    return hashlib.sha256(data).hexdigest()


def _is_whole(paths: Paths, data: bytes) -> bool:
    """Whether ``data`` is what was kept as the last good one; raises OSError.

    True without a file of checksums: older versions wrote none.
    """
    try:
        with open(paths.last_good_sum, encoding="ascii", errors="replace") as f:  # noqa: PTH123
            return _digest(data) in f.read(4096).split()
    except FileNotFoundError:
        return True


def remember(paths: Paths, loaded: Loaded) -> None:
    """Keep a valid configuration as the last good one; raises OSError when /data is not writable.

    The checksums are written first, the old one's beside the new one's: a power cut between the two
    files leaves a pair that fits. Nothing is written when all is known already: flash wears.
    """
    data = loaded.data
    if data is None:
        return
    try:
        old = read_limited(paths.last_good)
    except OSError:
        old = b""
    known = os.path.exists(paths.last_good_sum)  # noqa: PTH110
    try:
        if known and old == data and _is_whole(paths, data):
            return
    except OSError:
        pass
    sums = [_digest(data)] + ([_digest(old)] if old and old != data else [])
    write_atomically(paths.last_good_sum, "".join(f"{s}\n" for s in sums).encode(), mode=0o600)
    if old != data:
        write_atomically(paths.last_good, data, mode=0o600)


def write_atomically(path: str, data: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
    """Replace a file so that a reader, and a power cut, see the old or the new one, never a mix.

    ``durable`` waits for the disk; leave it out on a RAM file system. Raises OSError.
    """
    folder = os.path.dirname(path)  # noqa: PTH120
    os.makedirs(folder, exist_ok=True)  # noqa: PTH103
    temporary = path + ".new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        if durable:
            os.fsync(fd)
    except OSError:
        os.close(fd)
        os.unlink(temporary)  # noqa: PTH108
        raise
    os.close(fd)
    os.replace(temporary, path)  # noqa: PTH105
    if durable:
        sync_folder(folder)


def sync_folder(folder: str) -> None:
    """Make a rename in ``folder`` durable; file systems that cannot (FAT may not) are tolerated."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError:
        pass
    finally:
        os.close(fd)

# SPDX-License-Identifier: Apache-2.0
"""``[identity]`` and ``[address]``: the chip to look for, and the prefix of addresses."""

from __future__ import annotations

from ipaddress import IPv6Interface

from thicket.base.fields import Key, Section


class Bus(Key[str]):
    """The I2C bus of the chip: "auto", "none" or a number."""

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


class Prefix(Key[IPv6Interface]):
    """The first half of every node's address, with the length that is on-link.

    The value is an interface and not a network, because the form of Nerves meshes is valid: the
    subnet ``fd12:3456:789a:1::`` with /48 on-link.
    """

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


class AddressSection(Section, name="address"):
    """The node's IPv6 address: this prefix, then an identifier that the chip proves."""

    __slots__ = ()
    prefix = Prefix(
        IPv6Interface("fd12:3456:789a:1::/64"),
        "First half of every address in the mesh. Choose your own random one in fd00::/8 if "
        "networks may ever be connected.",
    )


class IdentitySection(Section, name="identity"):
    """Where the node's identity comes from."""

    __slots__ = ()
    i2c_bus = Bus(
        "auto",
        "The I2C bus of the ATECC chip. `auto` tries every bus, `none` uses no chip.",
    )
    address = ChipAddress(
        "auto",
        "The chip's address on the bus. `auto` tries the addresses that chips are sold with: "
        "0x60, 0x35 (Trust&GO), 0x36 (TrustFLEX), 0x58 and 0x59.",
    )

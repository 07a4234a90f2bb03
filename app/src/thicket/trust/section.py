# SPDX-License-Identifier: Apache-2.0
"""``[trust]``: the fleet that the node belongs to."""

from __future__ import annotations

from ipaddress import IPv6Network

from thicket.base.fields import Boolean, Finding, Pasted, Section


class FleetRoot(Pasted):
    """The root certificate of a fleet in PEM, or nothing."""

    allowed = (
        'the text that `thicket ca root` prints, from "-----BEGIN CERTIFICATE-----" to the end '
        "(in TOML, a text of several lines stands between three quotes), or empty for no fleet"
    )

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
        from thicket.trust.certificates import CertificateError, from_pem
        from thicket.trust.fleet import Fleet

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


class TrustSection(Section, name="trust"):
    """The fleet that the node belongs to. `thicket ca` makes one, see provisioning.md."""

    __slots__ = ()
    root = FleetRoot(
        "",
        "The root certificate of the fleet: only nodes whose certificates descend from it are "
        "accepted. It is not secret. `thicket ca config` writes it.",
    )
    chip_required = Boolean(
        False,
        "Refuse nodes that have no security chip: their keys are in a file, which can be copied.",
    )


def check_fleet(trust: TrustSection, prefix: IPv6Network, file: str) -> Finding | None:
    """Return the fault of a file whose ``address.prefix`` is not that of its fleet."""
    if not trust.root:
        return None
    from thicket.trust.certificates import from_pem
    from thicket.trust.fleet import Fleet

    network = Fleet(from_pem(trust.root)[0]).network
    if prefix.network_address == network.network_address:
        return None
    message = f"is not the fleet's: its certificates are for addresses in {network}"
    return Finding(file, "address.prefix", str(prefix), message)

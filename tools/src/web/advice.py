# SPDX-License-Identifier: Apache-2.0
"""What a person can do about a problem. docs/node.md says what each of them means."""

from __future__ import annotations

from typing import Final

_DEFAULT: Final = "Look at `thicket logs NODE`. The node tries again by itself."

#: By part and code; a part alone is for its other codes.
ADVICE: Final = {
    ("configuration", "invalid"): "Correct the key in thicket.toml, or with `thicket config set`.",
    ("configuration", "fallback"): "Correct thicket.toml: the last good settings are in force.",
    ("data", ""): "Exchange the card when there is a chance: it fails or is full.",
    ("access", ""): "See the message; `thicket config show` has the settings of [access].",
    ("identity", "no-chip"): "Check how the security chip is wired: I2C, power, address.",
    ("identity", "chip-appeared"): "Look for a loose contact of the chip, then restart the node.",
    ("radio", "no-radio"): "Plug in a radio that can do 802.11s; docs/hardware.md lists some.",
    ("radio", "unsuitable-radio"): "Plug in a radio that can do 802.11s; docs/hardware.md lists "
    "some.",
    ("radio", "radio-removed"): "Plug the radio in again; look at its cable and power.",
    ("radio", "address-duplicate"): "Find the other device with this address: one chip or card is "
    "a copy.",
    ("radio", "duplicate-mac"): "Exchange one of the two radios that the message names.",
    ("radio", "sae-failure"): "Compare the passphrase of the mesh with that of its neighbours.",
    ("radio", "passphrase-refused"): "Give it the passphrase that the others have: `thicket "
    "passphrase`.",
    ("radio", "passphrase-pending"): "Finish or give up the change: `thicket passphrase`.",
    ("radio", "other-security"): "Set mesh.security as on its neighbours.",
    ("radio", "country"): "Set mesh.country to where the node is.",
    ("radio", "radar"): "Nothing: it comes back by itself. Choose a channel without radar if that "
    "happens often.",
    ("radio", "settings"): "Correct the settings of [mesh] that the message names.",
    ("cluster", "port-taken"): "Find the program that has the port: `thicket --node NODE logs`.",
    ("trust", "no-fleet"): "Put the fleet's root into [trust]: `thicket ca config`.",
    ("trust", "not-enrolled"): "Enrol the device: `thicket ca enroll`.",
    ("trust", "refused"): "Enrol the device again: `thicket ca enroll`.",
    ("trust", "revoked"): "It was revoked on purpose; enrol it anew if that was wrong.",
    ("trust", "lists-differ"): "Run `thicket ca publish` to this node.",
    ("update", "left"): "Look why in `thicket update status`; then offer a corrected version.",
    ("update", "no-room"): "Make room on /data of the node.",
    ("discovery", "too-many-nodes"): "Raise discovery.max_nodes.",
    ("discovery", "duplicate-address"): "Find the other device with this address.",
    ("application", ""): "Look at `thicket logs NODE`, and at the settings of the application.",
}


def what_to_do(part: str, code: str) -> str:
    """Return what a person can do about a problem, in a sentence or two."""
    room = part.partition(" ")[0]
    return ADVICE.get((room, code)) or ADVICE.get((room, "")) or _DEFAULT

# SPDX-License-Identifier: Apache-2.0
"""Why a node is not in the mesh, in words for a person, and what happens next."""

from __future__ import annotations

from logging import getLogger

from thicket.base.errors import CodedError
from thicket.base.files import entries, read
from thicket.radio.choose import ADVICE, described, usb_without_driver
from thicket.radio.nl80211 import RADAR_SECONDS, SYSFS, Wiphy
from thicket.radio.section import MeshSection

log = getLogger(__name__)

# the states of the radio
ABSENT = "absent"
UNSUITABLE = "unsuitable"
STARTING = "starting"
JOINED = "joined"
FAILED = "failed"

#: Pauses in seconds before the next attempt where only somebody else can change what is wrong.
_NO_RADIO_SECONDS = 30.0
_REMOVED_SECONDS = 0.2
_SWITCH_SECONDS = 15.0


class FaultError(CodedError):
    """Why a session ended.

    :ivar part: radio or supplicant.
    :ivar state: the state of the radio from now on.
    :ivar wait: seconds until the next attempt, None for the growing pauses.
    :ivar restart: wpa_supplicant has to be ended before the next attempt.
    """

    def __init__(
        self,
        part: str,
        code: str,
        message: str,
        *,
        state: str = FAILED,
        wait: float | None = None,
        restart: bool = False,
    ) -> None:
        super().__init__(code, message)
        self.part = part
        self.state = state
        self.wait = wait
        self.restart = restart


class ReconfiguredError(Exception):
    """The settings have changed: the next session begins at once."""


def _unclaimed() -> str:
    """The USB devices without a driver, to be appended to a message."""
    devices = usb_without_driver()
    return f"; USB devices without a driver: {', '.join(devices)}" if devices else ""


def no_nl80211() -> FaultError:
    """The kernel has no support for radios."""
    return FaultError(
        "radio",
        "no-radio",
        "no radio: the kernel has no 802.11 support loaded (no netlink family nl80211)"
        + _unclaimed(),
        state=ABSENT,
        wait=_NO_RADIO_SECONDS,
    )


def no_radio() -> FaultError:
    """The kernel has no radio."""
    return FaultError(
        "radio",
        "no-radio",
        f"no radio: the kernel reports none (looked at: nl80211, USB){_unclaimed()}; {ADVICE}",
        state=ABSENT,
        wait=_NO_RADIO_SECONDS,
    )


def unsuitable(reasons: list[str]) -> FaultError:
    """None of the radios can carry the mesh, each for its reason."""
    return FaultError(
        "radio",
        "unsuitable-radio",
        f"{'; '.join(reasons)}; {ADVICE}",
        state=UNSUITABLE,
        wait=_NO_RADIO_SECONDS,
    )


def removed(wiphy: Wiphy | None) -> FaultError:
    """The radio in use is gone."""
    return FaultError(
        "radio",
        "radio-removed",
        f"{wiphy or 'the radio'} was removed; the mesh is joined again when a radio is there",
        state=ABSENT,
        wait=_REMOVED_SECONDS,
    )


def switched_off(wiphy: Wiphy | None) -> FaultError:
    """The radio in use is switched off (rfkill). A switch in software is switched on here."""
    name = wiphy.name if wiphy else "the radio"
    for entry in entries(f"{SYSFS}/{name}"):
        if entry.startswith("rfkill"):
            base = f"{SYSFS}/{name}/{entry}"
            if read(f"{base}/hard") == "1":
                return FaultError(
                    "radio",
                    "rfkill",
                    f"{name} is switched off by a hardware switch (rfkill): switch it on",
                    wait=_SWITCH_SECONDS,
                )
            if read(f"{base}/soft") == "1":
                try:
                    with open(f"{base}/soft", "w", encoding="ascii") as file:
                        file.write("0")
                    log.info("%s was switched off by software (rfkill), switched on", name)
                except OSError as error:
                    log.warning("cannot switch %s on: %s", name, error)
    return FaultError("radio", "rfkill", f"{name} was switched off (rfkill); it is tried again")


def radar(settings: MeshSection, ago: float) -> FaultError:
    """A radar was heard on the mesh's channel, which must not be used for half an hour.

    :param ago: seconds since then.
    """
    wait = max(1.0, RADAR_SECONDS - ago)
    return FaultError(
        "radio",
        "radar",
        f"a radar was heard on channel {settings.channel}: nobody who hears it may send there for "
        f"half an hour; the mesh is joined again after {wait / 60:.0f} min, or at once with "
        "another mesh.channel (on all nodes)",
        wait=wait,
        restart=True,
    )


def not_there(word: str, wiphys: list[Wiphy]) -> FaultError:
    """``mesh.radio`` names a radio that is not there."""
    present = "; ".join(described(wiphy) for wiphy in wiphys)
    return FaultError(
        "radio",
        "unsuitable-radio",
        f'no radio here is "{word}" (mesh.radio, a driver, MAC address or port); there are: '
        f"{present}",
        state=UNSUITABLE,
        wait=_NO_RADIO_SECONDS,
    )

# SPDX-License-Identifier: Apache-2.0
"""The daemon's part ``led``: the light shows what the status document says."""

from __future__ import annotations

import asyncio
from logging import getLogger
from typing import TYPE_CHECKING, Any

from thicket.base.errors import RequestError
from thicket.device import led
from thicket.device.gpio import GpioError

if TYPE_CHECKING:
    from thicket.base.paths import Paths
    from thicket.base.problems import Problems
    from thicket.device.led import Light
    from thicket.device.section import LedSection

log = getLogger(__name__)

#: Seconds for which a node shows which one it is, by itself and at most.
IDENTIFY, MOST_IDENTIFY = 30.0, 3600.0


def judge(document: dict[str, Any]) -> str:
    """Return the pattern for a status document. Who must not cut the power is told that first."""
    installation = document["installation"]
    if installation is not None and installation["state"] in ("checking", "writing"):
        return "updating"
    if any(slot["trial"] for slot in document["slots"]):
        return "updating"
    state = document["state"]
    if state == "degraded":
        return "problem"
    if state != "joined":
        return str(state)
    peers = any(peer["state"] == "ESTAB" for peer in document["peers"])
    nodes = any(node["state"] == "up" for node in document["cluster"]["nodes"])
    return "joined" if peers or nodes else "alone"


class LedPart:
    """Shows patterns; one that is shown already costs nothing.

    A light that is not there is no problem, as long as nobody has asked for one at a GPIO.
    """

    def __init__(self, paths: Paths, problems: Problems, settings: LedSection) -> None:
        self._paths = paths
        self._problems = problems
        self._light: Light | None = None
        self._wanted = "starting"
        self._shown = ""
        self._identifying: asyncio.TimerHandle | None = None
        self._settings = settings
        self._open()

    def follow(self, settings: LedSection) -> None:
        """Use the light of other settings."""
        if settings == self._settings:
            return
        self._settings = settings
        self.close(dark=True)
        self._open()
        self._show()

    def close(self, *, dark: bool = False) -> None:
        """Give the light back.

        :param dark: it shows nothing from now on.
        """
        if self._light is not None:
            try:
                self._light.close(dark=dark)
            except OSError as error:
                log.warning("the light cannot be made dark: %s", error)
        self._light, self._shown = None, ""

    def tell(self, document: dict[str, Any]) -> None:
        """Show the state of a status document."""
        self._wanted = judge(document)
        self._show()

    def identify(self, seconds: float) -> None:
        """Show for so many seconds which node this is; 0 ends it.

        :raises RequestError: it has no light.
        """
        if self._light is None:
            raise RequestError(
                "no-light",
                f"this node has no light {self._settings.name!r} (/sys/class/leds), and none at a "
                "GPIO ([led] in thicket.toml)",
            )
        if self._identifying is not None:
            self._identifying.cancel()
            self._identifying = None
        if seconds > 0:
            loop = asyncio.get_running_loop()
            self._identifying = loop.call_later(min(seconds, MOST_IDENTIFY), self._identified)
        self._show()

    def _identified(self) -> None:
        self._identifying = None
        self._show()

    def _open(self) -> None:
        self._problems.clear("led")
        number = self._settings.gpio
        if number == -1:
            self._light = led.kernel_light(self._paths, self._settings.name)
            return
        from thicket.device.gpio_light import gpio_light  # few nodes have one

        try:
            self._light = gpio_light(self._paths, number, low=self._settings.active == "low")
        except GpioError as error:
            self._problems.report("led", "gpio", f"the light shows nothing: {error}", "warning")

    def _show(self) -> None:
        name = "identify" if self._identifying is not None else self._wanted
        if self._light is None or name == self._shown:
            return
        self._shown = name
        try:
            self._light.show(name)
        except (OSError, GpioError) as error:
            # as a kernel without the trigger does; the next pattern tries again
            log.warning("the light cannot show %s: %s", name, error)

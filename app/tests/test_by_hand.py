# SPDX-License-Identifier: Apache-2.0
"""What a person at a device presses and sees: the reset's button, and the light."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from thicket.base.errors import RequestError
from thicket.base.fields import ConfigError
from thicket.base.paths import Paths
from thicket.base.problems import Problems
from thicket.cli.by_hand import identify
from thicket.cli.common import UsageError
from thicket.config.parse import parse
from thicket.daemon.led_part import LedPart, judge
from thicket.device import gpio, reset_button
from thicket.device.gpio import GpioError, Line
from thicket.device.led import PATTERNS, kernel_light, kernel_text
from thicket.device.reset_button import Button
from thicket.device.section import LedSection, ResetSection
from thicket.upkeep import by_hand

# -- the kernel's interface

HEADER = """
#include <linux/gpio.h>
#include <stddef.h>
#include <stdio.h>
#define LINE struct gpio_v2_line_request
#define VALUES struct gpio_v2_line_values
#define SAY(name, value) printf("%s %lu\\n", name, (unsigned long)(value))
#define FLAG(name) SAY(#name, GPIO_V2_LINE_FLAG_##name)
int main(void)
{
    SAY("chip_info", sizeof(struct gpiochip_info));
    SAY("label", offsetof(struct gpiochip_info, label));
    SAY("request", sizeof(LINE));
    SAY("consumer", offsetof(LINE, consumer));
    SAY("flags", offsetof(LINE, config.flags));
    SAY("num_attrs", offsetof(LINE, config.num_attrs));
    SAY("num_lines", offsetof(LINE, num_lines));
    SAY("fd", offsetof(LINE, fd));
    SAY("values", sizeof(VALUES));
    SAY("mask", offsetof(VALUES, mask));
    SAY("GET_CHIP_INFO", GPIO_GET_CHIPINFO_IOCTL);
    SAY("GET_LINE", GPIO_V2_GET_LINE_IOCTL);
    SAY("GET_VALUES", GPIO_V2_LINE_GET_VALUES_IOCTL);
    SAY("SET_VALUES", GPIO_V2_LINE_SET_VALUES_IOCTL);
    FLAG(ACTIVE_LOW);
    FLAG(INPUT);
    FLAG(OUTPUT);
    FLAG(BIAS_PULL_UP);
    FLAG(BIAS_PULL_DOWN);
    return 0;
}
"""


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the kernel's own header says."""
    if shutil.which("cc") is None or not Path("/usr/include/linux/gpio.h").exists():
        pytest.skip("no compiler, or no linux/gpio.h")
    folder = tmp_path_factory.mktemp("header")
    (folder / "gpio.c").write_text(HEADER)
    subprocess.run(["cc", "-o", folder / "gpio", folder / "gpio.c"], check=True)
    said = subprocess.run([folder / "gpio"], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in said.splitlines())}


def test_numbers_and_sizes_are_those_of_the_kernel_s_header(header: dict[str, int]) -> None:
    assert gpio.CHIP_INFO.size == header["chip_info"]
    assert gpio.LINE_REQUEST.size == header["request"]
    assert gpio.LINE_VALUES.size == header["values"]
    for name in ("GET_CHIP_INFO", "GET_LINE", "GET_VALUES", "SET_VALUES"):
        assert getattr(gpio, name) == header[name], name
    for flag in ("ACTIVE_LOW", "INPUT", "OUTPUT", "BIAS_PULL_UP", "BIAS_PULL_DOWN"):
        assert getattr(gpio, flag.removeprefix("BIAS_")) == header[flag], flag


def test_each_field_is_where_the_header_has_it(header: dict[str, int]) -> None:
    mark = 0x5A
    for place, name in ((65, "flags"), (66, "num_attrs"), (68, "num_lines"), (70, "fd")):
        values: list[Any] = [*[0] * 64, b"", 0, 0, b"", 0, 0, 0]
        values[place] = mark
        assert gpio.LINE_REQUEST.pack(*values).index(mark) == header[name], name
    packed = gpio.LINE_REQUEST.pack(*[0] * 64, b"Z", 0, 0, b"", 0, 0, 0)
    assert packed.index(b"Z") == header["consumer"]
    assert gpio.LINE_VALUES.pack(0, mark).index(mark) == header["mask"]
    assert gpio.CHIP_INFO.pack(b"", b"Z", 0).index(b"Z") == header["label"]


# -- a header with pins, in place of the kernel's driver


class Header:
    """Chips and their lines, by what the kernel's header says of requests to them."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.devices = root / "dev"
        self.devices.mkdir(exist_ok=True)
        self.high: dict[int, bool] = {}
        self.asked: list[tuple[int, int]] = []
        self.writes: list[tuple[int, bool]] = []
        self._lines: dict[int, tuple[int, int]] = {}
        self.add("gpiochip0", "raspberrypi-exp-gpio")
        self.add("gpiochip1", "pinctrl-rp1")
        monkeypatch.setattr(fcntl, "ioctl", self.ioctl)

    def add(self, name: str, label: str) -> None:
        (self.devices / name).write_text(label)

    def ioctl(self, fd: int, request: int, data: bytes) -> bytes:
        if request == gpio.GET_CHIP_INFO:
            label = os.pread(fd, 32, 0)
            return gpio.CHIP_INFO.pack(b"gpiochip", label, 54)
        if request == gpio.GET_LINE:
            assert os.pread(fd, 32, 0) == b"pinctrl-rp1"
            fields = gpio.LINE_REQUEST.unpack(data)
            number, flags = fields[0], fields[65]
            assert fields[68] == 1
            line = os.open(os.devnull, os.O_RDONLY)
            self._lines[line] = number, flags
            self.asked.append((number, flags))
            return gpio.LINE_REQUEST.pack(*fields[:-1], line)
        number, flags = self._lines[fd]
        low = bool(flags & gpio.ACTIVE_LOW)
        bits, mask = gpio.LINE_VALUES.unpack(data)
        assert mask == 1
        if request == gpio.GET_VALUES:
            pulled_up = bool(flags & gpio.PULL_UP)
            return gpio.LINE_VALUES.pack(int(self.high.get(number, pulled_up) != low), mask)
        assert request == gpio.SET_VALUES
        assert flags & gpio.OUTPUT
        self.high[number] = bool(bits) != low
        self.writes.append((number, self.high[number]))
        return data


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    for folder in ("data", "run/thicket", "sys/class/leds"):
        (tmp_path / folder).mkdir(parents=True)
    return Paths(str(tmp_path))


@pytest.fixture
def pins(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> Header:
    return Header(Path(paths.root), monkeypatch)


def test_a_line_is_one_of_the_header(paths: Paths, pins: Header) -> None:
    with Line(paths, 17, low=True) as line:
        assert not line.get()
        pins.high[17] = False
        assert line.get()
    assert pins.asked == [(17, gpio.INPUT | gpio.ACTIVE_LOW | gpio.PULL_UP)]
    with Line(paths, 22, low=False) as line:
        assert not line.get()
    assert pins.asked[-1] == (22, gpio.INPUT | gpio.PULL_DOWN)


def test_a_machine_without_a_header_says_so(paths: Paths) -> None:
    with pytest.raises(GpioError, match="no GPIOs of a Raspberry Pi"):
        Line(paths, 17, low=True)


# -- the button


class Presses:
    """A button that is pressed for some seconds of a clock of its own."""

    def __init__(self, seconds: float) -> None:
        self.now = 0.0
        self.seconds = seconds
        self.shown: list[str] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def held(self) -> bool:
        return reset_button.held(
            lambda: self.now < self.seconds, self.shown.append, clock=self.clock, sleep=self.sleep
        )


@pytest.mark.parametrize(
    ("seconds", "taken", "shown"),
    [
        (0, False, []),
        (0.2, False, ["held", "starting"]),
        (4.8, False, ["held", "starting"]),
        (5.5, True, ["held", "taken"]),
        (1e9, True, ["held", "taken"]),
    ],
)
def test_a_button_counts_that_is_held(seconds: float, taken: bool, shown: list[str]) -> None:
    press = Presses(seconds)
    assert press.held() is taken
    assert press.shown == shown
    assert press.now <= reset_button.HOLD + 1


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reset_button, "HOLD", 0.0)
    monkeypatch.setattr(reset_button, "LOOK", 0.0)


def test_one_press_is_one_reset(
    paths: Paths, pins: Header, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    assert not reset_button.at_start(paths)
    assert reset_button.follow(paths, Button(17, low=True)) is None
    assert reset_button.load(paths) == Button(17, low=True, armed=True)
    assert not reset_button.at_start(paths)
    pins.high[17] = False
    assert reset_button.at_start(paths)
    reset_button.spend(paths)
    # It is stuck: neither a start nor the daemon arms it.
    for _ in range(2):
        assert not reset_button.at_start(paths)
        words = reset_button.follow(paths, Button(17, low=True))
        assert words is not None
        assert "GPIO 17" in words
    pins.high[17] = True
    assert not reset_button.at_start(paths)
    pins.high[17] = False
    assert reset_button.at_start(paths)


def test_a_button_that_is_wired_the_wrong_way_never_erases(
    paths: Paths, pins: Header, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    pins.high[17] = False
    for _ in range(3):
        words = reset_button.follow(paths, Button(17, low=True))
        assert words is not None
        assert "wired the other way" in words
        assert not reset_button.at_start(paths)
    assert reset_button.follow(paths, Button(17, low=False)) is None
    assert reset_button.load(paths) == Button(17, low=False, armed=True)


def test_another_button_has_to_be_seen_released_itself(paths: Paths, pins: Header) -> None:
    reset_button.follow(paths, Button(17, low=True))
    pins.high[22] = False
    reset_button.follow(paths, Button(22, low=True))
    assert reset_button.load(paths) == Button(22, low=True, armed=False)
    reset_button.follow(paths, None)
    assert reset_button.load(paths) is None


@pytest.mark.parametrize(
    "text", ["", "17", "17 low", "17 low on", "x low armed", "\xff", "1 2 3 4"]
)
def test_a_damaged_note_is_no_button(paths: Paths, text: str) -> None:
    Path(paths.data, "reset").mkdir()
    Path(paths.data, "reset/button").write_bytes(text.encode("latin-1"))
    assert reset_button.load(paths) is None
    assert not reset_button.at_start(paths)


def test_what_is_wrong_with_the_button_is_told(paths: Paths, pins: Header) -> None:
    told = by_hand.follow(paths, ResetSection({"gpio": 17}), LedSection())
    assert told == []
    pins.high[17] = False
    Path(paths.data, "reset/button").unlink()
    ((code, words),) = by_hand.follow(paths, ResetSection({"gpio": 17}), LedSection())
    assert code == "button"
    (pins.devices / "gpiochip1").unlink()
    ((code, words),) = by_hand.follow(paths, ResetSection({"gpio": 17}), LedSection())
    assert "cannot be used: this machine has no GPIOs" in words


def test_a_reset_that_was_not_done_is_a_problem(paths: Paths) -> None:
    assert by_hand.look(paths) == (None, False, [])
    Path(paths.run, "reset-failed").write_text("/data can only be read\n")
    ((code, words),) = by_hand.look(paths).problems
    assert code == "not-done"
    assert "can only be read" in words


# -- the settings


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[reset]\ngpio = 3", "is the security chip's SCL"),
        ("[led]\ngpio = 14", "is the serial port's TX"),
        ("[reset]\ngpio = 28", "must be the number"),
        ("[reset]\ngpio = true", "must be the number"),
        ('[reset]\nactive = "up"', 'must be "low" or "high"'),
        ("[led]\ngpio = 17\n[reset]\ngpio = 17", "is the button's as well"),
        ('[led]\nname = "../x"', "must be ASCII letters"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(text.encode(), "file", {})


# -- the light


def kernel_led(paths: Paths, name: str = "ACT", most: int = 1, triggers: str = "[mmc0]") -> Path:
    folder = Path(paths.sys) / "class/leds" / name
    folder.mkdir()
    (folder / "max_brightness").write_text(f"{most}\n")
    (folder / "trigger").write_text(f"none {triggers} timer pattern\n")
    (folder / "pattern").write_text("")
    return folder


def test_the_kernel_plays_the_pattern(paths: Paths) -> None:
    folder = kernel_led(paths, most=255)
    light = kernel_light(paths, "ACT")
    assert light is not None
    light.show("joining")
    assert (folder / "trigger").read_text() == "pattern\n"
    assert (folder / "pattern").read_text() == "255 500 255 0 0 500 0 0\n"
    assert kernel_light(paths, "off") is None
    assert kernel_light(paths, "PWR") is None


@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_a_pattern_changes_at_once_and_never_dims(name: str) -> None:
    """ledtrig-pattern steps where the pair behind has the same brightness and no time."""
    numbers = [int(word) for word in kernel_text(PATTERNS[name], 1).split()]
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    assert len(pairs) == 2 * len(PATTERNS[name])
    for first, second in zip(pairs[::2], pairs[1::2], strict=True):
        assert second == (first[0], 0)
        assert first[1] > 0


def test_a_person_can_tell_the_patterns_apart() -> None:
    """By how often it flashes in a period, by how fast, and by how long it is lit."""

    def look(name: str) -> tuple[int, bool, bool]:
        steps = PATTERNS[name]
        lit = sum(step.ms for step in steps if step.lit)
        whole = sum(step.ms for step in steps)
        flashes = sum(step.lit for step in steps)
        return flashes, lit * 2 > whole, whole < 300

    states = ("joining", "joined", "alone", "updating", "problem", "starting")
    seen = {name: look(name) for name in states}
    periods = {name: sum(step.ms for step in PATTERNS[name]) for name in PATTERNS}
    assert len(set(seen.values())) >= 5
    # one flash a second, one in two seconds; and twice as fast to tell which node it is
    assert periods["alone"] > 1.5 * periods["joining"]
    assert periods["joining"] > 3 * periods["starting"] > 6 * periods["identify"]


def document(state: str = "joined", **members: Any) -> dict[str, Any]:
    told: dict[str, Any] = {
        "state": state, "installation": None, "slots": [], "peers": [], "cluster": {"nodes": []},
    }  # fmt: skip
    return told | members


PEER = {"state": "ESTAB"}


@pytest.mark.parametrize(
    ("told", "name"),
    [
        (document("starting"), "starting"),
        (document("joining"), "joining"),
        (document(), "alone"),
        (document(peers=[{"state": "LISTEN"}]), "alone"),
        (document(peers=[PEER]), "joined"),
        (document(cluster={"nodes": [{"state": "up"}]}), "joined"),
        (document(cluster={"nodes": [{"state": "connecting"}]}), "alone"),
        (document("degraded", peers=[PEER]), "problem"),
        (document("degraded", installation={"state": "writing"}), "updating"),
        (document(installation={"state": "installed"}, peers=[PEER]), "joined"),
        (document("joining", slots=[{"trial": True}]), "updating"),
    ],
)
def test_the_light_shows_the_state(told: dict[str, Any], name: str) -> None:
    assert judge(told) == name


def part(paths: Paths, **settings: Any) -> LedPart:
    return LedPart(paths, Problems(lambda: None), LedSection(settings))


def test_a_pattern_is_written_when_it_changes(paths: Paths) -> None:
    folder = kernel_led(paths)
    led_part = part(paths)
    led_part.tell(document())
    assert (folder / "pattern").read_text().split() == kernel_text(PATTERNS["alone"], 1).split()
    (folder / "pattern").write_text("untouched")
    led_part.tell(document())
    assert (folder / "pattern").read_text() == "untouched"
    led_part.tell(document("degraded"))
    assert (folder / "pattern").read_text().split() == kernel_text(PATTERNS["problem"], 1).split()


def test_a_light_that_is_not_used_any_more_is_dark(paths: Paths) -> None:
    folder, other = kernel_led(paths), kernel_led(paths, "PWR")
    led_part = part(paths)
    led_part.tell(document())
    led_part.follow(LedSection({"name": "PWR"}))
    assert (folder / "trigger").read_text() == "none\n"
    assert (other / "pattern").read_text().strip() == kernel_text(PATTERNS["alone"], 1)
    led_part.close()
    assert (other / "trigger").read_text() == "pattern\n", "the next daemon goes on"


def test_a_node_without_a_light_has_no_problem(paths: Paths) -> None:
    led_part = part(paths)
    led_part.tell(document())
    with pytest.raises(RequestError, match="has no light 'ACT'"):
        led_part.identify(1)


def test_a_kernel_that_refuses_costs_a_line_of_the_log(
    paths: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    folder = kernel_led(paths)
    led_part = part(paths)
    shutil.rmtree(folder)
    led_part.tell(document())
    led_part.tell(document())
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_identify_ends_by_itself(paths: Paths) -> None:
    folder = kernel_led(paths)
    led_part = part(paths)
    led_part.tell(document(peers=[PEER]))

    def shows(name: str) -> bool:
        return (folder / "pattern").read_text().strip() == kernel_text(PATTERNS[name], 1)

    led_part.identify(3600)
    assert shows("identify")
    led_part.tell(document("degraded"))
    assert shows("identify")
    led_part.identify(0)
    assert shows("problem")
    led_part.identify(0.01)
    assert shows("identify")
    async with asyncio.timeout(60):
        while not shows("problem"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_light_at_a_gpio_follows_the_pattern(paths: Paths, pins: Header) -> None:
    kernel_led(paths)
    led_part = part(paths, gpio=22)
    assert pins.asked == [(22, gpio.OUTPUT)]
    led_part.tell(document("starting"))
    async with asyncio.timeout(60):
        while len(pins.writes) < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert pins.writes[:5] == [(22, True), (22, False), (22, True), (22, False), (22, True)]
    led_part.follow(LedSection({"gpio": 23, "active": "low"}))
    assert pins.asked[-1] == (23, gpio.OUTPUT | gpio.ACTIVE_LOW)
    assert pins.writes[-1] == (23, False)
    led_part.close()


def test_a_gpio_that_cannot_be_had_is_a_problem(paths: Paths) -> None:
    problems = Problems(lambda: None)
    led_part = LedPart(paths, problems, LedSection({"gpio": 22}))
    (problem,) = problems.all()
    assert (problem["part"], problem["code"]) == ("led", "gpio")
    kernel_led(paths)
    led_part.follow(LedSection())
    assert problems.all() == []


def test_the_start_scripts_use_the_light_of_the_settings(paths: Paths) -> None:
    note = Path(paths.data, "led")
    by_hand.follow(paths, ResetSection(), LedSection())
    assert not note.exists()
    by_hand.follow(paths, ResetSection(), LedSection({"name": "PWR"}))
    assert note.read_text() == "PWR\n"
    by_hand.follow(paths, ResetSection(), LedSection({"gpio": 22}))
    assert note.read_text() == "off\n"
    by_hand.follow(paths, ResetSection(), LedSection())
    assert not note.exists()


@pytest.mark.parametrize("text", ["", "s", "-1", "1h", "3601", "61min", "9" * 5000, "\xb2s"])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no time up to an hour"):
        identify(["--for", text])

# SPDX-License-Identifier: Apache-2.0
"""The scripts of a node's start, run on this machine with folders in place of a node's.

Programs of a node that would change this machine are stand-ins, which note how they were called.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import PATIENCE

from firmware import boards
from thicket.cable import links
from thicket.device import led

OVERLAY = boards.ROOT / "overlay"

UEVENT = """#!{python}
# BusyBox's uevent: a device appears before it listens, and nothing is announced afterwards.
import os, pathlib, socket, time
device = pathlib.Path("{root}/sys/bus/usb/devices/1-1:1.0")
device.mkdir()
(device / "modalias").write_text("usb:late\\n")
listener = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 15)
listener.bind((os.getpid(), 1))
called = pathlib.Path("{root}/called")
deadline = time.monotonic() + {patience}
while "usb:late" not in called.read_text() and time.monotonic() < deadline:
    time.sleep(0.05)
"""


class Root:
    """A node's folders; scripts of the overlay are copied with their paths led here."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.called = path / "called"
        self.called.touch()
        for folder in ("bin", "sys/bus", "etc/init.d", "usr/lib/thicket", "run/thicket", "dev"):
            (path / folder).mkdir(parents=True)
        (path / "etc/inittab").touch()
        for name in ("zero", "null"):
            (path / "dev" / name).symlink_to(f"/dev/{name}")
        for name in ("modprobe", "kill"):
            self.program(name, f'#!/bin/sh\necho {name} "$@" >>{self.called}\n')
        for source in (*OVERLAY.glob("etc/init.d/*"), *OVERLAY.glob("usr/lib/thicket/**/*")):
            if source.is_file():
                self.copy(source)

    def copy(self, source: Path) -> None:
        text = source.read_text()
        for name in (
            "sys",
            "etc",
            "run",
            "dev",
            "usr/lib/thicket",
            "usr/share",
            "sbin",
            "data",
            "boot",
        ):
            for before in " <>:=(":
                text = text.replace(f"{before}/{name}/", f"{before}{self.path}/{name}/")
        text = text.replace("PATH=/usr/sbin:", f"PATH={self.path}/bin:/usr/sbin:")
        target = self.path / source.relative_to(OVERLAY)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(0o755)

    def program(self, name: str, text: str) -> None:
        made = self.path / "bin" / name
        made.write_text(text)
        made.chmod(0o755)

    def program_path(self, name: str) -> Path:
        """Make a program that does nothing; return where it is."""
        self.program(name, "#!/bin/sh\n")
        return self.path / "bin" / name

    def device(self, bus: str, name: str, alias: str, *, driver: bool = False) -> None:
        made = self.path / "sys/bus" / bus / "devices" / name
        made.mkdir(parents=True)
        (made / "modalias").write_text(f"{alias}\n")
        if driver:
            (made / "driver").mkdir()

    def adapter(self, tty: str, number: str | None) -> None:
        """Plug in a USB serial adapter."""
        port = self.path / "sys/devices" / tty / "1-1:1.0" / tty
        port.mkdir(parents=True)
        if number is not None:
            (port.parents[1] / "serial").write_text(f"{number}\n")
        driven = self.path / "sys/bus/usb-serial/devices"
        driven.mkdir(parents=True, exist_ok=True)
        (driven / tty).symlink_to(port)

    def source(self, script: str, before: str = "") -> None:
        """Read a script as rcS does: in a shell whose `kill` reaches nobody."""
        shell = f'kill() {{ :; }}; {before}\n. "{self.path}/etc/init.d/{script}"'
        subprocess.run(
            ["/bin/sh", "-c", shell, "rcS"],
            env={"PATH": f"{self.path}/bin:/usr/bin:/bin"},
            check=True,
            timeout=PATIENCE,
        )

    def modules(self) -> list[str]:
        """Names that modprobe was asked for."""
        calls = [line.split() for line in self.called.read_text().splitlines()]
        return [word for call in calls for word in call[1:] if not word.startswith("-")]


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path)


@pytest.mark.parametrize("bus", ["usb", "pci", "sdio", "platform", "i2c", "spi", "hid", "virtio"])
def test_the_start_loads_the_driver_of_a_device_of_every_bus(root: Root, bus: str) -> None:
    root.device(bus, "new", f"{bus}:new")
    root.device(bus, "served", f"{bus}:served", driver=True)
    root.source("S45modules.sh")
    assert f"{bus}:new" in root.modules()
    assert f"{bus}:served" not in root.modules()


def test_firmware_tables_and_processors_are_no_devices(root: Root) -> None:
    root.device("acpi", "PNP0A08:00", "acpi:PNP0A08:")
    root.device("cpu", "cpu0", "cpu:type:x86")
    root.source("S45modules.sh")
    assert root.modules() == ["mac80211"]


def test_a_simulator_has_its_channels_by_usb_where_the_kernel_was_told(root: Root) -> None:
    root.adapter("ttyUSB0", "thicket.shell.1")
    root.adapter("ttyUSB1", "thicket.hwsim.0")
    root.adapter("ttyUSB2", "AB0CDEF1")
    root.adapter("ttyUSB3", None)
    once = "sleep() { exit; }"  # no second look
    root.source("S50devices.sh", f"thicket_channels=; {once}")
    assert (root.path / "etc/inittab").read_text() == "", "an adapter alone opens nothing"
    root.source("S50devices.sh", f"thicket_channels=usb; {once}")
    tty = root.path / "dev/ttyUSB0"
    assert (root.path / "etc/inittab").read_text().splitlines() == [
        f"::respawn:sh <{tty} >{tty} 2>&1",
        "::respawn:/usr/sbin/hwsim-relay /dev/ttyUSB1",
    ]
    assert root.modules() == ["mac80211_hwsim", "radios=0"]


def test_an_adapter_that_appears_late_is_a_channel_all_the_same(root: Root) -> None:
    root.adapter("later", "thicket.hwsim.0")
    driven = root.path / "sys/bus/usb-serial/devices"
    plug = f"sleep() {{ mv {driven}/later {driven}/ttyUSB7 2>/dev/null; }}"
    root.source("S50devices.sh", f"thicket_channels=usb; {plug}")
    inittab = root.path / "etc/inittab"
    deadline = time.monotonic() + PATIENCE
    while "hwsim-relay" not in inittab.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (line,) = inittab.read_text().splitlines()
    assert line.endswith("/dev/ttyUSB7")


@pytest.mark.parametrize(
    ("card", "does", "said"),
    [
        ("", "echo no; exit 1", ""),
        ("/dev/card", "exit 0", ""),
        ("/dev/card", "echo slot B is on trial", "4 slot B is on trial\n"),
        (
            "/dev/card",
            "echo 'sector 16 cannot be read' >&2; exit 1",
            "3 sector 16 cannot be read\n",
        ),
    ],
)
def test_the_slots_are_judged_where_there_is_a_card(
    root: Root, card: str, does: str, said: str
) -> None:
    """Whatever comes of it, the start goes on."""
    slots = root.path / "usr/lib/thicket/boot-slots"
    slots.write_text(f'#!/bin/sh\necho boot-slots "$@" >>{root.called}\n{does}\n')
    heard = root.path / "said"
    heard.touch()
    root.source("S06boot.sh", f'card_disk={card}; say() {{ echo "$*" >>{heard}; }}; set -e')
    assert heard.read_text() == said
    assert root.called.read_text() == ("boot-slots begin\n" if card else "")


@pytest.mark.parametrize(
    ("asked", "seconds"), [("", 900), ("45", 45), ("soon", 900), ("-1", 900), ("123456", 900)]
)
def test_a_start_has_a_quarter_of_an_hour_to_get_well(root: Root, asked: str, seconds: int) -> None:
    slots = root.path / "usr/lib/thicket/boot-slots"
    slots.write_text(f'#!/bin/sh\necho boot-slots "$@" >>{root.called}\n')
    quick = f'sleep() {{ echo sleep "$@" >>{root.called}; }}'
    quick = f"thicket_late={asked}; {quick}"
    root.source("S95late.sh", f"card_disk=; {quick}")
    assert root.called.read_text() == ""
    root.source("S95late.sh", f"card_disk=/dev/card; {quick}")
    deadline = time.monotonic() + PATIENCE
    while "late" not in root.called.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert root.called.read_text() == f"sleep {seconds}\nboot-slots late\n"


def test_a_device_without_a_name_starts_nothing(root: Root) -> None:
    root.device("platform", "nameless", "")
    root.source("S45modules.sh")
    assert root.modules() == ["mac80211"]


def test_a_device_that_appears_before_the_listener_listens_gets_its_driver(root: Root) -> None:
    root.device("usb", "usb1", "usb:hub", driver=True)
    root.program("uevent", UEVENT.format(python=sys.executable, root=root.path, patience=PATIENCE))
    root.source("S45modules.sh")
    (line,) = (root.path / "etc/inittab").read_text().splitlines()
    assert line.startswith("::respawn:")
    subprocess.run(
        ["/bin/sh", "-c", "exec " + line.removeprefix("::respawn:")],
        env={"PATH": f"{root.path}/bin:/usr/bin:/bin"},
        check=True,
        timeout=2 * PATIENCE,
    )
    assert "usb:late" in root.modules()


def test_the_listener_starts_where_no_host_controller_has_appeared_yet(root: Root) -> None:
    (root.path / "sys/bus/usb/devices").mkdir(parents=True)
    root.source("S45modules.sh")
    assert "hotplug listen" in (root.path / "etc/inittab").read_text()


def test_an_announced_device_gets_its_driver(root: Root) -> None:
    hotplug = root.path / "usr/lib/thicket/hotplug"
    for action in ("add", "remove", "bind"):
        subprocess.run([hotplug], env={"ACTION": action, "MODALIAS": f"usb:{action}"}, check=True)
    subprocess.run([hotplug], env={"ACTION": "add"}, check=True)
    assert root.modules() == ["usb:add"]


# -- the power button


def test_init_gets_a_program_for_a_button_where_there_is_one(root: Root) -> None:
    inittab = root.path / "etc/inittab"
    root.source("S50devices.sh")
    assert inittab.read_text() == ""
    (root.path / "dev/input").mkdir()
    (root.path / "dev/input/event0").symlink_to("/dev/null")
    root.source("S50devices.sh")
    assert inittab.read_text() == "", "an image without the program"
    (root.path / "sbin").mkdir()
    for name in ("acpid", "poweroff"):
        program = root.path / "sbin" / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >>{root.called}\n')
        program.chmod(0o755)
    root.source("S50devices.sh")
    (line,) = inittab.read_text().splitlines()
    words = line.removeprefix("::respawn:").split()
    subprocess.run(words, check=True, timeout=PATIENCE)
    # BusyBox's name for the key, below the folder that it was given.
    folder = Path(words[words.index("-c") + 1])
    subprocess.run([folder / "PWRF/00000080"], check=True, timeout=PATIENCE)
    calls = root.called.read_text().splitlines()
    assert calls[0].startswith("acpid -f ")
    assert calls[1:] == ["poweroff"]


# -- /data


DATA_TEST = """
say() {{ :; }}
kill() {{ command kill "$@"; }}
find_device() {{ device={device}; }}
thicket_data={device} card_disk='' card_data={sys}
. "{root}/etc/init.d/S20data.sh"
"""


def ext4(path: Path, mib: int, *options: str) -> None:
    subprocess.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", *options, str(path), f"{mib}M"],
        env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"},
        check=True,
        capture_output=True,
    )


class Data:
    """A node's data device (a file), and S20data.sh that brings up /data with it."""

    def __init__(self, root: Root) -> None:
        self.root = root
        self.device = root.path / "device.img"
        self.sys = root.path / "sys/class/block/device.img"
        self.sys.mkdir(parents=True)
        for name in ("e2fsck", "mke2fs", "mount"):
            root.program(name, f'#!/bin/sh\necho {name} "$@" >>{root.called}\n')

    def up(self) -> str:
        """What /run/thicket/data says then."""
        (self.sys / "size").write_text(f"{self.device.stat().st_size // 512}\n")
        text = DATA_TEST.format(device=self.device, sys=self.sys, root=self.root.path)
        subprocess.run(
            ["/bin/sh", "-c", text, "rcS"],
            env={"PATH": f"{self.root.path}/bin:/usr/bin:/bin"},
            check=True,
            timeout=PATIENCE,
        )
        return (self.root.path / "run/thicket/data").read_text().strip()

    def calls(self) -> list[str]:
        return [line.split()[0] for line in self.root.called.read_text().splitlines()]


@pytest.fixture
def data(root: Root) -> Data:
    return Data(root)


@pytest.mark.parametrize("options", [(), ("-O", "^64bit"), ("-O", "^metadata_csum")])
def test_a_file_system_cut_off_is_made_anew_without_a_check(
    data: Data, options: tuple[str, ...]
) -> None:
    ext4(data.device, 240, *options)
    with data.device.open("r+b") as file:
        file.truncate(130 << 20)
    said = data.up()
    assert said.startswith("rebuilt the device ends at 130 MiB, inside a file system of 240 MiB")
    assert "e2fsck" not in data.calls()
    assert "mke2fs" in data.calls()


@pytest.mark.parametrize("larger", [0, 60])
def test_a_file_system_that_fits_is_checked_and_kept(data: Data, larger: int) -> None:
    ext4(data.device, 240)
    with data.device.open("r+b") as file:
        file.truncate((240 + larger) << 20)
    assert data.up() == "clean"
    assert "e2fsck" in data.calls()
    assert "mke2fs" not in data.calls()


def test_a_device_without_a_superblock_is_left_to_the_check(data: Data) -> None:
    data.device.write_bytes(b"\xff" * (1 << 20))
    assert data.up() == "clean"
    assert "e2fsck" in data.calls()


def test_the_size_of_two_to_the_forty_eighth_blocks_is_a_size(data: Data) -> None:
    ext4(data.device, 16)
    with data.device.open("r+b") as file:
        file.seek(1024 + 0x150)
        file.write((0xFFFF).to_bytes(4, "little"))
    assert data.up().startswith("rebuilt the device ends at 16 MiB")


@pytest.mark.parametrize("stopped", ["-p", "-f"])
def test_a_check_that_was_stopped_leaves_the_data_readable(data: Data, stopped: str) -> None:
    ext4(data.device, 16)
    data.root.program("e2fsck", f'#!/bin/sh\n[ "$1" != {stopped} ] || kill -KILL $$\nexit 4\n')
    assert data.up().startswith("readonly the ")
    assert "mke2fs" not in data.calls()


@pytest.mark.parametrize("stopped", ["-p", "-f"])
def test_a_check_that_was_stopped_on_what_cannot_be_read_ends_in_new_data(
    data: Data, stopped: str
) -> None:
    ext4(data.device, 16)
    data.root.program("e2fsck", f'#!/bin/sh\n[ "$1" != {stopped} ] || kill -KILL $$\nexit 4\n')
    data.root.program("mount", "#!/bin/sh\ncase $* in *noload*) exit 32 ;; esac\n")
    assert "no progress and was stopped" in data.up()
    assert data.up().startswith("rebuilt ")


def test_a_new_file_system_leaves_its_tables_for_later(data: Data) -> None:
    data.device.write_bytes(bytes(1 << 20))
    assert data.up() == "created on a blank device"
    calls = data.root.called.read_text()
    assert "lazy_itable_init=1" in calls
    assert "noinit_itable" not in calls


def test_a_start_is_watched_until_it_ends() -> None:
    lines = (OVERLAY / "etc/init.d/rcS").read_text().splitlines()
    begin = lines.index("\texec /usr/lib/thicket/start-watch $$")
    scripts = next(n for n, line in enumerate(lines) if line.startswith("for script in"))
    assert begin < scripts < lines.index('kill "$start_watch"')
    assert lines[-1] == 'wait "$start_watch" 2>/dev/null'


def test_the_data_file_system_has_room_for_times_after_2038(data: Data, tmp_path: Path) -> None:
    """Inodes of 128 bytes, which older versions of mke2fs make, end in January 2038."""
    ext4(data.device, 240)
    with data.device.open("r+b") as file:
        file.truncate(130 << 20)
    data.up()
    (made,) = [line for line in data.root.called.read_text().splitlines() if "mke2fs" in line]
    words = made.split()[1:]
    assert words[words.index("-I") + 1] == "256"
    image = tmp_path / "made.img"
    image.touch()
    os.truncate(image, 130 << 20)
    path = {"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"}
    command = ["mke2fs", *words[:-1], str(image)]
    subprocess.run(command, env=path, check=True, capture_output=True)
    shown = subprocess.run(
        ["dumpe2fs", "-h", str(image)], env=path, check=True, capture_output=True, text=True
    ).stdout
    assert re.search(r"^Inode size:\s+256$", shown, re.MULTILINE)


# -- state of another format


class Kept:
    """What a node keeps in its folders, and S35format.sh that looks at them."""

    MIGRATE = """#!/bin/sh
echo migrate "${1##*/}" >>CALLED
[ ! -e "$1/broken" ] || { echo "cannot be read" >&2; exit 1; }
cp -r "$1" "$2" && cat SHARE >"$2/format"
"""

    def __init__(self, root: Root) -> None:
        self.root = root
        self.data = root.path / "data"
        self.data.mkdir()
        self.image = root.path / "usr/share/thicket/data-format"
        self.image.parent.mkdir(parents=True)
        root.program("mount", f'#!/bin/sh\necho mount "$@" >>{root.called}\n')
        text = self.MIGRATE.replace("CALLED", str(root.called)).replace("SHARE", str(self.image))
        (root.path / "usr/lib/thicket/migrate-data").write_text(text)

    def folder(self, name: str, number: int | None, **files: str) -> Path:
        made = self.data / name
        made.mkdir()
        if number is not None:
            (made / "format").write_text(f"{number}\n")
        for file, text in files.items():
            (made / file).write_text(text)
        return made

    def start(self, number: int) -> list[str]:
        """Start an image of a format; return what was called."""
        self.image.write_text(f"{number}\n")
        self.root.called.write_text("")
        self.root.source("S35format.sh", "say() { :; };")
        return self.root.called.read_text().splitlines()

    def bound(self, name: str) -> str:
        return f"mount -o bind {self.data}/{name} {self.data}/thicket"


@pytest.fixture
def kept(root: Root) -> Kept:
    return Kept(root)


def test_state_of_the_image_s_own_format_is_used_as_it_is(kept: Kept) -> None:
    kept.folder("thicket", None, a="1")
    assert kept.start(1) == []
    (kept.data / "thicket/format").write_text("3\n")
    assert kept.start(3) == []


def test_a_blank_data_partition_gets_the_image_s_format(kept: Kept) -> None:
    assert kept.start(1) == []
    assert list((kept.data / "thicket").iterdir()) == []
    (kept.data / "thicket").rmdir()
    assert kept.start(2) == []
    assert (kept.data / "thicket/format").read_text() == "2\n"


def test_older_state_is_migrated_once_on_a_copy(kept: Kept) -> None:
    kept.folder("thicket", None, a="old")
    assert kept.start(3) == ["migrate thicket", kept.bound("thicket.3")]
    assert (kept.data / "thicket.3/a").read_text() == "old"
    assert kept.start(3) == [kept.bound("thicket.3")]
    # The newest of the older ones.
    (kept.data / "thicket.3/a").write_text("new")
    assert kept.start(4) == ["migrate thicket.3", kept.bound("thicket.4")]
    assert (kept.data / "thicket.4/a").read_text() == "new"
    # On the way back each finds what it left.
    assert kept.start(1) == []
    assert kept.start(3) == [kept.bound("thicket.3")]


def test_an_image_that_knows_newer_state_only_begins_anew(kept: Kept) -> None:
    kept.folder("thicket", 2, a="new")
    assert kept.start(1) == [kept.bound("thicket.1")]
    assert (kept.data / "thicket.1/format").read_text() == "1\n"
    assert (kept.data / "thicket/a").read_text() == "new"


def test_state_that_cannot_be_migrated_is_left_alone(kept: Kept) -> None:
    kept.folder("thicket", None, broken="1")
    assert kept.start(2) == ["migrate thicket", kept.bound("thicket.2")]
    assert (kept.data / "thicket.2/format").read_text() == "2\n"
    assert (kept.data / "thicket/broken").exists()


@pytest.mark.parametrize("text", ["", "x", "12345", "1 2", "-1"])
def test_a_format_that_is_no_number_is_the_first(kept: Kept, text: str) -> None:
    kept.folder("thicket", None)
    (kept.data / "thicket/format").write_text(f"{text}\n")
    assert kept.start(1) == []


# -- by hand


def resets(root: Root, does: str) -> list[str]:
    """Run S32reset.sh with a program that does this; return what it said."""
    (root.path / "usr/lib/thicket/factory-reset").write_text(
        f"#!/bin/sh\necho factory-reset >>{root.called}\n{does}\n"
    )
    said = root.path / "said"
    said.write_text("")
    root.called.write_text("")
    root.source("S32reset.sh", f'say() {{ echo "$*" >>{said}; }}; set -e')
    return said.read_text().splitlines()


@pytest.mark.parametrize(
    "file",
    ["data/reset/request", "data/reset/button", "boot/factory-reset", "boot/factory-reset.txt"],
)
def test_a_start_asks_for_a_reset_only_where_there_may_be_one(root: Root, file: str) -> None:
    assert resets(root, "echo done") == []
    assert root.called.read_text() == "", "a program was started"
    (root.path / file).parent.mkdir(parents=True)
    (root.path / file).touch()
    assert resets(root, "echo done") == ["5 done"]
    assert resets(root, "exit 0") == []
    assert resets(root, "echo cannot >&2; exit 1") == ["3 cannot"]


def test_a_reset_is_done_before_anything_uses_what_it_erases() -> None:
    names = sorted(path.name for path in (OVERLAY / "etc/init.d").glob("S*"))
    order = ["S20data.sh", "S30boot.sh", "S32reset.sh", "S35format.sh", "S40state.sh"]
    assert [name for name in names if name in order] == order


def light(root: Root, name: str, most: int) -> Path:
    folder = root.path / "sys/class/leds" / name
    folder.mkdir(parents=True)
    (folder / "trigger").write_text("[mmc0]\n")
    (folder / "max_brightness").write_text(f"{most}\n")
    return folder


def test_the_light_shows_the_start(root: Root) -> None:
    root.source("S25led.sh", "set -e")
    for name, most in (("ACT", 255), ("PWR", 1)):
        folder = light(root, name, most)
        root.source("S25led.sh", "set -e")
        assert (folder / "trigger").read_text() == "pattern\n"
        shown = (folder / "pattern").read_text().strip()
        assert shown == led.kernel_text(led.PATTERNS["starting"], most)
        (root.path / "data").mkdir(exist_ok=True)
        (root.path / "data/led").write_text("PWR\n")


@pytest.mark.parametrize("note", ["off", "", "../leds/ACT", "none"])
def test_a_light_that_is_not_wanted_is_left_alone(root: Root, note: str) -> None:
    folder = light(root, "ACT", 1)
    (root.path / "data").mkdir()
    (root.path / "data/led").write_text(f"{note}\n")
    root.source("S25led.sh", "set -e")
    assert (folder / "trigger").read_text() == "[mmc0]\n"


@pytest.mark.parametrize(
    ("mark", "found"),
    [
        ("running", "running"),
        ("stopped", "stopped"),
        ("overdue", "overdue"),
        ("ru", "damaged"),
        (None, "none"),
    ],
)
def test_a_start_notes_how_the_run_before_ended(root: Root, mark: str | None, found: str) -> None:
    data = root.path / "data"
    for folder in ("thicket/incoming/abc", "log"):
        (data / folder).mkdir(parents=True)
    if mark is not None:
        (data / "thicket/run").write_text(f"{mark}\n")
    (data / "thicket/incoming/abc/v2.raucb").write_text("of an operator who has gone")
    for name, text in (("system.txt", "new"), ("system-before.txt", "old")):
        (data / "log" / name).write_text(text)
    root.source("S40state.sh", "clock_not_before() { :; }")
    assert (root.path / "run/thicket/last-run").read_text() == f"{found}\n"
    assert (data / "thicket/run").read_text().startswith("running\n")
    assert not (data / "thicket/incoming").exists()
    # The log of the run before takes the place of an older one; without one that stays.
    root.source("S40state.sh", "clock_not_before() { :; }")
    assert [path.name for path in (data / "log").iterdir()] == ["system-before.txt"]
    assert (data / "log/system-before.txt").read_text() == "new"


CLOCK = OVERLAY / "etc/init.d/S08clock.sh"


@pytest.mark.parametrize(
    ("told", "set_to"),
    [
        ("1800000000", "@1800000000"),
        ("1700000000", ""),  # before what the clock shows: a battery that was dead
        ("0", ""),
        ("5000000000", ""),  # 2128
        ("99999999999999999999", ""),
        ("-5", ""),
        ("", ""),
        ("1800000000x", ""),
    ],
)
def test_a_batterys_clock_is_believed_where_it_is_later_than_the_image(
    tmp_path: Path, told: str, set_to: str
) -> None:
    """The functions of S08clock.sh, with a date that sets no clock."""
    rtc = tmp_path / "since_epoch"
    rtc.write_text(told + "\n")
    text = CLOCK.read_text()
    functions = text[: text.index("\nclock_not_before /usr")]
    script = f"""
say() {{ echo "said $2"; }}
date() {{
    case $1 in
    -s) echo "$2" >{tmp_path}/set ;;
    -r) echo 1750000000 ;;
    *) echo 1750000000 ;;
    esac
}}
{functions}
clock_of_battery {rtc}
clock_of_battery {tmp_path}/none
"""
    done = subprocess.run(
        ["busybox", "sh", "-c", script], capture_output=True, text=True, check=True
    )
    found = tmp_path / "set"
    assert (found.read_text().strip() if found.exists() else "") == set_to
    assert ("not believed" in done.stdout) == (told == "5000000000")
    assert done.stderr == ""


class TestCable:
    """Wired interfaces, brought up for a person who comes with a cable."""

    @pytest.fixture
    def cable(self, root: Root) -> Root:
        for name in ("ifconfig", "zcip"):
            root.program(name, f'#!/bin/sh\necho {name} "$@" >>{root.called}\n')
        self.interface(root, "lo", 772)
        self.interface(root, "eth0", 1, "device")
        self.interface(root, "usb0", 1, "device")
        self.interface(root, "mesh0", 1, "device", "phy80211")
        self.interface(root, "br0", 1)
        self.interface(root, "eth1", 1, "device", "master")
        return root

    @staticmethod
    def interface(root: Root, name: str, kind: int, *signs: str) -> None:
        folder = root.path / "sys/class/net" / name
        folder.mkdir(parents=True)
        (folder / "type").write_text(f"{kind}\n")
        for sign in signs:
            (folder / sign).mkdir()

    @staticmethod
    def run(root: Root, *words: str, **variables: str) -> int:
        done = subprocess.run(
            ["/bin/sh", str(root.path / "usr/lib/thicket/cable"), *words],
            env={"PATH": "/usr/bin:/bin", **variables},
            check=False,
            timeout=PATIENCE,
        )
        return done.returncode

    @staticmethod
    def until(root: Root, *wanted: str) -> None:
        """Wait for what was called; programs in the background are late."""
        deadline = time.monotonic() + PATIENCE
        while sorted(root.called.read_text().splitlines()) != sorted(wanted):
            assert time.monotonic() < deadline, root.called.read_text()
            time.sleep(0.02)

    def test_all_that_are_there_and_nothing_else(self, cable: Root) -> None:
        assert self.run(cable, "up") == 0
        program = f"{cable.path}/usr/lib/thicket/cable"
        up = ("ifconfig eth0 up", "ifconfig usb0 up")
        self.until(cable, *up, f"zcip -f eth0 {program}", f"zcip -f usb0 {program}")
        assert (cable.path / "run/thicket/cables").read_text() == "eth0\nusb0\n"
        assert links.cables(str(cable.path / "sys")) == ("eth0", "usb0"), "as the daemon sees it"

    def test_an_uplink_is_none_and_is_left_where_it_was_one(self, cable: Root) -> None:
        kept = cable.path / "data/ssh/uplink"
        kept.parent.mkdir(parents=True)
        kept.write_text("eth0\n")
        assert self.run(cable, "up") == 0
        program = f"{cable.path}/usr/lib/thicket/cable"
        begun = ["ifconfig usb0 up", f"zcip -f usb0 {program}"]
        self.until(cable, *begun)
        assert (cable.path / "run/thicket/cables").read_text() == "usb0\n"
        # What the daemon says counts more than what it has kept.
        with subprocess.Popen(["sleep", "600"]) as address:
            (cable.path / "run/thicket/cable.usb0").write_text(f"{address.pid}\n")
            assert self.run(cable, "up", "usb0") == 0
            assert address.wait(PATIENCE) == -15
        more = ["ifconfig usb0 0.0.0.0", "ifconfig eth0 up", f"zcip -f eth0 {program}"]
        self.until(cable, *begun, *more)
        assert not (cable.path / "run/thicket/cable.usb0").exists()
        assert self.run(cable, "up", "") == 0
        assert (cable.path / "run/thicket/cables").read_text() == "eth0\nusb0\n"

    def test_one_that_cannot_be_brought_up_does_not_stop_the_others(self, cable: Root) -> None:
        cable.program("ifconfig", f'#!/bin/sh\necho "$@" >>{cable.called}\n[ "$1" != eth0 ]\n')
        (cable.path / "bin/zcip").unlink()
        assert self.run(cable, "up") == 1
        self.until(cable, "eth0 up", "usb0 up")
        assert (cable.path / "run/thicket/cables").read_text() == "eth0\nusb0\n"

    def test_an_address_of_the_link_and_no_route(self, cable: Root) -> None:
        there = {"interface": "eth0", "ip": "169.254.7.8"}
        for action in ("init", "config", "deconfig"):
            assert self.run(cable, action, "eth0", **there) == 0
        self.until(
            cable,
            "ifconfig eth0 169.254.7.8 netmask 255.255.0.0 broadcast 169.254.255.255",
            "ifconfig eth0 0.0.0.0",
        )
        assert self.run(cable, "other") == 2

    @pytest.mark.parametrize("closed", [False, True])
    def test_a_start_opens_them_where_ssh_is_open(self, cable: Root, closed: bool) -> None:
        keys = cable.path / "data/ssh/authorized_keys"
        keys.parent.mkdir(parents=True)
        (cable.path / "sbin").mkdir()
        keys.write_text("ssh-ed25519 AAAA\n")
        if closed:
            (cable.path / "data/ssh/no-cable").touch()
        script = cable.path / "etc/init.d/S60access.sh"
        server = cable.program_path("dropbear")
        script.write_text(script.read_text().replace("/usr/sbin/dropbear", str(server)))
        cable.source("S60access.sh", "add_line() { :; }; tell_init() { :; }; say() { :; }")
        assert (cable.path / "run/thicket/cable").exists() is not closed
        if not closed:
            deadline = time.monotonic() + PATIENCE
            while not (cable.path / "run/thicket/cables").exists():
                assert time.monotonic() < deadline
                time.sleep(0.02)

    @pytest.mark.parametrize("wanted", [False, True])
    def test_one_that_appears_later(self, cable: Root, wanted: bool) -> None:
        if wanted:
            (cable.path / "run/thicket/cable").touch()
        subprocess.run(
            ["/bin/sh", str(cable.path / "usr/lib/thicket/hotplug")],
            env={"PATH": "/usr/bin:/bin", "ACTION": "add", "SUBSYSTEM": "net", "INTERFACE": "usb0"},
            check=True,
            timeout=PATIENCE,
        )
        assert (cable.path / "run/thicket/cables").exists() is wanted

# SPDX-License-Identifier: Apache-2.0
"""An application alone on a node that starts from a card: installed, called, replaced, taken back.

The kernel mounts the files by loop devices; a stick has them on it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from meshlab.lab.testing import HANGS

sys.path.insert(0, str(Path(__file__).parent))
from apps_for_tests import ABOUT, lamp, packed
from bundles_for_tests import update_key
from card_device import Device
from card_images import loaded
from fleet_for_tests import PREFIX, one_fleet

from thicket.trust.certificates import pem

pytestmark = [pytest.mark.lab, pytest.mark.timeout(HANGS, func_only=True)]

BLOCK = 64 * 1024
RADIO = "rmmod mac80211_hwsim && modprobe mac80211_hwsim radios=1"
"""Gives the node a simulated radio, without which it is in no cluster; nobody else hears it."""
LIST = "thicket app list"
CALL = "thicket call $(hostname) lamp.version"
CONFIG = f"""[mesh]
id = "boot-test"
security = "open"
[cluster]
security = "cookie"
[discovery]
beacon = "plain"
[address]
prefix = "{PREFIX}"
[update]
health_time = 10
[trust]
root = \"\"\"
{pem(one_fleet().fleet.root.der)}\"\"\"
"""


def stick(folder: Path) -> tuple[Path, list[int]]:
    """Return a disk with version 1 and a version 2 that fails, and the size of each."""
    key = update_key()
    files = [
        packed(folder, lamp("1.0"), ABOUT, key),
        packed(
            folder,
            lamp("2.0", "raise OSError('no lamp')"),
            ABOUT._replace(version="2.0", number=2_000),
            key,
        ),
    ]
    path = folder / "stick"
    path.write_bytes(b"".join(file.read_bytes().ljust(BLOCK, b"\0") for file in files))
    return path, [file.stat().st_size for file in files]


async def test_an_application_is_installed_judged_and_taken_back(tmp_path: Path) -> None:
    disk, sizes = stick(tmp_path)
    device = Device(tmp_path, loaded("standin"), CONFIG, disk)
    await device.chip.start()
    await device.on()
    try:
        await device.data_state()
        await device.run(RADIO)
        await device.run(f"until {LIST} 2>/dev/null; do sleep 0.2; done")
        for number, size in enumerate(sizes):
            skip = number * BLOCK + 1
            await device.run(f"tail -c +{skip} /dev/vdb | head -c {size} >/data/{number + 1}.app")
        print(await device.run("thicket app install --wait /data/1.app"))
        assert await device.run(CALL) == '"1.0"\n'
        assert "squashfs ro,nosuid,nodev,noexec" in await device.run("grep /apps/ /proc/mounts")
        failed = await device.run("! thicket app install --wait /data/2.app 2>&1")
        print(failed)
        assert "lamp was left: 2.0: OSError: no lamp" in failed
        again = f"until {CALL} 2>/dev/null; do sleep 0.2; done"
        assert await device.run(again) == '"1.0"\n'
        listed = await device.run(LIST)
        print(listed)
        assert "lamp: a version was left: 2.0: OSError: no lamp" in listed
        assert "a version was left: 2.0: OSError: no lamp; 1.0 runs" in await device.run(
            "thicket status || true"
        )
        # what was left is unmounted, and its loop device is free
        await device.run("until [ $(grep -c /apps/ /proc/mounts) = 1 ]; do sleep 0.2; done")
        files = "cat /sys/block/loop*/loop/backing_file 2>/dev/null | grep -c /apps/"
        await device.run(f"until [ $({files}) = 1 ]; do sleep 0.2; done")
        refused = await device.run("! thicket app install /data/2.app 2>&1")
        assert "was tried here and left" in refused
        if os.environ.get("THICKET_SOAK"):
            await device.restart("reboot")
            await device.data_state()
            await device.run(RADIO)
            assert await device.run(again) == '"1.0"\n'
        await device.run("thicket app remove lamp")
        assert "No application was installed" in await device.run(LIST)
    finally:
        await device.cut()
        await device.chip.stop()
        device.card.unlink()

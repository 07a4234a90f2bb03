# SPDX-License-Identifier: Apache-2.0
"""``thicket app`` on a real daemon that had no application before."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from apps_for_tests import ABOUT, lamp, packed
from bundles_for_tests import UpdateKey
from daemons import OPEN, Fleet
from fleet_for_tests import one_fleet
from patience import PATIENCE

from thicket.trust.certificates import pem

pytestmark = pytest.mark.skipif(
    not shutil.which("mksquashfs") or not shutil.which("unsquashfs"), reason="no squashfs-tools"
)

TEXT = f'[update]\nhealth_time = 10\n[trust]\nroot = """\n{pem(one_fleet().fleet.root.der)}"""\n'


def test_an_application_comes_while_the_node_runs(fleet: Fleet, tmp_path: Path) -> None:
    node = fleet.add(TEXT, image=OPEN)
    about = ABOUT._replace(python="{}.{}".format(*sys.version_info))

    def said(*words: str | Path) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "thicket", *words],
            env={**os.environ, "THICKET_ROOT": str(node.folder)},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        return done.returncode, done.stdout + done.stderr

    fleet.until(lambda: said("nodes")[1].find("is alone") > 0, "it is in the cluster")
    assert said("app", "list") == (0, "No application was installed beside the image's.\n")
    first = packed(tmp_path, lamp("1.0"), about)
    status, text = said("app", "install", "--wait", first)
    assert (status, text.splitlines()[-1]) == (0, "lamp 1.0: in force"), node.log()
    assert said("call", node.name, "lamp.version") == (0, '"1.0"\n')
    newer = about._replace(version="2.0", number=2_000)
    bad = packed(tmp_path, lamp("2.0", "raise OSError('no lamp')"), newer)
    status, text = said("app", "install", "--wait", bad)
    assert status == 1
    assert "lamp was left: 2.0: OSError: no lamp" in text
    assert said("call", node.name, "lamp.version") == (0, '"1.0"\n')
    assert "a version was left: 2.0: OSError: no lamp; 1.0 runs" in said("status")[1]
    foreign = packed(tmp_path, lamp("3.0"), about, UpdateKey(one_fleet("other")))
    status, text = said("app", "install", foreign)
    assert (status, "signed for another fleet" in text) == (1, True)
    # a new start of the daemon
    assert node.stop(signal.SIGTERM) == 0
    node.start()
    fleet.until(lambda: said("call", node.name, "lamp.version") == (0, '"1.0"\n'), "it runs")
    (installed,) = node.ask("status")["installed"]
    assert (installed["version"], installed["left"]) == ("1.0", "2.0: OSError: no lamp")
    assert said("app", "back", "lamp")[0] == 1
    assert said("app", "remove", "lamp") == (0, "lamp is removed\n")
    assert said("call", node.name, "lamp.version")[0] == 1
    assert said("app", "remove")[0] == 2

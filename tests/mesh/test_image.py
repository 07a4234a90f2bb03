# SPDX-License-Identifier: Apache-2.0
"""What the image has in it, and what it must not have: the engineer's desk and the simulator."""

from __future__ import annotations

import json
import shlex

from meshlab.lab.testing import Nodes

MESH = "open"

ABSENT = ("authority", "firmware", "host", "meshlab")

LOOK = f"""
import importlib.util, json, os, sys
names = set({ABSENT!r})
found = [name for name in names if importlib.util.find_spec(name)]
for top in sys.path:
    for folder, folders, files in os.walk(top):
        inside = {{*folders, *(file.partition(".")[0] for file in files)}}
        if "thicket" in folder[len(top):].split("/") or folder == top:
            found += [folder + "/" + name for name in inside & names]
print(json.dumps(found))
"""


async def test_nothing_of_the_engineers_desk_is_in_the_image(nodes: Nodes) -> None:
    output = await nodes.run("n1", f"python3 -c {shlex.quote(LOOK)}")
    assert json.loads(output.strip().splitlines()[-1]) == []


ENDING = """
import sys, threading, time
from thicket.daemon import daemon
assert daemon.Daemon.__doc__ is None, "docstrings are in the image"
def work():
    while True:
        time.sleep(0)
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.1)
"""


async def test_python_ends_in_order_while_threads_run(nodes: Nodes) -> None:
    """A thread that wants to go on while Python ends is ended by the C library (pthread_exit(3)),
    which needs a library that no program names."""
    command = f"python3 -c {shlex.quote(ENDING)}; echo status $?"
    output = await nodes.run("n1", command)
    assert output.strip().splitlines() == ["status 0"]


async def test_the_daemon_imports_from_the_archive_of_the_image(nodes: Nodes) -> None:
    """It keeps the file open, for what it imports later."""
    words = "-> /usr/lib/thicket/start.archive"
    await nodes.succeeds("n1", f"ls -l /proc/$(pidof thicketd)/fd | grep -qe '{words}'")

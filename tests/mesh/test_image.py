# SPDX-License-Identifier: Apache-2.0
"""What an image must not have in it: the engineer's desk and the simulator."""

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

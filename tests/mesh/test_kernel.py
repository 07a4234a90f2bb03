# SPDX-License-Identifier: Apache-2.0
"""The kernel is as the radio's tests take it to be: app/tests asks the fake one the same."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import kernel_contract

from meshlab.lab.testing import Nodes

MESH = "open"


async def test_the_kernel_keeps_the_contract(nodes: Nodes) -> None:
    """On an interface of its own beside that of the node, whose links go on."""
    code = Path(kernel_contract.__file__).read_text(encoding="utf-8")
    output = await nodes.run("n1", f"python3 -c {shlex.quote(code)}")
    assert json.loads(output.strip().splitlines()[-1]) == kernel_contract.ANSWERS

# SPDX-License-Identifier: Apache-2.0
"""How long a test waits for what must happen."""

PATIENCE = 600.0
"""Seconds by the clock on the wall after which what must happen is taken to never happen.

It ends a test that would hang, and judges nothing: on a machine that has nothing else to do what is
waited for takes less than a hundredth of it. What guests do, which takes longer, has limits that a
busy host does not use up: ``meshlab.machine.given``.
"""

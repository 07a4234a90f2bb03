# SPDX-License-Identifier: Apache-2.0
"""Updates: whether the slot that runs is well, and what became of the other one."""

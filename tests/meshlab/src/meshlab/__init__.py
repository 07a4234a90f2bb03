# SPDX-License-Identifier: Apache-2.0
"""The simulator of Thicket: complete nodes in QEMU whose radios share a simulated medium."""

# SPDX-License-Identifier: Apache-2.0
"""A node's machine: QEMU, what boots on it, and the shell and console in the guest."""

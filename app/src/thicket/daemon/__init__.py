# SPDX-License-Identifier: Apache-2.0
"""``thicketd``: composes all parts of a node in one process."""

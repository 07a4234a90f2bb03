# SPDX-License-Identifier: Apache-2.0
"""``thicketd``: runs all parts of a node in one process."""

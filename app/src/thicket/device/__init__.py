# SPDX-License-Identifier: Apache-2.0
"""The node's own card: its partitions, and the watch over the start."""

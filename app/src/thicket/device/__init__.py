# SPDX-License-Identifier: Apache-2.0
"""The node's own card: its partitions, and a start that makes progress."""

# SPDX-License-Identifier: Apache-2.0
"""The node's care for itself: restarts, report, ways in, saved time."""

# SPDX-License-Identifier: Apache-2.0
"""The fleet as one of its nodes sees it: labels of devices, and the state of all nodes."""

# SPDX-License-Identifier: Apache-2.0
"""Devices at this machine's cables: found by multicast DNS, reached by ssh."""

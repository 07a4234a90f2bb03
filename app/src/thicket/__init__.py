# SPDX-License-Identifier: Apache-2.0
"""The software of a Thicket node: identity, mesh radio, discovery and the cluster."""

__version__ = "0.1.0"

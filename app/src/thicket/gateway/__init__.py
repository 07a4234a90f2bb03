# SPDX-License-Identifier: Apache-2.0
"""The ways out of the mesh: what a gateway offers, and which one a node takes (docs/gateway.md)."""

# SPDX-License-Identifier: Apache-2.0
"""Scenarios: what is done to a mesh and what is expected of it, in a file (docs/scenarios.md)."""

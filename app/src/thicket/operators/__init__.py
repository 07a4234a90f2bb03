# SPDX-License-Identifier: Apache-2.0
"""Operators: people with a certificate of the fleet, who run commands on nodes from far away."""

# SPDX-License-Identifier: Apache-2.0
"""The firewall: what may reach the node over the network (nftables)."""

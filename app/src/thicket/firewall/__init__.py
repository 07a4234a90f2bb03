# SPDX-License-Identifier: Apache-2.0
"""What may reach the node over the network: nftables."""

# SPDX-License-Identifier: Apache-2.0
"""Finding the other nodes: beacons on ``[ff02::69]:49999``, and DNS-SD."""

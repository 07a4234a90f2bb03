# SPDX-License-Identifier: Apache-2.0
"""The mesh radio: 802.11s by the kernel and wpa_supplicant, seen and steered from Python."""

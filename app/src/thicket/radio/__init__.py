# SPDX-License-Identifier: Apache-2.0
"""The mesh radio: 802.11s by the kernel and wpa_supplicant, seen and steered from Python."""

from thicket.radio.mesh import Mesh
from thicket.radio.settings import MeshSettings, channel_frequency

__all__ = ["Mesh", "MeshSettings", "channel_frequency"]

# SPDX-License-Identifier: Apache-2.0
"""What goes over sockets: hwsim's netlink, 802.11 frames, the relay's protocol, requests."""

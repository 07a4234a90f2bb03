# SPDX-License-Identifier: Apache-2.0
"""Netlink sockets and the messages on them."""

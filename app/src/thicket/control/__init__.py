# SPDX-License-Identifier: Apache-2.0
"""The daemon's control socket: both ends."""

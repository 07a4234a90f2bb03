# SPDX-License-Identifier: Apache-2.0
"""What a device is for: applications that the daemon loads."""

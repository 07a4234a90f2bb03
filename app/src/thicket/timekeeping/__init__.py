# SPDX-License-Identifier: Apache-2.0
"""What time it is, who says so, and whether that is known to be right (docs/time.md)."""

# SPDX-License-Identifier: Apache-2.0
"""What every part may use. Nothing here knows a part."""

# SPDX-License-Identifier: Apache-2.0
"""What every part may use. It knows no part."""

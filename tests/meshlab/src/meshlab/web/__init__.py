# SPDX-License-Identifier: Apache-2.0
"""The page of ``thicket web`` for a simulated fleet."""

# SPDX-License-Identifier: Apache-2.0
"""The page of ``thicket web``: a fleet as a live map, for a browser on this machine."""

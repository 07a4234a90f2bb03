# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a bundle."""

from __future__ import annotations

from thicket.base.errors import ThicketError


class BundleError(ThicketError):
    """The file is no bundle, or a damaged one. The text says what was found and what to do."""

    code = "bad-bundle"

# SPDX-License-Identifier: Apache-2.0
"""What can go wrong while an image is built."""

from __future__ import annotations


class ImageError(Exception):
    """An image could not be built; the text says what was tried, found, and what to do."""


class CancelledBuildError(ImageError):
    """A stage was stopped because the person, or another stage's failure, ended the build."""

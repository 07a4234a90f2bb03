# SPDX-License-Identifier: Apache-2.0
"""What can go wrong on the engineer's machine."""

from __future__ import annotations


class HostError(Exception):
    """A program of the host is missing or failed; the text says what was tried and what to do."""


class CancelledError(HostError):
    """A program was stopped because the person, or another failure, ended what it was for."""

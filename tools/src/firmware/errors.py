# SPDX-License-Identifier: Apache-2.0
"""The error that reaches a person."""


class FlashError(Exception):
    """Ends the program; the text says what was tried, what was found and what to do."""

# SPDX-License-Identifier: Apache-2.0
"""The family of errors: a code for programs, a text for people."""

from __future__ import annotations


class ThicketError(Exception):
    """Something could not be done. The text says what, why, and what a person can do about it.

    :ivar code: the reason in one hyphenated word, for programs; each class has its own.
    """

    code = "failed"


class CodedError(ThicketError):
    """An error of a class that covers several reasons.

    :param code: the reason, see :attr:`ThicketError.code`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class RequestError(CodedError):
    """What a person asked for cannot be done."""

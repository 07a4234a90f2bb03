# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with a lab."""

from __future__ import annotations


class LabError(Exception):
    """A lab that cannot start or go on. The text is for people: what was found and what to do."""


class NotFormedError(LabError):
    """The mesh did not form in time; ``lacking`` says what each node misses."""

    def __init__(self, message: str, lacking: dict[str, list[str]]) -> None:
        super().__init__(message)
        self.lacking = lacking

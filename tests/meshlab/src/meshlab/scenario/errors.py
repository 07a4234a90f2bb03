# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a scenario."""

from __future__ import annotations

from meshlab.lab.errors import LabError


class ScenarioError(LabError):
    """A file that is no scenario; the text has every fault, with its line and what to write."""


class StepError(LabError):
    """A step that could not be done: the run has no result."""


class UnknowableError(LabError):
    """Only a real node knows the answer, and the lab is imagined."""

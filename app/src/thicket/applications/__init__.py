# SPDX-License-Identifier: Apache-2.0
"""What a device is for: applications that the daemon loads.

Authors of applications import from here, see docs/applications.md.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thicket.applications.api import Application, ApplicationNode, SettingsError

__all__ = ["Application", "ApplicationNode", "SettingsError"]


def __getattr__(name: str) -> object:
    """Import what authors need when it is asked for: finding applications does without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from thicket.applications import api

    return getattr(api, name)

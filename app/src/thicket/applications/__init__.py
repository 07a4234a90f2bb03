# SPDX-License-Identifier: Apache-2.0
"""Applications, which the daemon loads: what a device is for.

Authors of applications import from here, see docs/applications.md.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thicket.applications.api import Application, ApplicationNode, SettingsError

__all__ = ["Application", "ApplicationNode", "SettingsError"]


def __getattr__(name: str) -> object:
    """Import the names for authors on demand; finding applications does not need them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from thicket.applications import api

    return getattr(api, name)

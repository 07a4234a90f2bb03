# SPDX-License-Identifier: Apache-2.0
"""The program ssh, by which the desk reaches nodes."""

from __future__ import annotations

import shutil

from authority.errors import AuthorityError


def program() -> str:
    """Return the path of ssh.

    :raises AuthorityError: it is not installed.
    """
    found = shutil.which("ssh")
    if found is None:
        raise AuthorityError(
            "ssh is missing. Install it with:\n"
            "    sudo apt-get install --no-install-recommends openssh-client"
        )
    return found

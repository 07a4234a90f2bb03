# SPDX-License-Identifier: Apache-2.0
"""``python -m meshlab.cli.release``: ``make release`` in a checkout, which knows stand-ins too."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

from firmware.releases import cli
from host.cache import cache_root
from meshlab.image import standin

if TYPE_CHECKING:
    from firmware.releases.make import Parts


def main(words: list[str]) -> int:
    """Run ``make release`` with these arguments; the exit status."""
    return cli.main(words, {name: partial(_parts, name) for name in standin.KINDS})


def _parts(name: str) -> Parts:
    from meshlab.image import bill

    return bill.parts(cache_root(), name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

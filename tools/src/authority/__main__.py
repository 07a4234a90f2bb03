# SPDX-License-Identifier: Apache-2.0
"""``python -m authority`` is ``thicket ca``."""

import sys

from authority.cli import main
from thicket.cli.main import guarded

sys.exit(guarded(main, sys.argv[1:]))

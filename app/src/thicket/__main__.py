# SPDX-License-Identifier: Apache-2.0
"""``python -m thicket`` is the ``thicket`` command."""

import sys

from thicket.cli.main import main

sys.exit(main())

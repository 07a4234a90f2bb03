# SPDX-License-Identifier: Apache-2.0
"""``python -m meshlab.bench``."""

import sys

from meshlab.bench.mesh import main

sys.exit(main())

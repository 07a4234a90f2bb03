# SPDX-License-Identifier: Apache-2.0
# zeroconf as plain Python: a node parses a packet now and then, for which 20 compiled modules (6 MB)
# are no gain. What is simulated is the same.
PYTHON_ZEROCONF_ENV += SKIP_CYTHON=1

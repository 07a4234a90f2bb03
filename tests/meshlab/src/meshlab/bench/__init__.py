# SPDX-License-Identifier: Apache-2.0
"""What the simulator costs on this machine: ``python -m meshlab.bench`` and others."""

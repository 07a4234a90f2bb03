# SPDX-License-Identifier: Apache-2.0
"""What a node does about itself beside its work."""

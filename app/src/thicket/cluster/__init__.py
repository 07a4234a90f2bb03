# SPDX-License-Identifier: Apache-2.0
"""Who is a member of the cluster, and what members agree on."""

# SPDX-License-Identifier: Apache-2.0
"""First contact: what a node does at its wired interfaces (``[access] cable``)."""

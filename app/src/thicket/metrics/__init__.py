# SPDX-License-Identifier: Apache-2.0
"""Numbers for other tools: Prometheus' text, NetJSON, and the server that gives them."""

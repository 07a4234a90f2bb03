# SPDX-License-Identifier: Apache-2.0
"""The log of a node, sent to a server (RFC 5424 over TLS)."""

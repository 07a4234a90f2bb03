# SPDX-License-Identifier: Apache-2.0
"""The engineer's machine: the cache, programs that run with a log, mtools, Kconfig fragments."""

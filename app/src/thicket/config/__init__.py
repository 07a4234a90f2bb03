# SPDX-License-Identifier: Apache-2.0
"""The configuration: one TOML file, one schema; no file can lock a device out."""

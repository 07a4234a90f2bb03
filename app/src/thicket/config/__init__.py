# SPDX-License-Identifier: Apache-2.0
"""The configuration: one TOML file, one schema, and no way to lock the device out."""

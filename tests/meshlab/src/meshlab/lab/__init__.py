# SPDX-License-Identifier: Apache-2.0
"""A lab: what it is made of, its supervisor, and what is known of it at any time."""

# SPDX-License-Identifier: Apache-2.0
"""A lab on a person's terminal."""

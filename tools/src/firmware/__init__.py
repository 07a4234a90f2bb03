# SPDX-License-Identifier: Apache-2.0
"""The engineer's side of the card images: what is built, how a card is laid out, how it is written.

Runs on the engineer's machine only; nothing of it is in an image.
"""

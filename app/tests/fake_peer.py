# SPDX-License-Identifier: Apache-2.0
"""What tests that stand in for a connection of a node share."""

from typing import Any

from thicket.distribution.etf import encode_bare


class ReadsText:
    """Encodes as a connection to a node of ours does, which tells text from bytes."""

    text = True
    busy = False
    heard = used = 0.0

    def encode(self, term: Any) -> bytes:
        return encode_bare(term, text=self.text)

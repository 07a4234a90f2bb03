# SPDX-License-Identifier: Apache-2.0
"""Block acknowledgement, which the medium may do for the radios instead of their kernels.

A kernel that has agreed on block acknowledgement with a peer marks its frames as parts of
aggregates and expects reports on whole aggregates. hwsim has no way to make those: of a report it
takes rates, tries and whether there was an acknowledgement (``hwsim_tx_info_frame_received_nl``).
``minstrel_ht_tx_status`` ignores what is marked and not reported so, and learns nothing any more.

So the kernels never agree. Their request is taken off the air and reported as acknowledged. In an
open mesh it is declined at once. In a secure one nobody but the peer could say so: the kernel waits
for a second (``ADDBA_RESP_INTERVAL``) in which that traffic identifier stands still, and goes on
with single frames. It asks 16 times, the last twelve 15 s apart (``HT_AGG_MAX_RETRIES``,
``HT_AGG_BURST_RETRIES``, ``HT_AGG_RETRIES_PERIOD``).
"""

from __future__ import annotations

import struct

from meshlab.wire import ieee80211

_ACTION = ieee80211.Management.ACTION << 4
_HEADER = 24
_CATEGORY = 3
_REQUEST, _RESPONSE = 0, 1
_BODY = 9
"""Bytes of an ADDBA Request: category, action, dialog token, parameters, timeout and starting
sequence (9.6.4.2)."""
_CCMP = 16
"""Bytes that encryption adds: header and MIC (12.5.3.2)."""
_PROTECTED = 0x40
_DECLINED = 37
"""``REQUEST_DECLINED`` (table 9-50)."""


def is_request(frame: bytes) -> bool:
    """Tell whether a frame asks for block acknowledgement (ADDBA Request, 9.6.4.2).

    Between peers of a secure mesh it is encrypted. Then its length tells: no other individually
    addressed action frame that Linux sends in a mesh has a body of nine bytes, but the response,
    which follows no request.
    """
    if frame[0] != _ACTION or frame[4] & 1:
        return False
    if frame[1] & _PROTECTED:
        return len(frame) == _HEADER + _CCMP + _BODY
    return len(frame) >= _HEADER + _BODY and frame[_HEADER : _HEADER + 2] == bytes(
        (_CATEGORY, _REQUEST)
    )


def decline(request: bytes) -> bytes | None:
    """Return the peer's answer that declines a request (9.6.4.3); None when it is encrypted."""
    if request[1] & _PROTECTED:
        return None
    peer, asking = request[4:10], request[10:16]
    token, parameters, timeout = struct.unpack_from("<BHH", request, _HEADER + 2)
    head = bytes((_ACTION, 0, 0, 0)) + asking + peer + peer + b"\0\0"
    return head + struct.pack(
        "<BBBHHH", _CATEGORY, _RESPONSE, token, _DECLINED, parameters, timeout
    )

# SPDX-License-Identifier: Apache-2.0
"""One request to the daemon's control socket, synchronous and with few imports."""

import socket
import time
from typing import Any

from thicket.base.errors import CodedError
from thicket.base.jsonlines import pack, unpack

#: Longest request and answer in bytes; the daemon's own limits are in control/server.py.
_LONGEST_REQUEST = 512 * 1024
_LARGEST = 16 * 1024 * 1024


class ClientError(CodedError):
    """The request failed.

    :ivar code: the daemon's code, or "unreachable" when it did not answer.
    """

    @property
    def late(self) -> bool:
        """Whether the daemon runs, and has not answered in time."""
        return isinstance(self.__cause__, TimeoutError)


def request(path: str, method: str, params: dict[str, Any], timeout: float = 10.0) -> Any:
    """Call a method, and return its result.

    :param timeout: seconds for the whole exchange.
    :raises ClientError: the request failed; when the daemon cannot be reached, the text says what
        to do.
    """
    deadline = time.monotonic() + timeout
    line = pack({"id": 1, "method": method, "params": params})
    if len(line) > _LONGEST_REQUEST:
        raise ClientError(
            "too-long",
            f"the request has {len(line)} bytes, and the daemon takes up to {_LONGEST_REQUEST}",
        )
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
            s.settimeout(timeout)
            s.connect(path)
            s.sendall(line)
            data = bytearray()
            while not data.endswith(b"\n"):
                s.settimeout(max(0.001, deadline - time.monotonic()))
                chunk = s.recv(65536)
                if not chunk:
                    raise ConnectionResetError("it closed the connection")
                data += chunk
                if len(data) > _LARGEST:
                    raise ConnectionError("its answer has no end")
        answer = unpack(data)
    except TimeoutError as e:
        raise ClientError("unreachable", f"the daemon did not answer within {timeout:g} s") from e
    except PermissionError as e:
        raise ClientError("unreachable", f"{path} is for root only; become root") from e
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or str(e)
        hint = "see `logread -e thicketd`; init starts it again by itself"
        message = f"the daemon does not answer at {path} ({reason}); {hint}"
        raise ClientError("unreachable", message) from e
    if "error" in answer:
        raise ClientError(answer["error"]["code"], answer["error"]["message"])
    return answer["result"]

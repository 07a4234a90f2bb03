# SPDX-License-Identifier: Apache-2.0
"""One request to the daemon's control socket, synchronously and with few imports."""

import json
import socket
import time
from typing import Any, Final

_LARGEST: Final = 16 * 1024 * 1024


class ClientError(Exception):
    """The request failed. ``code`` is the daemon's, or "unreachable" when it did not answer."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def request(path: str, method: str, params: dict[str, Any], timeout: float = 10.0) -> Any:
    """The result of ``method``. ``timeout`` bounds the whole exchange, in seconds.

    Raises ClientError, with words that tell what to do when the daemon cannot be reached.
    """
    deadline = time.monotonic() + timeout
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
            s.settimeout(timeout)
            s.connect(path)
            call = {"id": 1, "method": method, "params": params}
            s.sendall(json.dumps(call).encode() + b"\n")
            data = bytearray()
            while not data.endswith(b"\n"):
                s.settimeout(max(0.001, deadline - time.monotonic()))
                chunk = s.recv(65536)
                if not chunk:
                    raise ConnectionResetError("it closed the connection")
                data += chunk
                if len(data) > _LARGEST:
                    raise ConnectionError("its answer has no end")
        answer = json.loads(data)
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

# SPDX-License-Identifier: Apache-2.0
"""A real browser without a screen: Chromium, told what to do by the DevTools protocol.

Needs Chromium alone: the protocol is JSON over a WebSocket, which aiohttp speaks.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

START = 60.0
ANSWER = 30.0


def program() -> str | None:
    """Return the browser; None where there is none."""
    return next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )


class Browser:
    """One page in a browser.

    :ivar messages: what the page has written to its console, and its errors.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.messages: list[str] = []
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._reading = asyncio.create_task(self._read())

    async def call(self, method: str, **params: Any) -> Any:
        """Call a method of the protocol."""
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        async with asyncio.timeout(ANSWER):
            answer = await self._waiting[number]
        assert "error" not in answer, f"{method}: {answer}"
        return answer["result"]

    async def _read(self) -> None:
        async for message in self._socket:
            said = json.loads(message.data)
            match said.get("method"):
                case None:
                    waiting = self._waiting.pop(said["id"], None)
                    if waiting is not None and not waiting.done():
                        waiting.set_result(said)
                case "Runtime.exceptionThrown":
                    details = said["params"]["exceptionDetails"]
                    self.messages.append(str(details.get("exception", details)))
                case "Log.entryAdded":
                    self.messages.append(said["params"]["entry"]["text"])
                case "Runtime.consoleAPICalled":
                    self.messages.append(str(said["params"]["args"]))

    async def open(self, address: str) -> None:
        """Open a page."""
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=address)

    async def size(self, width: int, height: int, *, phone: bool = False) -> None:
        """Give the page another size in pixels."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone,
        )  # fmt: skip

    async def media(self, **features: str) -> None:
        """Say what the person prefers, such as ``prefers_color_scheme="dark"``."""
        found = [{"name": k.replace("_", "-"), "value": v} for k, v in features.items()]
        await self.call("Emulation.setEmulatedMedia", features=found)

    async def run(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript."""
        answer = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, f"{expression}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    async def until(self, expression: str, seconds: float = 20.0) -> Any:
        """Wait until an expression is true, and return its value."""
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            value = await self.run(expression)
            if value:
                return value
            if asyncio.get_running_loop().time() > deadline:
                body = await self.run("document.body.innerText")
                raise TimeoutError(f"{expression} is {value!r}; {self.messages}; {body}")
            await asyncio.sleep(0.02)

    async def key(self, key: str) -> None:
        """Press a key."""
        codes = {"Enter": 13, "Escape": 27, "Tab": 9}
        params: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0]))}
        if len(key) == 1:
            params["text"] = key
        elif key == "Enter":
            params["text"] = "\r"
        await self.call("Input.dispatchKeyEvent", type="keyDown", **params)
        await self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    async def click(self, selector: str) -> None:
        """Click into the middle of an element, as a hand does."""
        box = await self.until(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "if (!e) return null; const b = e.getBoundingClientRect();"
            "return {x: b.x + b.width / 2, y: b.y + b.height / 2}; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call(
                "Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **box
            )

    async def screenshot(self, path: Path) -> None:
        """Write a picture of the page, as PNG."""
        taken = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(taken["data"]))

    async def close(self) -> None:
        """Talk no more."""
        self._reading.cancel()
        with suppress(asyncio.CancelledError):
            await self._reading


@asynccontextmanager
async def browsing() -> AsyncIterator[Browser]:
    """Give a browser with an empty page."""
    path = program()
    assert path is not None
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as folder:
        options = [
            "--headless=new", "--remote-debugging-port=0", f"--user-data-dir={folder}",
            "--no-first-run", "--disable-gpu", "--disable-extensions", "--disable-sync",
            "--disable-background-networking", "--disable-component-update",
            "--disable-default-apps", "--disable-dev-shm-usage", "--force-color-profile=srgb",
            "--hide-scrollbars", "--window-size=1440,900",
        ]  # fmt: skip
        if os.geteuid() == 0:
            options.append("--no-sandbox")  # which does not work for root
        child = await asyncio.create_subprocess_exec(
            path, *options, "about:blank",
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            port = await _port(Path(folder) / "DevToolsActivePort", child)
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    pages = [one for one in await answer.json() if one["type"] == "page"]
                address = pages[0]["webSocketDebuggerUrl"]
                async with session.ws_connect(address, max_msg_size=64 << 20) as socket:
                    browser = Browser(socket)
                    try:
                        yield browser
                    finally:
                        await browser.close()
        finally:
            with suppress(ProcessLookupError):
                child.terminate()
            try:
                async with asyncio.timeout(10):
                    await child.wait()
            except TimeoutError:
                child.kill()
                await child.wait()


async def _port(path: Path, child: asyncio.subprocess.Process) -> int:
    deadline = asyncio.get_running_loop().time() + START
    while asyncio.get_running_loop().time() < deadline:
        assert child.returncode is None, f"the browser ended with {child.returncode}"
        if path.exists() and "\n" in (said := path.read_text()):
            return int(said.splitlines()[0])
        await asyncio.sleep(0.05)
    raise TimeoutError(f"the browser says no port within {START:g} s")

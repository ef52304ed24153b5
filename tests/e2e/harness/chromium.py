"""Debian's Chromium without a window, driven by its DevTools protocol over a WebSocket (the domains are named as there)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import signal
from pathlib import Path
from typing import Any, Self

import aiohttp

from tests.e2e.harness.process import client_environment, find_command
from tests.support.waiting import LIMIT, eventually

# Nothing is sent to anybody: no updates, no sync, no lookups beside the pages themselves.
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--disable-extensions", "--hide-scrollbars",
    "--no-default-browser-check", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--remote-debugging-port=0",
)  # fmt: skip
_MAX_MESSAGE = 64 << 20


class Chromium:
    """A browser with a profile of its own, which ends with the block."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = contextlib.AsyncExitStack()
        self._numbers = itertools.count(1)
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._tabs: dict[str, Tab] = {}

    async def __aenter__(self) -> Self:
        profile = self._directory / "profile"
        environment = {**client_environment(self._directory / "home"), "NO_PROXY": "127.0.0.1,localhost"}
        environment.pop("HTTPS_PROXY")
        with (self._directory / "chromium.log").open("wb") as output:
            arguments = [*_FLAGS, f"--user-data-dir={profile}", "about:blank"]
            self._process = await asyncio.create_subprocess_exec(
                find_command("chromium"), *arguments, env=environment, stdin=asyncio.subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        self._stack.push_async_callback(self._end)
        try:
            port, path = await eventually(lambda: _address(profile / "DevToolsActivePort"), "the browser's port")
            session = await self._stack.enter_async_context(aiohttp.ClientSession())
            self._socket = await session.ws_connect(f"http://127.0.0.1:{port}{path}", max_msg_size=_MAX_MESSAGE)
            self._stack.push_async_callback(self._socket.close)
            self._reading = asyncio.create_task(self._read())
        except BaseException as error:
            await self._stack.aclose()
            error.add_note((self._directory / "chromium.log").read_text(errors="replace")[-3000:])
            raise
        self._stack.callback(self._reading.cancel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def tab(self, width: int = 1280, height: int = 900, *, scripts: bool = True) -> Tab:
        """A tab with cookies of its own, in which pages run scripts or do not."""
        context = (await self.send("Target.createBrowserContext"))["browserContextId"]
        target = (await self.send("Target.createTarget", url="about:blank", browserContextId=context))["targetId"]
        session = (await self.send("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        tab = self._tabs[session] = Tab(self, session)
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            await tab.send(f"{domain}.enable")
        await tab.resize(width, height)
        await tab.send("Emulation.setScriptExecutionDisabled", value=not scripts)
        return tab

    async def send(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a command, and return its result."""
        number = next(self._numbers)
        replied = self._replies[number] = asyncio.get_running_loop().create_future()
        target = {} if session is None else {"sessionId": session}
        await self._socket.send_json({"id": number, "method": method, "params": parameters, **target})
        async with asyncio.timeout(LIMIT):
            reply = await replied
        if "error" in reply:
            raise AssertionError(f"{method}: {reply['error']['message']}")
        return reply["result"]

    async def _read(self) -> None:
        async for message in self._socket:
            data = message.json()
            if "id" in data:
                self._replies.pop(data["id"]).set_result(data)
            elif data.get("sessionId") in self._tabs:
                self._tabs[data["sessionId"]].on_event(data["method"], data["params"])

    async def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        async with asyncio.timeout(LIMIT):
            await self._process.wait()


class Tab:
    """A tab.

    Attributes:
        complaints: what the browser has to say against the pages: errors, exceptions, violations of their policy.
        requested: the addresses of everything that pages have loaded.
    """

    def __init__(self, browser: Chromium, session: str) -> None:
        self._browser = browser
        self._session = session
        self.complaints: list[str] = []
        self.requested: list[str] = []
        self._loads = 0

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command about the tab."""
        return await self._browser.send(method, self._session, **parameters)

    def on_event(self, method: str, event: dict[str, Any]) -> None:
        """Note an event."""
        match method:
            case "Page.loadEventFired":
                self._loads += 1
            case "Log.entryAdded" if event["entry"]["level"] in ("error", "warning"):
                self.complaints.append(f"{event['entry']['text']} {event['entry'].get('url', '')}")
            case "Runtime.consoleAPICalled" if event["type"] in ("error", "warning", "assert"):
                self.complaints.append(str(event["args"]))
            case "Runtime.exceptionThrown":
                self.complaints.append(str(event["exceptionDetails"]))
            case "Page.javascriptDialogOpening":
                self.complaints.append(f"a dialog: {event['message']}")
            case "Network.requestWillBeSent":
                self.requested.append(event["request"]["url"])

    async def resize(self, width: int, height: int) -> None:
        """Give the window a size; a narrow one is a phone."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        await self.send("Emulation.setDeviceMetricsOverride", **size)

    async def colors(self, scheme: str) -> None:
        """Prefer `light` or `dark`."""
        await self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def open(self, url: str) -> None:
        """Load a page, and wait for all of it."""
        loads = self._loads
        failed = (await self.send("Page.navigate", url=url)).get("errorText")
        assert failed is None, f"{url}: {failed}"
        await eventually(lambda: self._loads > loads, "a loaded page")

    async def click(self, selector: str) -> None:
        """Click on an element as a mouse does, and wait for the page that it leads to."""
        loads = self._loads
        await self.press(selector)
        await eventually(lambda: self._loads > loads, f"the page behind {selector}")

    async def press(self, selector: str) -> None:
        """Click on an element as a mouse does."""
        node = await self._node(selector)
        await self.send("DOM.scrollIntoViewIfNeeded", nodeId=node)
        quad = (await self.send("DOM.getContentQuads", nodeId=node))["quads"][0]
        at = {"x": (quad[0] + quad[4]) / 2, "y": (quad[1] + quad[5]) / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            await self.send("Input.dispatchMouseEvent", type=kind, **at)

    async def type(self, selector: str, text: str) -> None:
        """Type into a field."""
        await self.send("DOM.focus", nodeId=await self._node(selector))
        await self.send("Input.insertText", text=text)

    async def html(self, selector: str = "body") -> str:
        """The HTML of an element; looked for again if the page replaces it meanwhile."""
        while True:
            try:
                return (await self.send("DOM.getOuterHTML", nodeId=await self._node(selector)))["outerHTML"]
            except AssertionError as error:
                if "Could not find node" not in str(error):
                    raise

    async def has(self, selector: str) -> bool:
        """Whether there is such an element."""
        return bool(await self._find(selector))

    async def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        result = await self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def cookies(self) -> list[dict[str, Any]]:
        """The cookies of the page."""
        return (await self.send("Network.getCookies"))["cookies"]

    async def overflow(self) -> int:
        """How many pixels the page is wider than the window."""
        size = await self.send("Page.getLayoutMetrics")
        return int(size["cssContentSize"]["width"] - size["cssLayoutViewport"]["clientWidth"])

    async def screenshot(self, path: Path) -> None:
        """A picture of the whole page."""
        shot = await self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    async def _find(self, selector: str) -> int:
        root = (await self.send("DOM.getDocument", depth=0))["root"]["nodeId"]
        return int((await self.send("DOM.querySelector", nodeId=root, selector=selector))["nodeId"])

    async def _node(self, selector: str) -> int:
        node = await self._find(selector)
        assert node, f"there is no {selector} in {await self.html('body')}"
        return node


def _address(file: Path) -> tuple[str, str] | None:
    """The port and the path that a browser has written down; None while it has not."""
    with contextlib.suppress(OSError, ValueError):
        port, path = file.read_text().split("\n")
        return port, path
    return None

"""A headless Chromium, driven over its own DevTools protocol through a pipe: no driver, no port, no package."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
ANSWER_SECONDS = 60.0
# The protocol's ends are file descriptors 3 and 4; first out of the way of whatever they were.
_EXEC = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for place, end in enumerate(ends, 3):
    os.dup2(end, place)
os.execv(sys.argv[3], sys.argv[3:])
"""
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio",
    "--remote-debugging-pipe",
)  # fmt: skip

needs_chromium = pytest.mark.skipif(
    not any(map(shutil.which, PROGRAMS)), reason="Chromium is not installed (Debian: apt-get install chromium)"
)


@dataclass(frozen=True)
class Shown:
    """How a page is looked at: width in CSS pixels, dark or light, on a screen or in print."""

    width: int = 1440
    height: int = 900
    is_dark: bool = False
    is_printed: bool = False


@dataclass
class Page:
    """An open page: what it logged and asked for, and ways to look at it."""

    browser: Browser
    session: str
    logged: list[str] = field(default_factory=list)
    requested: list[str] = field(default_factory=list)

    def evaluate(self, expression: str) -> Any:
        """The JSON value of a JavaScript expression."""
        answer = self.browser.call(
            "Runtime.evaluate", {"expression": expression, "returnByValue": True, "awaitPromise": True}, self.session
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screenshot(self, *, full: bool = True) -> bytes:
        """A PNG of the whole page, or of what is seen without scrolling."""
        options: dict[str, Any] = {"format": "png", "captureBeyondViewport": full}
        if full:
            width, height = self.evaluate("[innerWidth, document.documentElement.scrollHeight]")
            options["clip"] = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        answer = self.browser.call("Page.captureScreenshot", options, self.session)
        return base64.b64decode(answer["data"])

    def pdf(self) -> bytes:
        """The page as it is printed."""
        return base64.b64decode(self.browser.call("Page.printToPDF", {"printBackground": False}, self.session)["data"])


class Browser:
    """One Chromium with a profile of its own in `folder`; a context manager that ends it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count(1)
        self._pages: dict[str, Page] = {}
        self._loaded: set[str] = set()
        self._rest = b""

    def __enter__(self) -> Self:
        program = next(found for found in map(shutil.which, PROGRAMS) if found)
        command_in, self._write = os.pipe()
        self._read, command_out = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _EXEC, str(command_in), str(command_out), program, *FLAGS,
             f"--user-data-dir={self._folder}"],
            pass_fds=(command_in, command_out), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env={**os.environ, "HOME": str(self._folder)}, start_new_session=True,
        )  # fmt: skip
        os.close(command_in)
        os.close(command_out)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._write)
        os.close(self._read)
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def open(self, path: Path, shown: Shown = Shown()) -> Page:
        """Opens a file and waits until it is drawn."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable", {}, session)
        self.call(
            "Emulation.setDeviceMetricsOverride",
            {"width": shown.width, "height": shown.height, "deviceScaleFactor": 1, "mobile": shown.width < 600},
            session,
        )
        media = {
            "media": "print" if shown.is_printed else "screen",
            "features": [{"name": "prefers-color-scheme", "value": "dark" if shown.is_dark else "light"}],
        }
        self.call("Emulation.setEmulatedMedia", media, session)
        self.call("Page.navigate", {"url": path.as_uri()}, session)
        while session not in self._loaded:
            self._receive()
        page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")
        return page

    def call(self, method: str, options: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        """Calls one method of the protocol and returns its answer."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": options} | ({"sessionId": session} if session else {})
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        ends = time.monotonic() + ANSWER_SECONDS
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, ends - time.monotonic()))
            assert ready, "Chromium does not answer"
            part = os.read(self._read, 1 << 20)
            assert part, "Chromium has ended"
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        self._note(message)
        return message

    def _note(self, message: dict[str, Any]) -> None:
        page, options = self._pages.get(message.get("sessionId", "")), message.get("params", {})
        if page is None:
            return
        method = message.get("method")
        if method == "Page.loadEventFired":
            self._loaded.add(page.session)
        elif method == "Network.requestWillBeSent":
            page.requested.append(options["request"]["url"])
        elif method == "Log.entryAdded":
            page.logged.append(options["entry"]["text"])
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            page.logged.append(json.dumps(options))

"""Chromium without a window, driven over its debugging protocol on two pipes.

https://chromedevtools.github.io/devtools-protocol/ describes the messages: JSON, each with a NUL
behind it. No port is opened.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final

PROGRAMS: Final = ("chromium", "chromium-browser", "google-chrome", "chrome")
_SECONDS: Final = 30.0
_START: Final = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(one), fcntl.F_DUPFD, 10) for one in sys.argv[1:3])
os.dup2(read, 3)
os.dup2(write, 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""
"""Starts a program that has the protocol on descriptors 3 and 4."""
_SWITCHES: Final = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",  # it needs rights that a container does not give; the page is our own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-extensions",
    "--no-first-run",
    "--hide-scrollbars",
)


def chromium() -> str | None:
    """Return the path of the installed Chromium, None if there is none."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Page(AbstractContextManager["Page"]):
    """One page of a Chromium of its own, whose profile is in `folder`.

    `requests` are the addresses that the page asked for, `problems` what the browser complained of:
    exceptions, dialogs, and violations of the page's policy.
    """

    def __init__(self, program: str, folder: Path) -> None:
        self.requests: list[str] = []
        self.problems: list[str] = []
        self._number = 0
        self._received = b""
        self._events: list[str] = []
        self._session: str | None = None
        read_by_it, self._to = os.pipe()
        self._from, written_by_it = os.pipe()
        words = [program, *_SWITCHES, f"--user-data-dir={folder}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, str(read_by_it), str(written_by_it), *words],
            pass_fds=(read_by_it, written_by_it),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_by_it)
        os.close(written_by_it)
        with ExitStack() as started:
            started.callback(self.close)
            target = self._call("Target.createTarget", url="about:blank")["targetId"]
            attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self._call(f"{domain}.enable")
            started.pop_all()

    def open(self, address: str) -> None:
        """Open an address, and wait until it is loaded."""
        self._events.clear()
        self._call("Page.navigate", url=address)
        while "Page.loadEventFired" not in self._events:
            self._note(self._receive())

    def evaluate(self, expression: str) -> object:
        """Return the value of a JavaScript expression on the page. Raises AssertionError if it
        throws."""
        result = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def resize(self, width: int, height: int) -> None:
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def set_media(self, *, scheme: str = "light", media: str = "") -> None:
        """Choose the colour scheme, light or dark, and the media, such as print."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._call("Emulation.setEmulatedMedia", media=media, features=features)

    def screenshot(self) -> bytes:
        """Return what the window shows as PNG."""
        shot = self._call("Page.captureScreenshot")
        return base64.b64decode(shot["data"])

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            data = os.read(self._from, 1 << 16)
            assert data, "Chromium has ended"
            self._received += data
        line, self._received = self._received.split(b"\0", 1)
        message: dict[str, Any] = json.loads(line)
        return message

    def _note(self, event: dict[str, Any]) -> None:
        name, params = event.get("method", ""), event.get("params", {})
        self._events.append(name)
        if name == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif name == "Page.javascriptDialogOpening":
            self.problems.append(f"dialog: {params['message']}")
        elif name == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"]))
        elif name == "Log.entryAdded":
            self.problems.append(params["entry"]["text"])

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the browser."""
        os.close(self._to)
        self._process.terminate()
        self._process.wait(_SECONDS)
        os.close(self._from)

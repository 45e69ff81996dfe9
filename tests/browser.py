"""Chromium without a screen: opens a page, tells its text, takes its picture."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One page of a browser, by its DevTools protocol."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._numbers = socket, itertools.count(1)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What the browser answers to a command."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        return self.ask("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def open(self, address: str, until: str, seconds: float = 60) -> str:
        """Go to a page and wait until its text says something; the text. An AssertionError where it does not."""
        self.ask("Page.navigate", url=address)
        end = time.monotonic() + seconds
        text = ""
        while time.monotonic() < end:
            text = self.run("document.body ? document.body.innerText : ''") or ""
            if until in text:
                time.sleep(1.0)  # for what comes after: lists, pictures
                return str(self.run("document.body.innerText"))
            time.sleep(0.3)
        raise AssertionError(f'{address} does not say "{until}": {text[:2000]}')

    def photograph(self, file: Path) -> None:
        """What is seen of the page, as a PNG."""
        file.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def browser(profile: Path, size: tuple[int, int] = (1400, 1000)) -> Iterator[Browser]:
    """Chromium with an empty page; `profile` is a new folder for what it writes."""
    assert CHROMIUM, "no Chromium: apt-get install chromium"
    flags = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--remote-debugging-port=0"]
    flags += [f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"]
    with (profile.parent / f"{profile.name}.log").open("wb") as log:
        process = subprocess.Popen([CHROMIUM, *flags, "about:blank"], stdout=log, stderr=log, start_new_session=True)
    try:
        port = _port(profile / "DevToolsActivePort")
        pages = httpx.get(f"http://127.0.0.1:{port}/json").json()
        (address,) = (page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
        with connect(address, max_size=None) as socket:
            yield Browser(socket)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _port(file: Path) -> int:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if file.exists() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        time.sleep(0.1)
    raise AssertionError(f"Chromium did not start: {file}")

"""Chromium without a screen, driven over the WebDriver protocol (https://www.w3.org/TR/webdriver2)."""

import base64
import contextlib
import json
import shutil
import subprocess
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from serving import free_port, wait_until

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


class Browser:
    def __init__(self, url):
        self.url = url

    def ask(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        try:
            with urlopen(
                Request(self.url + path, data, {"Content-Type": "application/json"}, method=method), timeout=60
            ) as answer:
                return json.loads(answer.read())["value"]
        except HTTPError as error:
            raise AssertionError(error.read().decode()) from error

    def open(self, url):
        self.ask("POST", "/url", {"url": url})

    def run(self, script, *arguments):
        return self.ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def _element(self, selector):
        return self.ask("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]

    def click(self, selector):
        self.ask("POST", f"/element/{self._element(selector)}/click", {})

    def type(self, selector, text):
        self.ask("POST", f"/element/{self._element(selector)}/value", {"text": text})

    def texts(self, selector):
        return self.run("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector)

    def shows(self, selector):
        return self.run("return document.querySelector(arguments[0]).checkVisibility()", selector)

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.ask("GET", "/screenshot")))


@contextlib.contextmanager
def browser(folder, width, height, dark=False):
    """A browser with an empty profile in `folder`, with a page of this size."""
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    if not (driver and chromium):
        pytest.skip("needs chromium and chromedriver")
    port = free_port()
    process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"

        def is_up():
            with contextlib.suppress(OSError):
                return urlopen(f"{address}/status", timeout=5).status == 200

        wait_until(is_up)
        # "mobileEmulation" sets the size of the page itself: a window cannot be as narrow as a phone.
        options = {
            "binary": chromium,
            "args": [*FLAGS, f"--user-data-dir={folder}", *(["--force-dark-mode"] if dark else [])],
            "mobileEmulation": {"deviceMetrics": {"width": width, "height": height, "pixelRatio": 1.0}},
        }
        wanted = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
        session = Browser(f"{address}/session").ask("POST", "", wanted)["sessionId"]
        found = Browser(f"{address}/session/{session}")
        yield found
        found.ask("DELETE", "")
    finally:
        process.terminate()
        process.wait(timeout=30)

"""Debian's Chromium without a window, on the dashboard of a live node, and a list of what the page must not do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",  # the tests may run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium() -> str:
    """Return the browser's path; AssertionError says how to get one."""
    named = os.environ.get("ISOTHERM_CHROMIUM")
    found = named or next((path for name in NAMES if (path := shutil.which(name))), None)
    assert found, "no Chromium: apt-get install chromium (make tools does, as root on Debian), or set ISOTHERM_CHROMIUM"
    return found


@contextmanager
def browser() -> Iterator[Browser]:
    """Run one browser."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        try:
            yield started
        finally:
            started.close()


class Watched:
    """A page, and what it said, asked and broke: `errors` of console and scripts, `foreign` requests to other hosts."""

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.address = page, address
        self.errors: list[str] = []
        self.foreign: list[str] = []
        self.urls: list[str] = []
        page.on("console", lambda said: self.errors.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self._asked(request.url))

    def _asked(self, url: str) -> None:
        self.urls.append(url)
        if urlsplit(url).netloc != urlsplit(self.address).netloc:
            self.foreign.append(url)


@contextmanager
def opened(started: Browser, address: str, *, path: str = "/ui", **options: Any) -> Iterator[Watched]:
    """Open the dashboard in a context of its own; `options` are the context's (colour scheme, viewport)."""
    context = started.new_context(**{"viewport": {"width": 1440, "height": 1000}} | options)
    context.set_default_timeout(30_000)
    try:
        page = context.new_page()
        watched = Watched(page, address)
        page.goto(address + path)
        yield watched
    finally:
        context.close()

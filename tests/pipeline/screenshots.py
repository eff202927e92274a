"""Makes the pictures of the dashboard in docs/images: `python -m tests.pipeline.screenshots [FOLDER]`.

A node of its own on local servers takes the standard library's texts, ages them fast, and is searched meanwhile; the
latency that they show is that of the machine just then. `pngquant`, where there is one, makes them a third of the size.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Self

import httpx
from playwright.sync_api import Browser, Page

from pipeline.demo_texts import Text, collect
from pipeline.log import configure
from pipeline.settings import LogSettings, Settings
from pipeline.stack import Stack
from tests.browser import browser, opened
from tests.conftest import StackThread
from tests.live import Live, live
from tests.nodes import small

IMAGES = Path(__file__).parents[2] / "docs" / "images"
QUESTION = "compress data with gzip"
ASKED = (QUESTION, "parse command line arguments", "send an email", "open a socket", "a random number")
BATCH = 40
FILLED = 800
WATCHED_MS = 40_000
PICTURES = (
    ("dashboard-light", {"color_scheme": "light", "viewport": {"width": 1440, "height": 1180}}),
    ("dashboard-dark", {"color_scheme": "dark", "viewport": {"width": 1440, "height": 1180}}),
    ("dashboard-narrow", {"color_scheme": "dark", "viewport": {"width": 390, "height": 844}}),
)


def main(folder: Path) -> None:
    """Make them all."""
    folder.mkdir(parents=True, exist_ok=True)
    configure(LogSettings(level="warning"))
    with tempfile.TemporaryDirectory(prefix="isotherm-pictures-") as data:
        thread = StackThread(Stack(Path(data) / "stack"))
        thread.do(thread.stack.__aenter__())
        try:
            with live(settings(thread.stack, Path(data))) as node, Crowd(node) as crowd, browser() as chromium:
                crowd.spread()
                for name, options in PICTURES:
                    picture(chromium, node.address, folder / f"{name}.png", options)
        finally:
            thread.do(thread.stack.stop())
            thread.close()


def settings(stack: Stack, data: Path) -> Settings:
    """Return a node that ages within seconds, with limits that its records come near to."""
    return small(
        stack,
        "pictures",
        data / "node",
        dim=256,
        embedder="wordllama",
        attributes={"module": "string", "kind": "string"},
        kafka__partitions=8,
        hot__capacity_rows=2_048,
        hot__slab_rows=64,
        warm__bytes_limit=6_000_000,
        cold__bytes_limit=48_000_000,
        policy__hot_age_s=8.0,
        policy__warm_idle_s=10.0,
        policy__cold_idle_s=20.0,
        policy__warm_heat_min=0.0,
        age__interval_ms=500,
    )


class Crowd:
    """Producers and askers of a node, for as long as the block lasts."""

    def __init__(self, node: Live) -> None:
        self._node, self._stop = node, threading.Event()
        self._threads = [threading.Thread(target=each) for each in (self._publish, self._ask)]

    def __enter__(self) -> Self:
        for each in self._threads:
            each.start()
        self._node.do(
            self._node.memory.publish([("sensor-7", b'{"vector": [0.1, 0.2, 0.3]}'), ("import/12", b"id;text")])
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for each in self._threads:
            each.join()

    def spread(self) -> None:
        """Wait until glacier has filled and every tier has records."""
        for _ in range(300):
            told = httpx.get(f"{self._node.address}/v1/tiers", timeout=30).json()["tiers"]
            if told["glacier"]["records"] > FILLED and all(tier["records"] for tier in told.values()):
                return
            time.sleep(1)
        raise AssertionError(f"five minutes, and the tiers have {told}")

    def _publish(self) -> None:
        texts = collect()
        with httpx.Client(base_url=self._node.address, timeout=30) as http:
            at = 0
            while not self._stop.wait(0.7):
                chosen = [texts[(at + each) % len(texts)] for each in range(BATCH)]
                http.post("/v1/memories", json=[memory(text) for text in chosen])
                at += BATCH

    def _ask(self) -> None:
        with httpx.Client(base_url=self._node.address, timeout=30) as http:
            at = 0
            while not self._stop.wait(0.4):
                http.post("/v1/search", json={"text": ASKED[at % len(ASKED)], "k": 10})
                at += 1


def memory(text: Text) -> dict[str, object]:
    """Return a memory to publish."""
    said = text.text[:2_000]
    attributes = {"module": text.module, "kind": text.kind}
    return {"id": text.id, "text": said, "payload": {"text": said}, "attributes": attributes}


def picture(chromium: Browser, address: str, file: Path, options: dict[str, object]) -> None:
    """Look for a while, search, look at a hit that has come down, and take the picture."""
    with opened(chromium, address, **options) as watched:
        page: Page = watched.page
        page.wait_for_timeout(WATCHED_MS)
        page.fill("#question", QUESTION)
        page.get_by_role("button", name="Search").click()
        page.locator(".hit").first.wait_for()
        down = page.locator(".hit:not([data-tier=hot]) .id")
        (down if down.count() else page.locator(".hit .id")).first.click()
        page.locator("#content pre").wait_for()
        page.evaluate("scrollTo(0, 0)")
        page.wait_for_timeout(1_500)
        page.screenshot(path=str(file))
        assert not (wrong := watched.errors + watched.foreign), wrong
    if smaller := shutil.which("pngquant"):
        subprocess.run([smaller, "--quality", "70-95", "--force", "--output", str(file), str(file)], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)

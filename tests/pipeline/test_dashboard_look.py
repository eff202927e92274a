"""How the dashboard looks and behaves: light, dark, narrow, by keyboard, without motion; and each state of a node."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from pipeline.stack import Stack
from tests.browser import Watched, browser, opened
from tests.live import Live, live
from tests.nodes import rows, small
from tests.valkey_server import ValkeyServer

SOON_MS = 60_000
#: What moved by itself since the page was opened (0: nothing; 0.1 is said to be good); entries come at once, or never.
SHIFTED = """new Promise((done) => {
  const own = (list) => list.getEntries().filter((each) => !each.hadRecentInput);
  const sum = (entries) => entries.reduce((moved, { value }) => moved + value, 0);
  const watch = new PerformanceObserver((list) => done(sum(own(list))));
  watch.observe({ type: "layout-shift", buffered: true });
  setTimeout(() => done(0), 1000);
})"""
CONTRAST = """(node) => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  const weights = [0.2126, 0.7152, 0.0722];
  const light = (text) => weights.reduce((sum, weight, at) => sum + weight * linear(numbers(text)[at] / 255), 0);
  let behind = node;
  while (!getComputedStyle(behind).backgroundColor.startsWith("rgb(")) behind = behind.parentElement;
  const both = [getComputedStyle(node).color, getComputedStyle(behind).backgroundColor].map(light);
  const [high, low] = both.sort((a, b) => b - a);
  return (high + 0.05) / (low + 0.05);
}"""


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """A warm tier of this module's own, to be frozen."""
    with ValkeyServer(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="module")
def node(stack: Stack, valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A few records that stay in hot."""
    data = tmp_path_factory.mktemp("node")
    with live(small(stack, "t-ui-look", data, warm__url=valkey.url, policy__hot_age_s=3_600.0)) as node:
        token = node.do(node.memory.store(rows(12)))
        httpx.get(f"{node.address}/v1/memories/id-1", params={"at_least": token}).raise_for_status()
        yield node


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for this module."""
    with browser() as started:
        yield started


@pytest.fixture
def open_page(chromium: Browser, node: Live) -> Iterator[Callable[..., Watched]]:
    """Opens the dashboard as told; closed at the end of the test."""
    contexts: list[Any] = []

    def opening(**options: Any) -> Watched:
        context = opened(chromium, node.address, **options)
        contexts.append(context)
        watched = context.__enter__()
        expect(watched.page.locator("#partition-rows tr")).to_have_count(4, timeout=SOON_MS)
        return watched

    yield opening
    for context in contexts:
        context.__exit__(None, None, None)


def contrast(page: Page, selector: str) -> float:
    """Return the contrast of a text with what is behind it, as WCAG reckons it."""
    return float(page.locator(selector).first.evaluate(CONTRAST))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_can_be_read(open_page: Callable[..., Watched], scheme: str) -> None:
    """Text has a contrast of 4.5 at least; the ground is light or dark as the system asks."""
    page = open_page(color_scheme=scheme).page
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
    assert (ground > 128) == (scheme == "light")
    texts = ("h1", "h2", ".records", ".tier h3", ".held", "thead th", ".note", ".flow", "#search-said", "button.main")
    for selector in (*texts, *(f".tier[data-tier={tier}] h3" for tier in ("warm", "cold", "glacier"))):
        assert contrast(page, selector) >= 4.5, selector


@pytest.mark.parametrize("width", [360, 700, 1000, 1440, 2200])
def test_it_fits_every_screen(open_page: Callable[..., Watched], width: int) -> None:
    """Nothing is wider than the screen, at 360 pixels too, with results shown; and no panel lies over another."""
    page = open_page(viewport={"width": width, "height": 800}).page
    page.fill("#question", "id-1")
    page.get_by_role("button", name="Search").click()
    expect(page.locator(".hit").first).to_be_visible(timeout=SOON_MS)
    page.locator(".hit .id").first.click()
    expect(page.locator("#content pre")).to_be_visible(timeout=SOON_MS)

    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    boxes = page.locator("main > .panel:visible").evaluate_all(
        "(all) => all.map((each) => each.getBoundingClientRect()).map((b) => [b.left, b.top, b.right, b.bottom])"
    )
    for at, one in enumerate(boxes):
        for other in boxes[at + 1 :]:
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart, (one, other)


def test_nothing_moves_by_itself(open_page: Callable[..., Watched], node: Live) -> None:
    """While records arrive and figures change, everything stays in its place."""
    page = open_page().page
    node.do(node.memory.store(rows(200, start=5_000)))
    expect(page.locator(".tier[data-tier=hot] .records")).to_have_text("212", timeout=SOON_MS)
    page.wait_for_timeout(2_500)
    assert page.evaluate(SHIFTED) < 0.01


def test_the_keyboard_is_enough(open_page: Callable[..., Watched]) -> None:
    """The skip link is first; what has the focus can be seen; a search is asked and a hit looked at without a mouse."""
    page = open_page().page
    page.keyboard.press("Tab")
    assert "Skip to the tiers" == page.evaluate("document.activeElement.textContent")
    seen: list[str] = []
    for _ in range(40):
        page.keyboard.press("Tab")
        where = page.evaluate(
            "document.activeElement.id || document.activeElement.name || document.activeElement.tagName"
        )
        shown = page.evaluate(
            "[document.activeElement, document.activeElement.nextElementSibling].some((each) => "
            "each && getComputedStyle(each).outlineStyle !== 'none')"
        )
        assert shown or where == "BODY", where
        seen.append(where)
        if where == "question":
            break
    assert ["pause", "key-open"] == seen[:2]
    page.keyboard.type("id-1")
    page.keyboard.press("Enter")
    expect(page.locator(".hit").first).to_be_visible(timeout=SOON_MS)
    page.locator(".hit .id").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#record-said")).to_contain_text("is in hot", timeout=SOON_MS)
    expect(page.locator("#say")).to_contain_text("is in hot", timeout=SOON_MS)  # and said to who listens
    assert {"polite"} == set(page.locator("[aria-live]").evaluate_all("(all) => all.map((e) => e.ariaLive)"))


def test_who_wants_no_motion_has_none(open_page: Callable[..., Watched]) -> None:
    """Drops stand still, levels jump."""
    for motion, moves in (("reduce", False), ("no-preference", True)):
        page = open_page(reduced_motion=motion).page
        page.evaluate("document.querySelector('.drops').append(document.createElement('i'))")
        found = page.evaluate(
            "[getComputedStyle(document.querySelector('.drops i')).animationName !== 'none', "
            "parseFloat(getComputedStyle(document.querySelector('.level')).transitionDuration) > 0]"
        )
        assert [moves, moves] == found


# -- states ------------------------------------------------------------------------------------------------------------


def test_a_tier_that_hangs_is_marked_and_heals(open_page: Callable[..., Watched], valkey: ValkeyServer) -> None:
    """Its figures are the index's, its rates unknown, and the page says what to do; then all is well again."""
    page = open_page().page
    os.kill(valkey._process.pid, signal.SIGSTOP)
    try:
        expect(page.locator(".tier[data-tier=warm]")).to_contain_text("does not answer", timeout=SOON_MS)
        expect(page.locator("#state")).to_have_attribute("data-state", "sick", timeout=SOON_MS)
        expect(page.locator("#notice")).to_contain_text("warm does not answer")
        expect(page.locator("#notice")).to_contain_text("isotherm doctor")
        expect(page.locator(".tier[data-tier=hot] .flow b").first).to_have_text("\N{EN DASH}", timeout=SOON_MS)
    finally:
        os.kill(valkey._process.pid, signal.SIGCONT)
    expect(page.locator("#state")).to_have_attribute("data-state", "ready", timeout=SOON_MS)
    expect(page.locator("#notice")).to_be_hidden()


@pytest.mark.parametrize(
    ("change", "state", "says"),
    [
        ({"replaying": [0, 2]}, "replaying", "partitions 0, 2 do not answer yet"),
        ({"paused": [1]}, "paused", "Partitions 1 are paused: hot has no room"),
    ],
)
def test_what_the_node_says_of_itself_is_drawn(
    open_page: Callable[..., Watched], change: dict[str, Any], state: str, says: str
) -> None:
    """Replaying and paused, in a word and a sentence, and beside the partition."""
    page = open_page().page

    def changed(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=json.dumps(answer.json() | change))

    page.route("**/v1/tiers", changed)
    expect(page.locator("#state-word")).to_have_text(state, timeout=SOON_MS)
    expect(page.locator("#notice")).to_contain_text(says)
    expect(page.locator("#partition-rows tr td:last-child", has_text=state).first).to_be_visible(timeout=SOON_MS)


def test_a_node_that_is_gone_is_waited_for(chromium: Browser, stack: Stack, prefix: str, tmp_path: Path) -> None:
    """First an empty one, with the line that publishes; then none; then the same again, and all goes on."""
    settings = small(stack, prefix, tmp_path / "node", policy__hot_age_s=3_600.0)
    with ExitStack() as kept:
        with live(settings) as first:
            page = kept.enter_context(opened(chromium, first.address)).page
            expect(page.locator("#first")).to_contain_text("isotherm publish", timeout=SOON_MS)
            expect(page.locator("#feed-said")).to_contain_text("listening", timeout=SOON_MS)
            port = int(first.address.rpartition(":")[2])
        expect(page.locator("#state-word")).to_have_text("unreachable", timeout=SOON_MS)
        expect(page.locator("#notice")).to_contain_text("Is the node running?")
        page.get_by_role("button", name="Search").click()
        expect(page.locator("#search-said")).to_contain_text("does not answer", timeout=SOON_MS)
        with live(small(stack, prefix, tmp_path / "node", policy__hot_age_s=3_600.0, gateway__port=port)) as second:
            expect(page.locator("#state-word")).to_have_text("ready", timeout=SOON_MS)
            second.do(second.memory.store(rows(3)))
            expect(page.locator(".tier[data-tier=hot] .records")).to_have_text("3", timeout=SOON_MS)
            expect(page.locator("#first")).to_be_hidden()
            expect(page.locator("#feed-said")).to_contain_text("listening", timeout=SOON_MS)

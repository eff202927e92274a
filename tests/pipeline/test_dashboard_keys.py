"""The dashboard of a gateway with keys: none, a wrong one, a good one, one of a namespace, one that ends meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from pipeline.stack import Stack
from tests.access import make_key, revoke_key
from tests.browser import Watched, browser, opened
from tests.live import Live, live
from tests.nodes import bring, rows, small
from tiers.tier import TierName

SOON_MS = 60_000
#: What the browser itself says of an answer, and of a stream that was cut because its key ended.
REFUSED = ("status of 401", "status of 403", "status of 404", "ERR_INCOMPLETE_CHUNKED_ENCODING", "detail: Object")


@pytest.fixture(scope="module")
def node(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Three records of the namespace a, two of b, in hot; keys are wanted."""
    settings = small(stack, "t-ui-keys", tmp_path_factory.mktemp("node"), policy__hot_age_s=3_600.0)
    key = make_key(settings)
    with live(settings) as node:
        names = ("a/1", "a/2", "a/3", "b/1", "b/2")
        token = node.do(node.memory.store([replace(row, id=name) for row, name in zip(rows(5), names, strict=True)]))
        headers = {"authorization": f"Bearer {key}"}
        httpx.get(f"{node.address}/v1/memories/a%2F1", params={"at_least": token}, headers=headers).raise_for_status()
        yield node


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for this module."""
    with browser() as started:
        yield started


@pytest.fixture
def watched(chromium: Browser, node: Live) -> Iterator[Watched]:
    """The dashboard without a key; no key is ever in a URL."""
    with opened(chromium, node.address) as watched:
        yield watched
        assert [] == [said for said in watched.errors if not any(each in said for each in REFUSED)]
        assert [] == watched.foreign
        assert [] == [url for url in watched.urls if "iso_" in url]


def key_of(node: Live, *spaces: str, scopes: tuple[str, ...] = ("read", "write", "operate")) -> str:
    """Return a new key that the gateway knows."""
    key = make_key(node.memory.node.settings, *spaces, scopes=scopes)
    node.call(node.gateway.keyring._look)
    return key


def enter(page: Page, key: str) -> None:
    """Give the page a key."""
    expect(page.locator("#key")).to_be_visible(timeout=SOON_MS)
    page.get_by_label("Key", exact=True).fill(key)
    with page.expect_navigation(timeout=SOON_MS):  # the page begins anew
        page.get_by_role("button", name="Use it").click()


def test_a_key_is_asked_for_and_kept_for_the_tab(watched: Watched, node: Live) -> None:
    """Without one nothing is shown; a wrong one is refused in words; a good one is kept in the session alone."""
    page = watched.page
    expect(page.locator("#key-said")).to_contain_text("Authorization", timeout=SOON_MS)
    expect(page.locator(".tier .records").first).to_have_text("\N{EN DASH}")
    assert [] == [url for url in watched.urls if url.endswith(("/v1/tiers", "/metrics"))]
    enter(page, "iso_0123456789ab_" + "x" * 43)
    expect(page.locator("#key-said")).to_contain_text("not known", timeout=SOON_MS)
    key = key_of(node)
    enter(page, key)
    expect(page.locator("#state")).to_have_attribute("data-state", "ready", timeout=SOON_MS)
    expect(page.locator(".tier[data-tier=hot] .records")).to_have_text("5")
    expect(page.locator("#feed-said")).to_contain_text("listening", timeout=SOON_MS)
    expect(page.locator("#partition-rows tr")).to_have_count(4, timeout=SOON_MS)
    assert [key, 0, ""] == page.evaluate('[sessionStorage["isotherm.key"], localStorage.length, document.cookie]')
    node.do(bring(node.memory, "a/3", TierName.HOT, TierName.WARM))  # the feed has the key too
    expect(page.locator("#changes li").first).to_contain_text("a/3", timeout=SOON_MS)

    page.get_by_role("button", name="Key ").click()
    page.get_by_role("button", name="Forget it").click()
    expect(page.locator("#key")).to_be_visible(timeout=SOON_MS)
    assert page.evaluate('sessionStorage["isotherm.key"] === undefined')


def test_a_key_of_a_namespace_sees_that_alone(watched: Watched, node: Live) -> None:
    """Its records, its changes; of the whole node nothing is asked, and what it may not see is not there (R12)."""
    page = watched.page
    enter(page, key_of(node, "a", scopes=("read",)))
    expect(page.locator("#total")).to_have_text("3 records", timeout=SOON_MS)
    expect(page.locator("#narrowed")).to_contain_text("namespaces a and nothing else")
    for hidden in ("#latency", "#partitions", "#dead", "#hints"):
        expect(page.locator(hidden)).to_be_hidden()
    page.fill("#question", "a/1")
    page.get_by_role("button", name="Search").click()
    expect(page.locator(".hit")).to_have_count(3, timeout=SOON_MS)
    page.fill("#record-id", "b/1")
    page.get_by_role("button", name="Look", exact=True).click()
    expect(page.locator("#record-said")).to_contain_text("There is no record b/1", timeout=SOON_MS)
    expect(page.locator("#feed-said")).to_contain_text("listening", timeout=SOON_MS)
    node.do(bring(node.memory, "b/2", TierName.HOT, TierName.WARM))
    node.do(bring(node.memory, "a/2", TierName.HOT, TierName.WARM))
    expect(page.locator("#changes li")).to_have_count(1, timeout=SOON_MS)
    expect(page.locator("#changes li")).to_contain_text("a/2")

    assert [] == [url for url in watched.urls if url.endswith("/metrics") or "dead-letters" in url]


def test_hints_want_the_scope_operate(watched: Watched, node: Live) -> None:
    """A key that may only read has no button; one that may operate has, and is told what came of it."""
    page = watched.page
    enter(page, key_of(node, scopes=("read",)))
    page.locator("#record-id").fill("b/1", timeout=SOON_MS)
    page.get_by_role("button", name="Look", exact=True).click()
    expect(page.locator("#record-said")).to_contain_text("b/1 is in", timeout=SOON_MS)
    expect(page.locator("#promote")).to_be_hidden()
    expect(page.locator("#dead")).to_be_hidden()
    expect(page.locator("#latency")).to_be_visible()
    page.get_by_role("button", name="Key ").click()
    enter(page, key_of(node))
    page.locator("#record-id").fill("b/1", timeout=SOON_MS)
    page.get_by_role("button", name="Look", exact=True).click()
    page.get_by_role("button", name="Hint: wanted in hot").click(timeout=SOON_MS)
    expect(page.locator("#record-said")).to_contain_text("counted as 100 reads", timeout=SOON_MS)


def test_a_key_that_ends_is_asked_for_anew(watched: Watched, node: Live) -> None:
    """A revoked key shows nothing more: the dialog says why."""
    page, key = watched.page, key_of(node)
    enter(page, key)
    expect(page.locator("#state")).to_have_attribute("data-state", "ready", timeout=SOON_MS)
    revoke_key(node.memory.node.settings, key)
    expect(page.locator("#key-said")).to_contain_text("revoked", timeout=SOON_MS)
    expect(page.locator("#state-word")).to_have_text("locked", timeout=SOON_MS)


def test_a_key_that_may_not_read_is_told_so(watched: Watched, node: Live) -> None:
    """The page needs the scope read, and says it."""
    enter(watched.page, key_of(node, scopes=("write",)))
    expect(watched.page.locator("#key-said")).to_contain_text("'read'", timeout=SOON_MS)
    expect(watched.page.locator("#state-word")).to_have_text("forbidden")
    assert json.loads(httpx.get(f"{node.address}/v1/key").text)["status"] == 401

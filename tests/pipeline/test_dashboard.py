"""The dashboard on a live node, in a browser: it shows what the API says, and goes on showing it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from pipeline.stack import Stack
from pipeline.tiers_rates import rates
from tests.browser import Watched, browser, opened
from tests.live import Live, live
from tests.nodes import DIM, bring, rows, small
from tiers.tier import TierName

HOSTILE = '<img src=x onerror="window.pwned=1">\'"&{{7*7}}</script><script>window.pwned=1</script>'
DOWN = (TierName.HOT, TierName.WARM, TierName.COLD, TierName.GLACIER)
NONE = "\N{EN DASH}"  # how the page writes what is not known
SOON_MS = 60_000  # that the page may take to show something: it asks once a second, on a busy machine


@pytest.fixture(scope="module")
def node(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Forty records, ten in each tier, that stay where they are; one of them has a hostile id and payload."""
    settings = small(stack, "t-ui", tmp_path_factory.mktemp("node"), policy__hot_age_s=3_600.0)
    with live(settings) as node:
        some = rows(39)
        node.do(node.memory.store(some))
        hostile = json.dumps({"vector": some[0].vector.tolist(), "payload": {"text": HOSTILE}}).encode()
        token = node.do(node.memory.publish([(HOSTILE, hostile)]))
        httpx.get(f"{node.address}/v1/memories/id-1", params={"at_least": token}).raise_for_status()
        for number in range(30):
            node.do(bring(node.memory, f"id-{number}", *DOWN[: 2 + number // 10]))
        yield node


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for this module."""
    with browser() as started:
        yield started


@pytest.fixture
def watched(chromium: Browser, node: Live) -> Iterator[Watched]:
    """The dashboard, which says nothing on the console and asks no other host, whatever a test does with it."""
    with opened(chromium, node.address) as watched:
        expect(watched.page.locator("#state")).to_have_attribute("data-state", "ready")
        yield watched
        assert [] == watched.errors
        assert [] == watched.foreign
        assert watched.page.evaluate("window.pwned") is None


@pytest.fixture
def page(watched: Watched) -> Page:
    """The page of `watched`."""
    return watched.page


@pytest.fixture
def http(node: Live) -> Iterator[httpx.Client]:
    """A client of the node."""
    with httpx.Client(base_url=node.address, timeout=20) as http:
        yield http


def number(text: str | None) -> int:
    """Return a number as the page writes it."""
    return int((text or "").replace(",", ""))


def test_the_column_says_what_tiers_says(page: Page, http: httpx.Client) -> None:
    """Records, and how full each tier is, of every tier; and what is only in the log."""
    expect(page.locator(".tier .records").first).not_to_have_text(NONE, timeout=SOON_MS)
    answer = http.get("/v1/tiers").json()

    assert {"hot": 10, "warm": 10, "cold": 10, "glacier": 10} == {
        name: tier["records"] for name, tier in answer["tiers"].items()
    }
    for name, tier in answer["tiers"].items():
        row = page.locator(f".tier[data-tier={name}]")
        assert tier["records"] == number(row.locator(".records").text_content())
        full = row.locator(".vessel").get_attribute("aria-valuenow")
        if name == "hot":
            part = max(tier["rows"] / tier["rows_limit"], tier["bytes"] / tier["bytes_limit"])
            assert round(100 * part) == int(full or -1)
        if not tier["rows_limit"] and not tier["bytes_limit"]:
            assert (None, "no limit") == (full, row.locator(".vessel").get_attribute("aria-valuetext"))
    expect(page.locator("#facts")).to_contain_text(f"only in the log{sum(answer['dirty'].values())}")


def test_rates_are_those_of_the_command_line(page: Page) -> None:
    """Page and `isotherm tiers` reckon the same from the same two answers; of the first alone nothing is known."""
    before: dict[str, Any] = {"at": 10.0, "ingested": 100, "reads": {"hot": 5, "copies": 1}, "copies": {"promoted": 3}}
    before |= {"tiers": {"hot": {}, "warm": {}}, "moved": [{"from": "hot", "to": "warm", "records": 7}]}
    now = before | {"at": 12.5, "ingested": 200, "reads": {"hot": 30, "copies": 2}, "copies": {"promoted": 8}}
    now["moved"] = [{"from": "hot", "to": "warm", "records": 17}, {"from": "hot", "to": "cold", "records": 5}]
    script = 'async ([now, before]) => { const { rates } = await import("/ui/rates.js"); return rates(now, before); }'
    shown, told = page.evaluate(script, [now, before]), rates(now, before)

    assert told is not None
    assert told.flows == {(flow["from"], flow["to"]): flow["rate"] for flow in shown["flows"]}
    assert (told.into["hot"], told.out["hot"]) == (shown["into"]["hot"], shown["out"]["hot"])
    assert told.reads == shown["reads"]
    assert 2 == shown["promoted"]
    assert page.evaluate(script, [now, None]) is None


def test_it_is_live(page: Page, node: Live) -> None:
    """What arrives and what moves is seen without a reload: in the numbers, in the neck, in the feed."""
    hot = page.locator(".tier[data-tier=hot] .records")
    expect(hot).to_have_text("10", timeout=SOON_MS)
    expect(page.locator("#feed-said")).to_contain_text("listening", timeout=SOON_MS)
    token = node.do(node.memory.store(rows(5, start=1_000)))
    httpx.get(f"{node.address}/v1/memories/id-1000", params={"at_least": token}).raise_for_status()
    expect(hot).to_have_text("15", timeout=SOON_MS)
    for identifier in range(1_000, 1_005):
        node.do(bring(node.memory, f"id-{identifier}", TierName.HOT, TierName.GLACIER))

    expect(hot).to_have_text("10", timeout=SOON_MS)
    expect(page.locator(".tier[data-tier=glacier] .records")).to_have_text("15", timeout=SOON_MS)
    change = page.locator("#changes li", has_text="id-1004")
    expect(change.locator(".chip")).to_have_text(["hot", "glacier"], timeout=SOON_MS)
    change.get_by_role("button", name="id-1004").click()
    expect(page.locator("#record-said")).to_have_text("id-1004 is in glacier.", timeout=SOON_MS)
    for identifier in range(1_000, 1_005):
        node.do(node.memory.delete(f"id-{identifier}"))
    expect(page.locator(".tier[data-tier=glacier] .records")).to_have_text("10", timeout=SOON_MS)


def test_scripts_may_come_in_any_time(chromium: Browser, node: Live) -> None:
    """A slow network delivers a file late; the page waits for all of them, and then everything is wired."""
    for late in ("hx-sse.min.js", "app.js", "feed.js"):
        with opened(chromium, node.address, path="/healthz") as watched:
            page = watched.page

            def slowly(route: Route) -> None:
                time.sleep(0.7)
                route.continue_()

            page.route(f"**/{late}", slowly)
            page.goto(f"{node.address}/ui")
            expect(page.locator("#feed-said")).to_contain_text("listening", timeout=SOON_MS)
            expect(page.locator(".tier .records").first).not_to_have_text(NONE, timeout=SOON_MS)


def test_a_pause_holds_the_page_still(page: Page, watched: Watched) -> None:
    """Nothing is asked until it goes on."""
    page.get_by_role("button", name="Pause").click()
    page.wait_for_timeout(1_500)  # what was asked before is answered
    asked = len(watched.urls)
    page.wait_for_timeout(2_500)
    assert asked == len(watched.urls)
    with page.expect_request("**/v1/tiers"):
        page.get_by_role("button", name="Go on").click()


def test_search_shows_what_the_api_answers(page: Page, http: httpx.Client) -> None:
    """The hits in their order with tier and score, what was looked at, and where the time went; across all tiers."""
    told = http.post("/v1/search", json={"id": "id-12", "k": 40}).json()
    page.fill("#question", "id-12")
    page.fill("#k", "40")
    page.get_by_role("button", name="Search").click()
    expect(page.locator(".hit")).to_have_count(40, timeout=SOON_MS)
    hits = page.locator(".hit").evaluate_all(
        "(all) => all.map((hit) => [hit.querySelector('.id').textContent, hit.dataset.tier, "
        "hit.querySelector('.score').textContent])"
    )

    assert [[hit["id"], hit["tier"], f"{hit['score']:.4f}"] for hit in told["hits"]] == hits
    assert {"hot", "warm", "cold", "glacier"} == {tier for _, tier, _ in hits}
    expect(page.locator("#search-said")).to_contain_text(f"{told['scanned']} of {told['of']} records looked at")
    expect(page.locator("#search-said")).to_contain_text("complete")
    expect(page.locator(".hit .chip").first).to_contain_text("ms")
    assert {"scan", "fetch"} <= set(page.locator(".step").evaluate_all("(all) => all.map((each) => each.dataset.step)"))
    page.get_by_text("What the search did").click()
    expect(page.locator("#explained tbody tr")).to_have_count(4)
    expect(page.locator("#explained tbody tr").first).to_contain_text("hot")


def test_what_a_search_may_be_told(page: Page) -> None:
    """Tiers, a filter, a vector; without an embedder there are no words; what is wrong is said, with its field."""
    expect(page.locator("#by-words")).to_be_hidden()
    for tier in ("hot", "cold", "glacier"):
        page.locator(f"#search-tiers [data-tier={tier}]").click()
    page.fill("#question", "id-12")
    page.fill("#filter", "user = 'u1'")
    page.get_by_role("button", name="Search").click()
    expect(page.locator(".hit").first).to_be_visible(timeout=SOON_MS)
    shown = set(page.locator(".hit .id").all_text_contents())
    assert {f"id-{n}" for n in range(10) if n % 3 == 1} == shown

    page.get_by_label("vector", exact=True).check()
    page.get_by_role("button", name="Random").click()
    assert DIM == len(page.input_value("#question").split(","))
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#search-said")).to_contain_text("complete", timeout=SOON_MS)


def test_a_record_is_told_as_why_tells_it(page: Page, http: httpx.Client) -> None:
    """Where it is, why, its way down, what it holds; and that there is none."""
    told = http.get("/v1/why/id-25").json()
    page.fill("#record-id", "id-25")
    page.get_by_role("button", name="Look", exact=True).click()
    expect(page.locator("#record-said")).to_have_text("id-25 is in glacier.", timeout=SOON_MS)
    steps = page.locator(".steps li").evaluate_all(
        "(all) => all.map((step) => [...step.querySelectorAll('.chip')].map((chip) => chip.textContent))"
    )

    assert [["hot", "warm"], ["warm", "cold"], ["cold", "glacier"]] == steps
    assert steps == [[step["from"], step["to"]] for step in told["history"]]
    expect(page.locator(".because").first).to_contain_text(told["because"][1:])
    assert ["hot", "warm", "cold", "glacier"] == page.locator(".stay").evaluate_all(
        "(a) => a.map((b) => b.dataset.tier)"
    )
    expect(page.locator("#content pre")).to_contain_text('"n": 25')
    expect(page.locator("#content .facts")).to_contain_text("u1")


def test_dead_letters_are_shown(page: Page, node: Live) -> None:
    """A new one is seen by itself: its reason, its key, how its value begins, and what to do."""
    node.do(node.memory.publish([("bad-1", b'{"vector": [1, 2]}'), (HOSTILE, HOSTILE.encode())]))
    letters = page.locator("#letter-rows li")
    expect(letters).to_have_count(2, timeout=SOON_MS)
    letter = letters.filter(has_text="bad-1")
    expect(letter.locator(".reason")).to_have_text("vector_dim")
    letter.locator("summary").click()
    expect(letter.locator("pre")).to_have_text('{"vector": [1, 2]}')
    expect(letter).to_contain_text("isotherm dead-letters replay")
    hostile = letters.filter(has_text="onerror")
    hostile.locator("summary").click()
    expect(hostile.locator(".key")).to_have_text(HOSTILE)
    expect(hostile.locator("pre")).to_have_text(HOSTILE)


def test_ids_and_payloads_are_text(page: Page) -> None:
    """Markup in an id or a payload is shown as it was written, in hits, record and payload, and makes no element."""
    page.fill("#question", HOSTILE)
    page.get_by_role("button", name="Search").click()
    first = page.locator(".hit").first
    expect(first.locator(".id")).to_have_text(HOSTILE, timeout=SOON_MS)
    expect(first.locator(".snippet")).to_contain_text(HOSTILE)
    first.locator(".id").click()
    expect(page.locator("#record-said")).to_have_text(f"{HOSTILE} is in hot.", timeout=SOON_MS)
    expect(page.locator("#content pre")).to_contain_text("onerror")

    assert ["/ui/icon.svg"] == page.locator("img").evaluate_all("(all) => all.map((i) => new URL(i.src).pathname)")
    assert 4 == page.locator("script").count()


def test_latency_and_partitions_come_from_the_metrics(page: Page, http: httpx.Client, node: Live) -> None:
    """Every tier that is asked gets its line and its figure; every partition its row."""
    until = time.monotonic() + 60
    figure = page.locator("#latency-now li").nth(0).locator("> b")
    while time.monotonic() < until and figure.text_content() in (None, "", NONE):
        http.post("/v1/search", json={"id": "id-12", "k": 40, "exact": True})
        page.wait_for_timeout(300)
    expect(figure).to_contain_text("s")
    expect(page.locator("#partition-rows tr")).to_have_count(4)
    applied = http.get("/v1/tiers").json()["freshness"]["applied"]
    shown = page.locator("#partition-rows tr").evaluate_all(
        "(all) => Object.fromEntries(all.map((row) => [row.dataset.partition, row.children[2].textContent]))"
    )
    assert {p: f"{offset:,}" for p, offset in applied.items()} == shown
    mine = page.evaluate(
        'async (text) => { const m = await import("/ui/metrics.js"); const b = m.buckets(m.parse(text), "x", "tier");'
        " return [m.quantile(0.5, b.get('hot')), m.quantile(0.99, b.get('hot')), m.quantile(0.5, b.get('cold'))]; }",
        "".join(
            f'x_bucket{{tier="{tier}",le="{le}"}} {n}\n'
            for tier, counts in {"hot": (0, 50, 100), "cold": (0, 0, 0)}.items()
            for le, n in zip(("0.1", "0.2", "+Inf"), counts, strict=True)
        ),
    )
    assert [0.2, 0.2, None] == [None if each is None else round(each, 6) for each in mine]
    assert node.address in page.url

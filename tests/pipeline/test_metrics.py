"""What can be seen from outside: every metric that a board, an alert or a document names is there, and means it."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from pipeline import MemoryManager, Query
from pipeline.feed import ChangeFeed
from pipeline.metric_names import ALL, PROCESS, document
from pipeline.read_counts import ReadCounts
from pipeline.routes import Gateway
from pipeline.serve import HttpService
from pipeline.stack import Stack
from tests.nodes import DIM, bring, rows, small, until
from tests.pipeline.promql import parse
from tiers import read
from tiers.tier import TierName

ROOT = Path(__file__).parents[2]
OBSERVABILITY = ROOT / "compose" / "observability"
#: No sample without a GPU, a bucket, or a tier that refuses; a limit has none where none is set.
ABSENT = {
    "isotherm_codes_recall_ratio",  # asked once a minute, of codes that so few rows do not have
    "isotherm_gpu_memory_bytes",
    "isotherm_transition_refusals_total",
    "isotherm_lane_stalls_total",
}
ABSENT |= {name for name in ALL if name.startswith("isotherm_s3_")}

Samples = dict[str, list[tuple[dict[str, str], float]]]


@pytest.fixture(scope="module")
def lived(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """The samples of a node that has done a little of everything."""
    text = asyncio.run(_live(stack, tmp_path_factory.mktemp("lived")))
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


async def _live(stack: Stack, data: Path) -> str:
    rules = {"policy__hot_age_s": 3_600.0, "policy__promote_heat_min": 2.0}
    settings = small(stack, "t-lived", data, **rules, expiry__interval_ms=50)
    service = HttpService(settings)
    async with MemoryManager.open(settings, service) as memory:
        service.gateway = Gateway(memory)
        await memory.ready()
        async with httpx.AsyncClient(base_url=service.address, timeout=10) as http:
            await _busy(memory, http)
            return (await http.get("/metrics")).text


async def _busy(memory: MemoryManager, http: httpx.AsyncClient) -> None:
    node = memory.node
    await memory.store(rows(60))
    token = await memory.store(rows(30))  # half of them again: superseded
    vector = np.ones(DIM).tolist()
    brief = {"id": "brief", "vector": vector, "ttl_s": 0.2}
    assert (await http.post("/v1/memories", json=brief)).status_code == 202
    bad = await node.publisher.enqueue(node.topics.memories, b"{", b"bad", headers=[("content-type", b"text/plain")])
    await bad
    assert (await http.post("/v1/search", json={"vector": vector, "at_least": token})).status_code == 200
    assert (await http.post("/v1/retrieve", json={"filter": "user = 'u1'"})).status_code == 200
    assert (await http.delete("/v1/memories/id-59")).status_code == 202
    for _ in range(3):
        assert (await http.get("/v1/memories/id-1")).status_code == 200
    assert (await http.get("/v1/memories/absent")).status_code == 404
    assert (await http.get("/no/such/route")).status_code == 404
    async with http.stream("GET", "/v1/changes"):
        pass
    for number in range(8):
        await bring(memory, f"id-{number}", *list(TierName)[: 3 + number % 2])
    await memory.store(rows(2))  # their rows below are superseded
    assert (await http.post("/v1/memories/id-20:demote")).status_code == 202
    await until(lambda: node.demote.results["planned"] > 0)
    await memory.cleanup()
    await bring(memory, "id-9", TierName.HOT, TierName.WARM)
    late = Query(ids=["id-9"], deadline_ms=0.001)  # no server answers by then
    missed = await read.retrieve(node.index, node.tiers, late, node.scanner)
    memory.reads.noted(missed.trace, missed)
    assert not missed.complete
    await until(lambda: bool(node.ingest.letters) and node.expiry.written > 0)

    async def promoted() -> bool:
        await http.get("/v1/memories/id-3")
        return bool(node.copies.promoted)

    await until(promoted)
    await memory.store(rows(1, start=3))  # its copy is of an older version now
    await until(lambda: bool(node.copies.evicted))
    await until(lambda: bool(node.log_watch.begins and node.reader.lag()))


def labels_of(lived: Samples, metric: str) -> set[str]:
    """Return the labels that a metric has, in its samples or (where it has none here) as declared."""
    base = re.sub(r"_(bucket|sum|count)$", "", metric)
    samples = lived.get(metric)
    if samples:
        return {label for labels, _ in samples for label in labels}
    assert base in ABSENT, f"{metric} has no sample on a node that has done everything"
    return set(ALL[base].labels)


def check(lived: Samples, expression: str) -> None:
    """Assert that an expression parses, and that every metric, label and value of a label in it is there."""
    asked = parse(expression)
    known = {"job", "instance"}
    assert asked.selectors, expression
    for metric, matched in asked.selectors:
        if metric == "up":  # Prometheus's own
            continue
        labels = labels_of(lived, metric)
        known |= labels
        assert matched.keys() <= labels | {"job", "instance"}, f"{metric} has no label {matched.keys() - labels}"
        for label, wanted in matched.items():
            values = {given[label] for given, _ in lived.get(metric, ()) if label in given}
            if label in labels and values and not wanted.startswith(("!", "=~5")):
                found = [value for value in values if re.fullmatch(wanted.lstrip("=~"), value)]
                assert found, f"{metric}: no sample has {label}{wanted}; there are {sorted(values)}"
    assert asked.grouped <= known, f"nothing in {expression!r} has a label {asked.grouped - known}"


def board() -> dict[str, Any]:
    """Return the Grafana board."""
    made: dict[str, Any] = json.loads((OBSERVABILITY / "grafana" / "isotherm.json").read_text())
    return made


def alerts() -> list[dict[str, Any]]:
    """Return the alert rules."""
    groups = yaml.safe_load((OBSERVABILITY / "prometheus" / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_every_declared_metric_is_shown_and_none_that_is_not_declared(lived):
    """/metrics has exactly what docs/metrics.md lists."""
    declared = {name for name in ALL if name not in ABSENT} | {name for name, *_ in PROCESS}
    shown = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in lived}

    assert set() == declared - shown
    assert set() == shown - declared - ABSENT


def test_names_follow_the_conventions():
    """Counters end in _total, and nothing else does; units are base units."""
    for what in ALL.values():
        assert what.name.startswith("isotherm_"), what
        assert (what.kind == "counter") == what.name.endswith("_total"), what
        assert not re.search(r"_(ms|milliseconds|kb|mb|percent|pct)(_|$)", what.name), what
        assert not {"id", "key", "namespace", "version", "path"} & set(what.labels) - {"version"}, what
        assert what.kind != "histogram" or what.name.endswith("_seconds"), what


def test_the_document_is_what_the_registry_says():
    """docs/metrics.md is written by `python -m pipeline.metric_names`."""
    assert document() == (ROOT / "docs" / "metrics.md").read_text()


def test_every_panel_asks_for_what_there_is(lived):
    """Each expression of the board parses, and each metric and label in it is on a live node."""
    targets = [target["expr"] for panel in board()["panels"] for target in panel.get("targets", ())]

    assert len(targets) > 80
    for expression in targets:
        check(lived, expression.replace("$__rate_interval", "5m").replace("$instance", ".*"))


def test_the_board_shows_every_metric():
    """What is worth measuring is worth a look."""
    text = json.dumps(board())

    assert [] == [name for name in ALL if not re.search(rf"{name}(_bucket)?\b", text)]


def test_every_alert_asks_for_what_there_is_and_says_what_to_do(lived):
    """Each rule parses, its metrics are on a live node, and its runbook is a heading of docs/operating.md."""
    headings = {
        "#" + re.sub(r"[^a-z0-9-]", "", line.lstrip("# ").strip().lower().replace(" ", "-"))
        for line in (ROOT / "docs" / "operating.md").read_text().splitlines()
        if line.startswith("#")
    }
    for rule in alerts():
        check(lived, rule["expr"])
        assert {"summary", "description", "runbook"} == rule["annotations"].keys(), rule["alert"]
        file, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert ("docs/operating.md", True) == (file, f"#{anchor}" in headings), rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket")


@pytest.mark.unit
@pytest.mark.parametrize(
    "wrong",
    ["rate(a)", "sum(a", "sum by (x) (a))", "no_such(a)", 'a{b="c"', "a +", "a{b>1}", "rate(a[5])", "a b"],
)
def test_the_checker_refuses_what_is_no_promql(wrong):
    """A checker that accepts anything would prove nothing."""
    with pytest.raises(ValueError, match=r"."):
        parse(wrong)


def test_flows_and_occupancy_are_those_of_the_node(lived):
    """Every hop down was taken, every result of ingest is named, every route is known by its template."""
    moved = {(one["src"], one["dst"]) for one, value in lived["isotherm_transitions_total"] if value}
    results = {one["result"]: value for one, value in lived["isotherm_ingest_total"] if one["topic"] == "memories"}
    routes = {one["route"] for one, _ in lived["isotherm_http_requests_total"]}

    assert ("hot", "warm") in moved
    assert ("cold", "glacier") in moved
    assert results["applied"] + results["superseded"] >= 92
    assert 1 == results["rejected"]
    assert {"unmatched", "/v1/search", "/v1/memories/{id:path}"} <= routes
    assert all("id-1" not in route for route in routes)
    assert 1 == lived["isotherm_ready"][0][1]
    assert {"hot", "warm", "cold", "glacier"} == {one["tier"] for one, up in lived["isotherm_tier_up"] if up == 1}


async def test_a_scrape_does_not_wait_for_a_sick_tier(settings, monkeypatch):
    """A tier that does not say how full it is lacks its samples, and is 0 in isotherm_tier_up."""
    from pipeline import metrics
    from tiers.tier import Usage

    monkeypatch.setattr(metrics, "ANSWER_S", 0.05)
    async with MemoryManager.open(settings) as memory:
        shown = metrics.Metrics(memory, ChangeFeed(memory.node.settings))
        warm = memory.node.tiers[TierName.WARM]

        answers, usage = asyncio.Event(), warm.usage

        async def slow() -> Usage:
            await answers.wait()
            return await usage()

        monkeypatch.setattr(warm, "usage", slow)
        text = (await asyncio.wait_for(shown.render(), 2)).decode()
        answers.set()

    assert 'isotherm_tier_up{tier="warm"} 0.0' in text
    assert 'isotherm_bytes{tier="warm"}' not in text
    assert 'isotherm_tier_up{tier="cold"} 1.0' in text


@pytest.mark.unit
def test_an_answer_is_counted_once_by_its_coldest_tier():
    """Sums over tiers are sums over queries."""
    from tiers.tier import Hit, Result

    counts = ReadCounts()
    row = rows(1)[0]
    counts.answered("search", Result([Hit(row, TierName.HOT), Hit(row, TierName.COLD)], took_ms=2.0))
    counts.answered("search", Result([], took_ms=1.0))

    assert {("search", "cold"): 1, ("search", "none"): 1} == {key: len(tally) for key, tally in counts.queries.items()}


async def test_the_log_is_watched_for_what_it_may_forget(settings, stack):
    """Where the log begins and ends, for how long it keeps a message, and how old the oldest unsaved one is."""
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

    from pipeline.log_watch import retention_s
    from pipeline.node_metrics import only_in_the_log

    async with MemoryManager.open(settings) as memory:
        node = memory.node
        await until(lambda: node.log_watch.retention_s is not None)
        assert float("inf") == node.log_watch.retention_s
        await memory.retrieve(Query(ids=[], at_least=await memory.store(rows(20))))
        await node.log_watch.look()

        assert {0: 0, 1: 0, 2: 0, 3: 0} == node.log_watch.begins
        assert 4 == sum(node.log_watch.ends.values())
        admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka)
        await admin.start()
        try:
            hour = {"retention.ms": "3600000"}
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, node.topics.memories, hour)])
        finally:
            await admin.close()
        assert 3_600 == await retention_s(settings.kafka, node.topics.memories)
        ages = [
            sample.value
            for family in only_in_the_log(node)
            for sample in family.samples
            if sample.name == "isotherm_watermark_age_seconds"
        ]

    assert 4 == len(ages)
    assert all(0 < age < 60 for age in ages)

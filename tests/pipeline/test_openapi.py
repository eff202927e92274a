"""The OpenAPI document: valid, whole, and true of a live node."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest
from openapi_spec_validator import validate

from pipeline.openapi import document
from pipeline.operation import SCOPES
from pipeline.operations import OPERATIONS
from pipeline.problems import PREFIX, PROBLEMS
from pipeline.reference import page
from pipeline.settings import Settings, load
from pipeline.stack import Stack
from tests.live import Live, live
from tests.nodes import DIM, rows, small

Json = dict[str, Any]
ELSEWHERE = {"changes", "reindex"}  # tests/pipeline/test_streams.py, test_codes_node.py
SETTINGS = load(None, {}, {"dim": DIM, "attributes": {"user": "string", "score": "float", "seen": "timestamp"}})


@pytest.fixture(scope="module")
def made() -> Json:
    """The document of a small node."""
    return document(SETTINGS)


@pytest.fixture(scope="module")
def node(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A node for the questions of this module."""
    settings: Settings = small(stack, "t-openapi", tmp_path_factory.mktemp("node"), policy__hot_age_s=3_600.0)
    with live(settings) as node:
        yield node


def check(made: Json, schema: Json, value: Any) -> None:
    """Hold a value against a schema of the document, formats too."""
    kind = jsonschema.Draft202012Validator
    judge = kind({**schema, "components": made["components"]}, format_checker=kind.FORMAT_CHECKER)
    wrong = [f"{each.json_path}: {each.message[:300]}" for each in judge.iter_errors(value)]
    assert [] == wrong, str(value)[:300]


def operations(made: Json) -> Iterator[tuple[str, str, Json]]:
    """Yield (method, path, operation)."""
    for path, methods in made["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


# -- the document alone ------------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_the_document_is_valid_openapi(made: Json) -> None:
    """The specification's schema takes it, for other settings too."""
    validate(made)
    validate(document(load(None, {}, {"dim": 256, "embedder": "wordllama"})))


@pytest.mark.unit
def test_every_operation_has_a_scope_a_summary_and_its_problems(made: Json) -> None:
    """A route without a scope is not to be; every problem is one that PROBLEMS knows."""
    for each in OPERATIONS:
        assert each.scope in SCOPES, each.id
        assert each.answers, each.id
        assert {"invalid", "internal"} <= set(each.problems) <= PROBLEMS.keys(), each.id
        assert (each.scope == "open") == ("unauthorized" not in each.problems), each.id
    assert len(OPERATIONS) == len({each.id for each in OPERATIONS}) == len(list(operations(made)))


@pytest.mark.unit
def test_every_example_is_what_its_schema_says(made: Json) -> None:
    """Of bodies, answers and parameters."""
    shown = 0
    for _, path, operation in operations(made):
        for each in operation["parameters"]:
            check(made, each["schema"], each["example"])
        for content in operation.get("requestBody", {}).get("content", {}).values():
            for example in content.get("examples", {}).values():
                check(made, content["schema"], example["value"])
                shown += 1
        for answer in operation["responses"].values():
            for content in answer.get("content", {}).values():
                if "example" in content and "schema" in content:
                    check(made, content["schema"], content["example"])
                    shown += 1
        assert path
    assert shown > 100


@pytest.mark.unit
def test_bounds_and_attributes_are_those_of_the_settings(made: Json) -> None:
    """A client learns from the document what this node takes."""
    schemas = made["components"]["schemas"]
    vector = {"id": "a", "vector": [1.0] * DIM, "attributes": {"user": "u", "score": None}}
    memory, search = schemas["NewMemory"], schemas["Search"]
    check(made, memory, vector)
    wrong = [
        (memory, {**vector, "vector": [1.0] * (DIM + 1)}),
        (memory, {**vector, "attributes": {"other": 1}}),
        (memory, {**vector, "attributes": {"score": "high"}}),
        (memory, {**vector, "id": "a\nb"}),
        (memory, {**vector, "colour": "blue"}),
        (search, {"id": "a", "k": 1001}),
        (search, {"id": "a", "k": 0}),
        (search, {"id": "a", "tiers": ["lukewarm"]}),
        (search, {"id": "a", "include": ["colour"]}),
        (search, {"id": "a", "deadline_ms": 0}),
        (schemas["Retrieve"], {"limit": 1001}),
    ]
    for schema, value in wrong:
        with pytest.raises(AssertionError):
            check(made, schema, value)


@pytest.mark.unit
def test_the_reference_page_has_every_operation_and_type_and_loads_nothing(made: Json) -> None:
    """No script, no source, no link to elsewhere; all that is linked to is on the page."""
    text = page(made)
    for _, path, operation in operations(made):
        assert f'id="{operation["operationId"]}"' in text
        assert path in text
    links = set(re.findall(r'href="#([^"]+)"', text))
    assert links == links & set(re.findall(r'id="([^"]+)"', text))
    assert not re.search(r"<script|<link|src=|https?://|@import|url\(", text)


# -- held against a live node ------------------------------------------------------------------------------------------


def test_every_operation_answers_as_the_document_says(node: Live) -> None:
    """Each operation once with good input: status, content type and body are what is written."""
    node.do(node.memory.store(rows(5)))
    good: dict[str, tuple[str, Any]] = {
        "publish": ("/v1/memories", {"id": "x", "vector": [1.0] * DIM, "ttl_s": 600, "attributes": {"user": "u"}}),
        "deleteMemory": ("/v1/memories/never", None),
        "listMemories": ("/v1/memories?include=vector,payload,attributes", None),
        "getMemory": ("/v1/memories/x?include=vector,payload,attributes", None),
        "search": ("/v1/search", {"id": "id-1", "k": 3, "explain": True, "include": ["vector"]}),
        "retrieve": ("/v1/retrieve", {"limit": 2, "include": ["vector", "attributes"]}),
        "sql": ("/v1/sql", {"query": "SELECT id, tier FROM memories"}),
        "tiers": ("/v1/tiers", None),
        "key": ("/v1/key", None),
        "deadLetters": ("/v1/dead-letters?limit=5&reason=json", None),
        "dashboard": ("/ui", None),
        "dashboardFile": ("/ui/app.js", None),
        "createSnapshot": ("/v1/snapshots", {"name": "one"}),
        "verify": ("/v1/verify", {}),
        "why": ("/v1/why/id-1", None),
        "clear": ("/v1/tiers/cold:clear", None),
        "promote": ("/v1/memories/id-1:promote", None),
        "demote": ("/v1/memories/id-1:demote", None),
        **{name: (f"/{name}", None) for name in ("healthz", "readyz", "metrics", "docs")},
        **{name: (f"/{name}.json", None) for name in ("openapi", "asyncapi")},
    }
    with httpx.Client(base_url=node.address, timeout=20) as http:
        made = http.get("/openapi.json").json()
        token = http.post("/v1/memories", json=good["publish"][1]).json()["token"]
        node.do(node.memory.publish([("bad", b"no JSON")]))
        http.get("/v1/memories/x", params={"at_least": token}).raise_for_status()
        for method, _, operation in sorted(
            operations(made), key=lambda each: each[1] == "/v1/snapshots"
        ):  # empties hot
            if operation["operationId"] not in ELSEWHERE:
                path, body = good[operation["operationId"]]
                hold(made, operation, http.request(method, path, json=body))


def hold(made: Json, operation: Json, response: httpx.Response, status: str | None = None) -> None:
    """Hold an answer against its operation."""
    expected = status or next(iter(operation["responses"]))
    assert expected == str(response.status_code), (operation["operationId"], response.text)
    says = operation["responses"][expected]["content"]
    given = response.headers["content-type"]
    media = given if given in says else given.partition(";")[0]
    assert media in says, (operation["operationId"], given)
    if "x-line-schema" in says[media]:
        assert response.text
        for line in response.text.splitlines():
            check(made, says[media]["x-line-schema"], json.loads(line))
    elif "schema" in says[media]:
        check(made, says[media]["schema"], response.json() if media.endswith("json") else response.text)


def test_every_example_of_a_body_is_answered(node: Live) -> None:
    """What the document shows works as shown: what it publishes is then asked for."""
    with httpx.Client(base_url=node.address, timeout=20) as http:
        made = http.get("/openapi.json").json()
        asked = 0
        for method, path, operation in operations(made):
            for media, content in operation.get("requestBody", {}).get("content", {}).items():
                for example in content.get("examples", {}).values():
                    body, headers = json.dumps(example["value"]), {"content-type": media}
                    response = http.request(method, path, content=body, headers=headers)
                    hold(made, operation, response)
                    if "token" in response.json() and operation["operationId"] == "publish":
                        token = response.json()["token"]
                        assert http.get("/v1/memories/id-1", params={"at_least": token}).is_success
                    asked += 1
    assert asked >= 8


def test_problems_are_as_the_document_says(node: Live) -> None:
    """One of each kind that a healthy node can be brought to."""
    wrong: list[tuple[str, str, str, Any, int]] = [
        ("search", "POST", "/v1/search", {"id": "absent"}, 400),
        ("publish", "POST", "/v1/memories", [{"id": "a"}], 400),
        ("getMemory", "GET", "/v1/memories/absent", None, 404),
        ("why", "GET", "/v1/why/absent", None, 404),
        ("promote", "POST", "/v1/memories/absent:promote", None, 404),
        ("clear", "POST", "/v1/tiers/lukewarm:clear", None, 400),
        ("changes", "GET", "/v1/changes?from=nonsense", None, 400),
        ("healthz", "GET", "/healthz?verbose=1", None, 400),
    ]
    with httpx.Client(base_url=node.address, timeout=20) as http:
        made = http.get("/openapi.json").json()
        by_id = {operation["operationId"]: operation for _, _, operation in operations(made)}
        for name, method, path, body, status in wrong:
            hold(made, by_id[name], http.request(method, path, json=body), str(status))
        plain = http.post("/v1/memories", content=b"x", headers={"content-type": "text/html"})
        hold(made, by_id["publish"], plain, "415")
        assert PREFIX + "unsupported" == plain.json()["type"]


def test_the_documents_have_etags_and_a_policy(node: Live) -> None:
    """A client that has it is told so; a page may load nothing from elsewhere."""
    with httpx.Client(base_url=node.address) as http:
        for path in ("/openapi.json", "/asyncapi.json", "/docs", "/ui", "/ui/app.js"):
            first = http.get(path)
            again = http.get(path, headers={"if-none-match": f'"other", W/{first.headers["etag"]}'})
            assert (200, 304, b"") == (first.status_code, again.status_code, again.content), path
            assert first.headers["etag"] == again.headers["etag"]
            assert "default-src '" in first.headers["content-security-policy"]

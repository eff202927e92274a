"""The OpenAPI 3.1 document of a gateway: made from the table of operations and the structs that parse requests.

It is the document of one node: bounds, dimension and attributes are those of its settings.
"""

from __future__ import annotations

import http
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from inspect import cleandoc
from typing import Any

import msgspec

from pipeline import examples
from pipeline.operation import OPEN, Answer, Operation, Parameter
from pipeline.operations import OPERATIONS
from pipeline.problems import MEDIA_TYPE, PREFIX, PROBLEMS
from pipeline.settings import Settings
from pipeline.shapes import Problem
from producers.events import Change

Json = dict[str, Any]
REFERENCE = "#/components/schemas/{name}"
TAGS = {
    "asking": "Every question, over all four tiers at once",
    "writing": "Everything written goes to the log first",
    "looking": "What lies where, and what moves",
    "operating": "For operators",
    "process": "The process and its descriptions",
}
_TYPES = {"string": "string", "int": "integer", "float": "number", "bool": "boolean", "timestamp": "string"}
_ETAG: Json = {"ETag": {"description": "Changes when the document does", "schema": {"type": "string"}}}
_RETRY: Json = {"Retry-After": {"description": "Seconds to wait", "schema": {"type": "string", "pattern": "^\\d+$"}}}


def document(settings: Settings) -> Json:
    """Return the document as plain values."""
    schemas, components = _schemas()
    _fit(components, settings)
    shown = examples.of(settings)
    paths: dict[str, Json] = defaultdict(dict)
    for operation in OPERATIONS:
        paths[operation.path][operation.method.lower()] = _operation(operation, schemas, shown)
    made = {
        "openapi": "3.1.0",
        "info": {
            "title": "Isotherm",
            "version": version("isotherm"),
            "summary": "A four-temperature memory for streams of vectors",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": dict(paths),
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key; none is needed on loopback"}
            },
        },
    }
    plain: Json = msgspec.json.decode(msgspec.json.encode(made))  # defaults may be tuples
    return plain


def types() -> Iterator[Any]:
    """Yield every type that the document needs a schema of."""
    yield from (Problem, Change)
    for operation in OPERATIONS:
        yield from (each.kind for each in operation.parameters)
        yield from (kind for kind in (operation.body or {}).values() if kind is not None)
        yield from (kind for answer in operation.answers for kind in answer.media.values() if kind is not None)


def _schemas() -> tuple[dict[str, Json], dict[str, Json]]:
    """Return the schema of each type (by its repr: not all types can be keys), and the components they refer to."""
    wanted = {repr(each): each for kind in types() for each in (kind if isinstance(kind, tuple) else (kind,))}
    made, components = msgspec.json.schema_components(list(wanted.values()), ref_template=REFERENCE)
    for component in components.values():
        if "description" in component:
            component["description"] = cleandoc(component["description"])
    schemas = dict(zip(wanted, made, strict=True))
    for several in (kind for kind in types() if isinstance(kind, tuple)):
        schemas[repr(several)] = {"oneOf": [schemas[repr(each)] for each in several]}
    return schemas, components


def _operation(operation: Operation, schemas: dict[str, Json], shown: examples.Examples) -> Json:
    made: Json = {
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": [operation.tag],
        "x-scope": operation.scope,
        "security": [] if operation.scope == OPEN else [{"key": []}, {}],
        "parameters": [_parameter(each, schemas) for each in operation.parameters],
        "responses": {},
    }
    if operation.body is not None:
        made["requestBody"] = {"required": True, "content": _bodies(operation, schemas, shown)}
    for answer in operation.answers:
        made["responses"][str(answer.status)] = _answer(operation, answer, schemas, shown)
    by_status: dict[int, list[str]] = defaultdict(list)
    for kind in operation.problems:
        by_status[PROBLEMS[kind][0]].append(kind)
    for status, kinds in sorted(by_status.items()):
        made["responses"][str(status)] = _problem(status, kinds)
    return made


def _parameter(each: Parameter, schemas: dict[str, Json]) -> Json:
    made: Json = {
        "name": each.name,
        "in": each.where,
        "description": each.text,
        "required": each.where == "path",
        "schema": schemas[repr(each.kind)],
        "example": each.example,
    }
    if each.several:
        made |= {"style": "form", "explode": False}
    return made


def _bodies(operation: Operation, schemas: dict[str, Json], shown: examples.Examples) -> Json:
    assert operation.body is not None
    made: Json = {}
    for media, kind in operation.body.items():
        made[media] = {"schema": schemas[repr(kind)]} if kind is not None else {}
        given = shown.bodies.get((operation.id, media))
        if given:
            made[media]["examples"] = {name: {"value": value} for name, value in given.items()}
    return made


def _answer(operation: Operation, answer: Answer, schemas: dict[str, Json], shown: examples.Examples) -> Json:
    made: Json = {"description": answer.text}
    for media, kind in answer.media.items():
        content: Json = {}
        if kind is not None and media != "application/x-ndjson":
            content["schema"] = schemas[repr(kind)]
        elif kind is not None:  # the schema is of each line; 3.1 has no word for that
            content["x-line-schema"] = schemas[repr(kind)]
        value = shown.answers.get((operation.id, media))
        if value is not None:
            content["example"] = value
        made.setdefault("content", {})[media] = content
    if 304 in {each.status for each in operation.answers}:
        made["headers"] = _ETAG
    return made


def _problem(status: int, kinds: list[str]) -> Json:
    named = {"properties": {"type": {"enum": [PREFIX + kind for kind in kinds]}, "status": {"const": status}}}
    text = "; ".join(f"`{kind}`: {PROBLEMS[kind][1]}" for kind in kinds)
    schema: Json = {"allOf": [{"$ref": REFERENCE.format(name="Problem")}, named]}
    example = {"type": PREFIX + kinds[0], "title": kinds[0].replace("-", " "), "status": status}
    made: Json = {
        "description": f"{http.HTTPStatus(status).phrase}. {text}",
        "content": {MEDIA_TYPE: {"schema": schema, "example": {**example, "detail": PROBLEMS[kinds[0]][1]}}},
    }
    if status in (429, 503):
        made["headers"] = _RETRY
    if status == 401:
        made["headers"] = {"WWW-Authenticate": {"description": "Bearer", "schema": {"type": "string"}}}
    return made


# -- what only the settings know ---------------------------------------------------------------------------------------


def _fit(components: dict[str, Json], settings: Settings) -> None:
    """Put the bounds of this node into the schemas."""
    limits, dim = settings.gateway, settings.dim
    base64_chars = 4 * -(-4 * dim // 3)
    for name in ("NewMemory", "Search", "Searches", "Memory", "Hit"):
        _bound(components[name], "vector", minItems=dim, maxItems=dim)
    for name in ("NewMemory", "Search", "Searches"):
        _bound(components[name], "vector_b64", minLength=base64_chars, maxLength=base64_chars)
    for name in ("Search", "Searches"):
        _bound(components[name], "k", maximum=limits.k_max)
    for name in ("Search", "Searches", "Retrieve"):
        _bound(components[name], "deadline_ms", minimum=1, maximum=limits.deadline_ms)
    _bound(components["Searches"], "queries", minItems=1, maxItems=limits.queries_max)
    for name in ("Search", "Searches", "Retrieve"):
        _bound(components[name], "tiers", minItems=1)
    _bound(components["Retrieve"], "limit", maximum=limits.records_max)
    _bound(components["Retrieve"], "ids", maxItems=limits.records_max)
    _bound(components["NewMemory"], "ttl_s", exclusiveMinimum=0)
    properties = {name: _attribute(kind) for name, kind in settings.attributes.items()}
    for name in ("NewMemory", "Memory", "Hit"):
        _bound(components[name], "attributes", properties=properties, additionalProperties=False)


def _attribute(kind: str) -> Json:
    made: Json = {"type": [_TYPES[kind], "null"]}
    return made | {"format": "date-time"} if kind == "timestamp" else made


def _bound(component: Json, name: str, **bounds: Any) -> None:
    """Add bounds to a property, or to that branch of it which is not null."""
    found = component["properties"][name]
    branches = [branch for branch in found.get("anyOf", [found]) if branch.get("type") != "null"]
    branches[0].update(bounds)

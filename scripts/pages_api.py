"""The pages of HTTP and of the topics, as Markdown, from the OpenAPI and AsyncAPI documents. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pipeline import openapi
from pipeline.settings import Settings
from producers import asyncapi

Json = dict[str, Any]
PROBLEM = "application/problem+json"


def cell(text: str) -> str:
    """Return a text as a cell of a table: on one line, and no HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def http(made: str) -> Iterator[str]:
    """Yield the page of every call."""
    document = openapi.document(Settings())
    yield from ["# HTTP calls", "", made, ""]
    yield from [
        "[HTTP](../http.md) shows the calls by example; a running gateway has the document itself at `/openapi.json`",
        "and this as a page at `/docs`, with the bounds of its own settings.",
    ]
    for tag in document["tags"]:
        yield from ["", f"## {tag['name'].capitalize()}", "", f"{tag['description']}."]
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if tag["name"] in operation["tags"]:
                    yield from _operation(method.upper(), path, operation)
    yield from _types(document["components"]["schemas"])


def _operation(method: str, path: str, operation: Json) -> Iterator[str]:
    yield from ["", f"### {method} {path}", "", f"{operation['summary']}. Scope: {operation['x-scope']}.", ""]
    if operation["parameters"]:
        yield from ["| parameter | in | type | |", "|---|---|---|---|"]
        for each in operation["parameters"]:
            yield f"| `{each['name']}` | {each['in']} | {_type(each['schema'])} | {cell(each['description'])} |"
        yield ""
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        kind = f" {_type(content['schema'])}" if "schema" in content else ""
        yield from [f"Body: `{media}`{kind}", ""]
    yield from ["| status | answer | |", "|---|---|---|"]
    refused = [status for status, answer in operation["responses"].items() if PROBLEM in answer.get("content", {})]
    for status, answer in operation["responses"].items():
        if status not in refused:
            kinds = [
                f"`{media}` {_type(content.get('schema') or content.get('x-line-schema') or {})}"
                for media, content in answer.get("content", {}).items()
            ]
            yield f"| {status} | {', '.join(kinds)} | {cell(answer['description'])} |"
    if refused:
        yield f"| {', '.join(refused)} | [Problem](#problem) | [what is refused](../http.md#what-is-refused) |"


def topics(made: str) -> Iterator[str]:
    """Yield the page of every topic."""
    settings = Settings()
    document = asyncapi.document(settings.kafka, settings.dim, settings.attributes)
    yield from ["# Topics and messages", "", made, ""]
    yield from [
        "[Publishing](../publishing.md) says how to write; a running gateway has the document at `/asyncapi.json`.",
        "",
    ]
    for channel in document["channels"].values():
        yield from [f"## {channel['address']}", "", channel["description"], ""]
        for reference in channel["messages"].values():
            name = reference["$ref"].rpartition("/")[2]
            yield from _message(document["components"]["messages"][name])
    yield from _types(document["components"]["schemas"])


def _message(message: Json) -> Iterator[str]:
    kind = f" `{message['contentType']}`" if "contentType" in message else ""
    yield from [f"**{message['title']}**{kind}", ""]
    if said := message.get("description"):
        yield from [said, ""]
    payload = message.get("payload", {})
    yield from [f"Value: {_type(payload)}{'. ' + payload['description'] if 'description' in payload else ''}", ""]
    headers = message.get("headers", {}).get("properties", {})
    if headers:
        yield from ["| header | value | |", "|---|---|---|"]
        yield from [f"| `{name}` | {_type(each)} | {_said(each)} |" for name, each in headers.items()]
        yield ""


def _types(schemas: dict[str, Json]) -> Iterator[str]:
    yield from ["", "## Types", ""]
    for name, schema in schemas.items():
        yield from [f"### {name}", "", schema.get("description", "").strip(), ""]
        fields = schema.get("properties", {})
        if fields:
            yield from ["| field | type | |", "|---|---|---|"]
        for field, each in fields.items():
            needed = "" if field in schema.get("required", ()) else " (optional)"
            yield f"| `{field}`{needed} | {_type(each)} | {_said(each)} |"
        if fields:
            yield ""


def _said(schema: Json | bool) -> str:
    return "" if isinstance(schema, bool) else cell(schema.get("description", ""))


def _type(schema: Json | bool) -> str:
    """Return a schema in a few words, with a link to what has a name; true is anything."""
    if isinstance(schema, bool):
        return "anything" if schema else "must not be there"
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return " or ".join(_type(each) for each in schema[choice])
    if "allOf" in schema:
        return _type(schema["allOf"][0])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(each)}`" for each in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_type(schema.get('items') if isinstance(schema.get('items'), dict) else {})}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"map of {_type(schema['additionalProperties'])}"
    return " or ".join(kind) if isinstance(kind, list) else str(kind)

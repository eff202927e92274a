"""The API reference as one static page, rendered from the OpenAPI document: no script, nothing from elsewhere.

Swagger UI would be 1.9 MB of vendored script and style for what a page of text says; this is what a browser, a text
browser and a search in the page can all read. The machine-readable document is at /openapi.json for any other tool.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import Any

Json = dict[str, Any]
LONG = 400  # characters of an example's string that are shown

_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
h2{margin-top:3rem;border-bottom:1px solid #8888}h3{margin-top:2.5rem}
code,pre{font:13px/1.45 ui-monospace,monospace}pre{background:#8881;padding:.7rem;overflow:auto;border-radius:4px}
table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:.25rem .6rem .25rem 0}
tr{border-bottom:1px solid #8883}.verb{font-weight:700;letter-spacing:.03em}.dim{opacity:.7}
nav li{margin:.1rem 0}summary{cursor:pointer}
"""


def page(document: Json) -> str:
    """Return the page."""
    info = document["info"]
    head = f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info['summary'])}. "
    head += '<a href="openapi.json">openapi.json</a> · <a href="asyncapi.json">asyncapi.json</a></p>'
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style><body>{head}"
        f"<nav>{''.join(_contents(document))}</nav>{''.join(_sections(document))}{''.join(_schemas(document))}"
    )


def _operations(document: Json, tag: str) -> Iterator[tuple[str, str, Json]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if tag in operation["tags"]:
                yield method.upper(), path, operation


def _contents(document: Json) -> Iterator[str]:
    for tag in document["tags"]:
        yield f"<p>{escape(tag['name'])}</p><ul>"
        for method, path, operation in _operations(document, tag["name"]):
            yield f'<li><a href="#{operation["operationId"]}"><code>{method} {escape(path)}</code></a> '
            yield f"{escape(operation['summary'])}</li>"
        yield "</ul>"


def _sections(document: Json) -> Iterator[str]:
    for tag in document["tags"]:
        yield f"<h2>{escape(tag['name'])}</h2><p>{escape(tag['description'])}.</p>"
        for method, path, operation in _operations(document, tag["name"]):
            yield f'<h3 id="{operation["operationId"]}"><span class="verb">{method}</span> <code>{escape(path)}</code>'
            yield f'</h3><p>{escape(operation["summary"])}. <span class="dim">Scope: {operation["x-scope"]}.</span></p>'
            yield from _parameters(operation)
            yield from _body(operation)
            yield from _answers(operation)


def _parameters(operation: Json) -> Iterator[str]:
    if operation["parameters"]:
        yield "<table><tr><th>parameter<th>in<th>type<th>"
        for each in operation["parameters"]:
            example = each["example"]
            shown = ",".join(map(str, example)) if isinstance(example, list) else str(example)
            yield f"<tr><td><code>{escape(each['name'])}</code><td>{each['in']}<td>{_type(each['schema'])}"
            yield f"<td>{escape(each['description'])}; <code>{escape(shown)}</code>"
        yield "</table>"


def _body(operation: Json) -> Iterator[str]:
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        kind = _type(content["schema"]) if "schema" in content else ""
        yield f"<p>Body: <code>{escape(media)}</code> {kind}</p>"
        for name, example in content.get("examples", {}).items():
            yield f"<details><summary>{escape(name)}</summary>{_json(example['value'])}</details>"


def _answers(operation: Json) -> Iterator[str]:
    yield "<table><tr><th>answer<th>type<th>"
    for status, answer in operation["responses"].items():
        kinds = [
            f"<code>{escape(media)}</code> {_type(content.get('schema') or content.get('x-line-schema') or {})}"
            for media, content in answer.get("content", {}).items()
        ]
        yield f"<tr><td>{status}<td>{'<br>'.join(kinds)}<td>{escape(answer['description'])}"
    yield "</table>"
    for status, answer in operation["responses"].items():
        for content in answer.get("content", {}).values():
            if "example" in content and status.startswith("2"):
                yield f"<details><summary>Example of {status}</summary>{_json(content['example'])}</details>"


def _schemas(document: Json) -> Iterator[str]:
    yield "<h2>types</h2>"
    for name, schema in document["components"]["schemas"].items():
        yield f'<h3 id="type-{name}"><code>{name}</code></h3><p>{escape(schema.get("description", ""))}</p><table>'
        for field, each in schema.get("properties", {}).items():
            needed = "" if field in schema.get("required", ()) else ' <span class="dim">optional</span>'
            yield f"<tr><td><code>{escape(field)}</code>{needed}<td>{_type(each)}"
            yield f"<td>{escape(each.get('description', ''))}"
        yield "</table>"


def _type(schema: Json) -> str:
    """Return a schema in a few words, with links."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#type-{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "allOf" in schema:
        return _type(schema["allOf"][0])
    if "enum" in schema:
        return " | ".join(f"<code>{escape(json.dumps(each))}</code>" for each in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"map of {_type(schema['additionalProperties'])}"
    kind = schema.get("type", "any")
    return escape(" or ".join(kind) if isinstance(kind, list) else kind)


def _json(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(_short(value), indent=2, ensure_ascii=False)
    return f"<pre>{escape(text)}</pre>"


def _short(value: Any) -> Any:
    """Return a value with long strings cut: the whole of it is in openapi.json."""
    if isinstance(value, dict):
        return {name: _short(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_short(each) for each in value]
    return value[:LONG] + "…" if isinstance(value, str) and len(value) > LONG else value

"""The AsyncAPI document is valid, says every topic, and its own examples hold."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from producers import events
from producers.asyncapi import document
from producers.publisher import KafkaSettings

pytestmark = pytest.mark.unit
#: Schema of AsyncAPI 3.0.0 by its makers (asyncapi/spec-json-schemas 6.11.1, Apache-2.0), without its $ids.
SPECIFICATION = Path(__file__).parent / "asyncapi-3.0.0.json.gz"


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """The document of a node with 16 dimensions and one attribute."""
    return document(KafkaSettings(prefix="p"), 16, {"user": "string"})


def resolved(made: dict[str, Any], schema: dict[str, Any]) -> jsonschema.protocols.Validator:
    """Return a validator of a schema of the document."""
    return jsonschema.Draft7Validator({**schema, "components": made["components"]})


def test_the_document_is_valid_asyncapi(made: dict[str, Any]) -> None:
    """The specification's own schema takes it, and would not take a wrong one."""
    validator = jsonschema.Draft7Validator(json.loads(gzip.decompress(SPECIFICATION.read_bytes())))
    assert [] == [f"{list(each.path)}: {each.message}" for each in validator.iter_errors(made)]
    wrong = {**made, "operations": {"x": {"action": "publish"}}}
    assert list(validator.iter_errors(wrong))


def test_every_topic_is_a_channel_with_messages(made: dict[str, Any]) -> None:
    """Five topics, five channels; every message is some channel's, every operation's channel is there."""
    channels = made["channels"]
    assert set(events.Topics.under("p")) == {each["address"] for each in channels.values()}
    used = [name for each in channels.values() for name in each["messages"]]
    assert sorted(made["components"]["messages"]) == sorted(used)
    assert {f"#/channels/{name}" for name in channels} == {
        each["channel"]["$ref"] for each in made["operations"].values()
    }


def test_every_reference_leads_somewhere(made: dict[str, Any]) -> None:
    """Each $ref names something in the document."""
    text = json.dumps(made)
    for reference in {part.partition('"')[0] for part in text.split('"$ref": "')[1:]}:
        found: Any = made
        for name in reference.removeprefix("#/").split("/"):
            assert name in found, reference
            found = found[name]


def test_the_examples_are_what_their_schemas_say(made: dict[str, Any]) -> None:
    """An example that its own schema refuses would teach something wrong; the decoder takes it too."""
    shown = 0
    for message in made["components"]["messages"].values():
        for example in message.get("examples", ()):
            resolved(made, message["payload"]).validate(example["payload"])
            if "headers" in message:
                resolved(made, message["headers"]).validate(example["headers"])
            shown += 1
    assert 2 == shown
    change = made["components"]["messages"]["changes_moved"]["examples"][0]["payload"]
    assert ["id-1"] == events.decode_change(json.dumps(change).encode()).ids

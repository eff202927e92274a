"""Which log this is: the topic's id and its number of partitions, asked of the broker.

A version is a position in one log for ever. A topic that was deleted and made again has the same name and other
positions; Kafka gives it another id. aiokafka speaks no version of the Metadata request that names it, so the two
messages are described here with its own types.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from io import BytesIO

from aiokafka.conn import create_conn
from aiokafka.errors import IncompatibleBrokerVersion, KafkaError, for_code
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields

from consumers.log_faults import UNKNOWN, Identity
from producers.publisher import KafkaSettings
from producers.security import FORBIDDEN, forbidden
from tiers.errors import LogUnavailable

ANSWER_S = 10.0
AGAIN_S = 0.1


class _Uuid(AbstractType[uuid.UUID]):  # type: ignore[misc] # the library is untyped here
    @classmethod
    def encode(cls, value: uuid.UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> uuid.UUID:
        return uuid.UUID(bytes=data.read(16))


NEITHER = (False, False)  # make the topic; list what we may do with it
_TEXT, _NUMBERS, _TAGS = CompactString("utf-8"), CompactArray(Int32), ("tags", TaggedFields)


class _Answer(Response):  # type: ignore[misc]
    API_KEY, API_VERSION = 3, 12
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", CompactArray(("node_id", Int32), ("host", _TEXT), ("port", Int32), ("rack", _TEXT), _TAGS)),
        ("cluster_id", _TEXT),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", _TEXT),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", _NUMBERS),
                        ("isr", _NUMBERS),
                        ("offline", _NUMBERS),
                        _TAGS,
                    ),
                ),
                ("authorized_operations", Int32),
                _TAGS,
            ),
        ),
        _TAGS,
    )


class _Question(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION, API_KEY, API_VERSION, RESPONSE_TYPE = True, 3, 12, _Answer
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", _TEXT), _TAGS)),
        ("allow_auto_topic_creation", Boolean),
        ("include_authorized_operations", Boolean),
        _TAGS,
    )


class _Metadata(Request[_Question]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, request_struct_class: type[_Question]) -> _Question:
        return request_struct_class([(uuid.UUID(int=0), self._topic, {})], *NEITHER, {})


async def identity(settings: KafkaSettings, topic: str, wait_s: float = 0.0) -> Identity:
    """Ask the first broker that answers; LogUnavailable when none does, ServiceMissing when we may not ask.

    A topic that was just made may not be known to every broker yet: it is asked for again for `wait_s`.
    """
    until_s = time.monotonic() + wait_s
    while True:
        try:
            return await _first(settings, topic)
        except LogUnavailable:
            if time.monotonic() >= until_s:
                raise
        await asyncio.sleep(AGAIN_S)


async def _first(settings: KafkaSettings, topic: str) -> Identity:
    error: Exception = LogUnavailable(f"{topic}: kafka.bootstrap names no broker")
    for address in settings.bootstrap.split(","):
        host, _, port = address.strip().rpartition(":")
        try:
            async with asyncio.timeout(ANSWER_S):
                return await _ask(settings, host.strip("[]"), int(port), topic)
        except FORBIDDEN as refused:
            raise forbidden(refused, settings.bootstrap) from refused
        except (KafkaError, OSError, TimeoutError, ValueError) as failed:
            error = failed
    raise LogUnavailable(f"{topic}: {error!r}") from error


async def _ask(settings: KafkaSettings, host: str, port: int, topic: str) -> Identity:
    options = {key: value for key, value in settings.client().items() if key != "bootstrap_servers"}
    broker = await create_conn(host, port, request_timeout_ms=int(ANSWER_S * 900), **options)
    try:
        answer = await broker.send(_Metadata(topic))
    except (IncompatibleBrokerVersion, NotImplementedError):
        return Identity(topic, UNKNOWN, settings.partitions)  # the count is looked at in `ensure_topics`, too
    finally:
        broker.close()
    code, name, topic_id, _, partitions, *_ = answer.topics[0]
    if code:
        raise for_code(code)(topic)
    return Identity(name, str(topic_id), len(partitions))

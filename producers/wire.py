"""From messages of the memories topic to one batch of valid rows, and a letter for each that is not. Pure.

A message is one event (JSON, msgpack, or a null that deletes) or many rows (Arrow). The version of a row is the offset
of its message and its place in it, so rows of one message are ordered among themselves too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from producers import columns, ipc, judge, singles
from producers.decoder import EVENT_BYTES_MAX, NOT_FINITE, ZERO, EventDecoder, check_timestamp, kind_of, squares
from producers.events import ARROW_TYPE, IF_VERSION, JSON_TYPE, MSGPACK_TYPE, Message, condition
from producers.letters import Letter
from tiers import record
from tiers.errors import InvalidRecord

_NAME = itemgetter(0)  # of a header
_KNOWN = {("content-type", kind.encode()): kind for kind in (JSON_TYPE, MSGPACK_TYPE, ARROW_TYPE)}
FEW = 8  # messages: up to here each decoded alone costs half of what columns of them cost
RETAINED = 65_536  # bytes beyond twice its own that a batch may hold on to: a view of a message keeps all of it


class Place(NamedTuple):
    """Where messages come from: the log's incarnation, and which of how many partitions."""

    epoch: int
    partition: int
    partitions: int


class Decoded(NamedTuple):
    """Rows in log order (an id may come twice), and what could not be applied."""

    batch: pa.RecordBatch
    letters: list[Letter]


def rows(messages: Sequence[Message]) -> list[int]:
    """Return how many rows each message says it has, cheaply; 1 for one that will be refused as a whole."""
    begin = ipc.BEGIN  # what does not begin so is one event, or no stream
    return [1 if one.value is None or one.value[:4] != begin else _rows(one, one.value) for one in messages]


def _rows(message: Message, value: bytes) -> int:
    if not message.headers or len(value) > EVENT_BYTES_MAX:
        return 1
    try:
        if kind_of(message.headers) != ARROW_TYPE:
            return 1
        return ipc.inspect(value, record.ROW_MAX + 1, columns.BYTES_MAX).rows
    except InvalidRecord:
        return 1


def decode(
    decoder: EventDecoder, shape: pa.Schema, place: Place, messages: Sequence[Message], rows_max: int
) -> Decoded:
    """Return the rows of these messages; one with more than `rows_max` rows is refused."""
    batches: list[pa.RecordBatch] = []
    letters: list[Letter] = []
    kinds, refused = _kinds(messages)
    start = 0
    for at in [at for at, kind in enumerate(kinds) if kind == ARROW_TYPE and at not in refused]:
        batches += _singles(decoder, shape, place, messages, kinds, refused, range(start, at), letters)
        try:
            batches.append(_arrow(decoder, shape, place, messages[at], rows_max, letters))
        except InvalidRecord as error:
            letters.append(Letter(messages[at], error, None))
        start = at + 1
    batches += _singles(decoder, shape, place, messages, kinds, refused, range(start, len(messages)), letters)
    if not batches:
        return Decoded(record.to_batch([], shape), letters)
    return Decoded(batches[0] if len(batches) == 1 else pa.concat_batches(batches), letters)


def _kinds(messages: Sequence[Message]) -> tuple[list[str], dict[int, InvalidRecord]]:
    """Return the content type of each message, and what is wrong with headers, by position.

    A delete's condition must be readable; whether it is met is for ingest to ask.
    """
    refused: dict[int, InvalidRecord] = {}
    if IF_VERSION not in map(_NAME, chain.from_iterable([message.headers for message in messages])):
        usual = [
            _KNOWN.get(headers[0]) if headers and value is not None else JSON_TYPE
            for _, value, headers, _, _ in messages
        ]
        kinds = [kind for kind in usual if kind is not None]
        if len(kinds) == len(messages):
            return kinds, refused
    kinds = []
    for at, message in enumerate(messages):
        kind = JSON_TYPE
        try:
            kind = JSON_TYPE if message.value is None else kind_of(message.headers)
            condition(message)
        except InvalidRecord as error:
            refused[at] = error
        kinds.append(kind)
    return kinds, refused


def _wrong(home: int) -> InvalidRecord:
    text = f"the id belongs to partition {home}: use Kafka's default (murmur2) partitioner"
    return InvalidRecord("wrong_partition", text)


def _singles(
    decoder: EventDecoder,
    shape: pa.Schema,
    place: Place,
    messages: Sequence[Message],
    kinds: Sequence[str],
    refused: Mapping[int, InvalidRecord],
    run: range,
    letters: list[Letter],
) -> list[pa.RecordBatch]:
    """Return one batch of messages that hold one event each, if there are any; add a letter for each bad one."""
    if not run:
        return []
    whole = len(run) == len(messages) and not refused
    numbers = [at for at in run if at not in refused]
    some = messages if whole else [messages[at] for at in numbers]
    of = [kinds[at] for at in numbers]
    if len(some) <= FEW:
        found = singles.one_by_one(decoder, shape, place.epoch, some, of, range(len(some)))
    else:
        found = singles.decode(decoder, shape, place.epoch, some, of)
    errors = {at: refused[at] for at in run if at in refused} | {numbers[at]: error for at, error in found.errors}
    for at in sorted(errors):
        letters.append(Letter(messages[at], errors[at], None if kinds[at] == ARROW_TYPE else 0))
    batch = found.batch
    lengths = squares(record.vectors_of(batch))
    home = record.partitions(batch["id"], place.partitions)
    with_vector = ~record.deleted_of(batch)
    zero, endless = with_vector & (lengths == 0.0), ~np.isfinite(lengths)
    bad = zero | endless | (home != place.partition)
    for at in np.flatnonzero(bad).tolist():
        error = InvalidRecord(*(ZERO if zero[at] else NOT_FINITE)) if zero[at] or endless[at] else _wrong(home[at])
        letters.append(Letter(some[found.positions[at]], error))
    return [batch.filter(pa.array(~bad)) if bad.any() else batch] if batch.num_rows else []


def _arrow(
    decoder: EventDecoder, shape: pa.Schema, place: Place, message: Message, rows_max: int, letters: list[Letter]
) -> pa.RecordBatch:
    """Return the good rows of an Arrow message; add a letter for each bad one."""
    value = message.value or b""
    if len(value) > EVENT_BYTES_MAX:
        raise InvalidRecord("event_size", f"an event has at most {EVENT_BYTES_MAX} bytes")
    check_timestamp(message.timestamp_ms)
    sent = columns.read(value, min(rows_max, columns.rows_max(decoder.dim)))
    found, faults = judge.judge(sent, decoder.dim, decoder.attributes, message.timestamp_ms)
    good = faults.good
    home = record.partitions(found["id"], place.partitions)
    away = home != place.partition
    for number in np.unique(home[good & away]).tolist() if away.any() else ():
        faults.mark(good & (home == number), *_reason(_wrong(number)))
    if faults.any:
        letters += [Letter(message, error, row, sent) for row, error in faults.items()]
    first = record.pack_version(place.epoch, message.offset)
    found["version"] = pa.array(first + np.arange(sent.num_rows, dtype=np.int64))
    batch = pa.RecordBatch.from_arrays([found[name] for name in shape.names], schema=shape)
    if faults.any:
        batch = batch.filter(pa.array(faults.good))
    held = max(len(value), batch.get_total_buffer_size())
    if held > 8 * decoder.dim * batch.num_rows + RETAINED and held > 2 * batch.nbytes + RETAINED:
        batch = batch.take(pa.array(np.arange(batch.num_rows)))
    return batch


def _reason(error: InvalidRecord) -> tuple[str, str]:
    return error.reason, str(error)

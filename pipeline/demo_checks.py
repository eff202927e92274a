"""What the demo proves by itself, not through the product: it reads the stopped system's own files and servers.

Kafka with a plain consumer, Valkey with a plain client, DuckDB with SQL, Parquet with pyarrow. The packed row is parsed
here once more, from its description in tiers/codec.py, so that a mistake there cannot hide itself.
"""

from __future__ import annotations

import json
import struct
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from aiokafka import AIOKafkaConsumer, TopicPartition
from deltalake import DeltaTable
from redis.asyncio import Redis

from tiers.record import Floats

HEADER = struct.Struct("<2sBBHHqqqII")
TIERS = ("hot", "warm", "cold", "glacier")
DEPTHS = (*TIERS, None)  # places of one version, in the order in which it can have them
SHOWN = 5  # ids named when a check fails


class Physical(NamedTuple):
    """One row as it lies in a tier."""

    version: int
    deleted: bool
    payload: bytes
    vector: Floats | None


class Published(NamedTuple):
    """The newest event of an id, from the log."""

    version: int
    deleted: bool
    payload: bytes
    vector: Floats | None


@dataclass(slots=True)
class Checks:
    """Named outcomes; `ok` only if every one is."""

    results: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, wrong: Iterable[object], detail: str = "") -> None:
        """Record a check that holds when nothing is wrong."""
        listed = list(wrong)
        shown = ", ".join(map(str, listed[:SHOWN]))
        text = f"{len(listed)} wrong: {shown}" if listed else detail
        self.results.append({"check": name, "ok": not listed, "detail": text})

    @property
    def ok(self) -> bool:
        """Whether every check held."""
        return all(result["ok"] for result in self.results)


async def read_topic(bootstrap: str, topic: str, partitions: int) -> list[Any]:
    """Return every message of a topic, partition by partition in order."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=None, auto_offset_reset="none")
    await consumer.start()
    try:
        assigned = [TopicPartition(topic, number) for number in range(partitions)]
        consumer.assign(assigned)
        ends = await consumer.end_offsets(assigned)
        await consumer.seek_to_beginning(*assigned)
        messages: list[Any] = []
        while any([await consumer.position(tp) < ends[tp] for tp in assigned]):
            for records in (await consumer.getmany(timeout_ms=1_000)).values():
                messages += records
        return messages
    finally:
        await consumer.stop()


def fold_memories(messages: Iterable[Any]) -> dict[str, Published]:
    """Return the newest event of every id that the log holds."""
    newest: dict[str, Published] = {}
    for message in messages:
        version = message.offset << 16  # epoch 0, row 0
        if message.value is None:
            newest[message.key.decode()] = Published(version, deleted=True, payload=b"", vector=None)
            continue
        event = json.loads(message.value)
        vector = np.frombuffer(msgspec.json.decode(json.dumps(event["vector_b64"]), type=bytes), "<f4")
        payload = msgspec.json.encode(event["payload"])
        newest[message.key.decode()] = Published(version, deleted=False, payload=payload, vector=vector)
    return newest


def fold_changes(messages: Iterable[Any], newest: dict[str, Published]) -> tuple[dict[str, str | None], Counter[str]]:
    """Return where the ledger says each id is at home ("hot" when it never moved), and moves by hop.

    Of a version the deepest place told counts, not the last: a message of a node that died may land late. Copies that
    come and go are counted, and say nothing about homes.
    """
    placement: dict[str, str | None] = dict.fromkeys(newest, "hot")
    hops: Counter[str] = Counter()
    for message in messages:
        change = json.loads(message.value)
        if change["kind"] == "copy":
            hops["copied" if change["to"] else "uncopied"] += len(change["ids"])
            continue
        hops[f"{change['from']}->{change['to']}"] += len(change["ids"])
        for identifier, text in zip(change["ids"], change["versions"], strict=True):
            epoch, offset, row = map(int, text.split("."))
            if identifier in newest and (epoch << 57 | offset << 16 | row) == newest[identifier].version:
                placement[identifier] = max(placement[identifier], change["to"], key=DEPTHS.index)
    return placement, hops


def unpack(packed: bytes) -> tuple[str, Physical]:
    """Return (id, row) of a packed row."""
    _, _, flags, dim, id_size, version, _, _, attributes, payload = HEADER.unpack_from(packed)
    at_vector = HEADER.size + id_size
    at_payload = at_vector + 4 * dim + attributes
    vector = None if flags & 1 else np.frombuffer(packed, "<f4", dim, at_vector)
    body = packed[at_payload : at_payload + payload]
    return packed[HEADER.size : at_vector].decode(), Physical(version, bool(flags & 1), body, vector)


async def read_warm(url: str, prefix: str) -> list[tuple[str, Physical]]:
    """Return every packed row in Valkey."""
    rows: list[tuple[str, Physical]] = []
    async with Redis.from_url(url) as client:
        async for key in client.scan_iter(match=f"{{{prefix}:*", count=1_000, _type="string"):
            value = await client.get(key)
            if isinstance(value, bytes) and value[:2] == b"IR":
                rows.append(unpack(value))
    return rows


def read_cold(directory: Path) -> list[tuple[str, Physical]]:
    """Return every row of the DuckDB file."""
    [file] = directory.glob("*.duckdb")
    with duckdb.connect(str(file), read_only=True) as connection:
        rows = connection.sql("SELECT id, version, deleted, payload, vector FROM rows").fetchall()
    return [(i, Physical(v, d, bytes(p), None if x is None else np.array(x, np.float32))) for i, v, d, p, x in rows]


def read_glacier(directory: Path) -> list[tuple[str, Physical]]:
    """Return every row of the Parquet files that the Delta log lists."""
    rows: list[tuple[str, Physical]] = []
    for uri in DeltaTable(str(directory)).file_uris():
        table = pq.ParquetFile(uri.removeprefix("file://")).read(["id", "version", "deleted", "payload", "vector"])
        for row in table.to_pylist():
            vector = None if row["vector"] is None else np.array(row["vector"], np.float32)
            rows.append((row["id"], Physical(row["version"], row["deleted"], row["payload"], vector)))
    return rows


def check_placement(
    checks: Checks,
    newest: dict[str, Published],
    placement: dict[str, str | None],
    tiers: dict[str, list[tuple[str, Physical]]],
    committed: dict[str, bool],
    reported: dict[str, int],
) -> dict[str, int]:
    """Check that every live id has its newest version at home exactly once, and every deleted one is gone.

    `committed[id]` says whether the id's newest event lies below its partition's committed offset; `reported` is what
    the product said of each tier when it stopped. Returns live records by tier.
    """
    found: defaultdict[str, dict[str, list[Physical]]] = defaultdict(lambda: defaultdict(list))
    for tier, rows in tiers.items():
        for identifier, row in rows:
            found[identifier][tier].append(row)
    checks.add("nothing lies in a tier that was never published", sorted(found.keys() - newest.keys()))
    live = {identifier: event for identifier, event in newest.items() if not event.deleted}
    wrong_home: list[str] = []
    wrong_value: list[str] = []
    counts: Counter[str] = Counter()
    for identifier, event in live.items():
        home = placement[identifier]
        at = [tier for tier, rows in found[identifier].items() for row in rows if row.version == event.version]
        if at != ([] if home == "hot" else [home]) or (home == "hot" and committed[identifier]):
            wrong_home.append(f"{identifier} (ledger {home}, found {at})")
        counts[home or "none"] += 1
        for at_tier in found[identifier].values():
            wrong_value += [identifier for row in at_tier if row.version == event.version and not _same(row, event)]
    checks.add("every live id has its newest version at home exactly once", wrong_home, f"{len(live)} ids")
    checks.add("every stored row is what was published, byte for byte", wrong_value)
    older = [f"{i} in {t}" for i, by in found.items() for t, rows in by.items() for r in rows if _older(r, newest, i)]
    checks.add("no superseded row is left anywhere", older)
    dead = [identifier for identifier, event in newest.items() if event.deleted]
    alive = [i for i in dead for rows in found[i].values() for row in rows if not row.deleted]
    checks.add("every deleted id is gone", alive, f"{len(dead)} ids")
    checks.add("all four tiers hold records", [tier for tier in TIERS if not counts[tier]], str(dict(counts)))
    differ = [
        f"{tier}: ledger {counts[tier]}, product {reported[tier]}" for tier in TIERS if counts[tier] != reported[tier]
    ]
    checks.add("the ledger's placement is what the tiers reported", differ)
    return {tier: counts[tier] for tier in TIERS}


def _older(row: Physical, newest: dict[str, Published], identifier: str) -> bool:
    return identifier in newest and row.version < newest[identifier].version


def _same(row: Physical, event: Published) -> bool:
    if row.deleted or row.vector is None or event.vector is None:
        return row.deleted == event.deleted
    return json.loads(row.payload) == json.loads(event.payload) and bool((row.vector == event.vector).all())


def nearest(matrix: Floats, ids: list[str], query: Floats, k: int) -> list[tuple[str, float]]:
    """Return the k nearest by cosine, in float64: what a search must equal."""
    wide: npt.NDArray[np.float64] = matrix.astype(np.float64)
    values = wide @ query.astype(np.float64)
    values /= np.linalg.norm(wide, axis=1) * np.linalg.norm(query.astype(np.float64))
    order = np.argsort(-values, kind="stable")[:k]
    return [(ids[at], float(values[at])) for at in order.tolist()]


def same_hits(hits: list[dict[str, Any]], wanted: list[tuple[str, float]], tolerance: float = 1e-5) -> bool:
    """Say whether hits are the wanted ones, but for ties within float32's tolerance."""
    if len(hits) != len(wanted):
        return False
    worst = wanted[-1][1]
    exact = {identifier for identifier, value in wanted if value > worst + tolerance}
    got = {hit["id"]: hit["score"] for hit in hits}
    values = dict(wanted)
    return exact <= got.keys() and all(
        abs(score - values.get(identifier, worst)) <= tolerance for identifier, score in got.items()
    )

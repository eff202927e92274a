"""docs/archive.md is true: its code, run on a table that the tier wrote, answers what the tier answers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from tests.tiers.buckets import in_bucket
from tests.tiers.contract import by_id, places
from tests.tiers.rows import DIM, SHAPE, batch, row
from tiers.credentials import Keys
from tiers.glacier import GlacierMemory
from tiers.glacier_settings import GlacierSettings
from tiers.index import Index
from tiers.layout import Layout
from tiers.record import Row

PARTITIONS = 4
TEXT = (Path(__file__).parents[2] / "docs" / "archive.md").read_text()
BLOCKS = re.findall(r"```(python s3|python|sql)\n(.*?)```", TEXT, re.DOTALL)
IDS = [f"ns/{n}" for n in range(60)]


def blocks(kind: str) -> list[str]:
    """Return the code blocks of a kind, in order."""
    return [code for name, code in BLOCKS if name == kind]


async def written(settings: GlacierSettings) -> None:
    """Write a table with updates, deletions, rows that lie there twice, and compactions."""
    random = np.random.default_rng(11)
    for epoch in (1, 2):
        tier = await GlacierMemory.open(settings, SHAPE, partitions=PARTITIONS, index=Index.of(SHAPE))
        for partition in range(PARTITIONS):
            await tier.raise_epoch(partition, epoch)
        last = []
        for number in range(6 * epoch, 6 * epoch + 6):
            chosen = random.choice(IDS, 25, replace=False).tolist()
            version = (1 << 57) | (number << 16)
            last = [
                row(name, version + at, deleted=bool(random.random() < 0.2), attributes={"rank": at, "user": "ü"})
                for at, name in enumerate(chosen)
            ]
            receipt = await tier.store(batch(*last))
            if number % 3 == 0:
                await tier.rewrite(places(receipt)[0].partition, places(receipt)[:2])
        tier.index = Index.of(SHAPE)  # which does not know that they are there, as after a crash
        await tier.store(batch(*last))
        await tier.cleanup()


async def answered(settings: GlacierSettings) -> dict[str, Row]:
    """Return the newest live rows as the tier, opened by itself, finds them."""
    tier = await GlacierMemory.open(settings, SHAPE, partitions=PARTITIONS)
    try:
        return await by_id(tier, *IDS)
    finally:
        await tier.cleanup()


def as_stored(rows: dict[str, Row]) -> list[dict[str, Any]]:
    """Return the rows as the table's columns hold them, by id."""
    ordered = [rows[name] for name in sorted(rows)]
    return pa.Table.from_batches([Layout(SHAPE).encode(batch(*ordered))]).to_pylist()


def checked(found: pa.Table, expected: list[dict[str, Any]]) -> None:
    """Assert that a view's rows are the expected, in every column of the table."""
    names = [name for name in expected[0] if name in found.column_names]
    assert len(names) == len(Layout(SHAPE).file)
    rows = sorted(found.select(names).to_pylist(), key=lambda each: each["id"])
    assert expected == [{**each, "payload": bytes(each["payload"])} for each in rows]


def run(code: str, names: dict[str, Any]) -> None:
    exec(compile(code, "docs/archive.md", "exec"), names)


@pytest.mark.unit
async def test_the_snippets_answer_what_the_tier_answers(tmp_path):
    """DuckDB's view and Polars', as documented, have exactly the tier's newest rows, none superseded or deleted."""
    settings = GlacierSettings(path=str(tmp_path / "archive"), row_group_rows=8, file_rows_max=24)
    await written(settings)
    names: dict[str, Any] = {}
    place, with_duckdb, with_polars, history = (
        code.replace('"isotherm-data/glacier"', repr(settings.path)) for code in blocks("python")
    )
    run(place, names)
    run(with_duckdb, names)
    view, question = blocks("sql")
    names["connection"].execute(view)
    from_duckdb = names["connection"].sql("SELECT * FROM memories").to_arrow_table()
    pieces = names["connection"].sql(question).fetchall()
    run(with_polars, names)
    run(history, names)
    physical = DeltaTable(settings.path).to_pyarrow_dataset().count_rows()
    expected = as_stored(await answered(settings))

    checked(from_duckdb, expected)
    checked(names["newest"].to_arrow(), expected)
    assert [
        (one["id"], 1, (one["version"] >> 16) % 2**41, one["version"] & 0xFFFF, one["payload"].decode(), DIM)
        for one in expected
    ] == pieces
    assert physical > len(IDS) > len(expected) > 20
    assert names["before"].to_pyarrow_dataset().count_rows() < physical


async def test_the_snippets_read_s3(s3, prefix):
    """With the documented options, Polars and DuckDB read the same from a bucket."""
    settings = in_bucket(s3, prefix, row_group_rows=8, file_rows_max=24)
    await written(settings)
    keys = Keys.found(str(s3.credentials))
    place, arrow = blocks("python s3")
    place = place.replace("s3://bucket/prefix", settings.path).replace("https://s3.example.com", s3.s3)
    place = place.replace('"…"', repr(keys.access), 1).replace('"…"', repr(keys.secret), 1).replace('"false"', '"true"')
    names: dict[str, Any] = {"duckdb": duckdb, "DeltaTable": DeltaTable}
    run(place, names)
    run(blocks("python")[2], names)
    run(arrow, names)
    names["connection"].execute(blocks("sql")[0])
    from_duckdb = names["connection"].sql("SELECT * FROM memories").to_arrow_table()
    expected = as_stored(await answered(settings))

    checked(from_duckdb, expected)
    checked(names["newest"].to_arrow(), expected)
    assert len(expected) > 20

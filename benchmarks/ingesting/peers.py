"""The same rows appended to lancedb from memory, against ours out of Kafka. It comes with the extra `bench`.

Not equal work, and said so: lancedb writes its rows to files and makes no index; ours are in memory and searchable, and
durable because Kafka has them.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.ingesting.events import DIM, vectors
from benchmarks.ingesting.run import Run, median
from benchmarks.ingesting.stream import searchable
from benchmarks.report import promise
from benchmarks.searching.corpus import PAYLOAD
from tiers import record

MISSING = "pip install --require-hashes -r locks/bench.txt (lancedb) to compare with it"
ADD_ROWS = 10_000
WHAT = "Kafka to searchable, Arrow / lancedb's append"


async def lance(run: Run) -> dict[str, Any]:
    """Append to a table on the same disk, in large batches, as often as there are rounds."""
    os.environ.setdefault("LANCE_LOG", "error")
    try:
        import lancedb  # noqa: PLC0415 - an extra
    except ImportError:
        return {"rows": 0, "note": MISSING, "promises": [promise(WHAT, None, ">=", 0.9)]}
    rows, took_s = run.size.lance, []
    for number in range(run.size.rounds):
        given = _table(rows)
        table = lancedb.connect(run.folder / f"lance-{number}").create_table("rows", schema=given.schema)
        began = time.perf_counter()
        for at in range(0, rows, ADD_ROWS):
            table.add(given.slice(at, ADD_ROWS))
        took_s.append(time.perf_counter() - began)
    if "arrow" not in run.rates:
        await searchable("arrow", 0)(run)
    theirs = rows / median(took_s)
    return {
        "rows": rows,
        "rows_s": round(run.rates["arrow"]),
        "lancedb_rows_s": round(theirs),
        "lancedb_took_s": [round(one, 4) for one in took_s],
        "persists": {"lancedb": "its own files, not fsynced by the call", "ours": "Kafka's log, before it is read"},
        "promises": [promise(WHAT, run.rates["arrow"] / theirs, ">=", 0.9)],
    }


def _table(rows: int) -> pa.Table:
    numbers = np.arange(rows)
    return pa.table(
        {
            "id": [f"id-{number}" for number in numbers.tolist()],
            "vector": record.vector_array(vectors(rows).reshape(rows, DIM)),
            "payload": pa.array([PAYLOAD] * rows, pa.binary()),
            "group": numbers,
        }
    )

"""Records that do not compress by being alike: Gaussian vectors, and payloads of words, some 200 bytes of JSON each."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from tiers import record

DIM = 256
SHAPE = record.schema(DIM, {"group": "int"})
POOL_ROWS = 65_536  # vectors and payloads come again after so many rows: far beyond what zstd looks back
WORDS = 4_096
EVENT_MS = 1_700_000_000_000


class Rows:
    """Any number of rows, made from a pool; `batch` does no work for each but its id."""

    def __init__(self, seed: int = 0, rows: int = POOL_ROWS) -> None:
        random = np.random.default_rng(seed)
        vectors = random.standard_normal((rows, DIM), np.float32)
        self._vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        letters = random.integers(97, 123, (WORDS, 6), np.uint8)
        words = [bytes(letters[at, : 3 + at % 4]) for at in range(WORDS)]
        chosen = random.integers(0, WORDS, (rows, 32))
        texts = [b" ".join([words[at] for at in row])[:180] for row in chosen.tolist()]
        self._payloads = pa.array([b'{"text": "%b"}' % text for text in texts], pa.binary())
        self._rows = rows

    def batch(self, start: int, stop: int, event_ms: int = EVENT_MS) -> pa.RecordBatch:
        """Return rows start to stop as records of ids "agent-<nn>/memory-<row>"; their versions are the log's."""
        numbers = np.arange(start, stop)
        at = pa.array(numbers % self._rows)
        count = stop - start
        times = pa.array(np.full(count, event_ms)).cast(pa.timestamp("ms", "UTC"))
        columns = [
            pa.array([f"agent-{n % 64:02d}/memory-{n:09d}" for n in range(start, stop)]),
            pa.array(np.zeros(count, np.int64)),
            times,
            pa.nulls(count, times.type),
            record.vector_array(self._vectors[numbers % self._rows]),
            self._payloads.take(at),
            pa.StructArray.from_arrays([pa.array(numbers % 10_000)], ["group"]),
            pa.array(np.zeros(count, bool)),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=SHAPE)


def ids_of(start: int, stop: int) -> list[str]:
    """Return the ids of these rows."""
    return [f"agent-{n % 64:02d}/memory-{n:09d}" for n in range(start, stop)]


def raw_bytes(batch: pa.RecordBatch) -> float:
    """Return the bytes of a record as it is: id, vector, payload, attribute, and 8 each for version and time."""
    texts = sum(len(value) for name in ("id", "payload") for value in batch[name].cast(pa.binary()).to_pylist())
    return DIM * 4 + 3 * 8 + texts / batch.num_rows

"""Which threads a node has, and who owns them: libraries start none of their own accord.

| threads | owner | size |
|---|---|---|
| the event loop: log, ingest, lanes, gateway | the process | 1 |
| searches | tiers.scan | `index.search_threads` |
| cold's writer and readers; its DuckDB | tiers.cold | 1 and 2; `cold.threads` |
| glacier's, hot's, codes', SQL's | a `SerialExecutor` each | 1, glacier's readers a few |
| SQL statements | a process each (pipeline.sql_worker) | 1 |
| OpenBLAS, OpenMP | pipeline.cli, by the environment, before NumPy is there; tiers.codes tells FAISS | 1 |
| Arrow's two pools | here | 1 |

Arrow would start as many threads as there are cores, twice, beside those above; columns of a poll are too small for it
to gain anything by them, and files are read by glacier's own threads.
"""

from __future__ import annotations

import pyarrow as pa


def own() -> None:
    """Leave Arrow one thread in each pool. `serve` calls it, whose process it is; a host of a node may."""
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)

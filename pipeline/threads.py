"""Which threads a node has, and who owns them: libraries start none of their own accord.

| threads | owner | size |
|---|---|---|
| the event loop: log, ingest, lanes, gateway | the process | 1 |
| searches | tiers.scan | `index.search_threads` |
| cold's writer, packer and readers; its DuckDB | tiers.cold | 1, 1 and 2; `cold.threads` |
| glacier's, hot's, codes', SQL's | a `SerialExecutor` each | 1, glacier's readers a few |
| SQL statements | a process each (pipeline.sql_worker) | 1 |
| OpenBLAS, OpenMP | pipeline.cli, by the environment, before NumPy is there; tiers.codes tells FAISS | 1 |
| Arrow's two pools | here | 1 |

Arrow would start as many threads as there are cores, twice, beside those above; columns of a poll are too small for it
to gain anything by them, and files are read by glacier's own threads.

They share the interpreter's one lock. Who wants it asks its holder for it after SWITCH_S: with Python's own 5 ms the
loop waits so long whenever rows are packed to move, and a search, which passes from thread to thread, several times.
"""

from __future__ import annotations

import gc
import sys

import pyarrow as pa

SWITCH_S = 0.0005  # a tenth of Python's: half of the searches while rows moved took a tenth to a half less time


def own() -> None:
    """Leave Arrow one thread in each pool, and let no thread wait long. `serve` calls it, whose process it is."""
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    sys.setswitchinterval(SWITCH_S)


def opened() -> None:
    """Let the collector of garbage leave alone what lives as long as the process: modules, and an open node.

    A full collection looks at everything else, and holds every thread meanwhile: 60 ms with 107,000 objects.
    """
    gc.collect()
    gc.freeze()

"""The producer of the sustained run, a process of its own: Arrow messages at a steady rate, ids again and again.

    python -m benchmarks.moving.feeder BOOTSTRAP PREFIX PARTITIONS ROWS_A_SECOND IDS

Ends when its standard input does; prints how many rows it has sent, once a second.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time

from benchmarks.moving.rows import Rows
from producers.memories import MemoryProducer
from producers.publisher import KafkaSettings, Publisher

STEP_S = 0.1
BEHIND_S = 1.0  # what it did not get done is sent later, but not more than so much at once


async def feed(kafka: KafkaSettings, rate: int, ids: int, ended: threading.Event) -> None:
    """Send until told to end."""
    rows, sent, step = Rows(), 0, round(rate * STEP_S)
    async with Publisher(kafka) as publisher:
        producer = MemoryProducer(kafka, publisher, epoch=0)
        began = told = time.perf_counter()
        while not ended.is_set():
            start = sent % ids
            count = min(step, ids - start)
            await producer.send_batch(rows.batch(start, start + count, time.time_ns() // 1_000_000))
            sent += count
            now = time.perf_counter()
            if now - told >= 1:
                told = now
                print(sent, flush=True)
            ahead_s = began + sent / rate - now
            began += max(0.0, -ahead_s - BEHIND_S)
            await asyncio.sleep(max(0.0, ahead_s))
    print(sent, flush=True)


def main() -> None:
    """Read the command line and feed."""
    bootstrap, prefix, partitions, rate, ids = sys.argv[1:]
    kafka = KafkaSettings(bootstrap=bootstrap, prefix=prefix, partitions=int(partitions))
    ended = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    asyncio.run(feed(kafka, int(rate), int(ids), ended))


if __name__ == "__main__":
    main()

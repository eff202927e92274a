"""A producer in a process of its own: sends events at a rate, so that the node's loop is the node's alone.

    python -m benchmarks.ingesting.sender ADDRESS TOPIC KIND ROWS_S SECONDS PARTITIONS FIRST

All events are made before "ready" is printed; it begins with the first line that it reads, and ends by itself.
"""

from __future__ import annotations

import asyncio
import sys
import time

from aiokafka import AIOKafkaProducer

from benchmarks.ingesting.events import messages, vectors

TICK_S = 0.01
CHUNK_ROWS = 1_000  # numbered together, so that an Arrow message has a few hundred rows


async def send(address: str, topic: str, kind: str, rows_s: int, seconds: float, partitions: int, first: int) -> None:
    """Send, and say how many rows and how long it took."""
    rows = int(rows_s * seconds)
    given = vectors(min(rows, CHUNK_ROWS), 7)
    made = [
        one for at in range(0, rows, CHUNK_ROWS) for one in messages(kind, given[: rows - at], partitions, first + at)
    ]
    producer = AIOKafkaProducer(
        bootstrap_servers=address, linger_ms=2, max_batch_size=1 << 20, max_request_size=1 << 20
    )
    await producer.start()
    try:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        began, sent, waiting = time.perf_counter(), 0, []
        for one in made:
            while sent > (time.perf_counter() - began) * rows_s:
                await asyncio.sleep(TICK_S)
            waiting.append(await producer.send(topic, one.value, one.key, one.partition, headers=one.headers))
            sent += one.rows
        await asyncio.gather(*waiting)
        print(f"{sent} {time.perf_counter() - began:.3f}", flush=True)
    finally:
        await producer.stop()


if __name__ == "__main__":
    address, topic, kind, rows_s, seconds, partitions, first = sys.argv[1:]
    asyncio.run(send(address, topic, kind, int(rows_s), float(seconds), int(partitions), int(first)))

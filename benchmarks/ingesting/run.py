"""One run: its sizes, its servers, and what they and the node take of the processor."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from aiokafka import AIOKafkaProducer

from benchmarks.ingesting.events import ATTRIBUTES, Sent
from benchmarks.searching.node import PARTITIONS, settled
from pipeline import threads
from pipeline.settings import Settings
from pipeline.stack import Stack
from pipeline.topics import ensure_topics
from producers.events import Topics

IN_FLIGHT = 2_000  # messages given to the producer before it is waited for
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Size:
    """Rows of the scenarios; `rounds` by turns with the baseline."""

    in_memory: int = 40_000
    rounds_in_memory: int = 9
    growth_first: int = 10_000
    growth: int = 1_280_000
    arrow: int = 200_000
    singles: int = 60_000
    rounds: int = 3
    fresh_s: float = 15.0
    events_s: int = 5_000
    resting: int = 60_000
    ingesting_s: float = 10.0
    rows_s: int = 12_500  # half of what is to be sustained
    lance: int = 100_000

    @classmethod
    def quick(cls) -> Size:
        """Return what takes a minute and a half in all."""
        return cls(
            in_memory=20_000, rounds_in_memory=5, growth=160_000, arrow=60_000, singles=20_000, rounds=2, fresh_s=6.0,
            resting=20_000, ingesting_s=5.0, lance=20_000,
        )  # fmt: skip


class Run:
    """Scenarios ask for nodes and topics here; `say` tells a person how far it is."""

    def __init__(self, size: Size, stack: Stack, folder: Path, say: Callable[[str], None]) -> None:
        threads.own()  # as in the process of `isotherm serve`
        self.size, self.stack, self.folder, self.say = size, stack, folder, say
        self.filled: dict[str, Filled] = {}
        self.rates: dict[str, float] = {}  # rows a second from Kafka, by kind

    def settings(self, name: str, life: int = 0, **given: Any) -> Settings:
        """Return the settings of a node: all lives of one `name` have its topics, each its own data directory."""
        prefix = f"ingest.{self.folder.name}.{name}"
        return settled(
            self.stack,
            self.folder / f"{name}-{life}",
            **{"attributes": ATTRIBUTES, "kafka__prefix": prefix, "warm__prefix": prefix, **given},
        )


@dataclass(frozen=True, slots=True)
class Filled:
    """A topic with messages in it."""

    topic: str
    rows: int
    messages: int
    bytes: int


async def fill(settings: Settings, sent: Sequence[Sent]) -> Filled:
    """Write messages to the memories topic of a node that does not run."""
    topics = Topics.under(settings.kafka.prefix)
    await ensure_topics(settings.kafka, topics)
    producer = AIOKafkaProducer(
        **settings.kafka.client(), linger_ms=5, max_batch_size=1 << 20, max_request_size=1 << 20
    )
    await producer.start()
    try:
        waiting = []
        for one in sent:
            waiting.append(await producer.send(topics.memories, one.value, one.key, one.partition, headers=one.headers))
            if len(waiting) == IN_FLIGHT:
                await asyncio.gather(*waiting)
                waiting.clear()
        await asyncio.gather(*waiting)
    finally:
        await producer.stop()
    return Filled(topics.memories, sum(one.rows for one in sent), len(sent), sum(len(one.value) for one in sent))


class Cpu:
    """What the servers and this process have spent, in seconds; `since` says how much a row that was."""

    def __init__(self, stack: Stack) -> None:
        self._pids = {service.name: service.pid for service in stack.services}
        self._at = self._now()

    def _now(self) -> dict[str, float]:
        spent = {name: _spent_s(pid) for name, pid in self._pids.items()}
        return {"broker": spent["kafka"], "valkey": spent["valkey"], "node": time.process_time()}

    def since(self, rows: int) -> dict[str, float]:
        """Return microseconds a row since this was made."""
        now = self._now()
        return {name: round((now[name] - self._at[name]) / rows * 1e6, 3) for name in now}


def _spent_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def median(samples: Sequence[float]) -> float:
    """Return the one in the middle."""
    return float(np.median(samples))


__all__ = ["PARTITIONS", "Cpu", "Filled", "Run", "Size", "fill", "median"]

"""The producer: a process of its own, with librdkafka (the product's client is another), and a ledger of its own.

    python -m tests.chaos.producer BROKER PREFIX LEDGER SEED IDS RATE

Publishes upserts, updates and deletes of IDS ids, RATE a second, until its standard input ends; then it waits for all
that is on its way. Now and then a message that is none goes along, for the dead letters (ids that begin with "bad/").
"""

from __future__ import annotations

import base64
import json
import random
import select
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Message, Producer

from tests.chaos.ledger import Ledger, Pen

DIM = 16
STEP_S = 0.05
DELETES, BAD = 0.12, 0.01
CONFIGURATION = {"acks": "all", "enable.idempotence": True, "partitioner": "murmur2", "linger.ms": 5}
PATIENCE_S = 300.0  # for what is on its way at the end; meanwhile the broker may be dead


def vector_of(identifier: str, n: int) -> np.ndarray:
    """Return the vector of an event: near to all others of its id, far from those of other ids."""
    own = np.random.default_rng(int.from_bytes(identifier.encode(), "little") % 2**63)
    return (own.normal(size=DIM) + 0.01 * np.random.default_rng(n).normal(size=DIM)).astype("<f4")


def value_of(identifier: str, n: int) -> bytes:
    """Return the message of an upsert."""
    vector = base64.b64encode(vector_of(identifier, n).tobytes()).decode()
    return json.dumps({"vector_b64": vector, "payload": {"n": n}}).encode()


class Sender:
    """Numbers, writes down, sends; what was acknowledged is written down and fsynced at each step."""

    def __init__(self, broker: str, topic: str, ledger: Path) -> None:
        before = Ledger(ledger)
        before.read()
        self._next = {identifier: len(events) for identifier, events in before.events.items()}
        self._producer = Producer({"bootstrap.servers": broker, **CONFIGURATION})
        self._topic, self._pen = topic, Pen(ledger)
        self._answered: list[tuple[Any, ...]] = []

    def send(self, identifier: str, *, deleted: bool) -> None:
        """Send the next event of an id."""
        n = self._next.get(identifier, 0)
        self._next[identifier] = n + 1
        self._pen.write([("s", n, identifier, deleted, time.monotonic())], durable=False)

        def answered(error: object, message: Message) -> None:
            if error is None:
                place = (message.partition(), message.offset())
                self._answered.append(("a", n, identifier, *place, time.monotonic()))

        headers = [] if deleted else [("content-type", b"application/json")]
        value = None if deleted else value_of(identifier, n)
        self._producer.produce(self._topic, value, identifier.encode(), headers=headers, on_delivery=answered)

    def rubbish(self, dice: random.Random) -> None:
        """Send what cannot be applied."""
        self._producer.produce(self._topic, b"{no json", f"bad/{dice.randrange(100)}".encode())

    def step(self, wait_s: float) -> None:
        """Hear answers for a while and write them down."""
        self._producer.poll(wait_s)
        answered, self._answered = self._answered, []
        self._pen.write(answered, durable=True)

    def close(self) -> None:
        """Wait for what is on its way."""
        self._producer.flush(PATIENCE_S)
        self.step(0)


def main() -> None:
    """Publish until standard input ends."""
    broker, prefix, ledger, seed, ids, rate = sys.argv[1:]
    dice, sender = random.Random(int(seed)), Sender(broker, f"{prefix}.memories", Path(ledger))
    each, owed = float(rate) * STEP_S, 0.0
    while True:
        began = time.monotonic()
        owed += each
        while owed >= 1:
            owed -= 1
            if dice.random() < BAD:
                sender.rubbish(dice)
            else:
                sender.send(f"k/{dice.randrange(int(ids))}", deleted=dice.random() < DELETES)
        sender.step(0)
        if select.select([0], [], [], max(0.0, began + STEP_S - time.monotonic()))[0]:
            sender.close()
            return


if __name__ == "__main__":
    main()

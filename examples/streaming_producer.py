"""A streaming producer: machines report the spectrum of their vibration, each report becomes a memory.

    ISOTHERM_KAFKA__BOOTSTRAP=127.0.0.1:9092 python examples/streaming_producer.py --reports 2000

Reports are sent to Kafka without waiting for each other; at most WINDOW are on their way, so a slow broker slows us and
memory stays bounded. The token at the end is proof: a read with `at_least=token` sees every one of them.
"""

import argparse
import asyncio
import time
from collections import deque
from collections.abc import Iterator

import numpy as np

from producers import MemoryProducer

MACHINES = 20
WINDOW = 1_000


def reports(count: int, dim: int) -> Iterator[tuple[str, np.ndarray, dict]]:
    """Yield (id, spectrum, payload): each machine has a spectrum of its own, and drifts a little."""
    rng = np.random.default_rng(7)
    spectra = rng.normal(size=(MACHINES, dim)).astype(np.float32)
    for number in range(count):
        machine = number % MACHINES
        spectra[machine] += rng.normal(scale=0.02, size=dim).astype(np.float32)
        yield f"plant/{machine}/{number}", spectra[machine], {"machine": machine, "report": number}


async def main(count: int, dim: int) -> None:
    """Send all reports, and say how fast that was."""
    began = time.perf_counter()
    positions, on_their_way = [], deque()
    async with MemoryProducer.from_settings() as producer:
        for identifier, spectrum, payload in reports(count, dim):
            if len(on_their_way) >= WINDOW:
                positions.append(await on_their_way.popleft())  # LogUnavailable here: the broker did not take it
            on_their_way.append(await producer.enqueue(identifier, spectrum, payload))
        positions += await asyncio.gather(*on_their_way)
        token = producer.token(positions)
    seconds = time.perf_counter() - began
    print(f"{len(positions)} reports are in the log ({len(positions) / seconds:,.0f} a second)")
    print(f"token {token}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reports", type=int, default=2_000)
    parser.add_argument("--dim", type=int, default=256, help="as the node's setting `dim`")
    given = parser.parse_args()
    asyncio.run(main(given.reports, given.dim))

"""A cache that follows tier changes: it holds the payloads of what is hot, and lets go of what cools down.

    python examples/follow_changes.py --cursor cache.cursor

It asks the gateway for nothing but what it is told about. The cursor of the last change it has dealt with is kept in a
file: stopped and started again, it goes on there, and misses nothing. Whole conversations with the gateway (lost
connections, restarts of the node) are the client's business.
"""

import argparse
import asyncio
from collections import OrderedDict
from contextlib import aclosing
from pathlib import Path

from pipeline.client import AsyncClient

ENTRIES = 10_000  # the cache is bounded: the oldest entry goes first


class Cache:
    """Payloads by id."""

    def __init__(self) -> None:
        self.payloads: OrderedDict[str, object] = OrderedDict()

    async def apply(self, client: AsyncClient, change) -> None:
        """Do what one change asks: fetch what came to hot (a promoted copy), drop what left it."""
        if change.target == "hot":
            found = await client.retrieve(ids=change.ids, include=["payload"])
            for memory in found.hits:
                self.payloads[memory.id] = memory.payload
        else:
            for identifier in change.ids:
                self.payloads.pop(identifier, None)
        while len(self.payloads) > ENTRIES:
            self.payloads.popitem(last=False)


async def main(url: str, cursor: Path, limit: int | None) -> None:
    """Follow the feed, `limit` changes of it or for ever."""
    cache, seen = Cache(), 0
    start = cursor.read_text() if cursor.exists() else "beginning"
    async with AsyncClient(url) as client, aclosing(client.changes(start)) as feed:
        async for announced in feed:
            change = announced.change
            await cache.apply(client, change)
            cursor.write_text(announced.cursor)  # at least once: applying twice is harmless
            print(
                f"{change.kind:4} {change.source or '-'} -> {change.target or 'gone'}: {len(change.ids)} memories"
                f" ({change.reason}); {len(cache.payloads)} in the cache",
                flush=True,
            )
            seen += 1
            if seen == limit:
                return


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--cursor", type=Path, default=Path("cache.cursor"))
    parser.add_argument("--limit", type=int)
    given = parser.parse_args()
    asyncio.run(main(given.url, given.cursor, given.limit))

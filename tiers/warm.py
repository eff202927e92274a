"""WarmMemory: packed rows in a Redis (>= 7.0) or Valkey of its own; one value an id, the newest that was stored.

Keys are in warm_keys, the scripts that write in warm_scripts, the connection in valkey. A write is one script call of
at most `rows_per_call` rows of one bucket, with the partition's epoch: durable at its reply under `appendfsync
always`, and a big call is one fsync.

All calls of one `store` happen or none does: room for the whole batch is checked before the first, only the first can
be refused for memory, and a refusal between two is an unknown outcome.

Back of the envelope, 256 floats and 190 bytes of payload (1.3 KB packed): 1.4-1.7 KB of the server's memory a row
(malloc and jemalloc); one caller on two shared cores stores 40,000 rows/s and gets 130,000 (a thousand a call).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from redis.asyncio import Redis

from tiers import codec, failpoint, record, valkey, warm_rows
from tiers.alone import find, open_alone, settle
from tiers.codec import HEADER
from tiers.errors import Fenced, OutcomeUnknown, SettingsError, TierCorrupt, TierFull, TierUnavailable
from tiers.index import Index
from tiers.listed import Known, all_known
from tiers.record import Bools, Floats, Int64s, Row
from tiers.tier import NO_SLOT, Location, Places, Query, Receipt, Result, TierName, Usage, Vectors
from tiers.valkey import Bulk
from tiers.warm_keys import Call, Keys
from tiers.warm_scripts import EVICT, LIST, RAISE, SCRIPTS, SIZES, STORE
from tiers.warm_settings import WarmSettings
from tiers.worker import SerialExecutor

CALL_BYTES = 8 * 1024 * 1024  # aimed at, for rows with large payloads
PACK_BYTES = 2 * 1024 * 1024  # packed in one job: the first of them go while the others are packed
FIELDS = {name: re.compile(rb"\b%b:(\d+)" % name.encode()) for name in ("used_memory", "maxmemory")}
LARGE = 8 * 1024  # of payload and attributes: what rows are not larger than need not be asked for each
PAGE_ROWS = 1_000  # asked for at once by MGET and SCAN, dropped at once by UNLINK
ROOM_PER_BYTE, ROOM_PER_ROW = 1.25, 192  # the allocator's rounding; key, entry and object headers


class WarmMemory:
    """The warm tier. `client` holds its connections. Used alone, one process at a time owns all partitions."""

    name = TierName.WARM

    def __init__(
        self, client: Redis, settings: WarmSettings, shape: pa.Schema, partitions: int, index: Index | None
    ) -> None:
        self.client, self.shape, self.partitions = client, shape, partitions
        self.index = index if index is not None else Index.of(shape)
        self._alone = index is None
        self._settings = settings
        self._keys = Keys(settings.prefix, partitions, settings.buckets)
        self._epochs: dict[int, int] = {}
        self._packer = SerialExecutor("warm-pack")
        self._reserved = 0  # bytes of the batches being stored
        self._fixed = HEADER.size + 4 * shape.field("vector").type.list_size
        self._largest = 0  # bytes of payload and attributes that a row may have

    @classmethod
    async def open(
        cls, settings: WarmSettings, shape: pa.Schema, *, partitions: int, index: Index | None = None
    ) -> WarmMemory:
        """Connect, check the server, and when used alone raise the epoch of every partition and read all rows.

        With an `index` the caller raises the epochs (`raise_epoch`) before it stores. ServiceMissing says what to do.
        """
        client = valkey.connect(
            settings.url, connections=settings.connections, timeout_ms=settings.timeout_ms, **settings.security()
        )
        warm = cls(client, settings, shape, partitions, index)
        try:
            await valkey.check(client)
            await warm._check_layout()
            for script in SCRIPTS:
                await script.load(client)
            if warm._alone:
                for partition, present in (await warm.epochs()).items():
                    await warm._raise(partition, present + 1, present)
                await open_alone(warm, warm.index, partitions)
        except BaseException:
            await warm.cleanup()
            raise
        return warm

    async def cleanup(self) -> None:
        """Close the connections and end the thread."""
        await self.client.aclose()
        self._packer.close()

    async def _check_layout(self) -> None:
        """Refuse rows that were laid out for other numbers: they would not be found again."""
        held = await valkey.claim(self.client, self._keys.layout, self._keys.layout_text)
        if held != self._keys.layout_text:
            raise SettingsError(
                f"warm.buckets: the rows under {self._settings.prefix!r} at {valkey.address(self.client)} are laid out "
                f"for {held}, not {self._keys.layout_text}; set these again, or another warm.prefix"
            )

    async def epochs(self) -> dict[int, int]:
        """Return the highest epoch present of each partition, 0 where there is none."""
        with valkey.reading(self.client):
            found = await self.client.mget([key for p in range(self.partitions) for key in self._keys.epochs(p)])
        present = np.array([int(value or 0) for value in found], np.int64).reshape(self.partitions, -1)
        return dict(enumerate(present.max(axis=1).tolist()))

    async def raise_epoch(self, partition: int, epoch: int) -> None:
        """Let only writes of `epoch` pass from now on, durably; Fenced if a higher one is there already."""
        await self._raise(partition, epoch, epoch)

    async def _raise(self, partition: int, epoch: int, present_max: int) -> None:
        for key in self._keys.epochs(partition):
            await RAISE.run(self.client, [key], epoch, present_max, answer_s=self._settings.answer_s)
            failpoint.reach("warm.raised")
        self._epochs[partition] = epoch

    def _epoch(self, partition: int) -> int:
        if partition not in self._epochs:
            raise Fenced(f"this process has raised no epoch for partition {partition}, so it may not write there")
        return self._epochs[partition]

    async def store(self, batch: pa.RecordBatch) -> Receipt:
        """Put each row if newer than the value of its id. The server decides, not the index.

        The index cannot: a row about to be stored is queued there already, and has no slot to tell it from a held one.
        TierFull, TierUnavailable: nothing is stored. OutcomeUnknown: any part of the batch may be, now or later.
        """
        unique = record.newest(batch)
        self._largest = max(self._largest, warm_rows.largest(unique))
        need = int(unique.nbytes * ROOM_PER_BYTE) + unique.num_rows * ROOM_PER_ROW
        self._reserved += need
        try:
            await self._check_room(need)
            held = await self._put(unique)
        finally:
            self._reserved -= need
        slots = np.full(unique.num_rows, NO_SLOT, np.int64)
        ids, versions = unique["id"].to_pylist(), record.versions_of(unique)
        receipt = Receipt(self.name, ids, versions, slots, held, "reply under appendfsync always")
        if self._alone:
            await settle(self, self.index, self.partitions, receipt, batch)
        return receipt

    async def _check_room(self, need: int) -> None:
        usage = await self.usage()
        if usage.bytes_limit and usage.bytes + self._reserved > usage.bytes_limit:
            raise TierFull(f"warm holds {usage.bytes:,} of {usage.bytes_limit:,} bytes: no room for {need:,} more")

    async def _put(self, unique: pa.RecordBatch) -> Int64s:
        """Store rows of distinct ids; returns the version held of each.

        Only the first call may be refused for memory, and nothing is stored then. Once it is answered the others are on
        their way together: while the server executes some, the next are packed and sent.
        """
        row_bytes = max(1, unique.nbytes // max(1, unique.num_rows))
        rows_max = max(1, min(self._settings.rows_per_call, CALL_BYTES // row_bytes))
        partition = record.partitions(unique["id"], self.partitions)
        calls, epochs = await self._calls(unique["id"].to_pylist(), partition, rows_max)
        together = max(1, PACK_BYTES // (rows_max * row_bytes))
        jobs = [
            partial(warm_rows.commands, unique, calls[at : at + together], epochs, first=at == 0)
            for at in range(0, len(calls), together)
        ]
        async with aclosing(self._packer.ahead(jobs)) as coming:
            commands = warm_rows.flat(coming)
            replies: list[bytes] = []
            async for first in commands:
                failpoint.reach("warm.packed")
                replies += await STORE.run_all(self.client, [first], answer_s=self._settings.answer_s)
                break
            try:
                rest = await valkey.send_all(self.client, commands, answer_s=self._settings.answer_s)
                replies += valkey.good(self.client, rest)
            except (TierFull, TierUnavailable) as error:
                raise OutcomeUnknown(f"only a part of a batch was stored: {error}") from error
        failpoint.reach("warm.answered")
        held = record.versions_of(unique).copy()
        for call, reply in zip(calls, replies, strict=True):
            if reply:
                held[call.rows] = np.frombuffer(reply, "<i8")
        return held

    async def evict(self, keys: Sequence[Location], receipt: Receipt | None) -> int:  # noqa: ARG002
        """Drop the ids whose value has exactly this version; the others stay."""
        places = Places.of(keys)
        calls, epochs = await self._calls(places.ids, places.partitions, PAGE_ROWS)
        commands = warm_rows.evictions(calls, places.versions, epochs)
        return sum(await EVICT.run_all(self.client, commands, answer_s=self._settings.answer_s))

    async def _calls(
        self, ids: Sequence[str], partitions: npt.NDArray[np.int32], rows_max: int
    ) -> tuple[list[Call], dict[int, int]]:
        """Return rows in calls of at most so many, and our epoch of each partition."""
        epochs = {each: self._epoch(each) for each in np.unique(partitions).tolist()}
        return await self._packer.run(self._keys.calls, ids, partitions, rows_max), epochs

    async def clear(self) -> None:
        """Delete every row, durably; the epochs stay."""
        async for page in self._pages():
            for partition, keys in self._keys.calls_of(page):
                await EVICT.run(self.client, keys, self._epoch(partition))
        if self._alone:
            self.index = Index.of(self.shape, self.index.metric)

    async def get(self, locations: Sequence[Location]) -> list[Row | None]:
        """Return the rows that have exactly these versions; TierCorrupt for bytes that are not what was stored."""
        found: list[Row | None] = []
        for start in range(0, len(locations), PAGE_ROWS):
            page = locations[start : start + PAGE_ROWS]
            rows = await self._fetch([self._keys.row(where.partition, where.id) for where in page])
            asked = zip(page, rows, strict=True)
            found += [row if row is not None and row.version == where.version else None for where, row in asked]
        return found

    async def sizes(self, places: Places) -> Int64s:
        """See Tier. The server is asked only once a row of more than LARGE bytes was stored or listed in this life."""
        if self._largest <= LARGE:
            return np.full(len(places), self._fixed + self._largest)
        found = [
            np.frombuffer(await SIZES.read(self.client, keys), "<u4").reshape(-1, 2).sum(axis=1, dtype=np.int64)
            for keys in await self._packer.run(self._keys.rows, places.ids, places.partitions, PAGE_ROWS)
        ]
        sizes: Int64s = np.concatenate([np.zeros(0, np.int64), *found]) + self._fixed
        return sizes

    async def gather(self, places: Places) -> tuple[pa.RecordBatch, Bools]:
        """See Tier; TierCorrupt for bytes that are not what was stored."""
        values: list[bytes | None] = []
        for keys in await self._packer.run(self._keys.rows, places.ids, places.partitions, PAGE_ROWS):
            values += await self._values([keys])
        return await self._packer.run(warm_rows.gathered, values, places, self.shape)

    async def vectors(self, places: Places, *, spent: int | None = 0) -> Vectors:  # noqa: ARG002 - one round trip
        """See Tier: one MGET for so many; TierCorrupt for bytes that are not what was stored."""
        found: list[Floats | None] = []
        asked = list(zip(places.partitions.tolist(), places.ids, places.versions.tolist(), strict=True))
        for start in range(0, len(asked), PAGE_ROWS):
            page = asked[start : start + PAGE_ROWS]
            values = await self._values([self._keys.row(partition, identifier) for partition, identifier, _ in page])
            found += [
                None if value is None else codec.decode_vector(value, identifier, version)
                for value, (_, identifier, version) in zip(values, page, strict=True)
            ]
        return Vectors(found)

    def vectors_at_once(self, places: Places) -> None:
        """See Tier: a server is asked."""

    async def retrieve(self, query: Query) -> Result:
        """Answer from this tier alone, through the index."""
        return await find(self, self.index, query)

    async def retrieve_all(self) -> AsyncIterator[pa.RecordBatch]:
        """Yield every row; `slot` is NO_SLOT."""
        async for page in self._pages():
            batch = await self._packer.run(warm_rows.listed, page, await self._values(page), self._keys, self.shape)
            self._largest = max(self._largest, warm_rows.largest(batch))
            yield batch.append_column("slot", pa.array(np.full(batch.num_rows, NO_SLOT, np.int64)))

    async def entries(self, known: Known) -> AsyncIterator[pa.RecordBatch]:
        """See rebuild.Sparse: headers and attributes; a page with a row that is not known by its code comes whole."""
        async for page in self._pages():
            heads = await valkey.read(self.client, "EVALSHA", LIST.sha, len(page), *page)
            self._largest = max(self._largest, warm_rows.largest_of(heads))
            found = await self._packer.run(warm_rows.entries, page, heads, self._keys, self.shape)
            if found.num_rows and not all_known(found, known):
                values = await self._values(page)
                found = await self._packer.run(warm_rows.with_vectors, page, values, self._keys, self.shape)
            yield found

    async def usage(self) -> Usage:
        """Return the rows at home here, the server's memory, and the limit."""
        told: bytes = await valkey.read(
            self.client, "INFO", "memory"
        )  # each store asks: two numbers, and no dictionary
        used, most = (int(FIELDS[name].search(told)[1]) for name in ("used_memory", "maxmemory"))  # type: ignore[index]
        return Usage(self.index.rows(self.name), used, bytes_limit=self._settings.bytes_limit or most)

    async def survey(self) -> AsyncIterator[list[tuple[int, str, int | None]]]:
        """Yield (partition, id, version) of every row, some at a time; version None where its bytes are damaged."""
        async for page in self._pages():
            with valkey.reading(self.client):
                values = cast("list[bytes | None]", await self.client.mget(page))
            found: list[tuple[int, str, int | None]] = []
            for key, value in zip(page, values, strict=True):
                parsed = self._keys.parse(key)
                if value is None or parsed is None:
                    continue
                try:
                    version = self._unpack(key, value).version
                except TierCorrupt:
                    version = None
                found.append((parsed[1], parsed[2].decode(errors="replace"), version))
            yield found

    async def _pages(self) -> AsyncIterator[list[bytes]]:
        """Yield the keys of all rows, each once: SCAN repeats some, so their names are kept meanwhile."""
        seen: set[bytes] = set()
        is_row = self._keys.is_row
        cursor = None
        while cursor != 0:
            with valkey.reading(self.client):
                cursor, found = await self.client.scan(cursor or 0, self._keys.rows_pattern, PAGE_ROWS)
            fresh = [key for key in dict.fromkeys(cast("list[bytes]", found)) if key not in seen]
            seen.update(fresh)
            keys = [key for key in fresh if is_row(key)]
            for start in range(0, len(keys), PAGE_ROWS):
                yield keys[start : start + PAGE_ROWS]

    async def _fetch(self, keys: list[bytes]) -> list[Row | None]:
        """Return the rows under these keys, None where there is none."""
        values = await self._values(keys)
        return [None if value is None else self._unpack(key, value) for key, value in zip(keys, values, strict=True)]

    async def _values(self, keys: Sequence[bytes | Bulk]) -> list[bytes | None]:
        return cast("list[bytes | None]", await valkey.read(self.client, "MGET", *keys)) if keys else []

    def _unpack(self, key: bytes, value: bytes) -> Row:
        row = codec.decode(value)
        found = self._keys.parse(key)
        if found is None or row.id.encode() != found[2]:
            raise TierCorrupt(f"the key {key!r} holds the row of another id")
        return row

"""SQL over all tiers: one read-only statement, in a process that can be killed, over a snapshot.

A snapshot is made only when somebody asks, and at most every `snapshot_s`; the ones for certain namespaces are made
from the whole one and hold nothing else, so that no statement can reach more than its sender may see (R12). A snapshot
goes when a newer one has come and its last statement has ended.
"""

from __future__ import annotations

import asyncio
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import duckdb

from pipeline.sql_process import SqlFailed, Statement
from pipeline.sql_settings import SqlSettings
from pipeline.sql_tables import DATABASE, Made, directory_name, narrow
from tiers.deadline import Deadline
from tiers.errors import InvalidRecord, IsothermError
from tiers.worker import SerialExecutor

FORMS = ("json", "ndjson", "arrow")
STATEMENT_CHARACTERS_MAX = 65_536
Key = frozenset[str] | None


class Makes(Protocol):
    """What makes whole snapshots (sql_snapshot.Maker)."""

    async def make(self, directory: Path, before: Made | None) -> Made:
        """Make one in a new directory."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a statement answered; `parts` are bytes of the form that was asked for."""

    columns: list[dict[str, str]]
    parts: list[bytes]
    rows: int
    truncated: bool
    snapshot_age_ms: int


class Sql:
    """A service of the node: `run` makes what is asked for; `query` waits for it and runs a statement."""

    name = "sql"

    def __init__(
        self, settings: SqlSettings, maker: Makes, directory: Path, thread: SerialExecutor, now_ms: Callable[[], int]
    ) -> None:
        self._settings, self._maker, self._directory = settings, maker, directory
        self._thread, self._now_ms = thread, now_ms
        self._children = SerialExecutor("sql-child", settings.processes_max)
        self._running = 0
        self._number = 0
        self._made: dict[Key, Made] = {}
        self._users: dict[Path, int] = {}
        self._wanted: asyncio.Queue[Key] = asyncio.Queue()
        self._waiting: dict[Key, asyncio.Future[Made]] = {}
        shutil.rmtree(directory, ignore_errors=True)  # what the life before has left

    def close(self) -> None:
        """End the threads, and remove the snapshots."""
        self._children.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    # -- asking ------------------------------------------------------------------------------------------------------

    async def query(
        self, statement: str, form: str = "json", *, namespaces: Key = None, deadline_ms: float | None = None
    ) -> Answer:
        """Run one SELECT over `namespaces` (None: all). `form` is json (rows as lists), ndjson or arrow.

        InvalidRecord for a statement that is refused or wrong; SqlFailed with its status: 429 when `processes_max` run,
        503 while there is no snapshot, 504 past the deadline, which counts the wait for the snapshot, 413 for memory.
        """
        settings = self._settings
        if not settings.enabled:
            raise SqlFailed(403, "sql-disabled", "SQL is switched off on this node (sql.enabled)")
        limit_ms = settings.deadline_ms if deadline_ms is None else deadline_ms
        if not 0 < limit_ms <= settings.deadline_ms:
            raise InvalidRecord("deadline_ms", f"more than 0 and at most {settings.deadline_ms:g} ms (sql.deadline_ms)")
        if len(statement) > STATEMENT_CHARACTERS_MAX:
            raise InvalidRecord("query", f"a statement has at most {STATEMENT_CHARACTERS_MAX} characters")
        if self._running >= settings.processes_max:
            raise SqlFailed(429, "sql-busy", f"{settings.processes_max} statements run already (sql.processes_max)")
        self._running += 1
        try:
            deadline = Deadline(limit_ms)
            made = await self._snapshot(namespaces, deadline)
            return await self._run(made, statement, form, max(1.0, (deadline.left_s or 0.0) * 1000), limit_ms)
        finally:
            self._running -= 1

    async def _run(self, made: Made, statement: str, form: str, left_ms: float, limit_ms: float) -> Answer:
        began_ms = self._now_ms()
        run = Statement(self._job(made, statement, form, left_ms, limit_ms), made.directory)
        self._users[made.directory] = self._users.get(made.directory, 0) + 1
        work = asyncio.ensure_future(self._children.run(run.run))
        try:
            ran = await asyncio.shield(work)
        except asyncio.CancelledError:
            run.cancel()
            await asyncio.wait([work])  # a tenth of a second: no process stays, and its place is free
            work.exception()
            raise
        finally:
            self._users[made.directory] -= 1
            await self._sweep()
        return Answer(ran.columns, ran.parts, ran.rows, ran.truncated, began_ms - made.at_ms)

    def _job(self, made: Made, statement: str, form: str, left_ms: float, limit_ms: float) -> dict[str, Any]:
        settings = self._settings
        return {
            "statement": statement,
            "form": form,
            "database": DATABASE,
            "setup": made.setup(),
            "files": bool(made.files),
            "threads": 1,
            "deadline_ms": left_ms,
            "limit_ms": limit_ms,
            "cpu_s": math.ceil(left_ms / 1000) + 2,
            "memory_bytes": settings.memory_bytes,
            "rows_max": settings.rows_max,
            "bytes_max": settings.bytes_max,
        }

    # -- snapshots ---------------------------------------------------------------------------------------------------

    def _fresh(self, made: Made | None) -> bool:
        return made is not None and self._now_ms() - made.at_ms < self._settings.snapshot_s * 1000

    async def _snapshot(self, key: Key, deadline: Deadline) -> Made:
        """Return a snapshot that is young enough, made now if there is none; whoever asks meanwhile gets the same."""
        held = self._made.get(key)
        if held is not None and self._fresh(held):
            return held
        if key not in self._waiting:
            self._waiting[key] = asyncio.get_running_loop().create_future()
            self._wanted.put_nowait(key)
        try:
            async with asyncio.timeout(deadline.left_s):
                return await asyncio.shield(self._waiting[key])
        except TimeoutError as error:
            detail = "the snapshot is still being made; ask again, with a longer deadline"
            raise SqlFailed(503, "sql-snapshot", detail) from error

    async def run(self, stop: asyncio.Event) -> None:
        """Make snapshots as they are asked for, one at a time, until stopped."""
        stopped = asyncio.ensure_future(stop.wait())
        try:
            while not stop.is_set():
                asked = asyncio.ensure_future(self._wanted.get())
                await asyncio.wait({asked, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not asked.done():
                    asked.cancel()
                    return
                await self._make(asked.result())
        finally:
            stopped.cancel()
            for waiting in self._waiting.values():
                waiting.set_exception(SqlFailed(503, "sql-snapshot", "the node is stopping"))
                waiting.exception()

    async def _make(self, key: Key) -> None:
        try:
            made = await self._made_for(key)
        except IsothermError as error:
            waiting = self._waiting.pop(key)
            waiting.set_exception(error)
            waiting.exception()  # whoever asked may have gone: then nobody is to be told
        else:
            self._made[key] = made
            self._users.setdefault(made.directory, 0)
            self._waiting.pop(key).set_result(made)
        await self._sweep()

    async def _made_for(self, key: Key) -> Made:
        whole = self._made.get(None)
        if whole is None or not self._fresh(whole):
            self._number += 1
            fresh = self._directory / directory_name(self._number, None)
            try:
                whole = await self._maker.make(fresh, whole)
            except BaseException:
                await self._thread.run(shutil.rmtree, fresh, ignore_errors=True)
                raise
            self._made = {None: whole}
            self._users.setdefault(whole.directory, 0)
        if key is None:
            return whole
        directory = self._directory / directory_name(self._number, key)
        directory.mkdir()
        try:
            return await self._thread.run(narrow, whole, directory, key)
        except (duckdb.Error, OSError) as error:
            await self._thread.run(shutil.rmtree, directory, ignore_errors=True)
            detail = f"no snapshot could be made: {str(error).partition(chr(10))[0]}"
            raise SqlFailed(503, "sql-snapshot", detail) from error

    async def _sweep(self) -> None:
        """Remove the snapshots that are neither offered nor in use."""
        kept = {made.directory for made in self._made.values()}
        for directory in [path for path, users in self._users.items() if not users and path not in kept]:
            del self._users[directory]
            await self._thread.run(shutil.rmtree, directory, ignore_errors=True)

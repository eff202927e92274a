"""The traces that model checking found, each with its clause removed, for the simulation to find again.

Numbers are those of the second model check (A) and of the earlier form (B). What does not apply to the product is in
docs/testing.md, with why.
"""

# ruff: noqa: E501 - lines of the source stand whole

from __future__ import annotations

from tests.mutants.mutant import Mutant

MOVER, INGEST, INDEX, REBUILD = "consumers/mover.py", "consumers/ingest.py", "tiers/index.py", "tiers/rebuild.py"

FINDINGS = (
    Mutant(
        "drop a tombstone early",
        "R5",
        MOVER,
        "if all(key.tier == TierName.GLACIER and (key.id, key.version) in dropped_too for key in others):",
        "if others is not None:",
        focus="tombstones",
        finding="A1, B11",
    ),
    Mutant(
        "drop a tombstone that a late commit may uncover",
        "R5",
        MOVER,
        "committed = self._committed(partition)",
        "committed = 1 << 40",
        focus="late commits",
        finding="A2",
    ),
    Mutant(
        "forget equal versions at the rebuild",
        "R3",
        REBUILD,
        "            index.queue.add(above, Location(where.id, where.version, where.partition, entry.slot))\n",
        "",
        focus="late writes",
        finding="A3",
    ),
    Mutant(
        "forget the target row of a superseded move",
        "R3, R4",
        MOVER,
        "        for where in stored.those(~same):\n            queue.add(target, where)\n",
        "",
        focus="moves",
        finding="A4",
    ),
    Mutant(
        "forget the target row of a move that could not be announced",
        "R3, R4",
        MOVER,
        "            at_ms = await self._changes.publish(partition, source, target, reason, receipt.ids, receipt.versions)",
        "            try:\n"
        "                at_ms = await self._changes.publish(partition, source, target, reason, receipt.ids, receipt.versions)\n"
        "            except BaseException:\n"
        "                queue.leave(landed)\n"
        "                raise",
        focus="outages",
        finding="A4",
    ),
    Mutant(
        "raise the epoch after the rebuild",
        "R4a",
        focus="late writes",
        finding="A6",
        broken=frozenset({"epoch after the rebuild"}),
    ),
    Mutant(
        "forget the home of a superseded record that has a copy",
        "R3",
        INDEX,
        "        rows = [(TierName(entry.home), Location(entry.id, entry.version, entry.partition, entry.slot))]\n",
        "        rows = [(TierName(entry.home), Location(entry.id, entry.version, entry.partition, entry.slot))]\n"
        "        if entry.copy != NO_COPY:\n            rows = []\n",
        focus="copies",
        finding="A7",
    ),
    Mutant(
        "append again a replayed row already at home",
        "R2",
        INDEX,
        "versions > self._entries.versions(self._entries.numbers(ids))",
        "versions >= self._entries.versions(self._entries.numbers(ids))",
        focus="late writes",
        first=28,
        finding="A8",
    ),
    Mutant(
        "hold the watermark for replayed rows that are older",
        "R2",
        INGEST,
        "self.watermarks[partition].open(first, end, batch.num_rows + len(decoded.letters) + len(replayed or ()))",
        "self.watermarks[partition].open(first, end, counting.num_rows + len(decoded.letters) + len(replayed or ()))",
        focus="late writes",
        finding="A9",
    ),
    Mutant(
        "rebuild without a tier that does not answer",
        "R3",
        focus="outages",
        first=13,
        finding="A11",
        broken=frozenset({"rebuild without a tier"}),
    ),
    Mutant("let a client library retry", "R4", focus="moves", finding="A12", broken=frozenset({"no retries"})),
    Mutant(
        "let warm take any epoch",
        "R4a",
        focus="late writes",
        first=69,
        finding="A ORD=4, B3",
        broken=frozenset({"no epoch in warm"}),
    ),
    Mutant(
        "let glacier take any epoch",
        "R4a",
        focus="late writes",
        first=34,
        finding="A ORD=4, B3",
        broken=frozenset({"no epoch in glacier"}),
    ),
    Mutant(
        "answer while the log is replayed",
        "R7",
        finding="A BARRIER, B4",
        broken=frozenset({"answers while it replays"}),
    ),
    Mutant(
        "take what a tier gives for what was asked",
        "R6",
        "tiers/reading.py",
        "                    if row is None:\n                        wanted.append(where.id)\n                    else:\n"
        "                        found[where.id] = (row, name)",
        "                    if row is not None:\n                        found[where.id] = (row, name)",
        focus="readers",
        first=44,
        finding="A RECHECK, B16",
    ),
    Mutant(
        "install a copy whatever the index shows by then",
        "R3",
        INDEX,
        "        if entry.version != version or entry.deleted or entry.home == TierName.HOT or entry.copy != NO_COPY:",
        "        if entry.copy != NO_COPY:",
        focus="copies",
        first=15,
        finding="A PINST, B9",
    ),
    Mutant(
        "ignore the lane",
        "R4",
        "consumers/lane.py",
        "                await self._execute(next_job.result())",
        "                self.tasks = [*getattr(self, 'tasks', ()), asyncio.ensure_future(self._execute(next_job.result()))]\n"
        "                [task.result() for task in self.tasks if task.done()]",
        focus="moves",
        finding="B1",
    ),
    Mutant(
        "go on while a request is unanswered",
        "R4",
        MOVER,
        "                receipt = await self._tiers[target].store(batch)\n        except (TierFull, TierUnavailable) as error:",
        "                try:\n"
        "                    async with __import__('asyncio').timeout(0.002):\n"
        "                        receipt = await self._tiers[target].store(batch)\n"
        "                except TimeoutError as error:\n"
        "                    raise TierUnavailable('it took too long') from error\n"
        "        except (TierFull, TierUnavailable) as error:",
        focus="moves",
        finding="B2",
    ),
    Mutant(
        "evict before the target has stored",
        "R4",
        MOVER,
        '            with step("store", tier=target.word, rows=batch.num_rows, bytes=batch.nbytes):\n',
        "            await self._tiers[source].evict(sources, None)\n"
        '            with step("store", tier=target.word, rows=batch.num_rows, bytes=batch.nbytes):\n',
        focus="moves",
        finding="B5",
    ),
    Mutant(
        "count a row as safe before its own move is",
        "R2",
        MOVER,
        '        failpoint.reach("move.queued", source.word, target.word)\n',
        "        if source == TierName.HOT:\n"
        "            self._watermarks[partition].settle(record.offsets(sources.versions))\n",
        focus="moves",
        finding="B7",
    ),
    Mutant(
        "settle what a conditional delete was decided by",
        "R2",
        INGEST,
        "settled = np.array([where.version for where in hot if where.id not in conditional], np.int64)",
        "conditional = {}\n            settled = np.array([where.version for where in hot], np.int64)",
        focus="conditions",
        first=46,
        finding="new: see docs/testing.md",
    ),
)

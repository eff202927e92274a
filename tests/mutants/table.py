"""Source mutants and the tests that kill them; those that the simulation is to find are in `findings`.

`tests` are pytest's arguments, the quickest that notice. A mutant whose tests need servers says so by where they are.
"""

# ruff: noqa: E501 - lines of the source stand whole

from __future__ import annotations

from tests.mutants.findings import FINDINGS, INDEX, INGEST, MOVER, REBUILD
from tests.mutants.mutant import Mutant

UNIT = "tests/consumers"
MOVES, INGESTS, CLEARS = f"{UNIT}/test_mover.py", f"{UNIT}/test_ingest.py", f"{UNIT}/test_clearing.py"
ARCHIVES, COLDS, WARMS = "tests/tiers/test_archive.py", "tests/tiers/test_cold.py", "tests/tiers/test_warm.py"
DISK, TABLE, SCRIPTS = "tiers/disk.py", "tiers/cold_table.py", "tiers/warm_scripts.py"
QUEUE, WITNESS = "tiers/queue.py", "tiers/cold_witness.py"

VERSIONS = (
    Mutant(
        "drop the version check in hot",
        "R3",
        INDEX,
        "versions > self._entries.versions(self._entries.numbers(ids))",
        "versions > -1 + 0 * self._entries.versions(self._entries.numbers(ids))",
        (INGESTS,),
    ),
    Mutant(
        "drop the version check in warm",
        "R3",
        SCRIPTS,
        "    newer = new_high > old_high or (new_high == old_high and new_low > old_low)",
        "    newer = true",
        ("tests/tiers/test_warm.py",),
    ),
    Mutant(
        "compare the upper half of a version only, in warm",
        "R3",
        SCRIPTS,
        "newer = new_high > old_high or (new_high == old_high and new_low > old_low)",
        "newer = new_high > old_high",
        ("tests/tiers/test_warm.py",),
    ),
    Mutant(
        "drop the version check in cold and glacier",
        "R3",
        "tiers/alone.py",
        "if highest is not None and highest[0] >= versions[at]:",
        "if highest is not None and highest[0] == versions[at]:",
        (f"{COLDS}::test_storing_an_older_version_changes_nothing_and_is_receipted",),
    ),
    Mutant(
        "take a row that is about to be stored for one that is held, in cold",
        "R4",
        INDEX,
        "if key.slot != NO_SLOT or tier == TierName.WARM]",
        "]",
        (f"{COLDS}::test_a_row_that_a_move_has_only_announced_is_written",),
    ),
    Mutant(
        "evict whatever version warm holds",
        "R4",
        SCRIPTS,
        "if not version or version == redis.call('GETRANGE', KEYS[i], {VERSION_AT}, {VERSION_AT + 7}) then",
        "if redis.call('EXISTS', KEYS[i]) == 1 then",
        (WARMS, "tests/tiers/test_contract_stores.py -k evict"),
    ),
    Mutant(
        "evict a slot of cold whatever lies there",
        "R4",
        TABLE,
        "JOIN wanted USING (slot, version, id)",
        "JOIN wanted USING (slot)",
        (f"{COLDS}::test_eviction_needs_slot_id_and_version",),
    ),
    Mutant(
        "rewrite glacier without whatever lies in the slot",
        "R4",
        "tiers/rewrite.py",
        "mask[rows[here[same & (record.versions_of(part) == versions[here])]]] = True",
        "mask[rows[here]] = True",
        ("tests/tiers/test_glacier.py::test_a_rewrite_drops_only_the_exact_row",),
    ),
    Mutant(
        "return whatever version warm holds",
        "R6",
        "tiers/warm.py",
        "row if row is not None and row.version == where.version else None",
        "row if row is not None else None",
        (WARMS, "tests/tiers/test_contract_stores.py -k exact"),
    ),
    Mutant(
        "take equal versions from the upper tier at the rebuild",
        "R3",
        REBUILD,
        "if entry is not None and entry.version == where.version and tier > entry.home:",
        "if entry is not None and entry.version == where.version and tier < entry.home:",
        (f"{MOVES}::test_trace_3_the_same_version_lies_in_two_tiers_at_rebuild",),
    ),
)

COMMITS = (
    Mutant(
        "commit one past the watermark",
        "R2",
        "consumers/commit.py",
        "{p: m.value for p, m in self._watermarks.items() if m.value > self._acknowledged[p]}",
        "{p: m.value + 1 for p, m in self._watermarks.items() if m.value > self._acknowledged[p]}",
        (f"{UNIT}/test_commit.py",),
    ),
    Mutant(
        "commit where the reader is",
        "R2",
        "consumers/commit.py",
        "{p: m.value for p, m in self._watermarks.items() if m.value > self._acknowledged[p]}",
        "{p: m.end for p, m in self._watermarks.items() if m.end > self._acknowledged[p]}",
        (f"{UNIT}/test_commit.py",),
    ),
    Mutant(
        "commit without the lease",
        "R4a",
        "consumers/commit.py",
        "                self._lease.check(partition)\n",
        "                pass\n",
        (f"{UNIT}/test_commit.py",),
    ),
    Mutant(
        "believe a commit before it is answered",
        "R5",
        "consumers/commit.py",
        "                await self._reader.commit(ahead)\n",
        "                self._acknowledged |= ahead\n                await self._reader.commit(ahead)\n",
        (f"{UNIT}/test_commit.py",),
    ),
    Mutant(
        "two commits at once",
        "R5",
        "consumers/commit.py",
        "        async with self._committing:\n",
        "        if self._committing:\n",
        (f"{UNIT}/test_commit.py",),
    ),
    Mutant(
        "a watermark behind the newest run",
        "R2",
        "consumers/watermark.py",
        "return self._firsts[0] if self._firsts else self._end",
        "return self._firsts[-1] if self._firsts else self._end",
        (f"{UNIT}/test_watermark.py",),
    ),
    Mutant(
        "a lease good for twice its time",
        "R4a",
        "consumers/lease.py",
        "        if age_s >= self._ttl_s:",
        "        if age_s >= 2 * self._ttl_s:",
        (f"{UNIT}/test_lease.py",),
    ),
    Mutant(
        "an epoch that may repeat",
        "R4a",
        "consumers/lease.py",
        "tonumber(ARGV[2])) + 1\n",
        "tonumber(ARGV[2]))\n",
        (f"{UNIT}/test_lease.py",),
    ),
)

ORDER = (
    Mutant(
        "evict what a conditional delete was decided by",
        "R3",
        MOVER,
        "self._without(self._index.queue.list(partition, tier, limit), self._decides)",
        "self._without(self._index.queue.list(partition, tier, limit), lambda _: False)",
        (f"{UNIT}/test_conditions.py::test_what_a_delete_was_decided_by_waits_for_it_below",),
    ),
    Mutant(
        "evict from the queue without the second look",
        "R3",
        MOVER,
        "gone = places.those(~self._index.at_home(tier, places))",
        "gone = places",
        (f"{MOVES}::test_a_queued_row_that_has_become_the_home_only_leaves_the_queue",),
    ),
    Mutant(
        "drop a superseded tombstone above an older row",
        "R5",
        MOVER,
        "lambda where: self._covers_above(where) or self._decides(where)",
        "self._decides",
        (f"{MOVES}::test_a_superseded_tombstone_stays_while_an_older_row_waits_above",),
    ),
    Mutant(
        "evict before publish",
        "R4",
        MOVER,
        '        with _kept(queue, landed), step("announce", rows=len(landed.places)):\n',
        "        await self._tiers[source].evict(sources, receipt)\n"
        '        with _kept(queue, landed), step("announce", rows=len(landed.places)):\n',
        (f"{MOVES}::test_the_order_of_a_move",),
    ),
    Mutant(
        "relocate before the receipt",
        "R4",
        MOVER,
        '            with step("store", tier=target.word, rows=batch.num_rows, bytes=batch.nbytes):\n',
        "            ids, versions = batch['id'].to_pylist(), record.versions_of(batch)\n"
        "            self._index.relocate(target, ids, versions, np.full(len(ids), -1), None)\n"
        '            with step("store", tier=target.word, rows=batch.num_rows, bytes=batch.nbytes):\n',
        (MOVES,),
    ),
    Mutant(
        "store before the target row is queued",
        "R3, R4",
        MOVER,
        "        pending = queue.enter(target, partition, sources.without_slots())\n",
        "        pending = queue.enter(target, partition, sources.without_slots())\n        queue.leave(pending)\n",
        (f"{MOVES}::test_target_rows_are_queued_before_their_store_is_sent",),
    ),
    Mutant(
        "leave a refused eviction out of the queue",
        "R3",
        MOVER,
        "        evicted = await self._evict_dead(tier, keys, receipt)\n        await self._unqueue(tier, keys)\n",
        "        await self._unqueue(tier, keys)\n        evicted = await self._evict_dead(tier, keys, receipt)\n",
        (f"{MOVES}::test_a_refused_eviction_stays_queued",),
    ),
    Mutant(
        "leave a refused eviction of a move out of the queue",
        "R3",
        MOVER,
        "        with _kept(queue, leaving), step(",
        "        queue.leave(leaving)\n        with step(",
        (MOVES,),
    ),
    Mutant(
        "let what a failed move has queued stay a group that nobody evicts",
        "R3",
        MOVER,
        "        queue.part(group)\n        raise\n",
        "        raise\n",
        (MOVES,),
    ),
    Mutant(
        "take rows out of the queue that a store of unknown outcome may have written",
        "R3, R4",
        MOVER,
        "        except BaseException:\n            queue.part(pending)\n",
        "        except BaseException:\n            queue.leave(pending)\n",
        (MOVES,),
    ),
    Mutant(
        "drop a tombstone unannounced",
        "R4",
        MOVER,
        'await self._changes.publish(partition, TierName.GLACIER, None, "tombstone", ids, versions)',
        "pass",
        (f"{MOVES}::test_a_finished_tombstone_goes_and_is_announced",),
    ),
    Mutant(
        "swallow what must end the lane",
        "R9",
        "consumers/lane.py",
        "            if not error.retriable:\n                raise\n            self.stalls += 1",
        "            self.stalls += 1",
        (f"{UNIT}/test_lane.py::test_any_other_error_ends_the_lane",),
    ),
    Mutant(
        "stop in the middle of a job",
        "R4",
        "consumers/lane.py",
        "                await self._execute(next_job.result())",
        "                working = asyncio.ensure_future(self._execute(next_job.result()))\n"
        "                await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)",
        (f"{UNIT}/test_lane.py",),
    ),
    Mutant(
        "settle the home of a copy that is superseded",
        "R2",
        INGEST,
        "hot = [where for tier, where in masked if tier == TierName.HOT and where.id not in copies]",
        "hot = [where for tier, where in masked if tier == TierName.HOT]",
        (f"{UNIT}/test_promote.py::test_a_copy_goes_with_its_version_and_settles_nothing",),
    ),
    Mutant(
        "go on without the dead letter's answer",
        "R2",
        INGEST,
        "            for confirmed in sent:\n                await confirmed\n",
        "",
        (INGESTS,),
    ),
    Mutant(
        "go on without the answer to what is announced again",
        "R2, R4",
        INGEST,
        "        for tier, keys in by_tier.items():\n"
        "            versions = np.array([version for _, version in keys], np.int64)\n"
        "            ids = [identifier for identifier, _ in keys]\n"
        '            await self._changes.publish(partition, TierName.HOT, tier, "recovered", ids, versions, insist=True)\n'
        "        self.watermarks[partition].settle(record.offsets(record.versions_of(batch)))\n",
        "        self.watermarks[partition].settle(record.offsets(record.versions_of(batch)))\n"
        "        for tier, keys in by_tier.items():\n"
        "            versions = np.array([version for _, version in keys], np.int64)\n"
        "            ids = [identifier for identifier, _ in keys]\n"
        '            await self._changes.publish(partition, TierName.HOT, tier, "recovered", ids, versions, insist=True)\n',
        (INGESTS,),
    ),
    Mutant(
        "count every conditional delete",
        "R5",
        "consumers/conditions.py",
        "if version in conditions and known not in (conditions[version], version):",
        "if version in conditions and known == -2:",
        (f"{UNIT}/test_conditions.py",),
    ),
    Mutant(
        "replay what an operator cleared",
        "R5",
        INGEST,
        "keep = record.offsets(versions) >= below",
        "keep = record.offsets(versions) >= 0",
        (CLEARS,),
    ),
    Mutant(
        "clear without a note",
        "R1, R5",
        "consumers/clearing.py",
        "        self._notes.begin(partition, tier, below)\n",
        "",
        (CLEARS,),
    ),
    Mutant(
        "clear hot without remembering",
        "R5",
        "consumers/clearing.py",
        "        self._notes.remember(partition, position)\n",
        "",
        (CLEARS,),
    ),
    Mutant(
        "clear below what a replay can bring back",
        "R5",
        "consumers/clearing.py",
        "        while mark.value < below:\n",
        "        while mark.value < 0:\n",
        (CLEARS,),
    ),
    Mutant(
        "clear and leave older versions",
        "R5",
        "consumers/clearing.py",
        "        while True:\n            oldest:",
        "        while False:\n            oldest:",
        (CLEARS,),
    ),
)

EPOCHS = (
    Mutant(
        "skip the epoch in warm",
        "R4a",
        SCRIPTS,
        "if epoch ~= ARGV[1] then",
        "if false then",
        (f"{WARMS} -k epoch", WARMS),
    ),
    Mutant(
        "skip the epoch in glacier",
        "R4a",
        "tiers/archive.py",
        "            if known > epoch or (known < epoch and not raising):",
        "            if known < epoch and not raising:",
        (ARCHIVES,),
    ),
    Mutant(
        "commit to glacier over another's entry",
        "R4a",
        "tiers/archive.py",
        "            with unavailable():\n                self.log.reload()\n            return False",
        "            with unavailable():\n                self.log.reload()\n"
        "            self.log.append(owners, add, remove)\n            return True",
        (ARCHIVES,),
    ),
    Mutant(
        "let redis-py retry",
        "R4",
        "tiers/valkey.py",
        "        retry=Retry(NoBackoff(), 0),",
        "        retry=Retry(NoBackoff(), 3),",
        ("tests/tiers/test_warm_faults.py -k TestLostReply",),
    ),
    Mutant(
        "take a server that does not fsync each write",
        "R1",
        "tiers/valkey.py",
        '    "appendfsync": "always",\n',
        "",
        ("tests/tiers/test_warm_faults.py -k not_durable",),
    ),
    Mutant(
        "raise the epoch after the rebuild, in the node",
        "R4a",
        "pipeline/app.py",
        "        await _raise_epochs(lease.epochs, warm, glacier)\n"
        "        coder = await _open_coder(stack, settings, index, directory.path, tiers)\n"
        "        changes = Changes(publisher, topics.changes, now_ms)\n"
        "        await announce(changes, await rebuild(index, [warm, cold, glacier], settings.kafka.partitions, coder))\n",
        "        coder = await _open_coder(stack, settings, index, directory.path, tiers)\n"
        "        changes = Changes(publisher, topics.changes, now_ms)\n"
        "        await announce(changes, await rebuild(index, [warm, cold, glacier], settings.kafka.partitions, coder))\n"
        "        await _raise_epochs(lease.epochs, warm, glacier)\n",
        ("tests/pipeline/test_start_order.py",),
    ),
)

FSYNCS = (
    Mutant(
        "skip the fsync of a new entry of the archive's log",
        "R1",
        DISK,
        "            self._fsync(unnamed)\n",
        "",
        (f"{ARCHIVES}::test_all_is_fsynced_in_order_before_the_receipt",),
    ),
    Mutant(
        "skip the fsync of the archive's files",
        "R1",
        DISK,
        "        for file in files:\n            self._fsync(file)\n",
        "",
        (f"{ARCHIVES}::test_all_is_fsynced_in_order_before_the_receipt",),
    ),
    Mutant(
        "skip the fsync of the archive's directories",
        "R1",
        DISK,
        "            self._fsync(folder)\n",
        "            pass\n",
        (f"{ARCHIVES}::test_all_is_fsynced_in_order_before_the_receipt",),
    ),
    Mutant(
        "skip the fsync of the parent of a new directory",
        "R1",
        DISK,
        "            self._fsync(level.parent)\n",
        "            pass\n",
        (f"{ARCHIVES}::test_a_new_directory_is_remembered_by_its_parent",),
    ),
    Mutant(
        "skip the fsync after a torn checkpoint is put aside",
        "R1",
        DISK,
        "        self._fsync((self.root / path).parent)\n",
        "",
        ("tests/tiers/test_disk.py",),
    ),
    Mutant(
        "skip the sync of a data file before its commit",
        "R1",
        "tiers/files.py",
        "            storage.sync([path])\n",
        "",
        (f"{ARCHIVES}::test_all_is_fsynced_in_order_before_the_receipt",),
    ),
    Mutant(
        "skip the sync of a committed entry",
        "R1",
        "tiers/archive.py",
        "            self.log.sync()\n",
        "",
        (f"{ARCHIVES}::test_all_is_fsynced_in_order_before_the_receipt",),
    ),
    Mutant(
        "believe entries that nobody synced",
        "R1",
        "tiers/deltalog.py",
        "        storage.sync([path for version, path in log if version >= self.checkpoint] + last)\n",
        "",
        (f"{ARCHIVES}::test_an_entry_nobody_synced_is_synced_before_it_is_believed",),
    ),
    Mutant(
        "skip the sync of a checkpoint",
        "R1",
        "tiers/deltalog.py",
        "        self.storage.sync([made, seal, LAST])\n",
        "",
        (f"{ARCHIVES}::test_checkpoints_keep_epochs_and_files_and_are_fsynced",),
    ),
    Mutant(
        "skip the fsync of cold's directory when its log is new",
        "R1",
        TABLE,
        "                fsync(self._directory)\n",
        "",
        (f"{COLDS}::test_the_new_wal_has_its_name_synced_before_the_receipt",),
    ),
    Mutant(
        "skip the fsync of cold's directory at open",
        "R1",
        TABLE,
        "        fsync(directory)\n",
        "",
        (f"{COLDS}::test_the_new_wal_has_its_name_synced_before_the_receipt", COLDS),
    ),
    Mutant(
        "fsync nothing at all",
        "R1",
        DISK,
        "        os.fsync(handle)\n",
        "        pass\n",
        ("tests/tiers/test_disk.py",),
    ),
    Mutant(
        "skip the fsync of the manifest",
        "R5",
        "pipeline/manifest.py",
        "            os.fsync(out.fileno())\n",
        "",
        ("tests/pipeline/test_manifest.py",),
    ),
    Mutant(
        "skip the fsync of the manifest's directory",
        "R5",
        "pipeline/manifest.py",
        "            os.fsync(directory)\n",
        "            pass\n",
        ("tests/pipeline/test_manifest.py",),
    ),
)

QUEUED = (
    Mutant(
        "lose a row of a move whose file is rewritten meanwhile",
        "R3",
        QUEUE,
        "        for group in [group for group in self._groups if group.key(identifier) == key]:\n            self.part(group)\n",
        "",
        ("tests/tiers/test_queue.py",),
    ),
    Mutant(
        "leave rows of a move in the queue that were looked at one by one",
        "R3",
        QUEUE,
        "            self.remove_all(group.tier, group.partition, group.places)\n",
        "            pass\n",
        ("tests/tiers/test_queue.py",),
    ),
    Mutant(
        "forget rows of a move when asked what is queued of an id",
        "R5",
        QUEUE,
        "*(key for key in grouped if key is not None)",
        "*(key for key in grouped if key is None)",
        ("tests/tiers/test_queue.py",),
    ),
    Mutant(
        "forget that a move's rows lie in a tier",
        "R4",
        QUEUE,
        "        if known or self._of_tier[tier]:\n",
        "        if self._of_tier[tier]:\n",
        ("tests/tiers/test_queue.py",),
    ),
    Mutant(
        "forget a row of a move whose home was rewritten below it",
        "R3",
        MOVER,
        "            self._index.relocate_slots(TierName.GLACIER, done.ids[at], *columns)\n",
        "",
        (MOVES,),
    ),
    Mutant(
        "checkpoint cold before its mark is taken back",
        "R1",
        TABLE,
        "            self._witness.forget()\n            self._connection.execute",
        "            self._connection.execute",
        ("tests/tiers/test_cold_witness.py",),
    ),
    Mutant(
        "take cold's mark back without an fsync",
        "R1",
        WITNESS,
        "        os.fsync(self._handle)\n",
        "",
        ("tests/tiers/test_cold_witness.py",),
    ),
    Mutant(
        "open cold without its witness",
        "R1",
        TABLE,
        "            self._witness.check()\n",
        "            pass\n",
        ("tests/tiers/test_cold_witness.py",),
    ),
    Mutant(
        "believe a WAL of the right length",
        "R1",
        WITNESS,
        "        if self._checksum(0, size, 0) != crc:\n",
        "        if not self._wal.exists():\n",
        ("tests/tiers/test_cold_witness.py",),
    ),
)

LOG = (
    Mutant(
        "give up a dead letter that is late",
        "R2",
        INGEST,
        "await self._publisher.enqueue(topic, value, key, headers=headers, insist=True)",
        "await self._publisher.enqueue(topic, value, key, headers=headers)",
        (INGESTS,),
    ),
    Mutant(
        "send again what is only late",
        "R2",
        "producers/publisher.py",
        "answer = await (await self._producer.send(topic, **given))",
        "answer = await asyncio.wait_for(await self._producer.send(topic, **given), 0.01)",
        ("tests/producers/test_publisher.py",),
    ),
    Mutant(
        "wait for what no waiting mends",
        "R9",
        "producers/publisher.py",
        "if not (unsent := self._unsent(topic, error)).retriable:",
        "if (unsent := self._unsent(topic, error)) is None:",
        ("tests/producers/test_publisher.py",),
    ),
    Mutant(
        "take the last told for where a record is",
        "fold",
        "consumers/placement.py",
        "(version, depth) > self._homes.get(identifier, (-1, 0))",
        "(version, depth) != self._homes.get(identifier, (-1, 0))",
        (f"{UNIT}/test_advice.py",),
    ),
    Mutant(
        "poll on while a partition's messages wait",
        "R2",
        "consumers/reader.py",
        '                        self._consumer.pause(tp)\n                        log.warning("partition.late"',
        '                        log.warning("partition.late"',
        (f"{UNIT}/test_reader.py",),
    ),
    Mutant(
        "know the log by what lies below the watermark alone",
        "identity",
        "consumers/witness.py",
        'return f"{kept[0]} {kept[-1]}"',
        'return f"{kept[0]}"',
        (f"{UNIT}/test_witness.py",),
    ),
    Mutant(
        "take another message for the one that was applied",
        "identity",
        "consumers/recognition.py",
        "if found.offset == applied.offset and found != applied:",
        "if found.offset != applied.offset:",
        (
            "tests/pipeline/test_log_identity.py::TestOffsets::test_a_log_cut_off_and_written_on_is_refused_until_it_is_said_where_it_begins",
        ),
    ),
    Mutant(
        "take a log that ends before what was applied",
        "identity",
        "consumers/recognition.py",
        "if applied.offset >= ends[tp]:",
        "if applied.offset > ends[tp] + 1_000_000:",
        ("tests/pipeline/test_log_identity.py::TestOffsets::test_a_log_that_ends_before_what_was_applied_is_refused",),
    ),
)

LATE = (
    Mutant(
        "go on with a client that the broker has lost the thread of",
        "R9",
        "producers/publisher.py",
        "        if isinstance(error, BROKEN):\n",
        "        if isinstance(error, ()):\n",
        ("tests/producers/test_publisher.py",),
    ),
    Mutant(
        "let a late commit bring back what was cleared",
        "clearing",
        "consumers/clearing.py",
        "self._notes.remember(partition, max(self._notes.cleared_below(partition), offset + 1))",
        "pass",
        (CLEARS,),
    ),
)

ENDING = (
    Mutant(
        "call what a closing node cannot do an internal error",
        "R9",
        "pipeline/edge.py",
        "if not (isinstance(error, ENDS) or (self.stopping and not isinstance(error, IsothermError))):",
        "if not isinstance(error, ENDS):",
        ("tests/pipeline/test_edge.py::test_what_goes_wrong_while_the_node_ends_is_its_end",),
    ),
    Mutant(
        "leave a request that the end of the node cuts off to the server",
        "R9",
        "pipeline/edge.py",
        "if self.stopping and not exchange.answered:  # the loop ends, and the server would say 500",
        "if False:",
        ("tests/pipeline/test_edge.py::test_a_request_that_is_cut_off_by_the_end_of_the_node_is_answered",),
    ),
    Mutant(
        "call an unknown outcome an internal error",
        "R9",
        "pipeline/edge.py",
        "ENDS = (OutcomeUnknown, Fenced, DeviceLost)",
        "ENDS = (Fenced, DeviceLost)",
        ("tests/pipeline/test_edge.py::test_what_ends_the_node_is_a_503",),
    ),
    Mutant(
        "let a failing node's gateway answer as if nothing were",
        "R9",
        "pipeline/serve.py",
        "gateway.stop()  # what is still on its way is told why it is not answered",
        "pass",
        ("tests/pipeline/test_stop.py::test_a_request_that_a_failing_node_cannot_answer_is_told_to_ask_again",),
    ),
)

READS = (
    Mutant(
        "copy segment bitmaps one by one",
        "R6",
        "tiers/scan.py",
        "            views = reading.views(facts=reading.criteria is not None)\n",
        "            views, count = [], len(reading.index.segments())\n"
        "            for at in range(count):\n"
        "                await asyncio.sleep(0)\n"
        "                one = reading.index.segments()[at] if at < len(reading.index.segments()) else None\n"
        "                view = None if one is None else one.view(\n"
        "                    frozenset(reading.tiers), None, facts=reading.criteria is not None, now_ms=reading.now_ms\n"
        "                )\n"
        "                views += [] if view is None else [view]\n",
        focus="readers",
        finding="A10",
    ),
    Mutant(
        "show what has expired",
        "R6",
        "tiers/reading.py",
        "            if entry is None or entry.deleted or 0 < entry.expires_at <= self.now_ms:",
        "            if entry is None or entry.deleted:",
        ("tests/tiers/test_read.py",),
    ),
    Mutant(
        "read other namespaces by id",
        "R12",
        "tiers/reading.py",
        "            if spaces is not None and record.namespace(entry.id) not in spaces:",
        "            if spaces is not None and not spaces:",
        ("tests/tiers/test_read.py", "tests/tiers/test_search.py"),
    ),
    Mutant(
        "keep a hit that fails the filter once updated",
        "R6",
        "tiers/rerank.py",
        "    updated = {each.id for each in found if each.version != candidates[each.id][0]}",
        "    updated = {each.id for each in found if each.version == -1}",
        ("tests/tiers/test_search.py",),
    ),
    Mutant(
        "serve a packed row that does not match its checksum",
        "R1",
        "tiers/codec.py",
        "    if google_crc32c.value(body[: -CRC.size]) != CRC.unpack_from(body, len(body) - CRC.size)[0]:",
        "    if not body:",
        ("tests/tiers/test_codec.py",),
    ),
    Mutant(
        "believe a damaged frame of the side file",
        "R1",
        "tiers/side.py",
        "            if google_crc32c.value(head[: FRAME.size] + tables) != CRC.unpack_from(head, FRAME.size)[0]:",
        "            if not tables:",
        ("tests/tiers/test_side.py",),
    ),
    Mutant(
        "use a freed slab while a scan reads it",
        "R6",
        "tiers/hot.py",
        "        self._free += [number for begun, number in self._limbo if begun < oldest]",
        "        self._free += [number for _, number in self._limbo]",
        ("tests/tiers/test_hot.py",),
    ),
    Mutant(
        "overwrite dirty rows when hot is full",
        "R8",
        "tiers/hot.py",
        "        if wanted > len(self._free):\n            raise TierFull(",
        "        if wanted > len(self._free) + 1:\n            raise TierFull(",
        ("tests/tiers/test_hot.py",),
    ),
)

MUTANTS = (*FINDINGS, *VERSIONS, *COMMITS, *ORDER, *EPOCHS, *FSYNCS, *QUEUED, *LOG, *LATE, *ENDING, *READS)

#: Killed within a moment each: the slice that runs with every test run.
QUICK = frozenset(
    {
        "commit one past the watermark",
        "evict before publish",
        "swallow what must end the lane",
        "count every conditional delete",
        "drop the version check in hot",
    }
)

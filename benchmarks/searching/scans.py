"""Scenarios that scan: hot exactly, warm and cold by codes, a million rows over all tiers, and filters of any width."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.report import promise, spread
from benchmarks.searching.baselines import Flat, Memory, best_of
from benchmarks.searching.corpus import DIM, GROUPS, Bools, recall, scaled, truth
from benchmarks.searching.node import BARE, ask_all, coded, fill, tiers_of
from benchmarks.searching.run import Run
from pipeline import MemoryManager, Query
from tiers import TierName
from tiers.record import Floats
from tiers.tier import Location

K, WARM_UP, BLOCKS = 10, 20, 5
DEAD, PASSING = 0.1, GROUPS // 2
SELECTIVITY = {"100 %": GROUPS, "10 %": 1_000, "1 %": 100, "0.1 %": 10, "0.01 %": 1}
EXACT_UP_TO = 100  # groups; a wider exact question fetches every vector of the archive, which is no scan


class Compared(NamedTuple):
    """Ours and theirs, asked in turns: ms of each question, and what ours found."""

    ours_ms: list[float]
    found: list[list[str]]
    theirs_ms: list[float]

    @property
    def faster(self) -> float:
        """How many times faster ours is, by the medians."""
        return float(np.median(self.theirs_ms) / np.median(self.ours_ms))


async def compared(
    memory: MemoryManager, questions: Floats, theirs: Callable[[Floats], None], count: int, **asked: Any
) -> Compared:
    """Ask ours all questions and theirs `count` of them, a block of each in turn, after some that do not count."""
    await ask_all(memory, questions[:WARM_UP], k=K, **asked)
    out = Compared([], [], [])
    for part in np.array_split(np.arange(len(questions)), BLOCKS):
        took, found = await ask_all(memory, questions[part], k=K, **asked)
        out.ours_ms.extend(took)
        out.found.extend(found)
        for question in questions[part[: -(-count // BLOCKS)]]:
            began = time.perf_counter()
            theirs(question)
            out.theirs_ms.append((time.perf_counter() - began) * 1_000)
    return out


async def exact_hot(run: Run) -> dict[str, Any]:
    """Scan hot exactly, a tenth of it dead, half of it passing a filter; every physical row is read."""
    rows, random = run.size.tier, np.random.default_rng(0)
    async with run.node("hot", hot__capacity_rows=2 * rows + 65_536) as memory:
        node = memory.node
        await fill(memory, run.corpus.vectors, 0, rows, TierName.HOT)
        names = [f"id-{row}" for row in random.choice(rows, int(rows * DEAD), replace=False)]
        dead = [Location(e.id, e.version, e.partition, e.slot) for e in node.index.entries(names) if e is not None]
        node.index.drop([(where.id, where.version) for where in dead])
        await node.tiers[TierName.HOT].evict(dead, None)
        asked = {"k": K, "exact": True, "filter": f'"group" < {PASSING}', "explain": True, **BARE}
        scans: list[float] = []
        whole: list[float] = []
        array, read = Memory(run.size.bandwidth_mb), []
        for question in run.corpus.questions[: run.size.scans]:
            result = await memory.retrieve(Query(vector=question, **asked))
            scans.append((result.explain or {})["steps_ms"]["scan"])
            whole.append(result.took_ms)
            read.append(array.read())
    gb_s = best_of(read)
    of_scan, of_whole = (rows * 4 * DIM / np.median(ms) / 1e6 / gb_s for ms in (scans[WARM_UP:], whole[WARM_UP:]))
    return {
        "rows": rows,
        "dead": len(dead),
        "bandwidth": read,
        "scan": spread(scans[WARM_UP:]),
        "whole_question": spread(whole[WARM_UP:]) | {"of_bandwidth": round(of_whole, 3)},
        "promises": [promise("exact scan, 10 % dead, filtered: share of read bandwidth", of_scan, ">=", 0.75)],
    }


async def one_tier(run: Run, tier: TierName, faster: float) -> dict[str, Any]:
    """Search rows that all lie in one tier, against FAISS's flat index over the same."""
    corpus = run.corpus.first(run.size.tier)
    questions = corpus.questions[: run.size.scans]
    true = truth(scaled(corpus.vectors), questions, K)
    async with run.node(tier.word) as memory:
        load_s = await fill(memory, corpus.vectors, 0, run.size.tier, tier)
        await coded(memory)
        flat = Flat(corpus.vectors)
        seen = await compared(memory, questions, partial(flat.ask, k=K), run.size.flat, **BARE)
        explained = await memory.retrieve(Query(vector=questions[0], k=K, explain=True, **BARE))
        found = recall(seen.found, true)
    return {
        "rows": run.size.tier,
        "load_s": round(load_s, 2),
        "explain": explained.explain,
        "recall": round(found, 4),
        "ours": spread(seen.ours_ms),
        "faiss_flat": spread(seen.theirs_ms),
        "promises": [
            promise("recall@10", found, ">=", 0.995),
            promise("times faster than faiss IndexFlatIP, include: []", seen.faster, ">=", faster),
        ],
    }


async def cold(run: Run) -> dict[str, Any]:
    """All rows in cold."""
    return await one_tier(run, TierName.COLD, 8)


async def warm(run: Run) -> dict[str, Any]:
    """All rows in warm."""
    return await one_tier(run, TierName.WARM, 4)


async def million(run: Run) -> dict[str, Any]:
    """Search rows that lie 10, 20, 30 and 40 % in hot, warm, cold and glacier, whose rows are all in its cache."""
    memory = await run.million()
    corpus, size = run.corpus, run.size
    true = truth(run.units(), corpus.questions[: size.truth], K)
    flat = Flat(corpus.vectors)
    bare = await compared(memory, corpus.questions, partial(flat.ask, k=K), size.flat, **BARE)
    full = await compared(memory, corpus.questions[: size.scans], partial(flat.ask, k=K), size.flat)
    del flat
    explained = await memory.retrieve(Query(vector=corpus.questions[0], k=K, explain=True, **BARE))
    found = recall(bare.found, true)
    p50, p99 = (float(np.percentile(bare.ours_ms, at)) for at in (50, 99))
    return {
        "rows": size.million,
        "homes": {tier.word: memory.node.index.rows(tier) for tier in TierName},
        "true_neighbours_in": tiers_of(memory, true),
        "load_s": run.load_s,
        "code_bytes_per_row": round(memory.node.index.code_bytes / size.million, 1),
        "glacier_cache_bytes": memory.node.settings.glacier.cache_bytes,
        "recall": round(found, 4),
        "explain": explained.explain,
        "include_none": spread(bare.ours_ms),
        "with_payloads": spread(full.ours_ms),
        "faiss_flat": spread(bare.theirs_ms + full.theirs_ms),
        "promises": [
            promise("recall@10", found, ">=", 0.99),
            promise("times faster than faiss IndexFlatIP, include: []", bare.faster, ">=", 8),
            promise("the same with payloads", full.faster, ">=", 6),
            promise(f"p99 / p50 over {len(bare.ours_ms):,} questions", p99 / p50, "<=", 4),
        ],
    }


async def selectivity(run: Run) -> dict[str, Any]:
    """Ask with filters that let ever fewer rows pass, against a scan that filters and reads what passes."""
    memory = await run.million()
    units, group = run.units(), np.arange(run.size.million) % GROUPS
    questions = run.corpus.questions[: run.size.filtered]
    out: dict[str, Any] = {}
    for share, passing in SELECTIVITY.items():
        where = f'"group" < {passing}' if passing < GROUPS else None
        true = truth(units, questions, K, group < passing)
        scan = Scan(units, group, passing)
        seen = await compared(memory, questions, scan.ask, len(questions), filter=where, **BARE)
        asked = Query(vector=questions[0], k=K, filter=where, explain=True, **BARE)
        out[share] = {
            "recall": round(recall(seen.found, true), 4),
            "explain": (await memory.retrieve(asked)).explain,
            "ours": spread(seen.ours_ms),
            "filtered_scan": spread(seen.theirs_ms),
            "of_the_scan": round(1 / seen.faster, 3),
        }
        if passing <= EXACT_UP_TO:
            took, ids = await ask_all(memory, questions[:WARM_UP], k=K, filter=where, exact=True, **BARE)
            out[share] |= {"exact": spread(took), "exact_recall": round(recall(ids, true), 4)}
    all_rows = out["100 %"]["filtered_scan"]["p50_ms"]
    exact = [one["ours"]["p50_ms"] / one["exact"]["p50_ms"] for one in out.values() if "exact" in one]
    slowest = max(one["ours"]["p50_ms"] for one in out.values())
    return {
        "rows": run.size.million,
        "by_selectivity": out,
        "promises": [
            promise("recall@10, the lowest of all shares", min(one["recall"] for one in out.values()), ">=", 0.99),
            promise("time / an exact scan of all rows, the highest", slowest / all_rows, "<=", 1),
            promise("time / the same with exact=true, where 1 % or fewer pass, the highest", max(exact), "<=", 1),
        ],
    }


class Scan(NamedTuple):
    """The exact scan to compare with: NumPy on one thread, over vectors and a column that lie in memory."""

    units: Floats
    group: npt.NDArray[np.int64]
    passing: int

    def ask(self, question: Floats) -> None:
        """Filter, score what passes (gathered where that is less than an eighth), choose the best."""
        mask: Bools = self.group < self.passing
        rows = np.flatnonzero(mask)
        if len(rows) * 8 < len(mask):
            values = np.vecdot(self.units[rows], question)
        else:
            values = np.vecdot(self.units, question)[rows]
        np.argpartition(-values, min(K, len(values) - 1))[:K]

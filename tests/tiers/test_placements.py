"""The same question has the same answer wherever the records live: real records, real tiers, fifty placements."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.tiers import placements
from tests.tiers.placements import FILTERS
from tiers import index as index_module
from tiers import segment
from tiers.tier import Query

PLACEMENTS, K = 50, 10
EXACT_EVERY = 10  # placements ask each tenth question exactly: that fetches every candidate, which is slow


async def test_answers_do_not_depend_on_where_records_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With exact=true they are NumPy's, ids, order and bits of the scores; without, recall@10 ≥ 0.99 in each."""
    monkeypatch.setattr(segment, "SEGMENT_ROWS", 1_024)
    monkeypatch.setattr(index_module, "SEGMENT_ROWS", 1_024)
    async with placements.opened(tmp_path) as places:
        questions = places.corpus.questions
        truth = {
            (at, where): places.corpus.truth(q, n, K) for at, q in enumerate(questions) for where, n in FILTERS.items()
        }
        for seed in range(PLACEMENTS):
            placement = await places.placed(seed)
            assert min(placement.homes()) > 200, "every tier has its share"
            assert placement.index.codebook is not None
            found = dict.fromkeys(FILTERS, 0)
            for (at, where), expected in truth.items():
                query = Query(vector=questions[at], k=K, filter=where)
                hits = await places.ask(placement, query)
                found[where] += len({(hit.row.id, hit.score) for hit in hits} & set(expected))
                if at % EXACT_EVERY == seed % EXACT_EVERY:
                    hits = await places.ask(placement, replace(query, exact=True))
                    assert expected == [(hit.row.id, hit.score) for hit in hits], (seed, at, where)
            assert min(found.values()) >= 0.99 * K * len(questions), (seed, found)
            await placement.hot.cleanup()

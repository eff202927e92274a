"""The same question has the same answer wherever the records live: real records, real tiers, fifty placements."""

from __future__ import annotations

from pathlib import Path

import pytest

from consumers import coding
from tests.tiers import placements
from tests.tiers.placements import EXACT_ROWS, FILTERS
from tiers import index as index_module
from tiers import segment
from tiers.tier import Query

PLACEMENTS, K = 50, 10
CROWDED = -1  # the place of the question that only an exact search can answer


async def test_answers_do_not_depend_on_where_records_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With exact=true they are NumPy's, ids, order and bits of the scores; without, recall@10 ≥ 0.99 in each."""
    monkeypatch.setattr(segment, "SEGMENT_ROWS", 1_024)
    monkeypatch.setattr(index_module, "SEGMENT_ROWS", 1_024)
    monkeypatch.setattr(coding, "PACK_ROWS", 100)
    async with placements.opened(tmp_path) as places:
        questions = places.corpus.questions
        asked = [*questions, places.corpus.crowded]
        truth = {
            (at, where): places.corpus.truth(question, ranks, K)
            for at, question in [*enumerate(questions), (CROWDED, asked[CROWDED])]
            for where, ranks in FILTERS.items()
        }
        for seed in range(PLACEMENTS):
            placement = await places.placed(seed)
            assert min(placement.homes()) > 150, "every tier has its share"
            assert all(part.packed for part in placement.index.segments()[:-1]), "most are found by their codes"
            assert placement.hot.snapshot().rows <= EXACT_ROWS + 64, "in hot too"
            for where in FILTERS:
                queries = [Query(vector=question, k=K, filter=where) for question in questions]
                found = [
                    set(await places.ask(placement, query)) & set(truth[at, where]) for at, query in enumerate(queries)
                ]
                assert sum(map(len, found)) >= 0.99 * K * len(questions), (seed, where)
                at = CROWDED if where is None and seed % 2 else seed % len(questions)
                query = Query(vector=asked[at], k=K, filter=where, exact=True)
                assert truth[at, where] == await places.ask(placement, query), (seed, at, where)
            await placement.hot.cleanup()

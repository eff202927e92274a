"""Scores and the exact selection of the best."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiers import rerank, score
from tiers.placed import Located
from tiers.tier import TierName

pytestmark = pytest.mark.unit

QUICK = settings(max_examples=150, deadline=None)
VALUES = st.sampled_from([-np.inf, -1.0, -0.5, 0.0, 0.25, 1.0, 2.0]) | st.floats(-10, 10, width=32)


@QUICK
@given(st.lists(st.tuples(VALUES, st.booleans()), max_size=40), st.integers(1, 50))
def test_top_is_the_head_of_a_full_sort(cells, k):
    """The k best are those of sorting everything by score and position, ties, -inf and k beyond the rows included."""
    values = np.array([value for value, _ in cells], np.float32)
    mask = np.array([kept for _, kept in cells], bool)
    expected = sorted(np.flatnonzero(mask).tolist(), key=lambda at: (-values[at], at))[:k]

    assert expected == score.top(values, mask, k).tolist()


def test_top_of_nothing_is_nothing():
    """With every row masked, or no rows, there is no best."""
    assert score.top(np.ones(3, np.float32), np.zeros(3, bool), 2).tolist() == []
    assert score.top(np.zeros(0, np.float32), np.zeros(0, bool), 2).tolist() == []


def test_ties_go_to_the_earlier_position():
    """Among equals the first positions are chosen, not some."""
    assert score.top(np.ones(1_000, np.float32), np.ones(1_000, bool), 3).tolist() == [0, 1, 2]


VECTORS = st.lists(
    st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3).filter(lambda v: max(map(abs, v)) > 1e-3),
    min_size=1,
    max_size=10,
).map(lambda rows: np.array(rows, np.float32))


@QUICK
@given(VECTORS)
def test_cosine_is_the_cosine(vectors):
    """Under "cosine" the score is the dot product of the unit vectors, 1 for the query itself."""
    query = vectors[0]
    exact = vectors.astype(np.float64)
    expected = exact @ exact[0] / (np.linalg.norm(exact, axis=1) * np.linalg.norm(exact[0]))
    found = score.scores(query, vectors, "cosine")

    assert np.float32 == found.dtype
    np.testing.assert_allclose(found, expected, atol=1e-5)


@QUICK
@given(VECTORS)
def test_dot_is_the_dot_product(vectors):
    """Under "dot" the score is the plain dot product, lengths included."""
    exact = vectors.astype(np.float64)
    expected = exact @ exact[0]

    np.testing.assert_allclose(score.scores(vectors[0], vectors, "dot"), expected, rtol=1e-4, atol=1e-2)


@QUICK
@given(VECTORS, st.floats(0.125, 8))
def test_the_length_of_the_query_does_not_matter_to_cosine(vectors, factor):
    """A longer query has the same cosine scores."""
    expected = score.scores(vectors[0], vectors, "cosine")

    np.testing.assert_allclose(score.scores(vectors[0] * np.float32(factor), vectors, "cosine"), expected, atol=1e-5)


@pytest.mark.parametrize("metric", score.METRICS)
def test_a_row_of_zeros_scores_zero(metric):
    """The row of a tombstone, if a scan meets one, scores 0 and never NaN."""
    found = score.scores(np.array([1, 2], np.float32), np.zeros((1, 2), np.float32), metric)

    assert found.tolist() == [0.0]


def test_a_score_does_not_depend_on_the_rows_beside_it():
    """One vector has the same score to the last bit alone, in a batch, and at any place of it."""
    random = np.random.default_rng(1)
    vectors = random.normal(size=(257, 33)).astype(np.float32)
    query = random.normal(size=33).astype(np.float32)
    together = score.scores(query, vectors, "cosine")
    alone = [score.scores(query, vectors[at : at + 1], "cosine")[0] for at in range(len(vectors))]

    assert together.tolist() == [float(value) for value in alone]


def test_the_nearest_come_first_and_ties_by_id():
    """Equal scores are ordered by id, whatever their tier and the order they were fetched in."""
    vector = np.array([1, 0], np.float32)
    near = [
        rerank.Near(score, Located(name, 1, 0, 0, tier, vector))
        for name, tier, score in zip("cabd", TierName, (0.5, 1.0, 1.0, 2.0), strict=True)
    ]

    assert list("dabc") == [each.found.id for each in rerank.ordered(near)]


@QUICK
@given(
    st.integers(0, 3_000),
    st.integers(1, 60),
    st.integers(0, 1 << 32),
    st.sampled_from([None, np.float32([-np.inf, np.nan, -1.5, 0, 0.25, 2, np.inf])]),
)
def test_the_highest_are_those_of_a_full_sort(count, k, seed, some):
    """By value, then by position; ties, infinities and NaNs among them: what is -inf or NaN never is one."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(count).astype(np.float32) if some is None else rng.choice(some, count)
    at = np.flatnonzero(values > -np.inf)
    expected = at[np.lexsort((at, -values[at]))][:k]

    assert np.array_equal(expected, score.highest(values, k))

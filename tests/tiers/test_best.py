"""Which candidates are worth a fetch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiers.best import BASIS, Best, Candidates, merged

pytestmark = pytest.mark.unit

K, FIRST, COUNT = 3, 20, 60


def candidates(values: np.ndarray, *, approximate: bool = True) -> Candidates:
    """Return candidates of one array in the order of their values."""
    ids = [f"id-{at}" for at in range(len(values))]
    return merged([Best(ids, np.arange(len(values)), np.arange(len(values)), values, approximate)], len(values))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.001, 0.3), st.floats(-0.2, 0.2), st.floats(0.5, 2))
def test_what_is_left_out_is_not_among_the_best(seed: int, noise: float, shift: float, factor: float) -> None:
    """With errors bounded by two deviations of those that were seen, the k best are all fetched, whatever the bias."""
    random = np.random.default_rng(seed)
    values = np.sort(random.random(COUNT).astype(np.float32) * np.float32(0.2))[::-1]  # near each other
    wrong = noise * np.where(np.arange(COUNT) % 2, 1.0, -1.0)
    wrong[FIRST:] = 1.9 * noise
    exact = (values * factor + shift + wrong).astype(np.float32)
    found = candidates(values).likely(FIRST, exact[:FIRST], np.arange(FIRST), factor, K)

    best = set(np.argsort(-exact, kind="stable")[:K].tolist())
    assert best <= set(range(FIRST)) | set(found.tolist())
    assert (found >= FIRST).all()


def test_codes_that_are_nearly_right_need_no_second_fetch() -> None:
    """Where the first ones were scored as their codes said, none of the others can be better."""
    values = np.linspace(1, 0, COUNT, dtype=np.float32)

    assert [] == candidates(values).likely(FIRST, values[:FIRST], np.arange(FIRST), 1.0, K).tolist()


def test_vectors_are_not_suspected_of_what_codes_are_wrong_by() -> None:
    """A value that was computed from a vector is right: only candidates by code are given the margin."""
    values = np.linspace(1, 0.9, COUNT, dtype=np.float32)
    ids = [f"id-{at}" for at in range(COUNT)]
    halves = [
        Best(ids, np.arange(COUNT), np.arange(at, COUNT, 2), values[at::2], approximate)
        for at, approximate in ((0, True), (1, False))
    ]
    found = merged(halves, COUNT)
    coded = np.array([halves[array].approximate for array in found.of.tolist()])
    exact = np.where(coded[:40], values[:40] + np.where(np.arange(40) % 4, 0.05, -0.05), values[:40])
    likely = found.likely(40, exact.astype(np.float32), np.arange(40), 1.0, K)

    assert len(likely)
    assert coded[likely].all()


@pytest.mark.parametrize("seen", [K - 1, BASIS - 1])
def test_too_few_to_learn_from_leave_nothing_out(seen: int) -> None:
    """Where most of the first ones were gone, all the others are fetched."""
    values = np.linspace(1, 0, COUNT, dtype=np.float32)
    found = candidates(values).likely(FIRST, values[:seen], np.arange(seen), 1.0, K)

    assert list(range(FIRST, COUNT)) == found.tolist()


def test_an_id_that_two_scans_name_counts_once() -> None:
    """By its better place, with the version that the scan saw there."""
    two = [
        Best(["a", "b"], np.array([1, 2]), np.array([0, 1]), np.array([0.5, 0.4], np.float32)),
        Best(["b", "c"], np.array([7, 3]), np.array([0, 1]), np.array([0.9, 0.1], np.float32)),
    ]

    assert {"b": (7, 0), "a": (1, 1), "c": (3, 3)} == merged(two, 4).at(np.arange(4))

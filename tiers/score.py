"""The one function that says how near two vectors are, and the exact selection of the nearest. Pure.

Every score that leaves the system comes from `scores` on float32 vectors on the host, so that the same question has
the same answer wherever the records lie.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tiers.arrays import Floats

METRICS = ("cosine", "dot")


def scales(vectors: Floats, metric: str) -> Floats:
    """Return the factor that turns a dot product with each row into its score, but for the query's own factor."""
    if metric == "dot":
        return np.ones(len(vectors), np.float32)
    norms = np.sqrt(np.vecdot(vectors, vectors))
    return np.divide(np.float32(1), norms, out=np.zeros(len(vectors), np.float32), where=norms > 0)


def scores(query: Floats, vectors: Floats, metric: str) -> Floats:
    """Return the score of each row of float32[rows, dim] for the query float32[dim]; higher is nearer."""
    query_scale = scales(query[None, :], metric)[0]
    return np.asarray(np.vecdot(vectors, query) * scales(vectors, metric) * query_scale, np.float32)


SPARSE = 8  # where fewer than one row in so many is wanted, gathering them reads less than scanning all


def nearest(
    matrix: Floats, scale: Floats, mask: npt.NDArray[np.bool_], query: Floats, k: int
) -> tuple[npt.NDArray[np.intp], Floats]:
    """Return (rows, values) of the k best of float32[rows, dim] where `mask`, best first; values lack the query's own.

    One thread reads at memory bandwidth with np.vecdot, 2.2 times OpenBLAS's gemv (measurements, §2b).
    """
    rows = np.flatnonzero(mask)
    if len(rows) * SPARSE < len(mask):
        values = np.vecdot(matrix[rows], query) * scale[rows]
        at = top(values, np.ones(len(rows), bool), k)
        return rows[at], values[at]
    values = np.vecdot(matrix, query) * scale
    at = top(values, mask, k)
    return at, values[at]


def top(values: Floats, mask: npt.NDArray[np.bool_], k: int) -> npt.NDArray[np.intp]:
    """Return the positions of the k highest `values` where `mask`, highest first, ties by position.

    Rows that equal the k-th value are all considered, so that the choice among ties is by position and not by chance.
    """
    rows = np.flatnonzero(mask)
    found = values[rows]
    if len(rows) > k:
        threshold = np.partition(found, len(rows) - k)[len(rows) - k]
        keep = found >= threshold
        rows, found = rows[keep], found[keep]
    return rows[np.argsort(-found, kind="stable")][:k]


BLOCK = 64  # values whose highest is looked at first


def highest(values: Floats, k: int) -> npt.NDArray[np.intp]:
    """Return the positions of the k highest `values` beyond -inf, highest first, ties by position.

    The k-th highest of the blocks' own highest is a value that k reach: what is below it need not be looked at.
    """
    blocks = values[: len(values) // BLOCK * BLOCK].reshape(-1, BLOCK).max(axis=1)
    least = -np.inf if len(blocks) < k else float(np.partition(blocks, len(blocks) - k)[len(blocks) - k])
    rows = np.flatnonzero(values >= least if least > -np.inf else values > -np.inf)
    return rows[top(values[rows], np.ones(len(rows), bool), k)]

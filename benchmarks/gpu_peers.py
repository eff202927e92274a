"""What else scans exactly or nearly so: the same questions over the same rows. What is not installed is left out.

A peer is built from float32[rows, dim] on the host and answers float32[questions, dim] with int[questions, k]. What it
takes to build is told, and what it takes until a new row is found (`fresh`), which hot answers by one copy.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Search = Callable[[npt.NDArray[np.float32], int], npt.NDArray[Any]]


class Peer(NamedTuple):
    """One that is built: how it searches, and how it takes in more rows (all rows given, the new ones last)."""

    search: Search
    add: Callable[[npt.NDArray[np.float32], int], None]


def numpy_exact(rows: npt.NDArray[np.float32]) -> Peer:
    """NumPy: one product, argpartition; a few questions at a time, or the scores would not fit."""
    held = [rows]

    def search(questions: npt.NDArray[np.float32], k: int) -> npt.NDArray[Any]:
        some = (questions[at : at + 64] @ held[0].T for at in range(0, len(questions), 64))
        return np.concatenate([np.argpartition(-scores, k - 1, axis=1)[:, :k] for scores in some])

    return Peer(search, lambda every, _: held.__setitem__(0, every))


def faiss_flat(rows: npt.NDArray[np.float32]) -> Peer:
    """FAISS on the CPU, as many threads as it has been given."""
    faiss = importlib.import_module("faiss")
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    return Peer(lambda questions, k: index.search(questions, k)[1], lambda every, new: index.add(every[-new:]))


def cupy_exact(rows: npt.NDArray[np.float32]) -> Peer:
    """CuPy as one would write it first: one product, argpartition (which sorts)."""
    xp = importlib.import_module("cupy")
    held = [xp.asarray(rows)]

    def search(questions: npt.NDArray[np.float32], k: int) -> npt.NDArray[Any]:
        scores = xp.asarray(questions) @ held[0].T
        return np.asarray(xp.asnumpy(xp.argpartition(-scores, k - 1, axis=1)[:, :k]))

    return Peer(search, lambda every, _: held.__setitem__(0, xp.asarray(every)))


def cuvs_brute_force(rows: npt.NDArray[np.float32]) -> Peer:
    """cuVS, exact; a new row means to build again."""
    xp = importlib.import_module("cupy")
    brute_force = importlib.import_module("cuvs.neighbors.brute_force")
    held = [brute_force.build(xp.asarray(rows), metric="inner_product")]

    def search(questions: npt.NDArray[np.float32], k: int) -> npt.NDArray[Any]:
        _, found = brute_force.search(held[0], xp.asarray(questions), k)
        return np.asarray(xp.asnumpy(xp.asarray(found)))

    def add(every: npt.NDArray[np.float32], _: int) -> None:
        held[0] = brute_force.build(xp.asarray(every), metric="inner_product")

    return Peer(search, add)


def cuvs_cagra(rows: npt.NDArray[np.float32]) -> Peer:
    """CuVS' graph, approximate; a new row means to build again."""
    xp = importlib.import_module("cupy")
    cagra = importlib.import_module("cuvs.neighbors.cagra")
    parameters = cagra.IndexParams(metric="inner_product")
    held = [cagra.build(parameters, xp.asarray(rows))]

    def search(questions: npt.NDArray[np.float32], k: int) -> npt.NDArray[Any]:
        _, found = cagra.search(cagra.SearchParams(), held[0], xp.asarray(questions), k)
        return np.asarray(xp.asnumpy(xp.asarray(found)))

    def add(every: npt.NDArray[np.float32], _: int) -> None:
        held[0] = cagra.build(parameters, xp.asarray(every))

    return Peer(search, add)


PEERS: dict[str, tuple[str, Callable[[npt.NDArray[np.float32]], Peer]]] = {
    "numpy": ("numpy", numpy_exact),
    "faiss-cpu": ("faiss", faiss_flat),
    "cupy matmul + argpartition": ("cupy", cupy_exact),
    "cuvs brute force": ("cuvs", cuvs_brute_force),
    "cuvs cagra": ("cuvs", cuvs_cagra),
}


def installed() -> Iterator[tuple[str, Callable[[npt.NDArray[np.float32]], Peer] | None]]:
    """Yield each peer, None where its library does not import."""
    for name, (module, build) in PEERS.items():
        with _absent() as absent:
            importlib.import_module(module)
        yield name, None if absent else build


@contextmanager
def _absent() -> Iterator[list[str]]:
    said: list[str] = []
    try:
        yield said
    except ImportError as error:
        said.append(str(error))

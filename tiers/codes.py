"""Product-quantised codes, by which a search scans what lies below hot: 4 bits for every two dimensions.

FAISS's fast scan ("IVF1,PQ<dim/2>x4fs": the IVF form, because that one takes a bitmap of rows) keeps 64 bytes a row at
256 dimensions and reads them 13 to 17 times faster than the exact vectors; what it finds is scored again exactly.
Source: Jégou, Douze, Schmid, "Product Quantization for Nearest Neighbor Search", 2011; André, Kermarrec, Le Scouarnec,
"Cache locality is not enough: high-performance nearest neighbor search with product quantization fast scan", 2015.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tiers import blocks, score
from tiers.blocks import BLOCK_ROWS, Bytes
from tiers.record import Floats, Int64s

TRAIN_ROWS_MAX = 50_000  # more do not change the recall measured on real embeddings
FEW_ROWS = 256  # of a segment: up to so many are read one by one, at 0.1 ms; a scan takes 0.1 to 0.4
ROW_ID_BYTES = 8  # FAISS keeps the row's number beside its code


def possible(dim: int) -> bool:
    """Say whether vectors of `dim` floats can be coded: two dimensions a code, and enough of them to be worth it."""
    return dim % 2 == 0 and dim >= 16


class Codebook:
    """A trained quantiser. Segments coded with different ones can be searched together: each keeps its own."""

    def __init__(self, trained: Any) -> None:
        self._trained = trained
        self.dim = int(trained.d)

    @classmethod
    def train(cls, vectors: Floats) -> Codebook:
        """Return a codebook for float32[rows, dim], already scaled as scores want them. About a second of one core."""
        faiss = _faiss()
        index = faiss.index_factory(vectors.shape[1], f"IVF1,PQ{vectors.shape[1] // 2}x4fs", faiss.METRIC_INNER_PRODUCT)
        index.train(np.ascontiguousarray(vectors[:TRAIN_ROWS_MAX], np.float32))
        return cls(index)

    @classmethod
    def from_bytes(cls, data: bytes) -> Codebook:
        """Return the codebook that `to_bytes` wrote; the caller vouches for the bytes."""
        return cls(_faiss().deserialize_index(np.frombuffer(data, np.uint8)))

    def to_bytes(self) -> bytes:
        """Return it as bytes."""
        data: bytes = _faiss().serialize_index(self._trained).tobytes()
        return data

    @cached_property
    def id(self) -> str:
        """A name that no other codebook has: codes mean nothing without theirs."""
        return hashlib.blake2b(self.to_bytes(), digest_size=8).hexdigest()

    @property
    def code_bytes(self) -> int:
        """Bytes of one code."""
        return int(self._trained.pq.code_size)

    def encode(self, vectors: Floats) -> Bytes:
        """Return uint8[rows, code_bytes] of float32[rows, dim]. 210,000 rows/s of one core at 256 dimensions."""
        _faiss()
        codes: Bytes = self._trained.pq.compute_codes(np.ascontiguousarray(vectors, np.float32))
        return codes

    def decode(self, codes: Bytes) -> Floats:
        """Return what codes stand for, float32[rows, dim]; coding that again gives the same codes."""
        vectors: Floats = self._trained.pq.decode(np.ascontiguousarray(codes))
        return vectors

    def empty(self) -> Packed:
        """Return codes of no rows."""
        nothing = np.zeros((0, self.code_bytes, BLOCK_ROWS), np.uint8)
        return Packed(self, np.zeros(0, np.int64), nothing)

    def index(self, numbers: Int64s, packed: Bytes) -> Any:
        """Return FAISS's index of packed codes and their row numbers; both are copied."""
        faiss = _faiss()
        index = faiss.clone_index(self._trained)
        if len(numbers):  # into an empty list whole blocks go as they are
            lists = faiss.downcast_InvertedLists(index.invlists)
            lists.add_entries(0, len(numbers), faiss.swig_ptr(numbers), faiss.swig_ptr(packed.reshape(-1)))
            index.ntotal = len(numbers)
        return index


class Chosen:
    """Rows of a segment that a scan of codes may find: `mask`, and the same as FAISS wants it, made once."""

    def __init__(self, mask: npt.NDArray[np.bool_]) -> None:
        self.mask = mask

    @cached_property
    def count(self) -> int:
        """How many rows."""
        return int(np.count_nonzero(self.mask))

    @cached_property
    def asked(self) -> Any:
        """FAISS's parameters of a search among these rows; threads may share them."""
        faiss = _faiss()
        selector = faiss.IDSelectorBitmap(np.packbits(self.mask, bitorder="little"))
        return faiss.SearchParametersIVF(sel=selector, nprobe=1)


class Packed:
    """Codes of rows of one segment. Never changed: `plus` copies, so that a scan may go on meanwhile."""

    def __init__(self, codebook: Codebook, numbers: Int64s, packed: Bytes) -> None:
        self.codebook = codebook
        self.rows = len(numbers)
        self._index = codebook.index(numbers, packed)

    @property
    def bytes(self) -> int:
        """Bytes of codes and row numbers."""
        return self.rows * (self.codebook.code_bytes + ROW_ID_BYTES)

    @property
    def numbers(self) -> Int64s:
        """The row of each code; FAISS's own memory, valid while this object lives."""
        if not self.rows:
            return np.zeros(0, np.int64)
        faiss = _faiss()
        found: Int64s = faiss.rev_swig_ptr(faiss.downcast_InvertedLists(self._index.invlists).get_ids(0), self.rows)
        return found

    @property
    def _blocks(self) -> Bytes:
        """The packed codes, uint8[blocks, code_bytes, 32]; FAISS's own memory, valid while this object lives."""
        size = self.codebook.code_bytes
        if not self.rows:
            return np.zeros((0, size, BLOCK_ROWS), np.uint8)
        faiss, count = _faiss(), -(-self.rows // BLOCK_ROWS)
        lists = faiss.downcast_InvertedLists(self._index.invlists)
        flat: Bytes = faiss.rev_swig_ptr(lists.get_codes(0), count * size * BLOCK_ROWS)
        return flat.reshape(count, size, BLOCK_ROWS)

    def plus(self, rows: npt.NDArray[np.intp], vectors: Floats) -> Packed:
        """Return these codes and those of more rows: numbers and float32[rows, dim]. 200,000 rows/s of one core."""
        return self.plus_codes(rows, self.codebook.encode(vectors))

    def plus_codes(self, rows: npt.NDArray[np.intp], codes: Bytes) -> Packed:
        """Return these codes and more: numbers and uint8[rows, code_bytes] of the same codebook. Millions a second."""
        whole = self.rows - self.rows % BLOCK_ROWS
        last = blocks.take(self._blocks, np.arange(whole, self.rows))
        packed = np.concatenate([self._blocks[: whole // BLOCK_ROWS], blocks.pack(np.concatenate([last, codes]))])
        return Packed(self.codebook, np.concatenate([self.numbers, rows.astype(np.int64)]), packed)

    def only(self, rows: npt.NDArray[np.intp]) -> Packed:
        """Return the codes of these rows alone."""
        return self.codebook.empty().plus_codes(rows, self.codes(rows))

    def best(self, chosen: Chosen, queries: Floats, k: int) -> list[tuple[npt.NDArray[np.intp], Floats]]:
        """Return (rows, approximate scores without the query's factor) of the k best rows chosen, best first.

        One for each of float32[queries, dim].
        """
        if chosen.count <= FEW_ROWS and self._in_order:
            return self._best_of_few(np.flatnonzero(chosen.mask), queries, k)
        values, rows = self._index.search(queries, min(k, self.rows), params=chosen.asked)
        return [(at[at >= 0].astype(np.intp), found[at >= 0]) for at, found in zip(rows, values, strict=True)]

    def _best_of_few(
        self, rows: npt.NDArray[np.intp], queries: Floats, k: int
    ) -> list[tuple[npt.NDArray[np.intp], Floats]]:
        """Return what `best` does, from these rows' codes alone: FAISS reads all codes, whatever the mask."""
        at = np.minimum(np.searchsorted(self.numbers, rows), self.rows - 1)
        here = self.numbers[at] == rows
        rows, vectors = rows[here], self.codebook.decode(blocks.take(self._blocks, at[here]))
        found = []
        for query in queries:
            values = np.vecdot(vectors, query)
            best = score.top(values, np.ones(len(rows), bool), k)
            found.append((rows[best], values[best]))
        return found

    @cached_property
    def _in_order(self) -> bool:
        return bool(self.rows) and bool((np.diff(self.numbers) > 0).all())

    def codes(self, rows: npt.NDArray[np.intp]) -> Bytes:
        """Return uint8[rows, code_bytes] of rows that are here."""
        numbers = self.numbers
        at = np.zeros(int(numbers.max(initial=0)) + 1, np.intp)
        at[numbers] = np.arange(self.rows)
        return blocks.take(self._blocks, at[rows])

    def vectors(self, rows: npt.NDArray[np.intp]) -> Floats:
        """Return what the codes of these rows stand for, float32[rows, dim]; coding them again gives the same codes."""
        return self.codebook.decode(self.codes(rows))


def _faiss() -> Any:
    """Return FAISS, one thread for each caller: queries and segments are what runs side by side."""
    import faiss  # noqa: PLC0415 - 60 MB that whoever never codes need not load

    faiss.omp_set_num_threads(1)
    return faiss

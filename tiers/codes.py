"""Product-quantised codes, by which a search scans what lies below hot: 4 bits for every two dimensions.

FAISS's fast scan ("IVF1,PQ<dim/2>x4fs": the IVF form, because that one takes a bitmap of rows) keeps 64 bytes a row at
256 dimensions and reads them 13 to 17 times faster than the exact vectors; what it finds is scored again exactly.
Source: Jégou, Douze, Schmid, "Product Quantization for Nearest Neighbor Search", 2011; André, Kermarrec, Le Scouarnec,
"Cache locality is not enough: high-performance nearest neighbor search with product quantization fast scan", 2015.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tiers.record import Floats

TRAIN_ROWS_MAX = 50_000  # more do not change the recall measured on real embeddings
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

    def empty(self) -> Packed:
        """Return codes of no rows."""
        return Packed(self._trained, 0)


class Packed:
    """Codes of rows of one segment. Never changed: `plus` copies, so that a scan may go on meanwhile."""

    def __init__(self, index: Any, rows: int) -> None:
        self._index = index
        self.rows = rows

    @property
    def bytes(self) -> int:
        """Bytes of codes and row numbers."""
        return self.rows * (int(self._index.code_size) + ROW_ID_BYTES)

    def plus(self, rows: npt.NDArray[np.intp], vectors: Floats) -> Packed:
        """Return these codes and those of more rows: numbers and float32[rows, dim]. 200,000 rows/s of one core."""
        faiss = _faiss()
        index = faiss.clone_index(self._index)
        index.add_with_ids(np.ascontiguousarray(vectors, np.float32), rows.astype(np.int64))
        return Packed(index, self.rows + len(rows))

    def best(self, mask: npt.NDArray[np.bool_], queries: Floats, k: int) -> list[tuple[npt.NDArray[np.intp], Floats]]:
        """Return (rows, approximate scores without the query's factor) of the k best rows where `mask`, best first.

        One for each of float32[queries, dim].
        """
        faiss = _faiss()
        selector = faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
        asked = faiss.SearchParametersIVF(sel=selector, nprobe=1)
        values, rows = self._index.search(queries, min(k, self.rows), params=asked)
        return [(at[at >= 0].astype(np.intp), found[at >= 0]) for at, found in zip(rows, values, strict=True)]

    def vectors(self, rows: npt.NDArray[np.intp]) -> Floats:
        """Return what the codes of these rows stand for, float32[rows, dim]; coding them again gives the same codes."""
        index = _faiss().clone_index(self._index)
        index.make_direct_map()
        found: Floats = index.reconstruct_batch(rows.astype(np.int64))
        return found


def _faiss() -> Any:
    """Return FAISS, one thread for each caller: queries and segments are what runs side by side."""
    import faiss  # noqa: PLC0415 - 60 MB that whoever never codes need not load

    faiss.omp_set_num_threads(1)
    return faiss

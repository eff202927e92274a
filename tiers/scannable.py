"""What searches scan of the index's entries: codes, and vectors that have none yet, within a bound."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiers import packing, record, score
from tiers.blocks import Bytes
from tiers.codes import Codebook
from tiers.entries import Entries
from tiers.record import Floats, Int64s


class Coded(NamedTuple):
    """Codes by the index's codebook that are known already: `mask` says of which rows, `codes` are theirs."""

    mask: npt.NDArray[np.bool_]
    codes: Bytes


class Scannable:
    """`codebook` is that of new codes. Numbers are those of entries; vectors float32[rows, dim]."""

    def __init__(self, entries: Entries, metric: str, bytes_limit: int) -> None:
        self._entries, self._metric, self.bytes_limit = entries, metric, bytes_limit
        self.codebook: Codebook | None = None
        self._unmeasured = 0  # bytes added since the limit was looked at

    def enter(self, batch: pa.RecordBatch, numbers: Int64s, coded: Coded | None) -> None:
        """Let searches find the records of a batch: those `coded` by their codes, the others by their vectors."""
        without = record.deleted_of(batch)
        if coded is not None:
            self._adopt(numbers[coded.mask], coded.codes)
            without = without | coded.mask
        if not without.all():
            self.encode(numbers[~without], record.vectors_of(batch)[~without])

    def encode(self, numbers: Int64s, vectors: Floats) -> None:
        """Let searches find these entries by their vectors; they get codes in the background."""
        self._keep(numbers, vectors * score.scales(vectors, self._metric)[:, None])
        self._measure(vectors.nbytes)

    def compact(self, rows_max: int) -> int:
        """Move some rows of one mostly dead segment to the tail, with what searches scan; says how much was done."""
        done, old, rows, numbers = self._entries.compact(rows_max)
        if old is not None:
            to = dict(zip(rows.tolist(), numbers.tolist(), strict=True))
            for coded, vectors in old.coded_vectors(rows):
                self._keep(np.array([to[row] for row in coded.tolist()], np.int64), vectors)
        return done

    def _keep(self, numbers: Int64s, scaled: Floats) -> None:
        for segment, at, rows in self._entries.by_segment(numbers):
            fresh = ~segment.coded[rows]
            if fresh.any():
                segment.encode(rows[fresh], scaled[at[fresh]])

    def _adopt(self, numbers: Int64s, codes: Bytes) -> None:
        """Take codes; searches find the entries once the segments have packed them."""
        for segment, at, rows in self._entries.by_segment(numbers):
            segment.adopt(rows, codes[at])
        self._measure(codes.nbytes)

    def _measure(self, added: int) -> None:
        """Keep within the limit; looked at when a 256th of it was added, so that it costs next to nothing."""
        self._unmeasured += added
        margin = self.bytes_limit // 256
        if self.bytes_limit and self._unmeasured > margin:
            self._unmeasured = 0
            packing.shed(self._entries.segments(), self.bytes_limit - margin)

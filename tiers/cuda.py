"""Hot's memory on a GPU, over CuPy: copies in, exact scans, and the k best back, on one stream of one thread.

In: vectors are written, scaled to length one where the metric is cosine, into one of two pinned buffers, and one
asynchronous copy takes them to their slots. The stream keeps the order: a scan that is asked later sees them.
Out: of each tile of rows the scores of all questions (few: our kernel, which reads wanted rows only; many: one product
by cuBLAS, in float32 without TF32), then the best of them (kernels/scan.cu). What the host gets is the k best, once.

Everything is allocated at start, out of a pool that may hold no more. Vectors are stored as float32 or float16; scores
are summed in float32; what a search returns is scored again on the host (tiers/score.py) by the vectors as they came.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from tiers import kernels, score, tiling
from tiers.arrays import Floats, Int64s
from tiers.cuda_budget import Budget
from tiers.cuda_errors import told
from tiers.masks import Masks
from tiers.part import Ask, Nearest, Shape
from tiers.staging import Double, Library, Staging, filled

STAGING_BYTES = 4 << 20  # of each of the two buffers: a search waits for at most so much of a copy
FLOAT32, FLOAT16 = 0, 2  # cudaDataType_t
LEAST = np.float32(-np.inf)
FOUND_WORDS = tiling.FOUND_BYTES // 4

Words = npt.NDArray[np.int32]


class CudaArena:
    """Created on any thread; from then on one thread uses it. ServiceMissing, SettingsError."""

    asks_max = Masks.COUNT

    def __init__(self, library: Library, shape: Shape) -> None:
        xp = library.xp
        self._library, self._shape = library, shape
        self._budget = budget = Budget.of(shape)
        with told(xp):
            budget.check(*xp.cuda.runtime.memGetInfo())
            self._blas = xp.cuda.cublas
            self._stream = xp.cuda.Stream(non_blocking=True)
            self._pool = xp.cuda.MemoryPool()
            self._pool.set_limit(size=budget.pool_bytes)
            with self._stream, xp.cuda.using_allocator(self._pool.malloc):
                self._vectors = xp.zeros((budget.rows, budget.columns), budget.dtype)
                self._asked = xp.zeros(budget.asked_words, np.int32)
                self._scratch = xp.empty(budget.scratch_words, np.int32)
                self._masks = Masks(library, shape.slabs, budget.slab_words)
                self._module = module = xp.RawModule(code=kernels.source(), options=kernels.OPTIONS)
                self._score = {
                    count: module.get_function(f"score_{budget.dtype}_{count}") for count in (1, kernels.FEW)
                }
                self._select_scores = module.get_function("select_scores")
                self._select_found = module.get_function("select_found")
                self._blocks_max = kernels.BLOCKS_EACH * xp.cuda.Device().attributes["MultiProcessorCount"]
                self._stream.synchronize()
        self.chunk_rows = max(1, STAGING_BYTES // (budget.columns * budget.dtype.itemsize))
        self._stages = Double(library, (self.chunk_rows, budget.columns), budget.dtype)
        self._asking = Staging(library, (budget.asked_words,), np.int32)
        self._answer = Staging(library, (budget.found_words,), np.int32, spin=True)
        self._one, self._zero = np.ones(1, np.float32), np.zeros(1, np.float32)

    @contextmanager
    def _using(self) -> Iterator[None]:
        """Work on the stream; should CuPy allocate anything by itself, it comes from hot's pool, or fails."""
        with told(self._library.xp), self._stream, self._library.xp.cuda.using_allocator(self._pool.malloc):
            yield

    # -- in ----------------------------------------------------------------------------------------------------------

    def put(self, start: int, vectors: Floats) -> None:
        """See Arena."""
        first = self._row(start)
        with self._using():
            for at in range(0, len(vectors), self.chunk_rows):
                some = vectors[at : at + self.chunk_rows]
                with self._stages.next().turn(self._stream) as staged:
                    self._write(staged[: len(some), : self._shape.dim], some)
                    self._vectors[first + at : first + at + len(some)].set(staged[: len(some)], stream=self._stream)

    def _write(self, target: npt.NDArray[Any], vectors: Floats) -> None:
        if self._shape.metric == "cosine":
            np.multiply(vectors, score.scales(vectors, "cosine")[:, None], out=target, casting="same_kind")
        else:
            target[...] = vectors

    def _row(self, slot: int) -> int:
        """Return where a slot lies: slabs begin at whole words of a mask."""
        slab, row = divmod(slot, self._shape.slab_rows)
        return slab * self._budget.slab_stride + row

    # -- out ---------------------------------------------------------------------------------------------------------

    def best(self, asks: Sequence[Ask]) -> list[list[Nearest]]:
        """See Arena."""
        assert len(asks) <= self.asks_max
        k = max(min(ask.k, sum(part.size for part in ask.parts)) for ask in asks)
        questions = np.concatenate([ask.questions for ask in asks])
        ask_of = np.repeat(np.arange(len(asks), dtype=np.int32), [len(ask.questions) for ask in asks])
        if k == 0:
            return [[Nearest(np.zeros(0, np.intp), np.zeros(0, np.float32))] * len(ask.questions) for ask in asks]
        runs = self._runs(asks)
        rows = sum(end - start for start, end in runs)
        found: list[Nearest] = []
        with self._using():
            self._masks.show([ask.parts for ask in asks], self._stream)
            while len(found) < len(questions):
                left = slice(len(found), None)
                tiles = tiling.together(len(questions[left]), rows, k, self._shape.scratch_bytes)
                found += self._pass(tiles, questions[left][: tiles.questions], ask_of[left], k, runs)
        answers = iter(found)
        return [[_first(next(answers), ask.k) for _ in ask.questions] for ask in asks]

    def _runs(self, asks: Sequence[Ask]) -> list[tuple[int, int]]:
        fills: dict[int, int] = {}
        for part in (part for ask in asks for part in ask.parts):
            fills[part.slab] = max(part.fill, fills.get(part.slab, 0))
        stride = self._budget.slab_stride
        return tiling.runs((slab * stride, slab * stride + fill) for slab, fill in sorted(fills.items()))

    def _pass(
        self, tiles: tiling.Tiles, questions: Floats, ask_of: Words, k: int, runs: list[tuple[int, int]]
    ) -> list[Nearest]:
        """Return the k best for each of these questions, which all tiles answer together."""
        count, places = len(questions), self._scratch
        asked, floors, owners = self._ask(tiles, questions, ask_of[:count])
        scores = places[: tiles.questions * tiles.rows]
        pool = places[len(scores) : len(scores) + tiles.questions * tiles.columns * FOUND_WORDS]
        end = len(scores) + len(pool)
        best = places[end : end + count * k * FOUND_WORDS]
        begin, last = k, runs[-1][1]
        for first, rows in tiling.cut(runs, tiles.rows):
            self._scores(tiles, asked, count, first, rows, scores)
            chunks = -(-rows // tiling.CHUNK)
            self._select_scores(
                (chunks, count), (kernels.THREADS,),
                (scores, np.int64(tiles.rows), np.int32(first), np.int32(rows), np.int32(tiling.CHUNK),
                 np.int32(tiles.keep), self._masks.device, np.int64(self._masks.words), owners, floors, pool,
                 np.int64(tiles.columns), np.int32(k)),
            )  # fmt: skip
            whole = first + rows == last
            self._select_found(
                (count,), (kernels.THREADS,),
                (pool, np.int64(tiles.columns), np.int32(begin), np.int32(k + chunks * tiles.keep), np.int32(k),
                 best if whole else pool, np.int64(k if whole else tiles.columns), floors),
            )  # fmt: skip
            begin = 0
        with self._answer.turn(self._stream) as host:
            best.get(stream=self._stream, out=host[: best.size], blocking=False)
        return self._named(self._answer.ready()[: best.size].reshape(count, k, FOUND_WORDS).copy())

    def _ask(self, tiles: tiling.Tiles, questions: Floats, ask_of: Words) -> tuple[Any, Any, Any]:
        """Send the questions, padded with empty ones to what a kernel takes; returns them, floors and mask numbers."""
        many = tiles.questions > kernels.FEW
        count = len(questions) if many else tiles.questions
        padded = np.zeros((count, self._budget.columns), self._budget.dtype if many else np.float32)
        padded[: len(questions), : questions.shape[1]] = questions
        with self._asking.turn(self._stream) as host:
            end = filled(host, 0, padded)  # first, since they are read 16 bytes at a time
            floors = filled(host, end, np.full(count, LEAST))
            owners = filled(host, floors, ask_of)
            self._asked[:owners].set(host[:owners], stream=self._stream)
        return self._asked[:end], self._asked[end:floors], self._asked[floors:owners]

    def _scores(self, tiles: tiling.Tiles, asked: Any, count: int, first: int, rows: int, scores: Any) -> None:
        """Put the scores of a tile's rows on the device: scores[question * tiles.rows + row - first]."""
        budget = self._budget
        if tiles.questions in self._score:
            warps = kernels.THREADS // kernels.LANES * kernels.ROWS
            self._score[tiles.questions](
                (min(-(-rows // warps), self._blocks_max),), (kernels.THREADS,),
                (self._vectors, np.int32(budget.row_bytes // 16), np.int32(first), np.int32(rows), asked,
                 self._masks.device, np.int64(self._masks.words), np.int32(self._masks.shown), scores,
                 np.int64(tiles.rows)),
            )  # fmt: skip
            return
        blas, kind = self._blas, FLOAT16 if budget.dtype == np.float16 else FLOAT32
        blas.gemmEx(  # as cuBLAS sees it, column by column: scores^T = vectors * questions^T
            self._library.xp.cuda.get_cublas_handle(), blas.CUBLAS_OP_T, blas.CUBLAS_OP_N, rows, count, budget.columns,
            self._one.ctypes.data, self._vectors.data.ptr + first * budget.row_bytes, kind, budget.columns,
            asked.data.ptr, kind, budget.columns,
            self._zero.ctypes.data, scores.data.ptr, FLOAT32, tiles.rows, blas.CUBLAS_COMPUTE_32F,
            blas.CUBLAS_GEMM_DEFAULT,
        )  # fmt: skip

    def _named(self, found: Words) -> list[Nearest]:
        """Return what the device found, as slots, best first; int32[questions, k, (value, row)]."""
        values, rows = found[:, :, 0].view(np.float32), found[:, :, 1]
        values = np.where(rows < 0, LEAST, values)
        order = np.argsort(-values, axis=1, kind="stable")  # they came by growing row
        rows, values = np.take_along_axis(rows, order, 1), np.take_along_axis(values, order, 1)
        stride = self._budget.slab_stride
        slots = (rows // stride) * self._shape.slab_rows + rows % stride
        counts = np.count_nonzero(rows >= 0, axis=1).tolist()
        return [Nearest(slots[at, :n].astype(np.intp), values[at, :n]) for at, n in enumerate(counts)]

    def vectors(self, slots: Int64s) -> Floats | None:  # noqa: ARG002 - see Arena
        """See Arena; the host has them in the batches that they came in."""
        return None

    def memory(self) -> dict[str, int]:
        """See Arena."""
        with self._using():
            free, total = self._library.xp.cuda.runtime.memGetInfo()
            return {
                "total": total,
                "free": free,
                "pool_used": self._pool.used_bytes(),
                "pool_held": self._pool.total_bytes(),
            }


def _first(found: Nearest, k: int) -> Nearest:
    return Nearest(found.slots[:k], found.values[:k])

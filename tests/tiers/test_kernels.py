"""The kernels of a scan: they compile for every GPU that we name, and the same file, run on the CPU, agrees with NumPy.

A mutant is the file with one bound, barrier, tie or mask taken away; each must fail the checks that the file passes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.tiers import nvrtc, shim
from tests.tiers.strict_stream import Block
from tiers import kernels
from tiers.kernels import FEW, THREADS

pytestmark = pytest.mark.unit

FOUND = np.dtype([("value", "<f4"), ("row", "<i4")])
GOOD = np.array((9e9, 5), FOUND)
NAMES = ("score_float32_1", "score_float32_8", "score_float16_1", "score_float16_8", "select_scores", "select_found")
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")  # A100, H100 and H200, B200
LOWEST = -np.inf
ROOT = Path(__file__).parent.parent.parent
KILLED = 9


# -- compiling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_kernels_compile_without_a_gpu(architecture):
    """NVRTC makes text and machine code of all of them, without a warning; no header is needed."""
    found = nvrtc.compiled(kernels.source(), architecture)

    assert "" == found.log.strip("\0")
    assert set(NAMES) == {name for name in NAMES if f".entry {name}(" in found.ptx}
    assert f".target {architecture}" in found.ptx
    assert len(found.cubin) > 10_000
    assert "#include" not in kernels.source()


def test_the_very_file_that_compiles_for_a_gpu_is_what_runs_here():
    """Hot, NVRTC and the CPU get the same bytes, which are package data."""
    file = Path(kernels.__file__).parent / "scan.cu"
    digest = sha256(file.read_bytes()).hexdigest()

    assert digest == shim.product().digest == nvrtc.compiled(kernels.source(), "sm_90").digest


def test_a_source_that_does_not_compile_is_refused():
    """The compiler is asked, and its answer read."""
    broken = kernels.source().replace("__syncthreads();", "__syncthreads()", 1)
    with pytest.raises(AssertionError, match="expected a"):
        nvrtc.compiled(broken, "sm_90")


def test_block_sizes_are_those_that_the_host_launches():
    """The numbers that Python needs are the file's own."""
    source = kernels.source()
    for name in ("THREADS", "LANES", "ROWS"):
        assert f"constexpr int {name} = {getattr(kernels, name)};" in source

    assert f"_{FEW}, Float32, {FEW})" in source


# -- scores ------------------------------------------------------------------------------------------------------------


class Guarded:
    """Arrays with guards around them, which read as excellent scores."""

    def __init__(self) -> None:
        self._blocks: list[Block] = []

    def of(self, array: np.ndarray) -> np.ndarray:
        block = Block(array.nbytes)
        self._blocks.append(block)
        copy = block.bytes.view(array.dtype).reshape(array.shape)
        copy[...] = array
        return copy

    def check(self) -> None:
        for block in self._blocks:
            block.check()


def words(mask: np.ndarray) -> np.ndarray:
    """bool[masks, rows] as bits, no more words than there must be."""
    packed = np.packbits(mask, axis=1, bitorder="little")
    out = np.zeros((len(mask), -(-mask.shape[1] // 32) * 4), np.uint8)
    out[:, : packed.shape[1]] = packed
    return out.view(np.uint32)


def pointers(*given) -> list[int]:
    return [each.ctypes.data if isinstance(each, np.ndarray) else each for each in given]


class ScoreCase(NamedTuple):
    rows: int
    dim: int
    questions: int
    stored: type = np.float32
    first: int = 0
    wanted: float = 1.0
    masks: int = 1
    blocks: int = 1


SCORE_CASES = [
    ScoreCase(1, 8, 1),
    ScoreCase(3, 8, 1),  # fewer rows than a warp takes
    ScoreCase(37, 72, 1, first=5, wanted=0.5),  # part of the lanes have columns, rows begin inside of a word
    ScoreCase(130, 256, 1, first=64, wanted=0.1, blocks=2),
    ScoreCase(70, 136, 3, wanted=0.6, masks=2),
    ScoreCase(33, 8, FEW, first=31, wanted=0.3, masks=3),
    ScoreCase(41, 264, 1, np.float16, first=3, wanted=0.7),
    ScoreCase(35, 16, FEW, np.float16, wanted=0.5, masks=2),
]


def check_scores(run: shim.Kernels, case: ScoreCase, order: int, seed: int = 1) -> None:
    """Scores of wanted rows are the products; others are left as they were."""
    rng, guarded = np.random.default_rng(seed), Guarded()
    total = case.first + case.rows
    vectors = guarded.of(rng.standard_normal((total, case.dim)).astype(case.stored))
    padded = 1 if case.questions == 1 else FEW
    questions = np.zeros((padded, case.dim), np.float32)
    questions[: case.questions] = rng.standard_normal((case.questions, case.dim))
    questions = guarded.of(questions)
    mask = rng.random((case.masks, total)) < case.wanted
    bits = guarded.of(words(mask))
    width = case.rows + 3
    scores = guarded.of(np.full((padded, width), 12345, np.float32))
    name = f"score_{np.dtype(case.stored)}_{padded}"
    loads = case.dim * np.dtype(case.stored).itemsize // 16
    given = pointers(vectors, loads, case.first, case.rows, questions, bits, bits.shape[1], case.masks, scores, width)
    run.launch(name, (case.blocks,), THREADS, given, order)

    guarded.check()
    wanted = mask.any(axis=0)[case.first :]
    expected = questions @ vectors[case.first :].astype(np.float32).T
    np.testing.assert_allclose(scores[:, : case.rows][:, wanted], expected[:, wanted], rtol=1e-4, atol=1e-4)
    assert (scores[:, : case.rows][:, ~wanted] == 12345).all()
    assert (scores[:, case.rows :] == 12345).all()


@pytest.mark.parametrize("order", range(shim.ORDERS))
@pytest.mark.parametrize("case", SCORE_CASES, ids=str)
def test_scores_are_numpys(case, order):
    """For every shape, mask and order of threads; rows that nobody wants are not even written."""
    check_scores(shim.product(), case, order)


def test_every_half_is_widened_as_numpy_does():
    """All finite float16 numbers, small ones without a leading one too."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = halves[np.isfinite(halves)]
    vectors = np.zeros((len(finite), 8), np.float16)
    vectors[:, 3] = finite
    question, scores = np.zeros((1, 8), np.float32), np.zeros((1, len(finite)), np.float32)
    question[0, 3] = 1
    bits = words(np.ones((1, len(finite)), bool))
    given = pointers(vectors, 1, 0, len(finite), question, bits, bits.shape[1], 1, scores, len(finite))
    shim.product().launch("score_float16_1", (4,), THREADS, given)

    assert np.array_equal(finite.astype(np.float32), scores[0])


# -- the k best --------------------------------------------------------------------------------------------------------


def random(rng, n):
    return rng.standard_normal(n)


class SelectCase(NamedTuple):
    rows: int
    k: int
    values: Callable[[np.random.Generator, int], np.ndarray] = random
    wanted: float = 1.0
    chunk: int = 512
    first: int = 0
    questions: int = 1
    tiles: int = 1


def tied(rng, n):
    return rng.integers(0, 3, n) / 7


def one_value(_, n):
    return np.full(n, 0.25)


def near(rng, n):
    """Floats next to each other: only the last digit of the key tells them apart."""
    return (np.float32(0.5).view(np.int32) + rng.integers(0, 1500, n).astype(np.int32)).view(np.float32)


def wide(rng, n):
    """All sizes and signs, zeros of both too."""
    values = np.concatenate([rng.standard_normal(n) * 10.0 ** rng.integers(-30, 30, n), [0.0, -0.0] * 4])
    return values[rng.permutation(len(values))[:n]]


def strange(rng, n):
    """Numbers that are none among others, and the largest: a NaN is nobody's neighbour, infinity is the best."""
    values = rng.standard_normal(n)
    values[rng.random(n) < 0.2] = np.nan
    values[rng.random(n) < 0.05] = np.inf
    values[rng.random(n) < 0.05] = -np.inf
    return values


def falling(_, n):
    return np.linspace(1, -1, n)


def rising(_, n):
    return np.linspace(-1, 1, n)


SELECT_CASES = [
    SelectCase(1, 1),
    SelectCase(1, 5),
    SelectCase(255, 1),
    SelectCase(257, 256),
    SelectCase(1000, 10, wanted=0.5, first=7),
    SelectCase(1000, 10, tied, questions=3, tiles=3, first=33),
    SelectCase(900, 300, tied, wanted=0.7, chunk=300),
    SelectCase(700, 40, one_value, tiles=2),
    SelectCase(3000, 100, near, chunk=1000, tiles=2),
    SelectCase(1500, 20, wide, wanted=0.9, questions=2),
    SelectCase(1200, 50, strange, wanted=0.8, tiles=2),
    SelectCase(800, 5, falling, tiles=4, chunk=128),
    SelectCase(800, 5, rising, tiles=4, chunk=128),
    SelectCase(1300, 1300, tied, wanted=0.6, chunk=256),  # all of them
    SelectCase(1300, 5000, chunk=256, tiles=2),  # more than there are
    SelectCase(600, 10, wanted=0.0),
    SelectCase(600, 10, wanted=0.01, chunk=100),
]


def check_select(run: shim.Kernels, case: SelectCase, order: int, seed: int = 2) -> None:
    """The k best by value, ties by row, whatever the chunks and tiles; every question with a mask of its own."""
    rng, guarded = np.random.default_rng(seed), Guarded()
    total = case.first + case.rows
    mask = rng.random((case.questions, total)) < case.wanted
    mask[:, : case.first] = True  # rows before the tile are not its own
    bits = guarded.of(words(mask))
    owners = guarded.of(np.arange(case.questions, dtype=np.int32)[::-1].copy())
    values = np.stack([case.values(rng, case.rows) for _ in range(case.questions)]).astype(np.float32)
    floors = guarded.of(np.full(case.questions, LOWEST, np.float32))
    keep = min(case.k, case.chunk)
    tile = -(-case.rows // case.tiles)
    columns = case.k + -(-tile // case.chunk) * keep
    pool = guarded.of(np.full((case.questions, columns), GOOD))  # garbage, good and with a row
    best = guarded.of(np.zeros((case.questions, case.k), FOUND))
    begin = case.k
    for start in range(0, case.rows, tile):
        scores = guarded.of(values[:, start : start + tile])
        rows = scores.shape[1]
        scores[~mask[owners][:, case.first + start : case.first + start + rows]] = 8e8  # never written by a scan
        chunks = -(-rows // case.chunk)
        given = pointers(
            scores, rows, case.first + start, rows, case.chunk, keep, bits, bits.shape[1], owners, floors, pool,
            columns, case.k,
        )  # fmt: skip
        run.launch("select_scores", (chunks, case.questions), THREADS, given, order)
        last = start + rows == case.rows
        out, out_columns = (best, case.k) if last else (pool, columns)
        given = pointers(pool, columns, begin, case.k + chunks * keep, case.k, out, out_columns, floors)
        run.launch("select_found", (case.questions,), THREADS, given, order)
        begin = 0
    guarded.check()
    for question, (found, mine) in enumerate(zip(best, values, strict=True)):
        allowed = mask[owners[question], case.first :] & (mine > LOWEST)
        at = np.flatnonzero(allowed)
        expected = np.sort(at[np.lexsort((at, -mine[at]))][: case.k])
        held = found[found["row"] >= 0]
        assert np.array_equal(held["row"] - case.first, expected)
        assert np.array_equal(held["value"], mine[expected])


@pytest.mark.parametrize("order", range(shim.ORDERS))
@pytest.mark.parametrize("case", SELECT_CASES, ids=lambda case: f"{case.rows}-{case.k}-{case.values.__name__}")
def test_the_best_are_numpys(case, order):
    """Random, tied, masked, tiny and huge k; in one tile or several; in any order of threads."""
    check_select(shim.product(), case, order)


# -- mutants -----------------------------------------------------------------------------------------------------------


def everything(run: shim.Kernels) -> None:
    """All of the above, each in one order; the orders in turn."""
    for turn, case in enumerate(SCORE_CASES):
        check_scores(run, case, turn % shim.ORDERS)
    for turn, case in enumerate(SELECT_CASES):
        check_select(run, case, turn % shim.ORDERS)


MUTANTS = [
    ("rows beyond the last are scored", "wanted[at] = begin + at < rows && ", "wanted[at] = "),
    ("rows that nobody wants are scored", "&& wanted_by_any(masks, words, mask_count, first + begin + at)", ""),
    ("the mask of another row", "masks[mask * words + (row >> 5)]", "masks[mask * words + (row >> 5) / 2]"),
    ("the first mask only", "for (int mask = 0; mask < count; ++mask)", "for (int mask = 0; mask < 1; ++mask)"),
    ("columns beyond the last", "load < loads; load += LANES", "load < loads + 1; load += LANES"),
    ("half of the lanes are summed", "apart = LANES / 2; apart > 0", "apart = LANES / 2; apart > 1"),
    ("blocks all do the same rows", "blockIdx.x * (blockDim.x / LANES) + threadIdx.x", "threadIdx.x"),
    ("halves are swapped", "words[at] & 0xffffu", "words[at] >> 16"),
    ("no barrier after the sums of warps", "    __syncthreads();\n    int earlier = 0;", "    int earlier = 0;"),
    ("no barrier before the sums are used again", "    __syncthreads();\n    return earlier", "    return earlier"),
    ("no barrier after the histogram is emptied", "shared.bins[bin] = 0;\n        }\n        __syncthreads();",
     "shared.bins[bin] = 0;\n        }"),
    ("no barrier after the histogram is filled", "__syncthreads();\n        int own = 0;", "int own = 0;"),
    ("no barrier before the digit is read", "        __syncthreads();\n        found |=", "        found |="),
    ("the histogram is not emptied", "shared.bins[bin] = 0;", ""),
    ("keys do not order negative numbers", "(bits >> 31) ? 0xffffffffu : 0x80000000u", "0x80000000u"),
    ("the last digit is not looked at", "digit < 3", "digit < 2"),
    ("a digit of the key is forgotten", "(key & known) == found", "true"),
    ("one less of those above", "above + own >= left", "above + own > left"),
    ("all ties are taken", "same && equal_ahead < ties", "same"),
    ("no ties are taken", "same && equal_ahead < ties", "false"),
    ("positions beyond the last are read", "at < end && input.candidate", "input.candidate"),
    ("the chunk ends beyond the tile", "min(begin + chunk, rows)", "begin + chunk"),
    ("empty places are left as they are", "out[at] = {0, -1};", ""),
    ("empty places beyond the k", "at < k; at += THREADS", "at < k + 1; at += THREADS"),
    ("masked scores are candidates", "!((mask[row >> 5] >> (row & 31)) & 1u)", "false"),
    ("another question's mask", "masks + mask_of[question] * words", "masks"),
    ("rows are numbered within the tile", "const int row = first + at;\n        if", "const int row = at;\n        if"),
    ("what equals the floor comes in again", "found.value > floor;", "found.value >= floor;"),
    ("the floor is not kept", "*floor = value_of(least);", "*floor = 1e30f;"),
    ("a floor where there were fewer than k", "floor != nullptr && total > k", "floor != nullptr"),
    ("empty places are candidates", "each.row >= 0", "true"),
]  # fmt: skip

#: Changes that alter nothing that is asked for, and why.
EQUIVALENT = {
    "what equals the floor comes in again": "of equals the earlier rows, which lie before it in the pool, are taken",
}


HUNG_S = 60


def judge() -> None:
    """Print what became of each mutant. Each runs in a process of its own: it may write anywhere, or never end."""
    source = kernels.source()
    for name, there, instead in MUTANTS:
        assert source.count(there), f"{name}: the mutant has lost its place"
        mutant = shim.Kernels(source.replace(there, instead))
        child = os.fork()
        if child == 0:
            signal.alarm(HUNG_S)
            try:
                everything(mutant)
            except (AssertionError, shim.KernelError):
                os._exit(KILLED)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(json.dumps([name, os.waitstatus_to_exitcode(status)]) + "\n")


@pytest.fixture(scope="module")
def verdicts() -> dict[str, int]:
    """The exit code of each mutant's process: KILLED, or below 0 where a signal ended it; 0 for one that survived."""
    told = subprocess.run(
        [sys.executable, "-c", "from tests.tiers.test_kernels import judge; judge()"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    return dict(map(json.loads, told.stdout.splitlines()))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [mutant[0] for mutant in MUTANTS])
def test_a_mutant_of_the_kernels_is_killed(verdicts, name):
    """The file passes `everything` (the tests above); with this change it does not, unless it changes nothing."""
    verdict = verdicts[name]

    assert (verdict == 0) == (name in EQUIVALENT)
    assert verdict in {0, KILLED} or verdict < 0

"""Hot on a real GPU: `pytest -m gpu`. Without one these fail, and are not collected unless asked for.

They need CuPy, pyarrow, msgspec, structlog, google-crc32c, hypothesis, pytest-asyncio and pytest-timeout, no server:

    pytest -m gpu --noconftest tests/tiers/test_gpu.py     # on a machine that has nothing else of the project's
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.tiers.contract import PARTITIONS, TierContract
from tiers import device
from tiers.alone import open_alone
from tiers.cuda import CudaArena
from tiers.errors import ServiceMissing, TierUnavailable
from tiers.host import HostArena
from tiers.hot import HotMemory, HotSettings
from tiers.part import Ask, Part, Shape

#: CuPy may warn of what it finds on a machine: that is no failure of ours.
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]

SHAPE = Shape(slabs=24, slab_rows=8_192, dim=256, metric="cosine", scratch_bytes=64 << 20)
SOAK_S = 20
GROWTH_BYTES = 32 << 20  # other contexts and the driver itself move a little


@pytest.fixture(scope="module")
def gpu():
    """The product's device, never a fallback."""
    return device.choose("cuda")


@pytest.fixture(scope="module")
def xp():
    return importlib.import_module("cupy")


class TestHotOnAGpu(TierContract):
    """The contract of every tier (R10)."""

    durable = False
    in_memory = True
    dtype = "float32"

    async def open_tier(self, tmp_path, server, prefix, shape):
        settings = HotSettings(
            device="cuda", dtype=self.dtype, capacity_rows=4_096, slab_rows=64, scratch_bytes=4 << 20
        )
        hot = HotMemory(settings, shape, partitions=PARTITIONS)
        await open_alone(hot, hot.index, PARTITIONS)
        return hot


class TestHotOnAGpuInHalves(TestHotOnAGpu):
    """What is answered is scored by the vectors as they came, so halves change no answer of the contract's."""

    dtype = "float16"


def vectors(shape: Shape, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((shape.slabs * shape.slab_rows, shape.dim)).astype(np.float32)


def filled(gpu, shape: Shape) -> tuple[CudaArena, HostArena]:
    """An arena on the GPU and one on the host, with the same vectors."""
    arenas, rows = (gpu.arena(shape), HostArena(shape)), vectors(shape)
    for slab in range(shape.slabs):
        for arena in arenas:
            arena.put(slab * shape.slab_rows, rows[slab * shape.slab_rows : (slab + 1) * shape.slab_rows])
    return arenas


def ask(shape: Shape, questions: int, k: int, wanted: float, seed: int = 2) -> Ask:
    rng = np.random.default_rng(seed)
    masks = [rng.random(shape.slab_rows) < wanted for _ in range(shape.slabs)]
    parts = [Part(slab, shape.slab_rows, mask, int(mask.sum())) for slab, mask in enumerate(masks)]
    return Ask(parts, rng.standard_normal((questions, shape.dim)).astype(np.float32), k)


def agree(mine, theirs, tolerance: float, misses: int = 0) -> None:
    for one, other in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(one.values, other.values, atol=tolerance)
        assert (
            len(set(one.slots) - set(other.slots)) <= misses + len(other.slots) // 100
        )  # neighbours may change places


@pytest.mark.parametrize("dim", [10, 256, 768])
@pytest.mark.parametrize(("questions", "k"), [(1, 1), (1, 42), (1, 20_000), (5, 42), (9, 42), (300, 132), (1_024, 42)])
def test_a_scan_finds_what_numpy_finds(gpu, dim, questions, k):
    """Our kernels and cuBLAS, over whole slabs and over one row in fifty."""
    shape = SHAPE._replace(dim=dim, slabs=6)
    on_gpu, on_host = filled(gpu, shape)
    for wanted in (1.0, 0.5, 0.02):
        asked = ask(shape, questions, k, wanted)
        some = asked._replace(questions=asked.questions[:9])
        agree(on_gpu.best([asked])[0][:9], on_host.best([some])[0], 1e-4 * dim**0.5, 1)


def test_ties_go_to_the_first_row(gpu):
    """A thousand rows of each vector: the k best are the lowest slots."""
    shape = SHAPE._replace(slabs=3, dim=32)
    arena, few = gpu.arena(shape), np.eye(8, 32, dtype=np.float32)
    for slab in range(3):
        arena.put(slab * shape.slab_rows, few[np.arange(shape.slab_rows) % 8])
    parts = [Part(slab, shape.slab_rows, np.ones(shape.slab_rows, bool), shape.slab_rows) for slab in range(3)]
    for questions in (1, 8, 40):
        found = arena.best([Ask(parts, np.repeat(few[3:4], questions, axis=0), 100)])[0]
        assert all(np.array_equal(np.arange(100) * 8 + 3, each.slots) for each in found)


def test_products_are_not_of_ten_bits(gpu):
    """TF32 would round 1 + 2**-11 to 1: scores of many questions are as exact as those of one."""
    shape = SHAPE._replace(slabs=1, dim=256, metric="dot")
    arena = gpu.arena(shape)
    rows = (1 + 2.0**-11 * (np.arange(shape.slab_rows)[:, None] % 2)) * np.ones((1, 256))
    arena.put(0, rows.astype(np.float32))
    part = Part(0, shape.slab_rows, np.ones(shape.slab_rows, bool), shape.slab_rows)
    found = arena.best([Ask([part], np.ones((64, 256), np.float32), 2)])[0]

    np.testing.assert_allclose(found[0].values, 256 + 2.0**-3, rtol=1e-6)


def test_halves_find_nearly_what_floats_find(gpu):
    """Of the fifty best of float16 forty-eight are those of float32, for few questions and many."""
    on_gpu, on_host = filled(gpu, SHAPE._replace(dtype="float16", slabs=4))
    for questions in (1, 8, 64):
        asked = ask(SHAPE._replace(slabs=4), questions, 50, 1.0)
        mine, theirs = on_gpu.best([asked])[0], on_host.best([asked])[0]
        common = [len(set(a.slots) & set(b.slots)) for a, b in zip(mine, theirs, strict=True)]
        assert min(common) >= 45
        assert np.mean(common) >= 48


def test_nothing_is_allocated_once_it_runs(gpu, xp):
    """CuPy's own count of allocations, and the pool, stay as they were while vectors come and searches are answered."""
    arena, _ = filled(gpu, SHAPE)
    rows, count = vectors(SHAPE)[: SHAPE.slab_rows], []

    class Counting(xp.cuda.MemoryHook):
        name = "counting"

        def malloc_preprocess(self, **told):
            count.append(told)

        def alloc_preprocess(self, **told):
            count.append(told)

    work = [ask(SHAPE, questions, 42, 0.5) for questions in (1, 8, 100, 1_024)]
    for asked in work:  # cuBLAS makes its own work space at its first product of each kind
        arena.best([asked])
    before = arena.memory()
    with Counting():
        for turn in range(50):
            arena.put(turn % SHAPE.slabs * SHAPE.slab_rows, rows)
            arena.best([work[turn % len(work)]])
    after = arena.memory()

    assert [] == count
    assert before["pool_held"] == after["pool_held"]
    assert abs(before["free"] - after["free"]) < GROWTH_BYTES


def test_a_soak_leaves_memory_as_it_was(gpu):
    """Twenty seconds of vectors and questions of all kinds: the device's free memory is flat, answers stay right."""
    on_gpu, on_host = filled(gpu, SHAPE)
    rows = vectors(SHAPE)
    rng = np.random.default_rng(7)
    free, turns, until = [], 0, time.monotonic() + SOAK_S
    while time.monotonic() < until:
        slab = int(rng.integers(SHAPE.slabs))
        on_gpu.put(slab * SHAPE.slab_rows, rows[slab * SHAPE.slab_rows : (slab + 1) * SHAPE.slab_rows])
        asked = ask(SHAPE, int(rng.choice([1, 3, 8, 64, 1_024])), int(rng.integers(1, 500)), 0.5, turns)
        found = on_gpu.best([asked])[0]
        if turns % 50 == 0:
            agree(found[:1], on_host.best([asked._replace(questions=asked.questions[:1])])[0], 1e-3, 1)
        free.append(on_gpu.memory()["free"])
        turns += 1

    assert turns > 100
    settled = free[len(free) // 5 :]
    assert max(settled) - min(settled) < GROWTH_BYTES


def test_no_memory_sheds_the_query_and_not_the_data(gpu, xp, monkeypatch):
    """An allocation beyond the pool's limit is refused by CuPy itself; the next search finds every row."""
    on_gpu, on_host = filled(gpu, SHAPE._replace(slabs=2))
    asked = ask(SHAPE._replace(slabs=2), 1, 10, 1.0)
    scores = on_gpu._scores
    monkeypatch.setattr(on_gpu, "_scores", lambda *given: (xp.empty(1 << 30, xp.float32), scores(*given)))
    with pytest.raises(TierUnavailable):
        on_gpu.best([asked])
    monkeypatch.undo()

    agree(on_gpu.best([asked])[0], on_host.best([asked])[0], 1e-3)


def test_a_hot_that_does_not_fit_stops_the_start(gpu):
    """More rows than the device has room for: a message, before anything is allocated."""
    free = gpu.arena(SHAPE._replace(slabs=1)).memory()["free"]
    with pytest.raises(ServiceMissing, match=r"hot needs .* GiB on the GPU .*: lower hot\.capacity_rows"):
        gpu.arena(SHAPE._replace(slabs=free // (SHAPE.slab_rows * 1_024)))


LOST = """
import cupy, numpy as np
from tiers import device
from tiers.errors import DeviceLost
from tiers.part import Ask, Part, Shape
arena = device.choose("cuda").arena(Shape(1, 64, 8, "cosine", scratch_bytes=1 << 20))
asked = Ask([Part(0, 64, np.ones(64, bool), 64)], np.ones((1, 8), np.float32), 3)
arena.best([asked])
bad = cupy.RawKernel('extern "C" __global__ void bad(int *at) { *at = 1; }', "bad")
with arena._stream:
    bad((1,), (1,), (np.int64(8),))
for _ in range(2):
    try:
        arena.best([asked])
    except DeviceLost as error:
        print("lost:", error)
"""


def test_an_illegal_address_is_a_device_lost():
    """In a process of its own: whatever is asked from then on, the answer is that the device is lost."""
    done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, check=False, timeout=120)

    assert 2 == done.stdout.count("lost: the GPU failed"), done.stderr

"""Hot on a GPU, over the stand-in: what is found, what it takes, what is shed, and what ends the process.

`pytest -m gpu` (test_gpu.py) asks the same of a real one.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.tiers import test_gpu
from tests.tiers.rows import DIM
from tests.tiers.rows import SHAPE as SCHEMA
from tests.tiers.strict import CUBLASError, CUDADriverError, CUDARuntimeError, Machine, OutOfMemoryError, StrictDevice
from tests.tiers.test_hot import ingest, nearest, numbered
from tiers import device, kernels, tiling
from tiers.cuda import CudaArena
from tiers.cuda_budget import SPARE_BYTES, Budget
from tiers.device import CudaDevice, HostDevice
from tiers.errors import DeviceLost, ServiceMissing, SettingsError, TierUnavailable
from tiers.host import HostArena
from tiers.hot import HotMemory, HotSettings
from tiers.index import Index
from tiers.part import Ask, Part, Shape
from tiers.together import Together
from tiers.worker import SerialExecutor

pytestmark = pytest.mark.unit

SMALL = Shape(slabs=6, slab_rows=40, dim=10, metric="cosine", scratch_bytes=1 << 20)
ROWS = SMALL.slabs * SMALL.slab_rows


def filled(shape: Shape, seed: int = 3):
    """An arena over the stand-in and one on the host with the same vectors; those, and the machine."""
    machine = Machine()
    on_gpu, on_host = CudaArena(StrictDevice(machine)._library, shape), HostArena(shape)
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((shape.slabs * shape.slab_rows, shape.dim)).astype(np.float32)
    for start in range(0, len(vectors), shape.slab_rows):
        for arena in (on_gpu, on_host):
            arena.put(start, vectors[start : start + shape.slab_rows])
    return on_gpu, on_host, vectors, machine


def ask(rng: np.random.Generator, shape: Shape, questions: int, k: int, wanted: float = 0.7) -> Ask:
    """Questions about random rows of random slabs."""
    parts = []
    for slab in range(shape.slabs):
        rows = rng.random(shape.slab_rows) < wanted
        fill = int(rng.integers(1, shape.slab_rows + 1))
        rows[fill:] = False
        if rows.any():
            parts.append(Part(slab, fill, rows, int(np.count_nonzero(rows))))
    return Ask(parts, rng.standard_normal((questions, shape.dim)).astype(np.float32), k)


def agree(found, expected, atol: float = 1e-5) -> None:
    """The same slots for each question, in nearly the same order, with nearly the same values."""
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine.values, theirs.values, atol=atol)
        assert set(mine.slots) == set(theirs.slots)
        assert (np.diff(mine.values) <= 0).all()


@pytest.mark.parametrize("chunk", [64, tiling.CHUNK])
@pytest.mark.parametrize("questions", [1, 2, kernels.FEW, 20])
@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_a_scan_finds_what_numpy_finds(monkeypatch, chunk, questions, metric):
    """Few questions by our kernel and many by cuBLAS, in one tile or in several, with rows in all slabs or in some."""
    monkeypatch.setattr(tiling, "CHUNK", chunk)
    monkeypatch.setattr(tiling, "GAP", 50)
    on_gpu, on_host, _, machine = filled(SMALL._replace(metric=metric))
    rng = np.random.default_rng(questions)
    for k, wanted in ((1, 0.7), (5, 0.02), (20, 0.5), (ROWS + 5, 0.9), (3, 0)):
        asked = ask(rng, SMALL, questions, k, wanted)
        agree(on_gpu.best([asked])[0], on_host.best([asked])[0], 1e-4)

    assert (machine.products > 0) == (questions > kernels.FEW)


def test_asks_of_one_pass_keep_to_their_own_rows_and_k():
    """Eight asks with other rows, questions and k share the products, and each is answered as if alone."""
    on_gpu, on_host, _, machine = filled(SMALL)
    rng = np.random.default_rng(9)
    asks = [ask(rng, SMALL, at + 1, 3 * at + 1, 0.1 * at) for at in range(CudaArena.asks_max)]
    found = on_gpu.best(asks)

    assert 1 == machine.products
    for mine, theirs in zip(found, on_host.best(asks), strict=True):
        agree(mine, theirs)


def test_little_scratch_memory_takes_more_passes(monkeypatch):
    """Questions that do not fit together are answered one pass after another; where none fits, it is said."""
    monkeypatch.setattr(tiling, "CHUNK", 64)
    shape = SMALL._replace(scratch_bytes=tiling.least(20) * 12)
    on_gpu, on_host, _, machine = filled(shape)
    asked = ask(np.random.default_rng(1), shape, 30, 20, 0.9)
    agree(on_gpu.best([asked])[0], on_host.best([asked])[0])

    assert machine.products >= 3
    tight = filled(shape._replace(scratch_bytes=tiling.least(20)))[0]
    assert 30 == len(tight.best([asked])[0])
    with pytest.raises(ValueError, match="scratch_bytes"):
        tight.best([asked._replace(k=21)])


def test_halves_find_nearly_the_same():
    """float16 takes half of the memory; the values differ by its rounding."""
    on_gpu, on_host, _, _ = filled(SMALL._replace(dtype="float16"))
    rng = np.random.default_rng(4)
    for questions in (1, 5, 20):
        asked = ask(rng, SMALL, questions, 10)
        for mine, theirs in zip(on_gpu.best([asked])[0], on_host.best([asked])[0], strict=True):
            np.testing.assert_allclose(mine.values, theirs.values, atol=2e-2)
            assert len(set(mine.slots) & set(theirs.slots)) >= 8

    assert 2 * Budget.of(SMALL).parts()["vectors"] > Budget.of(SMALL._replace(dtype="float16")).parts()["vectors"]


def test_masks_are_sent_only_where_they_changed():
    """The same rows again send nothing; a slab more or less, or another array, does; nothing is forgotten."""
    on_gpu, on_host, _, _ = filled(SMALL)
    rng = np.random.default_rng(6)
    first, second = ask(rng, SMALL, 1, 9), ask(rng, SMALL, 1, 9)
    sends = []
    send = on_gpu._masks._send
    on_gpu._masks._send = lambda number, changed, stream: (sends.append(sorted(changed)), send(number, changed, stream))
    part = second.parts[2]
    mixed = first._replace(parts=[*first.parts[:2], part, *first.parts[3:-1]])
    for asked in (first, first, mixed, first):
        agree(on_gpu.best([asked])[0], on_host.best([asked])[0])

    slabs = [each.slab for each in first.parts]
    assert [slabs, [part.slab, slabs[-1]], [part.slab, slabs[-1]]] == sends


def test_nothing_is_allocated_once_hot_has_started():
    """Whatever is put and asked: the stand-in counts, and the pool stays as it was."""
    on_gpu, _, vectors, machine = filled(SMALL)
    machine.started, before, memory = True, machine.allocations, on_gpu._pool.total_bytes()
    rng = np.random.default_rng(2)

    def work() -> None:
        for turn in range(5):
            on_gpu.put(SMALL.slab_rows, vectors[: SMALL.slab_rows])
            on_gpu.best([ask(rng, SMALL, 1 + 9 * turn, 5 + turn)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert (before, memory) == (machine.allocations, on_gpu._pool.total_bytes())
    assert on_gpu.chunk_rows * 10 * 4 <= 4 << 20


# -- tiling ------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 3_000), st.integers(1, 10**9), st.integers(1, 10**6), st.integers(1 << 16, 1 << 32))
def test_tiles_fit_their_bytes(questions, rows, k, limit):
    """Whatever is asked: whole chunks, within the bytes, or a refusal where not one question fits."""
    k = min(k, rows)
    try:
        found = tiling.together(questions, rows, k, limit)
    except ValueError:
        assert tiling.least(k) > limit
        return

    assert found.bytes(k) <= limit
    assert found.questions in {1, kernels.FEW} or found.questions > kernels.FEW
    assert found.questions <= max(questions, kernels.FEW)
    assert found.questions <= tiling.QUESTIONS
    assert found.questions * k <= tiling.FOUND_PLACES
    assert found.rows % tiling.CHUNK == 0
    assert found.rows >= tiling.CHUNK
    assert found.columns == k + found.rows // tiling.CHUNK * found.keep


@given(st.lists(st.tuples(st.integers(0, 30_000), st.integers(1, 9_000)), max_size=20), st.integers(1, 5_000))
def test_tiles_cover_each_row_once(gaps, rows):
    """Every row of the ranges lies in one tile, tiles grow, and what they read over are small gaps."""
    ranges, at = [], 0
    for gap, length in gaps:
        ranges.append((at + gap, at + gap + length))
        at += gap + length
    found = tiling.runs(ranges)
    tiles = list(tiling.cut(found, rows))

    assert all(first + count <= following for (first, count), (following, _) in pairwise(tiles))
    assert all(0 < count <= rows for _, count in tiles)
    read = sum(count for _, count in tiles)
    wanted = sum(end - start for start, end in ranges)
    assert wanted <= read <= wanted + tiling.GAP * max(0, len(ranges) - len(found))
    assert all(any(first <= start < first + count for first, count in tiles) for start, _ in ranges)


# -- memory at the start -----------------------------------------------------------------------------------------------


def test_a_hot_that_does_not_fit_stops_the_start():
    """The message has each part, what is free, and how many rows would fit; with so many it starts."""
    shape = Shape(100, 8_192, 256, "cosine")
    need = Budget.of(shape).pool_bytes + SPARE_BYTES
    with pytest.raises(ServiceMissing, match=r"vectors 0\.78.*0\.98 of its.*lower hot\.capacity_rows.*float16"):
        StrictDevice(Machine(free=int(0.98 * (1 << 30)))).check(shape)
    with pytest.raises(ServiceMissing, match="about 737,280 fit"):
        StrictDevice(Machine(free=need - 10 * 8_192 * 1_024)).check(shape)

    StrictDevice(Machine(free=need)).check(shape)
    StrictDevice(Machine(free=need - 10 * 8_192 * 1_024)).check(shape._replace(slabs=90))


def test_the_pool_may_hold_what_was_counted_and_no_more():
    """All parts fit in its limit; the smallest of them again does not."""
    machine = Machine()
    CudaArena(StrictDevice(machine)._library, SMALL)
    arena = CudaArena(StrictDevice(Machine())._library, SMALL)
    with pytest.raises(OutOfMemoryError):
        arena._pool.malloc(Budget.of(SMALL).parts()["questions"])

    assert arena.memory()["pool_held"] <= Budget.of(SMALL).pool_bytes


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"dtype": "int8"}, "hot.dtype"),
        ({"dtype": "float16", "metric": "dot"}, "cosine"),
        ({"scratch_bytes": 1_000}, "hot.scratch_bytes"),
        ({"slabs": 1 << 20}, "hot.capacity_rows"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, says):
    """With the key that is wrong."""
    with pytest.raises(SettingsError, match=says):
        Budget.of(Shape(100, 8_192, 256, "cosine")._replace(**wrong))


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def hot():
    """Hot over the stand-in, with twelve rows; its machine is `hot.device.machine`."""
    settings = HotSettings(capacity_rows=16, slab_rows=4)
    memory = HotMemory(settings, SCHEMA, partitions=1, index=Index.of(SCHEMA), device=StrictDevice())
    await ingest(memory, 0, *numbered(0, 12))
    yield memory
    await memory.cleanup()


QUERY = np.ones(DIM, np.float32)


@pytest.mark.parametrize("error", [OutOfMemoryError("no"), CUDARuntimeError(2), CUDADriverError(2), CUBLASError(3)])
async def test_no_memory_sheds_the_query_and_not_the_data(hot, error):
    """The question gets a retriable error; the next one finds every row, and the snapshot's slabs are free again."""
    hot.device.machine.fault = error
    with pytest.raises(TierUnavailable) as shed:
        await nearest(hot, hot.snapshot(), QUERY, 12)
    found = await nearest(hot, hot.snapshot(), QUERY, 12)

    assert shed.value.retriable
    assert 12 == len(found)
    assert not hot.watch.lost.done()
    assert hot._scans.oldest > hot._scans.begun


@pytest.mark.parametrize("error", [CUDARuntimeError(700), CUDADriverError(719), CUDARuntimeError(214), CUBLASError(13)])
async def test_a_gpu_that_failed_is_not_asked_to_heal(hot, error):
    """An illegal address, a failed launch, an uncorrectable error: whoever meets it, the node is told (R9)."""
    hot.device.machine.fault = error
    with pytest.raises(DeviceLost) as lost:
        await nearest(hot, hot.snapshot(), QUERY, 3)

    assert not lost.value.retriable
    assert hot.watch.lost.exception() is lost.value


# -- waiting -----------------------------------------------------------------------------------------------------------


class Slow:
    """An arena whose first turn lasts until it is told to end."""

    asks_max = 3

    def __init__(self) -> None:
        self.turns: list[list[Ask]] = []
        self.began, self.go = threading.Event(), threading.Event()

    def best(self, asks):
        self.turns.append(list(asks))
        self.began.set()
        self.go.wait(30)
        return [[] for _ in asks]


async def test_scans_that_wait_go_together():
    """Those that come while one runs share the next turns, as many as go in one; those given up are left out."""
    arena, thread = Slow(), SerialExecutor("test")
    together = Together(arena, thread)
    asks = [Ask([], QUERY[None], at) for at in range(8)]
    tasks = [asyncio.create_task(together.best(each)) for each in asks[:1]]
    await asyncio.to_thread(arena.began.wait, 30)
    tasks += [asyncio.create_task(together.best(each)) for each in asks[1:]]
    await asyncio.sleep(0)
    tasks[2].cancel()
    await asyncio.sleep(0)
    arena.go.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    thread.close()

    assert [[0], [1, 3, 4], [5, 6, 7]] == [[each.k for each in turn] for turn in arena.turns]
    assert tasks[2].cancelled()


async def test_an_error_is_the_answer_to_each_that_went_together():
    """One failure fails those who shared the turn, and no other."""

    class Fails(Slow):
        def best(self, asks):
            super().best(asks)
            raise TierUnavailable("no")

    arena, thread = Fails(), SerialExecutor("test")
    arena.go.set()
    together = Together(arena, thread)
    found = await asyncio.gather(*(together.best(Ask([], QUERY[None], 1)) for _ in range(4)), return_exceptions=True)
    thread.close()

    assert [TierUnavailable] * 4 == list(map(type, found))


async def test_questions_with_different_filters_share_a_product(hot):
    """Two scans that wait, each with rows of its own, are one turn of the device."""
    machine = hot.device.machine
    blocked = threading.Event()
    busy = hot._thread.submit(blocked.wait, 30)
    scans = [
        hot.scan(hot.snapshot(), np.ones((5, DIM), np.float32), 3, np.array(slots)) for slots in ([1, 2], [5, 6, 9])
    ]
    tasks = [asyncio.create_task(each) for each in scans]
    await asyncio.sleep(0)
    blocked.set()
    few, more = await asyncio.gather(*tasks)
    await busy

    assert [{"id-1", "id-2"}] * 5 == [set(best.ids) for best in few]
    assert [{"id-5", "id-6", "id-9"}] * 5 == [set(best.ids) for best in more]
    assert 1 == machine.products, "ten questions"


async def test_a_search_waits_for_one_piece_of_what_comes_in_at_most(hot, monkeypatch):
    """A large batch is copied a piece at a time, and a scan that comes meanwhile is next."""
    order = []
    put, best = hot._arena.put, hot._arena.best
    monkeypatch.setattr(hot._arena, "chunk_rows", 1)
    monkeypatch.setattr(hot._arena, "put", lambda start, vectors: (order.append("put"), put(start, vectors)))
    monkeypatch.setattr(hot._arena, "best", lambda asks: (order.append("best"), best(asks))[1])
    coming = asyncio.create_task(ingest(hot, 0, *numbered(50, 4)))
    await asyncio.sleep(0)
    await nearest(hot, hot.snapshot(), QUERY, 3)
    await coming

    assert ["put"] * 4 == [each for each in order if each == "put"]
    assert order.index("best") < 3


# -- choosing ----------------------------------------------------------------------------------------------------------


def test_auto_takes_a_gpu_that_answers_and_says_so(monkeypatch):
    """Both "auto" and "cuda" give the device that the stand-in's is made of; the log names device and reason."""
    machine = Machine()
    modules = {"cupy": machine.cupy, "cupyx": type("cupyx", (), {"empty_pinned": None})}
    monkeypatch.setattr(device.importlib, "import_module", modules.__getitem__)
    with capture_logs() as logs:
        chosen = [device.choose(kind) for kind in ("auto", "cuda", "cpu")]

    assert [CudaDevice, CudaDevice, HostDevice] == list(map(type, chosen))
    assert issubclass(StrictDevice, CudaDevice)
    assert ["cupy", "cupy", "numpy"] == [line["device"] for line in logs]
    assert {"device.chosen"} == {line["event"] for line in logs}


def test_a_gpu_asked_for_is_never_replaced(monkeypatch):
    """`hot.device = "cuda"` without a GPU stops the start; "auto" runs on the host, and says why."""

    def absent(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(device.importlib, "import_module", absent)
    with pytest.raises(ServiceMissing, match="no GPU answers"):
        device.choose("cuda")
    with capture_logs() as logs:
        assert "numpy" == device.choose("auto").name

    assert "No module named 'cupy'" in logs[0]["reason"]


def test_the_host_has_no_device_memory():
    """Nothing to tell of; a GPU tells its own numbers and the pool's."""
    assert {} == HostArena(SMALL).memory()
    assert {"total", "free", "pool_used", "pool_held"} == filled(SMALL)[0].memory().keys()


class Loose(StrictDevice):
    """Over the stand-in, used by the test's own thread."""

    def arena(self, shape):
        return CudaArena(self._library, shape)


@pytest.mark.parametrize(
    ("test", "shape"),
    [
        (test_gpu.test_ties_go_to_the_first_row, {}),
        (test_gpu.test_products_are_not_of_ten_bits, {}),
        (test_gpu.test_halves_find_nearly_what_floats_find, {}),
        (partial(test_gpu.test_a_scan_finds_what_numpy_finds, dim=24, questions=5, k=42), {}),
        (partial(test_gpu.test_a_scan_finds_what_numpy_finds, dim=24, questions=20, k=3), {}),
        (test_gpu.test_a_hot_that_does_not_fit_stops_the_start, {"slab_rows": 8_192, "dim": 256}),
    ],
)
def test_the_tests_for_a_gpu_hold_for_the_stand_in(monkeypatch, test, shape):
    """So that what they find on a GPU is not their own fault."""
    monkeypatch.setattr(test_gpu, "SHAPE", Shape(4, 320, 24, "cosine", scratch_bytes=1 << 20)._replace(**shape))
    test(gpu=Loose())


async def test_a_watch_ends_with_the_device(hot):
    """A service that waits for the device ends with its error; without one it ends when it is told to."""
    stop = asyncio.Event()
    watching = asyncio.create_task(hot.watch.run(stop))
    await asyncio.sleep(0)
    assert isinstance(hot.watch.lost, Future)
    hot.device.machine.fault = CUDARuntimeError(700)
    with pytest.raises(DeviceLost):
        await nearest(hot, hot.snapshot(), QUERY, 3)
    with pytest.raises(DeviceLost):
        await watching


async def test_a_watch_ends_when_it_is_told_to(hot):
    """An orderly stop does not wait for a failure."""
    stop = asyncio.Event()
    stop.set()
    async with asyncio.timeout(30):
        await hot.watch.run(stop)

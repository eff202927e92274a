"""The stand-in for a GPU: what it refuses, and that each way of misusing a GPU that we know is caught by it."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import numpy as np
import pytest

from tests.tiers import cupy_api
from tests.tiers.strict import API, Machine, OutOfMemoryError, StrictArray, StrictDevice
from tests.tiers.strict_stream import OrderError
from tiers import cuda, staging
from tiers.cuda import CudaArena
from tiers.cuda_errors import told
from tiers.errors import TierUnavailable
from tiers.masks import Masks
from tiers.part import Ask, Part, Shape

pytestmark = pytest.mark.unit

SHAPE = Shape(slabs=3, slab_rows=8, dim=6, metric="cosine", scratch_bytes=1 << 20)
VECTORS = np.random.default_rng(5).standard_normal((24, 6)).astype(np.float32)


@pytest.fixture
def machine():
    return Machine()


def pooled(machine: Machine, shape=(4, 2), dtype=np.float32) -> StrictArray:
    """An array of four rows, allocated as it must be."""
    pool = machine.cupy.cuda.MemoryPool()
    pool.set_limit(size=1 << 20)
    with machine.cupy.cuda.using_allocator(pool.malloc):
        return machine.cupy.zeros(shape, dtype)


PARTS = [Part(slab, SHAPE.slab_rows, np.ones(SHAPE.slab_rows, bool), SHAPE.slab_rows) for slab in range(3)]


# -- what it refuses ---------------------------------------------------------------------------------------------------


def test_arrays_refuse_the_host(machine):
    """They cannot be converted, iterated, compared or computed with from the host, nor written by an index."""
    array, host = pooled(machine), np.ones((4, 2), np.float32)
    for touch in (
        np.asarray,
        list,
        bool,
        float,
        int,
        memoryview,
        np.sum,
        lambda a: np.add(a, 1),
        lambda a: host + a,
        lambda a: host @ a,
        lambda a: a.__setitem__(0, host[0]),
        lambda a: a.set(host, stream=object()),
    ):
        with pytest.raises(TypeError):
            touch(array)

    assert (4, (4, 2), np.float32) == (len(array), array.shape, array.dtype)


def test_it_has_cupys_names_and_no_others(machine):
    """What the list lacks is absent, submodules too; what it has and hot has no need of says so."""
    xp = machine.cupy
    for absent in ("vecdot", "cuda.runtime.notThere", "float999", "cuda.cublas.tgemm"):
        with pytest.raises(AttributeError):
            _reach(xp, absent)
    for unused in ("argsort", "asnumpy", "cuda.runtime.memcpyAsync"):
        with pytest.raises(NotImplementedError):
            _reach(xp, unused)
    with pytest.raises(AttributeError):
        pooled(machine).reshaped  # noqa: B018 - the access is what is tested
    with pytest.raises(NotImplementedError):
        pooled(machine).argmax  # noqa: B018

    assert "14.2.0" == API["cupy"]
    assert len(API["functions"]) > 600


def _reach(thing, path):
    for name in path.split("."):
        thing = getattr(thing, name)
    return thing


def test_what_it_acts_out_exists_in_cupy(machine):
    """Its streams, events, pools and modules have methods that CuPy's have."""
    xp = machine.cupy
    acted = {
        "cuda.Stream": ("synchronize",),
        "cuda.Event": ("record", "synchronize"),
        "cuda.MemoryPool": ("malloc", "set_limit", "total_bytes", "used_bytes"),
        "cuda.Device": ("attributes",),
        "RawModule": ("get_function",),
    }
    for name, methods in acted.items():
        assert set(methods) <= set(API["classes"][name])
        assert callable(_reach(xp, name))

    assert set(cupy_api.CLASSES) == acted.keys()


def test_parameters_are_cupys(machine):
    """A parameter that CuPy does not take is an error here too."""
    with pytest.raises(TypeError):
        machine.cupy.zeros(4, np.float32, shared=True)


def test_memory_comes_from_a_limited_pool_at_the_start(machine):
    """Outside of a pool, of one without a limit, beyond it, or later, nothing is allocated."""
    xp = machine.cupy
    with pytest.raises(AssertionError, match="outside of hot's pool"):
        xp.zeros(4, np.float32)
    with pytest.raises(AssertionError, match="without a limit"), xp.cuda.using_allocator(xp.cuda.MemoryPool().malloc):
        xp.zeros(4, np.float32)
    with pytest.raises(xp.cuda.memory.OutOfMemoryError):
        pooled(machine, shape=1 << 20)
    machine.started = True
    with pytest.raises(AssertionError, match="at start only"):
        pooled(machine)


def test_a_write_outside_is_seen(machine):
    """A kernel that writes next to its memory fails when the stream comes to it."""
    array = pooled(machine)
    block = array._block
    block.raw[block.start + block.nbytes] = 0
    with pytest.raises(OrderError, match="outside"):
        machine.order.check()


def test_arguments_have_the_types_that_a_kernel_declares(machine):
    """A whole number of another width would shift all that follow."""
    module = machine.cupy.RawModule(code=cuda.kernels.source(), options=())
    places = pooled(machine)
    with pytest.raises(AssertionError, match="select_found takes pliiiplp"):
        module.get_function("select_found")((1,), (256,), (places, np.int32(1)))


# -- order: each way to lose it is caught ------------------------------------------------------------------------------


class Late(staging.Staging):
    """Does not wait before the buffer is used again."""

    def ready(self):
        return self._array


class Early(staging.Staging):
    """Does not say that the buffer is in use."""

    @contextmanager
    def turn(self, stream):
        yield self.ready()


def staged_badly(kind):
    """Both buffers of what comes in are of this kind."""

    def change(arena: CudaArena):
        library = arena._library
        for_in = staging.Double(library, (arena.chunk_rows, arena._budget.columns), arena._budget.dtype)
        buffers = [kind(library, (arena.chunk_rows, arena._budget.columns), arena._budget.dtype) for _ in range(2)]
        for_in._buffers = iter(buffers * 100)
        arena._stages = for_in

    return change


def one_buffer(name, kind):
    """This buffer is of this kind."""

    def change(arena: CudaArena):
        old = getattr(arena, name)
        setattr(arena, name, kind(arena._library, old._array.shape, old._array.dtype))

    return change


def mirror(kind):
    def change(arena: CudaArena):
        masks: Masks = arena._masks
        masks._mirror = kind(arena._library, masks._mirror._array.shape, np.uint32)

    return change


def forgets(arena: CudaArena):
    """A new buffer each time, let go at once."""
    library, budget = arena._library, arena._budget

    class Fresh:
        def next(self):
            return staging.Staging(library, (arena.chunk_rows, budget.columns), budget.dtype)

    arena._stages = Fresh()


def default_stream(arena: CudaArena):
    """Kernels go where no stream was named."""
    arena._using = lambda: told(arena._library.xp)


def allocates(arena: CudaArena):
    """Scratch memory is made for each search."""
    ask = arena._ask
    arena._library.xp._machine.started = True
    arena._library.xp._machine.used = nullcontext

    def change(*given):
        arena._scratch = arena._library.xp.empty(arena._budget.scratch_words, np.int32)
        return ask(*given)

    arena._ask = change


def pageable(arena: CudaArena):
    """A buffer that is not pinned."""
    stage = arena._asking
    stage._array = np.zeros(stage._array.shape, np.int32)


def wrong_width(arena: CudaArena):
    """A kernel gets a number of another width."""
    kernel = arena._select_found
    arena._select_found = lambda grid, block, given: kernel(grid, block, (*given[:2], np.int64(0), *given[3:]))


MUTANTS = [
    ("vectors staged without waiting for the last copy", staged_badly(Late), OrderError, "written by the host"),
    ("vectors staged without recording the event", staged_badly(Early), OrderError, "written by the host"),
    ("questions staged without waiting", one_buffer("_asking", Late), OrderError, "written by the host"),
    ("questions staged without recording", one_buffer("_asking", Early), OrderError, "written by the host"),
    ("answers read without waiting", one_buffer("_answer", Late), OrderError, "read by the host"),
    ("answers read without recording", one_buffer("_answer", Early), OrderError, "read by the host"),
    ("masks staged without waiting", mirror(Late), OrderError, "written by the host"),
    ("masks staged without recording", mirror(Early), OrderError, "written by the host"),
    ("a staging buffer let go while its copy is on the way", forgets, OrderError, "let go"),
    ("work on the default stream", default_stream, OrderError, "default stream"),
    ("an allocation while it runs", allocates, AssertionError, "at start only"),
    ("a buffer that is not pinned", pageable, TypeError, "pageable"),
    ("an argument of another width", wrong_width, AssertionError, "takes pliiiplp"),
]


def use(arena: CudaArena, machine: Machine) -> None:
    """Fill slabs faster than a GPU copies, and search; some searches find no memory after they have sent their ask."""
    for turn in range(3):
        for slab in range(3):
            arena.put(slab * 8, VECTORS[slab * 8 : slab * 8 + 8])
        asks = [Ask([PARTS[0], PARTS[2]], VECTORS[:1], 5), Ask([PARTS[1]], VECTORS[9:10], 3)]
        others = [Ask([PARTS[turn]], VECTORS[:1], 5)]  # of other masks
        for given_up in (others, asks, others, asks):
            machine.fault = OutOfMemoryError()
            with pytest.raises(TierUnavailable):
                arena.best(given_up)
            found = arena.best(asks)
            assert [0, 9] == [nearest.slots[0] for (nearest,) in found]


def test_the_use_that_mutants_break_is_sound():
    """Unchanged it finds the vectors that it asks for."""
    machine = Machine()
    use(CudaArena(StrictDevice(machine)._library, SHAPE), machine)


@pytest.mark.parametrize(("change", "error", "says"), [mutant[1:] for mutant in MUTANTS], ids=[m[0] for m in MUTANTS])
def test_a_mutant_is_caught(change, error, says):
    """Each lacks one wait, one event or one care."""
    machine = Machine()
    arena = CudaArena(StrictDevice(machine)._library, SHAPE)
    change(arena)
    with pytest.raises(error, match=says):
        use(arena, machine)

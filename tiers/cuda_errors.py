"""CuPy's errors in our words: what sheds one query, and what only a new process heals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tiers.errors import DeviceLost, ServiceMissing, TierUnavailable

OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation, and CUDA_ERROR_OUT_OF_MEMORY
NOT_ALLOCATED = 3  # CUBLAS_STATUS_ALLOC_FAILED


@contextmanager
def told(xp: Any) -> Iterator[None]:
    """Translate. TierUnavailable: nothing was changed, ask again. DeviceLost: anything else that CUDA says.

    After an illegal address, a failed launch or an uncorrectable error every later call fails too, and which call says
    so first is chance, since most only put work on a stream. So no other error is believed to be harmless.
    """
    cuda = xp.cuda
    try:
        yield
    except ImportError as error:
        raise ServiceMissing(f"CuPy lacks a library of CUDA ({error}): install isotherm[gpu-cuda12] anew") from error
    except cuda.memory.OutOfMemoryError as error:
        raise TierUnavailable(f"the GPU has no memory left for this search: {error}") from error
    except (cuda.runtime.CUDARuntimeError, cuda.driver.CUDADriverError) as error:
        if error.status == OUT_OF_MEMORY:
            raise TierUnavailable(f"the GPU has no memory left for this search: {error}") from error
        raise DeviceLost(f"the GPU failed: {error}; a restart reads the log again and loses nothing") from error
    except cuda.cublas.CUBLASError as error:
        if error.status == NOT_ALLOCATED:
            raise TierUnavailable(f"the GPU has no memory left for this search: {error}") from error
        raise DeviceLost(f"cuBLAS failed: {error}; a restart reads the log again and loses nothing") from error

"""The product's kernels on the CPU: the same file, compiled by g++ with CUDA's words defined (shim.cpp)."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np

from tiers import kernels

SHIM = Path(__file__).parent / "shim.cpp"
ORDERS = 3  # in which threads of a block run between two barriers: first to last, last to first, mixed


class KernelError(Exception):
    """A launch that a GPU would hang at, or refuse."""


class Kernels:
    """A compiled file. Launches run at once, on the caller's thread."""

    def __init__(self, source: str) -> None:
        self.digest = sha256(source.encode()).hexdigest()
        compiler = shutil.which("g++") or shutil.which("clang++")
        assert compiler, "the tests of the GPU's kernels need a C++ compiler: apt-get install g++"
        with tempfile.TemporaryDirectory() as folder:
            file, library = Path(folder, "scan.cu"), Path(folder, "kernels.so")
            file.write_text(source)
            command = [compiler, "-std=c++17", "-O0", "-shared", "-fPIC", "-fno-strict-aliasing", "-w"]
            command += ["-U_FORTIFY_SOURCE", f'-DKERNELS="{file}"', str(SHIM), "-o", str(library)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            loaded = ctypes.CDLL(str(library))
        self._run, self._kinds = loaded.run_kernel, loaded.kernel_kinds
        self._run.restype = self._kinds.restype = ctypes.c_char_p

    def kinds(self, name: str) -> str:
        """Return a letter for each argument: p a pointer, i an int, l eight bytes."""
        found: bytes = self._kinds(name.encode())
        return found.decode()

    def launch(self, name: str, grid: tuple[int, ...], threads: int, words: Sequence[int], order: int = 0) -> None:
        """Run a kernel with arguments that are all pointers and whole numbers; KernelError."""
        given = np.array(words, np.int64)
        turn = np.arange(threads, dtype=np.int32)
        turn = (turn, turn[::-1], np.random.default_rng(7).permutation(turn))[order].copy()
        grid_x, grid_y = (*grid, 1)[:2]
        complaint = self._run(
            name.encode(), grid_x, grid_y, threads, _pointer(turn), _pointer(given), ctypes.c_int(len(given))
        )
        if complaint:
            raise KernelError(complaint.decode())


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@cache
def product() -> Kernels:
    """Return the product's own kernels, compiled once a run."""
    return Kernels(kernels.source())

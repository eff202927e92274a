"""A node's process has the threads that its parts own, and none that a library would start by itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.unit

NODE = """
import asyncio
import pyarrow as pa
from pipeline import cli, serve, threads

class Opened(Exception): pass

def opened(*_): raise Opened

serve.HttpService = opened
try:
    asyncio.run(serve.serve(None))
except Opened:
    pass
import ctypes, glob, numpy, os, sys
(blas,) = glob.glob(os.path.join(os.path.dirname(numpy.__file__), "..", "numpy.libs", "libscipy_openblas*"))
count = ctypes.CDLL(blas).scipy_openblas_get_num_threads64_()
print(pa.cpu_count(), pa.io_thread_count(), count, sys.getswitchinterval())
"""


def test_arrow_and_blas_have_one_thread_each_and_none_waits_long():
    """What `isotherm serve` sets before it opens anything: the cores are for the node's own threads."""
    told = subprocess.run([sys.executable, "-c", NODE], capture_output=True, text=True, check=True).stdout

    assert ["1", "1", "1", "0.0005"] == told.splitlines()[-1].split()


def test_what_a_node_has_when_it_is_open_is_not_looked_at_again():
    """A full collection of garbage passes over what was there when the node had opened."""
    code = "import gc; from pipeline import serve, threads; threads.opened(); print(gc.get_freeze_count())"
    code = f"{code}; print(len(gc.get_objects()))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    frozen, looked_at = map(int, told)

    assert looked_at < 1_000 < frozen

"""NVRTC without a GPU: the library of the wheel nvidia-cuda-nvrtc, by ctypes. It needs no driver, and no header."""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from tiers import kernels


class Compiled(NamedTuple):
    """What a source became for one architecture: text and machine code, and the hash of the source."""

    digest: str
    ptx: str
    cubin: bytes
    log: str


@cache
def library() -> ctypes.CDLL:
    """Return the library."""
    found = importlib.util.find_spec("nvidia")
    assert found is not None
    assert found.submodule_search_locations, "pip install nvidia-cuda-nvrtc"
    files = [file for folder in found.submodule_search_locations for file in Path(folder).rglob("libnvrtc.so.*")]
    assert files, "pip install nvidia-cuda-nvrtc"
    return ctypes.CDLL(str(files[0]))


def version() -> tuple[int, int]:
    """Return NVRTC's version."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    assert library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)) == 0
    return major.value, minor.value


@cache
def compiled(source: str, architecture: str) -> Compiled:
    """Compile as the product does (the options are its own); AssertionError with the log where that fails."""
    program = ctypes.c_void_p()
    data = source.encode()
    assert library().nvrtcCreateProgram(ctypes.byref(program), data, b"scan.cu", 0, None, None) == 0
    try:
        options = [*kernels.OPTIONS, f"--gpu-architecture={architecture}"]
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        done = library().nvrtcCompileProgram(program, len(options), given)
        log = _text(program, "ProgramLog")
        assert done == 0, log.decode()
        ptx, cubin = _text(program, "PTX"), _text(program, "CUBIN")
    finally:
        library().nvrtcDestroyProgram(ctypes.byref(program))
    return Compiled(sha256(data).hexdigest(), ptx.decode(), cubin, log.decode())


def _text(program: Any, what: str) -> bytes:
    size = ctypes.c_size_t()
    assert getattr(library(), f"nvrtcGet{what}Size")(program, ctypes.byref(size)) == 0
    text = ctypes.create_string_buffer(size.value)
    assert getattr(library(), f"nvrtcGet{what}")(program, text) == 0
    return text.raw.removesuffix(b"\0")

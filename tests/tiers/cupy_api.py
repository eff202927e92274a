"""What the real CuPy has: its names and signatures, taken from the package itself and kept in cupy_api.json.

CuPy imports without a GPU, so the list is made on any machine with the wheel in a folder of its own:

    pip install --target /some/folder cupy-cuda12x==14.2.0
    PYTHONPATH=/some/folder python tests/tiers/cupy_api.py > tests/tiers/cupy_api.json

`functions` are callables (ufuncs too) with their parameters, None where CuPy documents none; `values` are the other
names; `ndarray` is what an array has, `classes` what the classes have that hot uses. Defaults are all written None:
what matters is which parameters there are. The module of cuBLAS does not import without that library, which is large,
so its functions and constants are read from the compiled file, which has them as text.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from operator import attrgetter
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "cupy_api.json"
BLAS = "cuda.cublas"
SPACES = ("", "cuda", "cuda.runtime", "cuda.driver", "cuda.memory", BLAS)
CLASSES = ("RawModule", "cuda.Device", "cuda.Event", "cuda.MemoryPool", "cuda.Stream")


def load() -> dict[str, Any]:
    """Return the list."""
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


def signature(parameters: str) -> inspect.Signature:
    """Return the signature of "a, axis=None, *, out=None"."""
    return inspect.signature(eval(f"lambda {parameters}: None"))


def made(cupy: Any) -> dict[str, Any]:
    """Return the list for an imported CuPy."""
    out: dict[str, Any] = {"cupy": cupy.__version__, "functions": {}, "values": [], "classes": {}}
    for name in CLASSES:
        found = attrgetter(name)(cupy)
        out["classes"][name] = sorted(each for each in dir(found) if not each.startswith("_"))
    (file,) = Path(cupy.__file__).parent.parent.glob("cupy_backends/cuda/libs/cublas.*.so")
    binary = file.read_bytes().decode("latin-1")
    for name, parameters in re.findall(r"[\0\n](\w+)\((intptr_t handle[^()\0]*)\)(?: ->[^\0]*)?(?=\0)", binary):
        out["functions"][f"{BLAS}.{name}"] = _text(signature(re.sub(r"(?:\w+ )+(\w+)", r"\1", parameters)))
    out["values"] += sorted({f"{BLAS}.{name}" for name in re.findall(r"(?<=[\0.])CUBLAS\w+(?=[\0.])", binary)})
    for space in SPACES[:-1]:
        module = cupy
        for part in filter(None, space.split(".")):
            module = getattr(module, part)
        for name in sorted(dir(module)):
            thing, full = getattr(module, name), f"{space}.{name}".lstrip(".")
            if name.startswith("_") or thing is None:
                continue
            if callable(thing) and not isinstance(thing, type):
                out["functions"][full] = _parameters(thing)
            else:
                out["values"].append(full)
    array = cupy.ndarray
    names = [name for name in sorted(dir(array)) if not re.fullmatch(r"_[^_].*", name)]
    methods = [name for name in names if callable(getattr(array, name)) and not name.startswith("__")]
    out["ndarray"] = {
        "methods": {name: _parameters(getattr(array, name)) for name in methods},
        "attributes": [n for n in names if not callable(getattr(array, n)) and not n.startswith("__")],
        "operators": [name for name in names if name.startswith("__") and callable(getattr(array, name))],
    }
    return out


def _parameters(thing: Any) -> str | None:
    """Return the parameters, from Python's view of the function or from the first line of its documentation."""
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):
        line = (thing.__doc__ or "").strip().split("\n")[0]
        text = re.match(r"(?:\w+\.)?\w+\((.*?)\)(?: ->.*)?$", line.replace("\\", ""))  # an alias has another's name
        if text is None:
            return None
        # Cython writes C types before names ("_ndarray_base a"), and defaults that Python need not know.
        cut = re.sub(r"=(\([^)]*\)|[^,]*)", "=None", text[1])
        cut = re.sub(r"\b\w+ (\w+)", r"\1", cut)
        try:
            found = signature(cut)
        except SyntaxError:
            return None
    return _text(found)


def _text(found: inspect.Signature) -> str:
    """Return a signature as Python writes parameters, without annotations, every default None."""
    bare = [
        one.replace(annotation=one.empty, default=None if one.default is not one.empty else one.empty)
        for one in found.parameters.values()
        if one.name != "self"
    ]
    return str(inspect.Signature(bare))[1:-1]


if __name__ == "__main__":
    import cupy as real

    json.dump(made(real), sys.stdout, indent=0, sort_keys=True)
    sys.stdout.write("\n")

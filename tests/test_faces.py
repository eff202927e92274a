"""The packages' faces: every promised name is there, and asking for one loads no engine (design §7)."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

PACKAGES = ("tiers", "producers", "consumers", "pipeline")
ENGINES = ("faiss", "duckdb", "deltalake", "redis", "cupy")
NAMES = [(package, name) for package in PACKAGES for name in importlib.import_module(package).__all__]


def loaded_by(statement: str) -> list[str]:
    """Return which engines a fresh interpreter has loaded after a statement."""
    code = f"import sys; {statement}; print(*(e for e in {ENGINES!r} if e in sys.modules))"
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    "statement",
    [
        "import producers; producers.MemoryProducer",
        "import consumers; consumers.subscribe_changes",
        "import tiers; tiers.Query; tiers.Receipt",
        "import tiers; tiers.HotMemory",
        "import pipeline.client; pipeline.client.AsyncClient",
        "import tiers, producers, consumers, pipeline",
    ],
)
def test_a_program_loads_only_what_it_asks_for(statement):
    """Publishing, subscribing and the shared words need no engine of any tier."""
    assert [] == loaded_by(statement)


@pytest.mark.parametrize(("package", "name"), NAMES, ids=[".".join(pair) for pair in NAMES])
def test_every_promised_name_is_there(package, name):
    """What `__all__` lists can be imported."""
    assert getattr(importlib.import_module(package), name) is not None


@pytest.mark.parametrize("package", PACKAGES)
def test_a_name_that_was_not_promised_is_missing(package):
    """Asking for anything else is an AttributeError, as of any module."""
    with pytest.raises(AttributeError, match="no attribute"):
        _ = importlib.import_module(package).no_such_name


@pytest.mark.parametrize("package", PACKAGES)
def test_the_table_of_names_is_whole(package):
    """`__all__` is sorted and lists exactly what the lazy table knows."""
    module = importlib.import_module(package)

    assert sorted(module._HOMES) == list(module.__all__)

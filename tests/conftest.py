"""One stack of real servers for a whole run, started when the first test asks; tests keep apart by prefix."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import asyncio
import threading
import uuid
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop

from pipeline.stack import Stack

pytest.register_assert_rewrite(
    "tests.tiers.contract", "tests.tiers.strict", "tests.nodes", "tests.pipeline.memory_model"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --loop: the whole suite on asyncio's loop or on uvloop."""
    parser.addoption("--loop", choices=("asyncio", "uvloop"), default="asyncio", help="event loop for all tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a GPU unless it is asked for (-m gpu); asked for, it fails without one."""
    if "gpu" in config.getoption("-m"):
        return
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Callable[[], Any]]:
    """Give pytest-asyncio the loop that was asked for; tests marked `both_loops` run on either."""
    loops = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    if item.get_closest_marker("both_loops"):
        return loops
    name = config.getoption("--loop")
    return {name: loops[name]}


class StackThread:
    """A stack on an event loop of its own, so that tests may each have theirs."""

    def __init__(self, stack: Stack) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.stack = stack

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine of the stack and return what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(120)

    def close(self) -> None:
        """End the loop."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="session")
def stack_thread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackThread]:
    """The stack with its thread, for tests that kill and restart servers."""
    thread = StackThread(Stack(tmp_path_factory.mktemp("stack"), kafka_heap_mb=2_048))  # topics of a hundred nodes
    thread.do(thread.stack.__aenter__())
    try:
        yield thread
    finally:
        thread.do(thread.stack.stop())
        thread.close()


@pytest.fixture(scope="session")
def stack(stack_thread: StackThread) -> Stack:
    """Kafka at `stack.kafka`, Valkey at `stack.redis`, shared by all tests of the run."""
    return stack_thread.stack


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """SeaweedFS at `s3.s3`, with its keys in `s3.credentials`, and no other server."""
    thread = StackThread(Stack(tmp_path_factory.mktemp("s3")))
    thread.do(thread.stack.start("s3"))
    try:
        yield thread.stack
    finally:
        thread.do(thread.stack.stop())
        thread.close()


@pytest.fixture
def prefix() -> str:
    """A topic and key prefix that no other test has."""
    return f"t-{uuid.uuid4().hex[:12]}"

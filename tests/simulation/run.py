"""Runs seeds, on one core or on many, and tells of the first that breaks a rule."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import structlog

from tests.simulation import plan
from tests.simulation.checker import Violation
from tests.simulation.world import World
from tiers import index, segment, steps

PART = 50  # seeds that one process takes at a time
SMALL = 8  # entries of a segment: so few that ids spread over several
STEP = 2  # rows of a step of the loop: a move is several


class Outcome(NamedTuple):
    """What came of some seeds: how many were run, in how many CPU seconds, and the first that failed."""

    seeds: int
    seconds: float
    failed: int | None = None
    error: BaseException | None = None
    trace: tuple[str, ...] = ()


@contextmanager
def simulated():
    """Make the product small and silent meanwhile."""
    former, step, looks = segment.SEGMENT_ROWS, steps.STEP_ROWS, steps.LOOKS
    config = structlog.get_config()
    segment.SEGMENT_ROWS = index.SEGMENT_ROWS = SMALL
    steps.STEP_ROWS, steps.LOOKS = STEP, 1
    structlog.configure(
        processors=[],
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        cache_logger_on_first_use=False,
    )
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # coroutines that a kill ended before they began
            yield
            gc.collect()
    finally:
        gc.enable()
        gc.unfreeze()
        segment.SEGMENT_ROWS = index.SEGMENT_ROWS = former
        steps.STEP_ROWS, steps.LOOKS = step, looks
        structlog.configure(**config)


def world(seed: int, broken: frozenset[str] = frozenset(), focus: str = "") -> World:
    """Return the world of a seed, not yet run."""
    return World(plan.of(seed, focus), broken)


def search(
    seeds: Iterable[int], broken: frozenset[str] = frozenset(), focus: str = "", seconds: float = 1e9
) -> Outcome:
    """Run seeds until one fails, there are no more, or the time is over."""
    began = time.process_time()
    count = 0
    with simulated():
        for seed in seeds:
            count += 1
            one = world(seed, broken, focus)
            try:
                one.run()
            except Violation as error:
                return Outcome(count, time.process_time() - began, seed, error, tuple(one.trace))
            except AssertionError as error:  # the product's own
                return Outcome(count, time.process_time() - began, seed, error, tuple(one.trace))
            if not count % 50:
                gc.collect()
            if time.process_time() - began > seconds:
                break
    return Outcome(count, time.process_time() - began)


def spread(
    seeds: range,
    jobs: int,
    broken: frozenset[str] = frozenset(),
    focus: str = "",
    seconds: float = 1e9,
    progress: Callable[[Outcome], None] = lambda _: None,
) -> Outcome:
    """Run seeds on so many processes; the first that fails is the lowest, as on one.

    `progress` is told of what was run so far, each time that a part is done. Seconds are CPU seconds of all.
    """
    parts = [seeds[start : start + PART] for start in range(0, len(seeds), PART)]
    done = Outcome(0, 0.0)
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for found in pool.imap(partial(search, broken=broken, focus=focus), parts):
            done = found._replace(seeds=done.seeds + found.seeds, seconds=done.seconds + found.seconds)
            progress(done)
            if done.failed is not None or done.seconds > seconds:
                break
    return done

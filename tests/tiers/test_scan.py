"""Questions that come while one of their kind is being scanned share the next scan."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tests.tiers.rows import row
from tests.tiers.shelves import World
from tiers import read
from tiers.deadline import Deadline
from tiers.running import Running
from tiers.scan import SHARED_MAX, Scanner
from tiers.tier import Query, Result, TierName
from tiers.worker import SerialExecutor

pytestmark = pytest.mark.unit

QUESTIONS = [row(f"question-{at}", 1).vector for at in range(SHARED_MAX + 4)]


class Gate:
    """Hot, whose scans wait until they may go on."""

    name = TierName.HOT

    def __init__(self, world: World) -> None:
        self._hot = world.hot
        self.scans: list[int] = []  # how many questions each had
        self.begun = asyncio.Semaphore(0)
        self.open = asyncio.Event()

    def __getattr__(self, name):
        return getattr(self._hot, name)

    async def scan(self, snapshot, queries, k, only=None):
        self.scans.append(len(queries))
        self.begun.release()
        await self.open.wait()
        return await self._hot.scan(snapshot, queries, k, only)


@pytest.fixture
async def world():
    world = World()
    for at in range(40):
        await world.place(row(f"id-{at}", at + 1, attributes={"rank": at}), TierName(at % 4))
    return world


@pytest.fixture
def gate(world):
    return Gate(world)


@pytest.fixture
def scanner():
    scanner = Scanner(2)
    yield scanner
    scanner.close()


def ask(world: World, gate: Gate, scanner: Scanner, **asked) -> asyncio.Task[Result]:
    tiers = {TierName.HOT: gate, **world.shelves}
    return asyncio.create_task(read.retrieve(world.index, tiers, Query(**asked), scanner))


async def first(world: World, gate: Gate, scanner: Scanner, **asked) -> asyncio.Task[Result]:
    """Return a question whose scan has begun."""
    task = ask(world, gate, scanner, vector=QUESTIONS[0], **asked)
    await gate.begun.acquire()
    return task


async def test_those_who_wait_share_a_scan_and_get_their_own_answers(world, gate, scanner):
    """Twenty questions take three scans: one, sixteen, and the three that did not fit."""
    tasks = [await first(world, gate, scanner, explain=True)]
    tasks += [ask(world, gate, scanner, vector=vector, explain=True) for vector in QUESTIONS[1:]]
    await asyncio.sleep(0)
    gate.open.set()
    answers = await asyncio.gather(*tasks)

    assert [1, SHARED_MAX, 3] == gate.scans
    assert [0] + [SHARED_MAX - 1] * SHARED_MAX + [2] * 3 == [answer.explain["shared"] for answer in answers]
    for vector, answer in zip(QUESTIONS, answers, strict=True):
        alone = await world.retrieve(vector=vector)
        assert [(hit.row.id, hit.score) for hit in alone.hits] == [(hit.row.id, hit.score) for hit in answer.hits]
        assert (40, 40, True) == (answer.scanned, answer.of, answer.complete)


async def test_other_questions_do_not_wait(world, gate, scanner):
    """Another filter is another kind: its scan begins at once."""
    tasks = [await first(world, gate, scanner)]
    tasks += [ask(world, gate, scanner, vector=QUESTIONS[0], filter=f"rank < {most}") for most in (10, 20)]
    async with asyncio.timeout(5):
        await gate.begun.acquire()
        await gate.begun.acquire()
    gate.open.set()
    answers = await asyncio.gather(*tasks)

    assert {f"id-{at}" for at in range(10)} == {hit.row.id for hit in answers[1].hits}


async def test_a_question_given_up_costs_the_others_nothing(world, gate, scanner):
    """The one that scans is cancelled, and so is one that waits: the third is answered."""
    leader = await first(world, gate, scanner)
    given_up, waiting = (ask(world, gate, scanner, vector=QUESTIONS[at]) for at in (1, 2))
    await asyncio.sleep(0)
    leader.cancel()
    given_up.cancel()
    gate.open.set()

    assert 10 == len((await waiting).hits)
    assert [1, 1] == gate.scans
    assert (await world.hot.usage()).rows == 10
    assert 10 == len((await ask(world, gate, scanner, vector=QUESTIONS[3])).hits), "the kind is free again"


async def test_who_waits_too_long_is_told_what_was_missed(world, gate, scanner):
    """The deadline of a question that waits is its own."""
    leader = await first(world, gate, scanner)
    late = await ask(world, gate, scanner, vector=QUESTIONS[1], deadline_ms=20)
    gate.open.set()

    assert ([], 0, 40, ["cold", "glacier", "hot", "warm"]) == (late.hits, late.scanned, late.of, late.missed)
    assert (await leader).complete


async def test_a_scan_that_fails_fails_for_all_who_shared_it(world, gate, scanner, monkeypatch):
    """An error is raised once for each who asked, and the next question is answered again (R9)."""
    leader = await first(world, gate, scanner)
    waiting = [ask(world, gate, scanner, vector=QUESTIONS[at]) for at in (1, 2)]
    await asyncio.sleep(0)

    async def broken(*_):
        raise ValueError("broken")

    with monkeypatch.context() as patched:
        patched.setattr(gate._hot, "scan", broken)
        gate.open.set()
        found = await asyncio.gather(leader, *waiting, return_exceptions=True)
    assert ["broken"] * 3 == [str(error) for error in found]
    assert 10 == len((await ask(world, gate, scanner, vector=QUESTIONS[3])).hits)


async def test_what_a_thread_has_not_begun_by_the_deadline_never_runs():
    """The answer is what each had by then; a job that waits for a thread is given up with it."""
    pool, taken, go_on, begun = SerialExecutor("one"), threading.Event(), threading.Event(), []

    def first():
        yield "had"
        taken.set()
        go_on.wait(20)
        yield "late"

    def second():
        begun.append("second")
        yield "never"

    with Running(pool, [first, second]) as running:
        await asyncio.to_thread(taken.wait, 20)
        assert [["had"], []] == await running.by(Deadline(50))
    go_on.set()
    await pool.run(lambda: None)  # behind everything that was submitted
    pool.close()

    assert not begun

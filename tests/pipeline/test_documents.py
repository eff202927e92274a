"""What the documents show is run: their requests answer, their programs print."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pytest

from pipeline import MemoryManager
from pipeline.problems import PROBLEMS
from pipeline.routes import Gateway
from pipeline.serve import HttpService
from pipeline.stack import Stack
from producers import MemoryProducer
from tests.nodes import rows, small
from tests.pipeline.test_questions import Service, service
from tiers import record

__all__ = ["service"]

DOCS = Path(__file__).parents[2] / "docs"
ASKING = (DOCS / "asking.md").read_text()
CLIENTS = (DOCS / "clients.md").read_text()
README = (DOCS.parent / "README.md").read_text()
HTTP = (DOCS / "http.md").read_text()
KINDS = re.compile(r"`([a-z]+(?:-[a-z]+)*)`")


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


async def test_every_request_of_asking_is_answered(service: Service) -> None:
    """Each block is a request line and perhaps a body, and gets an answer that has something in it."""
    for block in blocks(ASKING, "http"):
        line, _, body = block.partition("\n")
        method, path = line.split()
        answer = await service.http.request(method, path, content=body.strip() or None)

        assert answer.status_code == 200, f"{block} -> {answer.text}"
        assert answer.text.strip() not in ("", "{}"), block
        assert '"hits":[]' not in answer.text, block


@pytest.fixture
async def words(stack: Stack, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """The address of a node that takes words; the environment says where its Kafka is."""
    settings = small(stack, prefix, tmp_path / "node", dim=256, embedder="wordllama", policy__hot_age_s=3_600.0)
    for name, value in {"BOOTSTRAP": stack.kafka, "PREFIX": prefix, "PARTITIONS": "4"}.items():
        monkeypatch.setenv(f"ISOTHERM_KAFKA__{name}", value)
    http = HttpService(settings)
    async with MemoryManager.open(settings, http) as memory:
        http.gateway = Gateway(memory)
        await memory.ready()
        yield http.address


async def run(program: str, address: str, names: dict[str, Any]) -> None:
    """Run a block as written, but for the gateway's address; `await` may stand at its top, blocking calls too."""
    code = program.replace("http://127.0.0.1:8080", address)
    made = FunctionType(compile(code, "<document>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
    await (made() if inspect.iscoroutinefunction(made) else asyncio.to_thread(made))


async def test_the_programs_of_readme_and_publishing_run(
    words: str, stack: Stack, prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what the reader brings (a vector, settings, rows): the producer, the client, and a node of one's own."""
    own = small(stack, f"{prefix}-own", tmp_path / "own")
    some = rows(3)
    vector = np.ones(256, np.float32)
    for program in blocks(README, "python"):
        brought = {"vector": vector, "settings": own, "records": some, "v": some[0].vector}
        await run(program, words, brought)
    assert "notes/1" in capsys.readouterr().out
    batch = record.to_batch([replace(row, vector=vector, attributes={}) for row in some], record.schema(256, {}))
    for program in blocks((DOCS / "publishing.md").read_text(), "python"):
        await run(program, words, {"MemoryProducer": MemoryProducer, "vector": vector, "record_batch": batch})


async def test_the_programs_of_clients_run(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Block after block, as if they were one."""
    names: dict[str, Any] = {}
    for program in blocks(CLIENTS, "python"):
        await run(program, words, names)
    said = capsys.readouterr().out

    assert "['notes/tea'] True" in said
    assert "1 vector vector_dim" in said
    assert "not-found" in said


@pytest.mark.skipif(shutil.which("curl") is None, reason="the lines are curl's")
async def test_the_curl_lines_of_the_readme_answer(words: str) -> None:
    """A search is answered; the feed begins, and goes on until it is cut."""
    marked = re.search(r"<!-- curl.*?```sh\n(.*?)```", README, re.DOTALL)
    assert marked is not None
    search, feed = marked[1].strip().splitlines()
    here = words.removeprefix("http://")
    answer = await shell(search.replace("localhost:8080", here))
    assert '"complete":true' in answer
    assert "retry:" in await shell(feed.replace("localhost:8080", here).replace("curl", "curl --max-time 1"))


async def shell(line: str) -> str:
    """Run a line of shell; returns what it printed."""
    child = await asyncio.create_subprocess_shell(line, stdout=asyncio.subprocess.PIPE)
    out, _ = await child.communicate()
    return out.decode()


async def test_every_request_of_http_is_answered(service: Service) -> None:
    """In their order: what one clears, a later one does not ask for."""
    for block in blocks(HTTP, "http"):
        line, _, body = block.partition("\n")
        method, path = line.split()
        answer = await service.http.request(method, path, content=body.strip() or None)

        assert answer.is_success, f"{block} -> {answer.text}"
        assert answer.text.strip() not in ("", "{}"), block


def test_the_table_of_problems_has_every_type_with_its_status() -> None:
    """Each type of the gateway is in the row of its status, and nothing else is."""
    rows = re.findall(r"^\| ([\d, ]+) \| (.*) \|$", HTTP, re.MULTILINE)
    told = {(int(status), kind) for given, text in rows for kind in KINDS.findall(text) for status in given.split(",")}
    for kind, (status, _) in PROBLEMS.items():
        assert (status, kind) in told, kind
    assert {kind for _, kind in told} == PROBLEMS.keys()


async def test_the_arrow_program_of_asking_prints_hits(service: Service, capfd: pytest.CaptureFixture[str]) -> None:
    """The program runs as written, but for the gateway's address."""
    (program,) = blocks(ASKING, "python")
    given = program.replace("http://127.0.0.1:8080", str(service.http.base_url).rstrip("/"))
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", given)

    assert await child.wait() == 0
    assert "id-1" in capfd.readouterr().out

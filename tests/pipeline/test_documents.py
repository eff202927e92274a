"""What the documents show is run: their requests answer, their programs print."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest

from pipeline.problems import PROBLEMS
from tests.pipeline.test_questions import Service, service

__all__ = ["service"]

DOCS = Path(__file__).parents[2] / "docs"
ASKING = (DOCS / "asking.md").read_text()
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

"""Schemathesis asks a live gateway what its OpenAPI document allows, and what it does not.

No 5xx, no status, content type, header or body that the document does not have, no wrong input taken. This is a slice
with a fixed seed; `make fuzz` goes on for ISOTHERM_FUZZ_S seconds with another seed each time.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pipeline.stack import Stack
from tests.live import Live, live
from tests.nodes import small

CONFIG = Path(__file__).parents[1] / "fuzz" / "schemathesis.toml"
SECONDS = float(os.environ.get("ISOTHERM_FUZZ_S", "0"))
SLICE_S = 16


@pytest.fixture
def node(stack: Stack, prefix: str, tmp_path: Path) -> Iterator[Live]:
    """A node whose records move while it is asked."""
    ages = {"policy__hot_age_s": 2.0, "policy__warm_idle_s": 4.0, "policy__cold_idle_s": 8.0}
    with live(small(stack, prefix, tmp_path / "node", log__level="error", **ages)) as node:
        yield node


@pytest.mark.timeout(SECONDS + 120)
def test_the_gateway_answers_everything_as_documented(node: Live, tmp_path: Path) -> None:
    """Examples, edges of every schema, random input, and chains of requests; the node lives through all of it."""
    with httpx.Client(base_url=node.address) as http:
        content = http.get("/openapi.json").json()["paths"]["/v1/memories"]["post"]["requestBody"]["content"]
        for example in content["application/json"]["examples"].values():
            http.post("/v1/memories", json=example["value"]).raise_for_status()
    seed = secrets.randbelow(2**32) if SECONDS else 1
    schemathesis = Path(sys.executable).parent / "schemathesis"
    asked = [schemathesis, "--no-color", "--config-file", CONFIG, "run", f"{node.address}/openapi.json"]
    asked += ["--seed", str(seed), "--max-time", str(int(SECONDS or SLICE_S)), "--warnings", "off"]
    asked += ["-n", "100" if SECONDS else "5", *([] if SECONDS else ["--phases", "examples,coverage,fuzzing"])]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, cwd=tmp_path)

    print(done.stdout)  # noqa: T201 - figures, and how to ask it again
    assert 0 == done.returncode, done.stdout[-20_000:] + done.stderr[-2_000:]
    with httpx.Client(base_url=node.address) as http:
        assert 200 == http.get("/readyz").status_code

"""Nodes on the run's real servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.settings import Settings
from pipeline.stack import Stack
from tests.nodes import small


@pytest.fixture
def settings(stack: Stack, prefix: str, tmp_path: Path) -> Settings:
    """A node whose records stay hot: ageing is what a test asks for."""
    return small(stack, prefix, tmp_path / "node", policy__hot_age_s=3_600.0)


@pytest.fixture
def ageing(stack: Stack, prefix: str, tmp_path: Path) -> Settings:
    """A node whose records go all the way down within a second or two."""
    return small(
        stack,
        prefix,
        tmp_path / "node",
        policy__hot_age_s=0.2,
        policy__warm_idle_s=0.6,
        policy__cold_idle_s=0.9,
        access__flush_ms=3_600_000,  # reading must not keep the records of a test from ageing
    )

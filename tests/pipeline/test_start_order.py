"""The order of a start (R4a): on real servers, as the node itself goes through it."""

from __future__ import annotations

import pytest

from consumers.clearing import Clearing
from consumers.reader import Reader
from pipeline import MemoryManager, app
from pipeline.settings import Settings
from tiers.glacier import GlacierMemory
from tiers.warm import WarmMemory


async def test_the_epoch_is_raised_before_anything_is_read(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs of every partition in warm and glacier, then the index from each tier, then offsets, then clearings."""
    seen: list[str] = []

    def watch(owner: object, name: str) -> None:
        former = getattr(owner, name)

        async def noted(*given, **named):
            result = await former(*given, **named)
            seen.append(f"{getattr(owner, '__name__', '')}.{name}")
            return result

        monkeypatch.setattr(owner, name, noted)

    for owner, name in (
        (WarmMemory, "raise_epoch"),
        (GlacierMemory, "raise_epoch"),
        (app, "load"),
        (Reader, "seek"),
        (Clearing, "resume"),
    ):
        watch(owner, name)
    async with MemoryManager.open(settings) as memory:
        await memory.ready()
    raised = ["WarmMemory.raise_epoch", "GlacierMemory.raise_epoch"] * settings.kafka.partitions

    assert [*raised, *["pipeline.app.load"] * 3, "Reader.seek", "Clearing.resume"] == seen

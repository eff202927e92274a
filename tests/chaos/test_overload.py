"""A slice of the overload run: seconds of it, on the same promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.overload import overload


@pytest.mark.timeout(300)
async def test_ten_times_what_it_can_take(tmp_path: Path) -> None:
    """It pauses, answers in time, keeps to its memory, and has everything afterwards."""
    load = await overload(tmp_path, minutes=0.25, measure_s=4.0)
    assert [] == load.wrong, load.line

"""Warm on the stack's server and cold on a folder against the contract (glacier's is with its own tests)."""

from __future__ import annotations

import pytest

from tests.tiers.contract import PARTITIONS, TierContract
from tiers.cold import ColdMemory
from tiers.cold_settings import ColdSettings
from tiers.warm import WarmMemory
from tiers.warm_settings import WarmSettings


class TestWarm(TierContract):
    @pytest.fixture
    def server(self, stack):
        return stack

    async def open_tier(self, tmp_path, server, prefix, shape):
        settings = WarmSettings(url=server.redis, prefix=prefix)
        return await WarmMemory.open(settings, shape, partitions=PARTITIONS)


@pytest.mark.unit
class TestCold(TierContract):
    async def open_tier(self, tmp_path, server, prefix, shape):
        return await ColdMemory.open(ColdSettings(path=str(tmp_path / prefix)), shape, partitions=PARTITIONS)

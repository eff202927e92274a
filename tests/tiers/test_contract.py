"""The tiers that need no server against the contract: hot on the host and on a strict device, and the tests' fakes."""

from __future__ import annotations

import pytest

from tests.tiers.contract import PARTITIONS, TierContract
from tests.tiers.fake import FakeTier, Store
from tests.tiers.strict import StrictDevice
from tiers.alone import open_alone
from tiers.device import Device, HostDevice
from tiers.hot import HotMemory, HotSettings
from tiers.tier import TierName

pytestmark = pytest.mark.unit

SETTINGS = HotSettings(device="cpu", capacity_rows=4_096, slab_rows=64)


class TestHot(TierContract):
    durable = False
    in_memory = True
    device: type[Device] = HostDevice

    async def open_tier(self, tmp_path, server, prefix, shape):
        hot = HotMemory(SETTINGS, shape, partitions=PARTITIONS, device=self.device())
        await open_alone(hot, hot.index, PARTITIONS)
        return hot


class TestHotOnAStrictDevice(TestHot):
    device = StrictDevice


class TestFakeWarm(TierContract):
    name = TierName.WARM

    async def open_tier(self, tmp_path, server, prefix, shape):
        stores = self.__dict__.setdefault("_stores", {})
        return await FakeTier.open(self.name, stores.setdefault(prefix, Store()), shape, partitions=PARTITIONS)


class TestFakeCold(TestFakeWarm):
    name = TierName.COLD


class TestFakeGlacier(TestFakeWarm):
    name = TierName.GLACIER

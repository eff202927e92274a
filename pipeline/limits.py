"""How often and how many at once: a token bucket as a pure function of time, and a bounded map of buckets."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple


class Bucket(NamedTuple):
    """Tokens left as of a time in seconds; full when it was never asked."""

    tokens: float
    at_s: float


def take(bucket: Bucket | None, rate_per_s: float, burst: float, now_s: float) -> tuple[Bucket, float]:
    """Take one token; returns the bucket, and 0.0 if there was one, else the seconds until there is. Pure.

    `rate_per_s` tokens come back in a second, up to `burst`, which is at least one. Time that goes back adds nothing.
    """
    most = max(1.0, burst)
    if bucket is None:
        bucket = Bucket(most, now_s)
    elapsed = max(0.0, now_s - bucket.at_s)
    tokens = min(most, bucket.tokens + elapsed * rate_per_s)
    at_s = max(now_s, bucket.at_s)
    if tokens >= 1.0:
        return Bucket(tokens - 1.0, at_s), 0.0
    return Bucket(tokens, at_s), (1.0 - tokens) / rate_per_s


class Buckets:
    """Buckets by name, at most `most`: the one asked longest ago gives way, and is full when it comes again."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, name: str, rate_per_s: float, burst: float, now_s: float) -> float:
        """Take one token of a name; returns 0.0, or the seconds to wait."""
        self._buckets[name], wait_s = take(self._buckets.get(name), rate_per_s, burst, now_s)
        self._buckets.move_to_end(name)
        while len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return wait_s

"""What reads and requests are counted as; plain numbers that `metrics` shows."""

from __future__ import annotations

from collections import Counter, defaultdict

from producers.tally import Tally
from tiers.tier import Result, TierName
from tiers.trace import Trace

HOT = TierName.HOT.word


class ReadCounts:
    """`noted` is called for every read, `answered` for every one that came by a route."""

    def __init__(self) -> None:
        self.lookups: Counter[tuple[str, str]] = Counter()
        self.steps: defaultdict[str, Tally] = defaultdict(Tally)
        self.tiers: defaultdict[str, Tally] = defaultdict(Tally)
        self.queries: defaultdict[tuple[str, str], Tally] = defaultdict(Tally)

    def noted(self, trace: Trace | None, result: Result | None = None) -> None:
        """Count what one read did: the rows it asked for, and the time in its steps and tiers."""
        if trace is None:  # answered at once, from hot
            self.lookups[HOT, "found"] += 1
            return
        self.lookups += trace.lookups
        for step, seconds in trace.steps_s.items():
            self.steps[step].add(seconds)
        for tier, searched in result.searched.items() if result is not None else ():
            self.tiers[tier].add(searched["took_ms"] / 1000)

    def answered(self, route: str, result: Result) -> None:
        """Count an answer by route and by the coldest tier that it came from."""
        coldest = max([hit.tier for hit in result.hits], default=None)
        self.took(route, "none" if coldest is None else coldest.word, result.took_ms / 1000)

    def took(self, route: str, coldest: str, seconds: float) -> None:
        """Count an answer whose coldest record came from this tier."""
        self.queries[route, coldest].add(seconds)


class HttpCounts:
    """Requests by method, route template and status; time by route."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, str]] = Counter()
        self.seconds: defaultdict[str, Tally] = defaultdict(Tally)

    def answered(self, method: str, route: str, status: int, took_s: float) -> None:
        """Count one request."""
        self.requests[method, route, str(status)] += 1
        self.seconds[route].add(took_s)

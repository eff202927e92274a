"""Which records a query is about: a filter, a range of event time, namespaces. Pure.

The same criteria are asked twice: of the index's columns, to make the bitmap, and of fetched rows, because a row may
have been updated in between (R6).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiers import filter as filters
from tiers import record
from tiers.errors import InvalidRecord
from tiers.filter import Filter
from tiers.record import Int64s, Row
from tiers.tier import Query

TIME = pa.timestamp("ms", "UTC")


@dataclass(frozen=True, slots=True)
class Criteria:
    """All that are given must hold; `time_from` and `time_to` are ms since 1970, the second exclusive."""

    filter: Filter | None
    time_from: int | None
    time_to: int | None
    namespaces: frozenset[str] | None

    @classmethod
    def of(cls, query: Query, attributes: pa.StructType) -> Criteria | None:
        """Return the criteria of a query, None when every record will do; InvalidRecord for a filter that is none."""
        if query.time_from_ms is not None and query.time_to_ms is not None and query.time_from_ms >= query.time_to_ms:
            raise InvalidRecord("to", "the range of event time is empty: `from` is inclusive, `to` is not")
        parsed = filters.parse(query.filter, attributes) if query.filter is not None else None
        criteria = cls(parsed, query.time_from_ms, query.time_to_ms, query.namespaces)
        return None if criteria == cls(None, None, None, None) else criteria

    def mask(self, facts: pa.Table, event_time: Int64s) -> npt.NDArray[np.bool_]:
        """Return which rows pass the filter and the range of time (namespaces are a column of the index)."""
        passed = np.ones(len(event_time), bool)
        if self.time_from is not None:
            passed &= event_time >= self.time_from
        if self.time_to is not None:
            passed &= event_time < self.time_to
        if self.filter is not None and passed.any():
            used = self.filter.columns - {"event_time"}
            columns = {name: facts.column(name) for name in used}
            if "event_time" in self.filter.columns:
                columns["event_time"] = pa.chunked_array([pa.array(event_time).view(TIME)])
            passed &= self.filter.mask(columns, len(event_time))
        return passed

    def passing(self, rows: Sequence[Row], attributes: pa.StructType) -> list[Row]:
        """Return the fetched rows that meet the criteria as they are now."""
        if not rows:
            return []
        columns = [pa.array([row.id for row in rows], pa.string())]
        columns += [pa.array([row.attributes.get(field.name) for row in rows], field.type) for field in attributes]
        facts = pa.Table.from_arrays(columns, schema=pa.schema([pa.field("id", pa.string()), *attributes]))
        passed = self.mask(facts, np.array([row.event_time for row in rows], np.int64))
        if self.namespaces is not None:
            passed &= np.array([record.namespace(row.id) in self.namespaces for row in rows])
        return [row for row, passes in zip(rows, passed.tolist(), strict=True) if passes]

"""What the gateway and the metrics say of the codes that searches scan."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec
from prometheus_client.core import Metric

from pipeline.metric_names import family

if TYPE_CHECKING:
    from pipeline.app import Node


class Progress(msgspec.Struct, frozen=True):
    """How many segments have codes by the new codebook, of how many."""

    segments: int
    of: int


class Codes(msgspec.Struct, frozen=True):
    """`codebook` is its name, null before one is trained. `coded` rows are scanned by code, `waiting` by vector.

    `bytes` are those of both, `bytes_limit` 0 = none. `kept` codes are in the file for the next start. `recall` is the
    mean of the last questions (consumers/recall.py), null before the first; `reindex` null while none is under way.
    """

    codebook: str | None
    coded: int
    waiting: int
    bytes: int
    bytes_limit: int
    kept: int
    recall: float | None
    reindex: Progress | None


def codes(node: Node) -> Codes:
    """Return what there is now."""
    index, coder = node.index, node.coder
    segments = index.segments()
    under_way = coder.reindex.progress()
    return Codes(
        codebook=index.codebook.id if index.codebook is not None else None,
        coded=sum(segment.packed.rows for segment in segments if segment.packed is not None),
        waiting=sum(segment.rest.rows for segment in segments),
        bytes=index.code_bytes,
        bytes_limit=index.bytes_limit,
        kept=coder.kept,
        recall=node.recall.mean,
        reindex=None if under_way is None else Progress(**under_way),
    )


def codes_metrics(node: Node) -> Iterable[Metric]:
    """Yield gauges; `isotherm_codes_recall_ratio` only once there was a question."""
    said = codes(node)
    yield family("isotherm_codes_bytes", said.bytes)
    yield family("isotherm_codes_rows", said.coded)
    yield family("isotherm_codes_waiting_rows", said.waiting)
    yield family("isotherm_codebook_trained", said.codebook is not None)
    if said.recall is not None:
        yield family("isotherm_codes_recall_ratio", said.recall)
    yield family("isotherm_codes_questions_total", node.recall.asked)
    progress = said.reindex
    yield family("isotherm_reindex_ratio", 1.0 if progress is None else progress.segments / max(1, progress.of))

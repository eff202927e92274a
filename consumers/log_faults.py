"""What makes a log another one than the log that was read so far, in words that say what to do. Pure.

A version is a position in one log for ever. Whatever changes what a position means is refused, and only a person can
say what is to become of it: the tiers still hold what was durable, and `isotherm log adopt` goes on with a new epoch.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

from consumers.witness import Witness
from tiers.errors import LogChanged

ADOPT = "`isotherm log adopt` takes the log that is there as a new epoch: what lies in the tiers stays"
UNKNOWN = ""  # the id of a topic whose broker knows no ids (Kafka before 3.1)


class Identity(NamedTuple):
    """A topic: its id (UNKNOWN where the broker has none) and how many partitions it has."""

    topic: str
    id: str
    partitions: int


def fault(found: Identity, known_id: str, count: int) -> str | None:
    """Return what makes this another log than the one that was read so far, None where nothing does."""
    if found.partitions != count:
        return count_fault(found.topic, count, found.partitions)
    if UNKNOWN not in (found.id, known_id) and found.id != known_id:
        return (
            f"topic {found.topic} was deleted and made again: its id is {found.id}, and this data directory has read "
            f"{known_id}. Its offsets mean other records now. Restore the topic, or stop the node, and {ADOPT}"
        )
    return None


def count_fault(topic: str, wanted: int, count: int) -> str:
    """Return what to say of a log with another number of partitions than it was made with."""
    return (
        f"kafka.partitions = {wanted}, but topic {topic} has {count}: a record's partition must never change. If the "
        "setting is what changed, set the old number. If partitions were added, Kafka cannot take them away again: "
        f"copy what was written since, delete the topic, make it again with {wanted} partitions, and {ADOPT}; then "
        "publish the copy"
    )


def outside(topic: str, partition: int, position: int, begin: int, end: int) -> LogChanged:
    """Return the error for a position that the log does not have."""
    if position < begin:
        why = (
            f"Kafka has deleted what lay between (retention, or deleted records), and what of these {begin - position} "
            "offsets was not durable below hot yet is lost. Raise retention.ms of the topic"
        )
    else:
        why = "it was truncated, by a restored backup or an unclean leader election. Restore it"
    return LogChanged(
        f"{topic}[{partition}]: reading goes on at offset {position}, and the log has [{begin}, {end}]: {why}, "
        f"stop the node, and {ADOPT}"
    )


def rewritten(topic: str, partition: int, applied: Witness, found: Witness | None) -> LogChanged:
    """Return the error for a log that has another message where one was applied, or ends before it (None)."""
    then = _time(applied.timestamp_ms)
    there = "ends before it" if found is None else f"has another one there, of {_time(found.timestamp_ms)}"
    return LogChanged(
        f"{topic}[{partition}]: a message of {then} was applied at offset {applied.offset}, and the log {there}: it "
        "was cut off (an unclean leader election, a restored backup, a broker that lost power). Restore it; or stop "
        "the node, find out when the new part begins, and `isotherm log adopt --from` that time: what lies in the "
        "tiers stays, and whatever the log says from there on is newer"
    )


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat()


def stuck(topic: str, partition: int, position: int, end: int, for_s: float) -> LogChanged:
    """Return the error for a partition of which the broker says that there is more, and hands out nothing."""
    return LogChanged(
        f"{topic}[{partition}]: the log ends at {end}, and nothing after offset {position} was handed out for "
        f"{for_s:g} s: the broker refuses to read it; its own log says why (a damaged segment, a failed disk). "
        "Nothing was skipped. Mend the broker, and start the node again"
    )


def unreadable(error: Exception) -> LogChanged:
    """Return the error for what the client library could not read: it would go on behind it, and nothing may."""
    return LogChanged(
        f"the log cannot be read on: {error!r}. Nothing was skipped, and the start after this tries again from the "
        "committed offsets. If it comes back: kafka-dump-log.sh shows the damaged batch; restore the topic, or delete "
        f"the records up to it (kafka-delete-records.sh), and {ADOPT}"
    )

"""Spans of time as the catalog computes with them: half-open, cut, subtracted."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

#: Later than every instant that a catalog may name: the end of what has none.
OPEN: Final = datetime(9999, 12, 31, tzinfo=UTC)

Interval = tuple[datetime, datetime]


def interval(start: datetime, until: datetime | None, ended_at: datetime | None = None) -> list[Interval]:
    """[start, until) cut at `ended_at`; nothing if that leaves nothing."""
    end = min(until or OPEN, ended_at or OPEN)
    return [(start, end)] if end > start else []


def minus(spans: Iterable[Interval], taken: Iterable[Interval]) -> list[Interval]:
    """The parts of `spans` that no span of `taken` covers, in order of time."""
    left = list(spans)
    for taken_start, taken_until in taken:
        pieces = []
        for start, until in left:
            pieces += interval(start, min(until, taken_start))
            pieces += interval(max(start, taken_until), until)
        left = pieces
    return sorted(left)


def span_columns(span: Interval) -> dict[str, Any]:
    """The columns effective_from and effective_until of a frame; an open end is null."""
    return {"effective_from": span[0], "effective_until": None if span[1] == OPEN else span[1]}

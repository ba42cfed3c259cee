"""Heartbeats: how far each registered source says that it has sent, what is missing, and who fell silent.

A source counts its heartbeats 1, 2, 3, ...; one of number 1 begins a new run. A number that is missing holds the
source at the heartbeat before the gap until the missing one comes, or until an intervention accepts the gap.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, text

from metering.errors import BadInput
from metering.store import positions
from metering.store.findings import Finding

#: Kinds of findings of sources.
KINDS: Final = ("source_silent", "sequence_gap")

#: Sources that the newest catalog registers, and since when the catalog has known them.
_REGISTERED: Final = """
    SELECT name AS source, silent_after_seconds, registered_at FROM (
        SELECT DISTINCT ON (name) name, ended_at, (body->>'silent_after_seconds')::int AS silent_after_seconds,
            min(applied_at) OVER (PARTITION BY name) AS registered_at
        FROM catalog_objects JOIN catalog_revisions USING (catalog_revision)
        WHERE kind = 'source' ORDER BY name, catalog_revision DESC) newest
    WHERE ended_at IS NULL"""
_FOLDED: Final = (
    "JOIN ingest_batches b USING (batch_id) "
    "JOIN fold_positions f ON f.intake_id = b.intake_id AND b.sequence < f.next_sequence"
)


def _heartbeats(folded: bool) -> str:
    """The last heartbeats of every registered source, oldest first; a source without one has one row of nulls.

    What the last watermark calls complete stays so, whatever is missing before it: of the heartbeats that
    end before it one suffices, to go on from.
    """
    joined = _FOLDED if folded else ""
    appended = "coalesce(b.appended_until, occurred_at)" if folded else "occurred_at"
    return f"""
    WITH registered AS MATERIALIZED ({_REGISTERED}),
    pinned AS (SELECT max(complete_until) AS until FROM watermarks)
    SELECT r.*, h.sequence, h.occurred_at, h.complete_until, h.appended_until FROM registered r CROSS JOIN pinned p
    LEFT JOIN sources s USING (source)
    LEFT JOIN LATERAL (SELECT occurred_at FROM heartbeats {joined}
        WHERE source_id = s.source_id AND complete_until < p.until
        ORDER BY occurred_at DESC LIMIT 1) start ON true
    LEFT JOIN LATERAL (SELECT h.sequence, occurred_at, complete_until, {appended} AS appended_until
        FROM heartbeats h {joined}
        WHERE source_id = s.source_id AND occurred_at >= coalesce(start.occurred_at, '-infinity')
        OFFSET 0) h ON true
    ORDER BY r.source, h.occurred_at, h.sequence"""


@dataclass(frozen=True)
class Heartbeat:
    """One heartbeat: its number, when it was made, and the time before which its source had sent all.

    `counts`: whether all is read that stood in the log before it. What it speaks of may lie in other partitions.
    """

    sequence: int
    occurred_at: datetime
    complete_until: datetime
    counts: bool = True


@dataclass(frozen=True)
class Gap:
    """Numbers `sequence` to before `next_sequence` are missing, between two heartbeats that are there."""

    sequence: int
    next_sequence: int
    last_at: datetime
    next_at: datetime

    def holds(self, other: "Gap") -> bool:
        """Whether what is missing in `other` was missing here already."""
        return (
            self.sequence <= other.sequence
            and other.next_sequence <= self.next_sequence
            and self.last_at <= other.last_at
            and other.next_at <= self.next_at
        )

    @property
    def numbers(self) -> str:
        """What is missing, in words."""
        last = self.next_sequence - 1
        return str(self.sequence) if last == self.sequence else f"{self.sequence} to {last}"


@dataclass(frozen=True)
class SourceState:
    """A registered source: complete until when (None: no heartbeat of it counts yet), and the gap that holds it."""

    source: str
    silent_after_seconds: int
    registered_at: datetime
    complete_until: datetime | None
    last_at: datetime | None
    gap: Gap | None


def walk(heartbeats: Iterable[Heartbeat], accepted: Sequence[Gap]) -> tuple[datetime | None, Gap | None]:
    """How far heartbeats (in order of time) reach without a gap that was not accepted, and the first such gap.

    The first one begins a run whatever its number: what was sent before it is not known here. Clocks that
    step back within a run do no harm; a number that was seen already says nothing new.
    """
    until: datetime | None = None
    last: Heartbeat | None = None
    ahead: dict[int, Heartbeat] = {}
    for one in heartbeats:
        if last is not None and one.sequence == 1 and ahead:
            break
        if last is None or one.sequence == 1:
            ahead[one.sequence] = last = one
        elif one.sequence > last.sequence:
            ahead.setdefault(one.sequence, one)
        while ahead:
            number = min(ahead)
            if number > last.sequence + 1 and not _accepted(_gap(last, ahead[number]), accepted):
                break
            last = ahead.pop(number)
            if last.counts:
                until = last.complete_until if until is None else max(until, last.complete_until)
    return until, _gap(last, ahead[min(ahead)]) if last is not None and ahead else None


def _gap(last: Heartbeat, following: Heartbeat) -> Gap:
    return Gap(last.sequence + 1, following.sequence, last.occurred_at, following.occurred_at)


def _accepted(gap: Gap, accepted: Sequence[Gap]) -> bool:
    return any(one.holds(gap) for one in accepted)


def source_states(
    connection: Connection, *, folded: bool, read_until: datetime | None = None
) -> list[SourceState]:
    """Every registered source, by name.

    `folded`: heartbeats count only where the fold has taken their batch, and where that was appended at or
    before `read_until`, the time until which every partition is read.
    """
    found: dict[str, tuple[Any, list[Heartbeat]]] = {}
    for row in connection.execute(text(_heartbeats(folded))):
        _, heartbeats = found.setdefault(row.source, (row, []))
        if row.sequence is not None:
            counts = not folded or (read_until is not None and row.appended_until <= read_until)
            heartbeats.append(Heartbeat(row.sequence, row.occurred_at, row.complete_until, counts))
    accepted = _accepted_gaps(connection) if found else {}
    states = []
    for source, (row, heartbeats) in found.items():
        until, gap = walk(heartbeats, accepted.get(source, []))
        last_at = max((one.occurred_at for one in heartbeats), default=None)
        states.append(SourceState(source, row.silent_after_seconds, row.registered_at, until, last_at, gap))
    return states


def _accepted_gaps(connection: Connection) -> dict[str, list[Gap]]:
    found: dict[str, list[Gap]] = {}
    for (details,) in connection.execute(
        text("SELECT details FROM interventions WHERE kind = 'gap' AND details ? 'source'")
    ):
        last_at, next_at = (datetime.fromisoformat(details[name]) for name in ("last_at", "next_at"))
        gap = Gap(details["sequence"], details["next_sequence"], last_at, next_at)
        found.setdefault(details["source"], []).append(gap)
    return found


def accept_gap(connection: Connection, source: str, *, by: str, reason: str) -> tuple[int, Gap]:
    """Accept that the heartbeats of a source's gap will not come: (number of the intervention, the gap).

    Recorded and chained. Raises BadInput where the source is not registered or has no gap. The caller
    commits; if the process dies before that, nothing has changed.
    """
    states = {state.source: state for state in source_states(connection, folded=False)}
    if source not in states:
        known = ", ".join(states) or "none"
        raise BadInput(f"source '{source}' is not registered in the catalog; registered are: {known}")
    gap = states[source].gap
    if gap is None:
        raise BadInput(
            f"source '{source}' has no gap in its heartbeats; `metering report now` names what has"
        )
    details = {
        "source": source,
        "sequence": gap.sequence,
        "next_sequence": gap.next_sequence,
        "last_at": gap.last_at.isoformat(),
        "next_at": gap.next_at.isoformat(),
    }
    return positions.intervene(connection, "gap", by=by, reason=reason, details=details), gap


def source_findings(connection: Connection, now: datetime) -> list[Finding]:
    """What is wrong with registered sources at `now`: those that fell silent, those whose numbers have a gap.

    A source is silent when its last heartbeat is older than the catalog allows (`silent_after_seconds`), or
    when none has come for that long since it was registered.
    """
    found = []
    for state in source_states(connection, folded=False):
        since = max(filter(None, (state.last_at, state.registered_at)))
        if now - since > timedelta(seconds=state.silent_after_seconds):
            details: dict[str, Any] = {
                "last_at": state.last_at,
                "registered_at": state.registered_at,
                "silent_after_seconds": state.silent_after_seconds,
            }
            found.append(Finding("source_silent", state.source, None, None, details))
        if state.gap is not None:
            gap = state.gap
            details = {
                "missing": gap.numbers,
                "last_at": gap.last_at,
                "next_at": gap.next_at,
                "complete_until": state.complete_until,
            }
            found.append(Finding("sequence_gap", state.source, None, None, details))
    return found

"""What must hold of the decoder, whatever the bytes: checked record by record against the oracle."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import polars as pl

from metering.core.usage import meter
from metering.events import RecordBytes, decode, refuse
from metering.events.identity import content_digests, event_keys, request_keys
from metering.events.laws import DecodeLimits
from metering.events.notices import notice_digests
from metering.events.rejects import RejectCode
from tests.fuzz import oracle
from tests.fuzz.mutations import Seed

APPENDED_AT = datetime(2026, 10, 31, 12, tzinfo=UTC)
BOUNDS = oracle.Bounds(
    record_bytes_max=64 * 1024,
    record_events_max=50,
    event_ahead_seconds_max=300,
    id_ahead_seconds_max=86_400,
    ledger_floor=datetime(2026, 9, 26, tzinfo=UTC),
)
LIMITS = DecodeLimits(**vars(BOUNDS))


class Complaint(NamedTuple):
    """What was wrong with a record: a kind that stays the same while it is made smaller, and the words."""

    kind: str
    said: str
    seed: Seed


class Outcome(NamedTuple):
    """What the decoder made of some records: per record the rows of events or notices, and of rejects, by index."""

    events: list[dict[int, dict[str, Any]]]
    rejects: list[dict[int, dict[str, Any]]]
    twice: list[str]


def decoded(seeds: Sequence[Seed]) -> Outcome:
    """Records through everything that is done to them before the database: decode, meter, keys, digests."""
    records = [RecordBytes(seed.value, seed.content_type, APPENDED_AT) for seed in seeds]
    found = decode(records, limits=LIMITS)
    events, contradictions = meter(found.events)
    rejects = [found.rejects]
    if contradictions.height:
        code = pl.lit(str(RejectCode.COUNTS_CONTRADICT)).alias("code")
        rejects.append(refuse(records, events=found.events, refused=contradictions.with_columns(code)))
    assert len(event_keys(events["event_id"]).keys) == events.height
    assert len(request_keys(events["customer"], events["request_id"])) == events.height
    assert content_digests(events).len() == events.height
    assert len(notice_digests(found.notices)) == found.notices.height
    outcome = Outcome([{} for _ in seeds], [{} for _ in seeds], ["" for _ in seeds])
    for rows, table in (
        (events, outcome.events),
        (found.notices, outcome.events),
        (pl.concat(rejects), outcome.rejects),
    ):
        for row in rows.iter_rows(named=True):
            record, index = row["record"], row["index"]
            if index in outcome.events[record] or index in outcome.rejects[record]:
                outcome.twice[record] = f"event {index} has two rows"
            table[record][index] = row
    return outcome


def complaints(seeds: Sequence[Seed]) -> list[Complaint]:
    """Everything that does not hold of these records, which are decoded together."""
    try:
        outcome = decoded(seeds)
    except Exception as error:
        if len(seeds) == 1:
            return [Complaint(f"raised {type(error).__name__}", f"{error}"[:300], seeds[0])]
        middle = len(seeds) // 2
        return complaints(seeds[:middle]) + complaints(seeds[middle:])
    found = []
    for place, seed in enumerate(seeds):
        if outcome.twice[place]:
            found.append(Complaint("two rows", outcome.twice[place], seed))
        wrong = _compare(seed, outcome.events[place], outcome.rejects[place])
        if wrong is not None:
            found.append(Complaint(*wrong, seed))
    return found


def signatures(seed: Seed) -> set[tuple[str, str | None]]:
    """How the events of a record ended: code and field of each reject."""
    return {(row["code"], row["field"]) for row in decoded([seed]).rejects[0].values()}


def _compare(
    seed: Seed, events: dict[int, dict[str, Any]], rejects: dict[int, dict[str, Any]]
) -> tuple[str, str] | None:
    judged = oracle.judge(seed.value, seed.content_type, APPENDED_AT, BOUNDS)
    if judged.codes:
        if events:
            return "accepted out of a bad record", f"{sorted(judged.codes)}"
        if set(rejects) != {-1}:
            return "a bad record is one reject", f"{sorted(judged.codes)}, not {_codes(rejects)}"
        if rejects[-1]["code"] not in judged.codes:
            return "code of a record", f"{sorted(judged.codes)}, not {_codes(rejects)}"
        return None if rejects[-1]["payload"] == (seed.value or b"") else ("payload of a record", "")
    if sorted({*events, *rejects}) != list(range(len(judged.events))):
        return (
            "every event has a row",
            f"{len(judged.events)} events, rows {sorted({*events, *rejects})[:20]}",
        )
    for index, (piece, verdict) in enumerate(judged.events):
        if index in events:
            if verdict.codes:
                return f"accepted {'/'.join(sorted(verdict.codes))}", f"event {index}: {piece[:300]!r}"
            said = events[index]
            for name in said.keys() - {"record", "index"}:
                # what a notice of another kind would have is null
                told = verdict.fields.get(name)
                value = said[name]
                if isinstance(value, datetime):
                    value = (value - oracle.EPOCH) // oracle.MICROSECOND
                if value != told:
                    return f"field {name}", f"event {index}: {told!r}, not {value!r}"
        else:
            row = rejects[index]
            if row["code"] not in verdict.codes and not verdict.odd:
                return f"code {row['code']}", f"event {index}: {sorted(verdict.codes)}; {row['detail']}"
            if row["payload"].strip(b" \t\r\n") != piece.strip(b" \t\r\n"):
                return "payload of an event", f"event {index}: {row['payload'][:100]!r}, not {piece[:100]!r}"
    return None


def _codes(rejects: dict[int, dict[str, Any]]) -> list[tuple[int, str]]:
    return [(index, row["code"]) for index, row in sorted(rejects.items())][:10]


def minimised(seed: Seed, kind: str, tries: int = 400) -> Seed:
    """A smaller record of which the same is still wrong."""
    value = seed.value or b""
    size = max(1, len(value) // 2)
    while size >= 1 and tries > 0:
        at, smaller = 0, False
        while at < len(value) and tries > 0:
            tries -= 1
            shorter = value[:at] + value[at + size :]
            if any(complaint.kind == kind for complaint in complaints([Seed(shorter, seed.content_type)])):
                value, smaller = shorter, True
            else:
                at += size
        size = size if smaller and size > 1 else size // 2
    return Seed(value, seed.content_type)

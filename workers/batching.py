"""A batch: fetched records decoded, metered, named, and laid out as the ledger's rows."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np
import polars as pl
import psycopg
import structlog
from psycopg.errors import DeadlockDetected, LockNotAvailable, SerializationFailure

from metering.core.usage import meter
from metering.events import decode, refuse
from metering.events.identity import (
    content_digests,
    digest_versions,
    event_keys,
    numbered,
    request_keys,
)
from metering.events.laws import DecodeLimits
from metering.events.rejects import RejectCode
from metering.meters import METERS
from metering.store.batch import Appended, Digests, Part, Refused, Reject
from metering.store.chain import text_digest
from metering.store.ledger import EVENT_TYPES, NONBILLABLE_REASONS, USAGE_SOURCES, Ledger
from metering.store.ledger_rows import LEDGER_ROW
from metering.store.names import Names
from metering.store.positions import Claim
from metering.store.sources import Brake
from metering.stream.consumer import Fetched, Record
from workers.notices import PLACES, LaidOut, lay_out, merged

_LOCK_ATTEMPTS: Final = 3
#: What the store says of rows that it cannot hold: the batch is narrowed down to the record that is at fault.
REFUSALS: Final = (
    psycopg.DataError,
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.CheckViolation,
)
log = structlog.get_logger()


class Timings:
    """Seconds spent by stage, for the log and for the benchmarks."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - began


@dataclass(frozen=True)
class Batching:
    """What one worker needs to turn records into parts of a batch."""

    _names: Names
    _brake: Brake
    _timings: Timings

    def parts(
        self,
        fetched: list[Fetched],
        claims: Mapping[int, Claim],
        *,
        limits: DecodeLimits,
        ends: tuple[datetime, dict[int, int]] | None,
        refused: str | None,
    ) -> list[Part]:
        """One Part per partition: its records decoded and metered, what cannot be accepted as rejects.

        `ends`: when the ends of the partitions were asked for, and what they were. `refused`: the store's
        words on why it does not take these records; then every event of them becomes a reject.
        """
        raw = [record for part in fetched for record in part.records]
        with self._timings.of("decode"):
            decoded = decode(raw, limits=limits)
        with self._timings.of("meter"):
            events, contradictions = meter(decoded.events)
            rejects = [decoded.rejects]
            if contradictions.height:
                code = pl.lit(RejectCode.COUNTS_CONTRADICT.value).alias("code")
                rejects.append(refuse(raw, events=decoded.events, refused=contradictions.with_columns(code)))
            # what the store refuses is not named in it either: a name may be what it refuses
            notices = decoded.notices
            if refused is not None:
                places = pl.concat([events.select(PLACES), notices.select(PLACES)])
                store_refused = places.select(
                    "record",
                    "index",
                    code=pl.lit(RejectCode.STORE_REFUSED.value),
                    field=pl.lit(None, pl.String),
                    detail=pl.lit(f"the store refuses this record: {refused}"),
                )
                rejects.append(refuse(raw, events=places, refused=store_refused))
                events, notices = events.clear(), notices.clear()
            events, series, stopped = self._brake.hold_back(events, self._names)
            if stopped.height:
                rejects.append(refuse(raw, events=decoded.events, refused=stopped))
            if notices.height:
                notices, stopped = self._brake.without_stopped(notices)
                rejects.append(refuse(raw, events=decoded.notices, refused=stopped))
            all_rejects = pl.concat(rejects).sort("record", "index")
        with self._timings.of("digest"):
            laid_out = self._rows(events, series)
            if notices.height:
                laid_out = merged(laid_out, lay_out(notices, self._names))
        return self._split(fetched, claims, ends, raw, laid_out, all_rejects, decoded.unknown_fields)

    def _split(
        self,
        fetched: list[Fetched],
        claims: Mapping[int, Claim],
        ends: tuple[datetime, dict[int, int]] | None,
        records: list[Record],
        laid_out: LaidOut,
        rejects: pl.DataFrame,
        unknown: Mapping[str, int],
    ) -> list[Part]:
        """Rows, digests, details and rejects of each partition, in the order of its records."""
        source_ids = self._names.ids("sources", rejects["source"].drop_nulls().unique().to_list())
        firsts = np.cumsum([0] + [len(part.records) for part in fetched])
        event_bounds = np.searchsorted(laid_out.places["record"].to_numpy(), firsts)
        reject_bounds = np.searchsorted(rejects["record"].to_numpy(), firsts)
        parts = []
        for number, part in enumerate(fetched):
            low, high = int(event_bounds[number]), int(event_bounds[number + 1])
            own = laid_out.rows[low:high]
            own["ordinal"] = np.arange(high - low)
            chosen = np.arange(low, high)
            places = laid_out.places.slice(low, high - low)

            def cut(chosen: Sequence[int], places: pl.DataFrame = places) -> list[Refused]:
                pieces = refuse(
                    records,
                    events=places,
                    refused=places[chosen].select(
                        "record",
                        "index",
                        code=pl.lit(RejectCode.STORE_REFUSED.value),
                        field=pl.lit(None, pl.String),
                        detail=pl.lit("conflict"),
                    ),
                )
                return [
                    Refused(records[record].offset, index, source, event_id, payload)
                    for record, index, source, event_id, payload in pieces.select(
                        "record", "index", "source", "event_id", "payload"
                    )
                    .sort("record", "index")
                    .iter_rows()
                ]

            last = part.records[-1].appended_at if part.records and part.records[-1].stamped_by_log else None
            at_end = ends is not None and ends[1].get(part.partition) == part.next_offset
            seen = max(filter(None, (last, ends[0] if at_end and ends else None)), default=None)
            parts.append(
                Part(
                    claim=claims[part.partition],
                    next_offset=part.next_offset,
                    records=len(part.records),
                    rows=own,
                    event_ids=laid_out.texts[low:high],
                    digests=laid_out.digests.take(chosen),
                    rejects=[
                        Reject(
                            records[row["record"]].offset,
                            row["index"],
                            row["source"],
                            row["event_id"],
                            row["payload"],
                            row["code"],
                            row["field"],
                            row["detail"],
                            0 if row["source"] is None else source_ids[row["source"]],
                            records[row["record"]].content_type,
                            records[row["record"]].appended_at,
                        )
                        for row in rejects.slice(
                            int(reject_bounds[number]), int(reject_bounds[number + 1] - reject_bounds[number])
                        ).iter_rows(named=True)
                    ],
                    # counted per source by the decoder; the batch row keeps the sum, on its first part
                    unknown_fields=sum(unknown.values()) if number == 0 else 0,
                    appended_until=last,
                    seen_until=seen,
                    refused=cut,
                    companions=laid_out.companions_of(low, high),
                )
            )
        return parts

    def _rows(self, events: pl.DataFrame, series: list[bytes]) -> LaidOut:
        """Metered events as rows of the ledger.

        `series` are digests; the column `series` of `events` says which of them each event has.
        """
        keys = event_keys(events["event_id"])
        known = self._names.known_series(series)
        # those of stopped sources have no id and no event
        series_ids = np.array([known.get(digest, 0) for digest in series], np.int32)
        numbers = events["series"].to_numpy()
        series_digests = np.array(series, "S16")[numbers]
        (source_ids, source_digests), (project_ids, project_digests), (seat_ids, seat_digests) = (
            self._named(table, events[column])
            for table, column in (("sources", "source"), ("projects", "project"), ("seats", "seat"))
        )
        columns: dict[str, Any] = {
            "event_key": keys.keys,
            "request_key": request_keys(events["customer"], events["request_id"]),
            "occurred_at": events["occurred_at"].dt.timestamp("us").to_numpy(),
            "digest": content_digests(events, series_digests).to_numpy(),
            "source_id": source_ids,
            "series_id": series_ids[numbers],
            "project_id": project_ids,
            "seat_id": seat_ids,
            "duration_ms": events["duration_ms"].fill_null(-1).to_numpy(),
            **{name: events[name].to_numpy() for name in METERS},
            "attempt": events["attempt"].to_numpy(),
            "event_type": EVENT_TYPES["usage"],
            "usage_source": _mapped(events["usage_source"], USAGE_SOURCES),
            "nonbillable_reason": _mapped(events["nonbillable_reason"], NONBILLABLE_REASONS),
            "digest_version": digest_versions(events),
        }
        rows = np.zeros(events.height, LEDGER_ROW)
        for name, values in columns.items():
            rows[name] = values
        if keys.key_is_id.all():
            texts = [""] * events.height
        else:
            texts = np.where(keys.key_is_id, "", events["event_id"].to_numpy()).tolist()
        digests = Digests(series_digests, source_digests, project_digests, seat_digests)
        return LaidOut(events.select(PLACES), rows, texts, digests)

    def _named(self, table: str, column: pl.Series) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """A column of texts as their ids, and as the digests that name them; null is 0 and the text ''."""
        distinct, numbers = numbered(column)
        ids = self._names.ids(table, [text for text in distinct if text is not None])
        known = np.array([0 if text is None else ids[text] for text in distinct], np.int32)
        return known[numbers], np.array([text_digest(text or "") for text in distinct], "S16")[numbers]


def _mapped(column: pl.Series, ids: Mapping[Any, int]) -> np.ndarray[Any, Any]:
    """A column of texts as their ids; null is 0."""
    distinct, numbers = numbered(column)
    return np.array([0 if text is None else ids[text] for text in distinct], np.int16)[numbers]


def append(ledger: Ledger, parts: list[Part]) -> list[Appended]:
    """Append; tried again where another worker stood in the way: nothing was written, the claims stand."""
    for _ in range(_LOCK_ATTEMPTS - 1):
        try:
            return ledger.append(parts)
        except (DeadlockDetected, SerializationFailure, LockNotAvailable) as error:
            log.warning("tried again", error=str(error).splitlines()[0])
    return ledger.append(parts)


def size_of(fetched: Iterable[Fetched]) -> int:
    """The bytes of all values."""
    return sum(len(record.value or b"") for part in fetched for record in part.records)


def halves(fetched: list[Fetched]) -> tuple[list[Fetched], list[Fetched]] | None:
    """A batch as two smaller ones; None when it is a single record."""
    if len(fetched) > 1:
        middle = len(fetched) // 2
        return fetched[:middle], fetched[middle:]
    (part,) = fetched
    if len(part.records) <= 1:
        return None
    middle = len(part.records) // 2
    first, second = part.records[:middle], part.records[middle:]
    return [Fetched(part.partition, first, second[0].offset)], [
        Fetched(part.partition, second, part.next_offset)
    ]

"""The brake: a source that sends too much that is bad, or never the same twice, is stopped by name."""

from collections import Counter
from typing import Any, Final

import polars as pl
import psycopg

from metering.events.identity import series_digests
from metering.frames import DIMENSIONS
from metering.settings import Settings
from metering.store.names import Names

_HELD_BACK: Final = {
    "record": pl.Int32,
    "index": pl.Int32,
    "code": pl.String,
    "field": pl.String,
    "detail": pl.String,
}


class Brake:
    """Which sources are stopped. The others go on; what a stopped one sends is kept as rejects `source_stopped`.

    A source is stopped when more than `reject_ratio_max` of its last events were rejects, or when one batch
    of it would make more than `series_new_per_batch_max` series. Only a recorded intervention lets it go on.
    """

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]], settings: Settings) -> None:
        """`connection` is in autocommit."""
        self._connection = connection
        self._settings = settings
        self._stopped: set[str] = set()
        self._received: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()
        self.refresh()

    def refresh(self) -> None:
        """Read which sources are stopped: any worker may have stopped one, an operator resumed it."""
        rows = self._connection.execute(
            "SELECT DISTINCT ON (source) source, stopped FROM source_stops ORDER BY source, source_stop_id DESC"
        ).fetchall()
        stopped = {source for source, is_stopped in rows if is_stopped}
        for source in self._stopped - stopped:
            del self._received[source], self._rejected[source]
        self._stopped = stopped

    def stop(self, source: str, reason: str) -> None:
        """Stop a source; recorded at once, so that every worker learns of it."""
        self._connection.execute(
            "INSERT INTO source_stops (source, stopped, reason) VALUES (%s, true, %s)", (source, reason)
        )
        self._stopped.add(source)

    def hold_back(self, events: pl.DataFrame, names: Names) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Split metered events into those that go on and those of stopped sources; makes the new series.

        The first frame has the digests of its series beside it, as `series_digest`; the second the columns of a
        reject (record, index, code, field, detail).
        """
        events = events.with_columns(series_digests(events).alias("series_digest"))
        events, held_back = self._without_stopped(events)
        digests = set(events["series_digest"].to_list())
        known = names.known_series(digests)
        # not the many that are known: the worker remembers far more series than a batch has
        unknown = [digest for digest in digests if digest not in known]
        absent = pl.col("series_digest").is_in(unknown)
        new = events.filter(absent) if unknown else events.clear()
        if new.height:
            per_source = new.group_by("source").agg(pl.col("series_digest").n_unique().alias("series"))
            limit = self._settings.series_new_per_batch_max
            for source, series in per_source.filter(pl.col("series") > limit).sort("source").iter_rows():
                self.stop(source, f"one batch of it holds {series} new series, at most {limit} are allowed")
            events, more = self._without_stopped(events)
            held_back = pl.concat([held_back, more])
            new = events.filter(absent)
        if new.height:
            distinct = new.unique("series_digest")
            names.make_series(
                dict(
                    zip(
                        distinct["series_digest"].to_list(),
                        distinct.select(list(DIMENSIONS)).rows(),
                        strict=True,
                    )
                )
            )
        return events, held_back

    def _without_stopped(self, events: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        if not self._stopped:
            return events, pl.DataFrame(schema=_HELD_BACK)
        stopped = pl.col("source").is_in(list(self._stopped))
        held_back = events.filter(stopped).select(
            "record",
            "index",
            code=pl.lit("source_stopped"),
            field=pl.lit("source"),
            detail=pl.lit(
                "the source is stopped; `metering report now` says why, `metering stream resume` lets it go on"
            ),
        )
        return events.filter(~stopped), held_back

    def count(self, events: pl.DataFrame, rejects: pl.DataFrame) -> None:
        """Count what each source sent; stop one whose share of rejects is above the limit."""
        accepted: Counter[str] = Counter(dict(events["source"].value_counts().iter_rows()))
        refused: Counter[str] = Counter(
            dict(
                rejects.filter(pl.col("source").is_not_null() & (pl.col("code") != "source_stopped"))[
                    "source"
                ]
                .value_counts()
                .iter_rows()
            )
        )
        for source, count in (accepted + refused).items():
            self._received[source] += count
            self._rejected[source] += refused[source]
            if self._received[source] < self._settings.reject_window_events_min:
                continue
            ratio = self._rejected[source] / self._received[source]
            if ratio > self._settings.reject_ratio_max and source not in self._stopped:
                self.stop(source, f"{ratio:.0%} of its last {self._received[source]} events were rejects")
            del self._received[source], self._rejected[source]

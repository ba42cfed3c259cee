"""The brake: a source that sends too much that is bad, or never the same twice, is stopped by name."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
import psycopg

from metering.errors import WrongWorld
from metering.events import RejectCode
from metering.events.identity import series_numbers
from metering.frames.usage import DIMENSIONS
from metering.settings import Settings
from metering.store.batch import Part
from metering.store.names import Names

_HELD_BACK: Final = {
    "record": pl.Int32,
    "index": pl.Int32,
    "code": pl.String,
    "field": pl.String,
    "detail": pl.String,
}


#: What the whole topic is called in `source_stops`: a name that no source can have.
TOPIC: Final = ""


@dataclass
class _Window:
    """What came of one source since it was last judged: events, rejects among them, series that are new."""

    received: int = 0
    rejected: int = 0
    new_series: int = 0


class Brake:
    """Which sources are stopped. The others go on; what a stopped one sends is kept as rejects `source_stopped`.

    A source is judged after every `reject_window_events_min` events, by each worker for what it read: it is
    stopped when more than `reject_ratio_max` of them were rejects or more than `series_new_ratio_max` of them
    had a series that nobody had used before, and at once when one batch of it would make more than
    `series_new_per_batch_max` series. Bytes without a readable source count to the topic alone.

    The whole topic is stopped when every one of as many events was a reject, those of stopped sources left
    out, and no worker accepted anything meanwhile: then it is not this or that source that is wrong. Every
    worker then ends with WrongWorld, and none begins.

    Only a recorded intervention lets a source or the topic go on. A brake that does not trip (`trips`) only
    holds stopped sources back: a person decided that the events shall be read.
    """

    def __init__(
        self, connection: psycopg.Connection[tuple[Any, ...]], settings: Settings, *, trips: bool = True
    ) -> None:
        """`connection` is in autocommit. Raises WrongWorld where the topic is stopped."""
        self._connection = connection
        self._settings = settings
        self._trips = trips
        self._stopped: set[str] = set()
        self._windows: dict[int, _Window] = {}
        self._only_bad = 0
        self._only_bad_since = time.monotonic()
        self.refresh()

    def refresh(self) -> None:
        """Read which sources are stopped: any worker may have stopped one, an operator resumed it.

        Raises WrongWorld where the topic as a whole is.
        """
        rows = self._connection.execute(
            "SELECT source, reason FROM (SELECT DISTINCT ON (source) source, stopped, reason FROM source_stops "
            "ORDER BY source, source_stop_id DESC) AS last WHERE stopped"
        ).fetchall()
        stopped = dict(rows)
        if self._trips and TOPIC in stopped:
            raise WrongWorld(_topic_stopped(self._settings.kafka_topic, stopped[TOPIC]))
        if self._stopped - stopped.keys():
            # one was resumed: what was counted before does not count against it
            self._windows.clear()
        self._stopped = set(stopped)

    def stop(self, source: str, reason: str) -> None:
        """Stop a source; recorded at once, so that every worker learns of it."""
        self._connection.execute(
            "INSERT INTO source_stops (source, stopped, reason) VALUES (%s, true, %s)", (source, reason)
        )
        self._stopped.add(source)

    def hold_back(self, events: pl.DataFrame, names: Names) -> tuple[pl.DataFrame, list[bytes], pl.DataFrame]:
        """Split metered events into those that go on and those of stopped sources; makes the new series.

        The first frame says beside each event, as `series`, which of the digests names its series; the second
        has the columns of a reject (record, index, code, field, detail).
        """
        events, held_back = self.without_stopped(events)
        digests, numbers = series_numbers(events)
        events = events.with_columns(pl.Series("series", numbers))
        known = names.known_series(digests)
        # not the many that are known: the worker remembers far more series than a batch has
        unknown = [number for number, digest in enumerate(digests) if digest not in known]
        if not unknown:
            return events, digests, held_back
        absent = pl.col("series").is_in(unknown)
        if self._trips:
            per_source = events.filter(absent).group_by("source").agg(pl.col("series").n_unique())
            limit = self._settings.series_new_per_batch_max
            for source, series in per_source.sort("source").iter_rows():
                if series > limit:
                    self.stop(
                        source, f"one batch of it holds {series} new series, at most {limit} are allowed"
                    )
                else:
                    # a batch that is tried again finds them made: they count once
                    self._window(names.ids("sources", [source])[source]).new_series += series
            events, more = self.without_stopped(events)
            held_back = pl.concat([held_back, more])
        distinct = events.filter(absent).unique("series")
        if distinct.height:
            rows = distinct.select("series", *DIMENSIONS).iter_rows()
            names.make_series({digests[row[0]]: row[1:] for row in rows})
        return events, digests, held_back

    def without_stopped(self, events: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Split events into those that go on and those of stopped sources, as `hold_back` does."""
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

    def count(self, parts: Sequence[Part]) -> None:
        """Count what was appended, once it is; stop a source, or the topic, that turns out to be bad.

        Raises WrongWorld when it is the topic. If the process dies before this, the events stay uncounted.
        """
        for part in parts:
            refused = Counter(
                reject.source_id for reject in part.rejects if reject.code != RejectCode.SOURCE_STOPPED
            )
            known, counts = np.unique(part.rows["source_id"], return_counts=True)
            received = Counter(dict(zip(known.tolist(), counts.tolist(), strict=True))) + refused
            for source_id, count in received.items():
                if source_id:
                    self._judge(source_id, count, refused[source_id])
            self._only_bad += refused.total()
        if any(len(part.rows) for part in parts):
            self._only_bad, self._only_bad_since = 0, time.monotonic()
        if self._only_bad >= self._settings.reject_window_events_min:
            self._judge_topic()

    def _window(self, source_id: int) -> _Window:
        window = self._windows.get(source_id)
        if window is None:
            if len(self._windows) >= self._settings.source_windows_max:
                # who sends every event under another source is not judged by name, and costs no memory
                del self._windows[next(iter(self._windows))]
            window = self._windows[source_id] = _Window()
        return window

    def _judge(self, source_id: int, received: int, rejected: int) -> None:
        window = self._window(source_id)
        window.received += received
        window.rejected += rejected
        if window.received < self._settings.reject_window_events_min:
            return
        del self._windows[source_id]
        bad = window.rejected > self._settings.reject_ratio_max * window.received
        if not bad and window.new_series <= self._settings.series_new_ratio_max * window.received:
            return
        ((source,),) = self._connection.execute(
            "SELECT source FROM sources WHERE source_id = %s", (source_id,)
        ).fetchall()
        if source not in self._stopped:
            share = (window.rejected if bad else window.new_series) / window.received
            what = "were rejects" if bad else "had a series that nobody had used before"
            self.stop(source, f"{share:.0%} of its last {window.received} events {what}")

    def _judge_topic(self) -> None:
        """Stop the topic, unless another worker accepted something while we saw nothing but rejects."""
        ((good,),) = self._connection.execute(
            "SELECT coalesce(sum(received - rejected), 0) FROM ingest_batches JOIN stream_positions "
            "USING (intake_id) WHERE kind = 'kafka' AND committed_at >= clock_timestamp() - make_interval(secs => %s)",
            (time.monotonic() - self._only_bad_since,),
        ).fetchall()
        count = self._only_bad
        self._only_bad, self._only_bad_since = 0, time.monotonic()
        if not good:
            reason = f"its last {count} events were rejects, every one"
            self.stop(TOPIC, reason)
            raise WrongWorld(_topic_stopped(self._settings.kafka_topic, reason))


def _topic_stopped(topic: str, reason: str) -> str:
    return (
        f"topic '{topic}' is stopped: {reason}. Nothing is read on and nothing is lost; `metering rejects list` shows what "
        "came. When it is mended: `metering stream resume --topic --reason ...`, then `metering rejects replay`"
    )

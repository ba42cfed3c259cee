"""What is read from the ledger: the fold, the rebuild from zero and the verification of the whole chain."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import psycopg

from bench.measures import Measure, Progress
from bench.servers import Ground
from metering.errors import WrongWorld
from metering.settings import Settings
from metering.store import postgres
from metering.store.verify import verify
from workers.fold import SeriesPools, fold_once

EVENTS_PER_SECOND_AND_CORE: Final = 400_000
#: About as many batches as two workers commit in a second: what a live fold finds each time.
LIVE_BATCHES: Final = 8


@dataclass
class Spent:
    """Wall-clock seconds, and processor seconds of this process and of Postgres."""

    seconds: float = 0.0
    processor_seconds: float = 0.0

    def per_core(self, events: int) -> float:
        """Events a second and core: by whichever is longer, the wall clock or the processors' time."""
        return events / max(self.seconds, self.processor_seconds)


@contextmanager
def _clock(ground: Ground) -> Iterator[Spent]:
    spent = Spent()
    used = ground.processor_seconds() + sum(os.times()[:2])
    began = time.perf_counter()
    yield spent
    spent.seconds = time.perf_counter() - began
    spent.processor_seconds = ground.processor_seconds() + sum(os.times()[:2]) - used


def fold_measures(ground: Ground, settings: Settings, progress: Progress) -> list[Measure]:
    """Fold a ledger that no rollup holds yet, as live; empty the rollups and rebuild them from zero."""
    events = _events(settings)
    progress(f"folding {events:,} events, {LIVE_BATCHES} batches at a time")
    live = _fold(ground, settings.model_copy(update={"fold_batches_max": LIVE_BATCHES}))
    with psycopg.connect(settings.database_url.get_secret_value()) as connection:
        connection.execute(
            "TRUNCATE usage_quarters, pool_minutes, pool_customer_minutes, limit_minutes, fold_positions"
        )
    progress("rebuilding the rollups from zero")
    rebuild = _fold(ground, settings)
    return [
        Measure(name, spent.per_core(events), "events/s/core", EVENTS_PER_SECOND_AND_CORE, 1.0)
        for name, spent in (("fold", live), ("rebuild from zero", rebuild))
    ]


def _fold(ground: Ground, settings: Settings) -> Spent:
    with postgres.connect(settings, "fold") as connection:
        series = SeriesPools(settings.series_cache_entries_max)
        ground.checkpoint()
        with _clock(ground) as spent:
            while fold_once(connection, settings, series):
                pass
    return spent


def verify_measures(ground: Ground, settings: Settings, progress: Progress) -> list[Measure]:
    """Verify the ledger, its rollups and every chain, rows hashed again. A difference ends the run."""
    events = _events(settings)
    progress(f"verifying {events:,} events with their chain")
    with postgres.reading(settings) as connection, _clock(ground) as spent:
        for check in verify(connection, roots=True):
            if check.difference is not None:
                raise WrongWorld(f"{check.name}: {check.difference}; the measurement is void")
    return [
        Measure("verify --chain", spent.per_core(events), "events/s/core", EVENTS_PER_SECOND_AND_CORE, 1.0)
    ]


def _events(settings: Settings) -> int:
    with psycopg.connect(settings.database_url.get_secret_value()) as connection:
        (events,) = connection.execute("SELECT count(*) FROM usage_events").fetchone() or (0,)
    return int(events)

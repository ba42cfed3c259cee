"""Ingest by numbers of workers and partitions: the rate, and whose processor time it takes."""

from typing import Final

from bench.ingesting import Ingested, clean_stream, ingest_stream
from bench.measures import Measure, Progress, Results, Table, cores
from bench.servers import Ground

WORKERS: Final = (1, 2, 4)
PARTITIONS: Final = (4, 16, 64)


def scaling_results(
    ground: Ground,
    events: int,
    progress: Progress,
    *,
    workers: tuple[int, ...] = WORKERS,
    partitions: tuple[int, ...] = PARTITIONS,
) -> Results:
    """Every number of workers on every number of partitions, 100 events a record."""
    results, rows = Results(), []
    for dealt in partitions:
        for readers in workers:
            progress(f"ingest with {readers} workers on {dealt} partitions")
            with ground.intake("scaling", dealt) as settings:
                found = ingest_stream(ground, settings, clean_stream(events, 100), progress, workers=readers)
            progress(f"  {found.events_per_second:,.0f} events/s")
            name = f"ingest, {readers} workers, {dealt} partitions"
            results.measures.append(Measure(name, found.events_per_second, "events/s"))
            rows.append((f"{readers}", f"{dealt}", f"{found.events_per_second:,.0f}", *_processors(found)))
    results.tables.append(
        Table(
            f"Workers and partitions, on {cores()} cores",
            (
                *("workers", "partitions", "events/s", "workers us/event", "Postgres us/event"),
                *("broker us/event", "cores busy", "a worker busy"),
            ),
            rows,
        )
    )
    return results


def _processors(found: Ingested) -> tuple[str, ...]:
    spent = (found.processor_seconds, found.server_seconds, found.broker_seconds)
    return (
        *(f"{1e6 * seconds / found.received:.2f}" for seconds in spent),
        f"{sum(spent) / found.seconds:.2f}",
        f"{found.processor_seconds / found.seconds / len(found.told):.2f}",
    )

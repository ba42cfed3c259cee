"""Memory of the ingest workers, over the time of working off a backlog: it must not grow with it."""

from typing import Final

from bench.ingesting import MEMORY_MEBIBYTES_MAX, WORKERS, clean_stream, ingest_stream
from bench.measures import Measure, Progress, Results, Table, mebibytes
from bench.servers import Ground
from bench.stream import Stream

#: At these shares of the time the memory is told.
_MOMENTS: Final = tuple(place / 8 for place in range(9))


def largest_records(ground: Ground, records: int) -> Stream:
    """Records as large as they may be: as many events as fit the bound, with a little room."""
    sample = [len(value) + 1 for value in clean_stream(2_000, 1).records()]
    bound = ground.settings("unused").record_bytes_max
    return clean_stream(records * (events := bound // max(sample)), events)


def memory_results(
    ground: Ground, backlog: int, records: int, progress: Progress, workers: int = WORKERS
) -> Results:
    """A backlog of small records, and one of records at the size bound; both are there before the start."""
    results, rows = Results(), []
    kinds = (
        (f"{backlog:,} events, 100 a record", clean_stream(backlog, 100)),
        (f"{records:,} records at the size bound", largest_records(ground, records)),
    )
    for name, stream in kinds:
        progress(f"memory with a backlog of {name}")
        with ground.intake("memory") as settings:
            found = ingest_stream(ground, settings, stream, progress, workers=workers)
        looks, peaks = found.resident.looks, [told.peak_bytes for told in found.told]
        # the larger of what the kernel and what the looks saw
        for worker, peak in enumerate(peaks):
            column = [held[worker] for _, held in looks]
            moments = [column[min(len(column) - 1, int(share * len(column)))] for share in _MOMENTS]
            peak = max(peak, *column)
            rows.append((name, f"{worker + 1}", *(f"{mebibytes(held):,.0f}" for held in (*moments, peak))))
            peaks[worker] = peak
        results.measures.append(
            Measure(
                f"worker memory, {name}", mebibytes(max(peaks)), "MiB", MEMORY_MEBIBYTES_MAX, 1.0, "at most"
            )
        )
    shares = (f"{share:.0%}" for share in _MOMENTS)
    results.tables.append(
        Table(
            "Resident MiB of each worker, by share of the time", ("backlog", "worker", *shares, "peak"), rows
        )
    )
    return results

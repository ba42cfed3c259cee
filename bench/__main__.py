"""`python -m bench`: measure, print the table, and leave the numbers in var/bench/latest.json."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from rich.console import Console

from bench import (
    batch_index,
    capacity,
    explaining,
    freshness,
    growing,
    ingesting,
    ledger,
    margin,
    memory,
    scaling,
)
from bench.measures import (
    Measure,
    Results,
    machine_facts,
    markdown,
    measured_table,
    print_table,
    say,
    write_json,
)
from bench.servers import Ground, started
from bench.stream import Stream
from metering.errors import BadInput, MeteringError

SERVERS_FOLDER: Final = Path("var/bench-sandbox")
RESULTS: Final = Path("var/bench/latest.json")
_DEFAULT_PARTS: Final = ("ingest", "duplicates", "fold", "verify", "margin", "explain", "capacity")
#: Those that need no servers.
_FROM_FILES: Final = frozenset(
    {"margin", "margin-tenfold", "margin-million", "explain", "capacity", "capacity-tenfold"}
)
#: Those that take long, or that only a change of the program asks for.
PARTS: Final = (
    *_DEFAULT_PARTS,
    "margin-tenfold",
    "margin-million",
    "explain",
    "capacity-tenfold",
    "grow",
    "freshness",
    "scaling",
    "memory",
    "batch-index",
    "profile",
)

#: Parts that need a ledger with a clean stream in it.
_ON_CLEAN: Final = frozenset({"ingest", "duplicates", "fold", "verify", "batch-index"})


@dataclass(frozen=True)
class Scale:
    """How much is measured: distinct events of a run, of a run with one event a record, and how often."""

    events: int
    lone_events: int
    rounds: int
    margin_rows: int
    margin_customers: int
    pools: int
    entitled_customers: int
    grow_to: int
    backlog: int
    largest_records: int
    fresh_seconds: float


SCALES: Final = {
    "small": Scale(400_000, 200_000, 1, 500_000, 1_000, 5, 100, 2_000_000, 1_000_000, 60, 10.0),
    "full": Scale(1_000_000, 300_000, 3, 5_000_000, 10_000, 50, 1_000, 50_000_000, 5_000_000, 400, 30.0),
}
#: Shares of events that come twice, with 100 events a record.
DUPLICATES: Final = ((0.0001, "0.01 %"), (0.01, "1 %"), (0.1, "10 %"), (1.0, "100 %"))


def measure(ground: Ground, parts: Sequence[str], scale: Scale) -> Results:
    """All that needs servers, in one run."""
    results = Results(_on_clean(ground, parts, scale))
    if "grow" in parts:
        results.add(growing.grow_results(ground, SERVERS_FOLDER, scale.grow_to, say))
    if "freshness" in parts:
        results.add(freshness.freshness_results(ground, scale.events, scale.fresh_seconds, say))
    if "scaling" in parts:
        results.add(scaling.scaling_results(ground, scale.events, say))
    if "memory" in parts:
        results.add(memory.memory_results(ground, scale.backlog, scale.largest_records, say))
    return results


def _on_clean(ground: Ground, parts: Sequence[str], scale: Scale) -> list[Measure]:
    """Ingest, and what is read from its ledger; every ingest has its raw COPY right after it."""
    measures: list[Measure] = []
    with ExitStack() as open_databases:
        clean: list[ingesting.Comparison] = []
        if _ON_CLEAN & set(parts):
            for number in range(scale.rounds if "ingest" in parts else 1):
                say(f"ingest, 100 events a record, round {number + 1}")
                settings = open_databases.enter_context(ground.intake("ingest"))
                clean.append(
                    ingesting.compare(ground, settings, ingesting.clean_stream(scale.events, 100), say)
                )
        if "ingest" in parts:
            measures += [ingesting.rate_measure("ingest, 100 events a record", clean, 0.6)]
            lone = _rounds(
                ground,
                "ingest, 1 event a record",
                scale,
                lambda: ingesting.clean_stream(scale.lone_events, 1),
            )
            measures += [ingesting.rate_measure("ingest, 1 event a record", lone, 0.35)]
            measures += [
                ingesting.memory_measure("100 events a record", clean),
                ingesting.memory_measure("1 event a record", lone),
            ]
            measures += ingesting.size_measures(settings)
            measures += ingesting.stage_measures("100 events a record", clean)
            measures += ingesting.stage_measures("1 event a record", lone)
        if "batch-index" in parts:
            measures += batch_index.batch_index_measures(ground, settings, scale.rounds, say)
        if "duplicates" in parts:
            measures += _duplicates(ground, scale, clean)
        if {"fold", "verify"} & set(parts):
            measures += ledger.fold_measures(ground, settings, say)
        if "verify" in parts:
            measures += ledger.verify_measures(ground, settings, say)
    return measures


def _rounds(
    ground: Ground, name: str, scale: Scale, stream: Callable[[], Stream]
) -> list[ingesting.Comparison]:
    comparisons = []
    for number in range(scale.rounds):
        say(f"{name}, round {number + 1}")
        with ground.intake("ingest") as settings:
            comparisons.append(ingesting.compare(ground, settings, stream(), say))
    return comparisons


def _duplicates(ground: Ground, scale: Scale, clean: list[ingesting.Comparison]) -> list[Measure]:
    """Rates with duplicates, held against the clean rate of the same run."""
    reference = ingesting.rate_measure("clean", clean, None).value
    measures = []
    for ratio, name in DUPLICATES:
        say(f"ingest, 100 events a record, {name} duplicates")
        with ground.intake("resent") as settings:
            stream = ingesting.clean_stream(scale.events, 100, resent_ratio=ratio)
            rate = ingesting.ingest_stream(ground, settings, stream, say).events_per_second
        say(f"  {rate:,.0f} events/s")
        goal = 0.75 if ratio == DUPLICATES[0][0] else None
        measures.append(
            Measure(f"ingest, {name} duplicates (against clean)", rate, "events/s", reference, goal)
        )
    return measures


def print_profile(ground: Ground, scale: Scale, console: Console) -> None:
    """Where one worker alone spends its time, sampled: by line, and by function with what it calls."""
    say("profile: one worker, 100 events a record")
    with ground.intake("profile") as settings:
        stream = ingesting.clean_stream(scale.events, 100)
        ingested = ingesting.ingest_stream(ground, settings, stream, say, workers=1, profile=True)
    (told,) = ingested.told
    used = 1e6 * ingested.processor_seconds / ingested.received
    console.print(
        f"\none worker: {ingested.events_per_second:,.0f} events/s, {used:.1f} us of processor an event"
    )
    for title, shares in (("line", told.lines), ("function, with what it calls", told.functions)):
        console.print(f"\nus/event  {title}", highlight=False)
        for name, share in shares:
            console.print(f"{share * used:8.2f}  {name}", highlight=False, soft_wrap=True)


def _arguments(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", metavar="PARTS", help=f"comma-separated, of: {', '.join(PARTS)}")
    parser.add_argument("--scale", choices=sorted(SCALES), default="full", help="how much is measured (full)")
    parser.add_argument("--events", type=int, metavar="N", help="distinct events of an ingest run")
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="ingest runs with their raw COPY; the median counts"
    )
    parser.add_argument("--grow-to", type=int, metavar="N", help="events of the ledger that grows")
    parser.add_argument(
        "--markdown", action="store_true", help="print the tables as Markdown, ready for a document"
    )
    return parser.parse_args(given)


def _scale(arguments: argparse.Namespace) -> Scale:
    scale = SCALES[arguments.scale]
    given = {"events": arguments.events, "rounds": arguments.rounds, "grow_to": arguments.grow_to}
    given = {name: value for name, value in given.items() if value is not None}
    least = {"grow_to": 20_000}
    for name, value in given.items():
        if value < least.get(name, 1):
            raise BadInput(f"--{name.replace('_', '-')} {value} must be at least {least.get(name, 1):,}")
    if "events" in given:
        given["lone_events"] = max(1, given["events"] // 3)
    return replace(scale, **given)


def _parts(only: str | None) -> list[str]:
    parts = list(_DEFAULT_PARTS) if only is None else [part.strip() for part in only.split(",")]
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise BadInput(f"--only {unknown[0]}: there is no such part; choose from {', '.join(PARTS)}")
    return parts


def main(given: Sequence[str] | None = None) -> None:
    """Measure what was asked for; results to stdout, progress to stderr."""
    arguments = _arguments(sys.argv[1:] if given is None else given)
    parts, scale = _parts(arguments.only), _scale(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    began = time.monotonic()
    facts, results = machine_facts(), Results()
    if set(parts) - _FROM_FILES:
        with started(SERVERS_FOLDER, say) as ground:
            facts.append(ground.version())
            results.add(measure(ground, parts, scale))
            if "profile" in parts:
                print_profile(ground, scale, console)
    if "margin" in parts:
        results.measures += margin.margin_measures(scale.margin_rows, scale.margin_customers, say)
    if "explain" in parts:
        results.measures += explaining.explain_measures(scale.margin_rows, scale.margin_customers, say)
    if "margin-tenfold" in parts:
        results.measures += margin.margin_measures(
            10 * scale.margin_rows, scale.margin_customers, say, stated=True
        )
    if "margin-million" in parts:
        results.measures += margin.margin_measures(
            scale.margin_rows, 100 * scale.margin_customers, say, stated=True
        )
    if "capacity" in parts:
        results.measures += capacity.capacity_measures(scale.pools, scale.entitled_customers, say)
    if "capacity-tenfold" in parts:
        results.measures += capacity.capacity_measures(10 * scale.pools, 0, say)
    if not results.measures:
        return
    tables = [measured_table(results.measures), *results.tables]
    if arguments.markdown:
        print("\n".join(["; ".join(facts), "", *map(markdown, tables)]))
    else:
        for fact in facts:
            console.print(fact, highlight=False)
        for table in tables:
            print_table(console, table)
    write_json(RESULTS, results.measures)
    say(f"\n{time.monotonic() - began:.0f} seconds; the numbers are in {RESULTS}")


if __name__ == "__main__":
    try:
        main()
    except MeteringError as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(error.exit_code)

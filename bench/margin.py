"""The month's margin report of a large company, from synthetic rollups: seconds and peak memory.

A process of its own, so that the memory is its own: `python -m bench.margin FOLDER CUSTOMERS`, JSON.
"""

import json
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from bench.measures import CHECKOUT, Measure, Progress, mebibytes, peak_bytes
from metering.core.margin import margin
from metering.errors import Unavailable
from metering.frames.books import PRICES, Books
from metering.frames.frame import INSTANT, Frame
from metering.frames.supply import BURNDOWN, CAPACITY_FEES, CAPACITY_STEPS, MODELS
from metering.frames.terms import CONTRACTS, CUSTOMERS, FEES
from metering.frames.usage import DIMENSIONS, POOL_USAGE, SUMS, USAGE, Identified
from metering.meters import CONTEXT_BREAKPOINTS, METERS
from metering.periods import MINUTE, QUARTER, Period, month_start, next_month_start

SECONDS_MAX: Final = 5.0
MEBIBYTES_MAX: Final = 2_048
_CHILD_SECONDS_MAX: Final = 600.0
_SERIES_FILE: Final = "series.parquet"
USAGE_FILE: Final = "usage.parquet"
_POOL_USAGE_FILE: Final = "pool_usage.parquet"
_MONTH: Final = date(2026, 10, 1)
_POOL: Final = "block-a"
#: (product, pool, ran_on): the series of every customer.
_SERIES: Final = (
    ("lumen-large", _POOL, "pool"),
    ("lumen-large", _POOL, "overflow"),
    ("lumen-small", _POOL, "pool"),
    ("lumen-mini", None, "on_demand"),
)
_PRODUCTS: Final = ("lumen-large", "lumen-mini", "lumen-small")
_MINUTES: Final = int(QUARTER / MINUTE)


@dataclass(frozen=True)
class Report:
    """What one report took. `peak_bytes` holds the rollups that it was made from too."""

    rows: int
    customers: int
    lines: int
    seconds: float
    peak_bytes: int


def month() -> Period:
    """The month of the report."""
    return Period(f"{_MONTH:%Y-%m}", month_start(_MONTH), next_month_start(_MONTH))


def synthetic_usage(rows: int, customers: int, period: Period, seed: int = 11) -> Identified:
    """`rows` distinct USAGE rows of a period, spread evenly over customers, series and quarter hours."""
    generator = np.random.default_rng(seed)
    places = period.minutes // _MINUTES * customers * len(_SERIES)
    assert rows < places, f"{rows} rows do not fit {customers} customers in {period.name}"
    # so many draws with replacement are expected to meet as many different places
    draws = int(-places * math.log1p(-rows / places) * 1.02) + 1_000
    drawn = np.unique(generator.integers(0, places, draws))
    kept = np.sort(generator.permutation(drawn)[:rows])
    assert len(kept) == rows, f"{rows} rows do not fit {customers} customers in {period.name}"
    # sorted by quarter, then series: as they come from the rollups
    series, quarter = kept % (customers * len(_SERIES)), kept // (customers * len(_SERIES))
    start = int(period.start.timestamp()) * 1_000_000
    frame = pl.DataFrame(
        {
            "quarter_start": start + quarter * (QUARTER // timedelta(microseconds=1)),
            "series_id": series.astype(np.uint32),
        }
    )
    sums = (
        pl.Series(name, generator.integers(1, 50 if name == "requests" else 100_000, rows, np.int64))
        for name in SUMS
    )
    return Identified(_series(customers), frame.with_columns(pl.col("quarter_start").cast(INSTANT), *sums))


def _series(customers: int) -> pl.DataFrame:
    """The series of every customer, numbered in the order of their dimensions."""
    each = pl.DataFrame(
        [(one[0], one[0], one[1], one[2]) for one in _SERIES],
        schema=dict.fromkeys(("product", "model_served", "pool", "ran_on"), pl.String),
        orient="row",
    )
    constants = {
        "tier_sold": "standard",
        "tier_served": "standard",
        "provider": "own",
        "region": "us-east",
        "counts_for": "charge_and_cost",
    }
    series = _names(customers).join(each, how="cross")
    series = series.with_columns(pl.lit(value).alias(name) for name, value in constants.items())
    series = series.with_columns(pl.lit(0, dtype=pl.Int32).alias("context_breakpoint"))
    dims = list(DIMENSIONS)
    return series.select(dims).sort(dims, nulls_last=False).with_row_index("series_id")


def _names(customers: int) -> pl.DataFrame:
    return pl.DataFrame({"customer": [f"customer-{number:07d}" for number in range(customers)]})


def pool_usage_of(usage: Identified) -> pl.DataFrame:
    """The pool minutes of the same traffic: every quarter hour spread over its minutes, nothing lost."""
    key = [name for name in POOL_USAGE.key if name != "minute"]
    meant = usage.series.filter(pl.col("pool").is_not_null()).select("series_id", *key)
    kinds = meant.select(key).unique().with_row_index("_kind")
    numbered = meant.join(kinds, on=key, validate="m:1").select("series_id", "_kind")
    quarters = (
        usage.rows.join(numbered, on="series_id", validate="m:1")
        .group_by("quarter_start", "_kind")
        .agg(pl.col(*SUMS).sum())
        .join(kinds, on="_kind", validate="m:1")
    )
    minutes = [
        quarters.with_columns(
            (pl.col("quarter_start") + place * MINUTE).alias("minute"),
            *(
                (pl.col(name) // _MINUTES + (pl.col(name) % _MINUTES if place == 0 else 0)).cast(dtype)
                for name, dtype in SUMS.items()
            ),
        )
        for place in range(_MINUTES)
    ]
    return POOL_USAGE.conform(pl.concat(minutes))


def synthetic_books(customers: int) -> Books:
    """Customers with a contract and a monthly fee each, one price book, one cost book, one pool."""
    since = datetime(2026, 1, 1, tzinfo=UTC)
    names = _names(customers).with_columns(("contract-" + pl.col("customer")).alias("contract"))
    tokens = [name for name in METERS if name != "accelerator_ms"]
    grid = pl.DataFrame({"item": _PRODUCTS}).join(_breakpoints(), how="cross")
    prices = grid.join(pl.DataFrame({"meter": tokens}), how="cross")
    weights = grid.rename({"item": "model"}).join(pl.DataFrame({"meter": METERS}), how="cross")
    span = {"effective_from": since, "effective_until": None}
    price = {**span, "tier": "standard", "region": "*", "currency": "USD"}
    return Books(
        1,
        customers=filled(names, CUSTOMERS, **span, name="A company", kind="paying", segment="business"),
        contracts=filled(
            names,
            CONTRACTS,
            **span,
            price_book="standard",
            margin_floor_ratio="0.2",
            floor_basis="usage",
        ),
        fees=filled(
            names,
            FEES,
            **span,
            fee="plan",
            kind="plan",
            amount="500",
            quantity=1,
            per="month",
            currency="USD",
        ),
        models=filled(
            pl.DataFrame({"model": _PRODUCTS}), MODELS, provider="own", name="A model", cost_book="bought"
        ),
        price_books=filled(prices, PRICES, **price, book="standard", unit_price="0.000003"),
        cost_books=filled(prices, PRICES, **price, book="bought", unit_price="0.000001"),
        capacity_steps=filled(
            pl.DataFrame({"pool": [_POOL]}),
            CAPACITY_STEPS,
            **span,
            dimension="all",
            units=48,
            unit_burn_per_minute=60_000,
            fee_share_ratio="1",
        ),
        capacity_fees=filled(
            pl.DataFrame({"pool": [_POOL], "fee": "step"}),
            CAPACITY_FEES,
            **span,
            dimension=None,
            amount="52560",
            per="month",
            currency="USD",
        ),
        burndown=filled(weights, BURNDOWN, **span, pool=_POOL, dimension="all", weight=1, denominator=1),
    )


def _breakpoints() -> pl.DataFrame:
    return pl.DataFrame(
        {"context_breakpoint": (0, *CONTEXT_BREAKPOINTS)}, schema={"context_breakpoint": pl.Int32}
    )


def filled(rows: pl.DataFrame, frame: Frame, **constants: object) -> pl.DataFrame:
    """`rows` as `frame`, with the same value in every row for the columns that it lacks."""
    absent = [pl.lit(value).cast(frame.columns[name]).alias(name) for name, value in constants.items()]
    return frame.conform(rows.with_columns(absent))


def write_rollups(folder: Path, rows: int, customers: int, period: Period) -> None:
    """Make the rollups and leave them in `folder`, so that another process starts with nothing but them."""
    usage = synthetic_usage(rows, customers, period)
    usage.series.write_parquet(folder / _SERIES_FILE)
    usage.rows.write_parquet(folder / USAGE_FILE)
    pool_usage_of(usage).write_parquet(folder / _POOL_USAGE_FILE)


def report(folder: Path, customers: int, period: Period) -> Report:
    """Read the rollups of `folder`, make the books, compute the margin lines: only that is on the clock."""
    files = (_SERIES_FILE, USAGE_FILE, _POOL_USAGE_FILE)
    series, rows, pool_usage = (pl.read_parquet(folder / name) for name in files)
    usage = Identified(series, rows)
    books = synthetic_books(customers)
    reset_peak()
    began = time.perf_counter()
    lines = margin(usage, pool_usage, books, period, "USD").lines
    seconds = time.perf_counter() - began
    assert lines["charge"].sum() > 0, "usage that is priced has a charge"
    return Report(rows.height, customers, lines.height, seconds, peak_bytes())


def report_by_customer(folder: Path, customers: int, period: Period) -> Report:
    """As `report`, of one line per customer, product and kind of line; usage is read from the files in runs of days.

    Reading is on the clock, and the memory is that of the whole process, books and all.
    """
    series, pool_usage = (pl.read_parquet(folder / name) for name in (_SERIES_FILE, _POOL_USAGE_FILE))
    stored = pl.scan_parquet(folder / USAGE_FILE)
    books = synthetic_books(customers)

    def of_span(span: Period) -> Identified:
        inside = pl.col("quarter_start").is_between(span.start, span.until, closed="left")
        return Identified(series, stored.filter(inside).collect())

    reset_peak()
    began = time.perf_counter()
    found = margin(
        of_span, pool_usage, books, period, "USD", terms_usage=USAGE.empty(), by=("customer",)
    ).lines
    seconds = time.perf_counter() - began
    rows: int = stored.select(pl.len()).collect().item()
    requests = stored.select(pl.col("requests").sum()).collect().item()
    assert found["requests"].sum() == requests, "every request is in a line"
    return Report(rows, customers, found.height, seconds, peak_bytes())


def reset_peak() -> None:
    """Let the peak begin at what is held now (Linux); elsewhere it holds the making of the rollups too."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def margin_measures(rows: int, customers: int, progress: Progress, *, stated: bool = False) -> list[Measure]:
    """The report, and the aggregation beside DuckDB's, in processes of their own, from files.

    Goals hold for 10,000 customers and 5 million rollup rows of a month; stated: the report by customer alone, without one.
    """
    progress(f"margin of a month: {customers:,} customers, {rows:,} rollup rows")
    with tempfile.TemporaryDirectory(prefix="metering-bench-") as folder:
        write_rollups(Path(folder), rows, customers, month())
        kind = "by-customer" if stated else "lines"
        told = Report(**in_child("bench.margin", folder, str(customers), kind))
        summed = {} if stated else in_child("bench.aggregation", folder)
    name = f"month margin, {told.customers:,} customers, {told.rows:,} rows"
    peak = mebibytes(told.peak_bytes)
    if stated:
        return [Measure(name, told.seconds, "s"), Measure(f"{name}: peak memory", peak, "MiB")]
    sums = f"sums of {summed['rows']:,} rows by day and series, against DuckDB"
    return [
        Measure(name, told.seconds, "s", SECONDS_MAX, 1.0, "at most"),
        Measure(f"{name}: peak memory", peak, "MiB", MEBIBYTES_MAX, 1.0, "at most"),
        Measure(sums, summed["seconds"], "s", summed["duckdb_seconds"], 1.0, "at most"),
    ]


def in_child(module: str, *arguments: str) -> dict[str, Any]:
    """What a module of the bench prints as JSON, run as a process of its own."""
    command = [sys.executable, "-m", module, *arguments]
    ended = subprocess.run(
        command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, check=False, timeout=_CHILD_SECONDS_MAX
    )
    if ended.returncode != 0:
        raise Unavailable(f"{module} ended with exit code {ended.returncode}; its messages are above")
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


if __name__ == "__main__":
    made = {"lines": report, "by-customer": report_by_customer}[sys.argv[3]]
    print(json.dumps(asdict(made(Path(sys.argv[1]), int(sys.argv[2]), month()))))

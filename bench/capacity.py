"""The month's capacity report of many pools, and who carries their idle, from synthetic rollups: seconds and memory.

A process of its own, so that the memory is its own: `python -m bench.capacity FOLDER POOLS CUSTOMERS`, JSON;
with no customers the capacity report alone, which is read week by week and can so be of ten times as many pools.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from bench.margin import MEBIBYTES_MAX, SECONDS_MAX, filled, month, reset_peak
from bench.measures import CHECKOUT, Measure, Progress, mebibytes, peak_bytes
from metering.core.capacity import capacity, summarise_capacity, together
from metering.core.costs import supply
from metering.errors import Unavailable
from metering.frames.books import Books
from metering.frames.frame import INSTANT, Frame
from metering.frames.supply import BURNDOWN, CAPACITY_FEES, CAPACITY_STEPS, ENTITLEMENTS, POOLS
from metering.frames.usage import POOL_CUSTOMER_USAGE, POOL_USAGE, SUMS, USAGE
from metering.meters import CONTEXT_BREAKPOINTS, METERS
from metering.periods import DAY, MINUTE, Period

_Numbers = npt.NDArray[np.int64]

_CHILD_SECONDS_MAX: Final = 900.0
_USAGE_FILES: Final = "pool_usage-*.parquet"
_CUSTOMERS_FILE: Final = "pool_customer_usage.parquet"
_MODELS: Final = ("lumen-large", "lumen-mini", "lumen-small")
#: A customer has usage in one of so many minutes, of one model each time; a pool in every minute, of every model.
ACTIVE_IN: Final = 10
_UNITS: Final = 100
_UNIT_BURN_PER_MINUTE: Final = 60_000
#: Of a pool and model in a minute, at most; half of it on average. A customer takes its part of the pool.
_USED_MAX: Final = {
    "requests": 500,
    "uncached_input_tokens": 1_400_000,
    "cache_read_tokens": 1_300_000,
    "output_tokens": 300_000,
}


@dataclass(frozen=True)
class Report:
    """What the capacity report and the cost of pools took. Peaks hold the rollups that each was made from too."""

    pool_rows: int
    customer_rows: int
    capacity_seconds: float
    capacity_peak_bytes: int
    cost_seconds: float
    cost_peak_bytes: int


def synthetic_pool_usage(pools: int, period: Period, seed: int = 5) -> pl.DataFrame:
    """POOL_USAGE of a part of the month: every pool burns by each of its models in every minute, about 75 %."""
    first = (period.start - month().start) // MINUTE
    places = np.arange(period.minutes * pools * len(_MODELS), dtype=np.int64)
    model, rest = places % len(_MODELS), places // len(_MODELS)
    return _usage(POOL_USAGE, first + rest // pools, rest % pools, model, seed + first, share=1.0)


def synthetic_customer_usage(pools: int, customers: int, seed: int = 6) -> pl.DataFrame:
    """POOL_CUSTOMER_USAGE of the same month: each customer in its pool, in every ACTIVE_IN-th minute of its own."""
    generator = np.random.default_rng(seed)
    minutes = np.arange(0, month().minutes - ACTIVE_IN, ACTIVE_IN, dtype=np.int64)
    customer = np.repeat(np.arange(customers, dtype=np.int64), len(minutes))
    minute = np.tile(minutes, customers) + customer * 7 % ACTIVE_IN
    order = np.lexsort((customer, customer % pools, minute))
    model = generator.integers(0, len(_MODELS), len(minute))
    share = pools / customers * ACTIVE_IN
    return _usage(
        POOL_CUSTOMER_USAGE, minute[order], (customer % pools)[order], model, seed, share, customer[order]
    )


def _usage(
    frame: Frame,
    minute: _Numbers,
    pool: _Numbers,
    model: _Numbers,
    seed: int,
    share: float,
    customer: _Numbers | None = None,
) -> pl.DataFrame:
    generator = np.random.default_rng(seed)
    rows = len(minute)
    start = int(month().start.timestamp()) * 1_000_000
    names = {
        "pool": (pool, [f"pool-{n:04d}" for n in range(int(pool.max()) + 1)]),
        "model_served": (model, list(_MODELS)),
    }
    if customer is not None:
        names["customer"] = (customer, [f"customer-{n:05d}" for n in range(int(customer.max()) + 1)])
    constants = {"ran_on": "pool", "provider": "own", "tier_served": "standard", "region": "us-east"}
    made = pl.DataFrame({"minute": start + minute * (MINUTE // timedelta(microseconds=1))}).with_columns(
        pl.col("minute").cast(INSTANT),
        pl.lit(0, dtype=pl.Int32).alias("context_breakpoint"),
        *(pl.Series(name, texts).gather(pl.Series(at)).alias(name) for name, (at, texts) in names.items()),
        *(pl.lit(value).alias(name) for name, value in constants.items()),
        *(
            pl.Series(
                name, generator.integers(0, max(1, int(_USED_MAX.get(name, 1) * share)), rows, np.int32)
            ).cast(dtype)
            for name, dtype in SUMS.items()
        ),
    )
    return frame.conform(made.select(*frame.columns))


def synthetic_books(pools: int, customers: int) -> Books:
    """Pools of one dimension that carry idle by entitlement, each customer entitled to its part of one pool."""
    since = datetime(2026, 1, 1, tzinfo=UTC)
    span = {"effective_from": since, "effective_until": None}
    names = pl.DataFrame({"pool": [f"pool-{number:04d}" for number in range(pools)]})
    breakpoints = pl.DataFrame(
        {"context_breakpoint": (0, *CONTEXT_BREAKPOINTS)}, schema={"context_breakpoint": pl.Int32}
    )
    weights = (
        names.join(pl.DataFrame({"model": _MODELS}), how="cross")
        .join(breakpoints, how="cross")
        .join(pl.DataFrame({"meter": METERS}), how="cross")
    )
    entitled = pl.DataFrame(
        {
            "customer": [f"customer-{number:05d}" for number in range(customers)],
            "pool": [f"pool-{number % pools:04d}" for number in range(customers)],
        },
        schema={"customer": pl.String, "pool": pl.String},
    )
    return Books(
        1,
        pools=filled(
            names,
            POOLS,
            supplier="cloud",
            unit="unit",
            currency="USD",
            idle_policy="entitlement",
            recognition="as_billed",
            on_demand_book=None,
            window_seconds=60,
            units_min=1,
            units_sold_in=1,
            lead_time_days=None,
            term_from=since,
            term_until=None,
            renewal_months=None,
            notice_days=None,
        ),
        capacity_steps=filled(
            names,
            CAPACITY_STEPS,
            **span,
            dimension="all",
            units=_UNITS,
            unit_burn_per_minute=_UNIT_BURN_PER_MINUTE,
            fee_share_ratio="1",
        ),
        capacity_fees=filled(
            names,
            CAPACITY_FEES,
            **span,
            fee="step",
            dimension=None,
            amount="52560",
            per="month",
            currency="USD",
        ),
        burndown=filled(weights, BURNDOWN, **span, dimension="all", weight=1, denominator=1),
        entitlements=filled(
            entitled,
            ENTITLEMENTS,
            **span,
            contract="c",
            dimension="all",
            units=str(_UNITS * pools // max(customers, 1)),
            stated=None,
        ),
    )


def write_rollups(folder: Path, pools: int, customers: int) -> None:
    """Make the rollups and leave them in `folder`, so that another process starts with nothing but them."""
    for week in month().runs(7 * DAY):
        usage = synthetic_pool_usage(pools, week)
        usage.write_parquet(folder / _USAGE_FILES.replace("*", f"{week.start:%d}"))
        del usage
    if customers:
        synthetic_customer_usage(pools, customers).write_parquet(folder / _CUSTOMERS_FILE)


def report(folder: Path, pools: int, customers: int) -> Report:
    """Read the rollups of `folder`, make the books, compute; capacity week by week, as its report reads them."""
    stored = pl.scan_parquet(folder / _USAGE_FILES)
    books = synthetic_books(pools, customers)
    reset_peak()
    began = time.perf_counter()
    used = together([capacity(_within(stored, week), books, week) for week in month().runs(7 * DAY)])
    summary = summarise_capacity(used.utilization)
    capacity_seconds, capacity_peak = time.perf_counter() - began, peak_bytes()
    assert summary["burn"].sum() > 0, "what is used burns"
    assert used.unburned.is_empty(), "everything that is used has a weight"
    del used, summary
    rows = stored.select(pl.len()).collect().item()
    if not customers:
        return Report(rows, 0, capacity_seconds, capacity_peak, 0.0, 0)
    usage = stored.collect()
    by_customer = pl.read_parquet(folder / _CUSTOMERS_FILE)
    reset_peak()
    began = time.perf_counter()
    made = supply(USAGE.empty(), usage, books, month(), pool_customer_usage=by_customer)
    cost_seconds = time.perf_counter() - began
    assert made.moved["quanta"].sum() == 0, "what some carry is taken from what nobody does"
    return Report(rows, by_customer.height, capacity_seconds, capacity_peak, cost_seconds, peak_bytes())


def _within(stored: pl.LazyFrame, period: Period) -> pl.DataFrame:
    return stored.filter(pl.col("minute").is_between(period.start, period.until, closed="left")).collect()


def capacity_measures(pools: int, customers: int, progress: Progress) -> list[Measure]:
    """The reports in a process of their own, from files. Goals hold for 50 pools and 1,000 customers."""
    progress(f"capacity of a month: {pools:,} pools of {len(_MODELS)} models, {customers:,} customers")
    with tempfile.TemporaryDirectory(prefix="metering-bench-") as folder:
        write_rollups(Path(folder), pools, customers)
        command = [sys.executable, "-m", "bench.capacity", folder, str(pools), str(customers)]
        ended = subprocess.run(
            command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, check=False, timeout=_CHILD_SECONDS_MAX
        )
    if ended.returncode != 0:
        raise Unavailable(
            f"the capacity report ended with exit code {ended.returncode}; its messages are above"
        )
    told = Report(**json.loads(ended.stdout))
    used = f"month capacity, {pools:,} pools, {told.pool_rows:,} rows"
    if not customers:  # stated, without a goal
        return [
            Measure(used, told.capacity_seconds, "s"),
            Measure(f"{used}: peak memory", mebibytes(told.capacity_peak_bytes), "MiB"),
        ]
    cost = f"month cost of pools, {customers:,} customers in every {ACTIVE_IN}th minute, {told.customer_rows:,} rows"
    return [
        Measure(used, told.capacity_seconds, "s", SECONDS_MAX, 1.0, "at most"),
        Measure(
            f"{used}: peak memory",
            mebibytes(told.capacity_peak_bytes),
            "MiB",
            MEBIBYTES_MAX,
            1.0,
            "at most",
        ),
        Measure(cost, told.cost_seconds, "s", SECONDS_MAX, 1.0, "at most"),
        Measure(
            f"{cost}: peak memory", mebibytes(told.cost_peak_bytes), "MiB", MEBIBYTES_MAX, 1.0, "at most"
        ),
    ]


if __name__ == "__main__":
    print(json.dumps(asdict(report(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))))

"""Quotas: how full the rate limits of what runs on demand were."""

from dataclasses import replace

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from metering.core.capacity import summarise_capacity
from metering.core.quotas import quota_use
from metering.frames.books import Books
from metering.frames.supply import QUOTA_WEIGHTS, QUOTAS
from metering.frames.usage import ON_DEMAND_USAGE
from metering.periods import parse_period
from tests.text_tables import check, read

PERIOD = parse_period("2026-03-01..2026-03-01T00:15")
BOOKS = replace(
    Books(1),
    quotas=read(
        """
        quota | provider | model | region | dimension | effective_from   | effective_until  | per_minute
        tpm   | cirrus   | large | *      | tokens    | 2026-01-01       | 2026-03-01 00:02 | 2_000
        tpm   | cirrus   | large | *      | tokens    | 2026-03-01 00:02 | -                | 4_000
        tpm   | cirrus   | large | *      | requests  | 2026-01-01       | -                | 3
        east  | cirrus   | *     | east   | tokens    | 2026-03-01 00:03 | 2026-03-01 00:05 | 100
        """,
        QUOTAS,
    ),
    quota_weights=read(
        """
        quota | dimension | meter                 | weight | denominator
        tpm   | tokens    | uncached_input_tokens | 2      | 2
        tpm   | tokens    | output_tokens         | 10     | 2
        tpm   | requests  | requests              | 1      | 1
        east  | tokens    | output_tokens         | 1      | 1
        """,
        QUOTA_WEIGHTS,
    ),
)
USAGE = """
    minute           | provider | model_served | region | requests | uncached_input_tokens | cache_read_tokens | output_tokens
    2026-03-01 00:00 | cirrus   | large        | west   | 2        | 1_000                 | 90_000            | 200
    2026-03-01 00:01 | cirrus   | large        | west   | 2        | 1_000                 | 0                 | 200
    2026-03-01 00:01 | cirrus   | large        | east   | 1        | 500                   | 0                 | 0
    2026-03-01 00:03 | cirrus   | large        | east   | 1        | 0                     | 0                 | 60
    2026-03-01 00:03 | cirrus   | small        | east   | 9        | 0                     | 0                 | 50
    2026-03-01 00:03 | other    | large        | east   | 9        | 7                     | 7                 | 7
    2026-03-01 00:15 | cirrus   | large        | east   | 9        | 7                     | 7                 | 7
"""  # noqa: E501


def usage():
    return read(USAGE, ON_DEMAND_USAGE)


def test_a_quota_counts_what_ran_on_demand_by_its_own_weights():
    """1,000 in and 200 out at five times: 2,000 of 2,000; a step is another limit; cache reads count nothing."""
    minutes = quota_use(usage(), BOOKS, PERIOD)
    check(
        minutes.filter(pl.col("burn") > 0),
        """
        pool | dimension | minute           | denominator | contracted | burn  | served | idle  | overrun | utilization_ratio
        tpm  | tokens    | 2026-03-01 00:00 | 2           | 4_000      | 4_000 | 4_000  | 0     | 0       | 1
        tpm  | tokens    | 2026-03-01 00:01 | 2           | 4_000      | 5_000 | 4_000  | 0     | 1_000   | 1.25
        tpm  | tokens    | 2026-03-01 00:03 | 2           | 8_000      | 600   | 600    | 7_400 | 0       | 0.075
        tpm  | requests  | 2026-03-01 00:00 | 1           | 3          | 2     | 2      | 1     | 0       | 0.666667
        tpm  | requests  | 2026-03-01 00:01 | 1           | 3          | 3     | 3      | 0     | 0       | 1
        tpm  | requests  | 2026-03-01 00:03 | 1           | 3          | 1     | 1      | 2     | 0       | 0.333333
        east | tokens    | 2026-03-01 00:03 | 1           | 100        | 110   | 100    | 0     | 10      | 1.1
        """,
    )
    check(
        summarise_capacity(minutes),
        """
        pool | dimension | minutes | minutes_at_limit | longest_run_at_limit_minutes | max_ratio | tightest
        tpm  | tokens    | 15      | 2                | 2                            | 1.25      | no
        tpm  | requests  | 15      | 1                | 1                            | 1         | yes
        east | tokens    | 2       | 1                | 1                            | 1.1       | yes
        """,
    )


@given(st.integers(0, 7), st.randoms())
def test_a_quota_depends_on_no_order_and_on_no_cut(at, dice):
    rows = usage()
    cut = parse_period("2026-03-01..2026-03-01T00:15")
    whole = quota_use(rows, BOOKS, cut)
    order = list(range(rows.height))
    dice.shuffle(order)
    split = [quota_use(pl.concat([rows[order], rows.head(0)]), BOOKS, part) for part in _parts(cut, at)]
    assert whole.equals(pl.concat(split).sort("pool", "dimension", "minute"))


def _parts(period, at):
    middle = period.start + at * (period.until - period.start) / 7
    middle = middle.replace(second=0, microsecond=0)
    return [replace(period, until=middle), replace(period, start=middle)]

"""Usage: a producer's counts, by its convention, become disjoint meters in which every token lands once."""

from typing import Final

import polars as pl

from metering.frames import EVENTS, Frame
from metering.meters import CONTEXT_BREAKPOINTS, METERS

#: One row per event whose counts cannot all be true.
CONTRADICTIONS: Final = Frame(
    "CONTRADICTIONS",
    {"record": pl.Int32, "index": pl.Int32, "field": pl.String, "detail": pl.String},
    key=("record", "index"),
)

_CACHED: Final = ("cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens")


def meter(reported: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Turn reported counts (frames.REPORTED_EVENTS) into meters: (frames.EVENTS, CONTRADICTIONS).

    The identity on both conventions, in tokens of one request:

        input  = uncached + cache_read + cache_write_5m + cache_write_1h
        output = visible + reasoning

    `inclusive`: the reported input holds the cached tokens and the reported output the reasoning, so uncached
    and visible are remainders; a negative remainder is a contradiction that names the fields. `disjoint`: all
    were reported beside each other, so the totals are sums. The context breakpoint follows the total input.
    """
    inclusive = pl.col("usage_convention") == "inclusive"
    cached = pl.sum_horizontal(_CACHED)
    reasoning = pl.col("reported_reasoning_tokens")
    counted = reported.with_columns(
        pl.when(inclusive)
        .then(pl.col("input_tokens") - cached)
        .otherwise(pl.col("input_tokens"))
        .alias("uncached_input_tokens"),
        pl.when(inclusive)
        .then(pl.col("total_output_tokens") - reasoning)
        .otherwise(pl.col("total_output_tokens"))
        .alias("output_tokens"),
        reasoning.alias("reasoning_tokens"),
        pl.when(inclusive)
        .then(pl.col("input_tokens"))
        .otherwise(pl.col("input_tokens") + cached)
        .alias("_total_input_tokens"),
    )
    contradicts = (pl.col("uncached_input_tokens") < 0) | (pl.col("output_tokens") < 0)
    # mostly none does: then nothing has to be copied
    broken = counted.filter(contradicts)
    kept = counted.filter(~contradicts) if broken.height else counted
    events = kept.with_columns(
        pl.when("billable").then(pl.lit("charge_and_cost")).otherwise(pl.lit("cost")).alias("counts_for"),
        pl.max_horizontal(
            pl.when(pl.col("_total_input_tokens") > edge).then(edge).otherwise(0)
            for edge in CONTEXT_BREAKPOINTS
        )
        .cast(pl.Int32)
        .alias("context_breakpoint"),
        *(pl.col(name).cast(pl.Int32) for name in METERS),
    )
    return EVENTS.conform(events), CONTRADICTIONS.conform(_contradictions(broken))


def _contradictions(counted: pl.DataFrame) -> pl.DataFrame:
    """What contradicts what: the part that is larger than the whole, with both numbers."""
    input_side = pl.col("uncached_input_tokens") < 0
    cached = [
        pl.when(pl.col(name) > 0).then(pl.format("{} ({})", pl.lit(f"usage.{name}"), pl.col(name)))
        for name in _CACHED
    ]
    return counted.select(
        "record",
        "index",
        pl.when(input_side)
        .then(pl.lit("data.usage.input_tokens"))
        .otherwise(pl.lit("data.usage.output_tokens"))
        .alias("field"),
        pl.when(input_side)
        .then(
            pl.format(
                "usage_convention is inclusive, but usage.input_tokens ({}) is less than {} inside it",
                pl.col("input_tokens"),
                pl.concat_str(cached, separator=" + ", ignore_nulls=True),
            )
        )
        .otherwise(
            pl.format(
                "usage_convention is inclusive, but usage.output_tokens ({}) is less than "
                "usage.reasoning_tokens ({}) inside it",
                pl.col("total_output_tokens"),
                pl.col("reported_reasoning_tokens"),
            )
        )
        .alias("detail"),
    )

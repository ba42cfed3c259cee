"""Usage: a producer's counts, by its convention, become disjoint meters in which every token lands once."""

from collections.abc import Sequence
from typing import Final

import polars as pl

from metering.frames.events import EVENTS
from metering.frames.frame import Frame
from metering.meters import CONTEXT_BREAKPOINTS, INPUT_METERS, METERS

#: One row per event whose counts cannot all be true.
CONTRADICTIONS: Final = Frame(
    "CONTRADICTIONS",
    {"record": pl.Int32, "index": pl.Int32, "field": pl.String, "detail": pl.String},
    key=("record", "index"),
)

_IN_INPUT: Final = tuple(meter for meter in INPUT_METERS if meter != "uncached_input_tokens")
_IN_OUTPUT: Final = ("reported_reasoning_tokens", "audio_output_tokens", "image_output_tokens")


def meter(reported: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Turn reported counts (frames.REPORTED_EVENTS) into meters: (frames.EVENTS, CONTRADICTIONS).

    The identity on both conventions, in tokens of one request:

        input  = uncached + cache_read + cache_write_5m + cache_write_1h + audio + images
        output = visible + reasoning + audio + images

    `inclusive`: the reported input holds the cached tokens, those of audio and of images, the reported output
    the reasoning, audio and images, so uncached and visible are remainders; a negative remainder is a
    contradiction that names the fields. `disjoint`: all were reported beside each other, so the totals are sums.
    The context breakpoint follows the total input, or the largest input of one sampling where a request was
    several: a price of long context is a cliff for each. One that is larger than the total input is a contradiction.
    """
    inclusive = pl.col("usage_convention") == "inclusive"
    in_input, in_output = pl.sum_horizontal(_IN_INPUT), pl.sum_horizontal(_IN_OUTPUT)
    counted = reported.with_columns(
        pl.when(inclusive)
        .then(pl.col("input_tokens") - in_input)
        .otherwise(pl.col("input_tokens"))
        .alias("uncached_input_tokens"),
        pl.when(inclusive)
        .then(pl.col("total_output_tokens") - in_output)
        .otherwise(pl.col("total_output_tokens"))
        .alias("output_tokens"),
        pl.col("reported_reasoning_tokens").alias("reasoning_tokens"),
        pl.when(inclusive)
        .then(pl.col("input_tokens"))
        .otherwise(pl.col("input_tokens") + in_input)
        .alias("_total_input_tokens"),
    )
    context = pl.coalesce("context_tokens", "_total_input_tokens")
    contradicts = (
        (pl.col("uncached_input_tokens") < 0)
        | (pl.col("output_tokens") < 0)
        | (context > pl.col("_total_input_tokens"))
    )
    # mostly none does: then nothing has to be copied
    broken = counted.filter(contradicts)
    kept = counted.filter(~contradicts) if broken.height else counted
    events = kept.with_columns(
        pl.when("billable").then(pl.lit("charge_and_cost")).otherwise(pl.lit("cost")).alias("counts_for"),
        pl.max_horizontal(pl.when(context > edge).then(edge).otherwise(0) for edge in CONTEXT_BREAKPOINTS)
        .cast(pl.Int32)
        .alias("context_breakpoint"),
        *(pl.col(name).cast(pl.Int32) for name in METERS),
    )
    return EVENTS.conform(events), CONTRADICTIONS.conform(_contradictions(broken))


def _contradictions(counted: pl.DataFrame) -> pl.DataFrame:
    """What contradicts what: the parts that are larger than the whole, with all numbers."""
    input_side = pl.col("uncached_input_tokens") < 0
    output_side = pl.col("output_tokens") < 0
    larger = pl.format(
        "usage.context_tokens ({}) is more than the input ({}) of which it is a part",
        pl.col("context_tokens"),
        pl.col("_total_input_tokens"),
    )
    return counted.select(
        "record",
        "index",
        pl.when(input_side)
        .then(pl.lit("data.usage.input_tokens"))
        .when(output_side)
        .then(pl.lit("data.usage.output_tokens"))
        .otherwise(pl.lit("data.usage.context_tokens"))
        .alias("field"),
        pl.when(input_side)
        .then(_smaller("input_tokens", "input_tokens", _IN_INPUT))
        .when(output_side)
        .then(_smaller("output_tokens", "total_output_tokens", _IN_OUTPUT))
        .otherwise(larger)
        .alias("detail"),
    )


def _smaller(whole: str, column: str, parts: Sequence[str]) -> pl.Expr:
    said = [
        pl.when(pl.col(name) > 0).then(
            pl.format("{} ({})", pl.lit(f"usage.{name.removeprefix('reported_')}"), pl.col(name))
        )
        for name in parts
    ]
    return pl.format(
        "usage_convention is inclusive, but {} ({}) is less than {} inside it",
        pl.lit(f"usage.{whole}"),
        pl.col(column),
        pl.concat_str(said, separator=" + ", ignore_nulls=True),
    )

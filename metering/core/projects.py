"""Projects: amounts and quantities of a customer's usage by the project that used it; never rated per project."""

from collections.abc import Sequence

import polars as pl

from metering.core.costs import Part
from metering.core.effective import with_slice
from metering.frames.frame import SUM
from metering.frames.usage import DIMENSIONS, SUMS
from metering.meters import INPUT_METERS, OUTPUT_METERS
from metering.money import split_largest_remainder

_KEY = ("slice_start", "series_id")


def project_shares(usage: pl.DataFrame, part: Part) -> pl.DataFrame:
    """What each project used of every series in every slice of a part: slice_start, series_id, project, SUMS, weight.

    usage: frames.PROJECT_USAGE of at least the part; what is not in it of the part's usage is of project '' (not
    said), so that projects sum to the usage exactly. weight >= 0: the tokens of all meters together, or, where
    they sum to 0, the requests; of a sum below 0 (what was taken back) its opposite. A project on the other side
    of the sum weighs 0; where requests sum to 0 too, all is of project ''.
    """
    cut = part.cut
    start, until = cut["slice_start"].min(), cut["slice_until"].max()
    here = pl.col("quarter_start").is_between(pl.lit(start), pl.lit(until), closed="left")
    series = part.known.series.select("series_id", *DIMENSIONS)
    told = with_slice(usage.filter(here), cut, at="quarter_start").join(
        series, on=list(DIMENSIONS), nulls_equal=True, validate="m:1"
    )
    columns = [*_KEY, "project", *SUMS]
    whole = part.sliced.rename({"quarter_start": "slice_start"}).with_columns(pl.lit("").alias("project"))
    taken = told.with_columns(pl.lit("").alias("project"), *(pl.col(name) * -1 for name in SUMS))
    shares = (
        pl.concat([whole.select(columns), taken.select(columns), told.select(columns)])
        .group_by(*_KEY, "project")
        .agg(pl.col(*SUMS).sum())
    )
    tokens = pl.sum_horizontal(*INPUT_METERS, *OUTPUT_METERS).cast(SUM)
    shares = shares.with_columns(tokens.alias("_tokens")).with_columns(
        pl.col(name).sum().over(_KEY).alias(f"_all_{name}") for name in ("_tokens", "requests")
    )
    unsaid = (pl.col("project") == "").cast(SUM)
    weight = (
        pl.when(pl.col("_all__tokens") != 0)
        .then(pl.col("_tokens") * pl.col("_all__tokens").sign())
        .when(pl.col("_all_requests") != 0)
        .then(pl.col("requests") * pl.col("_all_requests").sign())
        .otherwise(unsaid)
    )
    shares = shares.with_columns(pl.max_horizontal(weight, pl.lit(0, dtype=SUM)).cast(SUM).alias("weight"))
    used = pl.any_horizontal(pl.col(name) != 0 for name in ("weight", *SUMS))
    return shares.filter(used).select(*columns, "weight")


def by_project(flows: pl.DataFrame, shares: pl.DataFrame, key: Sequence[str]) -> pl.DataFrame:
    """Flows summed by `key` (of it slice_start and series_id), each sum split over the projects of its series.

    shares: of `project_shares`. The quanta of a key go by weight (largest remainder, ties by the project's name)
    and sum to it exactly; a series that nothing is known of there is of project '', no series of none: null.
    """
    weights = shares.filter(pl.col("weight") > 0).select(*_KEY, "project", "weight")
    summed = flows.group_by(key).agg(pl.col("quanta").sum()).with_row_index("_row")
    spread = summed.join(weights, on=_KEY, how="left", validate="m:m").with_columns(
        pl.when(pl.col("series_id").is_not_null()).then(pl.col("project").fill_null("")).alias("project"),
        pl.col("weight").fill_null(pl.lit(1, dtype=SUM)),
    )
    parts = split_largest_remainder(
        spread.select("_row", "project", "weight", "quanta"),
        group=["_row"],
        total="quanta",
        weight="weight",
        tie_break=["project"],
        into="_part",
    )
    return (
        spread.drop("quanta", "weight")
        .join(
            parts.select("_row", "project", pl.col("_part").alias("quanta")),
            on=["_row", "project"],
            nulls_equal=True,
            validate="1:1",
        )
        .drop("_row")
    )

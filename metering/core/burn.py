"""Burn: what usage takes of capacity, its meters weighed by the burndown table in force, times multipliers."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import polars as pl

from metering.core.effective import edges, in_force
from metering.core.series import identify, numbered
from metering.core.sums import largest
from metering.errors import BadInput
from metering.frames.books import Books
from metering.frames.frame import INSTANT, SUM
from metering.meters import METERS, TOKEN_METERS
from metering.money import EXACT_MAX
from metering.results.capacity import UNBURNED

#: What burn depends on, of usage in pools.
SERIES: Final = ("pool", "ran_on", "model_served", "tier_served", "region", "context_breakpoint")
_WEIGHED_BY: Final = ("pool", "model_served", "context_breakpoint")
_MULTIPLIED_BY: Final = {"region": "region", "tier": "tier_served"}


def weigh(
    rows: pl.DataFrame, series: pl.DataFrame, burndown: pl.DataFrame, multipliers: pl.DataFrame, *, at: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Burn numerators per row and dimension: m x sum over meters of weight x quantity; (weighed, unweighed).

    rows: `at`, series_id, meters. series: series_id, pool, model_served, context_breakpoint, region,
    tier_served. burndown: frames.BURNDOWN; multipliers: frames.MULTIPLIERS; what is in force at `at` applies.
    m is the product over region and tier of the multiplier's numerator, of its denominator where the value has
    no row, and of 1 where the dimension multiplies by none. weighed: `at`, series_id, dimension, burn.
    unweighed: `at`, series_id, meter, quantity that no dimension weighs: all of a model that the table in
    force does not name; else token meters without a weight, where the table weighs tokens at all (a weight
    of 0 has to be said). accelerator_ms without a weight burns nothing: the pool is measured in tokens.
    Total burn of a dimension beyond EXACT_MAX raises BadInput: it could wrap.
    """
    by_dimension, unweighed = weigh_by_dimension(rows, series, burndown, multipliers, at=at)
    nothing = pl.DataFrame(
        schema={
            at: rows.schema[at],
            "series_id": rows.schema["series_id"],
            "dimension": pl.String,
            "burn": SUM,
        }
    )
    named = [
        weighed.select(at, "series_id", pl.lit(dimension).alias("dimension"), pl.col("burn").cast(SUM))
        for dimension, weighed in by_dimension.items()
    ]
    return pl.concat([nothing, *named]), unweighed


def weigh_by_dimension(
    rows: pl.DataFrame, series: pl.DataFrame, burndown: pl.DataFrame, multipliers: pl.DataFrame, *, at: str
) -> tuple[dict[str, pl.DataFrame], pl.DataFrame]:
    """As `weigh`, weighed by dimension: `at`, series_id, burn, in 64 bits where it fits."""
    starts = pl.Series(edges([burndown, multipliers]), dtype=INSTANT)
    # nothing changes between two edges of the books: what is in force is looked up once per series and epoch
    width = starts.len() + 1
    epochs = starts.to_physical().search_sorted(rows[at].to_physical(), side="right")
    numbers = rows["series_id"].cast(pl.Int64) * width + epochs.cast(pl.Int64)
    known, met_by_row = numbered(numbers)
    met = (
        pl.DataFrame(
            {
                "series_id": (known // width).cast(rows.schema["series_id"]),
                "epoch": pl.concat([pl.Series([0]).cast(INSTANT), starts]).gather(known % width),
            }
        )
        .join(series, on="series_id", how="left", validate="m:1", maintain_order="left")
        .with_row_index("_met")
    )
    weights, missing = _weights(met.select(*_WEIGHED_BY, "epoch").unique(), burndown)
    weights = _multiplied(met.join(weights, on=[*_WEIGHED_BY, "epoch"]), multipliers).sort("_met")
    by_dimension = {
        dimension: _weighed_in(
            dimension, rows, met_by_row, weights.filter(pl.col("dimension") == dimension), at=at
        )
        for dimension in weights["dimension"].unique().sort()
    }
    gaps = met.join(missing, on=[*_WEIGHED_BY, "epoch"]).select("_met", "meter")
    unweighed = [
        rows.filter(met_by_row.is_in(gaps.filter(pl.col("meter") == meter)["_met"].implode()))
        .filter(pl.col(meter) != 0)
        .select(at, "series_id", pl.lit(meter).alias("meter"), pl.col(meter).cast(SUM).alias("quantity"))
        for meter in gaps["meter"].unique().sort()
    ]
    no_gap = pl.DataFrame(
        schema={
            at: rows.schema[at],
            "series_id": rows.schema["series_id"],
            "meter": pl.String,
            "quantity": SUM,
        }
    )
    return by_dimension, pl.concat([no_gap, *unweighed])


def _weighed_in(
    dimension: str, rows: pl.DataFrame, met_by_row: pl.Series, weights: pl.DataFrame, *, at: str
) -> pl.DataFrame:
    """Burn in one dimension of the rows whose series and epoch have a row in `weights`, sorted by _met.

    In 64 bits where no row's burn can leave them, which takes a fraction of the time; else in 128.
    """
    place = met_by_row
    if weights.height <= (met_by_row.max() or 0):  # type: ignore[operator]  # an index
        inside = met_by_row.is_in(weights["_met"].implode())
        rows, place = rows.filter(inside), weights["_met"].search_sorted(met_by_row.filter(inside))
    multiplier = weights["multiplier"]
    quantity = {meter: largest(rows[meter]) for meter in METERS}
    weight = {meter: largest(weights[_weight(meter)]) for meter in METERS}
    bound = largest(multiplier) * sum(quantity[meter] * weight[meter] for meter in METERS)
    weighing = [meter for meter in METERS if quantity[meter] and weight[meter]]
    told = rows.select(at, "series_id")
    if bound < 2**63 and bound * rows.height <= EXACT_MAX:
        narrow = np.zeros(rows.height, np.int64)
        for meter in weighing:
            factor = (multiplier * weights[_weight(meter)]).cast(pl.Int64).to_numpy()
            narrow += rows[meter].cast(pl.Int64).to_numpy() * factor[place.to_numpy()]
        return told.with_columns(pl.Series("burn", narrow))
    wide = rows.select(at, *METERS).with_columns(
        multiplier.gather(place), *(weights[_weight(meter)].gather(place) for meter in METERS)
    )
    guess = pl.col("multiplier").cast(pl.Float64) * pl.sum_horizontal(
        pl.col(meter).cast(pl.Float64).abs() * pl.col(_weight(meter)).cast(pl.Float64) for meter in METERS
    )
    if (wide.select(guess.sum()).item() or 0) > 0.99 * EXACT_MAX:
        worst = (
            wide.select(at, pl.lit(dimension).alias("dimension"), *METERS, guess.alias("burn"))
            .sort("burn")
            .row(-1, named=True)
        )
        raise BadInput(f"burn is beyond what can be summed exactly, most of it in {worst}; void those events")
    burn = pl.col("multiplier") * pl.sum_horizontal(
        pl.col(meter).cast(SUM) * pl.col(_weight(meter)) for meter in METERS
    ).cast(SUM)
    return told.with_columns(wide.select(burn.cast(SUM).alias("burn")).to_series())


def _weight(meter: str) -> str:
    return f"weight_{meter}"


def _weights(keys: pl.DataFrame, burndown: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Per key and dimension one column of weights per meter; and per key the meters that nothing weighs."""
    meters = pl.DataFrame({"meter": METERS}, schema={"meter": pl.String})
    dimensions = burndown.select("pool", "dimension").unique()
    table = burndown.select(
        *("pool", "dimension", "context_breakpoint", "meter", "effective_from", "effective_until"),
        pl.col("model").alias("model_served"),
        pl.col("weight").cast(SUM),
    )
    found = in_force(
        keys.join(dimensions, on="pool").join(meters, how="cross"),
        table,
        at="epoch",
        by=[*_WEIGHED_BY, "dimension", "meter"],
    )
    by = [*_WEIGHED_BY, "epoch"]
    wide = found.group_by(*by, "dimension").agg(
        pl.col("weight").filter(pl.col("meter") == meter).sum().alias(_weight(meter)) for meter in METERS
    )
    said = found.group_by(*by, "meter").agg(pl.col("weight").is_not_null().any().alias("said"))
    every = keys.join(meters, how="cross").join(said, on=[*by, "meter"], how="left", validate="1:1")
    said_ = pl.col("said").fill_null(value=False)
    token = pl.col("meter").is_in(TOKEN_METERS)
    named = said_.any().over(by)
    tokens_weighed = (said_ & token).any().over(by)
    missing = every.filter(~named | (token & tokens_weighed & ~said_)).select(*by, "meter")
    return wide, missing


def _multiplied(weights: pl.DataFrame, multipliers: pl.DataFrame) -> pl.DataFrame:
    """Give weights (pool, dimension, epoch, region, tier_served) their `multiplier`, an Int128 numerator."""
    weights = weights.with_columns(pl.lit(1, dtype=SUM).alias("multiplier"))
    for by, served in _MULTIPLIED_BY.items():
        table = multipliers.filter(pl.col("by") == by)
        if table.is_empty():
            continue
        of_none = _one_denominator(table, f"multipliers by {by}").rename({"denominator": "_none"})
        dated = table.select(
            *("pool", "dimension", "effective_from", "effective_until", "numerator"),
            pl.col("value").alias(served),
        )
        weights = (
            in_force(weights, dated, at="epoch", by=["pool", "dimension", served])
            .join(of_none, on=["pool", "dimension"], how="left", validate="m:1")
            .with_columns(
                pl.col("multiplier") * pl.coalesce("numerator", "_none", pl.lit(1, dtype=pl.Int64)).cast(SUM)
            )
            .drop("numerator", "_none")
        )
    return weights


def _one_denominator(table: pl.DataFrame, what: str) -> pl.DataFrame:
    found = table.group_by("pool", "dimension").agg(
        pl.col("denominator").first(), pl.col("denominator").n_unique().alias("_count")
    )
    two = found.filter(pl.col("_count") > 1).sort("pool", "dimension")
    if two.height:
        row = two.row(0, named=True)
        raise BadInput(
            f"{what} of pool '{row['pool']}', dimension '{row['dimension']}' has "
            f"{row['_count']} denominators; bring all its versions to one"
        )
    return found.drop("_count")


def denominators(burndown: pl.DataFrame, multipliers: pl.DataFrame) -> pl.DataFrame:
    """The one denominator of each pool and dimension that has weights: pool, dimension, denominator.

    = burndown denominator x that of the multipliers by region x that of those by tier, where there are any.
    Two denominators of one of these, or a product beyond 64 bits, raise BadInput.
    """
    found = _one_denominator(burndown, "burndown")
    for by in _MULTIPLIED_BY:
        of_by = _one_denominator(multipliers.filter(pl.col("by") == by), f"multipliers by {by}")
        found = found.join(of_by, on=["pool", "dimension"], how="left", suffix="_by", validate="1:1")
        product = pl.col("denominator").cast(SUM) * pl.col("denominator_by").fill_null(1).cast(SUM)
        if (found.select(product.max()).item() or 0) >= 2**63:
            row = found.filter(product >= 2**63).sort("pool", "dimension").row(0, named=True)
            raise BadInput(
                f"multipliers by {by} of pool '{row['pool']}', dimension '{row['dimension']}': {row['denominator']} "
                f"x {row['denominator_by']} is beyond 64 bits; give weights and multipliers fewer decimals"
            )
        found = found.with_columns(product.cast(pl.Int64).alias("denominator")).drop("denominator_by")
    return found


def burn_by_series(
    usage: pl.DataFrame, burndown: pl.DataFrame, multipliers: pl.DataFrame, more: Sequence[str] = ()
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Burn of usage that ran in its pool or overflowed, by series: (series, weighed, unburned).

    usage: frames.POOL_USAGE with `more` columns, as customer; rows of one key may be split. series: series_id
    and the dimensions of both. weighed: minute, series_id, dimension, burn; some rows may be of one key.
    unburned: results.UNBURNED, what has no weight.
    """
    identified = identify(usage.filter(pl.col("ran_on").is_in(["pool", "overflow"])), [*SERIES, *more])
    series = identified.series
    weighed, unweighed = weigh(identified.rows, series, burndown, multipliers, at="minute")
    return series, weighed, UNBURNED.conform(unburned(unweighed, series, "no_weight"))


def unburned(quantities: pl.DataFrame, series: pl.DataFrame, reason: str) -> pl.DataFrame:
    return (
        quantities.join(series, on="series_id", validate="m:1")
        .group_by("minute", *SERIES, "meter")
        .agg(pl.col("quantity").sum())
        .filter(pl.col("quantity") != 0)
        .select(*_UNBURNED, pl.lit(reason).alias("reason"))
    )


_UNBURNED: Final = tuple(name for name in UNBURNED.columns if name != "reason")


def carve_out_pools(set_aside: pl.DataFrame) -> pl.DataFrame:
    """The pool of every carve-out of frames.SET_ASIDE, in force or not: carve_out, pool. Two raise BadInput."""
    named = set_aside.filter(pl.col("kind") == "carve_out").select(pl.col("name").alias("carve_out"), "pool")
    found = named.unique().sort("carve_out", "pool")
    twice = found.filter(pl.col("carve_out").is_duplicated())
    if twice.height:
        first = twice["carve_out"][0]
        pools = ", ".join(twice.filter(pl.col("carve_out") == first)["pool"])
        raise BadInput(
            f"carve-out '{first}' is set aside from several pools, {pools}; give each a name of its own"
        )
    return found


def weights_in(books: Books) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Burndown and multipliers of the pools with capacity steps; a carve-out has those of its pool."""
    bought = books.capacity_steps.select("pool", "dimension").unique()
    owners = carve_out_pools(books.set_aside)

    def with_carve_outs(table: pl.DataFrame) -> pl.DataFrame:
        of_pools = table.join(bought, on=["pool", "dimension"], how="semi")
        of_carve_outs = of_pools.join(owners, on="pool").with_columns(pl.col("carve_out").alias("pool"))
        return pl.concat([of_pools, of_carve_outs.select(of_pools.columns)])

    return with_carve_outs(books.burndown), with_carve_outs(books.multipliers)

"""Shares: whose burn a pool's was, by model and by customer, and who made its highest minute."""

import polars as pl

from metering.core.burn import burn_by_series, weights_in
from metering.core.capacity import Capacity
from metering.core.entitlement import burned_by_customer, entitled
from metering.errors import WrongWorld
from metering.frames.books import Books
from metering.frames.frame import SUM
from metering.money import ratio
from metering.results.capacity import CAPACITY_CUSTOMERS, CAPACITY_MODELS

_BY = ["pool", "dimension"]


def _whole(used: Capacity) -> pl.DataFrame:
    """Pools and carve-outs, minute by minute: results.UTILIZATION."""
    return pl.concat([used.utilization, used.carve_outs])


def model_shares(pool_usage: pl.DataFrame, books: Books, used: Capacity) -> pl.DataFrame:
    """Burn and spill of each model served, and its part of its pool's: results.CAPACITY_MODELS.

    pool_usage: frames.POOL_USAGE of at least the minutes of `used`; other minutes, and usage that no weight
    applies to, are left out. Requests are those that ran in the pool or were meant for it and overflowed.
    """
    whole = _whole(used)
    known = pool_usage.join(whole.select("pool", "minute").unique(), on=["pool", "minute"], how="semi")
    series, weighed, _ = burn_by_series(known, *weights_in(books))
    burned = weighed.join(series, on="series_id", validate="m:1")
    requests = (
        known.filter(pl.col("ran_on").is_in(["pool", "overflow"]))
        .group_by("pool", "model_served")
        .agg(pl.col("requests").sum())
    )
    rows = (
        burned.group_by(*_BY, "model_served")
        .agg(
            pl.col("burn").filter(pl.col("ran_on") == "pool").sum().alias("burn"),
            pl.col("burn").filter(pl.col("ran_on") == "overflow").sum().alias("spill"),
        )
        .join(whole.group_by(_BY).agg(pl.col("denominator").first()), on=_BY, validate="m:1")
        .join(requests, on=["pool", "model_served"], how="left", validate="m:1")
        .with_columns(
            ratio(pl.col(name), pl.col(name).sum().over(_BY)).alias(f"{name}_ratio")
            for name in ("burn", "spill")
        )
    )
    return CAPACITY_MODELS.conform(rows)


def customer_shares(customer_usage: pl.DataFrame, books: Books, used: Capacity) -> pl.DataFrame:
    """What each customer took of each pool, and what of its entitlement: results.CAPACITY_CUSTOMERS.

    customer_usage: frames.POOL_CUSTOMER_USAGE of the pools and minutes of `used`. Demand is burn + spill. The
    pool's peak is its (first) minute of the highest demand, of all customers; a customer's share of it says
    for whom the pool is as large as it is. A customer that is entitled to units and used none has its row.
    What differs from `used` in the sum raises WrongWorld: both are folded from one ledger.
    """
    whole = _whole(used)
    burned = (
        burned_by_customer(customer_usage, books, whole)
        .with_columns((pl.col("burn") + pl.col("spill")).alias("demand"))
        .filter(pl.col("demand") != 0)
    )
    _refuse_disagreement(burned, whole)
    demand = whole.select(*_BY, "minute", (pl.col("burn") + pl.col("spill")).alias("_pool_demand"))
    peaks = _highest(demand.filter(pl.col("_pool_demand") > 0), "_pool_demand", _BY)
    pools = (
        whole.group_by(_BY)
        .agg(pl.col("denominator").first())
        .join(peaks.rename({"minute": "peak_minute"}), on=_BY, how="left", validate="1:1")
    )
    key = [*_BY, "customer"]
    own = _highest(burned, "demand", key).select(
        *key, pl.col("minute").alias("own_peak_minute"), pl.col("demand").alias("own_peak_demand")
    )
    at_peak = burned.join(pools, left_on=[*_BY, "minute"], right_on=[*_BY, "peak_minute"], how="semi").select(
        *key, pl.col("demand").alias("peak_demand")
    )
    promised = entitled(books, whole)
    taken = (
        burned.with_columns(pl.col("minute").dt.truncate("15m").alias("quarter_start"))
        .join(promised, on=[*key, "quarter_start"], validate="m:1")
        .group_by(key)
        .agg(pl.min_horizontal("burn", "entitlement").sum().alias("entitlement_used"))
    )
    entitlements = (
        promised.group_by(key)
        .agg((pl.col("entitlement").sum() * pl.lit(15, dtype=SUM)).alias("entitlement"))
        .join(taken, on=key, how="left", validate="1:1")
        .with_columns(pl.col("entitlement_used").fill_null(0))
    )
    sums = burned.group_by(key).agg(pl.col("burn", "spill").sum())
    rows = (
        sums.join(entitlements, on=key, how="full", coalesce=True, validate="1:1")
        .join(own, on=key, how="left", validate="1:1")
        .join(at_peak, on=key, how="left", validate="1:1")
        .join(pools, on=_BY, how="left", validate="m:1")
        .with_columns(pl.col("burn", "spill", "own_peak_demand", "peak_demand").fill_null(0))
        .with_columns(
            ratio(pl.col("burn"), pl.col("burn").sum().over(_BY)).alias("burn_ratio"),
            ratio(pl.col("peak_demand"), pl.col("_pool_demand")).alias("peak_ratio"),
            ratio(pl.col("entitlement_used"), pl.col("entitlement")).alias("entitlement_used_ratio"),
        )
    )
    return CAPACITY_CUSTOMERS.conform(rows)


def _highest(rows: pl.DataFrame, what: str, by: list[str]) -> pl.DataFrame:
    """The most of `what` in each group, and its minute: the earliest of equals."""
    most = pl.col(what).max()
    return rows.group_by(by).agg(pl.col("minute").filter(pl.col(what) == most).min(), most)


def _refuse_disagreement(burned: pl.DataFrame, whole: pl.DataFrame) -> None:
    by_customer = burned.group_by(_BY).agg(pl.col("demand").sum().alias("by_customer"))
    odd = (
        whole.group_by(_BY)
        .agg((pl.col("burn") + pl.col("spill")).sum().alias("by_minute"))
        .join(by_customer, on=_BY, how="left", validate="1:1")
        .filter(pl.col("by_minute") != pl.col("by_customer").fill_null(0))
        .sort(_BY)
    )
    if odd.height:
        raise WrongWorld(
            f"usage by customer and pool usage by minute disagree in {odd.row(0, named=True)}; "
            "run `metering verify`, then rebuild the rollups"
        )

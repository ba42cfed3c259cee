"""Small books for the tests of the core: one company, one pool, a price a child could multiply."""

from typing import Any

import polars as pl

from metering.frames.books import PRICES, Books
from metering.frames.frame import Frame
from metering.frames.supply import BURNDOWN, CAPACITY_FEES, CAPACITY_STEPS, MODELS, POOLS
from metering.frames.terms import CONTRACTS, CUSTOMERS, FEES, PRICE_RULES, PRICE_TIERS
from metering.frames.usage import POOL_USAGE, SUMS, USAGE
from metering.meters import CONTEXT_BREAKPOINTS, METERS
from tests.text_tables import read

BREAKPOINTS = (0, *CONTEXT_BREAKPOINTS)


def at_every_breakpoint(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of breakpoint b hold from b on, until a higher breakpoint of the same row says otherwise."""
    by = [
        name
        for name in (
            "book",
            "pool",
            "dimension",
            "model",
            "item",
            "tier",
            "region",
            "hours",
            "meter",
            "meters",
        )
        if name in rows.columns
    ]
    by.append("effective_from")
    grid = (
        rows.select(by)
        .unique()
        .join(
            pl.DataFrame({"context_breakpoint": BREAKPOINTS}, schema={"context_breakpoint": pl.Int32}),
            how="cross",
        )
    )
    found = grid.sort("context_breakpoint").join_asof(
        rows.sort("context_breakpoint"), on="context_breakpoint", by=by, check_sortedness=False
    )
    return found.drop_nulls("effective_from").select(rows.columns)


def prices(text: str, **defaults: Any) -> pl.DataFrame:
    """A price table; unit_price is given per million units."""
    given = {
        "book": "standard",
        "tier": "standard",
        "region": "*",
        "currency": "USD",
        "effective_from": "2026-01-01",
    }
    rows = read(text, PRICES, **{"context_breakpoint": 0, **given, **defaults})
    million = pl.lit("0.000001").cast(PRICES.columns["unit_price"])
    return PRICES.conform(
        at_every_breakpoint(rows.with_columns((pl.col("unit_price") * million).alias("unit_price")))
    )


def rules(text: str, tiers: str, **defaults: Any) -> dict[str, pl.DataFrame]:
    """Price rules and their tiers, whose unit_price is of one unit: the frames price_rules and price_tiers."""
    given = {
        "book": "standard",
        "item": "large",
        "tier": "standard",
        "region": "*",
        "hours": "*",
        "meters": "output_tokens",
        "rule": "rule",
        "model": "graduated",
        "reset": "period",
        "currency": "USD",
        "effective_from": "2026-01-01",
        "context_breakpoint": 0,
    }
    rows = read(text, PRICE_RULES, **{**given, **defaults})
    everywhere = at_every_breakpoint(rows.drop("model").rename({"rule": "_rule"})).join(
        rows.select("model", pl.col("rule").alias("_rule")).unique(), on="_rule"
    )
    return {
        "price_rules": PRICE_RULES.conform(everywhere.rename({"_rule": "rule"})),
        "price_tiers": read(tiers, PRICE_TIERS, rule="rule", tier=1),
    }


def burndown(text: str, **defaults: Any) -> pl.DataFrame:
    given = {
        "pool": "block",
        "dimension": "all",
        "model": "large",
        "denominator": 1,
        "effective_from": "2026-01-01",
    }
    return BURNDOWN.conform(
        at_every_breakpoint(read(text, BURNDOWN, **{"context_breakpoint": 0, **given, **defaults}))
    )


def usage(text: str, **defaults: Any) -> pl.DataFrame:
    given = {
        "customer": "acme",
        "product": "large",
        "tier_sold": "standard",
        "provider": "own",
        "model_served": "large",
        "tier_served": "standard",
        "region": "us-west",
        "ran_on": "on_demand",
        "counts_for": "charge_and_cost",
        "requests": 1,
    }
    return read(text, USAGE, **{**given, **defaults})


def pool_usage(rows: pl.DataFrame) -> pl.DataFrame:
    """The pool minutes of usage rows, all in the first minute of their quarter hour."""
    meant = rows.filter(pl.col("pool").is_not_null() & (pl.col("counts_for") != "charge"))
    key = [name for name in POOL_USAGE.columns if name not in ("minute", *SUMS)]
    return POOL_USAGE.conform(
        meant.group_by(pl.col("quarter_start").alias("minute"), *key).agg(pl.col("requests", *METERS).sum())
    )


def books(**frames: pl.DataFrame) -> Books:
    """Books of revision 1 with acme (paying, floor 20 %), its contract, and one model; `frames` replace."""
    given = {
        "customers": read(
            "customer | name | kind   | segment\n acme | Acme | paying | startup",
            CUSTOMERS,
            effective_from="2026-01-01",
        ),
        "contracts": contracts("customer | margin_floor_ratio\n acme | 0.2"),
        "models": read(
            "model | provider | cost_book\n large | own | -\n large | cirrus | on-demand",
            MODELS,
            name="Large",
        ),
    }
    return Books(1, **{**given, **frames})


def contracts(text: str) -> pl.DataFrame:
    return read(
        text, CONTRACTS, effective_from="2026-01-01", contract="c", price_book="standard", floor_basis="usage"
    )


def fees(text: str) -> pl.DataFrame:
    said = {"customer": "acme", "contract": "c", "fee": "plan", "effective_from": "2026-01-01"}
    return read(text, FEES, **said, kind="plan", quantity=1, per="month", currency="USD")


_POOL_COLUMNS = {
    "supplier": "northstar",
    "unit": "unit",
    "currency": "USD",
    "idle_policy": "none",
    "recognition": "as_billed",
    "window_seconds": 60,
    "units_sold_in": 1,
    "term_from": "2026-01-01",
}
_BOUGHT = Frame(
    "BOUGHT",
    {**CAPACITY_STEPS.columns, "currency": pl.String, "idle_policy": pl.String, "recognition": pl.String}
    | {"fee_per_month": CAPACITY_FEES.columns["amount"]},
    nullable=frozenset({"effective_until"}),
)


def bought(text: str) -> dict[str, pl.DataFrame]:
    """A pool as its contract says it, a row per dimension and step: the frames pools, capacity_steps and
    capacity_fees (a step's fee_per_month)."""
    rows = read(
        text,
        _BOUGHT,
        pool="block",
        dimension="all",
        effective_from="2026-01-01",
        units=1,
        fee_share_ratio="1",
        currency="USD",
        idle_policy="none",
        recognition="as_billed",
    )
    terms = ["currency", "idle_policy", "recognition"]
    pools = read("pool\n block", POOLS, **_POOL_COLUMNS).drop("pool", *terms)
    fees = rows.select(
        "pool",
        pl.lit("step").alias("fee"),
        pl.lit(None, dtype=pl.String).alias("dimension"),
        "effective_from",
        "effective_until",
        pl.col("fee_per_month").alias("amount"),
        pl.lit("month").alias("per"),
        "currency",
    )
    return {
        "pools": POOLS.conform(
            rows.select("pool", *terms)
            .unique("pool", keep="first", maintain_order=True)
            .join(pools, how="cross")
        ),
        "capacity_steps": CAPACITY_STEPS.conform(rows.select(list(CAPACITY_STEPS.columns))),
        "capacity_fees": CAPACITY_FEES.conform(fees.unique()),
    }

"""Declared frames of usage: what the rollups hold, in whatever shape the core reads them."""

from dataclasses import dataclass
from typing import Final

import polars as pl

from metering.frames.frame import INSTANT, SUM, Frame
from metering.meters import METERS

#: The dimensions that price, cost or capacity depend on, in the order of the series digest.
DIMENSIONS: Final = {
    "customer": pl.String,
    "product": pl.String,
    "tier_sold": pl.String,
    "provider": pl.String,
    "model_served": pl.String,
    "tier_served": pl.String,
    "region": pl.String,
    "pool": pl.String,  # null: the request was meant for no pool
    "ran_on": pl.String,  # pool | overflow | on_demand
    "counts_for": pl.String,  # charge_and_cost | cost | charge
    "context_breakpoint": pl.Int32,
}
SUMS: Final = {"requests": SUM, **dict.fromkeys(METERS, SUM)}


@dataclass(frozen=True)
class Identified:
    """`series`: series_id and the dimensions, ids ascending in the order of the dimensions (nulls first).

    `rows`: the other columns and series_id. The order of two ids never depends on which other series are there,
    so a tie broken by series_id is broken alike in every period. Sums are SUM, or of 64 bits where each fits.
    """

    series: pl.DataFrame
    rows: pl.DataFrame

    def told(self, declared: Frame) -> pl.DataFrame:
        """The rows with their dimensions as text, in the columns of `declared`."""
        named = self.rows.join(self.series, on="series_id", how="left", validate="m:1", maintain_order="left")
        return named.select(pl.col(name).cast(dtype) for name, dtype in declared.columns.items())


#: Usage per quarter hour and series: what money is computed from.
USAGE: Final = Frame(
    "USAGE",
    {"quarter_start": INSTANT, **DIMENSIONS, **SUMS},
    key=("quarter_start", *DIMENSIONS),
    nullable=frozenset({"pool"}),
)
#: Usage per quarter hour by what ran, over all customers: what suppliers served.
SERVED: Final = Frame(
    "SERVED",
    {
        "quarter_start": INSTANT,
        "provider": pl.String,
        "model_served": pl.String,
        "tier_served": pl.String,
        "region": pl.String,
        "ran_on": pl.String,
        "counts_for": pl.String,
        "context_breakpoint": pl.Int32,
        **SUMS,
    },
    key=(
        *("quarter_start", "provider", "model_served", "tier_served", "region", "ran_on", "counts_for"),
        "context_breakpoint",
    ),
)
#: Usage per minute of requests meant for a pool: what capacity is computed from.
POOL_USAGE: Final = Frame(
    "POOL_USAGE",
    {
        "minute": INSTANT,
        "pool": pl.String,
        "ran_on": pl.String,
        "model_served": pl.String,
        "tier_served": pl.String,
        "region": pl.String,
        "context_breakpoint": pl.Int32,
        **SUMS,
    },
    key=("minute", "pool", "ran_on", "model_served", "tier_served", "region", "context_breakpoint"),
)
#: Usage per minute, pool and customer: what entitlements, coincident peaks and causes of spill come from.
POOL_CUSTOMER_USAGE: Final = Frame(
    "POOL_CUSTOMER_USAGE",
    {
        "minute": INSTANT,
        "pool": pl.String,
        "ran_on": pl.String,
        "customer": pl.String,
        "provider": pl.String,
        "model_served": pl.String,
        "tier_served": pl.String,
        "region": pl.String,
        "context_breakpoint": pl.Int32,
        **SUMS,
    },
    key=(
        *("minute", "pool", "ran_on", "customer", "provider", "model_served", "tier_served", "region"),
        "context_breakpoint",
    ),
)
#: Usage per minute of what ran on demand, overflow included: what a provider's quota counts.
ON_DEMAND_USAGE: Final = Frame(
    "ON_DEMAND_USAGE",
    {
        "minute": INSTANT,
        "provider": pl.String,
        "model_served": pl.String,
        "region": pl.String,
        **SUMS,
    },
    key=("minute", "provider", "model_served", "region"),
)
#: Usage per minute of what counts for charge, by who used it: what limits are counted in. A charge that was taken
#: back gives room back.
LIMIT_USAGE: Final = Frame(
    "LIMIT_USAGE",
    {
        "minute": INSTANT,
        "customer": pl.String,
        "product": pl.String,
        "project": pl.String,  # '' where not said
        "seat": pl.String,
        **SUMS,
    },
    key=("minute", "customer", "product", "project", "seat"),
)
#: The same by series: what a holder's use was made of, and where it ran.
HELD_USAGE: Final = Frame(
    "HELD_USAGE",
    {
        "minute": INSTANT,
        **DIMENSIONS,
        "project": pl.String,  # '' where not said
        "seat": pl.String,
        **SUMS,
    },
    key=("minute", *DIMENSIONS, "project", "seat"),
    nullable=frozenset({"pool"}),
)
#: Usage per quarter hour, series and project, every attempt: by what amounts are attributed to projects.
PROJECT_USAGE: Final = Frame(
    "PROJECT_USAGE",
    {"quarter_start": INSTANT, **DIMENSIONS, "project": pl.String, **SUMS},  # '' where not said
    key=("quarter_start", *DIMENSIONS, "project"),
    nullable=frozenset({"pool"}),
)
#: Requests that were turned away by a limit, once each: the first such refusal of every customer and request_id.
LIMIT_REFUSED: Final = Frame(
    "LIMIT_REFUSED",
    {
        "occurred_at": INSTANT,
        "customer": pl.String,
        "request_id": pl.String,
        "product": pl.String,  # null: not said
        "project": pl.String,
        "seat": pl.String,
        "estimated_input_tokens": pl.Int32,
        "estimated_output_tokens": pl.Int32,
    },
    key=("customer", "request_id"),
    nullable=frozenset({"product", "project", "seat", "estimated_input_tokens", "estimated_output_tokens"}),
)
#: Requests that were turned away, once each: the first refusal of every customer and request_id.
REFUSED_REQUESTS: Final = Frame(
    "REFUSED_REQUESTS",
    {
        "occurred_at": INSTANT,
        "customer": pl.String,
        "request_id": pl.String,
        "pool": pl.String,
        "model": pl.String,
        "tier_sold": pl.String,
        "region": pl.String,
        "estimated_input_tokens": pl.Int32,
        "estimated_output_tokens": pl.Int32,
    },
    key=("customer", "request_id"),
    nullable=frozenset({"model", "tier_sold", "region", "estimated_input_tokens", "estimated_output_tokens"}),
)

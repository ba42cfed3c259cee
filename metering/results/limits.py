"""Declared frames of limits: windows, headroom, and what they may claim of a pool."""

from collections.abc import Mapping, Sequence
from typing import Final

import polars as pl

from metering.frames.frame import INSTANT, SUM, Frame
from metering.money import RATIO

#: One window of one limit and holder. `used`, `refused` are numerators over `denominator`. A window is binding where
#: it had a refusal or used >= quantity. A change of the limit ends its windows.
LIMIT_WINDOWS: Final = Frame(
    "LIMIT_WINDOWS",
    {
        "customer": pl.String,
        "contract": pl.String,
        "plan": pl.String,  # null: the contract's own limit
        "limit": pl.String,
        "holder": pl.String,  # customer | project | seat
        "held_by": pl.String,  # its name
        "window": pl.String,  # minute | anchored | fixed
        "window_minutes": pl.Int64,
        "window_start": INSTANT,
        "window_until": INSTANT,  # also where the limit ended or changed
        "open": pl.Boolean,  # input of it may still come
        "quantity": pl.Int64,
        "denominator": pl.Int64,
        "used": SUM,
        "headroom_ratio": RATIO,  # 1 - used / quantity, negative above it
        "binding": pl.Boolean,
        "binding_from": INSTANT,  # the first minute that had a refusal, or reached the quantity
        "refused_requests": pl.Int64,
        "refused_tokens": SUM,  # as estimated by who refused them
        "refused_unestimated": pl.Int64,  # requests without an estimate: the tokens are a lower bound
        "refused": SUM,
    },
    key=("customer", "contract", "limit", "held_by", "window_start"),
    nullable=frozenset({"plan", "binding_from"}),
    laws={
        "binding": pl.col("binding")
        == (
            (pl.col("refused_requests") > 0) | (pl.col("used") >= pl.col("quantity") * pl.col("denominator"))
        ),
        "binding from a minute on": pl.col("binding") == pl.col("binding_from").is_not_null(),
        "a window has a length": pl.col("window_until") > pl.col("window_start"),
    },
)
#: What the rows of a summary of limits may be about, and the columns that tell them apart.
LIMITS_BY: Final[Mapping[str, tuple[str, ...]]] = {
    "limit": ("plan", "contract", "limit", "holder", "window", "window_minutes"),
    "plan": ("plan",),
    "customer": ("customer",),
    "holder": ("customer", "contract", "limit", "holder", "held_by", "window", "window_minutes"),
}


def limit_frame(by: Sequence[str]) -> Frame:
    """The declaration of a summary of windows of limits by some of their columns (of LIMITS_BY)."""
    return Frame(
        "LIMITS_SUMMED",
        {
            **{name: LIMIT_WINDOWS.columns[name] for name in by},
            "holders": pl.Int64,  # that used something or were refused
            "holders_binding": pl.Int64,
            "windows": pl.Int64,
            "windows_binding": pl.Int64,
            "binding_ratio": RATIO,  # of the windows
            "p50_ratio": RATIO,  # used / quantity of the windows, nearest rank
            "p95_ratio": RATIO,
            "max_ratio": RATIO,
            "least_headroom_ratio": RATIO,
            "refused_requests": pl.Int64,
            "refused_unestimated": pl.Int64,
            "refused_tokens": SUM,
        },
        key=tuple(by),
        nullable=frozenset({"plan", "contract"}),
    )


#: What a binding window may use more under a larger limit: numerators over `denominator`, between two bounds.
RAISED: Final = Frame(
    "RAISED",
    {
        "customer": pl.String,
        "contract": pl.String,
        "plan": pl.String,
        "limit": pl.String,
        "held_by": pl.String,
        "window_start": INSTANT,
        "window_until": INSTANT,
        "binding_from": INSTANT,
        "quantity": pl.Int64,
        "quantity_after": pl.Int64,
        "denominator": pl.Int64,
        "used": SUM,
        "refused": SUM,
        "extra_low": SUM,  # min(refused, quantity_after - quantity)
        "extra_high": SUM,  # quantity_after - quantity
    },
    key=("customer", "contract", "limit", "held_by", "window_start"),
    nullable=frozenset({"plan"}),
    laws={"bounds": (pl.col("extra_low") >= 0) & (pl.col("extra_low") <= pl.col("extra_high"))},
)
#: What was used of a limit's products and what it burned of a pool, over one span: burn per use.
LIMIT_BURN: Final = Frame(
    "LIMIT_BURN",
    {
        "plan": pl.String,  # null: a contract's own limit
        "contract": pl.String,  # null: of a plan, all its contracts together
        "limit": pl.String,
        "pool": pl.String,
        "dimension": pl.String,
        "use": SUM,  # of the products, wherever they ran: numerator over use_denominator
        "use_denominator": pl.Int64,
        "burn": SUM,  # meant for the pool, overflow included: numerator over denominator
        "denominator": pl.Int64,
    },
    key=("plan", "contract", "limit", "pool", "dimension"),
    nullable=frozenset({"plan", "contract"}),
)
#: The limits of a plan (or of a contract), all holders together, against a pool. Burn is a numerator over
#: `denominator`, of one window. `limit` null: all limits with windows of this length.
EXPOSURE: Final = Frame(
    "EXPOSURE",
    {
        "pool": pl.String,
        "dimension": pl.String,
        "window_minutes": pl.Int64,
        "plan": pl.String,
        "contract": pl.String,
        "limit": pl.String,
        "holders": pl.Int64,
        "denominator": pl.Int64,
        "exposure": SUM,  # sum of limits x burn / use; null: nothing was used that would tell
        "available": SUM,  # of the pool in a window, on average
        "exposure_ratio": RATIO,  # oversubscription by nominal sum
        "peak_start": INSTANT,  # of the window's length that burned most, by the limits' holders together
        "peak": SUM,
        "peak_ratio": RATIO,  # oversubscription at the observed coincident peak
    },
    key=("pool", "dimension", "window_minutes", "plan", "contract", "limit"),
    nullable=frozenset(
        {"plan", "contract", "limit", "exposure", "exposure_ratio", "peak_start", "peak", "peak_ratio"}
    ),
)

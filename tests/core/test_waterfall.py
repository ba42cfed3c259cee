"""The waterfall by hand: discounts, minimum and maximum, commitments, credits; and what must hold for any of it."""

from typing import Any

import polars as pl

from metering.core.revenue import Earned, earned, reach, under_terms
from metering.frames import (
    CONTRACT_TERMS,
    CREDIT_GRANTS,
    CUSTOMER_COMMITMENTS,
    DISCOUNTS,
    Books,
    Frame,
)
from metering.money import from_quanta
from metering.periods import parse_period
from metering.results import WATERFALL
from tests.core import example_books as a
from tests.text_tables import check, instant, read

SINCE = "2026-01-01"
#: A million tokens cost a dollar: amounts are dollars, quantities millions.
DOLLAR = a.prices("item | meter | unit_price\n large | output_tokens | 1\n code | output_tokens | 1")
_SAID: dict[str, Any] = {"customer": "acme", "contract": "c", "effective_from": SINCE}
_DEFAULTS: dict[str, tuple[Frame, dict[str, Any]]] = {
    "contract_terms": (
        CONTRACT_TERMS,
        {"currency": "USD", "anchor_day": 1, "zone": "UTC", "period_months": 1},
    ),
    "discounts": (DISCOUNTS, {"kind": "contract"}),
    "commitments": (
        CUSTOMER_COMMITMENTS,
        {"currency": "USD", "paid": "in_arrears", "shortfall_rule": "true_up", "shortfall_ratio": "1"},
    ),
    "credit_grants": (CREDIT_GRANTS, {"currency": "USD", "kind": "promotional"}),
}


def terms(**tables: str | pl.DataFrame) -> Books:
    """Books of acme at a dollar a million tokens, with tables of terms."""
    frames = {
        name: read(table, _DEFAULTS[name][0], **{**_SAID, **_DEFAULTS[name][1]})
        if isinstance(table, str)
        else table
        for name, table in tables.items()
    }
    return a.books(**{"price_books": DOLLAR, **frames})


def bought(text: str) -> pl.DataFrame:
    """Usage: dollars of output tokens of a product."""
    rows = read(text, SPENT, product="large")
    usage = a.usage(
        "quarter_start | product | output_tokens\n"
        + "\n".join(
            f"{at:%Y-%m-%d %H:%M} | {product} | {dollars * 1_000_000}"
            for at, product, dollars in rows.group_by("quarter_start", "product")
            .agg(pl.col("dollars").sum())
            .iter_rows()
        )
    )
    return usage


SPENT = Frame(
    "SPENT", {"quarter_start": WATERFALL.columns["quarter_start"], "product": pl.String, "dollars": pl.Int64}
)


def of(usage: pl.DataFrame, books: Books, period: str = "2026-01", until: str = "2026-02-01") -> Earned:
    return earned(usage, books, parse_period(period), instant(until))


def dollars(lines: pl.DataFrame) -> pl.DataFrame:
    amounts = [name for name in WATERFALL.columns if WATERFALL.columns[name] == pl.Int128]
    due = (
        pl.col("net") + pl.col("top_up") - pl.col("drawdown") - pl.col("promotional_credit")
        - pl.col("prepaid_credit") + pl.col("overage_premium") + pl.col("shortfall")
    )  # fmt: skip
    return lines.with_columns(due.alias("due")).with_columns(
        from_quanta(pl.col(name)).alias(name) for name in [*amounts, "due"]
    )


def sums(lines: pl.DataFrame, *by: str) -> pl.DataFrame:
    amounts = [name for name, dtype in WATERFALL.columns.items() if dtype == pl.Int128]
    return dollars(lines.group_by(by or [pl.lit(1).alias("all")]).agg(pl.col(amounts).sum()))


def test_discount_minimum_and_promotion_leave_850_due() -> None:
    books = terms(
        discounts="discount | ratio\n loyalty | 0.10",
        contract_terms="minimum\n 950",
        credit_grants="credit | amount\n launch | 100",
    )
    done = of(bought("quarter_start | dollars\n 2026-01-05 10:00 | 400\n 2026-01-20 10:00 | 600"), books)
    check(
        sums(done.lines, "quarter_start"),
        """
        quarter_start    | gross | contract_discount | net | top_up | promotional_credit | due
        2026-01-05 10:00 |   400 |                40 | 360 |     20 |                100 | 280
        2026-01-20 10:00 |   600 |                60 | 540 |     30 |                  0 | 570
        """,
    )
    assert sums(done.lines)["due"].item() == 850

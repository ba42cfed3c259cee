"""Losses: who costs more than it earns, and of what the cost is made, by hand."""
# ruff: noqa: E501  # tables are as wide as they need to be

import polars as pl

from metering.core.losses import losses
from metering.money import from_quanta
from metering.results.margin import MARGIN_LINES
from tests.text_tables import check, read
from workers.losing import loss_notes

DOLLAR = 10**12
ABOUT = ["line", "customer", "kind", "plan", "product"]
LINES = """
line | customer | kind     | plan | product | requests | billable | charge | fee | credit | pool | on_demand
usage| acme     | paying   | flat | large   | 1000     | 900      | 0      | 0   | 0      | 30   | 6
usage| acme     | paying   | flat | small   | 1000     | 1000     | 0      | 0   | 0      | 4    | 0
fee  | acme     | paying   | flat | -       | 0        | 0        | 0      | 25  | 0      | 0    | 0
usage| bolt     | paying   | flat | small   | 10       | 10       | 0      | 0   | 0      | 2    | 0
fee  | bolt     | paying   | flat | -       | 0        | 0        | 0      | 25  | 0      | 0    | 0
usage| corvid   | paying   | -    | small   | 100      | 100      | 3      | 0   | 2      | 0    | 4
usage| labs     | internal | -    | large   | 50       | 0        | 0      | 0   | 0      | 0    | 9
idle | -        | -        | -    | -       | 0        | 0        | 0      | 0   | 0      | 70   | 0
"""


def lines(text: str) -> pl.DataFrame:
    told = pl.DataFrame(
        [dict(zip(*(map(str.strip, row.split("|")) for row in (text.splitlines()[1], line)), strict=True))
         for line in text.splitlines()[2:]]
    )  # fmt: skip
    amount = {
        name: pl.col(name).cast(pl.Int128) * DOLLAR
        for name in ("charge", "fee", "credit", "pool", "on_demand")
    }
    revenue = amount["charge"] + amount["fee"] - amount["credit"]
    cost = amount["pool"] + amount["on_demand"]
    amounts = {"gross": amount["charge"], "charge": amount["charge"], "fee": amount["fee"]}
    amounts |= {"promotional_credit": amount["credit"], "revenue": revenue, "cost_pool": amount["pool"]}
    amounts |= {"cost_on_demand": amount["on_demand"]}
    amounts |= dict.fromkeys(("cost", "cost_loaded", "cost_by_cause"), cost)
    rows = told.select(
        *(pl.when(pl.col(name) != "-").then(name).alias(name) for name in ABOUT),
        pl.col("requests").cast(pl.Int128),
        pl.col("billable").cast(pl.Int128).alias("billable_requests"),
        *(from_quanta(value).alias(name) for name, value in amounts.items()),
    )
    rest = read(
        "day\n2026-03-01",
        MARGIN_LINES,
        line="usage",
        currency="USD",
        charge_unrated=False,
        cost_unrated=False,
        estimated=False,
    ).drop(rows.columns)
    return MARGIN_LINES.conform(rows.join(rest, how="cross").select(list(MARGIN_LINES.columns)))


def test_who_loses_money_and_of_what() -> None:
    """acme earns 25 and costs 40: 36 of large (30 in a pool, 6 on demand) and 4. Internal use is meant to lose."""
    check(
        losses(lines(LINES), "customer"),
        """
        whose  | revenue | promotional_credit | cost | cost_pool | cost_on_demand | margin | requests | unbilled_requests | product | product_ratio
        acme   | 25      | 0                  | 40   | 34        | 6              | -15    | 2000     | 100               | large   | 0.9
        corvid | 1       | 2                  | 4    | 0         | 4              | -3     | 100      | 0                 | small   | 1
        """,
    )
    # a plan is all who are on it: 50 of fees, 42 of cost
    assert losses(lines(LINES), "plan").is_empty()
    # a plan of nobody who pays loses nothing that anybody would ask about
    internal = lines(LINES).with_columns(
        pl.when(pl.col("customer") == "labs").then(pl.lit("own")).otherwise("plan").alias("plan")
    )
    assert losses(internal, "plan").is_empty()


def test_why_is_told_in_a_sentence() -> None:
    assert [*loss_notes(lines(LINES), "customer", "USD", "2026-03-01")] == [
        "acme loses 15.00 USD: earns 25.00 for 2,000 requests that cost 40.00 (34.00 for capacity in pools, 6.00 on "
        "demand): 12.50 against 20.00 per thousand; large is 90.0 % of the cost; 100 of the requests are not billed "
        "(retries, failures, internal use)",
        "corvid loses 3.00 USD: earns 1.00 after 2.00 of promotional credits for 100 requests that cost 4.00 (4.00 on "
        "demand): 10.00 against 40.00 per thousand",
        "down to prices and quantities: `metering explain margin customer=acme margin --period 2026-03-01`",
    ]

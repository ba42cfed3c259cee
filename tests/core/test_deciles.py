"""Deciles: who of a flat plan costs what, by hand; the rows of a plan are the plan."""
# ruff: noqa: E501  # tables are as wide as they need to be

from decimal import Decimal
from itertools import pairwise

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.core.deciles import plan_deciles
from metering.core.summary import summarise
from metering.frames.books import Books
from metering.money import from_quanta
from metering.results.margin import MARGIN_LINES
from tests.text_tables import check, read

DOLLAR = 10**12
LINE = read(
    "day | line | kind | segment\n 2026-03-01 | usage | paying | consumer",
    MARGIN_LINES,
    currency="USD",
    charge_unrated=False,
    cost_unrated=False,
    estimated=False,
)


def lines(paid: pl.DataFrame) -> pl.DataFrame:
    """Margin lines of customers (plan, customer, fee and cost in quanta)."""
    amounts = {
        **dict.fromkeys(("fee", "revenue"), "fee"),
        **dict.fromkeys(("cost_on_demand", "cost", "cost_loaded", "cost_by_cause"), "cost"),
    }
    told = paid.select(
        "plan",
        "customer",
        *(from_quanta(pl.col(given).cast(pl.Int128)).alias(name) for name, given in amounts.items()),
    )
    rows = told.join(LINE.drop(told.columns), how="cross")
    return MARGIN_LINES.conform(rows.select(list(MARGIN_LINES.columns)))


def subscribers(heavy_use: Decimal = Decimal(1)) -> pl.DataFrame:
    """10,000 at $200: 80 % cost $60, 15 % $220, 5 % $900; those 20 % cost `heavy_use` times as much."""
    place = pl.int_range(10_000, eager=True)
    of_twenty = place % 20
    dearest, dear = (int(dollars * heavy_use) for dollars in (900, 220))
    cost = pl.when(of_twenty == 7).then(dearest).when(of_twenty < 3).then(dear).otherwise(60)
    return lines(
        pl.select(
            pl.lit("flat").alias("plan"),
            pl.format("subscriber {}", place).alias("customer"),
            pl.lit(200 * DOLLAR, dtype=pl.Int128).alias("fee"),
            (cost.cast(pl.Int128) * DOLLAR).alias("cost"),
        )
    )


def test_a_flat_plan_is_earned_by_the_many_and_lost_by_the_few() -> None:
    """500 x 900 + 500 x 220 = 560,000; 1,000 x 220 = 220,000; 8 x 1,000 x 60 = 480,000: 1.26 M of 2.00 M, 37 %."""
    rows = plan_deciles(subscribers())
    check(
        rows.head(3),
        """
        plan | decile | customer | customers | least_cost | most_cost | revenue | cost    | cost_share_ratio | margin   | margin_ratio | losing | losing_ratio
        flat | 1      | -        | 1_000     | 220        | 900       | 200_000 | 560_000 | 0.444444         | -360_000 | -1.8         | 1_000  | 1
        flat | 2      | -        | 1_000     | 220        | 220       | 200_000 | 220_000 | 0.174603         | -20_000  | -0.1         | 1_000  | 1
        flat | 3      | -        | 1_000     | 60         | 60        | 200_000 | 60_000  | 0.047619         | 140_000  | 0.7          | 0      | 0
        """,
    )
    assert rows["decile"].to_list() == list(range(1, 11))
    assert rows.select(pl.col("revenue", "cost").sum()).row(0) == (2_000_000, 1_260_000)
    for heavy_use, left in (("1", "0.37"), ("1.6", "0.136"), ("2", "-0.02")):
        rows = plan_deciles(subscribers(Decimal(heavy_use)))
        assert rows["margin"].sum() / rows["revenue"].sum() == Decimal(left)


def test_fewer_than_ten_customers_are_rows_of_their_own_and_those_without_a_plan_are_none() -> None:
    paid = read_paid("""
        team | a | 100 | 30
        team | b | 100 | 130
        team | c | 0   | 30
        solo | a | 20  | -5
        -    | d | 100 | 900
    """)
    check(
        plan_deciles(lines(paid)),
        """
        plan | decile | customer | customers | revenue | cost | cost_share_ratio | margin | margin_ratio | losing
        solo | 1      | a        | 1         | 20      | -5   | -                | 25     | 1.25         | 0
        team | 1      | b        | 1         | 100     | 130  | 0.684211         | -30    | -0.3         | 1
        team | 2      | a        | 1         | 100     | 30   | 0.157895         | 70     | 0.7          | 0
        team | 3      | c        | 1         | 0       | 30   | 0.157895         | -30    | -            | 1
        """,
    )
    assert plan_deciles(MARGIN_LINES.empty()).is_empty()


def read_paid(text: str) -> pl.DataFrame:
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.strip()]
    return pl.DataFrame(
        [
            (None if plan == "-" else plan, who, int(fee) * DOLLAR, int(cost) * DOLLAR)
            for plan, who, fee, cost in rows
        ],
        schema={"plan": pl.String, "customer": pl.String, "fee": pl.Int128, "cost": pl.Int128},
        orient="row",
    )


paid_rows = st.tuples(
    st.sampled_from(["a", "b"]), st.integers(-(10**13), 10**15), st.integers(-(10**13), 10**15)
)


@settings(deadline=None, max_examples=40)
@given(st.lists(paid_rows, min_size=1, max_size=45))
def test_the_rows_of_a_plan_are_the_plan(given_rows: list[tuple[str, int, int]]) -> None:
    paid = pl.DataFrame(
        [(plan, f"c{place:02d}", fee, cost) for place, (plan, fee, cost) in enumerate(given_rows)],
        schema={"plan": pl.String, "customer": pl.String, "fee": pl.Int128, "cost": pl.Int128},
        orient="row",
    )
    made = lines(paid)
    rows = plan_deciles(made)
    sums = rows.group_by("plan").agg(pl.col("revenue", "cost", "margin").sum()).sort("plan")
    assert sums.equals(summarise(made, ["plan"], Books(1)).select(sums.columns))
    for (plan,), tenths in rows.group_by("plan", maintain_order=True):
        of_plan = [(fee, cost) for name, fee, cost in given_rows if name == plan]
        assert tenths["decile"].to_list() == list(range(1, min(len(of_plan), 10) + 1))
        assert tenths["customers"].sum() == len(of_plan)
        assert tenths["customers"].max() - tenths["customers"].min() <= 1
        assert tenths["losing"].sum() == sum(fee < cost for fee, cost in of_plan)
        costs = tenths.select("most_cost", "least_cost").rows()
        assert all(low >= high for (_, low), (high, _) in pairwise(costs))

"""Projects: what a customer's projects earned and cost, by what they used; their sum is the report without them."""
# ruff: noqa: E501  # tables are as wide as they need to be

from random import Random

import polars as pl
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from metering.core.margin import margin
from metering.core.summary import summarise
from metering.frames.usage import POOL_USAGE, PROJECT_USAGE, SUMS, USAGE
from metering.periods import parse_period
from metering.results.margin import LINE_KEY, MARGIN_LINES, PROJECT_LINES
from tests.core import example_books as a
from tests.core.worlds import PERIOD, World, worlds
from tests.text_tables import check, read

DAY = parse_period("2026-03-01")
SOLD = a.prices("item | meter | unit_price\n large | output_tokens | 1\n images | tool_calls | 1_000_000")
COSTS = a.prices("item | meter | unit_price\n large | output_tokens | 0.5", book="on-demand")


def used(text: str) -> pl.DataFrame:
    """PROJECT_USAGE of acme."""
    return read(
        text,
        PROJECT_USAGE,
        customer="acme",
        product="large",
        tier_sold="standard",
        provider="cirrus",
        model_served="large",
        tier_served="standard",
        region="us-west",
        ran_on="on_demand",
    )


def usage_of(projects: pl.DataFrame) -> pl.DataFrame:
    key = list(USAGE.key)
    return USAGE.conform(projects.group_by(key).agg(pl.col(*SUMS).sum()))


def test_amounts_go_by_tokens_or_requests_and_what_belongs_to_no_usage_to_no_project() -> None:
    """$12 of output, a retry of research paid for twice, four calls split by 1 and 3 requests."""
    projects = used(
        """
        quarter_start    | counts_for      | project  | product | requests | output_tokens | uncached_input_tokens | tool_calls
        2026-03-01 00:00 | charge_and_cost | research | large   | 1        | 2_000_000     | 0 | 0
        2026-03-01 12:00 | charge_and_cost | shop     | large   | 3        | 9_000_000     | 0 | 0
        2026-03-01 13:00 | charge_and_cost | -        | large   | 1        | 1_000_000     | 0 | 0
        2026-03-01 00:00 | cost            | research | large   | 1        | 2_000_000     | 0 | 0
        2026-03-01 00:00 | charge_and_cost | research | images  | 1        | 0             | 0 | 2
        2026-03-01 00:00 | charge_and_cost | shop     | images  | 3        | 0             | 0 | 2
        2026-03-01 00:00 | charge          | shop     | large   | -1       | -1_000_000    | 0 | 0
        """.replace("| -        |", "|          |")
    )
    books = a.books(
        price_books=SOLD, cost_books=COSTS, fees=a.fees("amount\n 31"),
    )  # fmt: skip
    books_of = usage_of(projects)
    made = margin(books_of, POOL_USAGE.empty(), books, DAY, "USD", project_usage=projects)
    check(
        summarise(made.lines, ["line", "customer", "project"], books),
        """
        line  | customer | project  | requests | billable_requests | output_tokens | charge | fee | cost | margin
        usage | acme     |          | 1        | 1                 | 1_000_000     | 1      | 0   | 0.5  | 0.5
        usage | acme     | research | 3        | 2                 | 4_000_000     | 3      | 0   | 2    | 1
        usage | acme     | shop     | 6        | 5                 | 9_000_000     | 11     | 0   | 4.5  | 6.5
        fee   | acme     | -        | 0        | 0                 | 0             | 0      | 1   | 0    | 1
        """,
    )
    # usage that no project is told of is of none
    untold = margin(books_of, POOL_USAGE.empty(), books, DAY, "USD", project_usage=PROJECT_USAGE.empty())
    assert untold.lines["project"].unique().sort().to_list() == [None, ""]


def by_projects(world: World, seed: int) -> pl.DataFrame:
    """The usage of a world, each row cut at random into projects, of which some may have taken back."""
    dice = Random(seed)
    rows = []
    for row in world.usage.iter_rows(named=True):
        left = dict(row)
        for project in dice.sample(["a", "b", "c"], dice.randint(0, 3)):
            part = {name: dice.randint(-3, 3) * row[name] // 4 for name in SUMS}
            left |= {name: left[name] - part[name] for name in SUMS}
            rows.append({**row, **part, "project": project})
        rows.append({**left, "project": dice.choice(["", "d"])})
    return PROJECT_USAGE.conform(pl.DataFrame(rows, schema=dict(PROJECT_USAGE.columns), orient="row"))


@settings(deadline=None, max_examples=6, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(worlds(), st.integers(0, 2**32))
def test_projects_sum_to_the_lines_without_them(world: World, seed: int) -> None:
    given_to = {"period": PERIOD, "reporting_currency": "USD"}
    whole = margin(world.usage, world.pool_usage, world.books, **given_to)
    made = margin(
        world.usage, world.pool_usage, world.books, **given_to, project_usage=by_projects(world, seed)
    )
    amounts = [name for name, dtype in MARGIN_LINES.columns.items() if dtype.is_numeric()]
    summed = made.lines.group_by(list(LINE_KEY)).agg(
        *(pl.when(pl.col(name).is_not_null().all()).then(pl.col(name).sum()).alias(name) for name in amounts),
        pl.col("charge_unrated", "cost_unrated", "estimated").any(),
        pl.col("currency").first(),
    )
    columns = list(MARGIN_LINES.columns)
    found = MARGIN_LINES.conform(summed.cast(dict(MARGIN_LINES.columns)).select(columns))
    assert found.to_dicts() == whole.lines.to_dicts()
    assert made.unrated.equals(whole.unrated)
    PROJECT_LINES.conform(made.lines)

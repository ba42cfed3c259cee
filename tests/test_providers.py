"""Each offer in examples/providers reproduces its published worked number, from its catalog through the core."""

from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import polars as pl
import pytest

from metering.catalog import books, load_folder
from metering.core.capacity import capacity
from metering.core.quotas import quota_use
from metering.core.recognition import recognised
from metering.frames.books import Books
from metering.frames.usage import ON_DEMAND_USAGE, POOL_USAGE
from metering.money import QUANTUM
from metering.periods import parse_period
from tests.text_tables import check, instant, read

PROVIDERS = Path(__file__).parent.parent / "examples" / "providers"
MINUTE = "2026-01-10 12:00"
QUARTER = parse_period("2026-01-10T12:00..2026-01-10T12:15")


def offer(name: str) -> Books:
    return books(load_folder(PROVIDERS / name), 1)


def burned(made: Books, usage: str, **given: object) -> pl.DataFrame:
    """What one minute of usage burned and found contracted, in burn units of the pool."""
    defaults = {"minute": MINUTE, "ran_on": "pool", "tier_served": "standard", "region": "us-west"}
    rows = read(usage, POOL_USAGE, **{**defaults, "context_breakpoint": 0, **given})
    minutes = capacity(rows, made, QUARTER).utilization.filter(pl.col("burn") > 0)
    return minutes.with_columns(pl.col("burn", "contracted", "idle") // pl.col("denominator"))


def test_every_offer_is_here() -> None:
    assert sorted(path.name for path in PROVIDERS.iterdir()) == sorted(
        [
            *("anthropic-priority", "azure-ptu", "bedrock-reserved", "dedicated-block"),
            *("openai-scale-tier", "vertex-provisioned-throughput"),
        ]
    )


def test_azure_1000_requests_of_100_in_and_50_out_need_150_ptu() -> None:
    made = offer("azure-ptu")
    found = burned(
        made,
        """
        pool        | model_served | requests | uncached_input_tokens | cache_read_tokens | output_tokens
        ptu-gpt-5.2 | gpt-5.2      | 1_000    | 100_000               | 40_000            | 50_000
        """,
    )
    check(
        found,
        """
        burn    | contracted | idle   | utilization_ratio
        500_000 | 510_000    | 10_000 | 0.980392
        """,
    )
    pool = made.pools.row(0, named=True)
    units = Fraction(found["burn"].item(), 3_400)
    assert round(float(units), 2) == 147.06
    assert pool["units_min"] == 15
    bought = -(-units // pool["units_sold_in"]) * pool["units_sold_in"]
    assert bought == 150 == made.capacity_steps["units"].item()


def test_vertex_2_0_flash_gives_100_800_tokens_in_a_window_of_30_seconds() -> None:
    made = offer("vertex-provisioned-throughput")
    per_unit = made.capacity_steps.filter(pool="gsu-2.0-flash")["unit_burn_per_minute"].item()
    window = made.pools.filter(pool="gsu-2.0-flash")["window_seconds"].item()
    assert per_unit * window == 100_800 * 60
    # 2.5 Pro: 10,000 in, 800 out and 200 of reasoning; then one past 200,000 input tokens.
    for context, wanted in ((0, 10_000 + 8 * 1_000), (200_000, 2 * 10_000 + 12 * 1_000)):
        found = burned(
            made,
            """
            pool        | model_served   | uncached_input_tokens | output_tokens | reasoning_tokens
            gsu-2.5-pro | gemini-2.5-pro | 10_000                | 800           | 200
            """,
            context_breakpoint=context,
        )
        assert found["burn"].to_list() == [wanted]
        assert found["contracted"].to_list() == [10 * 540 * 60]


def test_anthropic_multipliers_stack_in_both_dimensions() -> None:
    made = offer("anthropic-priority")
    long_in_the_us = burned(
        made,
        """
        pool     | model_served  | uncached_input_tokens | output_tokens
        priority | claude-sonnet | 250_000               | 1_000
        """,
        region="us",
        context_breakpoint=200_000,
    )
    check(long_in_the_us, "dimension | burn\n input | 550_000\n output | 1_650")
    # 10,000 + 0.1 x 100,000 + 1.25 x 4,000 + 2 x 2,500 = 30,000, and 1.1 times as much in the US.
    cached = """
        pool     | model_served  | uncached_input_tokens | cache_read_tokens | cache_write_5m_tokens | cache_write_1h_tokens
        priority | claude-sonnet | 10_000                | 100_000           | 4_000                 | 2_500
    """
    check(burned(made, cached), "dimension | burn | contracted\n input | 30_000 | 1_200_000")
    check(burned(made, cached, region="us"), "dimension | burn\n input | 33_000")


def test_bedrock_counts_output_five_times_against_the_quota_and_once_in_a_reservation() -> None:
    made = offer("bedrock-reserved")
    check(
        burned(
            made,
            """
            pool             | model_served  | uncached_input_tokens | output_tokens
            bedrock-reserved | claude-sonnet | 1_000                 | 200
            """,
        ),
        """
        pool             | dimension | burn  | contracted
        bedrock-reserved | input     | 1_000 | 500_000
        bedrock-reserved | output    | 200   | 100_000
        """,
    )
    asked = """
        provider | model_served  | requests | uncached_input_tokens | cache_read_tokens | output_tokens
        bedrock  | claude-sonnet | 1        | 1_000                 | 5_000             | 200
    """
    counted = quota_use(read(asked, ON_DEMAND_USAGE, minute=instant(MINUTE), region="us-west"), made, QUARTER)
    check(
        counted.filter(pl.col("burn") > 0),
        """
        pool              | dimension | burn  | contracted | utilization_ratio
        bedrock-on-demand | tokens    | 2_000 | 2_000_000  | 0.001
        bedrock-on-demand | requests  | 1     | 1_000      | 0.001
        """,
    )


@pytest.mark.parametrize(
    ("dimension", "meter", "per_million"),
    [("input", "uncached_input_tokens", "2.083333"), ("output", "output_tokens", "16.666667")],
)
def test_openai_scale_tier_breaks_even_at_167_percent(dimension: str, meter: str, per_million: str) -> None:
    made = offer("openai-scale-tier")
    fee = made.capacity_fees.filter(dimension=dimension).row(0, named=True)
    step = made.capacity_steps.filter(dimension=dimension).row(0, named=True)
    assert fee["per"] == "unit_day"
    when_full = Fraction(fee["amount"]) / (step["unit_burn_per_minute"] * 1_440) * 1_000_000
    assert round(Decimal(float(when_full)), 6) == Decimal(per_million)
    price = made.cost_books.filter(meter=meter, context_breakpoint=0)["unit_price"].item()
    assert round(float(when_full / (Fraction(price) * 1_000_000)), 2) == 1.67


def test_a_dedicated_block_costs_by_capacity_hours_what_its_ramp_gives() -> None:
    made = offer("dedicated-block")

    def cost(span: str) -> Decimal:
        return recognised(made, parse_period(span))["cost"].sum() * QUANTUM

    assert cost("2026-01-01..2026-01-31") == 50_000
    assert cost("2026-06-30..2026-07-30") == 150_000
    assert 6 * 100_000 - cost("2026-01-01..2026-06-30") == 300_000

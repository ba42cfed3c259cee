"""Capacity: contracted = undelivered + carved out + served + idle in every minute, overrun beside it."""
# ruff: noqa: E501  # tables are as wide as they need to be

import polars as pl
import pytest

from metering.core.burn import burn_by_series
from metering.core.capacity import capacity, summarise_capacity
from metering.errors import BadInput, FrameBroken
from metering.frames.frame import SUM
from metering.frames.supply import MULTIPLIERS, SET_ASIDE
from metering.frames.usage import POOL_USAGE
from metering.periods import parse_period
from metering.results.capacity import UTILIZATION
from tests.core import example_books as a
from tests.text_tables import check, read

INPUT = "uncached_input_tokens"
QUARTER = parse_period("2026-03-01..2026-03-01T00:15")


def minutes(text, **given):
    defaults = {"pool": "block", "ran_on": "pool", "model_served": "large", "tier_served": "standard"}
    return read(text, POOL_USAGE, **{**defaults, "region": "us-west", "context_breakpoint": 0, **given})


def pool(per_minute, weights=f"meter | weight\n {INPUT} | 1", **given):
    steps = a.bought(f"unit_burn_per_minute\n {per_minute}")
    return a.books(**{**steps, "burndown": a.burndown(weights), **given})


def set_aside(text):
    return read(text, SET_ASIDE, pool="block", dimension="all", name="late", effective_from="2026-01-01")


def multipliers(text):
    return read(text, MULTIPLIERS, pool="block", dimension="all", effective_from="2026-01-01", denominator=10)


def test_capacity_of_1000_burned_1400_then_200():
    usage = minutes(
        f"""
        minute           | {INPUT}
        2026-03-01 00:00 | 1_400
        2026-03-01 00:01 | 200
        """
    )
    found = capacity(usage, pool(1_000), QUARTER)
    assert found.utilization.height == 15
    check(
        found.utilization.head(3),
        """
        minute           | contracted | undelivered | carved_out | available | burn  | served | idle  | overrun | utilization_ratio
        2026-03-01 00:00 | 1_000      | 0           | 0          | 1_000     | 1_400 | 1_000  | 0     | 400     | 1.4
        2026-03-01 00:01 | 1_000      | 0           | 0          | 1_000     | 200   | 200    | 800   | 0       | 0.2
        2026-03-01 00:02 | 1_000      | 0           | 0          | 1_000     | 0     | 0      | 1_000 | 0       | 0
        """,
    )


ASIDE = """
kind        | name     | effective_from   | effective_until  | units
undelivered | late     | 2026-01-01       | 2026-03-01 00:02 | 20
carve_out   | research | 2026-03-01 00:00 | 2026-03-01 00:04 | 10
"""


def test_idle_is_what_is_left_of_what_was_delivered_and_not_set_aside():
    """Contracted 1,000, undelivered 200, research 100, served 600: idle 100; finance sees 60 %, operations 86 %."""
    usage = minutes("\n".join([f"minute | {INPUT}", *(f"2026-03-01 00:{n:02} | 600" for n in range(6))]))
    books = pool(0, **a.bought("units | unit_burn_per_minute\n 100 | 10"), set_aside=set_aside(ASIDE))
    found = capacity(usage, books, QUARTER)
    check(
        found.utilization.head(7),
        """
        minute           | contracted | undelivered | carved_out | available | served | idle  | utilization_ratio
        2026-03-01 00:00 | 1_000      | 200         | 100        | 700       | 600    | 100   | 0.857143
        2026-03-01 00:01 | 1_000      | 200         | 100        | 700       | 600    | 100   | 0.857143
        2026-03-01 00:02 | 1_000      | 0           | 100        | 900       | 600    | 300   | 0.666667
        2026-03-01 00:03 | 1_000      | 0           | 100        | 900       | 600    | 300   | 0.666667
        2026-03-01 00:04 | 1_000      | 0           | 0          | 1_000     | 600    | 400   | 0.6
        2026-03-01 00:05 | 1_000      | 0           | 0          | 1_000     | 600    | 400   | 0.6
        2026-03-01 00:06 | 1_000      | 0           | 0          | 1_000     | 0      | 1_000 | 0
        """,
    )
    check(
        summarise_capacity(found.utilization.head(2)),
        "served_of_contracted_ratio | served_of_available_ratio\n 0.6 | 0.857143",
    )
    with pytest.raises(FrameBroken, match=r"'contracted = undelivered .* idle' does not hold"):
        UTILIZATION.conform(found.utilization.head(2).with_columns(pl.lit(400, dtype=SUM).alias("idle")))


def test_what_names_a_carve_out_is_not_the_pools_burn():
    """Research has 100 a minute until 00:04. 130 in its last minute are 30 too many, 5 after its end are 5."""
    usage = minutes(
        f"""
        minute           | pool     | ran_on   | model_served | {INPUT}
        2026-03-01 00:00 | block    | pool     | large        | 600
        2026-03-01 00:00 | research | pool     | large        | 40
        2026-03-01 00:03 | research | pool     | large        | 130
        2026-03-01 00:03 | research | overflow | large        | 7
        2026-03-01 00:04 | research | pool     | large        | 5
        2026-03-01 00:04 | research | pool     | new          | 1
        """
    )
    books = pool(0, **a.bought("units | unit_burn_per_minute\n 100 | 10"), set_aside=set_aside(ASIDE))
    found = capacity(usage, books, QUARTER)
    assert found.utilization["burn"].sum() == 600
    check(
        found.carve_outs,
        """
        pool     | minute           | contracted | available | burn | served | idle | overrun | spill
        research | 2026-03-01 00:00 | 100        | 100       | 40   | 40     | 60   | 0       | 0
        research | 2026-03-01 00:01 | 100        | 100       | 0    | 0      | 100  | 0       | 0
        research | 2026-03-01 00:02 | 100        | 100       | 0    | 0      | 100  | 0       | 0
        research | 2026-03-01 00:03 | 100        | 100       | 130  | 100    | 0    | 30      | 7
        research | 2026-03-01 00:04 | 0          | 0         | 5    | 0      | 0    | 5       | 0
        """,
    )
    check(found.unburned, "pool | model_served | reason | quantity\n research | new | no_weight | 1")


def test_a_pool_that_was_not_delivered_has_nothing_and_still_counts():
    """Usage before delivery is overrun, not idle less than 0; a supplier owes all of it."""
    books = pool(
        0,
        **a.bought("units | unit_burn_per_minute\n 10 | 100"),
        set_aside=set_aside("kind | effective_until | units\n undelivered | 2026-03-01 00:10 | 10"),
    )
    found = capacity(minutes(f"minute | {INPUT}\n 2026-03-01 00:01 | 30"), books, QUARTER)
    check(
        summarise_capacity(found.utilization),
        """
        minutes | contracted | undelivered | available | served | idle  | overrun | served_of_contracted_ratio | mean_ratio | minutes_at_limit
        15      | 15_000     | 10_000      | 5_000     | 0      | 5_000 | 30      | 0                          | 0          | 1
        """,
    )


def test_more_set_aside_than_contracted_and_a_name_in_two_pools_are_refused():
    books = pool(0, **a.bought("units | unit_burn_per_minute\n 29 | 10"), set_aside=set_aside(ASIDE))
    with pytest.raises(
        BadInput, match="from 2026-03-01T00:00Z: 10 carve_out 'research', 20 undelivered 'late' of 29"
    ):
        capacity(minutes(f"minute | {INPUT}"), books, QUARTER)
    twice = set_aside("pool | kind | name | units\n block | carve_out | r | 1\n other | carve_out | r | 1")
    with pytest.raises(BadInput, match="'r' is set aside from several pools, block, other"):
        capacity(minutes(f"minute | {INPUT}"), pool(1, set_aside=twice), QUARTER)


def test_multipliers_stack_and_are_dated():
    """US 1.1 and priority 1.5: 100 tokens burn 165. What has no multiplier has 1, and the tier's ends at 00:02."""
    books = pool(
        1_000,
        multipliers=multipliers(
            """
            by     | value    | effective_until  | numerator | denominator
            region | us       | -                | 11        | 10
            tier   | priority | 2026-03-01 00:02 | 3         | 2
            """
        ),
    )
    usage = minutes(
        f"""
        minute           | region | tier_served | {INPUT}
        2026-03-01 00:00 | us     | priority    | 100
        2026-03-01 00:01 | us     | standard    | 100
        2026-03-01 00:02 | us     | priority    | 100
        2026-03-01 00:03 | eu     | standard    | 100
        2026-03-01 00:03 | us     | standard    | 100
        """
    )
    check(
        capacity(usage, books, QUARTER).utilization.head(4),
        """
        minute           | denominator | contracted | burn
        2026-03-01 00:00 | 20          | 20_000     | 3_300
        2026-03-01 00:01 | 20          | 20_000     | 2_200
        2026-03-01 00:02 | 20          | 20_000     | 2_200
        2026-03-01 00:03 | 20          | 20_000     | 4_200
        """,
    )


def test_a_multiplier_of_one_dimension_leaves_the_other():
    books = pool(
        0,
        **a.bought(
            "dimension | unit_burn_per_minute | fee_share_ratio\n input | 100 | 0.5\n output | 50 | 0.5"
        ),
        burndown=a.burndown(f"dimension | meter | weight\n input | {INPUT} | 1\n output | output_tokens | 1"),
        multipliers=multipliers("dimension | by | value | numerator\n input | region | us | 20"),
    )
    usage = minutes(f"minute | region | {INPUT} | output_tokens\n 2026-03-01 00:00 | us | 30 | 40")
    check(
        capacity(usage, books, QUARTER).utilization.filter(pl.col("burn") > 0),
        """
        dimension | denominator | contracted | burn | utilization_ratio
        input     | 10          | 1_000      | 600  | 0.6
        output    | 1           | 50         | 40   | 0.8
        """,
    )


def test_two_dimensions_are_two_utilizations():
    """Bought 25k in + 2.5k out a minute, 30k in + 1k out asked for: 120 % and 40 %, not one 84 %."""
    usage = minutes(f"minute | {INPUT} | output_tokens\n 2026-03-01 00:00 | 30_000 | 1_000")
    books = pool(
        0,
        **a.bought(
            "dimension | unit_burn_per_minute | fee_share_ratio\n input | 25_000 | 0.5\n output | 2_500 | 0.5"
        ),
        burndown=a.burndown(f"dimension | meter | weight\n input | {INPUT} | 1\n output | output_tokens | 1"),
    )
    found = capacity(usage, books, QUARTER)
    check(
        summarise_capacity(found.utilization),
        """
        dimension | max_ratio | minutes_at_limit | pool_minutes_at_limit
        input     | 1.2       | 1                | 1
        output    | 0.4       | 0                | 1
        """,
    )
    assert found.unburned.is_empty()


def test_only_what_ran_in_the_pool_burns_and_overflow_is_spill():
    usage = minutes(
        f"""
        minute           | ran_on    | {INPUT}
        2026-03-01 00:00 | pool      | 600
        2026-03-01 00:00 | overflow  | 70
        2026-03-01 00:00 | on_demand | 9_000
        """
    )
    check(
        capacity(usage, pool(1_000), QUARTER).utilization.head(1),
        "burn | served | idle | spill\n 600 | 600 | 400 | 70",
    )


def test_a_step_of_the_ramp_and_fractional_weights():
    """Cached reads weigh 0.1 and output 4: numerators over 10. The ramp doubles the units at 00:30."""
    usage = minutes(
        f"""
        minute           | {INPUT} | cache_read_tokens | output_tokens | accelerator_ms
        2026-03-01 00:29 | 10      | 5                 | 1             | 900
        2026-03-01 00:30 | 10      | 5                 | 1             | 900
        """
    )
    books = pool(
        0,
        **a.bought(
            """
            effective_from   | effective_until  | units | unit_burn_per_minute
            2026-03-01 00:15 | 2026-03-01 00:30 | 1     | 29
            2026-03-01 00:30 | -                | 2     | 29
            """
        ),
        burndown=a.burndown(
            f"""
            meter             | weight | denominator
            {INPUT}           | 10     | 10
            cache_read_tokens | 1      | 10
            output_tokens     | 40     | 10
            """
        ),
    )
    found = capacity(usage, books, parse_period("2026-03-01..2026-03-01T00:45")).utilization
    assert found.height == 30
    check(
        found.filter(found["burn"] > 0),
        """
        minute           | denominator | contracted | burn | served | idle | utilization_ratio
        2026-03-01 00:29 | 10          | 290        | 145  | 145    | 145  | 0.5
        2026-03-01 00:30 | 10          | 580        | 145  | 145    | 435  | 0.25
        """,
    )


def test_unknown_pools_and_weights_are_shown():
    usage = minutes(
        f"""
        minute           | pool  | model_served | {INPUT} | output_tokens | accelerator_ms
        2026-03-01 00:00 | block | large        | 10      | 3             | 7
        2026-03-01 00:01 | block | new          | 10      | 0             | 7
        2026-03-01 00:02 | gone  | large        | 10      | 0             | 0
        """
    )
    found = capacity(usage, pool(1_000), QUARTER)
    check(
        found.unburned,
        f"""
        minute           | pool  | model_served | meter          | quantity | reason
        2026-03-01 00:00 | block | large        | output_tokens  | 3        | no_weight
        2026-03-01 00:01 | block | new          | {INPUT}        | 10       | no_weight
        2026-03-01 00:01 | block | new          | accelerator_ms | 7        | no_weight
        2026-03-01 00:02 | gone  | large        | {INPUT}        | 10       | unknown_pool
        """,
    )
    check(found.utilization.head(2), "minute | burn\n 2026-03-01 00:00 | 10\n 2026-03-01 00:01 | 0")


def test_a_block_measured_in_time_does_not_ask_for_token_weights():
    usage = minutes(f"minute | {INPUT} | accelerator_ms\n 2026-03-01 00:00 | 10 | 7")
    weights = a.burndown("meter | weight\n accelerator_ms | 1")
    _, burned, unburned = burn_by_series(usage, weights, MULTIPLIERS.empty())
    check(burned, "minute | dimension | burn\n 2026-03-01 00:00 | all | 7")
    assert unburned.is_empty()


def test_burn_beyond_64_bits_is_exact():
    """The same sum in 64 bits and in 128: 3 x 7 + 2, and the same with quantities 2**70 times as large."""
    weights = a.burndown(f"meter | weight\n {INPUT} | 7\n output_tokens | 2")
    for scale in (1, 2**70):
        usage = minutes(f"minute | {INPUT} | output_tokens\n 2026-03-01 00:00 | {3 * scale} | {scale}")
        _, burned, _ = burn_by_series(usage, weights, MULTIPLIERS.empty())
        assert burned["burn"].to_list() == [23 * scale]


def test_minutes_at_the_limit_runs_and_windows():
    """One long request over one minute is no overload over five; ten full minutes are."""
    rows = ["minute | " + INPUT, "2026-03-01 00:02 | 300"]
    rows += [f"2026-03-01 00:{minute} | 100" for minute in range(15, 25)]
    found = capacity(minutes("\n".join(rows)), pool(100), parse_period("2026-03-01..2026-03-01T00:30"))
    check(
        summarise_capacity(found.utilization),
        """
        minutes | minutes_at_limit | minutes_at_limit_5m | minutes_at_limit_15m | longest_run_at_limit_minutes
        30      | 11               | 10                  | 0                    | 10
        """,
    )
    check(
        summarise_capacity(found.utilization),
        """
        contracted | served | idle  | burn  | overrun | mean_ratio | p50_ratio | p95_ratio | p99_ratio | max_ratio
        3_000      | 1_100  | 1_900 | 1_300 | 200     | 0.433333   | 0         | 1         | 3         | 3
        """,
    )
    check(
        summarise_capacity(found.utilization),
        "served_of_contracted_ratio | served_of_available_ratio\n 0.366667 | 0.366667",
    )


def test_percentiles_are_nearest_rank():
    """Of 15 minutes, p50 is the 8th, p95 and p99 the 15th."""
    rows = "\n".join(f"2026-03-01 00:{minute:02} | {minute + 1}" for minute in range(15))
    found = capacity(minutes(f"minute | {INPUT}\n{rows}"), pool(100), QUARTER)
    check(
        summarise_capacity(found.utilization),
        "mean_ratio | p50_ratio | p95_ratio | p99_ratio | max_ratio\n 0.08 | 0.08 | 0.15 | 0.15 | 0.15",
    )


def test_nothing_contracted_has_no_ratio():
    books = pool(0, **a.bought("units | unit_burn_per_minute\n 0 | 100"))
    found = capacity(minutes(f"minute | {INPUT}\n 2026-03-01 00:00 | 1"), books, QUARTER)
    check(
        summarise_capacity(found.utilization),
        """
        contracted | burn | overrun | mean_ratio | p50_ratio | max_ratio | served_of_contracted_ratio | minutes_at_limit
        0          | 1    | 1       | -          | -         | -         | -                          | 1
        """,
    )


def test_huge_quantities_are_exact_or_refused():
    usage = minutes(f"minute | {INPUT}\n 2026-03-01 00:00 | {2**62}")
    found = capacity(usage, pool(1_000, f"meter | weight\n {INPUT} | 1_000_000"), QUARTER)
    assert found.utilization["overrun"].sum() == 2**62 * 10**6 - 1_000
    with pytest.raises(BadInput, match="burn is beyond what can be summed exactly"):
        capacity(usage, pool(1_000, f"meter | weight\n {INPUT} | {2**62}"), QUARTER)
    with pytest.raises(BadInput, match="beyond exact sums; use a larger unit"):
        capacity(
            usage,
            pool(1_000, **a.bought(f"units | unit_burn_per_minute\n {2**62} | {2**62}")),
            QUARTER,
        )


def test_a_negative_burn_and_a_second_denominator_are_refused():
    usage = minutes(f"minute | {INPUT}\n 2026-03-01 00:00 | -1")
    with pytest.raises(BadInput, match="burn is negative"):
        capacity(usage, pool(1_000), QUARTER)
    weights = f"meter | weight | denominator\n {INPUT} | 1 | 1\n output_tokens | 1 | 2"
    with pytest.raises(BadInput, match="burndown of pool 'block', dimension 'all' has 2 denominators"):
        capacity(usage, pool(1_000, weights), QUARTER)
    two = multipliers("by | value | numerator | denominator\n tier | a | 1 | 2\n tier | b | 1 | 3")
    with pytest.raises(BadInput, match="multipliers by tier of pool 'block', dimension 'all' has 2"):
        capacity(usage, pool(1_000, multipliers=two), QUARTER)
    wide = multipliers(f"by | value | numerator | denominator\n tier | a | 1 | {2**62}\n region | b | 1 | 2")
    with pytest.raises(BadInput, match="beyond 64 bits"):
        capacity(usage, pool(1_000, multipliers=wide), QUARTER)

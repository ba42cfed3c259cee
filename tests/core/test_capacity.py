"""Capacity: contracted = undelivered + carved out + served + idle in every minute, overrun beside it."""
# ruff: noqa: E501  # tables are as wide as they need to be

import pytest

from metering.core.capacity import burn, capacity, summarise_capacity
from metering.errors import BadInput, FrameBroken
from metering.frames import POOL_USAGE
from metering.periods import parse_period
from metering.results import UTILIZATION
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


IDENTITY = """
minute           | contracted | undelivered | carved_out | available | burn | served | idle | utilization_ratio
2026-03-01 00:00 | 1_000      | 200         | 100        | 700       | 600  | 600    | {idle} | 0.857143
"""


def test_idle_is_what_is_left_of_what_was_delivered_and_not_set_aside():
    """Contracted 1,000, undelivered 200, research 100, served 600: idle 100; finance sees 60 %, operations 86 %."""
    names = {"pool": "block", "dimension": "all", "denominator": 1}
    found = summarise_capacity(read(IDENTITY.format(idle=100), UTILIZATION, **names))
    check(
        found,
        """
        contracted | undelivered | carved_out | available | served | idle | served_of_contracted_ratio | served_of_available_ratio
        1_000      | 200         | 100        | 700       | 600    | 100  | 0.6                        | 0.857143
        """,
    )
    with pytest.raises(FrameBroken, match=r"'contracted = undelivered .* idle' does not hold"):
        read(IDENTITY.format(idle=400), UTILIZATION, **names)


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
    burned, unburned = burn(usage, a.burndown("meter | weight\n accelerator_ms | 1"))
    check(burned, "dimension | ran_on | burn | denominator\n all | pool | 7 | 1")
    assert unburned.is_empty()


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
    with pytest.raises(BadInput, match="has 2 denominators"):
        capacity(usage, pool(1_000, weights), QUARTER)

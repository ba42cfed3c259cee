"""Prices by hand: tiers, packages, free units, hours, percentages; and what must hold for any of them."""

from dataclasses import replace
from typing import Any

import polars as pl
import pytest

from metering.core.pricing import Gross, gross
from metering.errors import BadInput
from metering.frames.books import Books
from metering.frames.frame import INSTANT
from metering.frames.terms import CONTRACT_TERMS, PERCENTAGES, PRICE_HOURS
from metering.money import from_quanta
from tests.core import example_books as a
from tests.text_tables import check, instant, read

#: Graduated: 0 to 10 at 1 and 5 flat, from 11 on at 0.50 and 2 flat.
TEN = """
    rule | tier | from_units | up_to | unit_price | flat_amount
    rule | 1    | 0          | 10    | 1          | 5
    rule | 2    | 10         | -     | 0.5        | 2
"""


def by(books: Books, usage: str, until: str = "2026-03-01", **given: Any) -> Gross:
    return gross(a.usage(usage, **given), books, instant(until))


def priced(rules: str, tiers: str, *, also: dict[str, pl.DataFrame] | None = None, **given: Any) -> Books:
    return a.books(**{**a.rules(rules, tiers, **given), **(also or {})})


def money(lines: pl.DataFrame, *by: str) -> pl.DataFrame:
    summed = lines.group_by(by or [pl.lit("all").alias("all")]).agg(pl.col("quantity", "gross").sum())
    return summed.with_columns(from_quanta(pl.col("gross")).alias("gross"))


def total(done: Gross) -> Any:
    return money(done.lines)["gross"].item()


@pytest.mark.parametrize(
    ("model", "units", "amount"),
    [
        ("graduated", 0, 0),
        ("graduated", 1, 6),
        ("graduated", 10, 15),
        ("graduated", 11, 17.5),
        ("volume", 0, 0),
        ("volume", 10, 15),
        ("volume", 11, 7.5),
    ],
)
def test_a_quantity_at_up_to_belongs_to_the_lower_tier(model: str, units: int, amount: float) -> None:
    done = by(priced(f"model\n {model}", TEN), f"quarter_start | output_tokens\n 2026-01-05 | {units}")
    assert (total(done) if done.lines.height else 0) == amount
    # however the units are dealt out over quarter hours
    rows = "\n".join(f"2026-01-{5 + unit:02} 12:15 | 1" for unit in range(units))
    done = by(priced(f"model\n {model}", TEN), f"quarter_start | output_tokens\n{rows}")
    assert (total(done) if done.lines.height else 0) == amount


CHANGE = """
    rule   | effective_from | effective_until
    before | 2026-01-01     | 2026-01-16
    after  | 2026-01-16     | -
"""
CHANGE_TIERS = """
    rule   | tier | from_units  | up_to       | unit_price
    before | 1    | 0           | 100_000_000 | 0.000010
    before | 2    | 100_000_000 | -           | 0.000008
    after  | 1    | 0           | 100_000_000 | 0.000009
    after  | 2    | 100_000_000 | -           | 0.000006
"""


def test_a_counter_runs_on_through_a_price_change_and_late_usage_is_rated_anew() -> None:
    books = priced(CHANGE, CHANGE_TIERS)
    done = by(
        books,
        """
        quarter_start    | output_tokens
        2026-01-05 10:00 | 80_000_000
        2026-01-20 10:00 | 80_000_000
        """,
    )
    check(
        money(done.lines, "rule"),
        """
        rule   | quantity   | gross
        before | 80_000_000 | 800
        after  | 80_000_000 | 540
        """,
    )
    check(
        done.counted,
        """
        contract | item  | meters        | quarter_start    | rule   | counter_start | position   | counted
        c        | large | output_tokens | 2026-01-05 10:00 | before | 2026-01-01    | 0          | 80_000_000
        c        | large | output_tokens | 2026-01-20 10:00 | after  | 2026-01-01    | 80_000_000 | 80_000_000
        """,
    )
    assert total(done) == 1340
    late = by(
        books,
        """
        quarter_start    | output_tokens
        2026-01-05 10:00 | 80_000_000
        2026-01-10 10:00 | 40_000_000
        2026-01-20 10:00 | 80_000_000
        """,
    )
    check(
        money(late.lines, "rule"),
        """
        rule   | quantity    | gross
        before | 120_000_000 | 1160
        after  | 80_000_000  | 480
        """,
    )
    assert total(late) == 1640
    # taken back, it is as if it had never come
    undone = by(
        books,
        """
        quarter_start    | counts_for      | output_tokens
        2026-01-05 10:00 | charge_and_cost | 80_000_000
        2026-01-10 10:00 | charge_and_cost | 40_000_000
        2026-01-10 10:00 | charge          | -40_000_000
        2026-01-20 10:00 | charge_and_cost | 80_000_000
        """,
    )
    assert money(undone.lines, "quarter_start").filter(pl.col("gross") != 0).sort("quarter_start")[
        "gross"
    ].to_list() == [800, 540]


def test_volume_prices_every_quarter_hour_at_its_own_table_in_the_tier_of_the_total() -> None:
    """160 M in all: the upper tier of both tables, 80 x 8 + 80 x 6."""
    changed = CHANGE.replace("rule  ", "rule | model", 1).replace("before", "before | volume")
    changed = changed.replace("after ", "after | volume")
    usage = """
        quarter_start    | output_tokens
        2026-01-05 10:00 | 80_000_000
        2026-01-20 10:00 | 80_000_000
    """
    books = priced(changed, CHANGE_TIERS)
    assert money(by(books, usage).lines, "rule").sort("rule")["gross"].to_list() == [480, 640]
    # as far as was known on the 16th, all of it was in the lower tier
    assert total(by(books, usage, until="2026-01-16")) == 800


def test_the_flat_amount_of_a_volume_is_shared_by_quantity() -> None:
    done = by(
        priced("model\n volume", TEN),
        """
        quarter_start    | output_tokens
        2026-01-05 10:00 | 4
        2026-01-20 10:00 | 12
        """,
    )
    check(
        money(done.lines, "quarter_start"),
        "quarter_start | gross\n 2026-01-05 10:00 | 2.5\n 2026-01-20 10:00 | 7.5",
    )


@pytest.mark.parametrize(
    ("counts", "units", "amount"),
    [
        ("started", 500, 0),
        ("started", 501, 5),
        ("started", 1500, 5),
        ("started", 1501, 10),
        ("full", 1499, 0),
        ("full", 1500, 5),
        ("full", 2500, 10),
    ],
)
def test_packages_are_charged_when_started_or_when_full(counts: str, units: int, amount: int) -> None:
    """5.00 per 1,000 after 500 free units; requests are a meter like any other."""
    books = priced(
        f"model | meters | free_units\n package_{counts} | requests | 500",
        "flat_amount | package_units | up_to\n 5 | 1000 | -",
    )
    half = units // 2
    done = by(
        books,
        f"quarter_start | requests\n 2026-01-05 | {half}\n 2026-01-06 | {units - half}",
    )
    assert total(done) == amount
    assert done.unrated.is_empty()


def test_a_package_is_charged_in_the_quarter_hour_that_starts_it() -> None:
    done = by(
        priced("model\n package_started", "flat_amount | package_units\n 5 | 1000"),
        """
        quarter_start    | output_tokens
        2026-01-05 10:00 | 400
        2026-01-05 10:15 | 600
        2026-01-05 10:30 | 1
        """,
    )
    check(
        money(done.lines, "quarter_start"),
        """
        quarter_start    | gross
        2026-01-05 10:00 | 5
        2026-01-05 10:15 | 0
        2026-01-05 10:30 | 5
        """,
    )


def test_free_units_come_before_the_first_tier_and_again_after_every_reset() -> None:
    tiers = "unit_price | up_to\n 0.000002 | -"
    usage = """
        quarter_start    | output_tokens
        2026-01-05 10:00 | 600_000
        2026-01-05 23:00 | 600_000
        2026-01-06 10:00 | 600_000
        2026-02-01 10:00 | 1_100_000
    """
    sums = {
        reset: total(by(priced(f"model | free_units | reset\n unit | 1_000_000 | {reset}", tiers), usage))
        for reset in ("period", "day", "month", "year", "never")
    }
    assert [float(sums[reset]) for reset in ("period", "month")] == [1.8, 1.8]
    assert float(sums["day"]) == 0.6
    assert [float(sums[reset]) for reset in ("year", "never")] == [3.8, 3.8]


def test_counters_are_reset_by_the_contracts_own_days_and_periods() -> None:
    """New York, from the 15th: 04:45 UTC of February 15th is still the day, and the period, before."""
    terms = read(
        "anchor_day | zone\n 15 | America/New_York",
        CONTRACT_TERMS,
        customer="acme",
        contract="c",
        effective_from="2026-01-01",
        currency="USD",
        period_months=1,
    )
    usage = """
        quarter_start    | output_tokens
        2026-01-20 10:00 | 7
        2026-02-15 04:45 | 5
        2026-02-15 05:00 | 7
    """
    for reset, amounts in {"period": [12, 6, 12], "day": [12, 10, 12]}.items():
        done = by(priced(f"reset\n {reset}", TEN, also={"contract_terms": terms}), usage)
        found = done.lines.sort("quarter_start")["gross"].to_list()
        assert [each / 10**12 for each in found] == amounts
    check(
        by(priced("reset\n period", TEN, also={"contract_terms": terms}), usage).counted,
        """
        quarter_start    | counter_start    | position | counted
        2026-01-20 10:00 | 2026-01-15 05:00 | 0        | 7
        2026-02-15 04:45 | 2026-01-15 05:00 | 7        | 5
        2026-02-15 05:00 | 2026-02-15 05:00 | 0        | 7
        """,
    )


def test_rules_of_tiers_and_contexts_share_one_counter() -> None:
    """Batch at half the price; 60 standard and 40 batch in one quarter hour after 80: the first 20 are cheap ones.

    dG standard = 20 x 10 + 80 x 8 = 840, of which 60 %: 504; dG batch = 420, of which 40 %: 168.
    """
    books = priced(
        """
        rule     | tier     | context_breakpoint
        standard | standard | 0
        batch    | batch    | 0
        """,
        """
        rule     | tier | from_units | up_to | unit_price
        standard | 1    | 0          | 100   | 10
        standard | 2    | 100        | -     | 8
        batch    | 1    | 0          | 100   | 5
        batch    | 2    | 100        | -     | 4
        """,
    )
    done = by(
        books,
        """
        quarter_start    | tier_sold | region  | context_breakpoint | output_tokens
        2026-01-05 10:00 | standard  | us-west | 0                  | 80
        2026-01-05 10:15 | standard  | us-west | 0                  | 40
        2026-01-05 10:15 | standard  | eu      | 200_000            | 20
        2026-01-05 10:15 | batch     | us-west | 0                  | 40
        """,
    )
    told = done.lines.join(done.series, on="series_id")
    check(
        money(told, "quarter_start", "tier_sold", "region", "rule"),
        """
        quarter_start    | tier_sold | region  | rule     | quantity | gross
        2026-01-05 10:00 | standard  | us-west | standard | 80       | 800
        2026-01-05 10:15 | standard  | us-west | standard | 40       | 336
        2026-01-05 10:15 | standard  | eu      | standard | 20       | 168
        2026-01-05 10:15 | batch     | us-west | batch    | 40       | 168
        """,
    )
    check(
        done.counted.filter(pl.col("position") > 0),
        """
        rule     | position | counted | quantity
        standard | 80       | 100     | 60
        batch    | 80       | 100     | 40
        """,
    )


def test_long_context_is_a_cliff() -> None:
    """Past 200,000 tokens of input all tokens of the request take the higher price; both count alike."""
    books = priced(
        """
        rule  | context_breakpoint
        short | 0
        long  | 200_000
        """,
        """
        rule  | tier | up_to | from_units | unit_price
        short | 1    | 100   | 0          | 3
        short | 2    | -     | 100        | 2
        long  | 1    | 100   | 0          | 6
        long  | 2    | -     | 100        | 4
        """,
    )
    done = by(
        books,
        """
        quarter_start    | context_breakpoint | output_tokens
        2026-01-05 10:00 | 128_000            | 100
        2026-01-05 10:15 | 200_000            | 10
        2026-01-05 10:30 | 512_000            | 10
        """,
    )
    assert [each // 10**12 for each in done.lines.sort("quarter_start")["gross"]] == [300, 40, 40]


def test_hours_of_a_zone_go_before_what_holds_always() -> None:
    """22:00 to 06:00 in Berlin is 21:00 to 05:00 UTC in winter and 20:00 to 04:00 in summer; not on Saturdays."""
    night = {"book": "standard", "hours": "night", "zone": "Europe/Berlin"}
    hours = "\n".join(
        f"{day} | {start} | {end}" for day in range(1, 6) for start, end in [(0, 360), (1320, 1440)]
    )
    books = priced(
        "rule | hours | model\n dark | night | unit",
        "rule | unit_price\n dark | 2",
        also={
            "price_hours": read(f"weekday | from_minute | until_minute\n{hours}", PRICE_HOURS, **night),
            "price_books": a.prices("item | meter | unit_price\n large | output_tokens | 3_000_000"),
        },
    )
    done = by(
        books,
        """
        quarter_start    | output_tokens
        2026-01-05 20:45 | 1
        2026-01-05 21:00 | 1
        2026-01-06 04:45 | 1
        2026-01-06 05:00 | 1
        2026-07-06 19:45 | 1
        2026-07-06 20:00 | 1
        2026-07-11 20:00 | 1
        """,
        until="2027-01-01",
    )
    check(
        money(done.lines, "quarter_start", "rule"),
        """
        quarter_start    | rule | gross
        2026-01-05 20:45 | -    | 3
        2026-01-05 21:00 | dark | 2
        2026-01-06 04:45 | dark | 2
        2026-01-06 05:00 | -    | 3
        2026-07-06 19:45 | -    | 3
        2026-07-06 20:00 | dark | 2
        2026-07-11 20:00 | -    | 3
        """,
    )


def test_the_own_region_comes_first_and_there_hours_then_rules_then_unit_prices() -> None:
    """eu: a unit price of its own; us: a rule of its own; elsewhere the rule of all regions."""
    books = priced(
        """
        rule | region | model
        us   | us     | unit
        all  | *      | unit
        """,
        "rule | unit_price\n us | 2\n all | 3",
        also={
            "price_books": a.prices(
                """
                item  | region | meter         | unit_price
                large | eu     | output_tokens | 4_000_000
                large | us     | output_tokens | 5_000_000
                large | *      | output_tokens | 6_000_000
                """
            )
        },
    )
    done = by(
        books,
        """
        quarter_start | region | output_tokens
        2026-01-05    | eu     | 1
        2026-01-05    | us     | 1
        2026-01-05    | asia   | 1
        """,
    )
    told = done.lines.join(done.series, on="series_id")
    check(money(told, "region", "rule"), "region | rule | gross\n eu | - | 4\n us | us | 2\n asia | all | 3")


def test_a_percentage_is_of_the_charges_of_its_product_or_else_of_all() -> None:
    books = priced(
        "model\n unit",
        "unit_price\n 3",
        also={
            "price_books": a.prices("item | meter | unit_price\n small | output_tokens | 1_000_000"),
            "percentages": read(
                """
                charge  | ratio | item  | effective_from | effective_until
                support | 0.10  | large | 2026-01-01     | -
                levy    | 0.01  | -     | 2026-01-01     | -
                levy    | 0.05  | small | 2026-01-08     | 2026-01-09
                """,
                PERCENTAGES,
                book="standard",
                of="charge",
                currency="USD",
            ),
        },
    )
    done = by(
        books,
        """
        quarter_start | product | counts_for      | output_tokens
        2026-01-05    | large   | charge_and_cost | 30
        2026-01-05    | small   | charge_and_cost | 10
        2026-01-06    | small   | charge_and_cost | 10
        2026-01-06    | small   | charge          | -10
        2026-01-08    | large   | charge_and_cost | 30
        2026-01-08    | small   | charge_and_cost | 10
        2026-01-09    | small   | charge_and_cost | 10
        """,
    )
    # the levy of the small one is 5 % for a day: its own goes before that of all products
    check(
        money(done.lines, "quarter_start", "item", "meter").filter(pl.col("gross") != 0),
        """
        quarter_start | item  | meter         | quantity | gross
        2026-01-05    | large | output_tokens | 30       | 90
        2026-01-05    | large | % support     | 0        | 9
        2026-01-05    | large | % levy        | 0        | 0.90
        2026-01-05    | small | output_tokens | 10       | 10
        2026-01-05    | small | % levy        | 0        | 0.10
        2026-01-08    | large | output_tokens | 30       | 90
        2026-01-08    | large | % support     | 0        | 9
        2026-01-08    | large | % levy        | 0        | 0.90
        2026-01-08    | small | output_tokens | 10       | 10
        2026-01-08    | small | % levy        | 0        | 0.50
        2026-01-09    | small | output_tokens | 10       | 10
        2026-01-09    | small | % levy        | 0        | 0.10
        """,
    )


def test_what_no_rule_and_no_price_is_for_is_unrated_in_the_words_of_rating() -> None:
    usage = """
        quarter_start | customer | product | tier_sold | output_tokens | accelerator_ms
        2026-01-05    | acme     | large   | standard  | 1             | 1
        2026-01-05    | acme     | large   | batch     | 1             | 1
        2026-01-05    | acme     | small   | standard  | 1             | 0
        2025-12-31    | acme     | large   | standard  | 1             | 0
        2026-01-05    | nobody   | large   | standard  | 1             | 0
    """
    done = by(priced("model\n unit", "unit_price\n 3"), usage)
    told = done.unrated.join(done.series.select("series_id", "customer"), on="series_id")
    check(
        told,
        """
        quarter_start | customer | item  | tier     | meter         | quantity | reason
        2026-01-05    | acme     | large | batch    | output_tokens | 1        | no_price
        2026-01-05    | acme     | small | standard | output_tokens | 1        | no_price
        2025-12-31    | acme     | large | standard | output_tokens | 1        | unknown_customer
        2026-01-05    | nobody   | large | standard | output_tokens | 1        | unknown_customer
        """,
    )
    assert total(done) == 3


def test_a_customer_that_was_unknown_is_charged_by_no_rule_whatever_contract_it_had() -> None:
    """As by no unit price; what it used counts on the contract's counter all the same."""
    books = priced(
        "free_units\n 1",
        "tier | from_units | up_to | unit_price\n 1 | 0 | 2 | 5\n 2 | 2 | - | 3",
    )
    since = pl.lit(instant("2026-01-05"), dtype=INSTANT)
    late = replace(books, customers=books.customers.with_columns(since.alias("effective_from")))
    usage = "quarter_start | output_tokens\n 2026-01-04 | 2\n 2026-01-05 | 4"
    done = by(late, usage)
    check(money(done.lines, "quarter_start"), "quarter_start | gross\n 2026-01-05 | 14")
    check(done.unrated, "quarter_start | quantity | reason\n 2026-01-04 | 2 | unknown_customer")


def test_amounts_stay_exact_to_the_last_quantum_and_too_large_ones_are_refused() -> None:
    """A third of a tier: three rows of one unit in a quarter hour at 0.1 + 0.000000000001 flat."""
    books = priced("free_units\n 0", "unit_price | flat_amount\n 0.1 | 0.000000000001")
    done = by(
        books,
        """
        quarter_start | region | output_tokens
        2026-01-05    | a      | 1
        2026-01-05    | b      | 1
        2026-01-05    | c      | 1
        """,
    )
    assert done.lines.sort("series_id")["gross"].to_list() == [10**11 + 1, 10**11, 10**11]
    costly = priced("free_units\n 0", "unit_price\n 100_000_000")
    with pytest.raises(BadInput, match="amount_about is beyond"):
        by(costly, "quarter_start | output_tokens\n 2026-01-05 | 3_000_000")


def test_no_usage_costs_nothing() -> None:
    done = gross(
        a.usage("quarter_start | output_tokens"), priced("model\n graduated", TEN), instant("2026-02-01")
    )
    assert [frame.height for frame in (done.lines, done.counted, done.unrated)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("model", "units", "amount"),
    [("graduated", 15_000, 600), ("volume", 15_000, 150), ("graduated", 250, 25)],
)
def test_published_graduated_and_volume_prices(model: str, units: int, amount: int) -> None:
    """zuplo.com/docs/articles/monetization/pricing-models: 15,000 units of 0.10 up to 1,000, 0.05 up to 10,000 and
    0.01 above are 100 + 450 + 50 = 600 graduated, and 150 by volume."""
    tiers = """
        tier | from_units | up_to  | unit_price
        1    | 0          | 1_000  | 0.10
        2    | 1_000      | 10_000 | 0.05
        3    | 10_000     | -      | 0.01
    """
    done = by(priced(f"model\n {model}", tiers), f"quarter_start | output_tokens\n 2026-01-05 | {units}")
    assert total(done) == amount


def test_published_volume_price_with_a_flat_fee() -> None:
    """getlago.com/docs/guide/plans/charges/charge-models/volume: 65,000 x 0.0006 + 10 = 49."""
    tiers = """
        tier | from_units | up_to   | unit_price | flat_amount
        1    | 0          | 10_000  | 0.0010     | 10
        2    | 10_000     | 50_000  | 0.0008     | 10
        3    | 50_000     | 100_000 | 0.0006     | 10
        4    | 100_000    | -       | 0.0004     | 10
    """
    rows = "quarter_start | requests\n 2026-01-05 | 25_000\n 2026-01-06 | 40_000"
    done = by(priced("model | meters\n volume | requests", tiers), rows)
    assert total(done) == 49


def test_published_package_price() -> None:
    """getlago.com/docs/guide/plans/charges/charge-models/package: 5 per 100 units after 100 free: 201 cost 10."""
    books = priced(
        "model | meters | free_units\n package_started | requests | 100",
        "flat_amount | package_units\n 5 | 100",
    )
    assert total(by(books, "quarter_start | requests\n 2026-01-05 | 150\n 2026-01-06 | 51")) == 10


def test_published_token_prices_on_both_sides_of_the_long_context_cliff() -> None:
    """deploybase.ai/articles/gemini-2.5-pricing and /gemini-api-pricing-2026: 1.25 in and 10 out per million up to
    200,000 tokens of input, 2.50 and 15 above; 50,000 in and 2,000 out cost 0.0825, 1,000 in and 500 out 0.00625."""
    books = a.books(
        price_books=a.prices(
            """
            item  | context_breakpoint | meter                 | unit_price
            large | 0                  | uncached_input_tokens | 1.25
            large | 200_000            | uncached_input_tokens | 2.50
            large | 0                  | output_tokens         | 10
            large | 200_000            | output_tokens         | 15
            """
        )
    )
    done = by(
        books,
        """
        quarter_start    | context_breakpoint | uncached_input_tokens | output_tokens
        2026-01-05 10:00 | 0                  | 50_000                | 2_000
        2026-01-05 10:15 | 0                  | 1_000                 | 500
        2026-01-05 10:30 | 128_000            | 200_000               | 2_000
        2026-01-05 10:45 | 200_000            | 200_001               | 2_000
        """,
    )
    check(
        money(done.lines, "quarter_start"),
        """
        quarter_start    | gross
        2026-01-05 10:00 | 0.0825
        2026-01-05 10:15 | 0.00625
        2026-01-05 10:30 | 0.27
        2026-01-05 10:45 | 0.5300025
        """,
    )

"""The supply side of the catalog: what a capacity contract becomes in the books, and what is refused of it."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from metering.catalog import CatalogObjects, books, load_folder, plan, read_folder
from metering.catalog.objects import body, from_body
from tests.text_tables import check, instant

AT = datetime(2026, 3, 10, 12, 1, tzinfo=UTC)

SOUND = """\
customers:
  - customer: acme
    name: Acme
    dated:
      - {effective_from: 2026-01-01, kind: paying, segment: enterprise}
  - customer: bolt
    name: Bolt
    dated:
      - {effective_from: 2026-01-01, kind: paying, segment: enterprise}
models:
  - {provider: own, model: large, name: Large}
  - {provider: cirrus, model: large, name: Large at Cirrus, cost_book: on-demand}
price_books:
  - book: standard
    currency: USD
    prices:
      - {product: large, effective_from: 2026-01-01, per_million: {uncached_input_tokens: 3, output_tokens: 15}}
cost_books:
  - book: on-demand
    provider: cirrus
    currency: USD
    prices:
      - {model: large, effective_from: 2026-01-01, per_million: {uncached_input_tokens: 2, output_tokens: 10}}
contracts:
  - contract: acme-2026
    customer: acme
    price_book: standard
    effective_from: 2026-01-01
    entitlements:
      - {pool: block, units: 20.5}
      - {pool: tokens, dimension: output, units: 1, effective_from: 2026-02-01, effective_until: 2026-03-01}
  - contract: bolt-2026
    customer: bolt
    price_book: standard
    effective_from: 2026-01-01
    effective_until: 2026-07-01
    entitlements:
      - pool: block
        stated: {quantity: 10, unit: seat, units_each: 0.25, because: four share one}
capacity_contracts:
  - pool: block
    supplier: northstar
    unit: accelerator
    currency: USD
    idle_policy: entitlement
    recognition: capacity_hours
    on_demand_book: on-demand
    units_min: 8
    units_sold_in: 8
    lead_time_days: 90
    renews_for_months: 12
    notice_days: 60
    steps:
      - {effective_from: 2026-01-01, effective_until: 2026-02-01, units: 24, fee_upfront: 500}
      - {effective_from: 2026-02-01, effective_until: 2027-01-01, units: 48, fee_per_unit_hour: 2.5}
    fees:
      - {fee: block, amount: 100000, per: month}
      - {fee: power, amount: 70, per: unit_month, currency: EUR, effective_from: 2026-06-01}
      - {fee: set-up, amount: 9000, per: span, effective_until: 2026-04-01}
    carve_outs:
      - {carve_out: research, units: 8, effective_from: 2026-01-15T00:07, purpose: evaluation runs}
    undelivered:
      - {units: 16, effective_from: 2026-01-01, effective_until: 2026-01-05T09:41, reason: cooling}
    dimensions:
      - dimension: all
        unit_burn_per_minute: 60000
        burndown:
          - {models: [large], effective_from: 2026-01-01, weights: {accelerator_ms: 1, other_meters: 0}}
  - pool: tokens
    supplier: cirrus
    unit: bundle
    currency: USD
    steps:
      - effective_from: 2026-01-01
        units: {input: 4, output: 2}
        fee_per_unit_day: {input: 75, output: 60}
    dimensions:
      - dimension: input
        unit_burn_per_minute: 25000
        fee_share_ratio: 0.6
        burndown:
          - {models: [large], effective_from: 2026-01-01, weights: {uncached_input_tokens: 1, other_meters: 0}}
        multipliers:
          - {by: region, value: us-east, multiplier: 1.1, effective_from: 2026-01-01}
          - {by: tier, value: priority, multiplier: 1.75, effective_from: 2026-01-01}
          - {by: region, value: eu-west, multiplier: 1.25, effective_from: 2026-02-01, effective_until: 2026-03-01}
      - dimension: output
        unit_burn_per_minute: 2500
        fee_share_ratio: 0.4
        burndown:
          - {models: [large], effective_from: 2026-01-01, weights: {output_tokens: 1, other_meters: 0}}
supplier_commitments:
  - commitment: cirrus-2026
    supplier: cirrus
    currency: USD
    draws: all
    shortfall_rule: roll_over
    roll_over_cap_ratio: 0.25
    roll_over_until: 2028-07-01
    tranches:
      - {effective_from: 2027-01-01, effective_until: 2028-01-01, amount: 2000000}
      - {effective_from: 2026-01-01, effective_until: 2027-01-01, amount: 1000000}
exchange_rates:
  - from: EUR
    to: USD
    kind: month_average
    rates:
      - {effective_from: 2026-02-01, rate: 1.0931}
      - {effective_from: 2026-01-01, rate: 1.081234567891}
  - {from: EUR, to: USD, kind: contract, rates: [{effective_from: 2026-01-01, rate: 1.1}]}
"""


def folder_of(path: Path, content: str) -> Path:
    path.mkdir(exist_ok=True)
    (path / "catalog.yaml").write_text(content)
    return path


def objects_of(path: Path, content: str = SOUND) -> CatalogObjects:
    return load_folder(folder_of(path, content))


def test_a_catalog_of_the_supply_side_becomes_books(tmp_path: Path) -> None:
    made = books(objects_of(tmp_path), 1)
    check(
        made.pools,
        """
        pool   | supplier  | unit        | idle_policy | recognition    | on_demand_book | units_min | units_sold_in
        block  | northstar | accelerator | entitlement | capacity_hours | on-demand      | 8         | 8
        tokens | cirrus    | bundle      | none        | as_billed      | -              | 0         | 1
        """,
    )
    check(
        made.pools,
        """
        pool   | window_seconds | lead_time_days | term_from  | term_until | renewal_months | notice_days
        block  | 60             | 90             | 2026-01-01 | 2027-01-01 | 12             | 60
        tokens | 60             | -              | 2026-01-01 | -          | -              | -
        """,
    )
    # The term of block ends with 2026; it renews, so its last step and the fees by time and unit run on.
    check(
        made.capacity_steps,
        """
        pool   | dimension | effective_from | effective_until | units | unit_burn_per_minute | fee_share_ratio
        block  | all       | 2026-01-01     | 2026-02-01      | 24    | 60000                | 1
        block  | all       | 2026-02-01     | -               | 48    | 60000                | 1
        tokens | input     | 2026-01-01     | -               | 4     | 25000                | 0.6
        tokens | output    | 2026-01-01     | -               | 2     | 2500                 | 0.4
        """,
    )
    check(
        made.capacity_fees,
        """
        pool   | fee        | dimension | effective_from | effective_until | amount | per        | currency
        block  | upfront    | -         | 2026-01-01     | 2026-02-01      | 500    | span       | USD
        block  | unit hours | all       | 2026-02-01     | -               | 2.5    | unit_hour  | USD
        block  | block      | -         | 2026-01-01     | -               | 100000 | month      | USD
        block  | power      | all       | 2026-06-01     | -               | 70     | unit_month | EUR
        block  | set-up     | -         | 2026-01-01     | 2026-04-01      | 9000   | span       | USD
        tokens | unit days  | input     | 2026-01-01     | -               | 75     | unit_day   | USD
        tokens | unit days  | output    | 2026-01-01     | -               | 60     | unit_day   | USD
        """,
    )
    # 1.1 and 1.25 over one denominator: 22/20 and 25/20.
    check(
        made.multipliers,
        """
        pool   | dimension | by     | value    | effective_from | effective_until | numerator | denominator
        tokens | input     | region | us-east  | 2026-01-01     | -               | 22        | 20
        tokens | input     | region | eu-west  | 2026-02-01     | 2026-03-01      | 25        | 20
        tokens | input     | tier   | priority | 2026-01-01     | -               | 7         | 4
        """,
    )
    check(
        made.set_aside,
        """
        pool  | dimension | kind        | name     | effective_from   | effective_until  | units
        block | all       | carve_out   | research | 2026-01-15 00:07 | -                | 8
        block | all       | undelivered | cooling  | 2026-01-01       | 2026-01-05 09:41 | 16
        """,
    )
    check(
        made.entitlements,
        """
        customer | pool   | dimension | effective_from | effective_until | units | stated
        acme     | block  | all       | 2026-01-01     | -               | 20.5  | -
        acme     | tokens | output    | 2026-02-01     | 2026-03-01      | 1     | -
        bolt     | block  | all       | 2026-01-01     | 2026-07-01      | 2.5   | 10 seat x 0.25: four share one
        """,
    )
    check(
        made.supplier_commitments,
        """
        effective_from | effective_until | amount  | shortfall_rule | shortfall_ratio | roll_over_cap_ratio
        2026-01-01     | 2027-01-01      | 1000000 | roll_over      | 1               | 0.25
        2027-01-01     | 2028-01-01      | 2000000 | roll_over      | 1               | 0.25
        """,
    )
    check(
        made.exchange_rates,
        """
        currency | into | kind          | effective_from | effective_until | rate
        EUR      | USD  | month_average | 2026-01-01     | 2026-02-01      | 1.081234567891
        EUR      | USD  | month_average | 2026-02-01     | -               | 1.0931
        EUR      | USD  | contract      | 2026-01-01     | -               | 1.1
        """,
    )


def test_what_ended_is_cut_but_what_was_due_as_a_whole_stays_due(tmp_path: Path) -> None:
    ends = instant("2026-03-10 12:15")
    live = objects_of(tmp_path)
    ended = CatalogObjects({key: replace(entry, ended_at=ends) for key, entry in live.entries.items()})
    made = books(ended, 2)
    check(
        made.capacity_fees.filter(pool="block"),
        """
        fee        | effective_from | effective_until
        upfront    | 2026-01-01     | 2026-02-01
        unit hours | 2026-02-01     | 2026-03-10 12:15
        block      | 2026-01-01     | 2026-03-10 12:15
        set-up     | 2026-01-01     | 2026-04-01
        """,
    )
    check(
        made.supplier_commitments,
        "effective_from | effective_until\n 2026-01-01 | 2027-01-01",
    )
    check(
        made.pools,
        """
        pool   | term_until       | renewal_months | notice_days
        block  | 2026-03-10 12:15 | -              | -
        tokens | 2026-03-10 12:15 | -              | -
        """,
    )
    for frame in (made.capacity_steps, made.set_aside, made.entitlements, made.exchange_rates):
        assert max(until for until in frame["effective_until"] if until) <= ends
        assert frame["effective_until"].null_count() == 0


def test_objects_of_the_supply_side_survive_json_and_the_order_they_are_written_in(tmp_path: Path) -> None:
    for entry in objects_of(tmp_path).entries.values():
        written = body(entry.item)
        assert from_body(entry.item.kind, written) == entry.item
    before, row = SOUND.split("fees:\n      - {fee: block")
    first, power, rest = row.split("\n", 2)
    turned = f"{before}fees:\n{power}\n      - {{fee: block{first}\n{rest}"
    assert (
        plan(objects_of(tmp_path), objects_of(tmp_path / "b", turned), base_revision=1, at=AT).changes == ()
    )


def test_a_body_of_a_program_that_knew_less_still_loads_and_says_the_same() -> None:
    """What an earlier version appended: a step has a fee per month, and nothing says how it is recognised."""
    known = json.loads("""
        {"pool": "block", "supplier": "northstar", "unit": "accelerator", "currency": "USD", "idle_policy": "none",
         "steps": [{"effective_from": "2026-01-01T00:00Z", "units": {"all": 10}, "fee_per_month": "1000"}],
         "dimensions": [{"dimension": "all", "unit_burn_per_minute": 60000, "fee_share_ratio": "1", "burndown": [
            {"effective_from": "2026-01-01T00:00Z", "models": ["large"], "above_input_tokens": 0,
             "weights": {"accelerator_ms": "1", "other_meters": "0"}}]}]}
    """)
    assert body(from_body("capacity_contract", known)) == known


# ---- bad supply sides --------------------------------------------------------------------------------

P = "catalog.yaml:40: capacity_contracts[0]"
#: What replaces what in SOUND (once), and the faults that must be listed, whole.
BAD: list[tuple[str, str, list[str]]] = []


@pytest.mark.parametrize(
    ("old", "new", "expected"), BAD, ids=[f"{i}-{row[1][:30]}" for i, row in enumerate(BAD)]
)
def test_a_fault_of_the_supply_side_names_file_line_field_value_and_remedy(
    tmp_path: Path, old: str, new: str, expected: list[str]
) -> None:
    assert SOUND.count(old) == 1
    faults = [str(fault) for fault in read_folder(folder_of(tmp_path, SOUND.replace(old, new)))[1]]
    assert faults == expected

"""The supply side of the catalog: what a capacity contract becomes in the books, and what is refused of it."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from metering.catalog import CatalogObjects, books, load_folder, plan, read_folder
from metering.catalog.objects import body, from_body
from metering.catalog.promised import oversubscribed
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

#: What replaces what in SOUND (once), and the faults that must be listed, whole.
BAD: list[tuple[str, str, list[str]]] = [
    (
        "{pool: block, units: 20.5}",
        "{pool: block, units: 20.5}\n      - {pool: block, dimension: all, units: 1}",
        [
            (
                "catalog.yaml:31: contracts[0].entitlements[1].effective_from: '2026-01-01T00:00Z': overlaps"
                " catalog.yaml:30 (2026-01-01T00:00Z to open); keep one of them"
            ),
        ],
    ),
    (
        "effective_from: 2026-02-01, effective_until: 2027-01-01, units: 48",
        "effective_from: 2026-01-15, effective_until: 2027-01-01, units: 48",
        [
            (
                "catalog.yaml:55: capacity_contracts[0].steps[1].effective_from: '2026-01-15T00:00Z':"
                " overlaps catalog.yaml:54 (2026-01-01T00:00Z to 2026-02-01T00:00Z); give that one"
                " `effective_until: 2026-01-15T00:00Z` or start this one later"
            ),
        ],
    ),
    (
        "units: {input: 4, output: 2}",
        "units: {input: 4, output: 0}",
        [
            (
                "catalog.yaml:73: capacity_contracts[1].steps: (missing): dimension output has 0 units over"
                " the whole term; say how many were bought, or take the pool out"
            ),
        ],
    ),
    (
        "units: 48, fee",
        "units: 50, fee",
        [
            (
                "catalog.yaml:55: capacity_contracts[0].steps[1].units.all: '50': is not a multiple of"
                " units_sold_in (8); write 48 or 56"
            ),
        ],
    ),
    (
        "units_min: 8",
        "units_min: 32",
        [
            (
                "catalog.yaml:54: capacity_contracts[0].steps[0].units.all: '24': is below units_min (32);"
                " buy more, or 0 for none"
            ),
        ],
    ),
    (
        "fee_per_unit_hour: 2.5}",
        "fee_per_unit_hour: 2.5, fee_per_unit_month: 1800}",
        [
            (
                "catalog.yaml:55: capacity_contracts[0].steps[1].fee_per_unit_month: '1800': a unit of this"
                " step already has a price at catalog.yaml:55 (fee_per_unit_hour); keep one of them"
            ),
        ],
    ),
    (
        "{effective_from: 2026-01-01, effective_until: 2026-02-01, units: 24, fee_upfront: 500}",
        "{effective_from: 2026-01-01, effective_until: 2026-02-01, units: 24, fee_per_month: 100000}",
        [
            (
                "catalog.yaml:57: capacity_contracts[0].fees[0]: '100000': says the same as the fee at"
                " catalog.yaml:54 (step, per month): it would be paid twice; keep one of them"
            ),
        ],
    ),
    (
        "        fee_per_unit_day: {input: 75, output: 60}\n",
        "        fee_upfront: 500\n",
        [
            (
                "catalog.yaml:76: capacity_contracts[1].steps[0].fee_upfront: '500': is a fee for a span"
                " without an end; give the span an `effective_until`"
            ),
        ],
    ),
    (
        "        fee_per_unit_day: {input: 75, output: 60}\n",
        "        fee_per_unit_day: 75\n",
        [
            (
                "catalog.yaml:76: capacity_contracts[1].steps[0].fee_per_unit_day: '75': is per unit, and"
                " units are counted by dimension; say of which of input, output"
            ),
        ],
    ),
    (
        "        fee_per_unit_day: {input: 75, output: 60}\n",
        "        fee_per_unit_day: {inptu: 75, output: 6e1}\n",
        [
            (
                "catalog.yaml:76: capacity_contracts[1].steps[0].fee_per_unit_day: (a mapping): output must"
                " be an amount: a plain decimal number such as 3.00, without exponent or separators"
            ),
        ],
    ),
    (
        "        fee_per_unit_day: {input: 75, output: 60}\n",
        "        fee_per_unit_day: {inptu: 75}\n",
        [
            (
                "catalog.yaml:76: capacity_contracts[1].steps[0].fee_per_unit_day: 'inptu': there is no"
                " dimension inptu; it has input, output"
            ),
        ],
    ),
    (
        "        fee_per_unit_day: {input: 75, output: 60}\n",
        "",
        [
            (
                "catalog.yaml:74: capacity_contracts[1].steps[0]: '2026-01-01T00:00Z': no fee covers this"
                " step; give it fee_per_month, fee_upfront, fee_per_unit_hour, fee_per_unit_day,"
                " fee_per_unit_month, or the contract a fee under `fees`; what costs nothing has"
                " `fee_per_month: 0`"
            ),
        ],
    ),
    (
        "{fee: block, amount: 100000, per: month}",
        "{fee: step, amount: 100000, per: week}",
        [
            (
                "catalog.yaml:57: capacity_contracts[0].fees[0].per: 'week': must be one of 'month', 'span',"
                " 'unit_hour', 'unit_day' or 'unit_month'"
            ),
        ],
    ),
    (
        "{fee: block, amount: 100000, per: month}",
        "{fee: step, amount: 100000, per: month, effective_until: 2028-01-01}",
        [
            (
                "catalog.yaml:57: capacity_contracts[0].fees[0].fee: 'step': is what a fee of a step is"
                " called; choose another name"
            ),
        ],
    ),
    (
        "fee_share_ratio: 0.4",
        "fee_share_ratio: 0.3",
        [
            (
                "catalog.yaml:77: capacity_contracts[1].dimensions: (missing): the fee_share_ratio of a"
                " pool's dimensions must sum to exactly 1"
            ),
        ],
    ),
    (
        "on_demand_book: on-demand",
        "on_demand_book: on-demnad",
        [
            (
                "catalog.yaml:47: capacity_contracts[0].on_demand_book: 'on-demnad': no such cost book in"
                " this catalog; known are on-demand"
            ),
        ],
    ),
    (
        "renews_for_months: 12\n",
        "renews_for_months: 0\n",
        [
            (
                "catalog.yaml:51: capacity_contracts[0].renews_for_months: '0': must be more than 0; leave it"
                " out if it does not apply"
            ),
        ],
    ),
    (
        "    renews_for_months: 12\n",
        "",
        [
            (
                "catalog.yaml:51: capacity_contracts[0].notice_days: '60': there is nothing to give notice of"
                " without a renewal; add renews_for_months or leave it out"
            ),
        ],
    ),
    (
        (
            "          - {models: [large], effective_from: 2026-01-01, weights: {accelerator_ms: 1,"
            " other_meters: 0}}\n"
        ),
        (
            "          - {models: [large], effective_from: 2026-01-01, effective_until: 2026-03-01,"
            " weights: {accelerator_ms: 1, other_meters: 0}}\n          - {models: [large],"
            " effective_from: 2026-04-01, weights: {accelerator_ms: 2, other_meters: 0}}\n"
        ),
        [
            (
                "catalog.yaml:67: capacity_contracts[0].dimensions[0].burndown: 'large': no table says what"
                " model large burns from 2026-03-01T00:00Z to 2026-04-01T00:00Z; extend the one before or"
                " start the one after at 2026-03-01T00:00Z"
            ),
        ],
    ),
    (
        "effective_from: 2026-01-01, weights: {accelerator_ms: 1",
        "effective_from: 2026-02-01, effective_until: 2026-12-01, weights: {accelerator_ms: 1",
        [
            (
                "catalog.yaml:67: capacity_contracts[0].dimensions[0].burndown: (missing): no table holds"
                " from 2026-01-01T00:00Z to 2026-02-01T00:00Z, which is within the term; usage would burn"
                " nothing: extend a table, or shorten the term"
            ),
            (
                "catalog.yaml:67: capacity_contracts[0].dimensions[0].burndown: (missing): no table holds"
                " from 2026-12-01T00:00Z on, which is within the term; usage would burn nothing: extend a"
                " table, or shorten the term"
            ),
        ],
    ),
    (
        "value: eu-west, multiplier: 1.25,",
        "value: us-east, multiplier: 1.25,",
        [
            (
                "catalog.yaml:86: capacity_contracts[1].dimensions[0].multipliers[2].effective_from:"
                " '2026-02-01T00:00Z': overlaps catalog.yaml:84 (2026-01-01T00:00Z to open); give that one"
                " `effective_until: 2026-02-01T00:00Z` or start this one later"
            ),
        ],
    ),
    (
        "{units: 16, effective_from",
        "{units: 32, effective_from",
        [
            (
                "catalog.yaml:63: capacity_contracts[0].undelivered[0].units: '32': at 2026-01-01T00:00Z 32"
                " units of dimension all are carved out or undelivered, and 24 are contracted; take fewer, or"
                " another span"
            ),
        ],
    ),
    (
        "{carve_out: research, units: 8, effective_from: 2026-01-15T00:07",
        "{carve_out: research, units: 8, effective_from: 2026-01-04T00:07:30",
        [
            (
                "catalog.yaml:61: capacity_contracts[0].carve_outs[0].effective_from: '2026-01-04T00:07:30':"
                " is not on a whole minute; leave the seconds out"
            ),
        ],
    ),
    (
        "{carve_out: research, units: 8, effective_from: 2026-01-15T00:07",
        "{carve_out: research, units: 16, effective_from: 2026-01-04T00:07",
        [
            (
                "catalog.yaml:61: capacity_contracts[0].carve_outs[0].units: '16': at 2026-01-04T00:07Z 32"
                " units of dimension all are carved out or undelivered, and 24 are contracted; take fewer, or"
                " another span"
            ),
        ],
    ),
    (
        "carve_out: research, units: 8",
        "carve_out: tokens, units: {alll: 8}",
        [
            (
                "catalog.yaml:61: capacity_contracts[0].carve_outs[0].carve_out: 'tokens': is the name of a"
                " pool (catalog.yaml:69), and events name either; choose another name"
            ),
            (
                "catalog.yaml:61: capacity_contracts[0].carve_outs[0].units: 'alll': there is no dimension"
                " alll; it has all"
            ),
        ],
    ),
    (
        "effective_from: 2026-01-15T00:07,",
        "effective_from: 2025-12-31,",
        [
            (
                "catalog.yaml:61: capacity_contracts[0].carve_outs[0].units: '8': at 2025-12-31T00:00Z 8"
                " units of dimension all are carved out or undelivered, and 0 are contracted; take fewer, or"
                " another span"
            ),
        ],
    ),
    (
        "{pool: block, units: 20.5}",
        "{pool: blokc, units: 20.5}",
        [
            (
                "catalog.yaml:30: contracts[0].entitlements[0].pool: 'blokc': no such pool in this catalog;"
                " known are block, tokens"
            ),
        ],
    ),
    (
        "{pool: block, units: 20.5}",
        "{pool: block, dimension: input, units: 20.5}",
        [
            (
                "catalog.yaml:30: contracts[0].entitlements[0].dimension: 'input': no such dimension of pool"
                " block in this catalog; known are all"
            ),
        ],
    ),
    (
        "{pool: block, units: 20.5}",
        "{pool: block, units: 20.5, unit: megawatt}",
        [
            (
                "catalog.yaml:30: contracts[0].entitlements[0].unit: 'megawatt': pool block is measured in"
                " accelerator; write `stated` with how many accelerator one megawatt is (units_each) and why"
            ),
        ],
    ),
    (
        "{pool: block, units: 20.5}",
        "{pool: tokens, units: 20.5000001}",
        [
            (
                "catalog.yaml:30: contracts[0].entitlements[0].units: '20.5000001': has more than 6 decimals;"
                " round a number of units to at most 6"
            ),
        ],
    ),
    (
        "{pool: block, units: 20.5}",
        "{pool: tokens}",
        [
            (
                "catalog.yaml:30: contracts[0].entitlements[0]: (missing): must promise either `units` of the"
                " pool or, where the contract speaks another unit, `stated`; write one of them"
            ),
            (
                "catalog.yaml:30: contracts[0].entitlements[0].dimension: (missing): is required: pool tokens"
                " has input, output; add it"
            ),
        ],
    ),
    (
        "units_each: 0.25, ",
        "",
        [
            (
                "catalog.yaml:39: contracts[1].entitlements[0].stated.units_each: (missing): is required; add"
                " it"
            ),
        ],
    ),
    (
        "unit: seat",
        "unit: accelerator",
        [
            (
                "catalog.yaml:39: contracts[1].entitlements[0].stated.unit: 'accelerator': is the pool's own"
                " unit; write `units` without stated"
            ),
        ],
    ),
    (
        "dimension: output, units: 1, effective_from: 2026-02-01",
        "dimension: output, units: 1, effective_from: 2025-02-01",
        [
            (
                "catalog.yaml:31: contracts[0].entitlements[1].effective_from: '2025-02-01T00:00Z': lies"
                " before the contract's (2026-01-01T00:00Z); move one of them"
            ),
        ],
    ),
    (
        "effective_until: 2027-01-01, amount: 1000000",
        "effective_until: 2027-02-01, amount: 1000000",
        [
            (
                "catalog.yaml:101: supplier_commitments[0].tranches[0].effective_from: '2027-01-01T00:00Z':"
                " overlaps catalog.yaml:102 (2026-01-01T00:00Z to 2027-02-01T00:00Z); give that one"
                " `effective_until: 2027-01-01T00:00Z` or start this one later"
            ),
        ],
    ),
    (
        "effective_from: 2027-01-01, effective_until: 2028-01-01, amount",
        "effective_from: 2027-01-01, amount",
        [
            (
                "catalog.yaml:101: supplier_commitments[0].tranches[0].effective_until: (missing): is"
                " required: what is committed is due at an end; add it"
            ),
        ],
    ),
    (
        "amount: 2000000}",
        "amount: 2000000, units: 5}",
        [
            (
                "catalog.yaml:101: supplier_commitments[0].tranches[0]: '2000000': must commit either an"
                " `amount` of money or `units` with their `unit`; write one of them"
            ),
            (
                "catalog.yaml:102: supplier_commitments[0].tranches[1]: 'USD': the tranches of a commitment"
                " are all in money or all in one unit; write two commitments"
            ),
        ],
    ),
    (
        "amount: 2000000}",
        "units: 5}",
        [
            (
                "catalog.yaml:101: supplier_commitments[0].tranches[0].unit: (missing): units and their unit"
                " go together; write both or none"
            ),
            (
                "catalog.yaml:102: supplier_commitments[0].tranches[1]: 'USD': the tranches of a commitment"
                " are all in money or all in one unit; write two commitments"
            ),
        ],
    ),
    (
        "amount: 2000000}",
        "units: 5, unit: PTU}",
        [
            (
                "catalog.yaml:102: supplier_commitments[0].tranches[1]: 'USD': the tranches of a commitment"
                " are all in money or all in one unit; write two commitments"
            ),
        ],
    ),
    (
        "shortfall_rule: roll_over",
        "shortfall_rule: forfeit",
        [
            (
                "catalog.yaml:98: supplier_commitments[0].roll_over_cap_ratio: '0.25': only holds with"
                " `shortfall_rule: roll_over`, not forfeit"
            ),
            (
                "catalog.yaml:99: supplier_commitments[0].roll_over_until: '2028-07-01T00:00Z': only holds"
                " with `shortfall_rule: roll_over`, not forfeit"
            ),
        ],
    ),
    (
        "roll_over_until: 2028-07-01",
        "roll_over_until: 2026-07-01",
        [
            (
                "catalog.yaml:99: supplier_commitments[0].roll_over_until: '2026-07-01T00:00Z': nothing could"
                " roll over: the first tranche ends at 2027-01-01T00:00Z; name a later one"
            ),
        ],
    ),
    (
        "supplier: cirrus\n    currency: USD\n    draws",
        "supplier: cirus\n    currency: USD\n    draws",
        [
            (
                "catalog.yaml:94: supplier_commitments[0].supplier: 'cirus': no such supplier in this"
                " catalog; known are cirrus, northstar"
            ),
        ],
    ),
    (
        "rate: 1.0931",
        "rate: 0",
        [
            (
                "catalog.yaml:108: exchange_rates[0].rates[0].rate: '0': must be more than 0: a rate of 0"
                " would make every amount vanish"
            ),
        ],
    ),
    (
        "rate: 1.081234567891",
        "rate: 1.0812345678912",
        [
            (
                "catalog.yaml:109: exchange_rates[0].rates[1].rate: '1.0812345678912': has more than 12"
                " decimals; round an exchange rate to at most 12"
            ),
        ],
    ),
    (
        "{effective_from: 2026-02-01, rate: 1.0931}",
        "{effective_from: 2026-02-15, rate: 1.0931}",
        [
            (
                "catalog.yaml:108: exchange_rates[0].rates[0].effective_from: '2026-02-15T00:00Z': an average"
                " holds for a month: write 2026-02-01"
            ),
        ],
    ),
    (
        "{effective_from: 2026-02-01, rate: 1.0931}",
        "{effective_from: 2026-01-01, rate: 1.0931}",
        [
            (
                "catalog.yaml:109: exchange_rates[0].rates[1].effective_from: '2026-01-01T00:00Z': already"
                " has a rate at catalog.yaml:108; keep one of them"
            ),
        ],
    ),
    (
        "to: USD, kind: contract",
        "to: EUR, kind: contract",
        [
            "catalog.yaml:110: exchange_rates[1].to: 'EUR': is the currency itself; name another one",
        ],
    ),
    (
        "  - from: EUR\n",
        "  - fro: EUR\n",
        [
            "catalog.yaml:104: exchange_rates[0].fro: 'EUR': is not a field here; did you mean from?",
            "catalog.yaml:104: exchange_rates[0].from: (missing): is required; add it",
        ],
    ),
]


@pytest.mark.parametrize(
    ("old", "new", "expected"), BAD, ids=[f"{i}-{row[1][:30]}" for i, row in enumerate(BAD)]
)
def test_a_fault_of_the_supply_side_names_file_line_field_value_and_remedy(
    tmp_path: Path, old: str, new: str, expected: list[str]
) -> None:
    assert SOUND.count(old) == 1
    faults = [str(fault) for fault in read_folder(folder_of(tmp_path, SOUND.replace(old, new)))[1]]
    assert faults == expected


def test_a_carve_out_of_two_pools_is_refused(tmp_path: Path) -> None:
    content = SOUND.replace(
        "  - pool: tokens\n",
        "  - pool: tokens\n    carve_outs: [{carve_out: research, units: {input: 1}, effective_from: 2026-01-01}]\n",
    )
    assert [str(fault) for fault in read_folder(folder_of(tmp_path, content))[1]] == [
        "catalog.yaml:70: capacity_contracts[1].carve_outs[0].carve_out: 'research': is the name of a "
        "carve-out of another pool (catalog.yaml:41), and events name either; choose another name"
    ]


# ---- plans -------------------------------------------------------------------------------------------


def test_a_plan_of_the_supply_side_reads_well(tmp_path: Path) -> None:
    edits = [
        ("idle_policy: entitlement", "idle_policy: burn"),
        ("lead_time_days: 90", "lead_time_days: 120"),
        ("fee_per_unit_hour: 2.5", "fee_per_unit_hour: 2.75"),
        ("carve_out: research, units: 8", "carve_out: research, units: 16"),
        ("multiplier: 1.1", "multiplier: 1.2"),
        ("{pool: block, units: 20.5}", "{pool: block, units: 46.5}"),
        ("amount: 2000000", "amount: 2500000"),
        ("rate: 1.0931", "rate: 1.0932"),
    ]
    content = SOUND
    for old, new in edits:
        assert SOUND.count(old) == 1
        content = content.replace(old, new)
    made = plan(objects_of(tmp_path / "a"), objects_of(tmp_path / "b", content), base_revision=1, at=AT)
    assert made.lines() == [
        "~ capacity contract block",
        "    ~ carve_outs research from 2026-01-15T00:07Z units all: 8 -> 16",
        "    ~ idle_policy: entitlement -> burn",
        "    ~ lead_time_days: 90 -> 120",
        "    ~ steps from 2026-02-01T00:00Z fee_per_unit_hour: 2.5 -> 2.75",
        "  ! affects usage since 2026-01-01T00:00Z",
        "~ capacity contract tokens",
        "    ~ dimensions input multipliers region/us-east from 2026-01-01T00:00Z multiplier: 1.1 -> 1.2",
        "  ! affects usage since 2026-01-01T00:00Z",
        "~ contract acme-2026",
        "    ~ entitlements block units: 20.5 -> 46.5",
        "  ! affects usage since 2026-01-01T00:00Z",
        "~ exchange rate EUR/USD/month_average",
        "    ~ rates from 2026-02-01T00:00Z rate: 1.0931 -> 1.0932",
        "  ! affects translated amounts since 2026-02-01T00:00Z",
        "~ supplier commitment cirrus-2026",
        "    ~ tranches from 2027-01-01T00:00Z amount: 2000000 -> 2500000",
        "  * note: pool block is oversubscribed: from 2026-03-10T12:01Z on entitlements p"
        "romise 49 accelerator, and 48 are contracted",
        "0 to add, 5 to change, 0 to end",
    ]


def test_buying_terms_alone_change_nothing_that_was_reported(tmp_path: Path) -> None:
    before = objects_of(tmp_path / "a")
    after = objects_of(tmp_path / "b", SOUND.replace("lead_time_days: 90", "lead_time_days: 120"))
    assert plan(before, after, base_revision=1, at=AT).lines() == [
        "~ capacity contract block",
        "    ~ lead_time_days: 90 -> 120",
        "0 to add, 1 to change, 0 to end",
    ]


def test_what_is_promised_beyond_the_units_of_a_later_step_is_noted_from_there_on(tmp_path: Path) -> None:
    """From February on 48; bolt's 2.5 end with June: 46 + 2.5 is too much until then, 49 from August on."""
    promises = (
        "- {pool: block, units: 46, effective_until: 2026-08-01}\n"
        "      - {pool: block, units: 49, effective_from: 2026-08-01}\n"
        "      - {pool: tokens, dimension: input, units: 4}"
    )
    made = objects_of(tmp_path, SOUND.replace("- {pool: block, units: 20.5}", promises))

    def noted(at: str) -> list[str]:
        return list(oversubscribed(books(made, 1), instant(at)))

    start = "pool block is oversubscribed: from"
    assert noted("2026-03-10") == [
        f"{start} 2026-03-10T00:00Z on entitlements promise 48.5 accelerator, and 48 are contracted"
    ]
    assert noted("2026-07-01") == [
        f"{start} 2026-08-01T00:00Z on entitlements promise 49 accelerator, and 48 are contracted"
    ]
    assert noted("2025-12-01") == [
        f"{start} 2026-01-01T00:00Z on entitlements promise 48.5 accelerator, and 24 are contracted"
    ]


def test_what_is_promised_beyond_the_end_of_a_pool_is_not_noted(tmp_path: Path) -> None:
    """20.5 of 48 units, open, of a pool whose contract ends: then it has none, and nobody is promised them twice."""
    books_ = books(objects_of(tmp_path), 1)
    steps = books_.capacity_steps.with_columns(
        pl.col("effective_until").fill_null(pl.lit(instant("2028-01-01")))
    )
    ended = replace(books_, capacity_steps=steps)
    assert (ended.entitlements["effective_until"].is_null()).any()
    assert list(oversubscribed(ended, instant("2026-03-10"))) == []

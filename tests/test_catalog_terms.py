"""The demand side of the catalog without a database: good terms become books, bad ones a list of what to mend."""

import json
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metering.catalog import books, plan
from metering.catalog.objects import CatalogObjects, body, from_body
from metering.catalog.terms import Fee
from metering.core.effective import slices
from metering.core.fees import fees_earned
from metering.meters import METERS
from metering.periods import DAY, Period
from tests.test_catalog import AT, SOUND, faults_of, instant, objects_of

TERMS = """\
customers:
  - {customer: acme, name: Acme,
     dated: [{effective_from: 2026-01-01, kind: paying, segment: enterprise}]}
  - {customer: cobb, name: Cobb, dated: [{effective_from: 1970-01-01, kind: paying, segment: team}]}
price_books:
  - book: standard
    currency: USD
    hours:
      - {hours: night, zone: Europe/Berlin, days: [mon, tue], from: "22:00", until: "06:00"}
      - {hours: late, zone: America/New_York, days: [wed], from: "00:00", until: "06:00"}
    prices:
      - {product: large, effective_from: 2026-01-01,
         per_million: {uncached_input_tokens: 3, output_tokens: 15}}
      - {product: large, hours: night, effective_from: 2026-01-01, per_million: {output_tokens: 9}}
      - product: code
        effective_from: 2026-01-01
        meters: [uncached_input_tokens, output_tokens]
        model: graduated
        free_units: 1_000_000
        tiers:
          - {up_to: 100_000_000, per_million: 10.00, flat_amount: 5.00}
          - {up_to: 200_000_000, per_million: 9.00}
          - {per_million: 8.00}
      - {product: images, effective_from: 2026-01-01, meters: [requests], model: package,
         package: {units: 1000, amount: 5}}
    percentages:
      - {charge: support, of: charge, product: large, ratio: 0.10, effective_from: 2026-01-01}
  - book: overage
    currency: USD
    prices: [{product: large, effective_from: 2026-01-01, per_million: {output_tokens: 20}}]
plans:
  - plan: team
    name: Team
    price_book: standard
    fees: [{fee: team plan, amount: 100.00, per: month, currency: USD}]
    limits:
      - {limit: week, holder: seat, window: {fixed_minutes: 10080, anchor: 2026-01-05},
         quantity: 500, weights: {output_tokens: 1}}
    margin_floor_ratio: 0.10
contracts:
  - {contract: cobb-team, customer: cobb, plan: team, effective_from: 2026-01-01}
  - contract: acme-2026
    customer: acme
    plan: team
    price_book: standard
    effective_from: 2026-01-01
    effective_until: 2028-01-01
    billing: {anchor_day: 31, zone: America/New_York, months: 3}
    prices:
      - {product: large, effective_from: 2026-02-01, per_million: {output_tokens: 14}}
    discounts:
      - {discount: code deal, product: code, ratio: 0.20}
      - {discount: loyalty, ratio: 0.10}
      - {discount: launch, amount_per_period: 100.00}
    minimum_per_period: 950.00
    maximum_per_period: 50000.00
    fees:
      - {fee: seats, kind: seat, amount: 20.00, quantity: 120, currency: USD}
      - {fee: support, amount_per_month: 50.00, currency: USD}
    commitments:
      - commitment: ramp
        products: [large]
        paid: in_arrears
        shortfall_rule: true_up
        overage_book: overage
        tranches:
          - {effective_from: 2026-01-01, effective_until: 2027-01-01, amount: 1000.00}
          - {effective_from: 2027-01-01, effective_until: 2028-01-01, amount: 2000.00}
    credits:
      - {credit: promo, kind: promotional, amount: 100.00, effective_until: 2026-07-01,
         products: [large]}
    limits:
      - {limit: five hours, holder: project, window: {anchored_minutes: 300},
         quantity: 1_000, weights: {uncached_input_tokens: 0.5, output_tokens: 5}}
"""

_METERS = ", ".join(METERS)
#: What replaces what in TERMS (once), and the faults that must be listed, whole but for the name of the file.
BAD: list[tuple[str, str, list[str]]] = [
    (
        "{up_to: 200_000_000, per_million: 9.00}",
        "{up_to: 50_000_000, per_million: 9.00}",
        [
            "22: price_books[0].prices[2].tiers[1].up_to: '50000000': must be larger than the "
            "up_to of the tier before (100000000), where this one starts: they would overlap; put"
            " the tiers in order",
        ],
    ),
    (
        "{up_to: 100_000_000, per",
        "{up_to: 0, per",
        [
            "21: price_books[0].prices[2].tiers[0].up_to: '0': must be more than 0: the first "
            "tier starts at 0; what is free is `free_units`",
        ],
    ),
    (
        "{up_to: 200_000_000, per_million: 9.00}",
        "{per_million: 9.00}",
        [
            "22: price_books[0].prices[2].tiers[1].up_to: (missing): is required: only the last "
            "tier is open, and this one leaves the next nothing; add it",
        ],
    ),
    (
        "- {per_million: 8.00}",
        "- {up_to: 300_000_000, per_million: 8.00}",
        [
            "23: price_books[0].prices[2].tiers[2].up_to: '300000000': leaves units above "
            "300000000 without a price; leave it out, so that the last tier is open",
        ],
    ),
    (
        "- {per_million: 8.00}",
        "- {from: 300_000_000, per_million: 8.00}",
        [
            "23: price_books[0].prices[2].tiers[2].from: '300_000_000': is not a field here; "
            "known are up_to, per_million, each, flat_amount",
        ],
    ),
    (
        "- {per_million: 8.00}",
        "- {flat_amount: 8.00}",
        [
            "23: price_books[0].prices[2].tiers[2]: (missing): must have a price, either "
            "`per_million` or `each` (of one unit); write one of them",
        ],
    ),
    (
        "- {per_million: 8.00}",
        "- {per_million: 8.00, each: 1}",
        [
            "23: price_books[0].prices[2].tiers[2]: '1': must have a price, either `per_million` "
            "or `each` (of one unit); write one of them",
        ],
    ),
    (
        "model: graduated\n",
        "model: unit\n",
        [
            "15: price_books[0].prices[2].per_million: (missing): is required by model unit; add it",
            "17: price_books[0].prices[2].meters: (a list): only holds where units are counted; "
            "say `model: graduated`, volume or package",
            "19: price_books[0].prices[2].free_units: '1000000': only holds where units are "
            "counted; say `model: graduated`, volume or package",
            "20: price_books[0].prices[2].tiers: (a list): does not go with model unit; take it "
            "out, or say `model: graduated` or `model: volume`",
        ],
    ),
    (
        "model: package,\n         package: {units: 1000, amount: 5}",
        "model: package",
        [
            "24: price_books[0].prices[3].package: (missing): is required by model package; add it",
        ],
    ),
    (
        "package: {units: 1000,",
        "package: {units: 0,",
        [
            "25: price_books[0].prices[3].package.units: '0': must be more than 0",
        ],
    ),
    (
        "meters: [requests]",
        "meters: []",
        [
            "24: price_books[0].prices[3].meters: (missing): is required: name the meters that "
            "are counted together; add it",
        ],
    ),
    (
        "meters: [requests]",
        "meters: [requests, request, requests]",
        [
            "24: price_books[0].prices[3].meters[1]: 'request': is not a meter; meters are "
            f"{_METERS} and requests",
            "24: price_books[0].prices[3].meters[2]: 'requests': is named twice; keep one of them",
        ],
    ),
    (
        "    percentages:\n",
        "      - {product: code, effective_from: 2026-03-01, meters: [output_tokens], model: "
        "package, package: {units: 10, amount: 1}}\n    percentages:\n",
        [
            "26: price_books[0].prices[4].effective_from: '2026-03-01T00:00Z': overlaps "
            "catalog.yaml:15 (2026-01-01T00:00Z to open); give that one `effective_until: "
            "2026-03-01T00:00Z` or start this one later",
        ],
    ),
    (
        "    percentages:\n",
        "      - {product: large, hours: night, effective_from: 2026-03-01, per_million: "
        "{uncached_input_tokens: 1}}\n    percentages:\n",
        [
            "26: price_books[0].prices[4].effective_from: '2026-03-01T00:00Z': overlaps "
            "catalog.yaml:14 (2026-01-01T00:00Z to open); give that one `effective_until: "
            "2026-03-01T00:00Z` or start this one later",
        ],
    ),
    (
        "    percentages:\n",
        "      - {product: code, tier: batch, effective_from: 2026-01-01, reset: day, meters:"
        " [uncached_input_tokens, output_tokens], model: volume, tiers: [{per_million: 1}]}"
        "\n    percentages:\n",
        [
            "26: price_books[0].prices[4].reset: 'day': the price at catalog.yaml:15 counts the "
            "same units and begins again with the period; say the same",
        ],
    ),
    (
        "    percentages:\n",
        "      - {product: code, above_input_tokens: 200000, effective_from: 2026-01-01, "
        "meters: [output_tokens], model: volume, tiers: [{per_million: 1}]}\n    percentages:\n",
        [
            "26: price_books[0].prices[4].meters: (a list): prices output_tokens, "
            "reasoning_tokens together with other meters than the price at catalog.yaml:15 for "
            "another context; name the same ones",
        ],
    ),
    (
        "product: large, hours: night",
        "product: large, hours: nite",
        [
            "14: price_books[0].prices[1].hours: 'nite': book standard has no such hours; known "
            "are late, night",
        ],
    ),
    (
        "zone: Europe/Berlin",
        "zone: Europe/Berlim",
        [
            "9: price_books[0].hours[0].zone: 'Europe/Berlim': is not a time zone; did you mean "
            "Europe/Berlin?",
        ],
    ),
    (
        "zone: America/New_York, months: 3",
        "zone: Mars/Base, months: 3",
        [
            "48: contracts[1].billing.zone: 'Mars/Base': is not a time zone; write one such as "
            "Europe/Berlin or UTC",
        ],
    ),
    (
        "zone: America/New_York, months: 3",
        "zone: localtime, months: 3",  # on another machine another time
        [
            "48: contracts[1].billing.zone: 'localtime': is not a time zone; write one such as "
            "Europe/Berlin or UTC",
        ],
    ),
    (
        'from: "22:00"',
        'from: "22:10"',
        [
            "9: price_books[0].hours[0].from: '22:10': is not on a quarter hour; use minute 00, 15, 30 or 45",
        ],
    ),
    (
        'from: "22:00"',
        'from: "25:00"',
        [
            "9: price_books[0].hours[0].from: '25:00': must be a time of the day in quotes, "
            '"00:00" to "24:00"',
        ],
    ),
    (
        'from: "22:00"',
        'from: "24:00"',
        [
            "9: price_books[0].hours[0].from: '24:00': is the end of the day; write \"00:00\" of "
            "the day after",
        ],
    ),
    (
        "      - {hours: late",
        '      - {hours: night, zone: Europe/Berlin, days: [wed, tue], from: "05:45", until: '
        '"07:00"}\n      - {hours: late',
        [
            "10: price_books[0].hours[1].from: '05:45': hours night already hold on tue at 05:45 "
            "by catalog.yaml:9; an hour is in them once",
        ],
    ),
    (
        "      - {hours: late",
        '      - {hours: night, zone: Europe/Paris, days: [fri], from: "05:45", until: '
        '"07:00"}\n      - {hours: late',
        [
            "10: price_books[0].hours[1].zone: 'Europe/Paris': hours night are in Europe/Berlin "
            "at catalog.yaml:9; give these another name, or the same zone",
        ],
    ),
    (
        'days: [wed], from: "00:00"',
        'days: [wed, wed], from: "00:00"',
        [
            "10: price_books[0].hours[1].days[1]: 'wed': is named twice; keep one of them",
        ],
    ),
    (
        "      - product: code\n",
        "      - {product: large, hours: late, effective_from: 2026-01-01, per_million: "
        "{output_tokens: 7}}\n      - product: code\n",
        [
            "15: price_books[0].prices[2].hours: 'late': has hours in common with night, for "
            "which catalog.yaml:14 has a price too; one hour has one price: change the hours",
        ],
    ),
    (
        "      - {charge: support",
        "      - {charge: support, of: charge, product: large, ratio: 0.2, effective_from: "
        "2026-05-01}\n      - {charge: support",
        [
            "27: price_books[0].percentages[0].effective_from: '2026-05-01T00:00Z': overlaps "
            "catalog.yaml:28 (2026-01-01T00:00Z to open); give that one `effective_until: "
            "2026-05-01T00:00Z` or start this one later",
        ],
    ),
    (
        "percentages:\n",
        "percentages:\n      - {charge: cost plus, of: cost, ratio: 1.2, effective_from: 2026-01-01}\n",
        [
            "52: contracts[1].discounts: 'standard': charges a percentage of cost (cost-plus), "
            "which is only known with the bills, so nothing may be measured on it: take discounts"
            " out, or name another book",
            "56: contracts[1].minimum_per_period: 'standard': charges a percentage of cost "
            "(cost-plus), which is only known with the bills, so nothing may be measured on it: "
            "take minimum_per_period out, or name another book",
            "57: contracts[1].maximum_per_period: 'standard': charges a percentage of cost "
            "(cost-plus), which is only known with the bills, so nothing may be measured on it: "
            "take maximum_per_period out, or name another book",
            "61: contracts[1].commitments: 'standard': charges a percentage of cost (cost-plus), "
            "which is only known with the bills, so nothing may be measured on it: take "
            "commitments out, or name another book",
            "70: contracts[1].credits: 'standard': charges a percentage of cost (cost-plus), "
            "which is only known with the bills, so nothing may be measured on it: take credits "
            "out, or name another book",
        ],
    ),
    (
        "price_book: standard\n    fees",
        "price_book: standrad\n    fees",
        [
            "34: plans[0].price_book: 'standrad': no such price book in this catalog; known are "
            "overage, standard",
        ],
    ),
    (
        "plan: team, effective_from",
        "plan: tame, effective_from",
        [
            "41: contracts[0].plan: 'tame': no such plan in this catalog; known are team",
        ],
    ),
    (
        "customer: cobb, plan: team,",
        "customer: cobb,",
        [
            "41: contracts[0].price_book: (missing): is required: name a price book, or a `plan`,"
            " which has one",
        ],
    ),
    (
        "anchor_day: 31",
        "anchor_day: 0",
        [
            "48: contracts[1].billing.anchor_day: '0': must be a day of the month, 1 to 31; in a "
            "shorter month its last day is taken",
        ],
    ),
    (
        "anchor_day: 31",
        "anchor_day: 32",
        [
            "48: contracts[1].billing.anchor_day: '32': must be a day of the month, 1 to 31; in a"
            " shorter month its last day is taken",
        ],
    ),
    (
        "months: 3",
        "months: 0",
        [
            "48: contracts[1].billing.months: '0': must be more than 0: a period is a month or "
            "several; 12 is a year",
        ],
    ),
    (
        "plan: team, effective_from: 2026-01-01}",
        "plan: team, effective_from: 1970-01-01, billing: {zone: Africa/Monrovia}}",
        [
            "41: contracts[0].billing.zone: 'Africa/Monrovia': its days do not begin on a quarter"
            " hour of UTC in 1970-01 (as from 1970-01-01T00:00Z on they must); begin later, or "
            "name another zone",
        ],
    ),
    (
        "effective_from: 2026-01-01\n    effective_until: 2028",
        "effective_from: 2026-01-01T00:05\n    effective_until: 2028",
        [
            "46: contracts[1].effective_from: '2026-01-01T00:05': is not on a quarter hour; use "
            "minute 00, 15, 30 or 45",
        ],
    ),
    (
        "discounts:\n",
        "discounts:\n      - {discount: more, product: code, ratio: 0.05, effective_from: 2026-03-01}\n",
        [
            "52: contracts[1].discounts[0].effective_from: '2026-03-01T00:00Z': overlaps "
            "catalog.yaml:53 (2026-01-01T00:00Z to 2028-01-01T00:00Z); give that one "
            "`effective_until: 2026-03-01T00:00Z` or start this one later",
        ],
    ),
    (
        "discounts:\n",
        "discounts:\n      - {discount: more, ratio: 0.05, effective_from: 2026-03-01}\n",
        [
            "52: contracts[1].discounts[0].effective_from: '2026-03-01T00:00Z': overlaps "
            "catalog.yaml:54 (2026-01-01T00:00Z to 2028-01-01T00:00Z); give that one "
            "`effective_until: 2026-03-01T00:00Z` or start this one later",
        ],
    ),
    (
        "{discount: loyalty, ratio: 0.10}",
        "{discount: loyalty, ratio: 1.10}",
        [
            "53: contracts[1].discounts[1].ratio: '1.10': is larger than 1; a ratio is 0..1, so "
            "20 percent is 0.20",
        ],
    ),
    (
        "{discount: loyalty, ratio: 0.10}",
        "{discount: loyalty}",
        [
            "53: contracts[1].discounts[1]: 'loyalty': takes off either a `ratio` or an "
            "`amount_per_period`; write one of them",
        ],
    ),
    (
        "{discount: launch, ",
        "{discount: launch, product: code, ",
        [
            "54: contracts[1].discounts[2].product: 'code': a fixed amount is off the whole "
            "contract; leave the product out, or write a ratio",
        ],
    ),
    (
        "of: charge, product: large",
        "of: charge, product: lagre",
        [
            "27: price_books[0].percentages[0].product: 'lagre': no such product in this catalog; "
            "known are code, images, large",
        ],
    ),
    (
        "quantity: 500, weights: {output_tokens: 1}}",
        "quantity: 500, products: [], weights: {output_tokens: 1}}",  # none, or all?
        ["38: plans[0].limits[0].products: (a list): must not be empty"],
    ),
    (
        "product: code, ratio",
        "product: coed, ratio",
        [
            "52: contracts[1].discounts[0].product: 'coed': no such product in this catalog; "
            "known are code, images, large",
        ],
    ),
    (
        "minimum_per_period: 950.00",
        "minimum_per_period: 60000.00",
        [
            "55: contracts[1].minimum_per_period: '60000': is larger than maximum_per_period "
            "(50000); lower it",
        ],
    ),
    (
        "amount: 20.00, quantity",
        "quantity",
        [
            "58: contracts[1].fees[0].amount: (missing): a fee says either `amount`, with what it"
            " is `per`, or `amount_per_month`; write one of them",
        ],
    ),
    (
        "amount_per_month: 50.00",
        "amount_per_month: 50.00, per: year",
        [
            "59: contracts[1].fees[1].per: 'year': does not go with amount_per_month; write "
            "`amount` in its place",
        ],
    ),
    (
        "price_book: standard\n    fees: [{fee: team plan, amount: 100.00, per: month",
        "price_book: standard\n    fees: [{fee: team plan, amount: 100.00, per: span",
        [
            "35: plans[0].fees[0].per: 'span': is for one contract's own span; write the fee into"
            " the contract",
        ],
    ),
    (
        "prices:\n      - {product: large, effective_from: 2026-02-01",
        "prices:\n      - {product: large, effective_from: 2026-03-01, per_million: "
        "{output_tokens: 13}}\n      - {product: large, effective_from: 2026-02-01",
        [
            "50: contracts[1].prices[0].effective_from: '2026-03-01T00:00Z': overlaps "
            "catalog.yaml:51 (2026-02-01T00:00Z to open); give that one `effective_until: "
            "2026-03-01T00:00Z` or start this one later",
        ],
    ),
    (
        "effective_from: 2026-02-01, per",
        "effective_from: 2025-02-01, per",
        [
            "50: contracts[1].prices[0].effective_from: '2025-02-01T00:00Z': lies before the "
            "contract's (2026-01-01T00:00Z); move one of them",
        ],
    ),
    (
        "{effective_from: 2027-01-01, effective_until: 2028-01-01, amount: 2000.00}",
        "{effective_from: 2026-10-01, effective_until: 2028-01-01, amount: 2000.00}",
        [
            "68: contracts[1].commitments[0].tranches[1].effective_from: '2026-10-01T00:00Z': "
            "overlaps catalog.yaml:67 (2026-01-01T00:00Z to 2027-01-01T00:00Z); give that one "
            "`effective_until: 2026-10-01T00:00Z` or start this one later",
        ],
    ),
    (
        "{effective_from: 2027-01-01, effective_until: 2028-01-01, amount: 2000.00}",
        "{effective_from: 2027-01-01, amount: 2000.00}",
        [
            "68: contracts[1].commitments[0].tranches[1].effective_until: (missing): is required:"
            " what is committed is due at an end; add it",
        ],
    ),
    (
        "{effective_from: 2027-01-01, effective_until: 2028-01-01, amount: 2000.00}",
        "{effective_from: 2027-01-01, effective_until: 2029-01-01, amount: 2000.00}",
        [
            "68: contracts[1].commitments[0].tranches[1].effective_until: '2029-01-01T00:00Z': "
            "lies after the contract's (2028-01-01T00:00Z); move one of them",
        ],
    ),
    (
        "{effective_from: 2027-01-01, effective_until: 2028-01-01, amount: 2000.00}",
        "{effective_from: 2027-01-01, effective_until: 2028-01-01, units: 10}",
        [
            "68: contracts[1].commitments[0].tranches[1]: '10': the tranches of a commitment are "
            "all in money or all in units; write two commitments",
        ],
    ),
    (
        "amount: 1000.00}",
        "amount: 1000.00, units: 5}",
        [
            "61: contracts[1].commitments[0].meters: (missing): is required: name the meters of "
            "which units are committed; add it",
            "67: contracts[1].commitments[0].tranches[0]: '1000': must commit either an `amount` "
            "of money or `units`; write one of them",
            "68: contracts[1].commitments[0].tranches[1]: '2000': the tranches of a commitment "
            "are all in money or all in units; write two commitments",
        ],
    ),
    (
        "amount: 1000.00}",
        "amount: 0}",
        [
            "67: contracts[1].commitments[0].tranches[0]: '0': must be more than 0; take the tranche out",
        ],
    ),
    (
        "    commitments:\n",
        "    commitments:\n"
        "      - {commitment: both, meters: [output_tokens, uncached_input_tokens], paid: ahead, "
        "shortfall_rule: forfeit, tranches: [{effective_from: 2026-01-01, effective_until: 2027-01-01, units: 5}]}\n"
        "      - {commitment: output, products: [large], meters: [output_tokens], paid: ahead, "
        "shortfall_rule: forfeit, tranches: [{effective_from: 2026-06-01, effective_until: 2027-06-01, units: 5}]}\n"
        "      - {commitment: later, products: [large], meters: [output_tokens], paid: ahead, "
        "shortfall_rule: forfeit, tranches: [{effective_from: 2027-01-01, effective_until: 2027-06-01, units: 5}]}\n"
        "      - {commitment: code, products: [code], meters: [output_tokens, requests], paid: ahead, "
        "shortfall_rule: forfeit, tranches: [{effective_from: 2027-01-01, effective_until: 2027-07-01, units: 5}]}\n",
        [
            "62: contracts[1].commitments[1].meters: 'output_tokens': count output_tokens that commitment both "
            "counts too, beside other meters: no unit counts twice; name the same meters in both, or none of each "
            "other's",
        ],
    ),
    (
        "        paid: in_arrears\n",
        "        paid: in_arrears\n        meters: [output_tokens]\n",
        [
            "64: contracts[1].commitments[0].meters: (a list): only holds where units are "
            "committed; take it out, or write `units` in place of amounts",
        ],
    ),
    (
        "        paid: in_arrears\n",
        "        paid: in_arrears\n        currency: EUR\n",
        [
            "64: contracts[1].commitments[0].currency: 'EUR': is not a field here; known are "
            "commitment, products, meters, paid, shortfall_rule, shortfall_ratio, "
            "roll_over_cap_ratio, roll_over_until, overage_book, tranches",
        ],
    ),
    (
        "shortfall_rule: true_up",
        "shortfall_rule: true_up\n        roll_over_cap_ratio: 0.5",
        [
            "65: contracts[1].commitments[0].roll_over_cap_ratio: '0.5': only holds with "
            "`shortfall_rule: roll_over`, not true_up",
        ],
    ),
    (
        "shortfall_rule: true_up",
        "shortfall_rule: roll_over\n        roll_over_until: 2026-06-01",
        [
            "65: contracts[1].commitments[0].roll_over_until: '2026-06-01T00:00Z': nothing could "
            "roll over: the first tranche ends at 2027-01-01T00:00Z; name a later one",
        ],
    ),
    (
        "overage_book: overage",
        "overage_book: over",
        [
            "65: contracts[1].commitments[0].overage_book: 'over': no such price book in this "
            "catalog; known are overage, standard",
        ],
    ),
    (
        "book: overage\n    currency: USD",
        "book: overage\n    currency: EUR",
        [
            "65: contracts[1].commitments[0].overage_book: 'overage': is in EUR, and the "
            "contract's book standard in USD; a commitment is in the currency of its contract: "
            "name a book in USD",
        ],
    ),
    (
        "products: [large]\n",
        "products: [larg]\n",
        [
            "62: contracts[1].commitments[0].products[0]: 'larg': no such product in this "
            "catalog; known are code, images, large",
        ],
    ),
    (
        "amount: 100.00, effective_until",
        "effective_until",
        [
            "70: contracts[1].credits[0].amount: (missing): is required; add it",
        ],
    ),
    (
        "amount: 100.00, effective_until",
        "amount: 0, effective_until",
        [
            "70: contracts[1].credits[0].amount: '0': must be more than 0; take the credit out",
        ],
    ),
    (
        "    credits:\n",
        "    credits:\n      - {credit: promo, kind: prepaid, amount: 5}\n",
        [
            "71: contracts[1].credits[1].credit: 'promo': is the name of another one of this "
            "contract; choose another name",
        ],
    ),
    (
        "anchored_minutes: 300",
        "anchored_minutes: 0",
        [
            "73: contracts[1].limits[0].window.anchored_minutes: '0': must be more than 0: in a "
            "window without length nothing can be used",
        ],
    ),
    (
        "{anchored_minutes: 300}",
        "{}",
        [
            "73: contracts[1].limits[0].window: (missing): must be one of `minute: true`, "
            "`anchored_minutes` (from the first use on) or `fixed_minutes` with an `anchor`",
        ],
    ),
    (
        "{anchored_minutes: 300}",
        "{anchored_minutes: 300, minute: true}",
        [
            "73: contracts[1].limits[0].window: 'anchored_minutes and minute': must be one of "
            "`minute: true`, `anchored_minutes` (from the first use on) or `fixed_minutes` with "
            "an `anchor`",
        ],
    ),
    (
        "{anchored_minutes: 300}",
        "{anchored_minutes: 300, anchor: 2026-01-05}",
        [
            "73: contracts[1].limits[0].window.anchor: '2026-01-05T00:00Z': only holds with "
            "`fixed_minutes`: an anchored window begins at the first use; take it out",
        ],
    ),
    (
        ", anchor: 2026-01-05}",
        "}",
        [
            "37: plans[0].limits[0].window.anchor: (missing): is required: say when one of the "
            "fixed windows begins; add it",
        ],
    ),
    (
        "fixed_minutes: 10080",
        "fixed_minutes: 0",
        [
            "37: plans[0].limits[0].window.fixed_minutes: '0': must be more than 0: in a window "
            "without length nothing can be used",
        ],
    ),
    (
        "quantity: 1_000,",
        "quantity: 0,",
        [
            "74: contracts[1].limits[0].quantity: '0': must be more than 0; a limit of 0 would "
            "turn everything away",
        ],
    ),
    (
        "quantity: 1_000,",
        "quantity: 1e3,",
        [
            "74: contracts[1].limits[0].quantity: '1e3': must be a whole number, without quotes "
            "or decimals; 1_000_000 is one too",
        ],
    ),
    (
        "uncached_input_tokens: 0.5, ",
        "input_tokens: 0.5, ",
        [
            "74: contracts[1].limits[0].weights.input_tokens: 'input_tokens': is not a meter; "
            "meters are "
            f"{_METERS} and requests",
        ],
    ),
    (
        "uncached_input_tokens: 0.5, output_tokens: 5",
        "output_tokens: 0",
        [
            "74: contracts[1].limits[0].weights: (missing): counts nothing; give a meter a weight above 0",
        ],
    ),
    (
        "    limits:\n      - {limit: five hours",
        "    limits:\n      - {limit: five hours, holder: project, window: {minute: true}, "
        "quantity: 5, weights: {requests: 1}, effective_until: 2026-03-01}\n      - {limit: "
        "five hours, effective_from: 2026-03-01",
        [
            "75: contracts[1].limits[1].weights: 'five hours': are not those of the same limit at"
            " catalog.yaml:73; a limit weighs the same over its life: write the same, or choose "
            "another name",
        ],
    ),
    (
        "    limits:\n      - {limit: week",
        "    limits:\n      - {limit: week, holder: seat, window: {minute: true}, quantity: 5,"
        " weights: {output_tokens: 1}}\n      - {limit: week",
        [
            "38: plans[0].limits[1].effective_from: '1970-01-01T00:00Z': overlaps catalog.yaml:37"
            " (1970-01-01T00:00Z to open); keep one of them",
        ],
    ),
    (
        "  - book: overage\n",
        "  - book: standard for acme-2026\n    currency: USD\n    prices: [{product: large, "
        "effective_from: 2026-01-01, per_million: {output_tokens: 20}}]\n  - book: overage\n",
        [
            "45: contracts[1].contract: 'acme-2026': the prices of this contract make a book "
            "'standard for acme-2026', and there is a price book of this name; rename one of them",
        ],
    ),
]


@pytest.mark.parametrize(
    ("old", "new", "expected"), BAD, ids=[f"{i}-{row[1].strip()[:30]}" for i, row in enumerate(BAD)]
)
def test_a_fault_of_terms_names_file_line_field_value_and_remedy(
    tmp_path: Path, old: str, new: str, expected: list[str]
) -> None:
    assert TERMS.count(old) == 1
    found = faults_of(tmp_path, catalog=TERMS.replace(old, new))
    assert found == [f"catalog.yaml:{fault}" for fault in expected]


def test_sound_terms_have_no_faults(tmp_path: Path) -> None:
    assert faults_of(tmp_path, catalog=TERMS) == []


# ---- books -------------------------------------------------------------------------------------------


def test_terms_become_frames(tmp_path: Path) -> None:
    made = books(objects_of(tmp_path, TERMS), 1)
    start, end = instant("2026-01-01"), instant("2028-01-01")
    assert made.contract_terms.drop("effective_from", "effective_until").rows() == [
        ("acme", "acme-2026", "team", "USD", 31, "America/New_York", 3, Decimal(950), Decimal(50_000)),
        ("cobb", "cobb-team", "team", "USD", 1, "UTC", 1, None, None),
    ]
    assert made.contracts.select("contract", "price_book", "margin_floor_ratio").rows() == [
        ("acme-2026", "standard for acme-2026", Decimal("0.1")),
        ("cobb-team", "standard", Decimal("0.1")),
    ]
    fees = made.fees.select("contract", "fee", "kind", "amount", "quantity", "per", "effective_until")
    assert fees.rows() == [
        ("acme-2026", "seats", "seat", 20, 120, "month", end),
        ("acme-2026", "support", "plan", 50, 1, "month", end),
        ("cobb-team", "team plan", "plan", 100, 1, "month", None),
    ]
    assert made.discounts.select("discount", "kind", "item", "ratio", "amount").rows() == [
        ("code deal", "line", "code", Decimal("0.2"), None),
        ("launch", "fixed", None, None, Decimal(100)),
        ("loyalty", "contract", None, Decimal("0.1"), None),
    ]
    tranches = made.commitments.select("commitment", "effective_from", "amount", "items", "overage_book")
    assert tranches.rows() == [
        ("ramp", start, 1000, ["large"], "overage"),
        ("ramp", instant("2027-01-01"), 2000, ["large"], "overage"),
    ]
    assert made.credit_grants.select("credit", "kind", "amount", "effective_until").rows() == [
        ("promo", "promotional", 100, instant("2026-07-01"))
    ]
    assert made.limits.select("contract", "plan", "limit", "holder", "window", "window_minutes").rows() == [
        ("acme-2026", None, "five hours", "project", "anchored", 300),
        ("acme-2026", "team", "week", "seat", "fixed", 10_080),
        ("cobb-team", "team", "week", "seat", "fixed", 10_080),
    ]
    weights = made.limit_weights.filter(limit="five hours").drop("contract", "limit")
    assert weights.rows() == [
        ("output_tokens", 10, 2),
        ("reasoning_tokens", 10, 2),
        ("uncached_input_tokens", 1, 2),
    ]


@settings(max_examples=6)
@given(st.lists(st.integers(-30, 400), min_size=2, max_size=2, unique=True), st.integers(1, 365))
def test_what_is_agreed_once_is_earned_once_whatever_contracts_interrupt_it(
    tmp_path_factory: pytest.TempPathFactory, days: list[int], ended: int
) -> None:
    """The contract left the catalog, and one that was agreed since holds for some days of it."""
    start = instant("2026-01-01")
    since, until, ended_at = (start + day * DAY for day in (*sorted(days), ended))
    entries = _interrupted(tmp_path_factory.mktemp("catalog", numbered=True), since, until, ended_at)
    made = books(CatalogObjects(entries), 2)
    spans = made.contracts.filter(contract="acme-2026")
    fees = made.fees.filter(pl.col("fee") == "block")
    assert fees.height == made.commitments.height == min(spans.height, 1)
    whole = Period("whole", start - 60 * DAY, start + 500 * DAY)
    earned = fees_earned(fees, made.contract_terms, slices(whole))
    assert earned["amount"].sum() == (3_000 if spans.height else 0)


def test_a_fee_and_a_commitment_that_another_contract_interrupts_stand_once(tmp_path: Path) -> None:
    march, june, september = (instant(f"2026-{month}-01") for month in ("03", "06", "09"))
    made = books(CatalogObjects(_interrupted(tmp_path, march, june, september)), 2)
    assert made.contracts.filter(contract="acme-2026").height == 2
    span = (instant("2026-01-01"), september)
    dated = ("effective_from", "effective_until", "amount")
    assert made.commitments.select("commitment", *dated).rows() == [("ramp", *span, 1000)]
    assert made.fees.filter(fee="block").select("fee", *dated).rows() == [("block", *span, 3000)]
    # a fee by month is earned while its contract holds
    assert made.fees.filter(fee="desk")["effective_from"].to_list() == [span[0], june]


def test_a_contract_that_left_the_catalog_may_be_older_than_its_customer_there(tmp_path: Path) -> None:
    entries = objects_of(tmp_path, TERMS).entries
    ended, customer = entries["contract", "acme-2026"], entries["customer", "acme"]
    dated = [customer.item.dated[0].model_copy(update={"effective_from": instant("2026-06-01")})]
    entries = {
        **entries,
        ("contract", "acme-2026"): replace(ended, ended_at=instant("2026-09-01")),
        ("customer", "acme"): replace(customer, item=customer.item.model_copy(update={"dated": dated})),
    }
    made = books(CatalogObjects(entries), 2)
    assert made.customers.filter(customer="acme")["effective_from"].to_list() == [instant("2026-06-01")]
    assert made.contracts.filter(customer="acme")["effective_from"].to_list() == [instant("2026-01-01")]


def _interrupted(folder: Path, since: datetime, until: datetime, ended_at: datetime) -> dict[Any, Any]:
    """acme's contract, with a fee for its whole year, that ended when another one held within it."""
    entries = objects_of(folder, TERMS).entries
    old, between = entries["contract", "acme-2026"], entries["contract", "cobb-team"]
    year = {"effective_from": instant("2026-01-01"), "effective_until": instant("2027-01-01")}
    fees = [
        Fee(fee="block", kind="reservation", amount=Decimal(3000), per="span", currency="USD", **year),
        Fee(fee="desk", amount=Decimal(10), currency="USD"),
    ]
    paid = old.item.model_copy(update={"fees": fees})
    span = {"effective_from": since, "effective_until": until}
    item = between.item.model_copy(update={"contract": "acme-spring", "customer": "acme", **span})
    return {
        **entries,
        ("contract", "acme-2026"): replace(old, item=paid, ended_at=ended_at),
        ("contract", "acme-spring"): replace(between, item=item, catalog_revision=1),
    }


def test_prices_become_rules_tiers_and_hours(tmp_path: Path) -> None:
    made = books(objects_of(tmp_path, TERMS), 1)
    rules = made.price_rules.filter(book="standard", context_breakpoint=0)
    assert rules.select("item", "hours", "meters", "model", "free_units", "reset").rows() == [
        (
            "code",
            "*",
            "output_tokens,reasoning_tokens,uncached_input_tokens",
            "graduated",
            1_000_000,
            "period",
        ),
        ("images", "*", "requests", "package_started", 0, "period"),
        ("large", "night", "output_tokens", "unit", 0, "period"),
        ("large", "night", "reasoning_tokens", "unit", 0, "period"),
    ]
    code = made.price_tiers.join(rules.filter(item="code"), on="rule", how="semi")
    assert code.select("tier", "from_units", "up_to", "unit_price", "flat_amount").rows() == [
        (1, 0, 100_000_000, Decimal("0.00001"), 5),
        (2, 100_000_000, 200_000_000, Decimal("0.000009"), 0),
        (3, 200_000_000, None, Decimal("0.000008"), 0),
    ]
    hours = made.price_hours.filter(book="standard", hours="night").drop("book", "hours", "zone")
    assert hours.rows() == [(1, 1320, 1440), (2, 0, 360), (2, 1320, 1440), (3, 0, 360)]


def test_a_price_of_a_contract_wins_cell_by_cell_and_span_by_span(tmp_path: Path) -> None:
    made = books(objects_of(tmp_path, TERMS), 1)
    own = made.price_books.filter(book="standard for acme-2026", context_breakpoint=0)
    start, february, end = (instant(day) for day in ("2026-01-01", "2026-02-01", "2028-01-01"))
    rows = own.filter(pl.col("meter") != "reasoning_tokens")
    assert rows.select("meter", "effective_from", "effective_until", "unit_price").rows() == [
        ("output_tokens", start, february, Decimal("0.000015")),
        ("output_tokens", february, end, Decimal("0.000014")),
        ("output_tokens", end, None, Decimal("0.000015")),
        ("uncached_input_tokens", start, None, Decimal("0.000003")),
    ]
    # a price without hours goes before all hours of the book
    night = made.price_rules.filter(book="standard for acme-2026", hours="night", context_breakpoint=0)
    assert night.select("effective_from", "effective_until").unique().sort("effective_from").rows() == [
        (start, february),
        (end, None),
    ]


def test_what_a_plan_dates_holds_within_each_contract(tmp_path: Path) -> None:
    dated = "per: month, currency: USD, effective_from: 2025-01-01, effective_until: 2026-03-01}"
    made = books(objects_of(tmp_path, TERMS.replace("per: month, currency: USD}", dated)), 1)
    fees = made.fees.filter(contract="cobb-team").select("effective_from", "effective_until")
    assert fees.rows() == [(instant("2026-01-01"), instant("2026-03-01"))]


def test_what_was_applied_before_there_were_terms_keeps_its_digest(tmp_path: Path) -> None:
    """Digests of two books and a contract as they were written before terms; they may never change."""
    fee = "effective_from: 2026-01-01, fees: [{fee: plan, amount_per_month: 100, currency: USD}]}\ncapacity"
    entries = objects_of(tmp_path, SOUND.replace("effective_from: 2026-01-01}\ncapacity", fee)).entries
    keys = (("price_book", "standard"), ("cost_book", "on-demand"), ("contract", "acme-2026"))
    assert [entries[key].digest().hex()[:16] for key in keys] == [
        "ab501d6d19bef905",
        "01fd95de050f3807",
        "fbd671a537b70a0d",
    ]


# ---- plans -------------------------------------------------------------------------------------------


def changed(path: Path, *edits: tuple[str, str]) -> list[str]:
    """The plan's lines after edits of TERMS."""
    content = TERMS
    for old, new in edits:
        assert old in content
        content = content.replace(old, new, 1)
    before, after = objects_of(path / "a", TERMS), objects_of(path / "b", content)
    return plan(before, after, base_revision=7, at=AT).lines()


def test_a_backdated_tier_names_its_place_and_the_contract_whose_book_it_is_in(tmp_path: Path) -> None:
    assert changed(tmp_path, ("per_million: 9.00", "per_million: 8.50")) == [
        "~ price book standard",
        "    ~ prices code/standard/*/0/uncached_input_tokens,output_tokens from 2026-01-01T00:00Z "
        "tiers 2 per_million: 9 -> 8.5",
        "  ! affects usage since 2026-01-01T00:00Z",
        "0 to add, 1 to change, 0 to end",
    ]


def test_an_override_affects_its_own_span_only(tmp_path: Path) -> None:
    row = "      - {product: large, effective_from: 2026-02-01, per_million: {output_tokens: 14}}\n"
    assert changed(tmp_path, ("    prices:\n" + row, ""))[-2:] == [
        "  ! affects usage since 2026-02-01T00:00Z",
        "0 to add, 1 to change, 0 to end",
    ]


def test_a_plan_that_changes_affects_the_contracts_that_name_it(tmp_path: Path) -> None:
    lines = changed(
        tmp_path, ("quantity: 500", "quantity: 1_000"), ("amount: 100.00, per", "amount: 90, per")
    )
    assert lines == [
        "~ plan team",
        "    ~ fees team plan amount: 100 -> 90",
        "    ~ limits week quantity: 500 -> 1000",
        "  ! contract acme-2026, through the changes above: affects usage since 2026-01-01T00:00Z",
        "  ! contract cobb-team, through the changes above: affects usage since 2026-01-01T00:00Z",
        "0 to add, 1 to change, 0 to end",
    ]


@pytest.mark.parametrize(
    ("old", "new", "since"),
    [
        ("{discount: loyalty, ratio: 0.10}", "{discount: loyalty, ratio: 0.15}", "2026-01-01"),
        ("{discount: loyalty,", "{discount: loyalty, effective_from: 2026-03-01,", "2026-01-01"),
        (
            "amount: 100.00, effective_until: 2026-07-01",
            "amount: 100.00, effective_until: 2026-02-01",
            "2026-02-01",
        ),
        ("quantity: 1_000,", "quantity: 2_000,", "2026-01-01"),
        ("output_tokens: 5}", "output_tokens: 6}", "2026-01-01"),
        ("anchor_day: 31", "anchor_day: 15", "2026-01-01"),
        ("2027-01-01, amount: 1000.00", "2027-01-01, amount: 1100.00", "2026-01-01"),
    ],
)
def test_a_term_that_changes_says_since_when(tmp_path: Path, old: str, new: str, since: str) -> None:
    assert f"  ! affects usage since {since}T00:00Z" in changed(tmp_path, (old, new))


def test_hours_that_change_affect_what_is_priced_in_them(tmp_path: Path) -> None:
    night = ('days: [mon, tue], from: "22:00"', 'days: [mon, tue], from: "21:00"')
    assert "  ! affects usage since 2026-01-01T00:00Z" in changed(tmp_path, night)
    late = ('days: [wed], from: "00:00"', 'days: [wed], from: "01:00"')
    assert not any("affects" in line for line in changed(tmp_path, late))


def test_terms_survive_json(tmp_path: Path) -> None:
    for entry in objects_of(tmp_path, TERMS).entries.values():
        content = json.loads(json.dumps(body(entry.item)))
        assert from_body(entry.item.kind, content) == entry.item
        assert body(from_body(entry.item.kind, content)) == content

"""Random small demand worlds from a seed: one customer's contract with every form of price and term, and its usage."""

import itertools
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from random import Random

import polars as pl

from metering.frames.books import PRICES, Books
from metering.frames.frame import Frame
from metering.frames.terms import (
    CONTRACT_TERMS,
    CONTRACTS,
    CREDIT_GRANTS,
    CUSTOMER_COMMITMENTS,
    CUSTOMERS,
    DISCOUNTS,
    PERCENTAGES,
    PRICE_HOURS,
    PRICE_RULES,
    PRICE_TIERS,
)
from metering.frames.usage import USAGE
from metering.meters import METERS
from metering.periods import QUARTER, Period
from tests.oracle.supply import Book, Row
from tests.oracle.worlds import plain
from tests.text_tables import instant

#: Days of months of every length, and of the changes of clocks in New York and Berlin.
START = instant("2026-01-30")
UNTIL = instant("2026-04-04")
QUARTERS = int((UNTIL - START) / QUARTER)
PRODUCTS = ("code", "large")
INPUT, OUTPUT = "uncached_input_tokens", "output_tokens"
_RULED = ((INPUT, OUTPUT), (INPUT,), (OUTPUT,))


@dataclass(frozen=True)
class DemandWorld:
    seed: int
    usage: pl.DataFrame
    books: Books
    period: Period
    complete_until: datetime

    @cached_property
    def plain(self) -> Book:
        return plain(self.books)


def demand_world(seed: int) -> DemandWorld:
    dice = Random(seed)
    books = _books(dice)
    usage = _usage(dice)
    known = START + QUARTER * dice.randint(QUARTERS // 3, QUARTERS)
    start = min(START + QUARTER * dice.choice([0, 0, dice.randrange(QUARTERS)]), known)
    until = dice.choice([known, known, start + QUARTER * dice.randint(0, int((known - start) / QUARTER))])
    return DemandWorld(seed, usage, books, Period("world", start, until), known)


def _frame(frame: Frame, rows: list[Row]) -> pl.DataFrame:
    return frame.conform(pl.DataFrame(rows, schema=dict(frame.columns)))


def _edge(dice: Random) -> datetime:
    return START + QUARTER * dice.randrange(QUARTERS)


def _some(dice: Random) -> int:
    return dice.choice([1, 7, 1_000, 33_333, 100_000, dice.randint(1, 250_000)])


def _amount(dice: Random) -> Decimal:
    return dice.choice([Decimal(1), Decimal("0.05"), Decimal("0.000001"), Decimal("2.50"), Decimal(100)])


def _usage(dice: Random) -> pl.DataFrame:
    rows: dict[tuple[object, ...], Row] = {}
    for _ in range(dice.choice([0, 3, 12, 30, 60])):
        at = dice.choice([_edge(dice), START + QUARTER * (dice.randrange(20) * 96 + 4)])
        row: Row = {
            "quarter_start": at,
            "customer": dice.choice(["acme"] * 9 + ["other"]),
            "product": dice.choice(PRODUCTS),
            "tier_sold": dice.choice(["standard", "standard", "batch"]),
            "provider": "own",
            "model_served": dice.choice(["large", "small"]),
            "tier_served": "standard",
            "region": dice.choice(["us-west", "eu-west"]),
            "pool": None,
            "ran_on": "on_demand",
            "counts_for": dice.choice(["charge_and_cost", "charge_and_cost", "charge_and_cost", "cost"]),
            "context_breakpoint": dice.choice([0, 0, 200_000]),
            "requests": dice.randint(1, 5),
            **dict.fromkeys(METERS, 0),
        }
        for meter in dice.sample([INPUT, OUTPUT, "cache_read_tokens"], dice.randint(1, 3)):
            row[meter] = _some(dice)
        key = tuple(row[name] for name in USAGE.key)
        rows[key] = row
        if row["counts_for"] == "charge_and_cost" and dice.random() < 0.15:  # taken back, as a whole
            void = {**row, "counts_for": "charge", "requests": -row["requests"]}
            void |= {meter: -row[meter] for meter in METERS}
            rows[tuple(void[name] for name in USAGE.key)] = void
    return _frame(USAGE, list(rows.values()))


def _books(dice: Random) -> Books:
    zone = dice.choice(["UTC", "America/New_York", "Europe/Berlin", "Asia/Kolkata"])
    first = dice.choice([START, START, START + QUARTER * dice.randrange(QUARTERS // 2)])
    last = dice.choice([None, None, first + QUARTER * dice.randint(1, QUARTERS)])
    contract = {
        "customer": "acme",
        "contract": "acme-1",
        "price_book": "list",
        "floor_basis": "usage",
        "effective_from": first,
        "effective_until": last,
    }
    terms = {
        "customer": "acme",
        "contract": "acme-1",
        "effective_from": first,
        "effective_until": last,
        "plan": None,
        "currency": "USD",
        "anchor_day": dice.choice([1, 1, 15, 29, 31]),
        "zone": zone,
        "period_months": dice.choice([1, 1, 2]),
        "minimum": dice.choice([None, None, Decimal(5), Decimal(500)]),
        "maximum": dice.choice([None, None, None, Decimal("0.30"), Decimal(20)]),
    }
    rules, tiers = _rules(dice)
    # a contract that has left the catalog may be older than what the catalog knows of its customer
    known = dice.choice([*[instant("2025-01-01")] * 9, _edge(dice)])
    made = Books(
        1,
        customers=_frame(
            CUSTOMERS,
            [
                {
                    "customer": name,
                    "name": name,
                    "kind": "paying",
                    "segment": "s",
                    "effective_from": known,
                }
                for name in ("acme", "other")
            ],
        ),
        contracts=_frame(CONTRACTS, [contract]),
        contract_terms=_frame(CONTRACT_TERMS, [terms] if dice.random() < 0.9 else []),
        price_books=_frame(PRICES, _unit_prices(dice)),
        price_rules=_frame(PRICE_RULES, rules),
        price_tiers=_frame(PRICE_TIERS, tiers),
        price_hours=_frame(PRICE_HOURS, _hours(dice)),
        discounts=_frame(DISCOUNTS, _discounts(dice, first)),
    )
    return replace(
        made,
        commitments=_frame(CUSTOMER_COMMITMENTS, _commitments(dice, first)),
        credit_grants=_frame(CREDIT_GRANTS, _grants(dice, first)),
        percentages=_frame(PERCENTAGES, _percentages(dice)),
    )


def _unit_prices(dice: Random) -> list[Row]:
    rows = []
    change = dice.choice([None, _edge(dice)])
    for book, product, region in itertools.product(("list", "overage"), PRODUCTS, ("*", "eu-west")):
        if region != "*" and dice.random() < 0.7:
            continue
        for tier in ("standard", "batch"):
            for context in (0, 128_000, 200_000, 256_000, 272_000, 512_000):
                for meter in (INPUT, OUTPUT, "cache_read_tokens"):
                    for since, until in ((None, change), (change, None)) if change else ((None, None),):
                        rows.append(
                            {
                                "book": book,
                                "item": product,
                                "tier": tier,
                                "region": region,
                                "context_breakpoint": context,
                                "meter": meter,
                                "effective_from": since or instant("2025-01-01"),
                                "effective_until": until,
                                "unit_price": dice.choice(
                                    [Decimal("0.000003"), Decimal("0.00001"), Decimal(0)]
                                ),
                                "currency": "USD",
                            }
                        )
    return rows


def _rules(dice: Random) -> tuple[list[Row], list[Row]]:
    rules: list[Row] = []
    tiers: list[Row] = []
    for product in PRODUCTS:
        if dice.random() < 0.2:
            continue
        meters = ",".join(sorted(dice.choice(_RULED)))
        reset = dice.choice(["period", "period", "day", "month", "year", "never"])
        change = dice.choice([None, _edge(dice)])
        spans = (
            [(instant("2025-01-01"), change), (change, None)] if change else [(instant("2025-01-01"), None)]
        )
        for tier in ("standard", "batch"):
            for hours in ("*", "night") if dice.random() < 0.3 else ("*",):
                if tier == "batch" and dice.random() < 0.5:
                    continue
                region = dice.choice(["*", "*", "us-west"])
                for since, until in spans:
                    for context in (0, 128_000, 200_000, 256_000, 272_000, 512_000):
                        name = f"{product}/{tier}/{hours}/{context}/{since:%m%d%H%M}"
                        rules.append(
                            {
                                "book": "list",
                                "item": product,
                                "tier": tier,
                                "region": region,
                                "context_breakpoint": context,
                                "hours": hours,
                                "meters": meters,
                                "effective_from": since,
                                "effective_until": until,
                                "rule": name,
                                "model": dice.choice(
                                    [
                                        "unit",
                                        "graduated",
                                        "graduated",
                                        "volume",
                                        "package_started",
                                        "package_full",
                                    ]
                                ),
                                "free_units": dice.choice([0, 0, 1, 50_000]),
                                "reset": reset,
                                "currency": "USD",
                            }
                        )
                        tiers += _tiers(dice, name, rules[-1]["model"])
    return rules, tiers


def _tiers(dice: Random, rule: str, model: str) -> list[Row]:
    if model.startswith("package"):
        plain = {"from_units": 0, "up_to": None, "unit_price": Decimal(0), "flat_amount": _amount(dice)}
        return [{"rule": rule, "tier": 1, **plain, "package_units": dice.choice([1, 1_000, 77_777])}]
    edges = (
        []
        if model == "unit"
        else sorted(dice.sample([1, 1_000, 33_333, 100_000, 200_000], dice.randint(0, 3)))
    )
    return [
        {
            "rule": rule,
            "tier": number,
            "from_units": low,
            "up_to": high,
            "unit_price": dice.choice([Decimal("0.00001"), Decimal("0.000002500001"), Decimal(0)]),
            "flat_amount": Decimal(0) if model == "unit" else dice.choice([Decimal(0), _amount(dice)]),
            "package_units": None,
        }
        for number, (low, high) in enumerate(zip([0, *edges], [*edges, None], strict=True), 1)
    ]


def _percentages(dice: Random) -> list[Row]:
    rows: list[Row] = []
    for name in ("support", "uplift"):
        for item in dice.choice([[], [], [], [None], ["code"], [None, "code"]]):
            since = dice.choice([instant("2025-01-01"), _edge(dice)])
            rows.append(
                {
                    "book": "list",
                    "charge": name,
                    "effective_from": since,
                    "effective_until": dice.choice([None, since + QUARTER * dice.randint(1, 40_000)]),
                    "ratio": dice.choice([Decimal("0.1"), Decimal("1.2"), Decimal("0.333333")]),
                    "of": "charge",
                    "item": item,
                    "currency": "USD",
                }
            )
    return rows


def _hours(dice: Random) -> list[Row]:
    zone = dice.choice(["UTC", "Europe/Berlin", "America/New_York"])
    rows = []
    for weekday in range(1, 8):
        for since, until in ((0, 360), (1320, 1440)):
            row = {"book": "list", "hours": "night", "zone": zone, "weekday": weekday}
            rows.append({**row, "from_minute": since, "until_minute": until})
    return rows


def _discounts(dice: Random, first: datetime) -> list[Row]:
    given: list[Row] = []
    for name, kind, item, ratio, amount in (
        ("deal", "line", "code", dice.choice([Decimal("0.2"), Decimal("0.333333"), Decimal(1)]), None),
        ("loyal", "contract", None, dice.choice([Decimal("0.1"), Decimal("0.000001")]), None),
        ("launch", "fixed", None, None, dice.choice([Decimal("0.10"), Decimal(1000)])),
        ("gift", "fixed", None, None, Decimal("0.03")),
    ):
        if dice.random() < 0.4:
            row = {"customer": "acme", "contract": "acme-1", "discount": name, "kind": kind, "item": item}
            until = dice.choice([None, first + QUARTER * dice.randint(1, QUARTERS)])
            given.append(
                {**row, "effective_from": first, "effective_until": until, "ratio": ratio, "amount": amount}
            )
    return given


def _commitments(dice: Random, first: datetime) -> list[Row]:
    rows: list[Row] = []
    counted = dice.choice([[OUTPUT], [f"{OUTPUT},{INPUT}"], [OUTPUT, INPUT]])
    for name in dice.choice([[], ["base"], ["base", "extra"], ["base", "extra", "more"]]):
        edges = sorted(
            {first, *(first + QUARTER * dice.randint(1, QUARTERS) for _ in range(dice.randint(1, 3)))}
        )
        rule = dice.choice(["true_up", "roll_over", "forfeit"])
        items = dice.choice([[], [], ["code"]])
        paid = dice.choice(["ahead", "in_arrears"])
        cap = dice.choice([None, Decimal("0.5")]) if rule == "roll_over" else None
        until = dice.choice([None, edges[-1] + 960 * QUARTER]) if rule == "roll_over" else None
        ratio = dice.choice([Decimal(1), Decimal("0.5")])
        meters = dice.choice([None, None, *counted])
        overage = dice.choice([None, "overage"])
        for since, to in itertools.pairwise(edges):
            rows.append(
                {
                    "customer": "acme",
                    "contract": "acme-1",
                    "commitment": name,
                    "effective_from": since,
                    "effective_until": to,
                    "amount": None if meters else dice.choice([Decimal("0.5"), Decimal(3), Decimal(50)]),
                    "units": dice.choice([10_000, 300_000]) if meters else None,
                    "meters": meters,
                    "currency": "USD",
                    "items": items,
                    "paid": paid,
                    "shortfall_rule": rule,
                    "shortfall_ratio": ratio,
                    "roll_over_cap_ratio": cap,
                    "roll_over_until": until,
                    "overage_book": overage,
                }
            )
    return rows


def _grants(dice: Random, first: datetime) -> list[Row]:
    return [
        {
            "customer": "acme",
            "contract": "acme-1",
            "credit": f"grant {number}",
            "kind": dice.choice(["promotional", "prepaid"]),
            "effective_from": first + QUARTER * dice.choice([0, dice.randrange(QUARTERS // 2)]),
            "effective_until": dice.choice(
                [None, first + QUARTER * (QUARTERS // 2 + dice.randrange(QUARTERS // 2))]
            ),
            "amount": dice.choice([Decimal("0.20"), Decimal(2), Decimal(40)]),
            "currency": "USD",
            "items": dice.choice([[], [], ["large"]]),
        }
        for number in range(dice.choice([0, 0, 1, 3]))
    ]

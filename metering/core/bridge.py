"""The bridge: what moved the margin between two periods, term by term; the terms sum to the change exactly."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import polars as pl

from metering.core.bridge_steps import Cell, Indices, OnCost, charge_steps, cost_steps, on_cost_steps
from metering.core.cells import Cells
from metering.core.pricing import PERCENTAGE
from metering.money import decimal_to_quanta, from_quanta
from metering.results.charges import CHARGED_ON_COST
from metering.results.margin import BRIDGE

#: The terms in the order in which the new replaces the old; other revenue goes by its own name.
TERMS: Final = (
    "new_customers",
    "lost_customers",
    "volume",
    "mix",
    "price",
    "discounts",
    "fee",
    "top_up",
    "overage_premium",
    "shortfall",
    "breakage",
    "promotional_credit",
    "other_revenue",
    "supplier_price",
    "utilization",
    "fx",
    "other",
)
_ON_COST: Final = tuple(name for name in CHARGED_ON_COST.key if name not in ("customer", "place"))
_ON_COST_TERMS: Final = ("volume", "mix", "price", "discounts", "supplier_price", "utilization", "fx")
_ONE: Final = 10**12


@dataclass(frozen=True)
class Told:
    """A period: what it is made of, and revenue and cost of each customer (null: nobody) as its margin says.

    rates: of each currency into the reporting currency at the end of the period, in 10**-12.
    """

    cells: Cells
    totals: pl.DataFrame  # customer, revenue, cost: MONEY
    rates: Mapping[str, int]


@dataclass
class _Side:
    """The cells of one customer: charges by what was sold, or as a ratio of cost; costs by what was served and
    where; capacity that nobody used, or idle that was carried; the rest."""

    sold: dict[tuple[object, ...], Cell] = field(default_factory=dict)
    on_cost: dict[tuple[object, ...], OnCost] = field(default_factory=dict)
    served: dict[tuple[object, ...], dict[str, Cell]] = field(default_factory=dict)
    idle: dict[tuple[str, str | None, str], Cell] = field(default_factory=dict)
    other: dict[tuple[str, str], int] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        return not (self.sold or self.on_cost or self.served or self.idle or self.other)


def bridge(old: Told, new: Told, currency: str) -> pl.DataFrame:
    """What of the change of margin from `old` to `new` each term made, per customer: results.BRIDGE.

    Per customer, in the currency agreed, `new` replaces `old` step by step, each step on what the steps before
    it left; a term is the difference of two steps. Q: the customer's tokens (requests, where it had no tokens);
    q a cell's quantity, a its amount, g its gross, 0 old, 1 new.

    volume: every cell x Q1 / Q0. mix: q1 x a0 / q0; a cell that is new comes in at its new amount, one that is gone
    at nothing. price: g1 x a0 / g0. discounts: a1. Of costs, a cell's places (pools, on demand) in their old
    shares: supplier price: on demand at a1 / q1 of the place where it has one, in a pool x the pool's full rate 1 /
    its full rate 0 (recognised / contracted); utilization: a1, as it ran. Of unused capacity likewise: supplier price is
    its old quantity at the new rate, the rest utilization. A customer without any cell in the old (new) period
    is new (lost), with all that it is. Fees and other revenue are terms of their own. fx: what the new period's
    amounts are at its own rates, less what they are at the old, and the roundings of translation. other: what the
    margin has and no cell, of customers without foreign amounts.

    The terms of a customer sum to the change of its revenue and cost, exactly; those of a set of customers are the
    sums of theirs; between a period and itself each is 0.
    """
    was, now = _by_customer(old.cells), _by_customer(new.cells)
    turns = _turns(old, new, currency)
    sums_was, sums_now = _totals(old.totals), _totals(new.totals)
    used_was, used_now = _used(old.cells), _used(new.cells)
    rates = {**new.rates, **old.rates}
    indices = _full_rates(old.cells, new.cells)
    rows: list[tuple[str | None, int, str, int, int]] = []
    for customer in sorted({*was, *now, *sums_was, *sums_now}, key=lambda name: (name is not None, name)):
        before, after = was.get(customer, _Side()), now.get(customer, _Side())
        scale = _scale(used_was.get(customer), used_now.get(customer))
        steps: dict[tuple[str, str, str], int] = {}
        for side, term, of_currency, change in _changes(before, after, scale, indices, turns):
            key = (side, term, of_currency)
            steps[key] = steps.get(key, 0) + change
        named = {(of_side, term): 0 for of_side, term, _ in steps}
        for (of_side, term, of_currency), change in steps.items():
            named[of_side, term] += _translated(change, of_currency, currency, rates)
        foreign = any(of_currency != currency for *_, of_currency in steps)
        if before.empty != after.empty and customer is not None:
            named = {}
        for of_side, at in (("revenue", 0), ("cost", 1)):
            whole = sums_now.get(customer, (0, 0))[at] - sums_was.get(customer, (0, 0))[at]
            rest = whole - sum(change for (each, _), change in named.items() if each == of_side)
            if before.empty != after.empty and customer is not None:
                term = "new_customers" if before.empty else "lost_customers"
            else:
                term = "fx" if foreign else "other"
            named[of_side, term] = named.get((of_side, term), 0) + rest
        for term in TERMS:
            revenue, cost = (named.get((each, term), 0) for each in ("revenue", "cost"))
            if revenue or cost:
                rows.append((customer, TERMS.index(term), term, revenue, cost))
    return _told(rows, currency)


def _told(rows: list[tuple[str | None, int, str, int, int]], currency: str) -> pl.DataFrame:
    schema = {
        "customer": pl.String,
        "place": pl.Int64,
        "term": pl.String,
        "revenue": pl.Int128,
        "cost": pl.Int128,
    }
    found = pl.DataFrame(rows, schema=schema, orient="row").with_columns(
        (pl.col("revenue") - pl.col("cost")).alias("margin"), pl.lit(currency).alias("currency")
    )
    return BRIDGE.conform(
        found.with_columns(from_quanta(pl.col(name)).alias(name) for name in ("revenue", "cost", "margin"))
    )


def _by_customer(made: Cells) -> dict[str | None, _Side]:
    sides: dict[str | None, _Side] = {}
    for row in made.cells.iter_rows(named=True):
        side = sides.setdefault(row["customer"], _Side())
        cell = Cell(row["quantity"], row["gross"], row["amount"])
        about = tuple(row[name] for name in ("item", "tier", "region", "context_breakpoint", "meter"))
        match row["of"]:
            case "charge":
                side.sold[*about, row["currency"]] = cell
            case "cost":
                side.served.setdefault((row["provider"], *about, row["currency"]), {})[row["place"]] = cell
            case "unused" | "carried":
                side.idle[row["place"], row["meter"], row["currency"]] = cell
            case name:
                key = (name, row["currency"])
                side.other[key] = side.other.get(key, 0) + cell.amount
    for row in made.on_cost.iter_rows(named=True):
        side = sides.setdefault(row["customer"], _Side())
        about = tuple(row[name] for name in _ON_COST)
        places, gross, amount = side.on_cost.get(about, OnCost({}, 0, 0))
        places[row["place"]] = Cell(row["quantity"], row["cost"], row["cost"])
        side.on_cost[about] = OnCost(places, gross + row["gross"], amount + row["amount"])
    return sides


def _totals(totals: pl.DataFrame) -> dict[str | None, tuple[int, int]]:
    return {
        row["customer"]: (decimal_to_quanta(row["revenue"]), decimal_to_quanta(row["cost"]))
        for row in totals.iter_rows(named=True)
    }


def _used(made: Cells) -> dict[str | None, tuple[int, int]]:
    return {row["customer"]: (row["tokens"], row["requests"]) for row in made.used.iter_rows(named=True)}


def _scale(was: tuple[int, int] | None, now: tuple[int, int] | None) -> tuple[int, int] | None:
    """Q1 and Q0, in tokens, else in requests; None where the old period has neither."""
    for at in (0, 1):
        if was is not None and was[at] > 0:
            return max(now[at] if now is not None else 0, 0), was[at]
    return None


def _full_rates(old: Cells, new: Cells) -> dict[tuple[str, str | None, str], tuple[int, int]]:
    """New full rate / old full rate of a pool's dimension, and (None) of the pool: numerator, denominator.

    Of the pool: what the old contracted capacity costs at the new rates over what it cost.
    """
    now = {row[:3]: row[3:] for row in new.full.iter_rows()}
    found: dict[tuple[str, str | None, str], tuple[int, int]] = {}
    for pool, dimension, currency, recognised, contracted, denominator in old.full.iter_rows():
        cost, bought, by = now.get((pool, dimension, currency), (0, 0, 1))
        if recognised <= 0 or contracted <= 0 or cost <= 0 or bought <= 0:
            found[pool, dimension, currency] = (1, 1)
        else:
            found[pool, dimension, currency] = (cost * contracted * by, recognised * bought * denominator)
    for pool, currency in {(pool, currency) for pool, _, currency in found}:
        of_pool = [
            (key, found[key]) for key in found if key[1] is not None and (key[0], key[2]) == (pool, currency)
        ]
        spent = {(row[0], row[1], row[2]): row[3] for row in old.full.iter_rows()}
        common = 1
        for _, (_, below) in of_pool:
            common *= below
        above = sum(spent[key] * up * (common // below) for key, (up, below) in of_pool)
        whole = sum(spent[key] for key, _ in of_pool) * common
        found[pool, None, currency] = (above, whole) if above > 0 and whole > 0 else (1, 1)
    return found


def _turns(old: Told, new: Told, into: str) -> dict[tuple[str, str], tuple[int, int]]:
    """Old rate / new rate of a cost's currency into that of the charge on it: numerator, denominator."""
    pairs = {
        pair
        for each in (old, new)
        for pair in each.cells.on_cost.select("cost_currency", "currency").iter_rows()
    }
    found = {}
    for cost, charge in pairs:
        was_cost, was_charge, now_cost, now_charge = (
            _ONE if name == into else told.rates.get(name, 0)
            for told in (old, new)
            for name in (cost, charge)
        )
        above, below = was_cost * now_charge, was_charge * now_cost
        found[cost, charge] = (above, below) if cost != charge and above > 0 and below > 0 else (1, 1)
    return found


Change = tuple[str, str, str, int]


def _changes(
    before: _Side,
    after: _Side,
    scale: tuple[int, int] | None,
    indices: Indices,
    turns: Mapping[tuple[str, str], tuple[int, int]],
) -> Iterator[Change]:
    """Of one customer: side, term, currency, change in quanta of it."""
    for key in {**before.sold, **after.sold}:
        terms = ("volume", "mix", "price", "discounts")
        was, now = before.sold.get(key), after.sold.get(key)
        if was and now and str(key[4]).startswith(PERCENTAGE):
            charged, mixed = _charged(before, after, key)
            was, now = was._replace(quantity=charged), now._replace(quantity=mixed)
        steps = charge_steps(was, now, scale)
        yield from _differences("revenue", terms, str(key[-1]), steps)
    for key in {**before.served, **after.served}:
        terms = ("volume", "mix", "supplier_price", "utilization")
        currency = str(key[-1])
        found = cost_steps(before.served.get(key, {}), after.served.get(key, {}), scale, indices, currency)
        yield from _differences("cost", terms, currency, found)
    for key in {**before.on_cost, **after.on_cost}:
        currencies = str(key[-2]), str(key[-1])
        found = on_cost_steps(
            before.on_cost.get(key), after.on_cost.get(key), scale, indices, currencies[0], turns[currencies]
        )
        yield from _differences("revenue", _ON_COST_TERMS, currencies[1], found)
    for key in {**before.idle, **after.idle}:
        was, now = before.idle.get(key, Cell(0, 0, 0)), after.idle.get(key, Cell(0, 0, 0))
        up, below = indices.get(key, (1, 1))
        steps = [was.amount, was.amount * up // below, now.amount]
        yield from _differences("cost", ("supplier_price", "utilization"), key[-1], steps)
    for name, currency in {**before.other, **after.other}:
        change = after.other.get((name, currency), 0) - before.other.get((name, currency), 0)
        yield "revenue", name, currency, change


def _differences(side: str, terms: Iterable[str], currency: str, steps: list[int]) -> Iterator[Change]:
    for term, at, then in zip(terms, steps, steps[1:], strict=False):
        yield side, term, currency, then - at


def _charged(before: _Side, after: _Side, of: tuple[object, ...]) -> tuple[int, int]:
    """What the charges were that a percentage is of, and what they are at the new mix: its quantities."""
    charged = mixed = 0
    for key in {**before.sold, **after.sold}:
        if (*key[:4], key[5]) != (*of[:4], of[5]) or str(key[4]).startswith(PERCENTAGE):
            continue
        was, now = before.sold.get(key), after.sold.get(key)
        charged += was.gross if was else 0
        if was and was.quantity:
            mixed += was.gross * now.quantity // was.quantity if now else 0
        else:
            mixed += now.gross if now else 0
    return charged, mixed


def _translated(quanta: int, of: str, into: str, rates: Mapping[str, int]) -> int:
    """Quanta of a currency in the reporting currency at the old rate, half-even; 0 without any rate."""
    if of == into:
        return quanta
    whole, rest = divmod(quanta * rates.get(of, 0), _ONE)
    return whole + (rest * 2 > _ONE or (rest * 2 == _ONE and whole % 2 == 1))

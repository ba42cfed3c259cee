"""From catalog objects to books: the frames that rating and capacity read."""

import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, Final, TypeVar

import polars as pl

from metering.catalog.objects import (
    ANY,
    OTHER_METERS,
    Burndown,
    CapacityContract,
    CatalogObjects,
    Contract,
    CostBook,
    Customer,
    Dimension,
    Entry,
    Model,
    PriceBook,
    Priced,
)
from metering.frames import (
    BURNDOWN,
    CAPACITY_FEES,
    CAPACITY_STEPS,
    CONTRACTS,
    CUSTOMERS,
    FEES,
    MODELS,
    POOLS,
    PRICES,
    Books,
    Frame,
)
from metering.meters import CONTEXT_BREAKPOINTS, METERS
from metering.money import PRICE_UNITS

#: Later than every instant that a catalog may name: the end of what has none.
OPEN: Final = datetime(9999, 12, 31, tzinfo=UTC)
CONTEXTS: Final = (0, *CONTEXT_BREAKPOINTS)

Interval = tuple[datetime, datetime]
Row = dict[str, Any]
Table = TypeVar("Table", Priced, Burndown)


def interval(start: datetime, until: datetime | None, ended_at: datetime | None = None) -> list[Interval]:
    """[start, until) cut at `ended_at`; nothing if that leaves nothing."""
    end = min(until or OPEN, ended_at or OPEN)
    return [(start, end)] if end > start else []


def minus(spans: Iterable[Interval], taken: Iterable[Interval]) -> list[Interval]:
    """The parts of `spans` that no span of `taken` covers, in order of time."""
    left = list(spans)
    for taken_start, taken_until in taken:
        pieces = []
        for start, until in left:
            pieces += interval(start, min(until, taken_start))
            pieces += interval(max(start, taken_until), until)
        left = pieces
    return sorted(left)


def books(objects: CatalogObjects, catalog_revision: int) -> Books:
    """Every frame of the catalog. What ended keeps its rows, cut at its end, so that its past stays rated.

    Where contracts of one customer overlap, because one that the folder no longer names ended and another
    was then written over its past, the one in the folder wins and the ended one keeps the rest.
    """
    customers = [
        {
            "customer": item.customer,
            "name": item.name,
            "kind": row.kind,
            "segment": row.segment,
            **_span(span),
        }
        for item, entry in objects.of(Customer)
        for row in item.dated
        for span in interval(row.effective_from, row.effective_until, entry.ended_at)
    ]
    models = [
        {"model": item.model, "provider": item.provider, "name": item.name, "cost_book": item.cost_book}
        for item, _ in objects.of(Model)
    ]
    contracts, fees = _contracts(objects)
    pools, steps, capacity_fees, burndown = _capacity(objects)
    return Books(
        catalog_revision=catalog_revision,
        customers=_frame(CUSTOMERS, customers),
        models=_frame(MODELS, models),
        contracts=_frame(CONTRACTS, contracts),
        fees=_frame(FEES, fees),
        price_books=_frame(
            PRICES, [row for item, entry in objects.of(PriceBook) for row in _prices(item, entry)]
        ),
        cost_books=_frame(
            PRICES, [row for item, entry in objects.of(CostBook) for row in _prices(item, entry)]
        ),
        pools=_frame(POOLS, pools),
        capacity_steps=_frame(CAPACITY_STEPS, steps),
        capacity_fees=_frame(CAPACITY_FEES, capacity_fees),
        burndown=_frame(BURNDOWN, burndown),
    )


def _frame(frame: Frame, rows: list[Row]) -> pl.DataFrame:
    if not rows:
        return frame.empty()
    columns = list(frame.columns)
    data = [[row[column] for column in columns] for row in rows]
    return frame.conform(pl.DataFrame(data, schema=dict(frame.columns), orient="row"))


def _span(span: Interval) -> Row:
    return {"effective_from": span[0], "effective_until": None if span[1] == OPEN else span[1]}


def _contracts(objects: CatalogObjects) -> tuple[list[Row], list[Row]]:
    def precedence(pair: tuple[Contract, Entry]) -> tuple[bool, int, str]:
        contract, entry = pair
        return entry.ended_at is not None, -entry.catalog_revision, contract.contract

    contracts, fees = [], []
    taken: dict[str, list[Interval]] = {}
    for contract, entry in sorted(objects.of(Contract), key=precedence):
        before = taken.setdefault(contract.customer, [])
        whole = interval(contract.effective_from, contract.effective_until, entry.ended_at)
        for span in minus(whole, before):
            contracts.append(
                {
                    "customer": contract.customer,
                    "contract": contract.contract,
                    "price_book": contract.price_book,
                    "margin_floor_ratio": contract.margin_floor_ratio,
                    "floor_basis": contract.floor_basis,
                    **_span(span),
                }
            )
        for fee in contract.fees:
            start = fee.effective_from or contract.effective_from
            until = fee.effective_until or contract.effective_until
            for span in minus(interval(start, until, entry.ended_at), before):
                fees.append(
                    {
                        "customer": contract.customer,
                        "contract": contract.contract,
                        "fee": fee.fee,
                        "amount_per_month": fee.amount_per_month,
                        "currency": fee.currency,
                        **_span(span),
                    }
                )
        before += whole
    return contracts, fees


def _in_force(rows: Sequence[Table], context: int, ended_at: datetime | None) -> list[tuple[Table, Interval]]:
    """Each row with the spans in which it holds for a context: the first row that covers an instant wins."""
    held = []
    taken: list[Interval] = []
    for row in rows:
        if row.above_input_tokens <= context:
            whole = interval(row.effective_from, row.effective_until, ended_at)
            held += [(row, span) for span in minus(whole, taken)]
            taken += whole
    return held


def _prices(book: PriceBook | CostBook, entry: Entry) -> list[Row]:
    variants: dict[tuple[str, str, str], list[Priced]] = {}
    for priced in book.prices:
        variants.setdefault((priced.item, priced.tier, priced.region), []).append(priced)
    rows = []
    for (item, tier, region), priced_rows in variants.items():
        highest_first = sorted(priced_rows, key=lambda row: -row.above_input_tokens)
        for context in CONTEXTS:
            for row, span in _in_force(highest_first, context, entry.ended_at):
                prices = dict(row.per_million)
                if "output_tokens" in prices:
                    prices.setdefault("reasoning_tokens", prices["output_tokens"])
                rows += [
                    {
                        "book": book.book,
                        "item": item,
                        "tier": tier,
                        "region": region,
                        "context_breakpoint": context,
                        "meter": meter,
                        "unit_price": price / PRICE_UNITS,
                        "currency": book.currency,
                        **_span(span),
                    }
                    for meter, price in prices.items()
                ]
    return rows


def _weights(table: Burndown) -> dict[str, Fraction]:
    named = {meter: Fraction(weight) for meter, weight in table.weights.items()}
    other = named.pop(OTHER_METERS, None)
    if "output_tokens" in named:
        named.setdefault("reasoning_tokens", named["output_tokens"])
    return named if other is None else dict.fromkeys(METERS, other) | named


def _capacity(objects: CatalogObjects) -> tuple[list[Row], list[Row], list[Row], list[Row]]:
    pools: list[Row] = []
    steps: list[Row] = []
    fees: list[Row] = []
    burndown: list[Row] = []
    every_model = {item.model for item, _ in objects.of(Model)}
    for pool, entry in objects.of(CapacityContract):
        pools.append(
            {
                "pool": pool.pool,
                "supplier": pool.supplier,
                "unit": pool.unit,
                "currency": pool.currency,
                "idle_policy": pool.idle_policy,
                "recognition": "as_billed",
                "on_demand_book": None,
                "window_seconds": 60,
                "units_min": 0,
                "units_sold_in": 1,
                "lead_time_days": None,
                "term_from": min(step.effective_from for step in pool.steps),
                "term_until": _term_until(pool),
                "renewal_months": None,
                "notice_days": None,
            }
        )
        for step in pool.steps:
            fees += [
                {
                    "pool": pool.pool,
                    "fee": "step",
                    "dimension": None,
                    "amount": step.fee_per_month,
                    "per": "month",
                    "currency": pool.currency,
                    **_span(span),
                }
                for span in interval(step.effective_from, step.effective_until, entry.ended_at)
            ]
        for dimension in pool.dimensions:
            steps += [
                {
                    "pool": pool.pool,
                    "dimension": dimension.dimension,
                    "units": step.units[dimension.dimension],
                    "unit_burn_per_minute": dimension.unit_burn_per_minute,
                    "fee_share_ratio": dimension.fee_share_ratio,
                    **_span(span),
                }
                for step in pool.steps
                for span in interval(step.effective_from, step.effective_until, entry.ended_at)
            ]
            burndown += _burndown(pool.pool, dimension, entry.ended_at, every_model)
    return pools, steps, fees, burndown


def _term_until(pool: CapacityContract) -> datetime | None:
    ends = [step.effective_until for step in pool.steps]
    return None if None in ends else max(end for end in ends if end is not None)


def _burndown(
    pool: str, dimension: Dimension, ended_at: datetime | None, every_model: set[str]
) -> Iterator[Row]:
    tables = dimension.burndown
    weights = {id(table): _weights(table) for table in tables}
    denominator = math.lcm(*(weight.denominator for named in weights.values() for weight in named.values()))
    models = {model for table in tables for model in table.models}
    if ANY in models:
        models = models - {ANY} | every_model
    for model in sorted(models):
        # A table that names the model comes before one for every model; then the higher context.
        of_model = sorted(
            (table for table in tables if model in table.models or ANY in table.models),
            key=lambda table: (model not in table.models, -table.above_input_tokens),
        )
        for context in CONTEXTS:
            for table, span in _in_force(of_model, context, ended_at):
                for meter, weight in weights[id(table)].items():
                    yield {
                        "pool": pool,
                        "dimension": dimension.dimension,
                        "model": model,
                        "context_breakpoint": context,
                        "meter": meter,
                        "weight": int(weight * denominator),
                        "denominator": denominator,
                        **_span(span),
                    }

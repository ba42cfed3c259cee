"""From catalog objects to books: the frames that rating and capacity read."""

from typing import Any

import polars as pl

from metering.catalog.objects import (
    CatalogObjects,
    Contract,
    CostBook,
    Customer,
    Entry,
    Model,
    PriceBook,
    Priced,
)
from metering.catalog.spans import Interval, interval, minus, span_columns
from metering.catalog.supply import DIMENSION_ALL, CapacityContract
from metering.catalog.supply_books import CONTEXTS, in_force, supply_rows
from metering.frames import (
    BURNDOWN,
    CAPACITY_FEES,
    CAPACITY_STEPS,
    CONTRACTS,
    CUSTOMERS,
    ENTITLEMENTS,
    EXCHANGE_RATES,
    FEES,
    MODELS,
    MULTIPLIERS,
    POOLS,
    PRICES,
    QUOTA_WEIGHTS,
    QUOTAS,
    SET_ASIDE,
    SUPPLIER_COMMITMENTS,
    Books,
    Frame,
)
from metering.money import PRICE_UNITS

Row = dict[str, Any]


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
            **span_columns(span),
        }
        for item, entry in objects.of(Customer)
        for row in item.dated
        for span in interval(row.effective_from, row.effective_until, entry.ended_at)
    ]
    models = [
        {"model": item.model, "provider": item.provider, "name": item.name, "cost_book": item.cost_book}
        for item, _ in objects.of(Model)
    ]
    contracts, fees, entitlements = _contracts(objects)
    supply = supply_rows(objects)
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
        entitlements=_frame(ENTITLEMENTS, entitlements),
        pools=_frame(POOLS, supply.pools),
        capacity_steps=_frame(CAPACITY_STEPS, supply.capacity_steps),
        capacity_fees=_frame(CAPACITY_FEES, supply.capacity_fees),
        burndown=_frame(BURNDOWN, supply.burndown),
        multipliers=_frame(MULTIPLIERS, supply.multipliers),
        set_aside=_frame(SET_ASIDE, supply.set_aside),
        supplier_commitments=_frame(SUPPLIER_COMMITMENTS, supply.supplier_commitments),
        quotas=_frame(QUOTAS, supply.quotas),
        quota_weights=_frame(QUOTA_WEIGHTS, supply.quota_weights),
        exchange_rates=_frame(EXCHANGE_RATES, supply.exchange_rates),
    )


def _frame(frame: Frame, rows: list[Row]) -> pl.DataFrame:
    if not rows:
        return frame.empty()
    columns = list(frame.columns)
    data = [[row[column] for column in columns] for row in rows]
    return frame.conform(pl.DataFrame(data, schema=dict(frame.columns), orient="row"))


def _contracts(objects: CatalogObjects) -> tuple[list[Row], list[Row], list[Row]]:
    def precedence(pair: tuple[Contract, Entry]) -> tuple[bool, int, str]:
        contract, entry = pair
        return entry.ended_at is not None, -entry.catalog_revision, contract.contract

    contracts, fees, entitlements = [], [], []
    one_dimension = {
        pool.pool: pool.dimensions[0].dimension
        for pool, _ in objects.of(CapacityContract)
        if len(pool.dimensions) == 1
    }
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
                    **span_columns(span),
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
                        "kind": "plan",
                        "amount": fee.amount_per_month,
                        "quantity": 1,
                        "per": "month",
                        "currency": fee.currency,
                        **span_columns(span),
                    }
                )
        for row in contract.entitlements:
            start = row.effective_from or contract.effective_from
            until = row.effective_until or contract.effective_until
            for span in minus(interval(start, until, entry.ended_at), before):
                entitlements.append(
                    {
                        "customer": contract.customer,
                        "contract": contract.contract,
                        "pool": row.pool,
                        "dimension": row.dimension or one_dimension.get(row.pool, DIMENSION_ALL),
                        "units": row.units_promised,
                        "stated": row.stated and row.stated.text,
                        **span_columns(span),
                    }
                )
        before += whole
    return contracts, fees, entitlements


def _prices(book: PriceBook | CostBook, entry: Entry) -> list[Row]:
    variants: dict[tuple[str, str, str], list[Priced]] = {}
    for priced in book.prices:
        variants.setdefault((priced.item, priced.tier, priced.region), []).append(priced)
    rows = []
    for (item, tier, region), priced_rows in variants.items():
        highest_first = sorted(priced_rows, key=lambda row: -row.above_input_tokens)
        for context in CONTEXTS:
            for row, span in in_force(highest_first, context, entry.ended_at):
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
                        **span_columns(span),
                    }
                    for meter, price in prices.items()
                ]
    return rows

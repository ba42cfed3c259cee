"""From catalog objects to books: the frames that rating and capacity read."""

from typing import Any

import polars as pl

from metering.catalog.objects import CatalogObjects, Customer, Model
from metering.catalog.price_rows import cost_rows
from metering.catalog.prices import CostBook
from metering.catalog.spans import interval, span_columns
from metering.catalog.supply_books import supply_rows
from metering.catalog.term_rows import term_rows
from metering.frames.books import EXCHANGE_RATES, PRICES, Books
from metering.frames.frame import Frame
from metering.frames.supply import (
    BURNDOWN,
    CAPACITY_FEES,
    CAPACITY_STEPS,
    ENTITLEMENTS,
    MODELS,
    MULTIPLIERS,
    POOLS,
    QUOTA_WEIGHTS,
    QUOTAS,
    SET_ASIDE,
    SUPPLIER_COMMITMENTS,
)
from metering.frames.terms import (
    CONTRACT_TERMS,
    CONTRACTS,
    CREDIT_GRANTS,
    CUSTOMER_COMMITMENTS,
    CUSTOMERS,
    DISCOUNTS,
    FEES,
    LIMIT_WEIGHTS,
    LIMITS,
    PERCENTAGES,
    PRICE_HOURS,
    PRICE_RULES,
    PRICE_TIERS,
)

Row = dict[str, Any]


def books(objects: CatalogObjects, catalog_revision: int) -> Books:
    """Every frame of the catalog. What ended keeps its rows, cut at its end, so that its past stays rated."""
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
    supply, terms = supply_rows(objects), term_rows(objects)
    cost_books = [row for item, entry in objects.of(CostBook) for row in cost_rows(item, entry.ended_at)]
    return Books(
        catalog_revision=catalog_revision,
        customers=_frame(CUSTOMERS, customers),
        models=_frame(MODELS, models),
        contracts=_frame(CONTRACTS, terms.contracts),
        contract_terms=_frame(CONTRACT_TERMS, terms.contract_terms),
        fees=_frame(FEES, terms.fees),
        price_books=_frame(PRICES, terms.prices.prices),
        price_rules=_frame(PRICE_RULES, terms.prices.rules),
        price_tiers=_frame(PRICE_TIERS, terms.prices.tiers),
        price_hours=_frame(PRICE_HOURS, terms.prices.hours),
        percentages=_frame(PERCENTAGES, terms.prices.percentages),
        cost_books=_frame(PRICES, cost_books),
        discounts=_frame(DISCOUNTS, terms.discounts),
        commitments=_frame(CUSTOMER_COMMITMENTS, terms.commitments),
        credit_grants=_frame(CREDIT_GRANTS, terms.credit_grants),
        limits=_frame(LIMITS, terms.limits),
        limit_weights=_frame(LIMIT_WEIGHTS, terms.limit_weights),
        entitlements=_frame(ENTITLEMENTS, terms.entitlements),
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

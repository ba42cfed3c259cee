"""From contracts and plans to the frames of what was agreed: terms, fees, discounts, commitments, credits, limits."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from typing import Any

from metering.catalog.objects import CatalogObjects, Entry
from metering.catalog.price_rows import PriceRows, book_rows, overridden
from metering.catalog.prices import PriceBook
from metering.catalog.spans import OPEN, Interval, interval, minus, span_columns
from metering.catalog.supply import DIMENSION_ALL, CapacityContract
from metering.catalog.terms import Commitment, Contract, Limit, Plan

Row = dict[str, Any]
#: The spans of a contract in which [start, until) of it holds.
_Within = Callable[[datetime | None, datetime | None], list[Interval]]


@dataclass(frozen=True)
class TermRows:
    """Rows of the frames of the same names; `prices`: the books of contracts' own, and all price books."""

    contracts: list[Row] = field(default_factory=list)
    contract_terms: list[Row] = field(default_factory=list)
    fees: list[Row] = field(default_factory=list)
    entitlements: list[Row] = field(default_factory=list)
    discounts: list[Row] = field(default_factory=list)
    commitments: list[Row] = field(default_factory=list)
    credit_grants: list[Row] = field(default_factory=list)
    limits: list[Row] = field(default_factory=list)
    limit_weights: list[Row] = field(default_factory=list)
    prices: PriceRows = field(default_factory=PriceRows)


def term_rows(objects: CatalogObjects) -> TermRows:
    """Every row of the demand side. What ended keeps its rows, cut at its end.

    Where contracts of one customer overlap, because one that the folder no longer names ended and another
    was then written over its past, the one in the folder wins and the ended one keeps the rest.
    """
    rows = TermRows()
    books = {book.book: (book, book_rows(book, entry.ended_at)) for book, entry in objects.of(PriceBook)}
    for _, made in books.values():
        rows.prices.extend(made)
    plans = {plan.plan: plan for plan, _ in objects.of(Plan)}
    one_dimension = {
        pool.pool: pool.dimensions[0].dimension
        for pool, _ in objects.of(CapacityContract)
        if len(pool.dimensions) == 1
    }
    taken: dict[str, list[Interval]] = {}
    for contract, entry in sorted(objects.of(Contract), key=_precedence):
        before = taken.setdefault(contract.customer, [])
        whole = interval(contract.effective_from, contract.effective_until, entry.ended_at)

        def within(
            start: datetime | None,
            until: datetime | None,
            contract: Contract = contract,
            entry: Entry = entry,
            before: tuple[Interval, ...] = tuple(before),
        ) -> list[Interval]:
            # what a plan dates may reach beyond the contract
            begins = max(start or contract.effective_from, contract.effective_from)
            ends = min(until or OPEN, contract.effective_until or OPEN)
            return minus(interval(begins, ends, entry.ended_at), before)

        _contract(rows, contract, plans.get(contract.plan or ""), books, within, one_dimension)
        before += whole
    return rows


def _precedence(pair: tuple[Contract, Entry]) -> tuple[bool, int, str]:
    contract, entry = pair
    return entry.ended_at is not None, -entry.catalog_revision, contract.contract


def _contract(
    rows: TermRows,
    contract: Contract,
    plan: Plan | None,
    books: Mapping[str, tuple[PriceBook, PriceRows]],
    within: _Within,
    one_dimension: Mapping[str, str],
) -> None:
    who: Row = {"customer": contract.customer, "contract": contract.contract}
    book = contract.price_book or (plan.price_book if plan is not None else "")
    currency = books[book][0].currency if book in books else None
    spans = within(None, None)
    if contract.prices and currency is not None and spans:
        of, name = books[book][1], f"{book} for {contract.contract}"
        rows.prices.extend(overridden(name, of, contract.prices, currency, (spans[0][0], spans[-1][1])))
        book = name
    floor, basis = contract.margin_floor_ratio, contract.floor_basis
    if floor is None and plan is not None:
        floor, basis = plan.margin_floor_ratio, plan.floor_basis
    for span in spans:
        said = {**who, **span_columns(span)}
        rows.contracts.append({**said, "price_book": book, "margin_floor_ratio": floor, "floor_basis": basis})
        rows.contract_terms.extend(_terms(contract, said, currency))
    rows.fees.extend(_fees(contract, plan, who, within))
    rows.entitlements.extend(
        {
            **who,
            "pool": row.pool,
            "dimension": row.dimension or one_dimension.get(row.pool, DIMENSION_ALL),
            "units": row.units_promised,
            "stated": row.stated and row.stated.text,
            **span_columns(span),
        }
        for row in contract.entitlements
        for span in within(row.effective_from, row.effective_until)
    )
    rows.discounts.extend(_discounts(contract, who, within))
    if currency is not None:
        for commitment in contract.commitments:
            rows.commitments.extend(_tranches(commitment, who, currency, within))
        rows.credit_grants.extend(_credits(contract, who, currency, within))
    _limits(rows, contract, plan, who, within)


def _terms(contract: Contract, said: Row, currency: str | None) -> Iterator[Row]:
    billing = contract.billing
    if currency is None:
        return
    yield {
        **said,
        "plan": contract.plan,
        "currency": currency,
        "anchor_day": billing.anchor_day if billing else 1,
        "zone": billing.zone if billing else "UTC",
        "period_months": billing.months if billing else 1,
        "minimum": contract.minimum_per_period,
        "maximum": contract.maximum_per_period,
    }


def _once(spans: list[Interval]) -> list[Interval]:
    """The one span of an amount that is agreed once, whatever contract holds in between; none without an end."""
    whole = (spans[0][0], spans[-1][1]) if spans else (OPEN, OPEN)
    return [whole] if whole[1] != OPEN else []


def _fees(contract: Contract, plan: Plan | None, who: Row, within: _Within) -> Iterator[Row]:
    for fee in contract.fees or (plan.fees if plan is not None else []):
        spans = within(fee.effective_from, fee.effective_until)
        for span in _once(spans) if fee.per == "span" else spans:
            yield {
                **who,
                "fee": fee.fee,
                "kind": fee.kind,
                "amount": fee.amount_each,
                "quantity": fee.quantity,
                "per": fee.per,
                "currency": fee.currency,
                **span_columns(span),
            }


def _discounts(contract: Contract, who: Row, within: _Within) -> Iterator[Row]:
    for row in contract.discounts:
        fixed = row.amount_per_period is not None
        for span in within(row.effective_from, row.effective_until):
            yield {
                **who,
                "discount": row.discount,
                "kind": "fixed" if fixed else "line" if row.product is not None else "contract",
                "item": row.product,
                "ratio": row.ratio,
                "amount": row.amount_per_period,
                **span_columns(span),
            }


def _tranches(commitment: Commitment, who: Row, currency: str, within: _Within) -> Iterator[Row]:
    for tranche in commitment.tranches:
        for span in _once(within(tranche.effective_from, tranche.effective_until)):
            yield {
                **who,
                "commitment": commitment.commitment,
                "amount": tranche.amount,
                "units": tranche.units,
                "meters": ",".join(sorted(commitment.meters)) if tranche.units is not None else None,
                "currency": currency,
                "items": sorted(commitment.products),
                "paid": commitment.paid,
                "shortfall_rule": commitment.shortfall_rule,
                "shortfall_ratio": commitment.shortfall_ratio,
                "roll_over_cap_ratio": commitment.roll_over_cap_ratio,
                "roll_over_until": commitment.roll_over_until,
                "overage_book": commitment.overage_book,
                **span_columns(span),
            }


def _credits(contract: Contract, who: Row, currency: str, within: _Within) -> Iterator[Row]:
    for row in contract.credits:
        for span in within(row.effective_from, row.effective_until)[:1]:
            yield {
                **who,
                "credit": row.credit,
                "kind": row.kind,
                "amount": row.amount,
                "currency": currency,
                "items": sorted(row.products),
                **span_columns(span),
            }


def _limits(rows: TermRows, contract: Contract, plan: Plan | None, who: Row, within: _Within) -> None:
    own = {row.limit for row in contract.limits}
    of_plan = [row for row in (plan.limits if plan is not None else []) if row.limit not in own]
    said = [(row, None) for row in contract.limits] + [(row, contract.plan) for row in of_plan]
    weighed: set[str] = set()
    for limit, name in said:
        spans = within(limit.effective_from, limit.effective_until)
        rows.limits.extend({**who, "plan": name, **_limit(limit), **span_columns(span)} for span in spans)
        if spans and limit.limit not in weighed:
            weighed.add(limit.limit)
            weights = {meter: Fraction(weight) for meter, weight in limit.weights.items()}
            if "output_tokens" in weights:
                weights.setdefault("reasoning_tokens", weights["output_tokens"])
            denominator = math.lcm(*(weight.denominator for weight in weights.values()))
            rows.limit_weights.extend(
                {
                    "contract": contract.contract,
                    "limit": limit.limit,
                    "meter": meter,
                    "weight": int(weight * denominator),
                    "denominator": denominator,
                }
                for meter, weight in weights.items()
            )


def _limit(limit: Limit) -> Row:
    window = limit.window
    kind = "minute" if window.minute else "anchored" if window.anchored_minutes else "fixed"
    return {
        "limit": limit.limit,
        "holder": limit.holder,
        "items": sorted(limit.products),
        "window": kind,
        "window_minutes": window.anchored_minutes or window.fixed_minutes or 1,
        "anchor_at": window.anchor if kind == "fixed" else None,
        "quantity": limit.quantity,
    }

"""From the objects of the supply side to books: pools, units, fees, weights, what is set aside, commitments, rates."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from typing import Any, Final, TypeVar

from metering.catalog.objects import CatalogObjects, Entry, Model
from metering.catalog.prices import Priced
from metering.catalog.quotas import Quota, quota_rows
from metering.catalog.shapes import ANY
from metering.catalog.spans import Interval, interval, minus, span_columns
from metering.catalog.supply import (
    OTHER_METERS,
    Burndown,
    CapacityContract,
    Dimension,
    ExchangeRates,
    SupplierCommitment,
)
from metering.meters import CONTEXT_BREAKPOINTS, METERS

CONTEXTS: Final = (0, *CONTEXT_BREAKPOINTS)

Row = dict[str, Any]
Table = TypeVar("Table", Priced, Burndown)


@dataclass(frozen=True)
class SupplyRows:
    """Rows of the frames of the same names."""

    pools: list[Row] = field(default_factory=list)
    capacity_steps: list[Row] = field(default_factory=list)
    capacity_fees: list[Row] = field(default_factory=list)
    burndown: list[Row] = field(default_factory=list)
    multipliers: list[Row] = field(default_factory=list)
    set_aside: list[Row] = field(default_factory=list)
    supplier_commitments: list[Row] = field(default_factory=list)
    exchange_rates: list[Row] = field(default_factory=list)
    quotas: list[Row] = field(default_factory=list)
    quota_weights: list[Row] = field(default_factory=list)


def supply_rows(objects: CatalogObjects) -> SupplyRows:
    """Every row of the supply side. What ended keeps its rows, cut at its end."""
    rows = SupplyRows()
    every_model = {item.model for item, _ in objects.of(Model)}
    for pool, entry in objects.of(CapacityContract):
        rows.pools.append(_pool(pool, entry))
        rows.capacity_steps.extend(_steps(pool, entry))
        rows.capacity_fees.extend(_fees(pool, entry))
        rows.set_aside.extend(_set_aside(pool, entry))
        for dimension in pool.dimensions:
            rows.burndown.extend(_burndown(pool.pool, dimension, entry.ended_at, every_model))
            rows.multipliers.extend(_multipliers(pool.pool, dimension, entry.ended_at))
    for commitment, entry in objects.of(SupplierCommitment):
        rows.supplier_commitments.extend(_tranches(commitment, entry))
    for quota, entry in objects.of(Quota):
        steps, weights = quota_rows(quota, entry.ended_at)
        rows.quotas.extend(steps)
        rows.quota_weights.extend(weights)
    for rates, entry in objects.of(ExchangeRates):
        rows.exchange_rates.extend(_rates(rates, entry))
    return rows


def in_force(rows: Sequence[Table], context: int, ended_at: datetime | None) -> list[tuple[Table, Interval]]:
    """Each row with the spans in which it holds for a context: the first row that covers an instant wins."""
    held = []
    taken: list[Interval] = []
    for row in rows:
        if row.above_input_tokens <= context:
            whole = interval(row.effective_from, row.effective_until, ended_at)
            held += [(row, span) for span in minus(whole, taken)]
            taken += whole
    return held


def _pool(pool: CapacityContract, entry: Entry) -> Row:
    ended = entry.ended_at is not None
    ends = [end for end in (pool.term_until, entry.ended_at) if end is not None]
    return {
        "pool": pool.pool,
        "supplier": pool.supplier,
        "unit": pool.unit,
        "currency": pool.currency,
        "idle_policy": pool.idle_policy,
        "recognition": pool.recognition,
        "on_demand_book": pool.on_demand_book,
        "window_seconds": pool.window_seconds,
        "units_min": pool.units_min,
        "units_sold_in": pool.units_sold_in,
        "lead_time_days": pool.lead_time_days,
        "term_from": pool.term_from,
        "term_until": min(ends, default=None),
        "renewal_months": None if ended else pool.renews_for_months,
        "notice_days": None if ended else pool.notice_days,
    }


def _steps(pool: CapacityContract, entry: Entry) -> Iterator[Row]:
    for step in pool.steps:
        for span in interval(step.effective_from, pool.runs_on(step.effective_until), entry.ended_at):
            for dimension in pool.dimensions:
                yield {
                    "pool": pool.pool,
                    "dimension": dimension.dimension,
                    "units": step.units[dimension.dimension],
                    "unit_burn_per_minute": dimension.unit_burn_per_minute,
                    "fee_share_ratio": dimension.fee_share_ratio,
                    **span_columns(span),
                }


def _fees(pool: CapacityContract, entry: Entry) -> Iterator[Row]:
    for fee in pool.fee_terms():
        whole = fee.per == "span"
        for span in _begun(fee.effective_from, fee.effective_until, entry.ended_at, whole=whole):
            yield {
                "pool": pool.pool,
                "fee": fee.fee,
                "dimension": fee.dimension,
                "amount": fee.amount,
                "per": fee.per,
                "currency": fee.currency,
                **span_columns(span),
            }


def _begun(
    start: datetime, until: datetime | None, ended_at: datetime | None, *, whole: bool
) -> list[Interval]:
    """[start, until) cut at `ended_at`; what is due as a `whole` is not cut once it has begun: it stays due."""
    if whole and ended_at is not None and ended_at > start:
        ended_at = None
    return interval(start, until, ended_at)


def _set_aside(pool: CapacityContract, entry: Entry) -> Iterator[Row]:
    written = [
        ("carve_out", row.carve_out, row.units, row.effective_from, row.effective_until)
        for row in pool.carve_outs
    ]
    written += [
        ("undelivered", row.reason, row.units, row.effective_from, row.effective_until)
        for row in pool.undelivered
    ]
    for kind, name, units, start, until in written:
        for span in interval(start, until or pool.runs_until, entry.ended_at):
            for dimension, count in units.items():
                yield {
                    "pool": pool.pool,
                    "dimension": dimension,
                    "kind": kind,
                    "name": name,
                    "units": count,
                    **span_columns(span),
                }


def _weights(table: Burndown) -> dict[str, Fraction]:
    named = {meter: Fraction(weight) for meter, weight in table.weights.items()}
    other = named.pop(OTHER_METERS, None)
    if "output_tokens" in named:
        named.setdefault("reasoning_tokens", named["output_tokens"])
    return named if other is None else dict.fromkeys(METERS, other) | named


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
            for table, span in in_force(of_model, context, ended_at):
                for meter, weight in weights[id(table)].items():
                    yield {
                        "pool": pool,
                        "dimension": dimension.dimension,
                        "model": model,
                        "context_breakpoint": context,
                        "meter": meter,
                        "weight": int(weight * denominator),
                        "denominator": denominator,
                        **span_columns(span),
                    }


def _multipliers(pool: str, dimension: Dimension, ended_at: datetime | None) -> Iterator[Row]:
    stacked = dimension.multipliers
    denominators = {
        by: math.lcm(*(Fraction(row.multiplier).denominator for row in stacked if row.by == by))
        for by in {row.by for row in stacked}
    }
    for row in stacked:
        for span in interval(row.effective_from, row.effective_until, ended_at):
            yield {
                "pool": pool,
                "dimension": dimension.dimension,
                "by": row.by,
                "value": row.value,
                "numerator": int(Fraction(row.multiplier) * denominators[row.by]),
                "denominator": denominators[row.by],
                **span_columns(span),
            }


def _tranches(commitment: SupplierCommitment, entry: Entry) -> Iterator[Row]:
    for tranche in commitment.tranches:
        for span in _begun(tranche.effective_from, tranche.effective_until, entry.ended_at, whole=True):
            yield {
                "supplier": commitment.supplier,
                "commitment": commitment.commitment,
                "amount": tranche.amount,
                "units": tranche.units,
                "unit": tranche.unit,
                "currency": commitment.currency,
                "draws": commitment.draws,
                "shortfall_rule": commitment.shortfall_rule,
                "shortfall_ratio": commitment.shortfall_ratio,
                "roll_over_cap_ratio": commitment.roll_over_cap_ratio,
                "roll_over_until": commitment.roll_over_until,
                **span_columns(span),
            }


def _rates(rates: ExchangeRates, entry: Entry) -> Iterator[Row]:
    dated = sorted(rates.rates, key=lambda row: row.effective_from)
    ends = [row.effective_from for row in dated[1:]]
    for row, until in zip(dated, [*ends, None], strict=True):
        for span in interval(row.effective_from, until, entry.ended_at):
            yield {
                "currency": rates.currency,
                "into": rates.into,
                "kind": rates.rate_kind,
                "rate": row.rate,
                **span_columns(span),
            }

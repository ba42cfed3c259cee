"""What must hold in a capacity contract, a commitment to a supplier and a list of exchange rates."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import combinations

from metering.catalog.documents import MISSING, Fault, KeyPath
from metering.catalog.fields import decimal_text, instant_text
from metering.catalog.placed import Placed, breakpoint_known, ends, overlaps, priced_meters, spans
from metering.catalog.shapes import ANY
from metering.catalog.spans import OPEN, interval, minus
from metering.catalog.supply import (
    OTHER_METERS,
    PER_UNIT,
    STEP_FEES,
    Burndown,
    CapacityContract,
    Dimension,
    ExchangeRates,
    FeeTerm,
    SupplierCommitment,
)
from metering.meters import FIRST_METERS, METERS
from metering.periods import month_start


def capacity_contract(one: Placed, pool: CapacityContract) -> Iterator[Fault]:
    """Every fault of a pool that needs no other object to be seen."""
    names = [dimension.dimension for dimension in pool.dimensions]
    for name, count in Counter(names).items():
        if count > 1:
            yield one.fault(("dimensions",), name, f"is given {count} times; keep one dimension of this name")
    if sum(dimension.fee_share_ratio for dimension in pool.dimensions) != 1:
        yield one.fault(
            ("dimensions",), MISSING, "the fee_share_ratio of a pool's dimensions must sum to exactly 1"
        )
    for field in ("window_seconds", "units_sold_in", "renews_for_months"):
        if getattr(pool, field) == 0:
            yield one.fault((field,), 0, "must be more than 0; leave it out if it does not apply")
    yield from _renewal(one, pool)
    units = list(_units(one, pool, names))
    yield from units
    yield from _fees(one, pool, names)
    for place, dimension in enumerate(pool.dimensions):
        path: KeyPath = ("dimensions", place)
        if dimension.unit_burn_per_minute == 0:
            yield one.fault((*path, "unit_burn_per_minute"), 0, "must be more than 0")
        yield from _burndown(one, path, dimension, pool)
        yield from spans(one, (*path, "multipliers"), dimension.multipliers, lambda row: (row.by, row.value))
    if not units:
        yield from _set_aside(one, pool, names)


def _renewal(one: Placed, pool: CapacityContract) -> Iterator[Fault]:
    if pool.renews_for_months and pool.term_until is None:
        yield one.fault(
            ("renews_for_months",),
            pool.renews_for_months,
            "nothing renews, for the last step has no end; give it the `effective_until` of the term",
        )
    if pool.notice_days is not None and pool.renews_for_months is None:
        yield one.fault(
            ("notice_days",),
            pool.notice_days,
            "there is nothing to give notice of without a renewal; add renews_for_months or leave it out",
        )


def _units(one: Placed, pool: CapacityContract, names: Sequence[str]) -> Iterator[Fault]:
    yield from spans(one, ("steps",), pool.steps, lambda row: ())
    for index, step in enumerate(pool.steps):
        path: KeyPath = ("steps", index, "units")
        yield from _dimensions(one, path, step.units, names, every=True)
        for name in sorted({*names} & {*step.units}):
            units = step.units[name]
            if 0 < units < pool.units_min:
                yield one.fault(
                    (*path, name), units, f"is below units_min ({pool.units_min}); buy more, or 0 for none"
                )
            elif pool.units_sold_in and units % pool.units_sold_in:
                below = units // pool.units_sold_in * pool.units_sold_in
                yield one.fault(
                    (*path, name),
                    units,
                    f"is not a multiple of units_sold_in ({pool.units_sold_in}); "
                    f"write {below} or {below + pool.units_sold_in}",
                )
    for name in names:
        if not any(step.units.get(name, 1) for step in pool.steps):
            yield one.fault(
                ("steps",),
                MISSING,
                f"dimension {name} has 0 units over the whole term; say how many were bought, "
                "or take the pool out",
            )


def _dimensions(
    one: Placed, path: KeyPath, units: Mapping[str, object], names: Sequence[str], *, every: bool
) -> Iterator[Fault]:
    for name in sorted({*names} ^ {*units} if every else {*units} - {*names}):
        problem = (
            f"no units are given for dimension {name}; add them"
            if name in names
            else f"there is no dimension {name}; it has {', '.join(names)}"
        )
        yield one.fault(path, name, problem)


# ---- fees ----------------------------------------------------------------------------------------------


def _fees(one: Placed, pool: CapacityContract, names: Sequence[str]) -> Iterator[Fault]:
    terms = list(pool.fee_terms())
    for index, step in enumerate(pool.steps):
        if not any(_overlap(term, step.effective_from, step.effective_until) for term in terms):
            yield one.fault(
                ("steps", index),
                instant_text(step.effective_from),
                f"no fee covers this step; give it {', '.join(STEP_FEES)}, or the contract a fee under "
                "`fees`; what costs nothing has `fee_per_month: 0`",
            )
    reserved = {fee for fee, _ in STEP_FEES.values()}
    for index, row in enumerate(pool.fees):
        path: KeyPath = ("fees", index)
        if row.fee in reserved:
            yield one.fault((*path, "fee"), row.fee, "is what a fee of a step is called; choose another name")
        start, until = row.effective_from or pool.term_from, row.effective_until or pool.term_until
        yield from ends(one, path, start, until)
        yield from _inside_term(one, path, start, until, pool)
    yield from overlaps(
        ((row.fee, row.dimension), row.effective_from, row.effective_until, one, row.path)
        for row in terms
        if row.path[0] == "fees"
    )
    for term in terms:
        if term.dimension is not None and term.dimension not in names:
            yield one.fault(
                term.path,
                term.dimension,
                f"there is no dimension {term.dimension}; it has {', '.join(names)}",
            )
        if term.per in PER_UNIT and term.dimension is None and len(names) > 1:
            yield one.fault(
                term.path,
                decimal_text(term.amount),
                f"is per unit, and units are counted by dimension; say of which of {', '.join(names)}",
            )
        if term.per == "span" and term.effective_until is None:
            yield one.fault(
                term.path,
                decimal_text(term.amount),
                "is a fee for a span without an end; give the span an `effective_until`",
            )
    yield from _said_twice(one, terms)


def _inside_term(
    one: Placed, path: KeyPath, start: datetime, until: datetime | None, pool: CapacityContract
) -> Iterator[Fault]:
    if start < pool.term_from:
        yield one.fault(
            (*path, "effective_from"),
            instant_text(start),
            f"lies before the term, which begins at {instant_text(pool.term_from)}; move one of them",
        )
    if pool.runs_until and until and until > pool.runs_until:
        yield one.fault(
            (*path, "effective_until"),
            instant_text(until),
            f"lies after the term, which ends at {instant_text(pool.runs_until)}; move one of them",
        )


def _said_twice(one: Placed, terms: Sequence[FeeTerm]) -> Iterator[Fault]:
    """Two prices of a unit in one step, or the same amount for the same thing under two names."""
    for first, second in combinations(terms, 2):
        same_dimension = None in (first.dimension, second.dimension) or first.dimension == second.dimension
        if not same_dimension or not _overlap(second, first.effective_from, first.effective_until):
            continue
        where = f"{one.document.file}:{one.document.line((*one.path, *first.path))}"
        if first.path[:2] == second.path[:2]:
            if {first.per, second.per} <= {*PER_UNIT}:
                yield one.fault(
                    second.path,
                    decimal_text(second.amount),
                    f"a unit of this step already has a price at {where} ({first.path[-1]}); keep one of them",
                )
        elif (first.per, first.amount, first.currency) == (second.per, second.amount, second.currency) and (
            (first.fee, first.dimension) != (second.fee, second.dimension)
        ):
            yield one.fault(
                second.path,
                decimal_text(second.amount),
                f"says the same as the fee at {where} ({first.fee}, per {first.per.replace('_', ' ')}): it would "
                "be paid twice; keep one of them",
            )


def _overlap(term: FeeTerm, start: datetime, until: datetime | None) -> bool:
    return term.effective_from < (until or OPEN) and start < (term.effective_until or OPEN)


# ---- weights -------------------------------------------------------------------------------------------


def _burndown(one: Placed, path: KeyPath, dimension: Dimension, pool: CapacityContract) -> Iterator[Fault]:
    rows = []
    for index, table in enumerate(dimension.burndown):
        here: KeyPath = (*path, "burndown", index)
        yield from ends(one, here, table.effective_from, table.effective_until)
        yield from breakpoint_known(one, here, table.above_input_tokens)
        for model in table.models:
            group = (model, table.above_input_tokens)
            rows.append((group, table.effective_from, table.effective_until, one, here))
        yield from _weights(one, here, table.weights)
    yield from overlaps(rows)
    yield from _holes(one, (*path, "burndown"), dimension, pool)


def _holes(one: Placed, path: KeyPath, dimension: Dimension, pool: CapacityContract) -> Iterator[Fault]:
    """No hole between the versions of a model's table, nor a part of the term without any table.

    A table that begins after the term, because its model came later, or that ends before it is no hole.
    """
    tables = [table for table in dimension.burndown if table.above_input_tokens == 0]
    if not tables:
        return
    term = interval(pool.term_from, pool.runs_until)
    for model in sorted({model for table in tables for model in table.models}):
        of_model = [table for table in tables if model in table.models or ANY in table.models]
        for start, until in minus(minus(term, minus(term, [_life(of_model)])), map(_span, of_model)):
            name = "every model" if model == ANY else f"model {model}"
            yield one.fault(
                path,
                model,
                f"no table says what {name} burns from {instant_text(start)} to {instant_text(until)}; "
                f"extend the one before or start the one after at {instant_text(start)}",
            )
    for start, until in minus(term, [_life(tables)]):
        end = "on" if until == OPEN else f"to {instant_text(until)}"
        yield one.fault(
            path,
            MISSING,
            f"no table holds from {instant_text(start)} {end}, which is within the term; "
            "usage would burn nothing: extend a table, or shorten the term",
        )


def _span(table: Burndown) -> tuple[datetime, datetime]:
    return table.effective_from, table.effective_until or OPEN


def _life(tables: Sequence[Burndown]) -> tuple[datetime, datetime]:
    """From the start of the first table to the end of the last."""
    edges = [_span(table) for table in tables]
    return min(start for start, _ in edges), max(until for _, until in edges)


def _weights(one: Placed, path: KeyPath, weights: Mapping[str, object]) -> Iterator[Fault]:
    for meter in weights:
        if meter not in (*METERS, OTHER_METERS):
            yield one.fault(
                (*path, "weights", meter), meter, f"is not a meter; meters are {', '.join(METERS)}"
            )
    lacking = [meter for meter in FIRST_METERS if meter not in priced_meters(weights)]
    if lacking and OTHER_METERS not in weights:
        yield one.fault(
            (*path, "weights"),
            MISSING,
            f"has no weight for {', '.join(lacking)}; name them, or say `{OTHER_METERS}: 0`",
        )


# ---- what is set aside ---------------------------------------------------------------------------------


def _set_aside(one: Placed, pool: CapacityContract, names: Sequence[str]) -> Iterator[Fault]:
    rows: list[tuple[str, Mapping[str, int], datetime, datetime | None, KeyPath]] = []
    for index, carved in enumerate(pool.carve_outs):
        here: KeyPath = ("carve_outs", index)
        until = carved.effective_until or pool.runs_until
        rows.append((carved.carve_out, carved.units, carved.effective_from, until, here))
    for index, missing in enumerate(pool.undelivered):
        here = ("undelivered", index)
        rows.append((missing.reason, missing.units, missing.effective_from, missing.effective_until, here))
    for _, units, start, until, here in rows:
        yield from ends(one, here, start, until)
        yield from _dimensions(one, (*here, "units"), units, names, every=False)
        for dimension, count in units.items():
            if count == 0:
                yield one.fault((*here, "units", dimension), 0, "must be more than 0; take the row out")
    yield from overlaps(((here[0], name), start, until, one, here) for name, _, start, until, here in rows)
    for dimension in names:
        contracted = [
            (step.units.get(dimension, 0), step.effective_from, pool.runs_on(step.effective_until))
            for step in pool.steps
        ]
        aside = [(units.get(dimension, 0), start, until, here) for _, units, start, until, here in rows]
        starts = sorted(
            {start for _, start, _, _ in aside}
            | {until for _, _, until in contracted if until}
            | {start for _, start, _ in contracted}
        )
        for at in starts:
            held = [
                (start, units, here) for units, start, until, here in aside if start <= at < (until or OPEN)
            ]
            there = sum(units for units, start, until in contracted if start <= at < (until or OPEN))
            taken = sum(units for _, units, _ in held)
            if taken > there:
                _, last, here = max(held)
                yield one.fault(
                    (*here, "units"),
                    last,
                    f"at {instant_text(at)} {taken} units of dimension {dimension} are carved out or "
                    f"undelivered, and {there} are contracted; take fewer, or another span",
                )
                break


# ---- commitments and exchange rates --------------------------------------------------------------------


def supplier_commitment(one: Placed, commitment: SupplierCommitment) -> Iterator[Fault]:
    """Tranches have an end, say one thing, and do not overlap."""
    yield from spans(one, ("tranches",), commitment.tranches, lambda row: ())
    first = commitment.tranches[0]
    for index, tranche in enumerate(commitment.tranches):
        path: KeyPath = ("tranches", index)
        if tranche.effective_until is None:
            yield one.fault(
                (*path, "effective_until"), MISSING, "is required: what is committed is due at an end; add it"
            )
        if (tranche.amount is None) == (tranche.units is None):
            yield one.fault(
                path,
                MISSING if tranche.amount is None else decimal_text(tranche.amount),
                "must commit either an `amount` of money or `units` with their `unit`; write one of them",
            )
        elif (tranche.units is None) != (tranche.unit is None):
            yield one.fault(
                (*path, "unit"),
                tranche.unit or MISSING,
                "units and their unit go together; write both or none",
            )
        elif (tranche.units is None, tranche.unit) != (first.units is None, first.unit):
            yield one.fault(
                path,
                tranche.unit or commitment.currency,
                "the tranches of a commitment are all in money or all in one unit; write two commitments",
            )
    if commitment.shortfall_rule != "roll_over":
        given = {
            "roll_over_cap_ratio": commitment.roll_over_cap_ratio
            and decimal_text(commitment.roll_over_cap_ratio),
            "roll_over_until": commitment.roll_over_until and instant_text(commitment.roll_over_until),
        }
        for field, value in given.items():
            if value is not None:
                yield one.fault(
                    (field,),
                    value,
                    f"only holds with `shortfall_rule: roll_over`, not {commitment.shortfall_rule}",
                )
    elif commitment.roll_over_until is not None:
        earliest = min(row.effective_until or OPEN for row in commitment.tranches)
        if commitment.roll_over_until <= earliest:
            yield one.fault(
                ("roll_over_until",),
                instant_text(commitment.roll_over_until),
                f"nothing could roll over: the first tranche ends at {instant_text(earliest)}; name a later one",
            )


def exchange_rates(one: Placed, rates: ExchangeRates) -> Iterator[Fault]:
    """Two currencies, one rate at a time, monthly averages from the first of a month."""
    if rates.currency == rates.into:
        yield one.fault(("to",), rates.into, "is the currency itself; name another one")
    first: dict[datetime, int] = {}
    for index, row in enumerate(rates.rates):
        path: KeyPath = ("rates", index, "effective_from")
        start = row.effective_from
        if start in first:
            line = one.document.line((*one.path, "rates", first[start]))
            yield one.fault(
                path,
                instant_text(start),
                f"already has a rate at {one.document.file}:{line}; keep one of them",
            )
        first.setdefault(start, index)
        if rates.rate_kind == "month_average" and start != month_start(start.date()):
            yield one.fault(
                path,
                instant_text(start),
                f"an average holds for a month: write {instant_text(month_start(start.date()))[:10]}",
            )

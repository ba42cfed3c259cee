"""What a scenario comes to: a period as recorded and as supposed, laid out side by side, with who pays in words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from typing import Final

import polars as pl

from metering.catalog.scenarios import Scenario
from metering.core.extra_demand import Filled
from metering.core.losses import losses
from metering.core.margin import Margin
from metering.core.windows import in_burn_units
from metering.delivery import columns
from metering.delivery.report import Column, Provenance, Report, choose_by, counted, instant, select
from metering.delivery.tables import money
from metering.frames.books import Books
from metering.money import ratio
from workers.demand import Raised
from workers.losing import why
from workers.reports import unrated_notes

_PARTS: Final = ("company", "pool", "plan", "segment", "customer")
_BURN: Final = ("contracted", "served", "idle", "overrun", "spill")
_MONEY: Final = (
    *("charge", "fee", "revenue", "cost_pool", "cost_on_demand", "cost", "margin"),
    *("cost_loaded", "margin_loaded"),
)
#: What changes by less is not shown in tables.
_CENT: Final = Decimal("0.01")


@dataclass(frozen=True)
class Compared:
    """A period before and after a scenario. afters: one, or where limits are raised the lower and the upper bound.

    others: with all changes but raised limits, where there are such and others; None: there are not.
    """

    scenario: Scenario
    provenance: Provenance
    books_before: Books
    currency: str
    before: Margin
    afters: tuple[Margin, ...]
    others: Margin | None
    stuck: tuple[str, ...]
    rebuilt: tuple[str, ...]
    raised: Raised | None
    filled: tuple[Filled, ...]

    @cached_property
    def _sides(self) -> dict[str, Margin]:
        """Each side under the end of its columns' names."""
        ends = ("_after",) if len(self.afters) == 1 else ("_lower", "_upper")
        return {"": self.before, **dict(zip(ends, self.afters, strict=True))}

    def by(self, text: str, *, concluding: bool = True) -> Report:
        """The company, one row per pool and dimension, or one per plan, segment or customer that it changes.

        Tables leave out what nothing changes in: columns of pools, and rows whose change is less than a cent.
        concluding: with notes, which end on what it costs and who pays.
        """
        (part,) = choose_by(text, _PARTS, ("pool",), "what-if")[:1]
        rows = {"company": self._company, "pool": self._pools}.get(part, lambda: self._changed(part))()
        laid_out = columns.in_currency(select(columns.WHAT_IF, rows.columns), self.currency)
        notes: list[str] = []
        shown = None
        if part == "pool":
            laid_out, same = _that_change(laid_out, rows, [end for end in self._sides if end])
            if (rows["dimension"] == "all").all():
                laid_out = tuple(replace(one, rank=9) if one.name == "dimension" else one for one in laid_out)
            notes += [f"the same before and after: {', '.join(same)}"] if same else []
        elif part != "company":
            changes = [pl.col(name).abs() >= _CENT for name in rows.columns if name.startswith("change")]
            felt = rows.filter(pl.any_horizontal(changes))
            # where all is less than a cent, that is the answer
            shown = felt if felt.height else None
            if shown is not None and shown.height < rows.height:
                few = counted(rows.height - shown.height, f"more {part}")
                verb = "changes" if rows.height - shown.height == 1 else "change"
                notes += [f"{few} {verb} by less than {_CENT} {self.currency}: --format csv has all"]
        if concluding:
            notes += [*self._notes(), *self._conclusion()]
        return Report(
            name=f"what_if_{part}",
            title=f"{self.scenario.name}: {part}, before and after",
            columns=laid_out,
            rows=rows,
            total=rows.clear(),
            provenance=self.provenance,
            notes=tuple(notes),
            empty="nothing changes",
            shown=shown,
            null_texts={
                "customer": "(unused capacity)",
                "segment": "(unused capacity)",
                "plan": "(no plan, unused)",
            },
        )

    def _company(self) -> pl.DataFrame:
        rows = []
        for measure in _MONEY:
            sums = {end: _amount(side.lines, measure) for end, side in self._sides.items()}
            row: dict[str, object] = {"measure": measure}
            for end, amount in sums.items():
                row |= (
                    {f"amount{end}": amount}
                    if not end
                    else {f"amount{end}": amount, f"change{end}": amount - sums[""]}
                )
            rows.append(row)
        money = self.before.lines.schema["cost"]
        schema = {name: pl.String if name == "measure" else money for name in rows[0]}
        return _named(pl.DataFrame(rows, schema=schema))

    def _pools(self) -> pl.DataFrame:
        by = ["pool", "dimension"]
        rows: pl.DataFrame | None = None
        for end, side in self._sides.items():
            sums = side.capacity.utilization.group_by(by).agg(
                pl.col("denominator").first(), *(pl.col(name).sum() for name in _BURN)
            )
            used = ratio(pl.col("served"), pl.col("contracted")).alias("served_of_contracted_ratio")
            one = sums.with_columns(
                used, *(in_burn_units(pl.col(name), pl.col("denominator")).alias(name) for name in _BURN)
            ).drop("denominator")
            one = one.rename({name: f"{name}{end}" for name in one.columns if name not in by})
            rows = one if rows is None else rows.join(one, on=by, how="full", coalesce=True)
        assert rows is not None
        for end, side in self._sides.items():
            cost = side.lines.group_by("pool").agg(
                pl.col(name).sum().alias(f"{name}{end}") for name in ("cost_pool", "cost_on_demand")
            )
            # a pool that is no more may still have traffic that was meant for it
            rows = rows.join(cost, on="pool", how="left", validate="m:1")
        order = [*_BURN, "served_of_contracted_ratio", "cost_pool", "cost_on_demand"]
        return rows.sort(by).select(*by, *(f"{name}{end}" for name in order for end in self._sides))

    def _changed(self, part: str) -> pl.DataFrame:
        kept = ["revenue", "cost", "margin"]
        rows: pl.DataFrame | None = None
        for end, side in self._sides.items():
            sums = side.lines.group_by(part).agg(pl.col("revenue", "cost").sum())
            sums = sums.with_columns((pl.col("revenue") - pl.col("cost")).alias("margin"))
            one = sums.select(part, *(pl.col(name).alias(f"{name}{end}") for name in kept))
            rows = (
                one if rows is None else rows.join(one, on=part, how="full", coalesce=True, nulls_equal=True)
            )
        assert rows is not None
        ends = [end for end in self._sides if end]
        rows = rows.with_columns(
            pl.col([f"{name}{end}" for name in kept for end in self._sides]).fill_null(0)
        )
        changed = pl.any_horizontal(pl.col(name) != pl.col(f"{name}{end}") for name in kept for end in ends)
        rows = rows.filter(changed).with_columns(
            (pl.col(f"margin{end}") - pl.col("margin")).alias(f"change{end}") for end in ends
        )
        order = [f"{name}{end}" for name in kept for end in self._sides] + [f"change{end}" for end in ends]
        return _named(rows.select(part, *order).sort(f"change{ends[-1]}", part, nulls_last=True))

    def _notes(self) -> Iterator[str]:
        if self.stuck:
            yield (
                f"{', '.join(self.stuck)}: no provider sells these models on demand, so what exceeds the pool is "
                "shown as overrun, at no cost: a lower bound"
            )
        if self.rebuilt and not self.books_before.bill_lines.is_empty():
            yield (
                f"{', '.join(self.rebuilt)}: costs are what the contracts say on both sides, without their bills"
            )
        cut = self.provenance.cut
        for placed in self.scenario.changes:
            since = getattr(placed.change, "effective_from", None)
            if isinstance(since, datetime) and since >= cut.until:
                yield (
                    f"{placed.place} {placed.name} takes effect at {instant(since)}, after the figures end "
                    f"({instant(cut.until)}): it changes nothing here"
                )
        yield from self._who_was_turned_away()
        for note in dict.fromkeys(note for side in self.afters for note in unrated_notes(side.unrated)):
            yield f"after: {note}"

    def _who_was_turned_away(self) -> Iterator[str]:
        held = self.raised
        if held is None:
            return
        if not held.windows:
            yield "no window of the limits that are raised was binding: nobody would have used more"
            return
        yield (
            f"{counted(held.windows, 'window')} of {counted(held.holders, 'holder')} "
            f"{'was' if held.windows == 1 else 'were'} binding; {counted(held.refused_requests, 'request')} "
            f"{'was' if held.refused_requests == 1 else 'were'} turned away in them. Lower: what those asked for; upper: "
            "all that the raised limits let through"
        )
        if not held.refused_requests:
            yield "no refusal names these limits: the lower bound is 0, because who was turned away left no trace"
        elif held.unestimated:
            yield f"{held.unestimated:,} of them came without an estimate of their tokens: the lower bound is too low"
        if held.extra.unmixed:
            yield (
                f"in {counted(held.extra.unmixed, 'binding window')} nothing was used, so that nobody knows of what "
                "the extra would be: it is left out, and both bounds are too low"
            )

    def _conclusion(self) -> Iterator[str]:
        """What it costs and who pays, in a sentence."""
        cut = self.provenance.cut
        if not cut.minutes:
            return

        def changes(measure: str) -> list[Decimal]:
            was = _amount(self.before.lines, measure)
            return [_amount(side.lines, measure) - was for side in self.afters]

        cost, revenue = changes("cost"), changes("revenue")
        monthly = Fraction(30 * 1440, cut.minutes)
        said = (
            f"{self.scenario.name}: costs {_span(cost, self.currency)} for {_span(revenue, self.currency, 'revenue')} "
            f"in {self.provenance.period.name}"
        )
        if monthly != 1:
            said += f"; over 30 days {_span([_times(one, monthly) for one in cost], self.currency)} for "
            said += _span([_times(one, monthly) for one in revenue], self.currency, "revenue")
        margins = [a - b for a, b in zip(revenue, cost, strict=True)]
        said += f"; the margin changes by {_range([f'{one:+,.2f}' for one in margins])} {self.currency}"
        yield from self._who_pays()
        yield from self._who_loses()
        yield said
        if self.others is not None:
            rest = self.others.lines
            more, earned = (
                [_amount(side.lines, measure) - _amount(rest, measure) for side in self.afters]
                for measure in ("cost", "revenue")
            )
            yield (
                f"of it the raised limits, given the other changes: {_span(more, self.currency)} for "
                f"{_span(earned, self.currency, 'revenue')}"
            )

    def _who_pays(self) -> Iterator[str]:
        for row in (
            pl.concat([one.burn for one in self.filled])
            .select("pool", "dimension")
            .unique()
            .sort("pool", "dimension")
            .iter_rows()
            if self.filled
            else ()
        ):
            pool, dimension = row
            sums = []
            for one in self.filled:
                found = one.burn.filter((pl.col("pool") == pool) & (pl.col("dimension") == dimension))
                sums.append(
                    found.select(pl.col("extra", "filled", "spilled") // pl.col("denominator")).row(0)
                    if found.height
                    else (0, 0, 0)
                )
            extra, idle, spill = (_range([f"{one:,}" for one in of]) for of in zip(*sums, strict=True))
            named = pool if dimension == "all" else f"{pool} {dimension}"
            yield (
                f"{named}: of {extra} more burn units {idle} fill idle capacity that was paid for anyway, "
                f"{spill} spill and are paid on demand"
            )

    def _who_loses(self) -> Iterator[str]:
        """Plans that lose money after it, why, and of what their further cost is made (at the upper bound)."""
        after, end = self.afters[-1], list(self._sides)[-1]
        bound = ", at the upper bound," if end == "_upper" else ""

        def costs(side: Margin, plan: str) -> list[Decimal]:
            lines = side.lines.filter(pl.col("plan") == plan)
            return [_amount(lines, name) for name in ("cost_pool", "cost_on_demand", "revenue", "cost")]

        for row in losses(after.lines, "plan").sort("margin", "whose").iter_rows(named=True):
            plan = row["whose"]
            was = costs(self.before, plan)
            pool, on_demand, _, cost = (a - b for a, b in zip(costs(after, plan), was, strict=True))
            already = " already loses" if was[2] < was[3] else " would lose"
            before = f" ({money(was[3] - was[2])} before)" if was[2] < was[3] else ""
            said = f"{plan}{already}{bound} {money(-row['margin'])} {self.currency}{before}: {why(row)}"
            if cost > 0:
                said += (
                    f"; of the {money(cost)} that it costs more, {money(pool)} is capacity in pools (what it fills "
                    f"stood idle, and was paid for) and {money(on_demand)} runs on demand"
                )
            yield said


def _that_change(
    laid_out: tuple[Column, ...], rows: pl.DataFrame, ends: Sequence[str]
) -> tuple[tuple[Column, ...], list[str]]:
    """(columns, those of nothing that changes never shown in tables; the headings of these)."""
    still = {
        column.name: column.heading
        for column in laid_out
        if f"{column.name}{ends[0]}" in rows.columns
        and all(rows[column.name].equals(rows[f"{column.name}{end}"]) for end in ends)
    }
    hidden = {*still, *(f"{name}{end}" for name in still for end in ends)}
    if len(hidden) == sum(1 for column in laid_out if column.rank < 9) - 2:  # all but pool and dimension
        return laid_out, []
    return (
        tuple(replace(column, rank=9) if column.name in hidden else column for column in laid_out),
        list(still.values()),
    )


def _named(rows: pl.DataFrame) -> pl.DataFrame:
    """The columns under the names of the report: before, after and change where a row has one measure."""
    names = {
        "amount": "before",
        "amount_after": "after",
        "amount_lower": "after_lower",
        "amount_upper": "after_upper",
    }
    names |= {"change_after": "change"}
    return rows.rename({name: to for name, to in names.items() if name in rows.columns})


def _times(amount: Decimal, factor: Fraction) -> Decimal:
    return amount * factor.numerator / factor.denominator


def _range(texts: Sequence[str]) -> str:
    """One text, or two as a range."""
    return " to ".join(dict.fromkeys(texts))


def _span(amounts: Sequence[Decimal], currency: str, what: str = "") -> str:
    """0.00 to 300.00 USD more, 12.50 USD less, -3.00 to +4.00 USD."""
    named = f" {what}" if what else ""
    rounded = [round(amount, 2) for amount in amounts]
    if all(amount >= 0 for amount in rounded):
        return f"{_range([f'{amount:,.2f}' for amount in rounded])} {currency} more{named}"
    if all(amount <= 0 for amount in rounded):
        return f"{_range([f'{-amount:,.2f}' for amount in rounded])} {currency} less{named}"
    return f"{_range([f'{amount:+,.2f}' for amount in rounded])} {currency}{named}"


def _amount(lines: pl.DataFrame, measure: str) -> Decimal:
    if measure.startswith("margin"):
        return _amount(lines, "revenue") - _amount(lines, measure.replace("margin", "cost"))
    total = lines[measure].sum()
    return total if isinstance(total, Decimal) else Decimal(total or 0)

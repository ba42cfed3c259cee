"""Where a cell of the capacity report comes from: units bought, what was set aside, burn by model and meter, cost."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import polars as pl

from metering.core.burn import burn_by_series, weights_in
from metering.core.capacity import Capacity
from metering.core.effective import in_force
from metering.errors import BadInput
from metering.frames.books import Books
from metering.meters import METERS
from metering.money import to_quanta
from metering.periods import DAY, Period
from metering.tree import MONEY_PER, Node, grouped, total

#: Columns that are sums of others: (sign, column).
_SUMS: Final[Mapping[str, tuple[tuple[int, str], ...]]] = {
    "available": ((1, "contracted"), (-1, "undelivered"), (-1, "carved_out")),
    "idle": ((1, "available"), (-1, "served")),
    "served": ((1, "burn"), (-1, "overrun")),
}
_QUANTITIES: Final = ("contracted", "undelivered", "carved_out", "burn", "overrun", "spill")
_COSTS: Final = ("undelivered_cost", "carved_out_cost", "served_cost", "idle_cost")
COLUMNS: Final = (*_SUMS, *_QUANTITIES, "recognised_cost", *_COSTS)


@dataclass(frozen=True)
class CapacityCell:
    """A cell of the capacity report: a pool or carve-out, a dimension (None: the only one), a column."""

    pool: str
    dimension: str | None
    column: str


def explain_capacity(
    pool_usage: pl.DataFrame,
    used: Capacity,
    pool_cost: pl.DataFrame,
    books: Books,
    period: Period,
    cell: CapacityCell,
    place: Callable[[str, str], str],
) -> Node:
    """The tree of a cell: its root is the report's figure (burn: numerators over the denominator), exactly.

    pool_usage: frames.POOL_USAGE of the pool and period; used: what was computed of it; pool_cost:
    results.POOL_COST. Raises BadInput for a column that has no parts, and where the pool has several dimensions, or
    currencies, and none was named: these cannot be added.
    """
    if cell.column not in COLUMNS:
        raise BadInput(
            f"capacity has no column '{cell.column}' that has parts; give one of {', '.join(COLUMNS)}"
        )
    whole = pl.concat([used.utilization, used.carve_outs]).filter(pl.col("pool") == cell.pool)
    dimensions = whole["dimension"].unique().sort().to_list()
    if cell.dimension is not None and cell.dimension not in dimensions:
        raise BadInput(
            f"'dimension={cell.dimension}': {cell.pool} has {', '.join(dimensions) or 'none'} in {period.name}"
        )
    if cell.dimension is not None:
        whole = whole.filter(pl.col("dimension") == cell.dimension)
        pool_cost = pool_cost.filter(pl.col("dimension") == cell.dimension)
    elif len(dimensions) > 1 and not cell.column.endswith("_cost"):
        raise BadInput(
            f"{cell.pool} has the dimensions {' and '.join(dimensions)}, which cannot be added; "
            f"add dimension={dimensions[0]}"
        )
    if whole.is_empty():
        raise BadInput(f"{cell.pool} had no capacity contracted in the complete part of {period.name}")
    explained = _Explained(pool_usage, whole, pool_cost, books, period, cell, place)
    return explained.cost(cell.column) if cell.column.endswith("_cost") else explained.node(cell.column)


@dataclass
class _Explained:
    pool_usage: pl.DataFrame
    minutes: pl.DataFrame
    pool_cost: pl.DataFrame
    books: Books
    period: Period
    cell: CapacityCell
    place: Callable[[str, str], str]

    @property
    def per(self) -> int:
        return int(self.minutes["denominator"][0])

    @property
    def unit(self) -> str:
        return "burn units"

    def _at(self, instant: str) -> pl.Expr:
        """Days, or the hours of a day."""
        daily = self.period.until - self.period.start > DAY
        return pl.col(instant).dt.truncate("1d" if daily else "1h").alias("at")

    @property
    def _each(self) -> str:
        return "days" if self.period.until - self.period.start > DAY else "hours"

    def _time(self, at: Any) -> str:
        return f"{at:%Y-%m-%d}" if self.period.until - self.period.start > DAY else f"{at:%H:%M}"

    # ---- quantities --------------------------------------------------------------------------------------

    def node(self, column: str) -> Node:
        if column in _SUMS:
            words = " ".join(f"{'-' if sign < 0 else '+'} {name}" for sign, name in _SUMS[column])
            children = [
                node if sign > 0 else node.negated(f"less {node.name}")
                for sign, name in _SUMS[column]
                for node in (self.node(name),)
                if node.amount or sign > 0
            ]
            found = total(
                column, children, self.per, self.unit, f"{words.removeprefix('+ ')}, minute by minute"
            )
        elif column == "contracted":
            found = self._contracted()
        elif column in ("burn", "spill"):
            found = self._burned(column)
        elif column in ("undelivered", "carved_out"):
            found = self._set_aside(column)
        else:
            found = self._by_time(column)
        # made anew, so that its parts are checked against the report's figure
        return replace(found, name=column, amount=int(self.minutes[column].sum()))

    def _contracted(self) -> Node:
        steps = self.books.capacity_steps.select(
            "pool", "dimension", "effective_from", "effective_until", "units", "unit_burn_per_minute"
        )
        rows = in_force(self.minutes, steps, at="minute", by=["pool", "dimension"])
        by = ["units", "unit_burn_per_minute"]
        rows = rows.group_by(by).agg(
            pl.col("contracted").sum(), pl.len().alias("minutes"), pl.col("minute").min().alias("since")
        )

        def leaf(row: Mapping[str, Any]) -> Node:
            where = self.place("capacity_contract", self.cell.pool)
            if row["units"] is None:
                return Node(
                    f"from {row['since']:%Y-%m-%dT%H:%MZ}",
                    row["contracted"],
                    self.per,
                    self.unit,
                    "a carve-out's units",
                )
            return Node(
                f"from {row['since']:%Y-%m-%dT%H:%MZ}",
                row["contracted"],
                self.per,
                self.unit,
                f"{row['units']:,} units x {row['unit_burn_per_minute']:,} a minute x {row['minutes']:,} minutes ({where})",
                facts={**{name: row[name] for name in (*by, "minutes")}, "catalog": where},
            )

        return grouped("", rows.sort("since"), [], leaf, self.per, self.unit)

    def _set_aside(self, column: str) -> Node:
        """By how much of it there was in a minute, with the names of what was set aside in the period."""
        rows = self.minutes.filter(pl.col(column) != 0).group_by(pl.col(column).alias("each"))
        sums = rows.agg(
            pl.col(column).sum(), pl.len().alias("minutes"), pl.col("minute").min().alias("since")
        )
        kind = {"carved_out": "carve_out"}.get(column, column)
        held = pl.col("effective_until").is_null() | (pl.col("effective_until") > self.period.start)
        names = self.books.set_aside.filter(
            held
            & (pl.col("pool") == self.cell.pool)
            & (pl.col("kind") == kind)
            & (pl.col("effective_from") < self.period.until)
        )["name"]
        whose = ", ".join(names.unique().sort())

        def leaf(row: Mapping[str, Any]) -> Node:
            where = self.place("capacity_contract", self.cell.pool)
            how = f"{row['each'] // self.per:,} a minute x {row['minutes']:,} minutes: {whose} ({where})"
            name = f"from {row['since']:%Y-%m-%dT%H:%MZ}"
            return Node(name, row[column], self.per, self.unit, how, facts={"minutes": row["minutes"]})

        return grouped("", sums.sort("since"), [], leaf, self.per, self.unit)

    def _burned(self, column: str) -> Node:
        """By model and meter: what each meter of a model burned by its weights in force."""
        ran_on = "pool" if column == "burn" else "overflow"
        meant = self.pool_usage.filter((pl.col("pool") == self.cell.pool) & (pl.col("ran_on") == ran_on))
        meant = meant.join(self.minutes.select("minute").unique(), on="minute", how="semi")
        found = []
        for meter in METERS:
            alone = meant.filter(pl.col(meter) != 0).with_columns(
                (pl.col(other) * 0).alias(other) for other in METERS if other != meter
            )
            series, weighed, _ = burn_by_series(alone, *weights_in(self.books))
            quantity = alone.group_by("model_served").agg(pl.col(meter).sum().alias("quantity"))
            found.append(
                weighed.join(series, on="series_id", validate="m:1")
                .join(self.minutes.select("dimension").unique(), on="dimension", how="semi")
                .group_by("model_served")
                .agg(pl.col("burn").sum())
                .join(quantity, on="model_served", validate="1:1")
                .with_columns(pl.lit(meter).alias("meter"))
            )
        rows = pl.concat(found).filter(pl.col("burn") != 0).sort("model_served", "meter")

        def leaf(row: Mapping[str, Any]) -> Node:
            where = self.place("capacity_contract", self.cell.pool)
            return Node(
                row["meter"],
                row["burn"],
                self.per,
                self.unit,
                f"{row['quantity']:,} {'ms' if row['meter'].endswith('_ms') else 'tokens'} x weights in force ({where})",
                facts={"quantity": row["quantity"], "catalog": where},
            )

        return grouped("", rows, [["model_served"]], leaf, self.per, self.unit)

    def _by_time(self, column: str) -> Node:
        rows = self.minutes.group_by(self._at("minute")).agg(
            pl.col(column).sum(), (pl.col(column) > 0).sum().alias("minutes"), pl.len().alias("all")
        )
        what = {"overrun": "burned above what was available"}.get(column, column.replace("_", " "))

        def how(row: Mapping[str, Any]) -> str:
            return f"{what} in {row['minutes']:,} of {row['all']:,} minutes"

        def leaf(row: Mapping[str, Any]) -> Node:
            return Node(self._time(row["at"]), row[column], self.per, self.unit, how(row))

        return grouped(
            "",
            rows.filter(pl.col(column) != 0).sort("at"),
            [],
            leaf,
            self.per,
            self.unit,
            each=self._each,
            whole=lambda _: how(rows.select(pl.col("minutes", "all").sum()).row(0, named=True)),
        )

    # ---- cost --------------------------------------------------------------------------------------------

    def cost(self, column: str) -> Node:
        currencies = self.pool_cost["currency"].unique().sort().to_list()
        if len(currencies) != 1:
            raise BadInput(
                f"{self.cell.pool} is paid for in {' and '.join(currencies) or 'no currency'}, which is no one amount; "
                "`metering explain closure`"
            )
        unit = currencies[0]
        if column == "recognised_cost":
            parts = [self._cost_by_time(name, unit) for name in _COSTS]
            return total(column, [part for part in parts if part.amount], MONEY_PER, unit, self._paid())
        found = self._cost_by_time(column, unit)
        return found.named(column, "; ".join(filter(None, [found.how, self._paid()])))

    def _cost_by_time(self, column: str, unit: str) -> Node:
        """A part of the recognised cost by day, or by hour of a day."""
        part = column.removesuffix("_cost")
        quarters = self.minutes.group_by(
            "dimension", pl.col("minute").dt.truncate("15m").alias("quarter_start")
        ).agg(pl.col(part, "contracted").sum())
        rows = (
            self.pool_cost.join(quarters, on=["dimension", "quarter_start"], how="left", validate="m:1")
            .group_by("dimension", self._at("quarter_start"))
            .agg(
                to_quanta(pl.col(column)).sum().alias("quanta"),
                to_quanta(pl.col("recognised_cost")).sum().alias("recognised"),
                pl.col(part, "contracted").sum(),
                pl.col("estimated").any(),
            )
            .sort("dimension", "at")
        )

        def how(row: Mapping[str, Any]) -> str:
            state = " (estimated: not billed yet)" if row["estimated"] else ""
            recognised = Node("", row["recognised"], MONEY_PER, unit).value
            return (
                f"{row[part] // self.per:,} of {row['contracted'] // self.per:,} contracted, of {recognised:,.2f} "
                f"recognised{state}, quarter hour by quarter hour"
            )

        def whole(rows: pl.DataFrame) -> str:
            sums = rows.select(pl.col("recognised", part, "contracted").sum(), pl.col("estimated").any())
            return how(sums.row(0, named=True))

        def leaf(row: Mapping[str, Any]) -> Node:
            return Node(
                self._time(row["at"]),
                row["quanta"],
                MONEY_PER,
                unit,
                how(row),
                facts={
                    "recognised_cost": Node("", row["recognised"], MONEY_PER, unit).value,
                    part: row[part] // self.per,
                    "estimated": row["estimated"],
                },
            )

        levels = [["dimension"]] if rows["dimension"].n_unique() > 1 else []
        return grouped(column, rows, levels, leaf, MONEY_PER, unit, each=self._each, whole=whole)

    def _paid(self) -> str:
        """The bill lines of the pool whose service touches the period; else the fees that stand for them."""
        touches = (pl.col("service_from") < self.period.until) & (pl.col("service_until") > self.period.start)
        bills = self.books.bill_lines.filter(
            (pl.col("object_kind") == "pool") & (pl.col("object") == self.cell.pool) & touches
        ).sort("service_from", "document", "line")
        told = [
            f"{row['category'].replace('_', ' ')} of {row['amount']:,.2f} {row['currency']}, {row['document']} line "
            f"{row['line']}, for {row['service_from']:%Y-%m-%d}..{row['service_until']:%Y-%m-%d}"
            for row in bills.iter_rows(named=True)
        ]
        held = pl.col("effective_until").is_null() | (pl.col("effective_until") > self.period.start)
        fees = self.books.capacity_fees.filter(
            (pl.col("pool") == self.cell.pool) & held & (pl.col("effective_from") < self.period.until)
        ).sort("effective_from", "fee")
        told += [
            f"fee {row['fee']}: {row['amount']:,.2f} {row['currency']} per {row['per'].replace('_', ' ')}"
            for row in fees.iter_rows(named=True)
        ]
        where = self.place("capacity_contract", self.cell.pool)
        shown = told[:4] + ([f"and {len(told) - 4} more"] if len(told) > 4 else [])
        return f"recognised from {'; '.join(shown) or 'nothing'} ({where})"

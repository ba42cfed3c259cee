"""The capacity report: pools and what was set aside from them, by window, hour of week, model or customer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import polars as pl

from metering.core.burn import carve_out_pools
from metering.core.capacity import Capacity, summarise_capacity
from metering.core.shares import customer_shares, model_shares
from metering.core.windows import (
    WINDOWS,
    capacity_curve,
    capacity_hours_of_week,
    capacity_windows,
    in_burn_units,
    pool_costs,
    sum_costs,
)
from metering.delivery import columns
from metering.delivery.pictures import Cell, Picture
from metering.delivery.report import Column, Provenance, Report, as_total, choose_by, select
from metering.errors import BadInput
from metering.frames.books import Books
from metering.frames.frame import SUM
from metering.money import MONEY
from metering.results.costs import POOL_COST

#: What the rows may be about; of all but `pool` one at a time.
CAPACITY_BY: Final = ("pool", *WINDOWS, "hour_of_week", "model", "customer")
_ORDER: Final = ("pool", "dimension", "window_start", "hour_of_week", "model_served", "customer")
_COST: Final = tuple(name for name, dtype in POOL_COST.columns.items() if dtype == MONEY)
#: Stretches of time that the line of a picture may have: it fits beside its heading on 80 columns.
_POINTS_MAX: Final = 64


def chosen_by(text: str | None) -> str:
    """What the rows of `--by` are about beside pool and dimension: one of CAPACITY_BY. Two are BadInput."""
    words = [word for word in choose_by(text, CAPACITY_BY, ("pool",), "capacity") if word != "pool"]
    if len(words) > 1:
        windows = "two windows" if all(word in WINDOWS for word in words[:2]) else "both"
        raise BadInput(f"--by names {windows}, {words[0]} and {words[1]}; give one of them")
    return words[0] if words else "pool"


def known_pool(pool: str | None, books: Books) -> list[str] | None:
    """The pools to read for `--pool`; None: all. BadInput names those that there are."""
    if pool is None:
        return None
    pools = books.pools["pool"].unique().sort().to_list()
    carve_outs = carve_out_pools(books.set_aside)["carve_out"].to_list()
    if pool not in (*pools, *carve_outs):
        there = f"there are {', '.join(pools)}" if pools else "the catalog has none"
        aside = f"; set aside from them: {', '.join(carve_outs)}" if carve_outs else ""
        raise BadInput(f"--pool '{pool}': no such pool; {there}{aside}")
    return [pool]


@dataclass(frozen=True)
class CapacityReport:
    """The capacity of a period, minute by minute: `computed`. `pool`: show this one alone.

    `pool_usage` (frames.POOL_USAGE) is needed by model, `customer_usage` (frames.POOL_CUSTOMER_USAGE, of the
    one pool where `pool` is given) by customer.
    """

    provenance: Provenance
    books: Books
    currency: str
    computed: Capacity
    pool: str | None = None
    pool_usage: pl.DataFrame | None = None
    customer_usage: pl.DataFrame | None = None

    @cached_property
    def minutes(self) -> pl.DataFrame:
        """results.UTILIZATION of the pools and of the carve-outs."""
        return pl.concat([self.computed.utilization, self.computed.carve_outs])

    @cached_property
    def pool_cost(self) -> pl.DataFrame:
        """Recognised cost per pool, dimension and quarter hour, and what became of it: results.POOL_COST."""
        return pool_costs(self.computed.utilization, self.books, self.provenance.cut)

    def by(self, text: str | None = None, name: str = "capacity", *, picture: bool | None = False) -> Report:
        """Per pool and dimension for the whole period, or by one more of CAPACITY_BY.

        picture: draw every pool below the table; None: where one pool is shown.
        """
        about = chosen_by(text)
        catalogue, rows = self._rows(about)
        rows = rows.join(
            carve_out_pools(self.books.set_aside).rename({"carve_out": "pool", "pool": "carve_out_of"}),
            on="pool",
            how="left",
            validate="m:1",
        )
        burned = [name for name, dtype in rows.schema.items() if dtype == SUM and name != "requests"]
        rows = rows.with_columns(
            in_burn_units(pl.col(burn), pl.col("denominator")).alias(burn) for burn in burned
        )
        if self.pool is not None:
            rows = rows.filter(pl.col("pool") == self.pool)
        declared = [column.name for column in catalogue if column.name in rows.columns]
        rows = rows.select(declared).sort([column for column in _ORDER if column in declared])
        what = {"model": "model served"}.get(about, about.replace("_", " "))
        costs = "currency" in declared
        currencies = rows["currency"].drop_nulls().unique().to_list() if costs else []
        # a sum of one currency would leave out, without a word, a pool that is paid for in several
        sums = len(currencies) == 1 and not self._in_several_currencies()
        drawn = picture or (picture is None and rows["pool"].n_unique() == 1)
        return Report(
            name=name,
            title=f"Capacity by pool, dimension{'' if about == 'pool' else f', {what}'}",
            columns=self._laid_out(select(catalogue, declared), rows, currencies),
            rows=rows,
            total=self._total(rows) if sums else rows.clear(),
            provenance=self.provenance,
            notes=tuple(self._notes()),
            empty="no capacity was contracted in the complete part of the period"
            if about not in ("model", "customer")
            else "no capacity was used in the complete part of the period",
            pictures=tuple(self._pictures()) if drawn else (),
        )

    def _rows(self, about: str) -> tuple[tuple[Column, ...], pl.DataFrame]:
        if about == "model":
            assert self.pool_usage is not None, "by model needs usage by model"
            return columns.CAPACITY_MODELS, model_shares(self.pool_usage, self.books, self.computed)
        if about == "customer":
            assert self.customer_usage is not None, "by customer needs usage by customer"
            return columns.CAPACITY_CUSTOMERS, customer_shares(self.customer_usage, self.books, self._asked())
        if about in WINDOWS:
            return columns.CAPACITY, capacity_windows(self.minutes, self.pool_cost, about)
        if about == "hour_of_week":
            return columns.CAPACITY, capacity_hours_of_week(self.minutes, self.pool_cost)
        cost = sum_costs(self.pool_cost, ["pool", "dimension"])
        bought = self.books.pools.select("pool", "supplier", "unit")
        rows = (
            summarise_capacity(self.minutes)
            .join(cost, on=["pool", "dimension"], how="left", validate="1:1")
            .join(bought, on="pool", how="left", validate="m:1")
        )
        return columns.CAPACITY, rows

    def _asked(self) -> Capacity:
        """Of the pools that usage by customer was read for."""
        if self.pool is None:
            return self.computed
        here = pl.col("pool") == self.pool
        used = self.computed
        return Capacity(
            used.utilization.filter(here), used.unburned.filter(here), used.carve_outs.filter(here)
        )

    def _laid_out(
        self, laid_out: tuple[Column, ...], rows: pl.DataFrame, currencies: Sequence[str]
    ) -> tuple[Column, ...]:
        if rows["dimension"].n_unique() > 1:
            ranks = {"dimension": 0, "tightest": 1}
            laid_out = tuple(replace(column, rank=ranks.get(column.name, column.rank)) for column in laid_out)
        if len(currencies) <= 1:
            return columns.in_currency(laid_out, currencies[0] if currencies else self.currency)
        return tuple(replace(column, rank=0) if column.name == "currency" else column for column in laid_out)

    @staticmethod
    def _total(rows: pl.DataFrame) -> pl.DataFrame:
        """Cost alone adds up over pools: burn units of two pools are not the same thing."""
        return as_total(rows.select(pl.col(_COST).sum(), pl.col("currency").drop_nulls().first()), rows)

    def _pictures(self) -> list[Picture]:
        here = pl.lit(value=True) if self.pool is None else pl.col("pool") == self.pool
        minutes = self.minutes.filter(here)
        each, curve = capacity_curve(minutes, _POINTS_MAX)
        hours = capacity_hours_of_week(minutes, self.pool_cost)
        drawn = []
        for pool, dimension in minutes.select("pool", "dimension").unique().sort("pool", "dimension").rows():
            of_it = (pl.col("pool") == pool) & (pl.col("dimension") == dimension)
            line = curve.filter(of_it).sort("window_start")
            drawn.append(
                Picture(
                    title=f"{pool}, {dimension}",
                    hours=_cells(hours.filter(of_it).sort("hour_of_week")),
                    line=_cells(line),
                    line_from=line["window_start"][0],
                    each=each,
                )
            )
        return drawn

    def _in_several_currencies(self) -> list[tuple[str, list[str]]]:
        """The pools shown that are paid for in several currencies, and in which."""
        here = pl.lit(value=True) if self.pool is None else pl.col("pool") == self.pool
        currencies = self.pool_cost.filter(here).group_by("pool").agg(pl.col("currency").unique().sort())
        return currencies.filter(pl.col("currency").list.len() > 1).sort("pool").rows()

    def _notes(self) -> list[str]:
        lost = self.computed.unburned
        here = pl.lit(value=True) if self.pool is None else pl.col("pool") == self.pool
        notes = []
        for reason, says in (
            ("unknown_pool", "used, but no capacity contract was in force"),
            ("no_weight", "used by models or meters that their burndown table does not name"),
        ):
            pools = sorted(lost.filter(here & (pl.col("reason") == reason))["pool"].unique())
            if pools:
                notes.append(f"{', '.join(pools)}: {says}; not in the figures: `metering report unrated`")
        over = (
            self.minutes.group_by("pool")
            .agg(pl.col("spill", "overrun").sum())
            .filter(here & (pl.col("spill") == 0) & (pl.col("overrun") > 0))
        )
        if over.height:
            notes.append(
                f"{', '.join(sorted(over['pool']))}: burn exceeded what was available, and no event says that "
                "it overflowed; what exceeded is modelled spill, for planning only"
            )
        for pool, names in self._in_several_currencies():
            notes.append(
                f"{pool}: paid for in {' and '.join(names)}, which cannot be added; its cost: `metering report closure`"
            )
        short = self.books.pools.filter(here & (pl.col("window_seconds") < 60)).sort("pool")
        for pool, seconds in short.select("pool", "window_seconds").rows():
            notes.append(
                f"{pool}: the supplier counts by {seconds} s, these figures by the minute; what exceeds a window "
                "and not its minute is not seen"
            )
        return notes


def _cells(windows: pl.DataFrame) -> list[Cell]:
    shown = windows.select("served_of_available_ratio", "max_ratio", pl.col("minutes_at_limit") > 0)
    return [Cell(*row) for row in shown.rows()]

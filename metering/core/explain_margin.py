"""Where a cell of the margin report comes from: quantities, prices in force, shares of pools, fees, exchange rates."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from metering.core.agreed import plain
from metering.core.allocation import served_costs
from metering.core.capacity import weigh
from metering.core.costs import Part, parts, said
from metering.core.exchange import rates, translate
from metering.core.explain_terms import Place, Terms, cost_plus_lines, gross_lines, waterfall_lines
from metering.core.fees import fees_earned
from metering.core.flows import carve_outs, in_pool
from metering.core.margin import Margin, agreed
from metering.core.rating import charges, on_demand_costs
from metering.errors import BadInput
from metering.frames import SUM, Books
from metering.meters import METERS
from metering.money import from_quanta, to_quanta
from metering.periods import DAY
from metering.results import LINE_KEY
from metering.tree import MONEY_PER, Node, grouped, total

#: Columns that are sums of others: (sign, column).
_SUMS: Final[Mapping[str, Sequence[tuple[int, str]]]] = {
    "margin": ((1, "revenue"), (-1, "cost")),
    "margin_loaded": ((1, "revenue"), (-1, "cost_loaded")),
    "charge": ((1, "gross"), (-1, "discount")),
    "revenue": (
        *((1, name) for name in ("charge", "fee", "top_up", "overage_premium", "shortfall", "breakage")),
        (-1, "promotional_credit"),
    ),
    "cost": ((1, "cost_pool"), (1, "cost_on_demand")),
    "cost_loaded": ((1, "cost"), (1, "idle_share")),
    "cost_by_cause": ((1, "cost"), (1, "cause_shift")),
    "saving_against_on_demand": ((1, "on_demand_price"), (-1, "cost")),
}
_COUNTS: Final = ("requests", "billable_requests", *METERS)
#: Columns told line by line, and what they are.
_TOLD: Final = {
    "idle_share": "idle cost carried by the pool's idle policy (what some carry is taken from the pool's own line)",
    "cause_shift": "spill premium, moved from who spilled to who took more than it was entitled to",
    "on_demand_price": "quantity x cost book in force, as if all of it had run on demand",
    "fx_effect": "margin as translated less margin at the contract exchange rates",
}
#: What terms of contracts make of charges.
_OF_TERMS: Final = ("top_up", "overage_premium", "shortfall", "breakage", "promotional_credit")
#: What may be asked for.
COLUMNS: Final = (
    *(*_SUMS, "gross", "discount", "fee", *_OF_TERMS, "cost_pool", "cost_on_demand"),
    *(*_TOLD, *_COUNTS),
)


@dataclass(frozen=True)
class Cell:
    """A cell of the margin report: the lines that meet `where` (a null stands for nobody, nothing), and a column."""

    where: Mapping[str, Any]
    column: str

    @property
    def lines(self) -> pl.Expr:
        """Whether a row with the columns of margin lines belongs to the cell."""
        return pl.all_horizontal(
            pl.lit(value=True),
            *(
                pl.col(name).eq_missing(pl.lit(value, dtype=LINE_KEY[name]))
                for name, value in self.where.items()
            ),
        )


def explain_margin(usage: pl.DataFrame, made: Margin, books: Books, cell: Cell, place: Place) -> Node:
    """The tree of a cell: its root is the report's amount, each node the sum of its children, to the quantum.

    usage: what `made` was computed from. Both may be of the cell's customer and of the pools that it used alone. A
    part in another currency is one node, translated, made of a tree in that currency. Raises BadInput for a
    column that cannot be explained, or a cell without any line.
    """
    if cell.column not in COLUMNS:
        raise BadInput(
            f"margin has no column '{cell.column}' that has parts; give one of {', '.join(COLUMNS)}"
        )
    lines = made.lines.filter(cell.lines)
    if lines.is_empty():
        raise BadInput(f"margin has no line {_said(cell.where)} in {made.period.name}")
    return _Explained(usage, made, books, cell, place, lines).node(cell.column)


def _said(where: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={'-' if value is None else value}" for name, value in where.items())


@dataclass
class _Explained:
    usage: pl.DataFrame
    made: Margin
    books: Books
    cell: Cell
    place: Place
    lines: pl.DataFrame
    _parts: list[Part] | None = None

    def parts(self) -> list[Part]:
        if self._parts is None:
            self._parts = list(parts(self.usage, self.made.supply, self.books))
        return self._parts

    def node(self, column: str) -> Node:
        if column in _SUMS:
            children = [
                node if sign > 0 else node.negated(f"less {node.name}")
                for sign, name in _SUMS[column]
                for node in (self.node(name),)
                if node.amount or node.children
            ]
            words = " ".join(f"{'-' if sign < 0 else '+'} {name}" for sign, name in _SUMS[column])
            return self._root(column, children, words.removeprefix("+ "))
        if column in _COUNTS:
            return self._counted(column)
        if column in _TOLD:
            return self._told(column, _TOLD[column])
        if column in _OF_TERMS:
            return self._in_reporting(column, *self._of_terms(column))
        rows, tree = {
            "gross": self._gross,
            "discount": self._discounts,
            "fee": self._fees,
            "cost_pool": self._pool_costs,
            "cost_on_demand": self._on_demand,
        }[column]()
        return self._in_reporting(column, rows, tree)

    # ---- roots -------------------------------------------------------------------------------------------

    def _amount(self, column: str) -> int:
        """The cell in quanta; the margins are no column of a line, but sums of two."""
        if column in ("margin", "margin_loaded"):
            return sum(sign * self._amount(name) for sign, name in _SUMS[column])
        return int(self.lines.select(to_quanta(pl.col(column)).sum()).item() or 0)

    def _root(self, column: str, children: Sequence[Node], how: str = "") -> Node:
        """The report's amount over its parts; the parts must sum to it."""
        amount = self._amount(column)
        if not children and amount:
            children = [Node("without parts", 0, MONEY_PER, self.made.currency)]
        return Node(column, amount, MONEY_PER, self.made.currency, how, tuple(children))

    def _in_reporting(
        self, column: str, rows: pl.DataFrame, tree: Callable[[pl.DataFrame, str], Node]
    ) -> Node:
        """Parts in the reporting currency as they are, those in another as one translated node each."""
        into = self.made.currency
        children = list(tree(rows.filter(pl.col("currency") == into), into).children)
        abroad = rows.filter(pl.col("currency") != into)
        found = rates(abroad, self.books.exchange_rates, into).filter(pl.col("month_average").is_not_null())
        abroad = abroad.join(
            found.select("day", "currency", "month_average"), on=["day", "currency"], validate="m:1"
        )
        for currency in abroad["currency"].unique().sort():
            native = abroad.filter(pl.col("currency") == currency)
            daily = native.group_by("day", "month_average").agg(pl.col("quanta").sum())
            amount = daily.select(translate(pl.col("quanta"), pl.col("month_average")).sum()).item()
            at = " and ".join(_plain(rate) for rate in native["month_average"].unique().sort())
            children.append(
                Node(
                    f"in {currency}",
                    int(amount or 0),
                    MONEY_PER,
                    into,
                    f"x {at}, the month_average of {currency} in {into} ({self.place('exchange_rates', currency)})",
                    facts={"rate": at},
                    made_of=tree(native, currency),
                )
            )
        rest = self._amount(column) - sum(child.amount for child in children)
        if rest and abroad.height:
            how = "each line of the report is translated once, half-even at 12 places"
            children.append(Node("roundings of translation", rest, MONEY_PER, into, how))
        return self._root(column, children)

    # ---- what a customer pays ----------------------------------------------------------------------------

    def _mine(self, rows: pl.DataFrame, line: str | None) -> pl.DataFrame:
        """The rows (with slice_start and what lines are about) of the cell, with their day. line: None: theirs."""
        rows = said(rows, self.books).with_columns(pl.col("slice_start").dt.date().alias("day"))
        if line is not None:
            rows = rows.with_columns(pl.lit(line).alias("line"))
        if "contract" not in rows.columns:
            rows = rows.with_columns(pl.lit(None, dtype=pl.String).alias("contract"))
        rows = agreed(rows, self.books)
        absent = [name for name in LINE_KEY if name not in rows.columns]
        rows = rows.with_columns(pl.lit(None, dtype=LINE_KEY[name]).alias(name) for name in absent)
        return rows.filter(self.cell.lines)

    def _gross(self) -> tuple[pl.DataFrame, Callable[[pl.DataFrame, str], Node]]:
        """Quantity x unit price; of contracts under terms also by rule and counter, and ratios of charges and cost."""
        terms = gross_lines(self.made.earned, self.books)
        unit = [charges(plain(part.sliced, self.books), self.books)[0] for part in self.parts()]
        rated = pl.concat([*(each.drop("series_id") for each in unit), terms.by_unit], how="diagonal_relaxed")
        plainly, by_unit = self._rated(rated, "price_book", ("product", "tier_sold"))
        at = {"quarter_start": "slice_start"}
        others = {
            "rule": terms.by_rule.drop("series_id").with_columns(
                pl.col("quarter_start").alias("slice_start")
            ),
            "ratio": terms.by_ratio.drop("series_id").rename(at),
            "cost": cost_plus_lines(self.parts(), self.books, "gross"),
        }
        rows = pl.concat(
            [
                plainly.with_columns(pl.lit("unit").alias("_by")),
                *(
                    self._mine(each, "usage").with_columns(pl.lit(by).alias("_by"))
                    for by, each in others.items()
                    if each.height
                ),
            ],
            how="diagonal_relaxed",
        )
        told = self._terms()

        def tree(rows: pl.DataFrame, currency: str) -> Node:
            by = {str(name): part for (name,), part in rows.group_by("_by", maintain_order=True)}
            none = rows.clear()
            units = by_unit(by["unit"], currency).children if "unit" in by else ()
            parts = [
                *units,
                *told.by_rules(by.get("rule", none), currency),
                *told.by_ratios(by.get("ratio", none), currency),
                *told.at_cost(by.get("cost", none), currency, "of cost"),
            ]
            return total("", parts, MONEY_PER, currency)

        return rows, tree

    def _terms(self) -> Terms:
        return Terms(self.made.earned, self.books, self.made.period, self.place)

    def _discounts(self) -> tuple[pl.DataFrame, Callable[[pl.DataFrame, str], Node]]:
        lines = waterfall_lines(self.made.earned).with_columns(
            (pl.col("gross") - pl.col("net")).alias("quanta"), pl.lit(value=True).alias("_earned")
        )
        of_cost = cost_plus_lines(self.parts(), self.books, "discount")
        mine = [self._mine(lines, None)]
        if of_cost.height:
            mine.append(self._mine(of_cost, "usage").with_columns(pl.lit(value=False).alias("_earned")))
        told = self._terms()

        def tree(rows: pl.DataFrame, currency: str) -> Node:
            parts = [
                *told.discounts(rows.filter("_earned"), currency),
                *told.at_cost(
                    rows.filter(~pl.col("_earned")), currency, "line and contract discount of charges"
                ),
            ]
            return total("", parts, MONEY_PER, currency)

        return pl.concat(mine, how="diagonal_relaxed"), tree

    def _of_terms(self, column: str) -> tuple[pl.DataFrame, Callable[[pl.DataFrame, str], Node]]:
        lines = waterfall_lines(self.made.earned).with_columns(pl.col(column).alias("quanta"))
        told = self._terms()

        def tree(rows: pl.DataFrame, currency: str) -> Node:
            return total("", told.told(column, rows, currency), MONEY_PER, currency)

        return self._mine(lines, None), tree

    def _on_demand(self) -> tuple[pl.DataFrame, Callable[[pl.DataFrame, str], Node]]:
        rated = pl.concat(
            [on_demand_costs(part.sliced, self.books)[0].drop("series_id") for part in self.parts()]
            or [pl.DataFrame()]
        )
        return self._rated(rated, "cost_book", ("provider", "model_served", "tier_served", "ran_on"))

    def _rated(
        self, rated: pl.DataFrame, kind: str, first: tuple[str, ...]
    ) -> tuple[pl.DataFrame, Callable[[pl.DataFrame, str], Node]]:
        """Rated lines as quantity x unit price, a leaf for each price that was in force."""
        if rated.is_empty():
            return _NO_ROWS, lambda rows, currency: total("", [], MONEY_PER, currency)
        rows = self._mine(
            rated.with_columns(to_quanta(pl.col("amount")).alias("quanta")).rename(
                {"quarter_start": "slice_start"}
            ),
            "usage",
        )
        by = [*first, "region", "context_breakpoint", "meter", "book", "unit_price", "currency"]

        def tree(rows: pl.DataFrame, currency: str) -> Node:
            leaves = (
                rows.group_by(by)
                .agg(
                    pl.col("quantity", "quanta").sum(),
                    pl.col("day").min().alias("since"),
                    pl.col("day").max().alias("until"),
                )
                .sort(by)
            )

            def leaf(row: Mapping[str, Any]) -> Node:
                per_million = row["unit_price"] * 1_000_000
                where = self.place(kind, row["book"])
                return Node(
                    row["meter"],
                    row["quanta"],
                    MONEY_PER,
                    currency,
                    f"{row['quantity']:,} x {per_million.normalize():f} per million, book {row['book']} ({where})",
                    facts={
                        "quantity": row["quantity"],
                        "unit_price": row["unit_price"],
                        "book": row["book"],
                        "catalog": where,
                        "first_day": row["since"],
                        "last_day": row["until"],
                    },
                )

            return grouped("", leaves, [first, ("region", "context_breakpoint")], leaf, MONEY_PER, currency)

        return rows, tree

    def _fees(self) -> tuple[pl.DataFrame, Callable[[pl.DataFrame, str], Node]]:
        earned = fees_earned(self.books.fees, self.books.contract_terms, self.made.supply.cut)
        rows = self._mine(earned.with_columns(to_quanta(pl.col("amount")).alias("quanta")), "fee")

        def tree(rows: pl.DataFrame, currency: str) -> Node:
            sums = (
                rows.group_by("customer", "contract", "fee")
                .agg(pl.col("quanta").sum(), pl.col("day").n_unique().alias("days"))
                .sort("customer", "contract", "fee")
            )
            return total(
                "", (self._fee(row, currency) for row in sums.iter_rows(named=True)), MONEY_PER, currency
            )

        return rows, tree

    def _fee(self, row: Mapping[str, Any], currency: str) -> Node:
        cut = self.made.supply.cut
        agreed = self.books.fees.filter(
            (pl.col("contract") == row["contract"])
            & (pl.col("fee") == row["fee"])
            & (pl.col("effective_from") < cut["slice_until"].max())
        ).sort("effective_from")
        amounts = [
            f"{_money(each['amount'])}"
            + (f" x {each['quantity']}" if each["quantity"] != 1 else "")
            + f" per {each['per']}"
            for each in agreed.iter_rows(named=True)
            if each["effective_until"] is None or each["effective_until"] > cut["slice_start"].min()
        ]
        where = self.place("contract", row["contract"])
        return Node(
            row["fee"],
            row["quanta"],
            MONEY_PER,
            currency,
            f"{' then '.join(amounts)}, earned evenly, on {row['days']} days; contract {row['contract']} ({where})",
            facts={"contract": row["contract"], "days": row["days"], "catalog": where},
        )

    # ---- what it cost us ---------------------------------------------------------------------------------

    def _pool_costs(self) -> tuple[pl.DataFrame, Callable[[pl.DataFrame, str], Node]]:
        """Served cost by burn for usage; of capacity that nobody used, what became of it."""
        rows = pl.concat([_POOL_ROWS, self._served(), *self._unused()], how="diagonal_relaxed")
        daily = self.made.period.until - self.made.period.start > DAY

        def tree(rows: pl.DataFrame, currency: str) -> Node:
            at = pl.col("day") if daily else pl.col("quarter_start")
            by = ["line", "pool", "dimension", "model_served", "at"]
            # what a pool was in a quarter hour is told once, however many series shared it
            whole = ("pool_burn", "line_cost", "recognised", "part", "contracted")
            quarters = (
                rows.with_columns(at.alias("at"))
                .group_by(*by, "quarter_start")
                .agg(
                    pl.col("quanta", "burn").sum(),
                    pl.col(*whole, "denominator").first(),
                    pl.col("estimated").any(),
                )
            )

            def summed(by: list[str], rows: pl.DataFrame) -> pl.DataFrame:
                return rows.group_by(by).agg(
                    pl.col("quanta", "burn", *whole, "quarters").sum(),
                    pl.col("denominator").first(),
                    pl.col("estimated").any(),
                )

            leaves = summed(by, quarters.with_columns(pl.lit(1).alias("quarters"))).sort(by)
            levels = [["line"]] if leaves["line"].n_unique() > 1 else []
            return grouped(
                "",
                leaves,
                [*levels, ["pool", "dimension"], ["model_served"]],
                self._pool_leaf(currency),
                MONEY_PER,
                currency,
                each="days" if daily else "quarter hours",
                whole=lambda rows: _pool_said(summed(["line"], rows).row(0, named=True)),
            )

        return rows, tree

    def _pool_leaf(self, currency: str) -> Callable[[Mapping[str, Any]], Node]:
        def leaf(row: Mapping[str, Any]) -> Node:
            by = row["denominator"] or 1
            name = f"{row['at']:%Y-%m-%d}" if not hasattr(row["at"], "hour") else f"{row['at']:%H:%M}"
            return Node(
                name,
                row["quanta"],
                MONEY_PER,
                currency,
                _pool_said(row),
                facts={
                    "quarter_hours": row["quarters"],
                    "burn": _burn(row["burn"], by),
                    "pool_burn": _burn(row["pool_burn"], by),
                    "capacity": _burn(row["part"], by),
                    "contracted": _burn(row["contracted"], by),
                    "cost_of_capacity": str(_units(row["line_cost"])),
                    "recognised_cost": str(_units(row["recognised"])),
                    "estimated": row["estimated"],
                },
            )

        return leaf

    def _served(self) -> pl.DataFrame:
        """The cell's shares of what pools served, by series and quarter hour."""
        found = [_POOL_ROWS]
        for part in self.parts():
            series = part.known.series.filter(
                in_pool(pl.col("ran_on"), pl.col("counts_for")) & pl.col("pool").is_not_null()
            )
            series = series.filter(~pl.col("pool").is_in(carve_outs(self.books).implode()))
            weighed, served, whole = shares(part, series, self.made, self.books)
            rows = (
                served.join(weighed, on=["quarter_start", "series_id", "dimension"], validate="m:1")
                .join(whole, on=["pool", "dimension", "quarter_start", "currency"], validate="m:1")
                .join(
                    part.known.rows.select("quarter_start", "slice_start").unique(),
                    on="quarter_start",
                    validate="m:1",
                )
                .join(series.drop("pool"), on="series_id", validate="m:1")
                .rename({"cost": "quanta", "served": "part", "served_cost": "line_cost"})
            )
            mine = self._mine(rows, "usage")
            found.append(mine.select(name for name in _POOL_ROWS.columns))
        return pl.concat(found)

    def _unused(self) -> Iterable[pl.DataFrame]:
        """What of the pools' cost stands on lines of their own."""
        whole = pool_quarters(self.made)
        for line in ("idle", "undelivered", "carved_out"):
            rows = whole.with_columns(
                pl.col("quarter_start").alias("slice_start"),
                pl.lit(None, dtype=pl.String).alias("customer"),
                pl.col(f"{line}_cost").alias("quanta"),
                pl.col(f"{line}_cost").alias("line_cost"),
                pl.col(line).alias("part"),
                pl.lit(0, dtype=SUM).alias("burn"),
            ).filter((pl.col("quanta") != 0) | (pl.col("part") != 0))
            yield self._mine(rows, line).select(name for name in _POOL_ROWS.columns)

    # ---- what is told line by line ----------------------------------------------------------------------------

    def _told(self, column: str, how: str) -> Node:
        unknown = self.lines.filter(pl.col(column).is_null())
        if unknown.height:
            raise BadInput(
                f"{column} is null here: a part has no price or exchange rate; `metering report unrated` says which"
            )
        rows = self.lines.with_columns(to_quanta(pl.col(column)).alias("quanta")).filter(
            pl.col("quanta") != 0
        )
        by = ["line", "customer", "pool", "model_served", "day"]
        rows = rows.group_by(by).agg(pl.col("quanta").sum()).sort(by, nulls_last=True)

        def leaf(row: Mapping[str, Any]) -> Node:
            return Node(f"{row['day']}", row["quanta"], MONEY_PER, self.made.currency)

        found = grouped(
            column,
            rows,
            [["line", "customer"], ["pool", "model_served"]],
            leaf,
            MONEY_PER,
            self.made.currency,
            each="days",
        )
        return self._root(column, found.children, how)

    def _counted(self, column: str) -> Node:
        unit = {"requests": "attempts", "billable_requests": "requests", "accelerator_ms": "ms"}.get(
            column, "tokens"
        )
        by = ["customer", "product", "tier_sold", "provider", "model_served", "pool"]
        rows = (
            self.lines.filter(pl.col(column) != 0)
            .group_by(*by, "day")
            .agg(pl.col(column).sum())
            .sort(*by, "day", nulls_last=True)
        )

        def leaf(row: Mapping[str, Any]) -> Node:
            return Node(f"{row['day']}", row[column], 1, unit)

        return grouped(column, rows, [["customer"], by[1:]], leaf, 1, unit, each="days")


def shares(
    part: Part, series: pl.DataFrame, made: Margin, books: Books
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Burn and served cost of series in a run of days, quarter hour by quarter hour, and what their pools were then.

    (weighed: quarter_start, series_id, dimension, burn; served: results.SERVED_COST; whole: as `pool_quarters`).
    """
    first, last = pl.lit(part.cut["slice_start"].min()), pl.lit(part.cut["slice_until"].max())
    minutes = made.capacity.utilization.filter(pl.col("minute").is_between(first, last, closed="left"))
    costs = made.supply.pool_cost.filter(pl.col("quarter_start").is_between(first, last, closed="left"))
    bought = minutes.select("pool", pl.col("minute").dt.truncate("15m").alias("quarter_start")).unique()
    rows = (
        part.known.rows.join(series.select("series_id", "pool"), on="series_id", validate="m:1")
        .join(bought, on=["pool", "quarter_start"], how="semi")
        .select("quarter_start", "series_id", *METERS)
    )
    grid = minutes.select("pool", "dimension").unique()
    weighed, _ = weigh(
        rows,
        series,
        books.burndown.join(grid, on=["pool", "dimension"], how="semi"),
        books.multipliers,
        at="quarter_start",
    )
    weighed = weighed.group_by("quarter_start", "series_id", "dimension").agg(pl.col("burn").sum())
    served = served_costs(
        weighed.join(series.select("series_id", "pool"), on="series_id", validate="m:1"), costs, minutes
    )
    return weighed, served.drop("estimated"), pool_quarters(made)


def pool_quarters(made: Margin) -> pl.DataFrame:
    """Pools by quarter hour: capacity (numerators), and what became of the recognised cost, in quanta."""
    names = ("contracted", "undelivered", "carved_out", "served", "idle", "burn")
    capacity = made.capacity.utilization.group_by(
        "pool", "dimension", pl.col("minute").dt.truncate("15m").alias("quarter_start")
    ).agg(pl.col(*names).sum(), pl.col("denominator").first())
    cost = made.supply.pool_cost.select(
        "pool",
        "dimension",
        "quarter_start",
        "currency",
        "estimated",
        to_quanta(pl.col("recognised_cost")).alias("recognised"),
        *(
            to_quanta(pl.col(f"{name}_cost")).alias(f"{name}_cost")
            for name in ("served", "idle", "undelivered", "carved_out")
        ),
    )
    return (
        cost.join(capacity, on=["pool", "dimension", "quarter_start"], how="left", validate="m:1")
        .rename({"burn": "pool_burn"})
        .with_columns(pl.col(*names[:-1], "pool_burn").fill_null(0), pl.col("denominator").fill_null(1))
    )


_NO_ROWS: Final = pl.DataFrame(schema={"day": pl.Date, "currency": pl.String, "quanta": SUM})
_POOL_ROWS: Final = pl.DataFrame(
    schema={
        "day": pl.Date,
        "quarter_start": pl.Datetime("us", "UTC"),
        "line": pl.String,
        "pool": pl.String,
        "dimension": pl.String,
        "model_served": pl.String,
        "currency": pl.String,
        "quanta": SUM,
        "burn": SUM,
        "pool_burn": SUM,
        "line_cost": SUM,
        "recognised": SUM,
        "part": SUM,
        "contracted": SUM,
        "denominator": pl.Int64,
        "estimated": pl.Boolean,
    }
)


def _pool_said(row: Mapping[str, Any]) -> str:
    """What pools served of what was contracted and recognised, in one quarter hour or in several."""
    by = row["denominator"] or 1
    quarters = f"{row['quarters']:,} quarter hours" if row["quarters"] > 1 else "the quarter hour"
    recognised = f"{_money(_units(row['recognised']))} recognised"
    state = " (estimated: not billed yet)" if row["estimated"] else ""
    capacity = f"{_burn(row['part'], by)} of {_burn(row['contracted'], by)} contracted"
    if row["line"] != "usage":
        return f"{capacity} {row['line'].replace('_', ' ')} in {quarters}, of {recognised}{state}"
    return (
        f"{_burn(row['burn'], by)} of {_burn(row['pool_burn'], by)} burned in {quarters}; served were "
        f"{capacity}: {_money(_units(row['line_cost']))} of {recognised}{state}"
    )


def _units(quanta: int) -> Any:
    return pl.select(from_quanta(pl.lit(quanta, dtype=SUM))).item()


def _money(amount: Any) -> str:
    return f"{amount:,.2f}"


def _burn(numerator: int, denominator: int) -> str:
    whole, rest = divmod(numerator, denominator)
    return f"{whole:,}" if not rest else f"{numerator / denominator:,.3f}"


def _plain(rate: int) -> str:
    return f"{rate // 10**12}.{rate % 10**12:012d}".rstrip("0").rstrip(".")

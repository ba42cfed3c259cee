"""Where a cell of the margin report comes from: quantities, prices in force, shares of pools, fees, exchange rates."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import polars as pl

from metering.core.agreed import plain
from metering.core.costs import Part, by_parts, said
from metering.core.exchange import rates, translate
from metering.core.explain_gross import Priced, cost_plus_lines, gross_lines, rated_tree
from metering.core.explain_pools import POOL_ROWS, pool_tree, served_rows, unused_rows
from metering.core.explain_terms import Terms, fee_tree, waterfall_lines
from metering.core.explain_words import Place, rate
from metering.core.fees import fees_earned
from metering.core.lines import agreed
from metering.core.margin import Margin
from metering.core.rating import charges, on_demand_costs
from metering.errors import BadInput
from metering.frames.books import Books
from metering.frames.frame import SUM
from metering.frames.usage import Identified
from metering.meters import METERS
from metering.money import to_quanta
from metering.periods import DAY
from metering.results.margin import LINE_KEY
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


def books_of(books: Books, customer: str) -> Books:
    """The books with what was agreed with one customer alone: all that its own lines hang on.

    Others may still be in the usage, for what they burned of pools.
    """
    mine = pl.col("customer") == customer
    contracts = books.contracts.filter(mine)
    theirs = pl.col("contract").is_in(contracts["contract"].implode())
    return replace(
        books,
        customers=books.customers.filter(mine),
        contracts=contracts,
        **{
            name: getattr(books, name).filter(theirs)
            for name in (
                "contract_terms",
                "fees",
                "discounts",
                "commitments",
                "credit_grants",
                "entitlements",
            )
        },
    )


def explain_margin(
    usage: pl.DataFrame | Identified, made: Margin, books: Books, cell: Cell, place: Place
) -> Node:
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
    usage: pl.DataFrame | Identified
    made: Margin
    books: Books
    cell: Cell
    place: Place
    lines: pl.DataFrame
    _parts: list[Part] | None = None

    def parts(self) -> Sequence[Part]:
        if self.made.parts:
            return self.made.parts
        if self._parts is None:
            self._parts = by_parts(
                self.usage,
                self.made.supply,
                self.books,
                lambda part: part,
                customer=self.cell.where.get("customer"),
            )
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
            at = " and ".join(rate(each) for each in native["month_average"].unique().sort())
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
        priced = self._priced()

        def tree(rows: pl.DataFrame, currency: str) -> Node:
            by = {str(name): part for (name,), part in rows.group_by("_by", maintain_order=True)}
            none = rows.clear()
            units = by_unit(by["unit"], currency).children if "unit" in by else ()
            parts = [
                *units,
                *priced.by_rules(by.get("rule", none), currency),
                *priced.by_ratios(by.get("ratio", none), currency),
                *priced.at_cost(by.get("cost", none), currency, "of cost"),
            ]
            return total("", parts, MONEY_PER, currency)

        return rows, tree

    def _terms(self) -> Terms:
        return Terms(self.made.earned, self.books, self.made.period, self.place)

    def _priced(self) -> Priced:
        return Priced(self.made.earned.counted, self.books, self.made.period, self.place)

    def _discounts(self) -> tuple[pl.DataFrame, Callable[[pl.DataFrame, str], Node]]:
        lines = waterfall_lines(self.made.earned).with_columns(
            (pl.col("gross") - pl.col("net")).alias("quanta"), pl.lit(value=True).alias("_earned")
        )
        of_cost = cost_plus_lines(self.parts(), self.books, "discount")
        mine = [self._mine(lines, None)]
        if of_cost.height:
            mine.append(self._mine(of_cost, "usage").with_columns(pl.lit(value=False).alias("_earned")))
        told = self._terms()
        priced = self._priced()

        def tree(rows: pl.DataFrame, currency: str) -> Node:
            parts = [
                *told.discounts(rows.filter("_earned"), currency),
                *priced.at_cost(
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
        priced = rated.with_columns(to_quanta(pl.col("amount")).alias("quanta"))
        rows = self._mine(priced.rename({"quarter_start": "slice_start"}), "usage")
        return rows, lambda rows, currency: rated_tree(rows, currency, kind, first, self.place)

    def _fees(self) -> tuple[pl.DataFrame, Callable[[pl.DataFrame, str], Node]]:
        earned = fees_earned(self.books.fees, self.books.contract_terms, self.made.supply.cut)
        rows = self._mine(earned.with_columns(to_quanta(pl.col("amount")).alias("quanta")), "fee")

        period = self.made.period

        def tree(rows: pl.DataFrame, currency: str) -> Node:
            return fee_tree(rows, currency, self.books, period.start, period.until, self.place)

        return rows, tree

    # ---- what it cost us ---------------------------------------------------------------------------------

    def _pool_costs(self) -> tuple[pl.DataFrame, Callable[[pl.DataFrame, str], Node]]:
        """Served cost by burn for usage; of capacity that nobody used, what became of it."""
        names = list(POOL_ROWS.columns)
        served = served_rows(self.parts(), self.made, self.books)
        found = [
            *(self._mine(rows, "usage").select(names) for rows in served),
            *(self._mine(rows, line).select(names) for line, rows in unused_rows(self.made)),
        ]
        daily = self.made.period.until - self.made.period.start > DAY

        def tree(rows: pl.DataFrame, currency: str) -> Node:
            return pool_tree(rows, currency, daily=daily)

        return pl.concat([POOL_ROWS, *found]), tree

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


_NO_ROWS: Final = pl.DataFrame(schema={"day": pl.Date, "currency": pl.String, "quanta": SUM})

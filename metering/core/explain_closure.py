"""Where a line of the closure comes from: customers, pools, days, documents and their lines."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from metering.core.closure import TERMS, Closure
from metering.errors import BadInput
from metering.frames.books import Books
from metering.money import decimal_to_quanta, to_quanta
from metering.periods import Period
from metering.tree import MONEY_PER, Node, grouped, total

BASES: Final = ("usage", "loaded")


@dataclass(frozen=True)
class ClosureCell:
    """A line of the closure of one supplier and bill currency, on one basis; kind: of the customers, None: all."""

    supplier: str | None
    currency: str
    term: str
    kind: str | None
    basis: str


def explain_closure(
    made: Closure, cost_lines: pl.DataFrame, books: Books, asked: Period, cell: ClosureCell
) -> Node:
    """The tree of a line: its root is the report's amount in the currency of the bill, exactly.

    cost_lines: results.COSTS of the same period. Raises BadInput for a term that the closure does not have, or whose
    amount is not known yet (a variance before the bill).
    """
    of = (pl.col("supplier").eq_missing(pl.lit(cell.supplier, dtype=pl.String))) & (
        pl.col("currency") == cell.currency
    )
    terms = made.terms.filter(of)
    documents = made.documents.filter(of)
    lines = cost_lines.filter(of)
    explained = _Explained(terms, documents, lines, books, asked, cell)
    match cell.term:
        case "recognised_cost":
            present = terms["term"].unique().to_list()
            children = [explained.term(term) for term in TERMS if term in present]
            return total("recognised_cost", children, MONEY_PER, cell.currency, "the sum of its terms")
        case "billed" | "change_in_prepaid":
            return explained.billed(cell.term)
        case term:
            return explained.term(term)


@dataclass(frozen=True)
class _Explained:
    terms: pl.DataFrame
    documents: pl.DataFrame
    lines: pl.DataFrame
    books: Books
    asked: Period
    cell: ClosureCell

    def term(self, term: str) -> Node:
        rows = self.terms.filter(pl.col("term") == term)
        if term == "customers" and self.cell.kind is not None:
            rows = rows.filter(pl.col("kind") == self.cell.kind)
        if rows.is_empty():
            there = ", ".join(self.terms["term"].unique().sort()) or "none"
            raise BadInput(
                f"'term={term}': there is no such line for {self.cell.supplier}; there are {there}, recognised_cost"
            )
        known = rows.filter(pl.col(self.cell.basis).is_not_null())
        quanta = int(known.select(to_quanta(pl.col(self.cell.basis)).sum()).item() or 0)
        if term == "customers":
            found = self._costs(
                pl.col("customer").is_not_null() | (pl.col("line") == "usage"), ["kind", "customer"]
            )
        elif term in ("idle", "undelivered", "carved_out"):
            found = self._costs((pl.col("line") == term) & pl.col("customer").is_null(), ["pool"])
        else:
            found = self._days(known)
        return Node(term, quanta, MONEY_PER, self.cell.currency, self._words(term), found.children)

    def _words(self, term: str) -> str:
        return {
            "customers": "pool cost + on-demand cost"
            + (" + idle carried" if self.cell.basis == "loaded" else ""),
            "variance": "billed less rated on-demand cost of the same service span, day by day",
            "shortfall": "billed for commitments to the supplier; of those paid ahead, what nothing drew",
            "overhead": "billed, and of no pool and no model",
        }.get(term, "recognised cost of capacity that no customer used")

    def _costs(self, which: pl.Expr, by: list[str]) -> Node:
        amounts = ["cost_pool", "cost_on_demand", *(["idle_share"] if self.cell.basis == "loaded" else [])]
        rows = self.lines.filter(which)
        if self.cell.kind is not None:
            rows = rows.filter(pl.col("kind") == self.cell.kind)
        sums = (
            rows.with_columns(pl.col(by).fill_null("-"))
            .group_by(by)
            .agg(to_quanta(pl.col(name)).sum() for name in amounts)
            .unpivot(amounts, index=by, variable_name="what", value_name="quanta")
            .filter(pl.col("quanta") != 0)
            .sort(*by, "what")
        )

        def leaf(row: Mapping[str, Any]) -> Node:
            return Node(row["what"], row["quanta"], MONEY_PER, self.cell.currency)

        return grouped("", sums, [[name] for name in by], leaf, MONEY_PER, self.cell.currency)

    def _days(self, rows: pl.DataFrame) -> Node:
        rows = rows.select("day", to_quanta(pl.col(self.cell.basis)).alias("quanta")).filter(
            pl.col("quanta") != 0
        )
        rows = rows.group_by("day").agg(pl.col("quanta").sum()).sort("day")

        def leaf(row: Mapping[str, Any]) -> Node:
            return Node(f"{row['day']}", row["quanta"], MONEY_PER, self.cell.currency)

        return grouped("", rows, [], leaf, MONEY_PER, self.cell.currency, each="days")

    def billed(self, term: str) -> Node:
        """The documents posted in the period, down to their lines; of prepaid, less what was recognised of each."""
        if self.documents["billed_here"].null_count() or self.documents.is_empty():
            raise BadInput(f"'term={term}': documents are posted to whole months; give --period as a month")
        make = self._document if term == "billed" else self._prepaid
        rows = self.documents.sort("what", "document", "posted_month", nulls_last=True)
        nodes = [make(row) for row in rows.iter_rows(named=True)]
        how = (
            "documents posted in the period"
            if term == "billed"
            else "billed less recognised, document by document"
        )
        return total(
            term, [node for node in nodes if node.amount or node.children], MONEY_PER, self.cell.currency, how
        )

    def _named(self, row: Mapping[str, Any]) -> str:
        return row["document"] or str(row["what"]).replace("_", " ")

    def _document(self, row: Mapping[str, Any]) -> Node:
        amount = decimal_to_quanta(row["billed_here"])
        if row["document"] is None:  # what no document says
            return Node(self._named(row), amount, MONEY_PER, self.cell.currency)
        posted = pl.col("posted_month").is_between(
            pl.lit(self.asked.start.date()), pl.lit(self.asked.until.date()), closed="left"
        )
        lines = self.books.bill_lines.filter(
            posted
            & (pl.col("document") == row["document"])
            & (pl.col("supplier") == row["supplier"])
            & (pl.col("currency") == row["currency"])
            & (pl.col("posted_month") == row["posted_month"])
        ).sort("line")
        nodes = [
            Node(
                f"line {line['line']}, {line['object'] or line['object_kind']}",
                decimal_to_quanta(line["amount"]),
                MONEY_PER,
                self.cell.currency,
                f"{line['category'].replace('_', ' ')} for {line['service_from']:%Y-%m-%d}.."
                f"{line['service_until']:%Y-%m-%d}",
            )
            for line in lines.iter_rows(named=True)
        ]
        return Node(self._named(row), amount, MONEY_PER, self.cell.currency, "", tuple(nodes))

    def _prepaid(self, row: Mapping[str, Any]) -> Node:
        parts = [
            Node(name, sign * decimal_to_quanta(row[column]), MONEY_PER, self.cell.currency)
            for name, column, sign in (
                ("billed", "billed_here", 1),
                ("less recognised", "recognised_here", -1),
            )
        ]
        return total(self._named(row), [part for part in parts if part.amount], MONEY_PER, self.cell.currency)

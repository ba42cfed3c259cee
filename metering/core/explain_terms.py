"""Where the rest of charges under terms comes from: discounts, minimums, overage, credits, shortfall; and fees."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import polars as pl

from metering.core.contract_periods import contract_periods
from metering.core.drawing import part_of_ratio
from metering.core.effective import in_force
from metering.core.explain_words import MINUTE, Place, days, money, rate, shortest
from metering.core.revenue import Earned
from metering.frames.books import Books
from metering.periods import QUARTER, Period
from metering.tree import MONEY_PER, Node, grouped, total

_SPAN: Final = ("effective_from", "effective_until")
#: The discounts of a margin line: (column of results.WATERFALL, name).
_DISCOUNTS: Final = {
    "line_discount": "line discount",
    "contract_discount": "contract discount",
    "fixed_discount": "fixed discounts",
    "capped": "capped at the maximum",
}


def waterfall_lines(earned: Earned) -> pl.DataFrame:
    """results.WATERFALL of the period with the dimensions of its series, slice_start and product."""
    named = earned.series.rename({"customer": "_customer", "product": "_product"})
    return (
        earned.lines.join(named, on="series_id", how="left", validate="m:1")
        .with_columns(pl.col("item").alias("product"), pl.col("quarter_start").alias("slice_start"))
        .drop("_customer", "_product")
    )


class Terms:
    """Nodes of what terms made of charges, for rows of one currency; all rows carry `day` and `quanta`."""

    def __init__(self, earned: Earned, books: Books, period: Period, place: Place) -> None:
        self._earned, self._books, self._period, self._place = earned, books, period, place
        self._found_periods: pl.DataFrame | None = None

    # ---- what the waterfall does ---------------------------------------------------------------------------

    def discounts(self, lines: pl.DataFrame, currency: str) -> list[Node]:
        """line, contract and fixed discounts and what was capped, each a node."""
        found = []
        for column, name in _DISCOUNTS.items():
            mine = lines.with_columns(pl.col(column).alias("quanta")).filter(pl.col("quanta") != 0)
            if mine.height:
                parts = {"line_discount": self._of_ratio, "contract_discount": self._of_ratio}.get(
                    column, self._of_period
                )(mine, column, currency)
                found.append(total(name, parts, MONEY_PER, currency))
        return found

    def _of_ratio(self, rows: pl.DataFrame, column: str, currency: str) -> list[Node]:
        """Discounts that are a ratio: by product, of its gross or of what the line discount left of it."""
        kind = column.removesuffix("_discount")
        said = self._books.discounts.filter(pl.col("kind") == kind)
        of, left = ["contract", "item"], pl.col("gross")
        if kind == "contract":
            of, left = ["contract"], pl.col("gross") - pl.col("line_discount")
        rows = in_force(
            rows, said.select(*of, *_SPAN, "discount", "ratio"), at="quarter_start", by=of
        ).with_columns(left.alias("_of"))
        by = ["contract", "product", "discount", "ratio"]
        found = []
        for (contract, product, discount, ratio), mine in rows.sort(*by, "quarter_start").group_by(
            by, maintain_order=True
        ):
            what = "gross" if kind == "line" else "gross less line discount"
            how = (
                f"{shortest(ratio)} of {money(mine['_of'].sum())} ({what}), floored in each quarter hour and series; "
                f"contract {contract} ({self._place('contract', str(contract))})"
            )
            found.append(days(f"{product}, {discount}", how, mine, currency))
        return found

    def _of_period(self, rows: pl.DataFrame, column: str, currency: str) -> list[Node]:
        """What is of a contract's period: fixed discounts, maximum, minimum."""
        rows = self._in_periods(rows)
        by = ["contract", "period_start", "period_until"]
        found = []
        for key, mine in rows.sort(*by, "quarter_start", nulls_last=True).group_by(by, maintain_order=True):
            said = dict(zip(by, key, strict=True))
            contract = str(said["contract"])
            if column == "fixed_discount":
                fixed = self._fixed(said)
                what = f"{fixed} per period, at most what is left of its charges"
            elif column == "capped":
                what = (
                    f"what the period's net charges exceed the maximum of {self._said_of(said, 'maximum')} by"
                )
            else:
                what = (
                    f"what the period's net charges lack of the minimum of {self._said_of(said, 'minimum')}"
                )
            how = (
                f"{what}, prorated by the days covered so far and spread over the period's lines by what is left of "
                f"them; contract {contract} ({self._place('contract', contract)})"
            )
            start, until = said["period_start"], said["period_until"]
            name = f"{contract}, period {start:{MINUTE}} to {until:{MINUTE}} UTC"
            products = [
                days(product or "without usage", "", lines, currency)
                for (product,), lines in mine.sort("product", "quarter_start", nulls_last=True).group_by(
                    "product", maintain_order=True
                )
            ]
            found.append(
                products[0].named(f"{name}, {products[0].name}", how)
                if len(products) == 1
                else total(name, products, MONEY_PER, currency, how)
            )
        return found

    def _fixed(self, said: Mapping[str, Any]) -> str:
        there = self._books.discounts.filter(
            (pl.col("contract") == said["contract"])
            & (pl.col("kind") == "fixed")
            & (pl.col("effective_from") < said["period_until"])
            & (pl.col("effective_until").is_null() | (pl.col("effective_until") > said["period_start"]))
        ).sort("discount", "effective_from")
        return " and ".join(
            f"{name} {amount:,.2f}" for name, amount in there.select("discount", "amount").iter_rows()
        )

    def _in_periods(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows with the period of their contract."""
        return rows.sort("quarter_start").join_asof(
            self._periods().select("contract", "covered_from", "period_start", "period_until"),
            left_on="quarter_start",
            right_on="covered_from",
            by="contract",
            strategy="backward",
            check_sortedness=False,
        )

    def _said_of(self, said: Mapping[str, Any], name: str) -> str:
        """The minimum or maximum of a period, in whose midst the contract's terms may change."""
        here = self._periods().filter(
            (pl.col("contract") == said["contract"]) & (pl.col("period_start") == said["period_start"])
        )
        amounts = here[name].drop_nulls().unique(maintain_order=True)
        return " then ".join(f"{amount:,.2f}" for amount in amounts)

    def _periods(self) -> pl.DataFrame:
        """The contracts' periods that touch the report's, in the order in which they begin."""
        if self._found_periods is None:
            contracts = self._books.contracts.select("contract").unique()
            spans = contracts.with_columns(
                pl.lit(self._period.start).alias("effective_from"),
                pl.lit(self._period.until).alias("effective_until"),
            )
            self._found_periods = contract_periods(self._books, spans, self._period.until).sort(
                "covered_from"
            )
        return self._found_periods

    def told(self, column: str, lines: pl.DataFrame, currency: str) -> list[Node]:
        """A column of waterfall lines after net, but not what it comes to: a node for each contract."""
        rows = lines.filter(pl.col("quanta") != 0)
        if rows.is_empty():
            return []
        if column == "top_up":
            return self._of_period(rows, column, currency)
        if column in ("shortfall", "breakage"):
            return self._unmet(rows, column, currency)
        found = []
        for (contract,), mine in rows.sort("contract", "product", "quarter_start", nulls_last=True).group_by(
            "contract", maintain_order=True
        ):
            words = self._words(column, str(contract))
            products = [
                days(product or "without usage", "", each, currency)
                for (product,), each in mine.group_by("product", maintain_order=True)
            ]
            where = self._place("contract", str(contract))
            found.append(
                total(f"contract {contract}", products, MONEY_PER, currency, f"{words}; {contract} ({where})")
            )
        return found

    def _words(self, column: str, contract: str) -> str:
        if column == "overage_premium":
            return self._overage(contract)
        if column == "drawdown":
            return (
                f"what commitments paid ahead cover: `metering explain contracts contract={contract} drawn`"
            )
        return self._grants(contract, column.removesuffix("_credit"))

    def _overage(self, contract: str) -> str:
        booked = self._books.commitments.filter(
            (pl.col("contract") == contract) & pl.col("overage_book").is_not_null()
        )
        pairs = booked.select("commitment", "overage_book").unique().sort("commitment")
        said = " and ".join(
            f"{commitment} at book {book} ({self._place('price_book', book)})"
            for commitment, book in pairs.iter_rows()
        )
        return f"what no tranche covers of {said}, less what it costs at the contract's own prices"

    def _grants(self, contract: str, kind: str) -> str:
        there = self._earned.credits.filter(
            (pl.col("contract") == contract) & (pl.col("kind") == kind) & (pl.col("used") != 0)
        ).sort("effective_from", "credit")
        said = " and ".join(
            f"{row['credit']} of {money(row['amount'])} ({money(row['used'])} used so far"
            + (f", until {row['effective_until']:{MINUTE}} UTC)" if row["effective_until"] else ")")
            for row in there.iter_rows(named=True)
        )
        return f"{said}: pays net charges and top-ups, less drawdown, in the order of time"

    def _unmet(self, rows: pl.DataFrame, column: str, currency: str) -> list[Node]:
        """Tranches that ended with something not drawn, and prepaid credits that expired with something left."""
        end = (pl.col("effective_until") - QUARTER).alias("quarter_start")
        key = ["contract", "currency", "quarter_start"]
        ahead = pl.col("paid") == "ahead"
        mine = ahead if column == "breakage" else ~ahead & (pl.col("shortfall_rule") != "forfeit")
        tranches = (
            self._earned.drawdown.filter(mine & (pl.col("shortfall") > 0) & pl.col("meters").is_null())
            .with_columns(end, part_of_ratio(pl.col("shortfall"), pl.col("ratio")).alias("part"))
            .filter(pl.col("part") != 0)
            .join(rows.filter(pl.col("line") == "commitment").select(key), on=key, how="semi")
            .sort("contract", "effective_until", "commitment", "effective_from", "rolled")
        )
        found = []
        for row in tranches.iter_rows(named=True):
            ratio = rate(row["ratio"])
            rolled = ", rolled over," if row["rolled"] else ""
            how = (
                f"committed{rolled} {money(row['committed'])} from {row['effective_from']:{MINUTE}} to "
                f"{row['effective_until']:{MINUTE}} UTC, drawn {money(row['drawdown'])}: {money(row['shortfall'])} "
                f"not drawn, x {ratio}; contract {row['contract']} ({self._place('contract', row['contract'])})"
            )
            found.append(Node(row["commitment"], row["part"], MONEY_PER, currency, how))
        if column == "breakage":
            grants = (
                self._earned.credits.filter((pl.col("kind") == "prepaid") & (pl.col("lapsed") > 0))
                .with_columns(end)
                .join(rows.filter(pl.col("line") == "credit").select(key), on=key, how="semi")
                .sort("contract", "effective_until", "credit")
            )
            for row in grants.iter_rows(named=True):
                how = (
                    f"prepaid {money(row['amount'])}, used {money(row['used'])}, expired "
                    f"{row['effective_until']:{MINUTE}} UTC; contract {row['contract']} "
                    f"({self._place('contract', row['contract'])})"
                )
                found.append(Node(row["credit"], row["lapsed"], MONEY_PER, currency, how))
        return found


def fee_tree(
    earned: pl.DataFrame, currency: str, books: Books, start: datetime, until: datetime, place: Place
) -> Node:
    """Fees earned in [start, until), a leaf for each: rows of customer, contract, fee, day and quanta."""
    sums = (
        earned.group_by("customer", "contract", "fee")
        .agg(pl.col("quanta").sum(), pl.col("day").n_unique().alias("days"))
        .sort("customer", "contract", "fee")
    )

    def leaf(row: Mapping[str, Any]) -> Node:
        agreed = books.fees.filter(
            (pl.col("contract") == row["contract"])
            & (pl.col("fee") == row["fee"])
            & (pl.col("effective_from") < until)
            & (pl.col("effective_until").is_null() | (pl.col("effective_until") > start))
        ).sort("effective_from")
        amounts = [
            f"{each['amount']:,.2f}"
            + (f" x {each['quantity']:,}" if each["quantity"] != 1 else "")
            + f" per {each['per']}"
            for each in agreed.iter_rows(named=True)
        ]
        where = place("contract", row["contract"])
        return Node(
            row["fee"],
            row["quanta"],
            MONEY_PER,
            currency,
            f"{' then '.join(amounts)}, earned evenly, on {row['days']} days; contract {row['contract']} ({where})",
            facts={"contract": row["contract"], "days": row["days"], "catalog": where},
        )

    return grouped("", sums, [], leaf, MONEY_PER, currency)

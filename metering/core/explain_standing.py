"""Where what customers committed to, drew and have left comes from: net charges by product and day, and what they are."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any, Final

import polars as pl

from metering.core.commitments import TRANCHES, Drawdown, counts_toward, draw_down, overage_by_tranche
from metering.core.drawing import grant_tranches
from metering.core.effective import slices
from metering.core.entitlement import burned_by_customer, entitled
from metering.core.explain_gross import Priced, gross_lines, rated_tree
from metering.core.explain_terms import Terms, fee_tree, waterfall_lines
from metering.core.explain_words import MINUTE, Place, days, money, rate
from metering.core.fees import fees_earned
from metering.core.revenue import Charged, Earned
from metering.core.standing import days_known, expiring, in_force_at, open_periods
from metering.errors import BadInput
from metering.frames.books import Books
from metering.frames.frame import INSTANT, SUM
from metering.money import decimal_to_quanta, to_quanta
from metering.periods import DAY, Period
from metering.tree import MONEY_PER, RATIO_PER, Node, grouped, total

Row = Mapping[str, Any]
#: Columns of a commitment that may be asked for.
CONTRACT_COLUMNS: Final = (
    *("committed", "drawn", "remaining", "rolled_over", "overage", "shortfall", "pace_ratio"),
    *("run_rate_per_day", "projected", "shortfall_projected", "shortfall_fee"),
)
#: What is told of an entitlement.
ENTITLEMENT_COLUMNS: Final = ("committed", "drawn", "remaining", "overage", "pace_ratio")
_UNBILLED: Final = (
    *((1, name) for name in ("net", "top_up", "overage_premium", "shortfall")),
    *((-1, name) for name in ("drawdown", "promotional_credit", "prepaid_credit")),
)
BALANCE_COLUMNS: Final = (
    *("unbilled", "fees", "committed_left", "prepaid_left", "promotional_left"),
    *("expiring", "expected_lost"),
)


@dataclass(frozen=True)
class Stands:
    """What the standing of one contract at `until` was computed of; `charged` may be of others too."""

    contract: str
    charged: Charged
    books: Books
    until: datetime
    run_rate_days: int
    place: Place

    @property
    def catalog(self) -> str:
        return f"contract {self.contract} ({self.place('contract', self.contract)})"

    @cached_property
    def lines(self) -> pl.DataFrame:
        """results.WATERFALL of the contract with `day`."""
        mine = self.charged.lines.filter(pl.col("contract") == self.contract)
        return mine.with_columns(pl.col("quarter_start").dt.date().alias("day"))

    @cached_property
    def terms(self) -> pl.DataFrame:
        return self.charged.terms.filter(pl.col("contract") == self.contract)

    @cached_property
    def eligible(self) -> pl.DataFrame:
        """What counts toward the contract's commitments (commitments.ELIGIBLE), with `day`."""
        mine = self.charged.eligible.join(self.terms, on="holder", how="semi")
        return mine.with_columns(pl.col("slice_start").dt.date().alias("day"))

    def earned(self, start: datetime, until: datetime) -> Earned:
        """What the contract earned in [start, until)."""
        here = pl.col("quarter_start").is_between(start, until, closed="left")
        mine = here & (pl.col("contract") == self.contract)
        of = self.charged
        return Earned(
            of.lines.filter(mine),
            of.series,
            of.counted.filter(mine),
            of.drawdown.filter(pl.col("contract") == self.contract),
            of.credits.filter(pl.col("contract") == self.contract),
            of.unrated.clear(),
            of.priced.filter(mine),
        )


# ---- commitments -----------------------------------------------------------------------------------------


def explain_commitment(stands: Stands, row: Row, column: str) -> Node:
    """The tree of a cell of a commitment (or what rolled over from one) in standing.CONTRACT_STANDING.

    Amounts in a currency are counts of money.QUANTUM, those in units of meters counts of units. What was drawn is
    told by product and day and, beside it, what the net charges are that it was drawn of.
    """
    if column not in CONTRACT_COLUMNS:
        raise BadInput(
            f"contracts has no column '{column}' that has parts; give one of {', '.join(CONTRACT_COLUMNS)}"
        )
    if row[column] is None:
        raise BadInput(f"{column} is empty here: {_why_empty(row, column)}")
    return _Commitment(stands, row).node(column)


def _why_empty(row: Row, column: str) -> str:
    if column == "pace_ratio":
        return "the tranche has not begun"
    if column == "shortfall_fee":
        return "a shortfall in units has no amount, and one that is forfeit is not due"
    return f"{row['name']} has none"


@dataclass
class _Commitment:
    stands: Stands
    row: Row

    @cached_property
    def said(self) -> Row:
        """What the contract says of the commitment: commitment_terms."""
        mine = self.stands.terms.filter(pl.col("commitment") == self.row["name"])
        return mine.sort("effective_from").row(0, named=True)

    @property
    def per(self) -> int:
        return MONEY_PER if self.said["meters"] is None else 1

    @property
    def unit(self) -> str:
        return str(self.row["measure"]) if self.said["meters"] is None else "units"

    def amount(self, column: str) -> int:
        quanta = decimal_to_quanta(self.row[column])
        return quanta if self.per == MONEY_PER else quanta // MONEY_PER

    def told(self, amount: int) -> str:
        return money(amount) if self.per == MONEY_PER else f"{amount:,}"

    def leaf(self, name: str, amount: int, how: str = "") -> Node:
        return Node(name, amount, self.per, self.unit, how)

    def node(self, column: str) -> Node:
        make: Callable[[], Node] = {
            "committed": self._committed,
            "drawn": self._drawn_of_charges,
            "remaining": self._remaining,
            "rolled_over": self._rolled_over,
            "overage": self._overage,
            "shortfall": self._shortfall,
            "pace_ratio": self._pace,
            "run_rate_per_day": self._run_rate,
            "projected": self._projected,
            "shortfall_projected": self._shortfall_projected,
            "shortfall_fee": self._fee,
        }[column]
        found = make()
        if column == "pace_ratio":
            return found
        # made anew, so that the parts are checked against the report's figure
        return replace(found, name=column, amount=self.amount(column))

    def _span(self) -> str:
        return f"{self.row['effective_from']:{MINUTE}} to {self.row['effective_until']:{MINUTE}} UTC"

    def _committed(self) -> Node:
        what = (
            "unmet in the tranche that ended then"
            if self.row["what"] == "rolled_over"
            else f"tranche of {self.row['name']}"
        )
        how = f"{what}, {self._span()}; paid {self.row['paid'].replace('_', ' ')}; {self.stands.catalog}"
        return self.leaf("committed", self.amount("committed"), how)

    def _is(self) -> pl.Expr:
        rolled = self.row["what"] == "rolled_over"
        since = pl.lit(self.row["effective_from"], dtype=INSTANT)
        mine: pl.Expr = (pl.col("commitment") == self.row["name"]) & (pl.col("rolled") == rolled)
        return mine & (pl.col("effective_from") == since)

    @cached_property
    def _done(self) -> Drawdown:
        terms = TRANCHES.conform(self.stands.terms.select(*TRANCHES.columns))
        return draw_down(terms, self.stands.eligible.drop("day"), self.stands.until)

    def _drawn(self) -> Node:
        drawn = self._done.drawn.filter(self._is())
        counted = self.stands.eligible.filter(
            (pl.col("holder") == self.said["holder"])
            & pl.col("slice_start").is_between(
                self.row["effective_from"], self.row["effective_until"], closed="left"
            )
        )
        counted = counted.filter(counts_toward(pl.lit(pl.Series([self.said["draws"]])), pl.col("account")))
        all_of = int(counted["amount"].sum())
        what = "net charges" if self.per == MONEY_PER else "units"
        how = f"{self.told(all_of)} of {what} of its products counted toward it, {self._span()}"
        if all_of != (taken := int(drawn["amount"].sum())):
            how += f"; of these it drew {self.told(taken)}, in the order of time"
        return total("drawn", self._by_product(drawn, counted), self.per, self.unit, how)

    def _by_product(self, rows: pl.DataFrame, counted: pl.DataFrame) -> list[Node]:
        """Amounts by product (account), then day; and what of the product counted that day."""
        by = ["account", pl.col("slice_start").dt.date().alias("day")]
        sums = rows.group_by(by).agg(pl.col("amount").sum())
        whole = counted.group_by("account", "day").agg(pl.col("amount").sum().alias("counted"))
        sums = sums.join(whole, on=["account", "day"], how="left", validate="1:1").sort("account", "day")

        def leaf(row: Row) -> Node:
            part = row["counted"] is not None and row["counted"] != row["amount"]
            how = f"of {self.told(row['counted'])} that counted" if part else ""
            return self.leaf(f"{row['day']}", row["amount"], how)

        return list(grouped("", sums, [["account"]], leaf, self.per, self.unit, each="days").children)

    def _drawn_of_charges(self) -> Node:
        """What was drawn, beside the net charges of the same products and span."""
        found = self._drawn()
        if self.per != MONEY_PER:
            return found
        until = min(self.row["effective_until"], self.stands.until)
        draws = list(self.said["draws"])
        charges = net_charges(self.stands, self.row["effective_from"], until, self.unit, draws)
        return replace(found, made_of=charges.named("net charges of its products and span"))

    def _left(self, name: str, how: str) -> Node:
        """Committed less what was drawn and what rolled over."""
        parts = [self._committed(), self._drawn().negated("less drawn")]
        if self.amount("rolled_over"):
            parts.append(self._rolled_over().negated("less rolled_over"))
        return total(name, parts, self.per, self.unit, how)

    def _remaining(self) -> Node:
        if self.row["state"] == "ended":
            return self.leaf("remaining", 0, f"it ended {self.row['effective_until']:{MINUTE}} UTC")
        return self._left("remaining", "committed - drawn")

    def _rolled_over(self) -> Node:
        cap = self.said["roll_over_max"]
        most = "" if cap is None else f", at most {self.told(cap)} of its first tranche"
        how = f"not drawn by the end of the tranche, may still be drawn{most}; {self.stands.catalog}"
        if not self.amount("rolled_over"):
            how = f"nothing rolls over ({self.row['shortfall_rule'].replace('_', ' ')})"
            if self.row["shortfall_rule"] == "roll_over" and self.row["state"] != "ended":
                how = "its end is not reached"
        return self.leaf("rolled_over", self.amount("rolled_over"), how)

    def _overage(self) -> Node:
        terms = TRANCHES.conform(self.stands.terms.select(*TRANCHES.columns))
        rows = overage_by_tranche(self._done.overage, terms).filter(self._is())
        how = (
            "counted toward it in its span, and no tranche drew it (told of the one that ends last); priced at "
            f"{self.said['overage_book'] or 'the contract'}'s prices; {self.stands.catalog}"
        )
        return total(
            "overage", self._by_product(rows, self.stands.eligible.clear()), self.per, self.unit, how
        )

    def _shortfall(self) -> Node:
        if self.row["state"] != "ended":
            how = f"its end, {self.row['effective_until']:{MINUTE}} UTC, is not reached"
            return self.leaf("shortfall", 0, how)
        return self._left("shortfall", "committed - drawn - rolled_over, at its end")

    def _pace(self) -> Node:
        row, until = self.row, self.stands.until
        elapsed = (min(until, row["effective_until"]) - row["effective_from"]).total_seconds() / 86400
        term = (row["effective_until"] - row["effective_from"]).total_seconds() / 86400
        how = (
            f"drawn {self.told(self.amount('drawn'))} / (committed {self.told(self.amount('committed'))} x "
            f"{elapsed:,.2f} of {term:,.2f} days elapsed)"
        )
        amount = int(row["pace_ratio"] * RATIO_PER)
        return Node("pace_ratio", amount, RATIO_PER, "ratio", how, made_of=self._drawn())

    def _run_rate(self) -> Node:
        stands = self.stands
        known = days_known(stands.eligible.drop("day"), stands.until, stands.run_rate_days)
        known = known.filter(pl.col("holder") == self.said["holder"])
        many = int(known["days"].item())
        since = stands.until - many * DAY
        rows = stands.eligible.filter(
            (pl.col("holder") == self.said["holder"])
            & pl.col("slice_start").is_between(since, stands.until, closed="left")
        )
        rows = rows.filter(counts_toward(pl.lit(pl.Series([self.said["draws"]])), pl.col("account")))
        parts = self._by_product(rows, rows)
        made_of = total(f"counted toward it since {since:{MINUTE}} UTC", parts, self.per, self.unit)
        how = f"{self.told(made_of.amount)} in the last {many} days / {many}, rounded down"
        return replace(self.leaf("run_rate_per_day", made_of.amount // many, how), made_of=made_of)

    def _projected(self) -> Node:
        drawn = self._drawn()
        ahead = self.amount("projected") - drawn.amount
        left = max(
            (self.row["effective_until"] - max(self.stands.until, self.row["effective_from"])) / DAY, 0
        )
        pace = self.row["run_rate_per_day"]
        each = "nothing" if pace is None else self.told(self.amount("run_rate_per_day"))
        how = (
            f"{each} a day counts toward it, for {left:,.2f} days to its end; what draws before it comes first, and it "
            "draws no more than is left of it"
        )
        parts = [
            drawn.named(f"drawn until {self.stands.until:{MINUTE}} UTC"),
            self.leaf("if the run rate goes on", ahead, how),
        ]
        return total(
            "projected", [part for part in parts if part.amount or part.children], self.per, self.unit
        )

    def _shortfall_projected(self) -> Node:
        parts = [self._committed(), self._projected().negated("less projected")]
        rolls = self.amount("committed") - self.amount("projected") - self.amount("shortfall_projected")
        if rolls:
            parts.append(self.leaf("less what rolls over then", -rolls))
        return total("shortfall_projected", parts, self.per, self.unit, "unmet at its end")

    def _fee(self) -> Node:
        made_of = self._shortfall_projected()
        how = f"{self.told(made_of.amount)} unmet x {rate(self.said['ratio'])}, rounded down; {self.stands.catalog}"
        return replace(self.leaf("shortfall_fee", self.amount("shortfall_fee"), how), made_of=made_of)


# ---- entitlements ----------------------------------------------------------------------------------------


def explain_entitlement(
    customer_usage: pl.DataFrame,
    minutes: pl.DataFrame,
    books: Books,
    period: Period,
    row: Row,
    column: str,
    place: Place,
) -> Node:
    """The tree of a cell of an entitlement: units of a pool, on average over the minutes of the period.

    customer_usage: frames.POOL_CUSTOMER_USAGE of at least the customer and pool; minutes: results.UTILIZATION of the
    pool and dimension. What was burned, in burn units by day or by hour of a day, stands beside it.
    """
    if column not in ENTITLEMENT_COLUMNS:
        raise BadInput(f"'{column}': of an entitlement, give one of {', '.join(ENTITLEMENT_COLUMNS)}")
    customer, per = row["customer"], int(minutes["denominator"][0])
    promised = entitled(books, minutes).filter(pl.col("customer") == customer)
    burned = (
        burned_by_customer(customer_usage.filter(pl.col("customer") == customer), books, minutes)
        .with_columns(pl.col("minute").dt.truncate("15m").alias("quarter_start"))
        .join(promised, on=["pool", "dimension", "customer", "quarter_start"], validate="m:1")
    )
    entitlement = int(promised["entitlement"].sum()) * 15
    daily = period.until - period.start > DAY
    within, above = (
        pl.min_horizontal("burn", "entitlement"),
        pl.max_horizontal(pl.col("burn") - pl.col("entitlement"), pl.lit(0, dtype=SUM)),
    )
    rows = (
        burned.group_by(pl.col("minute").dt.truncate("1d" if daily else "1h").alias("at"))
        .agg(within.sum().alias("within"), above.sum().alias("above"), (above > 0).sum().alias("minutes"))
        .sort("at")
    )
    where = f"contract {row['contract']} ({place('contract', str(row['contract']))})"

    def told(amount: int) -> str:
        return f"{Node('', amount, per, '').value:,.0f}"

    def in_time(which: str, name: str) -> Node:
        def leaf(each: Row) -> Node:
            how = f"above it in {each['minutes']:,} minutes" if which == "above" else ""
            return Node(
                f"{each['at']:%Y-%m-%d}" if daily else f"{each['at']:%H:%M}",
                each[which],
                per,
                "burn units",
                how,
            )

        some = rows.filter(pl.col(which) != 0)
        return grouped(name, some, [], leaf, per, "burn units", each="days" if daily else "hours")

    def units(name: str, how: str, made_of: Node | None = None) -> Node:
        amount = decimal_to_quanta(row[name])
        return Node(name, amount, MONEY_PER, str(row["measure"]), how, made_of=made_of)

    within_it = in_time("within", "burned, of each minute no more than the entitlement")
    above_it = in_time("above", "burned above the entitlement")
    of = f"of {told(entitlement)} entitled in the minutes of the period"
    committed = units("committed", f"in every minute; {where}")
    drawn = units("drawn", f"{row['committed'].normalize():f} x {told(within_it.amount)} {of}", within_it)
    if column == "committed":
        return committed
    if column == "drawn":
        return drawn
    if column == "overage":
        return units(
            "overage", f"{row['committed'].normalize():f} x {told(above_it.amount)} above it, {of}", above_it
        )
    if column == "remaining":
        parts = [committed, drawn.negated("less drawn")]
        return total("remaining", parts, MONEY_PER, str(row["measure"]), "committed - drawn, on average")
    if row["pace_ratio"] is None:
        raise BadInput("pace_ratio is empty here: nothing was entitled to in the complete part of the period")
    how = f"{told(within_it.amount)} burned within it {of}"
    return Node("pace_ratio", int(row["pace_ratio"] * RATIO_PER), RATIO_PER, "ratio", how, made_of=within_it)


# ---- balances --------------------------------------------------------------------------------------------


def net_charges(
    stands: Stands, start: datetime, until: datetime, currency: str, products: Iterable[str] = ()
) -> Node:
    """Net charges of the contract in [start, until), of some products or all: gross less discounts, to the price."""
    earned, books, place = stands.earned(start, until), stands.books, stands.place
    wanted = list(products)
    mine = pl.col("currency") == currency
    if wanted:
        mine &= pl.col("product").is_in(wanted)
    period = Period("explained", start, until)

    def dated(rows: pl.DataFrame) -> pl.DataFrame:
        return rows.filter(mine).with_columns(pl.col("quarter_start").dt.date().alias("day"))

    found = gross_lines(earned, books)
    by_unit = dated(found.by_unit).with_columns(to_quanta(pl.col("amount")).alias("quanta"))
    priced = Priced(earned.counted, books, period, place)
    gross = [
        *rated_tree(by_unit, currency, "price_book", ("product", "tier_sold"), place).children,
        *priced.by_rules(dated(found.by_rule), currency),
        *priced.by_ratios(dated(found.by_ratio), currency),
    ]
    lines = dated(waterfall_lines(earned))
    parts = [total("gross", gross, MONEY_PER, currency)]
    discounts = Terms(earned, books, period, place).discounts(lines, currency)
    if discounts:
        parts.append(total("discount", discounts, MONEY_PER, currency).negated("less discount"))
    return Node("net", int(lines["net"].sum()), MONEY_PER, currency, "gross - discount", tuple(parts))


def explain_balance(stands: Stands, row: Row, column: str, soon_days: int) -> Node:
    """The tree of a cell of standing.BALANCES: what is not billed of the open period, and what is left."""
    if column not in BALANCE_COLUMNS:
        raise BadInput(
            f"balances has no column '{column}' that has parts; give one of {', '.join(BALANCE_COLUMNS)}"
        )
    found = _Balance(stands, row, soon_days).node(column)
    return replace(found, name=column, amount=decimal_to_quanta(row[column]))


@dataclass
class _Balance:
    stands: Stands
    row: Row
    soon_days: int

    @property
    def currency(self) -> str:
        return str(self.row["currency"])

    def sum(self, name: str, parts: Iterable[Node], how: str = "") -> Node:
        return total(name, parts, MONEY_PER, self.currency, how)

    def node(self, column: str) -> Node:
        if column == "unbilled":
            return self._unbilled()
        if column == "fees":
            return self._fees()
        if column == "committed_left":
            return self.sum(
                column, self._tranches(self._in_force()), "of tranches in force: committed - drawn"
            )
        if column in ("prepaid_left", "promotional_left"):
            kind = pl.col("kind") == column.removesuffix("_left")
            here = in_force_at(self.stands.until)
            return self.sum(column, self._grants(self.stands.charged.credits.filter(here & kind)))
        return self._expiring(column)

    # ---- the open period -------------------------------------------------------------------------------------

    def _open(self) -> Period:
        return Period("open", self.row["period_start"], min(self.row["period_until"], self.stands.until))

    def _unbilled(self) -> Node:
        opened = self._open()
        earned = self.stands.earned(opened.start, opened.until)
        terms = Terms(earned, self.stands.books, opened, self.stands.place)
        lines = waterfall_lines(earned).filter(pl.col("currency") == self.currency)
        lines = lines.with_columns(pl.col("quarter_start").dt.date().alias("day"))
        parts = [net_charges(self.stands, opened.start, opened.until, self.currency)]
        for sign, name in _UNBILLED[1:]:
            rows = lines.with_columns(pl.col(name).alias("quanta"))
            told = self.sum(name, terms.told(name, rows, self.currency))
            if told.amount or told.children:
                parts.append(told if sign > 0 else told.negated(f"less {name}"))
        fees = self._fees()
        if fees.amount:
            parts.append(fees)
        how = (
            f"amount due of the open period, {opened.start:{MINUTE}} to {self.row['period_until']:{MINUTE}} UTC, so far: "
            "net + top_up + overage_premium + shortfall - drawdown - promotional_credit - prepaid_credit + fees"
        )
        return self.sum("unbilled", [part for part in parts if part.amount or part.children], how)

    def _fees(self) -> Node:
        opened, books = self._open(), self.stands.books
        mine = books.fees.filter(pl.col("contract") == self.stands.contract)
        cut = slices(opened, open_periods(books, self.stands.until)["period_start"].unique())
        earned = fees_earned(mine, books.contract_terms, cut).filter(pl.col("currency") == self.currency)
        rows = earned.with_columns(
            to_quanta(pl.col("amount")).alias("quanta"), pl.col("slice_start").dt.date().alias("day")
        )
        return fee_tree(rows, self.currency, books, opened.start, opened.until, self.stands.place).named(
            "fees"
        )

    # ---- what is left ------------------------------------------------------------------------------------------

    def _in_force(self) -> pl.DataFrame:
        return self.stands.charged.drawdown.filter(
            in_force_at(self.stands.until)
            & (pl.col("contract") == self.stands.contract)
            & (pl.col("currency") == self.currency)
            & pl.col("meters").is_null()
        )

    def _tranches(self, tranches: pl.DataFrame) -> list[Node]:
        rows = tranches.sort("effective_until", "commitment", "effective_from", "rolled")
        found = []
        for each in rows.iter_rows(named=True):
            about = {
                **each,
                "name": each["commitment"],
                "what": "rolled_over" if each["rolled"] else "commitment",
                "state": "open",
                "measure": each["currency"],
            }
            about |= {
                name: Node("", each[of], MONEY_PER, "").value
                for name, of in (
                    ("committed", "committed"),
                    ("drawn", "drawdown"),
                    ("remaining", "remaining"),
                    ("rolled_over", "rolled_over"),
                )
            }
            node = _Commitment(self.stands, about).node("remaining")
            found.append(node.named(f"{each['commitment']} until {each['effective_until']:{MINUTE}} UTC"))
        return found

    def _grants(self, grants: pl.DataFrame) -> list[Node]:
        """What is left of credit grants: granted, less what they paid by product and day."""
        mine = grants.filter(
            (pl.col("contract") == self.stands.contract) & (pl.col("currency") == self.currency)
        )
        paid = self._paid()
        found = []
        for each in mine.sort("effective_until", "credit", nulls_last=True).iter_rows(named=True):
            ends = (
                f"until {each['effective_until']:{MINUTE}} UTC" if each["effective_until"] else "without end"
            )
            how = f"{each['kind']}, {each['effective_from']:{MINUTE}} UTC {ends}; {self.stands.catalog}"
            rows = paid.filter(pl.col("commitment") == each["credit"])
            used = [
                days(str(product) or "without usage", "", some, self.currency)
                for (product,), some in rows.sort("account").group_by("account", maintain_order=True)
            ]
            parts = [Node("granted", each["amount"], MONEY_PER, self.currency, how)]
            if used:
                words = "net charges and top-ups, less drawdown, in the order of time"
                parts.append(self.sum("used", used, words).negated("less used"))
            found.append(self.sum(each["credit"], parts))
        return found

    def _paid(self) -> pl.DataFrame:
        """What grants paid: commitment (the credit), account (the product), day, quanta."""
        books, until = self.stands.books, self.stands.until
        holder = f"{self.stands.contract} / {self.currency}"
        left = self.stands.charged.creditable.filter(pl.col("holder") == holder)
        counted = self.stands.charged.credits.select("contract", "credit")
        found = []
        for kind in ("promotional", "prepaid"):
            said = books.credit_grants.filter(pl.col("kind") == kind).join(
                counted, on=["contract", "credit"], how="semi"
            )
            done = draw_down(grant_tranches(said).filter(pl.col("holder") == holder), left, until)
            found.append(done.drawn)
            left = done.overage
        return pl.concat(found).with_columns(
            pl.col("slice_start").dt.date().alias("day"), pl.col("amount").alias("quanta")
        )

    def _expiring(self, column: str) -> Node:
        """What ends soon of what was paid ahead or granted, and what would be left of it then."""
        stands = self.stands
        rows = expiring(stands.charged, stands.books, stands.until, stands.run_rate_days, self.soon_days)
        mine = rows.filter((pl.col("contract") == stands.contract) & (pl.col("currency") == self.currency))
        found = []
        for each in mine.sort("expires_at", "name").iter_rows(named=True):
            ends = f"{each['name']} until {each['expires_at']:{MINUTE}} UTC"
            if column == "expiring":
                how = f"left of it; {stands.catalog}"
                found.append(Node(ends, each["expiring"], MONEY_PER, self.currency, how))
            else:
                goes_on = each["expiring"] - each["expected_lost"]
                parts = [
                    Node("left of it", each["expiring"], MONEY_PER, self.currency, stands.catalog),
                    Node(
                        "less what will be drawn",
                        -goes_on,
                        MONEY_PER,
                        self.currency,
                        f"if all that can draw it goes on as in the last {stands.run_rate_days} days",
                    ),
                ]
                found.append(self.sum(ends, parts))
        return self.sum(
            column, found, f"what ends within {self.soon_days} days, and was paid ahead or granted"
        )

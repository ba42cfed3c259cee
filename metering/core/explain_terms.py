"""Where charges of contracts under terms come from: tiers and counters, percentages, discounts, what was drawn."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import polars as pl

from metering.core.agreed import cost_plus
from metering.core.contract_periods import contract_periods
from metering.core.costs import Part
from metering.core.drawing import part_of_ratio
from metering.core.effective import in_force
from metering.core.pricing import PERCENTAGE
from metering.core.rating import rate
from metering.core.revenue import Earned
from metering.frames import DIMENSIONS, SUM, Books
from metering.money import from_quanta
from metering.periods import DAY, QUARTER, Period
from metering.tree import MONEY_PER, Node, total

#: Where a catalog object stands: (kind, name) -> "revision 3, prices.yaml:12".
Place = Callable[[str, str], str]
_SPAN: Final = ("effective_from", "effective_until")
_COUNTER: Final = ["contract", "item", "meters", "rule", "counter_start"]
_ZERO: Final = pl.lit(0, dtype=SUM)
_MINUTE: Final = "%Y-%m-%d %H:%M"
#: The discounts of a margin line: (column of results.WATERFALL, name).
_DISCOUNTS: Final = {
    "line_discount": "line discount",
    "contract_discount": "contract discount",
    "fixed_discount": "fixed discounts",
    "capped": "capped at the maximum",
}


class Gross(NamedTuple):
    """What makes up gross: `by_unit` results.RATED with dimensions, `by_rule` results.GROSS with them, `by_ratio`."""

    by_unit: pl.DataFrame
    by_rule: pl.DataFrame
    by_ratio: pl.DataFrame


def waterfall_lines(earned: Earned) -> pl.DataFrame:
    """results.WATERFALL of the period with the dimensions of its series, slice_start and product."""
    named = earned.series.rename({"customer": "_customer", "product": "_product"})
    return (
        earned.lines.join(named, on="series_id", how="left", validate="m:1")
        .with_columns(pl.col("item").alias("product"), pl.col("quarter_start").alias("slice_start"))
        .drop("_customer", "_product")
    )


def gross_lines(earned: Earned, books: Books) -> Gross:
    """results.GROSS behind the waterfall, by how each line was priced, with the dimensions and `quanta`."""
    key = ["quarter_start", "series_id", "customer", "contract", "item", "currency"]
    there = earned.lines.filter(pl.col("line") == "usage").select(key)
    rows = (
        earned.priced.join(there, on=key, how="semi")
        .join(earned.series.drop("customer"), on="series_id", validate="m:1")
        .with_columns(pl.col("tier_sold").alias("tier"))
        .rename({"gross": "quanta"})
    )
    bound = books.contracts.select("customer", *_SPAN, pl.col("price_book").alias("book"))
    rows = in_force(rows, bound, at="quarter_start", by=["customer"])
    percent = pl.col("meter").str.starts_with(PERCENTAGE)
    by_unit = rows.filter(pl.col("rule").is_null() & ~percent).drop("quanta", "currency", "rule")
    rated, _ = rate(by_unit, books.price_books)
    base = (
        rows.filter(~percent)
        .group_by("quarter_start", "series_id")
        .agg(pl.col("quanta").sum().alias("of_charges"))
    )
    of_ratio = rows.filter(percent).join(base, on=["quarter_start", "series_id"], how="left", validate="m:1")
    return Gross(rated.drop("series_id"), rows.filter(pl.col("rule").is_not_null()), of_ratio)


def cost_plus_lines(parts: Iterable[Part], books: Books, into: str) -> pl.DataFrame:
    """Charges that are a ratio of our cost (into: gross), or the discounts on them, with their dimensions."""
    found = [pl.DataFrame(schema={"slice_start": pl.Datetime("us", "UTC"), **DIMENSIONS, "quanta": SUM})]
    for part in parts:
        for flows in cost_plus(part, books):
            mine = flows.filter((pl.col("into") == into) & pl.col("reason").is_null())
            found.append(
                mine.select("slice_start", "series_id", "quanta", "currency").join(
                    part.known.series, on="series_id", validate="m:1"
                )
            )
    return pl.concat(found, how="diagonal")


class Terms:
    """Nodes of what terms made of charges, for rows of one currency; all rows carry `day` and `quanta`."""

    def __init__(self, earned: Earned, books: Books, period: Period, place: Place) -> None:
        self._earned, self._books, self._period, self._place = earned, books, period, place
        self._by_day = period.until - period.start > DAY
        self._found_periods: pl.DataFrame | None = None

    # ---- gross -------------------------------------------------------------------------------------------

    def by_rules(self, rows: pl.DataFrame, currency: str) -> list[Node]:
        """A node for each price rule and counter, below it each day (of a day: quarter hour) with its tiers."""
        if rows.is_empty():
            return []
        rules = self._books.price_rules.select(
            "rule", "meters", "model", "hours", "free_units", "reset"
        ).unique("rule", keep="first", maintain_order=True)
        rows = rows.join(rules, on="rule", validate="m:1")
        counted = self._earned.counted.rename({"gross": "charged", "quantity": "priced"})
        at = pl.col("day") if self._by_day else pl.col("quarter_start")
        mine = rows.with_columns(at.alias("at")).join(
            counted.select("contract", "item", "meters", "quarter_start", "rule", "counter_start"),
            on=["contract", "item", "meters", "quarter_start", "rule"],
            validate="m:1",
        )
        by = [*_COUNTER, "book", "model", "hours", "free_units", "reset", "at"]
        touched = mine.select(*by, "quarter_start").unique()
        whole = touched.join(counted, on=[*_COUNTER, "quarter_start"], validate="m:1")
        tiers = self._tiers(whole, by)
        counter = by[:-1]
        sums, sums_of_all = (
            whole.sort("quarter_start")
            .group_by(each)
            .agg(
                pl.col("position", "total").first(),
                pl.col("counted", "priced", "charged").sum(),
                pl.len().alias("quarters"),
            )
            .sort(each)
            for each in (by, counter)
        )
        meters = ["meter", "tier_sold", "region", "context_breakpoint"]
        split = mine.group_by(*by, *meters).agg(pl.col("quanta", "quantity").sum()).sort(*by, *meters)
        parts = {key: list(part.iter_rows(named=True)) for key, part in split.group_by(by)}
        crossed = {key: list(part.iter_rows(named=True)) for key, part in tiers.group_by(by)}
        found: dict[tuple[Any, ...], list[Node]] = {}
        for row in sums.iter_rows(named=True):
            key = tuple(row[name] for name in by)
            node = self._counted(row, parts[key], crossed.get(key, []), currency)
            found.setdefault(key[:-1], []).append(node)
        crossed_by_all = {
            key: list(part.iter_rows(named=True))
            for key, part in self._tiers(whole, counter).group_by(counter, maintain_order=True)
        }
        nodes = []
        for row in sums_of_all.iter_rows(named=True):
            key = tuple(row[name] for name in counter)
            nodes.append(self._rule(row, found[key], crossed_by_all.get(key, []), currency))
        return nodes

    def _rule(
        self,
        said: Mapping[str, Any],
        nodes: Sequence[Node],
        tiers: Sequence[Mapping[str, Any]],
        currency: str,
    ) -> Node:
        where = self._place("price_book", said["book"])
        free = f", {said['free_units']:,} units free" if said["free_units"] else ""
        when = f" in hours {said['hours']}" if said["hours"] != "*" else ""
        since = said["counter_start"]
        return total(
            f"{said['item']}, {said['model'].replace('_', ', ')} price of "
            f"{said['meters'].replace(',', ' + ')}{when}",
            nodes,
            MONEY_PER,
            currency,
            f"{_counted_said(said, tiers, 'first of these')}; one counter for all of them since {since:{_MINUTE}} UTC "
            f"(reset: {said['reset']}){free}; contract {said['contract']}, book {said['book']} ({where}), "
            f"rule {said['rule']}",
            "days" if self._by_day else "quarter hours",
        )

    def _tiers(self, whole: pl.DataFrame, by: list[str]) -> pl.DataFrame:
        """What of the counted units lies in which tier: units, entered (flat amounts), packages, by node and tier.

        With x the counter's place less the free units, before and after a quarter hour: of a tier from a to b the
        units min(max(x, a), b) - a, after less before.
        """
        steps = self._books.price_tiers.with_columns(
            pl.col("from_units").cast(SUM).alias("_from"), pl.col("up_to").cast(SUM).alias("_to")
        )
        free = pl.col("free_units").cast(SUM)
        rows = whole.join(steps, on="rule").with_columns(
            *(
                pl.max_horizontal(units - free, _ZERO).alias(into)
                for units, into in (
                    (pl.col("position"), "_before"),
                    (pl.col("position") + pl.col("counted"), "_after"),
                    (pl.col("total"), "_all"),
                )
            )
        )
        top = pl.col("_to")

        def inside(x: str) -> pl.Expr:
            most = pl.when(top.is_null()).then(pl.col(x)).otherwise(pl.min_horizontal(pl.col(x), top))
            return pl.max_horizontal(most - pl.col("_from"), _ZERO)

        def entered(x: str) -> pl.Expr:
            return (pl.col(x) > pl.col("_from")).cast(pl.Int64)

        every = pl.coalesce(pl.col("package_units"), pl.lit(1)).cast(SUM)

        def packages(x: str) -> pl.Expr:
            full = pl.col(x) // every
            started = (pl.col("model") == "package_started") & (pl.col(x) % every > 0)
            return full + started.cast(SUM)

        volume, package = pl.col("model") == "volume", pl.col("package_units").is_not_null()
        of_all = (pl.col("_all") > pl.col("_from")) & (top.is_null() | (pl.col("_all") <= top))
        rows = rows.with_columns(
            pl.when(volume)
            .then(pl.when(of_all).then(pl.col("_after") - pl.col("_before")).otherwise(_ZERO))
            .otherwise(inside("_after") - inside("_before"))
            .alias("units"),
            pl.when(volume | package)
            .then(pl.lit(0))
            .otherwise(entered("_after") - entered("_before"))
            .alias("entered"),
            pl.when(package).then(packages("_after") - packages("_before")).alias("packages"),
        )
        sums = rows.group_by(*by, "tier", "from_units", "up_to", "unit_price", "flat_amount", "package_units")
        return (
            sums.agg(pl.col("units", "entered", "packages").sum())
            .filter((pl.col("units") != 0) | (pl.col("entered") != 0))
            .sort(*by, "tier")
        )

    def _counted(
        self,
        row: Mapping[str, Any],
        parts: Sequence[Mapping[str, Any]],
        tiers: Sequence[Mapping[str, Any]],
        currency: str,
    ) -> Node:
        """A day or quarter hour of a rule: where its counter stood, what it counted, and the tiers that crosses."""
        at = row["at"]
        name = f"{at:%H:%M}" if isinstance(at, datetime) else f"{at:%Y-%m-%d}"
        when = "quarter hour" if isinstance(at, datetime) else "day"
        how = _counted_said(row, tiers, when)
        amount = sum(part["quanta"] for part in parts)
        here = sum(part["quantity"] for part in parts)
        if here != row["priced"]:
            how += f"; of these {here:,} are here"
        facts = {
            "counter_start": row["counter_start"],
            "position": row["position"],
            "counted": row["counted"],
            "priced_by_this_rule": row["priced"],
            "quarter_hours": row["quarters"],
            "catalog": self._place("price_book", row["book"]),
        }
        for tier in tiers:
            facts |= _tier_facts(tier)
        told = [
            Node(
                _cell_said(part),
                part["quanta"],
                MONEY_PER,
                currency,
                f"{part['quantity']:,} of {row['priced']:,} units, split by quantity in each quarter hour",
                facts={"quantity": part["quantity"]},
            )
            for part in parts
        ]
        by_tier = _by_tiers(tiers, currency)
        if len(told) == 1 and len(by_tier) > 1 and sum(node.amount for node in by_tier) == amount:
            told = by_tier
        return Node(name, amount, MONEY_PER, currency, how, tuple(told), facts)

    def by_ratios(self, rows: pl.DataFrame, currency: str) -> list[Node]:
        """A node for each percentage of other charges, by product."""
        if rows.is_empty():
            return []
        found = []
        for (meter, product, book), mine in rows.sort("product", "meter", "book").group_by(
            "meter", "product", "book", maintain_order=True
        ):
            charge = str(meter).removeprefix(PERCENTAGE)
            ratios = self._ratios(str(book), charge, str(product))
            of = _money(mine["of_charges"].sum())
            where = self._place("price_book", str(book))
            how = f"{ratios} of {of} other charges of the same usage, floored in each quarter hour; book {book} ({where})"
            found.append(self._days(f"{product}, {charge}", how, mine, currency))
        return found

    def at_cost(self, rows: pl.DataFrame, currency: str, what: str) -> list[Node]:
        """A node for each product that is charged a ratio of what it cost us."""
        if rows.is_empty():
            return []
        bound = self._books.contracts.select("customer", *_SPAN, pl.col("price_book").alias("book"))
        named = in_force(rows, bound, at="slice_start", by=["customer"])
        found = []
        for (product, book), mine in named.group_by("product", "book", maintain_order=True):
            said = self._books.percentages.filter(
                (pl.col("book") == book) & (pl.col("of") == "cost") & _about(str(product))
            )
            charges = " and ".join(
                f"{charge} {_ratio(ratio)}"
                for charge, ratio in said.select("charge", "ratio").unique().sort("charge").iter_rows()
            )
            where = self._place("price_book", str(book))
            how = f"{charges} of the cost on the usage basis, floored; book {book} ({where})"
            found.append(self._days(f"{product}, {what}", how, mine, currency))
        return sorted(found, key=lambda node: node.name)

    def _ratios(self, book: str, charge: str, product: str) -> str:
        said = self._books.percentages.filter(
            (pl.col("book") == book) & (pl.col("charge") == charge) & _about(product)
        )
        return " then ".join(
            _ratio(ratio) for ratio in said.sort("effective_from")["ratio"].unique(maintain_order=True)
        )

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
                f"{_ratio(ratio)} of {_money(mine['_of'].sum())} ({what}), floored in each quarter hour and series; "
                f"contract {contract} ({self._place('contract', str(contract))})"
            )
            found.append(self._days(f"{product}, {discount}", how, mine, currency))
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
            name = f"{contract}, period {start:{_MINUTE}} to {until:{_MINUTE}} UTC"
            products = [
                self._days(product or "without usage", "", lines, currency)
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
        """top_up, overage_premium, shortfall, breakage or promotional_credit of waterfall lines."""
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
            words = (
                self._overage(str(contract)) if column == "overage_premium" else self._grants(str(contract))
            )
            products = [
                self._days(product or "without usage", "", each, currency)
                for (product,), each in mine.group_by("product", maintain_order=True)
            ]
            where = self._place("contract", str(contract))
            found.append(
                total(f"contract {contract}", products, MONEY_PER, currency, f"{words}; {contract} ({where})")
            )
        return found

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

    def _grants(self, contract: str) -> str:
        there = self._earned.credits.filter(
            (pl.col("contract") == contract) & (pl.col("kind") == "promotional") & (pl.col("used") != 0)
        ).sort("effective_from", "credit")
        said = " and ".join(
            f"{row['credit']} of {_money(row['amount'])} ({_money(row['used'])} used so far"
            + (f", until {row['effective_until']:{_MINUTE}} UTC)" if row["effective_until"] else ")")
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
            ratio = _plain(row["ratio"])
            rolled = ", rolled over," if row["rolled"] else ""
            how = (
                f"committed{rolled} {_money(row['committed'])} from {row['effective_from']:{_MINUTE}} to "
                f"{row['effective_until']:{_MINUTE}} UTC, drawn {_money(row['drawdown'])}: {_money(row['shortfall'])} "
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
                    f"prepaid {_money(row['amount'])}, used {_money(row['used'])}, expired "
                    f"{row['effective_until']:{_MINUTE}} UTC; contract {row['contract']} "
                    f"({self._place('contract', row['contract'])})"
                )
                found.append(Node(row["credit"], row["lapsed"], MONEY_PER, currency, how))
        return found

    def _days(self, name: str, how: str, rows: pl.DataFrame, currency: str) -> Node:
        """The rows day by day; of one day, the sum alone."""
        sums = rows.group_by("day").agg(pl.col("quanta").sum()).sort("day")
        days = [Node(f"{day}", amount, MONEY_PER, currency) for day, amount in sums.iter_rows()]
        return (
            total(name, days, MONEY_PER, currency, how, "days") if len(days) > 1 else days[0].named(name, how)
        )


def _about(product: str) -> pl.Expr:
    return pl.col("item").is_null() | (pl.col("item") == product)


def _by_tiers(tiers: Sequence[Mapping[str, Any]], currency: str) -> list[Node]:
    """Tiers as quantity x unit price and flat amount; packages and volumes are told in words alone."""
    found = []
    for tier in tiers:
        if tier["packages"] or tier["package_units"] is not None:
            return []
        amount = tier["units"] * _quanta(tier["unit_price"]) + tier["entered"] * _quanta(tier["flat_amount"])
        found.append(
            Node(
                f"tier {tier['tier']}",
                amount,
                MONEY_PER,
                currency,
                _tier_priced(tier),
                facts=_tier_facts(tier),
            )
        )
    return found


def _counted_said(row: Mapping[str, Any], tiers: Sequence[Mapping[str, Any]], when: str) -> str:
    """Where a counter stood when something (`when`) began, what it counted then, and what that is in tiers."""
    words = "; ".join(_tier_said(tier, row) for tier in tiers) or "nothing beyond what is free"
    how = f"at {row['position']:,} units when the {when} began, {row['counted']:,} counted: {words}"
    if row["priced"] != row["counted"]:
        how += f"; of that the {row['priced']:,} units that this rule prices: {_money(row['charged'])}"
    return how


def _tier_said(tier: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    if tier["package_units"] is not None:
        kind = row["model"].removeprefix("package_")
        return (
            f"{tier['packages']:,} {kind} packages of {tier['package_units']:,} at {tier['flat_amount']:,.2f}"
        )
    if row["model"] == "volume":
        flat = f", and its share of {tier['flat_amount']:,.2f}" if tier["flat_amount"] else ""
        return f"tier {tier['tier']}, that of all {row['total']:,} units of the counter: {_tier_priced(tier)}{flat}"
    if row["model"] == "unit":
        return _tier_priced(tier)
    return f"tier {tier['tier']} {_range(tier)}: {_tier_priced(tier)}"


def _range(tier: Mapping[str, Any]) -> str:
    return f"above {tier['from_units']:,}" if tier["up_to"] is None else f"to {tier['up_to']:,}"


def _tier_priced(tier: Mapping[str, Any]) -> str:
    per_million = (tier["unit_price"] * 1_000_000).normalize()
    flat = (
        f" + {tier['flat_amount'] * tier['entered']:,.2f} on entering it"
        if tier["entered"] and tier["flat_amount"]
        else ""
    )
    return f"{tier['units']:,} x {per_million:f} per million{flat}"


def _tier_facts(tier: Mapping[str, Any]) -> dict[str, Any]:
    name = f"tier_{tier['tier']}"
    facts = {f"{name}_quantity": tier["units"], f"{name}_unit_price": tier["unit_price"]}
    if tier["flat_amount"]:
        facts |= {f"{name}_flat_amount": tier["flat_amount"], f"{name}_entered": tier["entered"]}
    if tier["packages"] is not None:
        facts[f"{name}_packages"] = tier["packages"]
    return facts


def _cell_said(part: Mapping[str, Any]) -> str:
    context = part["context_breakpoint"]
    above = f"above {context:,} tokens of input" if context else ""
    return ", ".join(filter(None, [part["meter"], part["tier_sold"], part["region"], above]))


def _quanta(amount: Any) -> int:
    return int(amount * MONEY_PER)


def _money(quanta: Any) -> str:
    return f"{pl.select(from_quanta(pl.lit(quanta or 0, dtype=SUM))).item():,.2f}"


def _ratio(ratio: Any) -> str:
    return f"{ratio.normalize():f}"


def _plain(ratio: int) -> str:
    whole, rest = divmod(ratio, 10**12)
    return f"{whole}.{rest:012d}".rstrip("0").rstrip(".")

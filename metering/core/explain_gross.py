"""Where gross comes from: unit prices, tiers and counters, packages, ratios of charges and of our cost."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import polars as pl

from metering.core.agreed import cost_plus
from metering.core.costs import Part
from metering.core.effective import in_force
from metering.core.explain_words import MINUTE, Place, days, money, shortest
from metering.core.pricing import PERCENTAGE
from metering.core.rating import rate
from metering.core.revenue import Earned
from metering.frames.books import Books
from metering.frames.frame import SUM
from metering.frames.usage import DIMENSIONS
from metering.periods import DAY, Period
from metering.tree import MONEY_PER, Node, grouped, total

_SPAN: Final = ("effective_from", "effective_until")
_COUNTER: Final = ["contract", "item", "meters", "rule", "counter_start"]
_ZERO: Final = pl.lit(0, dtype=SUM)


class Gross(NamedTuple):
    """What makes up gross: `by_unit` results.RATED with dimensions, `by_rule` results.GROSS with them, `by_ratio`."""

    by_unit: pl.DataFrame
    by_rule: pl.DataFrame
    by_ratio: pl.DataFrame


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


def rated_tree(rows: pl.DataFrame, currency: str, kind: str, first: tuple[str, ...], place: Place) -> Node:
    """Rated lines (of one currency, with day and quanta) as quantity x unit price, a leaf for each in force.

    kind: price_book or cost_book. first: what the level above region and context breakpoint is about.
    """
    by = [*first, "region", "context_breakpoint", "meter", "book", "unit_price", "currency"]
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
        where = place(kind, row["book"])
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


class Priced:
    """Nodes of how charges were priced but by unit, for rows of one currency; rows carry `day` and `quanta`."""

    def __init__(self, counted: pl.DataFrame, books: Books, period: Period, place: Place) -> None:
        self._all_counted, self._books, self._place = counted, books, place
        self._by_day = period.until - period.start > DAY

    def by_rules(self, rows: pl.DataFrame, currency: str) -> list[Node]:
        """A node for each price rule and counter, below it each day (of a day: quarter hour) with its tiers."""
        if rows.is_empty():
            return []
        rules = self._books.price_rules.select(
            "rule", "meters", "model", "hours", "free_units", "reset"
        ).unique("rule", keep="first", maintain_order=True)
        rows = rows.join(rules, on="rule", validate="m:1")
        counted = self._all_counted.rename({"gross": "charged", "quantity": "priced"})
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
            f"{_counted_said(said, tiers, 'first of these')}; one counter for all of them since {since:{MINUTE}} UTC "
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
            of = money(mine["of_charges"].sum())
            where = self._place("price_book", str(book))
            how = f"{ratios} of {of} other charges of the same usage, floored in each quarter hour; book {book} ({where})"
            found.append(days(f"{product}, {charge}", how, mine, currency))
        return found

    def at_cost(self, rows: pl.DataFrame, currency: str, what: str) -> list[Node]:
        """A node for each product that is charged a ratio of what it cost us."""
        if rows.is_empty():
            return []
        bound = self._books.contracts.select("customer", *_SPAN, pl.col("price_book").alias("book"))
        named = in_force(rows, bound, at="slice_start", by=["customer"])
        found = []
        for (product, book), mine in named.group_by("product", "book", maintain_order=True):
            said = _about(
                self._books.percentages.filter((pl.col("book") == book) & (pl.col("of") == "cost")),
                str(product),
            )
            charges = " and ".join(
                f"{charge} {shortest(ratio)}"
                for charge, ratio in said.select("charge", "ratio").unique().sort("charge").iter_rows()
            )
            where = self._place("price_book", str(book))
            how = f"{charges} of the cost on the usage basis, floored; book {book} ({where})"
            found.append(days(f"{product}, {what}", how, mine, currency))
        return sorted(found, key=lambda node: node.name)

    def _ratios(self, book: str, charge: str, product: str) -> str:
        said = _about(
            self._books.percentages.filter((pl.col("book") == book) & (pl.col("charge") == charge)), product
        )
        return " then ".join(
            shortest(ratio) for ratio in said.sort("effective_from")["ratio"].unique(maintain_order=True)
        )


def _about(percentages: pl.DataFrame, product: str) -> pl.DataFrame:
    """Those of a product; of a charge that has none for it, those of all products."""
    own = percentages.filter(pl.col("item") == product)
    return pl.concat(
        [own, percentages.filter(pl.col("item").is_null()).join(own, on=["book", "charge"], how="anti")]
    )


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
        how += f"; of that the {row['priced']:,} units that this rule prices: {money(row['charged'])}"
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
